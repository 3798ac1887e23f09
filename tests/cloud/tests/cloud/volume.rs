//! Volumes: the real storage-controller, its export daemon, and a simulated machine that is told of disks.

use mallee_tests_cloud::{Cloud, Tier, eventually};

async fn volume(cloud: &Cloud) -> String {
    let id = cloud.ec2("Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1").await.value("volumeId");
    volume_is(cloud, &id, "available").await;
    id
}

/// Waits for a volume to be in a state.
pub async fn volume_is(cloud: &Cloud, id: &str, state: &str) {
    eventually(&format!("{id} is {state}"), || async {
        let answer = cloud.ec2(&format!("Action=DescribeVolumes&VolumeId.1={id}")).await;
        let first = answer.status == 200 && answer.xml().first("status").map(|s| s.text()).as_deref() == Some(state);
        first.then_some(())
    })
    .await;
}

async fn attachment_is(cloud: &Cloud, id: &str, state: &str) {
    eventually(&format!("the attachment of {id} is {state}"), || async {
        let answer = cloud.ec2(&format!("Action=DescribeVolumes&VolumeId.1={id}")).await;
        let attachment = answer.xml().first("attachmentSet").cloned()?;
        (attachment.first("status")?.text() == state).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_attached_to_a_running_instance_and_detached_and_leaves_nothing() {
    let cloud = Cloud::start().await;
    let (id, disk) = tokio::join!(cloud.launch(""), volume(&cloud));
    cloud.instance_is(&id, "running").await;
    let attach = format!("Action=AttachVolume&VolumeId={disk}&InstanceId={id}&Device=/dev/sdf");
    cloud.ec2(&attach).await.ok();
    attachment_is(&cloud, &disk, "attached").await;
    volume_is(&cloud, &disk, "in-use").await;
    let described = cloud.ec2(&format!("Action=DescribeInstances&InstanceId.1={id}")).await;
    assert!(described.values("volumeId").contains(&disk), "{}", described.text());
    cloud.ec2(&format!("Action=DetachVolume&VolumeId={disk}")).await.ok();
    volume_is(&cloud, &disk, "available").await;
    cloud.ec2(&format!("Action=DeleteVolume&VolumeId={disk}")).await.ok();
    eventually("the volume's file is gone", || async {
        let folder = cloud.state_of(Tier::Storage(0)).join("volumes");
        let left = std::fs::read_dir(folder)
            .map(|files| files.flatten().any(|f| f.file_name().to_string_lossy().contains(&disk)));
        (!left.unwrap_or(false)).then_some(())
    })
    .await;
    assert_eq!(cloud.boots(&id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_volume_wanted_by_many_at_once_is_given_to_one() {
    let cloud = Cloud::start().await;
    let disk = volume(&cloud).await;
    let ids = futures_util::future::join_all((0..4).map(|_| cloud.launch(""))).await;
    for id in &ids {
        cloud.instance_is(id, "running").await;
    }
    let attaches: Vec<String> =
        ids.iter().map(|id| format!("Action=AttachVolume&VolumeId={disk}&InstanceId={id}&Device=/dev/sdf")).collect();
    let answers = futures_util::future::join_all(attaches.iter().map(|attach| cloud.ec2(attach))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    answers.iter().filter(|answer| answer.status != 200).for_each(|answer| answer.refused_with("VolumeInUse"));
    attachment_is(&cloud, &disk, "attached").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_instance_gives_its_volumes_back() {
    let cloud = Cloud::start().await;
    let (id, disk) = tokio::join!(cloud.launch(""), volume(&cloud));
    cloud.instance_is(&id, "running").await;
    cloud.ec2(&format!("Action=AttachVolume&VolumeId={disk}&InstanceId={id}&Device=/dev/sdf")).await.ok();
    attachment_is(&cloud, &disk, "attached").await;
    cloud.ec2(&format!("Action=TerminateInstances&InstanceId.1={id}")).await.ok();
    cloud.instance_is(&id, "terminated").await;
    volume_is(&cloud, &disk, "available").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_outlives_every_tier_being_killed() {
    let cloud = Cloud::start().await;
    let (id, disk) = tokio::join!(cloud.launch(""), volume(&cloud));
    cloud.instance_is(&id, "running").await;
    cloud.ec2(&format!("Action=AttachVolume&VolumeId={disk}&InstanceId={id}&Device=/dev/sdf")).await.ok();
    attachment_is(&cloud, &disk, "attached").await;
    cloud.restart(&cloud.tiers()).await;
    cloud.wait_for_everybody().await;
    attachment_is(&cloud, &disk, "attached").await;
    cloud.instance_is(&id, "running").await;
    assert_eq!(cloud.boots(&id), 1);
    cloud.ec2(&format!("Action=DetachVolume&VolumeId={disk}")).await.ok();
    volume_is(&cloud, &disk, "available").await;
}
