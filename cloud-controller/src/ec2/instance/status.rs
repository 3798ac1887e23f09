//! DescribeInstanceStatus: whether running instances are reachable, as far as their nodes can say.

use std::sync::Arc;

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::InstanceId,
};
use mallee_tiers::Observed;
use serde::{Deserialize, Serialize};

use super::{
    describe::{self, Found},
    not_found,
    state::{self, State},
};
use crate::{
    Outcome, actions,
    ec2::listing::{self, Wanted},
    service::Call,
};

actions![DescribeInstanceStatus => describe_status];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeInstanceStatus {
    dry_run: Option<bool>,
    #[serde(default)]
    instance_id: Vec<InstanceId>,
    #[serde(default)]
    filter: Vec<Filter>,
    include_all_instances: Option<bool>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedInstanceStatus {
    instance_status_set: Vec<InstanceStatus>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceStatus {
    instance_id: InstanceId,
    availability_zone: String,
    events_set: [(); 0],
    instance_state: State,
    system_status: Status,
    instance_status: Status,
    #[serde(skip)]
    tags: Vec<crate::ec2::tag::Tag>,
}

#[derive(Clone, Copy, Serialize)]
struct Status {
    status: &'static str,
    details: Option<[Detail; 1]>,
}

#[derive(Clone, Copy, Serialize)]
struct Detail {
    name: &'static str,
    status: &'static str,
}

/// `system_status` is the node's: it answers or not. The guest is not asked anything, so its status is the node's too.
fn status(found: Found) -> InstanceStatus {
    let i = found.instance;
    let instance_state = i.state();
    let reachability = |status| Some([Detail { name: "reachability", status }]);
    let status = match (instance_state, i.observed) {
        (state::RUNNING, Some(Observed::Running)) => Status { status: "ok", details: reachability("passed") },
        (state::RUNNING, _) => Status { status: "impaired", details: reachability("failed") },
        _ => Status { status: "not-applicable", details: None },
    };
    InstanceStatus {
        instance_id: i.id,
        availability_zone: i.zone,
        events_set: [],
        instance_state,
        system_status: status,
        instance_status: status,
        tags: found.tags,
    }
}

impl Tagged for InstanceStatus {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

fn reachability(status: &Status) -> Vec<std::borrow::Cow<'_, str>> {
    status.details.iter().flatten().map(|d| d.status.into()).collect()
}

const ATTRIBUTES: &[Attribute<InstanceStatus>] = &[
    ("availability-zone", |s| vec![(&s.availability_zone).into()]),
    ("event.code", |_| vec![]),
    ("event.description", |_| vec![]),
    ("event.instance-event-id", |_| vec![]),
    ("event.not-after", |_| vec![]),
    ("event.not-before", |_| vec![]),
    ("event.not-before-deadline", |_| vec![]),
    ("instance-state-code", |s| vec![s.instance_state.code.to_string().into()]),
    ("instance-state-name", |s| vec![s.instance_state.name.into()]),
    ("instance-status.reachability", |s| reachability(&s.instance_status)),
    ("instance-status.status", |s| vec![s.instance_status.status.into()]),
    ("system-status.reachability", |s| reachability(&s.system_status)),
    ("system-status.status", |s| vec![s.system_status.status.into()]),
];

async fn describe_status(call: &Call, input: DescribeInstanceStatus) -> Outcome<DescribedInstanceStatus> {
    let (account, ids) = (call.account().to_owned(), input.instance_id.clone());
    let region: Arc<str> = call.cloud.region().into();
    let found = call
        .cloud
        .store
        .read("describe the status of instances", move |tx| describe::find(tx, &region, &account, &ids))
        .await?;
    let everything = input.include_all_instances == Some(true);
    // Named ids are all there, or `find` would have refused; those that do not run are left out, not missing.
    let all: Vec<InstanceStatus> = found
        .into_iter()
        .map(status)
        .filter(|s| everything || s.instance_state == state::RUNNING)
        .filter(|s| input.instance_id.is_empty() || input.instance_id.contains(&s.instance_id))
        .collect();
    let shown: Vec<InstanceId> = all.iter().map(|s| s.instance_id.clone()).collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: if input.instance_id.is_empty() { Vec::new() } else { shown.iter().map(InstanceId::as_str).collect() },
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (instance_status_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |s| s.instance_id.as_str(), not_found, all)?;
    Ok(DescribedInstanceStatus { instance_status_set, next_token })
}
