//! Carries imports out: fetches the object, takes the disk in it apart into blocks, and leaves the rest to `snapshot::keep`.
//!
//! A pass takes what the rows say and begins each import from the start, so that one that was cut off is just another active
//! one. Blocks that are in walrus already are not sent again. Those of an import that is over are let go: what no snapshot
//! needs is taken out of walrus.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mallee_aws::id::{ImageId, MachineImageId};
use mallee_service::{DiskKey, Driven, PassReport, Reconciler, TierHttp, drive as drive_one};
use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{Digests, Manifest, Page, SNAPSHOT_BLOCK, SNAPSHOT_PAGE, WalrusClient};
use sha2::{Digest, Sha256};
use tokio::{io::AsyncWriteExt, sync::Semaphore};

use super::{
    disk::Disk,
    show::ROOT_DEVICE,
    task::{self, State, Task},
};
use crate::{
    Cloud, Outcome, Refusal, disk_key,
    ec2::{
        block_device::{Disk as Device, Mapping, Source, VolumeOf},
        image::{self, NotRead, fetch},
        snapshot, volume,
    },
};

const AGAIN: Duration = Duration::from_secs(2);
/// Each reads and hashes a whole disk.
const AT_ONCE: usize = 1;
/// Blocks that are read and asked for at once: 8 MiB.
const BATCH: u64 = 16;
/// Never taken of the disk: the cloud's own store is on it too.
const LEFT_FREE: u64 = 1 << 30;
/// Looked at so often while an object comes.
const STRIDE: u64 = 64 << 20;
/// Fetching is the lesser part of the work.
const FETCHED_PERCENT: u32 = 30;

/// Starts the reconciler of imports.
pub fn drive(cloud: &Arc<Cloud>) -> Driven {
    let spool = cloud.config.daemon.state.join("spool-of-imports");
    // What a killed import left is begun again from the start; if it cannot be removed, it is written over.
    let _ = std::fs::remove_dir_all(&spool);
    let work = Arc::new(Work { cloud: cloud.clone(), spool, places: Semaphore::new(AT_ONCE), begun: Mutex::default() });
    drive_one(Arc::new(Imports(work)), cloud.pokes.imports.clone(), Duration::from_secs(10))
}

struct Imports(Arc<Work>);

struct Work {
    cloud: Arc<Cloud>,
    spool: PathBuf,
    places: Semaphore,
    /// Those that run or wait for a place; forgotten with the process.
    begun: Mutex<BTreeSet<String>>,
}

/// Why an import did not go on.
enum Trouble {
    /// Trying again changes nothing.
    Wrong(String),
    Later(String),
    /// Nobody wants it any more.
    Cancelled,
}

impl From<NotRead> for Trouble {
    fn from(e: NotRead) -> Self {
        match e {
            NotRead::Absent(text) => Trouble::Wrong(text),
            NotRead::Later(text) => Trouble::Later(text),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::InvalidData => Trouble::Wrong(e.to_string()),
            _ => Trouble::Later(e.to_string()),
        }
    }
}

fn later(e: impl std::fmt::Display) -> Trouble {
    Trouble::Later(e.to_string())
}

#[async_trait::async_trait]
impl Reconciler for Imports {
    fn name(&self) -> &'static str {
        "imports"
    }

    async fn pass(&self) -> PassReport {
        let (mut report, work) = (PassReport::default(), &self.0);
        let now = work.cloud.now();
        let look = move |tx: &mut Tx<'_>| Ok::<_, Refusal>((settle(tx, now)?, let_go(tx)?));
        let rows = work.cloud.store.write("look after imports", look).await;
        let to_do = match rows {
            Ok((to_do, let_go)) => {
                if let_go > 0 {
                    report.changed += let_go as u64;
                    report.again = Some(Duration::ZERO);
                    work.cloud.pokes.kept.poke();
                }
                to_do
            }
            Err(e) => {
                report.error(e.cause.unwrap_or(e.answer.message));
                return report;
            }
        };
        for task in to_do {
            if work.begun().insert(task.id.clone()) {
                report.changed += 1;
                tokio::spawn(work.clone().run(task));
            }
        }
        report
    }
}

/// Ends the tasks whose snapshots are complete, or gone; those that have no bytes in walrus yet are to be carried out.
fn settle(tx: &mut Tx<'_>, now: i64) -> Outcome<Vec<Task>> {
    let mut to_do = Vec::new();
    for task in task::active(tx)? {
        match snapshot::imported(tx, &task.snapshot)? {
            snapshot::Imported::Missing => to_do.push(task),
            snapshot::Imported::Counted => {}
            snapshot::Imported::Complete => complete(tx, &task, now)?,
            snapshot::Imported::Failed(why) => task::set_ended(tx, &task.id, State::Deleted, &why)?,
        }
    }
    Ok(to_do)
}

/// Of what imports that are over hold, some at a time; how many blobs.
fn let_go(tx: &mut Tx<'_>) -> Outcome<usize> {
    let mut count = 0;
    for holder in snapshot::holders(tx)? {
        if task::any(tx, &holder)?.is_none_or(|task| task.state != State::Active) {
            count += snapshot::let_go(tx, &holder)?;
        }
    }
    Ok(count)
}

fn complete(tx: &mut Tx<'_>, task: &Task, now: i64) -> Outcome<()> {
    if task.is_of_image() {
        let id = image_of(task);
        let source = snapshot::source(tx, &task.account, &task.snapshot)?;
        insert_image(tx, task, &id, source, now)?;
        task::set_image(tx, &task.id, id.as_str())?;
    }
    Ok(task::set_ended(tx, &task.id, State::Completed, "")?)
}

/// From the task's own id, whose digits are random enough for both.
fn image_of(task: &Task) -> ImageId {
    let mut seed = [0; 9];
    let digest = Sha256::digest(format!("image of {}", task.id));
    seed.copy_from_slice(digest.get(..9).unwrap_or(&[0; 9]));
    ImageId::Machine(MachineImageId::from_random(seed))
}

fn insert_image(tx: &mut Tx<'_>, task: &Task, id: &ImageId, source: Source, now: i64) -> Outcome<()> {
    let kind = "gp2".to_owned();
    let (iops, throughput) = volume::figures(&kind, source.size_gib, None, None)?;
    let root = VolumeOf {
        size_gib: source.size_gib,
        encrypted: source.encrypted,
        snapshot: Some(source),
        kind,
        iops,
        throughput,
        delete_on_termination: true,
    };
    let image = image::Image {
        id: id.clone(),
        account: task.account.clone(),
        name: task.id.clone(),
        location: format!("{}/{}", task.account, task.id),
        kind: image::Kind::Machine,
        architecture: task.architecture.clone(),
        description: Some(format!("AWS-VMImport service: Linux - {}", task.description)),
        kernel: None,
        ramdisk: None,
        root_device: ROOT_DEVICE.into(),
        tokens_required: false,
        state: image::State::Available,
        reason: String::new(),
        progress: 100,
        proof: image::Proof::Unknown,
        digest: None,
        size: 0,
        created: now,
        mappings: vec![Mapping { device: ROOT_DEVICE.into(), disk: Device::Volume(root) }],
        source_instance: None,
    };
    Ok(image::insert(tx, &image)?)
}

impl Work {
    fn begun(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, task: Task) {
        let spool = Spool(self.spool.join(&task.id));
        let outcome = {
            let _place = self.places.acquire().await;
            self.import(&task, &spool.0).await
        };
        drop(spool);
        let (id, now) = (task.id.clone(), self.cloud.now());
        let written = match outcome {
            Ok(manifest) => {
                tracing::info!(import.id = id, snapshot.id = %task.snapshot, manifest.size, "imported");
                let (task, digest) = (task.clone(), manifest.digest);
                let write = move |tx: &mut Tx<'_>| {
                    if task::any(tx, &task.id)?.is_some_and(|t| t.state == State::Active) {
                        let of = (task.account.as_str(), &task.snapshot);
                        let description = if task.description.is_empty() { &task.id } else { &task.description };
                        let what = (manifest.size, digest.as_str(), task.disk_key.as_deref());
                        snapshot::put_imported(tx, of, description, what, now)?;
                    }
                    Ok::<_, StoreError>(())
                };
                self.cloud.store.write("an import is in walrus", write).await
            }
            Err(Trouble::Wrong(why)) => {
                tracing::info!(import.id = id, why, "an import failed");
                let why = format!("ClientError: {why}");
                let write = move |tx: &mut Tx<'_>| task::set_ended(tx, &id, State::Deleted, &why);
                self.cloud.store.write("an import failed", write).await
            }
            Err(Trouble::Later(why)) => {
                tracing::warn!(import.id = id, why, "an import waits");
                let write = move |tx: &mut Tx<'_>| task::set_progress(tx, &id, 0, 0, &why).map(drop);
                let written = self.cloud.store.write("note what an import waits for", write).await;
                tokio::time::sleep(AGAIN).await;
                written
            }
            Err(Trouble::Cancelled) => Ok(()),
        };
        if let Err(e) = written {
            tracing::warn!(import.id = task.id, error = %e, "an import begins again");
            tokio::time::sleep(AGAIN).await;
        }
        self.begun().remove(&task.id);
        self.cloud.pokes.kept.poke();
        self.cloud.pokes.imports.poke();
    }

    async fn show(&self, task: &Task, progress: u32, size: u64, message: &'static str) -> Result<(), Trouble> {
        let id = task.id.clone();
        let shown = self
            .cloud
            .store
            .write("show an import's progress", move |tx| task::set_progress(tx, &id, progress, size, message));
        if shown.await.map_err(|e: StoreError| later(e))? { Ok(()) } else { Err(Trouble::Cancelled) }
    }

    async fn import(&self, task: &Task, spool: &Path) -> Result<Imported, Trouble> {
        let walrus = self.cloud.tiers.walrus_http(&self.cloud.store).await.map_err(|e| later(e.message))?;
        self.fetch(task, &walrus, spool).await?;
        let (path, format) = (spool.to_owned(), task.format);
        let disk = tokio::task::spawn_blocking(move || Disk::open(std::fs::File::open(path)?, format));
        self.store(task, &walrus, disk.await.map_err(later)??).await
    }

    async fn fetch(&self, task: &Task, walrus: &TierHttp, spool: &Path) -> Result<(), Trouble> {
        tokio::fs::create_dir_all(&self.spool).await.map_err(later)?;
        let mut object = fetch::open(walrus, &task.account, &task.location).await?;
        let mut file = tokio::fs::File::create(spool).await.map_err(later)?;
        let (mut size, mut shown) = (0u64, 0u64);
        self.check_room()?;
        while let Some(bytes) = object.next().await? {
            file.write_all(&bytes).await.map_err(later)?;
            size += bytes.len() as u64;
            if size >= shown + STRIDE {
                shown = size;
                self.check_room()?;
                self.show(task, FETCHED_PERCENT / 2, size, "downloading/converting").await?;
            }
        }
        file.flush().await.map_err(later)?;
        self.show(task, FETCHED_PERCENT, size, "downloading/converting").await
    }

    fn check_room(&self) -> Result<(), Trouble> {
        let disk = nix::sys::statvfs::statvfs(&self.spool).map_err(later)?;
        if disk.blocks_available() * disk.fragment_size() > LEFT_FREE + STRIDE {
            return Ok(());
        }
        Err(Trouble::Later(format!("the cloud-controller's disk has no room for it in {}", self.spool.display())))
    }

    /// Sends what walrus lacks of the disk's blocks, of the pages that name them, and the manifest.
    async fn store(&self, task: &Task, walrus: &TierHttp, mut disk: Disk) -> Result<Imported, Trouble> {
        let size = disk.size.next_multiple_of(1 << 30);
        let key = self.key(task).await?;
        let (blocks, mut manifest) = (disk.size.div_ceil(SNAPSHOT_BLOCK), Manifest::new(size, task.disk_key.clone()));
        let (mut page, mut shown) = (Page::default(), 0);
        for first in (0..blocks).step_by(BATCH as usize) {
            let last = (first + BATCH).min(blocks);
            let key = key.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut found: Vec<(u64, String, Vec<u8>)> = Vec::new();
                for index in first..last {
                    if let Some(block) = disk.block(index)? {
                        let sealed = key.as_ref().map(|key| key.seal_block(&block)).transpose();
                        let block = sealed.map_err(io::Error::other)?.unwrap_or(block);
                        found.push((index, hex::encode(Sha256::digest(&block)), block));
                    }
                }
                Ok::<_, io::Error>((disk, found))
            });
            let (back, found) = read.await.map_err(later)??;
            disk = back;
            let mut blobs = BTreeMap::new();
            for (index, digest, block) in found {
                page.blocks.insert(index % SNAPSHOT_PAGE, digest.clone());
                blobs.insert(digest, block);
            }
            self.put_missing(task, walrus, blobs).await?;
            // A page has a multiple of a batch.
            if last.is_multiple_of(SNAPSHOT_PAGE) || last == blocks {
                let whole = std::mem::take(&mut page);
                if !whole.blocks.is_empty() {
                    let digest = self.put_document(task, walrus, &whole).await?;
                    manifest.pages.insert((last - 1) / SNAPSHOT_PAGE, digest);
                }
            }
            let percent = u32::try_from(last * 100 / blocks.max(1)).unwrap_or(100);
            if percent >= shown + 5 {
                shown = percent;
                let all = FETCHED_PERCENT + percent * (100 - FETCHED_PERCENT) / 100;
                self.show(task, all.min(99), 0, "downloading/converting").await?;
            }
        }
        Ok(Imported { digest: self.put_document(task, walrus, &manifest).await?, size })
    }

    /// The key its blocks are sealed with.
    async fn key(&self, task: &Task) -> Result<Option<DiskKey>, Trouble> {
        let Some(id) = task.disk_key.clone() else { return Ok(None) };
        let asked = id.clone();
        let sealed = self.cloud.store.read("read a disk key", move |tx| disk_key::sealed(tx, &asked)).await;
        let sealed = sealed.map_err(|e: StoreError| later(e))?.ok_or_else(|| later(format!("no disk key {id}")))?;
        let key = disk_key::open(&self.cloud.sealing, &id, &sealed);
        key.map(Some).map_err(|e| later(e.cause.unwrap_or(e.answer.message)))
    }

    async fn put_document(
        &self,
        task: &Task,
        walrus: &TierHttp,
        document: &impl serde::Serialize,
    ) -> Result<String, Trouble> {
        let bytes = serde_json::to_vec(document).map_err(later)?;
        let digest = hex::encode(Sha256::digest(&bytes));
        self.put_missing(task, walrus, BTreeMap::from([(digest.clone(), bytes)])).await?;
        Ok(digest)
    }

    /// Holds them for the task, and sends those that walrus lacks.
    async fn put_missing(
        &self,
        task: &Task,
        walrus: &TierHttp,
        blobs: BTreeMap<String, Vec<u8>>,
    ) -> Result<(), Trouble> {
        if blobs.is_empty() {
            return Ok(());
        }
        let asked = Digests { digests: blobs.keys().cloned().collect() };
        let (holder, digests) = (task.id.clone(), asked.digests.clone());
        let held = self.cloud.store.write("hold the blobs of an import", move |tx| {
            snapshot::hold(tx, &holder, digests.iter().map(String::as_str))
        });
        held.await.map_err(|e: StoreError| later(e))?;
        let client = WalrusClient::new(Arc::new(walrus.clone()));
        let there: BTreeSet<String> =
            client.blobs_present(&asked).await.map_err(|e| later(e.message))?.digests.into_iter().collect();
        for (digest, bytes) in blobs.into_iter().filter(|(digest, _)| !there.contains(digest)) {
            fetch::put_bytes(walrus, &digest, bytes).await?;
        }
        Ok(())
    }
}

/// All of a disk is in walrus.
struct Imported {
    /// Of its manifest.
    digest: String,
    size: u64,
}

/// Gone when the import is over, however it ended.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
