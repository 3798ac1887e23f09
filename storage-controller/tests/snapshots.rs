//! Snapshots of volumes that are written to, tried with the real `qemu-storage-daemon` and the real walrus.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod zone;

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mallee_tiers::*;
use zone::{Zone, io, url};

const SLOT: u64 = 64 << 10;
const BLOCK: u64 = SNAPSHOT_BLOCK;

/// A guest that writes its slots one after the other and counts those that were acknowledged: slot n holds bytes of
/// n % 251 + 1. It waits for a disk that went away, as a guest does.
struct Writer {
    acknowledged: Arc<AtomicU64>,
    child: Child,
}

impl Writer {
    fn on(export: &Export) -> Self {
        let at = url(export);
        let image = format!(
            "driver=nbd,server.type=unix,server.path={},export={},reconnect-delay=60",
            at.split_once("socket=").unwrap().1,
            export.name
        );
        let mut child = Command::new("qemu-io")
            .args(["--image-opts", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let acknowledged = Arc::new(AtomicU64::new(0));
        let counter = acknowledged.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(from).lines();
            for slot in 0..4000 {
                let command = format!("write -f -P {} {} {SLOT}\n", slot % 251 + 1, slot * SLOT);
                if to.write_all(command.as_bytes()).is_err() {
                    return;
                }
                loop {
                    match lines.next() {
                        Some(Ok(line)) if line.contains("wrote") => break,
                        Some(Ok(line)) if line.contains("failed") => return,
                        Some(Ok(_)) => {}
                        _ => return,
                    }
                }
                counter.store(slot + 1, Ordering::SeqCst);
                // On a quick machine it must not have filled all its slots before the last test of it is over.
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { acknowledged, child }
    }

    fn count(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    async fn until(&self, count: u64) {
        let begun = Instant::now();
        while self.count() < count {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} of {count} writes were acknowledged", self.count());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many slots hold what was written, from the first; what comes after must be zero.
fn whole_slots(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let mut slot = vec![0u8; SLOT as usize];
    let (mut count, mut ended) = (0, false);
    for n in 0..4000u64 {
        file.read_exact_at(&mut slot, n * SLOT).unwrap();
        let expected = (n % 251 + 1) as u8;
        if slot.iter().all(|b| *b == expected) {
            assert!(!ended, "slot {n} is written, one before it is not");
            count += 1;
        } else {
            assert!(
                ended || slot.iter().all(|b| *b == 0) || !slot.iter().any(|b| *b != 0 && *b != expected),
                "slot {n} holds something else"
            );
            ended = true;
        }
    }
    count
}

fn kill_nine(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_snapshot_taken_while_a_guest_writes_holds_exactly_what_was_acknowledged_before_it() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    let writer = Writer::on(&export);
    let mut taken = Vec::new();
    for n in 0..3 {
        writer.until(writer.count() + 40).await;
        let before = writer.count();
        let id = format!("snap-{n}");
        zone.want_snapshot(&id, "vol-1", |_| {}).await;
        zone.until_snapshot(&id, "frozen", |r| r.observed != SnapshotObserved::Freezing).await;
        let after = writer.count();
        let report = zone.uploaded(&id).await;
        taken.push((before, after, report.manifest.unwrap()));
        zone.accept(&id, "vol-1").await;
    }
    writer.until(writer.count() + 40).await;
    for (n, (before, after, manifest)) in taken.iter().enumerate() {
        let path = zone.restored(&format!("vol-r{n}"), 1, manifest).await;
        let slots = whole_slots(&path);
        println!("snapshot {n}: acknowledged {before} before, {after} after; it holds {slots}");
        assert!((*before..=*after + 1).contains(&slots), "{before} ≤ {slots} ≤ {after} + 1");
    }
    // The chain is short again, and what goes on being written is all there.
    zone.until_layers("vol-1", &["3.qcow2", "volume.raw"]).await;
    let slots = writer.count();
    drop(writer);
    io(&export, &format!("read -P {} {} {SLOT}", (slots - 1) % 251 + 1, (slots - 1) * SLOT)).unwrap();
    io(&export, &format!("read -P 1 0 {SLOT}")).unwrap();
}

#[tokio::test]
async fn the_second_snapshot_moves_what_changed_and_no_more() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 10, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    for n in 0..64 {
        io(&export, &format!("write -P {} {}M 1M", n + 1, n * 100)).unwrap();
    }
    zone.want_snapshot("snap-1", "vol-1", |_| {}).await;
    let first = zone.uploaded("snap-1").await;
    assert_eq!(first.sent, 64 * BLOCK, "the two blocks of each MiB are equal, and a block is sent once");
    zone.accept("snap-1", "vol-1").await;
    // One byte of one block, a block that is written as it was, and one that becomes zero.
    io(&export, "write -P 200 100M 4k").unwrap();
    io(&export, "write -P 3 200M 512k").unwrap();
    io(&export, "write -z 300M 1M").unwrap();
    zone.want_snapshot("snap-2", "vol-1", |_| {}).await;
    let second = zone.uploaded("snap-2").await;
    assert_eq!(second.sent, BLOCK, "of 10 GiB one block changed to something new");
    zone.accept("snap-2", "vol-1").await;
    zone.until_layers("vol-1", &["2.qcow2", "volume.raw"]).await;
    zone.want_snapshot("snap-3", "vol-1", |_| {}).await;
    let third = zone.uploaded("snap-3").await;
    assert_eq!((third.sent, &third.manifest), (0, &second.manifest), "nothing changed: it is the same snapshot");
    zone.accept("snap-3", "vol-1").await;

    let path = zone.restored("vol-2", 11, second.manifest.as_deref().unwrap()).await;
    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 11 << 30);
    let byte = |at: u64| {
        let mut byte = [0u8];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    };
    let m = 1 << 20;
    assert_eq!(
        [byte(0), byte(100 * m), byte(100 * m + 4096), byte(200 * m), byte(300 * m), byte(6300 * m)],
        [1, 200, 2, 3, 0, 64]
    );
    let old = zone.restored("vol-3", 10, first.manifest.as_deref().unwrap()).await;
    let mut bytes = [0u8];
    File::open(old).unwrap().read_exact_at(&mut bytes, 300 * m).unwrap();
    assert_eq!(bytes, [4]);

    // The newest is deleted: the next counts from nothing, looks at everything, and still sends nothing twice.
    zone.want_snapshot("snap-3", "vol-1", |s| s.desired = SnapshotDesired::Deleted).await;
    zone.until_snapshot("snap-3", "gone", |r| r.observed == SnapshotObserved::Gone).await;
    zone.want_snapshot("snap-4", "vol-1", |_| {}).await;
    assert_eq!(zone.uploaded("snap-4").await.sent, 0);
}

#[tokio::test]
async fn of_ten_gib_with_a_hundred_mib_changed_a_hundred_mib_are_sent() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 10, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    // No two blocks are equal, so none is spared because another was sent.
    let write = |from: u64, count: u64| {
        let mut commands = Vec::new();
        for n in from..from + count {
            let at = n * 12_345 % 20_480 * BLOCK;
            for (half, byte) in [(0, n % 255 + 1), (BLOCK / 2, n / 255 + 1)] {
                commands.extend(["-c".to_owned(), format!("write -q -P {byte} {} {}", at + half, BLOCK / 2)]);
            }
        }
        let out = Command::new("qemu-io").args(["-f", "raw"]).args(commands).arg(url(&export)).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    write(0, 100);
    zone.want_snapshot("snap-1", "vol-1", |_| {}).await;
    assert_eq!(zone.uploaded("snap-1").await.sent, 100 * BLOCK);
    zone.accept("snap-1", "vol-1").await;
    write(100, 200);
    zone.want_snapshot("snap-2", "vol-1", |_| {}).await;
    assert_eq!(zone.uploaded("snap-2").await.sent, 100 << 20);
}

#[tokio::test]
async fn a_volume_that_is_attached_to_nothing_is_snapshotted_and_merged_too() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    io(&export, "write -P 7 0 1M").unwrap();
    zone.want("vol-1", VolumeDesired::Present, 1, None).await;
    zone.until("vol-1", "served to nobody", |r| r.export.is_none()).await;
    for n in 1..=2 {
        let id = format!("snap-{n}");
        zone.want_snapshot(&id, "vol-1", |_| {}).await;
        zone.uploaded(&id).await;
        zone.accept(&id, "vol-1").await;
    }
    zone.until_layers("vol-1", &["2.qcow2", "volume.raw"]).await;
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-b")).await;
    let export = zone.until_served("vol-1", "vattach-b").await;
    io(&export, "read -P 7 0 1M").unwrap();
    // A snapshot of a volume that is deleted at once is whole all the same.
    io(&export, "write -P 8 1M 1M").unwrap();
    zone.want_snapshot("snap-3", "vol-1", |_| {}).await;
    zone.until_snapshot("snap-3", "frozen", |r| r.observed != SnapshotObserved::Freezing).await;
    zone.want("vol-1", VolumeDesired::Deleted, 1, None).await;
    let report = zone.uploaded("snap-3").await;
    zone.accept("snap-3", "vol-1").await;
    zone.until("vol-1", "gone", |r| r.observed == VolumeObserved::Gone).await;
    let path = zone.restored("vol-2", 1, report.manifest.as_deref().unwrap()).await;
    let mut byte = [0u8];
    File::open(path).unwrap().read_exact_at(&mut byte, 1 << 20).unwrap();
    assert_eq!(byte, [8]);
    zone.want_snapshot("snap-4", "vol-1", |_| {}).await;
    let failed = zone.until_snapshot("snap-4", "failed", |r| r.observed == SnapshotObserved::Failed).await;
    assert!(failed.reason.contains("gone"), "{}", failed.reason);
}

/// Everything dies at a moment that moves through freezing, uploading, accepting and merging.
#[tokio::test]
async fn whatever_is_killed_at_whatever_step_the_snapshot_is_one_instant_and_the_volume_loses_nothing() {
    let mut zone = Zone::new();
    zone.become_a_process();
    zone.send_until_taken().await;
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    let writer = Writer::on(&export);
    writer.until(100).await;
    let mut manifests = Vec::new();
    for n in 0..12u64 {
        let id = format!("snap-{n:02}");
        writer.until(writer.count() + 10).await;
        let before = writer.count();
        zone.want_snapshot(&id, "vol-1", |_| {}).await;
        tokio::time::sleep(Duration::from_millis(n * 12)).await;
        match n % 3 {
            0 => {
                zone.kill();
                zone.start();
                zone.send_until_taken().await;
            }
            1 => zone.daemons().into_iter().for_each(kill_nine),
            _ => {
                zone.kill();
                zone.daemons().into_iter().for_each(kill_nine);
                zone.kill_walrus();
                zone.start_walrus();
                zone.start();
                zone.send_until_taken().await;
            }
        }
        zone.send_snapshots().await.unwrap();
        let report = zone.uploaded(&id).await;
        manifests.push((before, writer.count(), report.manifest.unwrap()));
        zone.accept(&id, "vol-1").await;
        // The merge is cut off too.
        tokio::time::sleep(Duration::from_millis(n * 5)).await;
        if n % 2 == 0 {
            zone.kill();
            zone.daemons().into_iter().for_each(kill_nine);
            zone.start();
            zone.send_until_taken().await;
            zone.send_snapshots().await.unwrap();
        }
        assert_eq!(zone.until_served("vol-1", "vattach-a").await, export);
    }
    writer.until(writer.count() + 10).await;
    zone.until_layers("vol-1", &["12.qcow2", "volume.raw"]).await;
    let slots = writer.count();
    drop(writer);
    for slot in [0, slots / 2, slots - 1] {
        io(&export, &format!("read -P {} {} {SLOT}", slot % 251 + 1, slot * SLOT)).unwrap();
    }
    assert_eq!(zone.daemons().len(), 1);
    for (n, (before, after, manifest)) in manifests.iter().enumerate() {
        let path = zone.restored(&format!("vol-r{n}"), 1, manifest).await;
        let slots = whole_slots(&path);
        assert!((*before..=*after + 1).contains(&slots), "snapshot {n}: {before} ≤ {slots} ≤ {after} + 1");
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn a_restore_that_is_cut_off_begins_again_and_is_ready_only_when_it_is_whole() {
    let mut zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    for n in 0..100u64 {
        io(&export, &format!("write -P {} {}k 512k", n + 1, n * 512)).unwrap();
    }
    zone.want_snapshot("snap-1", "vol-1", |_| {}).await;
    let manifest = zone.uploaded("snap-1").await.manifest.unwrap();
    let source = Some(VolumeSource { snapshot: "snap-1".into(), manifest });
    zone.wish("vol-2", 1, Some("vattach-b"), |v| v.source = source);
    for n in 0..4u64 {
        zone.send().await.unwrap();
        tokio::time::sleep(Duration::from_millis(n * 8)).await;
        zone.kill();
        zone.start();
    }
    zone.send().await.unwrap();
    let restored = zone.until_served("vol-2", "vattach-b").await;
    for n in [0u64, 50, 99] {
        io(&restored, &format!("read -P {} {}k 512k", n + 1, n * 512)).unwrap();
    }
    zone.until("vol-2", "fetched whole", |r| !r.needs_source).await;
    assert_eq!(zone.layers("vol-2"), ["1.qcow2", "volume.qcow2"]);
}

#[tokio::test]
async fn a_volume_grows_while_it_is_served_and_its_bytes_stay() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    let writer = Writer::on(&export);
    writer.until(50).await;
    zone.want("vol-1", VolumeDesired::Present, 2, Some("vattach-a")).await;
    let grown = zone.until("vol-1", "grown", |r| r.size_gib == 2 && r.export.is_some()).await;
    assert_eq!(grown.export.as_ref(), Some(&export), "it is served under the same name");
    writer.until(writer.count() + 50).await;
    io(&export, "write -P 9 1536M 1M").unwrap();
    zone.want_snapshot("snap-1", "vol-1", |_| {}).await;
    let report = zone.uploaded("snap-1").await;
    assert_eq!(report.size_gib, 2);
    zone.accept("snap-1", "vol-1").await;
    zone.want("vol-1", VolumeDesired::Present, 3, Some("vattach-a")).await;
    zone.until("vol-1", "grown again, with a layer", |r| r.size_gib == 3).await;
    io(&export, "write -P 9 2560M 1M").unwrap();
    drop(writer);
    zone.want("vol-1", VolumeDesired::Present, 3, None).await;
    zone.until("vol-1", "served to nobody", |r| r.export.is_none()).await;
    zone.want("vol-1", VolumeDesired::Present, 4, None).await;
    zone.until("vol-1", "grown at rest", |r| r.size_gib == 4).await;
}

/// Nobody is left who could tell a daemon that is not there.
#[tokio::test]
async fn a_volume_grows_although_its_daemon_and_the_controller_died_when_it_was_asked_for() {
    let mut zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    io(&export, "write -P 7 0 64k").unwrap();
    zone.kill();
    zone.daemons().into_iter().for_each(kill_nine);
    zone.wish("vol-1", 2, Some("vattach-a"), |_| {});
    zone.start();
    zone.send().await.unwrap();
    let grown = zone.until("vol-1", "grown", |r| r.size_gib == 2 && r.export.is_some()).await;
    assert_eq!(grown.export.as_ref(), Some(&export));
    zone::io_when_it_can(&export, "write -P 8 1900M 64k").await;
    io(&export, "read -P 7 0 64k").unwrap();
}
