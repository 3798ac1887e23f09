//! The way of a volume on a real store, with the zone's part said by the test.

use mallee_tiers::{AttachmentReport, Observed, VOLUMES_AT_AN_INSTANCE};

use crate::ec2::rehearsal::{Rehearsal, all, first};

async fn volume(stage: &Rehearsal, zone: &str) -> String {
    let id = first(&stage.ask(&format!("CreateVolume&AvailabilityZone={zone}&Size=1")).await.unwrap(), "volumeId");
    stage.serve(&id).await;
    id
}

async fn running(stage: &Rehearsal) -> String {
    let id = stage.launch("").await;
    stage.seen(&id, Observed::Running, |_| {}).await;
    id
}

/// Of the volume, and of its attachment.
async fn status(stage: &Rehearsal, id: &str) -> Vec<String> {
    stage.all(&format!("DescribeVolumes&VolumeId.1={id}"), "status").await
}

async fn node_has(stage: &Rehearsal, instance: &str, volume: Option<&str>) {
    stage
        .seen(instance, Observed::Running, |r| {
            r.attachments = volume
                .map(|v| AttachmentReport { volume: v.into(), attached: true, reason: String::new() })
                .into_iter()
                .collect();
        })
        .await;
}

#[tokio::test]
async fn attach_and_detach_go_through_every_step_in_order() {
    let stage = Rehearsal::new().await;
    let (instance, id) = (running(&stage).await, volume(&stage, "z-1a").await);
    assert_eq!(status(&stage, &id).await, ["available"]);
    stage.ask(&format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/sdf")).await.unwrap();
    assert_eq!(status(&stage, &id).await, ["in-use", "attaching"]);
    assert!(stage.body(&instance).await.volumes.is_empty(), "nothing is told to the node before it is served");
    stage.serve(&id).await;
    let body = stage.body(&instance).await;
    assert_eq!(body.volumes[0].device, "/dev/sdf");
    assert_eq!(status(&stage, &id).await, ["in-use", "attaching"]);
    node_has(&stage, &instance, Some(&id)).await;
    assert_eq!(status(&stage, &id).await, ["in-use", "attached"]);
    let described = stage.ask(&format!("DescribeInstances&InstanceId.1={instance}")).await.unwrap();
    assert_eq!(first(&described, "deviceName"), "/dev/sdf");

    assert_eq!(stage.ask(&format!("DeleteVolume&VolumeId={id}")).await, Err("VolumeInUse".into()));
    stage.ask(&format!("DetachVolume&VolumeId={id}")).await.unwrap();
    assert!(stage.body(&instance).await.volumes.is_empty());
    assert!(stage.wanted_volume(&id).await.export_for.is_some(), "it is served until the node has let go");
    assert_eq!(status(&stage, &id).await, ["in-use", "detaching"]);
    node_has(&stage, &instance, Some(&id)).await;
    assert_eq!(status(&stage, &id).await, ["in-use", "detaching"]);
    node_has(&stage, &instance, None).await;
    assert!(stage.wanted_volume(&id).await.export_for.is_none());
    assert_eq!(status(&stage, &id).await, ["in-use", "detaching"]);
    stage.serve(&id).await;
    assert_eq!(status(&stage, &id).await, ["available"]);
    stage.ask(&format!("DeleteVolume&VolumeId={id}")).await.unwrap();
    assert_eq!(status(&stage, &id).await, ["deleting"]);
    stage.serve(&id).await;
    assert_eq!(stage.ask(&format!("DescribeVolumes&VolumeId.1={id}")).await, Err("InvalidVolume.NotFound".into()));
}

#[tokio::test]
async fn an_attachment_is_refused_where_it_cannot_be() {
    let stage = Rehearsal::new().await;
    let (instance, id) = (running(&stage).await, volume(&stage, "z-1a").await);
    let far = volume(&stage, "z-1b").await;
    let young = first(&stage.ask("CreateVolume&AvailabilityZone=z-1a&Size=1").await.unwrap(), "volumeId");
    let pending = stage.launch("").await;
    let attach = |volume: &str, instance: &str, device: &str| {
        format!("AttachVolume&VolumeId={volume}&InstanceId={instance}&Device={device}")
    };
    for (request, code) in [
        (attach(&far, &instance, "/dev/sdf"), "InvalidVolume.ZoneMismatch"),
        (attach(&young, &instance, "/dev/sdf"), "IncorrectState"),
        (attach(&id, &pending, "/dev/sdf"), "IncorrectState"),
        (attach(&id, &instance, "/dev/sda1"), "InvalidParameterValue"),
        (attach(&id, &instance, "/dev/vda"), "InvalidParameterValue"),
        (attach(&id, &instance, "xvda"), "InvalidParameterValue"),
        (attach(&id, &instance, "/etc/passwd"), "InvalidParameterValue"),
        (attach("vol-00000000000000000", &instance, "/dev/sdf"), "InvalidVolume.NotFound"),
        (attach(&id, "i-00000000000000000", "/dev/sdf"), "InvalidInstanceID.NotFound"),
        (format!("DetachVolume&VolumeId={id}"), "IncorrectState"),
        (format!("{}&DryRun=true", attach(&id, &instance, "/dev/sdf")), "DryRunOperation"),
        ("CreateVolume&AvailabilityZone=z-9&Size=1".into(), "InvalidZone.NotFound"),
        ("CreateVolume&AvailabilityZone=z-1a".into(), "MissingParameter"),
        (
            "CreateVolume&AvailabilityZone=z-1a&Size=1&SnapshotId=snap-00000000000000000".into(),
            "InvalidSnapshot.NotFound",
        ),
        ("CreateVolume&AvailabilityZone=z-1a&Size=1&MultiAttachEnabled=true".into(), "Unsupported"),
    ] {
        assert_eq!(stage.ask(&request).await.unwrap_err(), code, "{request}");
    }
    stage.ask(&attach(&id, &instance, "/dev/sdf")).await.unwrap();
    assert_eq!(stage.ask(&attach(&id, &instance, "/dev/sdg")).await, Err("VolumeInUse".into()));
    let other = volume(&stage, "z-1a").await;
    for same in ["/dev/sdf", "/dev/xvdf", "vdf", "/dev/sdf1"] {
        assert_eq!(stage.ask(&attach(&other, &instance, same)).await, Err("InvalidParameterValue".into()), "{same}");
    }
    let wrong = format!("DetachVolume&VolumeId={id}&InstanceId={pending}");
    assert_eq!(stage.ask(&wrong).await, Err("InvalidAttachment.NotFound".into()));
    // Nobody was told of it yet: it comes off without the node.
    stage.ask(&format!("DetachVolume&VolumeId={id}")).await.unwrap();
    stage.serve(&id).await;
    assert_eq!(status(&stage, &id).await, ["available"]);
}

#[tokio::test]
async fn terminating_takes_every_volume_off_and_deletes_those_that_go_with_it() {
    let stage = Rehearsal::new().await;
    let instance = running(&stage).await;
    let (kept, goes) = (volume(&stage, "z-1a").await, volume(&stage, "z-1a").await);
    for (id, device) in [(&kept, "/dev/sdf"), (&goes, "/dev/sdg")] {
        stage.ask(&format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device={device}")).await.unwrap();
        stage.serve(id).await;
    }
    let modify = format!(
        "ModifyInstanceAttribute&InstanceId={instance}&BlockDeviceMapping.1.DeviceName=/dev/sdg\
         &BlockDeviceMapping.1.Ebs.DeleteOnTermination=true"
    );
    stage.ask(&modify).await.unwrap();
    stage.ask(&format!("TerminateInstances&InstanceId.1={instance}")).await.unwrap();
    stage.seen(&instance, Observed::Gone, |_| {}).await;
    for id in [&kept, &goes] {
        stage.serve(id).await;
    }
    assert_eq!(status(&stage, &kept).await, ["available"]);
    assert_eq!(status(&stage, &goes).await, ["deleting"]);
    stage.serve(&goes).await;
    assert_eq!(stage.all("DescribeVolumes", "volumeId").await, [kept]);
}

#[tokio::test]
async fn a_forced_detach_does_not_wait_for_the_node() {
    let stage = Rehearsal::new().await;
    let (instance, id) = (running(&stage).await, volume(&stage, "z-1a").await);
    stage.ask(&format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/sdf")).await.unwrap();
    stage.serve(&id).await;
    node_has(&stage, &instance, Some(&id)).await;
    stage.ask(&format!("DetachVolume&VolumeId={id}&Force=true")).await.unwrap();
    assert!(stage.wanted_volume(&id).await.export_for.is_none());
    // The node hears of it when the export is cut, and not before.
    assert_eq!(stage.body(&instance).await.volumes.len(), 1);
    let before = stage.row(&instance).await.generation;
    stage.serve(&id).await;
    assert!(stage.row(&instance).await.generation > before);
    assert!(stage.body(&instance).await.volumes.is_empty());
    assert_eq!(status(&stage, &id).await, ["available"]);
    let all_tags = all(&stage.ask("DescribeVolumes").await.unwrap(), "volumeType");
    assert_eq!(all_tags, ["gp2"]);
}

#[tokio::test]
async fn a_volume_is_modified_by_its_figures_at_once_and_grows_when_its_zone_says_so() {
    let stage = Rehearsal::new().await;
    let (instance, id) = (running(&stage).await, volume(&stage, "z-1a").await);
    let modify = |more: &str| format!("ModifyVolume&VolumeId={id}&{more}");
    for (more, code) in [
        ("Size=0", "InvalidParameterValue"),
        ("", "MissingParameter"),
        ("VolumeType=io1&Size=10", "MissingParameter"),
        ("Size=2&DryRun=true", "DryRunOperation"),
        ("MultiAttachEnabled=true&Size=2", "Unsupported"),
    ] {
        assert_eq!(stage.ask(&modify(more)).await.unwrap_err(), code, "{more}");
    }
    let done = stage.ask(&modify("VolumeType=gp3")).await.unwrap();
    assert_eq!((first(&done, "modificationState"), first(&done, "targetIops")), ("completed".into(), "3000".into()));
    let grown = stage.ask(&modify("Size=3")).await.unwrap();
    assert_eq!((first(&grown, "modificationState"), first(&grown, "originalSize")), ("modifying".into(), "1".into()));
    assert_eq!(stage.ask(&modify("Size=4")).await, Err("IncorrectModificationState".into()));
    assert_eq!(stage.wanted_volume(&id).await.size_gib, 3);
    stage.serve(&id).await;
    let described = format!("DescribeVolumesModifications&VolumeId.1={id}");
    assert_eq!(stage.all(&described, "modificationState").await, ["completed"]);
    assert_eq!(stage.ask(&modify("Size=2")).await, Err("InvalidParameterValue".into()));
    stage.ask(&format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/sdf")).await.unwrap();
    // At a running instance too: its node is told when the zone has grown it.
    stage.serve(&id).await;
    stage.ask(&modify("Size=4")).await.unwrap();
    let before = stage.row(&instance).await.generation;
    stage.serve(&id).await;
    assert!(stage.row(&instance).await.generation > before);
    assert_eq!(stage.body(&instance).await.volumes[0].size_gib, 4);
    let before = stage.row(&instance).await.generation;
    stage.ask(&modify("Throughput=250")).await.unwrap();
    assert!(stage.row(&instance).await.generation > before, "figures are the node's business too");
    assert_eq!(stage.body(&instance).await.volumes[0].limits.throughput_mib, Some(250));
}

#[tokio::test]
async fn a_volume_too_many_is_refused_and_does_not_wait_for_a_port() {
    let stage = Rehearsal::new().await;
    let instance = running(&stage).await;
    for letter in ('b'..='z').take(VOLUMES_AT_AN_INSTANCE) {
        let id = volume(&stage, "z-1a").await;
        stage.ask(&format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/sd{letter}")).await.unwrap();
    }
    let id = volume(&stage, "z-1a").await;
    let more = format!("AttachVolume&VolumeId={id}&InstanceId={instance}&Device=/dev/xvdba");
    assert_eq!(stage.ask(&more).await, Err("AttachmentLimitExceeded".into()));
    assert_eq!(status(&stage, &id).await, ["available"]);
}
