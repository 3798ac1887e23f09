//! CopyImage: within the region, an image of the caller's own on copies of the snapshots, or on the same bytes. One whose
//! copies a zone has to encrypt is pending until they are complete.

use mallee_aws::{
    AwsError,
    id::{ImageId, MachineImageId, SnapshotId},
};
use mallee_store::Tx;
use serde::{Deserialize, Serialize};

use super::{
    name_taken,
    register::checked_name,
    row::{self, Image, Kind, State},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        block_device::{Disk, Mapping},
        encryption,
        snapshot::{self, copy::Copies, together},
        tag::{self, TagSpecification},
        unique_is, unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
    zone::event::{self, Kind as Event},
};

actions![CopyImage => copy];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CopyImage {
    dry_run: Option<bool>,
    source_image_id: ImageId,
    source_region: String,
    name: String,
    description: Option<String>,
    copy_image_tags: Option<bool>,
    client_token: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    encrypted: Option<bool>,
    kms_key_id: Option<String>,
    destination_outpost_arn: Option<Unsupported>,
    destination_availability_zone: Option<Unsupported>,
    destination_availability_zone_id: Option<Unsupported>,
    snapshot_copy_completion_duration_minutes: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CopiedImage {
    image_id: ImageId,
}

async fn copy(call: &Call, input: CopyImage) -> Outcome<CopiedImage> {
    unsupported::refuse(&[
        ("DestinationAvailabilityZone", input.destination_availability_zone),
        ("DestinationAvailabilityZoneId", input.destination_availability_zone_id),
        ("DestinationOutpostArn", input.destination_outpost_arn),
        ("SnapshotCopyCompletionDurationMinutes", input.snapshot_copy_completion_duration_minutes),
    ])?;
    let asked = encryption::Asked::of(call, input.encrypted, input.kms_key_id.as_deref())?;
    let here = call.cloud.region();
    if input.source_region != here {
        let message = format!("Invalid region '{}': this cloud has the region {here} only", input.source_region);
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    let name = checked_name(&input.name)?;
    let token = crate::ec2::client_token::Given::of(call, input.client_token.as_deref())?;
    let mut tags = tag::specified(&input.tag_specification, &["image", "snapshot"])?;
    let (image_tags, snapshot_tags) =
        (tags.remove("image").unwrap_or_default(), tags.remove("snapshot").unwrap_or_default());
    let (account, now, dry_run) = (call.account().to_owned(), call.now, input.dry_run);
    let zones = call.cloud.config.zones.clone();
    let copies = Copies { account: account.clone(), zones, asked, tags: snapshot_tags, now };
    let new = ImageId::Machine(MachineImageId::from_random(rand::random()));
    let seeds: Vec<[u8; 9]> = (0..=mallee_tiers::VOLUMES_AT_AN_INSTANCE).map(|_| rand::random()).collect();
    let id = call
        .cloud
        .store
        .write("copy an image", move |tx| {
            let made = token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
            if let Some(made) = made {
                return Ok(made.parse::<ImageId>()?);
            }
            let source = super::get(tx, &account, &input.source_image_id)?;
            if source.state != State::Available || source.kind != Kind::Machine {
                let message = format!("Image '{}' is not an available machine image", source.id);
                return Err(Refusal::new("InvalidAMIID.Unavailable", message));
            }
            if input.encrypted == Some(true) && source.root_volume().is_none() {
                let message = format!("The root of image '{}' is an instance store, which is not encrypted", source.id);
                return Err(AwsError::invalid_parameter_combination(message).into());
            }
            let mut state = State::Available;
            let mut seeds = seeds.iter();
            let mut mappings = Vec::with_capacity(source.mappings.len());
            for mapping in &source.mappings {
                let mut mapping: Mapping = mapping.clone();
                if let Disk::Volume(volume) = &mut mapping.disk
                    && let (Some(from), Some(seed)) = (&mut volume.snapshot, seeds.next())
                {
                    let description = format!("Copied for {new} from {} by CopyImage", source.id);
                    let copy = copies.make(tx, &from.id, &SnapshotId::from_random(*seed), &description)?;
                    if !copy.accepted {
                        state = State::Pending;
                    }
                    (from.id, from.encrypted) = (copy.id.to_string(), copy.disk_key.is_some());
                    volume.encrypted |= from.encrypted;
                }
                mappings.push(mapping);
            }
            let image = Image {
                id: new.clone(),
                account: account.clone(),
                name: name.clone(),
                location: format!("{account}/{name}"),
                description: input.description.clone().or(source.description.clone()).filter(|d| !d.is_empty()),
                created: now,
                mappings,
                state,
                progress: if state == State::Available { 100 } else { 0 },
                ..source.clone()
            };
            row::insert(tx, &image).map_err(|e| unique_is(e, || name_taken(&image)))?;
            let mut its_tags = image_tags.clone();
            // Those of somebody else's image are not the caller's to see.
            if input.copy_image_tags == Some(true) && source.account == account {
                let copied = tag::of(tx, source.id.as_str())?;
                its_tags.extend(copied.into_iter().filter(|t| !image_tags.iter().any(|given| given.key == t.key)));
            }
            tag::put(tx, &account, image.id.as_str(), &its_tags)?;
            unless_dry_run(dry_run)?;
            if let Some(token) = &token {
                token.remember(tx, image.id.as_str())?;
            }
            Ok::<_, Refusal>(image.id)
        })
        .await?;
    call.cloud.pokes.snapshots.poke();
    Ok(CopiedImage { image_id: id })
}

/// Images whose copies are complete, or cannot be: they are available, or have failed. How many of them.
pub fn settle(tx: &mut Tx<'_>, now: i64) -> Outcome<u64> {
    let mut settled = 0;
    for image in row::in_state(tx, State::Pending)?.iter().filter(|i| i.root_volume().is_some()) {
        let id = image.id.as_str();
        if together::are_fixed(tx, id)?.is_some() {
            continue;
        }
        match together::uploaded(tx, image.snapshots())? {
            Ok(100) => super::made(tx, id, now)?,
            Ok(percent) => {
                if percent != image.progress {
                    super::set_making(tx, id, percent)?;
                }
                continue;
            }
            Err(why) => {
                super::not_made(tx, id, &why)?;
                event::note(tx, id, now, Event::Decided, &format!("failed: {why}"))?;
                for snapshot in image.snapshots() {
                    snapshot::withdraw(tx, snapshot)?;
                }
            }
        }
        settled += 1;
    }
    Ok(settled)
}
