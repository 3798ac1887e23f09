//! What RunInstances may be asked, and what of it is not done here: refused by name before anything is looked up.

use std::net::Ipv4Addr;

use mallee_aws::{
    AwsError,
    id::{KernelImageId, MachineImageId, NetworkInterfaceId, RamdiskImageId, SecurityGroupId, SubnetId},
};
use mallee_tiers::INTERFACES_AT_AN_INSTANCE;
use serde::Deserialize;

use super::super::row::{MetadataOptions, ShutdownBehavior};
use crate::{
    Outcome, Refusal,
    ec2::{
        block_device,
        interface::{
            Secondary,
            change::{PrivateIpAddress, addresses},
            ipv6,
        },
        tag::TagSpecification,
        unsupported::{self, Unsupported},
    },
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunInstances {
    pub dry_run: Option<bool>,
    pub image_id: Option<MachineImageId>,
    pub min_count: u64,
    pub max_count: u64,
    pub client_token: Option<String>,
    pub instance_type: Option<String>,
    pub key_name: Option<String>,
    pub user_data: Option<String>,
    #[serde(default)]
    pub security_group: Vec<String>,
    #[serde(default)]
    pub security_group_id: Vec<SecurityGroupId>,
    pub subnet_id: Option<SubnetId>,
    pub private_ip_address: Option<Ipv4Addr>,
    #[serde(default)]
    pub network_interface: Vec<NetworkInterface>,
    pub placement: Option<Placement>,
    pub kernel_id: Option<KernelImageId>,
    pub ramdisk_id: Option<RamdiskImageId>,
    pub instance_initiated_shutdown_behavior: Option<ShutdownBehavior>,
    pub disable_api_termination: Option<bool>,
    pub disable_api_stop: Option<bool>,
    pub ebs_optimized: Option<bool>,
    pub monitoring: Option<Enabled>,
    pub metadata_options: Option<MetadataOptionsAsked>,
    #[serde(default)]
    pub tag_specification: Vec<TagSpecification>,
    #[serde(default)]
    pub block_device_mapping: Vec<block_device::Asked>,
    pub credit_specification: Option<CreditSpecification>,
    pub enclave_options: Option<Enabled>,
    pub hibernation_options: Option<Configured>,
    pub maintenance_options: Option<MaintenanceOptions>,
    pub additional_info: Option<Unsupported>,
    pub capacity_reservation_specification: Option<Unsupported>,
    pub cpu_options: Option<Unsupported>,
    pub elastic_gpu_specification: Option<Unsupported>,
    pub elastic_inference_accelerator: Option<Unsupported>,
    pub enable_primary_ipv6: Option<Unsupported>,
    pub iam_instance_profile: Option<Unsupported>,
    pub instance_market_options: Option<Unsupported>,
    #[serde(rename = "Ipv6Address", default)]
    pub ipv6_address: Vec<ipv6::Named>,
    #[serde(rename = "Ipv6AddressCount")]
    pub ipv6_address_count: Option<u32>,
    pub launch_template: Option<Unsupported>,
    pub license_specification: Option<Unsupported>,
    pub network_performance_options: Option<Unsupported>,
    pub operator: Option<Unsupported>,
    pub private_dns_name_options: Option<Unsupported>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Enabled {
    pub enabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Configured {
    pub configured: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreditSpecification {
    pub cpu_credits: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MaintenanceOptions {
    pub auto_recovery: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Placement {
    pub availability_zone: Option<String>,
    pub tenancy: Option<String>,
    pub affinity: Option<Unsupported>,
    pub availability_zone_id: Option<Unsupported>,
    pub group_id: Option<Unsupported>,
    pub group_name: Option<Unsupported>,
    pub host_id: Option<Unsupported>,
    pub host_resource_group_arn: Option<Unsupported>,
    pub partition_number: Option<Unsupported>,
    pub spread_domain: Option<Unsupported>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkInterface {
    pub network_interface_id: Option<NetworkInterfaceId>,
    pub device_index: Option<u32>,
    pub subnet_id: Option<SubnetId>,
    pub description: Option<String>,
    pub private_ip_address: Option<Ipv4Addr>,
    #[serde(default)]
    pub private_ip_addresses: Vec<PrivateIpAddress>,
    #[serde(default)]
    pub security_group_id: Vec<SecurityGroupId>,
    pub delete_on_termination: Option<bool>,
    pub associate_public_ip_address: Option<bool>,
    pub network_card_index: Option<u32>,
    pub interface_type: Option<String>,
    pub associate_carrier_ip_address: Option<Unsupported>,
    #[serde(rename = "Ipv4Prefix")]
    pub ipv4_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv4PrefixCount")]
    pub ipv4_prefix_count: Option<Unsupported>,
    #[serde(rename = "Ipv6AddressCount")]
    pub ipv6_address_count: Option<u32>,
    #[serde(rename = "Ipv6Addresses", default)]
    pub ipv6_addresses: Vec<ipv6::Named>,
    #[serde(rename = "Ipv6Prefix")]
    pub ipv6_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv6PrefixCount")]
    pub ipv6_prefix_count: Option<Unsupported>,
    pub primary_ipv6: Option<Unsupported>,
    pub secondary_private_ip_address_count: Option<u32>,
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
            other => {
                Err(AwsError::invalid_parameter_value(format!("Value ({other}) for parameter {name} is invalid.")))
            }
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
        let ipv6 = self.http_protocol_ipv6.as_deref().unwrap_or("disabled");
        if choice("HttpProtocolIpv6", ipv6, "enabled", "disabled")? {
            return Err(AwsError::unsupported("HttpProtocolIpv6=enabled: metadata is served over IPv4 only").into());
        }
        if let Some(limit) = self.http_put_response_hop_limit {
            options.hop_limit = u8::try_from(limit).ok().filter(|l| (1..=64).contains(l)).ok_or_else(|| {
                AwsError::invalid_parameter_value(format!(
                    "Value ({limit}) for parameter HttpPutResponseHopLimit is invalid. Expecting 1 to 64."
                ))
            })?;
        }
        Ok(options)
    }
}

/// An interface of every instance of the launch.
#[derive(Clone)]
pub struct InterfacePlan {
    /// One that is there already.
    pub existing: Option<NetworkInterfaceId>,
    pub subnet: Option<SubnetId>,
    pub secondary: Secondary,
    pub ipv6: ipv6::Wanted,
    pub device_index: u32,
    pub description: String,
    pub address: Option<Ipv4Addr>,
    pub group_ids: Vec<SecurityGroupId>,
    pub group_names: Vec<String>,
    pub delete_on_termination: bool,
    pub public: Option<bool>,
}

pub fn refuse_what_is_not_done(input: &RunInstances) -> Outcome<()> {
    unsupported::refuse(&[
        ("AdditionalInfo", input.additional_info),
        ("CapacityReservationSpecification", input.capacity_reservation_specification),
        ("CpuOptions", input.cpu_options),
        ("ElasticGpuSpecification", input.elastic_gpu_specification),
        ("ElasticInferenceAccelerator", input.elastic_inference_accelerator),
        ("EnablePrimaryIpv6", input.enable_primary_ipv6),
        ("IamInstanceProfile", input.iam_instance_profile),
        ("InstanceMarketOptions", input.instance_market_options),
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
        (
            "CreditSpecification.CpuCredits=unlimited",
            input.credit_specification.as_ref().is_some_and(|c| c.cpu_credits != "standard"),
        ),
    ] {
        if sent {
            return Err(AwsError::unsupported(format!("{name} is not supported by this cloud")).into());
        }
    }
    if let Some(recovery) =
        input.maintenance_options.as_ref().and_then(|m| m.auto_recovery.as_deref()).filter(|r| *r != "disabled")
    {
        return Err(AwsError::unsupported(format!(
            "MaintenanceOptions.AutoRecovery={recovery} is not supported by this cloud"
        ))
        .into());
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
            return Err(
                AwsError::unsupported(format!("Placement.Tenancy={tenancy} is not supported by this cloud")).into()
            );
        }
    }
    Ok(())
}

/// The interfaces of a launch by device index, from either of the two ways to say it, and the subnet of the first.
pub fn interface_plans(input: &RunInstances) -> Outcome<(Vec<InterfacePlan>, Option<SubnetId>)> {
    if input.network_interface.is_empty() {
        let interface = InterfacePlan {
            existing: None,
            subnet: None,
            device_index: 0,
            description: String::new(),
            address: input.private_ip_address,
            secondary: Secondary::none(),
            ipv6: ipv6_asked(&input.ipv6_address, input.ipv6_address_count, input.max_count)?,
            group_ids: input.security_group_id.clone(),
            group_names: input.security_group.clone(),
            delete_on_termination: true,
            public: None,
        };
        return Ok((vec![interface], None));
    }
    if !input.security_group_id.is_empty()
        || !input.security_group.is_empty()
        || input.subnet_id.is_some()
        || input.private_ip_address.is_some()
        || !input.ipv6_address.is_empty()
        || input.ipv6_address_count.is_some()
    {
        return Err(AwsError::invalid_parameter_combination(
            "Network interfaces and an instance-level subnet ID, security groups or address may not be specified on the same request",
        )
        .into());
    }
    if input.network_interface.len() > INTERFACES_AT_AN_INSTANCE {
        let message = format!(
            "Interface count {} exceeds the limit of {INTERFACES_AT_AN_INSTANCE}",
            input.network_interface.len()
        );
        return Err(Refusal::new("AttachmentLimitExceeded", message));
    }
    let mut plans =
        input.network_interface.iter().map(|asked| plan_of(asked, input.max_count)).collect::<Outcome<Vec<_>>>()?;
    plans.sort_by_key(|plan| plan.device_index);
    if plans.windows(2).any(|pair| pair[0].device_index == pair[1].device_index) {
        return Err(AwsError::invalid_parameter_value("Each network interface requires a unique device index.").into());
    }
    if plans.first().is_none_or(|first| first.device_index != 0) {
        return Err(AwsError::invalid_parameter_value(
            "The first network interface must have device index 0 on network card 0",
        )
        .into());
    }
    if plans.len() > 1 && plans.iter().any(|plan| plan.public == Some(true)) {
        let message = "The associatePublicIPAddress parameter cannot be specified when launching with multiple network interfaces.";
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    let subnet = plans.first().and_then(|first| first.subnet.clone());
    Ok((plans, subnet))
}

fn ipv6_asked(named: &[ipv6::Named], each: Option<u32>, count: u64) -> Outcome<ipv6::Wanted> {
    if !named.is_empty() && count > 1 {
        return Err(AwsError::invalid_parameter_combination("An IPv6 address can be given to one instance only").into());
    }
    ipv6::Wanted::asked(named, each)
}

fn plan_of(asked: &NetworkInterface, count: u64) -> Outcome<InterfacePlan> {
    unsupported::refuse(&[
        ("NetworkInterface.AssociateCarrierIpAddress", asked.associate_carrier_ip_address),
        ("NetworkInterface.Ipv4Prefix", asked.ipv4_prefix),
        ("NetworkInterface.Ipv4PrefixCount", asked.ipv4_prefix_count),
        ("NetworkInterface.Ipv6Prefix", asked.ipv6_prefix),
        ("NetworkInterface.Ipv6PrefixCount", asked.ipv6_prefix_count),
        ("NetworkInterface.PrimaryIpv6", asked.primary_ipv6),
    ])?;
    if asked.network_card_index.unwrap_or(0) != 0 {
        return Err(AwsError::invalid_parameter_value("Instances have one network card, whose index is 0").into());
    }
    if let Some(kind) = asked.interface_type.as_deref().filter(|k| *k != "interface") {
        return Err(AwsError::unsupported(format!(
            "NetworkInterface.InterfaceType={kind} is not supported by this cloud"
        ))
        .into());
    }
    let (address, secondary) =
        addresses(asked.private_ip_address, &asked.private_ip_addresses, asked.secondary_private_ip_address_count)?;
    let ipv6 = ipv6_asked(&asked.ipv6_addresses, asked.ipv6_address_count, count)?;
    if asked.network_interface_id.is_some() {
        let says_more = asked.subnet_id.is_some()
            || address.is_some()
            || secondary != Secondary::none()
            || ipv6 != ipv6::Wanted::default()
            || !asked.security_group_id.is_empty()
            || asked.associate_public_ip_address.is_some();
        if says_more || count > 1 {
            let message = "A network interface that is there already is given to one instance, as it is";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
    }
    if !secondary.named.is_empty() && count > 1 {
        return Err(
            AwsError::invalid_parameter_combination("A private address can be given to one instance only").into()
        );
    }
    Ok(InterfacePlan {
        existing: asked.network_interface_id.clone(),
        subnet: asked.subnet_id.clone(),
        device_index: asked.device_index.unwrap_or(0),
        description: asked.description.clone().unwrap_or_default(),
        address,
        secondary,
        ipv6,
        group_ids: asked.security_group_id.clone(),
        group_names: Vec::new(),
        // One that was there before outlives the instance.
        delete_on_termination: asked.delete_on_termination.unwrap_or(asked.network_interface_id.is_none()),
        public: asked.associate_public_ip_address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2::instance::metadata_default::V1;

    #[test]
    fn metadata_options_are_aws_words_only() {
        let ask = |tokens: Option<&str>, hops: Option<i64>| MetadataOptionsAsked {
            http_tokens: tokens.map(Into::into),
            http_put_response_hop_limit: hops,
            ..MetadataOptionsAsked::default()
        };
        assert!(ask(Some("required"), Some(64)).over(V1).unwrap().tokens_required);
        for bad in [ask(Some("Required"), None), ask(None, Some(0)), ask(None, Some(65))] {
            assert_eq!(bad.over(V1).err().unwrap().code(), "InvalidParameterValue");
        }
    }
}
