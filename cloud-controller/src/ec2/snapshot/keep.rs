//! Looks through what zones uploaded, counts it, and takes away what nobody needs any more.
//!
//! One pass does one after the other and never both at once: a blob that was found while a row named it is not taken away.

use std::{sync::Arc, time::Duration};

use mallee_service::{Driven, PassReport, Reconciler, drive as drive_one};
use mallee_store::Error as StoreError;
use mallee_tiers::{Digests, WalrusClient};

use super::{
    blob::{self, Known},
    row::{self, Snapshot},
    stored::{Stored, Trouble},
};
use crate::{
    Cloud,
    ec2::{image::delete_blob, tag},
    zone::event::{self, Kind},
};

/// Digests asked for in one call.
const ASKED_AT_ONCE: usize = 1024;

/// Starts the reconciler of what snapshots have in walrus.
pub fn drive(cloud: &Arc<Cloud>) -> Driven {
    drive_one(Arc::new(Keep { cloud: cloud.clone() }), cloud.pokes.kept.clone(), Duration::from_secs(30))
}

struct Keep {
    cloud: Arc<Cloud>,
}

#[async_trait::async_trait]
impl Reconciler for Keep {
    fn name(&self) -> &'static str {
        "snapshots in walrus"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        if let Err(e) = self.work(&mut report).await {
            report.error(e);
        }
        report
    }
}

impl Keep {
    async fn work(&self, report: &mut PassReport) -> Result<(), String> {
        let store = &self.cloud.store;
        let rows = store
            .read("read the snapshots to keep", |tx| Ok::<_, StoreError>((row::to_accept(tx)?, row::to_remove(tx)?)));
        let (uploaded, removed) = rows.await.map_err(|e| e.to_string())?;
        for snapshot in uploaded {
            match self.accept(&snapshot).await {
                Ok(()) => report.changed += 1,
                Err(e) => report.error(format!("{}: {e}", snapshot.id)),
            }
        }
        for snapshot in removed {
            self.remove(snapshot).await.map_err(|e| e.to_string())?;
            report.changed += 1;
        }
        while store.write("take pages apart", blob::discard_pages).await.map_err(|e: StoreError| e.to_string())? > 0 {}
        self.take_away(report).await
    }

    async fn accept(&self, snapshot: &Snapshot) -> Result<(), String> {
        let (id, now, next) = (snapshot.id.to_string(), self.cloud.now(), snapshot.attempt + 1);
        let manifest = snapshot.manifest.clone();
        let outcome = self.look_through(snapshot).await;
        let written = match outcome {
            Ok(()) => {
                {
                    self.cloud.store.write("a snapshot is complete", move |tx| {
                        row::set_accepted(tx, &id)?;
                        event::note(tx, &id, now, Kind::Observed, "all of it is in walrus")
                    })
                }
                .await
            }
            Err(Trouble::Missing(what)) => {
                self.cloud
                    .store
                    .write("a snapshot is not complete", move |tx| {
                        blob::release(tx, &id, manifest.as_deref())?;
                        row::set_attempt(tx, &id, next)?;
                        event::note(tx, &id, now, Kind::Decided, &format!("to be uploaded again: {what}"))
                    })
                    .await
            }
            Err(Trouble::Wrong(what)) => {
                self.cloud
                    .store
                    .write("a snapshot failed", move |tx| {
                        row::set_failed(tx, &id, &what)?;
                        event::note(tx, &id, now, Kind::Observed, &what)
                    })
                    .await
            }
            Err(Trouble::Later(why)) => return Err(why),
        };
        self.cloud.pokes.snapshots.poke();
        self.cloud.pokes.creations.poke();
        self.cloud.pokes.imports.poke();
        self.cloud.pokes.direct.poke();
        written.map_err(|e: StoreError| e.to_string())
    }

    /// Counts every block of it, and then finds every one: in this order, so that what is found is already needed.
    async fn look_through(&self, snapshot: &Snapshot) -> Result<(), Trouble> {
        let digest = snapshot.manifest.clone().unwrap_or_default();
        let walrus = Stored::open(&self.cloud).await?;
        let manifest = walrus.manifest(&digest).await?;
        if manifest.size != snapshot.size_gib << 30 {
            return Err(Trouble::Wrong(format!("its manifest is of {} bytes", manifest.size)));
        }
        let pages: Vec<String> = manifest.pages.into_values().collect();
        for some in pages.chunks(ASKED_AT_ONCE) {
            let (id, wanted) = (snapshot.id.to_string(), some.to_vec());
            let needed = self.cloud.store.write("need pages", move |tx| blob::need_pages(tx, &id, &wanted)).await;
            for (digest, known) in needed.map_err(Trouble::from)? {
                if known != Known::Checked {
                    self.check_page(&walrus, digest, known).await?;
                }
            }
        }
        Ok(())
    }

    async fn check_page(&self, walrus: &Stored, digest: String, known: Known) -> Result<(), Trouble> {
        let store = &self.cloud.store;
        if known == Known::New {
            let page = walrus.page(&digest).await?;
            let counted = digest.clone();
            store.write("count a page", move |tx| blob::count_page(tx, &counted, &page)).await?;
        }
        let counted = digest.clone();
        let mut blobs = store.read("read a page", move |tx| blob::blocks_of(tx, &counted)).await?;
        blobs.push(digest.clone());
        let client = WalrusClient::new(Arc::new(walrus.0.clone()));
        for some in blobs.chunks(ASKED_AT_ONCE) {
            let there = client.blobs_present(&Digests { digests: some.to_vec() }).await;
            let there = there.map_err(|e| Trouble::Later(e.message))?.digests;
            if there.len() < some.len() {
                return Err(Trouble::Missing(format!("walrus lacks {} of its blocks", some.len() - there.len())));
            }
        }
        store.write("a page is there", move |tx| blob::set_checked(tx, &digest)).await.map_err(Trouble::from)
    }

    async fn remove(&self, snapshot: Snapshot) -> Result<(), StoreError> {
        let removed = self.cloud.store.write("remove a snapshot", move |tx| {
            let id = snapshot.id.as_str();
            blob::release(tx, id, snapshot.manifest.as_deref())?;
            row::remove(tx, &snapshot)?;
            tag::drop_all(tx, id)?;
            event::drop_all(tx, id)
        });
        removed.await?;
        self.cloud.pokes.snapshots.poke();
        Ok(())
    }

    async fn take_away(&self, report: &mut PassReport) -> Result<(), String> {
        loop {
            let garbage =
                self.cloud.store.write("find garbage", blob::garbage).await.map_err(|e: StoreError| e.to_string())?;
            if garbage.is_empty() {
                return Ok(());
            }
            let walrus = self.cloud.tiers.walrus_http(&self.cloud.store).await.map_err(|e| e.message)?;
            for digest in garbage {
                delete_blob(&walrus, &digest).await.map_err(|e| e.text().to_owned())?;
                let taken = self.cloud.store.write("garbage is gone", move |tx| blob::taken(tx, &digest));
                taken.await.map_err(|e: StoreError| e.to_string())?;
                report.changed += 1;
            }
        }
    }
}
