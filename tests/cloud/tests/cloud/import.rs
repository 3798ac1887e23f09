//! Imports through all tiers: an object in walrus becomes a snapshot, and an image that is launched.

use std::{path::Path, process::Command};

use http::Method;
use mallee_tests_cloud::{Client, Cloud, Tier, eventually};

use crate::snapshot::{completed, read, serve, walrus_has};

/// One block of `a`, one of zeros, one of `b`, and a bit.
fn content() -> Vec<u8> {
    let mut bytes = vec![0u8; (3 << 19) + 4096];
    bytes[..1 << 19].fill(b'a');
    bytes[2 << 19..].fill(b'b');
    bytes
}

fn qemu_img(words: &[&str]) {
    let done = Command::new("qemu-img").args(words).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

async fn put(user: &Client, file: &Path) -> String {
    let key = file.file_name().unwrap().to_str().unwrap().to_owned();
    user.s3(Method::PUT, "/disks", "").await;
    user.s3(Method::PUT, &format!("/disks/{key}"), std::fs::read(file).unwrap()).await.ok();
    key
}

async fn import(cloud: &Cloud, key: &str, format: &str) -> String {
    import_with(cloud, key, format, "").await
}

async fn import_with(cloud: &Cloud, key: &str, format: &str, more: &str) -> String {
    let request = format!(
        "Action=ImportSnapshot&Description=d&DiskContainer.Format={format}&DiskContainer.UserBucket.S3Bucket=disks\
         &DiskContainer.UserBucket.S3Key={key}{more}"
    );
    cloud.ec2(&request).await.value("importTaskId")
}

/// Waits until the task has ended: its status, its snapshot, and what it says.
async fn ended(cloud: &Cloud, task: &str) -> (String, Option<String>, String) {
    eventually(&format!("{task} has ended"), || async {
        let answer = cloud.ec2(&format!("Action=DescribeImportSnapshotTasks&ImportTaskId.1={task}")).await;
        let status = answer.value("status");
        let told = (status.clone(), answer.get("snapshotId"), answer.get("statusMessage").unwrap_or_default());
        (status != "active").then_some(told)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_in_walrus_becomes_a_snapshot_in_whatever_format_and_whoever_dies() {
    let cloud = Cloud::start().await;
    let (dir, user) = (tempfile::tempdir().unwrap(), cloud.user().await);
    let raw = dir.path().join("disk.raw");
    std::fs::write(&raw, content()).unwrap();
    for (format, options) in [
        ("raw", &["-O", "raw"][..]),
        ("qcow2", &["-O", "qcow2", "-c"]),
        ("vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ] {
        let file = dir.path().join(format!("disk.{format}.file"));
        qemu_img(&[&["convert", "-f", "raw"], options, &[raw.to_str().unwrap(), file.to_str().unwrap()]].concat());
        let key = put(user, &file).await;
        let task = import(&cloud, &key, format).await;
        cloud.restart(&[Tier::CloudController]).await;
        cloud.wait_for_everybody().await;
        let (status, snapshot, message) = ended(&cloud, &task).await;
        assert_eq!(status, "completed", "{format}: {message}");
        let create = format!("Action=CreateVolume&AvailabilityZone=mallee-1a&SnapshotId={}", snapshot.unwrap());
        let volume = cloud.ec2(&create).await.value("volumeId");
        serve(&cloud, &volume).await;
        for (fill, at) in [(b'a', 0), (0, 1 << 19), (b'b', 2 << 19), (0, 3 << 20)] {
            read(&cloud, &volume, fill, at);
        }
        let left = std::fs::read_dir(cloud.state_of(Tier::CloudController).join("spool-of-imports")).unwrap().count();
        assert_eq!(left, 0, "nothing of it is left on the cloud-controller's disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_names_other_files_is_refused_and_one_that_is_cancelled_is_not_made() {
    let cloud = Cloud::start().await;
    let (dir, user) = (tempfile::tempdir().unwrap(), cloud.user().await);
    let path = |name: &str| dir.path().join(name);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "/etc/shadow",
        path("backed").to_str().unwrap(),
        "1M",
    ]);
    qemu_img(&["create", "-q", "-f", "qcow2", path("huge").to_str().unwrap(), "1P"]);
    std::fs::write(path("text"), "# Disk DescriptorFile\nRW 8 FLAT \"/etc/shadow\" 0\n".repeat(20)).unwrap();
    for (name, format, why) in
        [("backed", "qcow2", "backing file"), ("huge", "qcow2", "claims to be"), ("text", "VMDK", "other files")]
    {
        let key = put(user, &path(name)).await;
        let task = import(&cloud, &key, format).await;
        let (status, snapshot, message) = ended(&cloud, &task).await;
        assert_eq!((status.as_str(), snapshot), ("deleted", None));
        assert!(message.contains(why), "{name}: {message}");
    }
    let missing = import(&cloud, "nothing", "raw").await;
    assert!(ended(&cloud, &missing).await.2.contains("not there"));
    for (more, code) in [
        ("DiskContainer.Format=VHD&DiskContainer.Url=s3://disks/text", "Unsupported"),
        ("DiskContainer.Format=RAW&DiskContainer.Url=http://169.254.169.254/latest", "InvalidParameterValue"),
        ("DiskContainer.Format=RAW", "InvalidParameterCombination"),
    ] {
        cloud.ec2(&format!("Action=ImportSnapshot&{more}")).await.refused_with(code);
    }
    // walrus is away: it waits, and can be cancelled.
    cloud.kill(&[Tier::Walrus]).await;
    let waits = import(&cloud, "text", "raw").await;
    let cancelled = cloud.ec2(&format!("Action=CancelImportTask&ImportTaskId={waits}")).await;
    assert_eq!((cancelled.value("previousState"), cancelled.value("state")), ("active".into(), "deleted".into()));
    cloud.bring_up(Tier::Walrus).await;
    cloud.wait_for_everybody().await;
    cloud.ec2(&format!("Action=CancelImportTask&ImportTaskId={waits}")).await.refused_with("IncorrectState");
    let snapshots = cloud.ec2("Action=DescribeSnapshots&Owner.1=self").await.values("snapshotId");
    assert_eq!(snapshots, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_imported_and_launched() {
    let cloud = Cloud::start().await;
    let (dir, user) = (tempfile::tempdir().unwrap(), cloud.user().await);
    let raw = dir.path().join("disk.raw");
    std::fs::write(&raw, content()).unwrap();
    let key = put(user, &raw).await;
    let request =
        format!("Action=ImportImage&DiskContainer.1.Format=raw&DiskContainer.1.Url=s3://disks/{key}&ClientToken=t");
    let task = cloud.ec2(&request).await.value("importTaskId");
    assert_eq!(cloud.ec2(&request).await.value("importTaskId"), task, "the same token makes one");
    let image = eventually("the image is imported", || async {
        let answer = cloud.ec2(&format!("Action=DescribeImportImageTasks&ImportTaskId.1={task}")).await;
        (answer.value("status") == "completed").then(|| answer.value("imageId"))
    })
    .await;
    let run = format!("Action=RunInstances&ImageId={image}&InstanceType=mini.nano&MinCount=1&MaxCount=1");
    let id = cloud.ec2(&run).await.value("instanceId");
    cloud.instance_is(&id, "running").await;
    let stranger = cloud.account("mallory").await;
    let foreign = stranger.ec2(&format!("Action=CancelImportTask&ImportTaskId={task}")).await;
    let nobody = stranger.ec2("Action=CancelImportTask&ImportTaskId=import-ami-0123456789abcdef0").await;
    assert_eq!((foreign.code(), nobody.code()), ("InvalidConversionTaskId".into(), "InvalidConversionTaskId".into()));
}

/// A volume made of a snapshot is what `content` is.
async fn reads_as_content(cloud: &Cloud, snapshot: &str) {
    let create = format!("Action=CreateVolume&AvailabilityZone=mallee-1a&SnapshotId={snapshot}");
    let made = cloud.ec2(&create).await;
    assert_eq!(made.value("encrypted"), "true");
    let volume = made.value("volumeId");
    serve(cloud, &volume).await;
    for (fill, at) in [(b'a', 0), (0, 1 << 19), (b'b', 2 << 19), (0, 3 << 20)] {
        read(cloud, &volume, fill, at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_import_and_an_encrypted_copy_are_what_they_are_of_and_walrus_has_none_of_it_in_clear() {
    let cloud = Cloud::start().await;
    let (dir, user) = (tempfile::tempdir().unwrap(), cloud.user().await);
    let raw = dir.path().join("disk.raw");
    std::fs::write(&raw, content()).unwrap();
    let key = put(user, &raw).await;
    let tag = "&TagSpecification.1.ResourceType=import-snapshot-task&TagSpecification.1.Tag.1.Key=k\
               &TagSpecification.1.Tag.1.Value=v&Encrypted=true";
    let task = import_with(&cloud, &key, "raw", tag).await;
    let (status, sealed, message) = ended(&cloud, &task).await;
    assert_eq!(status, "completed", "{message}");
    let tagged = cloud.ec2("Action=DescribeImportSnapshotTasks&Filters.1.Name=tag:k&Filters.1.Value.1=v").await;
    assert_eq!((tagged.value("importTaskId"), tagged.value("encrypted")), (task, "true".into()));
    assert!(!walrus_has(&cloud, b'a').await);
    reads_as_content(&cloud, &sealed.unwrap()).await;

    let clear = import(&cloud, &key, "raw").await;
    let clear = ended(&cloud, &clear).await.1.unwrap();
    assert!(walrus_has(&cloud, b'a').await);
    let copy = format!("Action=CopySnapshot&SourceRegion=mallee-1&SourceSnapshotId={clear}&Encrypted=true");
    let copy = cloud.ec2(&copy).await.value("snapshotId");
    // Its blocks stay until the copy has them, whoever is killed.
    cloud.ec2(&format!("Action=DeleteSnapshot&SnapshotId={clear}")).await.ok();
    cloud.restart(&[Tier::CloudController, Tier::Storage(0)]).await;
    cloud.wait_for_everybody().await;
    completed(&cloud, &copy).await;
    reads_as_content(&cloud, &copy).await;
    eventually("what was in clear is gone from walrus", || async { (!walrus_has(&cloud, b'a').await).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_fails_half_way_leaves_nothing_in_walrus_that_nobody_else_needs() {
    let cloud = Cloud::start().await;
    let (dir, user) = (tempfile::tempdir().unwrap(), cloud.user().await);
    let path = |name: &str| dir.path().join(name);
    let blocks = |fills: std::ops::RangeInclusive<u8>| fills.flat_map(|fill| vec![fill; 1 << 19]).collect::<Vec<u8>>();
    std::fs::write(path("small.raw"), blocks(2..=2)).unwrap();
    std::fs::write(path("large.raw"), blocks(1..=32)).unwrap();
    let (raw, qcow2) = (path("large.raw"), path("cut.qcow2"));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), qcow2.to_str().unwrap()]);
    let file = std::fs::OpenOptions::new().write(true).open(&qcow2).unwrap();
    file.set_len(file.metadata().unwrap().len() - (1 << 20)).unwrap();
    let small = put(user, &path("small.raw")).await;
    let kept = import(&cloud, &small, "raw").await;
    assert_eq!(ended(&cloud, &kept).await.0, "completed");
    let cut = put(user, &qcow2).await;
    let fails = import(&cloud, &cut, "qcow2").await;
    let (status, _, message) = ended(&cloud, &fails).await;
    assert_eq!(status, "deleted", "{message}");
    assert!(message.contains("beyond its end"), "{message}");
    eventually("what was sent is gone", || async { (!walrus_has(&cloud, 1).await).then_some(()) }).await;
    assert!(walrus_has(&cloud, 2).await, "another snapshot needs it");
}
