//! CreateImage: an image of an instance, on snapshots of its volumes as they are at one instant.
//!
//! ```text
//! holding ── the node says that the guest stands still ──► freezing ── every snapshot is fixed ──► confirming
//!    the guest is off (or its processors stop, with NoReboot)  │                                      │ still held, says
//!                                                              │                                      ▼ the node
//!            an instance that is off, or one volume: at once ──┘────────────────────────────────► uploading ──► available
//! ```
//! With NoReboot the snapshots of several volumes are of one instant because nothing is written while the processors stand
//! still. A node that waits too long lets its guest go on (see node-controller's plan), so what was fixed counts only when it
//! says afterwards that the guest stood still all the while. Each step is a transaction that looks at rows only; one that is
//! not through by its time fails the image, says why, and leaves no snapshot behind.

use std::{sync::Arc, time::Duration};

use mallee_aws::{
    AwsError,
    id::{ImageId, InstanceId, MachineImageId, SnapshotId, VolumeId},
};
use mallee_service::{Driven, PassReport, Reconciler, drive as drive_one};
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::{Desired, HoldKind, Observed, SnapshotDesired, SnapshotObserved};
use serde::{Deserialize, Serialize};

use super::{
    name_taken,
    register::checked_name,
    row::{self, Image, Kind as ImageKind, Proof, State},
};
use crate::{
    Cloud, Outcome, Refusal, actions,
    ec2::{
        block_device::{self, Asked, Disk, Mapping, Source, VolumeOf},
        instance::{self, Hold, Instance, Options, unword, word},
        snapshot,
        tag::{self, Tag, TagSpecification},
        unique_is, unless_dry_run,
        unsupported::{self, Unsupported},
        volume,
    },
    service::Call,
    zone::event::{self, Kind},
};

actions![CreateImage => create];

pub const TABLES: &str = "
CREATE TABLE image_creation (
    image TEXT PRIMARY KEY,
    instance TEXT NOT NULL,
    step TEXT NOT NULL,
    since BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    counter BIGINT NOT NULL,
    details TEXT NOT NULL
);
CREATE INDEX image_creation_of ON image_creation (instance);
";

/// How long a guest may take to stand still, and its volumes to be fixed.
const PATIENCE_MS: i64 = 10 * 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    /// The guest is to stand still.
    Holding,
    /// Snapshots are asked for.
    Freezing,
    /// They are fixed; the node is to say that the guest stood still until now.
    Confirming,
    /// The guest is let go; blocks are on their way.
    Uploading,
}

/// What is fixed when the image is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Details {
    hold: Option<HoldKind>,
    /// Volume → the snapshot that will be of it.
    volumes: Vec<(VolumeId, SnapshotId)>,
    snapshot_tags: Vec<Tag>,
}

#[derive(Debug, Clone)]
struct Creation {
    image: String,
    instance: InstanceId,
    step: Step,
    since: i64,
    /// The instance's wish whose report is waited for.
    wish: mallee_tiers::Generation,
    details: Details,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateImage {
    dry_run: Option<bool>,
    instance_id: InstanceId,
    name: String,
    description: Option<String>,
    no_reboot: Option<bool>,
    #[serde(default)]
    block_device_mapping: Vec<Asked>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    snapshot_location: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedImage {
    image_id: ImageId,
}

async fn create(call: &Call, input: CreateImage) -> Outcome<CreatedImage> {
    unsupported::refuse(&[("SnapshotLocation", input.snapshot_location)])?;
    let name = checked_name(&input.name)?;
    let mut tags = tag::specified(&input.tag_specification, &["image", "snapshot"])?;
    let (account, now) = (call.account().to_owned(), call.now);
    let id = ImageId::Machine(MachineImageId::from_random(rand::random()));
    let seeds: Vec<[u8; 9]> = (0..=mallee_tiers::VOLUMES_AT_AN_INSTANCE).map(|_| rand::random()).collect();
    let (image_tags, snapshot_tags) =
        (tags.remove("image").unwrap_or_default(), tags.remove("snapshot").unwrap_or_default());
    let (made, description) = (id.clone(), input.description.clone().filter(|d| !d.is_empty()));
    call.cloud
        .store
        .write("create an image", move |tx| {
            let instance = instance::get(tx, &account, &input.instance_id)?;
            let state = instance.state();
            if state != instance::RUNNING && state != instance::STOPPED {
                let message = format!(
                    "The instance '{}' is not in a state from which an image can be made (it is {})",
                    instance.id, state.name
                );
                return Err(Refusal::new("IncorrectState", message));
            }
            if !instance.options.root_on_volume {
                let message = format!(
                    "The root of instance '{}' is an instance store: make a bundle of it, and register that",
                    instance.id
                );
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            if instance.options.hold.is_some() {
                let message = format!("Another image is being made of instance '{}' just now", instance.id);
                return Err(Refusal::new("IncorrectState", message));
            }
            let (mappings, volumes) = its_devices(tx, &instance, &seeds)?;
            let root_device = instance.options.root_device.clone();
            let mappings = block_device::over(&mappings, &root_device, &input.block_device_mapping, |id| {
                snapshot::source(tx, &account, id)
            })?;
            let of = row::any(tx, &instance.image)?;
            let image = Image {
                id: made.clone(),
                account: account.clone(),
                name: name.clone(),
                location: format!("{account}/{name}"),
                kind: ImageKind::Machine,
                architecture: instance.architecture.clone(),
                description: description.clone(),
                kernel: instance.kernel.clone(),
                ramdisk: instance.ramdisk.clone(),
                root_device,
                tokens_required: of.is_some_and(|i| i.tokens_required),
                state: State::Pending,
                reason: String::new(),
                progress: 0,
                proof: Proof::Unknown,
                digest: None,
                size: 0,
                created: now,
                mappings,
                source_instance: Some(instance.id.to_string()),
            };
            // A device that was left out needs no snapshot.
            let volumes: Vec<_> =
                volumes.into_iter().filter(|(_, s)| image.snapshots().any(|id| id == s.as_str())).collect();
            row::insert(tx, &image).map_err(|e| unique_is(e, || name_taken(&image)))?;
            tag::put(tx, &account, image.id.as_str(), &image_tags)?;
            event::note(tx, image.id.as_str(), now, Kind::Asked, &format!("an image of {}", instance.id))?;
            let hold = match (state == instance::RUNNING, input.no_reboot == Some(true)) {
                (true, false) => Some(HoldKind::Off),
                (true, true) if volumes.len() > 1 => Some(HoldKind::Paused),
                _ => None,
            };
            let creation = Creation {
                image: image.id.to_string(),
                instance: instance.id.clone(),
                step: Step::Holding,
                since: now,
                wish: instance.generation,
                details: Details { hold, volumes, snapshot_tags: snapshot_tags.clone() },
            };
            insert(tx, &creation)?;
            match hold {
                Some(kind) => begin_hold(tx, &creation, &instance, kind)?,
                None => begin_snapshots(tx, &creation, now)?,
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.instances.poke();
    call.cloud.pokes.snapshots.poke();
    call.cloud.pokes.creations.poke();
    Ok(CreatedImage { image_id: id })
}

/// What the instance has, as an image has it: its volumes on snapshots that are still to be taken.
fn its_devices(
    tx: &mut Tx<'_>,
    instance: &Instance,
    seeds: &[[u8; 9]],
) -> Outcome<(Vec<Mapping>, Vec<(VolumeId, SnapshotId)>)> {
    let (mut mappings, mut volumes) = (Vec::new(), Vec::new());
    let attached = volume::attachments_at(tx, instance.id.as_str())?;
    for (attachment, seed) in attached.into_iter().filter(volume::Attachment::is_coming).zip(seeds) {
        let volume = volume::any(tx, attachment.volume.as_str())?;
        let volume = volume.ok_or_else(|| volume::not_found(attachment.volume.as_str()))?;
        let snapshot = SnapshotId::from_random(*seed);
        let source = Source { id: snapshot.to_string(), size_gib: volume.size_gib, encrypted: volume.is_encrypted() };
        mappings.push(Mapping {
            device: attachment.device,
            disk: Disk::Volume(VolumeOf {
                encrypted: source.encrypted,
                snapshot: Some(source),
                size_gib: volume.size_gib,
                kind: volume.kind,
                iops: volume.iops,
                throughput: volume.throughput,
                delete_on_termination: attachment.delete_on_termination,
            }),
        });
        volumes.push((volume.id, snapshot));
    }
    if block_device::root(&mappings, &instance.options.root_device).is_none() {
        let message = format!(
            "Instance '{}' does not have a volume attached at root ({})",
            instance.id, instance.options.root_device
        );
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    if let Some(device) = &instance.options.ephemeral {
        mappings.push(Mapping { device: device.clone(), disk: Disk::InstanceStore(0) });
    }
    // The root first, as images have it.
    mappings.sort_by_key(|m| m.device != instance.options.root_device);
    Ok((mappings, volumes))
}

fn read(row: &Row<'_>) -> Result<Creation, StoreError> {
    let details: String = row.get(6)?;
    let unreadable =
        |e: serde_json::Error| StoreError::Other { what: "read an image's creation", detail: e.to_string() };
    Ok(Creation {
        image: row.get(0)?,
        instance: row.get::<crate::ec2::Id<_>>(1)?.0,
        step: unword(row.get(2)?)?,
        since: row.get(3)?,
        wish: mallee_tiers::Generation { epoch: row.get(4)?, counter: row.get(5)? },
        details: serde_json::from_str(&details).map_err(unreadable)?,
    })
}

const COLUMNS: &str = "image, instance, step, since, epoch, counter, details";

fn insert(tx: &mut Tx<'_>, c: &Creation) -> Outcome<()> {
    let details = serde_json::to_string(&c.details).map_err(|e| Refusal::internal(e.to_string()))?;
    tx.execute(
        &format!("INSERT INTO image_creation ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
        params![c.image, c.instance.as_str(), word(c.step), c.since, c.wish.epoch, c.wish.counter, details],
    )?;
    Ok(())
}

fn all(tx: &mut Tx<'_>) -> Result<Vec<Creation>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM image_creation ORDER BY image"), params![], read)
}

fn set_step(tx: &mut Tx<'_>, c: &Creation, step: Step, wish: mallee_tiers::Generation) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE image_creation SET step = ?2, epoch = ?3, counter = ?4 WHERE image = ?1",
        params![c.image, word(step), wish.epoch, wish.counter],
    )
    .map(|_| ())
}

fn remove(tx: &mut Tx<'_>, c: &Creation) -> Result<(), StoreError> {
    tx.execute("DELETE FROM image_creation WHERE image = ?1", params![c.image]).map(|_| ())
}

fn generation_of(tx: &mut Tx<'_>, c: &Creation) -> Outcome<mallee_tiers::Generation> {
    Ok(instance::any(tx, c.instance.as_str())?.map(|i| i.generation).unwrap_or_default())
}

fn begin_hold(tx: &mut Tx<'_>, c: &Creation, instance: &Instance, kind: HoldKind) -> Outcome<()> {
    let hold = Some(Hold { id: c.image.clone(), kind, over: false, confirmed: false });
    instance::set_options(tx, c.instance.as_str(), &Options { hold, ..instance.options.clone() })?;
    instance::touch(tx, c.instance.as_str())?;
    let wish = generation_of(tx, c)?;
    Ok(set_step(tx, c, Step::Holding, wish)?)
}

/// The guest may go on.
fn end_hold(tx: &mut Tx<'_>, c: &Creation) -> Outcome<()> {
    let Some(instance) = instance::any(tx, c.instance.as_str())? else { return Ok(()) };
    let Some(hold) = instance.options.hold.clone().filter(|h| h.id == c.image && !h.over) else { return Ok(()) };
    // One that is not wanted running will not be seen running.
    let hold = (instance.desired == Desired::Running).then_some(Hold { over: true, ..hold });
    instance::set_options(tx, c.instance.as_str(), &Options { hold, ..instance.options })?;
    Ok(instance::touch(tx, c.instance.as_str())?)
}

fn begin_snapshots(tx: &mut Tx<'_>, c: &Creation, now: i64) -> Outcome<()> {
    let description = format!("Created by CreateImage({}) for {}", c.instance, c.image);
    for (volume, id) in &c.details.volumes {
        let found = volume::any(tx, volume.as_str())?.ok_or_else(|| volume::not_found(volume.as_str()))?;
        snapshot::create::begin(tx, &found, (id.clone(), now), &description, &c.details.snapshot_tags)?;
    }
    Ok(set_step(tx, c, Step::Freezing, c.wish)?)
}

fn fail(tx: &mut Tx<'_>, c: &Creation, why: &str, now: i64) -> Outcome<()> {
    row::set_failed(tx, &c.image, why)?;
    event::note(tx, &c.image, now, Kind::Decided, &format!("failed: {why}"))?;
    for (_, id) in &c.details.volumes {
        snapshot::withdraw(tx, id.as_str())?;
    }
    end_hold(tx, c)?;
    Ok(remove(tx, c)?)
}

/// The image is deregistered: whatever is on its way to it ends, and snapshots that were asked for stay.
pub fn give_up(tx: &mut Tx<'_>, image: &str) -> Outcome<()> {
    for creation in all(tx)?.iter().filter(|c| c.image == image) {
        end_hold(tx, creation)?;
        remove(tx, creation)?;
    }
    Ok(())
}

/// Takes one image a step on, if it can go on; whether it did.
fn advance(tx: &mut Tx<'_>, c: &Creation, now: i64) -> Outcome<bool> {
    let instance = instance::any(tx, c.instance.as_str())?;
    if c.step != Step::Uploading && now - c.since > PATIENCE_MS {
        let why = match (&instance, c.step) {
            (Some(i), Step::Holding) if !i.reason.is_empty() => format!("the guest does not stand still: {}", i.reason),
            (_, Step::Holding) => "the guest does not stand still".into(),
            _ => "its volumes could not be fixed in time".into(),
        };
        fail(tx, c, &why, now)?;
        return Ok(true);
    }
    match c.step {
        Step::Holding => match instance.as_ref().map(|i| stands_still(i, c)) {
            Some(Some(true)) => begin_or_fail(tx, c, now),
            Some(Some(false)) => Ok(false),
            Some(None) | None => fail(tx, c, "the instance was terminated meanwhile", now).map(|()| true),
        },
        Step::Freezing => match frozen(tx, c)? {
            Err(why) => fail(tx, c, &why, now).map(|()| true),
            Ok(false) => Ok(false),
            Ok(true) if c.details.hold.is_none() => {
                set_step(tx, c, Step::Uploading, c.wish)?;
                Ok(true)
            }
            Ok(true) => {
                // A report of this wish is one that was made after everything was fixed.
                instance::touch(tx, c.instance.as_str())?;
                let wish = generation_of(tx, c)?;
                set_step(tx, c, Step::Confirming, wish)?;
                Ok(true)
            }
        },
        Step::Confirming => {
            let Some(i) = instance else { return fail(tx, c, "the instance is gone", now).map(|()| true) };
            if i.desired == Desired::Running && i.observed_generation < c.wish {
                return Ok(false);
            }
            if stands_still(&i, c) != Some(true) {
                fail(tx, c, "the guest went on before all its volumes were fixed", now)?;
                return Ok(true);
            }
            end_hold(tx, c)?;
            set_step(tx, c, Step::Uploading, c.wish)?;
            Ok(true)
        }
        Step::Uploading => match uploaded(tx, c)? {
            Err(why) => fail(tx, c, &why, now).map(|()| true),
            Ok(percent) if percent < 100 => {
                row::set_progress(tx, &c.image, percent, &format!("its snapshots are stored, {percent} %"))?;
                Ok(false)
            }
            Ok(_) => {
                row::set_made(tx, &c.image)?;
                event::note(tx, &c.image, now, Kind::Observed, "all its snapshots are complete")?;
                remove(tx, c)?;
                Ok(true)
            }
        },
    }
}

fn begin_or_fail(tx: &mut Tx<'_>, c: &Creation, now: i64) -> Outcome<bool> {
    for (volume, _) in &c.details.volumes {
        if volume::any(tx, volume.as_str())?.is_none_or(|v| v.desired != mallee_tiers::VolumeDesired::Present) {
            return fail(tx, c, &format!("volume {volume} was deleted meanwhile"), now).map(|()| true);
        }
    }
    begin_snapshots(tx, c, now)?;
    Ok(true)
}

/// Whether nothing is written: the node said so of the wish that is waited for. None: it never will.
fn stands_still(i: &Instance, c: &Creation) -> Option<bool> {
    match i.desired {
        Desired::Terminated => None,
        // Somebody stopped it meanwhile, which is as good.
        Desired::Stopped => Some(i.observed == Some(Observed::Stopped) && i.observed_generation >= c.wish),
        _ => {
            let held = i.options.hold.as_ref().is_some_and(|h| h.id == c.image && !h.over && h.confirmed);
            Some(held && i.observed_generation >= c.wish)
        }
    }
}

/// Whether every snapshot is fixed. The error says which cannot be.
fn frozen(tx: &mut Tx<'_>, c: &Creation) -> Outcome<Result<bool, String>> {
    let mut all = true;
    for (_, id) in &c.details.volumes {
        match snapshot::any(tx, id.as_str())? {
            Some(s) if s.accepted => {}
            Some(s) => match s.observed {
                Some(SnapshotObserved::Frozen | SnapshotObserved::Uploaded) => {}
                Some(SnapshotObserved::Failed | SnapshotObserved::Gone) => {
                    return Ok(Err(format!("snapshot {id}: {}", s.reason)));
                }
                _ => all = false,
            },
            None => return Ok(Err(format!("snapshot {id} was deleted"))),
        }
    }
    Ok(Ok(all))
}

/// Percent of all its snapshots.
fn uploaded(tx: &mut Tx<'_>, c: &Creation) -> Outcome<Result<u32, String>> {
    let (mut percent, mut complete) = (0, true);
    for (_, id) in &c.details.volumes {
        match snapshot::any(tx, id.as_str())?.filter(|s| s.desired == SnapshotDesired::Present) {
            Some(s) if s.accepted => percent += 100,
            Some(s) if matches!(s.observed, Some(SnapshotObserved::Failed | SnapshotObserved::Gone)) => {
                return Ok(Err(format!("snapshot {id}: {}", s.reason)));
            }
            Some(s) => {
                complete = false;
                percent += s.percent.min(99);
            }
            None => return Ok(Err(format!("snapshot {id} was deleted"))),
        }
    }
    let of = u32::try_from(c.details.volumes.len()).unwrap_or(1).max(1);
    Ok(Ok(if complete { 100 } else { (percent / of).min(99) }))
}

/// Starts the reconciler of images that are being made.
pub(super) fn drive(cloud: &Arc<Cloud>) -> Driven {
    drive_one(Arc::new(Creations { cloud: cloud.clone() }), cloud.pokes.creations.clone(), Duration::from_secs(10))
}

pub(crate) struct Creations {
    pub cloud: Arc<Cloud>,
}

#[async_trait::async_trait]
impl Reconciler for Creations {
    fn name(&self) -> &'static str {
        "images of instances"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let (store, now) = (&self.cloud.store, self.cloud.now());
        let creations = match store.read("read the images being made", all).await {
            Ok(creations) => creations,
            Err(e) => {
                report.error(e);
                return report;
            }
        };
        for creation in creations {
            let image = creation.image.clone();
            let went_on = store.write("make an image", move |tx| {
                // As it is now: it may have been given up since.
                match all(tx)?.iter().find(|c| c.image == creation.image) {
                    Some(c) => advance(tx, c, now),
                    None => Ok(false),
                }
            });
            match went_on.await {
                Ok(went_on) => report.changed += u64::from(went_on),
                Err(e) => report.error(format!("{image}: {}", e.cause.unwrap_or(e.answer.message))),
            }
        }
        if report.changed > 0 {
            self.cloud.pokes.instances.poke();
            self.cloud.pokes.snapshots.poke();
            // There may be another step at once.
            report.again = Some(Duration::ZERO);
        }
        report
    }
}
