//! A volume that begins with a snapshot: its blocks are fetched from walrus into a file that is no volume yet.
//!
//! Begun again from the start when it was interrupted; a volume that is ready is whole.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};
use mallee_tiers::{Manifest, Page, SNAPSHOT_BLOCK, SNAPSHOT_PAGE, Volume, VolumeObserved, VolumeSource};

use crate::{
    Storage,
    backend::BackendError,
    snapshot::DOCUMENT_MAX,
    volume::{GIB, State, Trouble, VolumeId, report_of},
};

/// Blocks on their way at the same time.
const AT_ONCE: usize = 8;

/// Under which name it runs in the background.
pub(crate) fn name(id: &VolumeId) -> String {
    format!("restore {id}")
}

impl Storage {
    /// Whether making this volume means fetching it.
    pub(crate) async fn restores(&self, id: &VolumeId, wish: &Volume) -> Result<bool, Trouble> {
        if wish.source.is_none() {
            return Ok(false);
        }
        let looked = id.clone();
        Ok(self.backend(move |b| b.find(&looked)).await?.is_none())
    }

    pub(crate) async fn begin_restore(self: &Arc<Self>, id: &VolumeId, wish: &Volume) -> Result<(), Trouble> {
        let Some(source) = wish.source.clone() else { return Ok(()) };
        self.write_state(id, wish.size_gib, State::Creating, String::new()).await?;
        let why = self.background.trouble(&name(id));
        let why = why.unwrap_or_else(|| format!("it is being restored from {}", source.snapshot));
        self.reports.put(report_of(wish, VolumeObserved::Creating, why));
        let (storage, id, size_gib) = (self.clone(), id.clone(), wish.size_gib);
        self.background.begin(&name(&id.clone()), async move {
            match storage.restore(&id, size_gib.saturating_mul(GIB), &source).await {
                Ok(()) => storage.write_state(&id, size_gib, State::Ready, String::new()).await.map_err(Trouble::from),
                Err(Trouble::Backend(BackendError::NoRoom(why))) => {
                    let half = id.clone();
                    storage.backend(move |b| b.remove(&half)).await?;
                    storage.write_state(&id, size_gib, State::Failed, why).await.map_err(Trouble::from)
                }
                Err(e) => Err(e),
            }
        });
        Ok(())
    }

    async fn restore(&self, id: &VolumeId, size: u64, source: &VolumeSource) -> Result<(), Trouble> {
        let document = self.blobs.get(&source.manifest, DOCUMENT_MAX).await?;
        let manifest = Manifest::read(&document).map_err(Trouble::Other)?;
        if manifest.size > size {
            let (snapshot, needs) = (&source.snapshot, manifest.size.div_ceil(GIB));
            return Err(
                BackendError::NoRoom(format!("{snapshot} has {needs} GiB, the volume only {}", size / GIB)).into()
            );
        }
        let made = id.clone();
        let file = Arc::new(self.backend(move |b| b.begin_restore(&made, size)).await?);
        let mut fetched = 0u64;
        for (number, digest) in &manifest.pages {
            let page = Page::read(&self.blobs.get(digest, DOCUMENT_MAX).await?).map_err(Trouble::Other)?;
            fetched += page.blocks.len() as u64;
            let blocks = page.blocks.into_iter().map(|(within, digest)| {
                let (at, file) = ((number * SNAPSHOT_PAGE + within) * SNAPSHOT_BLOCK, file.clone());
                async move { self.restore_block(file, at, size, &digest).await }
            });
            stream::iter(blocks).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        }
        let done = id.clone();
        self.backend(move |b| b.end_restore(&done)).await?;
        tracing::info!(volume.id = %id, snapshot.id = source.snapshot, blocks = fetched, "restored");
        Ok(())
    }

    async fn restore_block(&self, file: Arc<File>, at: u64, size: u64, digest: &str) -> Result<(), Trouble> {
        let bytes = self.blobs.get(digest, SNAPSHOT_BLOCK as usize).await?;
        if at >= size {
            return Err(Trouble::Other(format!("block {digest} lies beyond the volume's {size} bytes")));
        }
        let length = bytes.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes[..length], at)).await;
        let written = written.map_err(|e| Trouble::Other(e.to_string()))?;
        written.map_err(|e| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                BackendError::NoRoom(format!("writing what was fetched: {e}")).into()
            }
            _ => Trouble::Other(format!("writing what was fetched: {e}")),
        })
    }

    /// Gives a volume more bytes, while it is served too: the daemon's export is made anew under its name, and the guest's
    /// QEMU, which comes back to it, is told the new size.
    pub(crate) async fn grow(&self, id: &VolumeId, wish: &Volume) -> Result<(), Trouble> {
        let (_, export) = self.rows(id.as_str()).await?;
        let size = wish.size_gib.saturating_mul(GIB);
        match export {
            None => {
                let grown = id.clone();
                self.backend(move |b| b.grow(&grown, size)).await?;
            }
            Some(export) => {
                self.exports.grow(id, &export.name, &export.attachment, size).await?;
                // A freeze that was interrupted left an empty layer for the daemon's next start: it must not be smaller.
                let (active, grown) = (self.active_layer(id).await?, id.clone());
                self.backend(move |b| if b.top(&grown)? > active { b.grow(&grown, size) } else { Ok(()) }).await?;
            }
        }
        self.write_state(id, wish.size_gib, State::Ready, String::new()).await?;
        Ok(())
    }
}
