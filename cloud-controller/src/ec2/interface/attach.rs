//! Attaching interfaces to instances and taking them away, while the instance is stopped. The instance's zone is told the
//! whole list of its interfaces; its node makes them when the instance starts.

use mallee_aws::{
    AwsError,
    id::{InstanceId, InterfaceAttachmentId, NetworkInterfaceId},
};
use mallee_store::{Tx, params};
use mallee_tiers::{Desired, Observed};
use serde::{Deserialize, Serialize};

use super::{InterfaceRow, address::own, drop_automatic, of_account, of_instance, unattach};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        instance::{self, Instance},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    network,
    service::Call,
};

actions![
    AttachNetworkInterface => attach,
    DetachNetworkInterface => detach,
];

/// Most interfaces of one instance.
pub const MOST: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AttachNetworkInterface {
    dry_run: Option<bool>,
    network_interface_id: NetworkInterfaceId,
    instance_id: InstanceId,
    device_index: u32,
    network_card_index: Option<u32>,
    ena_srd_specification: Option<Unsupported>,
    ena_queue_count: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Attached {
    attachment_id: InterfaceAttachmentId,
    network_card_index: u32,
}

async fn attach(call: &Call, input: AttachNetworkInterface) -> Outcome<Attached> {
    unsupported::refuse(&[
        ("EnaSrdSpecification", input.ena_srd_specification),
        ("EnaQueueCount", input.ena_queue_count),
    ])?;
    if input.network_card_index.unwrap_or(0) != 0 {
        return Err(AwsError::invalid_parameter_value("Instances have one network card, whose index is 0").into());
    }
    let (account, now) = (call.account().to_owned(), call.now);
    let attachment_id = call
        .cloud
        .store
        .write("attach a network interface", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            let zone = zone_of(tx, &account, &input.instance_id)?;
            let id = put(tx, &row, &input.instance_id, &zone, input.device_index, false, now)?;
            network::touch(tx, &input.instance_id)?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(id)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(Attached { attachment_id, network_card_index: 0 })
}

/// The zone of an instance that may be given an interface: one that is not ending.
fn zone_of(tx: &mut Tx<'_>, account: &str, id: &InstanceId) -> Outcome<String> {
    let instance = instance::get(tx, account, id)?;
    if instance.is_ended() || instance.desired == Desired::Terminated {
        let message = format!("The instance '{id}' is not in a valid state for this operation.");
        return Err(Refusal::new("IncorrectInstanceState", message));
    }
    must_be_stopped(&instance)?;
    Ok(instance.zone)
}

/// Nodes give an instance its interfaces when it starts, and do not change those of a running one.
fn must_be_stopped(instance: &Instance) -> Outcome<()> {
    let is_stopped = instance.desired == Desired::Stopped && instance.observed == Some(Observed::Stopped);
    if is_stopped {
        return Ok(());
    }
    let message =
        format!("This cloud attaches and detaches interfaces of stopped instances only: stop '{}' first", instance.id);
    Err(AwsError::unsupported(message).into())
}

/// Writes the attachment of an interface that is free, to an instance in its zone that has room for it.
pub fn put(
    tx: &mut Tx<'_>,
    row: &InterfaceRow,
    instance: &InstanceId,
    zone: &str,
    device_index: u32,
    delete_on_termination: bool,
    now: i64,
) -> Outcome<InterfaceAttachmentId> {
    if row.instance.is_some() {
        let message = format!("Network interface '{}' is currently in use.", row.id);
        return Err(Refusal::new("InvalidNetworkInterface.InUse", message));
    }
    if row.zone != zone {
        let message = format!(
            "You may not attach a network interface to an instance if they are not in the same availability zone ({}, {zone})",
            row.zone
        );
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    let there = of_instance(tx, instance)?;
    if there.iter().any(|other| other.device_index == device_index) {
        let message =
            format!("Instance '{instance}' already has an interface attached at device index '{device_index}'.");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    if there.iter().any(|other| other.vpc != row.vpc) {
        let message = format!("Interface {} and instance {instance} belong to different networks", row.id);
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    if there.len() >= MOST {
        let message = format!("Interface count {} exceeds the limit of {MOST}", there.len() + 1);
        return Err(Refusal::new("AttachmentLimitExceeded", message));
    }
    let id = InterfaceAttachmentId::from_random(rand::random());
    tx.execute(
        "UPDATE network_interface SET instance = ?2, attachment = ?3, device_index = ?4, attached = ?5,
                delete_on_termination = ?6 WHERE id = ?1",
        params![row.id.as_str(), instance.as_str(), id.as_str(), i64::from(device_index), now, delete_on_termination],
    )?;
    Ok(id)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DetachNetworkInterface {
    dry_run: Option<bool>,
    attachment_id: InterfaceAttachmentId,
    /// The guest is never asked, so there is nothing to force.
    #[allow(dead_code)]
    force: Option<bool>,
}

async fn detach(call: &Call, input: DetachNetworkInterface) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("detach a network interface", move |tx| {
            let id = &input.attachment_id;
            let row = of_account(tx, &account)?.into_iter().find(|row| row.attachment.as_ref() == Some(id));
            let Some((row, instance)) = row.and_then(|row| row.instance.clone().map(|instance| (row, instance))) else {
                let message = format!("The networkInterface attachment ID '{id}' does not exist");
                return Err(Refusal::new("InvalidAttachmentID.NotFound", message));
            };
            if row.device_index == 0 {
                let message = "The network interface at device index 0 cannot be detached.";
                return Err(Refusal::new("OperationNotPermitted", message));
            }
            if row.released {
                let message = format!("Network interface '{}' is being detached already", row.id);
                return Err(Refusal::new("IncorrectState", message));
            }
            must_be_stopped(&instance::get(tx, &account, &instance)?)?;
            drop_automatic(tx, &row)?;
            unattach(tx, &row.id)?;
            network::touch(tx, &instance)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(())
}
