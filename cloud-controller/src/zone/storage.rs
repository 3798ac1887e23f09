//! A zone's volumes: the list that goes down to its storage-controller, and the reports that come up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mallee_aws::id::VolumeId;
use mallee_service::{IntentSender, PassReport, Reconciler};
use mallee_store::Error as StoreError;
use mallee_tiers::{Observation, Observe, Seen, TierError, Volume, VolumeReport};

use super::{
    Trouble,
    generation::{self, List},
    orphan,
};
use crate::{
    Cloud, Refusal,
    ec2::{
        instance,
        volume::{self, Attachment},
    },
};

/// Sends the zone its whole list of volumes.
pub struct Sender {
    pub cloud: Arc<Cloud>,
    pub zone: String,
    pub intent: IntentSender,
    pub trouble: Trouble,
}

#[async_trait::async_trait]
impl Reconciler for Sender {
    fn name(&self) -> &'static str {
        "volumes of a zone"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let zone = self.zone.clone();
        let read = self
            .cloud
            .store
            .read("read a zone's volumes", move |tx| {
                let generation = generation::current(tx, &zone, List::Volumes)?;
                let attachments: BTreeMap<VolumeId, Attachment> =
                    volume::attachments_in(tx, &zone)?.into_iter().map(|a| (a.volume.clone(), a)).collect();
                let nodes = instance::nodes_in(tx, &zone)?;
                let body = |v: &volume::Volume| {
                    let attachment = attachments.get(&v.id);
                    let node = attachment.and_then(|a| nodes.get(a.instance.as_str()));
                    volume::wanted(v, attachment, node.map(String::as_str))
                };
                let rows: Vec<Volume> = volume::in_zone(tx, &zone)?.iter().map(body).collect();
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
                let call = |intent| async move { client.intend(&intent).await };
                self.intent.deliver(self.cloud.store.incarnation(), list, &rows, call).await
            }
            Err(e) => Err(e),
        };
        self.trouble.show(&self.cloud.faults, "storage-controller", &self.zone, delivered, &mut report);
        report
    }
}

/// Takes the zone's reports until the runtime ends.
pub async fn observe(cloud: Arc<Cloud>, zone: String) {
    let (ask, take) = (|since| ask(&cloud, &zone, since), |observation| take(&cloud, &zone, observation));
    super::follow(&zone, "storage-controller", ask, take).await
}

async fn ask(cloud: &Cloud, zone: &str, since: Option<Seen>) -> Result<Observation<VolumeReport>, TierError> {
    let client = cloud.tiers.storage(&cloud.store, zone).await?;
    client.observe(&Observe { since, wait_ms: super::HANG_MS }).await
}

async fn take(cloud: &Cloud, zone: &str, observation: Observation<VolumeReport>) -> Result<(), String> {
    let (zone, now) = (zone.to_owned(), cloud.now());
    let present: BTreeSet<String> = observation.present.into_iter().collect();
    let reports = observation.changed;
    let follow = cloud
        .store
        .write("take reports of volumes", move |tx| {
            let mut all = volume::Consequences::default();
            for report in &reports {
                let one = volume::take_report(tx, &zone, report, now)?;
                if one.orphan {
                    orphan::note(tx, &zone, "volumes", &report.id, now)?;
                }
                all.instances |= one.instances;
                all.volumes |= one.volumes;
                all.kept |= one.kept;
            }
            orphan::retain(tx, &zone, "volumes", &present)?;
            Ok::<_, Refusal>(all)
        })
        .await
        .map_err(|e| e.cause.unwrap_or(e.answer.message))?;
    if follow.instances {
        cloud.pokes.instances.poke();
        cloud.pokes.network.poke();
    }
    if follow.volumes {
        cloud.pokes.volumes.poke();
    }
    if follow.kept {
        cloud.pokes.kept.poke();
    }
    Ok(())
}
