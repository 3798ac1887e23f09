//! The blocks of a snapshot, as they are fetched.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use mallee_service::{DiskKey, Poke, disk_key::BLOCK_OVERHEAD};
use mallee_tiers::{Manifest, Page, SNAPSHOT_BLOCK, SNAPSHOT_PAGE};
use tokio::sync::OnceCell;

use crate::{
    backend::{Backend, Below},
    blobs::Blobs,
    key::Keys,
    snapshot::DOCUMENT_MAX,
    volume::{Trouble, VolumeId},
};

/// Blocks that were fetched last: 8 MiB. A guest reads a block in many pieces.
const BLOCKS_HELD: usize = 16;
const PAGES_HELD: usize = 8;
/// Walrus is asked again after this.
const PAUSE: Duration = Duration::from_millis(500);

/// What was used last, each fetched once however many want it.
struct Held<K, V> {
    limit: usize,
    all: Mutex<VecDeque<(K, Arc<OnceCell<V>>)>>,
}

impl<K: PartialEq + Clone, V: Clone> Held<K, V> {
    fn new(limit: usize) -> Self {
        Self { limit, all: Mutex::default() }
    }

    fn cell(&self, key: &K) -> Arc<OnceCell<V>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().position(|(held, _)| held == key).and_then(|at| all.remove(at));
        let (key, cell) = found.unwrap_or_else(|| (key.clone(), Arc::default()));
        all.push_front((key, cell.clone()));
        all.truncate(self.limit);
        cell
    }
}

/// A block as walrus has it, deciphered when it is sealed.
async fn get_block(blobs: &Blobs, digest: &str, key: Option<&DiskKey>) -> Result<Bytes, Trouble> {
    let sealed = blobs.get(digest, SNAPSHOT_BLOCK as usize + BLOCK_OVERHEAD).await?;
    let block = match key {
        Some(key) => key.open_block(&sealed).map_err(|e| Trouble::Other(e.to_string()))?.into(),
        None => sealed,
    };
    if block.len() as u64 == SNAPSHOT_BLOCK {
        return Ok(block);
    }
    Err(Trouble::Other(format!("block {digest} has {} bytes", block.len())))
}

/// One snapshot that is being read.
pub struct Source {
    pub manifest: Manifest,
    key: Option<DiskKey>,
    blobs: Arc<Blobs>,
    pages: Held<u64, Arc<Page>>,
    blocks: Held<String, Bytes>,
    /// Why the last fetch did not work.
    trouble: Mutex<Option<String>>,
    /// Poked when that changed.
    changed: Poke,
}

impl Source {
    pub(crate) async fn open(
        manifest: Manifest,
        blobs: Arc<Blobs>,
        keys: &Keys,
        changed: Poke,
    ) -> Result<Self, Trouble> {
        let key = match &manifest.encrypted {
            Some(id) => Some(keys.get(id).await?),
            None => None,
        };
        let (pages, blocks) = (Held::new(PAGES_HELD), Held::new(BLOCKS_HELD));
        Ok(Self { manifest, key, blobs, pages, blocks, trouble: Mutex::default(), changed })
    }

    /// None: nothing is in it.
    async fn page(&self, number: u64) -> Result<Option<Arc<Page>>, Trouble> {
        let Some(digest) = self.manifest.pages.get(&number) else { return Ok(None) };
        let cell = self.pages.cell(&number);
        let fetch = || async {
            let document = self.blobs.get(digest, DOCUMENT_MAX).await?;
            Page::read(&document).map(Arc::new).map_err(Trouble::Other)
        };
        cell.get_or_try_init(fetch).await.cloned().map(Some)
    }

    async fn digest(&self, block: u64) -> Result<Option<String>, Trouble> {
        let page = self.page(block / SNAPSHOT_PAGE).await?;
        Ok(page.and_then(|page| page.blocks.get(&(block % SNAPSHOT_PAGE)).cloned()))
    }

    /// None: it is all zero.
    pub(crate) async fn block(&self, number: u64) -> Result<Option<Bytes>, Trouble> {
        let Some(digest) = self.digest(number).await? else { return Ok(None) };
        let cell = self.blocks.cell(&digest);
        let fetch = || get_block(&self.blobs, &digest, self.key.as_ref());
        cell.get_or_try_init(fetch).await.cloned().map(Some)
    }

    /// The numbers of all blocks that are not all zero.
    pub(crate) async fn numbers(&self) -> Result<Vec<u64>, Trouble> {
        let mut all = Vec::new();
        for number in self.manifest.pages.keys() {
            if let Some(page) = self.page(*number).await? {
                all.extend(page.blocks.keys().map(|within| number * SNAPSHOT_PAGE + within));
            }
        }
        Ok(all)
    }

    /// Tries until it works: a guest waits for it.
    pub(super) async fn until<T, F>(&self, what: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        loop {
            match what().await {
                Ok(done) => {
                    self.set_trouble(None);
                    return done;
                }
                Err(e) => self.set_trouble(Some(e.to_string())),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether what begins at `offset` is there, and how far that holds, up to `length`.
    pub(super) async fn extent(&self, offset: u64, length: u64) -> (bool, u64) {
        let (mut block, end) = (offset / SNAPSHOT_BLOCK, offset + length);
        let is_there = |block: u64| self.until(move || async move { Ok(self.digest(block).await?.is_some()) });
        let there = is_there(block).await;
        loop {
            block += 1;
            if !there && !self.manifest.pages.contains_key(&(block / SNAPSHOT_PAGE)) {
                block = (block / SNAPSHOT_PAGE + 1) * SNAPSHOT_PAGE - 1;
                if block * SNAPSHOT_BLOCK < end {
                    continue;
                }
            }
            if block * SNAPSHOT_BLOCK >= end {
                return (there, length);
            }
            if is_there(block).await != there {
                return (there, block * SNAPSHOT_BLOCK - offset);
            }
        }
    }

    /// The part of a block from `offset` on, at most `length` bytes; None: as many zeros. How many bytes that is.
    pub(super) async fn part(&self, offset: u64, length: u64) -> (Option<Bytes>, u64) {
        let (number, within) = (offset / SNAPSHOT_BLOCK, offset % SNAPSHOT_BLOCK);
        let length = length.min(SNAPSHOT_BLOCK - within);
        let block = self.until(|| self.block(number)).await;
        let (from, to) = (within as usize, (within + length) as usize);
        (block.map(|bytes| bytes.slice(from..to)), length)
    }

    fn set_trouble(&self, why: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *trouble == why {
            return;
        }
        match &why {
            Some(why) => tracing::warn!(why, "a block of a snapshot cannot be fetched; it is tried until it can"),
            None => tracing::info!("blocks of the snapshot come again"),
        }
        *trouble = why;
        self.changed.poke();
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// For whoever reads the volume's files on a blocking thread. It does not wait for walrus: its caller begins again.
pub(crate) struct Blocking {
    pub source: Arc<Source>,
    pub runtime: tokio::runtime::Handle,
}

impl Below for Blocking {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = at % SNAPSHOT_BLOCK;
            let length = (buffer.len() - done).min((SNAPSHOT_BLOCK - within) as usize);
            let part = &mut buffer[done..done + length];
            match self.runtime.block_on(self.source.block(at / SNAPSHOT_BLOCK)).map_err(io::Error::other)? {
                Some(block) => part.copy_from_slice(&block[within as usize..within as usize + length]),
                None => part.fill(0),
            }
            done += length;
        }
        Ok(())
    }

    fn blocks(&self, size: u64) -> io::Result<Vec<u64>> {
        let numbers = self.runtime.block_on(self.source.numbers()).map_err(io::Error::other)?;
        let each = |n: u64| n * SNAPSHOT_BLOCK / size..=((n + 1) * SNAPSHOT_BLOCK - 1) / size;
        Ok(numbers.into_iter().flat_map(each).collect())
    }
}

/// The sources of all volumes that are not fetched whole.
pub(crate) struct Sources {
    pub backend: Arc<dyn Backend>,
    pub blobs: Arc<Blobs>,
    pub keys: Arc<Keys>,
    open: Mutex<BTreeMap<VolumeId, Arc<Source>>>,
    /// Poked when one can be read no more, or again.
    changed: Poke,
}

impl Sources {
    pub fn new(backend: Arc<dyn Backend>, blobs: Arc<Blobs>, keys: Arc<Keys>, changed: Poke) -> Self {
        Self { backend, blobs, keys, open: Mutex::default(), changed }
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, BTreeMap<VolumeId, Arc<Source>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source of a volume; none when all of it was fetched, or it began empty.
    pub async fn of(&self, id: &VolumeId) -> Result<Option<Arc<Source>>, Trouble> {
        let (backend, looked) = (self.backend.clone(), id.clone());
        let read = tokio::task::spawn_blocking(move || backend.beginning(&looked)).await;
        let Some(beginning) = read.map_err(|e| Trouble::Other(e.to_string()))?? else {
            self.forget(id);
            return Ok(None);
        };
        if let Some(source) = self.opened().get(id) {
            return Ok(Some(source.clone()));
        }
        let opened =
            Arc::new(Source::open(beginning.manifest, self.blobs.clone(), &self.keys, self.changed.clone()).await?);
        Ok(Some(self.opened().entry(id.clone()).or_insert(opened).clone()))
    }

    /// Why a volume waits for its source.
    pub fn trouble(&self, id: &VolumeId) -> Option<String> {
        self.opened().get(id)?.trouble()
    }

    pub fn forget(&self, id: &VolumeId) {
        self.opened().remove(id);
    }
}
