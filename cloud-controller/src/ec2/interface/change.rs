//! Making interfaces that belong to no instance yet, and ending them.

use std::net::Ipv4Addr;

use mallee_aws::{
    AwsError,
    id::{NetworkInterfaceId, SecurityGroupId, SubnetId},
};
use serde::{Deserialize, Serialize};

use super::{
    Kind, New, Secondary,
    address::own,
    create as create_row, delete_row,
    describe::{InterfaceInfo, info},
    get, ipv6,
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        client_token, subnet,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![
    CreateNetworkInterface => create,
    DeleteNetworkInterface => delete,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateNetworkInterface {
    dry_run: Option<bool>,
    subnet_id: SubnetId,
    description: Option<String>,
    private_ip_address: Option<Ipv4Addr>,
    #[serde(default)]
    private_ip_addresses: Vec<PrivateIpAddress>,
    secondary_private_ip_address_count: Option<u32>,
    #[serde(default)]
    security_group_id: Vec<SecurityGroupId>,
    interface_type: Option<String>,
    client_token: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    #[serde(rename = "Ipv4Prefix")]
    ipv4_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv4PrefixCount")]
    ipv4_prefix_count: Option<Unsupported>,
    #[serde(rename = "Ipv6AddressCount")]
    ipv6_address_count: Option<u32>,
    #[serde(rename = "Ipv6Addresses", default)]
    ipv6_addresses: Vec<ipv6::Named>,
    #[serde(rename = "Ipv6Prefix")]
    ipv6_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv6PrefixCount")]
    ipv6_prefix_count: Option<Unsupported>,
    enable_primary_ipv6: Option<Unsupported>,
    connection_tracking_specification: Option<Unsupported>,
    operator: Option<Unsupported>,
}

/// `PrivateIpAddresses.N`, here and in RunInstances.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PrivateIpAddress {
    pub private_ip_address: Ipv4Addr,
    pub primary: Option<bool>,
}

/// The primary address (None: any) and the others, from the ways there are to name them.
pub fn addresses(
    single: Option<Ipv4Addr>,
    list: &[PrivateIpAddress],
    count: Option<u32>,
) -> Outcome<(Option<Ipv4Addr>, Secondary)> {
    let mut primary = list.iter().filter(|a| a.primary == Some(true)).map(|a| a.private_ip_address);
    let named = primary.next();
    if primary.next().is_some() {
        return Err(
            AwsError::invalid_parameter_combination("Only one primary private IP address can be specified").into()
        );
    }
    if single.is_some() && named.is_some() && single != named {
        let message = "PrivateIpAddress and the primary of PrivateIpAddresses name two different addresses";
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    // A lone address that says nothing is the primary one.
    let lone = match list {
        [only] if single.is_none() && only.primary.is_none() => Some(only.private_ip_address),
        _ => None,
    };
    let primary = single.or(named).or(lone);
    let others = list.iter().map(|a| a.private_ip_address).filter(|a| Some(*a) != primary).collect();
    Ok((primary, Secondary { named: others, count: count.unwrap_or(0) }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    network_interface: InterfaceInfo,
    client_token: Option<String>,
}

async fn create(call: &Call, input: CreateNetworkInterface) -> Outcome<Created> {
    unsupported::refuse(&[
        ("Ipv4Prefix", input.ipv4_prefix),
        ("Ipv4PrefixCount", input.ipv4_prefix_count),
        ("Ipv6Prefix", input.ipv6_prefix),
        ("Ipv6PrefixCount", input.ipv6_prefix_count),
        ("EnablePrimaryIpv6", input.enable_primary_ipv6),
        ("ConnectionTrackingSpecification", input.connection_tracking_specification),
        ("Operator", input.operator),
    ])?;
    if let Some(kind) = input.interface_type.as_deref().filter(|k| !k.is_empty() && *k != "interface") {
        return Err(AwsError::unsupported(format!("InterfaceType={kind} is not supported by this cloud")).into());
    }
    let (address, secondary) =
        addresses(input.private_ip_address, &input.private_ip_addresses, input.secondary_private_ip_address_count)?;
    let ipv6 = ipv6::Wanted::asked(&input.ipv6_addresses, input.ipv6_address_count)?;
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let kind = "network-interface";
    let tags = tag::specified(&input.tag_specification, &[kind])?.remove(kind).unwrap_or_default();
    let description = input.description.unwrap_or_default();
    let (account, now, cloud, dry_run) = (call.account().to_owned(), call.now, call.cloud.clone(), input.dry_run);
    let (row, tag_set) = call
        .cloud
        .store
        .write("create a network interface", move |tx| {
            let made = token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
            let id = match made {
                Some(id) => id.parse().map_err(Refusal::from)?,
                None => {
                    let subnet = subnet::get(tx, &account, &input.subnet_id)?;
                    let groups = subnet::kind::groups(tx, &subnet, &input.security_group_id, &[])?;
                    let new = New {
                        account: &account,
                        subnet: &subnet,
                        attached: None,
                        address,
                        secondary: secondary.clone(),
                        ipv6: ipv6.clone(),
                        groups: &groups,
                        description: &description,
                        delete_on_termination: false,
                        source_dest_check: true,
                        public: Some(false),
                        kind: Kind::Interface,
                        now,
                    };
                    let id = create_row(tx, &cloud.config.network, new)?.id;
                    tag::put(tx, &account, id.as_str(), &tags)?;
                    unless_dry_run(dry_run)?;
                    if let Some(token) = &token {
                        token.remember(tx, id.as_str())?;
                    }
                    id
                }
            };
            let tag_set: Vec<Tag> = tag::of(tx, id.as_str())?;
            Ok::<_, Refusal>((get(tx, &account, &id)?, tag_set))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Created { network_interface: info(&call.cloud.config, row, tag_set), client_token: input.client_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteNetworkInterface {
    dry_run: Option<bool>,
    network_interface_id: NetworkInterfaceId,
}

async fn delete(call: &Call, input: DeleteNetworkInterface) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a network interface", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            if row.instance.is_some() {
                let message = format!("Network interface '{}' is currently in use.", row.id);
                return Err(Refusal::new("InvalidNetworkInterface.InUse", message));
            }
            delete_row(tx, &row)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_address_is_found_in_all_the_ways_to_name_it() {
        let ip = |n: u8| Ipv4Addr::new(10, 0, 0, n);
        let item = |n: u8, primary: Option<bool>| PrivateIpAddress { private_ip_address: ip(n), primary };
        let table = [
            (None, vec![], Some((None, vec![]))),
            (Some(ip(4)), vec![], Some((Some(ip(4)), vec![]))),
            (None, vec![item(4, None)], Some((Some(ip(4)), vec![]))),
            (None, vec![item(4, Some(true)), item(5, Some(false))], Some((Some(ip(4)), vec![ip(5)]))),
            (Some(ip(4)), vec![item(5, None)], Some((Some(ip(4)), vec![ip(5)]))),
            (None, vec![item(4, None), item(5, None)], Some((None, vec![ip(4), ip(5)]))),
            (None, vec![item(4, Some(true)), item(5, Some(true))], None),
            (Some(ip(4)), vec![item(5, Some(true))], None),
        ];
        for (single, list, expected) in table {
            let got = addresses(single, &list, None).ok().map(|(primary, s)| (primary, s.named));
            assert_eq!(got, expected, "{single:?} {list:?}");
        }
    }
}
