//! CopySnapshot: within the region, a row of its own on the same blocks.

use mallee_aws::{AwsError, id::SnapshotId};
use mallee_store::Tx;
use mallee_tiers::{Generation, SnapshotDesired, SnapshotObserved};
use serde::{Deserialize, Serialize};

use super::{
    NO_VOLUME, blob, not_found, of_mapping, restorable,
    row::{self, Snapshot},
};
use crate::{
    Outcome, actions,
    ec2::{
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![CopySnapshot => copy];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CopySnapshot {
    dry_run: Option<bool>,
    source_region: String,
    source_snapshot_id: SnapshotId,
    description: Option<String>,
    destination_region: Option<String>,
    encrypted: Option<bool>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    /// Clients sign the request once more for the source's region; within one region there is nothing to ask it.
    #[allow(dead_code)]
    presigned_url: Option<String>,
    completion_duration_minutes: Option<Unsupported>,
    destination_availability_zone: Option<Unsupported>,
    destination_outpost_arn: Option<Unsupported>,
    kms_key_id: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    snapshot_id: SnapshotId,
    tag_set: Vec<Tag>,
}

async fn copy(call: &Call, input: CopySnapshot) -> Outcome<Copied> {
    unsupported::refuse(&[
        ("CompletionDurationMinutes", input.completion_duration_minutes),
        ("DestinationAvailabilityZone", input.destination_availability_zone),
        ("DestinationOutpostArn", input.destination_outpost_arn),
        ("KmsKeyId", input.kms_key_id),
    ])?;
    if input.encrypted == Some(true) {
        return Err(AwsError::unsupported("Encrypted=true is not supported by this cloud").into());
    }
    let here = &call.cloud.config.region;
    for region in std::iter::once(&input.source_region).chain(&input.destination_region) {
        if region != here {
            let message = format!("Invalid region '{region}': this cloud has the region {here} only");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    let tags = tag::specified(&input.tag_specification, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    let (account, now, put) = (call.account().to_owned(), call.now, tags.clone());
    let id = SnapshotId::from_random(rand::random());
    let made = id.clone();
    call.cloud
        .store
        .write("copy a snapshot", move |tx| {
            let (source, _) = restorable(tx, &account, &input.source_snapshot_id)?;
            let description = input.description.clone();
            let description =
                description.unwrap_or_else(|| format!("[Copied {} from {}]", source.id, input.source_region));
            within(tx, &account, source.id.as_str(), (&made, now), &description, &put)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    Ok(Copied { snapshot_id: id, tag_set: tags })
}

/// A row of `account`'s own on the blocks of a complete snapshot that it may use.
pub fn within(
    tx: &mut Tx<'_>,
    account: &str,
    source: &str,
    (id, now): (&SnapshotId, i64),
    description: &str,
    tags: &[Tag],
) -> Outcome<()> {
    let manifest = of_mapping(tx, source)?;
    let source = row::any(tx, source)?.ok_or_else(|| not_found(source))?;
    let copy = Snapshot {
        id: id.clone(),
        account: account.to_owned(),
        zone: String::new(),
        volume: NO_VOLUME.into(),
        generation: Generation::default(),
        size_gib: source.size_gib,
        description: description.to_owned(),
        created: now,
        desired: SnapshotDesired::Present,
        observed: Some(SnapshotObserved::Uploaded),
        reason: String::new(),
        percent: 100,
        attempt: 0,
        accepted: true,
        manifest: Some(manifest),
        sent: 0,
        disk_key: source.disk_key,
    };
    row::insert(tx, &copy)?;
    blob::copy(tx, source.id.as_str(), copy.id.as_str())?;
    if !tags.is_empty() {
        tag::put(tx, account, copy.id.as_str(), tags)?;
    }
    Ok(())
}
