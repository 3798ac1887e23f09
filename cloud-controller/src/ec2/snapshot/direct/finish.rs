//! Brings snapshots that were written to their end: times out what nobody goes on with, makes the pages of what is whole, and
//! lets go of the blocks' rows afterwards.
//!
//! Killed in the middle, it begins again from the rows: pages are named by what is in them, so making them twice makes the same.

use std::{sync::Arc, time::Duration};

use mallee_service::{Driven, PassReport, Reconciler, drive as drive_one};
use mallee_store::{Error as StoreError, Tx};
use mallee_tiers::{Manifest, Page, SNAPSHOT_PAGE, SnapshotDesired, SnapshotObserved};

use super::row::{self, Begun, Direct, ENDED, OPEN, SEALED};
use crate::{
    Cloud,
    ec2::snapshot::{
        row as snapshot,
        stored::{Stored, Trouble, digest_of},
    },
    zone::event::{self, Kind},
};

const AGAIN: Duration = Duration::from_secs(2);
/// Blocks that were safe and are gone do not come back by looking.
const ATTEMPTS: u32 = 8;
/// Rows that are let go of in one transaction.
const AT_ONCE: u64 = 512;

/// Starts the reconciler.
pub fn drive(cloud: &Arc<Cloud>) -> Driven {
    drive_one(Arc::new(Finish { cloud: cloud.clone() }), cloud.pokes.direct.clone(), Duration::from_secs(30))
}

pub(super) struct Finish {
    pub cloud: Arc<Cloud>,
}

/// What is next for one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    TimeOut,
    /// Its snapshot was deleted, failed or is complete.
    End,
    Build,
    LetGo,
}

fn next(direct: &Direct, snapshot: Option<&snapshot::Snapshot>, now: i64) -> Option<Step> {
    let snapshot = snapshot.filter(|s| s.desired == SnapshotDesired::Present);
    let is_over = snapshot.is_none_or(|s| s.accepted || s.observed == Some(SnapshotObserved::Failed));
    match direct.state.as_str() {
        ENDED => Some(Step::LetGo),
        _ if is_over => Some(Step::End),
        OPEN if !direct.takes_blocks(now) => Some(Step::TimeOut),
        SEALED if snapshot.is_some_and(|s| s.manifest.is_none()) => Some(Step::Build),
        _ => None,
    }
}

#[async_trait::async_trait]
impl Reconciler for Finish {
    fn name(&self) -> &'static str {
        "snapshots that are written directly"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let (store, now) = (&self.cloud.store, self.cloud.now());
        let read = store.read("read snapshots that are written", |tx| {
            let mut all = Vec::new();
            for direct in row::to_settle(tx)? {
                let snapshot = snapshot::any(tx, &direct.snapshot)?;
                all.push((direct, snapshot));
            }
            Ok::<_, StoreError>(all)
        });
        let all = match read.await {
            Ok(all) => all,
            Err(e) => {
                report.error(e);
                return report;
            }
        };
        for (direct, snapshot) in all {
            let Some(step) = next(&direct, snapshot.as_ref(), now) else { continue };
            match self.take(step, &direct, snapshot.as_ref()).await {
                Ok(()) => report.changed += 1,
                Err(e) => report.error(format!("{}: {e}", direct.snapshot)),
            }
        }
        report.again = match (report.errors.is_empty(), report.changed) {
            (false, _) => Some(AGAIN),
            (true, 0) => None,
            // What has just ended is let go of.
            (true, _) => Some(Duration::ZERO),
        };
        report
    }
}

impl Finish {
    async fn take(&self, step: Step, direct: &Direct, snapshot: Option<&snapshot::Snapshot>) -> Result<(), String> {
        let (store, id, now) = (&self.cloud.store, direct.snapshot.clone(), self.cloud.now());
        let done = match (step, snapshot) {
            (Step::TimeOut, _) => {
                store.write("give a snapshot up", move |tx| time_out(tx, &id, now)).await.map_err(|e| e.to_string())
            }
            (Step::End, _) => {
                store.write("end a snapshot", move |tx| row::set_ended(tx, &id)).await.map_err(|e| e.to_string())
            }
            (Step::LetGo, _) => self.let_go(direct, snapshot.is_none()).await.map_err(|e| e.to_string()),
            (Step::Build, Some(snapshot)) => self.build(direct, snapshot).await,
            (Step::Build, None) => Ok(()),
        };
        self.cloud.pokes.kept.poke();
        done
    }

    async fn let_go(&self, direct: &Direct, is_gone: bool) -> Result<(), StoreError> {
        loop {
            let id = direct.snapshot.clone();
            let some = self.cloud.store.write("let go of blocks", move |tx| row::let_go(tx, &id, AT_ONCE)).await?;
            if some == 0 {
                break;
            }
        }
        if !is_gone {
            // What its completion said is remembered as long as the snapshot is there.
            return Ok(());
        }
        let id = direct.snapshot.clone();
        self.cloud.store.write("forget what was written", move |tx| row::forget(tx, &id)).await
    }

    /// Makes the pages of what was written on those of the parent, and leaves the rest to [`crate::ec2::snapshot::keep`].
    async fn build(&self, direct: &Direct, of: &snapshot::Snapshot) -> Result<(), String> {
        let walrus = Stored::open(&self.cloud).await.map_err(|e| e.to_string())?;
        let outcome = match of.attempt {
            ATTEMPTS.. => Err(Trouble::Wrong("walrus lost some of its blocks".into())),
            _ => self.make_pages(&walrus, direct, of).await,
        };
        let id = direct.snapshot.clone();
        match outcome {
            Ok(manifest) => {
                tracing::info!(snapshot.id = id, blocks = direct.told, manifest, "written through the EBS direct API");
                let written = move |tx: &mut Tx<'_>| snapshot::set_made(tx, &id, &manifest);
                self.cloud.store.write("a snapshot is whole", written).await.map_err(|e| e.to_string())
            }
            Err(Trouble::Wrong(why)) => {
                let failed = move |tx: &mut Tx<'_>| snapshot::set_failed(tx, &id, &why);
                self.cloud.store.write("a snapshot failed", failed).await.map_err(|e| e.to_string())
            }
            Err(e) => Err(e.to_string()),
        }
    }

    async fn make_pages(&self, walrus: &Stored, direct: &Direct, of: &snapshot::Snapshot) -> Result<String, Trouble> {
        let mut manifest = Manifest::new(of.size_gib << 30, of.disk_key.clone());
        if let Some(parent) = direct.parent.clone() {
            let read = self.cloud.store.read("read a parent", move |tx| snapshot::any(tx, &parent)).await?;
            let parent = read.and_then(|parent| parent.manifest);
            let parent = parent.ok_or_else(|| Trouble::Wrong("its parent is gone".into()))?;
            manifest.pages = walrus.manifest(&parent).await?.pages;
        }
        let mut from = 0;
        loop {
            let id = direct.snapshot.clone();
            let read = move |tx: &mut Tx<'_>| row::page_from(tx, &id, from, SNAPSHOT_PAGE);
            let blocks = self.cloud.store.read("read blocks that were written", read).await?;
            let Some((first, _)) = blocks.first() else { break };
            let number = first / SNAPSHOT_PAGE;
            let mut page = match manifest.pages.get(&number) {
                Some(digest) => walrus.page(digest).await?,
                None => Page::default(),
            };
            for (block, digest) in blocks {
                let within = block % SNAPSHOT_PAGE;
                if digest.is_empty() {
                    page.blocks.remove(&within);
                } else {
                    page.blocks.insert(within, digest);
                }
            }
            if page.blocks.is_empty() {
                manifest.pages.remove(&number);
            } else {
                manifest.pages.insert(number, self.put(walrus, &direct.snapshot, &page).await?);
            }
            from = (number + 1) * SNAPSHOT_PAGE;
        }
        self.put(walrus, &direct.snapshot, &manifest).await
    }

    /// A page or a manifest; its digest. Held before it is sent, as blocks are, and until the snapshot has ended: no other row
    /// names it yet.
    async fn put(&self, walrus: &Stored, id: &str, document: &impl serde::Serialize) -> Result<String, Trouble> {
        let bytes = serde_json::to_vec(document).map_err(|e| Trouble::Wrong(e.to_string()))?;
        let (id, digest) = (id.to_owned(), digest_of(&bytes));
        let held = digest.clone();
        let begin = move |tx: &mut Tx<'_>| row::begin_block(tx, &id, 0, &held, "");
        if self.cloud.store.write("begin a page", begin).await? == Begun::BeingTaken {
            return Err(Trouble::Later("the same bytes are being removed from walrus".into()));
        }
        walrus.put(&digest, bytes).await?;
        Ok(digest)
    }
}

fn time_out(tx: &mut Tx<'_>, id: &str, now: i64) -> Result<(), StoreError> {
    // A block may have come since it was looked at.
    if row::find(tx, id)?.is_none_or(|direct| direct.state != OPEN || direct.takes_blocks(now)) {
        return Ok(());
    }
    let why = "it was not completed in the time its StartSnapshot gave";
    snapshot::set_failed(tx, id, why)?;
    row::set_ended(tx, id)?;
    event::note(tx, id, now, Kind::Decided, why)
}

#[cfg(test)]
mod tests {
    use mallee_tiers::Generation;

    use super::*;

    #[test]
    fn the_next_step_follows_from_the_rows_and_the_clock_alone() {
        let direct = |state: &str| Direct { state: state.into(), ..Direct::new("snap-1", None, 1_000, 10_000) };
        let pending = snapshot::Snapshot {
            id: "snap-00000000000000001".parse().unwrap(),
            account: "1".into(),
            zone: String::new(),
            volume: "vol-ffffffff".into(),
            generation: Generation::default(),
            size_gib: 1,
            description: String::new(),
            created: 0,
            desired: SnapshotDesired::Present,
            observed: None,
            reason: String::new(),
            percent: 0,
            attempt: 0,
            accepted: false,
            manifest: None,
            sent: 0,
            disk_key: None,
            source: None,
        };
        let deleted = snapshot::Snapshot { desired: SnapshotDesired::Deleted, ..pending.clone() };
        let failed = snapshot::Snapshot { observed: Some(SnapshotObserved::Failed), ..pending.clone() };
        let made = snapshot::Snapshot { manifest: Some("ab".into()), ..pending.clone() };
        let accepted = snapshot::Snapshot { accepted: true, ..made.clone() };
        #[rustfmt::skip]
        let table = [
            // state,  snapshot,        now,    next
            (OPEN,   Some(&pending),  10_999, None),
            (OPEN,   Some(&pending),  11_000, Some(Step::TimeOut)),
            (OPEN,   Some(&deleted),  10_999, Some(Step::End)),
            (OPEN,   None,            10_999, Some(Step::End)),
            (SEALED, Some(&pending),  99_999, Some(Step::Build)),
            (SEALED, Some(&made),     99_999, None),
            (SEALED, Some(&accepted), 99_999, Some(Step::End)),
            (SEALED, Some(&failed),   99_999, Some(Step::End)),
            (SEALED, Some(&deleted),  99_999, Some(Step::End)),
            (ENDED,  Some(&accepted), 99_999, Some(Step::LetGo)),
            (ENDED,  None,            99_999, Some(Step::LetGo)),
        ];
        for (state, snapshot, now, expected) in table {
            assert_eq!(next(&direct(state), snapshot, now), expected, "{state} {snapshot:?}");
        }
    }
}
