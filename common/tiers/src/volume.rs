//! Volumes as a storage-controller knows them.

use serde::{Deserialize, Serialize};

use crate::{Generation, Reported, VolumeSource, Wanted};

/// How many volumes one instance can have at once: a guest is started with so many ports to plug them into.
pub const VOLUMES_AT_AN_INSTANCE: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeDesired {
    Present,
    /// Its bytes shall go. The row stays in the list until [`VolumeObserved::Gone`] was reported.
    Deleted,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeObserved {
    Creating,
    Ready,
    Gone,
    Failed,
    #[serde(other)]
    Unknown,
}

/// A volume as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `vol-…`.
    pub id: String,
    pub generation: Generation,
    pub desired: VolumeDesired,
    pub size_gib: u64,
    /// Serve it to this attachment. None: to nobody; an export that is there is ended.
    #[serde(default)]
    pub export_for: Option<String>,
    /// The node that may open the export, by name. None: any node of the zone, because it is not placed yet.
    #[serde(default)]
    pub export_node: Option<String>,
    /// What it begins with. None: nothing but zeros.
    #[serde(default)]
    pub source: Option<VolumeSource>,
    /// Id of the key its bytes are encrypted with ([`crate::CloudClient::disk_key`]). None: they lie on the disk as they are.
    /// Fixed when it is made. A volume that begins with an encrypted snapshot is encrypted too, with any key.
    #[serde(default)]
    pub encrypted: Option<String>,
}

impl Volume {
    /// An empty volume that is served to nobody.
    pub fn new(id: impl Into<String>, generation: Generation, size_gib: u64) -> Self {
        Self {
            id: id.into(),
            generation,
            desired: VolumeDesired::Present,
            size_gib,
            export_for: None,
            export_node: None,
            source: None,
            encrypted: None,
        }
    }
}

impl Wanted for Volume {
    fn id(&self) -> &str {
        &self.id
    }
    fn generation(&self) -> Generation {
        self.generation
    }
}

/// Where the bytes of an exported volume are served (NBD).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The attachment it was made for; an export for another one is not yours.
    pub attachment: String,
    /// Export name, random per attachment.
    pub name: String,
    pub address: ExportAddress,
    /// The name in the certificate of who serves it, by TLS.
    #[serde(default)]
    pub server: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportAddress {
    /// A unix socket on the same machine.
    Unix(String),
    /// `host:port`, TLS.
    Tcp(String),
}

/// A volume as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeReport {
    pub id: String,
    pub generation: Generation,
    pub observed: VolumeObserved,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub export: Option<Export>,
    /// Bytes it takes on the storage-controller's disk.
    #[serde(default)]
    pub allocated: u64,
    /// Size the guest sees, in GiB; 0 from a release that did not say it.
    #[serde(default)]
    pub size_gib: u64,
    /// Some of what it began with was not fetched yet: its source's blobs must stay in walrus.
    #[serde(default)]
    pub needs_source: bool,
}

impl Reported for VolumeReport {
    fn id(&self) -> &str {
        &self.id
    }
}
