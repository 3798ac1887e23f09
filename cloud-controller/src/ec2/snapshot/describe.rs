//! Snapshots as EC2 shows them.

use std::collections::BTreeMap;

use mallee_aws::{
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::SnapshotId,
};
use mallee_store::Error as StoreError;
use serde::{Deserialize, Serialize};

use super::{
    not_found,
    row::{self, EVERYBODY, Snapshot},
};
use crate::{
    Cloud, Outcome, actions,
    ec2::{
        encryption,
        listing::{self, Wanted},
        tag::{self, Tag},
    },
    service::Call,
};

actions![DescribeSnapshots => describe];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeSnapshots {
    dry_run: Option<bool>,
    #[serde(default)]
    snapshot_id: Vec<SnapshotId>,
    #[serde(default)]
    owner: Vec<String>,
    #[serde(default)]
    restorable_by: Vec<String>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedSnapshots {
    snapshot_set: Vec<SnapshotInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotInfo {
    snapshot_id: SnapshotId,
    volume_id: String,
    status: &'static str,
    status_message: Option<String>,
    start_time: String,
    progress: String,
    owner_id: String,
    volume_size: u64,
    description: String,
    tag_set: Vec<Tag>,
    encrypted: bool,
    kms_key_id: Option<String>,
    storage_tier: &'static str,
    /// Who may restore it; only filtered by.
    #[serde(skip)]
    permitted: Vec<String>,
}

fn info(cloud: &Cloud, snapshot: Snapshot, permitted: Vec<String>, tag_set: Vec<Tag>) -> SnapshotInfo {
    SnapshotInfo {
        status: super::state(&snapshot),
        status_message: Some(snapshot.reason).filter(|reason| !reason.is_empty()),
        encrypted: snapshot.disk_key.is_some(),
        kms_key_id: snapshot.disk_key.as_deref().map(|key| encryption::arn(cloud, &snapshot.account, key)),
        snapshot_id: snapshot.id,
        volume_id: snapshot.volume,
        start_time: timestamp(snapshot.created),
        progress: format!("{}%", if snapshot.accepted { 100 } else { snapshot.percent.min(99) }),
        owner_id: snapshot.account,
        volume_size: snapshot.size_gib,
        description: snapshot.description,
        tag_set,
        storage_tier: "standard",
        permitted,
    }
}

impl Tagged for SnapshotInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<SnapshotInfo>] = &[
    ("description", |s| vec![(&s.description).into()]),
    ("encrypted", |s| vec![s.encrypted.to_string().into()]),
    ("owner-alias", |_| vec![]),
    ("owner-id", |s| vec![(&s.owner_id).into()]),
    ("progress", |s| vec![(&s.progress).into()]),
    ("snapshot-id", |s| vec![s.snapshot_id.as_str().into()]),
    ("start-time", |s| vec![(&s.start_time).into()]),
    ("status", |s| vec![s.status.into()]),
    ("storage-tier", |s| vec![s.storage_tier.into()]),
    // Of copies that were to be there by a certain time.
    ("transfer-type", |_| vec![]),
    ("volume-id", |s| vec![(&s.volume_id).into()]),
    ("volume-size", |s| vec![s.volume_size.to_string().into()]),
];

async fn describe(call: &Call, input: DescribeSnapshots) -> Outcome<DescribedSnapshots> {
    let account = call.account().to_owned();
    let (snapshots, mut permitted, mut tags) = call
        .cloud
        .store
        .read("describe snapshots", move |tx| {
            let snapshots = row::visible_to(tx, &account)?;
            let mut permitted: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (snapshot, who) in row::permissions_seen_by(tx, &account)? {
                permitted.entry(snapshot).or_default().push(who);
            }
            // Tags are the caller's own: of somebody else's snapshot none are shown.
            Ok::<_, StoreError>((snapshots, permitted, tag::of_kind(tx, &account, SnapshotId::PREFIX)?))
        })
        .await?;
    let own = call.account();
    let is_owned = |s: &SnapshotInfo| {
        input.owner.is_empty() || input.owner.iter().any(|o| *o == s.owner_id || (o == "self" && s.owner_id == own))
    };
    let is_restorable = |s: &SnapshotInfo| {
        let by = |who: &str| s.owner_id == who || s.permitted.iter().any(|p| p == who);
        input.restorable_by.is_empty()
            || input.restorable_by.iter().any(|who| match who.as_str() {
                "self" => by(own),
                EVERYBODY => s.permitted.iter().any(|p| p == EVERYBODY),
                who => by(who),
            })
    };
    let named = |s: &SnapshotInfo| input.snapshot_id.contains(&s.snapshot_id);
    let infos: Vec<SnapshotInfo> = snapshots
        .into_iter()
        .map(|snapshot| {
            let id = snapshot.id.to_string();
            info(&call.cloud, snapshot, permitted.remove(&id).unwrap_or_default(), tags.take(&id))
        })
        .filter(|s| named(s) || (is_owned(s) && is_restorable(s)))
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.snapshot_id.iter().map(SnapshotId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (mut snapshot_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |s| s.snapshot_id.as_str(), not_found, infos)?;
    snapshot_set.retain(|s| is_owned(s) && is_restorable(s));
    Ok(DescribedSnapshots { snapshot_set, next_token })
}
