//! What a storage-controller reported of a snapshot, in the transaction that keeps it.

use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{SnapshotDesired, SnapshotObserved, SnapshotReport};

use super::row;
use crate::zone::event::{self, Kind};

/// What follows from a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    Nothing,
    /// The snapshot was never asked for by this store.
    Orphan,
    /// It is to be looked through, or taken away.
    Keep,
}

/// Takes what `zone` reports. A snapshot of another zone is none of its business, and shown as an orphan there.
pub fn take(tx: &mut Tx<'_>, zone: &str, report: &SnapshotReport, now: i64) -> Result<Follows, StoreError> {
    let Some(before) = row::any(tx, &report.id)?.filter(|snapshot| snapshot.zone == zone) else {
        let gone = report.observed == SnapshotObserved::Gone;
        return Ok(if gone { Follows::Nothing } else { Follows::Orphan });
    };
    if before.observed != Some(report.observed) {
        let reason = if report.reason.is_empty() { String::new() } else { format!(": {}", report.reason) };
        let said = format!("{}{reason}", format!("{:?}", report.observed).to_lowercase());
        event::note(tx, &report.id, now, Kind::Observed, &said)?;
    }
    let fixed = matches!(before.observed, Some(SnapshotObserved::Frozen | SnapshotObserved::Uploaded));
    match (before.desired, report.observed) {
        (SnapshotDesired::Deleted, SnapshotObserved::Gone) => {
            row::set_observed(tx, report)?;
            return Ok(Follows::Keep);
        }
        // It would be another instant: better none than a wrong one.
        (SnapshotDesired::Present, SnapshotObserved::Freezing)
            if fixed && !before.accepted && before.source.is_none() =>
        {
            row::set_failed(tx, &report.id, "its storage-controller lost what it had fixed; take another")?;
            return Ok(Follows::Nothing);
        }
        // A failure is the end, and what is safe in walrus stays so, whatever becomes of the zone.
        _ if before.observed == Some(SnapshotObserved::Failed) || before.accepted => return Ok(Follows::Nothing),
        _ => {}
    }
    row::set_observed(tx, report)?;
    if report.observed == SnapshotObserved::Uploaded && report.manifest.is_some() {
        row::set_uploaded(tx, report)?;
        return Ok(Follows::Keep);
    }
    Ok(Follows::Nothing)
}
