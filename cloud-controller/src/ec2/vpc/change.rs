//! Making VPCs, changing them, and ending them.

use mallee_aws::{AwsError, id::VpcId};
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};

use super::{New, VpcInfo, VpcRow, block, get, info, insert, ipv6};
use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        dhcp_options, egress_only_gateway, endpoint, flow_log, internet_gateway, network_acl, peering, route_table,
        security_group::{self, Direction, Peer, Traffic},
        subnet,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    network::{self, Cidr, mac, outside},
    service::Call,
};

actions![
    CreateDefaultVpc => create_default,
    CreateVpc => create,
    DeleteVpc => delete,
    ModifyVpcAttribute => modify_attribute,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateVpc {
    dry_run: Option<bool>,
    cidr_block: Option<String>,
    instance_tenancy: Option<String>,
    amazon_provided_ipv6_cidr_block: Option<bool>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    #[serde(rename = "Ipv6Pool")]
    ipv6_pool: Option<Unsupported>,
    #[serde(rename = "Ipv6CidrBlock")]
    ipv6_cidr_block: Option<Unsupported>,
    #[serde(rename = "Ipv4IpamPoolId")]
    ipv4_ipam_pool_id: Option<Unsupported>,
    #[serde(rename = "Ipv4NetmaskLength")]
    ipv4_netmask_length: Option<Unsupported>,
    #[serde(rename = "Ipv6IpamPoolId")]
    ipv6_ipam_pool_id: Option<Unsupported>,
    #[serde(rename = "Ipv6NetmaskLength")]
    ipv6_netmask_length: Option<Unsupported>,
    #[serde(rename = "Ipv6CidrBlockNetworkBorderGroup")]
    ipv6_cidr_block_network_border_group: Option<Unsupported>,
}

#[derive(Serialize)]
struct CreatedVpc {
    vpc: VpcInfo,
}

/// A block a VPC may have: /16 to /28.
pub fn check_size(text: &str) -> Outcome<Cidr> {
    let cidr: Cidr = text.parse().map_err(|()| {
        let message = format!("Value ({text}) for parameter cidrBlock is invalid. This is not a valid CIDR block.");
        Refusal::from(AwsError::invalid_parameter_value(message))
    })?;
    if !(16..=28).contains(&cidr.length()) {
        return Err(Refusal::new("InvalidVpc.Range", format!("The CIDR '{text}' is invalid.")));
    }
    Ok(cidr)
}

async fn create(call: &Call, input: CreateVpc) -> Outcome<CreatedVpc> {
    unsupported::refuse(&[
        ("Ipv6Pool", input.ipv6_pool),
        ("Ipv6CidrBlock", input.ipv6_cidr_block),
        ("Ipv4IpamPoolId", input.ipv4_ipam_pool_id),
        ("Ipv4NetmaskLength", input.ipv4_netmask_length),
        ("Ipv6IpamPoolId", input.ipv6_ipam_pool_id),
        ("Ipv6NetmaskLength", input.ipv6_netmask_length),
        ("Ipv6CidrBlockNetworkBorderGroup", input.ipv6_cidr_block_network_border_group),
    ])?;
    match input.instance_tenancy.as_deref() {
        None | Some("" | "default") => {}
        Some(tenancy @ ("dedicated" | "host")) => {
            return Err(
                AwsError::unsupported(format!("InstanceTenancy={tenancy} is not supported by this cloud")).into()
            );
        }
        Some(other) => {
            let message = format!("Value ({other}) for parameter instanceTenancy is invalid.");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    let text = input.cidr_block.ok_or_else(|| AwsError::missing_parameter("CidrBlock"))?;
    let cidr = check_size(&text)?;
    let tags = tag::specified(&input.tag_specification, &["vpc"])?.remove("vpc").unwrap_or_default();
    let (account, now, cloud) = (call.account().to_owned(), call.now, call.cloud.clone());
    let (vpc, tag_set) = call
        .cloud
        .store
        .write("create a VPC", move |tx| {
            let mut vpc = make(tx, &cloud.config, &account, cidr, now)?;
            if input.amazon_provided_ipv6_cidr_block == Some(true) {
                vpc.ipv6 = Some(ipv6::give(tx, &cloud.config.network, &vpc)?);
            }
            tag::put(tx, &account, vpc.id.as_str(), &tags)?;
            let tag_set: Vec<Tag> = tag::of(tx, vpc.id.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((vpc, tag_set))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(CreatedVpc { vpc: info(call, vpc, tag_set) })
}

/// A VPC with what every VPC is born with: main route table, default network ACL, default security group.
pub fn make(tx: &mut Tx<'_>, config: &Config, account: &str, cidr: Cidr, now: i64) -> Outcome<VpcRow> {
    let most = config.max_vpcs;
    let count: u64 = tx.query_one("SELECT COUNT(*) FROM vpc WHERE account = ?1", params![account], |row| row.get(0))?;
    if count >= most {
        return Err(Refusal::new("VpcLimitExceeded", format!("The maximum number of VPCs has been reached ({most}).")));
    }
    let dhcp_options = dhcp_options::default_of(tx, account, &config.region, now)?;
    let vpc = insert(tx, &config.network, account, New { cidr, is_default: false, dhcp_options, now })?;
    route_table::insert_main(tx, account, &vpc.id, now)?;
    network_acl::insert_default(tx, account, &vpc.id, now)?;
    let group = security_group::insert(tx, account, &vpc.id, "default", "default VPC security group", now)?;
    let itself = Traffic::everything(Peer::Group(group.id.clone()));
    security_group::insert_rule(tx, &group, Direction::Ingress, &itself, None)?;
    Ok(vpc)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateDefaultVpc {
    dry_run: Option<bool>,
}

async fn create_default(call: &Call, input: CreateDefaultVpc) -> Outcome<CreatedVpc> {
    let (account, now, cloud) = (call.account().to_owned(), call.now, call.cloud.clone());
    let vpc = call
        .cloud
        .store
        .write("create a default VPC", move |tx| {
            if let Some(vpc) = super::default_of(tx, &account)? {
                let message = format!("A Default VPC already exists for this account in this region. ({})", vpc.id);
                return Err(Refusal::new("DefaultVpcAlreadyExists", message));
            }
            let vpc = network::create_default_vpc(tx, &cloud.config, &account, now)?;
            unless_dry_run(input.dry_run)?;
            Ok(vpc)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(CreatedVpc { vpc: info(call, vpc, Vec::new()) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteVpc {
    dry_run: Option<bool>,
    vpc_id: VpcId,
}

/// Only an empty VPC ends: what it was born with goes with it, what was made in it must go before.
async fn delete(call: &Call, input: DeleteVpc) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a VPC", move |tx| {
            let vpc = get(tx, &account, &input.vpc_id)?;
            let id = &vpc.id;
            let in_the_way = !subnet::in_vpc(tx, id)?.is_empty()
                || internet_gateway::of_vpc(tx, id)?.is_some()
                || route_table::count_but_main(tx, id)? > 0
                || network_acl::count_but_default(tx, id)? > 0
                || security_group::group::count_in_vpc(tx, id)? > 1
                || !peering::peers_of(tx, id)?.is_empty()
                || egress_only_gateway::is_in(tx, id)?
                || endpoint::is_in(tx, id)?;
            if in_the_way {
                let message = format!("The vpc '{id}' has dependencies and cannot be deleted.");
                return Err(Refusal::new("DependencyViolation", message));
            }
            route_table::drop_of_vpc(tx, id)?;
            network_acl::drop_of_vpc(tx, id)?;
            security_group::group::drop_of_vpc(tx, id)?;
            peering::forget_vpc(tx, id)?;
            block::drop_of_vpc(tx, id)?;
            ipv6::drop_of_vpc(tx, id)?;
            mac::free(tx, id.as_str())?;
            outside::free(tx, id.as_str())?;
            flow_log::forget(tx, id.as_str())?;
            tag::drop_all(tx, id.as_str())?;
            tx.execute("DELETE FROM vpc WHERE id = ?1", params![id.as_str()])?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyVpcAttribute {
    vpc_id: VpcId,
    enable_dns_support: Option<Flag>,
    enable_dns_hostnames: Option<Flag>,
    enable_network_address_usage_metrics: Option<Flag>,
}

/// `Name.Value=true`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Flag {
    pub value: bool,
}

/// One attribute per call.
async fn modify_attribute(call: &Call, input: ModifyVpcAttribute) -> Outcome<()> {
    let (column, value) =
        match (input.enable_dns_support, input.enable_dns_hostnames, input.enable_network_address_usage_metrics) {
            (Some(flag), None, None) => ("dns_support", flag.value),
            (None, Some(flag), None) => ("dns_hostnames", flag.value),
            (None, None, Some(flag)) => {
                unsupported::refuse_set("EnableNetworkAddressUsageMetrics.Value", Some(flag.value))?;
                ("", false)
            }
            (None, None, None) => return Err(AwsError::missing_parameter("EnableDnsSupport").into()),
            _ => {
                return Err(
                    AwsError::invalid_parameter_combination("Fields for multiple attribute types specified").into()
                );
            }
        };
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("modify a VPC's attribute", move |tx| {
            let vpc = get(tx, &account, &input.vpc_id)?;
            if column == "dns_support" && !value && vpc.dns_hostnames {
                let message = "DNS hostnames cannot be enabled without DNS support";
                return Err(AwsError::invalid_parameter_combination(message).into());
            }
            if column == "dns_hostnames" && value && !vpc.dns_support {
                let message = "DNS hostnames cannot be enabled without DNS support";
                return Err(AwsError::invalid_parameter_combination(message).into());
            }
            if !column.is_empty() {
                tx.execute(&format!("UPDATE vpc SET {column} = ?2 WHERE id = ?1"), params![vpc.id.as_str(), value])?;
            }
            Ok::<_, Refusal>(())
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vpc_is_a_sixteenth_to_a_twenty_eighth() {
        let table = [
            ("10.0.0.0/16", Ok("10.0.0.0/16")),
            ("10.0.3.7/16", Ok("10.0.0.0/16")),
            ("10.0.0.0/28", Ok("10.0.0.0/28")),
            ("10.0.0.0/15", Err("InvalidVpc.Range")),
            ("10.0.0.0/29", Err("InvalidVpc.Range")),
            ("10.0.0.0", Err("InvalidParameterValue")),
            ("fd00::/64", Err("InvalidParameterValue")),
        ];
        for (text, expected) in table {
            let got = check_size(text).map(|c| c.to_string()).map_err(|e| e.code().to_owned());
            assert_eq!(got.as_deref().map_err(|e| e.as_str()), expected, "{text}");
        }
    }
}
