//! ModifyVolume: more bytes, another type, other figures; and what became of it.
//!
//! Type and figures are rows, and are so at once. Bytes come from the storage-controller, which reports the new size; then
//! the node is told, so that a guest that has the volume sees it, and is held to the new figures.

use std::borrow::Cow;

use mallee_aws::{
    AwsError,
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::VolumeId,
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use super::{create::figures, not_found, row};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, instance,
        listing::{self, Wanted},
        unless_dry_run,
    },
    service::Call,
    zone::event::{self, Kind},
};

actions![
    DescribeVolumesModifications => describe,
    ModifyVolume => modify,
];

pub const TABLES: &str = "
CREATE TABLE volume_modification (
    volume TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    original_size BIGINT NOT NULL,
    original_kind TEXT NOT NULL,
    original_iops BIGINT,
    original_throughput BIGINT,
    target_size BIGINT NOT NULL,
    target_kind TEXT NOT NULL,
    target_iops BIGINT,
    target_throughput BIGINT,
    started BIGINT NOT NULL,
    ended BIGINT
);
";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyVolume {
    dry_run: Option<bool>,
    volume_id: VolumeId,
    size: Option<u64>,
    volume_type: Option<String>,
    iops: Option<u32>,
    throughput: Option<u32>,
    multi_attach_enabled: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Modified {
    volume_modification: Modification,
}

/// The newest modification of a volume.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Modification {
    volume_id: VolumeId,
    modification_state: &'static str,
    progress: u32,
    start_time: String,
    end_time: Option<String>,
    original_size: u64,
    original_volume_type: String,
    original_iops: Option<u32>,
    original_throughput: Option<u32>,
    original_multi_attach_enabled: bool,
    target_size: u64,
    target_volume_type: String,
    target_iops: Option<u32>,
    target_throughput: Option<u32>,
    target_multi_attach_enabled: bool,
}

const COLUMNS: &str = "volume, original_size, original_kind, original_iops, original_throughput, target_size, target_kind, \
     target_iops, target_throughput, started, ended";

fn read(row: &Row<'_>) -> Result<Modification, StoreError> {
    let ended: Option<i64> = row.get(10)?;
    Ok(Modification {
        volume_id: row.get::<Id<_>>(0)?.0,
        modification_state: if ended.is_some() { "completed" } else { "modifying" },
        progress: if ended.is_some() { 100 } else { 0 },
        original_size: row.get(1)?,
        original_volume_type: row.get(2)?,
        original_iops: row.get(3)?,
        original_throughput: row.get(4)?,
        original_multi_attach_enabled: false,
        target_size: row.get(5)?,
        target_volume_type: row.get(6)?,
        target_iops: row.get(7)?,
        target_throughput: row.get(8)?,
        target_multi_attach_enabled: false,
        start_time: timestamp(row.get(9)?),
        end_time: ended.map(timestamp),
    })
}

async fn modify(call: &Call, input: ModifyVolume) -> Outcome<Modified> {
    if input.multi_attach_enabled == Some(true) {
        return Err(AwsError::unsupported("MultiAttachEnabled=true is not supported by this cloud").into());
    }
    if input.size.is_none() && input.volume_type.is_none() && input.iops.is_none() && input.throughput.is_none() {
        return Err(AwsError::missing_parameter("Size, VolumeType, Iops or Throughput").into());
    }
    let (account, now) = (call.account().to_owned(), call.now);
    let modification = call
        .cloud
        .store
        .write("modify a volume", move |tx| {
            let id = input.volume_id.as_str();
            let volume = row::get(tx, &account, id)?.ok_or_else(|| not_found(id))?;
            let attachment = row::attachment_of(tx, id)?;
            if !matches!(super::state(&volume, attachment.as_ref()), "available" | "in-use") {
                return Err(Refusal::new(
                    "IncorrectState",
                    format!("Volume '{id}' is neither 'available' nor 'in-use'."),
                ));
            }
            if of(tx, id)?.is_some_and(|m| m.end_time.is_none()) {
                let message = format!("Volume {id} is currently in modifying state; another modification cannot begin");
                return Err(Refusal::new("IncorrectModificationState", message));
            }
            let size = input.size.unwrap_or(volume.size_gib);
            if size < volume.size_gib {
                return Err(AwsError::invalid_parameter_value("New size cannot be smaller than existing size").into());
            }
            let kind = input.volume_type.clone().unwrap_or_else(|| volume.kind.clone());
            let same = kind == volume.kind && kind != "gp2";
            let iops = input.iops.or(volume.iops.filter(|_| same));
            let throughput = input.throughput.or(volume.throughput.filter(|_| same));
            let (iops, throughput) = figures(&kind, size, iops, throughput)?;
            // Figures are so at once; bytes when they are there.
            let ended = (size == volume.size_gib).then_some(now);
            tx.execute("DELETE FROM volume_modification WHERE volume = ?1", params![id])?;
            tx.execute(
                "INSERT INTO volume_modification (volume, account, original_size, original_kind, original_iops,
                     original_throughput, target_size, target_kind, target_iops, target_throughput, started, ended)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    id,
                    volume.account,
                    volume.size_gib,
                    volume.kind,
                    volume.iops,
                    volume.throughput,
                    size,
                    kind,
                    iops,
                    throughput,
                    now,
                    ended,
                ],
            )?;
            row::set_figures(tx, id, size, &kind, (iops, throughput))?;
            if let Some(attachment) = attachment.filter(|_| ended.is_some()) {
                instance::touch(tx, attachment.instance.as_str())?;
            }
            event::note(tx, id, now, Kind::Asked, &format!("{size} GiB of {kind}"))?;
            unless_dry_run(input.dry_run)?;
            of(tx, id)?.ok_or_else(|| Refusal::internal("a modification was not written"))
        })
        .await?;
    call.cloud.pokes.volumes.poke();
    call.cloud.pokes.instances.poke();
    Ok(Modified { volume_modification: modification })
}

fn of(tx: &mut Tx<'_>, volume: &str) -> Result<Option<Modification>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM volume_modification WHERE volume = ?1"), params![volume], read)
}

/// The storage-controller says how large it is. True: the node of the instance that has it is to be told.
pub fn reported(tx: &mut Tx<'_>, volume: &str, size_gib: u64, now: i64) -> Result<bool, StoreError> {
    let sql = "UPDATE volume_modification SET ended = ?3 WHERE volume = ?1 AND ended IS NULL AND target_size <= ?2";
    let ended = tx.execute(sql, params![volume, size_gib, now])? > 0;
    let attachment = row::attachment_of(tx, volume)?.filter(|_| ended);
    match attachment {
        Some(attachment) => instance::touch(tx, attachment.instance.as_str()).map(|()| true),
        None => Ok(false),
    }
}

/// With its volume.
pub fn forget(tx: &mut Tx<'_>, volume: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM volume_modification WHERE volume = ?1", params![volume]).map(|_| ())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVolumesModifications {
    dry_run: Option<bool>,
    #[serde(default)]
    volume_id: Vec<VolumeId>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedModifications {
    volume_modification_set: Vec<Modification>,
    next_token: Option<String>,
}

impl Tagged for Modification {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

fn figure<'r>(value: Option<u32>) -> Vec<Cow<'r, str>> {
    value.map(|n| n.to_string().into()).into_iter().collect()
}

const ATTRIBUTES: &[Attribute<Modification>] = &[
    ("modification-state", |m| vec![m.modification_state.into()]),
    ("original-iops", |m| figure(m.original_iops)),
    ("original-size", |m| vec![m.original_size.to_string().into()]),
    ("original-volume-type", |m| vec![(&m.original_volume_type).into()]),
    ("originalMultiAttachEnabled", |_| vec!["false".into()]),
    ("start-time", |m| vec![(&m.start_time).into()]),
    ("target-iops", |m| figure(m.target_iops)),
    ("target-size", |m| vec![m.target_size.to_string().into()]),
    ("target-volume-type", |m| vec![(&m.target_volume_type).into()]),
    ("targetMultiAttachEnabled", |_| vec!["false".into()]),
    ("volume-id", |m| vec![m.volume_id.as_str().into()]),
];

async fn describe(call: &Call, input: DescribeVolumesModifications) -> Outcome<DescribedModifications> {
    let account = call.account().to_owned();
    let sql = format!("SELECT {COLUMNS} FROM volume_modification WHERE account = ?1 ORDER BY volume");
    let named = input.volume_id.clone();
    let read_all = call.cloud.store.read("describe modifications", move |tx| {
        for id in &named {
            row::get(tx, &account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))?;
        }
        Ok::<_, Refusal>(tx.query(&sql, params![account], read)?)
    });
    let infos: Vec<Modification> = read_all.await?;
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.volume_id.iter().map(VolumeId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let missing = |id: &str| {
        Refusal::new("InvalidVolumeModification.NotFound", format!("Modification for volume '{id}' does not exist."))
    };
    let (volume_modification_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |m| m.volume_id.as_str(), missing, infos)?;
    Ok(DescribedModifications { volume_modification_set, next_token })
}
