//! Instances as EC2 shows them.

use std::{collections::BTreeMap, sync::Arc};

use mallee_aws::{
    answer::timestamp,
    filter::{Filter, Filters},
    id::InstanceId,
    paging::{Asked, Page},
};
use mallee_store::Tx;
use serde::{Deserialize, Serialize};

use super::{
    not_found,
    row::{self, Instance},
    state::{self, State, StateReason},
};
use crate::{
    Outcome, actions,
    ec2::{
        interface::{self, GroupIdentifier, InterfaceRow},
        tag::{self, Tag},
        unless_dry_run,
        volume::{self, Attachment},
    },
    service::Call,
};

mod filter;

actions![DescribeInstances => describe];

/// An instance with everything that is shown of it.
pub struct Found {
    pub region: Arc<str>,
    pub instance: Instance,
    pub interfaces: Vec<InterfaceRow>,
    pub attachments: Vec<Attachment>,
    pub tags: Vec<Tag>,
}

/// Named ids up to this many are read one by one; beyond it the account's rows are read in bulk.
const FEW: usize = 16;

/// The account's instances, by id: all of them in one read per table, or just the named ones.
pub fn find(tx: &mut Tx<'_>, region: &Arc<str>, account: &str, ids: &[InstanceId]) -> Outcome<Vec<Found>> {
    if !ids.is_empty() && ids.len() <= FEW {
        let mut found = Vec::with_capacity(ids.len());
        let mut ids: Vec<&InstanceId> = ids.iter().collect();
        ids.sort();
        ids.dedup();
        for id in ids {
            let instance = row::get(tx, account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))?;
            found.push(Found {
                region: region.clone(),
                interfaces: interface::of_instance(tx, id)?,
                attachments: volume::attachments_at(tx, id.as_str())?,
                tags: tag::of(tx, id.as_str())?,
                instance,
            });
        }
        return Ok(found);
    }
    let instances = row::of_account(tx, account)?;
    let mut interfaces = interface::of_instances(tx, Some(account))?;
    let mut attachments: BTreeMap<InstanceId, Vec<Attachment>> = BTreeMap::new();
    for attachment in volume::attachments_of_account(tx, account)? {
        attachments.entry(attachment.instance.clone()).or_default().push(attachment);
    }
    let mut tags = tag::of_kind(tx, account, InstanceId::PREFIX)?;
    let found: Vec<Found> = instances
        .into_iter()
        .map(|instance| Found {
            region: region.clone(),
            interfaces: interfaces.remove(&instance.id).unwrap_or_default(),
            attachments: attachments.remove(&instance.id).unwrap_or_default(),
            tags: tags.take(instance.id.as_str()),
            instance,
        })
        .collect();
    if let Some(missing) = ids.iter().find(|id| found.binary_search_by(|f| f.instance.id.cmp(id)).is_err()) {
        return Err(not_found(missing.as_str()));
    }
    Ok(found)
}

/// The instances of one launch.
pub fn of_reservation(tx: &mut Tx<'_>, region: &Arc<str>, account: &str, reservation: &str) -> Outcome<Vec<Found>> {
    let ids: Vec<InstanceId> = row::of_reservation(tx, account, reservation)?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    Ok(find(tx, region, account, &ids)?.into_iter().filter(|f| ids.contains(&f.instance.id)).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeInstances {
    dry_run: Option<bool>,
    #[serde(default)]
    instance_id: Vec<InstanceId>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedInstances {
    reservation_set: Vec<Reservation>,
    next_token: Option<String>,
}

/// What one launch made; the answer of RunInstances too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    reservation_id: String,
    owner_id: String,
    group_set: [(); 0],
    instances_set: Vec<InstanceInfo>,
}

/// A launch of which nothing is left.
pub fn empty_reservation(account: &str, reservation: &str) -> Reservation {
    Reservation {
        reservation_id: reservation.to_owned(),
        owner_id: account.to_owned(),
        group_set: [],
        instances_set: Vec::new(),
    }
}

/// By launch, in the order in which their first instances come.
pub fn reservations(account: &str, infos: impl Iterator<Item = (String, InstanceInfo)>) -> Vec<Reservation> {
    let mut all: Vec<Reservation> = Vec::new();
    let mut place: BTreeMap<String, usize> = BTreeMap::new();
    for (reservation_id, info) in infos {
        let at = *place.entry(reservation_id.clone()).or_insert(all.len());
        if at == all.len() {
            all.push(Reservation {
                reservation_id,
                owner_id: account.to_owned(),
                group_set: [],
                instances_set: Vec::new(),
            });
        }
        if let Some(reservation) = all.get_mut(at) {
            reservation.instances_set.push(info);
        }
    }
    for reservation in &mut all {
        reservation.instances_set.sort_by_key(|i| i.ami_launch_index);
    }
    all
}

async fn describe(call: &Call, input: DescribeInstances) -> Outcome<DescribedInstances> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, filter::ATTRIBUTES)?;
    let context = crate::ec2::paging_context(call, &input.filter);
    let asked = Asked {
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
        explicit_ids: input.instance_id.len(),
    };
    let page = Page::open(&call.cloud.token_key, &context.iter().map(String::as_str).collect::<Vec<_>>(), asked)?;
    let (account, ids) = (call.account().to_owned(), input.instance_id.clone());
    let region: Arc<str> = call.cloud.region().into();
    let mut found = call.cloud.store.read("describe instances", move |tx| find(tx, &region, &account, &ids)).await?;
    if !input.instance_id.is_empty() {
        found.retain(|f| input.instance_id.contains(&f.instance.id));
    }
    found.retain(|f| page.after().is_none_or(|after| f.instance.id.as_str() > after) && filters.matches(f));
    let next_token = page.cut(&mut found, |f| f.instance.id.as_str());
    let infos = found.into_iter().map(|f| (f.instance.reservation.to_string(), info(f)));
    Ok(DescribedInstances { reservation_set: reservations(call.account(), infos), next_token })
}

/// Members in the order of EC2's WSDL: clients typed by it read sequences.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceInfo {
    instance_id: InstanceId,
    image_id: String,
    instance_state: State,
    private_dns_name: String,
    dns_name: String,
    reason: String,
    key_name: Option<String>,
    ami_launch_index: i64,
    product_codes: [(); 0],
    instance_type: String,
    launch_time: String,
    placement: Placement,
    kernel_id: Option<String>,
    ramdisk_id: Option<String>,
    monitoring: Monitoring,
    subnet_id: Option<String>,
    vpc_id: Option<String>,
    private_ip_address: Option<String>,
    ipv6_address: Option<String>,
    ip_address: Option<String>,
    source_dest_check: Option<bool>,
    group_set: Vec<GroupIdentifier>,
    state_reason: Option<StateReason>,
    architecture: String,
    root_device_type: &'static str,
    root_device_name: String,
    block_device_mapping: Vec<BlockDevice>,
    virtualization_type: &'static str,
    client_token: String,
    tag_set: Vec<Tag>,
    hypervisor: &'static str,
    network_interface_set: Vec<InterfaceInfo>,
    ebs_optimized: bool,
    ena_support: bool,
    cpu_options: CpuOptions,
    capacity_reservation_specification: CapacityReservation,
    hibernation_options: HibernationOptions,
    metadata_options: MetadataOptionsInfo,
    enclave_options: EnclaveOptions,
    boot_mode: &'static str,
    platform_details: &'static str,
    usage_operation: &'static str,
    usage_operation_update_time: String,
    private_dns_name_options: NameOptions,
    maintenance_options: MaintenanceOptions,
    current_instance_boot_mode: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Placement {
    availability_zone: String,
    group_name: &'static str,
    tenancy: &'static str,
}

#[derive(Serialize)]
struct Monitoring {
    state: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockDevice {
    device_name: String,
    ebs: EbsBlockDevice,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EbsBlockDevice {
    volume_id: String,
    status: &'static str,
    attach_time: String,
    delete_on_termination: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceInfo {
    network_interface_id: String,
    subnet_id: String,
    vpc_id: String,
    description: String,
    owner_id: String,
    status: &'static str,
    mac_address: String,
    private_ip_address: String,
    private_dns_name: String,
    source_dest_check: bool,
    group_set: Vec<GroupIdentifier>,
    attachment: InterfaceAttachment,
    association: Option<Association>,
    private_ip_addresses_set: Vec<PrivateAddress>,
    ipv6_addresses_set: Vec<interface::Ipv6Address>,
    interface_type: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceAttachment {
    attachment_id: Option<String>,
    device_index: u32,
    status: &'static str,
    attach_time: String,
    delete_on_termination: bool,
    network_card_index: u32,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Association {
    public_ip: String,
    public_dns_name: String,
    ip_owner_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PrivateAddress {
    private_ip_address: String,
    private_dns_name: String,
    primary: bool,
    association: Option<Association>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuOptions {
    core_count: u32,
    threads_per_core: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CapacityReservation {
    capacity_reservation_preference: &'static str,
}

#[derive(Serialize)]
struct HibernationOptions {
    configured: bool,
}

/// Also the answer of ModifyInstanceMetadataOptions.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MetadataOptionsInfo {
    state: &'static str,
    http_tokens: &'static str,
    http_put_response_hop_limit: u8,
    http_endpoint: &'static str,
    http_protocol_ipv6: &'static str,
    instance_metadata_tags: &'static str,
}

impl From<&row::MetadataOptions> for MetadataOptionsInfo {
    fn from(o: &row::MetadataOptions) -> Self {
        let on = |yes| if yes { "enabled" } else { "disabled" };
        Self {
            state: "applied",
            http_tokens: if o.tokens_required { "required" } else { "optional" },
            http_put_response_hop_limit: o.hop_limit,
            http_endpoint: on(o.enabled),
            http_protocol_ipv6: "disabled",
            instance_metadata_tags: on(o.tags),
        }
    }
}

#[derive(Serialize)]
struct EnclaveOptions {
    enabled: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NameOptions {
    hostname_type: &'static str,
    enable_resource_name_dns_a_record: bool,
    #[serde(rename = "enableResourceNameDnsAAAARecord")]
    enable_resource_name_dns_aaaa_record: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MaintenanceOptions {
    auto_recovery: &'static str,
}

/// The instance as it is shown. A terminated one has no addresses any more, as at AWS.
pub fn info(found: Found) -> InstanceInfo {
    let Found { region, instance: i, interfaces, attachments, tags } = found;
    let shown_state = i.state();
    let ended = shown_state == state::TERMINATED;
    let first = interfaces.first().filter(|_| !ended);
    let public = first.and_then(InterfaceRow::public_ip).map(|ip| ip.to_string());
    let size = i.instance_type();
    InstanceInfo {
        image_id: i.image.clone(),
        instance_state: shown_state,
        private_dns_name: first.map(|f| interface::private_dns_name(&region, f.address)).unwrap_or_default(),
        // There is no name service for public names: the address is a name that works.
        dns_name: public.clone().unwrap_or_default(),
        reason: state::transition_reason(shown_state, i.cause, i.asked_at),
        key_name: i.key_name.clone(),
        ami_launch_index: i.launch_index,
        product_codes: [],
        instance_type: i.instance_type.clone(),
        launch_time: timestamp(i.launched),
        placement: Placement { availability_zone: i.zone.clone(), group_name: "", tenancy: "default" },
        kernel_id: i.kernel.clone(),
        ramdisk_id: i.ramdisk.clone(),
        monitoring: Monitoring { state: "disabled" },
        subnet_id: (!ended).then(|| i.subnet.clone()),
        vpc_id: (!ended).then(|| i.vpc.clone()),
        private_ip_address: first.map(|f| f.address.to_string()),
        ipv6_address: first.and_then(|f| f.ipv6.first()).map(ToString::to_string),
        ip_address: public,
        source_dest_check: first.map(|f| f.source_dest_check),
        group_set: first.map(|f| f.groups.clone()).unwrap_or_default(),
        state_reason: i.state_reason(),
        architecture: i.architecture.clone(),
        root_device_type: i.root_device_type(),
        root_device_name: i.options.root_device.clone(),
        block_device_mapping: attachments.iter().map(block_device).collect(),
        virtualization_type: "hvm",
        client_token: i.client_token.clone().unwrap_or_default(),
        tag_set: tags,
        hypervisor: "xen",
        network_interface_set: if ended {
            Vec::new()
        } else {
            interfaces.into_iter().map(|interface| interface_info(&region, interface)).collect()
        },
        ebs_optimized: i.options.ebs_optimized,
        ena_support: false,
        cpu_options: CpuOptions {
            core_count: size.map_or(1, |s| s.cores()),
            threads_per_core: size.map_or(1, |s| s.threads_per_core()),
        },
        capacity_reservation_specification: CapacityReservation { capacity_reservation_preference: "open" },
        hibernation_options: HibernationOptions { configured: false },
        metadata_options: (&i.options.metadata).into(),
        enclave_options: EnclaveOptions { enabled: false },
        boot_mode: "legacy-bios",
        platform_details: "Linux/UNIX",
        usage_operation: "RunInstances",
        usage_operation_update_time: timestamp(i.launched),
        private_dns_name_options: NameOptions {
            hostname_type: "ip-name",
            enable_resource_name_dns_a_record: false,
            enable_resource_name_dns_aaaa_record: false,
        },
        maintenance_options: MaintenanceOptions { auto_recovery: "disabled" },
        current_instance_boot_mode: "legacy-bios",
        instance_id: i.id,
    }
}

fn block_device(a: &Attachment) -> BlockDevice {
    BlockDevice {
        device_name: a.device.clone(),
        ebs: EbsBlockDevice {
            volume_id: a.volume.to_string(),
            status: a.phase.shown(),
            attach_time: timestamp(a.since),
            delete_on_termination: a.delete_on_termination,
        },
    }
}

fn interface_info(region: &str, i: InterfaceRow) -> InterfaceInfo {
    let association = i.public_ip().map(|ip| Association {
        public_ip: ip.to_string(),
        public_dns_name: ip.to_string(),
        ip_owner_id: if i.elastic.is_some() { i.account.clone() } else { "amazon".into() },
    });
    let (address, name) = (i.address.to_string(), interface::private_dns_name(region, i.address));
    let (attachment_status, owner) = (i.attachment_status(), i.account.clone());
    InterfaceInfo {
        network_interface_id: i.id.to_string(),
        subnet_id: i.subnet.to_string(),
        vpc_id: i.vpc.to_string(),
        description: i.description,
        owner_id: i.account,
        status: "in-use",
        mac_address: i.mac,
        source_dest_check: i.source_dest_check,
        group_set: i.groups,
        attachment: InterfaceAttachment {
            attachment_id: i.attachment.map(|a| a.to_string()),
            device_index: i.device_index,
            status: attachment_status,
            attach_time: timestamp(i.attached),
            delete_on_termination: i.delete_on_termination,
            network_card_index: 0,
        },
        private_ip_addresses_set: std::iter::once(PrivateAddress {
            private_ip_address: address.clone(),
            private_dns_name: name.clone(),
            primary: true,
            association: association.clone(),
        })
        .chain(i.secondary.iter().map(|secondary| PrivateAddress {
            private_ip_address: secondary.address.to_string(),
            private_dns_name: interface::private_dns_name(region, secondary.address),
            primary: false,
            association: secondary.elastic.as_ref().map(|elastic| Association {
                public_ip: elastic.public_ip.to_string(),
                public_dns_name: elastic.public_ip.to_string(),
                ip_owner_id: owner.clone(),
            }),
        }))
        .collect(),
        association,
        private_ip_address: address,
        private_dns_name: name,
        ipv6_addresses_set: interface::Ipv6Address::all(&i.ipv6),
        interface_type: "interface",
    }
}
