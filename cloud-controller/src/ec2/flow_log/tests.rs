//! Flow logs as clients see them, without walrus: what is asked of it is in the tests of the whole cloud.

use mallee_store::params;
use mallee_tiers::{FlowLogFailure, FlowLogFailureKind, FlowTraffic, InstanceReport};

use super::*;
use crate::ec2::{
    instance::render,
    rehearsal::{Rehearsal, first},
};

const BUCKET: &str = "LogDestinationType=s3&LogDestination=arn:aws:s3:::logs/some/folder";

async fn make(a: &Rehearsal, resource: &str, traffic: &str) -> String {
    let id = FlowLogId::from_random(rand::random()).to_string();
    let values = (id.clone(), a.account.clone(), resource.to_owned(), traffic.to_owned());
    let made = a.cloud.store.write("make a flow log", move |tx| {
        let (id, account, resource, traffic) = &values;
        tx.execute(
            "INSERT INTO flow_log (id, account, resource, traffic, destination, window_s, format, created)
             VALUES (?1, ?2, ?3, ?4, 'arn:aws:s3:::logs/some/folder/', 60, '${srcaddr} ${vpc-id}', 5)",
            params![id, account, resource, traffic],
        )
    });
    made.await.unwrap();
    id
}

async fn watch(a: &Rehearsal, instance: &str) -> Option<FlowWatch> {
    let (id, cloud, zone) = (instance.to_owned(), a.cloud.clone(), a.row(instance).await.zone);
    let bodies = a.cloud.store.read("read a body", move |tx| render(tx, &cloud, &zone, &[id.clone()].into()));
    let (_, body) = bodies.await.unwrap().remove(0);
    body.unwrap().interfaces.remove(0).flow.map(|flow| *flow)
}

#[tokio::test]
async fn what_is_not_done_is_refused_by_name() {
    let a = Rehearsal::new().await;
    let vpc = first(&a.ask("DescribeVpcs").await.unwrap(), "vpcId");
    let its = format!("ResourceType=VPC&ResourceId.1={vpc}&TrafficType=ALL");
    for (more, code) in [
        (format!("{its}&LogGroupName=g&DeliverLogsPermissionArn=arn"), "Unsupported"),
        (format!("{its}&LogDestinationType=cloud-watch-logs&LogDestination=arn"), "Unsupported"),
        (format!("{its}&LogDestinationType=kinesis-data-firehose&LogDestination=arn"), "Unsupported"),
        (format!("{its}&LogDestinationType=tape"), "InvalidParameterValue"),
        (format!("{its}&LogDestinationType=s3"), "MissingParameter"),
        (format!("{its}&LogDestinationType=s3&LogDestination=logs"), "InvalidParameter"),
        (format!("{its}&LogDestinationType=s3&LogDestination=arn:aws:s3:::logs/AWSLogs/x"), "InvalidParameter"),
        (format!("{its}&{BUCKET}&MaxAggregationInterval=61"), "InvalidParameterValue"),
        (format!("{its}&{BUCKET}&LogFormat=${{traffic-path}}"), "InvalidParameter"),
        (format!("{its}&{BUCKET}&DestinationOptions.FileFormat=parquet"), "Unsupported"),
        (format!("{its}&{BUCKET}&DestinationOptions.PerHourPartition=true"), "Unsupported"),
        (format!("{its}&{BUCKET}&DestinationOptions.HiveCompatiblePartitions=true"), "Unsupported"),
        (format!("{its}&{BUCKET}&DeliverCrossAccountRole=arn"), "Unsupported"),
        (format!("ResourceType=VPC&ResourceId.1={vpc}&TrafficType=SOME&{BUCKET}"), "InvalidParameterValue"),
        (format!("ResourceType=VPC&ResourceId.1={vpc}&{BUCKET}"), "MissingParameter"),
        (format!("ResourceType=TransitGateway&ResourceId.1=tgw-1&TrafficType=ALL&{BUCKET}"), "Unsupported"),
        (format!("ResourceType=VPC&TrafficType=ALL&{BUCKET}"), "MissingParameter"),
        (format!("ResourceType=Subnet&ResourceId.1={vpc}&TrafficType=ALL&{BUCKET}"), "InvalidSubnetID.Malformed"),
        (
            format!("ResourceType=VPC&ResourceId.1=vpc-0123456789abcdef0&TrafficType=ALL&{BUCKET}"),
            "InvalidVpcID.NotFound",
        ),
        // Nobody can say whether the bucket is there.
        (format!("{its}&{BUCKET}"), "Unavailable"),
    ] {
        assert_eq!(a.ask(&format!("CreateFlowLogs&{more}")).await, Err(code.into()), "{more}");
    }
}

#[tokio::test]
async fn a_log_reaches_the_nodes_of_the_interfaces_it_is_of_and_ends_with_what_it_is_of() {
    let a = Rehearsal::new().await;
    let instance = a.launch("").await;
    assert_eq!(watch(&a, &instance).await, None);
    let shown = a.ask("DescribeNetworkInterfaces").await.unwrap();
    let (interface, vpc) = (first(&shown, "networkInterfaceId"), first(&shown, "vpcId"));
    let (of_vpc, of_interface) = (make(&a, &vpc, "REJECT").await, make(&a, &interface, "ALL").await);
    let logs = watch(&a, &instance).await.unwrap().logs;
    assert_eq!(
        logs.iter().map(|l| (l.id.as_str(), l.traffic)).collect::<Vec<_>>(),
        [(of_vpc.as_str(), FlowTraffic::Reject), (of_interface.as_str(), FlowTraffic::All)]
    );
    let (region, account) = (a.cloud.region(), &a.account);
    assert_eq!(logs[0].place.folder, format!("some/folder/AWSLogs/{account}/vpcflowlogs/{region}/"));
    assert_eq!(logs[0].place.name, format!("{account}_vpcflowlogs_{region}_{of_vpc}"));
    let fields: Vec<_> = logs[0].fields.iter().map(|f| (f.name.as_str(), f.fixed.as_deref())).collect();
    assert_eq!(fields, [("srcaddr", None), ("vpc-id", Some(vpc.as_str()))]);

    // A change of what is wanted is a new generation of what zones are sent.
    let before = a.row(&instance).await.generation;
    assert_eq!(
        a.ask(&format!("DeleteFlowLogs&FlowLogId.1={of_vpc}&FlowLogId.2=fl-0123456789abcdef0")).await,
        Err("InvalidFlowLogId.NotFound".into())
    );
    let stranger = a.another_account().await;
    let delete = format!("DeleteFlowLogs&FlowLogId.1={of_vpc}");
    assert_eq!(a.ask_as(&stranger, &delete).await, Err("InvalidFlowLogId.NotFound".into()));
    assert_eq!(a.ask(&format!("{delete}&DryRun=true")).await, Err("DryRunOperation".into()));
    a.ask(&delete).await.unwrap();
    assert!(a.row(&instance).await.generation > before);
    assert_eq!(watch(&a, &instance).await.unwrap().logs.len(), 1);
    let forgotten = interface.clone();
    a.cloud.store.write("forget", move |tx| forget(tx, &forgotten)).await.unwrap();
    assert!(a.ask("DescribeFlowLogs").await.unwrap().contains("<flowLogSet/>"));
}

#[tokio::test]
async fn a_failed_delivery_is_shown_until_it_is_mended() {
    let a = Rehearsal::new().await;
    let instance = a.launch("").await;
    let vpc = first(&a.ask("DescribeVpcs").await.unwrap(), "vpcId");
    let id = make(&a, &vpc, "ALL").await;
    a.ask(&format!("CreateTags&ResourceId.1={id}&Tag.1.Key=k&Tag.1.Value=v")).await.unwrap();
    let tell = async |kinds: &[FlowLogFailureKind]| {
        let mut report = InstanceReport::new(&instance, mallee_tiers::Observed::Running);
        for kind in kinds {
            report.flow_logs.push(FlowLogFailure { log: id.clone(), kind: *kind, reason: "gone".into() });
        }
        a.cloud.store.write("report", move |tx| reported(tx, &report)).await.unwrap();
    };
    let status = async |filter: &str| {
        let shown = a.ask(&format!("DescribeFlowLogs&{filter}")).await.unwrap();
        (first(&shown, "deliverLogsStatus"), shown.contains("<deliverLogsErrorMessage>Access error<"))
    };
    let tagged = "Filter.1.Name=tag:k&Filter.1.Value.1=v";
    assert_eq!(status(tagged).await, ("SUCCESS".into(), false));
    tell(&[FlowLogFailureKind::Unknown]).await;
    assert_eq!(status(tagged).await, ("FAILED".into(), false));
    tell(&[FlowLogFailureKind::Access]).await;
    let failed = "Filter.1.Name=deliver-log-status&Filter.1.Value.1=FAILED";
    assert_eq!(status(failed).await, ("FAILED".into(), true));
    tell(&[]).await;
    assert_eq!(status(&format!("FlowLogId.1={id}")).await, ("SUCCESS".into(), false));
    let kinds = a.all("DescribeTags", "resourceType").await;
    assert_eq!(kinds, ["vpc-flow-log"]);
}

#[test]
fn a_destination_is_a_bucket_and_a_folder() {
    let read = |arn: &str| Destination::of(arn).map(|d| (d.bucket.clone(), d.prefix.clone(), d.arn()));
    assert_eq!(read("arn:aws:s3:::logs"), Some(("logs".into(), String::new(), "arn:aws:s3:::logs".into())));
    for arn in ["arn:aws:s3:::logs/a/b", "arn:aws:s3:::logs/a/b/"] {
        assert_eq!(read(arn), Some(("logs".into(), "a/b/".into(), "arn:aws:s3:::logs/a/b/".into())), "{arn}");
    }
    for bad in ["logs", "arn:aws:s3:::", "arn:aws:s3:::lo", "arn:aws:s3:::a b c", "arn:aws:s3:::logs/x/AWSLogs/"] {
        assert_eq!(read(bad), None, "{bad}");
    }
}
