//! Snapshots as a storage-controller knows them, and how their bytes lie in walrus.
//!
//! A snapshot is a [`Manifest`], which names [`Page`]s, which name blocks. All three are blobs of walrus under their own
//! SHA-256, so whatever did not change since the snapshot before is the same blob. A block that is all zero is in no page, a
//! page without blocks in no manifest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Generation, Reported, Wanted};

/// Bytes of a block, as EBS has them.
pub const SNAPSHOT_BLOCK: u64 = 512 * 1024;
/// Blocks of a page: 512 MiB.
pub const SNAPSHOT_PAGE: u64 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotDesired {
    Present,
    /// Nothing of it is needed here any more. The row stays in the list until [`SnapshotObserved::Gone`] was reported.
    Deleted,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotObserved {
    /// What the volume holds now is not fixed yet.
    Freezing,
    /// It is: nothing that is written from now on is in it. Its blocks are on their way.
    Frozen,
    /// All of it is in walrus.
    Uploaded,
    Failed,
    Gone,
    #[serde(other)]
    Unknown,
}

/// A snapshot as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `snap-…`.
    pub id: String,
    pub generation: Generation,
    pub desired: SnapshotDesired,
    /// Of which volume; empty when it is a copy of `source`.
    pub volume: String,
    /// It is this other snapshot, with its blocks encrypted anew. No volume is frozen for it.
    #[serde(default)]
    pub source: Option<VolumeSource>,
    /// Id of the key a copy's blocks are encrypted with. One of a volume is encrypted as its volume is.
    #[serde(default)]
    pub encrypted: Option<String>,
    /// Raised to have everything uploaded again, because something of it was not in walrus.
    #[serde(default)]
    pub attempt: u32,
    /// Its blocks were found in walrus and are counted there: the volume need not keep them apart any more.
    #[serde(default)]
    pub accepted: bool,
}

impl Snapshot {
    /// A snapshot of a volume.
    pub fn new(id: impl Into<String>, generation: Generation, volume: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            generation,
            desired: SnapshotDesired::Present,
            volume: volume.into(),
            source: None,
            encrypted: None,
            attempt: 0,
            accepted: false,
        }
    }
}

impl Wanted for Snapshot {
    fn id(&self) -> &str {
        &self.id
    }
    fn generation(&self) -> Generation {
        self.generation
    }
}

/// A snapshot as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    pub id: String,
    pub generation: Generation,
    pub observed: SnapshotObserved,
    #[serde(default)]
    pub reason: String,
    /// Of the upload.
    #[serde(default)]
    pub percent: u32,
    /// The attempt this is about.
    #[serde(default)]
    pub attempt: u32,
    /// Digest of the manifest, when it is uploaded.
    #[serde(default)]
    pub manifest: Option<String>,
    /// Bytes of blocks sent to walrus for it: those that were not there.
    #[serde(default)]
    pub sent: u64,
    /// Size of the volume when it was frozen.
    #[serde(default)]
    pub size_gib: u64,
}

impl Reported for SnapshotReport {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The snapshot a volume begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSource {
    pub snapshot: String,
    /// Digest of its manifest.
    pub manifest: String,
}

/// What a snapshot consists of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// 1; 2 when it is encrypted. One of a later release is refused, not guessed at.
    pub format: u32,
    pub block_size: u64,
    /// Bytes of the volume.
    pub size: u64,
    /// Id of the key its blocks are sealed with (`mallee_service::disk_key`); format 2 has one, format 1 has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<String>,
    /// Number of the page → its digest.
    pub pages: BTreeMap<u64, String>,
}

/// Some blocks of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Page {
    /// Index of the block within the volume, less the first of the page → its digest.
    pub blocks: BTreeMap<u64, String>,
}

impl Manifest {
    pub fn new(size: u64, encrypted: Option<String>) -> Self {
        let format = if encrypted.is_some() { 2 } else { 1 };
        Self { format, block_size: SNAPSHOT_BLOCK, size, encrypted, pages: BTreeMap::new() }
    }

    /// Reads a manifest; the error says what is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| format!("the manifest is not readable: {e}"))?;
        let format = if manifest.encrypted.is_some() { 2 } else { 1 };
        if (manifest.format, manifest.block_size) != (format, SNAPSHOT_BLOCK) {
            return Err(format!("the manifest has format {}, which this release does not know", manifest.format));
        }
        let pages = manifest.size.div_ceil(SNAPSHOT_BLOCK * SNAPSHOT_PAGE);
        match manifest.pages.keys().next_back() {
            Some(last) if *last >= pages => Err(format!("the manifest has page {last}, the volume only {pages}")),
            _ => Ok(manifest),
        }
    }
}

impl Page {
    /// Reads a page; the error says what is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let page: Self = serde_json::from_slice(bytes).map_err(|e| format!("a page is not readable: {e}"))?;
        match page.blocks.keys().next_back() {
            Some(last) if *last >= SNAPSHOT_PAGE => Err(format!("a page has block {last} of {SNAPSHOT_PAGE}")),
            _ => Ok(page),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_the_volume_or_is_of_a_later_format_is_refused() {
        let mut manifest = Manifest::new(1 << 30, None);
        manifest.pages.insert(1, "ab".into());
        let read = |m: &Manifest| Manifest::read(&serde_json::to_vec(m).unwrap());
        assert_eq!(read(&manifest).as_ref(), Ok(&manifest));
        manifest.pages.insert(2, "ab".into());
        assert!(read(&manifest).is_err());
        assert!(read(&Manifest { format: 2, ..Manifest::new(0, None) }).is_err());
        assert!(Page::read(br#"{"blocks":{"1024":"ab"}}"#).is_err());
        assert_eq!(Page::read(br#"{"blocks":{"1023":"ab"}}"#).unwrap().blocks.len(), 1);
    }
}
