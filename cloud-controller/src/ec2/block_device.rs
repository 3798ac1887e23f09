//! Block device mappings: which disks an image's instances have. Asked for in RegisterImage, CreateImage and RunInstances,
//! where a launch's own go over the image's. Pure, but for the sizes of snapshots.
//!
//! `ephemeralN` is an instance store. An instance type's disk is the root of an instance-store image, and `ephemeral0`
//! beside a root on a volume: an empty disk of the type's size, on the node, gone when the instance is stopped. Others do not
//! exist, and are left out without a word, as AWS does with those a type does not have.

use std::collections::BTreeSet;

use mallee_aws::{AwsError, id::SnapshotId};
use mallee_tiers::VOLUMES_AT_AN_INSTANCE;
use serde::{Deserialize, Serialize};

use super::{
    unsupported::{self, Unsupported},
    volume::{disk_of, figures, is_device},
};
use crate::{Outcome, Refusal};

/// `BlockDeviceMapping.N`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Asked {
    device_name: Option<String>,
    virtual_name: Option<String>,
    /// Whatever it says: the device is left out.
    no_device: Option<String>,
    ebs: Option<EbsAsked>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EbsAsked {
    delete_on_termination: Option<bool>,
    encrypted: Option<bool>,
    iops: Option<u32>,
    snapshot_id: Option<SnapshotId>,
    throughput: Option<u32>,
    volume_size: Option<u64>,
    volume_type: Option<String>,
    availability_zone: Option<Unsupported>,
    kms_key_id: Option<Unsupported>,
    outpost_arn: Option<Unsupported>,
    volume_initialization_rate: Option<Unsupported>,
}

/// A device of an image, or of a launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// As it was written: `/dev/sda1`.
    pub device: String,
    pub disk: Disk,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disk {
    Volume(VolumeOf),
    /// `ephemeralN`.
    InstanceStore(u8),
}

/// A volume that each instance gets for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeOf {
    pub snapshot: Option<Source>,
    pub size_gib: u64,
    pub kind: String,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
    pub delete_on_termination: bool,
    pub encrypted: bool,
}

/// The snapshot a volume begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub id: String,
    /// No volume of it can be smaller.
    pub size_gib: u64,
    pub encrypted: bool,
}

impl Mapping {
    pub fn volume(&self) -> Option<&VolumeOf> {
        match &self.disk {
            Disk::Volume(volume) => Some(volume),
            Disk::InstanceStore(_) => None,
        }
    }
}

impl Mapping {
    pub fn volume_mut(&mut self) -> Option<&mut VolumeOf> {
        match &mut self.disk {
            Disk::Volume(volume) => Some(volume),
            Disk::InstanceStore(_) => None,
        }
    }
}

/// The device that is the root, when it is a volume.
pub fn root<'m>(mappings: &'m [Mapping], root_device: &str) -> Option<&'m VolumeOf> {
    mappings.iter().find(|m| m.device == root_device).and_then(Mapping::volume)
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new("InvalidBlockDeviceMapping", message)
}

/// `asked`, over what the image has. `source` finds a snapshot that the caller may use.
pub fn over(
    image: &[Mapping],
    root_device: &str,
    asked: &[Asked],
    mut source: impl FnMut(&SnapshotId) -> Outcome<Source>,
) -> Outcome<Vec<Mapping>> {
    let mut all = image.to_vec();
    let mut named = BTreeSet::new();
    for one in asked {
        let device = one
            .device_name
            .clone()
            .filter(|d| !d.is_empty())
            .ok_or_else(|| AwsError::missing_parameter("DeviceName"))?;
        if !is_device(&device) {
            return Err(invalid(format!("Invalid device name {device}")));
        }
        if !named.insert(device.clone()) {
            return Err(invalid(format!("The device '{device}' is used in more than one block-device mapping")));
        }
        let at = all.iter().position(|m| m.device == device);
        let is_root = device == root_device;
        let disk = match (&one.no_device, &one.virtual_name, &one.ebs) {
            (Some(_), None, None) if is_root => {
                return Err(invalid(format!("The root device {device} cannot be left out")));
            }
            (Some(_), None, None) => None,
            (None, Some(_), None) if is_root => {
                return Err(invalid(format!("The root device {device} cannot be an instance store of that name")));
            }
            (None, Some(name), None) => Some(Disk::InstanceStore(ephemeral(name)?)),
            (None, None, Some(ebs)) => {
                let before = at.and_then(|at| all.get(at)).and_then(Mapping::volume);
                Some(Disk::Volume(volume(&device, is_root, before, ebs, &mut source)?))
            }
            _ => {
                let message = "is to be exactly one of an EBS volume, a virtual device and no device";
                return Err(invalid(format!("The block device mapping of '{device}' {message}")));
            }
        };
        if let Some(at) = at {
            all.remove(at);
        }
        if let Some(disk) = disk {
            all.insert(at.unwrap_or(all.len()), Mapping { device, disk });
        }
    }
    let mut disks = BTreeSet::from([disk_of(root_device), ROOT_DISK]);
    for mapping in all.iter().filter(|m| m.device != root_device) {
        if !disks.insert(disk_of(&mapping.device)) {
            let message = "is the same disk as another device, or as the root";
            return Err(invalid(format!("The device '{}' {message}", mapping.device)));
        }
    }
    Ok(all)
}

/// The letter that nodes give to the root, whatever an image calls it.
const ROOT_DISK: &str = "a";

/// AWS knows 24 of them; more is a mistake.
fn ephemeral(name: &str) -> Outcome<u8> {
    let number = name.strip_prefix("ephemeral").and_then(|n| n.parse::<u8>().ok()).filter(|n| *n < 24);
    number.ok_or_else(|| invalid(format!("The virtual name '{name}' is not one of ephemeral0 to ephemeral23")))
}

fn volume(
    device: &str,
    is_root: bool,
    before: Option<&VolumeOf>,
    asked: &EbsAsked,
    source: &mut impl FnMut(&SnapshotId) -> Outcome<Source>,
) -> Outcome<VolumeOf> {
    unsupported::refuse(&[
        ("BlockDeviceMapping.Ebs.AvailabilityZone", asked.availability_zone),
        ("BlockDeviceMapping.Ebs.KmsKeyId", asked.kms_key_id),
        ("BlockDeviceMapping.Ebs.OutpostArn", asked.outpost_arn),
        ("BlockDeviceMapping.Ebs.VolumeInitializationRate", asked.volume_initialization_rate),
    ])?;
    let its = before.and_then(|b| b.snapshot.as_ref());
    let (snapshot, begins_as_before) = match (&asked.snapshot_id, its) {
        (Some(id), Some(its)) if id.as_str() == its.id => (Some(its.clone()), true),
        (Some(_), Some(_)) if is_root => return Err(invalid("snapshotId cannot be modified on root device")),
        (Some(id), _) => (Some(source(id)?), false),
        (None, its) => (its.cloned(), before.is_some()),
    };
    let size_gib = asked
        .volume_size
        .or_else(|| before.filter(|_| begins_as_before).map(|b| b.size_gib))
        .or(snapshot.as_ref().map(|s| s.size_gib))
        .ok_or_else(|| AwsError::missing_parameter("size or snapshotId"))?;
    if let Some(source) = snapshot.as_ref().filter(|s| size_gib < s.size_gib) {
        return Err(invalid(format!(
            "Volume of size {size_gib}GB is smaller than snapshot '{}', expect size >= {}GB",
            source.id, source.size_gib
        )));
    }
    let before_kind = before.map(|b| b.kind.as_str());
    let kind = asked.volume_type.clone().or(before_kind.map(Into::into)).unwrap_or_else(|| "gp2".into());
    // What gp2 shows follows from its size.
    let same = before.filter(|b| b.kind == kind && kind != "gp2");
    let (iops, throughput) = figures(
        &kind,
        size_gib,
        asked.iops.or(same.and_then(|b| b.iops)),
        asked.throughput.or(same.and_then(|b| b.throughput)),
    )?;
    let must = snapshot.as_ref().is_some_and(|s| s.encrypted);
    if must && asked.encrypted == Some(false) {
        return Err(invalid(format!(
            "The volume at {device} begins with an encrypted snapshot, and cannot be in clear"
        )));
    }
    Ok(VolumeOf {
        size_gib,
        kind,
        iops,
        throughput,
        delete_on_termination: asked
            .delete_on_termination
            .unwrap_or_else(|| before.map_or(is_root, |b| b.delete_on_termination)),
        encrypted: must || asked.encrypted.unwrap_or_else(|| before.is_some_and(|b| b.encrypted)),
        snapshot,
    })
}

/// Whether an instance can have all of these.
pub fn check_count(mappings: &[Mapping], root_device: &str) -> Outcome<()> {
    let volumes = mappings.iter().filter(|m| m.device != root_device && m.volume().is_some()).count();
    if volumes <= VOLUMES_AT_AN_INSTANCE {
        return Ok(());
    }
    let message =
        format!("{volumes} volumes beside the root exceed the limit of {VOLUMES_AT_AN_INSTANCE} of an instance");
    Err(Refusal::new("AttachmentLimitExceeded", message))
}

/// How DescribeImages and others show a mapping.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    pub device_name: String,
    pub virtual_name: Option<String>,
    pub ebs: Option<EbsShown>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EbsShown {
    pub snapshot_id: Option<String>,
    pub volume_size: u64,
    pub delete_on_termination: bool,
    pub volume_type: String,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
    pub encrypted: bool,
}

impl From<&Mapping> for Shown {
    fn from(mapping: &Mapping) -> Self {
        let virtual_name = match &mapping.disk {
            Disk::InstanceStore(n) => Some(format!("ephemeral{n}")),
            Disk::Volume(_) => None,
        };
        let ebs = mapping.volume().map(|v| EbsShown {
            snapshot_id: v.snapshot.as_ref().map(|s| s.id.clone()),
            volume_size: v.size_gib,
            delete_on_termination: v.delete_on_termination,
            volume_type: v.kind.clone(),
            // What only follows from the type is not shown of an image.
            iops: v.iops.filter(|_| v.kind != "gp2"),
            throughput: v.throughput,
            encrypted: v.encrypted,
        });
        Self { device_name: mapping.device.clone(), virtual_name, ebs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_aws::params::{Flavor, Params, from_params};

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Input {
        #[serde(default)]
        block_device_mapping: Vec<Asked>,
    }

    fn asked(sent: &str) -> Vec<Asked> {
        let input: Input = from_params(&Params::parse(sent.as_bytes()).unwrap(), Flavor::Ec2).unwrap();
        input.block_device_mapping
    }

    /// `snap-…5` has 5 GiB.
    fn source(id: &SnapshotId) -> Outcome<Source> {
        let size_gib = id.as_str().chars().last().and_then(|c| c.to_digit(10)).unwrap_or_default().into();
        Ok(Source { id: id.to_string(), size_gib, encrypted: false })
    }

    const ROOT: &str =
        "BlockDeviceMapping.1.DeviceName=/dev/sda1&BlockDeviceMapping.1.Ebs.SnapshotId=snap-00000000000000005";

    fn image() -> Vec<Mapping> {
        let data = "BlockDeviceMapping.2.DeviceName=/dev/sdf&BlockDeviceMapping.2.Ebs.VolumeSize=3&BlockDeviceMapping.3.DeviceName=/dev/sdb\
                    &BlockDeviceMapping.3.VirtualName=ephemeral0";
        over(&[], "/dev/sda1", &asked(&format!("{ROOT}&{data}")), source).unwrap()
    }

    /// What a launch with these parameters of the first mapping has: device, size, type, deleted with its instance.
    fn launch(sent: &str) -> Result<Vec<String>, String> {
        let sent: Vec<String> = sent.split('&').map(|p| format!("BlockDeviceMapping.1.{p}")).collect();
        let all = over(&image(), "/dev/sda1", &asked(&sent.join("&")), source).map_err(|e| e.code().to_owned())?;
        let told = |m: &Mapping| match &m.disk {
            Disk::InstanceStore(n) => format!("{} ephemeral{n}", m.device),
            Disk::Volume(v) => {
                let begins = v.snapshot.as_ref().map(|s| s.size_gib).unwrap_or_default();
                format!("{} {} of {begins} {} {}", m.device, v.size_gib, v.kind, v.delete_on_termination)
            }
        };
        Ok(all.iter().map(told).collect())
    }

    #[test]
    fn a_launch_changes_of_an_image_what_it_names_and_nothing_else() {
        let (root, data, store) = ("/dev/sda1 5 of 5 gp2 true", "/dev/sdf 3 of 0 gp2 false", "/dev/sdb ephemeral0");
        for (sent, expected) in [
            ("DeviceName=/dev/sda1&Ebs.DeleteOnTermination=false", vec!["/dev/sda1 5 of 5 gp2 false", data, store]),
            (
                "DeviceName=/dev/sda1&Ebs.VolumeSize=9&Ebs.VolumeType=gp3",
                vec!["/dev/sda1 9 of 5 gp3 true", data, store],
            ),
            ("DeviceName=/dev/sda1&Ebs.SnapshotId=snap-00000000000000005", vec![root, data, store]),
            ("DeviceName=/dev/sdf&NoDevice=", vec![root, store]),
            ("DeviceName=/dev/sdb&NoDevice=true", vec![root, data]),
            (
                "DeviceName=/dev/sdf&Ebs.SnapshotId=snap-00000000000000004",
                vec![root, "/dev/sdf 4 of 4 gp2 false", store],
            ),
            ("DeviceName=/dev/sdf&VirtualName=ephemeral1", vec![root, "/dev/sdf ephemeral1", store]),
            ("DeviceName=/dev/sdg&Ebs.VolumeSize=1", vec![root, data, store, "/dev/sdg 1 of 0 gp2 false"]),
            ("DeviceName=/dev/sdg&NoDevice=", vec![root, data, store]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(Into::into).collect();
            assert_eq!(launch(sent), Ok(expected), "{sent}");
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_as_aws_refuses_it() {
        for (sent, code) in [
            ("DeviceName=/dev/sda1&Ebs.VolumeSize=4", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sda1&Ebs.SnapshotId=snap-00000000000000004", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sda1&NoDevice=", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sda1&VirtualName=ephemeral0", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sda2&Ebs.VolumeSize=4", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/xvdf&Ebs.VolumeSize=4", "InvalidBlockDeviceMapping"),
            ("DeviceName=/etc/passwd&Ebs.VolumeSize=4", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sdg&VirtualName=ephemeral99", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sdg&VirtualName=ephemeral1&Ebs.VolumeSize=1", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sdg", "InvalidBlockDeviceMapping"),
            ("DeviceName=/dev/sdg&Ebs.VolumeType=gp2", "MissingParameter"),
            ("VirtualName=ephemeral0", "MissingParameter"),
            ("DeviceName=/dev/sdg&Ebs.VolumeSize=0", "InvalidParameterValue"),
            ("DeviceName=/dev/sdg&Ebs.VolumeSize=1&Ebs.VolumeType=gp9", "UnknownVolumeType"),
            ("DeviceName=/dev/sdg&Ebs.VolumeSize=10&Ebs.VolumeType=io1", "MissingParameter"),
            ("DeviceName=/dev/sdg&Ebs.VolumeSize=1&Ebs.OutpostArn=x", "Unsupported"),
        ] {
            assert_eq!(launch(sent), Err(code.into()), "{sent}");
        }
        let twice = "BlockDeviceMapping.1.DeviceName=/dev/sdg&BlockDeviceMapping.1.Ebs.VolumeSize=1\
                     &BlockDeviceMapping.2.DeviceName=/dev/sdg&BlockDeviceMapping.2.NoDevice=";
        assert_eq!(over(&[], "/dev/sda1", &asked(twice), source).unwrap_err().code(), "InvalidBlockDeviceMapping");
    }

    #[test]
    fn an_encrypted_snapshot_makes_encrypted_volumes() {
        let sealed = |id: &SnapshotId| Ok(Source { encrypted: true, ..source(id)? });
        let mappings = over(&[], "/dev/sda1", &asked(ROOT), sealed).unwrap();
        assert!(root(&mappings, "/dev/sda1").unwrap().encrypted);
        let clear = asked(&format!("{ROOT}&BlockDeviceMapping.1.Ebs.Encrypted=false"));
        assert_eq!(over(&[], "/dev/sda1", &clear, sealed).unwrap_err().code(), "InvalidBlockDeviceMapping");
    }

    #[test]
    fn more_volumes_than_an_instance_has_places_are_refused() {
        let many = |count: usize| -> Vec<Mapping> {
            let each = ('b'..='z').take(count).enumerate().map(|(n, letter)| {
                let n = n + 2;
                format!("BlockDeviceMapping.{n}.DeviceName=/dev/sd{letter}&BlockDeviceMapping.{n}.Ebs.VolumeSize=1")
            });
            let sent: Vec<String> = std::iter::once(ROOT.to_owned()).chain(each).collect();
            over(&[], "/dev/sda1", &asked(&sent.join("&")), source).unwrap()
        };
        check_count(&many(VOLUMES_AT_AN_INSTANCE), "/dev/sda1").unwrap();
        let refused = check_count(&many(VOLUMES_AT_AN_INSTANCE + 1), "/dev/sda1").unwrap_err();
        assert_eq!(refused.code(), "AttachmentLimitExceeded");
    }
}
