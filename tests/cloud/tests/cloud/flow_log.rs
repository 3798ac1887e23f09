//! Flow logs through all tiers: what walrus lets in decides, and what a node cannot do is shown.

use http::Method;
use mallee_tests_cloud::{Client, Cloud, eventually};

fn create(resource: (&str, &str), bucket: &str, more: &str) -> String {
    let (kind, id) = resource;
    format!(
        "Action=CreateFlowLogs&ResourceType={kind}&ResourceId.1={id}&TrafficType=ALL&LogDestinationType=s3\
         &LogDestination=arn:aws:s3:::{bucket}{more}"
    )
}

async fn let_in(owner: &Client, bucket: &str, effect: &str) {
    let policy = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"{effect}","Principal":{{"Service":"delivery.logs.amazonaws.com"}},
            "Action":"s3:PutObject","Resource":"arn:aws:s3:::{bucket}/*"}}]}}"#
    );
    owner.s3(Method::PUT, &format!("/{bucket}?policy"), policy).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_log_is_made_where_its_bucket_lets_it_in_and_tells_when_nothing_is_delivered() {
    let cloud = Cloud::start().await;
    let alice = cloud.user().await;
    let bob = cloud.account("bob").await;
    alice.s3(Method::PUT, "/alices-logs", "").await.ok();
    bob.s3(Method::PUT, "/bobs-logs", "").await.ok();
    let vpc = alice.ec2("Action=DescribeVpcs").await.value("vpcId");
    let of_vpc = |bucket: &str, more: &str| create(("VPC", &vpc), bucket, more);
    for (bucket, why) in [
        ("nobodys-logs", "LogDestination: nobodys-logs does not exist."),
        ("bobs-logs", "Access Denied for LogDestination: bobs-logs. Please check LogDestination permission"),
    ] {
        let refused = alice.ec2(&of_vpc(bucket, "")).await.ok();
        assert_eq!((refused.value("message"), refused.value("resourceId")), (why.to_owned(), vpc.clone()));
        assert!(refused.text().contains("<flowLogIdSet/>"), "{}", refused.text());
    }
    alice.ec2(&of_vpc("alices-logs", "&DryRun=true")).await.refused_with("DryRunOperation");
    let token = "&ClientToken=t&TagSpecification.1.ResourceType=vpc-flow-log&TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=v";
    let made = alice.ec2(&of_vpc("alices-logs/some/folder", token)).await.ok();
    let id = made.value("item");
    assert_eq!(alice.ec2(&of_vpc("alices-logs/some/folder", token)).await.value("item"), id);
    alice.ec2(&of_vpc("alices-logs/some/folder/", "")).await.refused_with("FlowLogAlreadyExists");
    let second = alice.ec2(&of_vpc("alices-logs", "&MaxAggregationInterval=60")).await.value("item");
    alice.ec2(&of_vpc("alices-logs", "&TrafficTyp=x")).await.refused_with("UnknownParameter");
    alice.ec2(&of_vpc("alices-logs", "")).await.refused_with("FlowLogsLimitExceeded");
    alice.ec2(&format!("Action=DeleteFlowLogs&FlowLogId.1={second}")).await.ok();

    // Another's bucket needs a policy that lets the service in; one's own may shut it out.
    let_in(&bob, "bobs-logs", "Allow").await;
    let let_in_there = alice.ec2(&of_vpc("bobs-logs", "")).await.value("item");
    alice.ec2(&format!("Action=DeleteFlowLogs&FlowLogId.1={let_in_there}")).await.ok();
    let_in(alice, "alices-logs", "Deny").await;
    let shut = alice.ec2(&of_vpc("alices-logs", "")).await.ok();
    assert!(shut.value("message").starts_with("Access Denied"), "{}", shut.text());

    let shown = alice.ec2("Action=DescribeFlowLogs&Filter.1.Name=tag:k&Filter.1.Value.1=v").await.ok();
    let expected = [
        ("flowLogId", id.as_str()),
        ("resourceId", &vpc),
        ("deliverLogsStatus", "SUCCESS"),
        ("flowLogStatus", "ACTIVE"),
        ("logDestination", "arn:aws:s3:::alices-logs/some/folder/"),
        ("maxAggregationInterval", "600"),
        ("trafficType", "ALL"),
    ];
    for (name, value) in expected {
        assert_eq!(shown.value(name), value, "{name}");
    }
    // A machine that is simulated sends no packets, and its node says so rather than that there were none.
    let instance = cloud.launch("").await;
    cloud.instance_is(&instance, "running").await;
    eventually("the log's failure is shown", || async {
        let shown = alice.ec2("Action=DescribeFlowLogs").await;
        (shown.value("deliverLogsStatus") == "FAILED").then(|| shown.value("deliverLogsErrorMessage"))
    })
    .await;
    bob.ec2(&format!("Action=DescribeFlowLogs&FlowLogId.1={id}")).await.refused_with("InvalidFlowLogId.NotFound");
    alice.ec2(&format!("Action=DeleteFlowLogs&FlowLogId.1={id}")).await.ok();
    assert!(alice.ec2("Action=DescribeFlowLogs").await.text().contains("<flowLogSet/>"));
    cloud.assert_nobody_crashed();
}
