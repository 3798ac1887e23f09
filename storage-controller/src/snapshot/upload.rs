//! Brings a frozen layer to walrus: every block that may differ from the snapshot before, if walrus does not have it yet.
//!
//! Killed in the middle, it begins again from the rows; what arrived is there already then.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use mallee_tiers::{Manifest, Page, SNAPSHOT_BLOCK, SNAPSHOT_PAGE, Snapshot, TierErrorKind};

use super::{
    row::{OfVolume, Row, State},
    upload_of,
};
use crate::{
    Storage,
    backend::{Chain, Number},
    blobs::digest_of,
    volume::{Trouble, VolumeId},
};

/// A page names at most 1,024 blocks, a manifest of 16 TiB 32,768 pages.
pub(crate) const DOCUMENT_MAX: usize = 8 << 20;
/// Blocks that are read and asked for at once: 8 MiB.
const BATCH: usize = 16;
/// Of which so many are sent at the same time.
const AT_ONCE: usize = 4;

/// What the changed blocks are counted from.
struct Parent {
    layer: Number,
    manifest: String,
}

/// The snapshot whose layer is the newest below, if what changed since can still be told.
fn parent(of: &OfVolume, row: &Row) -> Option<Parent> {
    let before =
        of.snapshots.iter().rev().map(|(_, r)| r).find(|r| {
            r.state == State::Uploaded && r.manifest.is_some() && r.layer < row.layer && r.layer >= of.merged
        })?;
    Some(Parent { layer: before.layer, manifest: before.manifest.clone()? })
}

impl Storage {
    /// Begins the upload, unless it is under way or an older snapshot of the volume comes first.
    pub(super) async fn begin_upload(self: &Arc<Self>, wish: &Snapshot, row: Row) -> Result<(), Trouble> {
        let Some(volume) = VolumeId::parse(&wish.volume) else { return Ok(()) };
        let of = self.snapshots_of(&volume).await?;
        let first = of.snapshots.iter().find(|(_, r)| matches!(r.state, State::Freezing | State::Frozen));
        if first.is_none_or(|(id, _)| *id != wish.id) {
            return Ok(());
        }
        let (storage, id) = (self.clone(), wish.id.clone());
        // After something was missing nothing is taken over from the snapshot before.
        let parent = parent(&of, &row).filter(|_| row.attempt == 0);
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

    async fn upload(&self, id: &str, volume: &VolumeId, row: &Row, parent: Option<Parent>) -> Result<(), Trouble> {
        let (opened, layer, after) = (volume.clone(), row.layer, parent.as_ref().map(|p| p.layer));
        let (chain, blocks) = self
            .backend(move |b| {
                let chain = b.chain(&opened, layer)?;
                let blocks = chain.blocks(after, SNAPSHOT_BLOCK);
                let blocks = blocks.map_err(|e| crate::backend::BackendError::Io(format!("layer {layer}: {e}")))?;
                Ok((Arc::new(chain), blocks))
            })
            .await?;
        let mut manifest = Manifest::new(chain.size());
        if let Some(parent) = &parent {
            let document = self.blobs.get(&parent.manifest, DOCUMENT_MAX).await?;
            manifest.pages = Manifest::read(&document).map_err(Trouble::Other)?.pages;
        }
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
                sent += self.upload_blocks(&chain, batch, &mut page).await?;
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
    async fn upload_blocks(&self, chain: &Arc<Chain>, batch: &[u64], page: &mut Page) -> Result<u64, Trouble> {
        let (chain, wanted) = (chain.clone(), batch.to_vec());
        let read = tokio::task::spawn_blocking(move || wanted.into_iter().map(|n| read_block(&chain, n)).collect());
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
        for there in self.blobs.present(new.keys().cloned().collect()).await? {
            new.remove(&there);
        }
        let sent = new.values().map(|bytes| bytes.len() as u64).sum();
        let sends = new.into_iter().map(|(digest, bytes)| async move { self.blobs.put(&digest, bytes).await });
        stream::iter(sends).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        Ok(sent)
    }

    async fn put_document(&self, document: &impl serde::Serialize) -> Result<String, Trouble> {
        let bytes = serde_json::to_vec(document).map_err(|e| Trouble::Other(e.to_string()))?;
        let digest = digest_of(&bytes);
        self.blobs.put(&digest, bytes.into()).await?;
        Ok(digest)
    }

    fn uploaded_percent(&self, id: &str, percent: usize) {
        if let Some(mut report) = self.snapshot_reports.get(id) {
            report.percent = percent.try_into().unwrap_or(99);
            report.reason = String::new();
            self.snapshot_reports.put(report);
        }
    }
}

/// A block with its digest; None when it is all zero.
type Block = (u64, Option<(String, Bytes)>);

fn read_block(chain: &Chain, number: u64) -> std::io::Result<Block> {
    let mut bytes = vec![0; SNAPSHOT_BLOCK as usize];
    chain.read(number * SNAPSHOT_BLOCK, &mut bytes)?;
    if bytes.iter().all(|b| *b == 0) {
        return Ok((number, None));
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
        let of_parent = |o: OfVolume| parent(&o, &newest).map(|p| p.layer);
        assert_eq!(of_parent(of(0, &[one.clone(), two.clone(), newest.clone()])), Some(2));
        assert_eq!(of_parent(of(2, &[one.clone(), two, newest.clone()])), Some(2));
        // The second was deleted after its layer had been merged: what changed since the first cannot be told.
        assert_eq!(of_parent(of(2, &[one.clone(), newest.clone()])), None);
        assert_eq!(of_parent(of(1, &[one, row(State::Gone, 2, None), newest.clone()])), Some(1));
        assert_eq!(of_parent(of(0, std::slice::from_ref(&newest))), None);
    }
}
