//! Showing interfaces.

use std::net::Ipv6Addr;

use mallee_aws::{
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::{AddressAssociationId, AllocationId, InstanceId, InterfaceAttachmentId, NetworkInterfaceId, SubnetId, VpcId},
};
use serde::{Deserialize, Serialize};

use super::{GroupIdentifier, InterfaceRow, Kind, not_found, of_account, private_dns_name};
use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        address::Elastic,
        listing::{self, Wanted},
        subnet::zone_id,
        tag::{self, Tag},
    },
    service::Call,
};

actions![DescribeNetworkInterfaces => describe];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeNetworkInterfaces {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    network_interface_id: Vec<NetworkInterfaceId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedNetworkInterfaces {
    network_interface_set: Vec<InterfaceInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceInfo {
    network_interface_id: NetworkInterfaceId,
    subnet_id: SubnetId,
    vpc_id: VpcId,
    availability_zone: String,
    availability_zone_id: String,
    description: String,
    owner_id: String,
    requester_managed: bool,
    status: &'static str,
    mac_address: String,
    private_ip_address: String,
    private_dns_name: String,
    source_dest_check: bool,
    group_set: Vec<GroupIdentifier>,
    attachment: Option<Attachment>,
    association: Option<Association>,
    tag_set: Vec<Tag>,
    private_ip_addresses_set: Vec<PrivateAddress>,
    ipv6_addresses_set: Vec<Ipv6Address>,
    interface_type: &'static str,
}

/// As interfaces show them, and instances theirs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipv6Address {
    pub ipv6_address: String,
    is_primary_ipv6: bool,
}

impl Ipv6Address {
    pub fn all(addresses: &[Ipv6Addr]) -> Vec<Self> {
        addresses.iter().map(|a| Self { ipv6_address: a.to_string(), is_primary_ipv6: false }).collect()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    attachment_id: Option<InterfaceAttachmentId>,
    instance_id: InstanceId,
    instance_owner_id: String,
    device_index: u32,
    network_card_index: u32,
    status: &'static str,
    attach_time: String,
    delete_on_termination: bool,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Association {
    public_ip: String,
    public_dns_name: String,
    ip_owner_id: String,
    allocation_id: Option<AllocationId>,
    association_id: Option<AddressAssociationId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PrivateAddress {
    private_ip_address: String,
    private_dns_name: String,
    primary: bool,
    association: Option<Association>,
}

impl InterfaceInfo {
    fn associations(&self) -> impl Iterator<Item = &Association> {
        self.private_ip_addresses_set.iter().filter_map(|a| a.association.as_ref())
    }
}

impl Tagged for InterfaceInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<InterfaceInfo>] = &[
    ("addresses.association.owner-id", |i| i.associations().map(|a| (&a.ip_owner_id).into()).collect()),
    ("addresses.association.public-ip", |i| i.associations().map(|a| (&a.public_ip).into()).collect()),
    ("addresses.primary", |i| i.private_ip_addresses_set.iter().map(|a| a.primary.to_string().into()).collect()),
    ("addresses.private-ip-address", |i| {
        i.private_ip_addresses_set.iter().map(|a| (&a.private_ip_address).into()).collect()
    }),
    ("association.allocation-id", |i| {
        i.association.iter().filter_map(|a| a.allocation_id.as_ref().map(|x| x.as_str().into())).collect()
    }),
    ("association.association-id", |i| {
        i.association.iter().filter_map(|a| a.association_id.as_ref().map(|x| x.as_str().into())).collect()
    }),
    ("association.ip-owner-id", |i| i.association.iter().map(|a| (&a.ip_owner_id).into()).collect()),
    ("association.public-dns-name", |i| i.association.iter().map(|a| (&a.public_dns_name).into()).collect()),
    ("association.public-ip", |i| i.association.iter().map(|a| (&a.public_ip).into()).collect()),
    ("attachment.attach-time", |i| i.attachment.iter().map(|a| (&a.attach_time).into()).collect()),
    ("attachment.attachment-id", |i| {
        i.attachment.iter().filter_map(|a| a.attachment_id.as_ref().map(|x| x.as_str().into())).collect()
    }),
    ("attachment.delete-on-termination", |i| {
        i.attachment.iter().map(|a| a.delete_on_termination.to_string().into()).collect()
    }),
    ("attachment.device-index", |i| i.attachment.iter().map(|a| a.device_index.to_string().into()).collect()),
    ("attachment.instance-id", |i| i.attachment.iter().map(|a| a.instance_id.as_str().into()).collect()),
    ("attachment.instance-owner-id", |i| i.attachment.iter().map(|a| (&a.instance_owner_id).into()).collect()),
    ("attachment.nat-gateway-id", |_| vec![]),
    ("attachment.status", |i| i.attachment.iter().map(|a| a.status.into()).collect()),
    ("availability-zone", |i| vec![(&i.availability_zone).into()]),
    ("availability-zone-id", |i| vec![(&i.availability_zone_id).into()]),
    ("description", |i| vec![(&i.description).into()]),
    ("group-id", |i| i.group_set.iter().map(|g| g.group_id.as_str().into()).collect()),
    ("group-name", |i| i.group_set.iter().map(|g| (&g.group_name).into()).collect()),
    ("interface-type", |i| vec![i.interface_type.into()]),
    ("ipv6-addresses.ipv6-address", |interface| {
        interface.ipv6_addresses_set.iter().map(|a| (&a.ipv6_address).into()).collect()
    }),
    ("mac-address", |i| vec![(&i.mac_address).into()]),
    ("network-interface-id", |i| vec![i.network_interface_id.as_str().into()]),
    ("operator.managed", |_| vec!["false".into()]),
    ("operator.principal", |_| vec![]),
    ("owner-id", |i| vec![(&i.owner_id).into()]),
    ("private-dns-name", |i| vec![(&i.private_dns_name).into()]),
    ("private-ip-address", |i| vec![(&i.private_ip_address).into()]),
    ("requester-id", |_| vec![]),
    ("requester-managed", |i| vec![i.requester_managed.to_string().into()]),
    ("source-dest-check", |i| vec![i.source_dest_check.to_string().into()]),
    ("status", |i| vec![i.status.into()]),
    ("subnet-id", |i| vec![i.subnet_id.as_str().into()]),
    ("vpc-id", |i| vec![i.vpc_id.as_str().into()]),
];

/// An automatic address belongs to `amazon`, an elastic IP to its account.
fn association(row: &InterfaceRow) -> Option<Association> {
    match &row.elastic {
        Some(elastic) => Some(elastic_association(row, elastic)),
        None => Some(Association {
            public_ip: row.automatic_ip?.to_string(),
            public_dns_name: String::new(),
            ip_owner_id: "amazon".to_owned(),
            allocation_id: None,
            association_id: None,
        }),
    }
}

fn elastic_association(row: &InterfaceRow, elastic: &Elastic) -> Association {
    Association {
        public_ip: elastic.public_ip.to_string(),
        public_dns_name: String::new(),
        ip_owner_id: row.account.clone(),
        allocation_id: Some(elastic.allocation.clone()),
        association_id: Some(elastic.association.clone()),
    }
}

pub fn attachment(row: &InterfaceRow) -> Option<Attachment> {
    row.instance.clone().map(|instance_id| Attachment {
        attachment_id: row.attachment.clone(),
        instance_id,
        instance_owner_id: row.account.clone(),
        device_index: row.device_index,
        network_card_index: 0,
        status: row.attachment_status(),
        attach_time: timestamp(row.attached),
        delete_on_termination: row.delete_on_termination,
    })
}

pub fn info(config: &Config, row: InterfaceRow, tag_set: Vec<Tag>) -> InterfaceInfo {
    let region = &config.region;
    let association = association(&row);
    let mut private_ip_addresses_set = vec![PrivateAddress {
        private_ip_address: row.address.to_string(),
        private_dns_name: private_dns_name(region, row.address),
        primary: true,
        association: association.clone(),
    }];
    private_ip_addresses_set.extend(row.secondary.iter().map(|secondary| PrivateAddress {
        private_ip_address: secondary.address.to_string(),
        private_dns_name: private_dns_name(region, secondary.address),
        primary: false,
        association: secondary.elastic.as_ref().map(|elastic| elastic_association(&row, elastic)),
    }));
    let attachment = attachment(&row);
    let ipv6_addresses_set = Ipv6Address::all(&row.ipv6);
    let requester_managed = row.kind != Kind::Interface;
    InterfaceInfo {
        network_interface_id: row.id,
        subnet_id: row.subnet,
        vpc_id: row.vpc,
        availability_zone_id: zone_id(config, &row.zone),
        availability_zone: row.zone,
        description: row.description,
        owner_id: row.account,
        requester_managed,
        status: if attachment.is_some() || requester_managed { "in-use" } else { "available" },
        mac_address: row.mac,
        private_ip_address: row.address.to_string(),
        private_dns_name: private_dns_name(region, row.address),
        source_dest_check: row.source_dest_check,
        group_set: row.groups,
        attachment,
        association,
        tag_set,
        private_ip_addresses_set,
        ipv6_addresses_set,
        interface_type: row.kind.as_str(),
    }
}

async fn describe(call: &Call, input: DescribeNetworkInterfaces) -> Outcome<DescribedNetworkInterfaces> {
    let account = call.account().to_owned();
    let (rows, mut tags) = call
        .cloud
        .store
        .read("describe network interfaces", move |tx| {
            Ok::<_, Refusal>((of_account(tx, &account)?, tag::of_kind(tx, &account, NetworkInterfaceId::PREFIX)?))
        })
        .await?;
    let infos = rows
        .into_iter()
        .map(|row| {
            let tag_set = tags.take(row.id.as_str());
            info(&call.cloud.config, row, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.network_interface_id.iter().map(NetworkInterfaceId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (network_interface_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |i| i.network_interface_id.as_str(), not_found, infos)?;
    Ok(DescribedNetworkInterfaces { network_interface_set, next_token })
}
