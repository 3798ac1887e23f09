//! Imports: a registered bundle is fetched, verified, decrypted and stored as a plain image; only then is it available.
//!
//! A pass takes what the rows say and begins each import again from the start, so that one that was cut off by a crash is
//! just another pending one. It also takes the bytes of deregistered images away, once nothing boots from them.

use std::{
    collections::BTreeSet,
    io::BufWriter,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mallee_service::{Driven, PassReport, Reconciler, TierHttp, drive};
use mallee_store::Error as StoreError;
use tokio::sync::{Semaphore, mpsc};

use super::{
    fetch::{self, NotRead},
    manifest::{self, Manifest},
    row::{self, Image, Proof, State},
    unbundle::{self, Piece, Plain, Trouble},
};
use crate::{
    Cloud, account,
    ec2::{instance, snapshot, tag},
    zone::event::{self, Kind},
};

/// Bytes on their way between walrus and the decrypting thread: this many pieces of at most some tens of KiB.
const PIECES: usize = 64;
/// After something was in the way.
const AGAIN: Duration = Duration::from_secs(2);
/// Imports at the same time: each is a thread of AES and gunzip.
const AT_ONCE: usize = 2;
/// A bundle's parts are most of the work, storing the plain image is the rest.
const FETCHED_PERCENT: u64 = 80;

/// Starts the reconciler of images.
pub fn start(cloud: &Arc<Cloud>) -> Driven {
    let spool = cloud.config.daemon.state.join("spool");
    // What a killed import left is begun again from the start; if it cannot be removed, it is written over.
    let _ = std::fs::remove_dir_all(&spool);
    let work = Arc::new(Work { cloud: cloud.clone(), spool, places: Semaphore::new(AT_ONCE), begun: Mutex::default() });
    drive(Arc::new(Imports(work)), cloud.pokes.images.clone(), Duration::from_secs(30))
}

/// A pass begins every import that is not begun; a large one holds up neither the pass nor the others.
struct Imports(Arc<Work>);

struct Work {
    cloud: Arc<Cloud>,
    spool: PathBuf,
    places: Semaphore,
    /// Imports that run or wait for a place; forgotten with the process, and begun again by the next.
    begun: Mutex<BTreeSet<String>>,
}

#[async_trait::async_trait]
impl Reconciler for Imports {
    fn name(&self) -> &'static str {
        "images"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let rows = self
            .0
            .cloud
            .store
            .read("read the images to import", |tx| {
                Ok::<_, StoreError>((row::in_state(tx, State::Pending)?, row::in_state(tx, State::Deregistered)?))
            })
            .await;
        let (mut pending, deregistered) = match rows {
            Ok(rows) => rows,
            Err(e) => {
                report.error(e);
                return report;
            }
        };
        // One on a snapshot has nothing to import.
        pending.retain(|image| image.root_volume().is_none());
        if pending.is_empty() && deregistered.is_empty() {
            return report;
        }
        // Never beside an import: an image whose bytes are being stored may have the very ones that would go.
        if self.0.begun().is_empty() {
            for image in &deregistered {
                match self.0.remove(image).await {
                    Ok(removed) => report.changed += u64::from(removed),
                    Err(e) => report.error(format!("{}: {e}", image.id)),
                }
            }
        }
        for image in pending {
            if self.0.begun().insert(image.id.to_string()) {
                report.changed += 1;
                tokio::spawn(self.0.clone().run(image));
            }
        }
        report
    }
}

impl Work {
    fn begun(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One import, once there is a place for it. What it waits for is in its row; it is tried again after a while.
    async fn run(self: Arc<Self>, image: Image) {
        let outcome = {
            let _place = self.places.acquire().await;
            // It may have been deregistered, or brought to its end by an earlier pass, while it waited.
            match self.is_still_pending(&image).await {
                Ok(true) => self.import(&image).await,
                Ok(false) => Ok(()),
                Err(e) => Err(e.to_string()),
            }
        };
        if let Err(e) = outcome {
            tracing::warn!(image.id = %image.id, error = e, "an import waits");
            tokio::time::sleep(AGAIN).await;
        }
        self.begun().remove(image.id.as_str());
        self.cloud.pokes.images.poke();
    }

    async fn is_still_pending(&self, image: &Image) -> Result<bool, StoreError> {
        let id = image.id.to_string();
        let row = self.cloud.store.read("look at an image again", move |tx| row::any(tx, &id)).await?;
        Ok(row.is_some_and(|i| i.state == State::Pending))
    }

    /// Takes an image's bytes away when nothing needs them any more. False: something does.
    async fn remove(&self, image: &Image) -> Result<bool, String> {
        let its = image.clone();
        let (needed, shared) = self
            .cloud
            .store
            .write("see who needs an image", move |tx| {
                let (needed, shared) = (instance::boots_from(tx, its.id.as_str())?, row::shares_bytes(tx, &its)?);
                if let Some(digest) = its.digest.as_deref().filter(|_| !needed && !shared) {
                    snapshot::take_blob(tx, digest)?;
                }
                Ok::<_, StoreError>((needed, shared))
            })
            .await
            .map_err(|e| e.to_string())?;
        if needed {
            return Ok(false);
        }
        if let Some(digest) = image.digest.as_deref().filter(|_| !shared) {
            let walrus = self.cloud.tiers.walrus_http(&self.cloud.store).await.map_err(|e| e.message)?;
            fetch::delete_blob(&walrus, digest).await.map_err(|e| e.text().to_owned())?;
        }
        let (id, digest) = (image.id.to_string(), image.digest.clone().filter(|_| !shared));
        self.cloud
            .store
            .write("forget an image", move |tx| {
                if let Some(digest) = &digest {
                    snapshot::blob_is_taken(tx, digest)?;
                }
                row::remove(tx, &id)?;
                event::drop_all(tx, &id)?;
                tag::drop_all(tx, &id)
            })
            .await
            .map_err(|e: StoreError| e.to_string())?;
        Ok(true)
    }

    /// Brings one image to available or failed. The error is what it waits for.
    async fn import(&self, image: &Image) -> Result<(), String> {
        let id = image.id.to_string();
        let outcome = self.try_import(image).await;
        let now = self.cloud.now();
        let written = match outcome {
            Ok((proof, plain)) => {
                tracing::info!(
                    image.id = id,
                    image.digest = plain.digest,
                    image.size = plain.size,
                    "image is available"
                );
                self.cloud
                    .store
                    .write("make an image available", move |tx| {
                        row::set_available(tx, &id, proof, &plain.digest, plain.size)?;
                        let how = if proof == Proof::Signed { "its signature is right" } else { "it is not signed" };
                        event::note(tx, &id, now, Kind::Observed, &format!("imported as {}; {how}", plain.digest))
                    })
                    .await
            }
            Err(Trouble::Wrong(reason)) => {
                tracing::info!(image.id = id, reason, "image failed");
                self.cloud
                    .store
                    .write("fail an image", move |tx| {
                        row::set_failed(tx, &id, &reason)?;
                        event::note(tx, &id, now, Kind::Decided, &format!("failed: {reason}"))
                    })
                    .await
            }
            Err(Trouble::Later(reason)) => {
                let text = format!("{id}: {reason}");
                let waits = self
                    .cloud
                    .store
                    .write("note what an image waits for", move |tx| row::set_progress(tx, &id, 0, &reason))
                    .await;
                return Err(waits.err().map_or(text, |e: StoreError| e.to_string()));
            }
        };
        written.map_err(|e: StoreError| e.to_string())
    }

    async fn try_import(&self, image: &Image) -> Result<(Proof, Plain), Trouble> {
        let later = |text: String| Trouble::Later(text);
        let walrus = self.cloud.tiers.walrus_http(&self.cloud.store).await.map_err(|e| later(e.message))?;
        let manifest = read_manifest(&walrus, image).await?;
        if manifest.kind != image.kind {
            return Err(Trouble::Wrong(
                "the manifest was changed after it was registered: it is of another type now".into(),
            ));
        }
        let proof = self.proof(image, &manifest).await?;
        let opened = |sealed: &[u8], what: &str| {
            let opened = self.cloud.bundling.decrypt(sealed).ok();
            opened.as_deref().and_then(unbundle::key_material).ok_or_else(|| {
                Trouble::Wrong(format!(
                    "the bundle's {what} was not encrypted for this cloud: bundle it with the cloud's certificate"
                ))
            })
        };
        let key = opened(&manifest.encrypted_key, "key")?;
        let iv = opened(&manifest.encrypted_iv, "IV")?;
        std::fs::create_dir_all(&self.spool).map_err(|e| later(format!("{}: {e}", self.spool.display())))?;
        let spool = Spool(self.spool.join(format!("{}.raw", image.id)));
        let plain = self.spool(image, &walrus, &manifest, (key, iv), &spool.0).await?;
        self.store_blob(&walrus, image, &plain, &spool.0).await.map_err(|e| later(e.text().to_owned()))?;
        Ok((proof, plain))
    }

    /// A signature must be right; one that is missing is the operator's to allow.
    async fn proof(&self, image: &Image, manifest: &Manifest) -> Result<Proof, Trouble> {
        let Some(signature) = manifest.signature.clone() else {
            if self.cloud.config.unsigned_bundles {
                return Ok(Proof::Unsigned);
            }
            return Err(Trouble::Wrong("the manifest is not signed, and this cloud takes signed bundles only".into()));
        };
        let owner = image.account.clone();
        let certificates = self
            .cloud
            .store
            .read("read the signing certificates", move |tx| account::certificates(tx, &owner))
            .await
            .map_err(|e: StoreError| Trouble::Later(e.to_string()))?;
        if unbundle::is_signed_by(manifest, &signature, &certificates) {
            return Ok(Proof::Signed);
        }
        Err(Trouble::Wrong(if certificates.is_empty() {
            "the manifest is signed, and the account has no signing certificate registered to hold it against".into()
        } else {
            "the manifest's signature was made by none of the account's certificates, or it was changed since".into()
        }))
    }

    /// Streams the parts through the decrypting thread into the spool file.
    async fn spool(
        &self,
        image: &Image,
        walrus: &TierHttp,
        manifest: &Manifest,
        (key, iv): ([u8; 16], [u8; 16]),
        path: &Path,
    ) -> Result<Plain, Trouble> {
        let (sender, pieces) = mpsc::channel(PIECES);
        let (its, path) = (manifest.clone(), path.to_owned());
        let opening = tokio::task::spawn_blocking(move || {
            let file = std::fs::File::create(&path).map_err(|e| Trouble::Later(format!("{}: {e}", path.display())))?;
            unbundle::unbundle(&its, key, iv, pieces, &mut BufWriter::with_capacity(1024 * 1024, file))
        });
        let fetching = self.send_parts(image, walrus, manifest, sender);
        let (absent, outcome) = tokio::join!(fetching, opening);
        let outcome = outcome.map_err(|e| Trouble::Later(e.to_string()))?;
        match (absent, outcome) {
            // A part that is not there: the bundle is incomplete, however little of it was looked at.
            (Some(reason), Err(Trouble::Later(_))) => Err(Trouble::Wrong(reason)),
            (_, outcome) => outcome,
        }
    }

    /// Sends every part. The answer is why one of them is not there, if so.
    async fn send_parts(
        &self,
        image: &Image,
        walrus: &TierHttp,
        manifest: &Manifest,
        sender: mpsc::Sender<Piece>,
    ) -> Option<String> {
        let mut sent = 0u64;
        let mut shown = 0;
        for part in &manifest.parts {
            let location = fetch::beside(&image.location, &part.filename);
            let mut object = match fetch::open(walrus, &image.account, &location).await {
                Ok(object) => object,
                Err(e) => return broken(&sender, e).await,
            };
            loop {
                match object.next().await {
                    Ok(Some(bytes)) => {
                        sent += bytes.len() as u64;
                        if sender.send(Piece::Bytes(bytes)).await.is_err() {
                            return None;
                        }
                    }
                    Ok(None) => break,
                    Err(e) => return broken(&sender, e).await,
                }
            }
            if sender.send(Piece::PartEnds).await.is_err() {
                return None;
            }
            let percent = sent.saturating_mul(FETCHED_PERCENT) / manifest.bundled_size.max(1);
            if percent >= shown + 5 {
                shown = percent;
                self.show_progress(image, percent).await;
            }
        }
        None
    }

    async fn show_progress(&self, image: &Image, percent: u64) {
        let id = image.id.to_string();
        let percent = u32::try_from(percent.min(99)).unwrap_or(99);
        // Only shown: when it cannot be written, the import itself goes on.
        let written: Result<(), StoreError> = self
            .cloud
            .store
            .write("show an import's progress", move |tx| row::set_progress(tx, &id, percent, ""))
            .await;
        if let Err(e) = written {
            tracing::debug!(image.id = %image.id, error = %e, "progress was not written");
        }
    }

    async fn store_blob(&self, walrus: &TierHttp, image: &Image, plain: &Plain, path: &Path) -> Result<(), NotRead> {
        if fetch::has_blob(walrus, &plain.digest).await? {
            return Ok(());
        }
        self.show_progress(image, FETCHED_PERCENT).await;
        let file = tokio::fs::File::open(path).await.map_err(|e| NotRead::Later(format!("{}: {e}", path.display())))?;
        fetch::put_blob(walrus, &plain.digest, plain.size, file).await
    }
}

async fn broken(sender: &mpsc::Sender<Piece>, e: NotRead) -> Option<String> {
    // The other end may have given up already, for a better reason than this one.
    let _ = sender.send(Piece::Broken(e.text().to_owned())).await;
    match e {
        NotRead::Absent(text) => Some(text),
        NotRead::Later(_) => None,
    }
}

async fn read_manifest(walrus: &TierHttp, image: &Image) -> Result<Manifest, Trouble> {
    let trouble = |e: NotRead| match e {
        NotRead::Absent(text) => Trouble::Wrong(text),
        NotRead::Later(text) => Trouble::Later(text),
    };
    let object = fetch::open(walrus, &image.account, &image.location).await.map_err(trouble)?;
    let bytes = object.whole(manifest::MAX_BYTES).await.map_err(trouble)?;
    manifest::parse(&bytes).map_err(Trouble::Wrong)
}

/// The plain image while it is not in walrus yet. Whatever a killed import left has the same name and is written over.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
