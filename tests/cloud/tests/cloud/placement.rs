//! Where instances go, and what is said when they can go nowhere.

use mallee_tests_cloud::{Cloud, Options, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_waits_and_says_why_and_runs_when_there_is_room() {
    // A node of 1 GiB: two of 512 MiB fit, the third does not.
    let cloud = Cloud::start_with(Options { memory_mib: 1024, ..Options::default() }).await;
    let image = cloud.image().await.to_owned();
    let launch = || async {
        cloud
            .ec2(&format!("Action=RunInstances&ImageId={image}&InstanceType=t3.nano&MinCount=1&MaxCount=1"))
            .await
            .value("instanceId")
    };
    let (first, second) = (launch().await, launch().await);
    cloud.instance_is(&first, "running").await;
    cloud.instance_is(&second, "running").await;
    let third = launch().await;
    eventually("it is told that memory is missing", || async {
        let why = cloud.why(&third).await;
        (why.contains("memory") && why.contains("no place yet")).then_some(())
    })
    .await;
    assert_eq!(cloud.state(&third).await, "pending");
    eventually("the user is told why, too", || async {
        let described = cloud.ec2(&format!("Action=DescribeInstances&InstanceId.1={third}")).await;
        described.text().contains("memory").then_some(())
    })
    .await;
    cloud.ec2(&format!("Action=TerminateInstances&InstanceId.1={first}")).await.ok();
    cloud.instance_is(&third, "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_spread_over_nodes_and_put_into_the_zone_that_was_asked_for() {
    let cloud = Cloud::start_with(Options { zones: 2, nodes: 2, ..Options::default() }).await;
    let mut ids = Vec::new();
    for zone in ["mallee-1a", "mallee-1a", "mallee-1b", "mallee-1b"] {
        ids.push(cloud.launch(&format!("&Placement.AvailabilityZone={zone}")).await);
    }
    for id in &ids {
        cloud.instance_is(id, "running").await;
    }
    let mut nodes: Vec<(String, u32)> =
        cloud.status().await.nodes.into_iter().map(|row| (row.node.node, row.node.instances)).collect();
    nodes.sort();
    let names = ["mallee-1a-n1", "mallee-1a-n2", "mallee-1b-n1", "mallee-1b-n2"];
    assert_eq!(nodes, names.map(|name| (name.to_owned(), 1)));
}
