//! What a storage-controller promises, tried over mutual TLS and with the real `qemu-storage-daemon`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod zone;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mallee_tiers::*;
use zone::{Zone, client, io, url};

#[tokio::test]
async fn a_volume_is_made_served_written_and_leaves_nothing_when_it_is_deleted() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, None).await;
    let made = zone.until("vol-1", "ready", |r| r.observed == VolumeObserved::Ready).await;
    assert_eq!((made.export, made.allocated), (None, 0));
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    let info = Command::new("qemu-img").args(["info", &url(&export)]).output().unwrap();
    assert!(String::from_utf8_lossy(&info.stdout).contains("(1073741824 bytes)"));
    io(&export, "write -P 0x5a 1M 2M").unwrap();
    io(&export, "read -P 0x5a 1M 2M").unwrap();
    let why = zone.client.why(&WhyAsked { id: "vol-1".into() }).await.unwrap();
    assert!(why.lines.iter().any(|l| l.text == "exported to vattach-a"), "{why:?}");

    zone.want("vol-1", VolumeDesired::Deleted, 1, None).await;
    zone.until("vol-1", "gone", |r| r.observed == VolumeObserved::Gone).await;
    assert!(!zone.folder("vol-1").exists() && zone.daemons().is_empty());
    zone.rows.lock().unwrap().clear();
    zone.send().await.unwrap();
    for _ in 0..1000 {
        if zone.client.observe(&Observe::default()).await.unwrap().present.is_empty() {
            let left =
                |folder| std::fs::read_dir(zone.config.daemon.state.join(folder)).unwrap().map(|e| e.unwrap().path());
            assert_eq!(left("exports").chain(left("log")).count(), 0);
            // The one at which the controller itself serves what volumes begin with.
            let sockets: Vec<_> = left("sockets").filter(|path| path.file_stem().unwrap() != "source").collect();
            assert_eq!(sockets, Vec::<PathBuf>::new());
            assert_eq!(zone.faults().await, Vec::<String>::new());
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the volume was not forgotten");
}

#[tokio::test]
async fn a_killed_daemon_is_back_with_the_same_name_and_the_same_bytes() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    io(&export, "write -P 0x77 0 64k").unwrap();
    for round in 0..3 {
        let old = zone.daemons();
        assert_eq!(old.len(), 1);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(old[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
        let begun = Instant::now();
        while io(&export, "read -P 0x77 0 64k").is_err() || zone.daemons() == old {
            assert!(begun.elapsed() < Duration::from_secs(30), "the export did not come back in round {round}");
        }
        println!("round {round}: back after {:?}", begun.elapsed());
        // The address of an export that once answered is told all the while.
        let report = zone.until("vol-1", "reported", |_| true).await;
        assert_eq!(report.export.as_ref(), Some(&export));
    }
}

#[tokio::test]
async fn a_restarted_controller_finds_its_daemons_and_leaves_them_running() {
    let mut zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    let pids = zone.daemons();
    zone.kill();
    io(&export, "write -P 0x11 0 64k").unwrap();
    zone.start();
    assert_eq!(zone.until_served("vol-1", "vattach-a").await, export);
    assert_eq!(zone.daemons(), pids);
    // It is watched again, although it is no child of the new controller.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
    let begun = Instant::now();
    while io(&export, "read -P 0x11 0 64k").is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    zone.kill();
    let pid = zone.daemons()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    zone.start();
    assert_eq!(
        zone.until_served("vol-1", "vattach-a").await,
        export,
        "one that died meanwhile has the same name again"
    );
    io(&export, "read -P 0x11 0 64k").unwrap();
    zone.kill();
    assert_eq!(mallee_storage_controller::end_exports(&zone.config).await.unwrap(), 1);
    assert!(zone.daemons().is_empty(), "a machine that is cleared keeps no daemon");
}

#[tokio::test]
async fn a_volume_serves_one_attachment_and_the_old_name_opens_nothing() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let old = zone.until_served("vol-1", "vattach-a").await;
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-b")).await;
    let new = zone.until_served("vol-1", "vattach-b").await;
    assert_ne!(old.name, new.name);
    assert_eq!(zone.daemons().len(), 1);
    io(&old, "read 0 4k").unwrap_err();
    io(&new, "read 0 4k").unwrap();
    zone.want("vol-1", VolumeDesired::Present, 1, None).await;
    zone.until("vol-1", "served to nobody", |r| r.export.is_none()).await;
    assert!(zone.daemons().is_empty());
    io(&new, "read 0 4k").unwrap_err();
}

#[tokio::test]
async fn a_lost_store_costs_no_bytes_and_disturbs_no_guest() {
    let mut zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    io(&export, "write -P 0x42 0 64k").unwrap();
    let pids = zone.daemons();
    zone.kill();
    zone.lose_store();
    zone.start();
    let faults = zone.faults().await.join(" ");
    // The survey may come a moment after the tier serves.
    if !faults.is_empty() {
        assert!(faults.contains("the folder vol-1"), "{faults}");
    }
    zone.send().await.unwrap();
    assert_eq!(zone.until_served("vol-1", "vattach-a").await, export);
    assert_eq!(zone.daemons(), pids);
    io(&export, "read -P 0x42 0 64k").unwrap();
}

#[tokio::test]
async fn absence_destroys_nothing_and_is_shown() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    zone.rows.lock().unwrap().clear();
    zone.want("vol-2", VolumeDesired::Present, 1, None).await;
    zone.until("vol-2", "ready", |r| r.observed == VolumeObserved::Ready).await;
    io(&export, "read 0 4k").unwrap();
    for _ in 0..1000 {
        if zone.faults().await.iter().any(|f| f.contains("in no list of the cloud-controller: vol-1")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the orphan was not shown: {:?}", zone.faults().await);
}

#[tokio::test]
async fn what_cannot_fit_fails_with_the_reason_and_can_be_deleted() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1 << 40, None).await;
    let report = zone.until("vol-1", "failed", |r| r.observed == VolumeObserved::Failed).await;
    assert!(report.reason.contains("do not fit"), "{}", report.reason);
    zone.want("vol-1", VolumeDesired::Deleted, 1, None).await;
    zone.until("vol-1", "gone", |r| r.observed == VolumeObserved::Gone).await;
}

#[tokio::test]
async fn a_controller_killed_again_and_again_brings_every_volume_where_it_is_wanted() {
    let mut zone = Zone::new();
    for n in 0..6u64 {
        let id = format!("vol-{n}");
        let _ = zone.send().await;
        zone.want(&id, VolumeDesired::Present, 1, Some("vattach-a")).await;
        tokio::time::sleep(Duration::from_millis(n * 11)).await;
        zone.kill();
        zone.start();
    }
    zone.send().await.unwrap();
    for n in 0..6 {
        let export = zone.until_served(&format!("vol-{n}"), "vattach-a").await;
        io(&export, "write -P 1 0 4k").unwrap();
    }
    assert_eq!(zone.daemons().len(), 6);
    assert_eq!(zone.faults().await, Vec::<String>::new());
}

/// The real binary, with a real `kill -9`.
#[tokio::test]
async fn the_daemon_killed_with_nine_leaves_exports_running_and_goes_on_where_it_was() {
    let mut zone = Zone::new();
    zone.kill();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = zone.config.daemon.state.join("storage.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    std::fs::write(&path, text).unwrap();
    zone.client = client(zone.dir.path(), &format!("127.0.0.1:{port}"));
    let spawn = || {
        Command::new(env!("CARGO_BIN_EXE_storage-controller"))
            .arg("--config")
            .arg(&path)
            .env("MALLEE_LOG", "off")
            .spawn()
            .unwrap()
    };
    let mut served = BTreeMap::new();
    for n in 0..6u64 {
        let mut daemon = spawn();
        let id = format!("vol-{n}");
        zone.wish(&id, 1, Some("vattach-a"), |_| {});
        while zone.send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(n * 9)).await;
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        for pid in zone.daemons() {
            assert!(Path::new(&format!("/proc/{pid}")).exists());
            served.insert(pid, n);
        }
    }
    let mut daemon = spawn();
    while zone.send().await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for n in 0..6 {
        let export = zone.until_served(&format!("vol-{n}"), "vattach-a").await;
        io(&export, "write -P 1 0 4k").unwrap();
    }
    let now = zone.daemons();
    assert_eq!(now.len(), 6);
    assert!(served.keys().all(|pid| now.contains(pid)), "an export was started again although its daemon lived");
    assert_eq!(zone.faults().await, Vec::<String>::new());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
