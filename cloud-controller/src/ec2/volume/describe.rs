//! Volumes as EC2 shows them, and their status.

use std::borrow::Cow;
use std::collections::BTreeMap;

use mallee_aws::{
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::{InstanceId, VolumeId},
};
use mallee_store::{Error as StoreError, Tx};
use serde::{Deserialize, Serialize};

use super::{
    attach::AttachmentInfo,
    not_found,
    row::{self, Attachment, Volume},
};
use crate::{
    Cloud, Outcome, actions,
    ec2::{
        encryption,
        listing::{self, Wanted},
        subnet::zone_id,
        tag::{self, Tag},
    },
    service::Call,
};

actions![
    DescribeVolumeStatus => describe_status,
    DescribeVolumes => describe,
];

/// Nothing measures how a volume does beside what it should.
const NOT_WATCHED: &str = "not-applicable";

/// A volume with what hangs on it.
type Found = (Volume, Option<Attachment>, Vec<Tag>);

/// Everything of an account, in one read per table.
fn all(tx: &mut Tx<'_>, account: &str) -> Result<Vec<Found>, StoreError> {
    let mut attachments: BTreeMap<VolumeId, Attachment> =
        row::attachments_of_account(tx, account)?.into_iter().map(|a| (a.volume.clone(), a)).collect();
    let mut tags = tag::of_kind(tx, account, VolumeId::PREFIX)?;
    Ok(row::of_account(tx, account)?
        .into_iter()
        .map(|v| {
            let (attachment, its_tags) = (attachments.remove(&v.id), tags.take(v.id.as_str()));
            (v, attachment, its_tags)
        })
        .collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVolumes {
    dry_run: Option<bool>,
    #[serde(default)]
    volume_id: Vec<VolumeId>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedVolumes {
    volume_set: Vec<VolumeInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeInfo {
    volume_id: VolumeId,
    size: u64,
    snapshot_id: String,
    availability_zone: String,
    status: &'static str,
    create_time: String,
    attachment_set: Vec<AttachmentInfo>,
    tag_set: Vec<Tag>,
    volume_type: String,
    iops: Option<u32>,
    encrypted: bool,
    kms_key_id: Option<String>,
    multi_attach_enabled: bool,
    throughput: Option<u32>,
    availability_zone_id: String,
}

fn info(cloud: &Cloud, (volume, attachment, tag_set): Found) -> VolumeInfo {
    VolumeInfo {
        encrypted: volume.is_encrypted(),
        kms_key_id: volume.disk_key.as_deref().map(|key| encryption::arn(cloud, &volume.account, key)),
        status: super::state(&volume, attachment.as_ref()),
        volume_id: volume.id,
        size: volume.size_gib,
        snapshot_id: volume.snapshot.unwrap_or_default(),
        availability_zone_id: zone_id(&cloud.config, &volume.zone),
        availability_zone: volume.zone,
        create_time: timestamp(volume.created),
        attachment_set: attachment.iter().map(AttachmentInfo::of).collect(),
        tag_set,
        volume_type: volume.kind,
        iops: volume.iops,
        multi_attach_enabled: false,
        throughput: volume.throughput,
    }
}

impl Tagged for VolumeInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

fn each<'r>(volume: &'r VolumeInfo, value: impl Fn(&'r AttachmentInfo) -> Cow<'r, str>) -> Vec<Cow<'r, str>> {
    volume.attachment_set.iter().map(value).collect()
}

const ATTRIBUTES: &[Attribute<VolumeInfo>] = &[
    ("attachment.attach-time", |v| each(v, |a| a.attach_time.as_str().into())),
    ("attachment.delete-on-termination", |v| each(v, |a| a.delete_on_termination.to_string().into())),
    ("attachment.device", |v| each(v, |a| a.device.as_str().into())),
    ("attachment.instance-id", |v| each(v, |a| a.instance_id.as_str().into())),
    ("attachment.status", |v| each(v, |a| a.status.into())),
    ("availability-zone", |v| vec![(&v.availability_zone).into()]),
    ("availability-zone-id", |v| vec![(&v.availability_zone_id).into()]),
    ("create-time", |v| vec![(&v.create_time).into()]),
    ("encrypted", |v| vec![v.encrypted.to_string().into()]),
    ("fast-restored", |_| vec!["false".into()]),
    ("iops", |v| v.iops.map(|n| n.to_string().into()).into_iter().collect()),
    ("multi-attach-enabled", |_| vec!["false".into()]),
    ("operator.managed", |_| vec!["false".into()]),
    ("operator.principal", |_| vec![]),
    ("size", |v| vec![v.size.to_string().into()]),
    ("snapshot-id", |v| vec![(&v.snapshot_id).into()]),
    ("status", |v| vec![v.status.into()]),
    ("throughput", |v| v.throughput.map(|n| n.to_string().into()).into_iter().collect()),
    ("volume-id", |v| vec![v.volume_id.as_str().into()]),
    ("volume-type", |v| vec![(&v.volume_type).into()]),
];

async fn describe(call: &Call, input: DescribeVolumes) -> Outcome<DescribedVolumes> {
    let account = call.account().to_owned();
    let rows = call.cloud.store.read("describe volumes", move |tx| all(tx, &account)).await?;
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.volume_id.iter().map(VolumeId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let infos = rows.into_iter().map(|found| info(&call.cloud, found)).collect();
    let (volume_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |v| v.volume_id.as_str(), not_found, infos)?;
    Ok(DescribedVolumes { volume_set, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVolumeStatus {
    dry_run: Option<bool>,
    #[serde(default)]
    volume_id: Vec<VolumeId>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedVolumeStatus {
    volume_status_set: Vec<VolumeStatus>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeStatus {
    volume_id: VolumeId,
    availability_zone: String,
    volume_status: Status,
    events_set: [(); 0],
    actions_set: [(); 0],
    attachment_statuses: Vec<AttachmentStatus>,
    availability_zone_id: String,
}

/// How fast it is at an instance is not watched.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentStatus {
    io_performance: &'static str,
    instance_id: InstanceId,
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
    details: [Detail; 2],
}

#[derive(Serialize)]
struct Detail {
    name: &'static str,
    status: &'static str,
}

impl Tagged for VolumeStatus {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

const STATUS_ATTRIBUTES: &[Attribute<VolumeStatus>] = &[
    ("action.code", |_| vec![]),
    ("action.description", |_| vec![]),
    ("action.event-id", |_| vec![]),
    ("attachment-status.instance-id", |v| {
        v.attachment_statuses.iter().map(|a| a.instance_id.as_str().into()).collect()
    }),
    ("attachment-status.io-performance", |v| v.attachment_statuses.iter().map(|a| a.io_performance.into()).collect()),
    ("availability-zone", |v| vec![(&v.availability_zone).into()]),
    ("event.description", |_| vec![]),
    ("event.event-id", |_| vec![]),
    ("event.event-type", |_| vec![]),
    ("event.not-after", |_| vec![]),
    ("event.not-before", |_| vec![]),
    ("volume-status.details-name", |v| v.volume_status.details.iter().map(|d| d.name.into()).collect()),
    ("volume-status.details-status", |v| v.volume_status.details.iter().map(|d| d.status.into()).collect()),
    ("volume-status.status", |v| vec![v.volume_status.status.into()]),
];

async fn describe_status(call: &Call, input: DescribeVolumeStatus) -> Outcome<DescribedVolumeStatus> {
    let account = call.account().to_owned();
    let rows = call.cloud.store.read("describe the status of volumes", move |tx| all(tx, &account)).await?;
    let status = |(volume, attachment, _): Found| {
        let (status, enabled) = match super::state(&volume, attachment.as_ref()) {
            "available" | "in-use" => ("ok", "passed"),
            "error" => ("impaired", "failed"),
            _ => ("insufficient-data", "insufficient-data"),
        };
        VolumeStatus {
            volume_id: volume.id,
            availability_zone_id: zone_id(&call.cloud.config, &volume.zone),
            availability_zone: volume.zone,
            volume_status: Status {
                status,
                details: [
                    Detail { name: "io-enabled", status: enabled },
                    Detail { name: "io-performance", status: NOT_WATCHED },
                ],
            },
            events_set: [],
            actions_set: [],
            attachment_statuses: attachment
                .map(|a| AttachmentStatus { io_performance: NOT_WATCHED, instance_id: a.instance })
                .into_iter()
                .collect(),
        }
    };
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.volume_id.iter().map(VolumeId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let infos = rows.into_iter().map(status).collect();
    let (volume_status_set, next_token) =
        listing::page(call, &wanted, STATUS_ATTRIBUTES, |v| v.volume_id.as_str(), not_found, infos)?;
    Ok(DescribedVolumeStatus { volume_status_set, next_token })
}
