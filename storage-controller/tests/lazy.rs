//! Volumes of snapshots: usable at once, fetched when they are used, whatever is away or killed meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod zone;

use std::{
    fs::File,
    os::unix::fs::FileExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mallee_tiers::*;
use zone::{Zone, io, io_when_it_can, url};

const BLOCK: u64 = SNAPSHOT_BLOCK;

/// A snapshot of a volume of `size_gib` in which block n (of the first `count`) holds bytes of n + 1; its manifest.
async fn snapshot_of(zone: &Zone, count: u64, size_gib: u64, key: Option<&str>) -> String {
    let key = key.map(str::to_owned);
    zone.want_volume("vol-0", size_gib, Some("vattach-0"), |v| v.encrypted = key).await;
    let export = zone.until_served("vol-0", "vattach-0").await;
    let mut commands = Vec::new();
    for n in 0..count {
        commands.extend(["-c".to_owned(), format!("write -q -P {} {}k 512k", n % 255 + 1, n * 512)]);
    }
    let out = Command::new("qemu-io").args(["-f", "raw"]).args(commands).arg(url(&export)).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    zone.want_snapshot("snap-0", "vol-0", |_| {}).await;
    let manifest = zone.uploaded("snap-0").await.manifest.unwrap();
    zone.accept("snap-0", "vol-0").await;
    manifest
}

fn begins_with(manifest: &str) -> Option<VolumeSource> {
    Some(VolumeSource { snapshot: "snap-0".into(), manifest: manifest.into() })
}

#[tokio::test]
async fn a_volume_of_a_snapshot_copies_nothing_before_it_is_used_and_is_whole_afterwards() {
    let zone = Zone::new();
    let manifest = snapshot_of(&zone, 200, 10, None).await;
    let source = begins_with(&manifest);
    let begun = Instant::now();
    zone.want_volume("vol-1", 10, None, |v| v.source = source).await;
    let made = zone.until("vol-1", "ready", |r| r.observed == VolumeObserved::Ready).await;
    println!("create from a snapshot of 100 MiB: {:?}", begun.elapsed());
    assert!(made.needs_source);
    // Its files: headers, empty tables and nothing else.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let idle = zone.until("vol-1", "reported", |_| true).await;
    assert!(idle.allocated < 2 << 20, "{} bytes before it was ever attached", idle.allocated);
    assert!(idle.needs_source);

    zone.want_volume("vol-1", 10, Some("vattach-a"), |_| {}).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    let begun = Instant::now();
    io(&export, "read -P 200 101888k 512k").unwrap();
    println!("first read: {:?}", begun.elapsed());
    io(&export, "write -P 77 512k 4k").unwrap();
    let whole = zone.until("vol-1", "fetched whole", |r| !r.needs_source).await;
    println!("100 MiB were there after {:?}", begun.elapsed());
    let data = 200 * BLOCK;
    assert!((data..data + (8 << 20)).contains(&whole.allocated), "{} bytes for {data}", whole.allocated);
    let mut zone = zone;
    zone.kill_walrus();
    io(&export, "read -P 1 0 512k").unwrap();
    io(&export, "read -P 77 512k 4k").unwrap();
    io(&export, "read -P 2 516k 508k").unwrap();
    io(&export, "read -P 0 5G 10M").unwrap();
    // It needs neither walrus nor its source when it is opened again.
    zone.want_volume("vol-1", 10, Some("vattach-b"), |_| {}).await;
    let export = zone.until_served("vol-1", "vattach-b").await;
    io(&export, "read -P 200 101888k 512k").unwrap();
}

#[tokio::test]
async fn while_walrus_is_away_reads_wait_and_are_right_when_it_is_back() {
    let mut zone = Zone::new();
    let manifest = snapshot_of(&zone, 100, 1, None).await;
    let source = begins_with(&manifest);
    zone.want_volume("vol-1", 1, None, |v| v.source = source).await;
    zone.until("vol-1", "ready", |r| r.observed == VolumeObserved::Ready).await;
    zone.kill_walrus();
    zone.want_volume("vol-1", 1, Some("vattach-a"), |_| {}).await;
    let export = zone.until("vol-1", "served", |r| r.export.is_some()).await.export.unwrap();
    // What is written needs nobody, and neither does what was written.
    io(&export, "write -P 77 1M 64k").unwrap();
    io(&export, "read -P 77 1M 64k").unwrap();
    let mut reader = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "read -P 100 50688k 512k", &url(&export)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let waiting = zone.until("vol-1", "said to wait", |r| r.reason.contains("cannot be had now")).await;
    println!("{}", waiting.reason);
    assert_eq!(reader.try_wait().unwrap(), None, "it waits");
    io(&export, "write -P 78 2M 64k").unwrap();
    // Who serves the source dies meanwhile.
    zone.kill();
    zone.start();
    assert_eq!(reader.try_wait().unwrap(), None, "it still waits");
    zone.start_walrus();
    let out = reader.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(text.contains("read 524288/524288") && !text.contains("failed"), "{text}");
    zone.until("vol-1", "fetched whole", |r| !r.needs_source && r.reason.is_empty()).await;
    for (at, byte) in [("0", 1), ("1M", 77), ("2M", 78), ("3M", 7)] {
        io(&export, &format!("read -P {byte} {at} 64k")).unwrap();
    }
}

/// Everything that takes part dies, at a moment that moves through serving, reading and fetching.
#[tokio::test]
async fn whatever_is_killed_while_it_is_fetched_no_byte_is_wrong() {
    let mut zone = Zone::new();
    let manifest = snapshot_of(&zone, 400, 1, None).await;
    zone.become_a_process();
    zone.send_until_taken().await;
    for round in 0..8u64 {
        let (id, source) = (format!("vol-{}", round + 1), begins_with(&manifest));
        zone.wish(&id, 1, Some("vattach-a"), |v| v.source = source);
        zone.send_until_taken().await;
        tokio::time::sleep(Duration::from_millis(round * 40)).await;
        match round % 4 {
            0 => zone.kill(),
            1 => zone.kill_daemons(&id),
            2 => {
                zone.kill();
                zone.kill_daemons(&id);
            }
            _ => {
                zone.kill_walrus();
                zone.kill();
                zone.kill_daemons(&id);
                zone.start_walrus();
            }
        }
        if round % 4 != 1 {
            zone.start();
        }
        zone.send_until_taken().await;
        let export = zone.until_served(&id, "vattach-a").await;
        io_when_it_can(&export, "write -P 5 100k 64k").await;
        if round % 2 == 0 {
            zone.kill_daemons(&id);
        }
        let path = zone.copied_when_it_can(&export).await;
        let file = File::open(&path).unwrap();
        let mut block = vec![0; BLOCK as usize];
        for n in 0..2048u64 {
            file.read_exact_at(&mut block, n * BLOCK).unwrap();
            let mut expected = vec![if n < 400 { (n % 255 + 1) as u8 } else { 0 }; BLOCK as usize];
            if n == 0 {
                expected[100 << 10..164 << 10].fill(5);
            }
            assert!(block == expected, "round {round}, block {n}");
        }
        zone.until(&id, "fetched whole", |r| !r.needs_source).await;
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_of_what_is_not_fetched_yet_is_whole_and_sends_only_what_changed() {
    let zone = Zone::new();
    let manifest = snapshot_of(&zone, 200, 1, None).await;
    let source = begins_with(&manifest);
    zone.want_volume("vol-1", 1, None, |v| v.source = source).await;
    zone.until("vol-1", "ready", |r| r.observed == VolumeObserved::Ready).await;
    // At rest, never attached: it is the snapshot it began with.
    zone.want_snapshot("snap-1", "vol-1", |_| {}).await;
    let first = zone.uploaded("snap-1").await;
    assert_eq!((first.sent, first.manifest.as_deref()), (0, Some(manifest.as_str())));
    zone.accept("snap-1", "vol-1").await;
    zone.want_volume("vol-1", 1, Some("vattach-a"), |_| {}).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    io(&export, "write -P 201 10M 4k").unwrap();
    zone.want_snapshot("snap-2", "vol-1", |_| {}).await;
    let second = zone.uploaded("snap-2").await;
    assert_eq!(second.sent, BLOCK);
    zone.accept("snap-2", "vol-1").await;
    let path = zone.restored("vol-2", 1, second.manifest.as_deref().unwrap()).await;
    let bytes = std::fs::read(path).unwrap();
    let at = 10 << 20;
    assert_eq!((bytes[0], bytes[at], bytes[at + 4096], bytes[(100 << 20) - 1]), (1, 201, 21, 200));
    // When all is fetched, its layers come together as those of any volume.
    zone.until("vol-1", "fetched whole", |r| !r.needs_source).await;
    zone.until_layers("vol-1", &["3.qcow2", "volume.qcow2"]).await;
    io(&export, "read -P 201 10M 4k").unwrap();
    io(&export, "read -P 200 101888k 512k").unwrap();
    zone.want_volume("vol-1", 2, Some("vattach-a"), |_| {}).await;
    zone.until("vol-1", "grown", |r| r.size_gib == 2).await;
    zone.want_volume("vol-1", 2, None, |_| {}).await;
    zone.until("vol-1", "served to nobody", |r| r.export.is_none()).await;
    // At rest as well.
    zone.want_snapshot("snap-3", "vol-1", |_| {}).await;
    assert_eq!(zone.uploaded("snap-3").await.sent, 0);
    zone.accept("snap-3", "vol-1").await;
    zone.until_layers("vol-1", &["4.qcow2", "volume.qcow2"]).await;
    zone.want_volume("vol-1", 2, Some("vattach-b"), |_| {}).await;
    let export = zone.until_served("vol-1", "vattach-b").await;
    io(&export, "read -P 201 10M 4k").unwrap();
}

#[tokio::test]
async fn what_a_volume_is_too_small_for_fails_with_the_reason() {
    let zone = Zone::new();
    let manifest = snapshot_of(&zone, 1, 2, None).await;
    let source = begins_with(&manifest);
    zone.want_volume("vol-1", 1, None, |v| v.source = source).await;
    let failed = zone.until("vol-1", "failed", |r| r.observed == VolumeObserved::Failed).await;
    assert!(failed.reason.contains("has 2 GiB, the volume only 1"), "{}", failed.reason);
}
