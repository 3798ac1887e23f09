//! A snapshot that is another one under another key: its blocks are fetched, sealed anew and sent.
//!
//! Killed in the middle, it begins again; what arrived is there already then.

use std::{collections::BTreeMap, sync::Arc};

use mallee_tiers::{Manifest, Page, SNAPSHOT_PAGE, Snapshot, VolumeSource};

use super::{
    upload::{BATCH, DOCUMENT_MAX},
    upload_of,
};
use crate::{Storage, blobs::digest_of, source::Source, volume::Trouble};

impl Storage {
    /// Begins it, unless it is under way.
    pub(super) fn begin_copy(self: &Arc<Self>, wish: &Snapshot, source: VolumeSource) -> Result<(), Trouble> {
        let (storage, id, key) = (self.clone(), wish.id.clone(), wish.encrypted.clone());
        self.background.begin(&upload_of(&wish.id), async move { storage.copy(&id, &source, key).await });
        Ok(())
    }

    async fn copy(&self, id: &str, source: &VolumeSource, key: Option<String>) -> Result<(), Trouble> {
        let document = self.blobs.get(&source.manifest, DOCUMENT_MAX).await?;
        let manifest = Manifest::read(&document).map_err(Trouble::Other)?;
        if manifest.encrypted.is_some() && key.is_none() {
            return self.fail_snapshot(id, "what is encrypted is not copied in the clear").await;
        }
        let seal = match &key {
            Some(key) => Some(self.keys.get(key).await?),
            None => None,
        };
        let from = Source::to_copy(manifest, &self.sources).await?;
        let numbers = from.numbers().await?;
        let mut copy = Manifest::new(from.manifest.size, key);
        let mut pages: BTreeMap<u64, Page> = BTreeMap::new();
        let (mut done, mut sent) = (0, 0);
        for batch in numbers.chunks(BATCH) {
            let mut new = BTreeMap::new();
            for number in batch {
                let Some(block) = from.block(*number).await? else { continue };
                let sealed = match &seal {
                    Some(seal) => seal.seal_block(&block).map_err(|e| Trouble::Other(e.to_string()))?.into(),
                    None => block,
                };
                let digest = digest_of(&sealed);
                let page = pages.entry(number / SNAPSHOT_PAGE).or_default();
                page.blocks.insert(number % SNAPSHOT_PAGE, digest.clone());
                new.insert(digest, sealed);
            }
            sent += self.send_missing(new).await?;
            done += batch.len();
            self.uploaded_percent(id, done * 99 / numbers.len());
        }
        for (number, page) in pages {
            copy.pages.insert(number, self.put_document(&page).await?);
        }
        let document = self.put_document(&copy).await?;
        self.set_size(id, copy.size).await?;
        tracing::info!(snapshot.id = id, snapshot.source = source.snapshot, sent, manifest = document, "copied");
        self.set_uploaded(id, document, sent).await
    }
}
