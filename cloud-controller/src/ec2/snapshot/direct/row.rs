//! The rows of snapshots that are being written. Their SQL is here and nowhere else.

use mallee_store::{Error as StoreError, Row, Tx, params};

use crate::ec2::snapshot::blob;

pub const TABLES: &str = "
CREATE TABLE direct_snapshot (
    snapshot TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    parent TEXT,
    timeout_ms BIGINT NOT NULL,
    touched BIGINT NOT NULL,
    changes BIGINT NOT NULL,
    told BIGINT NOT NULL
);
CREATE INDEX direct_snapshot_state ON direct_snapshot (state, snapshot);
CREATE INDEX direct_snapshot_parent ON direct_snapshot (parent);
CREATE TABLE direct_block (
    snapshot TEXT NOT NULL,
    number BIGINT NOT NULL,
    digest TEXT NOT NULL,
    checksum TEXT NOT NULL,
    written BIGINT NOT NULL,
    PRIMARY KEY (snapshot, number, digest)
);
CREATE INDEX direct_block_by_digest ON direct_block (digest);
ALTER TABLE blob_garbage ADD COLUMN taking BIGINT NOT NULL DEFAULT 0;
";

/// It takes blocks.
pub const OPEN: &str = "open";
/// All of it was written.
pub const SEALED: &str = "sealed";
/// It is complete, or came to nothing: no block is kept by its rows, and no parent.
pub(super) const ENDED: &str = "ended";

/// A snapshot that is being written.
#[derive(Debug, Clone)]
pub struct Direct {
    pub snapshot: String,
    pub state: String,
    pub parent: Option<String>,
    pub timeout_ms: i64,
    /// When it was begun, or a block was written last.
    pub touched: i64,
    /// How often a block was written.
    pub changes: u64,
    /// How many blocks it has, as its completion said.
    pub told: u64,
}

impl Direct {
    pub fn new(snapshot: &str, parent: Option<String>, timeout_ms: i64, now: i64) -> Self {
        let (snapshot, state) = (snapshot.to_owned(), OPEN.to_owned());
        Self { snapshot, state, parent, timeout_ms, touched: now, changes: 0, told: 0 }
    }

    pub fn takes_blocks(&self, now: i64) -> bool {
        self.state == OPEN && now < self.touched + self.timeout_ms
    }
}

const COLUMNS: &str = "snapshot, state, parent, timeout_ms, touched, changes, told";

fn read(row: &Row<'_>) -> Result<Direct, StoreError> {
    Ok(Direct {
        snapshot: row.get(0)?,
        state: row.get(1)?,
        parent: row.get(2)?,
        timeout_ms: row.get(3)?,
        touched: row.get(4)?,
        changes: row.get(5)?,
        told: row.get(6)?,
    })
}

pub fn insert(tx: &mut Tx<'_>, d: &Direct) -> Result<(), StoreError> {
    let sql = format!("INSERT INTO direct_snapshot ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
    tx.execute(&sql, params![d.snapshot, d.state, d.parent, d.timeout_ms, d.touched, d.changes, d.told]).map(|_| ())
}

pub fn find(tx: &mut Tx<'_>, snapshot: &str) -> Result<Option<Direct>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM direct_snapshot WHERE snapshot = ?1"), params![snapshot], read)
}

/// Those that something is to be done for: all that have not ended, and what the ended left.
pub(super) fn to_settle(tx: &mut Tx<'_>) -> Result<Vec<Direct>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM direct_snapshot d WHERE d.state <> ?1
             OR EXISTS (SELECT 1 FROM direct_block b WHERE b.snapshot = d.snapshot)
             OR NOT EXISTS (SELECT 1 FROM snapshot s WHERE s.id = d.snapshot)
         ORDER BY d.snapshot"
    );
    tx.query(&sql, params![ENDED], read)
}

pub(super) fn set_ended(tx: &mut Tx<'_>, snapshot: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE direct_snapshot SET state = ?2 WHERE snapshot = ?1", params![snapshot, ENDED]).map(|_| ())
}

/// Its completion: none after it, and no block.
pub fn seal(tx: &mut Tx<'_>, snapshot: &str, told: u64) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE direct_snapshot SET state = ?2, told = ?3 WHERE snapshot = ?1 AND state = ?4",
        params![snapshot, SEALED, told, OPEN],
    )
    .map(|_| ())
}

/// Whether the blob of a block may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    Held,
    /// Somebody's garbage of the same bytes is on its way out of walrus; not before it is gone.
    BeingTaken,
}

/// A block, or a page of blocks, is about to be sent: from now on its blob is kept. One that is all zero has no blob.
pub fn begin_block(
    tx: &mut Tx<'_>,
    snapshot: &str,
    number: u64,
    digest: &str,
    checksum: &str,
) -> Result<Begun, StoreError> {
    if blob::is_being_taken(tx, digest)? {
        return Ok(Begun::BeingTaken);
    }
    let sql = "INSERT INTO direct_block (snapshot, number, digest, checksum, written) VALUES (?1, ?2, ?3, ?4, 0)
         ON CONFLICT DO NOTHING";
    tx.execute(sql, params![snapshot, number, digest, checksum])?;
    Ok(Begun::Held)
}

/// The block is safe, and is now what it was written as last. False: another write of it was later, and this one is lost.
pub fn set_written(tx: &mut Tx<'_>, snapshot: &str, number: u64, digest: &str, now: i64) -> Result<bool, StoreError> {
    let sql = "UPDATE direct_block SET written = 1 WHERE snapshot = ?1 AND number = ?2 AND digest = ?3";
    if tx.execute(sql, params![snapshot, number, digest])? == 0 {
        return Ok(false);
    }
    let before: Vec<String> = tx.query(
        "SELECT digest FROM direct_block WHERE snapshot = ?1 AND number = ?2 AND digest <> ?3 AND written = 1",
        params![snapshot, number, digest],
        |row| row.get(0),
    )?;
    for old in before {
        let sql = "DELETE FROM direct_block WHERE snapshot = ?1 AND number = ?2 AND digest = ?3";
        tx.execute(sql, params![snapshot, number, old])?;
        if !old.is_empty() {
            blob::discard(tx, &old)?;
        }
    }
    let sql = "UPDATE direct_snapshot SET touched = ?2, changes = changes + 1 WHERE snapshot = ?1";
    tx.execute(sql, params![snapshot, now])?;
    Ok(true)
}

/// (number, checksum) of the blocks that were written, from one on, in their order and at most so many.
pub fn checksums(tx: &mut Tx<'_>, snapshot: &str, from: u64, limit: u64) -> Result<Vec<(u64, String)>, StoreError> {
    tx.query(
        "SELECT number, checksum FROM direct_block WHERE snapshot = ?1 AND number >= ?2 AND written = 1
         ORDER BY number LIMIT ?3",
        params![snapshot, from, limit],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// (number, digest) of the blocks of the first page from this block on that has any; the digest of zeros is empty.
pub(super) fn page_from(
    tx: &mut Tx<'_>,
    snapshot: &str,
    from: u64,
    page: u64,
) -> Result<Vec<(u64, String)>, StoreError> {
    let first: Option<u64> = tx.query_opt(
        "SELECT number FROM direct_block WHERE snapshot = ?1 AND number >= ?2 AND written = 1 ORDER BY number LIMIT 1",
        params![snapshot, from],
        |row| row.get(0),
    )?;
    let Some(first) = first else { return Ok(Vec::new()) };
    tx.query(
        "SELECT number, digest FROM direct_block WHERE snapshot = ?1 AND number >= ?2 AND number < ?3 AND written = 1
         ORDER BY number",
        params![snapshot, first, (first / page + 1) * page],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Lets go of some blocks; how many there were.
pub(super) fn let_go(tx: &mut Tx<'_>, snapshot: &str, limit: u64) -> Result<usize, StoreError> {
    let some: Vec<(u64, String)> = tx.query(
        "SELECT number, digest FROM direct_block WHERE snapshot = ?1 ORDER BY number, digest LIMIT ?2",
        params![snapshot, limit],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    for (number, digest) in &some {
        let sql = "DELETE FROM direct_block WHERE snapshot = ?1 AND number = ?2 AND digest = ?3";
        tx.execute(sql, params![snapshot, number, digest])?;
        if !digest.is_empty() && !blob::is_used(tx, digest)? {
            blob::discard(tx, digest)?;
        }
    }
    Ok(some.len())
}

/// Its snapshot is gone.
pub(super) fn forget(tx: &mut Tx<'_>, snapshot: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM direct_snapshot WHERE snapshot = ?1", params![snapshot]).map(|_| ())
}

/// Whether a block that was written, or is about to be, has these bytes.
pub fn uses_blob(tx: &mut Tx<'_>, digest: &str) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM direct_block WHERE digest = ?1 LIMIT 1";
    Ok(!tx.query(sql, params![digest], |row| row.get::<i64>(0))?.is_empty())
}
