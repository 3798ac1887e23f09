//! CreateImage: an image of an instance, on snapshots of its volumes as they are at one instant
//! ([`crate::ec2::snapshot::together`]).
//!
//! Unless it is told NoReboot, the guest is powered off meanwhile, so that its file systems are whole, and comes up again where
//! it was: for its user it runs all the while. With NoReboot several volumes are fixed while its processors stand still.

use mallee_aws::{
    AwsError,
    id::{ImageId, InstanceId, MachineImageId, SnapshotId},
};
use mallee_store::Tx;
use mallee_tiers::HoldKind;
use serde::{Deserialize, Serialize};

use super::{
    name_taken,
    register::checked_name,
    row::{self, Image, Kind as ImageKind, Proof, State},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        block_device::{self, Asked, Disk, Mapping, Source, VolumeOf},
        instance::{self, Instance},
        snapshot::{
            self,
            together::{self, Details, Part},
        },
        tag::{self, Tag, TagSpecification},
        unique_is, unless_dry_run,
        unsupported::{self, Unsupported},
        volume,
    },
    service::Call,
    zone::event::{self, Kind},
};

actions![CreateImage => create];

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
            let (mappings, parts) = its_devices(tx, &instance, &seeds, &snapshot_tags)?;
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
            let parts: Vec<_> =
                parts.into_iter().filter(|p| image.snapshots().any(|id| id == p.snapshot.as_str())).collect();
            row::insert(tx, &image).map_err(|e| unique_is(e, || name_taken(&image)))?;
            tag::put(tx, &account, image.id.as_str(), &image_tags)?;
            event::note(tx, image.id.as_str(), now, Kind::Asked, &format!("an image of {}", instance.id))?;
            let hold = match (state == instance::RUNNING, input.no_reboot == Some(true)) {
                (true, false) => Some(HoldKind::Off),
                (true, true) if parts.len() > 1 => Some(HoldKind::Paused),
                _ => None,
            };
            let description = format!("Created by CreateImage({}) for {}", instance.id, image.id);
            together::ask(tx, image.id.as_str(), &instance, Details { hold, parts, description }, now)?;
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
    tags: &[Tag],
) -> Outcome<(Vec<Mapping>, Vec<Part>)> {
    let (mut mappings, mut parts) = (Vec::new(), Vec::new());
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
        parts.push(Part::new(volume.id, snapshot, tags));
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
    Ok((mappings, parts))
}
