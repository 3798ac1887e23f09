//! The same client token never makes two of anything.

use std::collections::BTreeSet;

use mallee_tests_cloud::{Cloud, Tier};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_times_the_same_token_at_once_is_one_instance() {
    let cloud = Cloud::start().await;
    cloud.image().await;
    let launches = (0..20).map(|_| cloud.launch("&ClientToken=once"));
    let ids: BTreeSet<String> = futures_util::future::join_all(launches).await.into_iter().collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let all = cloud.ec2("Action=DescribeInstances").await.values("instanceId");
    assert_eq!(all, ids.into_iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_remembered_by_a_cloud_controller_that_was_killed() {
    let cloud = Cloud::start().await;
    let id = cloud.launch("&ClientToken=once").await;
    cloud.restart(&[Tier::CloudController]).await;
    assert_eq!(cloud.launch("&ClientToken=once").await, id);
    let volume = "Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1&ClientToken=once";
    let made = cloud.ec2(volume).await.value("volumeId");
    cloud.restart(&[Tier::CloudController]).await;
    assert_eq!(cloud.ec2(volume).await.value("volumeId"), made);
}
