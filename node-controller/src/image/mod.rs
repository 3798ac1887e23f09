//! The node's image cache: plain images by their SHA-256, fetched from walrus once, read-only, shared by every overlay.
//!
//! - What is asked for by digest is checked against it while it streams; bytes that differ never get the name.
//! - A name in the cache means: whole, right, and on disk (fsync before the rename).
//! - The format comes from the image's row and is never probed. A qcow2 that names a backing or data file is refused: it
//!   would let a user read any file of this machine.
//! - What no instance uses goes when the disk gets short, longest unused first.

mod qcow2;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use mallee_tiers::{Blob, DiskFormat};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

pub use source::Walrus;

/// A stream that brings nothing for this long is given up, and begun again.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Where blobs come from: walrus.
#[async_trait::async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// The bytes of a blob, from its beginning.
    async fn open(&self, digest: &str) -> Result<BoxStream<'static, io::Result<Bytes>>, ImageError>;
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// Trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// The image is not what its row says, or is not acceptable: trying again does not help.
    #[error("{0}")]
    Refused(String),
}

impl ImageError {
    fn io(what: &str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
        let text = format!("{what} {}", path.display());
        move |e| ImageError::Unavailable(format!("{text}: {e}"))
    }
}

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub path: PathBuf,
    pub format: DiskFormat,
    /// What a guest sees of it, in bytes.
    pub virtual_size: u64,
}

pub struct ImageCache {
    dir: PathBuf,
    blobs: Arc<dyn Blobs>,
    /// Bytes that shall stay free.
    floor: u64,
    fetching: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl ImageCache {
    /// Opens the cache; half-fetched images of an earlier life go.
    pub fn open(dir: &Path, blobs: Arc<dyn Blobs>, floor: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "part") {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self { dir: dir.into(), blobs, floor, fetching: Mutex::default() })
    }

    /// The image, fetched if it is not here. Callers of the same digest wait for one fetch. `used` are digests that must stay.
    pub async fn ensure(&self, blob: &Blob, used: &BTreeSet<String>) -> Result<Base, ImageError> {
        if blob.digest.len() != 64 || !blob.digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ImageError::Refused(format!("{:?} is no SHA-256", blob.digest)));
        }
        let gate = self
            .fetching
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(blob.digest.clone())
            .or_default()
            .clone();
        let _turn = gate.lock().await;
        let path = self.dir.join(&blob.digest);
        if !path.exists() {
            self.make_room(blob.size, used)?;
            self.fetch(blob, &path).await?;
        }
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner).remove(&blob.digest);
        let file = std::fs::File::open(&path).map_err(ImageError::io("opening", &path))?;
        // When it was used last; that it cannot be noted is no reason not to use it.
        let _ = file.set_modified(SystemTime::now());
        let virtual_size = match blob.format {
            DiskFormat::Raw => blob.size,
            DiskFormat::Qcow2 => qcow2::virtual_size(&path)?,
            DiskFormat::Unknown => {
                return Err(ImageError::Refused("the image's format is of a later release than this node".into()));
            }
        };
        Ok(Base { path, format: blob.format, virtual_size })
    }

    async fn fetch(&self, blob: &Blob, path: &Path) -> Result<(), ImageError> {
        let part = path.with_extension("part");
        let done = self.stream_to(blob, &part).await;
        if done.is_err() {
            let _ = std::fs::remove_file(&part);
            return done;
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o444))
            .map_err(ImageError::io("closing", &part))?;
        std::fs::rename(&part, path).map_err(ImageError::io("naming", path))?;
        sync_dir(&self.dir).map_err(ImageError::io("syncing", &self.dir))
    }

    async fn stream_to(&self, blob: &Blob, part: &Path) -> Result<(), ImageError> {
        let mut stream = self.blobs.open(&blob.digest).await?;
        let mut file = tokio::fs::File::create(part).await.map_err(ImageError::io("creating", part))?;
        let (mut hash, mut length) = (Sha256::new(), 0u64);
        let stopped = |e: &dyn std::fmt::Display| {
            ImageError::Unavailable(format!("walrus stopped sending image {}: {e}", blob.digest))
        };
        while let Some(chunk) = tokio::time::timeout(SILENCE, stream.next()).await.map_err(|e| stopped(&e))? {
            let chunk = chunk.map_err(|e| stopped(&e))?;
            length += chunk.len() as u64;
            if length > blob.size {
                return Err(ImageError::Refused(format!(
                    "image {} is longer than its row says ({} bytes)",
                    blob.digest, blob.size
                )));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(ImageError::io("writing", part))?;
        }
        if length < blob.size {
            return Err(ImageError::Unavailable(format!(
                "walrus sent {length} of {} bytes of image {}",
                blob.size, blob.digest
            )));
        }
        let got = hex::encode(hash.finalize());
        if got != blob.digest {
            return Err(ImageError::Refused(format!(
                "image {} arrived with digest {got}: its bytes are not the registered ones",
                blob.digest
            )));
        }
        file.sync_all().await.map_err(ImageError::io("syncing", part))
    }

    /// Lets unused images go until `needed` bytes and the floor are free.
    fn make_room(&self, needed: u64, used: &BTreeSet<String>) -> Result<(), ImageError> {
        let wanted = needed.saturating_add(self.floor);
        if free_bytes(&self.dir)? >= wanted {
            return Ok(());
        }
        for (_, path) in self.unused(used).map_err(ImageError::io("reading", &self.dir))? {
            tracing::info!(image = %path.display(), "removing an unused image: the disk is short");
            std::fs::remove_file(&path).map_err(ImageError::io("removing", &path))?;
            if free_bytes(&self.dir)? >= wanted {
                return Ok(());
            }
        }
        let free = free_bytes(&self.dir)?;
        Err(ImageError::Unavailable(format!(
            "the disk of this node is short: {} MiB free, {} MiB wanted for the image, and every cached image is in use",
            free >> 20,
            wanted >> 20
        )))
    }

    /// Cached images that nobody uses, longest unused first.
    fn unused(&self, used: &BTreeSet<String>) -> io::Result<Vec<(SystemTime, PathBuf)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == 64 && !used.contains(&name) {
                all.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        all.sort();
        Ok(all)
    }
}

fn free_bytes(dir: &Path) -> Result<u64, ImageError> {
    let stat =
        nix::sys::statvfs::statvfs(dir).map_err(|e| ImageError::Unavailable(format!("{}: {e}", dir.display())))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Makes names in a directory durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A walrus with one blob, which counts how often it was asked.
    struct One(Vec<u8>, AtomicU32);

    #[async_trait::async_trait]
    impl Blobs for One {
        async fn open(&self, _: &str) -> Result<BoxStream<'static, io::Result<Bytes>>, ImageError> {
            self.1.fetch_add(1, Ordering::SeqCst);
            let chunks: Vec<_> = self.0.chunks(7).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            Ok(futures_util::stream::iter(chunks).boxed())
        }
    }

    fn blob(bytes: &[u8]) -> Blob {
        Blob { digest: hex::encode(Sha256::digest(bytes)), size: bytes.len() as u64, format: DiskFormat::Raw }
    }

    #[tokio::test]
    async fn many_launches_fetch_an_image_once() {
        let dir = tempfile::tempdir().unwrap();
        let walrus = Arc::new(One(b"an image of forty bytes or thereabouts".to_vec(), AtomicU32::new(0)));
        let cache = Arc::new(ImageCache::open(dir.path(), walrus.clone(), 0).unwrap());
        let wanted = blob(&walrus.0);
        let all: Vec<_> = (0..8)
            .map(|_| {
                let (cache, wanted) = (cache.clone(), wanted.clone());
                tokio::spawn(async move { cache.ensure(&wanted, &BTreeSet::new()).await })
            })
            .collect();
        for one in all {
            assert_eq!(one.await.unwrap().unwrap().virtual_size, wanted.size);
        }
        assert_eq!(walrus.1.load(Ordering::SeqCst), 1);
        assert_eq!(std::fs::read(dir.path().join(&wanted.digest)).unwrap(), walrus.0);
    }

    #[tokio::test]
    async fn bytes_that_differ_never_get_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(dir.path(), Arc::new(One(b"flipped".to_vec(), AtomicU32::new(0))), 0).unwrap();
        let refused = cache.ensure(&blob(b"unflipp"), &BTreeSet::new()).await.unwrap_err();
        assert!(matches!(&refused, ImageError::Refused(why) if why.contains("digest")), "{refused}");
        let short = cache.ensure(&blob(b"unflipped"), &BTreeSet::new()).await.unwrap_err();
        assert!(matches!(short, ImageError::Unavailable(_)), "a cut stream is tried again: {short}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_short_disk_costs_unused_images_only() {
        let dir = tempfile::tempdir().unwrap();
        let (used, idle) = ("a".repeat(64), "b".repeat(64));
        for name in [&used, &idle] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let cache = ImageCache::open(dir.path(), Arc::new(One(vec![1], AtomicU32::new(0))), u64::MAX / 2).unwrap();
        let refused = cache.ensure(&blob(&[1]), &BTreeSet::from([used.clone()])).await.unwrap_err();
        assert!(matches!(refused, ImageError::Unavailable(_)));
        assert!(dir.path().join(used).exists() && !dir.path().join(idle).exists());
    }
}
