//! Instances as the tiers below the cloud-controller know them: no accounts, no AWS names, only what a machine needs.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Export, FlowLogFailure, FlowWatch, Generation, Millis, Reported, Wanted};

/// How many interfaces an instance can have: its machine has that many places for them from the start.
pub const INTERFACES_AT_AN_INSTANCE: usize = 8;

/// What is asked of an instance. Written by the cloud-controller only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    Running,
    /// The guest is off; its disks and its place stay.
    Stopped,
    /// Nothing of it shall be left. The row stays in the list until the tier below reported [`Observed::Gone`].
    Terminated,
    /// A wish of a later release: keep things as they are.
    #[serde(other)]
    Unknown,
}

/// What was seen of an instance. Written by the tiers below only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observed {
    /// Known, and not yet on a node (`reason` says why, when it is waiting for something).
    Waiting,
    /// Its node is preparing it; `step` says at what it is.
    Preparing,
    Running,
    /// Asked to power off and still running.
    Stopping,
    Stopped,
    /// Being removed.
    Terminating,
    /// Nothing of it is left.
    Gone,
    /// It cannot be brought up and will not be tried again; `reason` says why.
    Failed,
    /// Its node does not answer.
    Unreachable,
    #[serde(other)]
    Unknown,
}

/// An instance as it is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-…`; also the name of its domain and of its folder on the node.
    pub id: String,
    pub generation: Generation,
    pub desired: Desired,
    /// Stop without asking the guest first.
    #[serde(default)]
    pub force: bool,
    /// How many reboots have been asked for in its life; the node does one when this is more than it has done.
    #[serde(default)]
    pub reboots: u32,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// What it takes of the node's disks: a root disk of this size (or of the image's own, when that is larger), or, with the
    /// root on a volume, its instance stores.
    pub disk_gib: u64,
    pub boot: Boot,
    /// Disks of the node's own that live as long as the guest has its place there.
    #[serde(default)]
    pub stores: Vec<InstanceStore>,
    /// Why its guest must not be brought up yet, such as a volume that is being made. None: it may.
    #[serde(default)]
    pub awaits: Option<String>,
    /// Its guest is to be held while its volumes are fixed at one instant.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// Every interface it shall have now. One that it has and that is not here is taken away.
    pub interfaces: Vec<Interface>,
    /// Every volume that shall be attached now. One that is attached and not here is detached.
    #[serde(default)]
    pub volumes: Vec<VolumeAttachment>,
    pub metadata: Metadata,
    /// Where it must run, by node name: nowhere else. None: the cluster-controller places it.
    #[serde(default)]
    pub node: Option<String>,
}

impl Wanted for Instance {
    fn id(&self) -> &str {
        &self.id
    }
    fn generation(&self) -> Generation {
        self.generation
    }
}

/// What an instance boots from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// `x86_64`.
    pub architecture: String,
    pub root: Root,
    /// With a kernel the root is a bare file system; without one it is a whole disk.
    #[serde(default)]
    pub kernel: Option<Blob>,
    #[serde(default)]
    pub ramdisk: Option<Blob>,
    #[serde(default)]
    pub command_line: Option<String>,
}

/// The first disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Root {
    /// An overlay of its own on these bytes, on the node's disk.
    Image(Blob),
    /// One of its volumes, whatever device it asks for. None: none is attached there, and it cannot be brought up.
    Volume { volume: Option<String> },
}

impl Root {
    pub fn image(&self) -> Option<&Blob> {
        match self {
            Root::Image(blob) => Some(blob),
            Root::Volume { .. } => None,
        }
    }

    /// The volume that is the first disk.
    pub fn volume(&self) -> Option<&str> {
        match self {
            Root::Image(_) => None,
            Root::Volume { volume } => volume.as_deref(),
        }
    }

    /// Whether nothing that must last is on the node's own disks: once off, it may be started anywhere.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Root::Volume { .. })
    }
}

/// An empty disk on the node (`ephemeral0`), beside a root on a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStore {
    /// The name the user asked for, such as `/dev/sdb`.
    pub device: String,
    pub size_gib: u64,
}

/// A guest stands still until this is taken back. A hold is named, because a node that waited too long lets go of it by
/// itself, and must not take the same one up again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub id: String,
    pub kind: HoldKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldKind {
    /// Powered off as for a reboot, with its place and all its disks kept.
    Off,
    /// Its processors stand still, and nothing that it wrote is on its way any more.
    Paused,
    #[serde(other)]
    Unknown,
}

/// Bytes in walrus' internal store, named by what they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// SHA-256, 64 lower-case hex digits.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Never probed: it comes from the image's row.
    pub format: DiskFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    Raw,
    Qcow2,
    #[serde(other)]
    Unknown,
}

/// A network interface: a logical port that the network already has, waiting to be bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// `eni-…`.
    pub id: String,
    /// Name of the logical port; libvirt wants it to be a UUID (`iface-id`).
    pub port: Uuid,
    /// 0 is the first.
    pub device_index: u32,
    /// Lower-case, colons.
    pub mac: String,
    pub address: Ipv4Addr,
    /// Its other addresses: it may ask for its metadata from them as well.
    #[serde(default)]
    pub secondary: Vec<Ipv4Addr>,
    pub vpc: VpcLink,
    /// Its packets are written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<Box<FlowWatch>>,
}

/// What a node must know of a VPC to serve metadata in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpcLink {
    /// `vpc-…`.
    pub id: String,
    /// Name of the logical `localport` at 169.254.169.254.
    pub metadata_port: String,
    pub metadata_mac: String,
}

/// A volume that shall be attached, and where its bytes are served. It is in the list only once the export is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// `vol-…`; the guest sees it as the disk's serial without the dash.
    pub volume: String,
    /// The name the user asked for, such as `/dev/sdf`.
    pub device: String,
    pub export: Export,
    /// Size the guest shall see, in GiB; 0 from a release that did not say it.
    #[serde(default)]
    pub size_gib: u64,
    #[serde(default)]
    pub limits: DiskLimits,
}

/// What a disk may be asked for. None: as much as the disk below gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Requests per second, of up to 256 KiB each: a larger one counts as several.
    #[serde(default)]
    pub iops: Option<u32>,
    /// As many for half an hour after it was idle, when that is more.
    #[serde(default)]
    pub burst_iops: Option<u32>,
    /// MiB per second.
    #[serde(default)]
    pub throughput_mib: Option<u32>,
}

impl DiskLimits {
    /// A larger request counts as several.
    pub const REQUEST: u64 = 256 << 10;
    /// How long a burst lasts, in seconds.
    pub const BURST_S: u64 = 1800;

    pub fn any(&self) -> bool {
        self.iops.is_some() || self.throughput_mib.is_some()
    }
}

/// What the guest may read of itself at 169.254.169.254. Rendered by the cloud-controller, served by the node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Metadata {
    /// `meta-data/instance-id` → value, `dynamic/instance-identity/document` → value. Directories are derived.
    pub tree: BTreeMap<String, String>,
    /// Base64, as the user sent it.
    #[serde(default)]
    pub user_data: Option<String>,
    pub enabled: bool,
    /// IMDSv2 only.
    pub tokens_required: bool,
    /// TTL of the packet that answers a token request.
    pub hop_limit: u8,
}

/// An instance as it was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceReport {
    pub id: String,
    /// Generation of the wish that was last acted on.
    pub generation: Generation,
    #[serde(default)]
    pub node: Option<String>,
    pub observed: Observed,
    /// What it is at, or was at when it failed: `image`, `disk`, `network`, `volumes`, `define`, `start`, ….
    #[serde(default)]
    pub step: String,
    /// Why it is so, in words a person can act on. Empty when all is as wanted.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub reboots_done: u32,
    /// The guest powered itself off (or crashed) although it is wanted running: the cloud-controller decides what then.
    #[serde(default)]
    pub guest_off: bool,
    /// The hold under which the guest stands still now.
    #[serde(default)]
    pub held: Option<String>,
    /// It is off and nothing of it is left on the node: it may be started anywhere.
    #[serde(default)]
    pub released: bool,
    #[serde(default)]
    pub started: Option<Millis>,
    #[serde(default)]
    pub attachments: Vec<AttachmentReport>,
    /// Every interface that it shall have, or still has. None: its node is of a release that does not say.
    #[serde(default)]
    pub interfaces: Option<Vec<InterfaceReport>>,
    /// The flow logs its interfaces are in whose last delivery failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flow_logs: Vec<FlowLogFailure>,
    /// The end of the serial console in base64, once the instance is stopped or gone.
    #[serde(default)]
    pub last_console: Option<String>,
    /// Where the time of the launch went: step → milliseconds.
    #[serde(default)]
    pub took_ms: BTreeMap<String, u64>,
}

impl InstanceReport {
    pub fn new(id: impl Into<String>, observed: Observed) -> Self {
        Self {
            id: id.into(),
            generation: Generation::default(),
            node: None,
            observed,
            step: String::new(),
            reason: String::new(),
            reboots_done: 0,
            guest_off: false,
            held: None,
            released: false,
            started: None,
            attachments: Vec::new(),
            interfaces: None,
            flow_logs: Vec::new(),
            last_console: None,
            took_ms: BTreeMap::new(),
        }
    }
}

impl Reported for InstanceReport {
    fn id(&self) -> &str {
        &self.id
    }
}

/// A volume at an instance as the node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentReport {
    pub volume: String,
    /// False while it is being attached, or still there although it shall go.
    pub attached: bool,
    #[serde(default)]
    pub reason: String,
}

/// An interface at an instance as the node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReport {
    /// Name of its logical port.
    pub port: Uuid,
    /// False while it is being attached, or still there although it shall go.
    pub attached: bool,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConsoleAsked {
    pub instance: String,
    /// At most this many bytes from the end.
    pub bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Console {
    /// Base64 of the end of the serial console.
    pub data: String,
    pub at: Millis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_read_as_the_release_before_wrote_it() {
        let blob = Blob { digest: "ab".into(), size: 1, format: DiskFormat::Raw };
        let old = serde_json::to_value(&blob).unwrap();
        assert_eq!(serde_json::from_value::<Root>(old.clone()).unwrap(), Root::Image(blob.clone()));
        assert_eq!(serde_json::to_value(Root::Image(blob)).unwrap(), old);
        for volume in [None, Some("vol-1".to_owned())] {
            let root = Root::Volume { volume };
            assert_eq!(serde_json::from_value::<Root>(serde_json::to_value(&root).unwrap()).unwrap(), root);
        }
    }
}
