//! The one shape in which intent goes down and reports come up, whatever the thing is.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::binding::tier;

/// Says which of two versions of the same row is newer. The epoch is raised durably at every restore, fail-over or
/// election of the owner's store, the counter at every change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Generation {
    pub epoch: i64,
    pub counter: i64,
}

/// A thing that can be wanted of the tier below.
pub trait Wanted: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    fn id(&self) -> &str;
    fn generation(&self) -> Generation;
    /// SHA-256 over the JSON of the body: two bodies with equal hashes are the same wish.
    fn hash(&self) -> String {
        // A body that cannot be encoded has no hash; it also cannot be sent, and the encoder says why there.
        hex::encode(Sha256::digest(serde_json::to_vec(self).unwrap_or_default()))
    }
}

/// A thing that is reported to the tier above.
pub trait Reported: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + 'static {
    fn id(&self) -> &str;
}

/// One line of the complete list of what is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: String,
    pub generation: Generation,
    pub hash: String,
}

/// The complete list of what a tier asks of the tier below, with the bodies the receiver is thought to lack.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound = "B: Wanted")]
pub struct Intent<B: Wanted> {
    /// Incarnation of the sender's store. A receiver belongs to the first it hears of and refuses any other.
    pub sender: Uuid,
    /// Generation of the list: of its newest row, or of the newest removal. An older list than the one held is refused.
    pub generation: Generation,
    pub entries: Vec<Entry>,
    pub bodies: Vec<B>,
}

/// What became of an [`Intent`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IntentAnswer {
    /// Entries whose body the receiver lacks. While this is not empty, nothing of the list was taken over but the
    /// bodies it brought; send the same list again with these bodies.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// Asks for the reports that are newer than the last answer; hangs until there is one, or `wait_ms` have passed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Observe {
    /// `seen` of the last answer; none asks for everything, at once.
    pub since: Option<Seen>,
    pub wait_ms: u64,
}

/// A point in a reporter's life. Another `reporter` than last time means it was restarted: it then reports everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub reporter: Uuid,
    pub counter: u64,
}

/// Everything the reporter has, by id, and the reports that changed since the caller's last look.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound = "R: Reported")]
pub struct Observation<R: Reported> {
    pub seen: Seen,
    /// Ids of everything that is there, so that what is gone from it can be told from what did not change.
    pub present: Vec<String>,
    pub changed: Vec<R>,
}

/// The reporter's side of [`Observe`]: the newest report of each thing, and a way to wait for a newer one.
///
/// It is rebuilt from the world (never stored): reports say what is, and that can be looked up again.
pub struct Reports<R: Reported> {
    reporter: Uuid,
    inner: std::sync::Mutex<ReportsInner<R>>,
    newer: tokio::sync::watch::Sender<u64>,
}

struct ReportsInner<R> {
    counter: u64,
    /// Counter at which anything was last removed: a caller behind it must get `present` again.
    reports: std::collections::BTreeMap<String, (u64, R)>,
}

impl<R: Reported> Default for Reports<R> {
    fn default() -> Self {
        Self {
            reporter: Uuid::new_v4(),
            inner: std::sync::Mutex::new(ReportsInner { counter: 0, reports: Default::default() }),
            newer: tokio::sync::watch::channel(0).0,
        }
    }
}

impl<R: Reported> Reports<R> {
    fn lock(&self) -> std::sync::MutexGuard<'_, ReportsInner<R>> {
        // A poisoned lock still guards a whole map: every update below is a single insert or remove.
        self.inner.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Reports one thing; an unchanged report wakes nobody.
    pub fn put(&self, report: R) {
        let mut inner = self.lock();
        if inner.reports.get(report.id()).is_some_and(|(_, old)| *old == report) {
            return;
        }
        inner.counter += 1;
        let counter = inner.counter;
        inner.reports.insert(report.id().to_owned(), (counter, report));
        drop(inner);
        self.newer.send_replace(counter);
    }

    /// The thing is not there any more and its end has been heard of above.
    pub fn forget(&self, id: &str) {
        let mut inner = self.lock();
        if inner.reports.remove(id).is_some() {
            inner.counter += 1;
            let counter = inner.counter;
            drop(inner);
            self.newer.send_replace(counter);
        }
    }

    pub fn get(&self, id: &str) -> Option<R> {
        self.lock().reports.get(id).map(|(_, r)| r.clone())
    }

    pub fn all(&self) -> Vec<R> {
        self.lock().reports.values().map(|(_, r)| r.clone()).collect()
    }

    /// Answers an [`Observe`].
    pub async fn observe(&self, ask: &Observe) -> Observation<R> {
        let after = match ask.since {
            Some(seen) if seen.reporter == self.reporter => seen.counter,
            _ => return self.snapshot(0),
        };
        let mut newer = self.newer.subscribe();
        let wait = std::time::Duration::from_millis(ask.wait_ms.min(60_000));
        // A time-out is an answer too: nothing changed, and the caller learns that we are alive.
        let _ = tokio::time::timeout(wait, newer.wait_for(|c| *c > after)).await;
        self.snapshot(after)
    }

    fn snapshot(&self, after: u64) -> Observation<R> {
        let inner = self.lock();
        Observation {
            seen: Seen { reporter: self.reporter, counter: inner.counter },
            present: inner.reports.keys().cloned().collect(),
            changed: inner.reports.values().filter(|(c, _)| *c > after || after == 0).map(|(_, r)| r.clone()).collect(),
        }
    }
}

tier! {
    /// What the cluster-controller does for the cloud-controller, and takes from its nodes.
    ClusterController, client ClusterClient, server ClusterServer {
        /// The complete list of instances wanted in this zone.
        intend(Intent<crate::Instance>) -> IntentAnswer, from [CloudController];
        /// What is known of the instances of this zone.
        observe(Observe) -> Observation<crate::InstanceReport>, from [CloudController];
        /// The serial console of an instance, read on its node now.
        console(crate::ConsoleAsked) -> crate::Console, from [CloudController];
        /// What this zone, and the node, know of an id: asked, decided, observed, and why.
        why(crate::WhyAsked) -> crate::WhyAnswer, from [CloudController];
        status(crate::StatusAsked) -> crate::ZoneStatus, from [CloudController];
        /// Accept the list of another incarnation of the cloud-controller's store from now on (`mallee zone adopt`).
        adopt(crate::Adopt) -> crate::Done, from [CloudController];
        /// A node is emptied, or leaves.
        change_node(crate::NodeAsked) -> crate::Done, from [CloudController];
        /// A node says where it is and what it can carry; repeated while it lives.
        register_node(crate::NodeRegistration) -> crate::NodeRegistered, from [NodeController];
    }
}

tier! {
    /// What a node-controller does for its cluster-controller.
    NodeController, client NodeClient, server NodeServer {
        /// The complete list of instances wanted on this machine.
        intend(Intent<crate::Instance>) -> IntentAnswer, from [ClusterController];
        observe(Observe) -> Observation<crate::InstanceReport>, from [ClusterController];
        console(crate::ConsoleAsked) -> crate::Console, from [ClusterController];
        why(crate::WhyAsked) -> crate::WhyAnswer, from [ClusterController];
        status(crate::StatusAsked) -> crate::NodeStatus, from [ClusterController];
    }
}

tier! {
    /// What a storage-controller does for the cloud-controller.
    StorageController, client StorageClient, server StorageServer {
        /// The complete list of volumes wanted in this zone.
        intend(Intent<crate::Volume>) -> IntentAnswer, from [CloudController];
        observe(Observe) -> Observation<crate::VolumeReport>, from [CloudController];
        /// The complete list of snapshots wanted of this zone's volumes.
        intend_snapshots(Intent<crate::Snapshot>) -> IntentAnswer, from [CloudController];
        observe_snapshots(Observe) -> Observation<crate::SnapshotReport>, from [CloudController];
        why(crate::WhyAsked) -> crate::WhyAnswer, from [CloudController];
        status(crate::StatusAsked) -> crate::TierStatus, from [CloudController];
        adopt(crate::Adopt) -> crate::Done, from [CloudController];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Thing(String, u32);
    impl Reported for Thing {
        fn id(&self) -> &str {
            &self.0
        }
    }

    #[tokio::test]
    async fn a_waiting_observer_is_woken_by_a_change_and_only_gets_what_changed() {
        let reports = std::sync::Arc::new(Reports::<Thing>::default());
        reports.put(Thing("a".into(), 1));
        reports.put(Thing("b".into(), 1));
        let first = reports.observe(&Observe::default()).await;
        assert_eq!(first.changed.len(), 2);
        let again = reports.observe(&Observe { since: Some(first.seen), wait_ms: 1 }).await;
        assert!(again.changed.is_empty());
        let waiting = {
            let reports = reports.clone();
            tokio::spawn(async move { reports.observe(&Observe { since: Some(first.seen), wait_ms: 30_000 }).await })
        };
        tokio::task::yield_now().await;
        reports.put(Thing("b".into(), 2));
        let woken = waiting.await.unwrap();
        assert_eq!(woken.changed, [Thing("b".into(), 2)]);
        assert_eq!(woken.present, ["a", "b"]);
    }

    #[tokio::test]
    async fn a_restarted_reporter_reports_everything() {
        let old = Reports::<Thing>::default();
        let seen = old.observe(&Observe::default()).await.seen;
        let new = Reports::<Thing>::default();
        new.put(Thing("a".into(), 1));
        let got = new.observe(&Observe { since: Some(seen), wait_ms: 30_000 }).await;
        assert_eq!(got.changed.len(), 1);
    }
}
