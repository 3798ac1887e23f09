//! Where the bytes of volumes are.

mod files;

use serde_json::Value;

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
    /// QEMU's description of the volume as a block device, with `node-name`.
    fn blockdev(&self, id: &VolumeId, node_name: &str) -> Result<Value, BackendError>;
}
