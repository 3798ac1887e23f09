//! Images on snapshots, what is launched of them, and images made of instances, on a real store; what zones would say is said
//! by the test.

use mallee_service::Reconciler;
use mallee_tiers::{AttachmentReport, HoldKind, Observed, Root, SnapshotObserved};

use crate::ec2::{
    rehearsal::{Rehearsal, first},
    snapshot::together::Togethers,
};

async fn launch_of(stage: &Rehearsal, image: &str, more: &str) -> Result<String, String> {
    let request = format!("RunInstances&ImageId={image}&InstanceType=mini.nano&MinCount=1&MaxCount=1&{more}");
    stage.ask(&request).await.map(|answer| first(&answer, "instanceId"))
}

/// The volumes of an instance by device, the root first.
async fn volumes_of(stage: &Rehearsal, instance: &str) -> Vec<String> {
    let described = format!("DescribeVolumes&Filter.1.Name=attachment.instance-id&Filter.1.Value.1={instance}");
    let answer = stage.ask(&described).await.unwrap();
    let mut by_device: Vec<(String, String)> = answer
        .split("<volumeId>")
        .skip(1)
        .filter_map(|rest| {
            Some((rest.split_once("<device>")?.1.split('<').next()?.into(), rest.split('<').next()?.into()))
        })
        .collect();
    by_device.sort();
    by_device.dedup();
    by_device.into_iter().map(|(_, volume)| volume).collect()
}

async fn running(stage: &Rehearsal, image: &str, more: &str) -> (String, Vec<String>) {
    let instance = launch_of(stage, image, more).await.unwrap();
    let volumes = volumes_of(stage, &instance).await;
    for volume in &volumes {
        stage.serve(volume).await;
    }
    come_up(stage, &instance, &volumes).await;
    (instance, volumes)
}

async fn come_up(stage: &Rehearsal, instance: &str, volumes: &[String]) {
    let at_node = |v: &String| AttachmentReport { volume: v.clone(), attached: true, reason: String::new() };
    stage.seen(instance, Observed::Running, |r| r.attachments = volumes.iter().map(at_node).collect()).await;
}

/// Every step that images being made can take now.
async fn advance(stage: &Rehearsal) {
    let creations = Togethers { cloud: stage.cloud.clone() };
    loop {
        let report = creations.pass().await;
        assert!(report.errors.is_empty(), "{report:?}");
        if report.changed == 0 {
            return;
        }
    }
}

const DATA: &str = "&BlockDeviceMapping.2.DeviceName=/dev/sdf&BlockDeviceMapping.2.Ebs.VolumeSize=1&BlockDeviceMapping.3.DeviceName=/dev/sdb\
                    &BlockDeviceMapping.3.VirtualName=ephemeral0";

#[tokio::test]
async fn an_instance_is_made_with_its_volumes_and_begins_when_all_are_served() {
    let stage = Rehearsal::new().await;
    let image = stage.image_on_snapshot(DATA).await;
    let shown = stage.ask(&format!("DescribeImages&ImageId.1={image}")).await.unwrap();
    assert_eq!((first(&shown, "rootDeviceType"), first(&shown, "imageState")), ("ebs".into(), "available".into()));
    assert_eq!(first(&shown, "virtualName"), "ephemeral0");
    let tags = "TagSpecification.1.ResourceType=volume&TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=v";
    let instance = launch_of(&stage, &image, tags).await.unwrap();
    let volumes = volumes_of(&stage, &instance).await;
    assert_eq!(volumes.len(), 2);
    let mut sizes = stage.all("DescribeVolumes&Filter.1.Name=tag:k&Filter.1.Value.1=v", "size").await;
    sizes.sort();
    assert_eq!(sizes, ["1", "2"]);
    let state = format!("DescribeVolumes&VolumeId.1={}", volumes[0]);
    assert_eq!(stage.all(&state, "status").await, ["creating", "attaching"]);

    stage.serve(&volumes[0]).await;
    let body = stage.body(&instance).await;
    assert_eq!(body.boot.root, Root::Volume { volume: Some(volumes[0].clone()) });
    assert!(body.awaits.as_ref().unwrap().contains(&volumes[1]), "{:?}", body.awaits);
    assert_eq!((body.disk_gib, body.stores[0].device.as_str(), body.stores[0].size_gib), (1, "/dev/sdb", 1));
    stage.serve(&volumes[1]).await;
    let body = stage.body(&instance).await;
    assert_eq!((body.awaits, body.volumes.len()), (None, 2));
    assert_eq!(body.metadata.tree["meta-data/block-device-mapping/root"], "/dev/sda1");
    assert_eq!(body.metadata.tree["meta-data/block-device-mapping/ebs1"], "sdf");
    assert_eq!(body.metadata.tree["meta-data/block-device-mapping/ephemeral0"], "sdb");
    come_up(&stage, &instance, &volumes).await;
    assert_eq!(stage.state(&instance).await, "running");
    let described = stage.ask(&format!("DescribeInstances&InstanceId.1={instance}")).await.unwrap();
    assert_eq!(first(&described, "rootDeviceType"), "ebs");
    assert_eq!(stage.all(&state, "status").await, ["in-use", "attached"]);

    stage.ask(&format!("TerminateInstances&InstanceId.1={instance}")).await.unwrap();
    stage.seen(&instance, Observed::Gone, |_| {}).await;
    for volume in &volumes {
        stage.serve(volume).await;
    }
    assert_eq!(stage.all("DescribeVolumes", "volumeId").await.len(), 2, "the root is being deleted, the other is kept");
    stage.serve(&volumes[0]).await;
    assert_eq!(stage.all("DescribeVolumes", "volumeId").await, volumes[1..]);
}

#[tokio::test]
async fn a_launch_that_is_refused_leaves_no_volume_behind() {
    let stage = Rehearsal::new().await;
    let image = stage.image_on_snapshot("").await;
    let one = |sent: &str| sent.split('&').map(|p| format!("BlockDeviceMapping.1.{p}")).collect::<Vec<_>>().join("&");
    let many: Vec<String> = (1..)
        .zip('b'..='n')
        .map(|(n, l)| format!("BlockDeviceMapping.{n}.DeviceName=/dev/sd{l}&BlockDeviceMapping.{n}.Ebs.VolumeSize=1"))
        .collect();
    for (sent, code) in [
        (one("DeviceName=/dev/sda1&Ebs.VolumeSize=1"), "InvalidBlockDeviceMapping"),
        (one("DeviceName=/dev/sda1&NoDevice="), "InvalidBlockDeviceMapping"),
        (one("DeviceName=/dev/sdf&Ebs.SnapshotId=snap-00000000000000000"), "InvalidSnapshot.NotFound"),
        (one("DeviceName=/dev/sdf&Ebs.VolumeType=io1&Ebs.VolumeSize=4"), "MissingParameter"),
        (one("DeviceName=/dev/sdf&Ebs.VolumeSize=99999"), "InvalidParameterValue"),
        (one("DeviceName=/dev/sdf&Ebs.VolumeSize=1&Ebs.KmsKeyId=k"), "Unsupported"),
        (many.join("&"), "AttachmentLimitExceeded"),
        ("DryRun=true".into(), "DryRunOperation"),
    ] {
        assert_eq!(launch_of(&stage, &image, &sent).await, Err(code.into()), "{sent}");
    }
    let on_bundle = one("DeviceName=/dev/sda1&Ebs.VolumeSize=4");
    assert_eq!(launch_of(&stage, &stage.image, &on_bundle).await, Err("InvalidBlockDeviceMapping".into()));
    assert!(stage.all("DescribeVolumes", "volumeId").await.is_empty());
    // The image of a bundle takes volumes beside its root.
    let (instance, volumes) = running(&stage, &stage.image.clone(), &one("DeviceName=/dev/sdf&Ebs.VolumeSize=1")).await;
    let body = stage.body(&instance).await;
    assert!(body.boot.root.image().is_some() && body.stores.is_empty() && volumes.len() == 1);
}

#[tokio::test]
async fn an_image_on_a_snapshot_is_registered_only_with_a_root_that_can_be_one() {
    let stage = Rehearsal::new().await;
    let snapshot = stage.snapshot(2).await;
    let map = |n: u8, device: &str, what: &str| {
        format!("&BlockDeviceMapping.{n}.DeviceName={device}&BlockDeviceMapping.{n}.{what}")
    };
    let root = map(1, "/dev/sda1", &format!("Ebs.SnapshotId={snapshot}"));
    for (sent, code) in [
        (map(1, "/dev/sdf", &format!("Ebs.SnapshotId={snapshot}")), "InvalidBlockDeviceMapping"),
        (map(1, "/dev/sda1", "Ebs.VolumeSize=1"), "InvalidBlockDeviceMapping"),
        (map(1, "/dev/sda1", "Ebs.SnapshotId=snap-00000000000000000"), "InvalidSnapshot.NotFound"),
        (format!("{root}&BlockDeviceMapping.1.Ebs.VolumeSize=1"), "InvalidBlockDeviceMapping"),
        (format!("{root}&RootDeviceName=/dev/xvda"), "InvalidBlockDeviceMapping"),
        (format!("{root}&Architecture=arm64"), "InvalidParameterValue"),
        (String::new(), "MissingParameter"),
    ] {
        let request = format!("RegisterImage&Name=bad{sent}");
        assert_eq!(stage.ask(&request).await.err().as_deref(), Some(code), "{sent}");
    }
    assert_eq!(stage.ask(&format!("RegisterImage&X=1{root}")).await.err().as_deref(), Some("UnknownParameter"));
    assert_eq!(stage.ask(&format!("RegisterImage{root}")).await.err().as_deref(), Some("MissingParameter"));
    let image = first(&stage.ask(&format!("RegisterImage&Name=good{root}")).await.unwrap(), "imageId");
    assert_eq!(
        stage.ask(&format!("RegisterImage&Name=good{root}")).await.err().as_deref(),
        Some("InvalidAMIName.Duplicate")
    );
    let attribute = format!("DescribeImageAttribute&ImageId={image}&Attribute=blockDeviceMapping");
    assert_eq!(stage.all(&attribute, "snapshotId").await, std::slice::from_ref(&snapshot));
    // It must stay while the image does.
    let delete = format!("DeleteSnapshot&SnapshotId={snapshot}");
    assert_eq!(stage.ask(&delete).await.err().as_deref(), Some("InvalidSnapshot.InUse"));
    let copy = format!("CopyImage&SourceRegion=mallee-1&SourceImageId={image}&Name=copy&ClientToken=t");
    let copied = first(&stage.ask(&copy).await.unwrap(), "imageId");
    assert_eq!(first(&stage.ask(&copy).await.unwrap(), "imageId"), copied, "the same token makes one");
    assert_ne!(stage.all(&attribute.replace(&image, &copied), "snapshotId").await, std::slice::from_ref(&snapshot));
    stage.ask(&format!("DeregisterImage&ImageId={image}")).await.unwrap();
    assert_eq!(stage.all("DescribeSnapshots", "snapshotId").await.len(), 2, "the snapshots stay");
    stage.ask(&delete).await.unwrap();
    launch_of(&stage, &copied, "").await.unwrap();
}

#[tokio::test]
async fn somebody_who_may_launch_an_image_needs_no_permission_for_its_snapshot() {
    let stage = Rehearsal::new().await;
    let other = stage.another_account().await;
    let image = stage.image_on_snapshot("").await;
    let run = format!("RunInstances&ImageId={image}&MinCount=1&MaxCount=1");
    assert_eq!(stage.ask_as(&other, &run).await.err().as_deref(), Some("InvalidAMIID.NotFound"));
    stage.ask(&format!("ModifyImageAttribute&ImageId={image}&LaunchPermission.Add.1.UserId={other}")).await.unwrap();
    stage.ask_as(&other, &run).await.unwrap();
    let snapshots = stage.ask_as(&other, "DescribeSnapshots").await.unwrap();
    assert!(!snapshots.contains("snap-"));
}

#[tokio::test]
async fn a_root_comes_off_only_when_its_instance_is_off_and_is_missed_at_the_next_start() {
    let stage = Rehearsal::new().await;
    let image = stage.image_on_snapshot("").await;
    let (instance, volumes) = running(&stage, &image, "").await;
    let root = &volumes[0];
    let detach = format!("DetachVolume&VolumeId={root}");
    assert_eq!(stage.ask(&detach).await.err().as_deref(), Some("OperationNotPermitted"));
    assert_eq!(stage.ask(&format!("{detach}&Force=true")).await.err().as_deref(), Some("OperationNotPermitted"));
    stage.ask(&format!("StopInstances&InstanceId.1={instance}")).await.unwrap();
    stage.seen(&instance, Observed::Stopped, |r| r.released = true).await;
    stage.ask(&detach).await.unwrap();
    stage.seen(&instance, Observed::Stopped, |_| {}).await;
    stage.serve(root).await;
    assert_eq!(stage.all(&format!("DescribeVolumes&VolumeId.1={root}"), "status").await, ["available"]);
    let start = format!("StartInstances&InstanceId.1={instance}");
    assert_eq!(stage.ask(&start).await.err().as_deref(), Some("InvalidParameterValue"));
    let attach = |device: &str| format!("AttachVolume&VolumeId={root}&InstanceId={instance}&Device={device}");
    assert_eq!(stage.ask(&attach("/dev/xvda")).await.err().as_deref(), Some("InvalidParameterValue"));
    stage.ask(&attach("/dev/sda1")).await.unwrap();
    stage.ask(&start).await.unwrap();
    assert!(stage.body(&instance).await.awaits.is_some(), "it is not served yet");
    stage.serve(root).await;
    let body = stage.body(&instance).await;
    assert_eq!((body.awaits, body.boot.root.volume()), (None, Some(root.as_str())));
}

#[tokio::test]
async fn one_that_left_its_node_is_served_anew_before_it_starts_on_another() {
    let stage = Rehearsal::new().await;
    let image = stage.image_on_snapshot("").await;
    let (instance, volumes) = running(&stage, &image, "").await;
    let served = stage.body(&instance).await.volumes[0].export.clone();
    stage.ask(&format!("StopInstances&InstanceId.1={instance}")).await.unwrap();
    stage.seen(&instance, Observed::Stopped, |_| {}).await;
    assert_eq!(stage.row(&instance).await.node.as_deref(), Some("n1"), "it may still be there");
    stage.seen(&instance, Observed::Stopped, |r| r.node = None).await;
    assert_eq!(stage.row(&instance).await.node, None);
    stage.ask(&format!("StartInstances&InstanceId.1={instance}")).await.unwrap();
    let body = stage.body(&instance).await;
    assert!(body.awaits.is_some() && body.volumes.is_empty(), "nobody is told of the export before");
    stage.serve(&volumes[0]).await;
    let body = stage.body(&instance).await;
    assert!(body.awaits.is_none() && body.volumes[0].export.name != served.name);
    come_up(&stage, &instance, &volumes).await;
    assert_eq!(stage.state(&instance).await, "running");
}

#[tokio::test]
async fn a_volume_that_cannot_be_made_ends_the_launch_and_says_why() {
    let stage = Rehearsal::new().await;
    let image = stage.image_on_snapshot("").await;
    let instance = launch_of(&stage, &image, "").await.unwrap();
    let root = volumes_of(&stage, &instance).await.remove(0);
    stage.refuse_volume(&root, "no room on this zone's disks").await;
    assert_eq!(stage.state(&instance).await, "shutting-down");
    stage.seen(&instance, Observed::Gone, |_| {}).await;
    let described = stage.ask(&format!("DescribeInstances&InstanceId.1={instance}")).await.unwrap();
    assert!(described.contains("no room on this zone") && described.contains("Server.InternalError"), "{described}");
    stage.serve(&root).await;
    stage.serve(&root).await;
    assert!(stage.all("DescribeVolumes", "volumeId").await.is_empty());
}

async fn create_image(stage: &Rehearsal, instance: &str, more: &str) -> String {
    let request = format!("CreateImage&InstanceId={instance}&Name=made&{more}");
    first(&stage.ask(&request).await.unwrap(), "imageId")
}

async fn image_state(stage: &Rehearsal, image: &str) -> String {
    stage.all(&format!("DescribeImages&ImageId.1={image}"), "imageState").await.remove(0)
}

async fn snapshots(stage: &Rehearsal, image: &str) -> Vec<String> {
    let asked = format!("DescribeSnapshots&Filter.1.Name=description&Filter.1.Value.1=*for {image}");
    stage.all(&asked, "snapshotId").await
}

async fn held(stage: &Rehearsal, instance: &str, observed: Observed, by: Option<&str>) {
    stage.seen(instance, observed, |r| r.held = by.map(Into::into)).await;
    advance(stage).await;
}

#[tokio::test]
async fn an_image_of_a_running_instance_is_made_while_its_guest_is_off_and_shows_it_running() {
    let stage = Rehearsal::new().await;
    let source = stage.image_on_snapshot(DATA).await;
    let (instance, volumes) = running(&stage, &source, "").await;
    let image = create_image(&stage, &instance, "Description=d&TagSpecification.1.ResourceType=snapshot&TagSpecification.1.Tag.1.Key=of&TagSpecification.1.Tag.1.Value=it").await;
    advance(&stage).await;
    assert_eq!((image_state(&stage, &image).await.as_str(), snapshots(&stage, &image).await.len()), ("pending", 0));
    let hold = stage.body(&instance).await.hold.unwrap();
    assert_eq!(hold.kind, HoldKind::Off);
    let again = format!("CreateImage&InstanceId={instance}&Name=more");
    assert_eq!(stage.ask(&again).await.err().as_deref(), Some("IncorrectState"));
    held(&stage, &instance, Observed::Running, None).await;
    assert!(snapshots(&stage, &image).await.is_empty(), "it is not off yet");
    held(&stage, &instance, Observed::Preparing, Some(&image)).await;
    assert_eq!(stage.state(&instance).await, "running");
    let made = snapshots(&stage, &image).await;
    assert_eq!(made.len(), volumes.len());
    assert_eq!(stage.all("DescribeSnapshots&Filter.1.Name=tag:of&Filter.1.Value.1=it", "snapshotId").await, made);
    stage.seen_snapshot(&made[0], SnapshotObserved::Frozen).await;
    advance(&stage).await;
    assert!(stage.body(&instance).await.hold.is_some(), "the other volume is not fixed yet");
    stage.seen_snapshot(&made[1], SnapshotObserved::Frozen).await;
    advance(&stage).await;
    assert!(stage.body(&instance).await.hold.is_some(), "the node has not said that it stood still until now");
    held(&stage, &instance, Observed::Preparing, Some(&image)).await;
    assert!(stage.body(&instance).await.hold.is_none());
    assert_eq!(stage.state(&instance).await, "running");
    come_up(&stage, &instance, &volumes).await;
    assert!(stage.row(&instance).await.options.hold.is_none());
    stage.complete(&made[0]).await;
    advance(&stage).await;
    assert_eq!(image_state(&stage, &image).await, "pending");
    stage.complete(&made[1]).await;
    advance(&stage).await;
    let shown = stage.ask(&format!("DescribeImages&ImageId.1={image}")).await.unwrap();
    assert_eq!((first(&shown, "imageState"), first(&shown, "sourceInstanceId")), ("available".into(), instance));
    assert_eq!(first(&shown, "virtualName"), "ephemeral0");
    assert_eq!(first(&shown, "volumeSize"), "2", "the root comes first");
    launch_of(&stage, &image, "").await.unwrap();
}

#[tokio::test]
async fn without_a_reboot_one_volume_is_fixed_at_once_and_several_while_the_processors_stand_still() {
    let stage = Rehearsal::new().await;
    let plain = stage.image_on_snapshot("").await;
    let (single, _) = running(&stage, &plain, "").await;
    let image = create_image(&stage, &single, "NoReboot=true").await;
    assert!(stage.body(&single).await.hold.is_none());
    assert_eq!(snapshots(&stage, &image).await.len(), 1);

    let with_data = stage.image_on_snapshot(DATA).await;
    let (several, _) = running(&stage, &with_data, "").await;
    let request = format!("CreateImage&InstanceId={several}&Name=several&NoReboot=true");
    let image = first(&stage.ask(&request).await.unwrap(), "imageId");
    assert_eq!(stage.body(&several).await.hold.unwrap().kind, HoldKind::Paused);
    held(&stage, &several, Observed::Running, Some(&image)).await;
    let made = snapshots(&stage, &image).await;
    for id in &made {
        stage.seen_snapshot(id, SnapshotObserved::Frozen).await;
    }
    advance(&stage).await;
    // The node waited too long and let it go on: what was fixed is not of one instant.
    held(&stage, &several, Observed::Running, None).await;
    let shown = stage.ask(&format!("DescribeImages&ImageId.1={image}")).await.unwrap();
    assert_eq!(first(&shown, "imageState"), "failed");
    assert!(shown.contains("went on before"), "{shown}");
    assert!(stage.body(&several).await.hold.is_none() && snapshots(&stage, &image).await.is_empty());
}

#[tokio::test]
async fn an_image_of_what_is_off_needs_no_hold_and_leaves_out_what_it_is_told_to() {
    let stage = Rehearsal::new().await;
    let with_data = stage.image_on_snapshot(DATA).await;
    let (instance, _) = running(&stage, &with_data, "").await;
    stage.ask(&format!("StopInstances&InstanceId.1={instance}")).await.unwrap();
    stage.seen(&instance, Observed::Stopped, |_| {}).await;
    let without = "BlockDeviceMapping.1.DeviceName=/dev/sdf&BlockDeviceMapping.1.NoDevice=";
    let image = create_image(&stage, &instance, without).await;
    let made = snapshots(&stage, &image).await;
    assert_eq!(made.len(), 1);
    let delete = format!("DeleteSnapshot&SnapshotId={}", made[0]);
    assert_eq!(stage.ask(&delete).await.err().as_deref(), Some("InvalidSnapshot.InUse"));
    stage.seen_snapshot(&made[0], SnapshotObserved::Failed).await;
    advance(&stage).await;
    assert_eq!(image_state(&stage, &image).await, "failed");
    let store = running(&stage, &stage.image.clone(), "").await.0;
    let refused = stage.ask(&format!("CreateImage&InstanceId={store}&Name=none")).await;
    assert_eq!(refused.err().as_deref(), Some("InvalidParameterValue"));
}

#[tokio::test]
async fn a_guest_that_never_stands_still_fails_the_image_and_one_that_is_deregistered_lets_it_go() {
    let stage = Rehearsal::new().await;
    let plain = stage.image_on_snapshot("").await;
    let (instance, volumes) = running(&stage, &plain, "").await;
    let image = create_image(&stage, &instance, "").await;
    stage.ask(&format!("DeregisterImage&ImageId={image}")).await.unwrap();
    assert!(stage.body(&instance).await.hold.is_none());
    come_up(&stage, &instance, &volumes).await;
    let image = create_image(&stage, &instance, "").await;
    stage.pass(601_000);
    advance(&stage).await;
    assert_eq!(image_state(&stage, &image).await, "failed");
    come_up(&stage, &instance, &volumes).await;
    let request = format!("CreateImage&InstanceId={instance}&Name=third");
    let image = first(&stage.ask(&request).await.unwrap(), "imageId");
    stage.ask(&format!("TerminateInstances&InstanceId.1={instance}")).await.unwrap();
    advance(&stage).await;
    assert_eq!(image_state(&stage, &image).await, "failed");
}
