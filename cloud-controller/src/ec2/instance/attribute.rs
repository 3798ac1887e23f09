//! One attribute of an instance at a time: shown, changed, reset; and its metadata options.

use mallee_aws::{
    AwsError,
    id::{InstanceId, SecurityGroupId, VolumeId},
};
use mallee_store::Tx;
use serde::{Deserialize, Serialize};

use super::{
    describe::MetadataOptionsInfo,
    row::{self, Instance, ShutdownBehavior, word},
    run::{MetadataOptionsAsked, checked_user_data},
    state,
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        instance_type::InstanceType,
        interface::{self, GroupIdentifier},
        unless_dry_run,
        unsupported::{self, Unsupported},
        volume,
    },
    service::Call,
    zone::event::{self, Kind},
};

actions![
    DescribeInstanceAttribute => describe,
    DescribeInstanceCreditSpecifications => describe_credits,
    ModifyInstanceAttribute => modify,
    ModifyInstanceMetadataOptions => modify_metadata,
    MonitorInstances => monitor,
    ResetInstanceAttribute => reset,
    UnmonitorInstances => unmonitor,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeInstanceAttribute {
    dry_run: Option<bool>,
    instance_id: InstanceId,
    attribute: String,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct DescribedAttribute {
    instance_id: Option<InstanceId>,
    block_device_mapping: Option<Vec<BlockDevice>>,
    disable_api_stop: Option<Value<bool>>,
    disable_api_termination: Option<Value<bool>>,
    ebs_optimized: Option<Value<bool>>,
    ena_support: Option<Value<bool>>,
    enclave_options: Option<Enabled>,
    group_set: Option<Vec<GroupIdentifier>>,
    instance_initiated_shutdown_behavior: Option<Value<ShutdownBehavior>>,
    instance_type: Option<Value<String>>,
    kernel: Option<Value<Option<String>>>,
    product_codes: Option<[(); 0]>,
    ramdisk: Option<Value<Option<String>>>,
    root_device_name: Option<Value<String>>,
    source_dest_check: Option<Value<bool>>,
    sriov_net_support: Option<Value<Option<String>>>,
    user_data: Option<Value<Option<String>>>,
}

#[derive(Serialize)]
struct Value<T> {
    value: T,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
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
    volume_id: VolumeId,
    status: &'static str,
    attach_time: String,
    delete_on_termination: bool,
}

async fn describe(call: &Call, input: DescribeInstanceAttribute) -> Outcome<DescribedAttribute> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .read("describe an instance's attribute", move |tx| {
            let instance = super::get(tx, &account, &input.instance_id)?;
            let shown = attribute(tx, &instance, &input.attribute)?;
            unless_dry_run(input.dry_run)?;
            Ok(DescribedAttribute { instance_id: Some(instance.id), ..shown })
        })
        .await
}

fn attribute(tx: &mut Tx<'_>, i: &Instance, name: &str) -> Outcome<DescribedAttribute> {
    let mut shown = DescribedAttribute::default();
    let value = |value| Some(Value { value });
    let options = &i.options;
    match name {
        "blockDeviceMapping" => {
            let attachments = volume::attachments_at(tx, i.id.as_str())?;
            shown.block_device_mapping = Some(
                attachments
                    .into_iter()
                    .map(|a| BlockDevice {
                        device_name: a.device,
                        ebs: EbsBlockDevice {
                            volume_id: a.volume,
                            status: a.phase.shown(),
                            attach_time: mallee_aws::answer::timestamp(a.since),
                            delete_on_termination: a.delete_on_termination,
                        },
                    })
                    .collect(),
            );
        }
        "disableApiStop" => shown.disable_api_stop = value(options.protect_stop),
        "disableApiTermination" => shown.disable_api_termination = value(options.protect_termination),
        "ebsOptimized" => shown.ebs_optimized = value(options.ebs_optimized),
        "enaSupport" => shown.ena_support = value(false),
        "enclaveOptions" => shown.enclave_options = Some(Enabled { enabled: false }),
        "groupSet" => {
            let interfaces = interface::of_instance(tx, &i.id)?;
            shown.group_set = Some(interfaces.into_iter().next().map(|n| n.groups).unwrap_or_default());
        }
        "instanceInitiatedShutdownBehavior" => {
            shown.instance_initiated_shutdown_behavior = Some(Value { value: options.shutdown });
        }
        "instanceType" => shown.instance_type = Some(Value { value: i.instance_type.clone() }),
        "kernel" => shown.kernel = Some(Value { value: i.kernel.clone() }),
        "productCodes" => shown.product_codes = Some([]),
        "ramdisk" => shown.ramdisk = Some(Value { value: i.ramdisk.clone() }),
        "rootDeviceName" => shown.root_device_name = Some(Value { value: options.root_device.clone() }),
        "sourceDestCheck" => {
            let interfaces = interface::of_instance(tx, &i.id)?;
            shown.source_dest_check = value(interfaces.first().is_none_or(|n| n.source_dest_check));
        }
        "sriovNetSupport" => shown.sriov_net_support = Some(Value { value: None }),
        "userData" => shown.user_data = Some(Value { value: row::user_data(tx, i.id.as_str())? }),
        other => return Err(unknown_attribute(other)),
    }
    Ok(shown)
}

fn unknown_attribute(name: &str) -> Refusal {
    AwsError::invalid_parameter_value(format!("Value ({name}) for parameter attribute is invalid. Unknown attribute."))
        .into()
}

/// Both spellings: `DisableApiTermination.Value=true`, and the older `Attribute=disableApiTermination&Value=true`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyInstanceAttribute {
    dry_run: Option<bool>,
    instance_id: InstanceId,
    attribute: Option<String>,
    value: Option<String>,
    #[serde(default)]
    block_device_mapping: Vec<BlockDeviceAsked>,
    disable_api_stop: Option<BoolValue>,
    disable_api_termination: Option<BoolValue>,
    ebs_optimized: Option<BoolValue>,
    #[serde(default)]
    group_id: Vec<SecurityGroupId>,
    instance_initiated_shutdown_behavior: Option<TextValue>,
    instance_type: Option<TextValue>,
    source_dest_check: Option<BoolValue>,
    user_data: Option<TextValue>,
    ena_support: Option<Unsupported>,
    kernel: Option<Unsupported>,
    ramdisk: Option<Unsupported>,
    sriov_net_support: Option<Unsupported>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BoolValue {
    value: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TextValue {
    value: String,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BlockDeviceAsked {
    device_name: String,
    ebs: Option<EbsAsked>,
    no_device: Option<Unsupported>,
    virtual_name: Option<Unsupported>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EbsAsked {
    delete_on_termination: Option<bool>,
    /// Named for the reader; the device says which one it is.
    #[serde(rename = "VolumeId")]
    _volume_id: Option<VolumeId>,
}

/// A change of one attribute.
#[derive(Clone)]
enum Change {
    BlockDevices(Vec<BlockDeviceAsked>),
    DisableApiStop(bool),
    DisableApiTermination(bool),
    EbsOptimized(bool),
    Groups(Vec<SecurityGroupId>),
    Shutdown(ShutdownBehavior),
    Type(&'static InstanceType),
    SourceDestCheck(bool),
    UserData(Option<String>),
}

fn shutdown(text: &str) -> Outcome<ShutdownBehavior> {
    match text {
        "stop" => Ok(ShutdownBehavior::Stop),
        "terminate" => Ok(ShutdownBehavior::Terminate),
        other => Err(AwsError::invalid_parameter_value(format!(
            "Value ({other}) for parameter instanceInitiatedShutdownBehavior is invalid."
        ))
        .into()),
    }
}

/// The one change a request asks for; none and several are refused.
fn the_change(input: &ModifyInstanceAttribute) -> Outcome<Change> {
    let mut changes = Vec::new();
    if !input.block_device_mapping.is_empty() {
        changes.push(Change::BlockDevices(input.block_device_mapping.clone()));
    }
    changes.extend(input.disable_api_stop.as_ref().map(|v| Change::DisableApiStop(v.value)));
    changes.extend(input.disable_api_termination.as_ref().map(|v| Change::DisableApiTermination(v.value)));
    changes.extend(input.ebs_optimized.as_ref().map(|v| Change::EbsOptimized(v.value)));
    if !input.group_id.is_empty() {
        changes.push(Change::Groups(input.group_id.clone()));
    }
    if let Some(text) = &input.instance_initiated_shutdown_behavior {
        changes.push(Change::Shutdown(shutdown(&text.value)?));
    }
    if let Some(text) = &input.instance_type {
        changes.push(Change::Type(InstanceType::required(&text.value)?));
    }
    changes.extend(input.source_dest_check.as_ref().map(|v| Change::SourceDestCheck(v.value)));
    if let Some(text) = &input.user_data {
        changes.push(Change::UserData(checked_user_data(&text.value)?));
    }
    if let Some(name) = &input.attribute {
        changes.push(by_name(name, input.value.as_deref().unwrap_or_default())?);
    }
    match changes.len() {
        1 => changes.pop().ok_or_else(|| Refusal::internal("one change is none")),
        0 => Err(AwsError::invalid_parameter_combination("No attributes specified.").into()),
        _ => Err(AwsError::invalid_parameter_combination(
            "Fields for multiple attribute types specified: one attribute per call.",
        )
        .into()),
    }
}

fn by_name(name: &str, value: &str) -> Outcome<Change> {
    let flag = || match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Refusal::from(AwsError::invalid_parameter_value(format!(
            "Value ({value}) for parameter value is invalid."
        )))),
    };
    Ok(match name {
        "disableApiStop" => Change::DisableApiStop(flag()?),
        "disableApiTermination" => Change::DisableApiTermination(flag()?),
        "ebsOptimized" => Change::EbsOptimized(flag()?),
        "instanceInitiatedShutdownBehavior" => Change::Shutdown(shutdown(value)?),
        "instanceType" => Change::Type(InstanceType::required(value)?),
        "sourceDestCheck" => Change::SourceDestCheck(flag()?),
        "userData" => Change::UserData(checked_user_data(value)?),
        "kernel" | "ramdisk" | "enaSupport" | "sriovNetSupport" => {
            return Err(
                AwsError::unsupported(format!("Changing the attribute {name} is not supported by this cloud")).into()
            );
        }
        other => return Err(unknown_attribute(other)),
    })
}

async fn modify(call: &Call, input: ModifyInstanceAttribute) -> Outcome<()> {
    unsupported::refuse(&[
        ("EnaSupport", input.ena_support),
        ("Kernel", input.kernel),
        ("Ramdisk", input.ramdisk),
        ("SriovNetSupport", input.sriov_net_support),
    ])?;
    let change = the_change(&input)?;
    let (account, now) = (call.account().to_owned(), call.now);
    call.cloud
        .store
        .write("modify an instance's attribute", move |tx| {
            let instance = super::get(tx, &account, &input.instance_id)?;
            apply(tx, &instance, &change, now)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.instances.poke();
    call.cloud.pokes.network.poke();
    Ok(())
}

fn apply(tx: &mut Tx<'_>, instance: &Instance, change: &Change, now: i64) -> Outcome<()> {
    let id = instance.id.as_str();
    if instance.state() == state::TERMINATED {
        return Err(Refusal::new("IncorrectInstanceState", format!("The instance '{id}' is terminated.")));
    }
    let only_stopped = || {
        if instance.state() == state::STOPPED {
            return Ok(());
        }
        Err(Refusal::new("IncorrectInstanceState", format!("The instance '{id}' is not in the 'stopped' state.")))
    };
    let mut options = instance.options.clone();
    match change {
        Change::BlockDevices(devices) => {
            for device in devices {
                unsupported::refuse(&[
                    ("BlockDeviceMapping.NoDevice", device.no_device),
                    ("BlockDeviceMapping.VirtualName", device.virtual_name),
                ])?;
                let Some(yes) = device.ebs.as_ref().and_then(|e| e.delete_on_termination) else { continue };
                if !volume::set_delete_on_termination(tx, id, &device.device_name, yes)? {
                    let message = format!("No device is currently mapped at {}", device.device_name);
                    return Err(Refusal::new("InvalidInstanceAttributeValue", message));
                }
            }
            return Ok(());
        }
        Change::Groups(groups) => return interface::set_groups(tx, &instance.id, groups),
        Change::SourceDestCheck(check) => return interface::set_source_dest_check(tx, &instance.id, *check),
        Change::Type(size) => {
            only_stopped()?;
            event::note(
                tx,
                id,
                now,
                Kind::Asked,
                &format!("type {} instead of {}", size.name, instance.instance_type),
            )?;
            return Ok(row::set_type(tx, id, size.name)?);
        }
        Change::UserData(data) => {
            only_stopped()?;
            match data {
                Some(data) => row::put_user_data(tx, id, data)?,
                None => row::drop_user_data(tx, id)?,
            }
            return Ok(row::touch(tx, id)?);
        }
        Change::EbsOptimized(yes) => {
            only_stopped()?;
            options.ebs_optimized = *yes;
        }
        Change::DisableApiStop(yes) => options.protect_stop = *yes,
        Change::DisableApiTermination(yes) => options.protect_termination = *yes,
        Change::Shutdown(behavior) => {
            event::note(tx, id, now, Kind::Asked, &format!("{} when its guest powers off", word(*behavior)))?;
            options.shutdown = *behavior;
        }
    }
    Ok(row::set_options(tx, id, &options)?)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResetInstanceAttribute {
    dry_run: Option<bool>,
    instance_id: InstanceId,
    attribute: String,
}

async fn reset(call: &Call, input: ResetInstanceAttribute) -> Outcome<()> {
    match input.attribute.as_str() {
        "sourceDestCheck" => {}
        "kernel" | "ramdisk" => {
            return Err(AwsError::unsupported(format!(
                "Resetting the attribute {} is not supported by this cloud",
                input.attribute
            ))
            .into());
        }
        other => return Err(unknown_attribute(other)),
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("reset an instance's attribute", move |tx| {
            let instance = super::get(tx, &account, &input.instance_id)?;
            interface::set_source_dest_check(tx, &instance.id, true)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyInstanceMetadataOptions {
    dry_run: Option<bool>,
    instance_id: InstanceId,
    http_tokens: Option<String>,
    http_put_response_hop_limit: Option<i64>,
    http_endpoint: Option<String>,
    http_protocol_ipv6: Option<String>,
    instance_metadata_tags: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModifiedMetadataOptions {
    instance_id: InstanceId,
    instance_metadata_options: MetadataOptionsInfo,
}

async fn modify_metadata(call: &Call, input: ModifyInstanceMetadataOptions) -> Outcome<ModifiedMetadataOptions> {
    let asked = MetadataOptionsAsked {
        http_tokens: input.http_tokens,
        http_put_response_hop_limit: input.http_put_response_hop_limit,
        http_endpoint: input.http_endpoint,
        http_protocol_ipv6: input.http_protocol_ipv6,
        instance_metadata_tags: input.instance_metadata_tags,
    };
    let account = call.account().to_owned();
    let modified = call
        .cloud
        .store
        .write("modify an instance's metadata options", move |tx| {
            let instance = super::get(tx, &account, &input.instance_id)?;
            if instance.state() == state::TERMINATED {
                return Err(Refusal::new(
                    "IncorrectInstanceState",
                    format!("The instance '{}' is terminated.", instance.id),
                ));
            }
            let mut options = instance.options.clone();
            options.metadata = asked.over(options.metadata)?;
            row::set_options(tx, instance.id.as_str(), &options)?;
            row::touch(tx, instance.id.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok(ModifiedMetadataOptions {
                instance_id: instance.id,
                instance_metadata_options: (&options.metadata).into(),
            })
        })
        .await?;
    call.cloud.pokes.instances.poke();
    Ok(modified)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeInstanceCreditSpecifications {
    dry_run: Option<bool>,
    #[serde(default)]
    instance_id: Vec<InstanceId>,
    #[serde(rename = "Filter")]
    filter: Option<Unsupported>,
    max_results: Option<Unsupported>,
    next_token: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedCredits {
    instance_credit_specification_set: Vec<CreditSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreditSpecification {
    instance_id: InstanceId,
    cpu_credits: &'static str,
}

async fn describe_credits(call: &Call, input: DescribeInstanceCreditSpecifications) -> Outcome<DescribedCredits> {
    unsupported::refuse(&[
        ("Filter", input.filter),
        ("MaxResults", input.max_results),
        ("NextToken", input.next_token),
    ])?;
    let account = call.account().to_owned();
    let instances = call
        .cloud
        .store
        .read("describe credits", move |tx| {
            let instances = if input.instance_id.is_empty() {
                row::of_account(tx, &account)?
            } else {
                input.instance_id.iter().map(|id| super::get(tx, &account, id)).collect::<Outcome<_>>()?
            };
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(instances)
        })
        .await?;
    let burstable = instances.into_iter().filter(|i| i.instance_type().is_some_and(InstanceType::is_burstable));
    Ok(DescribedCredits {
        instance_credit_specification_set: burstable
            .map(|i| CreditSpecification { instance_id: i.id, cpu_credits: "standard" })
            .collect(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MonitorInstances {
    dry_run: Option<bool>,
    instance_id: Vec<InstanceId>,
}

/// Whoever asks is told first whether these instances are theirs, as everywhere.
async fn monitor(call: &Call, input: MonitorInstances) -> Outcome<()> {
    unmonitor(call, UnmonitorInstances { dry_run: input.dry_run, instance_id: input.instance_id }).await?;
    Err(AwsError::unsupported("MonitorInstances: detailed monitoring is not supported by this cloud").into())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UnmonitorInstances {
    dry_run: Option<bool>,
    instance_id: Vec<InstanceId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unmonitored {
    instances_set: Vec<MonitoringOf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MonitoringOf {
    instance_id: InstanceId,
    monitoring: Monitoring,
}

#[derive(Serialize)]
struct Monitoring {
    state: &'static str,
}

/// Nothing is monitored in detail, so this is always so already.
async fn unmonitor(call: &Call, input: UnmonitorInstances) -> Outcome<Unmonitored> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .read("find instances", move |tx| {
            let mut instances_set = Vec::new();
            for id in &input.instance_id {
                let instance = super::get(tx, &account, id)?;
                instances_set
                    .push(MonitoringOf { instance_id: instance.id, monitoring: Monitoring { state: "disabled" } });
            }
            unless_dry_run(input.dry_run)?;
            Ok(Unmonitored { instances_set })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_aws::params::{Flavor, Params, from_params};

    #[test]
    fn one_attribute_per_call_in_either_spelling() {
        let code = |sent: &str| {
            let sent = format!("InstanceId=i-0123456789abcdef0&{sent}");
            let input = from_params(&Params::parse(sent.as_bytes()).unwrap(), Flavor::Ec2).unwrap();
            the_change(&input).err().map(|e| e.code().to_owned())
        };
        for good in [
            "DisableApiTermination.Value=true",
            "Attribute=disableApiTermination&Value=true",
            "InstanceType.Value=m5.large",
            "Attribute=instanceType&Value=m5.large",
            "GroupId.1=sg-0123456789abcdef0",
            "UserData.Value=aGVsbG8%3D",
            "BlockDeviceMapping.1.DeviceName=/dev/sdf&BlockDeviceMapping.1.Ebs.DeleteOnTermination=true",
        ] {
            assert_eq!(code(good), None, "{good}");
        }
        for (bad, expected) in [
            ("", "InvalidParameterCombination"),
            ("DisableApiTermination.Value=true&InstanceType.Value=m5.large", "InvalidParameterCombination"),
            ("InstanceType.Value=m5.tiny", "InvalidParameterValue"),
            ("Attribute=colour&Value=red", "InvalidParameterValue"),
            ("Attribute=kernel&Value=aki-0123456789abcdef0", "Unsupported"),
            ("UserData.Value=%21", "InvalidUserData.Malformed"),
        ] {
            assert_eq!(code(bad).as_deref(), Some(expected), "{bad}");
        }
    }
}
