//! How far an interface's attachment has come: what AttachNetworkInterface and DetachNetworkInterface ask for, and what the
//! instance's node says about it.
//!
//! ```text
//!  launch, attach ─► attaching ─► the instance's body has it ─► its node has it (or the instance is off) ─► attached
//!  detach ─► detaching ─► the instance's body is without it ─► its guest has let go ─► no attachment (available)
//! ```
//! While it is detaching the guest may still use it, so nobody else may have it. A report about an older wish says nothing of
//! whether a guest has let go.

use mallee_aws::id::InstanceId;
use mallee_store::{Error as StoreError, Tx, params};
use mallee_tiers::{Generation, InstanceReport, Observed};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{InterfaceRow, drop_automatic, of_instance, unattach};
use crate::{
    Outcome,
    ec2::instance,
    zone::event::{self, Kind},
};

/// Interfaces of stores that are older than this were attached while their instance was off.
pub const COLUMNS: &str = "
ALTER TABLE network_interface ADD COLUMN phase TEXT NOT NULL DEFAULT 'attached';
ALTER TABLE network_interface ADD COLUMN left_epoch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE network_interface ADD COLUMN left_counter BIGINT NOT NULL DEFAULT 0;
ALTER TABLE network_interface ADD COLUMN attach_reason TEXT NOT NULL DEFAULT '';
";

/// Also EC2's words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Attaching,
    Attached,
    Detaching,
}

impl Phase {
    pub fn shown(self) -> &'static str {
        match self {
            Phase::Attaching => "attaching",
            Phase::Attached => "attached",
            Phase::Detaching => "detaching",
        }
    }
}

/// Asks the instance's node to take it away. It does not end with its instance any more.
pub fn begin_detach(tx: &mut Tx<'_>, row: &InterfaceRow, instance: &InstanceId, now: i64) -> Outcome<()> {
    crate::network::touch(tx, instance)?;
    let left = instance::any(tx, instance.as_str())?.map(|i| i.generation).unwrap_or_default();
    tx.execute(
        "UPDATE network_interface
         SET phase = ?2, left_epoch = ?3, left_counter = ?4, attach_reason = '', delete_on_termination = 0 WHERE id = ?1",
        params![row.id.as_str(), Phase::Detaching.shown(), left.epoch, left.counter],
    )?;
    Ok(event::note(tx, instance.as_str(), now, Kind::Asked, &format!("detach {}", row.id))?)
}

/// What a report about the instance means for one attachment.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Attached,
    LetGo,
    /// Still on its way; the node says why.
    Waits(String),
}

fn after_report(phase: Phase, left: Generation, reason: &str, port: Uuid, report: &InstanceReport) -> Step {
    let known = report.interfaces.is_some();
    let there = report.interfaces.iter().flatten().find(|i| i.port == port);
    let is_off = report.observed == Observed::Stopped;
    match (phase, there) {
        (Phase::Attaching, Some(i)) if i.attached => Step::Attached,
        (Phase::Attaching, _) if is_off => Step::Attached,
        // Its node is of a release that gives interfaces at the start only, and does not speak of them.
        (Phase::Attaching, None) if !known && report.observed == Observed::Running => Step::Attached,
        (Phase::Detaching, None) if report.generation >= left && (known || is_off) => Step::LetGo,
        (Phase::Attaching | Phase::Detaching, Some(i)) if i.reason != reason => Step::Waits(i.reason.clone()),
        _ => Step::Nothing,
    }
}

/// A node reported an instance. True: interfaces are free now.
pub fn node_reported(tx: &mut Tx<'_>, report: &InstanceReport, now: i64) -> Outcome<bool> {
    // Every report passes here, and nearly every one finds nothing on its way.
    let under_way: Vec<(String, Generation, String)> = tx.query(
        "SELECT id, left_epoch, left_counter, attach_reason FROM network_interface WHERE instance = ?1 AND phase <> 'attached'",
        params![report.id],
        |row| Ok((row.get(0)?, Generation { epoch: row.get(1)?, counter: row.get(2)? }, row.get(3)?)),
    )?;
    if under_way.is_empty() {
        return Ok(false);
    }
    let Ok(instance) = report.id.parse() else { return Ok(false) };
    let mut is_free = false;
    for row in of_instance(tx, &instance)? {
        let Some((_, left, reason)) = under_way.iter().find(|(id, ..)| id == row.id.as_str()) else { continue };
        match after_report(row.phase, *left, reason, row.port, report) {
            Step::Nothing => {}
            Step::Attached => {
                set_phase(tx, &row, Phase::Attached)?;
                if row.device_index > 0 {
                    event::note(tx, &report.id, now, Kind::Observed, &format!("{} is attached", row.id))?;
                }
            }
            Step::LetGo => {
                drop_automatic(tx, &row)?;
                unattach(tx, &row.id)?;
                event::note(tx, &report.id, now, Kind::Observed, &format!("{} is detached", row.id))?;
                is_free = true;
            }
            Step::Waits(reason) => {
                tx.execute(
                    "UPDATE network_interface SET attach_reason = ?2 WHERE id = ?1",
                    params![row.id.as_str(), reason],
                )?;
                if !reason.is_empty() {
                    let text = format!("{} is {}: {reason}", row.id, row.phase.shown());
                    event::note(tx, &report.id, now, Kind::Observed, &text)?;
                }
            }
        }
    }
    Ok(is_free)
}

fn set_phase(tx: &mut Tx<'_>, row: &InterfaceRow, phase: Phase) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE network_interface SET phase = ?2, attach_reason = '' WHERE id = ?1",
        params![row.id.as_str(), phase.shown()],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_tiers::InterfaceReport;

    #[test]
    fn a_report_moves_an_attachment_only_when_it_can_know() {
        use Observed::{Preparing, Running, Stopped, Unreachable};
        use Phase::{Attached, Attaching, Detaching};
        let port = Uuid::from_u128(1);
        let there = |attached, reason: &str| Some(vec![InterfaceReport { port, attached, reason: reason.into() }]);
        let table = [
            (Attaching, Running, 6, there(true, ""), Step::Attached),
            (Attaching, Running, 6, there(false, ""), Step::Nothing),
            (Attaching, Running, 6, there(false, "no room"), Step::Waits("no room".into())),
            (Attaching, Running, 6, Some(vec![]), Step::Nothing),
            (Attaching, Preparing, 6, None, Step::Nothing),
            (Attaching, Running, 6, None, Step::Attached),
            (Attaching, Stopped, 6, Some(vec![]), Step::Attached),
            (Attached, Running, 9, Some(vec![]), Step::Nothing),
            (Detaching, Running, 6, Some(vec![]), Step::Nothing),
            (Detaching, Running, 7, there(true, ""), Step::Nothing),
            (Detaching, Running, 7, there(false, "it holds on"), Step::Waits("it holds on".into())),
            (Detaching, Running, 7, Some(vec![]), Step::LetGo),
            (Detaching, Running, 7, None, Step::Nothing),
            (Detaching, Unreachable, 7, None, Step::Nothing),
            (Detaching, Stopped, 7, None, Step::LetGo),
        ];
        for (phase, observed, counter, interfaces, expected) in table {
            let generation = Generation { epoch: 1, counter };
            let report =
                InstanceReport { generation, interfaces, ..InstanceReport::new("i-0123456789abcdef0", observed) };
            let left = Generation { epoch: 1, counter: 7 };
            assert_eq!(after_report(phase, left, "", port, &report), expected, "{phase:?} {report:?}");
        }
    }
}
