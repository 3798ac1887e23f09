//! The generations of what is sent down: one counter per zone and list, raised by every change of a row in it.

use mallee_store::{Error as StoreError, Tx, params};
use mallee_tiers::Generation;

pub const TABLES: &str = "
CREATE TABLE zone_generation (
    zone TEXT NOT NULL,
    list TEXT NOT NULL,
    counter BIGINT NOT NULL,
    PRIMARY KEY (zone, list)
);
";

/// The lists a zone gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    Instances,
    Volumes,
    Snapshots,
}

impl List {
    const fn as_str(self) -> &'static str {
        match self {
            List::Instances => "instances",
            List::Volumes => "volumes",
            List::Snapshots => "snapshots",
        }
    }
}

/// The next generation of a list: for a row that changes, or for a removal. Serialises the writers of one zone's list,
/// which is what makes "newer" mean something.
pub fn next(tx: &mut Tx<'_>, zone: &str, list: List) -> Result<Generation, StoreError> {
    let epoch = tx.epoch()?;
    let counters = tx.query(
        "INSERT INTO zone_generation (zone, list, counter) VALUES (?1, ?2, 1)
         ON CONFLICT (zone, list) DO UPDATE SET counter = zone_generation.counter + 1 RETURNING counter",
        params![zone, list.as_str()],
        |row| row.get(0),
    )?;
    Ok(Generation { epoch, counter: counters.into_iter().next().unwrap_or(1) })
}

/// The generation of a list as it is.
pub fn current(tx: &mut Tx<'_>, zone: &str, list: List) -> Result<Generation, StoreError> {
    let epoch = tx.epoch()?;
    let counter = tx.query_opt(
        "SELECT counter FROM zone_generation WHERE zone = ?1 AND list = ?2",
        params![zone, list.as_str()],
        |row| row.get(0),
    )?;
    Ok(Generation { epoch, counter: counter.unwrap_or(0) })
}

/// How far all lists have come together: a store that was put back has less than it once had.
pub fn total(tx: &mut Tx<'_>) -> Result<Generation, StoreError> {
    let epoch = tx.epoch()?;
    let counter =
        tx.query_one("SELECT CAST(COALESCE(SUM(counter), 0) AS BIGINT) FROM zone_generation", params![], |row| {
            row.get(0)
        })?;
    Ok(Generation { epoch, counter })
}
