//! Flow logs: what passes a VPC's, a subnet's or an interface's interfaces, and what is refused there, as objects in a bucket.
//!
//! The row says what is wanted. It reaches the nodes with the instances whose interfaces are in it ([`Logs`]), and the
//! network, which then tells the nodes what it refuses of them (`network::render`). What nodes could not deliver comes back
//! with their reports ([`reported`]).

use std::collections::{BTreeMap, BTreeSet};

use mallee_aws::{
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::{FlowLogId, NetworkInterfaceId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::{FlowLogFailureKind, FlowTraffic, FlowWatch, InstanceReport};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, instance,
        interface::{InterfaceRow, Kind},
        listing::{self, Wanted},
        tag::{self, Tag},
    },
    service::Call,
};

pub mod change;
mod format;
#[cfg(test)]
mod tests;

use format::Format;

actions![DescribeFlowLogs => describe];

pub const TABLES: &str = "
CREATE TABLE flow_log (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    resource TEXT NOT NULL,
    traffic TEXT NOT NULL,
    destination TEXT NOT NULL,
    window_s BIGINT NOT NULL,
    format TEXT NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (resource, traffic, destination, window_s, format)
);
CREATE INDEX flow_log_of ON flow_log (account);
CREATE TABLE flow_log_failure (
    instance TEXT NOT NULL,
    log TEXT NOT NULL,
    is_access BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (instance, log)
);
CREATE INDEX flow_log_failure_of ON flow_log_failure (log);
";

/// A log as its row is.
#[derive(Debug, Clone)]
pub struct FlowLogRow {
    pub id: FlowLogId,
    pub account: String,
    /// The id of a VPC, a subnet or an interface.
    pub resource: String,
    pub traffic: Traffic,
    pub destination: Destination,
    pub window_s: i64,
    pub format: Format,
    pub created: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    Accept,
    Reject,
    All,
}

impl Traffic {
    const ALL: [Traffic; 3] = [Traffic::Accept, Traffic::Reject, Traffic::All];

    pub fn as_str(self) -> &'static str {
        match self {
            Traffic::Accept => "ACCEPT",
            Traffic::Reject => "REJECT",
            Traffic::All => "ALL",
        }
    }
    fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == text)
    }
    fn wanted(self) -> FlowTraffic {
        match self {
            Traffic::Accept => FlowTraffic::Accept,
            Traffic::Reject => FlowTraffic::Reject,
            Traffic::All => FlowTraffic::All,
        }
    }
}

/// A folder in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub bucket: String,
    /// Empty, or ending with a slash.
    pub prefix: String,
}

impl Destination {
    const ARN: &str = "arn:aws:s3:::";
    /// A name that AWS keeps for itself.
    const RESERVED: &str = "AWSLogs";

    /// `arn:aws:s3:::BUCKET/PREFIX/`.
    pub fn of(arn: &str) -> Option<Self> {
        let rest = arn.strip_prefix(Self::ARN)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = match prefix.trim_end_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let usable = (3..=63).contains(&bucket.len())
            && bucket.chars().all(fits)
            && prefix.len() <= 512
            && !prefix.chars().any(char::is_control)
            && !prefix.split('/').any(|part| part == Self::RESERVED);
        usable.then(|| Self { bucket: bucket.to_owned(), prefix })
    }

    pub fn arn(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{}{}{slash}{}", Self::ARN, self.bucket, self.prefix)
    }
}

const COLUMNS: &str = "id, account, resource, traffic, destination, window_s, format, created";

fn read(row: &Row<'_>) -> Result<FlowLogRow, StoreError> {
    let unreadable = |detail: String| StoreError::Other { what: "flow log", detail };
    let (traffic, destination, format): (String, String, String) = (row.get(3)?, row.get(4)?, row.get(6)?);
    Ok(FlowLogRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        resource: row.get(2)?,
        traffic: Traffic::of(&traffic).ok_or_else(|| unreadable(traffic))?,
        destination: Destination::of(&destination).ok_or_else(|| unreadable(destination))?,
        window_s: row.get(5)?,
        format: Format::read(&format).map_err(|e| unreadable(e.to_string()))?,
        created: row.get(7)?,
    })
}

/// The logs of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<FlowLogRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM flow_log WHERE {} ORDER BY id", listing::whose(account));
    tx.query(&sql, params![account], read)
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidFlowLogId.NotFound", format!("The following IDs do not exist: {id}"))
}

fn remove(tx: &mut Tx<'_>, id: &FlowLogId) -> Result<(), StoreError> {
    tx.execute("DELETE FROM flow_log WHERE id = ?1", params![id.as_str()])?;
    tx.execute("DELETE FROM flow_log_failure WHERE log = ?1", params![id.as_str()])?;
    tag::drop_all(tx, id.as_str())
}

/// A VPC, subnet or interface is gone, and its logs with it.
pub fn forget(tx: &mut Tx<'_>, resource: &str) -> Result<(), StoreError> {
    let sql = "SELECT id FROM flow_log WHERE resource = ?1";
    for id in tx.query(sql, params![resource], |row| Ok(row.get::<Id<FlowLogId>>(0)?.0))? {
        remove(tx, &id)?;
    }
    Ok(())
}

/// The logs by what they are of.
#[derive(Debug, Default)]
pub struct Logs(BTreeMap<String, Vec<FlowLogRow>>);

impl Logs {
    pub fn read(tx: &mut Tx<'_>) -> Result<Self, StoreError> {
        let mut logs = Self::default();
        for log in all(tx, None)? {
            logs.0.entry(log.resource.clone()).or_default().push(log);
        }
        Ok(logs)
    }

    /// Those an interface is in.
    pub fn of<'a>(&'a self, interface: &'a InterfaceRow) -> impl Iterator<Item = &'a FlowLogRow> {
        let resources = [interface.vpc.as_str(), interface.subnet.as_str(), interface.id.as_str()];
        resources.into_iter().filter_map(|id| self.0.get(id)).flatten()
    }

    /// Which of these interfaces are in any. Only instances' own packets are seen.
    pub fn watched<'a>(&self, interfaces: impl IntoIterator<Item = &'a InterfaceRow>) -> BTreeSet<NetworkInterfaceId> {
        let is_watched = |i: &&InterfaceRow| i.kind == Kind::Interface && self.of(i).next().is_some();
        interfaces.into_iter().filter(is_watched).map(|i| i.id.clone()).collect()
    }

    /// What its node is to do for an interface. None: nothing.
    pub fn wanted(&self, region: &str, interface: &InterfaceRow) -> Option<FlowWatch> {
        let logs: Vec<_> = self.of(interface).map(|log| format::wanted(log, region, interface)).collect();
        (!logs.is_empty()).then(|| FlowWatch {
            ipv6: interface.ipv6.clone(),
            forwards: !interface.source_dest_check,
            logs,
        })
    }
}

/// What nodes are sent of the instances in a log has changed.
fn touch(tx: &mut Tx<'_>, resource: &str) -> Result<(), StoreError> {
    let sql = "SELECT DISTINCT instance FROM network_interface
               WHERE (id = ?1 OR subnet = ?1 OR vpc = ?1) AND instance IS NOT NULL ORDER BY instance";
    for instance in tx.query(sql, params![resource], |row| row.get::<String>(0))? {
        instance::touch(tx, &instance)?;
    }
    Ok(())
}

/// Keeps what a node could not deliver.
pub fn reported(tx: &mut Tx<'_>, report: &InstanceReport) -> Result<(), StoreError> {
    let sql = "SELECT log, is_access, reason FROM flow_log_failure WHERE instance = ?1 ORDER BY log";
    let known: Vec<(String, bool, String)> =
        tx.query(sql, params![report.id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut told: Vec<(String, bool, String)> = report
        .flow_logs
        .iter()
        // What is gone delivers nothing, and so fails at nothing.
        .filter(|_| report.observed != mallee_tiers::Observed::Gone)
        .map(|f| (f.log.clone(), f.kind == FlowLogFailureKind::Access, f.reason.clone()))
        .collect();
    told.sort();
    told.dedup_by(|a, b| a.0 == b.0);
    if told == known {
        return Ok(());
    }
    tx.execute("DELETE FROM flow_log_failure WHERE instance = ?1", params![report.id])?;
    for (log, is_access, reason) in told {
        tx.execute(
            "INSERT INTO flow_log_failure (instance, log, is_access, reason) VALUES (?1, ?2, ?3, ?4)",
            params![report.id, log, is_access, reason],
        )?;
    }
    Ok(())
}

/// The word AWS has for why a log is not delivered, by log.
fn failures(tx: &mut Tx<'_>, account: &str) -> Result<BTreeMap<String, &'static str>, StoreError> {
    let sql = "SELECT f.log, MAX(f.is_access) FROM flow_log_failure f JOIN flow_log l ON l.id = f.log
               WHERE l.account = ?1 GROUP BY f.log";
    let all = tx.query(sql, params![account], |row| Ok((row.get::<String>(0)?, row.get::<i64>(1)?)))?;
    Ok(all.into_iter().map(|(log, access)| (log, if access > 0 { "Access error" } else { "Unknown error" })).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeFlowLogs {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    flow_log_id: Vec<FlowLogId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    flow_log_set: Vec<FlowLogInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FlowLogInfo {
    creation_time: String,
    deliver_logs_error_message: Option<&'static str>,
    deliver_logs_status: &'static str,
    flow_log_id: FlowLogId,
    flow_log_status: &'static str,
    resource_id: String,
    traffic_type: &'static str,
    log_destination_type: &'static str,
    log_destination: String,
    log_format: String,
    max_aggregation_interval: i64,
    destination_options: DestinationOptions,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DestinationOptions {
    file_format: &'static str,
    hive_compatible_partitions: bool,
    per_hour_partition: bool,
}

impl Tagged for FlowLogInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<FlowLogInfo>] = &[
    ("deliver-log-status", |log| vec![log.deliver_logs_status.into()]),
    ("flow-log-id", |log| vec![log.flow_log_id.as_str().into()]),
    ("log-destination-type", |log| vec![log.log_destination_type.into()]),
    // None has one: logs in a log group are refused.
    ("log-group-name", |_| Vec::new()),
    ("resource-id", |log| vec![(&log.resource_id).into()]),
    ("traffic-type", |log| vec![log.traffic_type.into()]),
];

fn info(row: FlowLogRow, failure: Option<&'static str>, tag_set: Vec<Tag>) -> FlowLogInfo {
    FlowLogInfo {
        creation_time: timestamp(row.created),
        deliver_logs_error_message: failure,
        deliver_logs_status: if failure.is_some() { "FAILED" } else { "SUCCESS" },
        flow_log_id: row.id,
        flow_log_status: "ACTIVE",
        resource_id: row.resource,
        traffic_type: row.traffic.as_str(),
        log_destination_type: "s3",
        log_destination: row.destination.arn(),
        log_format: row.format.to_string(),
        max_aggregation_interval: row.window_s,
        destination_options: DestinationOptions {
            file_format: "plain-text",
            hive_compatible_partitions: false,
            per_hour_partition: false,
        },
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeFlowLogs) -> Outcome<Described> {
    let account = call.account().to_owned();
    let (rows, failures, mut tags) = call
        .cloud
        .store
        .read("describe flow logs", move |tx| {
            let tags = tag::of_kind(tx, &account, FlowLogId::PREFIX)?;
            Ok::<_, StoreError>((all(tx, Some(&account))?, failures(tx, &account)?, tags))
        })
        .await?;
    let infos = rows
        .into_iter()
        .map(|row| {
            let tag_set = tags.take(row.id.as_str());
            let failure = failures.get(row.id.as_str()).copied();
            info(row, failure, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.flow_log_id.iter().map(FlowLogId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (flow_log_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |l| l.flow_log_id.as_str(), not_found, infos)?;
    Ok(Described { flow_log_set, next_token })
}
