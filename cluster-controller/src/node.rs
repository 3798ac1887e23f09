//! The nodes of this zone: the machines that registered, whether they are heard of, and what they report.
//!
//! Which nodes there are is durable; whether one is there *now* is not: a lease in memory, counted from receipt on the
//! monotonic clock. A node is heard of when it registers and when it answers. One whose registrations come in but which
//! cannot be called is silent too, because nothing can be asked of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mallee_service::{Identity, IntentSender, Poke, TierHttp};
use mallee_store::{Error as StoreError, Store, Tx, params};
use mallee_tiers::{
    Capacity, InstanceReport, NodeClient, NodeRegistered, NodeRegistration, NodeRow, NodeStatus, Observation, Observe,
    Peer, Role, Seen, StatusAsked, TierError, TierErrorKind,
};

use crate::{Zone, membership, placement::NodeState};

pub(crate) const TABLES: &str = "
CREATE TABLE node (
    name TEXT PRIMARY KEY, address TEXT NOT NULL, vcpus BIGINT NOT NULL, memory_mib BIGINT NOT NULL, disk_gib BIGINT NOT NULL,
    hypervisor TEXT NOT NULL, version TEXT NOT NULL, draining BIGINT NOT NULL, registered BIGINT NOT NULL);
";

/// How long an `observe` hangs at the node.
const WAIT: Duration = Duration::from_secs(20);
/// A hanging call that is not answered so long after its time is on a dead connection.
const GRACE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A node's row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    pub address: String,
    pub capacity: Capacity,
    pub hypervisor: String,
    pub version: String,
    pub draining: bool,
}

/// One node and what is known of it now.
pub(crate) struct Node {
    pub name: String,
    live: Mutex<Live>,
    /// Its list is to be sent.
    pub send: Poke,
    /// Call it again now, and on a new connection.
    reconnect: Poke,
    /// Set when it left for good: the tasks that talk to it end.
    left: AtomicBool,
}

struct Live {
    machine: Machine,
    client: Option<NodeClient>,
    /// When this process last heard of it.
    heard: Option<Instant>,
    /// Since when calls to it fail, and why.
    failing: Option<(Instant, String)>,
    /// The point in the node's life up to which it was observed by this process; none before its first whole report.
    seen: Option<Seen>,
    reports: BTreeMap<String, InstanceReport>,
    /// What the reconciler was last told of its presence.
    told: Presence,
}

/// Whether a node is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Presence {
    /// This process has not heard of it, and has not waited a whole lease for it.
    Expected,
    Up,
    /// Why it is thought to be away.
    Silent(String),
}

/// All nodes, and which of them report an instance.
#[derive(Default)]
pub(crate) struct Nodes {
    all: Mutex<BTreeMap<String, Arc<Node>>>,
    reported_by: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

/// A poisoned lock still guards a whole value: updates below are single inserts and assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    pub fn get(&self, name: &str) -> Option<Arc<Node>> {
        lock(&self.all).get(name).cloned()
    }
    pub fn all(&self) -> Vec<Arc<Node>> {
        lock(&self.all).values().cloned().collect()
    }
    /// The nodes that report this instance, by name.
    pub fn reporting(&self, instance: &str) -> Vec<String> {
        lock(&self.reported_by).get(instance).into_iter().flatten().cloned().collect()
    }
    /// Every instance that any node reports, and the nodes.
    pub fn reported(&self) -> Vec<(String, Vec<String>)> {
        lock(&self.reported_by).iter().map(|(id, nodes)| (id.clone(), nodes.iter().cloned().collect())).collect()
    }

    /// Forgets a node that left, with what it reported.
    pub fn drop(&self, node: &Node) {
        lock(&self.all).remove(&node.name);
        for id in node.reported_ids() {
            self.unnote(&id, &node.name);
        }
        node.left.store(true, Ordering::SeqCst);
        node.reconnect.poke();
        node.send.poke();
    }

    fn note(&self, instance: &str, node: &str) {
        lock(&self.reported_by).entry(instance.to_owned()).or_default().insert(node.to_owned());
    }
    fn unnote(&self, instance: &str, node: &str) {
        let mut reported_by = lock(&self.reported_by);
        if let Some(nodes) = reported_by.get_mut(instance) {
            nodes.remove(node);
            if nodes.is_empty() {
                reported_by.remove(instance);
            }
        }
    }
}

impl Node {
    fn new(name: &str, machine: Machine) -> Arc<Self> {
        let live = Live {
            machine,
            client: None,
            heard: None,
            failing: None,
            seen: None,
            reports: BTreeMap::new(),
            told: Presence::Expected,
        };
        Arc::new(Self {
            name: name.into(),
            live: Mutex::new(live),
            send: Poke::default(),
            reconnect: Poke::default(),
            left: AtomicBool::new(false),
        })
    }

    pub fn machine(&self) -> Machine {
        lock(&self.live).machine.clone()
    }
    /// Whether all it remembers of the instance is that it has nothing of it.
    pub fn has_released(&self, instance: &str) -> bool {
        lock(&self.live).reports.get(instance).is_some_and(|r| r.released)
    }
    pub fn set_draining(&self, draining: bool) {
        lock(&self.live).machine.draining = draining;
    }
    fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }
    pub fn report(&self, instance: &str) -> Option<InstanceReport> {
        lock(&self.live).reports.get(instance).cloned()
    }
    pub fn reported_ids(&self) -> Vec<String> {
        lock(&self.live).reports.keys().cloned().collect()
    }
    /// What of an instance's report decides about capacity and lists, without copying the report.
    pub fn is_gone(&self, instance: &str) -> bool {
        lock(&self.live).reports.get(instance).is_some_and(|r| r.observed == mallee_tiers::Observed::Gone)
    }
    /// This process has had one whole report of it.
    pub fn observed(&self) -> bool {
        lock(&self.live).seen.is_some()
    }

    pub fn presence(&self, begun: Instant, lease: Duration) -> Presence {
        lock(&self.live).presence(begun, lease)
    }

    pub fn state(&self, begun: Instant, lease: Duration) -> NodeState {
        let live = lock(&self.live);
        match live.presence(begun, lease) {
            Presence::Silent(_) => NodeState::Silent,
            _ if live.machine.draining => NodeState::Draining,
            Presence::Up if live.seen.is_some() => NodeState::Up,
            _ => NodeState::Unseen,
        }
    }

    /// Calls the node; the connection is kept until its address changes.
    pub fn client(&self, identity: &Identity) -> Result<NodeClient, TierError> {
        let mut live = lock(&self.live);
        if let Some(client) = &live.client {
            return Ok(client.clone());
        }
        let http = TierHttp::new(identity, &live.machine.address, Role::NodeController, &self.name)?;
        let client = NodeClient::new(Arc::new(http));
        live.client = Some(client.clone());
        Ok(client)
    }

    fn answered(&self) {
        let mut live = lock(&self.live);
        live.heard = Some(Instant::now());
        live.failing = None;
    }

    fn failed(&self, e: &TierError) {
        let mut live = lock(&self.live);
        let since = live.failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        live.failing = Some((since, e.message.clone()));
    }

    /// Takes an answer over; the ids whose report changed or went away, and whether the node was started anew.
    fn take(&self, observation: Observation<InstanceReport>, nodes: &Nodes) -> (Vec<String>, bool) {
        let mut live = lock(&self.live);
        let restarted = live.seen.map(|s| s.reporter) != Some(observation.seen.reporter);
        let mut changed = Vec::new();
        let present: BTreeSet<&str> = observation.present.iter().map(String::as_str).collect();
        let away: Vec<String> = live.reports.keys().filter(|id| !present.contains(id.as_str())).cloned().collect();
        for id in away {
            live.reports.remove(&id);
            nodes.unnote(&id, &self.name);
            changed.push(id);
        }
        for mut report in observation.changed {
            report.node = Some(self.name.clone());
            nodes.note(&report.id, &self.name);
            changed.push(report.id.clone());
            live.reports.insert(report.id.clone(), report);
        }
        live.seen = Some(observation.seen);
        (changed, restarted)
    }
}

impl Live {
    fn presence(&self, begun: Instant, lease: Duration) -> Presence {
        let why = |since: Instant| match &self.failing {
            Some((_, why)) => Some(why.clone()),
            None if since.elapsed() > lease => Some(format!("not heard of for more than {} s", lease.as_secs_f32())),
            None => None,
        };
        match self.heard {
            None if begun.elapsed() < lease => Presence::Expected,
            None => Presence::Silent(why(begun).unwrap_or_default()),
            Some(heard) => {
                let unreachable = self.failing.as_ref().is_some_and(|(since, _)| since.elapsed() > lease);
                if unreachable || heard.elapsed() > lease {
                    return Presence::Silent(why(heard).unwrap_or_default());
                }
                Presence::Up
            }
        }
    }
}

fn read_row(row: &mallee_store::Row<'_>) -> Result<(String, Machine), StoreError> {
    let capacity = Capacity { vcpus: row.get(2)?, memory_mib: row.get(3)?, disk_gib: row.get(4)? };
    let machine = Machine {
        address: row.get(1)?,
        capacity,
        hypervisor: row.get(5)?,
        version: row.get(6)?,
        draining: row.get(7)?,
    };
    Ok((row.get(0)?, machine))
}

pub(crate) async fn load(store: &Store) -> Result<Vec<Arc<Node>>, StoreError> {
    let rows = store
        .read("read the nodes", |tx| {
            tx.query(
                "SELECT name, address, vcpus, memory_mib, disk_gib, hypervisor, version, draining FROM node ORDER BY name",
                params![],
                read_row,
            )
        })
        .await?;
    Ok(rows.into_iter().map(|(name, machine)| Node::new(&name, machine)).collect())
}

fn write_row(tx: &mut Tx<'_>, name: &str, m: &Machine, now: i64) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO node (name, address, vcpus, memory_mib, disk_gib, hypervisor, version, draining, registered)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8)
         ON CONFLICT (name) DO UPDATE SET address = ?2, vcpus = ?3, memory_mib = ?4, disk_gib = ?5, hypervisor = ?6,
         version = ?7, registered = ?8",
        params![
            name,
            m.address,
            m.capacity.vcpus,
            m.capacity.memory_mib,
            m.capacity.disk_gib,
            m.hypervisor,
            m.version,
            now
        ],
    )
    .map(|_| ())
}

impl Zone {
    /// A node says where it is. Its row is written only when it changed, so a lease costs no disk.
    pub(crate) async fn register(
        self: &Arc<Self>,
        from: &Peer,
        r: NodeRegistration,
    ) -> Result<NodeRegistered, TierError> {
        if from.name != r.node {
            return Err(TierError::refused(format!(
                "the certificate is that of node {}, the registration that of {}",
                from.name, r.node
            )));
        }
        if from.zone != self.config.daemon.zone {
            return Err(TierError::refused(format!(
                "node {} was joined to zone {}, this is {}",
                r.node, from.zone, self.config.daemon.zone
            )));
        }
        mallee_service::register::show_offset(&self.about, &format!("node {}", r.node), r.now);
        let known = self.nodes.get(&r.node);
        if known.is_none() {
            let name = r.node.clone();
            let removed = self.store.read("is a node removed", move |tx| membership::is_removed(tx, &name)).await;
            if removed.map_err(|e: StoreError| TierError::internal(e.to_string()))? {
                return Err(TierError::refused(format!(
                    "node {} was removed from the cloud: `mallee node token {0}` lets it in again",
                    r.node
                )));
            }
        }
        let draining = known.as_ref().is_some_and(|n| n.machine().draining);
        let machine = Machine {
            address: r.address,
            capacity: r.capacity,
            hypervisor: r.hypervisor,
            version: r.version,
            draining,
        };
        let unchanged = known.as_ref().is_some_and(|n| n.machine() == machine);
        if !unchanged {
            let (name, row, now) = (r.node.clone(), machine.clone(), self.clock.now_ms());
            self.store
                .write("register a node", move |tx| write_row(tx, &name, &row, now))
                .await
                .map_err(|e| TierError::internal(e.to_string()))?;
        }
        let node = self.admit(&r.node, &machine);
        let was_away = {
            let mut live = lock(&node.live);
            let was_away =
                !matches!(live.presence(self.begun, self.config.lease()), Presence::Up) || live.failing.is_some();
            if live.machine.address != machine.address {
                live.client = None;
                live.seen = None;
            }
            live.machine = machine;
            live.heard = Some(Instant::now());
            was_away
        };
        if was_away || !unchanged {
            node.reconnect.poke();
            node.send.poke();
            self.news.node(&node.name);
        }
        Ok(NodeRegistered { lease_ms: self.config.lease_ms, now: self.clock.now_ms() })
    }

    /// The node in memory, with the two tasks that talk to it; made at its first registration, or at the start.
    pub(crate) fn admit(self: &Arc<Self>, name: &str, machine: &Machine) -> Arc<Node> {
        let mut all = lock(&self.nodes.all);
        if let Some(node) = all.get(name) {
            return node.clone();
        }
        let node = Node::new(name, machine.clone());
        all.insert(name.to_owned(), node.clone());
        drop(all);
        tokio::spawn(observe_forever(self.clone(), node.clone()));
        tokio::spawn(send_forever(self.clone(), node.clone()));
        node
    }

    /// Tells the reconciler of nodes that fell silent or came back. Registrations and answers renew leases; nothing but
    /// time ends them, so time has to be looked at.
    pub(crate) async fn watch_leases(self: Arc<Self>) {
        let lease = self.config.lease();
        loop {
            tokio::time::sleep(lease / 10).await;
            for node in self.nodes.all() {
                self.tell_presence(&node);
            }
        }
    }

    fn tell_presence(&self, node: &Node) {
        let mut live = lock(&node.live);
        let now = live.presence(self.begun, self.config.lease());
        if std::mem::discriminant(&now) == std::mem::discriminant(&live.told) {
            return;
        }
        let fault = format!("node {}", node.name);
        match &now {
            Presence::Silent(why) => self.about.faults.raise(
                &fault,
                format!("node {} does not answer: {why}", node.name),
                "is the machine up, and its node-controller?",
            ),
            Presence::Up | Presence::Expected => self.about.faults.clear(&fault),
        }
        live.told = now;
        drop(live);
        self.news.node(&node.name);
    }

    /// A node as an operator sees it, without what only it can say itself.
    pub(crate) fn node_row(&self, node: &Node, used: Capacity, instances: u32) -> NodeRow {
        let machine = node.machine();
        let (state, reason) = match node.presence(self.begun, self.config.lease()) {
            Presence::Up if machine.draining => ("draining", String::new()),
            Presence::Up if !node.observed() => ("up", "it has not yet reported what it runs".into()),
            Presence::Up => ("up", String::new()),
            Presence::Expected => ("silent", "not heard of since this cluster-controller was started".into()),
            Presence::Silent(why) => ("silent", why),
        };
        NodeRow {
            node: node.name.clone(),
            address: machine.address,
            hypervisor: machine.hypervisor,
            capacity: machine.capacity,
            used,
            instances,
            state: state.into(),
            reason,
            status: None,
        }
    }
}

/// What a node says of itself; none when it does not say so soon.
pub(crate) async fn ask_status(zone: &Zone, node: &Node) -> Option<NodeStatus> {
    let client = node.client(&zone.identity).ok()?;
    tokio::time::timeout(Duration::from_secs(2), client.status(&StatusAsked {})).await.ok()?.ok()
}

async fn observe_forever(zone: Arc<Zone>, node: Arc<Node>) {
    let mut pause = FIRST_PAUSE;
    while !node.has_left() {
        let (since, failing) = {
            let live = lock(&node.live);
            (live.seen, live.failing.is_some())
        };
        // After a failure the first answer is wanted at once: a call that hangs says nothing about the node.
        let wait = if failing { Duration::ZERO } else { WAIT };
        let ask = Observe { since, wait_ms: wait.as_millis() as u64 };
        let call = async { node.client(&zone.identity)?.observe(&ask).await };
        let answer = tokio::select! {
            answer = tokio::time::timeout(wait + GRACE, call) => {
                answer.unwrap_or_else(|_| Err(TierError::unreachable("it took a call and never answered it")))
            }
            // It registered after it had been away: what hangs is on a connection to its past.
            () = node.reconnect.poked() => continue,
        };
        match answer {
            // What it says no longer counts.
            _ if node.has_left() => return,
            Ok(observation) => {
                pause = FIRST_PAUSE;
                node.answered();
                let first = since.is_none();
                let (changed, restarted) = node.take(observation, &zone.nodes);
                zone.tell_presence(&node);
                if restarted {
                    // It may have lost its store: the same list again costs it a comparison.
                    node.send.poke();
                }
                if first {
                    zone.news.node(&node.name);
                } else if !changed.is_empty() {
                    zone.news.instances(changed);
                }
            }
            Err(e) => {
                node.failed(&e);
                tracing::debug!(node = node.name, error = %e, "observe failed");
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    () = node.reconnect.poked() => pause = FIRST_PAUSE,
                }
            }
        }
    }
}

async fn send_forever(zone: Arc<Zone>, node: Arc<Node>) {
    let sender = IntentSender::default();
    let fault = format!("list of node {}", node.name);
    let mut pause = FIRST_PAUSE;
    while !node.has_left() {
        let outcome = match zone.list_for(&node.name).await {
            None => Ok(()),
            Some((generation, rows)) => {
                let (node, identity) = (&node, &zone.identity);
                let call = |intent| async move { node.client(identity)?.intend(&intent).await };
                sender.deliver(zone.store.incarnation(), generation, &rows, call).await
            }
        };
        match outcome {
            Ok(()) => {
                pause = FIRST_PAUSE;
                zone.about.faults.clear(&fault);
                node.send.poked().await;
            }
            Err(e) => {
                if e.kind != TierErrorKind::Unreachable {
                    zone.about.faults.raise(
                        &fault,
                        format!("node {} refuses its list: {}", node.name, e.message),
                        remedy(e.kind),
                    );
                }
                tracing::debug!(node = node.name, error = %e, "a list was not delivered");
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                    () = node.send.poked() => pause = FIRST_PAUSE,
                }
            }
        }
    }
}

fn remedy(kind: TierErrorKind) -> &'static str {
    match kind {
        TierErrorKind::OtherIncarnation => {
            "the node belongs to another store of this cluster-controller: put that store back. Its guests run on, and are shown as orphans; \
             this release cannot hand a node over to a new store"
        }
        TierErrorKind::Stale => {
            "this cluster-controller's store was put back to an older state: raise its epoch, so that its lists are newer than the node's"
        }
        TierErrorKind::Forbidden => {
            "the node does not take this tier for its cluster-controller: was its certificate made for another zone?"
        }
        _ => "see the node-controller's log",
    }
}
