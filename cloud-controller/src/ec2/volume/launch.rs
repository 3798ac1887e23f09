//! The volumes an instance begins with: made and attached in the transaction that makes the instance.

use mallee_aws::id::{InstanceId, VolumeId};
use mallee_store::Tx;
use mallee_tiers::{Generation, VolumeDesired};
use sha2::{Digest, Sha256};

use super::row::{self, Attachment, Phase, Volume};
use crate::{
    Outcome,
    ec2::{
        block_device::VolumeOf,
        snapshot,
        tag::{self, Tag},
    },
    zone::event::{self, Kind},
};

/// Whose volumes they are.
pub struct Launch<'a> {
    pub account: &'a str,
    pub zone: &'a str,
    pub instance: &'a InstanceId,
    pub tags: &'a [Tag],
    /// The account's key, where any of them is encrypted.
    pub disk_key: Option<&'a str>,
    pub now: i64,
}

impl Launch<'_> {
    /// Ids of what hangs on an instance's device: from the instance's own, whose randomness is enough for all of them, so that
    /// a transaction that is run again writes the same.
    fn digest(&self, what: &str, device: &str) -> [u8; 32] {
        Sha256::digest(format!("{what} {} {device}", self.instance)).into()
    }

    /// Makes one volume, and attaches it.
    pub fn make(&self, tx: &mut Tx<'_>, device: &str, wanted: &VolumeOf) -> Outcome<Attachment> {
        let mut seed = [0; 9];
        seed.copy_from_slice(&self.digest("volume", device)[..9]);
        let source = wanted.snapshot.as_ref();
        let volume = Volume {
            id: VolumeId::from_random(seed),
            account: self.account.to_owned(),
            zone: self.zone.to_owned(),
            generation: Generation::default(),
            size_gib: wanted.size_gib,
            kind: wanted.kind.clone(),
            iops: wanted.iops,
            throughput: wanted.throughput,
            created: self.now,
            desired: VolumeDesired::Present,
            observed: None,
            observed_generation: Generation::default(),
            reason: String::new(),
            export: None,
            allocated: 0,
            snapshot: source.map(|s| s.id.clone()),
            manifest: source.map(|s| snapshot::of_mapping(tx, &s.id)).transpose()?,
            disk_key: self.disk_key.filter(|_| wanted.encrypted).map(Into::into),
            auto_enable_io: false,
        };
        row::insert(tx, &volume)?;
        let attachment = Attachment {
            id: hex::encode(&self.digest("attachment", device)[..16]),
            volume: volume.id.clone(),
            instance: self.instance.clone(),
            device: device.to_owned(),
            phase: Phase::Attaching,
            since: self.now,
            left: Generation::default(),
            delete_on_termination: wanted.delete_on_termination,
            reason: String::new(),
        };
        row::insert_attachment(tx, &attachment)?;
        if !self.tags.is_empty() {
            tag::put(tx, self.account, volume.id.as_str(), self.tags)?;
        }
        let text = format!("made for {}, attached as {device}", self.instance);
        event::note(tx, volume.id.as_str(), self.now, Kind::Asked, &text)?;
        Ok(attachment)
    }
}
