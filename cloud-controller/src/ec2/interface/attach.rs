//! Attaching interfaces to instances and taking them away, whether they run or not. The instance's zone is told the whole list
//! of its interfaces; its node gives a running guest what is new, and takes from it what is gone ([`super::phase`]).

use mallee_aws::{
    AwsError,
    id::{InstanceId, InterfaceAttachmentId, NetworkInterfaceId},
};
use mallee_store::{Tx, params};
use mallee_tiers::{Desired, INTERFACES_AT_AN_INSTANCE, Observed};
use serde::{Deserialize, Serialize};

use super::{InterfaceRow, Phase, address::own, drop_automatic, of_account, of_instance, phase, unattach};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        instance::{self, Instance},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    network,
    service::Call,
    zone::event::{self, Kind},
};

actions![
    AttachNetworkInterface => attach,
    DetachNetworkInterface => detach,
];

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
            let instance = attachable(tx, &account, &input.instance_id)?;
            let phase = if is_off(&instance) { Phase::Attached } else { Phase::Attaching };
            let at = At { instance: &instance.id, zone: &instance.zone, device_index: input.device_index, phase };
            let id = put(tx, &row, &at, false, now)?;
            network::touch(tx, &input.instance_id)?;
            event::note(tx, instance.id.as_str(), now, Kind::Asked, &format!("attach {}", row.id))?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(id)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(Attached { attachment_id, network_card_index: 0 })
}

/// An instance that may be given an interface: one that is not ending.
fn attachable(tx: &mut Tx<'_>, account: &str, id: &InstanceId) -> Outcome<Instance> {
    let instance = instance::get(tx, account, id)?;
    if instance.is_ended() || instance.desired == Desired::Terminated {
        let message = format!("The instance '{id}' is not in a valid state for this operation.");
        return Err(Refusal::new("IncorrectInstanceState", message));
    }
    Ok(instance)
}

/// No guest has to be asked: the node gives it its interfaces when it starts.
fn is_off(instance: &Instance) -> bool {
    instance.desired == Desired::Stopped && instance.observed == Some(Observed::Stopped)
}

/// Where an interface shall go.
pub struct At<'a> {
    pub instance: &'a InstanceId,
    pub zone: &'a str,
    pub device_index: u32,
    pub phase: Phase,
}

/// Writes the attachment of an interface that is free, to an instance in its zone that has room for it.
pub fn put(
    tx: &mut Tx<'_>,
    row: &InterfaceRow,
    at: &At<'_>,
    delete_on_termination: bool,
    now: i64,
) -> Outcome<InterfaceAttachmentId> {
    let At { instance, zone, device_index, phase } = *at;
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
    if there.len() >= INTERFACES_AT_AN_INSTANCE {
        let message = format!("Interface count {} exceeds the limit of {INTERFACES_AT_AN_INSTANCE}", there.len() + 1);
        return Err(Refusal::new("AttachmentLimitExceeded", message));
    }
    let id = InterfaceAttachmentId::from_random(rand::random());
    tx.execute(
        "UPDATE network_interface SET instance = ?2, attachment = ?3, device_index = ?4, attached = ?5,
                delete_on_termination = ?6, phase = ?7, attach_reason = '' WHERE id = ?1",
        params![
            row.id.as_str(),
            instance.as_str(),
            id.as_str(),
            i64::from(device_index),
            now,
            delete_on_termination,
            phase.shown()
        ],
    )?;
    Ok(id)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DetachNetworkInterface {
    dry_run: Option<bool>,
    attachment_id: InterfaceAttachmentId,
    /// The guest has to let go: a card that is torn out may take its kernel along.
    force: Option<bool>,
}

async fn detach(call: &Call, input: DetachNetworkInterface) -> Outcome<()> {
    let (account, now) = (call.account().to_owned(), call.now);
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
            if row.released || row.phase == Phase::Detaching {
                let message = format!("Network interface '{}' is being detached already", row.id);
                return Err(Refusal::new("IncorrectState", message));
            }
            if is_off(&instance::get(tx, &account, &instance)?) {
                drop_automatic(tx, &row)?;
                unattach(tx, &row.id)?;
                network::touch(tx, &instance)?;
            } else if input.force == Some(true) {
                let message =
                    "This cloud takes no interface from a running guest by force: without Force it is asked to let go";
                return Err(AwsError::unsupported(message).into());
            } else {
                phase::begin_detach(tx, &row, &instance, now)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(())
}
