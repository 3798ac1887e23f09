//! CreateVolume and DeleteVolume.

use mallee_aws::{
    AwsError,
    answer::timestamp,
    id::{SnapshotId, VolumeId},
};
use mallee_store::Tx;
use mallee_tiers::{Generation, VolumeDesired};
use serde::{Deserialize, Serialize};

use super::{
    not_found,
    row::{self, Volume},
};
use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        client_token, encryption, snapshot,
        subnet::zone_id,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
};

actions![CreateVolume => create, DeleteVolume => delete];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateVolume {
    dry_run: Option<bool>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    size: Option<u64>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    client_token: Option<String>,
    encrypted: Option<bool>,
    multi_attach_enabled: Option<bool>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    kms_key_id: Option<String>,
    operator: Option<Unsupported>,
    outpost_arn: Option<Unsupported>,
    snapshot_id: Option<SnapshotId>,
    volume_initialization_rate: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedVolume {
    volume_id: VolumeId,
    size: u64,
    snapshot_id: String,
    availability_zone: String,
    status: &'static str,
    create_time: String,
    tag_set: Vec<Tag>,
    volume_type: String,
    iops: Option<u32>,
    encrypted: bool,
    kms_key_id: Option<String>,
    multi_attach_enabled: bool,
    throughput: Option<u32>,
    availability_zone_id: String,
}

async fn create(call: &Call, input: CreateVolume) -> Outcome<CreatedVolume> {
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    unsupported::refuse(&[
        ("Operator", input.operator),
        ("OutpostArn", input.outpost_arn),
        ("VolumeInitializationRate", input.volume_initialization_rate),
    ])?;
    unsupported::refuse_set("MultiAttachEnabled", input.multi_attach_enabled)?;
    let asked = encryption::Asked::of(call, input.encrypted, input.kms_key_id.as_deref())?;
    let zone = zone(&call.cloud.config, input.availability_zone, input.availability_zone_id)?;
    let source = match &input.snapshot_id {
        None => None,
        Some(id) => {
            let (account, id) = (call.account().to_owned(), id.clone());
            Some(call.cloud.store.read("find a snapshot", move |tx| snapshot::restorable(tx, &account, &id)).await?)
        }
    };
    let size_gib = match (&source, input.size) {
        (None, size) => size.ok_or_else(|| AwsError::missing_parameter("Size"))?,
        (Some((from, _)), None) => from.size_gib,
        (Some((from, _)), Some(size)) if size < from.size_gib => {
            let message = format!(
                "Volume of {size}GiB is smaller than snapshot '{}', expect size >= {}GiB",
                from.id, from.size_gib
            );
            return Err(AwsError::invalid_parameter_value(message).into());
        }
        (Some(_), Some(size)) => size,
    };
    let kind = input.volume_type.unwrap_or_else(|| "gp2".into());
    let (iops, throughput) = figures(&kind, size_gib, input.iops, input.throughput)?;
    let tags = tag::specified(&input.tag_specification, &["volume"])?.remove("volume").unwrap_or_default();
    let volume = Volume {
        id: VolumeId::from_random(rand::random()),
        account: call.account().to_owned(),
        zone,
        generation: Generation::default(),
        size_gib,
        kind,
        iops,
        throughput,
        created: call.now,
        desired: VolumeDesired::Present,
        observed: None,
        observed_generation: Generation::default(),
        reason: String::new(),
        export: None,
        allocated: 0,
        snapshot: source.as_ref().map(|(from, _)| from.id.to_string()),
        disk_key: None,
        auto_enable_io: false,
        manifest: source.as_ref().map(|(_, manifest)| manifest.clone()),
    };
    let must = source.is_some_and(|(from, _)| from.disk_key.is_some());
    let dry_run = input.dry_run;
    let (volume, status, tag_set) = call
        .cloud
        .store
        .write("create a volume", move |tx| {
            let volume = Volume { disk_key: asked.key(tx, must)?, ..volume.clone() };
            write(tx, &volume, &tags, token.as_ref(), dry_run)
        })
        .await?;
    call.cloud.pokes.volumes.poke();
    let kms_key_id = volume.disk_key.as_deref().map(|key| encryption::arn(&call.cloud, &volume.account, key));
    Ok(CreatedVolume {
        volume_id: volume.id,
        size: volume.size_gib,
        snapshot_id: volume.snapshot.unwrap_or_default(),
        availability_zone_id: zone_id(&call.cloud.config, &volume.zone),
        availability_zone: volume.zone,
        status,
        create_time: timestamp(volume.created),
        tag_set,
        volume_type: volume.kind,
        iops: volume.iops,
        encrypted: volume.disk_key.is_some(),
        kms_key_id,
        multi_attach_enabled: false,
        throughput: volume.throughput,
    })
}

/// The zone that is named, by name or by id.
fn zone(config: &Config, name: Option<String>, id: Option<String>) -> Outcome<String> {
    let given = |text: Option<String>| text.filter(|t| !t.is_empty());
    let (asked, found) = match (given(name), given(id)) {
        (Some(_), Some(_)) => {
            let message = "You may specify either AvailabilityZone or AvailabilityZoneId, but not both";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        (None, None) => return Err(AwsError::missing_parameter("AvailabilityZone").into()),
        (Some(name), None) => (name.clone(), config.zones.iter().find(|z| **z == name)),
        (None, Some(id)) => (id.clone(), config.zones.iter().find(|z| zone_id(config, z) == id)),
    };
    let missing = || Refusal::new("InvalidZone.NotFound", format!("The zone '{asked}' does not exist."));
    found.cloned().ok_or_else(missing)
}

fn write(
    tx: &mut Tx<'_>,
    volume: &Volume,
    tags: &[Tag],
    token: Option<&client_token::Given>,
    dry_run: Option<bool>,
) -> Outcome<(Volume, &'static str, Vec<Tag>)> {
    let made = token.filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
    if let Some(id) = made {
        let found = row::get(tx, &volume.account, &id)?.ok_or_else(|| not_found(&id))?;
        let attachment = row::attachment_of(tx, &id)?;
        let status = super::state(&found, attachment.as_ref());
        return Ok((found, status, tag::of(tx, &id)?));
    }
    // Again, in the transaction that needs it: it may have been deleted meanwhile.
    if let Some(id) = &volume.snapshot {
        let id: SnapshotId = id.parse().map_err(|_| Refusal::internal("a snapshot's id is none"))?;
        snapshot::restorable(tx, &volume.account, &id)?;
    }
    row::insert(tx, volume)?;
    if !tags.is_empty() {
        tag::put(tx, &volume.account, volume.id.as_str(), tags)?;
    }
    unless_dry_run(dry_run)?;
    if let Some(token) = token {
        token.remember(tx, volume.id.as_str())?;
    }
    Ok((volume.clone(), "creating", tags.to_vec()))
}

/// IOPS and throughput as they are shown, within AWS' bounds for the type. Its node holds a volume to them ([`super::limits`]).
pub fn figures(
    kind: &str,
    size: u64,
    iops: Option<u32>,
    throughput: Option<u32>,
) -> Outcome<(Option<u32>, Option<u32>)> {
    let bad = |message: String| -> Refusal { AwsError::invalid_parameter_value(message).into() };
    let sizes = match kind {
        "gp2" | "gp3" => 1..=16_384,
        "io1" | "io2" => 4..=16_384,
        "st1" | "sc1" => 125..=16_384,
        "standard" => 1..=1_024,
        other => {
            return Err(Refusal::new(
                "UnknownVolumeType",
                format!("Unsupported volume type '{other}' for volume creation."),
            ));
        }
    };
    if !sizes.contains(&size) {
        let (least, most) = (sizes.start(), sizes.end());
        return Err(bad(format!("Volume of {size}GiB is invalid; a {kind} volume has {least} to {most} GiB.")));
    }
    if throughput.is_some() && kind != "gp3" {
        return Err(AwsError::invalid_parameter_combination(format!(
            "The parameter throughput is not supported for {kind} volumes."
        ))
        .into());
    }
    if iops.is_some() && !matches!(kind, "gp3" | "io1" | "io2") {
        return Err(AwsError::invalid_parameter_combination(format!(
            "The parameter iops is not supported for {kind} volumes."
        ))
        .into());
    }
    let within = |iops: u32, bounds: std::ops::RangeInclusive<u32>, per_gib: u64| {
        if !bounds.contains(&iops) {
            return Err(bad(format!(
                "Volume iops of {iops} is out of range; a {kind} volume has {} to {}.",
                bounds.start(),
                bounds.end()
            )));
        }
        if u64::from(iops) > size * per_gib {
            return Err(bad(format!(
                "Iops to volume size ratio of {iops}:{size} is too high; maximum is {per_gib} per GiB"
            )));
        }
        Ok(Some(iops))
    };
    match kind {
        "gp2" => Ok((Some((size * 3).clamp(100, 16_000) as u32), None)),
        "gp3" => {
            let iops = match iops {
                Some(3_000) | None => Some(3_000),
                Some(iops) => within(iops, 3_000..=16_000, 500)?,
            };
            let throughput = throughput.unwrap_or(125);
            if !(125..=1_000).contains(&throughput) {
                return Err(bad(format!(
                    "Throughput of {throughput} MiB/s is out of range; a gp3 volume has 125 to 1000."
                )));
            }
            if throughput * 4 > iops.unwrap_or_default() {
                return Err(bad(format!(
                    "Throughput (MiB/s) to iops ratio of {throughput} is too high; maximum is 0.25 MiB/s per iops"
                )));
            }
            Ok((iops, Some(throughput)))
        }
        "io1" | "io2" => {
            let iops = iops.ok_or_else(|| AwsError::missing_parameter("iops"))?;
            Ok((within(iops, 100..=64_000, if kind == "io1" { 50 } else { 500 })?, None))
        }
        _ => Ok((None, None)),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteVolume {
    dry_run: Option<bool>,
    volume_id: VolumeId,
}

async fn delete(call: &Call, input: DeleteVolume) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a volume", move |tx| {
            let id = input.volume_id.as_str();
            let volume = row::get(tx, &account, id)?.ok_or_else(|| not_found(id))?;
            if let Some(attachment) = row::attachment_of(tx, id)? {
                return Err(Refusal::new(
                    "VolumeInUse",
                    format!("Volume {id} is currently attached to {}", attachment.instance),
                ));
            }
            if volume.desired != VolumeDesired::Deleted {
                row::set_deleted(tx, id)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.volumes.poke();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_keep_to_aws_bounds() {
        let ok =
            |kind: &str, size, iops, throughput| figures(kind, size, iops, throughput).map_err(|e| e.code().to_owned());
        assert_eq!(ok("gp2", 1, None, None), Ok((Some(100), None)));
        assert_eq!(ok("gp2", 16_384, None, None), Ok((Some(16_000), None)));
        assert_eq!(ok("gp3", 1, None, None), Ok((Some(3_000), Some(125))));
        assert_eq!(ok("gp3", 100, Some(4_000), Some(1_000)), Ok((Some(4_000), Some(1_000))));
        assert_eq!(ok("io1", 10, Some(500), None), Ok((Some(500), None)));
        assert_eq!(ok("st1", 125, None, None), Ok((None, None)));
        for (kind, size, iops, throughput, code) in [
            ("gp2", 0, None, None, "InvalidParameterValue"),
            ("gp2", 16_385, None, None, "InvalidParameterValue"),
            ("gp2", 1, Some(100), None, "InvalidParameterCombination"),
            ("gp3", 1, Some(4_000), None, "InvalidParameterValue"),
            ("gp3", 1, None, Some(1_000), "InvalidParameterValue"),
            ("gp3", 1, None, Some(u32::MAX), "InvalidParameterValue"),
            ("io1", 10, None, None, "MissingParameter"),
            ("io1", 10, Some(501), None, "InvalidParameterValue"),
            ("st1", 100, None, None, "InvalidParameterValue"),
            ("standard", 2_000, None, None, "InvalidParameterValue"),
            ("gp4", 1, None, None, "UnknownVolumeType"),
        ] {
            assert_eq!(ok(kind, size, iops, throughput), Err(code.into()), "{kind} {size} {iops:?} {throughput:?}");
        }
    }
}
