//! Instances whose root is a volume: the real storage-controller, simulated machines, and tiers that die in between.

use mallee_tests_cloud::{Cloud, Options, Tier, eventually, image_settles};

use crate::{snapshot::completed, volume::volume_is};

/// An image on a snapshot, with an empty volume beside its root.
pub async fn image_on_snapshot(cloud: &Cloud) -> String {
    let volume = cloud.ec2("Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1").await.value("volumeId");
    volume_is(cloud, &volume, "available").await;
    let snapshot = cloud.ec2(&format!("Action=CreateSnapshot&VolumeId={volume}")).await.value("snapshotId");
    completed(cloud, &snapshot).await;
    cloud.ec2(&format!("Action=DeleteVolume&VolumeId={volume}")).await.ok();
    let register = format!(
        "Action=RegisterImage&Name=on-{snapshot}&BlockDeviceMapping.1.DeviceName=/dev/sda1\
         &BlockDeviceMapping.1.Ebs.SnapshotId={snapshot}&BlockDeviceMapping.2.DeviceName=/dev/sdf&BlockDeviceMapping.2.Ebs.VolumeSize=1"
    );
    cloud.ec2(&register).await.value("imageId")
}

async fn launch(cloud: &Cloud, image: &str) -> (String, Vec<String>) {
    let run = format!("Action=RunInstances&ImageId={image}&InstanceType=mini.nano&MinCount=1&MaxCount=1");
    let answer = cloud.ec2(&run).await;
    let id = answer.value("instanceId");
    cloud.instance_is(&id, "running").await;
    (id, answer.values("volumeId"))
}

async fn ask(cloud: &Cloud, action: &str, id: &str) {
    cloud.ec2(&format!("Action={action}&InstanceId.1={id}")).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_a_volume_stops_and_starts_and_runs_once_whoever_dies() {
    let cloud = Cloud::start_with(Options { nodes: 2, ..Options::default() }).await;
    let image = image_on_snapshot(&cloud).await;
    let (id, volumes) = launch(&cloud, &image).await;
    assert_eq!(volumes.len(), 2);
    for tier in cloud.tiers() {
        ask(&cloud, "StopInstances", &id).await;
        cloud.restart(&[tier]).await;
        cloud.wait_for_everybody().await;
        cloud.instance_is(&id, "stopped").await;
        ask(&cloud, "StartInstances", &id).await;
        cloud.restart(&[tier]).await;
        cloud.wait_for_everybody().await;
        cloud.instance_is(&id, "running").await;
        assert_eq!(cloud.guests(), 1, "it runs once, after {tier:?} died");
        assert_eq!(cloud.status().await.orphans, Vec::<String>::new(), "after {tier:?}");
    }
    // The root goes with it, the other volume stays.
    ask(&cloud, "TerminateInstances", &id).await;
    cloud.instance_is(&id, "terminated").await;
    eventually("the root is gone and the other volume is free", || async {
        let answer = cloud.ec2("Action=DescribeVolumes").await;
        (answer.values("volumeId").len() == 1 && answer.value("status") == "available").then_some(())
    })
    .await;
    eventually("nothing is served any more", || async {
        let sockets = cloud.state_of(Tier::Storage(0)).join("sockets");
        let mut served = std::fs::read_dir(sockets).ok()?.flatten();
        (!served.any(|f| f.file_name().to_string_lossy().starts_with("vol-"))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_running_instance_is_made_or_fails_and_its_guest_goes_on_whoever_dies() {
    let cloud = Cloud::start_with(Options { nodes: 1, ..Options::default() }).await;
    let image = image_on_snapshot(&cloud).await;
    let (id, _) = launch(&cloud, &image).await;
    let mut made = 0;
    for (n, tier) in cloud.tiers().into_iter().enumerate() {
        let no_reboot = n % 2 == 0;
        let create = format!("Action=CreateImage&InstanceId={id}&Name=image-{n}&NoReboot={no_reboot}");
        let copy = cloud.ec2(&create).await.value("imageId");
        cloud.restart(&[tier]).await;
        cloud.wait_for_everybody().await;
        let state = eventually(&format!("{copy} is made, or not, although {tier:?} died"), || async {
            let answer = cloud.ec2(&format!("Action=DescribeImages&ImageId.1={copy}")).await;
            Some(answer.value("imageState")).filter(|state| state != "pending")
        })
        .await;
        if state == "available" {
            made += 1;
        } else {
            // What was given up leaves no snapshot.
            let of_it = format!("Action=DescribeSnapshots&Filter.1.Name=description&Filter.1.Value.1=*for {copy}");
            assert_eq!(cloud.ec2(&of_it).await.values("snapshotId"), Vec::<String>::new());
        }
        cloud.instance_is(&id, "running").await;
        eventually("the guest goes on", || async { (cloud.guests() == 1).then_some(()) }).await;
    }
    assert!(made > 0, "not one image was made");
    let last = cloud.ec2(&format!("Action=CreateImage&InstanceId={id}&Name=last")).await.value("imageId");
    image_settles(cloud.user().await, &last, "available").await;
    let (copy, _) = launch(&cloud, &last).await;
    assert_ne!(copy, id);
}
