//! What a storage-controller reported of a volume, and what follows from it, in the transaction that keeps it.

use mallee_store::Tx;
use mallee_tiers::{VolumeDesired, VolumeObserved, VolumeReport};

use super::{attach, modify, row};
use crate::{
    Outcome,
    ec2::{instance, tag},
    zone::event::{self, Kind},
};

/// Who is to be woken after the transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consequences {
    /// The volume was never asked for by this store.
    pub orphan: bool,
    pub instances: bool,
    pub volumes: bool,
    /// Something in walrus may not be needed any more.
    pub kept: bool,
}

pub fn take(tx: &mut Tx<'_>, zone: &str, report: &VolumeReport, now: i64) -> Outcome<Consequences> {
    let mut consequences = Consequences::default();
    let Some(before) = row::any(tx, &report.id)?.filter(|v| v.zone == zone) else {
        consequences.orphan = report.observed != VolumeObserved::Gone;
        return Ok(consequences);
    };
    if before.observed != Some(report.observed) || before.reason != report.reason {
        let reason = if report.reason.is_empty() { String::new() } else { format!(": {}", report.reason) };
        event::note(
            tx,
            &report.id,
            now,
            Kind::Observed,
            &format!("{}{reason}", format!("{:?}", report.observed).to_lowercase()),
        )?;
    }
    if report.observed == VolumeObserved::Gone && before.desired == VolumeDesired::Deleted {
        row::remove(tx, &before)?;
        modify::forget(tx, &report.id)?;
        tag::drop_all(tx, &report.id)?;
        event::drop_all(tx, &report.id)?;
        consequences.volumes = true;
        return Ok(consequences);
    }
    row::set_observed(tx, report)?;
    if report.observed == VolumeObserved::Failed
        && let Some(attachment) = row::attachment_of(tx, &report.id)?
    {
        let why = format!("volume {} could not be made: {}", report.id, report.reason);
        let given_up = instance::give_up(tx, attachment.instance.as_str(), &why, now)?;
        (consequences.instances, consequences.volumes) = (given_up, given_up);
    }
    consequences.instances |= modify::reported(tx, &report.id, report.size_gib, now)?;
    if let Some(after) = row::any(tx, &report.id)? {
        consequences.instances |= attach::storage_reported(tx, &before, &after, now)?;
        consequences.volumes |= row::attachment_of(tx, &report.id)?.is_none() && after.export.is_some();
        // A snapshot that was deleted may have been kept for it.
        consequences.kept = after.snapshot.is_some() && !report.needs_source;
    }
    Ok(consequences)
}
