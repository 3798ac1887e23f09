//! IPv6 of a VPC as clients see it.

use crate::ec2::rehearsal::{Rehearsal, all, first};

#[tokio::test]
async fn a_vpc_gets_a_block_its_subnets_parts_of_it_and_interfaces_addresses() {
    let a = Rehearsal::new().await;
    let made = a.ask("CreateVpc&CidrBlock=10.0.0.0/16&AmazonProvidedIpv6CidrBlock=true").await.unwrap();
    let (vpc, block) = (first(&made, "vpcId"), first(&made, "ipv6CidrBlock"));
    assert!(block.ends_with("00::/56") && block.starts_with("fd6d:616c:6c"), "{block}");
    let other = "CreateVpc&CidrBlock=10.0.0.0/16&AmazonProvidedIpv6CidrBlock=true";
    assert_ne!(first(&a.ask(other).await.unwrap(), "ipv6CidrBlock"), block, "unlike IPv4's they are the VPC's alone");
    let again = format!("AssociateVpcCidrBlock&VpcId={vpc}&AmazonProvidedIpv6CidrBlock=true");
    assert_eq!(a.ask(&again).await, Err("CidrLimitExceeded".into()));
    let part = |n: &str| block.replace("00::/56", &format!("{n}::/64"));
    let create = |cidr: &str, ipv6: &str| format!("CreateSubnet&VpcId={vpc}&CidrBlock={cidr}&Ipv6CidrBlock={ipv6}");
    let subnet = a.ask(&create("10.0.0.0/24", &part("07"))).await.unwrap();
    let subnet_id = first(&subnet, "subnetId");
    assert_eq!(first(&subnet, "ipv6CidrBlock"), part("07"));
    for (cidr, ipv6, code) in [
        ("10.0.1.0/24", part("07"), "InvalidSubnet.Conflict"),
        ("10.0.1.0/24", "fd00::/64".to_owned(), "InvalidSubnet.Range"),
        ("10.0.1.0/24", block.clone(), "InvalidSubnet.Range"),
        ("10.0.1.0/24", "x".to_owned(), "InvalidParameterValue"),
    ] {
        assert_eq!(a.ask(&create(cidr, &ipv6)).await, Err(code.into()), "{ipv6}");
    }
    let interface = |more: &str| format!("CreateNetworkInterface&SubnetId={subnet_id}{more}");
    let none = a.ask(&interface("")).await.unwrap();
    assert!(none.contains("<ipv6AddressesSet/>"), "{none}");
    let attribute = format!("ModifySubnetAttribute&SubnetId={subnet_id}&AssignIpv6AddressOnCreation.Value=true");
    a.ask(&attribute).await.unwrap();
    let one = a.ask(&interface("")).await.unwrap();
    assert_eq!(all(&one, "ipv6Address").len(), 1, "{one}");
    let id = first(&one, "networkInterfaceId");
    let chosen = part("07").replace("::/64", "::99");
    let named = a.ask(&interface(&format!("&Ipv6Addresses.1.Ipv6Address={chosen}"))).await.unwrap();
    assert_eq!(all(&named, "ipv6Address"), [chosen.as_str()]);
    let assign = |what: &str| format!("AssignIpv6Addresses&NetworkInterfaceId={id}&{what}");
    for (what, code) in [
        (format!("Ipv6Addresses.1={chosen}"), "InvalidIPAddress.InUse"),
        ("Ipv6Addresses.1=fd00::9".to_owned(), "InvalidParameterValue"),
        (format!("Ipv6Addresses.1={}", part("07").replace("::/64", "::1")), "InvalidParameterValue"),
        ("Ipv6AddressCount=50".to_owned(), "AddressLimitExceeded"),
        ("Ipv6AddressCount=0".to_owned(), "MissingParameter"),
    ] {
        assert_eq!(a.ask(&assign(&what)).await, Err(code.into()), "{what}");
    }
    let two = a.all(&assign("Ipv6AddressCount=2"), "item").await;
    let has =
        format!("DescribeNetworkInterfaces&Filter.1.Name=ipv6-addresses.ipv6-address&Filter.1.Value.1={}", two[0]);
    assert_eq!(a.all(&has, "networkInterfaceId").await, [id.as_str()]);
    let unassign = format!("UnassignIpv6Addresses&NetworkInterfaceId={id}&Ipv6Addresses.1={}", two[0]);
    a.ask(&unassign).await.unwrap();
    assert_eq!(a.ask(&unassign).await, Err("InvalidParameterValue".into()));
    assert!(a.all(&has, "networkInterfaceId").await.is_empty());
    let association = first(&subnet, "associationId");
    let leave = format!("DisassociateSubnetCidrBlock&AssociationId={association}");
    assert_eq!(a.ask(&leave).await, Err("DependencyViolation".into()), "interfaces have addresses of it");
    let of_vpc =
        all(&made, "associationId").into_iter().find(|id| !made.contains(&format!("{id}</associationId><cidrBlock>")));
    let take_back = format!("DisassociateVpcCidrBlock&AssociationId={}", of_vpc.unwrap());
    assert_eq!(a.ask(&take_back).await, Err("DependencyViolation".into()), "a subnet has a part of it");
    for interface in a.all("DescribeNetworkInterfaces", "networkInterfaceId").await {
        a.ask(&format!("DeleteNetworkInterface&NetworkInterfaceId={interface}")).await.unwrap();
    }
    assert_eq!(first(&a.ask(&leave).await.unwrap(), "state"), "disassociating");
    assert_eq!(a.ask(&attribute).await, Err("InvalidParameterValue".into()), "it has no block any more");
    a.ask(&take_back).await.unwrap();
    a.ask(&again).await.unwrap();
}

#[tokio::test]
async fn an_instance_launched_with_ipv6_shows_it_and_its_metadata_does() {
    let a = Rehearsal::new().await;
    let vpc = a.all("DescribeVpcs", "vpcId").await.remove(0);
    let associate = format!("AssociateVpcCidrBlock&VpcId={vpc}&AmazonProvidedIpv6CidrBlock=true");
    let block = first(&a.ask(&associate).await.unwrap(), "ipv6CidrBlock");
    let subnet = a.all("DescribeSubnets", "subnetId").await.remove(0);
    let part = block.replace("/56", "/64");
    a.ask(&format!("AssociateSubnetCidrBlock&SubnetId={subnet}&Ipv6CidrBlock={part}")).await.unwrap();
    let id = a.launch(&format!("SubnetId={subnet}&Ipv6AddressCount=1")).await;
    let shown = a.ask(&format!("DescribeInstances&InstanceId.1={id}")).await.unwrap();
    let address = first(&shown, "ipv6Address");
    let found = format!("DescribeInstances&Filter.1.Name=ipv6-address&Filter.1.Value.1={address}");
    assert_eq!(a.all(&found, "instanceId").await, [id.as_str()]);
    let tree = a.body(&id).await.metadata.tree;
    assert_eq!(tree["meta-data/ipv6"], address);
    let of = |key: &str| tree.iter().find(|(path, _)| path.ends_with(key)).map(|(_, value)| value.as_str());
    assert_eq!((of("/ipv6s"), of("/subnet-ipv6-cidr-blocks")), (Some(address.as_str()), Some(part.as_str())));
    assert_eq!(of("/vpc-ipv6-cidr-blocks"), Some(block.as_str()));
    let groups = a.ask(&format!("DescribeSecurityGroups&Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}")).await.unwrap();
    assert!(groups.contains("<cidrIpv6>::/0</cidrIpv6>"), "what lets all IPv4 out lets IPv6 out as well: {groups}");
    let acls = a.ask(&format!("DescribeNetworkAcls&Filter.1.Name=vpc-id&Filter.1.Value.1={vpc}")).await.unwrap();
    assert_eq!(all(&acls, "ruleNumber"), ["100", "101", "32767", "32768", "100", "101", "32767", "32768"]);
}

#[tokio::test]
async fn routes_of_ipv6_lead_to_gateways_only() {
    let a = Rehearsal::new().await;
    let vpc = a.all("DescribeVpcs", "vpcId").await.remove(0);
    let table = a.all("DescribeRouteTables", "routeTableId").await.remove(0);
    let igw = a.all("DescribeInternetGateways", "internetGatewayId").await.remove(0);
    let create = format!("CreateEgressOnlyInternetGateway&VpcId={vpc}&ClientToken=t");
    let egress = first(&a.ask(&create).await.unwrap(), "egressOnlyInternetGatewayId");
    assert_eq!(first(&a.ask(&create).await.unwrap(), "egressOnlyInternetGatewayId"), egress);
    let a_route = |action: &str, rest: &str| format!("{action}Route&RouteTableId={table}&{rest}");
    let to = |net: &str| format!("DestinationIpv6CidrBlock={net}");
    a.ask(&a_route("Create", &format!("{}&GatewayId={igw}", to("::/0")))).await.unwrap();
    a.ask(&a_route("Replace", &format!("{}&EgressOnlyInternetGatewayId={egress}", to("::/0")))).await.unwrap();
    let v4 = format!("DestinationCidrBlock=9.0.0.0/8&EgressOnlyInternetGatewayId={egress}");
    assert_eq!(a.ask(&a_route("Create", &v4)).await, Err("InvalidParameterValue".into()));
    let both = format!("DestinationCidrBlock=9.0.0.0/8&{}&GatewayId={igw}", to("fd00::/8"));
    assert_eq!(a.ask(&a_route("Create", &both)).await, Err("InvalidParameterCombination".into()));
    let shown = a.ask("DescribeRouteTables").await.unwrap();
    assert_eq!(first(&shown, "egressOnlyInternetGatewayId"), egress);
    assert!(shown.contains("<destinationIpv6CidrBlock>::/0</destinationIpv6CidrBlock>"), "{shown}");
    assert_eq!(a.ask(&format!("DeleteVpc&VpcId={vpc}")).await, Err("DependencyViolation".into()));
    a.ask(&format!("DeleteEgressOnlyInternetGateway&EgressOnlyInternetGatewayId={egress}")).await.unwrap();
    assert!(a.ask("DescribeRouteTables").await.unwrap().contains("<state>blackhole</state>"));
    a.ask(&a_route("Delete", &to("::/0"))).await.unwrap();
    assert_eq!(a.ask(&a_route("Delete", &to("::/0"))).await, Err("InvalidRoute.NotFound".into()));
}
