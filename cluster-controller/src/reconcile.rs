//! The pass that places, learns, reports and forgets.
//!
//! Woken by a new list, by a node's report, by a node that came or went, and by the clock. What woke it narrows down what is
//! looked at; the first pass, and one a minute, look at everything, so nothing depends on a wake-up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use mallee_service::{PassReport, Poke, Reconciler};
use mallee_store::Error as StoreError;
use mallee_tiers::{Desired, Instance, InstanceReport, Observed};

use crate::{
    Zone,
    instance::{Decisions, World},
    node::Presence,
    placement::{Shape, place},
};

/// Everything is looked at at least so often.
pub(crate) const WHOLE: Duration = Duration::from_secs(60);
/// So many instances are placed in one transaction; the rest in the next pass, at once.
const AT_ONCE: usize = 500;

/// What changed since the last pass.
#[derive(Default)]
pub(crate) struct News {
    pub poke: Poke,
    unread: Mutex<Unread>,
}

#[derive(Default)]
struct Unread {
    intent: bool,
    nodes: BTreeSet<String>,
    instances: BTreeSet<String>,
}

impl News {
    fn note(&self, note: impl FnOnce(&mut Unread)) {
        note(&mut self.unread.lock().unwrap_or_else(PoisonError::into_inner));
        self.poke.poke();
    }
    /// A list was taken over.
    pub fn intent(&self) {
        self.note(|u| u.intent = true);
    }
    /// A node came, went, or reported everything.
    pub fn node(&self, name: &str) {
        self.note(|u| {
            u.nodes.insert(name.to_owned());
        });
    }
    /// A node reported these anew.
    pub fn instances(&self, ids: Vec<String>) {
        self.note(|u| u.instances.extend(ids));
    }
    fn read(&self) -> Unread {
        std::mem::take(&mut self.unread.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(crate) struct Instances {
    pub zone: Arc<Zone>,
    pub looked_at_all: Mutex<Option<Instant>>,
}

#[async_trait::async_trait]
impl Reconciler for Instances {
    fn name(&self) -> &'static str {
        "instances"
    }

    async fn pass(&self) -> PassReport {
        match self.run().await {
            Ok(report) => report,
            Err(e) => {
                // What was not written was not decided: the copy in memory is made anew.
                *self.looked_at_all.lock().unwrap_or_else(PoisonError::into_inner) = None;
                let mut report = PassReport::default();
                report.error(e);
                report
            }
        }
    }
}

impl Instances {
    async fn run(&self) -> Result<PassReport, StoreError> {
        let zone = &self.zone;
        let unread = zone.news.read();
        let mut kept = zone.world.lock().await;
        let reloaded = kept.is_none();
        let whole = {
            let mut at = self.looked_at_all.lock().unwrap_or_else(PoisonError::into_inner);
            let whole = reloaded || at.is_none_or(|at| at.elapsed() > WHOLE);
            if whole {
                *at = Some(Instant::now());
            }
            whole
        };
        // Taken out: any error below leaves none, and the next pass starts from the store.
        let (mut world, mut look) = match kept.take() {
            Some(mut world) if !whole => {
                let look = if unread.intent { world.refresh(zone).await? } else { BTreeSet::new() };
                (world, look)
            }
            _ => {
                let world = World::load(zone).await?;
                let look = world.wanted.keys().chain(world.placed.keys()).cloned().collect();
                (world, look)
            }
        };
        let mut touched: BTreeSet<String> = unread.nodes.clone();
        if whole {
            touched.extend(zone.nodes.all().iter().map(|n| n.name.clone()));
        }
        for name in &touched {
            look.extend(world.on.get(name).into_iter().flatten().cloned());
            look.extend(zone.nodes.get(name).map(|n| n.reported_ids()).unwrap_or_default());
        }
        look.extend(unread.instances);

        let mut d = Decisions::default();
        let mut again = self.settle(&mut world, &mut d, &mut look);
        for id in &look {
            learn(zone, &mut world, &mut d, id);
        }
        sort_out(zone, &mut world, &mut d, &look, &mut touched);
        if self.place_waiting(&mut world, &mut d, &mut look) {
            again = Some(Duration::ZERO);
        }
        for id in &look {
            touched.extend(world.placed.get(id).cloned());
        }
        for name in &touched {
            world.renew_list(&mut d, name);
        }
        let d = Arc::new(d);
        if !d.is_empty() {
            let (decided, seq, now) = (d.clone(), world.seq, zone.clock.now_ms());
            zone.store.write("decide on instances", move |tx| decided.write(tx, seq, now)).await?;
            world.seq += d.events.len() as i64;
        }
        // From here on it is durable, and may be told.
        // Many at a time: the store commits them together.
        stream::iter(d.forget.clone())
            .map(|id| async move { zone.book.forget(&id).await })
            .buffer_unordered(64)
            .try_collect::<()>()
            .await?;
        for id in &d.forget {
            zone.reports.forget(id);
        }
        for id in &look {
            // What was forgotten is not wanted any more, and what is not wanted is not reported.
            report(zone, &world, id);
        }
        show_doubles(zone, &world, whole || !unread.nodes.is_empty());
        *kept = Some(world);
        drop(kept);
        // After a failure it is not known who was told of the list that is in the store.
        let tell: BTreeSet<&str> =
            if reloaded { touched.iter().map(String::as_str).collect() } else { d.renewed().collect() };
        for node in tell.into_iter().filter_map(|name| zone.nodes.get(name)) {
            node.send.poke();
        }
        if zone.is_heard_out() {
            zone.ready.send_replace(true);
        }
        let changed = (d.place.len() + d.unplace.len() + d.forget.len()) as u64;
        Ok(PassReport { changed, again, ..PassReport::default() })
    }

    /// Ends the doubts of a new store once every node had its time to speak.
    fn settle(&self, world: &mut World, d: &mut Decisions, look: &mut BTreeSet<String>) -> Option<Duration> {
        if world.settled {
            return None;
        }
        let left = self.zone.config.lease().saturating_sub(self.zone.begun.elapsed());
        if !left.is_zero() {
            return Some(left + Duration::from_millis(5));
        }
        if !self.zone.is_heard_out() {
            return Some(self.zone.config.lease() / 10);
        }
        // What a node reports is learnt below, in this same pass and before anything is placed.
        look.extend(world.doubted.iter().cloned());
        for id in world.doubted.clone() {
            learn(&self.zone, world, d, &id);
        }
        world.doubted.clear();
        world.settled = true;
        d.settle = true;
        None
    }

    /// Gives places to those that wait, oldest wish first; whether some were left for the next pass.
    fn place_waiting(&self, world: &mut World, d: &mut Decisions, look: &mut BTreeSet<String>) -> bool {
        let zone = &self.zone;
        let mut queue: Vec<(mallee_tiers::Generation, String, Shape)> = world
            .waiting
            .keys()
            .filter(|id| !world.doubted.contains(*id))
            .filter_map(|id| world.wanted.get(id).map(|h| (h.body.generation, id.clone(), h.shape())))
            .collect();
        if queue.is_empty() {
            return false;
        }
        queue.sort();
        let mut candidates = world.candidates(zone);
        // Capacity only shrinks within a pass: what did not fit once does not fit again.
        let mut refused: BTreeMap<Shape, String> = BTreeMap::new();
        let mut placed = 0;
        for (_, id, shape) in queue {
            if placed == AT_ONCE {
                return true;
            }
            let outcome = match refused.get(&shape) {
                Some(why) => Err(why.clone()),
                None => place(&shape, &candidates, zone.config.placement),
            };
            match outcome {
                Ok(choice) => {
                    let node = &mut candidates[choice.node];
                    node.used.vcpus += shape.vcpus;
                    node.used.memory_mib += shape.memory_mib;
                    node.used.disk_gib += shape.disk_gib;
                    world.place(d, &id, &node.name, format!("placed on {}: {}", node.name, choice.because));
                    look.insert(id);
                    placed += 1;
                }
                Err(why) => {
                    if world.waiting.get(&id) != Some(&why) {
                        d.events.push((id.clone(), format!("not placed: {why}")));
                        world.waiting.insert(id.clone(), why.clone());
                        look.insert(id);
                    }
                    refused.insert(shape, why);
                }
            }
        }
        false
    }
}

/// An instance that is wanted, has no place here, and is on a node nevertheless, has its place there.
fn learn(zone: &Zone, world: &mut World, d: &mut Decisions, id: &str) {
    if world.placed.contains_key(id) || !world.wanted.contains_key(id) {
        return;
    }
    let mut nodes = zone.nodes.reporting(id);
    nodes.retain(|name| !zone.nodes.get(name).is_some_and(|n| n.has_released(id)));
    // Where it is whole rather than where only its end is remembered.
    nodes.sort_by_key(|name| zone.nodes.get(name).is_some_and(|n| n.is_gone(id)));
    if let Some(node) = nodes.into_iter().next() {
        world.place(d, id, &node, format!("found on {node}, which reports it"));
    }
}

/// Decides for each what is next: wait for a place, or be forgotten.
fn sort_out(
    zone: &Zone,
    world: &mut World,
    d: &mut Decisions,
    look: &BTreeSet<String>,
    touched: &mut BTreeSet<String>,
) {
    for id in look {
        let Some(held) = world.wanted.get(id) else {
            world.waiting.remove(id);
            continue;
        };
        let (desired, listed, generation) = (held.body.desired, held.listed, held.body.generation);
        let (elsewhere, awaits) = (held.body.boot.root.is_elsewhere(), held.body.awaits.is_some());
        let place = world.placed.get(id).cloned();
        let at_its_end = desired == Desired::Terminated && !listed;
        match place {
            Some(node) => {
                if at_its_end && zone.nodes.get(&node).is_some_and(|n| n.is_gone(id)) {
                    world.forget(d, id);
                    d.events.push((id.clone(), format!("gone from {node}, and the cloud-controller knows")));
                    touched.insert(node);
                    continue;
                }
                let said = zone.nodes.get(&node).and_then(|n| n.report(id));
                let released = said.is_some_and(|r| r.released && r.generation == generation);
                if released && desired == Desired::Stopped && elsewhere {
                    world.unplace(d, id, format!("off, and nothing of it is on {node}: it may be started anywhere"));
                    touched.insert(node);
                }
            }
            None if at_its_end && !world.doubted.contains(id) => {
                world.forget(d, id);
            }
            None if listed && desired == Desired::Running && !awaits => {
                world.waiting.entry(id.clone()).or_default();
            }
            None => {
                world.waiting.remove(id);
            }
        }
    }
}

/// Tells the tier above how an instance is.
fn report(zone: &Zone, world: &World, id: &str) {
    let Some(held) = world.wanted.get(id) else { return };
    let Some(node) = world.placed.get(id) else {
        // Of what is doubted nothing is known: "waiting" might be said of a guest that runs.
        if held.listed && !world.doubted.contains(id) {
            zone.reports.put(unplaced(world, id, &held.body));
        }
        return;
    };
    let known = zone.nodes.get(node);
    let seen = known.as_ref().and_then(|n| n.report(id)).or_else(|| zone.reports.get(id).filter(|r| r.node.is_some()));
    let presence = known.map(|n| n.presence(zone.begun, zone.config.lease()));
    let silent = match presence {
        Some(Presence::Silent(why)) => Some(why),
        None => Some("it never registered with this store".to_owned()),
        Some(Presence::Up | Presence::Expected) => None,
    };
    let report = match (seen, silent) {
        (Some(r), _) if r.observed == Observed::Gone => r,
        (Some(mut r), Some(why)) => {
            r.observed = Observed::Unreachable;
            r.reason = format!("node {node} does not answer: {why}");
            r
        }
        // What was last said here while the node was silent is not what the node said.
        (Some(r), None) if r.observed == Observed::Unreachable => return,
        (Some(r), None) => r,
        (None, Some(why)) => {
            let mut r = of(&held.body, Observed::Unreachable, format!("node {node} does not answer: {why}"));
            r.node = Some(node.clone());
            r
        }
        // Before the node has spoken nothing is known, and saying "waiting" of a guest that runs would be wrong.
        (None, None) if !zone.nodes.get(node).is_some_and(|n| n.observed()) => return,
        (None, None) => {
            let mut r = of(&held.body, Observed::Waiting, format!("placed on {node}, which has not taken it over yet"));
            r.node = Some(node.clone());
            r
        }
    };
    zone.reports.put(report);
}

fn unplaced(world: &World, id: &str, body: &Instance) -> InstanceReport {
    match body.desired {
        Desired::Running => {
            let awaits = body.awaits.clone().or_else(|| world.waiting.get(id).cloned());
            of(body, Observed::Waiting, awaits.unwrap_or_default())
        }
        Desired::Stopped => of(body, Observed::Stopped, ""),
        Desired::Terminated => of(body, Observed::Gone, ""),
        Desired::Unknown => of(body, Observed::Waiting, "what is wanted of it is of a later release"),
    }
}

fn of(body: &Instance, observed: Observed, reason: impl Into<String>) -> InstanceReport {
    let mut report = InstanceReport::new(&body.id, observed);
    report.generation = body.generation;
    report.reason = reason.into();
    report
}

/// An instance that runs where it has no place, while it has one elsewhere, is what must never be: it is shown.
fn show_doubles(zone: &Zone, world: &World, look: bool) {
    if !look {
        return;
    }
    let doubles: Vec<String> = zone
        .nodes
        .reported()
        .into_iter()
        .filter_map(|(id, nodes)| {
            let place = world.placed.get(&id)?;
            let elsewhere: Vec<String> = nodes
                .into_iter()
                .filter(|n| n != place && !zone.nodes.get(n).is_some_and(|n| n.is_gone(&id) || n.has_released(&id)))
                .collect();
            (!elsewhere.is_empty())
                .then(|| format!("{id} has its place on {place} and is also on {}", elsewhere.join(", ")))
        })
        .collect();
    if doubles.is_empty() {
        zone.about.faults.clear("double");
    } else {
        zone.about.faults.raise(
            "double",
            doubles.join("; "),
            "end the copy that should not be on its node by hand; nothing is ended by itself",
        );
    }
}
