//! Where the bytes of volumes are.

pub mod chain;
mod files;
mod luks;
mod new_layer;
mod qcow2;

use mallee_tiers::{Manifest, Secret, VolumeSource};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use chain::{Below, Chain, Number, Opening};
pub use files::Files;

use crate::volume::VolumeId;

/// What a backend has of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Bytes the guest sees.
    pub size: u64,
    /// Bytes it takes.
    pub allocated: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub free: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It cannot be made, and trying again would not help.
    #[error("{0}")]
    NoRoom(String),
    #[error("{0}")]
    Io(String),
}

/// What a volume is made with.
#[derive(Debug, Clone, Default)]
pub struct New {
    /// Encrypts it.
    pub passphrase: Option<Secret>,
    /// What it begins with; none of it is fetched now.
    pub beginning: Option<Beginning>,
}

/// What a volume begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beginning {
    pub source: VolumeSource,
    /// Kept with the volume, so that it can be opened while walrus is away.
    pub manifest: Manifest,
}

/// Keeps volumes. Calls block. Every call may be repeated after a crash in the middle of it.
pub trait Backend: Send + Sync + 'static {
    /// Makes a volume. One that is there is left as it is: its bytes are somebody's.
    fn create(&self, id: &VolumeId, size: u64, new: &New) -> Result<(), BackendError>;
    /// Removes it for good; removing what is not there is done.
    fn remove(&self, id: &VolumeId) -> Result<(), BackendError>;
    fn find(&self, id: &VolumeId) -> Result<Option<Found>, BackendError>;
    /// Every volume there is, by name.
    fn list(&self) -> Result<Vec<String>, BackendError>;
    fn space(&self) -> Result<Space, BackendError>;
    /// What it began with, while some of that was not fetched.
    fn beginning(&self, id: &VolumeId) -> Result<Option<Beginning>, BackendError>;
    /// All of its source is in the bottom layer now.
    fn set_filled(&self, id: &VolumeId) -> Result<(), BackendError>;
    fn is_encrypted(&self, id: &VolumeId) -> Result<bool, BackendError>;
    /// The layer a guest writes to when the volume is opened now.
    fn top(&self, id: &VolumeId) -> Result<Number, BackendError>;
    /// Sees to it that there is an empty layer above `under`, of its size; returns which.
    fn put_layer_above(
        &self,
        id: &VolumeId,
        under: Number,
        passphrase: Option<&Secret>,
    ) -> Result<Number, BackendError>;
    /// The layers up to `top`, for reading. Nothing may write to them.
    fn chain(&self, id: &VolumeId, top: Number, opening: &Opening) -> Result<Chain, BackendError>;
    /// The layers the highest one stands on, from it down to 0.
    fn numbers(&self, id: &VolumeId) -> Result<Vec<Number>, BackendError>;
    /// Brings what the layers up to `upper` hold into layer 0, of a volume that nothing has open
    /// and that is not encrypted.
    fn merge(&self, id: &VolumeId, upper: Number) -> Result<(), BackendError>;
    /// Whether [`Backend::remove_merged`] would remove anything.
    fn has_merged(&self, id: &VolumeId) -> Result<bool, BackendError>;
    /// Removes the files of layers that the highest one does not stand on any more.
    fn remove_merged(&self, id: &VolumeId) -> Result<(), BackendError>;
    /// Gives a volume that nothing has open more bytes.
    fn grow(&self, id: &VolumeId, size: u64) -> Result<(), BackendError>;
    /// The file of the bottom layer, by the name the layers above know it by.
    fn bottom(&self, id: &VolumeId) -> String;
    /// QEMU's description of the volume as a block device above `source`; the node of layer N is named [`node_name`], and an
    /// encrypted one opens with the secret [`SECRET`].
    fn blockdev(&self, id: &VolumeId, source: Option<Value>) -> Result<Value, BackendError>;
    /// QEMU's description of one layer by itself, to be put above the one that is written to.
    fn layer_blockdev(&self, id: &VolumeId, number: Number) -> Result<Value, BackendError>;
}

/// QEMU's name for the passphrase.
pub const SECRET: &str = "disk";

/// QEMU's name for the node of a layer.
pub fn node_name(number: Number) -> String {
    format!("layer-{number}")
}
