//! What the cluster-controller answers to the other tiers.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use mallee_tiers::{
    Adopt, ClusterController, Console, ConsoleAsked, Done, Instance, InstanceReport, Intent, IntentAnswer, NodeAsked,
    NodeRegistered, NodeRegistration, Observation, Observe, Peer, StatusAsked, TierError, WhyAnswer, WhyAsked, WhyLine,
    ZoneStatus,
};

use crate::{Zone, event, instance, node};

/// So many nodes are asked at the same time for `status`.
const ASKED_AT_ONCE: usize = 64;

/// The zone as the other tiers see it.
pub(crate) struct Front(pub Arc<Zone>);

impl std::ops::Deref for Front {
    type Target = Arc<Zone>;
    fn deref(&self) -> &Arc<Zone> {
        &self.0
    }
}

#[async_trait::async_trait]
impl ClusterController for Front {
    async fn intend(&self, _: &Peer, intent: Intent<Instance>) -> Result<IntentAnswer, TierError> {
        self.take_list(intent).await
    }

    async fn observe(&self, _: &Peer, ask: Observe) -> Result<Observation<InstanceReport>, TierError> {
        // Reports are made from what nodes say. An answer before they spoke would miss guests that run.
        let mut ready = self.ready.subscribe();
        let _ = tokio::time::timeout(self.config.lease().min(Duration::from_secs(30)), ready.wait_for(|ready| *ready))
            .await;
        Ok(self.reports.observe(&ask).await)
    }

    async fn console(&self, _: &Peer, ask: ConsoleAsked) -> Result<Console, TierError> {
        let place = self.place_of(&ask.instance).await;
        let node = place.ok_or_else(|| TierError::not_found(format!("{} is on no node of this zone", ask.instance)))?;
        let node =
            self.nodes.get(&node).ok_or_else(|| TierError::unreachable(format!("node {node} has not registered")))?;
        node.client(&self.identity)?.console(&ask).await
    }

    async fn why(&self, _: &Peer, ask: WhyAsked) -> Result<WhyAnswer, TierError> {
        let mut lines = self.own_lines(&ask.id).await?;
        if let Some(node) = self.place_of(&ask.id).await.and_then(|name| self.nodes.get(&name)) {
            let client = node.client(&self.identity)?;
            match tokio::time::timeout(Duration::from_secs(3), client.why(&ask)).await {
                Ok(Ok(answer)) => lines.extend(answer.lines),
                Ok(Err(e)) => lines.push(self.line("observed", format!("node {} does not say why: {e}", node.name))),
                Err(_) => lines.push(self.line("observed", format!("node {} does not say why within 3 s", node.name))),
            }
        }
        Ok(WhyAnswer { lines })
    }

    async fn status(&self, _: &Peer, _: StatusAsked) -> Result<ZoneStatus, TierError> {
        let (mut nodes, orphans) = {
            let world = self.world.lock().await;
            let mut rows = Vec::new();
            for node in self.nodes.all() {
                let on = world.as_ref().and_then(|w| w.on.get(&node.name));
                let used = world.as_ref().map(|w| w.used(&self.0, &node.name)).unwrap_or_default();
                let instances = on.map_or(0, |on| on.iter().filter(|id| !node.is_gone(id)).count());
                rows.push((node.clone(), self.node_row(&node, used, instances as u32)));
            }
            (rows, world.as_ref().map(|w| self.orphans(w)).unwrap_or_default())
        };
        let asked = nodes
            .iter()
            .enumerate()
            .filter(|(_, (_, row))| row.state != "silent")
            .map(|(i, (node, _))| (i, node.clone()));
        let asked: Vec<_> = asked.collect();
        let answers: Vec<_> = stream::iter(asked)
            .map(|(i, n)| async move { (i, node::ask_status(&self.0, &n).await) })
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        for (i, status) in answers {
            nodes[i].1.status = status;
        }
        Ok(ZoneStatus { tier: self.about.status(), nodes: nodes.into_iter().map(|(_, row)| row).collect(), orphans })
    }

    async fn adopt(&self, _: &Peer, adopt: Adopt) -> Result<Done, TierError> {
        self.book.adopt(adopt.sender).await.map_err(|e| TierError::internal(e.to_string()))?;
        self.about.faults.clear("list");
        Ok(Done {})
    }

    async fn change_node(&self, _: &Peer, asked: NodeAsked) -> Result<Done, TierError> {
        self.0.change_node(asked).await.map(|()| Done {})
    }

    async fn register_node(&self, from: &Peer, registration: NodeRegistration) -> Result<NodeRegistered, TierError> {
        self.register(from, registration).await
    }
}

impl Zone {
    async fn place_of(&self, instance: &str) -> Option<String> {
        self.world.lock().await.as_ref()?.placed.get(instance).cloned()
    }

    /// What is here and in no list: on a node without a wish, or with a wish that the last list did not name.
    fn orphans(&self, world: &instance::World) -> Vec<String> {
        let listed = |id: &str| world.wanted.get(id).is_some_and(|h| h.listed);
        // One that is terminated and not listed is on its way out.
        let leaving =
            |id: &str| world.wanted.get(id).is_some_and(|h| h.body.desired == mallee_tiers::Desired::Terminated);
        let reported = self
            .nodes
            .reported()
            .into_iter()
            .filter(|(id, nodes)| nodes.iter().any(|n| !self.nodes.get(n).is_some_and(|n| n.is_gone(id))));
        let held = reported.map(|(id, _)| id).chain(world.placed.keys().cloned());
        let orphans: BTreeSet<String> = held.filter(|id| !listed(id) && !leaving(id)).collect();
        orphans.into_iter().collect()
    }

    fn line(&self, kind: &str, text: String) -> WhyLine {
        WhyLine { by: self.config.daemon.zone.clone(), kind: kind.into(), at: self.clock.now_ms(), text }
    }

    async fn own_lines(&self, id: &str) -> Result<Vec<WhyLine>, TierError> {
        let mut lines = Vec::new();
        {
            let world = self.world.lock().await;
            let held = world.as_ref().and_then(|w| w.wanted.get(id));
            if let Some(held) = held {
                let orphan = if held.listed { "" } else { "; the last list does not name it" };
                lines.push(self.line("asked", format!("{}{orphan}", instance::asked(&held.body))));
            }
            if let Some(world) = world.as_ref() {
                if let Some(node) = world.placed.get(id) {
                    lines.push(self.line("decided", format!("its place is node {node}")));
                } else if world.doubted.contains(id) {
                    lines.push(
                        self.line("decided", "no place yet: this store is new, and its nodes are heard first".into()),
                    );
                } else if let Some(why) = world.waiting.get(id) {
                    lines.push(self.line("decided", format!("no place yet: {why}")));
                }
            }
            for node in self.nodes.reporting(id) {
                if held.is_none() {
                    lines.push(self.line("observed", format!("an orphan on node {node}: no list names it")));
                }
            }
        }
        for (at, text) in event::of(&self.store, id).await.map_err(|e| TierError::internal(e.to_string()))? {
            lines.push(WhyLine { by: self.config.daemon.zone.clone(), kind: "happened".into(), at, text });
        }
        if let Some(report) = self.reports.get(id) {
            let step = if report.step.is_empty() { String::new() } else { format!(" at {}", report.step) };
            let reason = if report.reason.is_empty() { String::new() } else { format!(": {}", report.reason) };
            lines.push(self.line("observed", format!("{:?}{step}{reason}", report.observed).to_lowercase()));
        }
        Ok(lines)
    }
}
