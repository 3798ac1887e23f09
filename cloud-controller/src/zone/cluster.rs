//! A zone's instances: the list that goes down to its cluster-controller, and the reports that come up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mallee_service::{IntentSender, PassReport, Reconciler};
use mallee_store::Error as StoreError;
use mallee_tiers::{Generation, Instance, InstanceReport, Observation, Observe, Seen, TierError};
use tokio::sync::Mutex;

use super::{
    Trouble, event,
    generation::{self, List},
    orphan,
};
use crate::{Cloud, Refusal, ec2::instance};

/// Reports of one transaction: a restarted reporter sends them all at once.
const BATCH: usize = 500;

/// Sends the zone its whole list of instances.
pub struct Sender {
    pub cloud: Arc<Cloud>,
    pub zone: String,
    pub intent: IntentSender,
    /// The bodies as last rendered: only what changed since is rendered again. Losing it costs time, nothing else.
    pub rendered: Mutex<BTreeMap<String, Instance>>,
    pub trouble: Trouble,
}

struct Read {
    generation: Generation,
    listed: Vec<(String, Generation)>,
    fresh: Vec<(String, instance::Body)>,
}

impl Sender {
    /// One consistent view: the list's generation, who is in it, and the bodies that are not rendered yet.
    async fn read(&self, held: BTreeMap<String, Generation>) -> Result<Read, Refusal> {
        let (zone, cloud) = (self.zone.clone(), self.cloud.clone());
        self.cloud
            .store
            .read("read a zone's instances", move |tx| {
                let generation = generation::current(tx, &zone, List::Instances)?;
                let listed = instance::listed_in(tx, &zone)?;
                let changed: BTreeSet<String> =
                    listed.iter().filter(|(id, g)| held.get(id) != Some(g)).map(|(id, _)| id.clone()).collect();
                let fresh =
                    if changed.is_empty() { Vec::new() } else { instance::render(tx, &cloud, &zone, &changed)? };
                Ok(Read { generation, listed, fresh })
            })
            .await
    }
}

#[async_trait::async_trait]
impl Reconciler for Sender {
    fn name(&self) -> &'static str {
        "instances of a zone"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let mut rendered = self.rendered.lock().await;
        let held = rendered.iter().map(|(id, body)| (id.clone(), body.generation)).collect();
        let read = match self.read(held).await {
            Ok(read) => read,
            Err(e) => {
                report.error(e.cause.unwrap_or(e.answer.message));
                return report;
            }
        };
        report.changed = read.fresh.len() as u64;
        for (id, body) in read.fresh {
            match body {
                Ok(body) => {
                    rendered.insert(id, body);
                }
                Err(missing) => report.error(format!("{id}: {missing}")),
            }
        }
        let listed: BTreeSet<&str> = read.listed.iter().map(|(id, _)| id.as_str()).collect();
        rendered.retain(|id, _| listed.contains(id.as_str()));
        let rows: Vec<Instance> = rendered.values().cloned().collect();
        let delivered = match self.cloud.tiers.cluster(&self.cloud.store, &self.zone).await {
            Ok(client) => {
                let client = &client;
                let call = |intent| async move { client.intend(&intent).await };
                self.intent.deliver(self.cloud.store.incarnation(), read.generation, &rows, call).await
            }
            Err(e) => Err(e),
        };
        self.trouble.show(&self.cloud.faults, "cluster-controller", &self.zone, delivered, &mut report);
        report
    }
}

/// Takes the zone's reports until the runtime ends.
pub async fn observe(cloud: Arc<Cloud>, zone: String) {
    let (ask, take) = (|since| ask(&cloud, &zone, since), |observation| take(&cloud, &zone, observation));
    super::follow(&zone, "cluster-controller", ask, take).await
}

async fn ask(cloud: &Cloud, zone: &str, since: Option<Seen>) -> Result<Observation<InstanceReport>, TierError> {
    let client = cloud.tiers.cluster(&cloud.store, zone).await?;
    client.observe(&Observe { since, wait_ms: super::HANG_MS }).await
}

async fn take(cloud: &Cloud, zone: &str, observation: Observation<InstanceReport>) -> Result<(), String> {
    let present: Arc<BTreeSet<String>> = Arc::new(observation.present.into_iter().collect());
    let mut batches: Vec<Vec<InstanceReport>> = observation.changed.chunks(BATCH).map(<[_]>::to_vec).collect();
    if batches.is_empty() {
        batches.push(Vec::new());
    }
    for batch in batches {
        let (zone, present, now) = (zone.to_owned(), present.clone(), cloud.now());
        let follow = cloud
            .store
            .write("take reports of instances", move |tx| {
                let mut all = instance::Consequences::default();
                for report in &batch {
                    let one = instance::take_report(tx, &zone, report, now)?;
                    if one.orphan {
                        orphan::note(tx, &zone, "instances", &report.id, now)?;
                    }
                    all.instances |= one.instances;
                    all.volumes |= one.volumes;
                    all.network |= one.network;
                    all.images |= one.images;
                }
                orphan::retain(tx, &zone, "instances", &present)?;
                Ok::<_, Refusal>(all)
            })
            .await
            .map_err(|e| e.cause.unwrap_or(e.answer.message))?;
        for (woken, poke) in [
            (follow.instances, &cloud.pokes.instances),
            (follow.volumes, &cloud.pokes.volumes),
            (follow.network, &cloud.pokes.network),
            (follow.images, &cloud.pokes.creations),
        ] {
            if woken {
                poke.poke();
            }
        }
    }
    Ok(())
}

/// Everything of instances that ended an hour ago goes, some at a time.
pub struct Sweep {
    pub cloud: Arc<Cloud>,
}

/// How long a terminated instance is shown.
const SHOWN_MS: i64 = 3_600_000;
/// How long it is told what happened to a thing that goes on.
const TOLD_MS: i64 = 30 * 24 * 3_600_000;
/// A full pass: there may be more.
const MANY: u64 = 100;

#[async_trait::async_trait]
impl Reconciler for Sweep {
    fn name(&self) -> &'static str {
        "sweep"
    }

    async fn pass(&self) -> PassReport {
        let now = self.cloud.now();
        let swept = self
            .cloud
            .store
            .write("sweep what ended", move |tx| {
                let ended = instance::ended_before(tx, now - SHOWN_MS)?;
                for id in &ended {
                    instance::forget(tx, id)?;
                }
                let tokens = crate::ec2::client_token::sweep(tx, now - crate::ec2::client_token::KEPT_MS)?;
                let events = event::sweep(tx, now - TOLD_MS)?;
                Ok::<_, StoreError>(ended.len() as u64 + tokens + events)
            })
            .await;
        match swept {
            Ok(n) => PassReport { again: (n >= MANY).then_some(Duration::from_millis(100)), ..PassReport::changed(n) },
            Err(e) => {
                let mut report = PassReport::default();
                report.error(e);
                report
            }
        }
    }
}
