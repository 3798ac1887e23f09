//! An image's row: what was registered, and what its import found. Its SQL is here and nowhere else.

use std::collections::BTreeMap;

use mallee_aws::id::ImageId;
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::{Blob, DiskFormat};
use serde::{Deserialize, Serialize};

use crate::ec2::{
    Id,
    block_device::{self, Mapping, VolumeOf},
    instance::unword,
};

pub use crate::ec2::instance::word;

pub const TABLES: &str = "
CREATE TABLE image (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    name_key TEXT UNIQUE,
    location TEXT NOT NULL,
    kind TEXT NOT NULL,
    architecture TEXT NOT NULL,
    description TEXT,
    kernel TEXT,
    ramdisk TEXT,
    root_device TEXT NOT NULL,
    tokens_required BIGINT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    progress BIGINT NOT NULL,
    proof TEXT NOT NULL,
    digest TEXT,
    size BIGINT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX image_of ON image (account, id);
CREATE INDEX image_state ON image (state);
CREATE INDEX image_blob ON image (digest);
CREATE TABLE image_launch_permission (
    image TEXT NOT NULL,
    who TEXT NOT NULL,
    PRIMARY KEY (image, who)
);
CREATE INDEX image_permitted ON image_launch_permission (who);
";

/// Images on snapshots: their devices in JSON, and which snapshots must stay for them.
pub const SNAPSHOT_TABLES: &str = "
ALTER TABLE image ADD COLUMN mappings TEXT;
ALTER TABLE image ADD COLUMN source_instance TEXT;
CREATE TABLE image_snapshot (image TEXT NOT NULL, snapshot TEXT NOT NULL, PRIMARY KEY (image, snapshot));
CREATE INDEX image_snapshot_of ON image_snapshot (snapshot);
";

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Machine,
    Kernel,
    Ramdisk,
}

/// `pending → available | failed`, and `deregistered` from any of them: the row stays while anything boots from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Pending,
    Available,
    Failed,
    Deregistered,
}

/// What the manifest's signature said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// The import has not looked yet.
    Unknown,
    /// Signed by a certificate of the account.
    Signed,
    /// Not signed at all, and the operator allows that.
    Unsigned,
}

/// The `who` of a launch permission that means everybody.
pub const EVERYBODY: &str = "all";

/// An image as its row is.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: ImageId,
    pub account: String,
    pub name: String,
    /// `bucket/key` of its manifest; `account/name` of one on a snapshot.
    pub location: String,
    pub kind: Kind,
    pub architecture: String,
    pub description: Option<String>,
    pub kernel: Option<String>,
    pub ramdisk: Option<String>,
    pub root_device: String,
    /// Instances of it get IMDSv2 only, unless they are told otherwise (`ImdsSupport=v2.0`).
    pub tokens_required: bool,
    pub state: State,
    /// Why it failed, or what its import waits for.
    pub reason: String,
    /// Percent of the import.
    pub progress: u32,
    pub proof: Proof,
    /// SHA-256 of the plain image; None until it is available.
    pub digest: Option<String>,
    /// Bytes of the plain image.
    pub size: u64,
    pub created: i64,
    /// The disks of its instances, beside a root that is an instance store.
    pub mappings: Vec<Mapping>,
    /// What CreateImage made it of.
    pub source_instance: Option<String>,
}

impl Image {
    /// The root of its instances, when that is a volume.
    pub fn root_volume(&self) -> Option<&VolumeOf> {
        block_device::root(&self.mappings, &self.root_device)
    }

    pub fn root_device_type(&self) -> &'static str {
        if self.root_volume().is_some() { "ebs" } else { "instance-store" }
    }

    /// Whether its instances need a token when nobody says anything.
    pub fn is_for_v2(&self, tx: &mut Tx<'_>) -> Result<bool, StoreError> {
        tx.query_one("SELECT imds_v2 FROM image WHERE id = ?1", params![self.id.as_str()], |row| row.get(0))
    }

    /// The snapshots that must stay for it.
    pub fn snapshots(&self) -> impl Iterator<Item = &str> {
        self.mappings.iter().filter_map(|m| Some(m.volume()?.snapshot.as_ref()?.id.as_str()))
    }

    /// The plain bytes, once they are there. A bundle holds a raw disk, whatever it looks like: it is never probed.
    pub fn blob(&self) -> Option<Blob> {
        let digest = self.digest.clone()?;
        Some(Blob { digest, size: self.size, format: DiskFormat::Raw })
    }
}

/// Whether it was registered since images are for IMDSv2 when they do not say so. Those of before stay as they are.
pub const IMDS_COLUMN: &str = "ALTER TABLE image ADD COLUMN imds_v2 BIGINT NOT NULL DEFAULT 0;";

const COLUMNS: &str = "i.id, i.account, i.name, i.location, i.kind, i.architecture, i.description, i.kernel, i.ramdisk, \
     i.root_device, i.tokens_required, i.state, i.reason, i.progress, i.proof, i.digest, i.size, i.created, \
     i.mappings, i.source_instance";

fn read(row: &Row<'_>) -> Result<Image, StoreError> {
    let mappings: Option<String> = row.get(18)?;
    let unreadable = |e: serde_json::Error| StoreError::Other { what: "read an image", detail: e.to_string() };
    Ok(Image {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        name: row.get(2)?,
        location: row.get(3)?,
        kind: unword(row.get(4)?)?,
        architecture: row.get(5)?,
        description: row.get(6)?,
        kernel: row.get(7)?,
        ramdisk: row.get(8)?,
        root_device: row.get(9)?,
        tokens_required: row.get(10)?,
        state: unword(row.get(11)?)?,
        reason: row.get(12)?,
        progress: row.get(13)?,
        proof: unword(row.get(14)?)?,
        digest: row.get(15)?,
        size: row.get(16)?,
        created: row.get(17)?,
        mappings: mappings.map(|m| serde_json::from_str(&m)).transpose().map_err(unreadable)?.unwrap_or_default(),
        source_instance: row.get(19)?,
    })
}

/// A registered image keeps its name to itself within its account; `name_key` is what makes it so.
pub fn insert(tx: &mut Tx<'_>, image: &Image) -> Result<(), StoreError> {
    let name_key = format!("{} {}", image.account, image.name);
    let mappings = serde_json::to_string(&image.mappings).unwrap_or_default();
    tx.execute(
        "INSERT INTO image (id, account, name, name_key, location, kind, architecture, description, kernel, ramdisk, root_device,
             tokens_required, state, reason, progress, proof, digest, size, created,
             mappings, source_instance, imds_v2)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, 1)",
        params![
            image.id.as_str(),
            image.account,
            image.name,
            name_key,
            image.location,
            word(image.kind),
            image.architecture,
            image.description,
            image.kernel,
            image.ramdisk,
            image.root_device,
            image.tokens_required,
            word(image.state),
            image.reason,
            image.progress,
            word(image.proof),
            image.digest,
            image.size,
            image.created,
            mappings,
            image.source_instance,
        ],
    )?;
    for snapshot in image.snapshots() {
        tx.execute(
            "INSERT INTO image_snapshot (image, snapshot) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![image.id.as_str(), snapshot],
        )?;
    }
    Ok(())
}

/// An image that is registered needs this snapshot.
pub fn on_snapshot(tx: &mut Tx<'_>, snapshot: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT image FROM image_snapshot WHERE snapshot = ?1 ORDER BY image LIMIT 1";
    Ok(tx.query(sql, params![snapshot], |row| row.get(0))?.into_iter().next())
}

/// Its snapshots are complete.
pub fn set_made(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    let sql = "UPDATE image SET state = 'available', reason = '', progress = 100 WHERE id = ?1 AND state = 'pending'";
    tx.execute(sql, params![id]).map(|_| ())
}

fn drop_snapshots(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM image_snapshot WHERE image = ?1", params![id]).map(|_| ())
}

/// The images an account may see: its own, and those it or everybody may launch.
pub fn visible_to(tx: &mut Tx<'_>, account: &str) -> Result<Vec<Image>, StoreError> {
    tx.query(
        &format!(
            "SELECT {COLUMNS} FROM image i WHERE i.state <> 'deregistered' AND (i.account = ?1 OR EXISTS
                 (SELECT 1 FROM image_launch_permission p WHERE p.image = i.id AND p.who IN (?1, '{EVERYBODY}')))
             ORDER BY i.id"
        ),
        params![account],
        read,
    )
}

/// An image this account may see.
pub fn get(tx: &mut Tx<'_>, account: &str, id: &str) -> Result<Option<Image>, StoreError> {
    tx.query_opt(
        &format!(
            "SELECT {COLUMNS} FROM image i WHERE i.id = ?2 AND i.state <> 'deregistered' AND (i.account = ?1 OR EXISTS
                 (SELECT 1 FROM image_launch_permission p WHERE p.image = i.id AND p.who IN (?1, '{EVERYBODY}')))"
        ),
        params![account, id],
        read,
    )
}

/// An image whosever it is and in whatever state: for what the cloud does by itself.
pub fn any(tx: &mut Tx<'_>, id: &str) -> Result<Option<Image>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM image i WHERE i.id = ?1"), params![id], read)
}

/// Every image in this state.
pub fn in_state(tx: &mut Tx<'_>, state: State) -> Result<Vec<Image>, StoreError> {
    tx.query(
        &format!("SELECT {COLUMNS} FROM image i WHERE i.state = ?1 ORDER BY i.created, i.id"),
        params![word(state)],
        read,
    )
}

/// Every image that an instance may have been made of, by id: what lists of instances are rendered with.
pub fn launchable(tx: &mut Tx<'_>) -> Result<BTreeMap<String, Image>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM image i WHERE i.state IN ('available', 'deregistered')");
    let images = tx.query(&sql, params![], read)?;
    Ok(images.into_iter().map(|image| (image.id.to_string(), image)).collect())
}

pub fn set_progress(tx: &mut Tx<'_>, id: &str, progress: u32, reason: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE image SET progress = ?2, reason = ?3 WHERE id = ?1 AND state = 'pending'",
        params![id, progress, reason],
    )
    .map(|_| ())
}

/// The import is through. One that was deregistered meanwhile only learns its digest, so that its bytes can go.
pub fn set_available(tx: &mut Tx<'_>, id: &str, proof: Proof, digest: &str, size: u64) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE image SET state = CASE WHEN state = 'pending' THEN 'available' ELSE state END, reason = '', progress = 100,
             proof = ?2, digest = ?3, size = ?4
         WHERE id = ?1",
        params![id, word(proof), digest, size],
    )
    .map(|_| ())
}

pub fn set_tokens_required(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE image SET tokens_required = 1 WHERE id = ?1", params![id]).map(|_| ())
}

pub fn set_failed(tx: &mut Tx<'_>, id: &str, reason: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE image SET state = 'failed', reason = ?2 WHERE id = ?1 AND state = 'pending'",
        params![id, reason],
    )?;
    drop_snapshots(tx, id)
}

/// Nobody sees it any more, and its name is free.
pub fn set_deregistered(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE image SET state = 'deregistered', name_key = NULL WHERE id = ?1", params![id])?;
    drop_snapshots(tx, id)?;
    tx.execute("DELETE FROM image_launch_permission WHERE image = ?1", params![id]).map(|_| ())
}

pub fn set_description(tx: &mut Tx<'_>, id: &str, description: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE image SET description = ?2 WHERE id = ?1", params![id, description]).map(|_| ())
}

/// Whether another image, or a block of a snapshot, has the same plain bytes.
pub fn shares_bytes(tx: &mut Tx<'_>, image: &Image) -> Result<bool, StoreError> {
    let Some(digest) = &image.digest else { return Ok(false) };
    let others = tx.query(
        "SELECT 1 FROM image WHERE digest = ?1 AND id <> ?2 LIMIT 1",
        params![digest, image.id.as_str()],
        |row| row.get::<i64>(0),
    )?;
    Ok(!others.is_empty() || crate::ec2::snapshot::blob_is_used(tx, digest)?)
}

/// Whether an image has these bytes.
pub fn has_bytes(tx: &mut Tx<'_>, digest: &str) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM image WHERE digest = ?1 LIMIT 1";
    Ok(!tx.query(sql, params![digest], |row| row.get::<i64>(0))?.is_empty())
}

pub fn remove(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM image WHERE id = ?1 AND state = 'deregistered'", params![id]).map(|_| ())
}

/// Who may launch it, besides its owner.
pub fn permissions(tx: &mut Tx<'_>, id: &str) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT who FROM image_launch_permission WHERE image = ?1 ORDER BY who", params![id], |row| row.get(0))
}

/// (image, who) of every permission that concerns the images this account sees.
pub fn permissions_seen_by(tx: &mut Tx<'_>, account: &str) -> Result<Vec<(String, String)>, StoreError> {
    tx.query(
        &format!(
            "SELECT p.image, p.who FROM image_launch_permission p JOIN image i ON i.id = p.image
             WHERE i.account = ?1 OR p.who IN (?1, '{EVERYBODY}')"
        ),
        params![account],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

pub fn permit(tx: &mut Tx<'_>, id: &str, who: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO image_launch_permission (image, who) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![id, who],
    )
    .map(|_| ())
}

pub fn forbid(tx: &mut Tx<'_>, id: &str, who: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM image_launch_permission WHERE image = ?1 AND who = ?2", params![id, who]).map(|_| ())
}

pub fn forbid_all(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM image_launch_permission WHERE image = ?1", params![id]).map(|_| ())
}
