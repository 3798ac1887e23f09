//! What is told of an instance: a pure function of what is wanted and what is seen.

use std::collections::BTreeMap;

use mallee_tiers::{AttachmentReport, Desired, Instance, InstanceReport, InterfaceReport, Observed};
use uuid::Uuid;

use super::{
    plan::{self, Memory, Next, Scene, Step, is_orphan},
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
    /// Device (as in [`Step::device`]) → why its last change failed.
    pub devices: BTreeMap<String, String>,
}

/// A step that only writes down what was seen: the report after it says the same, and all of it.
pub fn is_worth_telling(next: &Next) -> bool {
    !matches!(
        next,
        Next::Do(Step::NoteRunning | Step::NoteGuestOff | Step::NoteLost | Step::KeepConsole | Step::Forget)
    )
}

pub fn report(
    id: &str,
    node: &str,
    scene: &Scene<'_>,
    next: &Next,
    trouble: &Trouble,
    took_ms: &BTreeMap<String, u64>,
) -> InstanceReport {
    let guest_off = *next == Next::Do(Step::NoteGuestOff) || guest_is_off(scene.wish, scene.facts);
    let (observed, reason) = observed(scene, guest_off);
    let step = match next {
        Next::Do(step) => step.name().to_owned(),
        _ => String::new(),
    };
    let failed = scene.facts.failed.as_ref().filter(|_| observed == Observed::Failed);
    let facts = scene.facts;
    InstanceReport {
        generation: scene.wish.map(|w| w.generation).unwrap_or_default(),
        node: Some(node.to_owned()),
        step: failed.map(|f| f.step.clone()).unwrap_or(if trouble.step.is_empty() {
            step
        } else {
            trouble.step.clone()
        }),
        reason: if reason.is_empty() { trouble.reason.clone() } else { reason },
        reboots_done: facts.reboots_done,
        guest_off: observed == Observed::Stopped && guest_off,
        held: plan::held_as_wished(scene),
        released: facts.released
            && scene.domain.is_none()
            && scene.wish.is_some_and(|w| w.desired == Desired::Stopped && w.boot.root.is_elsewhere()),
        started: facts.started,
        attachments: attachments(scene, trouble),
        interfaces: Some(interfaces(scene, trouble)),
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
        Some(Power::Running | Power::Paused(_) | Power::NoRoom | Power::Suspended | Power::Ending) => Observed::Running,
        Some(Power::Off(_)) | None => Observed::Stopped,
    }
}

fn observed(scene: &Scene<'_>, guest_off: bool) -> (Observed, String) {
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
        Some(Power::NoRoom) => {
            "a disk had no room for what the guest wrote: it stands still, and tries again every few seconds".into()
        }
        Some(Power::Suspended) if scene.facts.held.is_some() => "held while its volumes are fixed".into(),
        Some(Power::Suspended) => "suspended by somebody through the hypervisor".into(),
        _ => String::new(),
    };
    match wish.desired {
        Desired::Terminated => (Observed::Terminating, String::new()),
        Desired::Unknown => (seen, "it is wanted in a way this release does not know; it is left as it is".into()),
        Desired::Stopped if seen == Observed::Running => (Observed::Stopping, paused),
        Desired::Stopped => (Observed::Stopped, String::new()),
        Desired::Running if seen == Observed::Running => (Observed::Running, paused),
        Desired::Running if guest_off => (Observed::Stopped, "the guest powered itself off".into()),
        Desired::Running => match &scene.facts.failed {
            Some(failed) if failed.generation >= wish.generation => (Observed::Failed, failed.reason.clone()),
            _ => (Observed::Preparing, wish.awaits.clone().unwrap_or_default()),
        },
    }
}

/// Every volume that is wanted or still there.
fn attachments(scene: &Scene<'_>, trouble: &Trouble) -> Vec<AttachmentReport> {
    let seen = scene.domain.map_or(&[][..], |d| &d.disks);
    let wanted = scene.wish.map_or(&[][..], |w| &w.volumes);
    if scene.facts.gone {
        return Vec::new();
    }
    let leaving = scene.wish.is_some_and(|w| w.desired == Desired::Terminated);
    let off = by_power(scene.domain) == Observed::Stopped && !leaving;
    let why = |serial: &str| trouble.devices.get(serial).cloned().unwrap_or_default();
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

/// Every interface that is wanted or still there.
fn interfaces(scene: &Scene<'_>, trouble: &Trouble) -> Vec<InterfaceReport> {
    let seen = scene.domain.map_or(&[][..], |d| &d.nics);
    let wanted = scene.wish.map_or(&[][..], |w| &w.interfaces);
    if scene.facts.gone {
        return Vec::new();
    }
    let off = by_power(scene.domain) == Observed::Stopped;
    let why = |port: &Uuid| trouble.devices.get(&port.to_string()).cloned().unwrap_or_default();
    let mut all: Vec<InterfaceReport> = wanted
        .iter()
        .map(|w| {
            // One that is off begins with what it is wanted to have.
            let attached = off || seen.iter().any(|s| s.port == w.port);
            InterfaceReport { port: w.port, attached, reason: if attached { String::new() } else { why(&w.port) } }
        })
        .collect();
    for nic in seen {
        if !all.iter().any(|i| i.port == nic.port) {
            all.push(InterfaceReport { port: nic.port, attached: false, reason: why(&nic.port) });
        }
    }
    all
}

/// A device's trouble is over, so that it is not told for ever.
pub fn settle(memory: &mut Memory, trouble: &mut Trouble, device: &str) {
    memory.device_pauses.retain(|(paused, _)| paused != device);
    trouble.devices.remove(device);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hypervisor::{Off, SeenDisk},
        nic::tests::{seen as seen_nic, wanted as wanted_nic},
    };
    use mallee_tiers::{
        Blob, Boot, DiskFormat, DiskLimits, Export, ExportAddress, Generation, Metadata, Root, VolumeAttachment,
    };
    use std::time::Duration;

    fn wish(desired: Desired, volumes: &[&str]) -> Instance {
        let export = |name: &str| Export {
            attachment: "a".into(),
            name: name.into(),
            address: ExportAddress::Unix("/s".into()),
            server: None,
        };
        Instance {
            id: "i-1".into(),
            generation: Generation { epoch: 1, counter: 5 },
            desired,
            force: false,
            reboots: 0,
            vcpus: 1,
            memory_mib: 1,
            disk_gib: 1,
            boot: Boot {
                architecture: "x86_64".into(),
                root: Root::Image(Blob { digest: String::new(), size: 0, format: DiskFormat::Raw }),
                kernel: None,
                ramdisk: None,
                command_line: None,
            },
            stores: vec![],
            awaits: None,
            hold: None,
            interfaces: vec![],
            volumes: volumes
                .iter()
                .map(|v| VolumeAttachment {
                    volume: (*v).into(),
                    device: "/dev/sdf".into(),
                    export: export(v),
                    size_gib: 1,
                    limits: DiskLimits::default(),
                })
                .collect(),
            metadata: Metadata::default(),
            node: None,
        }
    }

    fn told(
        wish: &Instance,
        listed: bool,
        facts: &Facts,
        power: Option<Power>,
        disks: &[&str],
        next: Next,
    ) -> InstanceReport {
        let disk = |v: &&str| SeenDisk {
            serial: volume::serial(v),
            target: "vdf".into(),
            alias: "ua".into(),
            export: (*v).into(),
        };
        let domain = power.map(|power| Seen {
            name: "i-1".into(),
            power,
            disks: disks.iter().map(disk).collect(),
            nics: Vec::new(),
        });
        let memory = Memory::default();
        let (now, patience) = (Duration::ZERO, Duration::ZERO);
        let scene = Scene { wish: Some(wish), listed, facts, domain: domain.as_ref(), memory: &memory, now, patience };
        let trouble = Trouble { devices: BTreeMap::from([("vol2".into(), "busy".into())]), ..Trouble::default() };
        report("i-1", "n1", &scene, &next, &trouble, &BTreeMap::new())
    }

    fn attached(report: &InstanceReport) -> Vec<(&str, bool, &str)> {
        report.attachments.iter().map(|a| (a.volume.as_str(), a.attached, a.reason.as_str())).collect()
    }

    #[test]
    fn a_volume_is_told_until_the_guest_has_let_go_of_it() {
        let (running, facts) = (wish(Desired::Running, &["vol-1"]), Facts { ran: true, ..Facts::default() });
        let r = told(&running, true, &facts, Some(Power::Running), &["vol-1", "vol-2"], Next::Rest);
        assert_eq!(attached(&r), [("vol-1", true, ""), ("vol-2", false, "busy")]);
        let r = told(&running, true, &facts, Some(Power::Running), &[], Next::Rest);
        assert_eq!(attached(&r), [("vol-1", false, "")]);
        let stopped = wish(Desired::Stopped, &["vol-1"]);
        assert_eq!(
            attached(&told(&stopped, true, &facts, Some(Power::Off(Off::Guest)), &[], Next::Rest)),
            [("vol-1", true, "")]
        );
        let terminated = wish(Desired::Terminated, &["vol-1"]);
        assert_eq!(attached(&told(&terminated, true, &facts, None, &[], Next::Rest)), [("vol-1", false, "")]);
        let gone = Facts { gone: true, ..Facts::default() };
        assert_eq!(attached(&told(&terminated, true, &gone, None, &[], Next::Rest)), []);
    }

    #[test]
    fn an_interface_is_told_until_the_guest_has_let_go_of_it() {
        let facts = Facts { ran: true, ..Facts::default() };
        let wish = Instance { interfaces: vec![wanted_nic(1, 0), wanted_nic(2, 1)], ..wish(Desired::Running, &[]) };
        let (memory, now) = (Memory::default(), Duration::ZERO);
        let told = |power, nics| {
            let domain = Seen { name: "i-1".into(), power, disks: Vec::new(), nics };
            let scene = Scene {
                wish: Some(&wish),
                listed: true,
                facts: &facts,
                domain: Some(&domain),
                memory: &memory,
                now,
                patience: now,
            };
            let all = report("i-1", "n1", &scene, &Next::Rest, &Trouble::default(), &BTreeMap::new()).interfaces;
            all.unwrap().iter().map(|i| (i.port.as_bytes()[0], i.attached)).collect::<Vec<_>>()
        };
        assert_eq!(told(Power::Running, vec![seen_nic(1), seen_nic(3)]), [(1, true), (2, false), (3, false)]);
        assert_eq!(told(Power::Off(Off::Guest), vec![]), [(1, true), (2, true)]);
    }

    #[test]
    fn what_is_seen_is_told_with_its_reason() {
        let (facts, off) = (Facts { ran: true, ..Facts::default() }, || Some(Power::Off(Off::Guest)));
        let running = wish(Desired::Running, &[]);
        let noted = told(&running, true, &facts, off(), &[], Next::Do(Step::NoteGuestOff));
        assert_eq!((noted.observed, noted.guest_off), (Observed::Stopped, true));
        let lost = told(&running, true, &facts, Some(Power::Off(Off::Crashed)), &[], Next::Do(Step::NoteLost));
        assert_eq!((lost.observed, lost.guest_off), (Observed::Preparing, false));
        let orphan = told(&running, false, &facts, Some(Power::Running), &[], Next::Rest);
        assert!(orphan.observed == Observed::Running && orphan.reason.contains("orphan"));
        let paused =
            told(&running, true, &facts, Some(Power::Paused("a disk does not answer".into())), &[], Next::Rest);
        assert!(paused.observed == Observed::Running && paused.reason.contains("disk"));
        let going =
            told(&wish(Desired::Stopped, &[]), true, &facts, Some(Power::Running), &[], Next::Do(Step::PressPower));
        assert_eq!((going.observed, going.step.as_str()), (Observed::Stopping, "power off"));
    }
}
