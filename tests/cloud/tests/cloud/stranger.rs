//! Strangers: nobody without a signature does anything, and what belongs to another account looks like nothing at all.
//! Both are generated from the product's own tables, so that an action added tomorrow is tried as well.

use std::collections::BTreeMap;

use crate::{snapshot::completed, volume::volume_is};
use http::Method;
use mallee_tests_cloud::{Answer, Client, Cloud, Options, Signed, actions::SERVICES};
use mallee_walrus::operation::{By, Does, OPERATIONS, On, Op};

#[tokio::test(flavor = "multi_thread")]
async fn every_action_is_refused_to_strangers() {
    let cloud = Cloud::start().await;
    let user = cloud.user().await;
    for (_, service) in SERVICES {
        let version = match service.name {
            "sts" => "2011-06-15",
            "bootstrap" => "eucalyptus",
            _ => "2016-11-15",
        };
        for action in service.tables.iter().flat_map(|table| table.iter()) {
            for how in [Signed::Not, Signed::WrongSecret, Signed::UnknownKey, Signed::LongAgo, Signed::OtherBody] {
                let answer = user.query(service.name, &format!("Action={}&Version={version}", action.name), how).await;
                let expected: &[&str] = match how {
                    Signed::LongAgo => &["RequestExpired", "SignatureDoesNotMatch"],
                    _ => {
                        &["AuthFailure", "SignatureDoesNotMatch", "InvalidClientTokenId", "MissingAuthenticationToken"]
                    }
                };
                assert!(expected.contains(&answer.code().as_str()), "{} {how:?}: {}", action.name, answer.text());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_on_a_private_bucket_is_refused_to_strangers() {
    let mut wrong = Vec::new();
    let cloud = Cloud::start().await;
    let (alice, mallory) = (cloud.user().await, cloud.account("mallory").await);
    alice.s3(Method::PUT, "/private", "").await.ok();
    alice.s3(Method::PUT, "/private/key", "secret").await.ok();
    for row in OPERATIONS {
        let (path, who): (&str, &[Signed]) = match row.on {
            // Everybody has a list of their own buckets.
            On::Service => ("/", &[Signed::Not]),
            On::Bucket => ("/private", &[Signed::Not, Signed::Properly]),
            On::Object => ("/private/key", &[Signed::Not, Signed::Properly]),
        };
        let query = match row.by {
            By::Query("uploadId") | By::QueryAndHeader("uploadId", _) => "?uploadId=some&partNumber=1".to_owned(),
            By::Query(name) | By::QueryAndHeader(name, _) => format!("?{name}"),
            By::QueryAndId(name) => format!("?{name}&id=x"),
            By::Value(name, value) => format!("?{name}={value}"),
            By::Nothing | By::Header(_) | By::Form => String::new(),
        };
        let codes: &[&str] = match row.does {
            // A stranger that makes a bucket of a name that is taken is told that it is, and no more.
            Does::This(Op::CreateBucket) => &["AccessDenied", "BucketAlreadyExists"],
            Does::Refused => &["AccessDenied", "NotImplemented"],
            _ => &["AccessDenied"],
        };
        let mut headers = http::HeaderMap::new();
        if let By::Header(name) | By::QueryAndHeader(_, name) = row.by {
            headers.insert(http::HeaderName::from_static(name), http::HeaderValue::from_static("/private/key"));
        }
        if row.name == "GetObjectAttributes" {
            headers.insert("x-amz-object-attributes", http::HeaderValue::from_static("ETag"));
        }
        if row.by == By::Form {
            continue; // Its credentials are in the form: tried in walrus' own tests.
        }
        for how in who {
            let method = row.method.parse().unwrap();
            let target = format!("{path}{query}");
            let sent = mallory.send(mallory.objects, "s3", method, &target, headers.clone(), Default::default(), *how);
            let answer = sent.await.unwrap();
            let refused =
                if row.method == "HEAD" { answer.status == 403 } else { codes.contains(&answer.code().as_str()) };
            if !refused {
                wrong.push(format!("{} {how:?}: {} {}", row.name, answer.status, answer.text()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(alice.s3(Method::GET, "/private/key", "").await.ok().text(), "secret");
}

const S3: &str = "com.amazonaws.mallee-1.s3";

/// What alice has, by the kind of its id, beside an id of that kind that nobody has.
struct Things(BTreeMap<&'static str, (String, String)>);

impl Things {
    async fn of(cloud: &Cloud, alice: &Client) -> Self {
        let image = cloud.image().await.to_owned();
        let running = cloud.launch("").await;
        cloud.instance_is(&running, "running").await;
        let first = |what: Answer, name: &str| what.value(name);
        let mut things = BTreeMap::new();
        let mut add = |kind: &'static str, id: String| {
            let unknown = match id.split_once('-') {
                Some((prefix, _)) if id.contains("-") && kind != "name" => {
                    let prefix = id.rsplit_once('-').map_or(prefix, |(prefix, _)| prefix);
                    format!("{prefix}-0123456789abcdef0")
                }
                _ if kind == "address" => "172.29.0.255".to_owned(),
                _ => format!("un{}", &id[2..]),
            };
            things.insert(kind, (id, unknown));
        };
        add("image", image);
        let instance = alice.ec2(&format!("Action=DescribeInstances&InstanceId.1={running}")).await;
        add("instance", running);
        add("vpc", instance.value("vpcId"));
        add("subnet", instance.value("subnetId"));
        add("interface", instance.value("networkInterfaceId"));
        let volume = first(alice.ec2("Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1").await, "volumeId");
        volume_is(cloud, &volume, "available").await;
        let create = format!("Action=CreateSnapshot&VolumeId={volume}");
        add("volume", volume);
        let snapshot = first(alice.ec2(&create).await, "snapshotId");
        completed(cloud, &snapshot).await;
        add("snapshot", snapshot);
        add(
            "group",
            first(alice.ec2("Action=CreateSecurityGroup&GroupName=mine&GroupDescription=mine").await, "groupId"),
        );
        add("rule", first(alice.ec2("Action=DescribeSecurityGroupRules").await, "securityGroupRuleId"));
        let pair = alice.ec2("Action=CreateKeyPair&KeyName=alices-key&KeyType=ed25519").await;
        add("pair", pair.value("keyPairId"));
        add("name", "alices-key".into());
        let address = alice.ec2("Action=AllocateAddress&Domain=vpc").await;
        add("allocation", address.value("allocationId"));
        add("address", address.value("publicIp"));
        let instance = things["instance"].0.clone();
        let associate =
            format!("Action=AssociateAddress&AllocationId={}&InstanceId={instance}", address.value("allocationId"));
        let peer = alice.ec2("Action=CreateVpc&CidrBlock=10.9.0.0/16").await.value("vpcId");
        let peered = format!("Action=CreateVpcPeeringConnection&VpcId={}&PeerVpcId={peer}", things["vpc"].0);
        let peering = alice.ec2(&peered).await.value("vpcPeeringConnectionId");
        things.insert("peering", (peering, "pcx-0123456789abcdef0".into()));
        let address = alice.ec2("Action=AllocateAddress&Domain=vpc").await.value("allocationId");
        let nat = format!("Action=CreateNatGateway&SubnetId={}&AllocationId={address}", things["subnet"].0);
        things.insert("nat", (alice.ec2(&nat).await.value("natGatewayId"), "nat-0123456789abcdef0".into()));
        let list = alice
            .ec2("Action=CreateManagedPrefixList&PrefixListName=mine&AddressFamily=IPv4&MaxEntries=1&Entry.1.Cidr=10.8.0.0/16")
            .await
            .value("prefixListId");
        things.insert("list", (list, "pl-0123456789abcdef0".into()));
        let egress = format!("Action=CreateEgressOnlyInternetGateway&VpcId={}", things["vpc"].0);
        let egress = alice.ec2(&egress).await.value("egressOnlyInternetGatewayId");
        things.insert("egress", (egress, "eigw-0123456789abcdef0".into()));
        alice.s3(http::Method::PUT, "/alices-logs", "").await.ok();
        let log = format!(
            "Action=CreateFlowLogs&ResourceType=VPC&ResourceId.1={}&TrafficType=ALL&LogDestinationType=s3&LogDestination=arn:aws:s3:::alices-logs",
            things["vpc"].0
        );
        let log = first(alice.ec2(&log).await, "item");
        things.insert("flowlog", (log, "fl-0123456789abcdef0".into()));
        let ipv6 = format!("Action=AssociateVpcCidrBlock&AmazonProvidedIpv6CidrBlock=true&VpcId={}", things["vpc"].0);
        let block = alice.ec2(&ipv6).await;
        things.insert("vpcblock", (block.value("associationId"), "vpc-cidr-assoc-0123456789abcdef0".into()));
        let part = block.value("ipv6CidrBlock").replace("/56", "/64");
        let ipv6 = format!("Action=AssociateSubnetCidrBlock&SubnetId={}&Ipv6CidrBlock={part}", things["subnet"].0);
        let block = alice.ec2(&ipv6).await.value("associationId");
        things.insert("subnetblock", (block, "subnet-cidr-assoc-0123456789abcdef0".into()));
        let endpoint = format!("Action=CreateVpcEndpoint&ServiceName={S3}&VpcId={}", things["vpc"].0);
        things.insert("endpoint", (alice.ec2(&endpoint).await.value("vpcEndpointId"), "vpce-0123456789abcdef0".into()));
        things.insert("association", {
            let id = alice.ec2(&associate).await.value("associationId");
            (id, "eipassoc-0123456789abcdef0".into())
        });
        for (kind, action, member, unknown) in [
            ("gateway", "DescribeInternetGateways", "internetGatewayId", "igw-0123456789abcdef0"),
            ("table", "DescribeRouteTables", "routeTableId", "rtb-0123456789abcdef0"),
            ("acl", "DescribeNetworkAcls", "networkAclId", "acl-0123456789abcdef0"),
            ("dhcp", "DescribeDhcpOptions", "dhcpOptionsId", "dopt-0123456789abcdef0"),
            ("tableassociation", "DescribeRouteTables", "routeTableAssociationId", "rtbassoc-0123456789abcdef0"),
            ("aclassociation", "DescribeNetworkAcls", "networkAclAssociationId", "aclassoc-0123456789abcdef0"),
            ("attachment", "DescribeNetworkInterfaces", "attachmentId", "eni-attach-0123456789abcdef0"),
        ] {
            let found = alice.ec2(&format!("Action={action}")).await;
            things.insert(kind, (found.value(member), unknown.to_owned()));
        }
        Things(things)
    }

    /// Everything alice can see of her own: it must not change.
    async fn picture(alice: &Client) -> String {
        let mut picture = String::new();
        for action in SERVICES[0].1.tables.iter().flat_map(|table| table.iter()) {
            if action.name.starts_with("Describe") {
                picture += &without_request_id(&alice.ec2(&format!("Action={}", action.name)).await);
            }
        }
        picture
    }
}

fn without_request_id(answer: &Answer) -> String {
    let mut text = answer.text();
    for name in ["requestId", "RequestID"] {
        if let Some(id) = answer.get(name) {
            text = text.replace(&id, "");
        }
    }
    text
}

/// The kinds of things a parameter may name; empty for parameters that name nothing of an account.
fn kinds(action: &str, parameter: &str) -> &'static [&'static str] {
    match parameter {
        "InstanceId" => &["instance"],
        "ImageId" | "SourceImageId" => &["image"],
        // That of a regional NAT gateway, which there is none of.
        "VpcId" if action == "CreateNatGateway" => &[],
        // Those of an interface endpoint, which there is none of.
        "SubnetId" | "SecurityGroupId" if action == "CreateVpcEndpoint" => &[],
        "VpcId" => &["vpc"],
        "SubnetId" => &["subnet"],
        "NetworkInterfaceId" => &["interface"],
        "VolumeId" => &["volume"],
        "SnapshotId" | "SourceSnapshotId" => &["snapshot"],
        "GroupId" | "SecurityGroupId" => &["group"],
        "SecurityGroupRuleId" => &["rule"],
        "KeyPairId" => &["pair"],
        "KeyName" if action != "CreateKeyPair" && action != "ImportKeyPair" => &["name"],
        "AllocationId" => &["allocation"],
        "AssociationId" if action == "DisassociateAddress" => &["association"],
        "AssociationId" if action == "DisassociateVpcCidrBlock" => &["vpcblock"],
        "AssociationId" if action == "DisassociateSubnetCidrBlock" => &["subnetblock"],
        "AssociationId" if action == "DisassociateRouteTable" => &["tableassociation"],
        "AssociationId" if action == "ReplaceRouteTableAssociation" => &["tableassociation"],
        "AssociationId" if action == "ReplaceNetworkAclAssociation" => &["aclassociation"],
        "AttachmentId" => &["attachment"],
        "VpcEndpointId" if action != "CreateRoute" && action != "ReplaceRoute" => &["endpoint"],
        "AddRouteTableId" | "RemoveRouteTableId" => &["table"],
        "GatewayId" if action == "CreateRoute" || action == "ReplaceRoute" => &["gateway"],
        "NatGatewayId" => &["nat"],
        "PrefixListId" => &["list"],
        "DestinationPrefixListId" => &["list"],
        "EgressOnlyInternetGatewayId" => &["egress"],
        "VpcPeeringConnectionId" => &["peering"],
        "PeerVpcId" => &["vpc"],
        "PublicIp" => &["address"],
        "InternetGatewayId" => &["gateway"],
        "RouteTableId" => &["table"],
        "NetworkAclId" => &["acl"],
        "DhcpOptionsId" => &["dhcp"],
        "ResourceId" if action == "CreateFlowLogs" => &["vpc"],
        "FlowLogId" => &["flowlog"],
        "ResourceId" => &[
            "flowlog",
            "instance",
            "image",
            "vpc",
            "subnet",
            "interface",
            "volume",
            "snapshot",
            "group",
            "rule",
            "pair",
            "allocation",
            "gateway",
            "table",
            "acl",
            "dhcp",
            "nat",
            "peering",
            "list",
            "egress",
            "endpoint",
        ],
        _ => &[],
    }
}

/// What else the action needs before it looks its ids up. `mallory` has the things it may name beside alice's.
fn rest(action: &str, parameter: &str, own: &BTreeMap<&'static str, String>) -> String {
    let needs: &[(&str, &str)] = match action {
        "AuthorizeSecurityGroupIngress"
            if parameter == "IpPermissions.1.Groups.1.GroupId"
                || parameter == "IpPermissions.1.PrefixListIds.1.PrefixListId" =>
        {
            &[
                ("GroupId", "{group}"),
                ("IpPermissions.1.IpProtocol", "tcp"),
                ("IpPermissions.1.FromPort", "22"),
                ("IpPermissions.1.ToPort", "22"),
            ]
        }
        "AssociateAddress" if parameter == "PublicIp" => &[("InstanceId", "{instance}")],
        "AssociateAddress" if parameter == "NetworkInterfaceId" => &[("AllocationId", "{allocation}")],
        "DetachVolume" => &[("VolumeId", "{volume}")],
        "ModifyInstanceAttribute" if parameter == "GroupId" => &[("InstanceId", "{instance}")],
        "ResetImageAttribute" => &[("Attribute", "launchPermission")],
        "ResetInstanceAttribute" => &[("Attribute", "sourceDestCheck")],
        "RunInstances" if parameter.starts_with("BlockDeviceMapping") => &[
            ("ImageId", "{image}"),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("InstanceType", "mini.nano"),
            ("BlockDeviceMapping.1.DeviceName", "/dev/sdf"),
        ],
        "RunInstances" => {
            &[("ImageId", "{image}"), ("MinCount", "1"), ("MaxCount", "1"), ("InstanceType", "mini.nano")]
        }
        "RegisterImage" => &[("Name", "foreign"), ("BlockDeviceMapping.1.DeviceName", "/dev/sda1")],
        "CreateImage" => &[("Name", "foreign")],
        "CopyImage" => &[("SourceRegion", "mallee-1"), ("Name", "foreign")],
        "ModifyVolumeAttribute" => &[("AutoEnableIO.Value", "true")],
        "CreateVpcPeeringConnection" => &[("VpcId", "{vpc}"), ("PeerVpcId", "{vpc}")],
        "CreateNatGateway" => &[("SubnetId", "{subnet}"), ("AllocationId", "{allocation}")],
        "CreateSubnet" => &[("CidrBlock", "172.31.240.0/24")],
        "AssociateVpcCidrBlock" => &[("CidrBlock", "10.3.0.0/16")],
        "ModifyVpcAttribute" => &[("EnableDnsSupport.Value", "true")],
        "ModifySubnetAttribute" => &[("MapPublicIpOnLaunch.Value", "true")],
        "AttachInternetGateway" | "DetachInternetGateway" => &[("InternetGatewayId", "{gateway}"), ("VpcId", "{vpc}")],
        "AssociateRouteTable" => &[("RouteTableId", "{table}"), ("SubnetId", "{subnet}")],
        "ReplaceRouteTableAssociation" => &[("AssociationId", "{main}"), ("RouteTableId", "{table}")],
        "ReplaceNetworkAclAssociation" => &[("AssociationId", "{aclassociation}"), ("NetworkAclId", "{acl}")],
        "DeleteRoute" if parameter == "RouteTableId" => &[("DestinationCidrBlock", "10.4.0.0/16")],
        "ModifyManagedPrefixList" => &[("MaxEntries", "2")],
        "RestoreManagedPrefixListVersion" => &[("PreviousVersion", "1"), ("CurrentVersion", "1")],
        "CreateFlowLogs" => &[
            ("ResourceType", "VPC"),
            ("TrafficType", "ALL"),
            ("LogDestinationType", "s3"),
            ("LogDestination", "arn:aws:s3:::alices-logs"),
        ],
        "CreateVpcEndpoint" => &[("ServiceName", S3), ("VpcId", "{vpc}")],
        "ModifyVpcEndpoint" if parameter == "VpcEndpointId" => &[("AddRouteTableId.1", "{table}")],
        "ModifyVpcEndpoint" => &[("VpcEndpointId", "{endpoint}")],
        "AssociateSubnetCidrBlock" => &[("Ipv6CidrBlock", "fd00::/64")],
        "AssignIpv6Addresses" => &[("Ipv6AddressCount", "1")],
        "UnassignIpv6Addresses" => &[("Ipv6Addresses.1", "fd00::9")],
        "DeleteRoute" if parameter == "DestinationPrefixListId" => &[("RouteTableId", "{table}")],
        "CreateRoute" | "ReplaceRoute" if parameter == "DestinationPrefixListId" => {
            &[("RouteTableId", "{table}"), ("GatewayId", "{gateway}")]
        }
        "CreateRoute" | "ReplaceRoute" if parameter == "EgressOnlyInternetGatewayId" => {
            &[("DestinationIpv6CidrBlock", "fd00:4::/32"), ("RouteTableId", "{table}")]
        }
        "CreateRoute" | "ReplaceRoute" if parameter != "RouteTableId" => {
            &[("DestinationCidrBlock", "10.4.0.0/16"), ("RouteTableId", "{table}")]
        }
        "CreateRoute" | "ReplaceRoute" => &[("DestinationCidrBlock", "10.4.0.0/16"), ("GatewayId", "{gateway}")],
        "CreateNetworkAclEntry" | "ReplaceNetworkAclEntry" => &[
            ("RuleNumber", "7"),
            ("Protocol", "-1"),
            ("RuleAction", "allow"),
            ("Egress", "false"),
            ("CidrBlock", "0.0.0.0/0"),
        ],
        "DeleteNetworkAclEntry" => &[("RuleNumber", "7"), ("Egress", "false")],
        "AssociateDhcpOptions" => &[("DhcpOptionsId", "{dhcp}"), ("VpcId", "{vpc}")],
        "CreateNetworkInterface" => &[("SubnetId", "{subnet}")],
        "AttachNetworkInterface" => {
            &[("NetworkInterfaceId", "{interface}"), ("InstanceId", "{instance}"), ("DeviceIndex", "1")]
        }
        "AssignPrivateIpAddresses" => &[("SecondaryPrivateIpAddressCount", "1")],
        "UnassignPrivateIpAddresses" => &[("PrivateIpAddress.1", "172.31.0.9")],
        "ModifyNetworkInterfaceAttribute" if parameter == "SecurityGroupId" => &[("NetworkInterfaceId", "{interface}")],
        "ModifyNetworkInterfaceAttribute" if parameter == "Attachment.AttachmentId" => {
            &[("NetworkInterfaceId", "{interface}"), ("Attachment.DeleteOnTermination", "true")]
        }
        "ModifyNetworkInterfaceAttribute" => &[("Description.Value", "foreign")],
        "ResetNetworkInterfaceAttribute" => &[("SourceDestCheck", "true")],
        "CreateVolume" => &[("AvailabilityZone", "mallee-1a")],
        "ModifyVolume" => &[("Size", "2")],
        "CopySnapshot" => &[("SourceRegion", "mallee-1")],
        "ModifySnapshotAttribute" => &[("CreateVolumePermission.Add.1.Group", "all")],
        "DescribeSnapshotAttribute" | "ResetSnapshotAttribute" => &[("Attribute", "createVolumePermission")],
        "CreateTags" => &[("Tag.1.Key", "mine"), ("Tag.1.Value", "now")],
        "AttachVolume" => &[("VolumeId", "{volume}"), ("InstanceId", "{instance}"), ("Device", "/dev/sdf")],
        "AssociateAddress" => &[("AllocationId", "{allocation}"), ("InstanceId", "{instance}")],
        "DescribeInstanceAttribute" => &[("Attribute", "userData")],
        "DescribeVolumeAttribute" => &[("Attribute", "autoEnableIO")],
        "ResetAddressAttribute" => &[("Attribute", "domain-name")],
        "DescribeVpcAttribute" => &[("Attribute", "enableDnsSupport")],
        "DescribeImageAttribute" => &[("Attribute", "launchPermission")],
        "DescribeNetworkInterfaceAttribute" => &[("Attribute", "description")],
        "ModifyInstanceAttribute" => &[("DisableApiTermination.Value", "true")],
        "ModifyImageAttribute" => &[("LaunchPermission.Add.1.Group", "all")],
        "ModifyInstanceMetadataOptions" => &[("HttpTokens", "required")],
        "ModifyInstanceMaintenanceOptions" => &[("AutoRecovery", "disabled")],
        "CreateSecurityGroup" => &[("GroupName", "foreign"), ("GroupDescription", "foreign")],
        "AuthorizeSecurityGroupIngress"
        | "AuthorizeSecurityGroupEgress"
        | "RevokeSecurityGroupIngress"
        | "RevokeSecurityGroupEgress"
            if parameter != "SecurityGroupRuleId" =>
        {
            &[
                ("IpPermissions.1.IpProtocol", "tcp"),
                ("IpPermissions.1.FromPort", "22"),
                ("IpPermissions.1.ToPort", "22"),
                ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0"),
            ]
        }
        "RevokeSecurityGroupIngress" | "RevokeSecurityGroupEgress" => &[("GroupId", "{group}")],
        "UpdateSecurityGroupRuleDescriptionsIngress" | "UpdateSecurityGroupRuleDescriptionsEgress" => &[
            ("IpPermissions.1.IpProtocol", "tcp"),
            ("IpPermissions.1.FromPort", "22"),
            ("IpPermissions.1.ToPort", "22"),
            ("IpPermissions.1.IpRanges.1.CidrIp", "0.0.0.0/0"),
            ("IpPermissions.1.IpRanges.1.Description", "foreign"),
        ],
        "ModifySecurityGroupRules" => &[
            ("GroupId", "{group}"),
            ("SecurityGroupRule.1.SecurityGroupRuleId", "sgr-0123456789abcdef0"),
            ("SecurityGroupRule.1.SecurityGroupRule.IpProtocol", "tcp"),
            ("SecurityGroupRule.1.SecurityGroupRule.FromPort", "22"),
            ("SecurityGroupRule.1.SecurityGroupRule.ToPort", "22"),
            ("SecurityGroupRule.1.SecurityGroupRule.CidrIpv4", "0.0.0.0/0"),
        ],
        _ => &[],
    };
    let mut text = String::new();
    for (name, value) in needs {
        if *name == parameter {
            continue;
        }
        let mut value = (*value).to_owned();
        for (kind, id) in own {
            value = value.replace(&format!("{{{kind}}}"), id);
        }
        text += &format!("&{name}={value}");
    }
    text
}

/// Nested parameters that name things: `Action`, parameter, kind.
const NESTED: &[(&str, &str, &str)] = &[
    ("RunInstances", "NetworkInterface.1.SubnetId", "subnet"),
    ("RunInstances", "NetworkInterface.1.SecurityGroupId.1", "group"),
    ("RunInstances", "NetworkInterface.1.NetworkInterfaceId", "interface"),
    ("RunInstances", "BlockDeviceMapping.1.Ebs.SnapshotId", "snapshot"),
    ("RegisterImage", "BlockDeviceMapping.1.Ebs.SnapshotId", "snapshot"),
    ("AuthorizeSecurityGroupIngress", "IpPermissions.1.PrefixListIds.1.PrefixListId", "list"),
    ("AuthorizeSecurityGroupIngress", "IpPermissions.1.Groups.1.GroupId", "group"),
    ("ModifyNetworkInterfaceAttribute", "Attachment.AttachmentId", "attachment"),
    ("CreateSnapshots", "InstanceSpecification.InstanceId", "instance"),
    ("ModifySecurityGroupRules", "SecurityGroupRule.1.SecurityGroupRuleId", "rule"),
];

/// Parameters that end like an id and name nothing an account has, with why. This list may only shrink.
const NAMES_NOTHING: &[(&str, &str)] = &[
    ("AssociatedSubnetId", "refused by name"),
    ("AvailabilityZoneId", "everybody has the same zones"),
    ("AddSecurityGroupId", "refused by name: no endpoints of that kind"),
    ("AddSubnetId", "refused by name: no endpoints of that kind"),
    ("CarrierGatewayId", "refused by name"),
    ("CoreNetworkArn", "refused by name"),
    ("DeliverLogsPermissionArn", "refused by name"),
    ("DestinationAvailabilityZoneId", "everybody has the same zones"),
    ("DestinationOutpostArn", "refused by name"),
    ("GatewayId", "refused by name where it is not a route's"),
    ("ImportTaskId", "another account's looks like none in import's own test"),
    ("Ipv4IpamPoolId", "refused by name"),
    ("Ipv6IpamPoolId", "refused by name"),
    ("KernelId", "refused by name"),
    ("KmsKeyId", "no key of the cloud's is of an account"),
    ("LocalGatewayId", "refused by name"),
    ("OdbNetworkArn", "refused by name"),
    ("OrganizationArn", "refused by name"),
    ("OrganizationalUnitArn", "refused by name"),
    ("OutpostArn", "refused by name"),
    ("PeerOwnerId", "an account"),
    ("RamdiskId", "refused by name"),
    ("RemoveSecurityGroupId", "refused by name: no endpoints of that kind"),
    ("RemoveSubnetId", "refused by name: no endpoints of that kind"),
    ("ResourceConfigurationArn", "refused by name"),
    ("SecondaryAllocationId", "refused by name"),
    ("ServiceNetworkArn", "refused by name"),
    ("SourceSecurityGroupOwnerId", "an account"),
    ("SubnetId", "refused by name where there are no endpoints of that kind"),
    ("SecurityGroupId", "refused by name where there are no endpoints of that kind"),
    ("TransitGatewayId", "refused by name"),
    ("UserId", "an account"),
    ("VpcEndpointId", "refused by name as a route's target"),
    ("VpcId", "refused by name: no regional NAT gateways"),
    ("ZoneId", "everybody has the same zones"),
];

/// An action that is added with an id of a new kind is tried by the next test, or it is said here why not.
#[test]
fn every_parameter_that_is_an_id_is_tried_as_another_accounts() {
    let mut missed = Vec::new();
    let mut used = std::collections::BTreeSet::new();
    for action in SERVICES[0].1.tables.iter().flat_map(|table| table.iter()) {
        for parameter in (action.parameters)() {
            if !(parameter.ends_with("Id") || parameter.ends_with("Arn")) || !kinds(action.name, parameter).is_empty() {
                continue;
            }
            match NAMES_NOTHING.iter().find(|(name, _)| name == parameter) {
                Some((name, _)) => _ = used.insert(*name),
                None => missed.push(format!("{} {parameter}", action.name)),
            }
        }
    }
    assert!(missed.is_empty(), "say in `kinds` what these name:\n{}", missed.join("\n"));
    let idle: Vec<_> = NAMES_NOTHING.iter().filter(|(name, _)| !used.contains(name)).collect();
    assert!(idle.is_empty(), "no action has these any more: {idle:?}");
}

/// Action and parameter whose answer does not end in a `NotFound`, with why that is right. This list may only shrink.
const OTHERWISE: &[(&str, &str, &str)] = &[
    ("DeleteKeyPair", "KeyName", "deleting what is not there is a success, as at AWS"),
    ("DeleteKeyPair", "KeyPairId", "deleting what is not there is a success, as at AWS"),
    ("DeleteTags", "ResourceId", "deleting what is not there is a success, as at AWS"),
    ("DetachVolume", "InstanceId", "the volume that must be named is looked at first"),
    ("MonitorInstances", "InstanceId", "refused by name before anything is looked up"),
    ("ReplaceRoute", "DestinationPrefixListId", "what is looked for is a route of one's own table, and there is none"),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_another_account_looks_exactly_like_one_that_does_not_exist() {
    let cloud = Cloud::start_with(Options { s3_url: "http://172.29.0.1:8777".into(), ..Options::default() }).await;
    let alice = cloud.user().await.clone();
    let things = Things::of(&cloud, &alice).await;
    let mallory = cloud.account("mallory").await;
    let own = of_mallory(&cloud, &mallory).await;
    let before = Things::picture(&alice).await;
    let mut wrong = Vec::new();
    let mut tried = 0;
    let mut cases: Vec<(&str, String, &str)> = Vec::new();
    for action in SERVICES[0].1.tables.iter().flat_map(|table| table.iter()) {
        for parameter in (action.parameters)() {
            cases
                .extend(kinds(action.name, parameter).iter().map(|kind| (action.name, (*parameter).to_owned(), *kind)));
        }
    }
    cases.extend(NESTED.iter().map(|(action, parameter, kind)| (*action, (*parameter).to_owned(), *kind)));
    for (action, parameter, kind) in cases {
        let (foreign, unknown) = &things.0[kind];
        let more = rest(action, &parameter, &own);
        let mut seen = String::new();
        // The table says names, not whether there may be several.
        for spelling in [parameter.clone(), format!("{parameter}.1")] {
            let ask = async |id: &str| mallory.ec2(&format!("Action={action}&{spelling}={id}{more}")).await;
            let (of_alice, of_nobody) = (ask(foreign).await, ask(unknown).await);
            let told = (of_alice.status, without_request_id(&of_alice).replace(foreign, unknown));
            if told != (of_nobody.status, without_request_id(&of_nobody)) {
                wrong.push(format!(
                    "{action} {spelling} ({kind}) tells them apart:\n  {}\n  {}",
                    of_alice.text(),
                    of_nobody.text()
                ));
            }
            // Of several things, what is wrong with each is in the answer.
            let code = of_nobody.get("code").unwrap_or_else(|| of_nobody.code());
            let expected = code.contains("NotFound") || OTHERWISE.iter().any(|o| o.0 == action && o.1 == parameter);
            if expected {
                tried += 1;
                seen.clear();
                break;
            }
            seen += &format!("\n  {spelling}: {}", of_nobody.text());
        }
        if !seen.is_empty() {
            wrong.push(format!(
                "{action} {parameter} ({kind}) is not looked up, or `rest` does not give what it needs:{seen}"
            ));
        }
    }
    assert_eq!(Things::picture(&alice).await, before, "something of alice's was changed by another account");
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), wrong.len() + tried, wrong.join("\n"));
    assert!(tried > 40, "only {tried} cases: is the table empty?");
}

/// What another account needs to name beside alice's things.
async fn of_mallory(cloud: &Cloud, mallory: &Client) -> BTreeMap<&'static str, String> {
    let image = cloud.register(mallory, "mallorys").await;
    mallee_tests_cloud::image_settles(mallory, &image, "available").await;
    let tables = mallory.ec2("Action=DescribeRouteTables").await;
    let acls = mallory.ec2("Action=DescribeNetworkAcls").await;
    let launch = format!("Action=RunInstances&ImageId={image}&InstanceType=mini.nano&MinCount=1&MaxCount=1");
    let vpc = mallory.ec2("Action=DescribeVpcs").await.value("vpcId");
    let endpoint = format!("Action=CreateVpcEndpoint&ServiceName={S3}&VpcId={vpc}");
    BTreeMap::from([
        ("endpoint", mallory.ec2(&endpoint).await.value("vpcEndpointId")),
        ("table", tables.value("routeTableId")),
        ("main", tables.value("routeTableAssociationId")),
        ("aclassociation", acls.value("networkAclAssociationId")),
        ("acl", acls.value("networkAclId")),
        ("gateway", mallory.ec2("Action=DescribeInternetGateways").await.value("internetGatewayId")),
        ("vpc", vpc),
        ("subnet", mallory.ec2("Action=DescribeSubnets").await.value("subnetId")),
        ("dhcp", mallory.ec2("Action=DescribeDhcpOptions").await.value("dhcpOptionsId")),
        ("instance", mallory.ec2(&launch).await.value("instanceId")),
        ("interface", mallory.ec2("Action=DescribeNetworkInterfaces").await.value("networkInterfaceId")),
        ("image", image),
        ("volume", mallory.ec2("Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1").await.value("volumeId")),
        ("allocation", mallory.ec2("Action=AllocateAddress&Domain=vpc").await.value("allocationId")),
        ("group", mallory.ec2("Action=DescribeSecurityGroups").await.value("groupId")),
    ])
}
