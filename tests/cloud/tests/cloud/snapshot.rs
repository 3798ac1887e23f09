//! Snapshots through all tiers: the API, the zone's export daemon, and walrus' blobs.

use std::{path::Path, process::Command, sync::Arc};

use mallee_service::{Identity, TierHttp};
use mallee_tests_cloud::{Cloud, Tier, eventually};
use mallee_tiers::{Digests, Role, WalrusClient};
use sha2::{Digest, Sha256};

use crate::volume::volume_is;

const BLOCK: usize = 512 << 10;

/// Writes through the export of a volume, as its guest would.
pub fn write(cloud: &Cloud, volume: &str, command: &str) {
    let said = io(cloud, volume, command);
    assert!(said.contains("wrote"), "{command}: {said}");
}

/// Reads 4 KiB, which must all be this byte.
pub fn read(cloud: &Cloud, volume: &str, fill: u8, at: u64) {
    let said = io(cloud, volume, &format!("read -P {fill} {at} 4k"));
    assert!(said.contains("read 4096/4096") && !said.contains("verification failed"), "{at}: {said}");
}

/// Has a volume served to an instance of its own.
pub async fn serve(cloud: &Cloud, volume: &str) {
    let (instance, ()) = tokio::join!(cloud.launch(""), volume_is(cloud, volume, "available"));
    cloud.instance_is(&instance, "running").await;
    cloud.ec2(&format!("Action=AttachVolume&VolumeId={volume}&InstanceId={instance}&Device=/dev/sdf")).await.ok();
    eventually("the volume is attached", || async {
        let answer = cloud.ec2(&format!("Action=DescribeVolumes&VolumeId.1={volume}")).await;
        answer.values("status").contains(&"attached".to_owned()).then_some(())
    })
    .await;
}

fn io(cloud: &Cloud, volume: &str, command: &str) -> String {
    let socket = cloud.state_of(Tier::Storage(0)).join("sockets").join(format!("{volume}.sock"));
    let name = export_name(&socket);
    let url = format!("nbd+unix:///{name}?socket={}", socket.display());
    let out = Command::new("qemu-io").args(["-f", "raw", "-c", command, &url]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&out.stderr));
    text
}

fn export_name(socket: &Path) -> String {
    let wanted = socket.display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.starts_with("qemu-storage-daemon") && line.contains(&wanted) {
            return line.split("\"name\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        }
    }
    panic!("nothing serves {wanted}");
}

pub async fn snapshot(cloud: &Cloud, volume: &str) -> String {
    let answer = cloud.ec2(&format!("Action=CreateSnapshot&VolumeId={volume}")).await;
    answer.value("snapshotId")
}

/// Waits for a snapshot.
pub async fn completed(cloud: &Cloud, id: &str) {
    eventually(&format!("{id} is completed"), || async {
        let answer = cloud.ec2(&format!("Action=DescribeSnapshots&SnapshotId.1={id}")).await;
        (answer.value("status") == "completed").then_some(())
    })
    .await;
}

/// A volume made of a snapshot, and served.
pub async fn restored(cloud: &Cloud, snapshot: &str) -> String {
    let create = format!("Action=CreateVolume&AvailabilityZone=mallee-1a&SnapshotId={snapshot}");
    let id = cloud.ec2(&create).await.value("volumeId");
    serve(cloud, &id).await;
    id
}

/// Whether walrus has the block that is filled with this byte.
pub async fn walrus_has(cloud: &Cloud, fill: u8) -> bool {
    let identity = Identity::load(&cloud.state_of(Tier::CloudController).join("tls")).unwrap();
    let address = cloud.address_of(Tier::Walrus).to_string();
    let walrus = WalrusClient::new(Arc::new(TierHttp::new(&identity, &address, Role::Walrus, "walrus").unwrap()));
    let digest = hex::encode(Sha256::digest(vec![fill; BLOCK]));
    !walrus.blobs_present(&Digests { digests: vec![digest] }).await.unwrap().digests.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_the_volume_as_it_was_when_it_was_asked_for_and_frees_only_what_no_other_needs() {
    let cloud = Cloud::start().await;
    let volume = cloud.ec2("Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1").await.value("volumeId");
    serve(&cloud, &volume).await;
    write(&cloud, &volume, "write -P 1 0 512k");
    write(&cloud, &volume, "write -P 2 1M 512k");
    let first = snapshot(&cloud, &volume).await;
    // When CreateSnapshot has answered, what is written is not in it.
    write(&cloud, &volume, "write -P 3 0 512k");
    completed(&cloud, &first).await;
    let second = snapshot(&cloud, &volume).await;
    write(&cloud, &volume, "write -P 4 1M 512k");
    completed(&cloud, &second).await;
    let (one, two) = (restored(&cloud, &first).await, restored(&cloud, &second).await);
    for (volume, fill, at) in [(&one, 1, 0), (&one, 2, 1 << 20), (&two, 3, 0), (&two, 2, 1 << 20)] {
        read(&cloud, volume, fill, at);
    }
    for (fill, there) in [(1, true), (2, true), (3, true), (4, false)] {
        assert_eq!(walrus_has(&cloud, fill).await, there, "block {fill}");
    }
    cloud.ec2(&format!("Action=DeleteSnapshot&SnapshotId={first}")).await.ok();
    eventually("what only the first needs is gone", || async { (!walrus_has(&cloud, 1).await).then_some(()) }).await;
    assert!(walrus_has(&cloud, 2).await && walrus_has(&cloud, 3).await);
    read(&cloud, &restored(&cloud, &second).await, 2, 1 << 20);
    cloud.kill(&[Tier::CloudController, Tier::Storage(0), Tier::Walrus]).await;
    for tier in [Tier::Walrus, Tier::CloudController, Tier::Storage(0)] {
        cloud.bring_up(tier).await;
    }
    cloud.wait_for_everybody().await;
    cloud.ec2(&format!("Action=DeleteSnapshot&SnapshotId={second}")).await.ok();
    eventually("everything is gone", || async {
        (!walrus_has(&cloud, 2).await && !walrus_has(&cloud, 3).await).then_some(())
    })
    .await;
    let why = cloud.why(&volume).await;
    assert!(why.contains("in-use") || why.contains("attached"), "{why}");
}
