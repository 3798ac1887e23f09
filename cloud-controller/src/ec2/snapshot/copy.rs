//! CopySnapshot, within the region: a row of its own on the same blocks, complete at once; or, where it is encrypted and its
//! source is not, a snapshot that a zone makes, with every block encrypted.

use mallee_aws::{AwsError, id::SnapshotId};
use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{Role, SnapshotObserved, VolumeSource};
use serde::{Deserialize, Serialize};

use super::{
    blob, not_found, of_mapping, restorable,
    row::{self, Snapshot},
};
use crate::{
    Outcome, actions,
    ec2::{
        encryption,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
    zone::{
        event::{self, Kind},
        registry,
    },
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
    kms_key_id: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    /// Clients sign the request once more for the source's region; within one region there is nothing to ask it.
    #[allow(dead_code)]
    presigned_url: Option<String>,
    completion_duration_minutes: Option<Unsupported>,
    destination_availability_zone: Option<Unsupported>,
    destination_outpost_arn: Option<Unsupported>,
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
    ])?;
    let here = &call.cloud.config.region;
    for region in std::iter::once(&input.source_region).chain(&input.destination_region) {
        if region != here {
            let message = format!("Invalid region '{region}': this cloud has the region {here} only");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    let asked = encryption::Asked::of(call, input.encrypted, input.kms_key_id.as_deref())?;
    let tags = tag::specified(&input.tag_specification, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    let copies = Copies {
        account: call.account().to_owned(),
        zones: call.cloud.config.zones.clone(),
        asked,
        tags: tags.clone(),
        now: call.now,
    };
    let id = SnapshotId::from_random(rand::random());
    let made = id.clone();
    call.cloud
        .store
        .write("copy a snapshot", move |tx| {
            let (source, _) = restorable(tx, &copies.account, &input.source_snapshot_id)?;
            let description = match &input.description {
                Some(description) => super::create::checked_description(description)?,
                None => format!("[Copied {} from {}]", source.id, input.source_region),
            };
            copies.make(tx, source.id.as_str(), &made, &description)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.snapshots.poke();
    Ok(Copied { snapshot_id: id, tag_set: tags })
}

/// Copies that one request makes.
pub struct Copies {
    pub account: String,
    /// Of the cloud.
    pub zones: Vec<String>,
    pub asked: encryption::Asked,
    pub tags: Vec<Tag>,
    pub now: i64,
}

impl Copies {
    /// A snapshot of the account's own, of a complete one that it may use.
    pub fn make(&self, tx: &mut Tx<'_>, source: &str, id: &SnapshotId, description: &str) -> Outcome<Snapshot> {
        let manifest = of_mapping(tx, source)?;
        let source = row::any(tx, source)?.ok_or_else(|| not_found(source))?;
        let disk_key = self.asked.key(tx, source.disk_key.is_some())?;
        let on_its_blocks = disk_key == source.disk_key;
        let mut copy = Snapshot {
            description: description.to_owned(),
            disk_key,
            ..Snapshot::asked_for(id.clone(), &self.account, source.size_gib, self.now)
        };
        if on_its_blocks {
            copy.observed = Some(SnapshotObserved::Uploaded);
            (copy.percent, copy.accepted, copy.manifest) = (100, true, Some(manifest));
            row::insert(tx, &copy)?;
            blob::copy(tx, source.id.as_str(), copy.id.as_str())?;
        } else {
            copy.zone = self.zone(tx, &source.zone)?;
            copy.source = Some(VolumeSource { snapshot: source.id.to_string(), manifest });
            row::insert(tx, &copy)?;
            let text = format!("a copy of {}, to be encrypted in {}", source.id, copy.zone);
            event::note(tx, copy.id.as_str(), self.now, Kind::Asked, &text)?;
        }
        if !self.tags.is_empty() {
            tag::put(tx, &self.account, copy.id.as_str(), &self.tags)?;
        }
        Ok(copy)
    }

    /// Who encrypts it: the zone the source came from, else the one that was heard of last.
    fn zone(&self, tx: &mut Tx<'_>, of_source: &str) -> Result<String, StoreError> {
        let mut there: Vec<_> = registry::all(tx)?
            .into_iter()
            .filter(|tier| tier.role == Role::StorageController && self.zones.contains(&tier.zone))
            .collect();
        there.sort_by_key(|tier| (tier.zone == of_source, tier.registered));
        Ok(there.pop().map(|tier| tier.zone).or_else(|| self.zones.first().cloned()).unwrap_or_default())
    }
}
