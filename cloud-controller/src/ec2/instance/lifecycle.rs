//! Stop, start, reboot, terminate: each writes what is wanted from now on, for all the named instances or for none.

use mallee_aws::{AwsError, id::InstanceId};
use mallee_store::Tx;
use mallee_tiers::Desired;
use serde::{Deserialize, Serialize};

use super::{
    report::end_or_stop,
    row::{self, Cause, Instance},
    state::{self, State},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{interface, unless_dry_run, volume},
    service::Call,
    zone::event::{self, Kind},
};

actions![
    RebootInstances => reboot,
    StartInstances => start,
    StopInstances => stop,
    TerminateInstances => terminate,
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Changes {
    instances_set: Vec<Change>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Change {
    instance_id: InstanceId,
    current_state: State,
    previous_state: State,
}

/// Runs `rule` on each of the named instances in one transaction, and wakes those who carry it out.
async fn change(
    call: &Call,
    what: &'static str,
    mut ids: Vec<InstanceId>,
    dry_run: Option<bool>,
    rule: impl Fn(&mut Tx<'_>, &Instance) -> Outcome<()> + Send + 'static,
) -> Outcome<Changes> {
    if ids.is_empty() {
        return Err(AwsError::missing_parameter("InstanceId").into());
    }
    ids.sort();
    ids.dedup();
    let account = call.account().to_owned();
    let instances_set = call
        .cloud
        .store
        .write(what, move |tx| {
            let mut changes = Vec::with_capacity(ids.len());
            for id in &ids {
                let before = super::get(tx, &account, id)?;
                rule(tx, &before)?;
                let after = super::get(tx, &account, id)?;
                changes.push(Change {
                    instance_id: id.clone(),
                    current_state: after.state(),
                    previous_state: before.state(),
                });
            }
            unless_dry_run(dry_run)?;
            Ok::<_, Refusal>(changes)
        })
        .await?;
    call.cloud.pokes.instances.poke();
    call.cloud.pokes.volumes.poke();
    call.cloud.pokes.network.poke();
    Ok(Changes { instances_set })
}

fn wrong_state(instance: &Instance, must_be: &str) -> Refusal {
    let is = instance.state().name;
    Refusal::new(
        "IncorrectInstanceState",
        format!("The instance '{}' is not in a state from which it can be {must_be} (it is {is}).", instance.id),
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TerminateInstances {
    dry_run: Option<bool>,
    instance_id: Vec<InstanceId>,
    /// There is no shutdown to skip: the plug is pulled.
    #[serde(rename = "Force")]
    _force: Option<bool>,
    #[serde(rename = "SkipOsShutdown")]
    _skip_os_shutdown: Option<bool>,
}

async fn terminate(call: &Call, input: TerminateInstances) -> Outcome<Changes> {
    let now = call.now;
    change(call, "terminate instances", input.instance_id, input.dry_run, move |tx, instance| {
        if instance.desired == Desired::Terminated {
            return Ok(());
        }
        if instance.options.protect_termination {
            return Err(Refusal::new(
                "OperationNotPermitted",
                format!(
                    "The instance '{}' may not be terminated. Modify its 'disableApiTermination' instance attribute and try again.",
                    instance.id
                ),
            ));
        }
        event::note(tx, instance.id.as_str(), now, Kind::Asked, "terminate")?;
        end_or_stop(tx, instance, Desired::Terminated, Cause::User, true, now)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StopInstances {
    dry_run: Option<bool>,
    instance_id: Vec<InstanceId>,
    force: Option<bool>,
    hibernate: Option<bool>,
    skip_os_shutdown: Option<bool>,
}

async fn stop(call: &Call, input: StopInstances) -> Outcome<Changes> {
    if input.hibernate == Some(true) {
        return Err(AwsError::unsupported("Hibernate=true is not supported by this cloud").into());
    }
    let now = call.now;
    let forced = input.force == Some(true) || input.skip_os_shutdown == Some(true);
    change(call, "stop instances", input.instance_id, input.dry_run, move |tx, instance| match instance.state() {
        state::STOPPED => Ok(()),
        // Asked again with force, one that does not hear its power button is unplugged.
        state::STOPPING if instance.desired == Desired::Stopped && (instance.forced || !forced) => Ok(()),
        state::RUNNING | state::STOPPING => {
            if instance.options.protect_stop {
                return Err(Refusal::new(
                    "OperationNotPermitted",
                    format!("The instance '{}' may not be stopped. Modify its 'disableApiStop' instance attribute and try again.", instance.id),
                ));
            }
            event::note(tx, instance.id.as_str(), now, Kind::Asked, if forced { "stop, by force" } else { "stop" })?;
            end_or_stop(tx, instance, Desired::Stopped, Cause::User, forced, now)
        }
        _ => Err(wrong_state(instance, "stopped")),
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StartInstances {
    dry_run: Option<bool>,
    instance_id: Vec<InstanceId>,
    additional_info: Option<crate::ec2::unsupported::Unsupported>,
}

async fn start(call: &Call, input: StartInstances) -> Outcome<Changes> {
    crate::ec2::unsupported::refuse(&[("AdditionalInfo", input.additional_info)])?;
    let now = call.now;
    let network = call.cloud.config.network.clone();
    change(call, "start instances", input.instance_id, input.dry_run, move |tx, instance| match instance.state() {
        state::RUNNING | state::PENDING => Ok(()),
        state::STOPPED => {
            must_have_root(tx, instance)?;
            event::note(tx, instance.id.as_str(), now, Kind::Asked, "start")?;
            interface::give_public(tx, &network, &instance.id)?;
            if instance.options.root_on_volume && instance.node.is_none() {
                volume::serve_anew(tx, &instance.id, now)?;
            }
            row::start(tx, instance, now)?;
            Ok(())
        }
        _ => Err(wrong_state(instance, "started")),
    })
    .await
}

/// A root volume that was taken off is missed here, and not by a guest that does not boot.
fn must_have_root(tx: &mut Tx<'_>, instance: &Instance) -> Outcome<()> {
    let device = &instance.options.root_device;
    if !instance.options.root_on_volume
        || volume::attachments_at(tx, instance.id.as_str())?.iter().any(|a| a.device == *device && a.is_coming())
    {
        return Ok(());
    }
    Err(AwsError::invalid_parameter_value(format!(
        "Invalid value '{}' for instanceId. Instance does not have a volume attached at root ({device})",
        instance.id
    ))
    .into())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RebootInstances {
    dry_run: Option<bool>,
    instance_id: Vec<InstanceId>,
}

async fn reboot(call: &Call, input: RebootInstances) -> Outcome<()> {
    let now = call.now;
    change(call, "reboot instances", input.instance_id, input.dry_run, move |tx, instance| match instance.state() {
        state::RUNNING => {
            event::note(tx, instance.id.as_str(), now, Kind::Asked, "reboot")?;
            Ok(row::reboot(tx, instance)?)
        }
        // It is about to boot anyway.
        state::PENDING => Ok(()),
        _ => Err(wrong_state(instance, "rebooted")),
    })
    .await
    .map(|_| ())
}
