//! Removes bytes that nothing refers to any more. Rows first say so (`loose`), then the bytes go, then the row: killed
//! anywhere, the next pass goes on where this one stopped.

use std::{collections::HashSet, sync::Arc, time::Duration};

use mallee_service::{Clock, Faults, PassReport, Reconciler};
use mallee_store::{Store, params};
use tokio::task::spawn_blocking;

use crate::{
    Error,
    blob::{BlobId, BlobIds, Blobs, DEAD_FILE, DEAD_PARTS, Pins, Place, YOUNG},
    s3::multipart,
};

/// Which processes work on this store now: ids they gave out may still become objects.
pub const TABLES: &str = "
    CREATE TABLE process (
        boot TEXT PRIMARY KEY,
        seen BIGINT NOT NULL
    );
";

/// How often a process of several says that it is there, and how long after the last time it counts as gone.
const SAYS_EVERY_MS: i64 = 10_000;
const GONE_AFTER_MS: i64 = 60_000;
/// How long bytes outlive their row where another process, whose readers are not known here, may be reading them.
const PATIENCE_WITH_OTHERS_MS: i64 = 15 * 60_000;

/// Says that this process is there; before it gives out its first id.
pub async fn enroll(store: &Store, boot: &str, now: i64) -> Result<(), Error> {
    let boot = boot.to_owned();
    store
        .write("enroll a process", move |tx| {
            tx.execute(
                "INSERT INTO process (boot, seen) VALUES (?1, ?2) ON CONFLICT (boot) DO UPDATE SET seen = ?2",
                params![boot, now],
            )?;
            Ok::<_, Error>(())
        })
        .await
}

/// Contents per pass and per transaction: nobody waits long behind it.
const AT_ONCE: usize = 200;
/// How long the answer of a completed upload can be asked again.
const REPLAY_MS: i64 = 24 * 3600 * 1000;

pub struct Sweep {
    pub store: Store,
    pub blobs: Arc<dyn Blobs>,
    pub ids: BlobIds,
    pub pins: Pins,
    pub clock: Clock,
    pub faults: Faults,
    /// Whether other processes may work on this store. SQLite lets in one.
    pub shared: bool,
    /// How long bytes outlive their row, for requests that have just read it.
    pub patience_ms: i64,
}

#[async_trait::async_trait]
impl Reconciler for Sweep {
    fn name(&self) -> &'static str {
        "sweep"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        self.look_at_room().await;
        match self.once().await {
            Ok(swept) => {
                self.faults.clear("sweep");
                report.changed = swept as u64;
                // More may be waiting, or some that are not old enough yet.
                report.again = match swept {
                    0 => None,
                    n if n >= AT_ONCE => Some(Duration::ZERO),
                    _ => Some(Duration::from_millis(200)),
                };
            }
            Err(e) => {
                self.faults.raise(
                    "sweep",
                    format!("bytes nobody needs could not be removed: {e}"),
                    "is the disk writable?",
                );
                report.error(e);
            }
        }
        report
    }
}

impl Sweep {
    /// A disk that is nearly full is shown before and after somebody is refused.
    async fn look_at_room(&self) {
        let blobs = self.blobs.clone();
        match spawn_blocking(move || blobs.room()).await {
            Ok(Err(e)) => self.faults.raise(
                "room",
                format!("objects are refused, the disk is full: {e}"),
                "delete objects, or make the disk larger",
            ),
            _ => self.faults.clear("room"),
        }
    }

    async fn once(&self) -> Result<usize, Error> {
        let now = self.clock.now_ms();
        let with_others = self.shared && self.meet_others(now).await?;
        self.bury_abandoned(now).await?;
        let forgotten = self.forget_completed(now).await?;
        let due = now - if with_others { self.patience_ms.max(PATIENCE_WITH_OTHERS_MS) } else { self.patience_ms };
        let found = self
            .store
            .read("find bytes to remove", move |tx| {
                let rows = tx.query(
                    "SELECT blob, kind FROM loose WHERE kind <> ?1 AND since <= ?2 ORDER BY since LIMIT ?3",
                    params![YOUNG, due, AT_ONCE],
                    |row| Ok((row.get::<BlobId>(0)?, row.get::<i64>(1)?)),
                )?;
                Ok::<_, Error>(rows)
            })
            .await?;
        let free: Vec<_> = found.into_iter().filter(|(id, _)| !self.pins.holds(id)).collect();
        let files: Vec<BlobId> = free.iter().filter(|(_, kind)| *kind == DEAD_FILE).map(|(id, _)| id.clone()).collect();
        let mut swept = files.len() + forgotten as usize;
        self.remove(files.clone()).await?;
        if !files.is_empty() {
            self.strike(files).await?;
        }
        for (upload, _) in free.iter().filter(|(_, kind)| *kind == DEAD_PARTS) {
            swept += self.sweep_parts(upload.clone()).await?;
        }
        Ok(swept)
    }

    /// Says that this process is there, and looks whether others are.
    async fn meet_others(&self, now: i64) -> Result<bool, Error> {
        let boot = self.ids.boot().to_owned();
        let (mine, others) = self
            .store
            .read("look for other processes", move |tx| {
                let sql = "SELECT seen FROM process WHERE boot = ?1";
                let mine = tx.query_opt(sql, params![boot], |row| row.get::<i64>(0))?;
                let sql = "SELECT 1 FROM process WHERE boot <> ?1 AND seen > ?2 LIMIT 1";
                let others = tx.query_opt(sql, params![boot, now - GONE_AFTER_MS], |row| row.get::<i64>(0))?;
                Ok::<_, Error>((mine, others.is_some()))
            })
            .await?;
        if mine.is_none_or(|seen| seen <= now - GONE_AFTER_MS) {
            // The others took it for gone, and with it the ids that it had ready.
            self.ids.drop_free().await;
        }
        if mine.is_none_or(|seen| seen <= now - SAYS_EVERY_MS) {
            enroll(&self.store, self.ids.boot(), now).await?;
        }
        Ok(others)
    }

    /// Looks before it writes: an idle walrus leaves its disk alone.
    async fn forget_completed(&self, now: i64) -> Result<u64, Error> {
        let before = now - REPLAY_MS;
        if !self.store.read("find completed uploads", move |tx| multipart::any_completed(tx, before)).await? {
            return Ok(0);
        }
        self.store.write("forget completed uploads", move |tx| multipart::forget_completed(tx, before)).await
    }

    /// Ids whose requests came to nothing, here or in a process before this one, become bytes to remove.
    async fn bury_abandoned(&self, now: i64) -> Result<(), Error> {
        let abandoned: HashSet<BlobId> = self.ids.abandoned();
        let boot = self.ids.boot().to_owned();
        // Alone on the store, everybody else's are of earlier runs.
        let alive = if self.shared { now - GONE_AFTER_MS } else { i64::MAX };
        let earlier = {
            let boot = boot.clone();
            self.store
                .read("find bytes of earlier runs", move |tx| {
                    Ok::<_, Error>(tx.query(
                        "SELECT 1 FROM loose WHERE kind = ?1 AND boot <> ?2
                         AND boot NOT IN (SELECT boot FROM process WHERE seen > ?3) LIMIT 1",
                        params![YOUNG, boot, alive],
                        |row| row.get::<i64>(0),
                    )?)
                })
                .await?
        };
        if abandoned.is_empty() && earlier.is_empty() {
            return Ok(());
        }
        // Nobody ever saw these, so nobody can be about to read them: no patience is needed.
        let buried = abandoned.clone();
        self.store
            .write("bury abandoned bytes", move |tx| {
                for id in &abandoned {
                    tx.execute(
                        "UPDATE loose SET kind = ?2, since = 0 WHERE blob = ?1 AND kind = ?3",
                        params![id, DEAD_FILE, YOUNG],
                    )?;
                }
                tx.execute(
                    "UPDATE loose SET kind = ?1, since = 0 WHERE kind = ?2 AND boot <> ?3
                     AND boot NOT IN (SELECT boot FROM process WHERE seen > ?4)",
                    params![DEAD_FILE, YOUNG, boot, alive],
                )?;
                tx.execute("DELETE FROM process WHERE boot <> ?1 AND seen <= ?2", params![boot, alive])?;
                Ok::<_, Error>(())
            })
            .await?;
        // Only now: a disk that fails must not make them forgotten.
        self.ids.forget_abandoned(&buried);
        Ok(())
    }

    async fn remove(&self, files: Vec<BlobId>) -> Result<(), Error> {
        if files.is_empty() {
            return Ok(());
        }
        let blobs = self.blobs.clone();
        spawn_blocking(move || blobs.remove(&files)).await??;
        Ok(())
    }

    async fn strike(&self, rows: Vec<BlobId>) -> Result<(), Error> {
        self.store
            .write("forget removed bytes", move |tx| {
                for id in &rows {
                    tx.execute("DELETE FROM loose WHERE blob = ?1", params![id])?;
                }
                Ok::<_, Error>(())
            })
            .await
    }

    /// The next parts of an upload that nothing refers to; its row goes with the last of them.
    async fn sweep_parts(&self, upload: BlobId) -> Result<usize, Error> {
        let id = upload.clone();
        let parts =
            self.store.read("find parts to remove", move |tx| multipart::parts_to_sweep(tx, &id, AT_ONCE)).await?;
        if parts.is_empty() {
            self.strike(vec![upload]).await?;
            return Ok(1);
        }
        self.remove(parts.iter().filter(|p| p.place == Place::Blob).map(|p| p.content.clone()).collect()).await?;
        let count = parts.len();
        self.store.write("forget removed parts", move |tx| multipart::parts_swept(tx, &upload, &parts)).await?;
        Ok(count)
    }
}
