//! How a volume gets to an instance and away again: AttachVolume, DetachVolume, and the steps that reports bring about.
//!
//! ```text
//!  attach row ─► zone exports it for this attachment ─► export reported ─► the instance's body has it ─► node has it
//!  (attaching)                                                                                           (attached)
//!
//!  the instance's body is without it ─► node has let go ─► zone ends the export ─► export gone ─► row gone (available)
//!  (detaching)                          (ending, shown as detaching)
//! ```
//! A report decides only what it can know: one about an older wish says nothing of whether a node has let go.

use mallee_aws::{
    AwsError,
    answer::timestamp,
    id::{InstanceId, VolumeId},
};
use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{Desired, Generation, InstanceReport, Observed, VOLUMES_AT_AN_INSTANCE, VolumeDesired};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    not_found,
    row::{self, Attachment, Phase, Volume},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        instance::{self, Instance},
        unique_is, unless_dry_run,
    },
    service::Call,
    zone::event::{self, Kind},
};

actions![AttachVolume => attach, DetachVolume => detach];

impl Phase {
    /// EC2's word for it.
    pub fn shown(self) -> &'static str {
        match self {
            Phase::Attaching => "attaching",
            Phase::Attached => "attached",
            Phase::Detaching | Phase::Ending => "detaching",
        }
    }
}

/// Also how DescribeVolumes shows an attachment.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentInfo {
    pub volume_id: VolumeId,
    pub instance_id: InstanceId,
    pub device: String,
    pub status: &'static str,
    pub attach_time: String,
    pub delete_on_termination: bool,
}

impl AttachmentInfo {
    pub fn of(a: &Attachment) -> Self {
        Self {
            volume_id: a.volume.clone(),
            instance_id: a.instance.clone(),
            device: a.device.clone(),
            status: a.phase.shown(),
            attach_time: timestamp(a.since),
            delete_on_termination: a.delete_on_termination,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AttachVolume {
    dry_run: Option<bool>,
    volume_id: VolumeId,
    instance_id: InstanceId,
    device: String,
}

async fn attach(call: &Call, input: AttachVolume) -> Outcome<AttachmentInfo> {
    if !is_device(&input.device) {
        let message =
            format!("Value ({0}) for parameter device is invalid. {0} is not a valid EBS device name.", input.device);
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    let (account, now) = (call.account().to_owned(), call.now);
    let id = uuid::Uuid::new_v4().simple().to_string();
    let attachment = call
        .cloud
        .store
        .write("attach a volume", move |tx| {
            let volume =
                row::get(tx, &account, input.volume_id.as_str())?.ok_or_else(|| not_found(input.volume_id.as_str()))?;
            let instance = instance::get(tx, &account, &input.instance_id)?;
            may_attach(tx, &volume, &instance, &input.device)?;
            let attachment = Attachment {
                id: id.clone(),
                volume: volume.id.clone(),
                instance: instance.id.clone(),
                device: input.device.clone(),
                phase: Phase::Attaching,
                since: now,
                left: Generation::default(),
                delete_on_termination: false,
                reason: String::new(),
            };
            row::insert_attachment(tx, &attachment).map_err(|e| unique_is(e, || in_use(&volume)))?;
            row::touch(tx, volume.id.as_str())?;
            event::note(
                tx,
                volume.id.as_str(),
                now,
                Kind::Asked,
                &format!("attach to {} as {}", instance.id, input.device),
            )?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(attachment)
        })
        .await?;
    call.cloud.pokes.volumes.poke();
    Ok(AttachmentInfo::of(&attachment))
}

fn in_use(volume: &Volume) -> Refusal {
    Refusal::new("VolumeInUse", format!("{} is already attached to an instance", volume.id))
}

fn may_attach(tx: &mut Tx<'_>, volume: &Volume, instance: &Instance, device: &str) -> Outcome<()> {
    if row::attachment_of(tx, volume.id.as_str())?.is_some() {
        return Err(in_use(volume));
    }
    if super::state(volume, None) != "available" {
        return Err(Refusal::new("IncorrectState", format!("Volume '{}' is not 'available'.", volume.id)));
    }
    let state = instance.state().name;
    if !matches!(state, "running" | "stopped") {
        return Err(Refusal::new(
            "IncorrectState",
            format!("Instance '{}' is not 'running' (it is '{state}').", instance.id),
        ));
    }
    if volume.zone != instance.zone {
        return Err(Refusal::new(
            "InvalidVolume.ZoneMismatch",
            format!("The volume '{}' is not in the same availability zone as instance '{}'", volume.id, instance.id),
        ));
    }
    let disk = disk_of(device);
    let root = &instance.options.root_device;
    let there = row::attachments_at(tx, instance.id.as_str())?;
    let taken = there.iter().any(|a| disk_of(&a.device) == disk)
        || instance.options.ephemeral.as_ref().is_some_and(|d| disk_of(d) == disk);
    // An instance that is off and without its root may be given another one.
    let as_root = instance.options.root_on_volume && device == root && state == "stopped";
    if taken || !as_root && (disk == ROOT_DISK || disk == disk_of(root)) {
        let message = format!("Invalid value '{device}' for unixDevice. Attachment point {device} is already in use");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    let others = there.iter().filter(|a| a.device != *root).count();
    if !as_root && others >= VOLUMES_AT_AN_INSTANCE {
        let message = format!(
            "Instance '{}' has {} volumes, and an instance can have {VOLUMES_AT_AN_INSTANCE}",
            instance.id, others
        );
        return Err(Refusal::new("AttachmentLimitExceeded", message));
    }
    Ok(())
}

/// The letters of the disk that nodes give to the root, whatever the image calls it.
const ROOT_DISK: &str = "a";

/// The letters of the disk a device name asks for: `/dev/sdf`, `xvdf` and `/dev/sdf1` are one disk at the node, so they
/// are one here. What two volumes asked for would leave the second one attaching for ever.
pub fn disk_of(device: &str) -> &str {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let rest = ["sd", "xvd", "vd"].iter().find_map(|kind| name.strip_prefix(kind)).unwrap_or(name);
    rest.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// `/dev/sdf`, `/dev/xvdba`, `/dev/vdc`, with or without the folder, and an old partition number.
pub fn is_device(name: &str) -> bool {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let Some(rest) = ["sd", "xvd", "vd"].iter().find_map(|kind| name.strip_prefix(kind)) else { return false };
    let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &rest[letters.len()..];
    (1..=2).contains(&letters.len())
        && letters.bytes().all(|b| b.is_ascii_lowercase())
        && (digits.is_empty() || digits.parse::<u8>().is_ok_and(|n| (1..=15).contains(&n)) && !digits.starts_with('0'))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DetachVolume {
    dry_run: Option<bool>,
    volume_id: VolumeId,
    instance_id: Option<InstanceId>,
    device: Option<String>,
    force: Option<bool>,
}

async fn detach(call: &Call, input: DetachVolume) -> Outcome<AttachmentInfo> {
    let (account, now) = (call.account().to_owned(), call.now);
    let forced = input.force == Some(true);
    let attachment = call
        .cloud
        .store
        .write("detach a volume", move |tx| {
            let volume =
                row::get(tx, &account, input.volume_id.as_str())?.ok_or_else(|| not_found(input.volume_id.as_str()))?;
            let not_attached =
                || Refusal::new("IncorrectState", format!("Volume '{}' is in the 'available' state.", volume.id));
            let attachment = row::attachment_of(tx, volume.id.as_str())?.ok_or_else(not_attached)?;
            if input.instance_id.as_ref().is_some_and(|i| *i != attachment.instance)
                || input.device.as_ref().is_some_and(|d| *d != attachment.device)
            {
                let message = format!("The volume '{}' is not attached to that instance as that device", volume.id);
                return Err(Refusal::new("InvalidAttachment.NotFound", message));
            }
            let instance = instance::any(tx, attachment.instance.as_str())?;
            if instance.is_some_and(|i| {
                i.options.root_on_volume && i.options.root_device == attachment.device && i.state() != instance::STOPPED
            }) {
                let message =
                    format!("Unable to detach root volume '{}' from instance '{}'", volume.id, attachment.instance);
                return Err(Refusal::new("OperationNotPermitted", message));
            }
            event::note(
                tx,
                volume.id.as_str(),
                now,
                Kind::Asked,
                if forced { "detach, whether the instance lets go or not" } else { "detach" },
            )?;
            let attachment = if forced { take(tx, attachment, now)? } else { begin_detach(tx, attachment, now)? };
            unless_dry_run(input.dry_run)?;
            Ok(attachment)
        })
        .await?;
    call.cloud.pokes.instances.poke();
    call.cloud.pokes.volumes.poke();
    Ok(AttachmentInfo::of(&attachment))
}

/// Asks the node to let go. One that is on its way out already goes on as it was.
fn begin_detach(tx: &mut Tx<'_>, attachment: Attachment, now: i64) -> Result<Attachment, StoreError> {
    if matches!(attachment.phase, Phase::Detaching | Phase::Ending) {
        return Ok(attachment);
    }
    let exported = row::any(tx, attachment.volume.as_str())?.is_some_and(|v| is_exported(&v, &attachment));
    instance::touch(tx, attachment.instance.as_str())?;
    let left = instance::any(tx, attachment.instance.as_str())?.map(|i| i.generation).unwrap_or_default();
    row::set_phase(tx, &attachment, Phase::Detaching, left, now)?;
    let attachment = Attachment { phase: Phase::Detaching, left, since: now, ..attachment };
    // No node ever heard of one that was not exported yet.
    if !exported {
        end(tx, &attachment, now)?;
    }
    Ok(attachment)
}

/// The export goes, whoever uses it. The node hears of it when it is gone: what a guest has to write to a disk while it lets
/// go of it would be waited for.
fn take(tx: &mut Tx<'_>, attachment: Attachment, now: i64) -> Result<Attachment, StoreError> {
    end(tx, &attachment, now)?;
    Ok(Attachment { phase: Phase::Ending, since: now, ..attachment })
}

/// Nobody uses it any more: the export can go.
fn end(tx: &mut Tx<'_>, attachment: &Attachment, now: i64) -> Result<(), StoreError> {
    if attachment.phase == Phase::Ending {
        return Ok(());
    }
    row::set_phase(tx, attachment, Phase::Ending, attachment.left, now)?;
    row::touch(tx, attachment.volume.as_str())
}

fn is_exported(volume: &Volume, attachment: &Attachment) -> bool {
    volume.export.as_ref().is_some_and(|e| e.attachment == attachment.id)
}

/// The instance is asked to terminate: everything is taken off it.
pub fn detach_all(tx: &mut Tx<'_>, instance: &InstanceId, now: i64) -> Result<(), StoreError> {
    for attachment in row::attachments_at(tx, instance.as_str())? {
        begin_detach(tx, attachment, now)?;
    }
    Ok(())
}

/// The instance is to start on a node that nobody knows yet: its volumes are served anew, so that nothing that was told of
/// where they were served before can reach them. It waits until they are.
pub fn serve_anew(tx: &mut Tx<'_>, instance: &InstanceId, now: i64) -> Result<(), StoreError> {
    for attachment in row::attachments_at(tx, instance.as_str())?.into_iter().filter(Attachment::is_coming) {
        let digest = Sha256::digest(format!("after {}", attachment.id));
        let id = hex::encode(digest.get(..16).unwrap_or_default());
        row::set_attachment_id(tx, &attachment, &id)?;
        let attachment = Attachment { id, ..attachment };
        row::set_phase(tx, &attachment, Phase::Attaching, attachment.left, now)?;
        row::touch(tx, attachment.volume.as_str())?;
    }
    Ok(())
}

/// What a report about the instance means for one attachment.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Attached,
    LetGo,
    /// Still on its way; the node says why.
    Waits(String),
}

fn after_node_report(attachment: &Attachment, exported: bool, report: &InstanceReport) -> Step {
    let at_node = report.attachments.iter().find(|a| a.volume == attachment.volume.as_str());
    match attachment.phase {
        Phase::Attaching if exported => match at_node {
            Some(a) if a.attached => Step::Attached,
            _ if report.observed == Observed::Stopped => Step::Attached,
            Some(a) if a.reason != attachment.reason => Step::Waits(a.reason.clone()),
            _ => Step::Nothing,
        },
        Phase::Detaching => match at_node {
            _ if report.observed == Observed::Gone => Step::LetGo,
            None if report.generation >= attachment.left => Step::LetGo,
            Some(a) if a.reason != attachment.reason => Step::Waits(a.reason.clone()),
            _ => Step::Nothing,
        },
        _ => Step::Nothing,
    }
}

/// A node reported an instance. True: something is to be told to the storage-controller.
pub fn node_reported(tx: &mut Tx<'_>, report: &InstanceReport, now: i64) -> Result<bool, StoreError> {
    let mut volumes_changed = false;
    for attachment in row::attachments_at(tx, &report.id)? {
        let exported = row::any(tx, attachment.volume.as_str())?.is_some_and(|v| is_exported(&v, &attachment));
        match after_node_report(&attachment, exported, report) {
            Step::Nothing => {}
            Step::Attached => {
                row::set_phase(tx, &attachment, Phase::Attached, attachment.left, attachment.since)?;
                event::note(
                    tx,
                    attachment.volume.as_str(),
                    now,
                    Kind::Observed,
                    &format!("attached to {}", attachment.instance),
                )?;
            }
            Step::LetGo => {
                end(tx, &attachment, now)?;
                event::note(
                    tx,
                    attachment.volume.as_str(),
                    now,
                    Kind::Observed,
                    &format!("{} has let go of it", attachment.instance),
                )?;
                volumes_changed = true;
            }
            Step::Waits(reason) => row::set_reason(tx, &attachment, &reason)?,
        }
    }
    Ok(volumes_changed)
}

/// A storage-controller reported a volume, and its row says so already. True: something is to be told to the node.
pub fn storage_reported(tx: &mut Tx<'_>, before: &Volume, volume: &Volume, now: i64) -> Result<bool, StoreError> {
    let Some(attachment) = row::attachment_of(tx, volume.id.as_str())? else { return Ok(false) };
    let exported = is_exported(volume, &attachment);
    match attachment.phase {
        Phase::Attaching | Phase::Attached if exported && before.export != volume.export => {
            let instance = instance::any(tx, attachment.instance.as_str())?;
            if attachment.phase == Phase::Attaching
                && instance.is_some_and(|i| i.observed == Some(Observed::Stopped) && i.desired == Desired::Stopped)
            {
                row::set_phase(tx, &attachment, Phase::Attached, attachment.left, attachment.since)?;
            }
            // Also when it was exported before: it is served at another address now.
            instance::touch(tx, attachment.instance.as_str())?;
            event::note(tx, volume.id.as_str(), now, Kind::Observed, "served by the storage-controller")?;
            Ok(true)
        }
        Phase::Ending if !exported && volume.observed_generation >= volume.generation => {
            row::remove_attachment(tx, &attachment)?;
            let was_taken = attachment.is_at_node();
            if was_taken {
                instance::touch(tx, attachment.instance.as_str())?;
            }
            event::note(
                tx,
                volume.id.as_str(),
                now,
                Kind::Observed,
                &format!("detached from {}", attachment.instance),
            )?;
            let ended =
                instance::any(tx, attachment.instance.as_str())?.is_none_or(|i| i.desired == Desired::Terminated);
            if ended && attachment.delete_on_termination && volume.desired == VolumeDesired::Present {
                row::set_deleted(tx, volume.id.as_str())?;
                event::note(tx, volume.id.as_str(), now, Kind::Decided, "deleted with its instance")?;
            }
            Ok(was_taken)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_tiers::AttachmentReport;

    fn attachment(phase: Phase) -> Attachment {
        Attachment {
            id: "a".into(),
            volume: "vol-0123456789abcdef0".parse().unwrap(),
            instance: "i-0123456789abcdef0".parse().unwrap(),
            device: "/dev/sdf".into(),
            phase,
            since: 0,
            left: Generation { epoch: 1, counter: 7 },
            delete_on_termination: false,
            reason: String::new(),
        }
    }

    fn report(observed: Observed, counter: i64, at_node: Option<bool>) -> InstanceReport {
        InstanceReport {
            generation: Generation { epoch: 1, counter },
            attachments: at_node
                .map(|attached| AttachmentReport {
                    volume: "vol-0123456789abcdef0".into(),
                    attached,
                    reason: String::new(),
                })
                .into_iter()
                .collect(),
            ..InstanceReport::new("i-0123456789abcdef0", observed)
        }
    }

    #[test]
    fn a_report_moves_an_attachment_only_when_it_can_know() {
        use Observed::{Gone, Running, Stopped};
        use Phase::{Attached, Attaching, Detaching, Ending};
        let table = [
            (Attaching, true, report(Running, 6, None), Step::Nothing),
            (Attaching, true, report(Running, 6, Some(false)), Step::Nothing),
            (Attaching, true, report(Running, 6, Some(true)), Step::Attached),
            (Attaching, false, report(Stopped, 6, None), Step::Nothing),
            (Attaching, true, report(Stopped, 6, None), Step::Attached),
            (Attached, true, report(Running, 9, None), Step::Nothing),
            (Detaching, true, report(Running, 6, None), Step::Nothing),
            (Detaching, true, report(Running, 7, Some(true)), Step::Nothing),
            (Detaching, true, report(Running, 7, Some(false)), Step::Nothing),
            (Detaching, true, report(Running, 7, None), Step::LetGo),
            (Detaching, true, report(Gone, 1, None), Step::LetGo),
            (Ending, true, report(Gone, 9, None), Step::Nothing),
        ];
        for (phase, exported, report, expected) in table {
            assert_eq!(after_node_report(&attachment(phase), exported, &report), expected, "{phase:?} {report:?}");
        }
    }

    #[test]
    fn device_names_are_those_guests_know() {
        for good in ["/dev/sdf", "/dev/xvdba", "/dev/vdb", "sdh", "xvdf", "/dev/sdb1", "/dev/sda15"] {
            assert!(is_device(good), "{good}");
        }
        for bad in [
            "",
            "/dev/",
            "/dev/sd",
            "/dev/sdF",
            "/dev/sdaaa",
            "/dev/sda16",
            "/dev/sda01",
            "/dev/nvme1n1",
            "/dev/sdf/../sda",
            "sdf ",
            "/dev/sdé",
        ] {
            assert!(!is_device(bad), "{bad}");
        }
    }
}
