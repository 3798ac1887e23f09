//! What a zone reported of an instance, and what this cloud decides because of it: all in the transaction that keeps it.

use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{Desired, InstanceReport, Observed};

use super::{
    row::{self, Cause, Instance, ShutdownBehavior},
    state,
};
use crate::{
    Outcome,
    ec2::{flow_log, interface, volume},
    zone::{
        event::{self, Kind},
        generation::{self, List},
    },
};

/// Who is to be woken after the transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consequences {
    /// The instance was never asked for by this store: shown as an orphan, never killed.
    pub orphan: bool,
    pub instances: bool,
    pub volumes: bool,
    pub network: bool,
    /// Snapshots that are being taken of it may go on.
    pub images: bool,
}

/// What has to be wanted now, because the guest or its node did something nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Nothing,
    Want(Desired, Cause),
}

/// Keeps a report of `zone` and carries out what follows from it. A zone has nothing to say about an instance of another
/// one: an end that it made up would free an address that is in use.
pub fn take(tx: &mut Tx<'_>, zone: &str, report: &InstanceReport, now: i64) -> Outcome<Consequences> {
    let mut consequences = Consequences::default();
    let Some(instance) = row::any(tx, &report.id)?.filter(|i| i.zone == zone) else {
        // Gone and forgotten here already: the zone will hear that from the next list.
        consequences.orphan = report.observed != Observed::Gone;
        return Ok(consequences);
    };
    if instance.is_ended() {
        return Ok(consequences);
    }
    let before = instance.state();
    let is_end = report.observed == Observed::Gone && instance.desired == Desired::Terminated;
    row::set_observed(tx, report, is_end.then_some(now))?;
    if let Some(console) = &report.last_console {
        row::put_console(tx, &report.id, console, now)?;
    }
    note(tx, &instance, report, now)?;
    if let Some(hold) = &instance.options.hold {
        let back = report.observed == Observed::Running && report.held.is_none();
        let ended = hold.over && back && report.generation >= instance.generation;
        let confirmed = report.held.as_ref() == Some(&hold.id);
        if ended || confirmed != hold.confirmed {
            let hold = (!ended).then(|| row::Hold { confirmed, ..hold.clone() });
            row::set_options(tx, &report.id, &row::Options { hold, ..instance.options.clone() })?;
        }
        consequences.images = true;
    }
    let unplaced = report.observed == Observed::Stopped && report.node.is_none();
    if unplaced && instance.options.root_on_volume && report.generation >= instance.generation {
        row::leave_node(tx, &report.id)?;
    }
    if report.node.is_some() && report.node != instance.node {
        consequences.volumes |= volume::touch_at(tx, &report.id)?;
    }
    flow_log::reported(tx, report)?;
    consequences.volumes |= volume::node_reported(tx, report, now)?;
    consequences.network |= interface::phase::node_reported(tx, report, now)?;
    if let Decision::Want(desired, cause) = decide(&instance, report) {
        let text = match (desired, cause) {
            (Desired::Terminated, Cause::Guest) => {
                "the guest powered itself off: terminate, as its shutdown behaviour says"
            }
            (_, Cause::Guest) => "the guest powered itself off: stop, as its shutdown behaviour says",
            (Desired::Terminated, _) => "it could not be brought up: terminate",
            _ => "it could not be started again: stop, its disk is kept",
        };
        event::note(tx, &report.id, now, Kind::Decided, text)?;
        end_or_stop(tx, &instance, desired, cause, false, now)?;
        consequences.instances = true;
        consequences.network = true;
        consequences.volumes |= desired == Desired::Terminated;
    }
    if is_end {
        // Its private address is free only now: the guest might still have used it.
        interface::remove(tx, &instance.id)?;
        generation::next(tx, &instance.zone, List::Instances)?;
        consequences.instances = true;
        consequences.network = true;
    }
    if state::state(instance.desired, Some(report.observed), instance.started.is_some()) != before {
        tracing::info!(instance.id = report.id, from = before.name, observed = ?report.observed, "instance changed state");
    }
    Ok(consequences)
}

/// One that never came up, and never will, is ended; one that has run is stopped, because its disks are worth keeping.
pub fn give_up(tx: &mut Tx<'_>, id: &str, why: &str, now: i64) -> Outcome<bool> {
    let Some(instance) = row::any(tx, id)?.filter(|i| i.desired == Desired::Running && i.started.is_none()) else {
        return Ok(false);
    };
    let desired = if instance.starts > 0 { Desired::Stopped } else { Desired::Terminated };
    event::note(tx, id, now, Kind::Decided, &format!("it cannot be brought up: {why}"))?;
    row::set_reason(tx, id, why)?;
    end_or_stop(tx, &instance, desired, Cause::Failure, false, now)?;
    Ok(true)
}

/// Writes that it shall stop or end, with all that hangs on that.
pub fn end_or_stop(
    tx: &mut Tx<'_>,
    instance: &Instance,
    desired: Desired,
    cause: Cause,
    forced: bool,
    now: i64,
) -> Outcome<()> {
    row::want(tx, instance, desired, cause, forced, now)?;
    if desired == Desired::Terminated {
        interface::release(tx, &instance.id)?;
        volume::detach_all(tx, &instance.id, now)?;
    } else {
        interface::return_public(tx, &instance.id)?;
    }
    Ok(())
}

fn note(tx: &mut Tx<'_>, instance: &Instance, report: &InstanceReport, now: i64) -> Result<(), StoreError> {
    let same =
        instance.observed == Some(report.observed) && instance.reason == report.reason && instance.node == report.node;
    if same {
        return Ok(());
    }
    let mut text = format!("{:?}", report.observed).to_lowercase();
    if let Some(node) = &report.node {
        text.push_str(&format!(" on {node}"));
    }
    if report.observed != Observed::Running && !report.step.is_empty() {
        text.push_str(&format!(", at {}", report.step));
    }
    if !report.reason.is_empty() {
        text.push_str(&format!(": {}", report.reason));
    }
    event::note(tx, &report.id, now, Kind::Observed, &text)
}

/// Only a report about the newest wish decides anything: an older one tells of a life that was ended or begun since.
fn decide(instance: &Instance, report: &InstanceReport) -> Decision {
    if instance.desired != Desired::Running || report.generation < instance.generation {
        return Decision::Nothing;
    }
    if report.guest_off {
        let desired = match instance.options.shutdown {
            ShutdownBehavior::Stop => Desired::Stopped,
            ShutdownBehavior::Terminate => Desired::Terminated,
        };
        return Decision::Want(desired, Cause::Guest);
    }
    if report.observed == Observed::Failed {
        // One that ran before has a disk worth keeping.
        let desired =
            if instance.starts > 0 || instance.started.is_some() { Desired::Stopped } else { Desired::Terminated };
        return Decision::Want(desired, Cause::Failure);
    }
    Decision::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_tiers::Generation;

    fn instance(shutdown: ShutdownBehavior, starts: u32) -> Instance {
        let options = row::Options {
            public_key: None,
            root_device: "/dev/sda1".into(),
            shutdown,
            protect_termination: false,
            protect_stop: false,
            ebs_optimized: false,
            metadata: row::MetadataOptions { enabled: true, tokens_required: false, hop_limit: 1, tags: false },
            root_on_volume: false,
            ephemeral: None,
            hold: None,
        };
        Instance {
            id: "i-0123456789abcdef0".parse().unwrap(),
            account: String::new(),
            reservation: "r-0123456789abcdef0".parse().unwrap(),
            launch_index: 0,
            client_token: None,
            zone: String::new(),
            generation: Generation { epoch: 1, counter: 5 },
            image: String::new(),
            kernel: None,
            ramdisk: None,
            architecture: "x86_64".into(),
            instance_type: "t2.micro".into(),
            key_name: None,
            subnet: String::new(),
            vpc: String::new(),
            launched: 0,
            options,
            desired: Desired::Running,
            asked_at: 0,
            cause: Cause::User,
            forced: false,
            reboots: 0,
            starts,
            observed: None,
            observed_generation: Generation::default(),
            node: None,
            step: String::new(),
            reason: String::new(),
            reboots_done: 0,
            started: None,
            took: String::new(),
            gone: None,
        }
    }

    #[test]
    fn what_nobody_asked_for_is_decided_once_and_only_by_a_report_about_the_newest_wish() {
        use ShutdownBehavior::{Stop, Terminate};
        let report = |observed, counter, guest_off| InstanceReport {
            generation: Generation { epoch: 1, counter },
            guest_off,
            ..InstanceReport::new("i-0123456789abcdef0", observed)
        };
        let want = Decision::Want;
        for (shutdown, starts, report, expected) in [
            (Stop, 0, report(Observed::Running, 5, false), Decision::Nothing),
            (Stop, 0, report(Observed::Stopped, 5, true), want(Desired::Stopped, Cause::Guest)),
            (Terminate, 0, report(Observed::Stopped, 5, true), want(Desired::Terminated, Cause::Guest)),
            (Terminate, 0, report(Observed::Stopped, 4, true), Decision::Nothing),
            (Stop, 0, report(Observed::Failed, 5, false), want(Desired::Terminated, Cause::Failure)),
            (Stop, 1, report(Observed::Failed, 5, false), want(Desired::Stopped, Cause::Failure)),
            (Stop, 1, report(Observed::Unreachable, 5, false), Decision::Nothing),
        ] {
            assert_eq!(decide(&instance(shutdown, starts), &report), expected, "{shutdown:?} {report:?}");
        }
        let mut stopped = instance(Stop, 0);
        stopped.desired = Desired::Stopped;
        assert_eq!(decide(&stopped, &report(Observed::Stopped, 9, true)), Decision::Nothing);
    }
}
