//! Snapshots of a zone's volumes: the list that goes down to its storage-controller, and the reports that come up.

use std::{collections::BTreeSet, sync::Arc};

use mallee_service::{IntentSender, PassReport, Reconciler};
use mallee_store::Error as StoreError;
use mallee_tiers::{Observation, Observe, Seen, Snapshot, SnapshotReport, TierError};

use super::{
    Trouble,
    generation::{self, List},
    orphan,
};
use crate::{
    Cloud,
    ec2::snapshot::{self, Follows},
};

/// Sends the zone its whole list of snapshots.
pub struct Sender {
    pub cloud: Arc<Cloud>,
    pub zone: String,
    pub intent: IntentSender,
    pub trouble: Trouble,
}

#[async_trait::async_trait]
impl Reconciler for Sender {
    fn name(&self) -> &'static str {
        "snapshots of a zone"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let zone = self.zone.clone();
        let read = self
            .cloud
            .store
            .read("read a zone's snapshots", move |tx| {
                let generation = generation::current(tx, &zone, List::Snapshots)?;
                let rows: Vec<Snapshot> = snapshot::in_zone(tx, &zone)?.iter().map(snapshot::wanted).collect();
                Ok::<_, StoreError>((generation, rows))
            })
            .await;
        let (list, rows) = match read {
            Ok(read) => read,
            Err(e) => {
                report.error(e);
                return report;
            }
        };
        let delivered = match self.cloud.tiers.storage(&self.cloud.store, &self.zone).await {
            Ok(client) => {
                let client = &client;
                let call = |intent| async move { client.intend_snapshots(&intent).await };
                self.intent.deliver(self.cloud.store.incarnation(), list, &rows, call).await
            }
            Err(e) => Err(e),
        };
        self.trouble.show(&self.cloud.faults, "storage-controller (snapshots)", &self.zone, delivered, &mut report);
        report
    }
}

/// Takes the zone's reports until the runtime ends.
pub async fn observe(cloud: Arc<Cloud>, zone: String) {
    let (ask, take) = (|since| ask(&cloud, &zone, since), |observation| take(&cloud, &zone, observation));
    super::follow(&zone, "storage-controller", ask, take).await
}

async fn ask(cloud: &Cloud, zone: &str, since: Option<Seen>) -> Result<Observation<SnapshotReport>, TierError> {
    let client = cloud.tiers.storage(&cloud.store, zone).await?;
    client.observe_snapshots(&Observe { since, wait_ms: super::HANG_MS }).await
}

async fn take(cloud: &Cloud, zone: &str, observation: Observation<SnapshotReport>) -> Result<(), StoreError> {
    let (zone, now) = (zone.to_owned(), cloud.now());
    let present: BTreeSet<String> = observation.present.into_iter().collect();
    let reports = observation.changed;
    let any = !reports.is_empty();
    let keep = cloud
        .store
        .write("take reports of snapshots", move |tx| {
            let mut keep = false;
            for report in &reports {
                match snapshot::take_report(tx, &zone, report, now)? {
                    Follows::Nothing => {}
                    Follows::Orphan => orphan::note(tx, &zone, "snapshots", &report.id, now)?,
                    Follows::Keep => keep = true,
                }
            }
            orphan::retain(tx, &zone, "snapshots", &present)?;
            Ok::<_, StoreError>(keep)
        })
        .await?;
    if keep {
        cloud.pokes.kept.poke();
    }
    if any {
        cloud.pokes.creations.poke();
    }
    Ok(())
}
