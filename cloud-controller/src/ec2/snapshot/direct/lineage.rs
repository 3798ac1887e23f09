//! Which snapshots come from the same volume: one after the other, by copying, by restoring, or by writing on a parent. Only
//! those are compared with each other.

use mallee_store::{Error as StoreError, Tx, params};

use crate::ec2::snapshot::{NO_VOLUME, row::Snapshot};

pub const TABLES: &str = "
CREATE TABLE snapshot_lineage (snapshot TEXT PRIMARY KEY, lineage TEXT NOT NULL);
INSERT INTO snapshot_lineage (snapshot, lineage)
    SELECT id, CASE WHEN volume = 'vol-ffffffff' THEN id ELSE volume END FROM snapshot;
";

/// A new snapshot belongs to a lineage: that of what it was made of, or its own.
pub fn found(tx: &mut Tx<'_>, snapshot: &Snapshot) -> Result<(), StoreError> {
    let id = snapshot.id.as_str();
    let of_volume = snapshot.volume != NO_VOLUME;
    // What the volume was made of may be gone by now: its earlier snapshots know where it belongs.
    let sql = "SELECT l.lineage FROM snapshot s JOIN snapshot_lineage l ON l.snapshot = s.id
         WHERE s.volume = ?1 AND s.id <> ?2 ORDER BY s.created DESC, s.id LIMIT 1";
    if of_volume && let Some(earlier) = tx.query_opt(sql, params![snapshot.volume, id], |row| row.get::<String>(0))? {
        return put(tx, id, &earlier);
    }
    let mut made_of = snapshot.source.as_ref().map(|source| source.snapshot.clone());
    if made_of.is_none() && of_volume {
        let sql = "SELECT snapshot FROM volume WHERE id = ?1";
        made_of = tx.query_opt(sql, params![snapshot.volume], |row| row.get::<Option<String>>(0))?.flatten();
    }
    let inherited = match made_of {
        Some(source) => of(tx, &source)?,
        None => None,
    };
    let own = if of_volume { &snapshot.volume } else { id };
    put(tx, id, inherited.as_deref().unwrap_or(own))
}

fn put(tx: &mut Tx<'_>, snapshot: &str, lineage: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO snapshot_lineage (snapshot, lineage) VALUES (?1, ?2)
         ON CONFLICT (snapshot) DO UPDATE SET lineage = ?2";
    tx.execute(sql, params![snapshot, lineage]).map(|_| ())
}

fn of(tx: &mut Tx<'_>, snapshot: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT lineage FROM snapshot_lineage WHERE snapshot = ?1";
    tx.query_opt(sql, params![snapshot], |row| row.get(0))
}

/// `to` is on the blocks of `from`.
pub fn inherit(tx: &mut Tx<'_>, from: &str, to: &str) -> Result<(), StoreError> {
    match of(tx, from)? {
        Some(lineage) => put(tx, to, &lineage),
        None => Ok(()),
    }
}

pub fn is_shared(tx: &mut Tx<'_>, one: &str, other: &str) -> Result<bool, StoreError> {
    let (one_has, other_has) = (of(tx, one)?, of(tx, other)?);
    Ok(one == other || (one_has.is_some() && one_has == other_has))
}

/// The snapshot is gone.
pub fn forget(tx: &mut Tx<'_>, snapshot: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM snapshot_lineage WHERE snapshot = ?1", params![snapshot]).map(|_| ())
}
