//! RunInstances: everything is checked and written in one transaction; the answer is `pending`, and reconcilers do the rest.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use mallee_aws::{
    AwsError,
    id::{ImageId, InstanceId, MachineImageId, ReservationId, SnapshotId},
};
use mallee_store::Tx;
use mallee_tiers::{Desired, Generation};

use super::{
    describe::{self, Found, Reservation},
    metadata_default,
    row::{self, Cause, Instance, Options, ShutdownBehavior},
};
use crate::{
    Outcome, Refusal, actions, config,
    ec2::{
        block_device::{self, Disk, Mapping},
        client_token, encryption,
        image::{self, Image, Kind},
        instance_type::{self, InstanceType},
        interface::{self, InterfaceRow, Phase, attach},
        key_pair, snapshot,
        subnet::{self, Place, SubnetRow},
        tag::{self, Tag},
        unless_dry_run,
        volume::launch::Launch,
    },
    service::Call,
    zone::generation::{self, List},
};

mod asked;

use asked::{InterfacePlan, RunInstances, interface_plans, refuse_what_is_not_done};

pub use asked::MetadataOptionsAsked;

actions![RunInstances => run];

/// User data: base64 of at most 16 KiB, as EC2 has it.
pub fn checked_user_data(text: &str) -> Outcome<Option<String>> {
    const MAX: usize = 16 * 1024;
    let compact: String = text.split_ascii_whitespace().collect();
    let data = STANDARD
        .decode(&compact)
        .map_err(|_| Refusal::new("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data."))?;
    if data.len() > MAX {
        return Err(AwsError::invalid_parameter_value(format!("User data is limited to {MAX} bytes")).into());
    }
    Ok((!data.is_empty()).then(|| STANDARD.encode(data)))
}

/// What a launch is, once everything that needs no row was checked.
#[derive(Clone)]
struct Plan {
    account: String,
    region: Arc<str>,
    image: MachineImageId,
    kernel: Option<ImageId>,
    ramdisk: Option<ImageId>,
    size: &'static InstanceType,
    key_name: Option<String>,
    user_data: Option<String>,
    place: Place,
    zone: Option<String>,
    /// By device index.
    interfaces: Vec<InterfacePlan>,
    shutdown: ShutdownBehavior,
    protect_termination: bool,
    protect_stop: bool,
    ebs_optimized: bool,
    metadata: MetadataOptionsAsked,
    min_count: u64,
    ids: Vec<InstanceId>,
    reservation: ReservationId,
    client_token: Option<String>,
    block_devices: Vec<block_device::Asked>,
    encryption: encryption::Asked,
    instance_tags: Vec<Tag>,
    interface_tags: Vec<Tag>,
    volume_tags: Vec<Tag>,
    limit: u64,
    imds_v1: bool,
    network: config::Network,
    now: i64,
}

async fn run(call: &Call, input: RunInstances) -> Outcome<Reservation> {
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let dry_run = input.dry_run;
    let plan = plan(call, input)?;
    let found = call
        .cloud
        .store
        .write("run instances", move |tx| {
            if let Some(reservation) =
                token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten()
            {
                return Ok((
                    reservation.clone(),
                    describe::of_reservation(tx, &plan.region, &plan.account, &reservation)?,
                ));
            }
            let found = launch(tx, &plan)?;
            unless_dry_run(dry_run)?;
            if let Some(token) = &token {
                token.remember(tx, plan.reservation.as_str())?;
            }
            Ok::<_, Refusal>((plan.reservation.to_string(), found))
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.volumes.poke();
    call.cloud.pokes.instances.poke();
    let (reservation, found) = found;
    let infos = found.into_iter().map(|f| (reservation.clone(), describe::info(f)));
    // A launch whose instances have all been forgotten since is answered with what is left of it: its own id.
    Ok(describe::reservations(call.account(), infos)
        .pop()
        .unwrap_or_else(|| describe::empty_reservation(call.account(), &reservation)))
}

fn plan(call: &Call, input: RunInstances) -> Outcome<Plan> {
    refuse_what_is_not_done(&input)?;
    let limit = call.cloud.config.max_instances;
    let (min_count, max_count) = (input.min_count, input.max_count);
    if min_count < 1 || max_count < 1 {
        return Err(AwsError::invalid_parameter_value("MinCount and MaxCount must be at least 1").into());
    }
    if max_count < min_count {
        let message = format!("MaxCount ({max_count}) must not be less than MinCount ({min_count})");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    // Before a single id is made: ten thousand instances are no work to refuse.
    if max_count > limit {
        return Err(too_many(max_count, limit));
    }
    let image = input.image_id.clone().ok_or_else(|| AwsError::missing_parameter("ImageId"))?;
    let size = InstanceType::required(input.instance_type.as_deref().unwrap_or(instance_type::DEFAULT))?;
    let zone = input.placement.as_ref().and_then(|p| p.availability_zone.clone()).filter(|z| !z.is_empty());
    if let Some(zone) = zone.as_ref().filter(|z| !call.cloud.config.zones.contains(z)) {
        return Err(AwsError::invalid_parameter_value(format!("Invalid availability zone: [{zone}]")).into());
    }
    let mut tags = tag::specified(
        &input.tag_specification,
        &["instance", "volume", "network-interface", "spot-instances-request", "elastic-gpu"],
    )?;
    let metadata = input.metadata_options.clone().unwrap_or_default();
    metadata.over(metadata_default::V1)?;
    let (interfaces, its_subnet) = interface_plans(&input)?;
    if interfaces.iter().any(|i| i.address.is_some()) && max_count > 1 {
        return Err(
            AwsError::invalid_parameter_combination("A private address can be given to one instance only").into()
        );
    }
    let place = match (input.subnet_id.clone().or(its_subnet), &zone) {
        (Some(subnet), _) => Place::Subnet(subnet),
        (None, Some(zone)) => Place::Zone(zone.clone()),
        (None, None) => Place::Any,
    };
    Ok(Plan {
        account: call.account().to_owned(),
        region: call.cloud.region().into(),
        image,
        kernel: input.kernel_id.map(ImageId::Kernel),
        ramdisk: input.ramdisk_id.map(ImageId::Ramdisk),
        size,
        key_name: input.key_name.filter(|k| !k.is_empty()),
        user_data: input.user_data.as_deref().map(checked_user_data).transpose()?.flatten(),
        place,
        zone,
        interfaces,
        shutdown: input.instance_initiated_shutdown_behavior.unwrap_or(ShutdownBehavior::Stop),
        protect_termination: input.disable_api_termination.unwrap_or(false),
        protect_stop: input.disable_api_stop.unwrap_or(false),
        ebs_optimized: input.ebs_optimized.unwrap_or(false),
        metadata,
        min_count,
        ids: (0..max_count).map(|_| InstanceId::from_random(rand::random())).collect(),
        reservation: ReservationId::from_random(rand::random()),
        client_token: input.client_token.filter(|t| !t.is_empty()),
        instance_tags: tags.remove("instance").unwrap_or_default(),
        interface_tags: tags.remove("network-interface").unwrap_or_default(),
        volume_tags: tags.remove("volume").unwrap_or_default(),
        block_devices: input.block_device_mapping,
        encryption: encryption::Asked::of(call, None, None)?,
        limit,
        imds_v1: call.cloud.config.imds_v1,
        network: call.cloud.config.network.clone(),
        now: call.now,
    })
}

fn too_many(asked: u64, limit: u64) -> Refusal {
    Refusal::new(
        "InstanceLimitExceeded",
        format!("You have requested more instances ({asked}) than your current instance limit of {limit} allows."),
    )
}

/// Writes a launch: every row of it, or none.
fn launch(tx: &mut Tx<'_>, plan: &Plan) -> Outcome<Vec<Found>> {
    let room = plan.limit.saturating_sub(row::count(tx, &plan.account)?);
    if room < plan.min_count {
        return Err(too_many(plan.ids.len() as u64, plan.limit));
    }
    let image = image::for_launch(tx, &plan.account, &ImageId::Machine(plan.image.clone()), Kind::Machine)?;
    let companion = |tx: &mut Tx<'_>, asked: &Option<ImageId>, own: &Option<String>, kind| -> Outcome<Option<String>> {
        let id = match (asked, own) {
            (Some(id), _) => id.clone(),
            (None, Some(own)) => own.parse().map_err(Refusal::from)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(image::for_launch(tx, &plan.account, &id, kind)?.id.to_string()))
    };
    let kernel = companion(tx, &plan.kernel, &image.kernel, Kind::Kernel)?;
    let ramdisk = companion(tx, &plan.ramdisk, &image.ramdisk, Kind::Ramdisk)?;
    let (mappings, disk_key) = mappings(tx, plan, &image)?;
    let key = plan.key_name.as_ref().map(|name| key_pair::named(tx, &plan.account, name)).transpose()?;
    // An interface that is there already says where the instance is.
    let place = match plan.interfaces.first().and_then(|first| first.existing.as_ref()) {
        Some(id) => Place::Subnet(interface::get(tx, &plan.account, id)?.subnet),
        None => plan.place.clone(),
    };
    let subnet = subnet::for_launch(tx, &plan.account, &place)?;
    if let Some(zone) = plan.zone.as_ref().filter(|z| **z != subnet.zone) {
        return Err(AwsError::invalid_parameter_value(format!(
            "The availability zone '{zone}' is not that of subnet '{}'",
            subnet.id
        ))
        .into());
    }
    let template = Template {
        options: Options {
            public_key: key.map(|k| k.public_key),
            root_device: image.root_device.clone(),
            shutdown: plan.shutdown,
            protect_termination: plan.protect_termination,
            protect_stop: plan.protect_stop,
            ebs_optimized: plan.ebs_optimized,
            root_on_volume: image.root_volume().is_some(),
            ephemeral: mappings
                .iter()
                .find(|m| m.disk == Disk::InstanceStore(0) && image.root_volume().is_some())
                .map(|m| m.device.clone()),
            hold: None,
            metadata: plan.metadata.over(metadata_default::of_launch(tx, &plan.account, &image, plan.imds_v1)?)?,
        },
        generation: generation::next(tx, &subnet.zone, List::Instances)?,
        image,
        kernel,
        ramdisk,
        subnet,
        mappings,
        disk_key,
    };
    let count = usize::try_from(room).unwrap_or(usize::MAX).min(plan.ids.len());
    plan.ids
        .iter()
        .take(count)
        .enumerate()
        .map(|(index, id)| launch_one(tx, plan, &template, index as i64, id))
        .collect()
}

/// The disks of each instance, beside a root that is an instance store; and the key of those that are encrypted.
fn mappings(tx: &mut Tx<'_>, plan: &Plan, image: &Image) -> Outcome<(Vec<Mapping>, Option<String>)> {
    let root_device = &image.root_device;
    let source = |id: &SnapshotId| snapshot::source(tx, &plan.account, id);
    let mut mappings = block_device::over(&image.mappings, root_device, &plan.block_devices, source)?;
    if image.root_volume().is_none() && block_device::root(&mappings, root_device).is_some() {
        let message =
            format!("The root {root_device} of image {} is an instance store, and cannot be a volume", image.id);
        return Err(Refusal::new("InvalidBlockDeviceMapping", message));
    }
    block_device::check_count(&mappings, root_device)?;
    if plan.encryption.is_default(tx)? {
        mappings.iter_mut().filter_map(Mapping::volume_mut).for_each(|v| v.encrypted = true);
    }
    let any = mappings.iter().filter_map(Mapping::volume).any(|v| v.encrypted);
    let disk_key = if any { plan.encryption.key(tx, true)? } else { None };
    Ok((mappings, disk_key))
}

/// What all instances of a launch share.
struct Template {
    image: Image,
    kernel: Option<String>,
    ramdisk: Option<String>,
    subnet: SubnetRow,
    mappings: Vec<Mapping>,
    disk_key: Option<String>,
    options: Options,
    generation: Generation,
}

fn launch_one(tx: &mut Tx<'_>, plan: &Plan, template: &Template, launch_index: i64, id: &InstanceId) -> Outcome<Found> {
    let instance = Instance {
        id: id.clone(),
        account: plan.account.clone(),
        reservation: plan.reservation.clone(),
        launch_index,
        client_token: plan.client_token.clone(),
        zone: template.subnet.zone.clone(),
        generation: template.generation,
        image: template.image.id.to_string(),
        kernel: template.kernel.clone(),
        ramdisk: template.ramdisk.clone(),
        architecture: template.image.architecture.clone(),
        instance_type: plan.size.name.to_owned(),
        key_name: plan.key_name.clone(),
        subnet: template.subnet.id.to_string(),
        vpc: template.subnet.vpc.to_string(),
        launched: plan.now,
        options: template.options.clone(),
        desired: Desired::Running,
        asked_at: plan.now,
        cause: Cause::User,
        forced: false,
        reboots: 0,
        starts: 0,
        observed: None,
        observed_generation: Generation::default(),
        node: None,
        step: String::new(),
        reason: String::new(),
        reboots_done: 0,
        started: None,
        took: String::new(),
        gone: None,
    };
    row::insert(tx, &instance)?;
    if let Some(data) = &plan.user_data {
        row::put_user_data(tx, id.as_str(), data)?;
    }
    let mut made = Vec::with_capacity(plan.interfaces.len());
    for asked in &plan.interfaces {
        made.push(give_interface(tx, plan, template, asked, id)?);
    }
    if !plan.instance_tags.is_empty() {
        tag::put(tx, &plan.account, id.as_str(), &plan.instance_tags)?;
    }
    let zone = &instance.zone;
    let volumes = Launch {
        account: &plan.account,
        zone,
        instance: id,
        tags: &plan.volume_tags,
        disk_key: template.disk_key.as_deref(),
        now: plan.now,
    };
    let mut attachments = Vec::new();
    for mapping in &template.mappings {
        if let Some(wanted) = mapping.volume() {
            attachments.push(volumes.make(tx, &mapping.device, wanted)?);
        }
    }
    Ok(Found { region: plan.region.clone(), instance, interfaces: made, attachments, tags: plan.instance_tags.clone() })
}

/// One interface of one instance: a new one, or one that is there already.
fn give_interface(
    tx: &mut Tx<'_>,
    plan: &Plan,
    template: &Template,
    asked: &InterfacePlan,
    id: &InstanceId,
) -> Outcome<InterfaceRow> {
    let zone = &template.subnet.zone;
    if let Some(existing) = &asked.existing {
        let row = interface::address::own(tx, &plan.account, existing)?;
        let at = attach::At { instance: id, zone, device_index: asked.device_index, phase: Phase::Attaching };
        attach::put(tx, &row, &at, asked.delete_on_termination, plan.now)?;
        return interface::get(tx, &plan.account, existing);
    }
    let own = asked
        .subnet
        .as_ref()
        .filter(|s| **s != template.subnet.id)
        .map(|s| subnet::get(tx, &plan.account, s))
        .transpose()?;
    let subnet = own.as_ref().unwrap_or(&template.subnet);
    if subnet.zone != *zone || subnet.vpc != template.subnet.vpc {
        let message = format!("Subnet {} is not in the zone and VPC of subnet {}", subnet.id, template.subnet.id);
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    let groups = subnet::kind::groups(tx, subnet, &asked.group_ids, &asked.group_names)?;
    let new = interface::New {
        account: &plan.account,
        subnet,
        attached: Some((id, asked.device_index)),
        address: asked.address,
        secondary: asked.secondary.clone(),
        ipv6: asked.ipv6.clone(),
        groups: &groups,
        description: &asked.description,
        delete_on_termination: asked.delete_on_termination,
        source_dest_check: true,
        // Instances with several interfaces get no automatic address, as at AWS.
        public: if plan.interfaces.len() > 1 { Some(false) } else { asked.public },
        kind: interface::Kind::Interface,
        now: plan.now,
    };
    let made = interface::create(tx, &plan.network, new)?;
    if !plan.interface_tags.is_empty() {
        tag::put(tx, &plan.account, made.id.as_str(), &plan.interface_tags)?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_base64_of_at_most_sixteen_kibibytes() {
        assert_eq!(checked_user_data("aGVs\nbG8=").unwrap().as_deref(), Some("aGVsbG8="));
        assert_eq!(checked_user_data("").unwrap(), None);
        assert_eq!(checked_user_data("#!/bin/sh").err().unwrap().code(), "InvalidUserData.Malformed");
        assert!(checked_user_data(&STANDARD.encode(vec![0; 16 * 1024])).is_ok());
        assert_eq!(
            checked_user_data(&STANDARD.encode(vec![0; 16 * 1024 + 1])).err().unwrap().code(),
            "InvalidParameterValue"
        );
    }
}
