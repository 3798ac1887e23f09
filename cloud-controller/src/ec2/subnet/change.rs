//! Making subnets, changing them, and ending them.

use mallee_aws::{
    AwsError,
    id::{SubnetId, VpcId},
};
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};

use super::{Kind, New, SubnetInfo, get, in_vpc, info, insert, ipv6, kind, zone_id};
use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        flow_log, interface, network_acl, route_table,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
        vpc::{self, VpcRow, change::Flag},
    },
    network::{self, Cidr, mac},
    service::Call,
};

actions![
    CreateDefaultSubnet => create_default,
    CreateSubnet => create,
    DeleteSubnet => delete,
    ModifySubnetAttribute => modify_attribute,
];

/// AWS' default.
const MAX_PER_VPC: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateSubnet {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    cidr_block: Option<String>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    ipv6_native: Option<bool>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    #[serde(rename = "Ipv6CidrBlock")]
    ipv6_cidr_block: Option<String>,
    #[serde(rename = "Ipv4IpamPoolId")]
    ipv4_ipam_pool_id: Option<Unsupported>,
    #[serde(rename = "Ipv4NetmaskLength")]
    ipv4_netmask_length: Option<Unsupported>,
    #[serde(rename = "Ipv6IpamPoolId")]
    ipv6_ipam_pool_id: Option<Unsupported>,
    #[serde(rename = "Ipv6NetmaskLength")]
    ipv6_netmask_length: Option<Unsupported>,
    outpost_arn: Option<Unsupported>,
}

#[derive(Serialize)]
struct CreatedSubnet {
    subnet: SubnetInfo,
}

async fn create(call: &Call, input: CreateSubnet) -> Outcome<CreatedSubnet> {
    unsupported::refuse(&[
        ("Ipv4IpamPoolId", input.ipv4_ipam_pool_id),
        ("Ipv4NetmaskLength", input.ipv4_netmask_length),
        ("Ipv6IpamPoolId", input.ipv6_ipam_pool_id),
        ("Ipv6NetmaskLength", input.ipv6_netmask_length),
        ("OutpostArn", input.outpost_arn),
    ])?;
    unsupported::refuse_set("Ipv6Native", input.ipv6_native)?;
    let text = input.cidr_block.ok_or_else(|| AwsError::missing_parameter("CidrBlock"))?;
    let cidr: Cidr = text.parse().map_err(|()| {
        let message = format!("Value ({text}) for parameter cidrBlock is invalid. This is not a valid CIDR block.");
        Refusal::from(AwsError::invalid_parameter_value(message))
    })?;
    let ipv6 = input.ipv6_cidr_block.as_deref().map(ipv6::asked).transpose()?;
    let zone = zone(&call.cloud.config, input.availability_zone.as_deref(), input.availability_zone_id.as_deref())?;
    let tags = tag::specified(&input.tag_specification, &["subnet"])?.remove("subnet").unwrap_or_default();
    let kind = Kind::asked(&tags)?;
    let (account, now, cloud) = (call.account().to_owned(), call.now, call.cloud.clone());
    let (subnet, tag_set) = call
        .cloud
        .store
        .write("create a subnet", move |tx| {
            let vpc = vpc::get(tx, &account, &input.vpc_id)?;
            kind::require_allowed(tx, &account, kind)?;
            check_fits(tx, &cloud.config, &vpc, cidr)?;
            let new = New {
                vpc: vpc.id.clone(),
                zone: zone.clone(),
                cidr,
                kind,
                is_default: false,
                public_on_launch: false,
                now,
            };
            let mut subnet = insert(tx, &account, new)?;
            if let Some(cidr) = ipv6 {
                subnet.require_routed("IPv6 CIDR block")?;
                subnet.ipv6 = Some(ipv6::give(tx, &vpc, &subnet, cidr)?);
            }
            if kind == Kind::Routed {
                let acl = network_acl::default_of(tx, &vpc.id)?;
                network_acl::associate(tx, &acl, &subnet.id)?;
            }
            tag::put(tx, &account, subnet.id.as_str(), &tags)?;
            let tag_set: Vec<Tag> = tag::of(tx, subnet.id.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((subnet, tag_set))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(CreatedSubnet { subnet: info(call, subnet, 0, tag_set) })
}

/// The zone that is named, by name or by id; the first one when none is.
fn zone(config: &Config, name: Option<&str>, id: Option<&str>) -> Outcome<String> {
    let given = |text: Option<&str>| text.filter(|t| !t.is_empty()).map(str::to_owned);
    let (name, id) = (given(name), given(id));
    let found = match (&name, &id) {
        (Some(_), Some(_)) => {
            let message = "You may specify either availabilityZone or availabilityZoneId, but not both";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        (Some(name), None) => config.zones.iter().find(|z| *z == name),
        (None, Some(id)) => config.zones.iter().find(|z| zone_id(config, z) == *id),
        (None, None) => config.zones.first(),
    };
    found.cloned().ok_or_else(|| {
        let asked = name.or(id).unwrap_or_default();
        let message = format!(
            "Value ({asked}) for parameter availabilityZone is invalid. Subnets can currently only be created in the \
             following availability zones: {}.",
            config.zones.join(", ")
        );
        AwsError::invalid_parameter_value(message).into()
    })
}

/// In the VPC, beside its other subnets, and apart from what every router is connected to.
fn check_fits(tx: &mut Tx<'_>, config: &Config, vpc: &VpcRow, cidr: Cidr) -> Outcome<()> {
    let range = || Refusal::new("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid."));
    if !(16..=28).contains(&cidr.length()) || !vpc.blocks().any(|block| block.covers(&cidr)) {
        return Err(range());
    }
    let link_local = Cidr::new([169, 254, 0, 0].into(), 16);
    let outside: Option<Cidr> = config.network.outside.parse().ok();
    if std::iter::once(link_local).chain(outside).any(|taken| taken.overlaps(&cidr)) {
        let message = format!("The CIDR '{cidr}' overlaps a network of the cloud itself: choose another.");
        return Err(Refusal::new("InvalidSubnet.Range", message));
    }
    let there = in_vpc(tx, &vpc.id)?;
    if there.iter().any(|subnet| subnet.cidr.overlaps(&cidr)) {
        let message = format!("The CIDR '{cidr}' conflicts with another subnet");
        return Err(Refusal::new("InvalidSubnet.Conflict", message));
    }
    if there.len() >= MAX_PER_VPC {
        let message = format!("The maximum number of subnets has been reached ({MAX_PER_VPC}).");
        return Err(Refusal::new("SubnetLimitExceeded", message));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateDefaultSubnet {
    dry_run: Option<bool>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    ipv6_native: Option<bool>,
}

async fn create_default(call: &Call, input: CreateDefaultSubnet) -> Outcome<CreatedSubnet> {
    unsupported::refuse_set("Ipv6Native", input.ipv6_native)?;
    if input.availability_zone.is_none() && input.availability_zone_id.is_none() {
        return Err(AwsError::missing_parameter("AvailabilityZone").into());
    }
    let zone = zone(&call.cloud.config, input.availability_zone.as_deref(), input.availability_zone_id.as_deref())?;
    let (account, now) = (call.account().to_owned(), call.now);
    let subnet = call
        .cloud
        .store
        .write("create a default subnet", move |tx| {
            let vpc = vpc::default_of(tx, &account)?.ok_or_else(|| {
                Refusal::new("DefaultVpcDoesNotExist", "There is no default VPC for this account in this region.")
            })?;
            let subnet = network::create_default_subnet(tx, &vpc, &zone, now)?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(subnet)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(CreatedSubnet { subnet: info(call, subnet, 0, Vec::new()) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteSubnet {
    dry_run: Option<bool>,
    subnet_id: SubnetId,
}

async fn delete(call: &Call, input: DeleteSubnet) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a subnet", move |tx| {
            let subnet = get(tx, &account, &input.subnet_id)?;
            let id = &subnet.id;
            if interface::count_in(tx, id)? > 0 {
                let message = format!("The subnet '{id}' has dependencies and cannot be deleted.");
                return Err(Refusal::new("DependencyViolation", message));
            }
            route_table::forget_subnet(tx, id)?;
            network_acl::forget_subnet(tx, id)?;
            ipv6::drop_of_subnet(tx, id)?;
            mac::free(tx, id.as_str())?;
            flow_log::forget(tx, id.as_str())?;
            tag::drop_all(tx, id.as_str())?;
            tx.execute("DELETE FROM subnet WHERE id = ?1", params![id.as_str()])?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifySubnetAttribute {
    subnet_id: SubnetId,
    map_public_ip_on_launch: Option<Flag>,
    assign_ipv6_address_on_creation: Option<Flag>,
    enable_dns64: Option<Flag>,
    map_customer_owned_ip_on_launch: Option<Flag>,
    #[serde(rename = "EnableResourceNameDnsARecordOnLaunch")]
    a_records: Option<Flag>,
    #[serde(rename = "EnableResourceNameDnsAAAARecordOnLaunch")]
    aaaa_records: Option<Flag>,
    private_dns_hostname_type_on_launch: Option<String>,
    customer_owned_ipv4_pool: Option<Unsupported>,
    enable_lni_at_device_index: Option<Unsupported>,
    disable_lni_at_device_index: Option<Flag>,
}

impl ModifySubnetAttribute {
    /// Attributes that stay off.
    fn off(&self) -> [(&'static str, Option<Flag>); 4] {
        [
            ("EnableDns64", self.enable_dns64),
            ("MapCustomerOwnedIpOnLaunch", self.map_customer_owned_ip_on_launch),
            ("EnableResourceNameDnsARecordOnLaunch", self.a_records),
            ("EnableResourceNameDnsAAAARecordOnLaunch", self.aaaa_records),
        ]
    }
}

/// One attribute per call.
async fn modify_attribute(call: &Call, input: ModifySubnetAttribute) -> Outcome<()> {
    unsupported::refuse(&[
        ("CustomerOwnedIpv4Pool", input.customer_owned_ipv4_pool),
        ("EnableLniAtDeviceIndex", input.enable_lni_at_device_index),
    ])?;
    for (name, flag) in input.off() {
        unsupported::refuse_set(name, flag.map(|f| f.value))?;
    }
    if let Some(other) = input.private_dns_hostname_type_on_launch.as_deref().filter(|t| *t != "ip-name") {
        let message = format!("PrivateDnsHostnameTypeOnLaunch={other} is not supported by this cloud");
        return Err(AwsError::unsupported(message).into());
    }
    let given = input.off().iter().filter(|(_, flag)| flag.is_some()).count()
        + usize::from(input.map_public_ip_on_launch.is_some())
        + usize::from(input.assign_ipv6_address_on_creation.is_some())
        + usize::from(input.private_dns_hostname_type_on_launch.is_some())
        + usize::from(input.disable_lni_at_device_index.is_some());
    match given {
        0 => return Err(AwsError::missing_parameter("MapPublicIpOnLaunch").into()),
        1 => {}
        _ => {
            return Err(
                AwsError::invalid_parameter_combination("Only one subnet attribute can be modified at a time").into()
            );
        }
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("modify a subnet's attribute", move |tx| {
            let subnet = get(tx, &account, &input.subnet_id)?;
            let id = &subnet.id;
            if let Some(flag) = input.assign_ipv6_address_on_creation {
                if flag.value && subnet.ipv6.is_none() {
                    let message = format!(
                        "Invalid value 'true' for assignIpv6AddressOnCreation. The subnet {id} has no IPv6 CIDR block."
                    );
                    return Err(AwsError::invalid_parameter_value(message).into());
                }
                tx.execute("UPDATE subnet SET ipv6_on_creation = ?2 WHERE id = ?1", params![id.as_str(), flag.value])?;
            }
            if let Some(flag) = input.map_public_ip_on_launch {
                if flag.value {
                    subnet.require_routed("public addresses")?;
                }
                tx.execute("UPDATE subnet SET public_on_launch = ?2 WHERE id = ?1", params![id.as_str(), flag.value])?;
            }
            Ok::<_, Refusal>(())
        })
        .await
}
