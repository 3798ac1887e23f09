//! What is told of an instance: a pure function of what is wanted and what is seen.

use std::collections::BTreeMap;

use mallee_tiers::{AttachmentReport, Desired, Instance, InstanceReport, Observed};

use super::{
    plan::{Memory, Next, Scene, Step, is_orphan},
    row::Facts,
};
use crate::{
    hypervisor::{Power, Seen},
    volume,
};

/// What went wrong last, and is being tried again.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    pub step: String,
    pub reason: String,
    /// Volume serial → why its last change failed.
    pub volumes: BTreeMap<String, String>,
}

/// A step that only writes down what was seen: the report after it says the same, and all of it.
pub fn is_worth_telling(next: &Next) -> bool {
    !matches!(next, Next::Do(Step::NoteRunning | Step::NoteGuestOff | Step::NoteLost | Step::KeepConsole | Step::Forget))
}

pub fn report(id: &str, node: &str, scene: &Scene<'_>, next: &Next, trouble: &Trouble, took_ms: &BTreeMap<String, u64>) -> InstanceReport {
    let (observed, reason) = observed(scene);
    let step = match next {
        Next::Do(step) => step.name().to_owned(),
        _ => String::new(),
    };
    let failed = scene.facts.failed.as_ref().filter(|_| observed == Observed::Failed);
    let facts = scene.facts;
    InstanceReport {
        generation: scene.wish.map(|w| w.generation).unwrap_or_default(),
        node: Some(node.to_owned()),
        step: failed.map(|f| f.step.clone()).unwrap_or(if trouble.step.is_empty() { step } else { trouble.step.clone() }),
        reason: if reason.is_empty() { trouble.reason.clone() } else { reason },
        reboots_done: facts.reboots_done,
        guest_off: observed == Observed::Stopped && guest_is_off(scene.wish, facts),
        started: facts.started,
        attachments: attachments(scene, trouble),
        last_console: facts.console.clone().filter(|_| matches!(observed, Observed::Stopped | Observed::Gone)),
        took_ms: if observed == Observed::Preparing { took_ms.clone() } else { facts.took_ms.clone() },
        ..InstanceReport::new(id, observed)
    }
}

fn guest_is_off(wish: Option<&Instance>, facts: &Facts) -> bool {
    wish.is_some_and(|w| w.desired == Desired::Running && facts.guest_off.is_some_and(|g| g >= w.generation))
}

fn by_power(domain: Option<&Seen>) -> Observed {
    match domain.map(|d| &d.power) {
        Some(Power::Running | Power::Paused(_) | Power::Ending) => Observed::Running,
        Some(Power::Off(_)) | None => Observed::Stopped,
    }
}

fn observed(scene: &Scene<'_>) -> (Observed, String) {
    let seen = by_power(scene.domain);
    if scene.facts.gone {
        return (Observed::Gone, String::new());
    }
    let Some(wish) = scene.wish.filter(|_| !is_orphan(scene.wish, scene.listed)) else {
        let why = "orphan: no list of the cluster-controller names it; it is left as it is";
        return (seen, why.into());
    };
    let paused = match scene.domain.map(|d| &d.power) {
        Some(Power::Paused(why)) => why.clone(),
        _ => String::new(),
    };
    match wish.desired {
        Desired::Terminated => (Observed::Terminating, String::new()),
        Desired::Unknown => (seen, "it is wanted in a way this release does not know; it is left as it is".into()),
        Desired::Stopped if seen == Observed::Running => (Observed::Stopping, paused),
        Desired::Stopped => (Observed::Stopped, String::new()),
        Desired::Running if seen == Observed::Running => (Observed::Running, paused),
        Desired::Running if guest_is_off(Some(wish), scene.facts) => (Observed::Stopped, "the guest powered itself off".into()),
        Desired::Running => match &scene.facts.failed {
            Some(failed) if failed.generation >= wish.generation => (Observed::Failed, failed.reason.clone()),
            _ => (Observed::Preparing, String::new()),
        },
    }
}

/// Every volume that is wanted or still there.
fn attachments(scene: &Scene<'_>, trouble: &Trouble) -> Vec<AttachmentReport> {
    let seen = scene.domain.map_or(&[][..], |d| &d.disks);
    let wanted = scene.wish.map_or(&[][..], |w| &w.volumes);
    let off = by_power(scene.domain) == Observed::Stopped;
    let why = |serial: &str| trouble.volumes.get(serial).cloned().unwrap_or_default();
    let mut all: Vec<AttachmentReport> = wanted
        .iter()
        .map(|w| {
            let serial = volume::serial(&w.volume);
            // One that is off has what it is wanted to have: it begins with it.
            let attached = off || seen.iter().any(|s| s.serial == serial && s.export == w.export.name);
            let reason = if attached { String::new() } else { why(&serial) };
            AttachmentReport { volume: w.volume.clone(), attached, reason }
        })
        .collect();
    for disk in seen {
        let id = volume::volume_of(&disk.serial);
        if !all.iter().any(|a| a.volume == id) {
            all.push(AttachmentReport { volume: id, attached: false, reason: why(&disk.serial) });
        }
    }
    all
}

/// Whether a volume's trouble is over, so that it is not told for ever.
pub fn settle(memory: &mut Memory, trouble: &mut Trouble, serial: &str) {
    memory.volume_pauses.retain(|(paused, _)| paused != serial);
    trouble.volumes.remove(serial);
}
