//! Instances of this zone: what the cloud-controller wants, which node each one has, what the nodes report.
//!
//! This tier owns one fact: *which node has which instance*. It is written before the node is told, so that after any crash
//! an instance can be on no second node. A placement ends only when the node reported the instance gone and the
//! cloud-controller, having heard of that, dropped it from its list; or, for an instance whose root is on a volume, when it
//! is wanted stopped and the node reported, of that very wish, that it is off and has nothing left there. The node takes no
//! older list than it has, so it cannot be told to start it once it has said so.
//!
//! **A store that is new** (or was lost) knows of no placement, yet nodes may run instances of its past. Whatever the
//! first list names is therefore doubted: it is not placed (nor called gone) until every node was heard out, or a lease has
//! passed; what a node reports meanwhile is its placement. What a *later* list names anew was asked for after
//! that, so it cannot be anywhere and need not wait.

use std::collections::{BTreeMap, BTreeSet};

use mallee_service::intent::Listed;
use mallee_store::{Error as StoreError, Store, Tx, params};
use mallee_tiers::{Capacity, Desired, Generation, Instance, Intent, IntentAnswer, TierError, TierErrorKind};
use sha2::{Digest, Sha256};

use crate::{
    Zone, event,
    placement::{Candidate, NodeState, Shape},
};

pub(crate) const TABLES: &str = "
CREATE TABLE placement (instance TEXT PRIMARY KEY, node TEXT NOT NULL, placed BIGINT NOT NULL);
CREATE TABLE doubt (instance TEXT PRIMARY KEY);
CREATE TABLE zone (one BIGINT PRIMARY KEY CHECK (one = 1), listed BIGINT NOT NULL, settled BIGINT NOT NULL);
INSERT INTO zone (one, listed, settled) VALUES (1, 0, 0);
CREATE TABLE node_list (node TEXT PRIMARY KEY, counter BIGINT NOT NULL, hash TEXT NOT NULL);
";

/// What is known of the zone's instances: a copy of the store, made at the start and after every failed write.
pub(crate) struct World {
    pub wanted: BTreeMap<String, Held>,
    /// instance → node
    pub placed: BTreeMap<String, String>,
    /// node → instances, the same fact the other way round.
    pub on: BTreeMap<String, BTreeSet<String>>,
    pub doubted: BTreeSet<String>,
    pub settled: bool,
    lists: BTreeMap<String, List>,
    /// Instances that wait for a place, and why.
    pub waiting: BTreeMap<String, String>,
    pub seq: i64,
}

/// One wish.
pub(crate) struct Held {
    pub hash: String,
    pub listed: bool,
    pub body: Instance,
}

/// The list a node was last given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct List {
    counter: i64,
    /// Over the ids and the hashes of its bodies: a list is given a new generation only when it is a new list.
    hash: String,
}

impl Held {
    pub fn new(listed: Listed<Instance>, hash: String) -> Self {
        Self { hash, listed: listed.listed, body: listed.body }
    }

    pub fn shape(&self) -> Shape {
        let b = &self.body;
        Shape { vcpus: b.vcpus, memory_mib: b.memory_mib, disk_gib: b.disk_gib, pin: b.node.clone() }
    }
}

/// What one pass decided, to be written in one transaction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decisions {
    pub place: Vec<(String, String)>,
    pub unplace: Vec<String>,
    pub settle: bool,
    pub undoubt: Vec<String>,
    /// Instances that are at their end: nobody lists them and nothing of them is left.
    pub forget: Vec<String>,
    pub events: Vec<(String, String)>,
    lists: Vec<(String, List)>,
}

impl World {
    pub async fn load(zone: &Zone) -> Result<Self, StoreError> {
        let hashes: BTreeMap<String, String> =
            zone.book.index().await?.into_iter().map(|(id, hash, _)| (id, hash)).collect();
        let wanted = zone.book.all().await?.into_iter().map(|l| {
            // A body that came in between the two reads has no hash here, and is read again at the next poke.
            let hash = hashes.get(&l.body.id).cloned().unwrap_or_default();
            (l.body.id.clone(), Held::new(l, hash))
        });
        let mut world = read_rows(&zone.store).await?;
        world.wanted = wanted.collect();
        Ok(world)
    }

    /// Brings `wanted` up to the book; the ids that changed.
    pub async fn refresh(&mut self, zone: &Zone) -> Result<BTreeSet<String>, StoreError> {
        let index = zone.book.index().await?;
        let mut changed = BTreeSet::new();
        let named: BTreeSet<&str> = index.iter().map(|(id, ..)| id.as_str()).collect();
        let gone: Vec<String> = self.wanted.keys().filter(|id| !named.contains(id.as_str())).cloned().collect();
        for id in gone {
            self.wanted.remove(&id);
            changed.insert(id);
        }
        for (id, hash, listed) in index {
            match self.wanted.get_mut(&id) {
                Some(held) if held.hash == hash => {
                    if held.listed != listed {
                        held.listed = listed;
                        changed.insert(id);
                    }
                }
                _ => {
                    if let Some(row) = zone.book.get(&id).await? {
                        self.wanted.insert(id.clone(), Held::new(row, hash));
                        changed.insert(id);
                    }
                }
            }
        }
        Ok(changed)
    }

    pub fn place(&mut self, d: &mut Decisions, instance: &str, node: &str, event: String) {
        self.placed.insert(instance.into(), node.into());
        self.on.entry(node.into()).or_default().insert(instance.into());
        self.waiting.remove(instance);
        if self.doubted.remove(instance) {
            d.undoubt.push(instance.into());
        }
        d.place.push((instance.into(), node.into()));
        d.events.push((instance.into(), event));
    }

    pub fn forget(&mut self, d: &mut Decisions, instance: &str) -> Option<String> {
        self.waiting.remove(instance);
        self.wanted.remove(instance);
        if self.doubted.remove(instance) {
            d.undoubt.push(instance.into());
        }
        let node = self.placed.remove(instance);
        if let Some(node) = &node {
            self.on.entry(node.clone()).or_default().remove(instance);
            d.unplace.push(instance.into());
        }
        d.forget.push(instance.into());
        node
    }

    /// It is off and nothing of it is on its node any more: it is placed anew when it is to run again.
    pub fn unplace(&mut self, d: &mut Decisions, instance: &str, event: String) {
        if let Some(node) = self.placed.remove(instance) {
            self.on.entry(node).or_default().remove(instance);
            d.unplace.push(instance.into());
            d.events.push((instance.into(), event));
        }
    }

    /// What the instances on a node take of it. An instance that is stopped keeps its place; one that is gone does not.
    pub fn used(&self, zone: &Zone, node: &str) -> Capacity {
        let mut used = Capacity::default();
        let known = zone.nodes.get(node);
        for id in self.on.get(node).into_iter().flatten() {
            let Some(held) = self.wanted.get(id) else { continue };
            if known.as_ref().is_some_and(|n| n.is_gone(id)) {
                continue;
            }
            used.vcpus = used.vcpus.saturating_add(held.body.vcpus);
            used.memory_mib = used.memory_mib.saturating_add(held.body.memory_mib);
            used.disk_gib = used.disk_gib.saturating_add(held.body.disk_gib);
        }
        used
    }

    pub fn candidates(&self, zone: &Zone) -> Vec<Candidate> {
        let candidate = |node: &crate::node::Node| {
            let mut capacity = node.machine().capacity;
            capacity.vcpus = capacity.vcpus.saturating_mul(zone.config.vcpu_factor.max(1));
            let state = node.state(zone.begun, zone.config.lease());
            let used = if state == NodeState::Up { self.used(zone, &node.name) } else { Capacity::default() };
            Candidate { name: node.name.clone(), state, capacity, used }
        };
        zone.nodes.all().iter().map(|n| candidate(n)).collect()
    }

    /// Gives the node's list a new generation when it is a new list; whether it is.
    pub fn renew_list(&mut self, d: &mut Decisions, node: &str) -> bool {
        let mut hash = Sha256::new();
        for id in self.on.get(node).into_iter().flatten() {
            if let Some(held) = self.wanted.get(id) {
                hash.update(format!("{id} {}\n", held.hash));
            }
        }
        let hash = hex::encode(hash.finalize());
        let counter = match self.lists.get(node) {
            Some(list) if list.hash == hash => return false,
            Some(list) => list.counter + 1,
            None => 1,
        };
        let list = List { counter, hash };
        self.lists.insert(node.into(), list.clone());
        d.lists.push((node.into(), list));
        true
    }
}

async fn read_rows(store: &Store) -> Result<World, StoreError> {
    store
        .read("read the placements", |tx| {
            let placed: BTreeMap<String, String> = tx
                .query("SELECT instance, node FROM placement", params![], |row| Ok((row.get(0)?, row.get(1)?)))?
                .into_iter()
                .collect();
            let mut on: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (instance, node) in &placed {
                on.entry(node.clone()).or_default().insert(instance.clone());
            }
            let doubted = tx.query("SELECT instance FROM doubt", params![], |row| row.get(0))?.into_iter().collect();
            let settled = tx.query_one("SELECT settled FROM zone", params![], |row| row.get(0))?;
            let lists = tx
                .query("SELECT node, counter, hash FROM node_list", params![], |row| {
                    Ok((row.get(0)?, List { counter: row.get(1)?, hash: row.get(2)? }))
                })?
                .into_iter()
                .collect();
            let seq = event::last_seq(tx)?;
            Ok(World { wanted: BTreeMap::new(), placed, on, doubted, settled, lists, waiting: BTreeMap::new(), seq })
        })
        .await
}

impl Decisions {
    pub fn is_empty(&self) -> bool {
        self.place.is_empty()
            && self.unplace.is_empty()
            && !self.settle
            && self.undoubt.is_empty()
            && self.events.is_empty()
            && self.lists.is_empty()
    }

    /// The nodes whose list is a new one.
    pub fn renewed(&self) -> impl Iterator<Item = &str> {
        self.lists.iter().map(|(node, _)| node.as_str())
    }

    /// Writes all of it. `seq` is the number of the last event before these.
    pub fn write(&self, tx: &mut Tx<'_>, seq: i64, now: i64) -> Result<(), StoreError> {
        for (instance, node) in &self.place {
            // The primary key is the promise that no instance is placed twice.
            tx.execute(
                "INSERT INTO placement (instance, node, placed) VALUES (?1, ?2, ?3)",
                params![instance, node, now],
            )?;
        }
        for instance in &self.unplace {
            tx.execute("DELETE FROM placement WHERE instance = ?1", params![instance])?;
        }
        for instance in &self.undoubt {
            tx.execute("DELETE FROM doubt WHERE instance = ?1", params![instance])?;
        }
        if self.settle {
            tx.execute("DELETE FROM doubt", params![])?;
            tx.execute("UPDATE zone SET settled = 1", params![])?;
        }
        for (node, list) in &self.lists {
            tx.execute(
                "INSERT INTO node_list (node, counter, hash) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node) DO UPDATE SET counter = ?2, hash = ?3",
                params![node, list.counter, list.hash],
            )?;
        }
        for (n, (instance, text)) in (seq + 1..).zip(&self.events) {
            event::write(tx, n, instance, now, text)?;
        }
        Ok(())
    }
}

impl Zone {
    /// The list for one node, and its generation, once both are durable.
    pub(crate) async fn list_for(&self, node: &str) -> Option<(Generation, Vec<Instance>)> {
        let world = self.world.lock().await;
        let world = world.as_ref()?;
        let list = world.lists.get(node)?;
        let rows = world.on.get(node).into_iter().flatten().filter_map(|id| Some(world.wanted.get(id)?.body.clone()));
        Some((Generation { epoch: self.store.epoch(), counter: list.counter }, rows.collect()))
    }

    /// Takes the cloud-controller's list. What the first list of this store names is doubted, before it is taken over.
    pub(crate) async fn take_list(&self, intent: Intent<Instance>) -> Result<IntentAnswer, TierError> {
        let failed = |e: StoreError| TierError::internal(e.to_string());
        // One list at a time: the second of two first lists would find doubts half written.
        let mut first = self.first_list.lock().await;
        if *first == Some(false) {
            let outcome = self.book.take(intent).await;
            return self.listed(outcome);
        }
        let taken: bool = self
            .store
            .read("has a list been taken", |tx| tx.query_one("SELECT listed FROM zone", params![], |row| row.get(0)))
            .await
            .map_err(failed)?;
        *first = Some(!taken);
        if taken {
            let outcome = self.book.take(intent).await;
            return self.listed(outcome);
        }
        let ids: Vec<String> = intent.entries.iter().map(|e| e.id.clone()).collect();
        self.store
            .write("doubt the first list", move |tx| {
                if tx.query_one("SELECT settled FROM zone", params![], |row| row.get(0))? {
                    return Ok(());
                }
                ids.iter().try_for_each(|id| {
                    tx.execute("INSERT INTO doubt (instance) VALUES (?1) ON CONFLICT DO NOTHING", params![id])
                        .map(|_| ())
                })
            })
            .await
            .map_err(failed)?;
        // The copy in memory knows nothing of these doubts; it is made anew.
        *self.world.lock().await = None;
        let outcome = self.book.take(intent).await;
        if outcome.as_ref().is_ok_and(|answer| answer.missing.is_empty()) {
            self.store
                .write("a list has been taken", |tx| tx.execute("UPDATE zone SET listed = 1", params![]).map(|_| ()))
                .await
                .map_err(failed)?;
            *first = Some(false);
        }
        self.listed(outcome)
    }

    fn listed(&self, outcome: Result<IntentAnswer, TierError>) -> Result<IntentAnswer, TierError> {
        match &outcome {
            Ok(answer) => {
                self.about.faults.clear("list");
                if answer.missing.is_empty() {
                    self.news.intent();
                }
            }
            Err(e) => {
                let remedy = match e.kind {
                    TierErrorKind::OtherIncarnation => {
                        "if the cloud-controller's store is meant to be a new one: `mallee zone adopt ZONE`"
                    }
                    TierErrorKind::Stale => {
                        "the cloud-controller's store was put back to an older state: raise its epoch"
                    }
                    _ => "see this tier's log",
                };
                self.about.faults.raise(
                    "list",
                    format!("a list of the cloud-controller was refused: {}", e.message),
                    remedy,
                );
            }
        }
        outcome
    }
}

/// In words, for `why`.
pub(crate) fn asked(body: &Instance) -> String {
    let wish = match body.desired {
        Desired::Running => "run it",
        Desired::Stopped => "stop it",
        Desired::Terminated => "terminate it",
        Desired::Unknown => "something this release does not know",
    };
    let Generation { epoch, counter } = body.generation;
    let pin = body.node.as_ref().map(|n| format!(", on node {n}")).unwrap_or_default();
    format!(
        "{wish}: {} vCPUs, {} MiB, {} GiB{pin} (generation {epoch}.{counter})",
        body.vcpus, body.memory_mib, body.disk_gib
    )
}
