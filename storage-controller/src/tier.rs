//! What the storage-controller answers to the other tiers.

use std::{sync::Arc, time::Duration};

use mallee_tiers::{
    Adopt, Done, Intent, IntentAnswer, Observation, Observe, Peer, Snapshot, SnapshotReport, StatusAsked,
    StorageController, TierError, TierErrorKind, TierStatus, Volume, VolumeReport, WhyAnswer, WhyAsked, WhyLine,
};

use crate::Storage;

/// The storage-controller as the other tiers see it.
pub(crate) struct Front(pub Arc<Storage>);

#[async_trait::async_trait]
impl StorageController for Front {
    async fn intend(&self, _: &Peer, intent: Intent<Volume>) -> Result<IntentAnswer, TierError> {
        let outcome = self.0.book.take(intent).await;
        self.show_list("list", &outcome);
        outcome
    }

    async fn intend_snapshots(&self, _: &Peer, intent: Intent<Snapshot>) -> Result<IntentAnswer, TierError> {
        let outcome = self.0.snapshot_book.take(intent).await;
        self.show_list("list of snapshots", &outcome);
        outcome
    }

    async fn observe_snapshots(&self, _: &Peer, ask: Observe) -> Result<Observation<SnapshotReport>, TierError> {
        let mut ready = self.0.snapshots_ready.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(20), ready.wait_for(|ready| *ready)).await;
        Ok(self.0.snapshot_reports.observe(&ask).await)
    }

    async fn observe(&self, _: &Peer, ask: Observe) -> Result<Observation<VolumeReport>, TierError> {
        // Before the first pass a report would say that volumes are missing.
        let mut ready = self.0.ready.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(20), ready.wait_for(|ready| *ready)).await;
        Ok(self.0.reports.observe(&ask).await)
    }

    async fn why(&self, _: &Peer, ask: WhyAsked) -> Result<WhyAnswer, TierError> {
        let storage = &self.0;
        let failed = |e: mallee_store::Error| TierError::internal(e.to_string());
        let now = storage.clock.now_ms();
        let by = format!("storage of {}", storage.about.peer.zone);
        let line = |kind: &str, at: i64, text: String| WhyLine { by: by.clone(), kind: kind.into(), at, text };
        let mut lines = Vec::new();
        if let Some(wish) = storage.book.get(&ask.id).await.map_err(failed)? {
            let to = wish.body.export_for.as_ref().map(|a| format!(", served to {a}")).unwrap_or_default();
            let orphan = if wish.listed { "" } else { "; the last list does not name it" };
            let generation = wish.body.generation;
            let wanted = format!("{:?}", wish.body.desired).to_lowercase();
            let text = format!(
                "{wanted}, {} GiB{to} (generation {}.{}){orphan}",
                wish.body.size_gib, generation.epoch, generation.counter
            );
            lines.push(line("asked", now, text));
        }
        if let Some(wish) = storage.snapshot_book.get(&ask.id).await.map_err(failed)? {
            let wanted = format!("{:?}", wish.body.desired).to_lowercase();
            lines.push(line("asked", now, format!("{wanted}, a snapshot of {}", wish.body.volume)));
        }
        if let Some((at, text)) = crate::snapshot::told(storage, &ask.id).await.map_err(failed)? {
            lines.push(line("decided", at, text));
        }
        let (row, export) = storage.rows(&ask.id).await.map_err(failed)?;
        if let Some(row) = row {
            let reason = if row.reason.is_empty() { String::new() } else { format!(": {}", row.reason) };
            lines.push(line("decided", row.changed, format!("{:?}{reason}", row.state).to_lowercase()));
        }
        if let Some(export) = export {
            lines.push(line("decided", export.made, format!("exported to {}", export.attachment)));
        }
        for (work, why) in storage.background.troubles(&ask.id) {
            lines.push(line("observed", now, format!("{work} did not work, and is tried again: {why}")));
        }
        if let Some(report) = storage.reports.get(&ask.id) {
            let reason = if report.reason.is_empty() { String::new() } else { format!(": {}", report.reason) };
            let served = if report.export.is_some() { ", served" } else { "" };
            let text = format!("{:?}{served}, {} MiB on the disk{reason}", report.observed, report.allocated >> 20);
            lines.push(line("observed", now, text.to_lowercase()));
        }
        Ok(WhyAnswer { lines })
    }

    async fn status(&self, _: &Peer, _: StatusAsked) -> Result<TierStatus, TierError> {
        Ok(self.0.about.status())
    }

    async fn adopt(&self, _: &Peer, adopt: Adopt) -> Result<Done, TierError> {
        self.0.book.adopt(adopt.sender).await.map_err(|e| TierError::internal(e.to_string()))?;
        self.0.snapshot_book.adopt(adopt.sender).await.map_err(|e| TierError::internal(e.to_string()))?;
        self.0.about.faults.clear("list");
        self.0.about.faults.clear("list of snapshots");
        Ok(Done {})
    }
}

impl Front {
    /// A list that was refused is a fault until one is taken.
    fn show_list(&self, list: &str, outcome: &Result<IntentAnswer, TierError>) {
        let faults = &self.0.about.faults;
        let Err(e) = outcome else { return faults.clear(list) };
        let remedy = match e.kind {
            TierErrorKind::OtherIncarnation => {
                "if the cloud-controller's store is meant to be a new one: `mallee zone adopt ZONE`"
            }
            TierErrorKind::Stale => "the cloud-controller's store was put back to an older state: raise its epoch",
            _ => "see this tier's log",
        };
        faults.raise(list, format!("a {list} of the cloud-controller was refused: {}", e.message), remedy);
    }
}
