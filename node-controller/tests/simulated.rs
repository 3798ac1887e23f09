//! A node whose machine is simulated, driven as a cluster-controller drives it: over mutual TLS, by whole lists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::time::{Duration, Instant};

use harness::{NodeProcess, World, Zone};
use mallee_node_controller::hypervisor::{Hypervisor, Simulated, SimulatedConfig};
use mallee_tiers::{
    ConsoleAsked, Desired, Export, ExportAddress, Observe, Observed, StatusAsked, TierErrorKind, VolumeAttachment,
    WhyAsked,
};

const CONFIG: &str = "hypervisor = 'simulated'\npatience_s = 1\n[simulated]\npower_off_ms = 5\n";

struct Stage {
    world: World,
    zone: Zone,
    machine: Simulated,
    _dir: tempfile::TempDir,
}

fn stage(config: SimulatedConfig) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path());
    let zone = world.zone();
    Stage { world, zone, machine: Simulated::new(config), _dir: dir }
}

impl Stage {
    fn node(&self) -> NodeProcess {
        self.world.node(CONFIG, Some(self.machine.clone()))
    }
    fn ready() -> (Self, NodeProcess) {
        let stage = stage(SimulatedConfig::default());
        let node = stage.node();
        (stage, node)
    }
    fn on<T>(&self, future: impl Future<Output = T>) -> T {
        self.world.runtime.block_on(future)
    }
    fn want(&mut self, node: &NodeProcess, id: &str, change: impl FnOnce(&mut mallee_tiers::Instance)) {
        self.zone.want(id, change);
        self.send(node);
    }
    fn send(&mut self, node: &NodeProcess) {
        self.world.runtime.block_on(self.zone.send(node));
    }
    fn see(&self, node: &NodeProcess, id: &str, observed: Observed) -> mallee_tiers::InstanceReport {
        self.on(self.zone.until_observed(node, id, observed))
    }
}

fn volume(id: &str, export: &str) -> VolumeAttachment {
    let export = Export {
        attachment: "a".into(),
        name: export.into(),
        address: ExportAddress::Unix("/nowhere".into()),
        server: None,
    };
    VolumeAttachment {
        volume: id.into(),
        device: "/dev/sdf".into(),
        export,
        size_gib: 1,
        limits: mallee_tiers::DiskLimits::default(),
    }
}

#[test]
fn an_instance_lives_its_life() {
    let (mut s, node) = Stage::ready();
    s.want(&node, "i-a", |_| {});
    let up = s.see(&node, "i-a", Observed::Running);
    assert!(up.started.is_some() && up.took_ms.contains_key("start"), "{up:?}");

    s.want(&node, "i-a", |w| w.reboots = 1);
    s.on(s.zone.until(&node, "i-a", "rebooted", |r| r.reboots_done == 1));
    assert_eq!(s.machine.boots("i-a"), 2);

    s.want(&node, "i-a", |w| w.volumes = vec![volume("vol-1", "x1")]);
    s.on(s.zone.until(&node, "i-a", "attached", |r| r.attachments.iter().any(|a| a.volume == "vol-1" && a.attached)));
    s.want(&node, "i-a", |w| w.volumes = vec![]);
    s.on(s.zone.until(&node, "i-a", "detached", |r| r.attachments.is_empty()));

    s.want(&node, "i-a", |w| w.desired = Desired::Stopped);
    let off = s.see(&node, "i-a", Observed::Stopped);
    assert!(!off.guest_off && off.last_console.is_some());
    s.want(&node, "i-a", |w| w.desired = Desired::Running);
    s.see(&node, "i-a", Observed::Running);

    s.want(&node, "i-a", |w| w.desired = Desired::Terminated);
    let gone = s.see(&node, "i-a", Observed::Gone);
    assert!(gone.last_console.is_some());
    assert_eq!(s.on(s.machine.list()).unwrap(), []);
    s.zone.rows.clear();
    s.send(&node);
    s.on(s.zone.until_forgotten(&node, "i-a"));
    node.end();
}

#[test]
fn a_restarted_node_touches_none_of_its_guests() {
    let (mut s, node) = Stage::ready();
    s.want(&node, "i-a", |_| {});
    s.see(&node, "i-a", Observed::Running);
    node.end();
    let node = s.node();
    let seen = s.see(&node, "i-a", Observed::Running);
    assert!(seen.started.is_some(), "when it was started is remembered");
    s.machine.guest_powers_off("i-a");
    s.on(s.zone.until(&node, "i-a", "off", |r| r.guest_off && r.observed == Observed::Stopped));
    node.end();
    let node = s.node();
    s.on(s.zone.until(&node, "i-a", "off", |r| r.guest_off));
    assert_eq!(s.machine.boots("i-a"), 1);
    s.want(&node, "i-a", |_| {});
    s.see(&node, "i-a", Observed::Running);
    assert_eq!(s.machine.boots("i-a"), 2, "a newer wish starts it");
    node.end();
}

#[test]
fn a_node_that_cannot_see_does_not_say_that_nothing_is_there() {
    let (mut s, node) = Stage::ready();
    s.want(&node, "i-a", |_| {});
    s.see(&node, "i-a", Observed::Running);
    s.machine.fall_silent();
    let faults = || node.running().faults.all();
    s.want(&node, "i-b", |_| {});
    let begun = Instant::now();
    while faults().iter().all(|f| !f.what.contains("silent")) {
        assert!(begun.elapsed() < harness::PATIENCE);
    }
    let seen = s.on(s.zone.client(&node).observe(&Observe::default())).unwrap();
    assert_eq!(seen.present, ["i-a"], "what was seen last stands");
    node.end();
    let node = s.node();
    let refused = s.on(s.zone.client(&node).observe(&Observe { since: None, wait_ms: 10 })).unwrap_err();
    assert_eq!(refused.kind, TierErrorKind::Unreachable);
    s.machine.speak();
    s.see(&node, "i-b", Observed::Running);
    s.see(&node, "i-a", Observed::Running);
    assert_eq!(s.machine.boots("i-a"), 1);
    node.end();
}

#[test]
fn what_ended_without_its_guests_doing_comes_back() {
    let (mut s, node) = Stage::ready();
    for id in ["i-a", "i-b"] {
        s.want(&node, id, |_| {});
        s.see(&node, id, Observed::Running);
    }
    s.machine.crash("i-a");
    s.on(s.zone.until(&node, "i-a", "up again", |r| r.observed == Observed::Running && s.machine.boots("i-a") == 2));
    node.end();
    s.machine.lose_power();
    let node = s.node();
    s.see(&node, "i-a", Observed::Running);
    s.see(&node, "i-b", Observed::Running);
    assert_eq!((s.machine.boots("i-a"), s.machine.boots("i-b")), (3, 2));
    node.end();
}

#[test]
fn a_guest_that_does_not_listen_is_made_to() {
    let mut s = stage(SimulatedConfig { power_off_ms: None, ..SimulatedConfig::default() });
    let node = s.node();
    s.want(&node, "i-a", |_| {});
    s.see(&node, "i-a", Observed::Running);
    s.want(&node, "i-a", |w| w.reboots = 1);
    s.on(s.zone.until(&node, "i-a", "reset", |r| r.reboots_done == 1));
    assert_eq!(s.machine.boots("i-a"), 2);
    s.want(&node, "i-a", |w| w.desired = Desired::Stopped);
    s.see(&node, "i-a", Observed::Stopping);
    s.see(&node, "i-a", Observed::Stopped);
    node.end();
}

#[test]
fn orphans_are_shown_and_never_touched() {
    let (mut s, node) = Stage::ready();
    for id in ["i-a", "i-b"] {
        s.want(&node, id, |_| {});
        s.see(&node, id, Observed::Running);
    }
    s.zone.rows.remove("i-a");
    s.send(&node);
    let orphan = s.on(s.zone.until(&node, "i-a", "an orphan", |r| r.reason.contains("orphan")));
    assert_eq!(orphan.observed, Observed::Running);
    // The node's own store is lost as well: the domains are still there, and nobody knows them.
    node.end();
    std::fs::remove_file(s.world.dir.join("node/store.db")).unwrap();
    let node = s.node();
    s.on(s.zone.until(&node, "i-b", "an orphan", |r| r.reason.contains("orphan") && r.observed == Observed::Running));
    // And a list that names one takes it over without a restart of the guest.
    s.send(&node);
    s.on(s.zone.until(&node, "i-b", "taken over", |r| r.reason.is_empty() && r.observed == Observed::Running));
    assert_eq!((s.machine.boots("i-a"), s.machine.boots("i-b")), (1, 1));
    node.end();
}

#[test]
fn a_refused_start_is_tried_again_and_says_why() {
    let (mut s, node) = Stage::ready();
    s.machine.refuse_next_start("no memory for it");
    s.machine.refuse_next_start("no memory for it");
    s.want(&node, "i-a", |_| {});
    s.see(&node, "i-a", Observed::Running);
    for _ in 0..20 {
        s.machine.refuse_next_start("never");
    }
    s.want(&node, "i-b", |_| {});
    let failed = s.see(&node, "i-b", Observed::Failed);
    assert_eq!((failed.step.as_str(), failed.reason.as_str()), ("start", "never"));
    s.want(&node, "i-b", |w| w.desired = Desired::Terminated);
    s.see(&node, "i-b", Observed::Gone);
    node.end();
}

#[test]
fn it_says_everywhere_that_it_is_simulated() {
    let (mut s, node) = Stage::ready();
    s.want(&node, "i-a", |_| {});
    s.see(&node, "i-a", Observed::Running);
    let client = s.zone.client(&node);
    let status = s.on(client.status(&StatusAsked {})).unwrap();
    assert_eq!(status.hypervisor, "simulated");
    let console = s.on(client.console(&ConsoleAsked { instance: "i-a".into(), bytes: 1000 })).unwrap();
    let text = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, console.data).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("simulated"));
    let why = s.on(client.why(&WhyAsked { id: "i-a".into() })).unwrap();
    assert!(why.lines.iter().any(|l| l.kind == "happened" && l.text.contains("started")), "{why:?}");
    assert!(s.on(client.console(&ConsoleAsked { instance: "i-zz".into(), bytes: 9 })).is_err());
    node.end();
}

#[test]
fn a_thousand_instances_are_brought_up_by_one_list() {
    let (mut s, node) = Stage::ready();
    for n in 0..1000 {
        s.zone.want(&format!("i-{n:04}"), |_| {});
    }
    let begun = Instant::now();
    s.send(&node);
    while s.machine.running() < 1000 {
        assert!(begun.elapsed() < harness::PATIENCE, "{} run", s.machine.running());
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("1000 simulated instances run after {:?}", begun.elapsed());
    s.on(s.zone.until(&node, "i-0999", "up", |r| r.observed == Observed::Running));
    node.end();
}
