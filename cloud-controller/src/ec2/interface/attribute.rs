//! Attributes of interfaces, one at a time.

use mallee_aws::{
    AwsError,
    id::{InterfaceAttachmentId, NetworkInterfaceId, SecurityGroupId},
};
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};

use super::{
    GroupIdentifier, InterfaceRow,
    address::own,
    describe::{Attachment, attachment},
    get, put_groups, set_check,
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        security_group, subnet, unless_dry_run,
        unsupported::{self, Unsupported},
    },
    network,
    service::Call,
};

actions![
    DescribeNetworkInterfaceAttribute => describe,
    ModifyNetworkInterfaceAttribute => modify,
    ResetNetworkInterfaceAttribute => reset,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeNetworkInterfaceAttribute {
    dry_run: Option<bool>,
    network_interface_id: NetworkInterfaceId,
    attribute: Option<String>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    network_interface_id: String,
    description: Option<Text>,
    source_dest_check: Option<Switch>,
    group_set: Option<Vec<GroupIdentifier>>,
    attachment: Option<Attachment>,
    associate_public_ip_address: Option<bool>,
}

#[derive(Serialize)]
struct Text {
    value: String,
}

#[derive(Serialize)]
struct Switch {
    value: bool,
}

async fn describe(call: &Call, input: DescribeNetworkInterfaceAttribute) -> Outcome<Described> {
    let (account, id) = (call.account().to_owned(), input.network_interface_id);
    let row = call.cloud.store.read("describe an interface's attribute", move |tx| get(tx, &account, &id)).await?;
    unless_dry_run(input.dry_run)?;
    let mut described = Described { network_interface_id: row.id.to_string(), ..Described::default() };
    match input.attribute.as_deref() {
        Some("description") => described.description = Some(Text { value: row.description }),
        Some("sourceDestCheck") => described.source_dest_check = Some(Switch { value: row.source_dest_check }),
        Some("groupSet") => described.group_set = Some(row.groups),
        Some("attachment") => described.attachment = attachment(&row),
        Some("associatePublicIpAddress") => described.associate_public_ip_address = Some(row.public_wanted),
        Some(other) => {
            let message = format!("Value ({other}) for parameter attribute is invalid.");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
        None => return Err(AwsError::missing_parameter("Attribute").into()),
    }
    Ok(described)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyNetworkInterfaceAttribute {
    dry_run: Option<bool>,
    network_interface_id: NetworkInterfaceId,
    description: Option<Value<String>>,
    source_dest_check: Option<Value<bool>>,
    #[serde(default)]
    security_group_id: Vec<SecurityGroupId>,
    attachment: Option<AttachmentChange>,
    associate_public_ip_address: Option<bool>,
    ena_srd_specification: Option<Unsupported>,
    enable_primary_ipv6: Option<Unsupported>,
    connection_tracking_specification: Option<Unsupported>,
    associated_subnet_id: Option<Unsupported>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Value<T> {
    value: T,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AttachmentChange {
    attachment_id: Option<InterfaceAttachmentId>,
    delete_on_termination: Option<bool>,
    default_ena_queue_count: Option<Unsupported>,
    ena_queue_count: Option<Unsupported>,
}

async fn modify(call: &Call, input: ModifyNetworkInterfaceAttribute) -> Outcome<()> {
    unsupported::refuse(&[
        ("EnaSrdSpecification", input.ena_srd_specification),
        ("EnablePrimaryIpv6", input.enable_primary_ipv6),
        ("ConnectionTrackingSpecification", input.connection_tracking_specification),
        ("AssociatedSubnetId", input.associated_subnet_id),
    ])?;
    unsupported::refuse_set("AssociatePublicIpAddress", input.associate_public_ip_address)?;
    let given = usize::from(input.description.is_some())
        + usize::from(input.source_dest_check.is_some())
        + usize::from(!input.security_group_id.is_empty())
        + usize::from(input.attachment.is_some())
        + usize::from(input.associate_public_ip_address.is_some());
    match given {
        0 => return Err(AwsError::missing_parameter("Description").into()),
        1 => {}
        _ => {
            let message = "Fields for multiple attribute types specified";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("modify an interface's attribute", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            change(tx, &row, &input)?;
            if let Some(instance) = &row.instance {
                network::touch(tx, instance)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(())
}

fn change(tx: &mut Tx<'_>, row: &InterfaceRow, input: &ModifyNetworkInterfaceAttribute) -> Outcome<()> {
    let id = row.id.as_str();
    if let Some(description) = &input.description {
        tx.execute("UPDATE network_interface SET description = ?2 WHERE id = ?1", params![id, description.value])?;
    }
    if let Some(check) = &input.source_dest_check {
        set_check(tx, row, check.value)?;
    }
    if !input.security_group_id.is_empty() {
        subnet::kind::require_routed(tx, &row.subnet, "security groups")?;
        let groups = security_group::for_launch(tx, &row.account, &row.vpc, &input.security_group_id, &[])?;
        if groups.len() > security_group::MAX_PER_INTERFACE {
            let message =
                format!("An interface may be in at most {} security groups", security_group::MAX_PER_INTERFACE);
            return Err(Refusal::new("SecurityGroupsPerInterfaceLimitExceeded", message));
        }
        put_groups(tx, &row.id, &groups)?;
    }
    if let Some(attachment) = &input.attachment {
        unsupported::refuse(&[
            ("Attachment.DefaultEnaQueueCount", attachment.default_ena_queue_count),
            ("Attachment.EnaQueueCount", attachment.ena_queue_count),
        ])?;
        let named =
            attachment.attachment_id.as_ref().ok_or_else(|| AwsError::missing_parameter("Attachment.AttachmentId"))?;
        if row.attachment.as_ref() != Some(named) {
            let message = format!("The attachment '{named}' is not that of interface '{}'", row.id);
            return Err(Refusal::new("InvalidAttachmentID.NotFound", message));
        }
        if let Some(goes) = attachment.delete_on_termination {
            tx.execute("UPDATE network_interface SET delete_on_termination = ?2 WHERE id = ?1", params![id, goes])?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResetNetworkInterfaceAttribute {
    dry_run: Option<bool>,
    network_interface_id: NetworkInterfaceId,
    source_dest_check: Option<String>,
}

/// The only attribute with a value to go back to.
async fn reset(call: &Call, input: ResetNetworkInterfaceAttribute) -> Outcome<()> {
    if input.source_dest_check.is_none() {
        return Err(AwsError::missing_parameter("SourceDestCheck").into());
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("reset an interface's attribute", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            set_check(tx, &row, true)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(())
}
