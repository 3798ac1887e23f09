//! Encrypted volumes and their snapshots: what a guest wrote is in no file, on no command line, and comes back all the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod zone;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use mallee_tiers::*;
use zone::{Zone, io, key_of};

const MARKER: &str = "the secret of this test, ";

/// Writes the marker over and over at an offset of an export.
fn write_marker(zone: &Zone, export: &Export, at: &str, kib: usize) {
    let file = zone.dir.path().join("marker");
    std::fs::write(&file, MARKER.repeat((kib << 10) / MARKER.len() + 1)).unwrap();
    io(export, &format!("write -s {} {at} {kib}k", file.display())).unwrap();
    std::fs::remove_file(file).unwrap();
}

fn has_marker(path: &Path, at: usize) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes[at..].starts_with(MARKER.as_bytes())
}

/// The files below a folder in which one of these texts is.
fn files_with(folder: &Path, texts: &[&str]) -> Vec<PathBuf> {
    let mut command = Command::new("grep");
    command.args(["-r", "-l", "-a", "-F", "--devices=skip"]);
    for text in texts {
        command.args(["-e", text]);
    }
    let out = command.arg(folder).output().unwrap();
    String::from_utf8_lossy(&out.stdout).lines().map(PathBuf::from).collect()
}

#[tokio::test]
async fn what_is_written_to_an_encrypted_volume_is_nowhere_in_the_clear() {
    let mut zone = Zone::new();
    zone.want_volume("vol-1", 1, Some("vattach-a"), |v| v.encrypted = Some("key-1".into())).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    io(&export, "read -P 0 0 1M").unwrap();
    write_marker(&zone, &export, "10M", 2048);
    for n in 1..=3 {
        let id = format!("snap-{n}");
        zone.want_snapshot(&id, "vol-1", |_| {}).await;
        let sent = zone.uploaded(&id).await.sent;
        // What is equal under one key is one blob: the marker was sent with the first.
        assert_eq!(sent > 0, n == 1, "{sent} bytes for snapshot {n}");
        zone.accept(&id, "vol-1").await;
        write_marker(&zone, &export, &format!("{}M", 100 * n), 512);
    }
    zone.until_layers("vol-1", &["3.qcow2", "volume.qcow2"]).await;
    let manifest = zone.uploaded("snap-3").await.manifest.unwrap();

    let (secret, passphrase) = (key_of("key-1").to_secret().0, key_of("key-1").passphrase().unwrap().0);
    let texts = [MARKER, secret.as_str(), passphrase.as_str()];
    assert_eq!(files_with(zone.dir.path(), &texts), Vec::<PathBuf>::new());
    for pid in zone.daemons() {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&line), String::from_utf8_lossy(&environment));
        assert!(texts.iter().all(|secret| !text.contains(secret)), "{text}");
    }
    // The test can find it where it is: the search itself works.
    let path = zone.copied(&export);
    assert!(has_marker(&path, 10 << 20));
    assert_eq!(files_with(zone.dir.path(), &[MARKER]), std::slice::from_ref(&path));
    std::fs::remove_file(path).unwrap();

    // A volume of it is encrypted, with whichever key; without one it is refused.
    let path = zone.restored_with("vol-2", 1, &manifest, |v| v.encrypted = Some("key-2".into())).await;
    assert!(has_marker(&path, 10 << 20) && has_marker(&path, 200 << 20));
    std::fs::remove_file(path).unwrap();
    assert_eq!(files_with(zone.dir.path(), &[MARKER]), Vec::<PathBuf>::new());
    let source = Some(VolumeSource { snapshot: "snap-3".into(), manifest: manifest.clone() });
    zone.want_volume("vol-3", 1, None, |v| v.source = source).await;
    let refused = zone.until("vol-3", "refused", |r| r.observed == VolumeObserved::Failed).await;
    assert!(refused.reason.contains("is encrypted"), "{}", refused.reason);

    // The keys are kept: neither a cloud-controller that is away nor a killed daemon keeps a guest from its disk.
    zone.kill_cloud();
    zone.kill();
    zone.kill_daemons("vol-1");
    zone.start();
    zone.send_until_taken().await;
    assert_eq!(zone.until_served("vol-1", "vattach-a").await, export);
    let text = io(&export, "read -v 10M 512").unwrap();
    assert!(text.contains("the.secret"), "{text}");
    zone.kill_daemons("vol-1");
    let path = zone.copied_when_it_can(&export).await;
    assert!(has_marker(&path, 300 << 20));
}

#[tokio::test]
async fn a_snapshot_in_the_clear_becomes_an_encrypted_volume_and_an_encrypted_copy() {
    let zone = Zone::new();
    zone.want("vol-1", VolumeDesired::Present, 1, Some("vattach-a")).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    write_marker(&zone, &export, "10M", 2048);
    io(&export, "write -P 3 600M 512k").unwrap();
    zone.want_snapshot("snap-1", "vol-1", |_| {}).await;
    let clear = zone.uploaded("snap-1").await.manifest.unwrap();
    zone.accept("snap-1", "vol-1").await;
    let source = Some(VolumeSource { snapshot: "snap-1".into(), manifest: clear.clone() });

    zone.want_volume("vol-2", 1, Some("vattach-b"), |v| {
        v.source = source.clone();
        v.encrypted = Some("key-1".into());
    })
    .await;
    let encrypted = zone.until_served("vol-2", "vattach-b").await;
    zone.until("vol-2", "fetched whole", |r| !r.needs_source).await;
    let text = io(&encrypted, "read -v 10M 512").unwrap();
    assert!(text.contains("the.secret"), "{text}");
    assert_eq!(files_with(&zone.folder("vol-2"), &[MARKER]), Vec::<PathBuf>::new());

    // A copy under a key; killed while it is made.
    zone.want_snapshot("snap-2", "", |s| {
        s.source = source.clone();
        s.encrypted = Some("key-2".into());
    })
    .await;
    let copy = zone.uploaded("snap-2").await;
    assert_eq!(copy.size_gib, 1);
    let manifest = copy.manifest.unwrap();
    assert_ne!(manifest, clear);
    let path = zone.restored_with("vol-3", 1, &manifest, |v| v.encrypted = Some("key-2".into())).await;
    assert!(has_marker(&path, 10 << 20));
    // And out of the clear it never comes back into it.
    zone.want_snapshot("snap-3", "", |s| s.source = Some(VolumeSource { snapshot: "snap-2".into(), manifest })).await;
    let refused = zone.until_snapshot("snap-3", "refused", |r| r.observed == SnapshotObserved::Failed).await;
    assert!(refused.reason.contains("not copied in the clear"), "{}", refused.reason);
}

#[tokio::test]
async fn an_encrypted_volume_grows_served_and_at_rest() {
    let zone = Zone::new();
    let key = Some("key-1".to_owned());
    zone.want_volume("vol-1", 1, Some("vattach-a"), |v| v.encrypted = key).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    io(&export, "write -P 7 0 64k").unwrap();
    zone.want_volume("vol-1", 2, Some("vattach-a"), |_| {}).await;
    zone.until("vol-1", "grown", |r| r.size_gib == 2).await;
    io(&export, "write -P 8 1536M 64k").unwrap();
    zone.want_volume("vol-1", 2, None, |_| {}).await;
    zone.until("vol-1", "served to nobody", |r| r.export.is_none()).await;
    zone.want_snapshot("snap-1", "vol-1", |_| {}).await;
    zone.uploaded("snap-1").await;
    zone.accept("snap-1", "vol-1").await;
    zone.want_volume("vol-1", 3, None, |_| {}).await;
    zone.until("vol-1", "grown at rest", |r| r.size_gib == 3).await;
    zone.want_volume("vol-1", 3, Some("vattach-b"), |_| {}).await;
    let export = zone.until_served("vol-1", "vattach-b").await;
    for command in ["read -P 7 0 64k", "read -P 8 1536M 64k", "read -P 0 2560M 64k", "write -P 9 2560M 64k"] {
        io(&export, command).unwrap();
    }
}
