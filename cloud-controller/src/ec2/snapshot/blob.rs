//! Who needs which blob of walrus: snapshots name pages, pages name blocks. Their SQL is here and nowhere else.
//!
//! Counting is by rows: a blob that no row names is garbage, and is taken away by [`super::keep`], which is also the one that
//! looks whether what was uploaded is there. The two never run beside each other, so what was found stays.

use std::collections::BTreeMap;

use mallee_store::{Error as StoreError, Tx, params};
use mallee_tiers::Page;

use super::direct::{self, lineage};

pub const TABLES: &str = "
CREATE TABLE snapshot_page (
    snapshot TEXT NOT NULL,
    page TEXT NOT NULL,
    PRIMARY KEY (snapshot, page)
);
CREATE INDEX snapshot_page_by_page ON snapshot_page (page);
CREATE TABLE page (digest TEXT PRIMARY KEY, checked BIGINT NOT NULL);
CREATE TABLE page_block (page TEXT NOT NULL, block TEXT NOT NULL, PRIMARY KEY (page, block));
CREATE INDEX page_block_by_block ON page_block (block);
CREATE TABLE blob_garbage (digest TEXT PRIMARY KEY);
";

/// Blobs that somebody is about to send, before a snapshot's rows name them.
pub const HOLD_TABLES: &str = "
CREATE TABLE blob_hold (holder TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (holder, digest));
CREATE INDEX blob_hold_of ON blob_hold (digest);
";

/// Garbage, and orphaned pages, are taken away so many at a time.
const AT_ONCE: i64 = 256;

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Its blocks are to be counted first.
    New,
    /// They are counted, but were not all found in walrus yet.
    Counted,
    Checked,
}

/// Pages of a snapshot are needed from now on; how each was known.
pub fn need_pages(tx: &mut Tx<'_>, snapshot: &str, digests: &[String]) -> Result<BTreeMap<String, Known>, StoreError> {
    let mut known = BTreeMap::new();
    for digest in digests {
        let sql = "INSERT INTO snapshot_page (snapshot, page) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        tx.execute(sql, params![snapshot, digest])?;
        let checked: Option<bool> =
            tx.query_opt("SELECT checked FROM page WHERE digest = ?1", params![digest], |row| row.get(0))?;
        let how = match checked {
            None => Known::New,
            Some(false) => Known::Counted,
            Some(true) => Known::Checked,
        };
        known.insert(digest.clone(), how);
    }
    Ok(known)
}

/// The blocks of a page are needed from now on.
pub fn count_page(tx: &mut Tx<'_>, digest: &str, page: &Page) -> Result<(), StoreError> {
    tx.execute("INSERT INTO page (digest, checked) VALUES (?1, 0) ON CONFLICT DO NOTHING", params![digest])?;
    for block in page.blocks.values() {
        let sql = "INSERT INTO page_block (page, block) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        tx.execute(sql, params![digest, block])?;
    }
    Ok(())
}

pub fn blocks_of(tx: &mut Tx<'_>, page: &str) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT block FROM page_block WHERE page = ?1 ORDER BY block", params![page], |row| row.get(0))
}

pub fn set_checked(tx: &mut Tx<'_>, page: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE page SET checked = 1 WHERE digest = ?1", params![page]).map(|_| ())
}

/// Another snapshot needs what this one needs.
pub fn copy(tx: &mut Tx<'_>, from: &str, to: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO snapshot_page (snapshot, page) SELECT ?2, page FROM snapshot_page WHERE snapshot = ?1
         ON CONFLICT DO NOTHING";
    tx.execute(sql, params![from, to])?;
    lineage::inherit(tx, from, to)
}

/// The snapshot needs nothing any more.
pub fn release(tx: &mut Tx<'_>, snapshot: &str, manifest: Option<&str>) -> Result<(), StoreError> {
    tx.execute("DELETE FROM snapshot_page WHERE snapshot = ?1", params![snapshot])?;
    match manifest {
        Some(manifest) => discard(tx, manifest),
        None => Ok(()),
    }
}

/// Nothing may need it any more.
pub fn discard(tx: &mut Tx<'_>, digest: &str) -> Result<(), StoreError> {
    tx.execute("INSERT INTO blob_garbage (digest) VALUES (?1) ON CONFLICT DO NOTHING", params![digest]).map(|_| ())
}

/// Takes pages that no snapshot needs apart; how many there were.
pub fn discard_pages(tx: &mut Tx<'_>) -> Result<usize, StoreError> {
    let orphans: Vec<String> = tx.query(
        "SELECT digest FROM page WHERE NOT EXISTS (SELECT 1 FROM snapshot_page n WHERE n.page = page.digest)
         ORDER BY digest LIMIT ?1",
        params![AT_ONCE / 16],
        |row| row.get(0),
    )?;
    for page in &orphans {
        for block in blocks_of(tx, page)? {
            discard(tx, &block)?;
        }
        tx.execute("DELETE FROM page_block WHERE page = ?1", params![page])?;
        tx.execute("DELETE FROM page WHERE digest = ?1", params![page])?;
        discard(tx, page)?;
    }
    Ok(orphans.len())
}

/// Blobs that nothing needs. What was garbage and is needed again is forgotten on the way. From here on nobody may begin to
/// need one of them, until it was [`taken`].
pub fn garbage(tx: &mut Tx<'_>) -> Result<Vec<String>, StoreError> {
    let all: Vec<String> =
        tx.query("SELECT digest FROM blob_garbage ORDER BY digest LIMIT ?1", params![AT_ONCE], |row| row.get(0))?;
    let mut unused = Vec::new();
    for digest in all {
        let (used, of_image) = (is_used(tx, &digest)?, crate::ec2::image::has_bytes(tx, &digest)?);
        if of_image && !used && is_being_taken(tx, &digest)? {
            // An image that is on its way out takes it itself.
            continue;
        }
        if used || of_image {
            taken(tx, &digest)?;
        } else {
            take(tx, &digest)?;
            unused.push(digest);
        }
    }
    Ok(unused)
}

/// These are needed from now on, until `holder` lets them go.
pub fn hold<'d>(tx: &mut Tx<'_>, holder: &str, digests: impl Iterator<Item = &'d str>) -> Result<(), StoreError> {
    for digest in digests {
        let sql = "INSERT INTO blob_hold (holder, digest) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        tx.execute(sql, params![holder, digest])?;
    }
    Ok(())
}

/// Who holds any.
pub fn holders(tx: &mut Tx<'_>) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT DISTINCT holder FROM blob_hold ORDER BY holder", params![], |row| row.get(0))
}

/// Lets some go that the holder has: they are garbage, where no snapshot needs them. How many there were.
pub fn let_go(tx: &mut Tx<'_>, holder: &str) -> Result<usize, StoreError> {
    let sql = "SELECT digest FROM blob_hold WHERE holder = ?1 ORDER BY digest LIMIT ?2";
    let held: Vec<String> = tx.query(sql, params![holder, AT_ONCE], |row| row.get(0))?;
    for digest in &held {
        tx.execute("DELETE FROM blob_hold WHERE holder = ?1 AND digest = ?2", params![holder, digest])?;
        if !is_used(tx, digest)? {
            discard(tx, digest)?;
        }
    }
    Ok(held.len())
}

/// It is about to go from walrus, and was just found unused: nobody may begin to need it until it was [`taken`].
pub fn take(tx: &mut Tx<'_>, digest: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO blob_garbage (digest, taking) VALUES (?1, 1) ON CONFLICT (digest) DO UPDATE SET taking = 1";
    tx.execute(sql, params![digest]).map(|_| ())
}

/// Whether it is on its way out of walrus: what is sent now might go with it.
pub fn is_being_taken(tx: &mut Tx<'_>, digest: &str) -> Result<bool, StoreError> {
    let sql = "SELECT taking FROM blob_garbage WHERE digest = ?1";
    Ok(tx.query_opt(sql, params![digest], |row| row.get(0))?.unwrap_or(false))
}

/// It is gone from walrus.
pub fn taken(tx: &mut Tx<'_>, digest: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM blob_garbage WHERE digest = ?1", params![digest]).map(|_| ())
}

/// Whether a snapshot needs this blob, or somebody holds it.
pub fn is_used(tx: &mut Tx<'_>, digest: &str) -> Result<bool, StoreError> {
    for sql in [
        "SELECT 1 FROM page_block WHERE block = ?1 LIMIT 1",
        "SELECT 1 FROM snapshot_page WHERE page = ?1 LIMIT 1",
        "SELECT 1 FROM snapshot WHERE manifest = ?1 LIMIT 1",
        "SELECT 1 FROM blob_hold WHERE digest = ?1 LIMIT 1",
    ] {
        if !tx.query(sql, params![digest], |row| row.get::<i64>(0))?.is_empty() {
            return Ok(true);
        }
    }
    direct::uses_blob(tx, digest)
}
