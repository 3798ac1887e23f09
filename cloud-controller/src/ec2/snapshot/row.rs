//! The rows of snapshots. Their SQL is here and nowhere else.

use mallee_aws::id::SnapshotId;
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::{Generation, SnapshotDesired, SnapshotObserved, SnapshotReport, VolumeSource};

use super::{NO_VOLUME, direct::lineage};
use crate::{
    ec2::{
        Id,
        instance::{unword, word},
    },
    zone::generation::{self, List},
};

pub const TABLES: &str = "
CREATE TABLE snapshot (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    zone TEXT NOT NULL,
    volume TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    counter BIGINT NOT NULL,
    size_gib BIGINT NOT NULL,
    description TEXT NOT NULL,
    created BIGINT NOT NULL,
    desired TEXT NOT NULL,
    observed TEXT,
    reason TEXT NOT NULL,
    percent BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    accepted BIGINT NOT NULL,
    manifest TEXT,
    sent BIGINT NOT NULL
);
CREATE INDEX snapshot_of ON snapshot (account, id);
CREATE INDEX snapshot_in ON snapshot (zone, id);
CREATE INDEX snapshot_manifest ON snapshot (manifest);
CREATE TABLE snapshot_permission (snapshot TEXT NOT NULL, who TEXT NOT NULL, PRIMARY KEY (snapshot, who));
CREATE INDEX snapshot_permission_of ON snapshot_permission (who, snapshot);
ALTER TABLE volume ADD COLUMN snapshot TEXT;
ALTER TABLE volume ADD COLUMN manifest TEXT;
";

/// Copies whose blocks are encrypted anew: of what.
pub const SOURCE_COLUMNS: &str = "
ALTER TABLE snapshot ADD COLUMN source TEXT;
ALTER TABLE snapshot ADD COLUMN source_manifest TEXT;
CREATE INDEX snapshot_source ON snapshot (source);
";

/// Who may make volumes of a shared snapshot when everybody may.
pub const EVERYBODY: &str = "all";

/// A snapshot as its row is.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub account: String,
    /// Empty: a copy on the blocks of another one, or an import; no zone knows of it.
    pub zone: String,
    pub volume: String,
    pub generation: Generation,
    pub size_gib: u64,
    pub description: String,
    pub created: i64,
    pub desired: SnapshotDesired,
    /// None: nothing was heard of it yet.
    pub observed: Option<SnapshotObserved>,
    pub reason: String,
    pub percent: u32,
    pub attempt: u32,
    /// All of it is in walrus, and counted.
    pub accepted: bool,
    pub manifest: Option<String>,
    /// Bytes that were sent for it.
    pub sent: u64,
    /// Id of the key its blocks are encrypted with.
    pub disk_key: Option<String>,
    /// The one that its zone is to make it of, under its own key.
    pub source: Option<VolumeSource>,
}

impl Snapshot {
    /// One that was just asked for, of no volume and in no zone.
    pub fn asked_for(id: SnapshotId, account: &str, size_gib: u64, created: i64) -> Self {
        Self {
            id,
            account: account.to_owned(),
            zone: String::new(),
            volume: NO_VOLUME.into(),
            generation: Generation::default(),
            size_gib,
            description: String::new(),
            created,
            desired: SnapshotDesired::Present,
            observed: None,
            reason: String::new(),
            percent: 0,
            attempt: 0,
            accepted: false,
            manifest: None,
            sent: 0,
            disk_key: None,
            source: None,
        }
    }
}

const COLUMNS: &str = "s.id, s.account, s.zone, s.volume, s.epoch, s.counter, s.size_gib, s.description, s.created, s.desired, \
     s.observed, s.reason, s.percent, s.attempt, s.accepted, s.manifest, s.sent, s.disk_key, \
     s.source, s.source_manifest";

fn read(row: &Row<'_>) -> Result<Snapshot, StoreError> {
    let observed: Option<String> = row.get(10)?;
    let (source, its_manifest): (Option<String>, Option<String>) = (row.get(18)?, row.get(19)?);
    Ok(Snapshot {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        zone: row.get(2)?,
        volume: row.get(3)?,
        generation: Generation { epoch: row.get(4)?, counter: row.get(5)? },
        size_gib: row.get(6)?,
        description: row.get(7)?,
        created: row.get(8)?,
        desired: unword(row.get(9)?)?,
        observed: observed.map(unword).transpose()?,
        reason: row.get(11)?,
        percent: row.get(12)?,
        attempt: row.get(13)?,
        accepted: row.get(14)?,
        manifest: row.get(15)?,
        sent: row.get(16)?,
        disk_key: row.get(17)?,
        source: source.zip(its_manifest).map(|(snapshot, manifest)| VolumeSource { snapshot, manifest }),
    })
}

/// Writes a new snapshot; one of a zone gets the next generation of that zone's list.
pub fn insert(tx: &mut Tx<'_>, s: &Snapshot) -> Result<(), StoreError> {
    let generation = if s.zone.is_empty() { s.generation } else { generation::next(tx, &s.zone, List::Snapshots)? };
    tx.execute(
        "INSERT INTO snapshot (id, account, zone, volume, epoch, counter, size_gib, description, created, desired, observed,
             reason, percent, attempt, accepted, manifest, sent, disk_key, source, source_manifest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, '', ?12, 0, ?13, ?14, 0, ?15, ?16, ?17)",
        params![
            s.id.as_str(),
            s.account,
            s.zone,
            s.volume,
            generation.epoch,
            generation.counter,
            s.size_gib,
            s.description,
            s.created,
            word(s.desired),
            s.observed.map(word),
            s.percent,
            s.accepted,
            s.manifest,
            s.disk_key,
            s.source.as_ref().map(|source| &source.snapshot),
            s.source.as_ref().map(|source| &source.manifest),
        ],
    )?;
    lineage::found(tx, s)
}

/// What the storage-controller is sent of it has changed.
fn touch(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    let zone: Option<String> =
        tx.query_opt("SELECT zone FROM snapshot WHERE id = ?1", params![id], |row| row.get(0))?;
    let Some(zone) = zone.filter(|zone| !zone.is_empty()) else { return Ok(()) };
    let generation = generation::next(tx, &zone, List::Snapshots)?;
    tx.execute(
        "UPDATE snapshot SET epoch = ?2, counter = ?3 WHERE id = ?1",
        params![id, generation.epoch, generation.counter],
    )
    .map(|_| ())
}

pub fn any(tx: &mut Tx<'_>, id: &str) -> Result<Option<Snapshot>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM snapshot s WHERE s.id = ?1"), params![id], read)
}

pub fn in_zone(tx: &mut Tx<'_>, zone: &str) -> Result<Vec<Snapshot>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM snapshot s WHERE s.zone = ?1 ORDER BY s.id"), params![zone], read)
}

const VISIBLE: &str = "s.desired <> 'deleted' AND (s.account = ?1 OR EXISTS
    (SELECT 1 FROM snapshot_permission p WHERE p.snapshot = s.id AND p.who IN (?1, 'all')))";

pub fn visible(tx: &mut Tx<'_>, account: &str, id: &str) -> Result<Option<Snapshot>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM snapshot s WHERE {VISIBLE} AND s.id = ?2");
    tx.query_opt(&sql, params![account, id], read)
}

pub fn visible_to(tx: &mut Tx<'_>, account: &str) -> Result<Vec<Snapshot>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM snapshot s WHERE {VISIBLE} ORDER BY s.id"), params![account], read)
}

/// Uploaded, and not looked through yet.
pub fn to_accept(tx: &mut Tx<'_>) -> Result<Vec<Snapshot>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM snapshot s
         WHERE s.accepted = 0 AND s.manifest IS NOT NULL AND s.desired = 'present' AND s.observed = 'uploaded' ORDER BY s.id"
    );
    tx.query(&sql, params![], read)
}

/// Deleted, gone from its zone, and needed by no volume and no copy that has not fetched all of it.
pub fn to_remove(tx: &mut Tx<'_>) -> Result<Vec<Snapshot>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM snapshot s
         WHERE s.desired = 'deleted' AND (s.zone = '' OR s.observed = 'gone') AND NOT EXISTS
             (SELECT 1 FROM volume v WHERE v.snapshot = s.id AND v.desired = 'present'
              AND (v.observed IS NULL OR v.observed = 'creating' OR v.needs_source = 1))
             AND NOT EXISTS (SELECT 1 FROM snapshot c WHERE c.source = s.id AND c.desired = 'present' AND c.accepted = 0
              AND (c.observed IS NULL OR c.observed <> 'failed'))
             AND NOT EXISTS (SELECT 1 FROM direct_snapshot d WHERE d.parent = s.id AND d.state <> 'ended')
         ORDER BY s.id"
    );
    tx.query(&sql, params![], read)
}

pub fn set_deleted(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE snapshot SET desired = ?2 WHERE id = ?1", params![id, word(SnapshotDesired::Deleted)])?;
    touch(tx, id)
}

pub fn set_observed(tx: &mut Tx<'_>, report: &SnapshotReport) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE snapshot SET observed = ?2, reason = ?3, percent = ?4 WHERE id = ?1",
        params![report.id, word(report.observed), report.reason, report.percent],
    )
    .map(|_| ())
}

/// What its zone made of it, to be looked through.
pub fn set_uploaded(tx: &mut Tx<'_>, report: &SnapshotReport) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE snapshot SET manifest = ?2, sent = ?3, size_gib = ?4 WHERE id = ?1 AND accepted = 0 AND attempt = ?5",
        params![report.id, report.manifest, report.sent, report.size_gib, report.attempt],
    )
    .map(|_| ())
}

/// It was brought to walrus again.
pub fn set_manifest(tx: &mut Tx<'_>, id: &str, manifest: &str) -> Result<(), StoreError> {
    let sql = "UPDATE snapshot SET manifest = ?2 WHERE id = ?1 AND accepted = 0 AND desired = 'present'";
    tx.execute(sql, params![id, manifest]).map(|_| ())
}

/// All that a client wrote of it is in walrus, to be looked through.
pub fn set_made(tx: &mut Tx<'_>, id: &str, manifest: &str) -> Result<(), StoreError> {
    let sql = "UPDATE snapshot SET manifest = ?2, observed = ?3, percent = 99
         WHERE id = ?1 AND accepted = 0 AND desired = 'present'";
    tx.execute(sql, params![id, manifest, word(SnapshotObserved::Uploaded)]).map(|_| ())
}

/// How far a client says it is with it.
pub fn set_percent(tx: &mut Tx<'_>, id: &str, percent: u32) -> Result<(), StoreError> {
    tx.execute("UPDATE snapshot SET percent = ?2 WHERE id = ?1 AND accepted = 0", params![id, percent]).map(|_| ())
}

pub fn set_failed(tx: &mut Tx<'_>, id: &str, reason: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE snapshot SET observed = ?2, reason = ?3 WHERE id = ?1",
        params![id, word(SnapshotObserved::Failed), reason],
    )?;
    touch(tx, id)
}

pub fn set_accepted(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE snapshot SET accepted = 1, percent = 100, reason = '' WHERE id = ?1", params![id])?;
    touch(tx, id)
}

/// Its zone shall send everything again.
pub fn set_attempt(tx: &mut Tx<'_>, id: &str, attempt: u32) -> Result<(), StoreError> {
    tx.execute("UPDATE snapshot SET attempt = ?2, manifest = NULL WHERE id = ?1", params![id, attempt])?;
    touch(tx, id)
}

/// Nobody knows of it any more.
pub fn remove(tx: &mut Tx<'_>, snapshot: &Snapshot) -> Result<(), StoreError> {
    if !snapshot.zone.is_empty() {
        generation::next(tx, &snapshot.zone, List::Snapshots)?;
    }
    forbid_all(tx, snapshot.id.as_str())?;
    lineage::forget(tx, snapshot.id.as_str())?;
    tx.execute("DELETE FROM snapshot WHERE id = ?1", params![snapshot.id.as_str()]).map(|_| ())
}

/// Who may make volumes of it, besides its owner.
pub fn permissions(tx: &mut Tx<'_>, id: &str) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT who FROM snapshot_permission WHERE snapshot = ?1 ORDER BY who", params![id], |row| row.get(0))
}

pub fn permit(tx: &mut Tx<'_>, id: &str, who: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO snapshot_permission (snapshot, who) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
    tx.execute(sql, params![id, who]).map(|_| ())
}

pub fn forbid(tx: &mut Tx<'_>, id: &str, who: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM snapshot_permission WHERE snapshot = ?1 AND who = ?2", params![id, who]).map(|_| ())
}

pub fn forbid_all(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM snapshot_permission WHERE snapshot = ?1", params![id]).map(|_| ())
}

/// (snapshot, who) of every permission that concerns the snapshots this account sees.
pub fn permissions_seen_by(tx: &mut Tx<'_>, account: &str) -> Result<Vec<(String, String)>, StoreError> {
    tx.query(
        &format!(
            "SELECT p.snapshot, p.who FROM snapshot_permission p JOIN snapshot s ON s.id = p.snapshot
             WHERE s.account = ?1 OR p.who IN (?1, '{EVERYBODY}')"
        ),
        params![account],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}
