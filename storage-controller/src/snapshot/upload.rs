//! Brings a frozen layer to walrus: every block that may differ from the snapshot before, if walrus does not have it yet.
//!
//! Killed in the middle, it begins again from the rows; what arrived is there already then.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use mallee_service::DiskKey;
use mallee_tiers::{Manifest, Page, SNAPSHOT_BLOCK, SNAPSHOT_PAGE, Snapshot, TierErrorKind, VolumeSource};

use super::{
    row::{OfVolume, Row, State},
    upload_of,
};
use crate::{
    Storage,
    backend::{Chain, Number, Opening},
    blobs::digest_of,
    source::Blocking,
    volume::{Trouble, VolumeId},
};

/// A page names at most 1,024 blocks, a manifest of 16 TiB 32,768 pages.
pub(crate) const DOCUMENT_MAX: usize = 8 << 20;
/// Blocks that are read and asked for at once: 8 MiB.
pub(super) const BATCH: usize = 16;
/// Of which so many are sent at the same time.
const AT_ONCE: usize = 4;

/// What the changed blocks are counted from.
struct Parent {
    layer: Number,
    manifest: String,
}

/// The snapshot whose layer is the newest below, if what changed since can still be told: one of the volume's own, or the one
/// it began with, which is all of its bottom layer.
fn parent(of: &OfVolume, row: &Row, began_with: Option<&VolumeSource>) -> Option<Parent> {
    let before =
        of.snapshots.iter().rev().map(|(_, r)| r).find(|r| {
            r.state == State::Uploaded && r.manifest.is_some() && r.layer < row.layer && r.layer >= of.merged
        });
    match before {
        Some(before) => Some(Parent { layer: before.layer, manifest: before.manifest.clone()? }),
        None if of.merged == 0 && row.layer > 0 => Some(Parent { layer: 0, manifest: began_with?.manifest.clone() }),
        None => None,
    }
}

impl Storage {
    /// Begins the upload, unless it is under way or an older snapshot of the volume comes first.
    pub(super) async fn begin_upload(self: &Arc<Self>, wish: &Snapshot, row: Row) -> Result<(), Trouble> {
        if let Some(source) = wish.source.clone() {
            return self.begin_copy(wish, source);
        }
        let Some(volume) = VolumeId::parse(&wish.volume) else { return Ok(()) };
        let of = self.snapshots_of(&volume).await?;
        let first = of.snapshots.iter().find(|(_, r)| matches!(r.state, State::Freezing | State::Frozen));
        if first.is_none_or(|(id, _)| *id != wish.id) {
            return Ok(());
        }
        let (storage, id) = (self.clone(), wish.id.clone());
        // After something was missing nothing is taken over from the snapshot before.
        let began_with = self.book.get(volume.as_str()).await?.and_then(|wish| wish.body.source);
        let parent = parent(&of, &row, began_with.as_ref()).filter(|_| row.attempt == 0);
        self.background.begin(&upload_of(&wish.id), async move {
            match storage.upload(&id, &volume, &row, parent).await {
                Err(Trouble::Tier(e)) if e.kind == TierErrorKind::NotFound => {
                    tracing::info!(
                        snapshot.id = id,
                        why = e.message,
                        "the snapshot before is not in walrus: everything is looked at"
                    );
                    storage.upload(&id, &volume, &row, None).await
                }
                outcome => outcome,
            }
        });
        Ok(())
    }

    /// How the volume's files are read, and the key its snapshots are sealed with.
    async fn opening(&self, volume: &VolumeId) -> Result<(Opening, Option<(String, DiskKey)>), Trouble> {
        let key = match self.rows(volume.as_str()).await?.0.and_then(|row| row.key) {
            Some(id) => Some((id.clone(), self.keys.get(&id).await?)),
            None => None,
        };
        let passphrase = key.as_ref().map(|(_, key)| key.passphrase()).transpose();
        let passphrase = passphrase.map_err(|e| Trouble::Other(e.to_string()))?;
        let runtime = tokio::runtime::Handle::current();
        let source = self.sources.of(volume).await?.map(|source| Arc::new(Blocking { source, runtime }) as _);
        Ok((Opening { passphrase, source }, key))
    }

    /// What is taken over from the snapshot before, which must be sealed with the same key.
    async fn inherit(&self, parent: Option<Parent>, key: Option<&str>) -> Result<Option<(Number, Manifest)>, Trouble> {
        let Some(parent) = parent else { return Ok(None) };
        let document = self.blobs.get(&parent.manifest, DOCUMENT_MAX).await?;
        let manifest = Manifest::read(&document).map_err(Trouble::Other)?;
        Ok((manifest.encrypted.as_deref() == key).then_some((parent.layer, manifest)))
    }

    async fn upload(&self, id: &str, volume: &VolumeId, row: &Row, parent: Option<Parent>) -> Result<(), Trouble> {
        let (opening, key) = self.opening(volume).await?;
        let (key_id, key) = key.unzip();
        let inherited = self.inherit(parent, key_id.as_deref()).await?;
        let (opened, layer, after) = (volume.clone(), row.layer, inherited.as_ref().map(|(layer, _)| *layer));
        let (chain, blocks) = self
            .backend(move |b| {
                let chain = b.chain(&opened, layer, &opening)?;
                let blocks = chain.blocks(after, SNAPSHOT_BLOCK);
                let blocks = blocks.map_err(|e| crate::backend::BackendError::Io(format!("layer {layer}: {e}")))?;
                Ok((Arc::new(chain), blocks))
            })
            .await?;
        let mut manifest = Manifest::new(chain.size(), key_id);
        manifest.pages = inherited.map(|(_, inherited)| inherited.pages).unwrap_or_default();
        let mut by_page: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for block in &blocks {
            by_page.entry(block / SNAPSHOT_PAGE).or_default().push(*block);
        }
        let (mut done, mut sent) = (0usize, 0u64);
        for (number, changed) in by_page {
            let mut page = match manifest.pages.get(&number) {
                Some(digest) => Page::read(&self.blobs.get(digest, DOCUMENT_MAX).await?).map_err(Trouble::Other)?,
                None => Page::default(),
            };
            for batch in changed.chunks(BATCH) {
                sent += self.upload_blocks(&chain, key.as_ref(), batch, &mut page).await?;
                done += batch.len();
                self.uploaded_percent(id, done * 99 / blocks.len());
            }
            if page.blocks.is_empty() {
                manifest.pages.remove(&number);
            } else {
                manifest.pages.insert(number, self.put_document(&page).await?);
            }
        }
        let document = self.put_document(&manifest).await?;
        tracing::info!(snapshot.id = id, blocks = blocks.len(), sent, manifest = document, "uploaded");
        self.set_uploaded(id, document, sent).await
    }

    /// Reads the blocks and sends those that walrus lacks; how many bytes that were.
    async fn upload_blocks(
        &self,
        chain: &Arc<Chain>,
        key: Option<&DiskKey>,
        batch: &[u64],
        page: &mut Page,
    ) -> Result<u64, Trouble> {
        let (chain, key, wanted) = (chain.clone(), key.cloned(), batch.to_vec());
        let read = tokio::task::spawn_blocking(move || {
            wanted.into_iter().map(|n| read_block(&chain, key.as_ref(), n)).collect()
        });
        let read: Result<Vec<_>, std::io::Error> = read.await.map_err(|e| Trouble::Other(e.to_string()))?;
        let mut new: BTreeMap<String, Bytes> = BTreeMap::new();
        for (number, block) in read.map_err(|e| Trouble::Other(format!("reading a layer: {e}")))? {
            match block {
                None => drop(page.blocks.remove(&(number % SNAPSHOT_PAGE))),
                Some((digest, bytes)) => {
                    page.blocks.insert(number % SNAPSHOT_PAGE, digest.clone());
                    new.insert(digest, bytes);
                }
            }
        }
        self.send_missing(new).await
    }

    /// Sends those that walrus lacks; how many bytes that were.
    pub(super) async fn send_missing(&self, mut blobs: BTreeMap<String, Bytes>) -> Result<u64, Trouble> {
        for there in self.blobs.present(blobs.keys().cloned().collect()).await? {
            blobs.remove(&there);
        }
        let sent = blobs.values().map(|bytes| bytes.len() as u64).sum();
        let sends = blobs.into_iter().map(|(digest, bytes)| async move { self.blobs.put(&digest, bytes).await });
        stream::iter(sends).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(sent)
    }

    pub(super) async fn put_document(&self, document: &impl serde::Serialize) -> Result<String, Trouble> {
        let bytes = serde_json::to_vec(document).map_err(|e| Trouble::Other(e.to_string()))?;
        let digest = digest_of(&bytes);
        self.blobs.put(&digest, bytes.into()).await?;
        Ok(digest)
    }

    pub(super) fn uploaded_percent(&self, id: &str, percent: usize) {
        if let Some(mut report) = self.snapshot_reports.get(id) {
            report.percent = percent.try_into().unwrap_or(99);
            report.reason = String::new();
            self.snapshot_reports.put(report);
        }
    }
}

/// A block with its digest; None when it is all zero.
type Block = (u64, Option<(String, Bytes)>);

fn read_block(chain: &Chain, key: Option<&DiskKey>, number: u64) -> std::io::Result<Block> {
    let mut bytes = vec![0; SNAPSHOT_BLOCK as usize];
    chain.read(number * SNAPSHOT_BLOCK, &mut bytes)?;
    if bytes.iter().all(|b| *b == 0) {
        return Ok((number, None));
    }
    if let Some(key) = key {
        bytes = key.seal_block(&bytes).map_err(std::io::Error::other)?;
    }
    Ok((number, Some((digest_of(&bytes), bytes.into()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted_from_the_newest_snapshot_whose_layers_are_still_apart() {
        let row =
            |state, layer, manifest: Option<&str>| Row { layer, manifest: manifest.map(Into::into), ..Row::new(state) };
        let of = |merged, rows: &[Row]| OfVolume {
            snapshots: rows.iter().map(|r| (format!("snap-{}", r.layer), r.clone())).collect(),
            merged,
        };
        let newest = row(State::Frozen, 3, None);
        let (one, two) = (row(State::Uploaded, 1, Some("m1")), row(State::Uploaded, 2, Some("m2")));
        let of_parent = |o: OfVolume| parent(&o, &newest, None).map(|p| p.layer);
        assert_eq!(of_parent(of(0, &[one.clone(), two.clone(), newest.clone()])), Some(2));
        assert_eq!(of_parent(of(2, &[one.clone(), two, newest.clone()])), Some(2));
        // The second was deleted after its layer had been merged: what changed since the first cannot be told.
        assert_eq!(of_parent(of(2, &[one.clone(), newest.clone()])), None);
        assert_eq!(of_parent(of(1, &[one, row(State::Gone, 2, None), newest.clone()])), Some(1));
        assert_eq!(of_parent(of(0, std::slice::from_ref(&newest))), None);
        // One that began with a snapshot counts from that, until something was merged into it.
        let began = VolumeSource { snapshot: "snap-0".into(), manifest: "m0".into() };
        let from = |merged| parent(&of(merged, std::slice::from_ref(&newest)), &newest, Some(&began));
        assert_eq!(from(0).map(|p| (p.layer, p.manifest)), Some((0, "m0".into())));
        assert!(from(1).is_none());
    }
}
