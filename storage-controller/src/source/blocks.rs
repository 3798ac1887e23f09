//! The blocks of a snapshot, as they are fetched.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
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

/// Blocks that were fetched last, of all sources: 32 MiB. A guest reads a block in many pieces, and guests that are started
/// together from one snapshot read the same ones.
const BLOCKS_HELD: usize = 64;
const PAGES_HELD: usize = 8;
/// Blocks that are fetched before they are asked for, of whoever reads one after the other: a guest that boots, and the job
/// that brings over the rest. One at a time each would wait for walrus' answer.
const AHEAD: u64 = 4;
/// Blocks that were read last, to know who reads one after the other.
const READ_LAST: usize = 16;
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

    fn clear(&self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The blocks somebody read last.
#[derive(Default)]
struct ReadLast(VecDeque<u64>);

impl ReadLast {
    /// Notes it; whether it comes after one that was read before, and is read for the first time in a while.
    fn goes_on_with(&mut self, block: u64) -> bool {
        if self.0.contains(&block) {
            return false;
        }
        let goes_on = block == 0 || self.0.contains(&(block - 1));
        self.0.push_front(block);
        self.0.truncate(READ_LAST);
        goes_on
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
    /// By their digests; those of other volumes are among them.
    blocks: Arc<Held<String, Bytes>>,
    read_last: Mutex<ReadLast>,
    /// Why the last fetch did not work.
    trouble: Mutex<Option<String>>,
    /// Poked when that changed.
    changed: Poke,
}

impl Source {
    /// For whoever reads it once, from one end to the other, and must not push out what guests wait for.
    pub(crate) async fn to_copy(manifest: Manifest, of: &Sources) -> Result<Self, Trouble> {
        Self::open(manifest, of, Arc::new(Held::new(READ_LAST))).await
    }

    async fn open(manifest: Manifest, of: &Sources, blocks: Arc<Held<String, Bytes>>) -> Result<Self, Trouble> {
        let key = match &manifest.encrypted {
            Some(id) => Some(of.keys.get(id).await?),
            None => None,
        };
        Ok(Self {
            manifest,
            key,
            blobs: of.blobs.clone(),
            pages: Held::new(PAGES_HELD),
            blocks,
            read_last: Mutex::default(),
            trouble: Mutex::default(),
            changed: of.changed.clone(),
        })
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

    /// Fetches what will be asked for next. What fails is fetched when it is asked for, and tells its trouble then.
    fn look_ahead(self: &Arc<Self>, from: u64) {
        if !self.read_last.lock().unwrap_or_else(PoisonError::into_inner).goes_on_with(from) {
            return;
        }
        let source = self.clone();
        tokio::spawn(async move {
            join_all((from + 1..=from + AHEAD).map(|next| source.block(next))).await;
        });
    }

    /// The part of a block from `offset` on, at most `length` bytes; None: as many zeros. How many bytes that is.
    pub(super) async fn part(self: &Arc<Self>, offset: u64, length: u64) -> (Option<Bytes>, u64) {
        let (number, within) = (offset / SNAPSHOT_BLOCK, offset % SNAPSHOT_BLOCK);
        let length = length.min(SNAPSHOT_BLOCK - within);
        self.look_ahead(number);
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
    blocks: Arc<Held<String, Bytes>>,
    /// Poked when one can be read no more, or again.
    changed: Poke,
}

impl Sources {
    pub fn new(backend: Arc<dyn Backend>, blobs: Arc<Blobs>, keys: Arc<Keys>, changed: Poke) -> Self {
        let blocks = Arc::new(Held::new(BLOCKS_HELD));
        Self { backend, blobs, keys, open: Mutex::default(), blocks, changed }
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
        let opened = Arc::new(Source::open(beginning.manifest, self, self.blocks.clone()).await?);
        Ok(Some(self.opened().entry(id.clone()).or_insert(opened).clone()))
    }

    /// Why a volume waits for its source.
    pub fn trouble(&self, id: &VolumeId) -> Option<String> {
        self.opened().get(id)?.trouble()
    }

    pub fn forget(&self, id: &VolumeId) {
        let mut opened = self.opened();
        opened.remove(id);
        if opened.is_empty() {
            self.blocks.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_one_block_after_the_other_is_told_from_who_jumps() {
        let mut read = ReadLast::default();
        let goes_on: Vec<bool> = [0, 0, 1, 7, 2, 7, 8, 100].map(|block| read.goes_on_with(block)).into();
        // Two readers take turns; a block that is read in pieces counts once.
        assert_eq!(goes_on, [true, false, true, false, true, false, true, false]);
        (200..200 + READ_LAST as u64 * 2).step_by(2).for_each(|block| assert!(!read.goes_on_with(block)));
        assert!(!read.goes_on_with(101), "what was read long ago is forgotten");
    }

    #[tokio::test]
    async fn what_was_used_last_is_held_and_fetched_once() {
        let held = Held::new(2);
        for key in ["a", "b", "a", "c"] {
            let _: Result<_, ()> = held.cell(&key).get_or_try_init(|| async { Ok(key) }).await;
        }
        assert!(held.cell(&"a").initialized() && held.cell(&"c").initialized());
        assert!(!held.cell(&"b").initialized());
    }
}
