//! Absence never destroys: a cloud-controller whose store is empty or old ends no guest.

use std::path::Path;

use mallee_tests_cloud::{Cloud, Tier, eventually};
use mallee_tiers::ZoneAsked;

/// The files of the store, whatever the engine calls them.
fn store_files(state: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("store.db")).collect()
}

async fn orphans_are(cloud: &Cloud, expected: &[&String]) {
    let mut expected: Vec<&String> = expected.to_vec();
    expected.sort();
    eventually("the orphans are shown", || async {
        let status = cloud.admin().status(&Default::default()).await.ok()?;
        (status.orphans.iter().collect::<Vec<_>>() == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_cloud_controller_store_ends_no_guest_and_shows_orphans() {
    let cloud = Cloud::start().await;
    let (a, b) = (cloud.launch("").await, cloud.launch("").await);
    cloud.instance_is(&a, "running").await;
    cloud.instance_is(&b, "running").await;
    cloud.kill(&[Tier::CloudController]).await;
    for file in store_files(&cloud.state_of(Tier::CloudController)) {
        std::fs::remove_file(file).unwrap();
    }
    cloud.bring_up(Tier::CloudController).await;
    cloud.wait_for_everybody().await;
    orphans_are(&cloud, &[&a, &b]).await;
    assert_eq!(cloud.guests(), 2);
    // A list of another incarnation is refused until a person says otherwise; then too nothing is ended.
    cloud.admin().zone_adopt(&ZoneAsked { zone: "mallee-1a".into() }).await.unwrap();
    let stranger = cloud.account("after").await;
    let image = cloud.register(&stranger, "fresh").await;
    mallee_tests_cloud::image_settles(&stranger, &image, "available").await;
    let launch = format!("Action=RunInstances&ImageId={image}&InstanceType=mini.nano&MinCount=1&MaxCount=1");
    let new = stranger.ec2(&launch).await.value("instanceId");
    eventually("the new cloud can launch beside the orphans", || async { (cloud.boots(&new) == 1).then_some(()) })
        .await;
    orphans_are(&cloud, &[&a, &b]).await;
    assert_eq!((cloud.boots(&a), cloud.boots(&b), cloud.guests()), (1, 1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cloud_controller_store_ends_no_guest_and_shows_orphans() {
    let cloud = Cloud::start().await;
    let old = cloud.launch("").await;
    cloud.instance_is(&old, "running").await;
    let state = cloud.state_of(Tier::CloudController);
    cloud.kill(&[Tier::CloudController]).await;
    let backup = tempfile::tempdir().unwrap();
    for file in store_files(&state) {
        std::fs::copy(&file, backup.path().join(file.file_name().unwrap())).unwrap();
    }
    cloud.bring_up(Tier::CloudController).await;
    cloud.wait_for_everybody().await;
    let young = cloud.launch("").await;
    cloud.instance_is(&young, "running").await;
    cloud.kill(&[Tier::CloudController]).await;
    for file in store_files(&state) {
        std::fs::remove_file(file).unwrap();
    }
    for file in store_files(backup.path()) {
        std::fs::copy(&file, state.join(file.file_name().unwrap())).unwrap();
    }
    cloud.bring_up(Tier::CloudController).await;
    cloud.wait_for_everybody().await;
    orphans_are(&cloud, &[&young]).await;
    assert_eq!(cloud.state(&old).await, "running");
    assert_eq!((cloud.boots(&old), cloud.boots(&young), cloud.guests()), (1, 1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_cluster_controller_store_ends_no_guest_and_is_told_by_its_nodes_that_it_is_the_wrong_one() {
    let cloud = Cloud::start().await;
    let id = cloud.launch("").await;
    cloud.instance_is(&id, "running").await;
    cloud.kill(&[Tier::Cluster(0)]).await;
    for file in store_files(&cloud.state_of(Tier::Cluster(0))) {
        std::fs::remove_file(file).unwrap();
    }
    cloud.bring_up(Tier::Cluster(0)).await;
    cloud.wait_for_everybody().await;
    eventually("the fault is shown with its remedy", || async {
        let status = cloud.status().await;
        let faults: Vec<_> =
            status.tiers.into_iter().filter_map(|tier| tier.status).flat_map(|tier| tier.faults).collect();
        faults
            .iter()
            .any(|f| f.what.contains("refuses its list") && f.remedy.contains("put that store back"))
            .then_some(())
    })
    .await;
    assert_eq!(cloud.state(&id).await, "running");
    assert_eq!((cloud.boots(&id), cloud.guests()), (1, 1), "a guest was started twice or ended");
    orphans_are(&cloud, &[]).await;
}
