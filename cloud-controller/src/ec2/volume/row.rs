//! The rows of volumes and of their attachments. Their SQL is here and nowhere else.

use mallee_aws::id::{InstanceId, VolumeId};
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::{Export, Generation, VolumeDesired, VolumeObserved, VolumeReport};

use crate::{
    ec2::{
        Id,
        instance::{unword, word},
    },
    zone::generation::{self, List},
};

pub const TABLES: &str = "
CREATE TABLE volume (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    zone TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    counter BIGINT NOT NULL,
    size_gib BIGINT NOT NULL,
    kind TEXT NOT NULL,
    iops BIGINT,
    throughput BIGINT,
    created BIGINT NOT NULL,
    desired TEXT NOT NULL,
    observed TEXT,
    observed_epoch BIGINT NOT NULL,
    observed_counter BIGINT NOT NULL,
    reason TEXT NOT NULL,
    export TEXT,
    allocated BIGINT NOT NULL
);
CREATE INDEX volume_of ON volume (account, id);
CREATE INDEX volume_in ON volume (zone, id);
CREATE TABLE volume_attachment (
    id TEXT PRIMARY KEY,
    volume TEXT NOT NULL UNIQUE,
    instance TEXT NOT NULL,
    device TEXT NOT NULL,
    phase TEXT NOT NULL,
    since BIGINT NOT NULL,
    left_epoch BIGINT NOT NULL,
    left_counter BIGINT NOT NULL,
    delete_on_termination BIGINT NOT NULL,
    reason TEXT NOT NULL,
    UNIQUE (instance, device)
);
";

/// Whether what it began with must be kept for it.
pub const SOURCE_COLUMN: &str = "
ALTER TABLE volume ADD COLUMN needs_source BIGINT NOT NULL DEFAULT 0;
";

/// A volume as its row is.
#[derive(Debug, Clone)]
pub struct Volume {
    pub id: VolumeId,
    pub account: String,
    pub zone: String,
    pub generation: Generation,
    pub size_gib: u64,
    /// `gp3`, ….
    pub kind: String,
    pub iops: Option<u32>,
    pub throughput: Option<u32>,
    pub created: i64,
    pub desired: VolumeDesired,
    /// None: nothing was heard of it yet.
    pub observed: Option<VolumeObserved>,
    pub observed_generation: Generation,
    pub reason: String,
    /// Where its bytes are served, as last reported.
    pub export: Option<Export>,
    pub allocated: u64,
    /// The snapshot it began with, and what that consists of.
    pub snapshot: Option<String>,
    pub manifest: Option<String>,
    /// Id of the key its bytes are encrypted with.
    pub disk_key: Option<String>,
    pub auto_enable_io: bool,
}

/// Where an attachment is on its way: see [`super::attach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The zone is asked to export it, then the node to attach it.
    Attaching,
    Attached,
    /// The node is asked to let go.
    Detaching,
    /// The node has let go; the export is being ended.
    Ending,
}

/// A volume at an instance.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// What the export is made for: a new one for every attachment.
    pub id: String,
    pub volume: VolumeId,
    pub instance: InstanceId,
    pub device: String,
    pub phase: Phase,
    pub since: i64,
    /// Generation of the instance's first wish without it: a report older than that says nothing about its leaving.
    pub left: Generation,
    pub delete_on_termination: bool,
    pub reason: String,
}

impl Volume {
    pub fn is_encrypted(&self) -> bool {
        self.disk_key.is_some()
    }
}

impl Attachment {
    /// It is there, or on its way there.
    pub fn is_coming(&self) -> bool {
        matches!(self.phase, Phase::Attaching | Phase::Attached)
    }

    /// No wish without it was made yet. One that is taken by force goes from the wish when it is served no more.
    pub fn is_at_node(&self) -> bool {
        self.is_coming() || self.phase == Phase::Ending && self.left == Generation::default()
    }
}

const COLUMNS: &str = "id, account, zone, epoch, counter, size_gib, kind, iops, throughput, created, desired, observed, \
     observed_epoch, observed_counter, reason, export, allocated, snapshot, manifest, disk_key, auto_enable_io";

fn read(row: &Row<'_>) -> Result<Volume, StoreError> {
    let observed: Option<String> = row.get(11)?;
    let export: Option<String> = row.get(15)?;
    let unreadable = |e: serde_json::Error| StoreError::Other { what: "read a volume", detail: e.to_string() };
    Ok(Volume {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        zone: row.get(2)?,
        generation: Generation { epoch: row.get(3)?, counter: row.get(4)? },
        size_gib: row.get(5)?,
        kind: row.get(6)?,
        iops: row.get(7)?,
        throughput: row.get(8)?,
        created: row.get(9)?,
        desired: unword(row.get(10)?)?,
        observed: observed.map(unword).transpose()?,
        observed_generation: Generation { epoch: row.get(12)?, counter: row.get(13)? },
        reason: row.get(14)?,
        export: export.map(|text| serde_json::from_str(&text)).transpose().map_err(unreadable)?,
        allocated: row.get(16)?,
        snapshot: row.get(17)?,
        manifest: row.get(18)?,
        disk_key: row.get(19)?,
        auto_enable_io: row.get(20)?,
    })
}

const ATTACHMENT_COLUMNS: &str = "a.id, a.volume, a.instance, a.device, a.phase, a.since, a.left_epoch, a.left_counter, a.delete_on_termination, a.reason";

fn read_attachment(row: &Row<'_>) -> Result<Attachment, StoreError> {
    Ok(Attachment {
        id: row.get(0)?,
        volume: row.get::<Id<_>>(1)?.0,
        instance: row.get::<Id<_>>(2)?.0,
        device: row.get(3)?,
        phase: unword(row.get(4)?)?,
        since: row.get(5)?,
        left: Generation { epoch: row.get(6)?, counter: row.get(7)? },
        delete_on_termination: row.get(8)?,
        reason: row.get(9)?,
    })
}

/// Writes a new volume; its generation is the next of its zone's list.
pub fn insert(tx: &mut Tx<'_>, v: &Volume) -> Result<(), StoreError> {
    let generation = generation::next(tx, &v.zone, List::Volumes)?;
    tx.execute(
        &format!(
            "INSERT INTO volume ({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, NULL, 0, 0, '', NULL, 0, ?12, ?13, ?14, 0)"
        ),
        params![
            v.id.as_str(),
            v.account,
            v.zone,
            generation.epoch,
            generation.counter,
            v.size_gib,
            v.kind,
            v.iops,
            v.throughput,
            v.created,
            word(v.desired),
            v.snapshot,
            v.manifest,
            v.disk_key,
        ],
    )
    .map(|_| ())
}

/// What the storage-controller is sent of this volume has changed.
pub fn touch(tx: &mut Tx<'_>, volume: &str) -> Result<(), StoreError> {
    let zone: Option<String> =
        tx.query_opt("SELECT zone FROM volume WHERE id = ?1", params![volume], |row| row.get(0))?;
    let Some(zone) = zone else { return Ok(()) };
    let generation = generation::next(tx, &zone, List::Volumes)?;
    tx.execute(
        "UPDATE volume SET epoch = ?2, counter = ?3 WHERE id = ?1",
        params![volume, generation.epoch, generation.counter],
    )
    .map(|_| ())
}

pub fn of_account(tx: &mut Tx<'_>, account: &str) -> Result<Vec<Volume>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM volume WHERE account = ?1 ORDER BY id"), params![account], read)
}

pub fn in_zone(tx: &mut Tx<'_>, zone: &str) -> Result<Vec<Volume>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM volume WHERE zone = ?1 ORDER BY id"), params![zone], read)
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &str) -> Result<Option<Volume>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM volume WHERE account = ?1 AND id = ?2"), params![account, id], read)
}

pub fn any(tx: &mut Tx<'_>, id: &str) -> Result<Option<Volume>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM volume WHERE id = ?1"), params![id], read)
}

pub fn set_deleted(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE volume SET desired = ?2 WHERE id = ?1", params![id, word(VolumeDesired::Deleted)])?;
    touch(tx, id)
}

/// What it is from now on; its bytes follow.
pub fn set_figures(
    tx: &mut Tx<'_>,
    id: &str,
    size_gib: u64,
    kind: &str,
    (iops, throughput): (Option<u32>, Option<u32>),
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE volume SET size_gib = ?2, kind = ?3, iops = ?4, throughput = ?5 WHERE id = ?1",
        params![id, size_gib, kind, iops, throughput],
    )?;
    touch(tx, id)
}

pub fn set_auto_enable_io(tx: &mut Tx<'_>, id: &str, yes: bool) -> Result<(), StoreError> {
    tx.execute("UPDATE volume SET auto_enable_io = ?2 WHERE id = ?1", params![id, yes]).map(|_| ())
}

pub fn set_observed(tx: &mut Tx<'_>, report: &VolumeReport) -> Result<(), StoreError> {
    let export = report.export.as_ref().and_then(|e| serde_json::to_string(e).ok());
    tx.execute(
        "UPDATE volume SET observed = ?2, observed_epoch = ?3, observed_counter = ?4, reason = ?5, export = ?6, allocated = ?7,
             needs_source = ?8
         WHERE id = ?1",
        params![
            report.id,
            word(report.observed),
            report.generation.epoch,
            report.generation.counter,
            report.reason,
            export,
            report.allocated,
            report.needs_source,
        ],
    )
    .map(|_| ())
}

/// The storage-controller has nothing of it any more: the list goes on without it.
pub fn remove(tx: &mut Tx<'_>, volume: &Volume) -> Result<(), StoreError> {
    generation::next(tx, &volume.zone, List::Volumes)?;
    tx.execute("DELETE FROM volume WHERE id = ?1", params![volume.id.as_str()]).map(|_| ())
}

pub fn insert_attachment(tx: &mut Tx<'_>, a: &Attachment) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO volume_attachment (id, volume, instance, device, phase, since, left_epoch, left_counter,
             delete_on_termination, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, 0, ?7, '')",
        params![
            a.id,
            a.volume.as_str(),
            a.instance.as_str(),
            a.device,
            word(a.phase),
            a.since,
            a.delete_on_termination
        ],
    )
    .map(|_| ())
}

pub fn attachment_of(tx: &mut Tx<'_>, volume: &str) -> Result<Option<Attachment>, StoreError> {
    tx.query_opt(
        &format!("SELECT {ATTACHMENT_COLUMNS} FROM volume_attachment a WHERE a.volume = ?1"),
        params![volume],
        read_attachment,
    )
}

pub fn attachments_at(tx: &mut Tx<'_>, instance: &str) -> Result<Vec<Attachment>, StoreError> {
    tx.query(
        &format!("SELECT {ATTACHMENT_COLUMNS} FROM volume_attachment a WHERE a.instance = ?1 ORDER BY a.device"),
        params![instance],
        read_attachment,
    )
}

/// The attachments of an account's volumes.
pub fn attachments_of_account(tx: &mut Tx<'_>, account: &str) -> Result<Vec<Attachment>, StoreError> {
    tx.query(
        &format!(
            "SELECT {ATTACHMENT_COLUMNS} FROM volume_attachment a JOIN volume v ON v.id = a.volume
             WHERE v.account = ?1 ORDER BY a.instance, a.device"
        ),
        params![account],
        read_attachment,
    )
}

/// The attachments of a zone's volumes.
pub fn attachments_in(tx: &mut Tx<'_>, zone: &str) -> Result<Vec<Attachment>, StoreError> {
    tx.query(
        &format!(
            "SELECT {ATTACHMENT_COLUMNS} FROM volume_attachment a JOIN volume v ON v.id = a.volume
             WHERE v.zone = ?1 ORDER BY a.instance, a.device"
        ),
        params![zone],
        read_attachment,
    )
}

/// The instance is on another node: whoever serves its volumes lets that one in, and no other.
pub fn touch_at(tx: &mut Tx<'_>, instance: &str) -> Result<bool, StoreError> {
    let attachments = attachments_at(tx, instance)?;
    for attachment in &attachments {
        touch(tx, attachment.volume.as_str())?;
    }
    Ok(!attachments.is_empty())
}

/// What it is exported for from now on: another export than before.
pub fn set_attachment_id(tx: &mut Tx<'_>, a: &Attachment, id: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE volume_attachment SET id = ?2 WHERE id = ?1", params![a.id, id]).map(|_| ())
}

pub fn set_phase(tx: &mut Tx<'_>, a: &Attachment, phase: Phase, left: Generation, now: i64) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE volume_attachment SET phase = ?2, since = ?3, left_epoch = ?4, left_counter = ?5, reason = '' WHERE id = ?1",
        params![a.id, word(phase), now, left.epoch, left.counter],
    )
    .map(|_| ())
}

pub fn set_reason(tx: &mut Tx<'_>, a: &Attachment, reason: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE volume_attachment SET reason = ?2 WHERE id = ?1", params![a.id, reason]).map(|_| ())
}

pub fn remove_attachment(tx: &mut Tx<'_>, a: &Attachment) -> Result<(), StoreError> {
    tx.execute("DELETE FROM volume_attachment WHERE id = ?1", params![a.id]).map(|_| ())
}

/// Whether it goes with its instance. False: it is not attached there.
pub fn set_delete_on_termination(tx: &mut Tx<'_>, instance: &str, device: &str, yes: bool) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE volume_attachment SET delete_on_termination = ?3 WHERE instance = ?1 AND device = ?2",
        params![instance, device, yes],
    )?;
    Ok(changed > 0)
}
