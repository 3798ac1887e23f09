//! Reads everything there is, slowly, so that damage is found while there may still be a copy. Each block is verified by
//! its checksum; what does not hold is shown to the operator by the names of what it is in.
//!
//! The place it has come to is a row, so that a walrus that is often restarted comes to the end as well.

use std::{sync::Arc, time::Duration};

use mallee_service::{Faults, PassReport, Reconciler};
use mallee_store::{Row, Store, Tx, params};
use tokio::task::spawn_blocking;

use crate::{
    Error,
    blob::{BLOCK, BlobId, Blobs, Place, fetch, stored_size},
    s3::multipart,
};

pub const TABLES: &str = "
    CREATE TABLE scrub (
        one BIGINT PRIMARY KEY CHECK (one = 1),
        stage BIGINT NOT NULL,
        bucket BIGINT NOT NULL,
        key TEXT NOT NULL,
        rank BIGINT NOT NULL
    );
";

/// Rows per pass.
const PAGE: usize = 64;
/// How long a finished round is left alone.
const REST: Duration = Duration::from_secs(600);

pub struct Scrub {
    pub store: Store,
    pub blobs: Arc<dyn Blobs>,
    pub faults: Faults,
    /// Bytes per second; 0: never.
    pub rate: u64,
}

/// Where in which table: what keys show, then their old versions, then the tiers' blobs (by digest, in `key`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct At {
    stage: i64,
    bucket: i64,
    key: String,
    rank: i64,
}

const STAGES: i64 = 3;

/// A content to read, and its name.
struct Content {
    at: At,
    name: String,
    id: BlobId,
    place: i64,
    size: u64,
    sealed: bool,
}

/// One blob of a content.
struct Blob {
    id: BlobId,
    stored: u64,
}

#[async_trait::async_trait]
impl Reconciler for Scrub {
    fn name(&self) -> &'static str {
        "scrub"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport { again: Some(REST), ..PassReport::default() };
        if self.rate == 0 {
            return report;
        }
        match self.some().await {
            Ok(Some(bytes)) => {
                let pause = Duration::from_millis(bytes.saturating_mul(1000) / self.rate);
                report.again = Some(pause.max(Duration::from_secs(1)));
            }
            Ok(None) => {}
            Err(e) => report.error(e),
        }
        report
    }
}

impl Scrub {
    /// Reads the next few contents; how many bytes that were, or `None` at the end of a round.
    pub async fn some(&self) -> Result<Option<u64>, Error> {
        let page = self.store.read("find contents to verify", next).await?;
        let Some(last) = page.last().map(|content| content.at.clone()) else {
            let stage = self.store.read("find what is verified", place).await?.stage + 1;
            let over = stage >= STAGES;
            self.note(At { stage: if over { 0 } else { stage }, ..At::default() }).await?;
            return Ok(if over { None } else { Some(0) });
        };
        let mut bytes = 0;
        for content in page {
            bytes += self.verify(content).await?;
        }
        self.note(last).await?;
        Ok(Some(bytes))
    }

    async fn note(&self, at: At) -> Result<(), Error> {
        self.store
            .write("note what is verified", move |tx| {
                tx.execute(
                    "INSERT INTO scrub (one, stage, bucket, key, rank) VALUES (1, ?1, ?2, ?3, ?4)
                     ON CONFLICT (one) DO UPDATE SET stage = ?1, bucket = ?2, key = ?3, rank = ?4",
                    params![at.stage, at.bucket, at.key, at.rank],
                )?;
                Ok::<_, Error>(())
            })
            .await
    }

    async fn verify(&self, content: Content) -> Result<u64, Error> {
        let fault = format!("damage.{}", content.id);
        let (id, place, size, sealed) = (content.id.clone(), content.place, content.size, content.sealed);
        let found = self.store.read("open a content to verify", move |tx| blobs_of(tx, &id, place, size, sealed)).await;
        let outcome = match found {
            Ok(blobs) => {
                let disk = self.blobs.clone();
                spawn_blocking(move || blobs.iter().try_for_each(|blob| read(&*disk, blob))).await?
            }
            Err(Error::Damaged(what)) => Err(Error::Damaged(what)),
            Err(e) => return Err(e),
        };
        match outcome {
            Ok(()) => self.faults.clear(&fault),
            // It may have been deleted since the row was read.
            Err(Error::Blob(e)) if e.kind() == std::io::ErrorKind::NotFound && !self.is_there(&content).await? => {}
            Err(e) => {
                let what = format!("{} is damaged: {e}", content.name);
                self.faults.raise(&fault, what, "restore it from a copy, and check the disk");
            }
        }
        Ok(content.size)
    }

    async fn is_there(&self, content: &Content) -> Result<bool, Error> {
        let id = content.id.clone();
        self.store
            .read("look whether a content is still there", move |tx| {
                let sql =
                    "SELECT 1 FROM object WHERE content = ?1 UNION ALL SELECT 1 FROM old_version WHERE content = ?1
                    UNION ALL SELECT 1 FROM digest_blob WHERE content = ?1 LIMIT 1";
                Ok::<_, Error>(tx.query_opt(sql, params![id], |row| row.get::<i64>(0))?.is_some())
            })
            .await
    }
}

fn read(disk: &dyn Blobs, blob: &Blob) -> Result<(), Error> {
    if blob.stored == 0 {
        return Ok(());
    }
    let reader = disk.open(&blob.id, blob.stored)?;
    (0..blob.stored.div_ceil(BLOCK as u64)).try_for_each(|n| reader.block(n).map(drop).map_err(Error::from))
}

/// The files of a content; contents that are rows are verified here.
fn blobs_of(tx: &mut Tx<'_>, id: &BlobId, place: i64, size: u64, sealed: bool) -> Result<Vec<Blob>, Error> {
    let stored = |size| if sealed { stored_size(size) } else { size };
    match Place::from_number(place)? {
        Place::Nowhere => Ok(Vec::new()),
        Place::Row => fetch(tx, id).map(|_| Vec::new()),
        Place::Blob => Ok(vec![Blob { id: id.clone(), stored: stored(size) }]),
        Place::Parts => {
            let mut blobs = Vec::new();
            for part in multipart::parts(tx, id)? {
                match part.place {
                    Place::Row => fetch(tx, &part.content).map(drop)?,
                    _ => blobs.push(Blob { id: part.content, stored: stored(part.size) }),
                }
            }
            Ok(blobs)
        }
    }
}

fn place(tx: &mut Tx<'_>) -> Result<At, Error> {
    let row = tx.query_opt("SELECT stage, bucket, key, rank FROM scrub", params![], |row| {
        Ok(At { stage: row.get(0)?, bucket: row.get(1)?, key: row.get(2)?, rank: row.get(3)? })
    })?;
    Ok(row.unwrap_or_default())
}

fn next(tx: &mut Tx<'_>) -> Result<Vec<Content>, Error> {
    let at = place(tx)?;
    let stage = at.stage;
    let named = |row: &Row<'_>| {
        let (bucket, key, version): (String, String, String) = (row.get(7)?, row.get(1)?, row.get(8)?);
        let name = if version.is_empty() {
            format!("/{bucket}/{key}")
        } else {
            format!("/{bucket}/{key}?versionId={version}")
        };
        Ok(Content {
            at: At { stage, bucket: row.get(0)?, key, rank: row.get(2)? },
            name,
            id: row.get(3)?,
            place: row.get(4)?,
            size: row.get(5)?,
            sealed: !row.get::<String>(6)?.is_empty(),
        })
    };
    let columns = "o.bucket, o.key, o.rank, o.content, o.place, o.size, o.seal, b.name, o.version";
    Ok(match stage {
        0 => {
            let sql = format!(
                "SELECT {columns} FROM object o JOIN bucket b ON b.id = o.bucket
                 WHERE (o.bucket, o.key) > (?1, ?2) ORDER BY o.bucket, o.key LIMIT ?3"
            );
            tx.query(&sql, params![at.bucket, at.key, PAGE], named)?
        }
        1 => {
            let sql = format!(
                "SELECT {columns} FROM old_version o JOIN bucket b ON b.id = o.bucket
                 WHERE (o.bucket, o.key, o.rank) > (?1, ?2, ?3) ORDER BY o.bucket, o.key, o.rank LIMIT ?4"
            );
            tx.query(&sql, params![at.bucket, at.key, at.rank, PAGE], named)?
        }
        _ => tx.query(
            "SELECT digest, content, place, size FROM digest_blob WHERE digest > ?1 ORDER BY digest LIMIT ?2",
            params![at.key, PAGE],
            |row| {
                let digest: String = row.get(0)?;
                Ok(Content {
                    name: format!("the cloud's blob {digest}"),
                    at: At { stage, bucket: 0, key: digest, rank: 0 },
                    id: row.get(1)?,
                    place: row.get(2)?,
                    size: row.get(3)?,
                    sealed: false,
                })
            },
        )?,
    })
}
