//! Where the bytes of volumes are.

pub mod chain;
mod files;
mod qcow2;

use std::fs::File;

use serde_json::Value;

pub use chain::{Chain, Number};
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

/// Keeps volumes. Calls block. Every call may be repeated after a crash in the middle of it.
pub trait Backend: Send + Sync + 'static {
    /// Makes an empty volume. One that is there is left as it is: its bytes are somebody's.
    fn create(&self, id: &VolumeId, size: u64) -> Result<(), BackendError>;
    /// Removes it for good; removing what is not there is done.
    fn remove(&self, id: &VolumeId) -> Result<(), BackendError>;
    fn find(&self, id: &VolumeId) -> Result<Option<Found>, BackendError>;
    /// Every volume there is, by name.
    fn list(&self) -> Result<Vec<String>, BackendError>;
    fn space(&self) -> Result<Space, BackendError>;
    /// A file of this size to restore a volume into: nothing but zeros, whatever was there of an earlier attempt.
    fn begin_restore(&self, id: &VolumeId, size: u64) -> Result<File, BackendError>;
    /// What was restored is the volume from now on; one that is there already is left as it is.
    fn end_restore(&self, id: &VolumeId) -> Result<(), BackendError>;
    /// The layer a guest writes to when the volume is opened now.
    fn top(&self, id: &VolumeId) -> Result<Number, BackendError>;
    /// Sees to it that there is an empty layer above `under`, of its size; returns which.
    fn put_layer_above(&self, id: &VolumeId, under: Number) -> Result<Number, BackendError>;
    /// The layers up to `top`, for reading. Nothing may write to them.
    fn chain(&self, id: &VolumeId, top: Number) -> Result<Chain, BackendError>;
    /// The layers the highest one stands on, from it down to 0.
    fn numbers(&self, id: &VolumeId) -> Result<Vec<Number>, BackendError>;
    /// Brings what the layers up to `upper` hold into layer 0, of a volume that nothing has open.
    fn merge(&self, id: &VolumeId, upper: Number) -> Result<(), BackendError>;
    /// Whether [`Backend::remove_merged`] would remove anything.
    fn has_merged(&self, id: &VolumeId) -> Result<bool, BackendError>;
    /// Removes the files of layers that the highest one does not stand on any more.
    fn remove_merged(&self, id: &VolumeId) -> Result<(), BackendError>;
    /// Gives a volume that nothing has open more bytes.
    fn grow(&self, id: &VolumeId, size: u64) -> Result<(), BackendError>;
    /// QEMU's description of the volume as a block device; the node of layer N is named [`node_name`].
    fn blockdev(&self, id: &VolumeId) -> Result<Value, BackendError>;
    /// QEMU's description of one layer by itself, to be put above the one that is written to.
    fn layer_blockdev(&self, id: &VolumeId, number: Number) -> Result<Value, BackendError>;
}

/// QEMU's name for the node of a layer.
pub fn node_name(number: Number) -> String {
    format!("layer-{number}")
}
