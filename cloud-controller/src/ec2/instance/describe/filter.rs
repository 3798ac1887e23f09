//! The filters of DescribeInstances.

use std::borrow::Cow;

use mallee_aws::{
    answer::timestamp,
    filter::{Attribute, Tagged},
};

use super::{Found, MetadataOptionsInfo};
use crate::ec2::{
    address::Elastic,
    instance::state,
    interface::{self, InterfaceRow},
};

impl Tagged for Found {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

fn flag(value: bool) -> Cow<'static, str> {
    if value { "true".into() } else { "false".into() }
}

/// A value of each interface.
fn each<'r>(found: &'r Found, value: impl Fn(&'r InterfaceRow) -> Cow<'r, str>) -> Vec<Cow<'r, str>> {
    found.interfaces.iter().map(value).collect()
}

/// A value that there may be none of.
fn maybe(value: Option<Cow<'_, str>>) -> Vec<Cow<'_, str>> {
    value.into_iter().collect()
}

fn group_ids(found: &Found) -> Vec<Cow<'_, str>> {
    found.interfaces.iter().flat_map(|n| &n.groups).map(|g| g.group_id.as_str().into()).collect()
}

fn group_names(found: &Found) -> Vec<Cow<'_, str>> {
    found.interfaces.iter().flat_map(|n| &n.groups).map(|g| g.group_name.as_str().into()).collect()
}

fn public_ips(found: &Found) -> Vec<Cow<'_, str>> {
    found.interfaces.iter().filter_map(InterfaceRow::public_ip).map(|ip| ip.to_string().into()).collect()
}

fn ipv6(found: &Found) -> Vec<Cow<'_, str>> {
    found.interfaces.iter().flat_map(|n| &n.ipv6).map(|a| a.to_string().into()).collect()
}

/// Whose the public addresses are: an automatic one is the cloud's.
fn public_owners(found: &Found) -> Vec<Cow<'_, str>> {
    let owner = |n: &InterfaceRow| n.elastic.as_ref().map_or("amazon".to_owned(), |_| n.account.clone());
    found.interfaces.iter().filter(|n| n.public_ip().is_some()).map(|n| owner(n).into()).collect()
}

fn elastic<'r>(found: &'r Found, value: impl Fn(&'r Elastic) -> &'r str) -> Vec<Cow<'r, str>> {
    found.interfaces.iter().flat_map(InterfaceRow::elastics).map(|e| value(e).into()).collect()
}

fn private_dns_names(found: &Found) -> Vec<Cow<'_, str>> {
    each(found, |n| interface::private_dns_name(&found.region, n.address).into())
}

/// The filters of DescribeInstances; AWS documents each under the same name. Those that can match nothing here are there, too.
pub const ATTRIBUTES: &[Attribute<Found>] = &[
    ("affinity", |_| vec![]),
    ("architecture", |f| vec![(&f.instance.architecture).into()]),
    ("availability-zone", |f| vec![(&f.instance.zone).into()]),
    ("block-device-mapping.attach-time", |f| f.attachments.iter().map(|a| timestamp(a.since).into()).collect()),
    ("block-device-mapping.delete-on-termination", |f| {
        f.attachments.iter().map(|a| flag(a.delete_on_termination)).collect()
    }),
    ("block-device-mapping.device-name", |f| f.attachments.iter().map(|a| a.device.as_str().into()).collect()),
    ("block-device-mapping.status", |f| f.attachments.iter().map(|a| a.phase.shown().into()).collect()),
    ("block-device-mapping.volume-id", |f| f.attachments.iter().map(|a| a.volume.as_str().into()).collect()),
    ("boot-mode", |_| vec!["legacy-bios".into()]),
    ("capacity-reservation-id", |_| vec![]),
    ("capacity-reservation-specification.capacity-reservation-preference", |_| vec![]),
    ("capacity-reservation-specification.capacity-reservation-target.capacity-reservation-id", |_| vec![]),
    (
        "capacity-reservation-specification.capacity-reservation-target.capacity-reservation-resource-group-arn",
        |_| vec![],
    ),
    ("client-token", |f| maybe(f.instance.client_token.as_deref().map(Into::into))),
    ("current-instance-boot-mode", |_| vec!["legacy-bios".into()]),
    ("dns-name", public_ips),
    ("ebs-optimized", |f| vec![flag(f.instance.options.ebs_optimized)]),
    ("ena-support", |_| vec!["false".into()]),
    ("enclave-options.enabled", |_| vec!["false".into()]),
    ("group-id", group_ids),
    ("group-name", group_names),
    ("hibernation-options.configured", |_| vec!["false".into()]),
    ("hypervisor", |_| vec!["xen".into()]),
    ("iam-instance-profile.arn", |_| vec![]),
    ("iam-instance-profile.id", |_| vec![]),
    ("image-id", |f| vec![(&f.instance.image).into()]),
    ("instance-id", |f| vec![f.instance.id.as_str().into()]),
    ("instance-lifecycle", |_| vec![]),
    ("instance-state-code", |f| vec![f.instance.state().code.to_string().into()]),
    ("instance-state-name", |f| vec![f.instance.state().name.into()]),
    ("instance-type", |f| vec![(&f.instance.instance_type).into()]),
    ("instance.group-id", group_ids),
    ("instance.group-name", group_names),
    ("ip-address", public_ips),
    ("ipv6-address", |f| f.interfaces.iter().flat_map(|i| i.ipv6.iter().map(|a| a.to_string().into())).collect()),
    ("kernel-id", |f| maybe(f.instance.kernel.as_deref().map(Into::into))),
    ("key-name", |f| maybe(f.instance.key_name.as_deref().map(Into::into))),
    ("launch-index", |f| vec![f.instance.launch_index.to_string().into()]),
    ("launch-time", |f| vec![timestamp(f.instance.launched).into()]),
    ("maintenance-options.auto-recovery", |_| vec!["disabled".into()]),
    ("metadata-options.http-endpoint", |f| {
        vec![MetadataOptionsInfo::from(&f.instance.options.metadata).http_endpoint.into()]
    }),
    ("metadata-options.http-protocol-ipv4", |_| vec!["enabled".into()]),
    ("metadata-options.http-protocol-ipv6", |_| vec!["disabled".into()]),
    ("metadata-options.http-put-response-hop-limit", |f| {
        vec![f.instance.options.metadata.hop_limit.to_string().into()]
    }),
    ("metadata-options.http-tokens", |f| {
        vec![MetadataOptionsInfo::from(&f.instance.options.metadata).http_tokens.into()]
    }),
    ("metadata-options.state", |_| vec!["applied".into()]),
    ("metadata-options.instance-metadata-tags", |f| {
        vec![MetadataOptionsInfo::from(&f.instance.options.metadata).instance_metadata_tags.into()]
    }),
    ("monitoring-state", |_| vec!["disabled".into()]),
    ("network-interface.addresses.association.allocation-id", |f| elastic(f, |e| e.allocation.as_str())),
    ("network-interface.addresses.association.association-id", |f| elastic(f, |e| e.association.as_str())),
    ("network-interface.addresses.association.carrier-ip", |_| vec![]),
    ("network-interface.addresses.association.customer-owned-ip", |_| vec![]),
    ("network-interface.addresses.association.ip-owner-id", public_owners),
    ("network-interface.addresses.association.public-dns-name", |_| vec![]),
    ("network-interface.addresses.association.public-ip", public_ips),
    ("network-interface.addresses.primary", |f| each(f, |_| "true".into())),
    ("network-interface.addresses.private-dns-name", private_dns_names),
    ("network-interface.addresses.private-ip-address", |f| each(f, |n| n.address.to_string().into())),
    ("network-interface.association.allocation-id", |f| {
        f.interfaces.iter().filter_map(|n| n.elastic.as_ref()).map(|e| e.allocation.as_str().into()).collect()
    }),
    ("network-interface.association.association-id", |f| {
        f.interfaces.iter().filter_map(|n| n.elastic.as_ref()).map(|e| e.association.as_str().into()).collect()
    }),
    ("network-interface.association.carrier-ip", |_| vec![]),
    ("network-interface.association.customer-owned-ip", |_| vec![]),
    ("network-interface.association.ip-owner-id", public_owners),
    ("network-interface.association.public-dns-name", |_| vec![]),
    ("network-interface.association.public-ip", public_ips),
    ("network-interface.attachment.attach-time", |f| each(f, |n| timestamp(n.attached).into())),
    ("network-interface.attachment.attachment-id", |f| {
        f.interfaces.iter().filter_map(|n| n.attachment.as_ref()).map(|a| a.as_str().into()).collect()
    }),
    ("network-interface.attachment.delete-on-termination", |f| each(f, |n| flag(n.delete_on_termination))),
    ("network-interface.attachment.device-index", |f| each(f, |n| n.device_index.to_string().into())),
    ("network-interface.attachment.instance-id", |f| vec![f.instance.id.as_str().into()]),
    ("network-interface.attachment.instance-owner-id", |f| vec![(&f.instance.account).into()]),
    ("network-interface.attachment.network-card-index", |f| each(f, |_| "0".into())),
    ("network-interface.attachment.status", |f| each(f, |i| i.attachment_status().into())),
    ("network-interface.availability-zone", |f| each(f, |n| n.zone.as_str().into())),
    ("network-interface.deny-all-igw-traffic", |_| vec![]),
    ("network-interface.description", |f| each(f, |n| n.description.as_str().into())),
    ("network-interface.group-id", group_ids),
    ("network-interface.group-name", group_names),
    ("network-interface.ipv4-prefixes.ipv4-prefix", |_| vec![]),
    ("network-interface.ipv6-address", ipv6),
    ("network-interface.ipv6-addresses.ipv6-address", ipv6),
    ("network-interface.ipv6-addresses.is-primary-ipv6", |f| ipv6(f).into_iter().map(|_| "false".into()).collect()),
    ("network-interface.ipv6-native", |f| each(f, |_| "false".into())),
    ("network-interface.ipv6-prefixes.ipv6-prefix", |_| vec![]),
    ("network-interface.mac-address", |f| each(f, |n| n.mac.as_str().into())),
    ("network-interface.network-interface-id", |f| each(f, |n| n.id.as_str().into())),
    ("network-interface.operator.managed", |f| each(f, |_| "false".into())),
    ("network-interface.operator.principal", |_| vec![]),
    ("network-interface.outpost-arn", |_| vec![]),
    ("network-interface.owner-id", |f| each(f, |n| n.account.as_str().into())),
    ("network-interface.private-dns-name", private_dns_names),
    ("network-interface.private-ip-address", |f| each(f, |n| n.address.to_string().into())),
    ("network-interface.public-dns-name", |_| vec![]),
    ("network-interface.requester-id", |_| vec![]),
    ("network-interface.requester-managed", |f| each(f, |_| "false".into())),
    ("network-interface.source-dest-check", |f| each(f, |n| flag(n.source_dest_check))),
    ("network-interface.status", |f| each(f, |_| "in-use".into())),
    ("network-interface.subnet-id", |f| each(f, |n| n.subnet.as_str().into())),
    ("network-interface.vpc-id", |f| each(f, |n| n.vpc.as_str().into())),
    ("network-performance-options.bandwidth-weighting", |_| vec![]),
    ("operator.managed", |_| vec!["false".into()]),
    ("operator.principal", |_| vec![]),
    ("owner-id", |f| vec![(&f.instance.account).into()]),
    ("placement-group-name", |_| vec![]),
    ("platform", |_| vec![]),
    ("platform-details", |_| vec!["Linux/UNIX".into()]),
    ("outpost-arn", |_| vec![]),
    ("placement-partition-number", |_| vec![]),
    ("private-dns-name", private_dns_names),
    ("private-dns-name-options.enable-resource-name-dns-a-record", |_| vec!["false".into()]),
    ("private-dns-name-options.enable-resource-name-dns-aaaa-record", |_| vec!["false".into()]),
    ("private-dns-name-options.hostname-type", |_| vec!["ip-name".into()]),
    ("private-ip-address", |f| each(f, |n| n.address.to_string().into())),
    ("product-code", |_| vec![]),
    ("product-code.type", |_| vec![]),
    ("ramdisk-id", |f| maybe(f.instance.ramdisk.as_deref().map(Into::into))),
    ("reason", |f| vec![state::transition_reason(f.instance.state(), f.instance.cause, f.instance.asked_at).into()]),
    ("requester-id", |_| vec![]),
    ("reservation-id", |f| vec![f.instance.reservation.as_str().into()]),
    ("root-device-name", |f| vec![(&f.instance.options.root_device).into()]),
    ("root-device-type", |f| vec![f.instance.root_device_type().into()]),
    ("source-dest-check", |f| each(f, |n| flag(n.source_dest_check))),
    ("spot-instance-request-id", |_| vec![]),
    ("state-reason-code", |f| maybe(f.instance.state_reason().map(|r| r.code.into()))),
    ("state-reason-message", |f| maybe(f.instance.state_reason().map(|r| r.message.into()))),
    ("subnet-id", |f| vec![(&f.instance.subnet).into()]),
    ("tenancy", |_| vec!["default".into()]),
    ("tpm-support", |_| vec![]),
    ("usage-operation", |_| vec!["RunInstances".into()]),
    ("usage-operation-update-time", |f| vec![timestamp(f.instance.launched).into()]),
    ("virtualization-type", |_| vec!["hvm".into()]),
    ("vpc-id", |f| vec![(&f.instance.vpc).into()]),
];
