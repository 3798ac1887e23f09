//! What a zone is sent of an instance: its rows rendered for the tiers below, with the metadata its guest may read.
//! Pure; whatever goes in here must `touch` the instance when it changes.

use std::collections::BTreeMap;

use mallee_tiers::{Boot, Desired, Hold, InstanceStore, Root, VolumeAttachment};

use super::row::Instance;
use crate::{
    ec2::{
        flow_log,
        image::Image,
        interface::{self, InterfaceRow},
        tag::Tag,
        volume::{Attachment, Phase, Volume},
    },
    identity_document::IdentityKey,
};

/// What the guest is told of its networks.
#[derive(Debug, Clone, Default)]
pub struct Blocks {
    /// By subnet: its interfaces may be in several.
    pub subnets: BTreeMap<String, String>,
    /// The VPC's, the first one first.
    pub vpc: Vec<String>,
    /// By subnet.
    pub subnets_ipv6: BTreeMap<String, String>,
    pub vpc_ipv6: Option<String>,
}

/// Everything an instance's body is made of, besides its own row.
pub struct Parts<'a> {
    pub region: &'a str,
    pub identity: &'a IdentityKey,
    pub image: &'a Image,
    pub kernel: Option<&'a Image>,
    pub ramdisk: Option<&'a Image>,
    /// By device index.
    pub interfaces: &'a [InterfaceRow],
    pub blocks: Blocks,
    pub flow_logs: &'a flow_log::Logs,
    pub user_data: Option<String>,
    /// On their way to it, at it, or on their way off.
    pub volumes: Vec<(Attachment, Volume)>,
    /// Shown in the metadata when the instance's options say so.
    pub tags: Vec<Tag>,
}

/// The body. The error says what is missing for one.
pub fn body(i: &Instance, parts: &Parts<'_>) -> Result<mallee_tiers::Instance, String> {
    let size = i.instance_type().ok_or_else(|| format!("this release has no instance type {}", i.instance_type))?;
    let blob = |image: &Image| image.blob().ok_or_else(|| format!("image {} has no bytes", image.id));
    Ok(mallee_tiers::Instance {
        id: i.id.to_string(),
        generation: i.generation,
        desired: i.desired,
        force: i.forced,
        reboots: i.reboots,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk_gib: if i.options.root_on_volume && i.options.ephemeral.is_none() { 0 } else { size.disk_gib },
        boot: Boot {
            architecture: i.architecture.clone(),
            root: match i.options.root_on_volume {
                true => Root::Volume { volume: root_volume(i, parts).map(|(a, _)| a.volume.to_string()) },
                false => Root::Image(blob(parts.image)?),
            },
            kernel: parts.kernel.map(blob).transpose()?,
            ramdisk: parts.ramdisk.map(blob).transpose()?,
            command_line: None,
        },
        stores: store(i, size.disk_gib).into_iter().collect(),
        awaits: awaits(i, parts),
        hold: i.options.hold.as_ref().filter(|h| !h.over).map(|h| Hold { id: h.id.clone(), kind: h.kind }),
        interfaces: parts.interfaces.iter().map(|i| interface(i, parts)).collect(),
        volumes: parts.volumes.iter().filter_map(|(a, v)| attached(a, v)).collect(),
        metadata: mallee_tiers::Metadata {
            tree: tree(i, parts)?,
            user_data: parts.user_data.clone(),
            enabled: i.options.metadata.enabled,
            tokens_required: i.options.metadata.tokens_required,
            hop_limit: i.options.metadata.hop_limit,
        },
        node: None,
    })
}

fn interface(row: &InterfaceRow, parts: &Parts<'_>) -> mallee_tiers::Interface {
    mallee_tiers::Interface { flow: parts.flow_logs.wanted(parts.region, row).map(Box::new), ..row.wanted() }
}

/// What is attached as its root.
fn root_volume<'p>(i: &Instance, parts: &'p Parts<'_>) -> Option<&'p (Attachment, Volume)> {
    parts.volumes.iter().find(|(a, _)| i.options.root_on_volume && a.device == i.options.root_device)
}

fn store(i: &Instance, size_gib: u64) -> Option<InstanceStore> {
    i.options.ephemeral.clone().filter(|_| i.options.root_on_volume).map(|device| InstanceStore { device, size_gib })
}

/// A guest begins with all its volumes: they are waited for.
fn awaits(i: &Instance, parts: &Parts<'_>) -> Option<String> {
    if i.started.is_some() || i.desired != Desired::Running {
        return None;
    }
    let coming = |(a, v): &&(Attachment, Volume)| a.phase == Phase::Attaching && attached(a, v).is_none();
    if let Some((a, v)) = parts.volumes.iter().find(coming) {
        let reason = if v.reason.is_empty() { String::new() } else { format!(": {}", v.reason) };
        return Some(format!("volume {} is not served yet{reason}", a.volume));
    }
    let lacks_root = i.options.root_on_volume && root_volume(i, parts).is_none();
    lacks_root.then(|| format!("no volume is attached as its root ({})", i.options.root_device))
}

/// The volume in the body: from when its export is served until the node is asked to let go.
pub fn attached(attachment: &Attachment, volume: &Volume) -> Option<VolumeAttachment> {
    if !attachment.is_at_node() {
        return None;
    }
    let export = volume.export.clone().filter(|e| e.attachment == attachment.id)?;
    Some(VolumeAttachment {
        volume: attachment.volume.to_string(),
        device: attachment.device.clone(),
        export,
        size_gib: volume.size_gib,
        limits: volume.limits(),
    })
}

/// After "Instance metadata categories" of the EC2 user guide.
fn tree(i: &Instance, parts: &Parts<'_>) -> Result<BTreeMap<String, String>, String> {
    let mut tree = BTreeMap::new();
    let mut meta = |key: &str, value: &str| {
        tree.insert(format!("meta-data/{key}"), value.to_owned());
    };
    let root_device = i.options.root_device.as_str();
    meta("ami-id", &i.image);
    meta("ami-launch-index", &i.launch_index.to_string());
    meta("ami-manifest-path", &parts.image.location);
    meta("block-device-mapping/ami", root_device.trim_start_matches("/dev/"));
    meta("block-device-mapping/root", root_device);
    let others = parts.volumes.iter().filter(|(a, _)| a.device != root_device);
    for (n, (attachment, _)) in (1..).zip(others) {
        meta(&format!("block-device-mapping/ebs{n}"), attachment.device.trim_start_matches("/dev/"));
    }
    if let Some(device) = &i.options.ephemeral {
        meta("block-device-mapping/ephemeral0", device.trim_start_matches("/dev/"));
    }
    meta("instance-action", "none");
    meta("instance-id", i.id.as_str());
    meta("instance-life-cycle", "on-demand");
    meta("instance-type", &i.instance_type);
    meta("placement/availability-zone", &i.zone);
    meta("placement/region", parts.region);
    meta("profile", "default-hvm");
    meta("reservation-id", i.reservation.as_str());
    meta("services/domain", "amazonaws.com");
    meta("services/partition", "aws");
    if let Some(kernel) = &i.kernel {
        meta("kernel-id", kernel);
    }
    if let Some(ramdisk) = &i.ramdisk {
        meta("ramdisk-id", ramdisk);
    }
    if let (Some(name), Some(key)) = (&i.key_name, &i.options.public_key) {
        meta("public-keys", &format!("0={name}"));
        meta("public-keys/0/openssh-key", &format!("{key} {name}"));
    }
    if i.options.metadata.tags {
        for tag in parts.tags.iter().filter(|t| is_path_segment(&t.key)) {
            meta(&format!("tags/instance/{}", tag.key), &tag.value);
        }
    }
    if let Some(first) = parts.interfaces.first() {
        let name = interface::private_dns_name(parts.region, first.address);
        meta("hostname", &name);
        meta("local-hostname", &name);
        meta("local-ipv4", &first.address.to_string());
        meta("mac", &first.mac);
        if let Some(ipv6) = first.ipv6.first() {
            meta("ipv6", &ipv6.to_string());
        }
        meta("security-groups", &lines(first.groups.iter().map(|g| g.group_name.clone())));
        if let Some(public) = first.public_ip() {
            meta("public-ipv4", &public.to_string());
            meta("public-hostname", &public.to_string());
        }
    }
    for interface in parts.interfaces {
        let mut its = |key: &str, value: &str| meta(&format!("network/interfaces/macs/{}/{key}", interface.mac), value);
        its("device-number", &interface.device_index.to_string());
        its("interface-id", interface.id.as_str());
        its("local-hostname", &interface::private_dns_name(parts.region, interface.address));
        its("local-ipv4s", &lines(interface.addresses().map(|a| a.to_string())));
        its("mac", &interface.mac);
        its("owner-id", &interface.account);
        its("security-group-ids", &lines(interface.groups.iter().map(|g| g.group_id.to_string())));
        its("security-groups", &lines(interface.groups.iter().map(|g| g.group_name.clone())));
        its("subnet-id", interface.subnet.as_str());
        its("subnet-ipv4-cidr-block", parts.blocks.subnets.get(interface.subnet.as_str()).map_or("", String::as_str));
        its("vpc-id", interface.vpc.as_str());
        its("vpc-ipv4-cidr-block", parts.blocks.vpc.first().map_or("", String::as_str));
        its("vpc-ipv4-cidr-blocks", &parts.blocks.vpc.join("\n"));
        if !interface.ipv6.is_empty() {
            its("ipv6s", &lines(interface.ipv6.iter().map(|a| a.to_string())));
        }
        if let Some(block) = parts.blocks.subnets_ipv6.get(interface.subnet.as_str()) {
            its("subnet-ipv6-cidr-blocks", block);
        }
        if let Some(block) = &parts.blocks.vpc_ipv6 {
            its("vpc-ipv6-cidr-blocks", block);
        }
        if let Some(public) = interface.public_ip() {
            its("public-hostname", &public.to_string());
            let others = interface.secondary.iter().filter_map(|s| s.elastic.as_ref()).map(|e| e.public_ip.to_string());
            its("public-ipv4s", &lines(std::iter::once(public.to_string()).chain(others)));
            its(&format!("ipv4-associations/{public}"), &interface.address.to_string());
        }
        for elastic in interface.secondary.iter().filter_map(|s| s.elastic.as_ref()) {
            its(&format!("ipv4-associations/{}", elastic.public_ip), &elastic.private_ip.to_string());
        }
    }
    let document = identity_document(i, parts);
    let signed = parts.identity.sign(&document).map_err(|e| format!("its identity document cannot be signed: {e}"))?;
    for (name, value) in [
        ("document", document),
        ("signature", signed.signature),
        // AWS signs this one with DSA; the same tools verify both.
        ("pkcs7", signed.pkcs7.clone()),
        ("rsa2048", signed.pkcs7),
    ] {
        tree.insert(format!("dynamic/instance-identity/{name}"), value);
    }
    Ok(tree)
}

fn lines(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join("\n")
}

/// EC2 refuses tags in the metadata whose keys are not path segments; here they are left out.
fn is_path_segment(key: &str) -> bool {
    !key.is_empty() && key != "." && key != ".." && !key.contains(['/', ' '])
}

/// Spaced as EC2 does it: some clients cut it by lines.
fn identity_document(i: &Instance, parts: &Parts<'_>) -> String {
    let document = serde_json::json!({
        "accountId": i.account,
        "architecture": i.architecture,
        "availabilityZone": i.zone,
        "billingProducts": null,
        "devpayProductCodes": null,
        "marketplaceProductCodes": null,
        "imageId": i.image,
        "instanceId": i.id,
        "instanceType": i.instance_type,
        "kernelId": i.kernel,
        "pendingTime": whole_seconds(i.launched),
        "privateIp": parts.interfaces.first().map(|f| f.address.to_string()),
        "ramdiskId": i.ramdisk,
        "region": parts.region,
        "version": "2017-09-30",
    });
    serde_json::to_string_pretty(&document).unwrap_or_default()
}

/// `2026-11-20T01:02:03Z`.
fn whole_seconds(at: i64) -> String {
    let at = mallee_aws::answer::timestamp(at);
    format!("{}Z", at.get(..19).unwrap_or_default())
}
