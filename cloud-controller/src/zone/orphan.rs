//! What a zone reports and no row asks for: an empty or restored store ends nothing, it only finds orphans. Shown, never
//! killed.

use std::collections::BTreeSet;

use mallee_store::{Error as StoreError, Tx, params};

pub const TABLES: &str = "
CREATE TABLE orphan (
    zone TEXT NOT NULL,
    list TEXT NOT NULL,
    id TEXT NOT NULL,
    seen BIGINT NOT NULL,
    PRIMARY KEY (zone, list, id)
);
";

pub fn note(tx: &mut Tx<'_>, zone: &str, list: &str, id: &str, now: i64) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO orphan (zone, list, id, seen) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
        params![zone, list, id, now],
    )
    .map(|_| ())
}

/// Keeps the orphans that are still there, of one list of one zone.
pub fn retain(tx: &mut Tx<'_>, zone: &str, list: &str, present: &BTreeSet<String>) -> Result<(), StoreError> {
    let known: Vec<String> =
        tx.query("SELECT id FROM orphan WHERE zone = ?1 AND list = ?2", params![zone, list], |row| row.get(0))?;
    for id in known.iter().filter(|id| !present.contains(*id)) {
        tx.execute("DELETE FROM orphan WHERE zone = ?1 AND list = ?2 AND id = ?3", params![zone, list, id])?;
    }
    Ok(())
}

/// Every orphan, as `id (zone)`.
pub fn all(tx: &mut Tx<'_>) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT id FROM orphan ORDER BY id", params![], |row| row.get(0))
}
