//! What happened to a thing, in sentences: kept as long as the thing is, and shown by `mallee why`.

use mallee_store::{Error as StoreError, Tx, params};
use mallee_tiers::WhyLine;

pub const TABLES: &str = "
CREATE TABLE event (
    resource TEXT NOT NULL,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    said TEXT NOT NULL
);
CREATE INDEX event_of ON event (resource, at);
CREATE INDEX event_age ON event (at);
";

/// What a sentence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody asked for it.
    Asked,
    /// A rule of this tier decided it.
    Decided,
    /// A tier below reported it.
    Observed,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Kind::Asked => "asked",
            Kind::Decided => "decided",
            Kind::Observed => "observed",
        }
    }
}

pub fn note(tx: &mut Tx<'_>, resource: &str, at: i64, kind: Kind, said: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO event (resource, at, kind, said) VALUES (?1, ?2, ?3, ?4)",
        params![resource, at, kind.as_str(), said],
    )
    .map(|_| ())
}

/// Everything noted of a resource, oldest first; at most the last 200 lines.
pub fn of(tx: &mut Tx<'_>, resource: &str) -> Result<Vec<WhyLine>, StoreError> {
    let mut lines = tx.query(
        "SELECT at, kind, said FROM event WHERE resource = ?1 ORDER BY at DESC LIMIT 200",
        params![resource],
        |row| Ok(WhyLine { by: "cloud-controller".into(), at: row.get(0)?, kind: row.get(1)?, text: row.get(2)? }),
    )?;
    lines.reverse();
    Ok(lines)
}

/// The resource's rows are gone; nobody can ask for it any more.
pub fn drop_all(tx: &mut Tx<'_>, resource: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM event WHERE resource = ?1", params![resource]).map(|_| ())
}

/// Forgets what was noted before `before`, a bounded number of lines; how many.
pub fn sweep(tx: &mut Tx<'_>, before: i64) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM event WHERE at < ?1 AND resource IN (SELECT resource FROM event WHERE at < ?1 LIMIT 200)",
        params![before],
    )
}
