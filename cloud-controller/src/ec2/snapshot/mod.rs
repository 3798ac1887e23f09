//! Snapshots: what a volume held at one instant, kept in walrus, whichever zone it came from.
//!
//! ```text
//! CreateSnapshot ─► row ─► zone freezes (from here on the instant is fixed) ─► zone uploads ─► manifest reported
//!   (pending)                                                                                     │
//!   blocks counted by rows, and found in walrus ◄── [`keep`] ◄────────────────────────────────────┘
//!   (completed)                └── something is missing: the zone uploads again
//! ```
//! Rows are in `row`, those that count blocks in `blob`. A copy is a row of its own on the same blocks, of no zone; one under
//! another key is made by a zone, which encrypts the blocks anew.

pub mod attribute;
mod blob;
pub mod copy;
pub mod create;
pub mod describe;
pub mod direct;
mod keep;
mod report;
mod row;
pub mod stored;
pub mod together;

use mallee_aws::id::SnapshotId;
use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{Generation, Snapshot as Body, SnapshotDesired, SnapshotObserved};

pub use blob::{
    HOLD_TABLES, TABLES as BLOB_TABLES, hold, holders, is_used as blob_is_used, let_go, take as take_blob,
    taken as blob_is_taken,
};
pub use keep::drive;
pub use report::{Follows, take as take_report};
#[cfg(test)]
pub use row::set_accepted;
pub use row::{SOURCE_COLUMNS, Snapshot, TABLES, any, in_zone, insert, set_percent, visible};

use crate::{Outcome, Refusal, ec2::block_device::Source};

/// EC2's word for how far it is.
pub fn state(snapshot: &Snapshot) -> &'static str {
    match snapshot.observed {
        _ if snapshot.accepted => "completed",
        Some(SnapshotObserved::Failed | SnapshotObserved::Gone) => "error",
        _ => "pending",
    }
}

/// What the storage-controller is sent of it.
pub fn wanted(snapshot: &Snapshot) -> Body {
    let of_volume = if snapshot.source.is_some() { String::new() } else { snapshot.volume.clone() };
    Body {
        // Nothing is kept in a zone for one that failed here: its volume may go on, and go.
        desired: match snapshot.observed {
            Some(SnapshotObserved::Failed) => SnapshotDesired::Deleted,
            _ => snapshot.desired,
        },
        attempt: snapshot.attempt,
        accepted: snapshot.accepted,
        source: snapshot.source.clone(),
        encrypted: snapshot.source.as_ref().and(snapshot.disk_key.clone()),
        ..Body::new(snapshot.id.to_string(), snapshot.generation, of_volume)
    }
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidSnapshot.NotFound", format!("The snapshot '{id}' does not exist."))
}

/// One that the account owns.
fn own(tx: &mut Tx<'_>, account: &str, id: &SnapshotId) -> Outcome<Snapshot> {
    let found = row::any(tx, id.as_str())?.filter(|s| s.account == account && s.desired == SnapshotDesired::Present);
    found.ok_or_else(|| not_found(id.as_str()))
}

/// One that the account may make volumes of, with its manifest. One it may not looks as if it were not there.
pub fn restorable(tx: &mut Tx<'_>, account: &str, id: &SnapshotId) -> Outcome<(Snapshot, String)> {
    let found = row::visible(tx, account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))?;
    match &found.manifest {
        Some(manifest) if found.accepted => {
            let manifest = manifest.clone();
            Ok((found, manifest))
        }
        _ => {
            let message = format!("Snapshot is in invalid state - {}", state(&found));
            Err(Refusal::new("IncorrectState", message))
        }
    }
}

/// One that the account may put into a block device mapping.
pub fn source(tx: &mut Tx<'_>, account: &str, id: &SnapshotId) -> Outcome<Source> {
    let (snapshot, _) = restorable(tx, account, id)?;
    Ok(Source { id: snapshot.id.to_string(), size_gib: snapshot.size_gib, encrypted: snapshot.disk_key.is_some() })
}

/// How far an imported one is.
pub enum Imported {
    /// Its blocks are to be brought to walrus, for the first time or again.
    Missing,
    /// They are there, and are being counted.
    Counted,
    Complete,
    Failed(String),
}

pub fn imported(tx: &mut Tx<'_>, id: &SnapshotId) -> Result<Imported, StoreError> {
    Ok(match row::any(tx, id.as_str())? {
        None => Imported::Missing,
        Some(s) if s.desired != SnapshotDesired::Present => Imported::Failed("its snapshot was deleted".into()),
        Some(s) if s.accepted => Imported::Complete,
        Some(s) if s.observed == Some(SnapshotObserved::Failed) => Imported::Failed(s.reason),
        Some(s) if s.manifest.is_none() => Imported::Missing,
        Some(_) => Imported::Counted,
    })
}

/// All of an imported one is in walrus, to be counted.
pub fn put_imported(
    tx: &mut Tx<'_>,
    (account, id): (&str, &SnapshotId),
    description: &str,
    (size, manifest, disk_key): (u64, &str, Option<&str>),
    now: i64,
) -> Result<(), StoreError> {
    if row::any(tx, id.as_str())?.is_some() {
        return row::set_manifest(tx, id.as_str(), manifest);
    }
    let snapshot = Snapshot {
        id: id.clone(),
        account: account.to_owned(),
        zone: String::new(),
        volume: NO_VOLUME.into(),
        generation: Generation::default(),
        size_gib: size >> 30,
        description: description.to_owned(),
        created: now,
        desired: SnapshotDesired::Present,
        observed: Some(SnapshotObserved::Uploaded),
        reason: String::new(),
        percent: 99,
        attempt: 0,
        accepted: false,
        manifest: Some(manifest.to_owned()),
        sent: 0,
        disk_key: disk_key.map(Into::into),
        source: None,
    };
    row::insert(tx, &snapshot)
}

/// What EC2 shows as the volume of one that no volume had.
pub const NO_VOLUME: &str = "vol-ffffffff";

/// One that a larger undertaking made, which has failed.
pub fn withdraw(tx: &mut Tx<'_>, id: &str) -> Outcome<()> {
    if row::any(tx, id)?.is_some_and(|s| s.desired == SnapshotDesired::Present) {
        row::set_deleted(tx, id)?;
    }
    Ok(())
}

/// The manifest of one that an image, or a launch that was checked, begins a volume with: whoever may launch the image may
/// do so.
pub fn of_mapping(tx: &mut Tx<'_>, id: &str) -> Outcome<String> {
    let found = row::any(tx, id)?.filter(|s| s.desired == SnapshotDesired::Present && s.accepted);
    found.and_then(|s| s.manifest).ok_or_else(|| not_found(id))
}

#[cfg(test)]
mod tests;
