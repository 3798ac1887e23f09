//! What an instance said on its serial console, and the password that no Linux guest has.

use mallee_aws::{AwsError, answer::timestamp, id::InstanceId};
use mallee_tiers::{ConsoleAsked, TierErrorKind};
use serde::{Deserialize, Serialize};

use super::row;
use crate::{Outcome, Refusal, actions, ec2::unless_dry_run, service::Call};

actions![GetConsoleOutput => output, GetPasswordData => password];

/// As much as EC2 keeps.
const KEPT_BYTES: u64 = 64 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetConsoleOutput {
    dry_run: Option<bool>,
    instance_id: InstanceId,
    /// It is always the latest here.
    #[serde(rename = "Latest")]
    _latest: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConsoleOutput {
    instance_id: InstanceId,
    timestamp: String,
    /// Base64.
    output: Option<String>,
}

/// Read on the node now while there is one; else what was kept when it stopped or ended.
async fn output(call: &Call, input: GetConsoleOutput) -> Outcome<ConsoleOutput> {
    let (account, id) = (call.account().to_owned(), input.instance_id.clone());
    let (instance, kept) = call
        .cloud
        .store
        .read("find a console", move |tx| {
            let instance = super::get(tx, &account, &id)?;
            Ok::<_, Refusal>((instance, row::console(tx, id.as_str())?))
        })
        .await?;
    unless_dry_run(input.dry_run)?;
    let from_kept = |kept: Option<(String, i64)>| {
        let (output, at) = kept.map_or((None, call.now), |(data, at)| (Some(data), at));
        ConsoleOutput { instance_id: instance.id.clone(), timestamp: timestamp(at), output }
    };
    if instance.is_ended() || instance.node.is_none() {
        return Ok(from_kept(kept));
    }
    let ask = ConsoleAsked { instance: instance.id.to_string(), bytes: KEPT_BYTES };
    let live = match call.cloud.tiers.cluster(&call.cloud.store, &instance.zone).await {
        Ok(cluster) => cluster.console(&ask).await,
        Err(e) => Err(e),
    };
    match live {
        Ok(console) => Ok(ConsoleOutput {
            instance_id: instance.id.clone(),
            timestamp: timestamp(console.at),
            output: (!console.data.is_empty()).then_some(console.data),
        }),
        Err(e) if e.kind == TierErrorKind::NotFound || kept.is_some() => Ok(from_kept(kept)),
        Err(e) => Err(Refusal {
            answer: AwsError::unavailable("The instance's node does not answer now; try again"),
            cause: Some(e.message),
        }),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetPasswordData {
    dry_run: Option<bool>,
    instance_id: InstanceId,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PasswordData {
    instance_id: InstanceId,
    timestamp: String,
    password_data: &'static str,
}

/// Empty for Linux, not an error: clients ask every instance (ansible#8151).
async fn password(call: &Call, input: GetPasswordData) -> Outcome<PasswordData> {
    let account = call.account().to_owned();
    let id = input.instance_id;
    let instance = call.cloud.store.read("find an instance", move |tx| super::get(tx, &account, &id)).await?;
    unless_dry_run(input.dry_run)?;
    Ok(PasswordData { instance_id: instance.id, timestamp: timestamp(call.now), password_data: "" })
}
