//! What each step does. A step makes sure of one thing, may be repeated, and may be killed at any line.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mallee_service::{Clock, Faults, IntentBook};
use mallee_store::Error as StoreError;
use mallee_tiers::{Blob, DiskFormat, ExportAddress, Instance, Interface, Root};
use tokio::sync::Semaphore;

use super::{
    plan::BringUp,
    row::{Rows, uuid_of},
};
use crate::{
    flow_log::FlowLogs,
    hypervisor::{Accelerator, DomainSpec, Hypervisor, HypervisorError, Kernel, Nic, RootDisk, StoreDisk},
    image::{Base, ImageCache, ImageError, sync_dir},
    metadata, nic, volume,
};

/// How much of a console is kept, as on EC2.
pub const CONSOLE_BYTES: u64 = 64 * 1024;
/// For kernels that come without a command line of their own (plumbing.md §1).
const COMMAND_LINE: &str =
    "root=/dev/vda console=ttyS0 quiet net.ifnames=0 random.trust_cpu=on no_timer_check tsc=reliable";

/// Everything a step needs of this machine.
pub struct Machine {
    pub node: String,
    pub hypervisor: Arc<dyn Hypervisor>,
    /// None on a simulated node, which needs no bytes.
    pub images: Option<ImageCache>,
    pub book: Arc<metadata::Book>,
    pub metadata: metadata::Service,
    pub flow_logs: Arc<FlowLogs>,
    pub rows: Rows,
    pub wishes: IntentBook<Instance>,
    pub instances: PathBuf,
    pub bridge: String,
    pub accelerator: Accelerator,
    pub clock: Clock,
    pub faults: Faults,
    /// Digests that some instance here boots from.
    pub used: Mutex<BTreeSet<String>>,
    /// Overlays being made at a time.
    pub disks: Semaphore,
}

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Trying again may help.
    #[error("{0}")]
    Transient(String),
    /// The hypervisor says no. It may have a passing reason; many times in a row it has not.
    #[error("{0}")]
    Refused(String),
    /// Trying again does not help.
    #[error("{0}")]
    Permanent(String),
    /// It was given up because something else is wanted now.
    #[error("something else is wanted now")]
    Overtaken,
}

impl From<HypervisorError> for StepError {
    fn from(e: HypervisorError) -> Self {
        match e {
            HypervisorError::Refused(why) => StepError::Refused(why),
            other => StepError::Transient(other.to_string()),
        }
    }
}

impl From<StoreError> for StepError {
    fn from(e: StoreError) -> Self {
        StepError::Transient(e.to_string())
    }
}

impl From<ImageError> for StepError {
    fn from(e: ImageError) -> Self {
        match e {
            ImageError::Unavailable(why) => StepError::Transient(why),
            ImageError::Refused(why) => StepError::Permanent(why),
        }
    }
}

fn io_error(what: &str, path: &Path) -> impl FnOnce(io::Error) -> StepError {
    let text = format!("{what} {}", path.display());
    move |e| StepError::Transient(format!("{text}: {e}"))
}

pub type Done = Result<(), StepError>;

impl Machine {
    pub async fn bring_up(&self, step: BringUp, wish: &Instance) -> Done {
        match step {
            BringUp::Image => self.image(wish).await,
            BringUp::Disk => self.disk(wish).await,
            BringUp::Network => self.network(wish).await,
            BringUp::Volumes => self.volumes(wish).await,
            BringUp::Define => self.define(wish).await,
            BringUp::Start => Ok(self.hypervisor.start(&wish.id).await?),
        }
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.instances.join(id)
    }

    async fn base(&self, blob: &Blob) -> Result<Option<Base>, StepError> {
        let Some(images) = &self.images else { return Ok(None) };
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Some(images.ensure(blob, &used).await?))
    }

    async fn image(&self, wish: &Instance) -> Done {
        if wish.node.as_ref().is_some_and(|node| *node != self.node) {
            return Err(StepError::Permanent(format!(
                "it must run on {:?}, and this is node {}",
                wish.node, self.node
            )));
        }
        let boot = &wish.boot;
        if boot.architecture != "x86_64" {
            return Err(StepError::Permanent(format!("this node runs x86_64, and the image is {}", boot.architecture)));
        }
        for blob in [boot.root.image(), boot.kernel.as_ref(), boot.ramdisk.as_ref()].into_iter().flatten() {
            self.base(blob).await?;
        }
        Ok(())
    }

    /// The root's overlay, or the instance stores beside a root on a volume.
    async fn disk(&self, wish: &Instance) -> Done {
        if self.hypervisor.simulated() {
            return Ok(());
        }
        let folder = self.folder(&wish.id);
        std::fs::create_dir_all(&folder).map_err(io_error("creating", &folder))?;
        if let Some(blob) = wish.boot.root.image() {
            let Some(base) = self.base(blob).await? else { return Ok(()) };
            let size = base.virtual_size.max(wish.disk_gib << 30).next_multiple_of(512);
            self.qcow2(&folder, "root", Some(&base), size).await?;
        }
        for (n, store) in wish.stores.iter().enumerate() {
            self.qcow2(&folder, &store_name(n), None, store.size_gib << 30).await?;
        }
        Ok(())
    }

    /// Makes sure of a disk. It is made beside and named when it is whole, so one that has the name is whole.
    async fn qcow2(&self, folder: &Path, name: &str, base: Option<&Base>, size: u64) -> Done {
        let whole = folder.join(format!("{name}.qcow2"));
        if whole.exists() {
            return Ok(());
        }
        let _turn = self.disks.acquire().await.map_err(|e| StepError::Transient(e.to_string()))?;
        let part = folder.join(format!("{name}.part"));
        let mut command = tokio::process::Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some(base) = base {
            let format = if base.format == DiskFormat::Qcow2 { "qcow2" } else { "raw" };
            command.args(["-F", format, "-b"]).arg(&base.path);
        }
        let made = command
            .arg(&part)
            .arg(size.to_string())
            .output()
            .await
            .map_err(|e| StepError::Transient(format!("cannot run qemu-img: {e}")))?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            let on = base.map(|b| format!(" on {}", b.path.display())).unwrap_or_default();
            return Err(StepError::Transient(format!("qemu-img create {}{on}: {}", part.display(), said.trim())));
        }
        let sync = || -> io::Result<()> {
            std::fs::File::open(&part)?.sync_all()?;
            std::fs::rename(&part, &whole)?;
            sync_dir(folder)?;
            sync_dir(&self.instances)
        };
        sync().map_err(io_error("naming", &whole))
    }

    /// The logical ports are the cloud-controller's; the node binds them. Metadata is known here before the guest can ask.
    async fn network(&self, wish: &Instance) -> Done {
        self.book.put(wish);
        for interface in &wish.interfaces {
            if !self.metadata.is_heard_in(&interface.vpc.id).await {
                self.metadata.ensure(&interface.vpc).await.map_err(StepError::Transient)?;
            }
        }
        self.taps(wish).await.map(drop)
    }

    /// The tap of each interface of an instance, by the interface's id.
    pub async fn taps(&self, wish: &Instance) -> Result<BTreeMap<String, String>, StepError> {
        Ok(self.rows.taps(&wish.id, wish.interfaces.iter().map(|i| i.id.clone()).collect()).await?)
    }

    pub fn nic(&self, interface: &Interface, taps: &BTreeMap<String, String>) -> Nic {
        Nic {
            mac: interface.mac.clone(),
            port: interface.port,
            tap: taps.get(&interface.id).cloned().unwrap_or_default(),
            bridge: self.bridge.clone(),
        }
    }

    /// QEMU does not start with a disk nobody serves, and what it says then helps nobody: so look first.
    async fn volumes(&self, wish: &Instance) -> Done {
        if self.hypervisor.simulated() {
            return Ok(());
        }
        for wanted in &wish.volumes {
            if let ExportAddress::Unix(path) = &wanted.export.address {
                match tokio::time::timeout(Duration::from_secs(2), tokio::net::UnixStream::connect(path)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(e)) => {
                        return Err(StepError::Transient(format!(
                            "volume {} is not served at {path}: {e}",
                            wanted.volume
                        )));
                    }
                    Err(_) => {
                        return Err(StepError::Transient(format!(
                            "volume {} is not served at {path}: no answer",
                            wanted.volume
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    async fn define(&self, wish: &Instance) -> Done {
        let boot = &wish.boot;
        let path = |base: Option<Base>| base.map(|b| b.path).unwrap_or_default();
        let kernel = match &boot.kernel {
            None => None,
            Some(blob) => Some(Kernel {
                image: path(self.base(blob).await?),
                ramdisk: match &boot.ramdisk {
                    Some(blob) => Some(path(self.base(blob).await?)),
                    None => None,
                },
                command_line: boot.command_line.clone().unwrap_or_else(|| COMMAND_LINE.into()),
            }),
        };
        let taps = self.taps(wish).await?;
        let nics = nic::by_index(&wish.interfaces).into_iter().map(|i| self.nic(i, &taps)).collect();
        let folder = self.folder(&wish.id);
        let root = match (&boot.root, volume::root_disk(wish)) {
            (Root::Image(_), _) => RootDisk::Overlay(folder.join("root.qcow2")),
            (Root::Volume { .. }, Some(disk)) => RootDisk::Volume(disk),
            (Root::Volume { volume }, None) => {
                let which = volume.as_deref().unwrap_or("none is attached");
                return Err(StepError::Transient(format!("its root volume is not served ({which})")));
            }
        };
        let mut stores = Vec::with_capacity(wish.stores.len());
        for (n, store) in wish.stores.iter().enumerate() {
            let target = volume::target(&store.device).map_err(StepError::Permanent)?;
            stores.push(StoreDisk { file: folder.join(format!("{}.qcow2", store_name(n))), target });
        }
        let spec = DomainSpec {
            name: wish.id.clone(),
            uuid: uuid_of(&wish.id),
            vcpus: wish.vcpus,
            memory_mib: wish.memory_mib,
            accelerator: self.accelerator,
            kernel,
            root,
            stores,
            nics,
            volumes: volume::disks(wish),
            console: folder.join("console.log"),
        };
        Ok(self.hypervisor.define(&spec).await?)
    }

    /// The end of the console, at most `bytes` of it. virtlogd begins a new file now and then and keeps the one before.
    pub fn console(&self, id: &str, bytes: u64) -> io::Result<Vec<u8>> {
        if self.hypervisor.simulated() {
            return Ok(format!("{id} is simulated by node {}: there is no guest, and it says nothing.\n", self.node)
                .into_bytes());
        }
        let newest = self.folder(id).join("console.log");
        let before = self.folder(id).join("console.log.0");
        let mut text = tail(&newest, bytes)?;
        if (text.len() as u64) < bytes {
            let mut earlier = tail(&before, bytes - text.len() as u64)?;
            earlier.append(&mut text);
            text = earlier;
        }
        Ok(text)
    }

    pub fn encoded_console(&self, id: &str) -> Result<String, StepError> {
        self.console(id, CONSOLE_BYTES)
            .map(|text| STANDARD.encode(text))
            .map_err(io_error("reading the console of", Path::new(id)))
    }

    /// Its disk, its console, its taps.
    pub async fn erase(&self, id: &str) -> Done {
        if !self.hypervisor.simulated() {
            let folder = self.folder(id);
            match std::fs::remove_dir_all(&folder) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error("removing", &folder)(e)),
            }
        }
        Ok(self.rows.release_taps(id).await?)
    }
}

fn store_name(n: usize) -> String {
    format!("ephemeral{n}")
}

fn tail(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    use io::{Read, Seek, SeekFrom};
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(text)
}
