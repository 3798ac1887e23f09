//! Volumes: disks that live on without an instance, in one zone.
//!
//! `create` and `describe` are EC2's pages; `attach` is the way to an instance and back; `launch` makes those that an instance
//! begins with; rows are in `row`.

pub mod attach;
pub mod attribute;
pub mod create;
pub mod describe;
pub mod launch;
mod limits;
pub mod modify;
mod report;
mod row;

use mallee_tiers::{Volume as Body, VolumeDesired, VolumeObserved, VolumeSource};

pub use attach::{detach_all, disk_of, is_device, node_reported, serve_anew};
pub use create::figures;
pub use report::{Consequences, take as take_report};
pub use row::{
    Attachment, Phase, SOURCE_COLUMN, TABLES, Volume, any, attachment_of, attachments_at, attachments_in,
    attachments_of_account, get, in_zone, set_delete_on_termination, touch_at,
};

use crate::Refusal;

/// EC2's state of a volume: what is wanted, what was observed, and whether it is (being) attached to something.
fn state(volume: &Volume, attachment: Option<&Attachment>) -> &'static str {
    match (volume.desired, volume.observed) {
        (VolumeDesired::Deleted, _) => "deleting",
        // One that is made for an instance belongs to it from the beginning.
        (_, None | Some(VolumeObserved::Creating)) => "creating",
        _ if attachment.is_some() => "in-use",
        (_, Some(VolumeObserved::Ready)) => "available",
        // Gone without having been asked to is a loss somebody should see.
        (_, Some(VolumeObserved::Failed | VolumeObserved::Gone)) => "error",
        _ => "creating",
    }
}

/// What the storage-controller is sent of it.
/// `node`: where the instance that has it was seen last.
pub fn wanted(volume: &Volume, attachment: Option<&Attachment>, node: Option<&str>) -> Body {
    Body {
        desired: volume.desired,
        export_for: attachment.filter(|a| a.phase != Phase::Ending).map(|a| a.id.clone()),
        export_node: attachment.and(node).map(str::to_owned),
        source: volume
            .snapshot
            .clone()
            .zip(volume.manifest.clone())
            .map(|(snapshot, manifest)| VolumeSource { snapshot, manifest }),
        encrypted: volume.disk_key.clone(),
        ..Body::new(volume.id.to_string(), volume.generation, volume.size_gib)
    }
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod states {
    use super::*;
    use mallee_tiers::Generation;

    #[test]
    fn the_whole_table_of_states() {
        use VolumeDesired::{Deleted, Present};
        use VolumeObserved::{Creating, Failed, Gone, Ready, Unknown};
        for (desired, observed, attached, expected) in [
            (Present, None, false, "creating"),
            (Present, Some(Creating), false, "creating"),
            (Present, Some(Unknown), false, "creating"),
            (Present, Some(Ready), false, "available"),
            (Present, Some(Ready), true, "in-use"),
            (Present, None, true, "creating"),
            (Present, Some(Creating), true, "creating"),
            (Present, Some(Unknown), true, "in-use"),
            (Present, Some(Failed), false, "error"),
            (Present, Some(Gone), false, "error"),
            (Deleted, Some(Ready), false, "deleting"),
            (Deleted, None, false, "deleting"),
            (Deleted, Some(Gone), false, "deleting"),
        ] {
            let volume = Volume {
                id: "vol-0123456789abcdef0".parse().unwrap(),
                account: String::new(),
                zone: String::new(),
                generation: Generation::default(),
                size_gib: 1,
                kind: "gp2".into(),
                iops: None,
                throughput: None,
                created: 0,
                desired,
                observed,
                observed_generation: Generation::default(),
                reason: String::new(),
                export: None,
                allocated: 0,
                snapshot: None,
                manifest: None,
                disk_key: None,
                auto_enable_io: false,
            };
            let attachment = Attachment {
                id: "a".into(),
                volume: volume.id.clone(),
                instance: "i-0123456789abcdef0".parse().unwrap(),
                device: "/dev/sdf".into(),
                phase: Phase::Attaching,
                since: 0,
                left: Generation::default(),
                delete_on_termination: false,
                reason: String::new(),
            };
            assert_eq!(
                state(&volume, attached.then_some(&attachment)),
                expected,
                "{desired:?} {observed:?} {attached}"
            );
        }
    }
}
