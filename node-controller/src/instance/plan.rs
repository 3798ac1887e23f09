//! What to do next for an instance: a pure function of what is wanted and what is seen.
//!
//! ```text
//!                          wanted running
//!        ┌──────────────────────────────────────────────────────────┐
//!        │   image → disk → network → volumes → define → start      │  bring-up; any failure begins again at image
//!        ▼                                                          │
//!     absent/off ───────────────────────────────────────────► running ──► attach / detach / reboot, one at a time
//!        ▲  ▲                                                   │  │
//!        │  └── guest powered off by itself: noted, reported ───┘  │ wanted stopped: power button, again each 5 s,
//!        │      and left off until a newer wish                    │ and the plug after `patience` or when forced
//!        └──────────────────────── off ◄──────────────────────────┘
//!
//!     wanted terminated, from anywhere: plug → keep console → undefine → erase → gone → (unlisted) forgotten
//! ```
//! A guest is held (powered off as for a reboot, or its processors stopped) while a hold is wished for; one that lasts too
//! long lapses, for whoever asked for it may have died. An instance whose root is on a volume leaves nothing here when it is
//! stopped: it is released, and forgotten once no list names it.
//!
//! A domain that is off for any other reason than its guest's or the node's (its process died, the machine lost power) is
//! brought up again. What no list names is an orphan: shown, never touched.

use std::time::Duration;

use mallee_tiers::{Desired, Hold, HoldKind, Instance};

use super::row::Facts;
use crate::{
    hypervisor::{Off, Power, Seen},
    nic,
    volume::{self, Change, Fit},
};

/// The steps of bringing an instance up, in order. Each makes sure of one thing and may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BringUp {
    /// Every blob it boots from is in the cache.
    Image,
    /// Its overlay is there.
    Disk,
    /// Its metadata is served and its taps have names.
    Network,
    /// Every volume it begins with is served.
    Volumes,
    Define,
    Start,
}

impl BringUp {
    pub const ALL: [BringUp; 6] = [Self::Image, Self::Disk, Self::Network, Self::Volumes, Self::Define, Self::Start];

    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Volumes => "volumes",
            Self::Define => "define",
            Self::Start => "start",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    BringUp(BringUp),
    /// It runs: write down since when.
    NoteRunning,
    /// It ran and is off by its guest's doing: write that down.
    NoteGuestOff,
    /// It ran and is off by nobody's doing: write that down, then bring it up again.
    NoteLost,
    Change(Change),
    ChangeNic(nic::Change),
    Reboot,
    Reset,
    NoteRebooted,
    PressPower,
    PullPlug,
    /// Write down that it is held, and stop its processors when that is what is asked.
    Hold(Hold),
    /// Let its processors go on, and write down that it is not held any more.
    LetGo,
    /// It found no room on a disk: there may be some now.
    TryAgain,
    KeepConsole,
    Undefine,
    /// It is off: leave nothing of it here.
    Release,
    Erase,
    Forget,
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Step::BringUp(step) => step.name(),
            Step::Change(Change::Attach(_)) | Step::ChangeNic(nic::Change::Attach(_)) => "attach",
            Step::Change(Change::Detach(_)) | Step::ChangeNic(nic::Change::Detach(_)) => "detach",
            Step::Change(Change::Fit(..)) => "fit",
            Step::Reboot | Step::Reset | Step::NoteRebooted => "reboot",
            Step::PressPower | Step::PullPlug => "power off",
            Step::KeepConsole => "console",
            Step::Hold(_) | Step::LetGo => "hold",
            Step::TryAgain => "no room",
            Step::Undefine => "undefine",
            Step::Release | Step::Erase => "erase",
            Step::NoteRunning | Step::NoteGuestOff | Step::NoteLost | Step::Forget => "note",
        }
    }

    /// The device that is changed: a volume's serial, or an interface's port. One that cannot be changed holds up no other.
    pub fn device(&self) -> Option<String> {
        match self {
            Step::Change(change) => Some(change.serial()),
            Step::ChangeNic(change) => Some(change.port().to_string()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    Do(Step),
    /// Something is in progress: look again after this time, or when something is heard.
    Wait(Duration),
    /// All is as wanted, or nothing may be done.
    Rest,
}

/// What this process remembers of what it is in the middle of. All of it may be lost at any time.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The last step of this bring-up that succeeded.
    pub done: Option<BringUp>,
    /// When the power button was pressed first and last. Times are since this process began.
    pub pressed: Option<(Duration, Duration)>,
    /// When a reboot was asked for, and whether the guest has come through it.
    pub rebooting: Option<(Duration, bool)>,
    /// Since when it is held.
    pub held: Option<Duration>,
    /// When a guest that found no room was last let go on.
    pub tried: Option<Duration>,
    /// Devices ([`Step::device`]) whose last attempt failed are left alone until then.
    pub device_pauses: Vec<(String, Duration)>,
    /// What the disks of the guest that runs were made to be, by their serials.
    pub fitted: Vec<(String, Fit)>,
}

pub struct Scene<'a> {
    pub wish: Option<&'a Instance>,
    /// Whether the last list named it.
    pub listed: bool,
    pub facts: &'a Facts,
    pub domain: Option<&'a Seen>,
    pub memory: &'a Memory,
    /// Since this process began.
    pub now: Duration,
    /// How long a guest may take to power off or to begin a reboot.
    pub patience: Duration,
}

/// A power button pressed while a guest boots is lost: it is pressed again.
pub const PRESS_AGAIN: Duration = Duration::from_secs(5);

/// A guest that is off for the sake of its disks comes back by itself after this.
const HELD_OFF: Duration = Duration::from_secs(300);
/// And one whose processors stand still after this: its clients notice every second.
const HELD_PAUSED: Duration = Duration::from_secs(60);

/// A guest that found no room on a disk stands still for this long.
pub const TRY_AGAIN: Duration = Duration::from_secs(3);

pub fn is_orphan(wish: Option<&Instance>, listed: bool) -> bool {
    wish.is_none_or(|w| !listed && w.desired != Desired::Terminated)
}

pub fn next(scene: &Scene<'_>) -> Next {
    let Some(wish) = scene.wish else { return Next::Rest };
    if scene.facts.gone {
        return if scene.listed { Next::Rest } else { Next::Do(Step::Forget) };
    }
    if scene.facts.released && !scene.listed && wish.desired == Desired::Stopped && scene.domain.is_none() {
        return Next::Do(Step::Forget);
    }
    if is_orphan(scene.wish, scene.listed) {
        return Next::Rest;
    }
    match wish.desired {
        Desired::Running => running(scene, wish),
        Desired::Stopped => stopped(scene, wish),
        Desired::Terminated => terminated(scene),
        Desired::Unknown => Next::Rest,
    }
}

fn running(scene: &Scene<'_>, wish: &Instance) -> Next {
    let facts = scene.facts;
    match scene.domain.map(|d| &d.power) {
        Some(Power::Running | Power::Paused(_) | Power::NoRoom) => match hold(scene, wish) {
            Some(hold) if hold.kind == HoldKind::Off => power_off(scene),
            // Somebody let it go on, or this process died at it: what is written by now is of another instant.
            Some(hold) if facts.held.as_ref() == Some(&hold.id) => Next::Do(Step::LetGo),
            Some(hold) if facts.ran => Next::Do(Step::Hold(hold.clone())),
            _ => up(scene, wish),
        },
        Some(Power::Suspended) => match hold(scene, wish) {
            Some(hold) if facts.held.as_ref() == Some(&hold.id) => held(scene, hold),
            _ if facts.held.is_some() => Next::Do(Step::LetGo),
            // Not our doing.
            _ => Next::Rest,
        },
        Some(Power::Ending) => Next::Wait(Duration::from_millis(200)),
        Some(Power::Off(Off::Guest)) if facts.ran && !facts.asked_off => Next::Do(Step::NoteGuestOff),
        Some(Power::Off(_)) | None if facts.ran => Next::Do(Step::NoteLost),
        Some(Power::Off(_)) | None => {
            if facts.guest_off.is_some_and(|g| g >= wish.generation) {
                return if facts.console.is_none() { Next::Do(Step::KeepConsole) } else { Next::Rest };
            }
            if facts.failed.as_ref().is_some_and(|f| f.generation >= wish.generation) {
                return Next::Rest;
            }
            if let Some(hold) = hold(scene, wish).filter(|h| h.kind == HoldKind::Off) {
                return if facts.held.as_ref() == Some(&hold.id) {
                    held(scene, hold)
                } else {
                    Next::Do(Step::Hold(hold.clone()))
                };
            }
            if wish.awaits.is_some() {
                return Next::Rest;
            }
            let after = BringUp::ALL.into_iter().find(|step| scene.memory.done.is_none_or(|done| *step > done));
            Next::Do(Step::BringUp(after.unwrap_or(BringUp::Image)))
        }
    }
}

/// The hold to obey.
fn hold<'a>(scene: &Scene<'_>, wish: &'a Instance) -> Option<&'a Hold> {
    wish.hold.as_ref().filter(|h| h.kind != HoldKind::Unknown && scene.facts.lapsed.as_ref() != Some(&h.id))
}

/// Whether the guest stands still under the hold that is wished for: what a report says.
pub fn held_as_wished(scene: &Scene<'_>) -> Option<String> {
    let hold = hold(scene, scene.wish?)?;
    let still = match scene.domain.map(|d| &d.power) {
        Some(Power::Suspended) => true,
        Some(Power::Off(_)) | None => hold.kind == HoldKind::Off && !scene.facts.ran,
        _ => false,
    };
    (still && scene.memory.held.is_some() && scene.facts.held.as_ref() == Some(&hold.id)).then(|| hold.id.clone())
}

/// It stands still, until that lapses. A process that was not there from the beginning cannot say how long it has been.
fn held(scene: &Scene<'_>, hold: &Hold) -> Next {
    let patience = if hold.kind == HoldKind::Off { HELD_OFF } else { HELD_PAUSED };
    let left = scene.memory.held.and_then(|since| (since + patience).checked_sub(scene.now)).filter(|l| !l.is_zero());
    left.map_or(Next::Do(Step::LetGo), Next::Wait)
}

fn power_off(scene: &Scene<'_>) -> Next {
    match scene.memory.pressed {
        None => Next::Do(Step::PressPower),
        Some((first, _)) if scene.now >= first + scene.patience => Next::Do(Step::PullPlug),
        Some((_, last)) if scene.now >= last + PRESS_AGAIN => Next::Do(Step::PressPower),
        Some((first, last)) => Next::Wait((last + PRESS_AGAIN).min(first + scene.patience) - scene.now),
    }
}

fn up(scene: &Scene<'_>, wish: &Instance) -> Next {
    let (facts, memory) = (scene.facts, scene.memory);
    if !facts.ran {
        return Next::Do(Step::NoteRunning);
    }
    if wish.reboots > facts.reboot_asked.max(facts.reboots_done) {
        return Next::Do(Step::Reboot);
    }
    let mut wait: Option<Duration> = None;
    if facts.reboot_asked > facts.reboots_done {
        match memory.rebooting {
            // Asked by an earlier life of this process: the guest had its chance.
            None | Some((_, true)) => return Next::Do(Step::NoteRebooted),
            Some((since, false)) => match (since + scene.patience).checked_sub(scene.now) {
                Some(left) if !left.is_zero() => wait = Some(left),
                _ => return Next::Do(Step::Reset),
            },
        }
    }
    if scene.domain.is_some_and(|d| d.power == Power::NoRoom) {
        match memory.tried.and_then(|last| (last + TRY_AGAIN).checked_sub(scene.now)).filter(|left| !left.is_zero()) {
            None => return Next::Do(Step::TryAgain),
            Some(left) => wait = Some(wait.unwrap_or(Duration::MAX).min(left)),
        }
    }
    let (disks, nics) = scene.domain.map_or((&[][..], &[][..]), |d| (&d.disks, &d.nics));
    let nics = nic::changes(&wish.interfaces, nics).into_iter().map(Step::ChangeNic);
    let fit = volume::misfits(wish, disks, &memory.fitted);
    let disks = volume::changes(wish, disks).into_iter().chain(fit).map(Step::Change);
    for step in nics.chain(disks) {
        let device = step.device();
        match memory.device_pauses.iter().find(|(paused, until)| Some(paused) == device.as_ref() && *until > scene.now)
        {
            None => return Next::Do(step),
            Some((_, until)) => wait = Some(wait.unwrap_or(Duration::MAX).min(*until - scene.now)),
        }
    }
    wait.map_or(Next::Rest, Next::Wait)
}

fn stopped(scene: &Scene<'_>, wish: &Instance) -> Next {
    match scene.domain.map(|d| &d.power) {
        Some(Power::Running | Power::Paused(_) | Power::NoRoom | Power::Suspended) if wish.force => {
            Next::Do(Step::PullPlug)
        }
        // One that stands still does not hear the button.
        Some(Power::Suspended) => Next::Do(Step::LetGo),
        Some(Power::Running | Power::Paused(_) | Power::NoRoom) => power_off(scene),
        Some(Power::Ending) => Next::Wait(Duration::from_millis(200)),
        Some(Power::Off(_)) | None => {
            let has_run = scene.facts.ran || scene.facts.started.is_some();
            if has_run && scene.facts.console.is_none() {
                return Next::Do(Step::KeepConsole);
            }
            if scene.facts.released || !wish.boot.root.is_elsewhere() {
                return Next::Rest;
            }
            Next::Do(if scene.domain.is_some() { Step::Undefine } else { Step::Release })
        }
    }
}

fn terminated(scene: &Scene<'_>) -> Next {
    match scene.domain.map(|d| &d.power) {
        Some(Power::Running | Power::Paused(_) | Power::NoRoom | Power::Suspended | Power::Ending) => {
            Next::Do(Step::PullPlug)
        }
        Some(Power::Off(_)) if scene.facts.console.is_none() => Next::Do(Step::KeepConsole),
        Some(Power::Off(_)) => Next::Do(Step::Undefine),
        None => Next::Do(Step::Erase),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::row::Failure, *};
    use crate::{
        hypervisor::SeenDisk,
        nic::tests::{seen, wanted},
    };
    use mallee_tiers::{
        Blob, Boot, DiskFormat, DiskLimits, Export, ExportAddress, Generation, Metadata, Root, VolumeAttachment,
    };

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn wish(desired: Desired) -> Instance {
        Instance {
            id: "i-1".into(),
            generation: Generation { epoch: 1, counter: 5 },
            desired,
            force: false,
            reboots: 0,
            vcpus: 1,
            memory_mib: 128,
            disk_gib: 1,
            boot: Boot {
                architecture: "x86_64".into(),
                root: Root::Image(Blob { digest: "0".repeat(64), size: 1, format: DiskFormat::Raw }),
                kernel: None,
                ramdisk: None,
                command_line: None,
            },
            stores: vec![],
            awaits: None,
            hold: None,
            interfaces: vec![],
            volumes: vec![],
            metadata: Metadata::default(),
            node: None,
        }
    }

    fn domain(power: Power) -> Option<Seen> {
        Some(Seen { name: "i-1".into(), power, disks: vec![], nics: vec![] })
    }

    struct Case {
        wish: Option<Instance>,
        listed: bool,
        facts: Facts,
        domain: Option<Seen>,
        memory: Memory,
        now: Duration,
    }

    fn case(desired: Desired, power: Option<Power>) -> Case {
        Case {
            wish: Some(wish(desired)),
            listed: true,
            facts: Facts::default(),
            domain: power.and_then(domain),
            memory: Memory::default(),
            now: S(1000),
        }
    }

    impl Case {
        fn facts<T>(mut self, change: impl FnOnce(&mut Facts) -> T) -> Self {
            change(&mut self.facts);
            self
        }
        fn memory(mut self, change: impl FnOnce(&mut Memory)) -> Self {
            change(&mut self.memory);
            self
        }
        fn wish(mut self, change: impl FnOnce(&mut Instance)) -> Self {
            change(self.wish.as_mut().unwrap());
            self
        }
        fn unlisted(mut self) -> Self {
            self.listed = false;
            self
        }
        fn next(&self) -> Next {
            next(&Scene {
                wish: self.wish.as_ref(),
                listed: self.listed,
                facts: &self.facts,
                domain: self.domain.as_ref(),
                memory: &self.memory,
                now: self.now,
                patience: S(60),
            })
        }
    }

    fn ran(f: &mut Facts) {
        (f.ran, f.started) = (true, Some(1));
    }
    fn volume(id: &str) -> VolumeAttachment {
        let export = Export {
            attachment: "a".into(),
            name: "x".into(),
            address: ExportAddress::Unix("/s".into()),
            server: None,
        };
        VolumeAttachment {
            volume: id.into(),
            device: "/dev/sdf".into(),
            export,
            size_gib: 1,
            limits: DiskLimits::default(),
        }
    }
    fn generation(counter: i64) -> Generation {
        Generation { epoch: 1, counter }
    }

    use Desired::*;
    use Next::*;

    #[test]
    fn an_instance_is_brought_up_step_by_step_from_whatever_is_there() {
        for (done, want) in [
            (None, BringUp::Image),
            (Some(BringUp::Image), BringUp::Disk),
            (Some(BringUp::Disk), BringUp::Network),
            (Some(BringUp::Network), BringUp::Volumes),
            (Some(BringUp::Volumes), BringUp::Define),
            (Some(BringUp::Define), BringUp::Start),
            // Started and off again without having been seen: from the beginning.
            (Some(BringUp::Start), BringUp::Image),
        ] {
            for power in
                [None, Some(Power::Off(Off::Unknown)), Some(Power::Off(Off::Failed)), Some(Power::Off(Off::Guest))]
            {
                let case = case(Running, power).memory(|m| m.done = done);
                assert_eq!(case.next(), Do(Step::BringUp(want)), "{done:?}");
            }
        }
    }

    #[test]
    fn the_table() {
        let off = |why| Some(Power::Off(why));
        let on = || Some(Power::Running);
        let paused = || Some(Power::Paused("I/O error".into()));
        let cases: Vec<(&str, Case, Next)> = vec![
            // Running.
            ("it came up: note it", case(Running, on()), Do(Step::NoteRunning)),
            ("it runs and is to run", case(Running, on()).facts(ran), Rest),
            ("a paused one is left alone", case(Running, paused()).facts(ran), Rest),
            (
                "it is just ending: look soon",
                case(Running, Some(Power::Ending)).facts(ran),
                Wait(Duration::from_millis(200)),
            ),
            ("the guest powered off", case(Running, off(Off::Guest)).facts(ran), Do(Step::NoteGuestOff)),
            (
                "it was asked to power off and is wanted again",
                case(Running, off(Off::Guest)).facts(|f| (f.ran, f.asked_off) = (true, true)),
                Do(Step::NoteLost),
            ),
            ("QEMU died", case(Running, off(Off::Crashed)).facts(ran), Do(Step::NoteLost)),
            (
                "somebody destroyed it behind our back",
                case(Running, off(Off::Destroyed)).facts(ran),
                Do(Step::NoteLost),
            ),
            ("the machine was rebooted", case(Running, off(Off::Unknown)).facts(ran), Do(Step::NoteLost)),
            ("its definition is gone", case(Running, None).facts(ran), Do(Step::NoteLost)),
            (
                "powered off under this wish: its console is kept",
                case(Running, off(Off::Guest)).facts(|f| f.guest_off = Some(generation(5))),
                Do(Step::KeepConsole),
            ),
            (
                "and it stays off",
                case(Running, off(Off::Guest))
                    .facts(|f| (f.guest_off, f.console) = (Some(generation(5)), Some(String::new()))),
                Rest,
            ),
            (
                "a newer wish starts it",
                case(Running, off(Off::Guest)).facts(|f| f.guest_off = Some(generation(4))),
                Do(Step::BringUp(BringUp::Image)),
            ),
            (
                "what failed is not tried again",
                case(Running, None).facts(|f| {
                    f.failed = Some(Failure { generation: generation(5), step: String::new(), reason: String::new() })
                }),
                Rest,
            ),
            (
                "until a newer wish",
                case(Running, None).facts(|f| {
                    f.failed = Some(Failure { generation: generation(4), step: String::new(), reason: String::new() })
                }),
                Do(Step::BringUp(BringUp::Image)),
            ),
            ("one that found no room tries again", case(Running, Some(Power::NoRoom)).facts(ran), Do(Step::TryAgain)),
            (
                "and not without pause",
                case(Running, Some(Power::NoRoom)).facts(ran).memory(|m| m.tried = Some(S(999))),
                Wait(S(2)),
            ),
            // Reboots.
            ("a reboot is asked for", case(Running, on()).facts(ran).wish(|w| w.reboots = 1), Do(Step::Reboot)),
            (
                "the guest has its time",
                case(Running, on())
                    .facts(|f| (f.ran, f.reboot_asked) = (true, 1))
                    .wish(|w| w.reboots = 1)
                    .memory(|m| m.rebooting = Some((S(950), false))),
                Wait(S(10)),
            ),
            (
                "it did not use it",
                case(Running, on())
                    .facts(|f| (f.ran, f.reboot_asked) = (true, 1))
                    .wish(|w| w.reboots = 1)
                    .memory(|m| m.rebooting = Some((S(940), false))),
                Do(Step::Reset),
            ),
            (
                "it came through",
                case(Running, on())
                    .facts(|f| (f.ran, f.reboot_asked) = (true, 1))
                    .wish(|w| w.reboots = 1)
                    .memory(|m| m.rebooting = Some((S(950), true))),
                Do(Step::NoteRebooted),
            ),
            (
                "asked before this process was restarted: not again",
                case(Running, on()).facts(|f| (f.ran, f.reboot_asked) = (true, 1)).wish(|w| w.reboots = 1),
                Do(Step::NoteRebooted),
            ),
            (
                "done",
                case(Running, on())
                    .facts(|f| (f.ran, f.reboot_asked, f.reboots_done) = (true, 1, 1))
                    .wish(|w| w.reboots = 1),
                Rest,
            ),
            // Volumes.
            (
                "a volume comes",
                case(Running, on()).facts(ran).wish(|w| w.volumes = vec![volume("vol-1")]),
                Do(Step::Change(Change::Attach(volume("vol-1")))),
            ),
            (
                "one that failed waits its time",
                case(Running, on())
                    .facts(ran)
                    .wish(|w| w.volumes = vec![volume("vol-1")])
                    .memory(|m| m.device_pauses = vec![("vol1".into(), S(1003))]),
                Wait(S(3)),
            ),
            (
                "and does not hold up the others",
                case(Running, on())
                    .facts(ran)
                    .wish(|w| w.volumes = vec![volume("vol-1"), volume("vol-2")])
                    .memory(|m| m.device_pauses = vec![("vol1".into(), S(1003))]),
                Do(Step::Change(Change::Attach(volume("vol-2")))),
            ),
            // Interfaces.
            (
                "an interface comes",
                case(Running, on()).facts(ran).wish(|w| w.interfaces = vec![wanted(1, 1)]),
                Do(Step::ChangeNic(nic::Change::Attach(wanted(1, 1)))),
            ),
            (
                "one that failed waits, and a volume need not",
                case(Running, on())
                    .facts(ran)
                    .wish(|w| (w.interfaces, w.volumes) = (vec![wanted(1, 1)], vec![volume("vol-1")]))
                    .memory(|m| m.device_pauses = vec![(wanted(1, 1).port.to_string(), S(1003))]),
                Do(Step::Change(Change::Attach(volume("vol-1")))),
            ),
            // Stopping.
            ("the button is pressed", case(Stopped, on()).facts(ran), Do(Step::PressPower)),
            (
                "and it is waited",
                case(Stopped, on()).facts(ran).memory(|m| m.pressed = Some((S(990), S(998)))),
                Wait(S(3)),
            ),
            (
                "and pressed again",
                case(Stopped, on()).facts(ran).memory(|m| m.pressed = Some((S(990), S(995)))),
                Do(Step::PressPower),
            ),
            (
                "and the plug pulled in the end",
                case(Stopped, on()).facts(ran).memory(|m| m.pressed = Some((S(940), S(998)))),
                Do(Step::PullPlug),
            ),
            ("or at once, when forced", case(Stopped, on()).facts(ran).wish(|w| w.force = true), Do(Step::PullPlug)),
            ("its console is kept", case(Stopped, off(Off::Guest)).facts(ran), Do(Step::KeepConsole)),
            (
                "stopped",
                case(Stopped, off(Off::Guest)).facts(|f| (f.started, f.console) = (Some(1), Some(String::new()))),
                Rest,
            ),
            ("one that never ran has no console", case(Stopped, None), Rest),
            // Terminating.
            ("the plug", case(Terminated, on()), Do(Step::PullPlug)),
            ("the console", case(Terminated, off(Off::Destroyed)), Do(Step::KeepConsole)),
            (
                "the definition",
                case(Terminated, off(Off::Destroyed)).facts(|f| f.console = Some(String::new())),
                Do(Step::Undefine),
            ),
            ("the files", case(Terminated, None), Do(Step::Erase)),
            ("gone, and still listed", case(Terminated, None).facts(|f| f.gone = true), Rest),
            ("gone, and heard of", case(Terminated, None).facts(|f| f.gone = true).unlisted(), Do(Step::Forget)),
            ("not listed any more, but not gone: goes on", case(Terminated, on()).unlisted(), Do(Step::PullPlug)),
            // What may not be touched.
            ("an orphan runs on", case(Running, on()).unlisted(), Rest),
            ("an orphan is not started", case(Running, None).unlisted(), Rest),
            ("an orphan is not stopped", case(Stopped, on()).unlisted(), Rest),
            ("a wish of a later release changes nothing", case(Unknown, on()), Rest),
        ];
        for (claim, case, want) in cases {
            assert_eq!(case.next(), want, "{claim}");
        }
        let stranger = Case { wish: None, ..case(Running, on()) };
        assert_eq!(stranger.next(), Rest, "a domain nobody ever asked for is not touched");
    }

    fn hold_of(kind: HoldKind) -> Option<Hold> {
        Some(Hold { id: "h1".into(), kind })
    }
    fn held(f: &mut Facts) {
        f.held = Some("h1".into());
    }

    #[test]
    fn a_guest_is_held_until_it_is_let_go_or_its_hold_lapses() {
        let asked = |kind, power| case(Running, power).wish(|w| w.hold = hold_of(kind));
        let since = |at| move |m: &mut Memory| m.held = Some(S(at));
        let (on, still, off) = (Some(Power::Running), Some(Power::Suspended), Some(Power::Off(Off::Guest)));
        let paused = |power: &Option<Power>| asked(HoldKind::Paused, power.clone()).facts(ran);
        let offs = |power: &Option<Power>| asked(HoldKind::Off, power.clone());
        let lapsed = |f: &mut Facts| f.lapsed = Some("h1".into());
        let later = hold_of(HoldKind::Unknown);
        let cases: Vec<(&str, Case, Next)> = vec![
            ("its processors stop", paused(&on), Do(Step::Hold(hold_of(HoldKind::Paused).unwrap()))),
            ("it stands still for a while", paused(&still).facts(held).memory(since(990)), Wait(S(50))),
            ("not for ever", paused(&still).facts(held).memory(since(940)), Do(Step::LetGo)),
            ("nobody knows since when", paused(&still).facts(held), Do(Step::LetGo)),
            ("somebody let it go on: that instant is lost", paused(&on).facts(held), Do(Step::LetGo)),
            ("what lapsed is not taken up again", paused(&on).facts(lapsed), Rest),
            ("the hold is taken back", case(Running, still.clone()).facts(ran).facts(held), Do(Step::LetGo)),
            ("somebody else suspended it", case(Running, still.clone()).facts(ran), Rest),
            ("it cannot hear the button", case(Stopped, still.clone()).facts(ran).facts(held), Do(Step::LetGo)),
            ("but it can be unplugged", case(Terminated, still.clone()).facts(ran), Do(Step::PullPlug)),
            ("the button is pressed", offs(&on).facts(ran), Do(Step::PressPower)),
            ("it is off: that is written", offs(&off), Do(Step::Hold(hold_of(HoldKind::Off).unwrap()))),
            ("it stays off", offs(&off).facts(held).memory(since(990)), Wait(S(290))),
            ("not for ever", offs(&off).facts(held).memory(since(600)), Do(Step::LetGo)),
            ("then it comes back", offs(&off).facts(lapsed), Do(Step::BringUp(BringUp::Image))),
            ("a hold of a later release", case(Running, on.clone()).facts(ran).wish(|w| w.hold = later), Rest),
        ];
        for (claim, case, want) in cases {
            assert_eq!(case.next(), want, "{claim}");
        }
    }

    #[test]
    fn an_instance_with_its_root_elsewhere_leaves_nothing_where_it_is_stopped() {
        let elsewhere = |power| {
            case(Stopped, power)
                .wish(|w| w.boot.root = Root::Volume { volume: Some("vol-1".into()) })
                .facts(|f| (f.started, f.console) = (Some(1), Some(String::new())))
        };
        let released = |f: &mut Facts| f.released = true;
        assert_eq!(elsewhere(Some(Power::Off(Off::Guest))).next(), Do(Step::Undefine));
        assert_eq!(elsewhere(None).next(), Do(Step::Release));
        assert_eq!(elsewhere(None).facts(released).next(), Rest);
        assert_eq!(elsewhere(None).facts(released).unlisted().next(), Do(Step::Forget));
        assert_eq!(elsewhere(None).unlisted().next(), Rest, "what was not released is an orphan");
        let again = elsewhere(None).facts(released).wish(|w| w.desired = Running);
        assert_eq!(again.next(), Do(Step::BringUp(BringUp::Image)));
        let waits = case(Running, None).wish(|w| w.awaits = Some("vol-1 is being made".into()));
        assert_eq!(waits.next(), Rest, "a volume is missing");
        assert_eq!(case(Running, Some(Power::Running)).facts(ran).wish(|w| w.awaits = Some("x".into())).next(), Rest);
    }

    #[test]
    fn a_volume_that_shall_go_goes() {
        let mut case = case(Running, Some(Power::Running)).facts(ran);
        let disk =
            SeenDisk { serial: "vol9".into(), target: "vdf".into(), alias: "ua-vol9".into(), export: "x".into() };
        case.domain.as_mut().unwrap().disks.push(disk.clone());
        assert_eq!(case.next(), Do(Step::Change(Change::Detach(disk))));
    }

    #[test]
    fn an_interface_that_shall_go_goes_only_while_the_guest_runs() {
        let mut running = case(Running, Some(Power::Running)).facts(ran).wish(|w| w.interfaces = vec![wanted(1, 0)]);
        running.domain.as_mut().unwrap().nics.extend([seen(1), seen(2)]);
        assert_eq!(running.next(), Do(Step::ChangeNic(nic::Change::Detach(seen(2)))));
        let orphan = Case { listed: false, ..running };
        assert_eq!(orphan.next(), Rest);
    }
}
