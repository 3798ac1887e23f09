//! Snapshots: what a volume held at one instant, brought to walrus while the guest goes on writing.
//!
//! ```text
//! (no row) ──begin──▶ freezing ──layer put on top──▶ frozen ──all blocks in walrus──▶ uploaded ──accepted──▶ layers merged
//!                        └──no such volume──▶ failed    ▲─────────something is missing─────┘
//! any of them ──deleted──▶ gone ──unlisted──▶ (no row)
//! ```
//! - *Freezing* puts an empty layer above the one the guest writes to. Which layer that is, is written down first; the rest
//!   may be done again as often as it is interrupted (see [`crate::backend::chain`]).
//! - *Uploading* sends the blocks that lie in the layers above those of the snapshot before: see `upload`.
//! - *Merging* brings the layers of snapshots that are safe in walrus into the bottom one, so that a volume that rests has
//!   two layers, and the upper one is exactly what changed since its last snapshot: see `merge`.
//! - A *copy* under another key freezes nothing: see `copy`.

mod copy;
mod merge;
mod row;
mod upload;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use mallee_service::{PassReport, Reconciler, intent::Listed};
use mallee_store::Error as StoreError;
use mallee_tiers::{Snapshot, SnapshotDesired, SnapshotObserved, SnapshotReport};
use serde_json::json;

pub(crate) use row::TABLES;
use row::{Row, State};
pub(crate) use upload::DOCUMENT_MAX;

use crate::{
    Storage,
    backend::{Number, Opening, node_name},
    volume::{GIB, Trouble, VolumeId},
};

/// What failed is tried again so soon: the caller of CreateSnapshot waits for the freeze.
const AGAIN: Duration = Duration::from_millis(300);

/// Snapshots that are worked on at the same time.
const AT_ONCE: usize = 8;

/// What is next for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Write down which layer it is.
    Begin,
    Freeze,
    Upload,
    /// Something of it was not in walrus: all of it again.
    UploadAgain,
    /// It is safe in walrus.
    Accept,
    Drop,
    Forget,
}

fn next(row: Option<&Row>, wish: &Listed<Snapshot>) -> Option<Step> {
    let state = row.map(|r| r.state);
    match wish.body.desired {
        SnapshotDesired::Deleted if state != Some(State::Gone) => Some(Step::Drop),
        SnapshotDesired::Deleted if !wish.listed => Some(Step::Forget),
        SnapshotDesired::Deleted | SnapshotDesired::Unknown => None,
        SnapshotDesired::Present if !wish.listed => None,
        SnapshotDesired::Present => match row {
            None => Some(Step::Begin),
            Some(row) => match row.state {
                State::Freezing => Some(Step::Freeze),
                State::Frozen => Some(Step::Upload),
                State::Uploaded if wish.body.attempt > row.attempt => Some(Step::UploadAgain),
                State::Uploaded if wish.body.accepted && !row.accepted => Some(Step::Accept),
                State::Uploaded | State::Failed | State::Gone => None,
            },
        },
    }
}

/// Under which name its upload runs.
fn upload_of(id: &str) -> String {
    format!("upload {id}")
}

pub(crate) struct Snapshots {
    pub storage: Arc<Storage>,
}

#[async_trait::async_trait]
impl Reconciler for Snapshots {
    fn name(&self) -> &'static str {
        "snapshots"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let storage = &self.storage;
        let wishes = match storage.snapshot_book.all().await {
            Ok(wishes) => wishes,
            Err(e) => {
                report.error(e);
                return report;
            }
        };
        // Beside each other: one daemon that does not answer must not keep the others' guests waiting.
        let work: Vec<_> =
            wishes.iter().map(|wish| async { (&wish.body.id, storage.bring_snapshot(wish).await) }).collect();
        let outcomes: Vec<_> = stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
        for (id, outcome) in outcomes {
            match outcome {
                Ok(steps) => report.changed += steps,
                Err(e) => {
                    report.again = Some(AGAIN);
                    if !matches!(e, Trouble::Busy) {
                        report.error(format!("{id}: {e}"));
                    }
                }
            }
        }
        storage.snapshots_ready.send_replace(true);
        let volumes: BTreeSet<VolumeId> = wishes.iter().filter_map(|w| VolumeId::parse(&w.body.volume)).collect();
        for volume in volumes {
            if let Err(e) = storage.begin_merge(&volume).await {
                report.error(format!("{volume}: {e}"));
            }
        }
        report
    }
}

impl Storage {
    /// Takes one snapshot to where it is wanted, and reports it; how many steps that took.
    async fn bring_snapshot(self: &Arc<Self>, wish: &Listed<Snapshot>) -> Result<u64, Trouble> {
        let body = &wish.body;
        let mut steps = 0;
        loop {
            let row = self.snapshot_row(&body.id).await?;
            let outcome = match next(row.as_ref(), wish) {
                None => {
                    self.report_snapshot(wish, row.as_ref());
                    return Ok(steps);
                }
                Some(Step::Upload) => {
                    self.report_snapshot(wish, row.as_ref());
                    if let Some(row) = row {
                        self.begin_upload(body, row).await?;
                    }
                    return Ok(steps);
                }
                Some(Step::Forget) => {
                    self.forget_snapshot(&body.id).await?;
                    return Ok(steps + 1);
                }
                Some(Step::Begin) => self.begin_snapshot(body).await,
                Some(Step::Freeze) => self.freeze(body, row.as_ref()).await,
                Some(Step::UploadAgain) => self.upload_again(body).await,
                Some(Step::Accept) => self.accept_snapshot(&body.id).await,
                Some(Step::Drop) => {
                    self.background.end(&upload_of(&body.id)).await;
                    self.drop_snapshot(body).await
                }
            };
            if let Err(e) = outcome {
                if !matches!(e, Trouble::Busy) {
                    let mut report = report_of(wish, row.as_ref());
                    report.reason = e.to_string();
                    self.snapshot_reports.put(report);
                }
                return Err(e);
            }
            steps += 1;
        }
    }

    /// Fixes which layer of the volume the snapshot is.
    async fn begin_snapshot(&self, wish: &Snapshot) -> Result<(), Trouble> {
        // A store that was lost knows nothing of it, but what is in walrus is in walrus.
        if wish.accepted {
            return self.insert_snapshot(wish, Row { accepted: true, ..Row::new(State::Uploaded) }).await;
        }
        if wish.source.is_some() {
            return self.insert_snapshot(wish, Row::new(State::Frozen)).await;
        }
        let Some(id) = VolumeId::parse(&wish.volume) else {
            return self.insert_snapshot(wish, Row::failed("its volume has no id of a volume")).await;
        };
        let _alone = self.alone(&id)?;
        let (volume, _) = self.rows(id.as_str()).await?;
        match volume.map(|v| v.state) {
            None | Some(crate::volume::State::Creating) => {
                return Err(Trouble::Other(format!("{id} is not ready")));
            }
            Some(crate::volume::State::Ready) => {}
            Some(_) => return self.insert_snapshot(wish, Row::failed("its volume failed or is gone")).await,
        }
        let layer = self.active_layer(&id).await?;
        self.insert_snapshot(wish, Row { layer, ..Row::new(State::Freezing) }).await
    }

    /// The layer that is written to: what the daemon says, if there is an export; else the one it would be opened with.
    pub(crate) async fn active_layer(&self, id: &VolumeId) -> Result<Number, Trouble> {
        let (_, export) = self.rows(id.as_str()).await?;
        if export.is_none() {
            let id = id.clone();
            return self.backend(move |b| b.top(&id)).await;
        }
        let node = self.exports.tell(id).await?.active_node().await?;
        node.strip_prefix("layer-").and_then(|n| n.parse().ok()).ok_or_else(|| {
            Trouble::Other(format!("{id} is served by a daemon of an earlier release; detach and attach it"))
        })
    }

    /// From here on what the guest writes goes to another layer.
    async fn freeze(&self, wish: &Snapshot, row: Option<&Row>) -> Result<(), Trouble> {
        let Some((id, row)) = VolumeId::parse(&wish.volume).zip(row) else { return Ok(()) };
        let _alone = self.alone(&id)?;
        let (volume, export) = self.rows(id.as_str()).await?;
        if volume.as_ref().is_none_or(|v| v.state != crate::volume::State::Ready) {
            return self.fail_snapshot(&wish.id, "its volume went away before it was frozen").await;
        }
        let (frozen, under) = (id.clone(), row.layer);
        let passphrase = self.keys.passphrase(volume.and_then(|v| v.key).as_deref()).await?;
        let above = self.backend(move |b| b.put_layer_above(&frozen, under, passphrase.as_ref())).await?;
        if export.is_some() {
            let mut daemon = self.exports.tell(&id).await?;
            daemon.let_merge_end().await?;
            // Another one: it was put there already, by a freeze that was interrupted or by the daemon's own restart.
            if daemon.active_node().await? == node_name(under) {
                if !daemon.has_node(&node_name(above)).await? {
                    let described = id.clone();
                    let layer = self.backend(move |b| b.layer_blockdev(&described, above)).await?;
                    daemon.execute("blockdev-add", layer).await?;
                }
                let nodes = json!({ "node": node_name(under), "overlay": node_name(above) });
                daemon.execute("blockdev-snapshot", nodes).await?;
            }
        }
        let size = {
            let id = id.clone();
            self.backend(move |b| Ok(b.chain(&id, under, &Opening::default())?.size())).await?
        };
        tracing::info!(snapshot.id = wish.id, volume.id = %id, layer = under, "frozen");
        self.set_frozen(&wish.id, size).await
    }

    fn report_snapshot(&self, wish: &Listed<Snapshot>, row: Option<&Row>) {
        if row.is_none() && !wish.listed {
            return;
        }
        let mut report = report_of(wish, row);
        if report.observed == SnapshotObserved::Frozen {
            // Its upload tells how far it is.
            report.percent = self.snapshot_reports.get(&report.id).map_or(0, |r| r.percent);
            report.reason = self.background.trouble(&upload_of(&report.id)).unwrap_or_default();
        }
        self.snapshot_reports.put(report);
    }

    async fn forget_snapshot(&self, id: &str) -> Result<(), Trouble> {
        self.remove_snapshot_row(id).await?;
        self.snapshot_book.forget(id).await?;
        self.snapshot_reports.forget(id);
        Ok(())
    }
}

fn report_of(wish: &Listed<Snapshot>, row: Option<&Row>) -> SnapshotReport {
    let body = &wish.body;
    let mut report = SnapshotReport {
        id: body.id.clone(),
        generation: body.generation,
        observed: SnapshotObserved::Freezing,
        reason: String::new(),
        percent: 0,
        attempt: 0,
        manifest: None,
        sent: 0,
        size_gib: 0,
    };
    let Some(row) = row else { return report };
    report.observed = match row.state {
        State::Freezing => SnapshotObserved::Freezing,
        State::Frozen => SnapshotObserved::Frozen,
        State::Uploaded => SnapshotObserved::Uploaded,
        State::Failed => SnapshotObserved::Failed,
        State::Gone => SnapshotObserved::Gone,
    };
    report.percent = if row.state == State::Uploaded { 100 } else { 0 };
    report.reason = row.reason.clone();
    report.attempt = row.attempt;
    report.manifest = row.manifest.clone();
    report.sent = row.sent;
    report.size_gib = row.size / GIB;
    report
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// For `why`: how far a snapshot is.
pub(crate) async fn told(storage: &Storage, id: &str) -> Result<Option<(i64, String)>, StoreError> {
    Ok(storage.snapshot_row(id).await?.map(|row| {
        let reason = if row.reason.is_empty() { String::new() } else { format!(": {}", row.reason) };
        (row.changed, format!("{}, layer {}, {} KiB sent{reason}", row.state, row.layer, row.sent >> 10))
    }))
}

#[cfg(test)]
mod tests {
    use mallee_tiers::Generation;

    use super::*;

    #[test]
    fn the_next_step_follows_from_the_row_and_the_wish_alone() {
        use SnapshotDesired::*;
        use State::*;
        type Line = (SnapshotDesired, bool, u32, bool, Option<(State, u32, bool)>, Option<Step>);
        #[rustfmt::skip]
        let table: &[Line] = &[
            // desired, listed, attempt, accepted, row,                       next
            (Present,   true,   0,       false,    None,                      Some(Step::Begin)),
            (Present,   true,   0,       false,    Some((Freezing, 0, false)), Some(Step::Freeze)),
            (Present,   true,   0,       false,    Some((Frozen, 0, false)),   Some(Step::Upload)),
            (Present,   true,   0,       false,    Some((Uploaded, 0, false)), None),
            (Present,   true,   1,       false,    Some((Uploaded, 0, false)), Some(Step::UploadAgain)),
            (Present,   true,   0,       true,     Some((Uploaded, 0, false)), Some(Step::Accept)),
            (Present,   true,   0,       true,     Some((Uploaded, 0, true)),  None),
            (Present,   true,   0,       false,    Some((Failed, 0, false)),   None),
            (Present,   false,  0,       false,    Some((Freezing, 0, false)), None),
            (Present,   false,  0,       false,    None,                      None),
            (Deleted,   true,   0,       false,    None,                      Some(Step::Drop)),
            (Deleted,   true,   0,       false,    Some((Frozen, 0, false)),   Some(Step::Drop)),
            (Deleted,   true,   0,       false,    Some((Gone, 0, false)),     None),
            (Deleted,   false,  0,       false,    Some((Gone, 0, false)),     Some(Step::Forget)),
            (Unknown,   true,   0,       false,    Some((Frozen, 0, false)),   None),
        ];
        for (desired, listed, attempt, accepted, row, expected) in table {
            let (desired, attempt, accepted) = (*desired, *attempt, *accepted);
            let body =
                Snapshot { desired, attempt, accepted, ..Snapshot::new("snap-1", Generation::default(), "vol-1") };
            let row = row.map(|(state, attempt, accepted)| Row { attempt, accepted, ..Row::new(state) });
            let got = next(row.as_ref(), &Listed { body, listed: *listed });
            assert_eq!(got, *expected, "{desired:?}, listed {listed}, {row:?}");
        }
    }
}
