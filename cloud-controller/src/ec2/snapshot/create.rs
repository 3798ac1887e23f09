//! CreateSnapshot, CreateSnapshots and DeleteSnapshot.

use std::time::Duration;

use mallee_aws::{
    AwsError,
    answer::timestamp,
    id::{InstanceId, SnapshotId, VolumeId},
};
use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{HoldKind, SnapshotObserved, VolumeDesired, VolumeObserved};
use serde::{Deserialize, Serialize};

use super::{
    own,
    row::{self, Snapshot},
    together::{self, Details, Part},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        image, instance,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
        volume,
    },
    service::Call,
    zone::event::{self, Kind},
};

actions![
    CreateSnapshot => create,
    CreateSnapshots => create_all,
    DeleteSnapshot => delete,
];

/// A caller who flushed and froze a file system goes on when this answers, so the answer waits for the instant to be fixed;
/// not longer than this, for a zone that does not answer.
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
/// And not longer than this for a guest to stand still.
const TOGETHER_PATIENCE: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_millis(15);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateSnapshot {
    dry_run: Option<bool>,
    volume_id: VolumeId,
    description: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    location: Option<Unsupported>,
    outpost_arn: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    snapshot_id: SnapshotId,
    volume_id: String,
    status: &'static str,
    start_time: String,
    progress: String,
    owner_id: String,
    volume_size: u64,
    description: String,
    tag_set: Vec<Tag>,
    encrypted: bool,
}

impl Created {
    fn of(snapshot: &Snapshot, tag_set: Vec<Tag>) -> Self {
        Self {
            snapshot_id: snapshot.id.clone(),
            volume_id: snapshot.volume.clone(),
            status: "pending",
            start_time: timestamp(snapshot.created),
            progress: String::new(),
            owner_id: snapshot.account.clone(),
            volume_size: snapshot.size_gib,
            description: snapshot.description.clone(),
            tag_set,
            encrypted: snapshot.disk_key.is_some(),
        }
    }
}

/// One of its volumes can be taken a snapshot of.
fn is_ready(volume: &volume::Volume) -> Outcome<()> {
    if volume.desired == VolumeDesired::Present && volume.observed == Some(VolumeObserved::Ready) {
        return Ok(());
    }
    let message = format!("Volume '{}' is neither 'available' nor 'in-use'.", volume.id);
    Err(Refusal::new("IncorrectState", message))
}

pub(super) fn checked_description(description: &str) -> Outcome<String> {
    if description.chars().count() > 255 {
        let message = "Character sets beyond 255 characters are not supported for description";
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    Ok(description.to_owned())
}

/// Waits until all of them are fixed, and finds them. `of`: the first of several that are taken together.
async fn until_taken(call: &Call, of: Option<String>, parts: Vec<Part>) -> Outcome<Vec<(Snapshot, Vec<Tag>)>> {
    let begun = tokio::time::Instant::now();
    loop {
        let (asked, parts) = (of.clone(), parts.clone());
        let found = call.cloud.store.read("wait for snapshots", move |tx| {
            let fixed = asked.as_ref().map_or(Ok(Some(true)), |of| together::are_fixed(tx, of))?;
            let mut found = Vec::new();
            for part in &parts {
                found.extend(row::any(tx, part.snapshot.as_str())?.map(|snapshot| (snapshot, part.tags())));
            }
            Ok::<_, StoreError>((fixed, found))
        });
        let (fixed, found) = found.await.map_err(Refusal::from)?;
        let waited = begun.elapsed();
        match fixed {
            Some(true) => {
                for (snapshot, _) in &found {
                    until_frozen(call, snapshot).await;
                }
                return Ok(found);
            }
            Some(false) if waited > TOGETHER_PATIENCE => {
                let of = of.clone().unwrap_or_default();
                call.cloud.store.write("give snapshots up", move |tx| together::give_up(tx, &of)).await?;
                call.cloud.pokes.instances.poke();
                let message = "The guest does not stand still for its volumes to be fixed at one instant; try again";
                return Err(AwsError::unavailable(message).into());
            }
            Some(false) => tokio::time::sleep(LOOK).await,
            None => {
                let message = "The guest went on before all its volumes were fixed; no snapshot was taken: try again";
                return Err(AwsError::unavailable(message).into());
            }
        }
    }
}

/// Asks for a snapshot of a volume.
pub fn begin(
    tx: &mut Tx<'_>,
    volume: &volume::Volume,
    (id, now): (SnapshotId, i64),
    description: &str,
    tags: &[Tag],
) -> Outcome<Snapshot> {
    is_ready(volume)?;
    let description = checked_description(description)?;
    let snapshot = Snapshot {
        zone: volume.zone.clone(),
        volume: volume.id.to_string(),
        description,
        disk_key: volume.disk_key.clone(),
        ..Snapshot::asked_for(id, &volume.account, volume.size_gib, now)
    };
    row::insert(tx, &snapshot)?;
    if !tags.is_empty() {
        tag::put(tx, &snapshot.account, snapshot.id.as_str(), tags)?;
    }
    event::note(tx, snapshot.id.as_str(), now, Kind::Asked, &format!("a snapshot of {}", volume.id))?;
    Ok(snapshot)
}

async fn create(call: &Call, input: CreateSnapshot) -> Outcome<Created> {
    unsupported::refuse(&[("Location", input.location), ("OutpostArn", input.outpost_arn)])?;
    let tags = tag::specified(&input.tag_specification, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    let (account, now, put) = (call.account().to_owned(), call.now, tags.clone());
    let id = SnapshotId::from_random(rand::random());
    let (snapshot, written_to) = call
        .cloud
        .store
        .write("create a snapshot", move |tx| {
            let volume = volume::get(tx, &account, input.volume_id.as_str())?;
            let volume = volume.ok_or_else(|| volume::not_found(input.volume_id.as_str()))?;
            let written_to = volume::attachment_of(tx, volume.id.as_str())?.is_some();
            let description = input.description.as_deref().unwrap_or_default();
            let snapshot = begin(tx, &volume, (id.clone(), now), description, &put)?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((snapshot, written_to))
        })
        .await?;
    call.cloud.pokes.snapshots.poke();
    if written_to {
        until_frozen(call, &snapshot).await;
    }
    Ok(Created::of(&snapshot, tags))
}

/// Waits until nothing that is written from now on is in the snapshot.
async fn until_frozen(call: &Call, snapshot: &Snapshot) {
    // A zone that was never heard of has nothing to fix.
    if call.cloud.tiers.storage(&call.cloud.store, &snapshot.zone).await.is_err() {
        return;
    }
    let wait = async {
        loop {
            let id = snapshot.id.to_string();
            let row = call.cloud.store.read("wait for a snapshot", move |tx| row::any(tx, &id)).await;
            match row {
                Ok(Some(row)) if matches!(row.observed, None | Some(SnapshotObserved::Freezing)) => {}
                Ok(_) | Err(StoreError::Other { .. }) => return,
                Err(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(FREEZE_PATIENCE, wait).await.is_err() {
        tracing::warn!(snapshot.id = %snapshot.id, "its zone has not fixed it yet; it is answered for all the same");
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateSnapshots {
    dry_run: Option<bool>,
    instance_specification: InstanceSpecification,
    description: Option<String>,
    copy_tags_from_source: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    location: Option<Unsupported>,
    outpost_arn: Option<Unsupported>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceSpecification {
    instance_id: InstanceId,
    exclude_boot_volume: Option<bool>,
    #[serde(default)]
    exclude_data_volume_id: Vec<VolumeId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedAll {
    snapshot_set: Vec<CreatedOne>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedOne {
    snapshot_id: SnapshotId,
    volume_id: String,
    state: &'static str,
    start_time: String,
    progress: String,
    owner_id: String,
    volume_size: u64,
    description: String,
    tag_set: Vec<Tag>,
    encrypted: bool,
}

/// All volumes of an instance at one instant: where it runs and has several, its processors stand still for it.
async fn create_all(call: &Call, input: CreateSnapshots) -> Outcome<CreatedAll> {
    unsupported::refuse(&[("Location", input.location), ("OutpostArn", input.outpost_arn)])?;
    let copies_tags = match input.copy_tags_from_source.as_deref() {
        None => false,
        Some("volume") => true,
        Some(other) => {
            let message = format!("Value ({other}) for parameter copyTagsFromSource is invalid.");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    };
    let tags = tag::specified(&input.tag_specification, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    let (account, now) = (call.account().to_owned(), call.now);
    let seeds: Vec<[u8; 9]> = (0..32).map(|_| rand::random()).collect();
    let (first, parts) = call
        .cloud
        .store
        .write("create snapshots", move |tx| {
            let wanted = &input.instance_specification;
            let instance = instance::get(tx, &account, &wanted.instance_id)?;
            let without_root = wanted.exclude_boot_volume == Some(true) && instance.options.root_on_volume;
            let attached: Vec<_> = volume::attachments_at(tx, instance.id.as_str())?
                .into_iter()
                .filter(|a| a.is_coming() && !wanted.exclude_data_volume_id.contains(&a.volume))
                .filter(|a| !(without_root && a.device == instance.options.root_device))
                .collect();
            if attached.is_empty() {
                let message = format!("Instance '{}' has no volume to take a snapshot of", instance.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            let mut parts = Vec::new();
            for (attachment, seed) in attached.iter().zip(&seeds) {
                let volume = volume::any(tx, attachment.volume.as_str())?;
                let volume = volume.ok_or_else(|| volume::not_found(attachment.volume.as_str()))?;
                let mut its_tags = if copies_tags { tag::of(tx, volume.id.as_str())? } else { Vec::new() };
                its_tags.retain(|t| !tags.iter().any(|given| given.key == t.key));
                its_tags.extend(tags.iter().cloned());
                is_ready(&volume)?;
                parts.push(Part::new(volume.id, SnapshotId::from_random(*seed), &its_tags));
            }
            let description = checked_description(input.description.as_deref().unwrap_or_default())?;
            let first = parts.first().map(|p| p.snapshot.to_string()).filter(|_| parts.len() > 1);
            let first = first.filter(|_| instance.state() != instance::STOPPED);
            if let Some(first) = &first {
                let details = Details { hold: Some(HoldKind::Paused), parts: parts.clone(), description };
                together::ask(tx, first, &instance, details, now)?;
            } else {
                for part in &parts {
                    let volume = volume::any(tx, part.volume.as_str())?;
                    let volume = volume.ok_or_else(|| volume::not_found(part.volume.as_str()))?;
                    begin(tx, &volume, (part.snapshot.clone(), now), &description, &part.tags())?;
                }
            }
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((first, parts))
        })
        .await?;
    call.cloud.pokes.instances.poke();
    call.cloud.pokes.snapshots.poke();
    call.cloud.pokes.creations.poke();
    let made = until_taken(call, first, parts).await?;
    let one = |(snapshot, tags): &(Snapshot, Vec<Tag>)| {
        let c = Created::of(snapshot, tags.clone());
        CreatedOne {
            snapshot_id: c.snapshot_id,
            volume_id: c.volume_id,
            state: c.status,
            start_time: c.start_time,
            progress: c.progress,
            owner_id: c.owner_id,
            volume_size: c.volume_size,
            description: c.description,
            tag_set: c.tag_set,
            encrypted: c.encrypted,
        }
    };
    Ok(CreatedAll { snapshot_set: made.iter().map(one).collect() })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteSnapshot {
    dry_run: Option<bool>,
    snapshot_id: SnapshotId,
}

async fn delete(call: &Call, input: DeleteSnapshot) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a snapshot", move |tx| {
            let snapshot = own(tx, &account, &input.snapshot_id)?;
            if let Some(image) = image::on_snapshot(tx, snapshot.id.as_str())? {
                let message = format!("The snapshot {} is currently in use by {image}", snapshot.id);
                return Err(Refusal::new("InvalidSnapshot.InUse", message));
            }
            row::set_deleted(tx, snapshot.id.as_str())?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.snapshots.poke();
    call.cloud.pokes.kept.poke();
    call.cloud.pokes.direct.poke();
    Ok(())
}
