//! The life of an instance.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use mallee_service::Clock;
use mallee_tests_cloud::{Cloud, Options, Tier, eventually};

const NODE: Tier = Tier::Node(0, 0);

/// The node an instance of the user's is on, as the operator sees it.
async fn node_of(cloud: &Cloud, id: &str) -> String {
    let why = cloud.why(id).await;
    let place = why.lines().find_map(|line| line.split("its place is node ").nth(1));
    place.unwrap_or_else(|| panic!("no place in {why}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_reaches_running_on_a_node() {
    let cloud = Cloud::start().await;
    let id = cloud.launch("").await;
    cloud.instance_is(&id, "running").await;
    assert_eq!(cloud.boots(&id), 1);
    let status = cloud.status().await;
    assert_eq!(status.nodes[0].node.instances, 1);
    assert_eq!(status.orphans, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_launches_many_in_one_reservation() {
    let cloud = Cloud::start_with(Options { nodes: 2, ..Options::default() }).await;
    let image = cloud.image().await;
    let answer = cloud
        .ec2(&format!("Action=RunInstances&ImageId={image}&InstanceType=mini.nano&MinCount=20&MaxCount=20"))
        .await
        .ok();
    let ids = answer.values("instanceId");
    assert_eq!(ids.len(), 20);
    assert_eq!(answer.values("amiLaunchIndex"), (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    let mut addresses = Vec::new();
    for id in &ids {
        cloud.instance_is(id, "running").await;
        let described = cloud.ec2(&format!("Action=DescribeInstances&InstanceId.1={id}")).await;
        addresses.push((described.value("privateIpAddress"), described.value("macAddress")));
    }
    addresses.sort();
    let (ips, macs): (Vec<_>, Vec<_>) = addresses.into_iter().unzip();
    for mut given in [ips, macs] {
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 20, "an address was given out twice");
    }
    assert_eq!(cloud.guests(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_start_keep_the_node() {
    let cloud = Cloud::start_with(Options { nodes: 3, ..Options::default() }).await;
    let id = cloud.launch("").await;
    cloud.instance_is(&id, "running").await;
    let before = node_of(&cloud, &id).await;
    cloud.ec2(&format!("Action=StopInstances&InstanceId.1={id}")).await.ok();
    cloud.instance_is(&id, "stopped").await;
    assert_eq!(cloud.guests(), 0);
    // The other nodes are the emptier ones now; it has its disk here.
    cloud.ec2(&format!("Action=StartInstances&InstanceId.1={id}")).await.ok();
    cloud.instance_is(&id, "running").await;
    assert_eq!(node_of(&cloud, &id).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_instance_is_visible_for_an_hour_and_leaves_nothing() {
    let now = time::OffsetDateTime::now_utc();
    let clock = Arc::new(AtomicI64::new((now.unix_timestamp_nanos() / 1_000_000) as i64));
    let cloud = Cloud::start_with(Options { clock: Clock::Manual(clock.clone()), ..Options::default() }).await;
    let id = cloud.launch("").await;
    cloud.instance_is(&id, "running").await;
    cloud.ec2(&format!("Action=TerminateInstances&InstanceId.1={id}")).await.ok();
    cloud.instance_is(&id, "terminated").await;
    assert_eq!(cloud.guests(), 0);
    let folder = cloud.state_of(NODE).join("instances").join(&id);
    assert!(!folder.exists(), "{} is still there", folder.display());
    let interfaces = cloud.ec2("Action=DescribeNetworkInterfaces").await.ok();
    assert!(!interfaces.text().contains(&id), "{}", interfaces.text());
    eventually("the node has all its capacity again", || async {
        let node = cloud.status().await.nodes.remove(0).node;
        (node.instances == 0 && node.used == Default::default()).then_some(())
    })
    .await;

    // The clients' clock goes with the cloud's. A cloud-controller that starts sweeps at once.
    let mut user = cloud.user().await.clone();
    let describe = format!("Action=DescribeInstances&InstanceId.1={id}");
    clock.fetch_add(59 * 60_000, Ordering::SeqCst);
    user.ahead = time::Duration::minutes(59);
    cloud.restart(&[Tier::CloudController]).await;
    cloud.wait_for_everybody().await;
    assert_eq!(user.ec2(&describe).await.status, 200);
    clock.fetch_add(2 * 60_000, Ordering::SeqCst);
    user.ahead = time::Duration::minutes(61);
    cloud.restart(&[Tier::CloudController]).await;
    eventually("the row is gone after an hour", || async {
        (user.ec2(&describe).await.code() == "InvalidInstanceID.NotFound").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_itself_off_is_stopped_or_ended_as_it_was_asked_to_be() {
    let cloud = Cloud::start().await;
    let (stops, ends) = tokio::join!(cloud.launch(""), cloud.launch("&InstanceInitiatedShutdownBehavior=terminate"));
    for id in [&stops, &ends] {
        cloud.instance_is(id, "running").await;
        cloud.machine(NODE).guest_powers_off(id);
    }
    cloud.instance_is(&stops, "stopped").await;
    cloud.instance_is(&ends, "terminated").await;
    let told = cloud.ec2(&format!("Action=DescribeInstances&InstanceId.1={stops}")).await;
    assert!(told.text().contains("Client.InstanceInitiatedShutdown"), "{}", told.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_one_reset_of_the_same_guest() {
    let cloud = Cloud::start().await;
    let id = cloud.launch("").await;
    cloud.instance_is(&id, "running").await;
    cloud.ec2(&format!("Action=RebootInstances&InstanceId.1={id}")).await.ok();
    eventually("the guest came up again", || async { (cloud.boots(&id) == 2).then_some(()) }).await;
    cloud.restart(&cloud.tiers()).await;
    cloud.wait_for_everybody().await;
    cloud.instance_is(&id, "running").await;
    assert_eq!(cloud.boots(&id), 2, "a reboot that was done is done again after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_made_while_the_cluster_controller_is_down_completes_when_it_is_back() {
    let cloud = Cloud::start().await;
    cloud.image().await;
    cloud.kill(&[Tier::Cluster(0)]).await;
    let id = cloud.launch("").await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(cloud.state(&id).await, "pending");
    cloud.bring_up(Tier::Cluster(0)).await;
    cloud.instance_is(&id, "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_cannot_be_carried_out_says_why() {
    let cloud = Cloud::start().await;
    cloud.machine(NODE).refuse_next_start("the machine is on fire");
    let id = cloud.launch("").await;
    eventually("the reason is told", || async {
        let why = cloud.why(&id).await;
        let running = cloud.state(&id).await == "running";
        (running || why.contains("the machine is on fire")).then_some(())
    })
    .await;
}
