//! Volumes served to other machines: TLS both ways, one node each, one attachment each.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod zone;

use std::{path::PathBuf, process::Command};

use mallee_storage_controller::Beyond;
use mallee_tiers::*;
use zone::{ZONE, Zone, issue};

/// A zone whose storage-controller serves other machines, and knows `here` as the node beside it.
fn zone() -> Zone {
    let mut zone = Zone::new();
    zone.kill();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().min(60_000);
    zone.config.nbd = Some(Beyond {
        address: [127, 0, 0, 1].into(),
        local_node: Some("here".into()),
        first_port: port,
        last_port: port + 500,
    });
    zone.start();
    zone
}

/// A certificate as a node's QEMU would show it.
fn shown_by(zone: &Zone, peer: &Peer) -> PathBuf {
    let folder = zone.dir.path().join(format!("shown-by-{}-{}", peer.role, peer.name));
    let key = mallee_service::pki::new_key_pem().unwrap();
    issue(&zone.ca, &key, peer, &folder);
    for (ours, name) in [("ca.pem", "ca-cert.pem"), ("cert.pem", "client-cert.pem"), ("key.pem", "client-key.pem")] {
        std::fs::rename(folder.join(ours), folder.join(name)).unwrap();
    }
    folder
}

fn node(zone: &Zone, name: &str) -> PathBuf {
    shown_by(zone, &Peer::new(Role::NodeController, ZONE, name))
}

/// What a machine with this certificate gets; None: no TLS at all.
fn io(export: &Export, credentials: Option<&PathBuf>, command: &str) -> Result<String, String> {
    let ExportAddress::Tcp(place) = &export.address else { panic!("{export:?}") };
    let (host, port) = place.rsplit_once(':').unwrap();
    let mut image = format!("driver=nbd,server.type=inet,server.host={host},server.port={port},export={}", export.name);
    let mut program = Command::new("qemu-io");
    if let Some(folder) = credentials {
        let object = format!("tls-creds-x509,id=tls,endpoint=client,verify-peer=on,dir={}", folder.display());
        program.args(["--object", &object]);
        let server = server_name(Role::StorageController, ZONE);
        image += &format!(",tls-creds=tls,tls-hostname={server}");
    }
    let out = program.args(["--image-opts", "-c", command, &image]).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() && !text.contains("failed") { Ok(text) } else { Err(text) }
}

#[tokio::test]
async fn only_the_node_it_was_made_for_opens_an_export_and_only_by_tls() {
    let zone = zone();
    zone.want_volume("vol-1", 1, Some("vattach-a"), |v| v.export_node = Some("n1".into())).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    let (n1, n2) = (node(&zone, "n1"), node(&zone, "n2"));
    io(&export, Some(&n1), "write -P 7 0 64k").unwrap();
    println!("another node: {}", io(&export, Some(&n2), "read 0 4k").unwrap_err());
    println!("no TLS: {}", io(&export, None, "read 0 4k").unwrap_err());
    // Of this cloud, but no node.
    let tier = shown_by(&zone, &Peer::new(Role::Walrus, "", "n1"));
    io(&export, Some(&tier), "read 0 4k").unwrap_err();
    // The right node with a name it did not get.
    let guessed = Export { name: "0".repeat(32), ..export.clone() };
    io(&guessed, Some(&n1), "read 0 4k").unwrap_err();
    // A daemon that died is back at the same place.
    zone.kill_daemons("vol-1");
    let begun = std::time::Instant::now();
    while io(&export, Some(&n1), "read -P 7 0 64k").is_err() {
        assert!(begun.elapsed().as_secs() < 30);
    }
    // It is found again by another life of the controller.
    let mut zone = zone;
    let daemons = zone.daemons();
    zone.kill();
    zone.start();
    zone.send_until_taken().await;
    assert_eq!(zone.until_served("vol-1", "vattach-a").await, export);
    assert_eq!(zone.daemons(), daemons);
}

#[tokio::test]
async fn a_lost_node_is_cut_off_before_another_has_the_volume() {
    let zone = zone();
    let (n1, n2) = (node(&zone, "n1"), node(&zone, "n2"));
    zone.want_volume("vol-1", 1, Some("vattach-a"), |v| v.export_node = Some("n1".into())).await;
    let lost = zone.until_served("vol-1", "vattach-a").await;
    io(&lost, Some(&n1), "write -P 1 0 64k").unwrap();
    // Force-detached, and attached elsewhere: the old one's daemon is gone before the new one's is told.
    zone.want_volume("vol-1", 1, Some("vattach-b"), |v| v.export_node = Some("n2".into())).await;
    let new = zone.until_served("vol-1", "vattach-b").await;
    assert_ne!(new.name, lost.name);
    assert_eq!(zone.daemons().len(), 1);
    io(&lost, Some(&n1), "write -P 66 0 64k").unwrap_err();
    io(&Export { name: new.name.clone(), ..lost }, Some(&n1), "write -P 66 0 64k").unwrap_err();
    io(&new, Some(&n1), "write -P 66 0 64k").unwrap_err();
    io(&new, Some(&n2), "read -P 1 0 64k").unwrap();
    // The same attachment on another node, as when its instance was started there.
    zone.want_volume("vol-1", 1, Some("vattach-b"), |v| v.export_node = Some("n1".into())).await;
    let moved = zone.until("vol-1", "moved", |r| r.export.as_ref().is_some_and(|e| e.name != new.name)).await;
    let moved = moved.export.unwrap();
    io(&moved, Some(&n1), "read -P 1 0 64k").unwrap();
    io(&moved, Some(&n2), "read 0 64k").unwrap_err();
    // Beside the storage-controller there is no need for a network.
    zone.want_volume("vol-1", 1, Some("vattach-b"), |v| v.export_node = Some("here".into())).await;
    let here = zone.until("vol-1", "here", |r| r.export.as_ref().is_some_and(|e| e.name != moved.name)).await;
    let here = here.export.unwrap();
    assert!(matches!(here.address, ExportAddress::Unix(_)));
    zone::io(&here, "read -P 1 0 64k").unwrap();
    // And of one whose node is not known yet any node may be it, but nobody else.
    zone.want("vol-2", VolumeDesired::Present, 1, Some("vattach-c")).await;
    let any = zone.until_served("vol-2", "vattach-c").await;
    for node in [&n1, &n2] {
        io(&any, Some(node), "read 0 64k").unwrap();
    }
    let tier = shown_by(&zone, &Peer::new(Role::Walrus, "", "n1"));
    io(&any, Some(&tier), "read 0 4k").unwrap_err();
}

/// A daemon reads its certificate when it starts, and a volume is attached for longer than a certificate lives.
#[tokio::test]
async fn when_the_certificate_was_renewed_its_daemon_shows_the_new_one_at_the_same_place() {
    let zone = zone();
    let n1 = node(&zone, "n1");
    zone.want_volume("vol-1", 1, Some("vattach-a"), |v| v.export_node = Some("n1".into())).await;
    // Made before it was known that its instance would run here.
    zone.want("vol-2", VolumeDesired::Present, 1, Some("vattach-b")).await;
    let any = zone.until_served("vol-2", "vattach-b").await;
    assert!(matches!(any.address, ExportAddress::Tcp(_)));
    zone.want_volume("vol-2", 1, Some("vattach-b"), |v| v.export_node = Some("here".into())).await;
    let export = zone.until_served("vol-1", "vattach-a").await;
    zone.until("vol-2", "here", |r| r.export.as_ref().is_some_and(|e| matches!(e.address, ExportAddress::Unix(_))))
        .await;
    io(&export, Some(&n1), "write -P 7 0 64k").unwrap();
    let before = zone.daemons();
    let key = mallee_service::pki::new_key_pem().unwrap();
    issue(&zone.ca, &key, &Peer::new(Role::StorageController, ZONE, ZONE), &zone.config.daemon.state.join("tls"));
    let begun = std::time::Instant::now();
    while zone.daemons().iter().filter(|pid| before.contains(pid)).count() != 1 || zone.daemons().len() != 2 {
        assert!(begun.elapsed().as_secs() < 30, "{before:?}, {:?}", zone.daemons());
        // Whatever has it look.
        zone.send().await.unwrap();
        zone.want("vol-3", VolumeDesired::Present, 1, None).await;
    }
    while io(&export, Some(&n1), "read -P 7 0 64k").is_err() {
        assert!(begun.elapsed().as_secs() < 60);
    }
    assert_eq!(zone.until_served("vol-1", "vattach-a").await, export);
    let after = zone.daemons();
    zone.want("vol-3", VolumeDesired::Deleted, 1, None).await;
    zone.until("vol-3", "gone", |r| r.observed == VolumeObserved::Gone).await;
    assert_eq!(zone.daemons(), after, "once is enough, and a socket needs no certificate");
}
