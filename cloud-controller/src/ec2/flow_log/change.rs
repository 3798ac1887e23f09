//! Making and ending flow logs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{Request, StatusCode};
use mallee_aws::{
    AwsError,
    id::{FlowLogId, NetworkInterfaceId, SubnetId, VpcId},
};
use mallee_service::body;
use mallee_store::{Tx, params};
use mallee_tiers::{FLOW_LOGS_PREFIX, flow_log_folder};
use serde::{Deserialize, Serialize};

use super::{Destination, FlowLogRow, Format, Traffic, all, not_found, remove, touch};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        client_token, image,
        interface::{self, Kind},
        subnet,
        tag::{self, TagSpecification},
        unique_is, unless_dry_run,
        unsupported::{self, Unsupported},
        vpc,
    },
    service::Call,
};

actions![CreateFlowLogs => create, DeleteFlowLogs => delete];

const KIND: &str = "vpc-flow-log";
/// AWS' quota, of each VPC, subnet and interface.
const MAX_PER_RESOURCE: i64 = 2;
const MAX_RESOURCES: usize = 1000;
const WINDOWS_S: [i64; 2] = [60, 600];
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateFlowLogs {
    dry_run: Option<bool>,
    client_token: Option<String>,
    deliver_logs_permission_arn: Option<Unsupported>,
    deliver_cross_account_role: Option<Unsupported>,
    log_group_name: Option<Unsupported>,
    #[serde(default)]
    resource_id: Vec<String>,
    resource_type: Option<String>,
    traffic_type: Option<String>,
    log_destination_type: Option<String>,
    log_destination: Option<String>,
    log_format: Option<String>,
    max_aggregation_interval: Option<i64>,
    destination_options: Option<DestinationOptions>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DestinationOptions {
    file_format: Option<String>,
    hive_compatible_partitions: Option<bool>,
    per_hour_partition: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedFlowLogs {
    client_token: Option<String>,
    flow_log_id_set: Vec<String>,
    unsuccessful: Vec<UnsuccessfulItem>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UnsuccessfulItem {
    error: ItemError,
    resource_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ItemError {
    code: &'static str,
    message: String,
}

/// What is asked for each of the resources.
#[derive(Clone)]
struct Asked {
    kind: ResourceKind,
    resources: Vec<String>,
    traffic: Traffic,
    destination: Destination,
    format: Format,
    window_s: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResourceKind {
    Vpc,
    Subnet,
    Interface,
}

fn invalid(name: &str, value: &str) -> Refusal {
    AwsError::invalid_parameter_value(format!("Value ({value}) for parameter {name} is invalid.")).into()
}

fn asked(input: &CreateFlowLogs) -> Outcome<Asked> {
    match input.log_destination_type.as_deref() {
        Some("s3") => {}
        // What AWS takes when none is named is a log group.
        None | Some("" | "cloud-watch-logs") => {
            return Err(
                AwsError::unsupported("LogDestinationType=cloud-watch-logs is not supported by this cloud").into()
            );
        }
        Some("kinesis-data-firehose") => {
            let message = "LogDestinationType=kinesis-data-firehose is not supported by this cloud";
            return Err(AwsError::unsupported(message).into());
        }
        Some(other) => return Err(invalid("LogDestinationType", other)),
    }
    unsupported::refuse(&[
        ("LogGroupName", input.log_group_name),
        ("DeliverLogsPermissionArn", input.deliver_logs_permission_arn),
        ("DeliverCrossAccountRole", input.deliver_cross_account_role),
    ])?;
    if let Some(options) = &input.destination_options {
        match options.file_format.as_deref() {
            None | Some("" | "plain-text") => {}
            Some("parquet") => {
                let message = "DestinationOptions.FileFormat=parquet is not supported by this cloud";
                return Err(AwsError::unsupported(message).into());
            }
            Some(other) => return Err(invalid("DestinationOptions.FileFormat", other)),
        }
        unsupported::refuse_set("DestinationOptions.HiveCompatiblePartitions", options.hive_compatible_partitions)?;
        unsupported::refuse_set("DestinationOptions.PerHourPartition", options.per_hour_partition)?;
    }
    let required = |name: &'static str, value: &Option<String>| -> Outcome<String> {
        value.clone().filter(|v| !v.is_empty()).ok_or_else(|| AwsError::missing_parameter(name).into())
    };
    let kind = match required("ResourceType", &input.resource_type)?.as_str() {
        "VPC" => ResourceKind::Vpc,
        "Subnet" => ResourceKind::Subnet,
        "NetworkInterface" => ResourceKind::Interface,
        other @ ("TransitGateway" | "TransitGatewayAttachment" | "RegionalNatGateway") => {
            return Err(AwsError::unsupported(format!("ResourceType={other} is not supported by this cloud")).into());
        }
        other => return Err(invalid("ResourceType", other)),
    };
    let traffic = required("TrafficType", &input.traffic_type)?;
    let traffic = Traffic::of(&traffic).ok_or_else(|| invalid("TrafficType", &traffic))?;
    let arn = required("LogDestination", &input.log_destination)?;
    let destination = Destination::of(&arn).ok_or_else(|| {
        let message = format!("LogDestination: {arn} is not the ARN of a bucket and a folder other than AWSLogs in it");
        Refusal::new("InvalidParameter", message)
    })?;
    let format = match input.log_format.as_deref() {
        None | Some("") => Format::default(),
        Some(text) => Format::read(text)?,
    };
    if format.has_repeats() {
        return Err(Refusal::new("InvalidParameter", "LogFormat: a field is named twice"));
    }
    let window_s = input.max_aggregation_interval.unwrap_or(600);
    if !WINDOWS_S.contains(&window_s) {
        return Err(invalid("MaxAggregationInterval", &window_s.to_string()));
    }
    if input.resource_id.is_empty() {
        return Err(AwsError::missing_parameter("ResourceId").into());
    }
    if input.resource_id.len() > MAX_RESOURCES {
        let message = format!("At most {MAX_RESOURCES} resources can be given");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    let mut resources = Vec::new();
    for id in &input.resource_id {
        if !resources.contains(id) {
            resources.push(id.clone());
        }
    }
    Ok(Asked { kind, resources, traffic, destination, format, window_s })
}

/// Refuses what is not there, or is another account's.
fn require(tx: &mut Tx<'_>, account: &str, asked: &Asked) -> Outcome<()> {
    for id in &asked.resources {
        match asked.kind {
            ResourceKind::Vpc => drop(vpc::get(tx, account, &id.parse::<VpcId>().map_err(Refusal::from)?)?),
            ResourceKind::Subnet => drop(subnet::get(tx, account, &id.parse::<SubnetId>().map_err(Refusal::from)?)?),
            ResourceKind::Interface => {
                let id = id.parse::<NetworkInterfaceId>().map_err(Refusal::from)?;
                if interface::get(tx, account, &id)?.kind != Kind::Interface {
                    let message = format!("Flow logs of {id}, which is no instance's, are not supported by this cloud");
                    return Err(AwsError::unsupported(message).into());
                }
            }
        }
    }
    Ok(())
}

async fn create(call: &Call, input: CreateFlowLogs) -> Outcome<CreatedFlowLogs> {
    let asked = asked(&input)?;
    let tags = tag::specified(&input.tag_specification, &[KIND])?.remove(KIND).unwrap_or_default();
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let token = token.filter(|_| input.dry_run != Some(true)).map(Arc::new);
    let (account, dry_run, now) = (call.account().to_owned(), input.dry_run, call.now);
    let (its, whose, given) = (asked.clone(), account.clone(), token.clone());
    let before = call.cloud.store.read("find what flow logs are of", move |tx| {
        if let Some(made) = given.as_ref().map(|t| t.made(tx)).transpose()?.flatten() {
            return Ok(Some(made));
        }
        require(tx, &whose, &its)?;
        Ok::<_, Refusal>(None)
    });
    if let Some(made) = before.await? {
        return Ok(created(input.client_token, &made));
    }
    if let Some(why) = shut(call, &asked.destination).await? {
        let unsuccessful = asked.resources.into_iter();
        let unsuccessful = unsuccessful.map(|resource_id| UnsuccessfulItem {
            error: ItemError { code: "400", message: why.clone() },
            resource_id,
        });
        unless_dry_run(dry_run)?;
        return Ok(CreatedFlowLogs {
            client_token: input.client_token,
            flow_log_id_set: Vec::new(),
            unsuccessful: unsuccessful.collect(),
        });
    }
    let made = call.cloud.store.write("create flow logs", move |tx| {
        if let Some(made) = token.as_ref().map(|t| t.made(tx)).transpose()?.flatten() {
            return Ok(made);
        }
        require(tx, &account, &asked)?;
        let mut made = Vec::new();
        for resource in &asked.resources {
            let row = insert(tx, &account, resource, &asked, now)?;
            tag::put(tx, &account, row.id.as_str(), &tags)?;
            touch(tx, resource)?;
            made.push(row.id.to_string());
        }
        let made = made.join(" ");
        if let Some(token) = &token {
            token.remember(tx, &made)?;
        }
        unless_dry_run(dry_run)?;
        Ok::<_, Refusal>(made)
    });
    let made = made.await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(created(input.client_token, &made))
}

fn created(client_token: Option<String>, made: &str) -> CreatedFlowLogs {
    let ids = made.split_ascii_whitespace().map(str::to_owned).collect();
    CreatedFlowLogs { client_token, flow_log_id_set: ids, unsuccessful: Vec::new() }
}

fn insert(tx: &mut Tx<'_>, account: &str, resource: &str, asked: &Asked, now: i64) -> Outcome<FlowLogRow> {
    let sql = "SELECT COUNT(*) FROM flow_log WHERE resource = ?1";
    let there: i64 = tx.query_one(sql, params![resource], |row| row.get(0))?;
    let row = FlowLogRow {
        id: FlowLogId::from_random(rand::random()),
        account: account.to_owned(),
        resource: resource.to_owned(),
        traffic: asked.traffic,
        destination: asked.destination.clone(),
        window_s: asked.window_s,
        format: asked.format.clone(),
        created: now,
    };
    tx.execute(
        "INSERT INTO flow_log (id, account, resource, traffic, destination, window_s, format, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            row.id.as_str(),
            row.account,
            row.resource,
            row.traffic.as_str(),
            row.destination.arn(),
            row.window_s,
            row.format.to_string(),
            row.created,
        ],
    )
    .map_err(|e| {
        unique_is(e, || {
            let message = "There is an existing Flow Log with the same configuration and log destination.";
            Refusal::new("FlowLogAlreadyExists", message)
        })
    })?;
    if there >= MAX_PER_RESOURCE {
        let message = format!("{resource} has the maximum number of flow logs ({MAX_PER_RESOURCE}) already");
        return Err(Refusal::new("FlowLogsLimitExceeded", message));
    }
    Ok(row)
}

/// Why walrus would not let this account's logs into the bucket. None: it would.
async fn shut(call: &Call, destination: &Destination) -> Outcome<Option<String>> {
    let (account, bucket) = (call.account(), &destination.bucket);
    let unavailable = |why: String| {
        Refusal::new("Unavailable", format!("The bucket {bucket} cannot be looked at now: {why}. Please try again."))
    };
    let walrus = call.cloud.tiers.walrus_http(&call.cloud.store).await.map_err(|e| unavailable(e.message))?;
    // Any object of theirs.
    let key = format!("{}{}{}/", destination.prefix, flow_log_folder(account), call.cloud.region());
    let encoded = image::fetch::encoded(&format!("{bucket}/{key}"));
    let path = format!("{FLOW_LOGS_PREFIX}{encoded}?account={account}");
    let request = Request::head("/").body(body::empty()).map_err(|e| unavailable(e.to_string()))?;
    let response = tokio::time::timeout(PATIENCE, walrus.send(request, &path))
        .await
        .map_err(|_| unavailable("walrus does not answer".into()))?
        .map_err(|e| unavailable(e.message))?;
    match response.status() {
        StatusCode::OK => Ok(None),
        StatusCode::NOT_FOUND => Ok(Some(format!("LogDestination: {bucket} does not exist."))),
        StatusCode::FORBIDDEN => {
            let message = format!("Access Denied for LogDestination: {bucket}. Please check LogDestination permission");
            Ok(Some(message))
        }
        status => Err(unavailable(format!("walrus answered {status}"))),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteFlowLogs {
    dry_run: Option<bool>,
    #[serde(default)]
    flow_log_id: Vec<FlowLogId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletedFlowLogs {
    unsuccessful: [(); 0],
}

/// All of them, or none when one is not there.
async fn delete(call: &Call, input: DeleteFlowLogs) -> Outcome<DeletedFlowLogs> {
    if input.flow_log_id.is_empty() {
        return Err(AwsError::missing_parameter("FlowLogId").into());
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete flow logs", move |tx| {
            let mut mine: BTreeMap<FlowLogId, String> =
                all(tx, Some(&account))?.into_iter().map(|row| (row.id, row.resource)).collect();
            let missing: Vec<&str> =
                input.flow_log_id.iter().filter(|id| !mine.contains_key(id)).map(FlowLogId::as_str).collect();
            if !missing.is_empty() {
                return Err(not_found(&missing.join(", ")));
            }
            for id in &input.flow_log_id {
                if let Some(resource) = mine.remove(id) {
                    remove(tx, id)?;
                    touch(tx, &resource)?;
                }
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(DeletedFlowLogs { unsuccessful: [] })
}
