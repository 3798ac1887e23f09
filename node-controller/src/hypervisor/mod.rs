//! The boundary to whatever runs machines. Nothing above this module knows which hypervisor it is.
//!
//! A domain is named by its instance id. Every call is idempotent as far as a repeated wish goes: defining what is defined
//! replaces it, starting what runs and ending what is off change nothing.

mod domain;
mod libvirt;
mod simulated;

use std::path::PathBuf;

use async_trait::async_trait;
use mallee_tiers::{DiskLimits, Export, ExportAddress};
use tokio::sync::mpsc;
use uuid::Uuid;

pub(crate) use domain::EMULATOR;
pub use domain::{Accelerator, DomainSpec, Kernel, Nic, RootDisk, StoreDisk};
pub use libvirt::Libvirt;
pub use simulated::{Simulated, SimulatedConfig};

/// A domain as the hypervisor has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub power: Power,
    /// The volumes it has now; empty when it is off.
    pub disks: Vec<SeenDisk>,
    /// The interfaces it has now; empty when it is off.
    pub nics: Vec<SeenNic>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Power {
    Running,
    /// It exists and does not advance; why.
    Paused(String),
    /// A disk had no room for what it wrote, and it stands still until it is let go on; then it tries that again.
    NoRoom,
    /// It was asked to stand still.
    Suspended,
    /// The guest has ended and the hypervisor is clearing up.
    Ending,
    Off(Off),
}

/// Why a domain is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    /// The guest powered itself off, on its own or because the power button was pressed.
    Guest,
    /// Somebody ended it through the hypervisor.
    Destroyed,
    /// Its process ended without the guest's doing.
    Crashed,
    /// It could not be started.
    Failed,
    /// Never started, or the hypervisor's own memory was lost since (the machine was rebooted).
    Unknown,
}

/// A volume at a running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDisk {
    /// Volume id without its dash.
    pub serial: String,
    pub target: String,
    /// The hypervisor's handle of the device.
    pub alias: String,
    /// Name of the export behind it: an export of another attachment is not the same disk.
    pub export: String,
}

/// An interface at a running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNic {
    /// The logical port it binds.
    pub port: Uuid,
    pub tap: String,
    /// The hypervisor's handle of the device.
    pub alias: String,
}

/// A volume as it is given to a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDisk {
    /// Volume id without its dash: a virtio disk keeps 20 bytes of serial.
    pub serial: String,
    /// `vdf`. The guest may name it otherwise; the serial is what identifies it.
    pub target: String,
    pub export: String,
    pub address: ExportAddress,
    /// The name in the certificate of who serves it, by TLS.
    pub server: Option<String>,
    pub limits: DiskLimits,
}

impl VolumeDisk {
    /// The handle the hypervisor shall know the device by.
    pub fn alias(&self) -> String {
        format!("ua-{}", self.serial)
    }
}

/// What a guest's disk shows to a machine that serves it by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// As QEMU's `tls-creds-x509` wants it.
    pub folder: PathBuf,
    /// When its certificate ends, in seconds since the epoch.
    pub until: i64,
}

/// What a hypervisor tells without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something about this domain changed: look.
    Changed(String),
    /// Its guest went through a reset.
    Rebooted(String),
    /// The hypervisor is there (again): what happened in between was not told.
    Back,
}

pub type Events = mpsc::UnboundedSender<Event>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum HypervisorError {
    /// It does not answer; nothing is known of what was asked.
    #[error("the hypervisor does not answer: {0}")]
    Unreachable(String),
    /// It answered no.
    #[error("{0}")]
    Refused(String),
    /// The guest does not let go of a device.
    #[error("{0}")]
    GuestHolds(String),
}

pub type Result<T> = std::result::Result<T, HypervisorError>;

#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// `kvm`, `tcg`, `simulated`: shown everywhere.
    fn kind(&self) -> &str;
    /// Why that one, in words for a person.
    fn why(&self) -> &str;
    /// Whether it needs no bytes: no image, no disk, no network.
    fn simulated(&self) -> bool {
        false
    }

    /// Every domain that bears an instance's name.
    async fn list(&self) -> Result<Vec<Seen>>;
    async fn look(&self, name: &str) -> Result<Option<Seen>>;
    async fn define(&self, spec: &DomainSpec) -> Result<()>;
    async fn start(&self, name: &str) -> Result<()>;
    /// Presses the power button: the guest may power off, or not.
    async fn press_power(&self, name: &str) -> Result<()>;
    /// Presses the power button so that the guest comes up again after it powered off; answered by [`Event::Rebooted`].
    async fn reboot(&self, name: &str) -> Result<()>;
    async fn reset(&self, name: &str) -> Result<()>;
    /// Stops its processors; when this returns, whatever it had asked of its disks is done.
    async fn suspend(&self, name: &str) -> Result<()>;
    async fn resume(&self, name: &str) -> Result<()>;
    /// Pulls the plug.
    async fn destroy(&self, name: &str) -> Result<()>;
    async fn undefine(&self, name: &str) -> Result<()>;
    async fn attach(&self, name: &str, disk: &VolumeDisk) -> Result<()>;
    /// Sees to it that the guest knows a disk of this size (in GiB; 0: whatever it has) and is held to these limits.
    async fn fit(&self, name: &str, disk: &SeenDisk, size_gib: u64, limits: DiskLimits) -> Result<()>;
    /// Has a disk that another machine serves show these credentials from now on, whoever it showed before. The guest, which
    /// may be writing, notices nothing.
    async fn show(&self, name: &str, disk: &SeenDisk, export: &Export, credentials: &Credentials) -> Result<()>;
    /// Returns when the guest has let go of the disk.
    async fn detach(&self, name: &str, disk: &SeenDisk) -> Result<()>;
    /// Plugs a card into a running domain; its port is bound when this returns.
    async fn attach_nic(&self, name: &str, nic: &Nic) -> Result<()>;
    /// Returns when the guest has let go of the card and its tap is gone.
    async fn detach_nic(&self, name: &str, nic: &SeenNic) -> Result<()>;
}
