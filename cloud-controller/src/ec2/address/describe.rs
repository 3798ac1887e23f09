//! Showing elastic IPs.

use std::collections::BTreeMap;

use mallee_aws::{
    AwsError,
    filter::{Attribute, Filter, Filters, Tagged},
    id::{AddressAssociationId, AllocationId, InstanceId, NetworkInterfaceId},
};
use serde::{Deserialize, Serialize};

use super::{AddressRow, all, named, no_such_ip, not_found};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        interface::{self, InterfaceRow},
        listing::{self, Wanted},
        tag::{self, Tag},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![
    DescribeAddresses => describe,
    DescribeAddressesAttribute => describe_attribute,
    ModifyAddressAttribute => modify_attribute,
    ResetAddressAttribute => reset_attribute,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeAddresses {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    allocation_id: Vec<AllocationId>,
    #[serde(default)]
    public_ip: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedAddresses {
    addresses_set: Vec<AddressInfo>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AddressInfo {
    public_ip: String,
    allocation_id: AllocationId,
    domain: &'static str,
    instance_id: Option<InstanceId>,
    association_id: Option<AddressAssociationId>,
    network_interface_id: Option<NetworkInterfaceId>,
    network_interface_owner_id: Option<String>,
    private_ip_address: Option<String>,
    tag_set: Vec<Tag>,
    public_ipv4_pool: &'static str,
    network_border_group: String,
}

impl Tagged for AddressInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<AddressInfo>] = &[
    ("allocation-id", |a| vec![a.allocation_id.as_str().into()]),
    ("association-id", |a| a.association_id.iter().map(|i| i.as_str().into()).collect()),
    ("domain", |a| vec![a.domain.into()]),
    ("instance-id", |a| a.instance_id.iter().map(|i| i.as_str().into()).collect()),
    ("network-border-group", |a| vec![(&a.network_border_group).into()]),
    ("network-interface-id", |a| a.network_interface_id.iter().map(|i| i.as_str().into()).collect()),
    ("network-interface-owner-id", |a| a.network_interface_owner_id.iter().map(Into::into).collect()),
    ("private-ip-address", |a| a.private_ip_address.iter().map(Into::into).collect()),
    ("public-ip", |a| vec![(&a.public_ip).into()]),
];

fn info(call: &Call, row: AddressRow, interface: Option<&InterfaceRow>, tag_set: Vec<Tag>) -> AddressInfo {
    AddressInfo {
        public_ip: row.public_ip.to_string(),
        allocation_id: row.id,
        domain: "vpc",
        instance_id: interface.and_then(|i| i.instance.clone()),
        association_id: row.association,
        network_interface_id: row.interface,
        network_interface_owner_id: interface.map(|i| i.account.clone()),
        private_ip_address: row.private_ip.map(|ip| ip.to_string()),
        tag_set,
        public_ipv4_pool: "amazon",
        network_border_group: call.cloud.region().to_owned(),
    }
}

/// All at once: AWS does not page this one either.
async fn describe(call: &Call, input: DescribeAddresses) -> Outcome<DescribedAddresses> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, ATTRIBUTES)?;
    let account = call.account().to_owned();
    let (rows, interfaces, mut tags) = call
        .cloud
        .store
        .read("describe addresses", move |tx| {
            let rows = all(tx, &account)?;
            // Interfaces are looked up only where something points at one.
            let interfaces = if rows.iter().any(|r| r.interface.is_some()) {
                interface::of_account(tx, &account)?
            } else {
                Vec::new()
            };
            Ok::<_, Refusal>((rows, interfaces, tag::of_kind(tx, &account, AllocationId::PREFIX)?))
        })
        .await?;
    for id in &input.allocation_id {
        if !rows.iter().any(|r| r.id == *id) {
            return Err(not_found(id.as_str()));
        }
    }
    for ip in &input.public_ip {
        if !rows.iter().any(|r| r.public_ip.to_string() == *ip) {
            return Err(no_such_ip(ip));
        }
    }
    let interfaces: BTreeMap<&NetworkInterfaceId, &InterfaceRow> = interfaces.iter().map(|i| (&i.id, i)).collect();
    let named = |row: &AddressRow| {
        (input.allocation_id.is_empty() && input.public_ip.is_empty())
            || input.allocation_id.contains(&row.id)
            || input.public_ip.contains(&row.public_ip.to_string())
    };
    let addresses_set = rows
        .into_iter()
        .filter(named)
        .map(|row| {
            let interface = row.interface.as_ref().and_then(|id| interfaces.get(id)).copied();
            let tag_set = tags.take(row.id.as_str());
            info(call, row, interface, tag_set)
        })
        .filter(|address| filters.matches(address))
        .collect();
    Ok(DescribedAddresses { addresses_set })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeAddressesAttribute {
    dry_run: Option<bool>,
    #[serde(default)]
    allocation_id: Vec<AllocationId>,
    attribute: Option<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedAddressesAttribute {
    address_set: Vec<AddressAttribute>,
    next_token: Option<String>,
}

/// No address has a name in DNS, so there is nothing but the address itself.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AddressAttribute {
    public_ip: String,
    allocation_id: AllocationId,
}

impl Tagged for AddressAttribute {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

async fn describe_attribute(call: &Call, input: DescribeAddressesAttribute) -> Outcome<DescribedAddressesAttribute> {
    check_attribute(input.attribute.as_deref())?;
    let account = call.account().to_owned();
    let rows = call.cloud.store.read("describe addresses", move |tx| all(tx, &account)).await?;
    let infos = rows
        .into_iter()
        .map(|r| AddressAttribute { public_ip: r.public_ip.to_string(), allocation_id: r.id })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &[],
        ids: input.allocation_id.iter().map(AllocationId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (address_set, next_token) = listing::page(call, &wanted, &[], |a| a.allocation_id.as_str(), not_found, infos)?;
    Ok(DescribedAddressesAttribute { address_set, next_token })
}

/// There is one.
fn check_attribute(name: Option<&str>) -> Outcome<()> {
    let Some(other) = name.filter(|name| *name != "domain-name") else { return Ok(()) };
    let message = format!("Value ({other}) for parameter attribute is invalid.");
    Err(AwsError::invalid_parameter_value(message).into())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyAddressAttribute {
    dry_run: Option<bool>,
    allocation_id: AllocationId,
    domain_name: Option<Unsupported>,
}

#[derive(Serialize)]
struct OneAddress {
    address: AddressAttribute,
}

async fn modify_attribute(call: &Call, input: ModifyAddressAttribute) -> Outcome<OneAddress> {
    let found = attribute_of(call, &input.allocation_id).await?;
    unsupported::refuse(&[("DomainName", input.domain_name)])?;
    unless_dry_run(input.dry_run)?;
    Ok(found)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResetAddressAttribute {
    dry_run: Option<bool>,
    allocation_id: AllocationId,
    attribute: Option<String>,
}

/// Nothing was set, so it is as it was made.
async fn reset_attribute(call: &Call, input: ResetAddressAttribute) -> Outcome<OneAddress> {
    if input.attribute.is_none() {
        return Err(AwsError::missing_parameter("Attribute").into());
    }
    check_attribute(input.attribute.as_deref())?;
    let found = attribute_of(call, &input.allocation_id).await?;
    unless_dry_run(input.dry_run)?;
    Ok(found)
}

async fn attribute_of(call: &Call, id: &AllocationId) -> Outcome<OneAddress> {
    let (account, id) = (call.account().to_owned(), id.clone());
    let row = call.cloud.store.read("find an address", move |tx| named(tx, &account, Some(&id), None)).await?;
    Ok(OneAddress { address: AddressAttribute { public_ip: row.public_ip.to_string(), allocation_id: row.id } })
}
