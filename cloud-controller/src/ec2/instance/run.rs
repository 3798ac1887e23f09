//! RunInstances: everything is checked and written in one transaction; the answer is `pending`, and reconcilers do the rest.

use std::{net::Ipv4Addr, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use mallee_aws::{
    AwsError,
    id::{ImageId, InstanceId, KernelImageId, MachineImageId, NetworkInterfaceId, RamdiskImageId, ReservationId, SecurityGroupId, SubnetId},
};
use mallee_store::Tx;
use mallee_tiers::{Desired, Generation};
use serde::Deserialize;

use super::{
    describe::{self, Found, Reservation},
    row::{self, Cause, Instance, MetadataOptions, Options, ShutdownBehavior},
};
use crate::{
    Outcome, Refusal, actions, config,
    ec2::{
        client_token,
        image::{self, Image, Kind},
        instance_type::{self, InstanceType},
        interface, key_pair, security_group,
        subnet::{self, Place, SubnetRow},
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    service::Call,
    zone::generation::{self, List},
};

actions![RunInstances => run];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunInstances {
    dry_run: Option<bool>,
    image_id: Option<MachineImageId>,
    min_count: u64,
    max_count: u64,
    client_token: Option<String>,
    instance_type: Option<String>,
    key_name: Option<String>,
    user_data: Option<String>,
    #[serde(default)]
    security_group: Vec<String>,
    #[serde(default)]
    security_group_id: Vec<SecurityGroupId>,
    subnet_id: Option<SubnetId>,
    private_ip_address: Option<Ipv4Addr>,
    #[serde(default)]
    network_interface: Vec<NetworkInterface>,
    placement: Option<Placement>,
    kernel_id: Option<KernelImageId>,
    ramdisk_id: Option<RamdiskImageId>,
    instance_initiated_shutdown_behavior: Option<ShutdownBehavior>,
    disable_api_termination: Option<bool>,
    disable_api_stop: Option<bool>,
    ebs_optimized: Option<bool>,
    monitoring: Option<Enabled>,
    metadata_options: Option<MetadataOptionsAsked>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    #[serde(default)]
    block_device_mapping: Vec<BlockDeviceMapping>,
    credit_specification: Option<CreditSpecification>,
    enclave_options: Option<Enabled>,
    hibernation_options: Option<Configured>,
    maintenance_options: Option<MaintenanceOptions>,
    additional_info: Option<Unsupported>,
    capacity_reservation_specification: Option<Unsupported>,
    cpu_options: Option<Unsupported>,
    elastic_gpu_specification: Option<Unsupported>,
    elastic_inference_accelerator: Option<Unsupported>,
    enable_primary_ipv6: Option<Unsupported>,
    iam_instance_profile: Option<Unsupported>,
    instance_market_options: Option<Unsupported>,
    #[serde(rename = "Ipv6Address")]
    ipv6_address: Option<Unsupported>,
    #[serde(rename = "Ipv6AddressCount")]
    ipv6_address_count: Option<Unsupported>,
    launch_template: Option<Unsupported>,
    license_specification: Option<Unsupported>,
    network_performance_options: Option<Unsupported>,
    operator: Option<Unsupported>,
    private_dns_name_options: Option<Unsupported>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Enabled {
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configured {
    configured: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreditSpecification {
    cpu_credits: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MaintenanceOptions {
    auto_recovery: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Placement {
    availability_zone: Option<String>,
    tenancy: Option<String>,
    affinity: Option<Unsupported>,
    availability_zone_id: Option<Unsupported>,
    group_id: Option<Unsupported>,
    group_name: Option<Unsupported>,
    host_id: Option<Unsupported>,
    host_resource_group_arn: Option<Unsupported>,
    partition_number: Option<Unsupported>,
    spread_domain: Option<Unsupported>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkInterface {
    network_interface_id: Option<NetworkInterfaceId>,
    device_index: Option<u32>,
    subnet_id: Option<SubnetId>,
    description: Option<String>,
    private_ip_address: Option<Ipv4Addr>,
    #[serde(default)]
    private_ip_addresses: Vec<PrivateIpAddress>,
    #[serde(default)]
    security_group_id: Vec<SecurityGroupId>,
    delete_on_termination: Option<bool>,
    associate_public_ip_address: Option<bool>,
    network_card_index: Option<u32>,
    interface_type: Option<String>,
    associate_carrier_ip_address: Option<Unsupported>,
    #[serde(rename = "Ipv4Prefix")]
    ipv4_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv4PrefixCount")]
    ipv4_prefix_count: Option<Unsupported>,
    #[serde(rename = "Ipv6AddressCount")]
    ipv6_address_count: Option<Unsupported>,
    #[serde(rename = "Ipv6Addresses")]
    ipv6_addresses: Option<Unsupported>,
    #[serde(rename = "Ipv6Prefix")]
    ipv6_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv6PrefixCount")]
    ipv6_prefix_count: Option<Unsupported>,
    primary_ipv6: Option<Unsupported>,
    secondary_private_ip_address_count: Option<Unsupported>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PrivateIpAddress {
    private_ip_address: Ipv4Addr,
    primary: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlockDeviceMapping {
    device_name: Option<String>,
    virtual_name: Option<String>,
    no_device: Option<String>,
    ebs: Option<Unsupported>,
}

/// `MetadataOptions.*`, here and in ModifyInstanceMetadataOptions.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MetadataOptionsAsked {
    pub http_tokens: Option<String>,
    pub http_put_response_hop_limit: Option<i64>,
    pub http_endpoint: Option<String>,
    pub http_protocol_ipv6: Option<String>,
    pub instance_metadata_tags: Option<String>,
}

impl MetadataOptionsAsked {
    /// These, over what it was before.
    pub fn over(&self, mut options: MetadataOptions) -> Outcome<MetadataOptions> {
        let choice = |name: &str, value: &str, yes: &str, no: &str| match value {
            v if v == yes => Ok(true),
            v if v == no => Ok(false),
            other => Err(AwsError::invalid_parameter_value(format!("Value ({other}) for parameter {name} is invalid."))),
        };
        if let Some(tokens) = &self.http_tokens {
            options.tokens_required = choice("HttpTokens", tokens, "required", "optional")?;
        }
        if let Some(endpoint) = &self.http_endpoint {
            options.enabled = choice("HttpEndpoint", endpoint, "enabled", "disabled")?;
        }
        if let Some(tags) = &self.instance_metadata_tags {
            options.tags = choice("InstanceMetadataTags", tags, "enabled", "disabled")?;
        }
        if let Some(ipv6) = &self.http_protocol_ipv6 {
            if choice("HttpProtocolIpv6", ipv6, "enabled", "disabled")? {
                return Err(AwsError::unsupported("HttpProtocolIpv6=enabled: metadata is served over IPv4 only").into());
            }
        }
        if let Some(limit) = self.http_put_response_hop_limit {
            options.hop_limit = u8::try_from(limit).ok().filter(|l| (1..=64).contains(l)).ok_or_else(|| {
                AwsError::invalid_parameter_value(format!("Value ({limit}) for parameter HttpPutResponseHopLimit is invalid. Expecting 1 to 64."))
            })?;
        }
        Ok(options)
    }
}

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

/// An interface of every instance of the launch.
#[derive(Clone)]
struct InterfacePlan {
    device_index: u32,
    description: String,
    address: Option<Ipv4Addr>,
    group_ids: Vec<SecurityGroupId>,
    group_names: Vec<String>,
    delete_on_termination: bool,
    public: Option<bool>,
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
    interface: InterfacePlan,
    shutdown: ShutdownBehavior,
    protect_termination: bool,
    protect_stop: bool,
    ebs_optimized: bool,
    metadata: MetadataOptionsAsked,
    min_count: u64,
    ids: Vec<InstanceId>,
    reservation: ReservationId,
    client_token: Option<String>,
    instance_tags: Vec<Tag>,
    interface_tags: Vec<Tag>,
    limit: u64,
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
            if let Some(reservation) = token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten() {
                return Ok((reservation.clone(), describe::of_reservation(tx, &plan.region, &plan.account, &reservation)?));
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
    call.cloud.pokes.instances.poke();
    let (reservation, found) = found;
    let infos = found.into_iter().map(|f| (reservation.clone(), describe::info(f)));
    // A launch whose instances have all been forgotten since is answered with what is left of it: its own id.
    Ok(describe::reservations(call.account(), infos)
        .pop()
        .unwrap_or_else(|| describe::empty_reservation(call.account(), &reservation)))
}

/// IMDSv1 and v2 both, unless the launch or the image says otherwise: AWS' own default for images that say nothing.
const DEFAULT_METADATA: MetadataOptions = MetadataOptions { enabled: true, tokens_required: false, hop_limit: 1, tags: false };
/// What an image gives its instances that says `ImdsSupport=v2.0`.
const V2_METADATA: MetadataOptions = MetadataOptions { enabled: true, tokens_required: true, hop_limit: 2, tags: false };

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
    metadata.over(DEFAULT_METADATA)?;
    let (interface, its_subnet) = interface_plan(&input)?;
    if interface.address.is_some() && max_count > 1 {
        return Err(AwsError::invalid_parameter_combination("A private address can be given to one instance only").into());
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
        interface,
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
        limit,
        network: call.cloud.config.network.clone(),
        now: call.now,
    })
}

fn refuse_what_is_not_done(input: &RunInstances) -> Outcome<()> {
    unsupported::refuse(&[
        ("AdditionalInfo", input.additional_info),
        ("CapacityReservationSpecification", input.capacity_reservation_specification),
        ("CpuOptions", input.cpu_options),
        ("ElasticGpuSpecification", input.elastic_gpu_specification),
        ("ElasticInferenceAccelerator", input.elastic_inference_accelerator),
        ("EnablePrimaryIpv6", input.enable_primary_ipv6),
        ("IamInstanceProfile", input.iam_instance_profile),
        ("InstanceMarketOptions", input.instance_market_options),
        ("Ipv6Address", input.ipv6_address),
        ("Ipv6AddressCount", input.ipv6_address_count),
        ("LaunchTemplate", input.launch_template),
        ("LicenseSpecification", input.license_specification),
        ("NetworkPerformanceOptions", input.network_performance_options),
        ("Operator", input.operator),
        ("PrivateDnsNameOptions", input.private_dns_name_options),
    ])?;
    let on = |sent: &Option<Enabled>| sent.as_ref().is_some_and(|e| e.enabled);
    for (name, sent) in [
        ("Monitoring.Enabled=true", on(&input.monitoring)),
        ("EnclaveOptions.Enabled=true", on(&input.enclave_options)),
        ("HibernationOptions.Configured=true", input.hibernation_options.as_ref().is_some_and(|h| h.configured)),
        ("CreditSpecification.CpuCredits=unlimited", input.credit_specification.as_ref().is_some_and(|c| c.cpu_credits != "standard")),
    ] {
        if sent {
            return Err(AwsError::unsupported(format!("{name} is not supported by this cloud")).into());
        }
    }
    if let Some(recovery) = input.maintenance_options.as_ref().and_then(|m| m.auto_recovery.as_deref()).filter(|r| *r != "disabled") {
        return Err(AwsError::unsupported(format!("MaintenanceOptions.AutoRecovery={recovery} is not supported by this cloud")).into());
    }
    if let Some(p) = &input.placement {
        unsupported::refuse(&[
            ("Placement.Affinity", p.affinity),
            ("Placement.AvailabilityZoneId", p.availability_zone_id),
            ("Placement.GroupId", p.group_id),
            ("Placement.GroupName", p.group_name),
            ("Placement.HostId", p.host_id),
            ("Placement.HostResourceGroupArn", p.host_resource_group_arn),
            ("Placement.PartitionNumber", p.partition_number),
            ("Placement.SpreadDomain", p.spread_domain),
        ])?;
        if let Some(tenancy) = p.tenancy.as_deref().filter(|t| !t.is_empty() && *t != "default") {
            return Err(AwsError::unsupported(format!("Placement.Tenancy={tenancy} is not supported by this cloud")).into());
        }
    }
    input.block_device_mapping.iter().try_for_each(check_mapping)
}

/// The root is an instance store and there are no other disks: what asks for none is taken, what asks for an EBS disk is
/// refused by name.
fn check_mapping(mapping: &BlockDeviceMapping) -> Outcome<()> {
    let device = mapping.device_name.as_deref().unwrap_or_default();
    if mapping.ebs.is_some() {
        return Err(AwsError::unsupported(format!(
            "BlockDeviceMapping {device}: EBS volumes in a launch are not supported by this cloud; create and attach a volume instead"
        ))
        .into());
    }
    match (mapping.virtual_name.as_deref(), &mapping.no_device) {
        (_, Some(_)) => Ok(()),
        // AWS ignores ephemeral disks that the instance type does not have.
        (Some(name), None) if name.strip_prefix("ephemeral").is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n < 24)) => Ok(()),
        _ => Err(Refusal::new("InvalidBlockDeviceMapping", format!("The block device mapping of '{device}' is not valid"))),
    }
}

/// The one interface of a launch, from either of the two ways to say it, and its subnet.
fn interface_plan(input: &RunInstances) -> Outcome<(InterfacePlan, Option<SubnetId>)> {
    let Some(asked) = input.network_interface.first() else {
        let interface = InterfacePlan {
            device_index: 0,
            description: String::new(),
            address: input.private_ip_address,
            group_ids: input.security_group_id.clone(),
            group_names: input.security_group.clone(),
            delete_on_termination: true,
            public: None,
        };
        return Ok((interface, None));
    };
    if !input.security_group_id.is_empty() || !input.security_group.is_empty() || input.subnet_id.is_some() || input.private_ip_address.is_some()
    {
        return Err(AwsError::invalid_parameter_combination(
            "Network interfaces and an instance-level subnet ID, security groups or address may not be specified on the same request",
        )
        .into());
    }
    if input.network_interface.len() > 1 {
        return Err(AwsError::unsupported("More than one NetworkInterface per instance is not supported by this cloud").into());
    }
    if let Some(id) = &asked.network_interface_id {
        return Err(AwsError::unsupported(format!(
            "NetworkInterface.NetworkInterfaceId ({id}): launching with an existing interface is not supported by this cloud"
        ))
        .into());
    }
    unsupported::refuse(&[
        ("NetworkInterface.AssociateCarrierIpAddress", asked.associate_carrier_ip_address),
        ("NetworkInterface.Ipv4Prefix", asked.ipv4_prefix),
        ("NetworkInterface.Ipv4PrefixCount", asked.ipv4_prefix_count),
        ("NetworkInterface.Ipv6AddressCount", asked.ipv6_address_count),
        ("NetworkInterface.Ipv6Addresses", asked.ipv6_addresses),
        ("NetworkInterface.Ipv6Prefix", asked.ipv6_prefix),
        ("NetworkInterface.Ipv6PrefixCount", asked.ipv6_prefix_count),
        ("NetworkInterface.PrimaryIpv6", asked.primary_ipv6),
        ("NetworkInterface.SecondaryPrivateIpAddressCount", asked.secondary_private_ip_address_count),
    ])?;
    if asked.device_index.unwrap_or(0) != 0 || asked.network_card_index.unwrap_or(0) != 0 {
        return Err(AwsError::invalid_parameter_value("The first network interface must have device index 0 on network card 0").into());
    }
    if let Some(kind) = asked.interface_type.as_deref().filter(|k| *k != "interface") {
        return Err(AwsError::unsupported(format!("NetworkInterface.InterfaceType={kind} is not supported by this cloud")).into());
    }
    let primary = match asked.private_ip_addresses.as_slice() {
        [] => None,
        [only] if only.primary.unwrap_or(true) => Some(only.private_ip_address),
        _ => return Err(AwsError::unsupported("Secondary private addresses are not supported by this cloud").into()),
    };
    let interface = InterfacePlan {
        device_index: 0,
        description: asked.description.clone().unwrap_or_default(),
        address: asked.private_ip_address.or(primary),
        group_ids: asked.security_group_id.clone(),
        group_names: Vec::new(),
        delete_on_termination: asked.delete_on_termination.unwrap_or(true),
        public: asked.associate_public_ip_address,
    };
    Ok((interface, asked.subnet_id.clone()))
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
    let key = plan.key_name.as_ref().map(|name| key_pair::named(tx, &plan.account, name)).transpose()?;
    let subnet = subnet::for_launch(tx, &plan.account, &plan.place)?;
    if let Some(zone) = plan.zone.as_ref().filter(|z| **z != subnet.zone) {
        return Err(AwsError::invalid_parameter_value(format!("The availability zone '{zone}' is not that of subnet '{}'", subnet.id)).into());
    }
    let groups =
        security_group::for_launch(tx, &plan.account, &subnet.vpc, &plan.interface.group_ids, &plan.interface.group_names)?;
    let template = Template {
        options: Options {
            public_key: key.map(|k| k.public_key),
            root_device: image.root_device.clone(),
            shutdown: plan.shutdown,
            protect_termination: plan.protect_termination,
            protect_stop: plan.protect_stop,
            ebs_optimized: plan.ebs_optimized,
            metadata: plan.metadata.over(if image.tokens_required { V2_METADATA } else { DEFAULT_METADATA })?,
        },
        generation: generation::next(tx, &subnet.zone, List::Instances)?,
        image,
        kernel,
        ramdisk,
        subnet,
        groups,
    };
    let count = usize::try_from(room).unwrap_or(usize::MAX).min(plan.ids.len());
    plan.ids.iter().take(count).enumerate().map(|(index, id)| launch_one(tx, plan, &template, index as i64, id)).collect()
}

/// What all instances of a launch share.
struct Template {
    image: Image,
    kernel: Option<String>,
    ramdisk: Option<String>,
    subnet: SubnetRow,
    groups: Vec<SecurityGroupId>,
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
    let new = interface::New {
        account: &plan.account,
        subnet: &template.subnet,
        instance: id,
        device_index: plan.interface.device_index,
        address: plan.interface.address,
        groups: &template.groups,
        description: &plan.interface.description,
        delete_on_termination: plan.interface.delete_on_termination,
        source_dest_check: true,
        public: plan.interface.public,
        now: plan.now,
    };
    let made = interface::create(tx, &plan.network, new)?;
    if !plan.instance_tags.is_empty() {
        tag::put(tx, &plan.account, id.as_str(), &plan.instance_tags)?;
    }
    if !plan.interface_tags.is_empty() {
        tag::put(tx, &plan.account, made.id.as_str(), &plan.interface_tags)?;
    }
    Ok(Found {
        region: plan.region.clone(),
        instance,
        interfaces: vec![made],
        attachments: Vec::new(),
        tags: plan.instance_tags.clone(),
    })
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
        assert_eq!(checked_user_data(&STANDARD.encode(vec![0; 16 * 1024 + 1])).err().unwrap().code(), "InvalidParameterValue");
    }

    #[test]
    fn block_devices_that_ask_for_nothing_are_taken_and_the_rest_refused() {
        let mapping = |virtual_name: Option<&str>, no_device: bool| BlockDeviceMapping {
            device_name: Some("/dev/sdb".into()),
            virtual_name: virtual_name.map(Into::into),
            no_device: no_device.then(String::new),
            ebs: None,
        };
        for (asked, code) in [
            (mapping(Some("ephemeral0"), false), None),
            (mapping(None, true), None),
            (mapping(Some("ephemeral99"), false), Some("InvalidBlockDeviceMapping")),
            (mapping(None, false), Some("InvalidBlockDeviceMapping")),
        ] {
            assert_eq!(check_mapping(&asked).err().map(|e| e.code().to_owned()).as_deref(), code);
        }
    }

    #[test]
    fn metadata_options_are_aws_words_only() {
        let ask = |tokens: Option<&str>, hops: Option<i64>| MetadataOptionsAsked {
            http_tokens: tokens.map(Into::into),
            http_put_response_hop_limit: hops,
            ..MetadataOptionsAsked::default()
        };
        assert!(ask(Some("required"), Some(64)).over(DEFAULT_METADATA).unwrap().tokens_required);
        for bad in [ask(Some("Required"), None), ask(None, Some(0)), ask(None, Some(65))] {
            assert_eq!(bad.over(DEFAULT_METADATA).err().unwrap().code(), "InvalidParameterValue");
        }
    }
}
