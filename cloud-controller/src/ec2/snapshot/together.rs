//! Snapshots of several volumes of an instance as they are at one instant: for CreateImage and CreateSnapshots.
//!
//! ```text
//! holding ── the node says that the guest stands still ──► freezing ── every snapshot is fixed ──► confirming
//!    the guest is off, or its processors stand still           │                                      │ still held, says
//!                                                              │                                      ▼ the node
//!            an instance that is off, or one volume: at once ──┘────────────────────────────────► uploading ──► (no row)
//! ```
//! Snapshots of several volumes are of one instant because nothing is written while the processors stand still. A node that
//! waits too long lets its guest go on (see node-controller's plan), so what was fixed counts only when it says afterwards that
//! the guest stood still all the while. Each step is a transaction that looks at rows only; one that is not through by its
//! time fails, says why, and leaves no snapshot behind.

use std::{sync::Arc, time::Duration};

use mallee_aws::id::{InstanceId, SnapshotId, VolumeId};
use mallee_service::{Driven, PassReport, Reconciler, drive as drive_one};
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::{
    Desired, Generation, HoldKind, Observed, SnapshotDesired, SnapshotObserved, VolumeDesired, VolumeObserved,
};
use serde::{Deserialize, Serialize};

use super::create::begin;
use crate::{
    Cloud, Outcome, Refusal,
    ec2::{
        Id, image,
        instance::{self, Hold, Instance, Options, unword, word},
        tag::Tag,
        volume,
    },
    zone::event::{self, Kind},
};

pub const TABLES: &str = "
CREATE TABLE snapshots_together (
    of_what TEXT PRIMARY KEY,
    instance TEXT NOT NULL,
    step TEXT NOT NULL,
    since BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    counter BIGINT NOT NULL,
    details TEXT NOT NULL
);
";

/// How long a guest may take to stand still, and its volumes to be fixed.
const PATIENCE_MS: i64 = 10 * 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    /// The guest is to stand still.
    Holding,
    /// Snapshots are asked for.
    Freezing,
    /// They are fixed; the node is to say that the guest stood still until now.
    Confirming,
    /// The guest is let go; blocks are on their way.
    Uploading,
}

/// A snapshot that is to be taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    pub volume: VolumeId,
    pub snapshot: SnapshotId,
    /// Key and value.
    tags: Vec<(String, String)>,
}

impl Part {
    pub fn new(volume: VolumeId, snapshot: SnapshotId, tags: &[Tag]) -> Self {
        Self { volume, snapshot, tags: tags.iter().map(|t| (t.key.clone(), t.value.clone())).collect() }
    }

    pub fn tags(&self) -> Vec<Tag> {
        self.tags.iter().map(|(key, value)| Tag { key: key.clone(), value: value.clone() }).collect()
    }
}

/// What is fixed when they are asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Details {
    /// None: nothing writes to the volumes, or there is only one.
    pub hold: Option<HoldKind>,
    pub parts: Vec<Part>,
    pub description: String,
}

#[derive(Debug, Clone)]
struct Together {
    /// The image that is made of them, or the first of them.
    of: String,
    instance: InstanceId,
    step: Step,
    since: i64,
    /// The instance's wish whose report is waited for.
    wish: Generation,
    details: Details,
}

/// Asks for snapshots of these volumes of `instance`; `of` is the image they are for, or the first of them.
pub fn ask(tx: &mut Tx<'_>, of: &str, instance: &Instance, details: Details, now: i64) -> Outcome<()> {
    if instance.options.hold.as_ref().is_some_and(|h| !h.over) {
        let message = format!("Snapshots of instance '{}' are being taken just now", instance.id);
        return Err(Refusal::new("IncorrectState", message));
    }
    let together = Together {
        of: of.to_owned(),
        instance: instance.id.clone(),
        step: Step::Holding,
        since: now,
        wish: instance.generation,
        details,
    };
    insert(tx, &together)?;
    match together.details.hold {
        Some(kind) => begin_hold(tx, &together, instance, kind),
        None => begin_snapshots(tx, &together, now),
    }
}

/// Whether all of them are fixed. None: they were given up.
pub fn are_fixed(tx: &mut Tx<'_>, of: &str) -> Result<Option<bool>, StoreError> {
    if let Some(together) = all(tx)?.iter().find(|c| c.of == of) {
        return Ok(Some(together.step == Step::Uploading));
    }
    Ok(super::row::any(tx, of)?.filter(|s| s.desired == SnapshotDesired::Present).map(|_| true))
}

fn read(row: &Row<'_>) -> Result<Together, StoreError> {
    let details: String = row.get(6)?;
    let unreadable =
        |e: serde_json::Error| StoreError::Other { what: "read snapshots together", detail: e.to_string() };
    Ok(Together {
        of: row.get(0)?,
        instance: row.get::<Id<_>>(1)?.0,
        step: unword(row.get(2)?)?,
        since: row.get(3)?,
        wish: Generation { epoch: row.get(4)?, counter: row.get(5)? },
        details: serde_json::from_str(&details).map_err(unreadable)?,
    })
}

const COLUMNS: &str = "of_what, instance, step, since, epoch, counter, details";

fn insert(tx: &mut Tx<'_>, c: &Together) -> Outcome<()> {
    let details = serde_json::to_string(&c.details).map_err(|e| Refusal::internal(e.to_string()))?;
    tx.execute(
        &format!("INSERT INTO snapshots_together ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
        params![c.of, c.instance.as_str(), word(c.step), c.since, c.wish.epoch, c.wish.counter, details],
    )?;
    Ok(())
}

fn all(tx: &mut Tx<'_>) -> Result<Vec<Together>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM snapshots_together ORDER BY of_what"), params![], read)
}

fn set_step(tx: &mut Tx<'_>, c: &Together, step: Step, wish: Generation) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE snapshots_together SET step = ?2, epoch = ?3, counter = ?4 WHERE of_what = ?1",
        params![c.of, word(step), wish.epoch, wish.counter],
    )
    .map(|_| ())
}

fn remove(tx: &mut Tx<'_>, c: &Together) -> Result<(), StoreError> {
    tx.execute("DELETE FROM snapshots_together WHERE of_what = ?1", params![c.of]).map(|_| ())
}

fn generation_of(tx: &mut Tx<'_>, c: &Together) -> Outcome<Generation> {
    Ok(instance::any(tx, c.instance.as_str())?.map(|i| i.generation).unwrap_or_default())
}

fn begin_hold(tx: &mut Tx<'_>, c: &Together, instance: &Instance, kind: HoldKind) -> Outcome<()> {
    let hold = Some(Hold { id: c.of.clone(), kind, over: false, confirmed: false });
    instance::set_options(tx, c.instance.as_str(), &Options { hold, ..instance.options.clone() })?;
    instance::touch(tx, c.instance.as_str())?;
    let wish = generation_of(tx, c)?;
    Ok(set_step(tx, c, Step::Holding, wish)?)
}

/// The guest may go on.
fn end_hold(tx: &mut Tx<'_>, c: &Together) -> Outcome<()> {
    let Some(instance) = instance::any(tx, c.instance.as_str())? else { return Ok(()) };
    let Some(hold) = instance.options.hold.clone().filter(|h| h.id == c.of && !h.over) else { return Ok(()) };
    // One that is not wanted running will not be seen running.
    let hold = (instance.desired == Desired::Running).then_some(Hold { over: true, ..hold });
    instance::set_options(tx, c.instance.as_str(), &Options { hold, ..instance.options })?;
    Ok(instance::touch(tx, c.instance.as_str())?)
}

fn begin_snapshots(tx: &mut Tx<'_>, c: &Together, now: i64) -> Outcome<()> {
    for part in &c.details.parts {
        let found = volume::any(tx, part.volume.as_str())?.ok_or_else(|| volume::not_found(part.volume.as_str()))?;
        begin(tx, &found, (part.snapshot.clone(), now), &c.details.description, &part.tags())?;
    }
    Ok(set_step(tx, c, Step::Freezing, c.wish)?)
}

fn fail(tx: &mut Tx<'_>, c: &Together, why: &str, now: i64) -> Outcome<()> {
    image::not_made(tx, &c.of, why)?;
    event::note(tx, &c.of, now, Kind::Decided, &format!("failed: {why}"))?;
    for part in &c.details.parts {
        super::withdraw(tx, part.snapshot.as_str())?;
    }
    end_hold(tx, c)?;
    Ok(remove(tx, c)?)
}

/// Nobody waits for them any more: the guest may go on, and snapshots that were begun stay.
pub fn give_up(tx: &mut Tx<'_>, of: &str) -> Outcome<()> {
    for together in all(tx)?.iter().filter(|c| c.of == of) {
        end_hold(tx, together)?;
        remove(tx, together)?;
    }
    Ok(())
}

/// Takes one of them a step on, if it can go on; whether it did.
fn advance(tx: &mut Tx<'_>, c: &Together, now: i64) -> Outcome<bool> {
    let instance = instance::any(tx, c.instance.as_str())?;
    if c.step != Step::Uploading && now - c.since > PATIENCE_MS {
        let why = match (&instance, c.step) {
            (Some(i), Step::Holding) if !i.reason.is_empty() => format!("the guest does not stand still: {}", i.reason),
            (_, Step::Holding) => "the guest does not stand still".into(),
            _ => "its volumes could not be fixed in time".into(),
        };
        fail(tx, c, &why, now)?;
        return Ok(true);
    }
    match c.step {
        Step::Holding => match instance.as_ref().map(|i| stands_still(i, c)) {
            Some(Some(true)) => begin_or_fail(tx, c, now),
            Some(Some(false)) => Ok(false),
            Some(None) | None => fail(tx, c, "the instance was terminated meanwhile", now).map(|()| true),
        },
        Step::Freezing => match frozen(tx, c)? {
            Err(why) => fail(tx, c, &why, now).map(|()| true),
            Ok(false) => Ok(false),
            Ok(true) if c.details.hold.is_none() => {
                set_step(tx, c, Step::Uploading, c.wish)?;
                Ok(true)
            }
            Ok(true) => {
                // A report of this wish is one that was made after everything was fixed.
                instance::touch(tx, c.instance.as_str())?;
                let wish = generation_of(tx, c)?;
                set_step(tx, c, Step::Confirming, wish)?;
                Ok(true)
            }
        },
        Step::Confirming => {
            let Some(i) = instance else { return fail(tx, c, "the instance is gone", now).map(|()| true) };
            if i.desired == Desired::Running && i.observed_generation < c.wish {
                return Ok(false);
            }
            if stands_still(&i, c) != Some(true) {
                fail(tx, c, "the guest went on before all its volumes were fixed", now)?;
                return Ok(true);
            }
            end_hold(tx, c)?;
            set_step(tx, c, Step::Uploading, c.wish)?;
            Ok(true)
        }
        Step::Uploading => match uploaded(tx, c.details.parts.iter().map(|part| part.snapshot.as_str()))? {
            Err(why) => fail(tx, c, &why, now).map(|()| true),
            Ok(percent) if percent < 100 => {
                image::set_making(tx, &c.of, percent)?;
                Ok(false)
            }
            Ok(_) => {
                image::made(tx, &c.of, now)?;
                remove(tx, c)?;
                Ok(true)
            }
        },
    }
}

fn begin_or_fail(tx: &mut Tx<'_>, c: &Together, now: i64) -> Outcome<bool> {
    for Part { volume, .. } in &c.details.parts {
        let there =
            |v: volume::Volume| v.desired == VolumeDesired::Present && v.observed == Some(VolumeObserved::Ready);
        if !volume::any(tx, volume.as_str())?.is_some_and(there) {
            return fail(tx, c, &format!("volume {volume} is not there any more"), now).map(|()| true);
        }
    }
    begin_snapshots(tx, c, now)?;
    Ok(true)
}

/// Whether nothing is written: the node said so of the wish that is waited for. None: it never will.
fn stands_still(i: &Instance, c: &Together) -> Option<bool> {
    match i.desired {
        Desired::Terminated => None,
        // Somebody stopped it meanwhile, which is as good.
        Desired::Stopped => Some(i.observed == Some(Observed::Stopped) && i.observed_generation >= c.wish),
        _ => {
            let held = i.options.hold.as_ref().is_some_and(|h| h.id == c.of && !h.over && h.confirmed);
            Some(held && i.observed_generation >= c.wish)
        }
    }
}

/// Whether every snapshot is fixed. The error says which cannot be.
fn frozen(tx: &mut Tx<'_>, c: &Together) -> Outcome<Result<bool, String>> {
    let mut all = true;
    for Part { snapshot: id, .. } in &c.details.parts {
        match super::row::any(tx, id.as_str())? {
            Some(s) if s.accepted => {}
            Some(s) => match s.observed {
                Some(SnapshotObserved::Frozen | SnapshotObserved::Uploaded) => {}
                Some(SnapshotObserved::Failed | SnapshotObserved::Gone) => {
                    return Ok(Err(format!("snapshot {id}: {}", s.reason)));
                }
                _ => all = false,
            },
            None => return Ok(Err(format!("snapshot {id} was deleted"))),
        }
    }
    Ok(Ok(all))
}

/// Percent of these snapshots. The error says which is not to be had.
pub fn uploaded<'s>(
    tx: &mut Tx<'_>,
    snapshots: impl Iterator<Item = &'s str>,
) -> Result<Result<u32, String>, StoreError> {
    let (mut percent, mut count, mut complete) = (0, 0, true);
    for id in snapshots {
        count += 1;
        match super::row::any(tx, id)?.filter(|s| s.desired == SnapshotDesired::Present) {
            Some(s) if s.accepted => percent += 100,
            Some(s) if matches!(s.observed, Some(SnapshotObserved::Failed | SnapshotObserved::Gone)) => {
                return Ok(Err(format!("snapshot {id}: {}", s.reason)));
            }
            Some(s) => {
                complete = false;
                percent += s.percent.min(99);
            }
            None => return Ok(Err(format!("snapshot {id} was deleted"))),
        }
    }
    Ok(Ok(if complete { 100 } else { (percent / count.max(1)).min(99) }))
}

/// Starts their reconciler.
pub fn drive(cloud: &Arc<Cloud>) -> Driven {
    drive_one(Arc::new(Togethers { cloud: cloud.clone() }), cloud.pokes.creations.clone(), Duration::from_secs(10))
}

pub(crate) struct Togethers {
    pub cloud: Arc<Cloud>,
}

#[async_trait::async_trait]
impl Reconciler for Togethers {
    fn name(&self) -> &'static str {
        "snapshots together"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let (store, now) = (&self.cloud.store, self.cloud.now());
        let togethers = match store.read("read the snapshots to take together", all).await {
            Ok(togethers) => togethers,
            Err(e) => {
                report.error(e);
                return report;
            }
        };
        for together in togethers {
            let of = together.of.clone();
            let went_on = store.write("take snapshots together", move |tx| {
                // As it is now: it may have been given up since.
                match all(tx)?.iter().find(|c| c.of == together.of) {
                    Some(c) => advance(tx, c, now),
                    None => Ok(false),
                }
            });
            match went_on.await {
                Ok(went_on) => report.changed += u64::from(went_on),
                Err(e) => report.error(format!("{of}: {}", e.cause.unwrap_or(e.answer.message))),
            }
        }
        match store.write("settle images of copies", move |tx| image::copy::settle(tx, now)).await {
            Ok(settled) => report.changed += settled,
            Err(e) => report.error(e.cause.unwrap_or(e.answer.message)),
        }
        if report.changed > 0 {
            self.cloud.pokes.instances.poke();
            self.cloud.pokes.snapshots.poke();
            // There may be another step at once.
            report.again = Some(Duration::ZERO);
        }
        report
    }
}
