//! Instance types: AWS's names and sizes, and `mini.nano` for laptops and tests. A table, not rows: nobody owns a type.

use std::borrow::Cow;

use mallee_aws::{
    AwsError,
    filter::{Attribute, Filter, Filters, Tagged},
    paging::{Asked, Page},
};
use serde::{Deserialize, Serialize};

use crate::{Outcome, Refusal, actions, ec2::unless_dry_run, service::Call};

actions![
    DescribeInstanceTypeOfferings => describe_offerings,
    DescribeInstanceTypes => describe,
];

/// A type of instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    pub name: &'static str,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Size of the root disk, where that is an instance store (an image that is larger gets its own size); of `ephemeral0`,
    /// where the root is a volume.
    pub disk_gib: u64,
    pub interfaces: u32,
    pub addresses_per_interface: u32,
}

const fn t(
    name: &'static str,
    vcpus: u32,
    memory_mib: u64,
    disk_gib: u64,
    interfaces: u32,
    addresses_per_interface: u32,
) -> InstanceType {
    InstanceType { name, vcpus, memory_mib, disk_gib, interfaces, addresses_per_interface }
}

/// Every type, by name.
pub const TYPES: &[InstanceType] = &[
    t("c4.large", 2, 3_840, 20, 3, 10),
    t("c4.xlarge", 4, 7_680, 40, 4, 15),
    t("c4.2xlarge", 8, 15_360, 80, 4, 15),
    t("c4.4xlarge", 16, 30_720, 160, 8, 30),
    t("c4.8xlarge", 36, 61_440, 320, 8, 30),
    t("c5.large", 2, 4_096, 20, 3, 10),
    t("c5.xlarge", 4, 8_192, 40, 4, 15),
    t("c5.2xlarge", 8, 16_384, 80, 4, 15),
    t("c5.4xlarge", 16, 32_768, 160, 8, 30),
    t("c5.9xlarge", 36, 73_728, 320, 8, 30),
    t("c5.12xlarge", 48, 98_304, 320, 8, 30),
    t("c5.18xlarge", 72, 147_456, 320, 15, 50),
    t("c5.24xlarge", 96, 196_608, 320, 15, 50),
    t("c6i.large", 2, 4_096, 20, 3, 10),
    t("c6i.xlarge", 4, 8_192, 40, 4, 15),
    t("c6i.2xlarge", 8, 16_384, 80, 4, 15),
    t("c6i.4xlarge", 16, 32_768, 160, 8, 30),
    t("c6i.8xlarge", 32, 65_536, 320, 8, 30),
    t("m1.small", 1, 1_740, 10, 2, 4),
    t("m1.medium", 1, 3_840, 10, 2, 6),
    t("m1.large", 2, 7_680, 20, 3, 10),
    t("m1.xlarge", 4, 15_360, 40, 4, 15),
    t("m3.medium", 1, 3_840, 10, 2, 6),
    t("m3.large", 2, 7_680, 20, 3, 10),
    t("m3.xlarge", 4, 15_360, 40, 4, 15),
    t("m4.large", 2, 8_192, 20, 2, 10),
    t("m4.xlarge", 4, 16_384, 40, 4, 15),
    t("m4.2xlarge", 8, 32_768, 80, 4, 15),
    t("m4.4xlarge", 16, 65_536, 160, 8, 30),
    t("m5.large", 2, 8_192, 20, 3, 10),
    t("m5.xlarge", 4, 16_384, 40, 4, 15),
    t("m5.2xlarge", 8, 32_768, 80, 4, 15),
    t("m5.4xlarge", 16, 65_536, 160, 8, 30),
    t("m5.8xlarge", 32, 131_072, 320, 8, 30),
    t("m5.12xlarge", 48, 196_608, 320, 8, 30),
    t("m5.16xlarge", 64, 262_144, 320, 15, 50),
    t("m5.24xlarge", 96, 393_216, 320, 15, 50),
    t("m6i.large", 2, 8_192, 20, 3, 10),
    t("m6i.xlarge", 4, 16_384, 40, 4, 15),
    t("m6i.2xlarge", 8, 32_768, 80, 4, 15),
    t("m6i.4xlarge", 16, 65_536, 160, 8, 30),
    t("mini.nano", 1, 128, 1, 2, 2),
    t("r5.large", 2, 16_384, 20, 3, 10),
    t("r5.xlarge", 4, 32_768, 40, 4, 15),
    t("r5.2xlarge", 8, 65_536, 80, 4, 15),
    t("r5.4xlarge", 16, 131_072, 160, 8, 30),
    t("r5.8xlarge", 32, 262_144, 320, 8, 30),
    t("r5.12xlarge", 48, 393_216, 320, 8, 30),
    t("t1.micro", 1, 627, 8, 2, 2),
    t("t2.nano", 1, 512, 8, 2, 2),
    t("t2.micro", 1, 1_024, 8, 2, 2),
    t("t2.small", 1, 2_048, 10, 3, 4),
    t("t2.medium", 2, 4_096, 10, 3, 6),
    t("t2.large", 2, 8_192, 20, 3, 12),
    t("t2.xlarge", 4, 16_384, 40, 3, 15),
    t("t2.2xlarge", 8, 32_768, 80, 3, 15),
    t("t3.nano", 2, 512, 8, 2, 2),
    t("t3.micro", 2, 1_024, 8, 2, 2),
    t("t3.small", 2, 2_048, 10, 3, 4),
    t("t3.medium", 2, 4_096, 10, 3, 6),
    t("t3.large", 2, 8_192, 20, 3, 12),
    t("t3.xlarge", 4, 16_384, 40, 4, 15),
    t("t3.2xlarge", 8, 32_768, 80, 4, 15),
    t("t3a.nano", 2, 512, 8, 2, 2),
    t("t3a.micro", 2, 1_024, 8, 2, 2),
    t("t3a.small", 2, 2_048, 10, 2, 4),
    t("t3a.medium", 2, 4_096, 10, 3, 6),
    t("t3a.large", 2, 8_192, 20, 3, 12),
    t("t3a.xlarge", 4, 16_384, 40, 4, 15),
    t("t3a.2xlarge", 8, 32_768, 80, 4, 15),
];

/// What RunInstances takes when it is told none.
pub const DEFAULT: &str = "m1.small";

impl InstanceType {
    pub fn named(name: &str) -> Option<&'static InstanceType> {
        TYPES.iter().find(|t| t.name == name)
    }

    /// The type a request names; AWS refuses an unknown one with `InvalidParameterValue`.
    pub fn required(name: &str) -> Outcome<&'static InstanceType> {
        Self::named(name).ok_or_else(|| {
            AwsError::invalid_parameter_value(format!("Invalid value '{name}' for InstanceType.")).into()
        })
    }

    pub fn family(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(family, _)| family)
    }

    /// Whether AWS sells it with CPU credits.
    pub fn is_burstable(&self) -> bool {
        matches!(self.family(), "t2" | "t3" | "t3a")
    }

    fn is_current(&self) -> bool {
        !matches!(self.family(), "t1" | "m1" | "m3" | "c4" | "m4")
    }

    pub fn threads_per_core(&self) -> u32 {
        if self.vcpus > 1 && !matches!(self.family(), "t2" | "m1") { 2 } else { 1 }
    }

    pub fn cores(&self) -> u32 {
        self.vcpus / self.threads_per_core()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeInstanceTypes {
    dry_run: Option<bool>,
    #[serde(default)]
    instance_type: Vec<String>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedInstanceTypes {
    instance_type_set: Vec<InstanceTypeInfo>,
    next_token: Option<String>,
}

/// Complete on purpose: a missing nested struct crashes the Terraform provider (wire.md §4.3).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceTypeInfo {
    instance_type: &'static str,
    current_generation: bool,
    free_tier_eligible: bool,
    supported_usage_classes: [&'static str; 1],
    supported_root_device_types: [&'static str; 2],
    supported_virtualization_types: [&'static str; 1],
    bare_metal: bool,
    hypervisor: &'static str,
    processor_info: ProcessorInfo,
    v_cpu_info: VCpuInfo,
    memory_info: MemoryInfo,
    instance_storage_supported: bool,
    instance_storage_info: InstanceStorageInfo,
    ebs_info: EbsInfo,
    network_info: NetworkInfo,
    placement_group_info: PlacementGroupInfo,
    hibernation_supported: bool,
    burstable_performance_supported: bool,
    dedicated_hosts_supported: bool,
    auto_recovery_supported: bool,
    supported_boot_modes: [&'static str; 1],
    nitro_enclaves_support: &'static str,
    nitro_tpm_support: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessorInfo {
    supported_architectures: [&'static str; 1],
    sustained_clock_speed_in_ghz: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VCpuInfo {
    default_v_cpus: u32,
    default_cores: u32,
    default_threads_per_core: u32,
    valid_cores: [u32; 1],
    valid_threads_per_core: [u32; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryInfo {
    size_in_mi_b: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceStorageInfo {
    total_size_in_g_b: u64,
    disks: [DiskInfo; 1],
    nvme_support: &'static str,
    encryption_support: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskInfo {
    size_in_g_b: u64,
    count: u32,
    r#type: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EbsInfo {
    ebs_optimized_support: &'static str,
    encryption_support: &'static str,
    ebs_optimized_info: EbsOptimizedInfo,
    nvme_support: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EbsOptimizedInfo {
    baseline_bandwidth_in_mbps: u32,
    baseline_throughput_in_m_bps: f64,
    baseline_iops: u32,
    maximum_bandwidth_in_mbps: u32,
    maximum_throughput_in_m_bps: f64,
    maximum_iops: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkInfo {
    network_performance: &'static str,
    maximum_network_interfaces: u32,
    maximum_network_cards: u32,
    default_network_card_index: u32,
    network_cards: [NetworkCard; 1],
    ipv4_addresses_per_interface: u32,
    ipv6_addresses_per_interface: u32,
    ipv6_supported: bool,
    ena_support: &'static str,
    efa_supported: bool,
    encryption_in_transit_supported: bool,
    ena_srd_supported: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkCard {
    network_card_index: u32,
    network_performance: &'static str,
    maximum_network_interfaces: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlacementGroupInfo {
    supported_strategies: [&'static str; 1],
}

/// A type as DescribeInstanceTypes shows it. Bandwidths are those of a common machine: nothing here shapes them.
fn info(t: &InstanceType) -> InstanceTypeInfo {
    const NETWORK: &str = "Up to 10 Gigabit";
    InstanceTypeInfo {
        instance_type: t.name,
        current_generation: t.is_current(),
        free_tier_eligible: matches!(t.name, "t2.micro" | "t3.micro"),
        supported_usage_classes: ["on-demand"],
        supported_root_device_types: ["ebs", "instance-store"],
        supported_virtualization_types: ["hvm"],
        bare_metal: false,
        hypervisor: "nitro",
        processor_info: ProcessorInfo { supported_architectures: ["x86_64"], sustained_clock_speed_in_ghz: 2.5 },
        v_cpu_info: VCpuInfo {
            default_v_cpus: t.vcpus,
            default_cores: t.cores(),
            default_threads_per_core: t.threads_per_core(),
            valid_cores: [t.cores()],
            valid_threads_per_core: [t.threads_per_core()],
        },
        memory_info: MemoryInfo { size_in_mi_b: t.memory_mib },
        instance_storage_supported: true,
        instance_storage_info: InstanceStorageInfo {
            total_size_in_g_b: t.disk_gib,
            disks: [DiskInfo { size_in_g_b: t.disk_gib, count: 1, r#type: "ssd" }],
            nvme_support: "unsupported",
            encryption_support: "unsupported",
        },
        ebs_info: EbsInfo {
            ebs_optimized_support: "default",
            encryption_support: "unsupported",
            ebs_optimized_info: EbsOptimizedInfo {
                baseline_bandwidth_in_mbps: 1_000,
                baseline_throughput_in_m_bps: 125.0,
                baseline_iops: 4_000,
                maximum_bandwidth_in_mbps: 4_750,
                maximum_throughput_in_m_bps: 593.75,
                maximum_iops: 18_750,
            },
            nvme_support: "unsupported",
        },
        network_info: NetworkInfo {
            network_performance: NETWORK,
            maximum_network_interfaces: t.interfaces,
            maximum_network_cards: 1,
            default_network_card_index: 0,
            network_cards: [NetworkCard {
                network_card_index: 0,
                network_performance: NETWORK,
                maximum_network_interfaces: t.interfaces,
            }],
            ipv4_addresses_per_interface: t.addresses_per_interface,
            ipv6_addresses_per_interface: 0,
            ipv6_supported: false,
            ena_support: "unsupported",
            efa_supported: false,
            encryption_in_transit_supported: false,
            ena_srd_supported: false,
        },
        placement_group_info: PlacementGroupInfo { supported_strategies: ["spread"] },
        hibernation_supported: false,
        burstable_performance_supported: t.is_burstable(),
        dedicated_hosts_supported: false,
        auto_recovery_supported: false,
        supported_boot_modes: ["legacy-bios"],
        nitro_enclaves_support: "unsupported",
        nitro_tpm_support: "unsupported",
    }
}

impl Tagged for InstanceTypeInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

fn yes_no(value: bool) -> Cow<'static, str> {
    if value { "true".into() } else { "false".into() }
}

const ATTRIBUTES: &[Attribute<InstanceTypeInfo>] = &[
    ("auto-recovery-supported", |t| vec![yes_no(t.auto_recovery_supported)]),
    ("bare-metal", |t| vec![yes_no(t.bare_metal)]),
    ("burstable-performance-supported", |t| vec![yes_no(t.burstable_performance_supported)]),
    ("current-generation", |t| vec![yes_no(t.current_generation)]),
    ("dedicated-hosts-supported", |t| vec![yes_no(t.dedicated_hosts_supported)]),
    ("ebs-info.ebs-optimized-support", |t| vec![t.ebs_info.ebs_optimized_support.into()]),
    ("ebs-info.encryption-support", |t| vec![t.ebs_info.encryption_support.into()]),
    ("ebs-info.nvme-support", |t| vec![t.ebs_info.nvme_support.into()]),
    ("free-tier-eligible", |t| vec![yes_no(t.free_tier_eligible)]),
    ("hibernation-supported", |t| vec![yes_no(t.hibernation_supported)]),
    ("hypervisor", |t| vec![t.hypervisor.into()]),
    ("instance-storage-info.total-size-in-gb", |t| vec![t.instance_storage_info.total_size_in_g_b.to_string().into()]),
    ("instance-storage-supported", |t| vec![yes_no(t.instance_storage_supported)]),
    ("instance-type", |t| vec![t.instance_type.into()]),
    ("memory-info.size-in-mib", |t| vec![t.memory_info.size_in_mi_b.to_string().into()]),
    ("network-info.efa-supported", |t| vec![yes_no(t.network_info.efa_supported)]),
    ("network-info.ena-support", |t| vec![t.network_info.ena_support.into()]),
    ("network-info.ipv4-addresses-per-interface", |t| {
        vec![t.network_info.ipv4_addresses_per_interface.to_string().into()]
    }),
    ("network-info.ipv6-supported", |t| vec![yes_no(t.network_info.ipv6_supported)]),
    ("network-info.maximum-network-interfaces", |t| vec![t.network_info.maximum_network_interfaces.to_string().into()]),
    ("network-info.network-performance", |t| vec![t.network_info.network_performance.into()]),
    ("nitro-enclaves-support", |t| vec![t.nitro_enclaves_support.into()]),
    ("processor-info.supported-architecture", |t| vec![t.processor_info.supported_architectures[0].into()]),
    ("supported-boot-mode", |t| vec![t.supported_boot_modes[0].into()]),
    ("supported-root-device-type", |t| t.supported_root_device_types.iter().map(|kind| (*kind).into()).collect()),
    ("supported-usage-class", |t| vec![t.supported_usage_classes[0].into()]),
    ("supported-virtualization-type", |t| vec![t.supported_virtualization_types[0].into()]),
    ("vcpu-info.default-cores", |t| vec![t.v_cpu_info.default_cores.to_string().into()]),
    ("vcpu-info.default-threads-per-core", |t| vec![t.v_cpu_info.default_threads_per_core.to_string().into()]),
    ("vcpu-info.default-vcpus", |t| vec![t.v_cpu_info.default_v_cpus.to_string().into()]),
];

async fn describe(call: &Call, input: DescribeInstanceTypes) -> Outcome<DescribedInstanceTypes> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, ATTRIBUTES)?;
    for name in &input.instance_type {
        if InstanceType::named(name).is_none() {
            return Err(Refusal::new(
                "InvalidInstanceType",
                format!("The following supplied instance types do not exist: [{name}]"),
            ));
        }
    }
    let context = super::paging_context(call, &input.filter);
    let asked = Asked {
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
        explicit_ids: input.instance_type.len(),
    };
    let page = Page::open(&call.cloud.token_key, &context.iter().map(String::as_str).collect::<Vec<_>>(), asked)?;
    let mut all: Vec<InstanceTypeInfo> = TYPES
        .iter()
        .filter(|t| input.instance_type.is_empty() || input.instance_type.iter().any(|name| name == t.name))
        .map(info)
        .filter(|t| filters.matches(t))
        .collect();
    all.sort_by_key(|t| t.instance_type);
    all.retain(|t| page.after().is_none_or(|after| t.instance_type > after));
    let next_token = page.cut(&mut all, |t| t.instance_type);
    Ok(DescribedInstanceTypes { instance_type_set: all, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeInstanceTypeOfferings {
    dry_run: Option<bool>,
    location_type: Option<String>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedOfferings {
    instance_type_offering_set: Vec<Offering>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Offering {
    instance_type: &'static str,
    location_type: String,
    location: String,
    /// What the page goes on after; not shown.
    #[serde(skip)]
    position: String,
}

impl Tagged for Offering {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

const OFFERING_ATTRIBUTES: &[Attribute<Offering>] =
    &[("instance-type", |o| vec![o.instance_type.into()]), ("location", |o| vec![(&o.location).into()])];

/// Every type is offered everywhere: what a zone cannot carry is said by its placement, with the reason.
async fn describe_offerings(call: &Call, input: DescribeInstanceTypeOfferings) -> Outcome<DescribedOfferings> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, OFFERING_ATTRIBUTES)?;
    let location_type = input.location_type.unwrap_or_else(|| "region".into());
    let config = &call.cloud.config;
    let locations = match location_type.as_str() {
        "region" => vec![config.region.clone()],
        "availability-zone" => config.zones.clone(),
        "availability-zone-id" => (1..=config.zones.len()).map(|n| super::region::zone_id(&config.region, n)).collect(),
        other => {
            return Err(AwsError::invalid_parameter_value(format!("Invalid value '{other}' for LocationType.")).into());
        }
    };
    let context = super::paging_context(call, &input.filter);
    let asked = Asked { max_results: input.max_results, next_token: input.next_token.as_deref(), explicit_ids: 0 };
    let page = Page::open(&call.cloud.token_key, &context.iter().map(String::as_str).collect::<Vec<_>>(), asked)?;
    let mut all: Vec<Offering> = locations
        .iter()
        .flat_map(|location| TYPES.iter().map(move |t| (location, t)))
        .map(|(location, t)| Offering {
            instance_type: t.name,
            location_type: location_type.clone(),
            location: location.clone(),
            position: format!("{} {location}", t.name),
        })
        .filter(|o| filters.matches(o))
        .collect();
    all.sort_by(|a, b| a.position.cmp(&b.position));
    all.retain(|o| page.after().is_none_or(|after| o.position.as_str() > after));
    let next_token = page.cut(&mut all, |o| &o.position);
    Ok(DescribedOfferings { instance_type_offering_set: all, next_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_type_is_listed_twice_and_all_have_whole_cores() {
        let mut names: Vec<&str> = TYPES.iter().map(|t| t.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TYPES.len());
        for t in TYPES {
            assert_eq!(t.cores() * t.threads_per_core(), t.vcpus, "{}", t.name);
        }
        assert!(InstanceType::named(DEFAULT).is_some());
    }

    #[test]
    fn members_are_spelled_as_aws_spells_them() {
        let xml = mallee_aws::answer::to_ec2_xml(
            "DescribeInstanceTypes",
            "2016-11-15",
            "r",
            &DescribedInstanceTypes { instance_type_set: vec![info(&TYPES[0])], next_token: None },
        )
        .unwrap();
        for member in [
            "<vCpuInfo><defaultVCpus>2</defaultVCpus>",
            "<sizeInMiB>3840</sizeInMiB>",
            "<totalSizeInGB>20</totalSizeInGB>",
            "<baselineThroughputInMBps>125</baselineThroughputInMBps>",
            "<ipv4AddressesPerInterface>",
            "<supportedArchitectures><item>x86_64</item></supportedArchitectures>",
            "<type>ssd</type>",
        ] {
            assert!(xml.contains(member), "{member} in {xml}");
        }
    }
}
