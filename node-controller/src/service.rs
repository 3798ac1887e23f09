//! What the node-controller does for its cluster-controller.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use mallee_engines::{Phase, Plan};
use mallee_service::process;
use mallee_tiers::{
    Console, ConsoleAsked, Desired, EngineStatus, Instance, InstanceReport, Intent, IntentAnswer, NodeController,
    NodeStatus, Observation, Observe, Peer, Reports, StatusAsked, TierError, TierErrorKind, WhyAnswer, WhyAsked,
    WhyLine,
};

use tokio::sync::watch;

use crate::instance::Machine;

/// The most of a console that is sent at once.
const CONSOLE_LIMIT: u64 = 4 << 20;

pub struct Node {
    pub zone: String,
    pub machine: Arc<Machine>,
    pub reports: Arc<Reports<InstanceReport>>,
    pub about: process::About,
    /// The engines of this machine, as far as the configuration names them.
    pub plans: Vec<Plan>,
    pub versions: Mutex<BTreeMap<String, String>>,
    /// Whether everything here has been seen since the start.
    pub looked: watch::Receiver<bool>,
}

impl Node {
    /// A cluster-controller of another zone has no business here.
    fn admit(&self, from: &Peer) -> Result<(), TierError> {
        if from.zone.is_empty() || from.zone == self.zone {
            return Ok(());
        }
        let why =
            format!("this node belongs to {}, and the cluster-controller {} to {}", self.zone, from.name, from.zone);
        Err(TierError::new(TierErrorKind::Forbidden, why))
    }

    async fn engines(&self) -> Vec<EngineStatus> {
        let mut all = Vec::new();
        for (status, plan) in mallee_engines::status(&self.plans).await.into_iter().zip(&self.plans) {
            let pid = match status.phase {
                Phase::Ready { pid } | Phase::Starting { pid } => u32::try_from(pid).ok(),
                _ => None,
            };
            let rss_kib = pid.map_or(0, process::rss_kib);
            let version = self.version(plan).await;
            all.push(EngineStatus { name: status.name, pid, rss_kib, restarts: u64::from(status.restarts), version });
        }
        all
    }

    /// The first line an engine says of itself, asked once.
    async fn version(&self, plan: &Plan) -> String {
        let Some(program) = plan.command.first() else { return String::new() };
        if let Some(known) = self.versions.lock().unwrap_or_else(PoisonError::into_inner).get(program) {
            return known.clone();
        }
        let said = tokio::process::Command::new(program).arg("--version").output().await;
        let line = said
            .ok()
            .and_then(|o| String::from_utf8_lossy(&o.stdout).lines().next().map(str::to_owned))
            .unwrap_or_default();
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).insert(program.clone(), line.clone());
        line
    }
}

#[async_trait]
impl NodeController for Node {
    async fn intend(&self, from: &Peer, intent: Intent<Instance>) -> Result<IntentAnswer, TierError> {
        self.admit(from)?;
        for body in &intent.bodies {
            check_id(&body.id)?;
        }
        self.machine.wishes.take(intent).await
    }

    async fn observe(&self, from: &Peer, ask: Observe) -> Result<Observation<InstanceReport>, TierError> {
        self.admit(from)?;
        // Right after its start the node has seen nothing yet; saying so would look as if nothing were here.
        let wait = Duration::from_millis(ask.wait_ms.clamp(1_000, 30_000));
        let mut looked = self.looked.clone();
        let looked =
            tokio::time::timeout(wait, looked.wait_for(|looked| *looked)).await.is_ok_and(|looked| looked.is_ok());
        if !looked {
            return Err(TierError::unreachable(format!(
                "node {} has just started and its hypervisor has not answered yet",
                self.machine.node
            )));
        }
        Ok(self.reports.observe(&ask).await)
    }

    async fn console(&self, from: &Peer, asked: ConsoleAsked) -> Result<Console, TierError> {
        self.admit(from)?;
        check_id(&asked.instance)?;
        let id = asked.instance;
        let wish = self.machine.wishes.get(&id).await.map_err(|e| TierError::internal(e.to_string()))?;
        if wish.is_none() && self.reports.get(&id).is_none() {
            return Err(TierError::not_found(format!("this node has no instance {id}")));
        }
        let at = self.machine.clock.now_ms();
        let facts = self.machine.rows.get(&id).await.map_err(|e| TierError::internal(e.to_string()))?;
        // Off or gone: what was kept. Else what the log says now.
        if let Some(data) = facts.console {
            return Ok(Console { data, at });
        }
        let bytes = asked.bytes.min(CONSOLE_LIMIT);
        let text =
            self.machine.console(&id, bytes).map_err(|e| TierError::internal(format!("the console of {id}: {e}")))?;
        Ok(Console { data: STANDARD.encode(text), at })
    }

    async fn why(&self, from: &Peer, asked: WhyAsked) -> Result<WhyAnswer, TierError> {
        self.admit(from)?;
        let machine = &self.machine;
        let internal = |e: mallee_store::Error| TierError::internal(e.to_string());
        let (by, at) = (format!("node {}", machine.node), machine.clock.now_ms());
        let line = |kind: &str, at, text: String| WhyLine { by: by.clone(), kind: kind.into(), at, text };
        let mut lines = Vec::new();
        if let Some(wish) = machine.wishes.get(&asked.id).await.map_err(internal)? {
            let listed = if wish.listed { "" } else { ", and the last list does not name it" };
            let generation = wish.body.generation;
            let wanted = match wish.body.desired {
                Desired::Running => "running",
                Desired::Stopped => "stopped",
                Desired::Terminated => "terminated",
                Desired::Unknown => "in a way this release does not know",
            };
            lines.push(line(
                "asked",
                at,
                format!("wanted {wanted} (generation {}.{}){listed}", generation.epoch, generation.counter),
            ));
        }
        for (when, text) in machine.rows.history(&asked.id).await.map_err(internal)? {
            lines.push(line("happened", when, text));
        }
        match machine.hypervisor.look(&asked.id).await {
            Ok(Some(seen)) => lines.push(line(
                "observed",
                at,
                format!("its domain is {:?} on {}", seen.power, machine.hypervisor.kind()),
            )),
            Ok(None) => {}
            Err(e) => lines.push(line("observed", at, e.to_string())),
        }
        if let Some(report) = self.reports.get(&asked.id) {
            let at_step = if report.step.is_empty() { String::new() } else { format!(" at step {}", report.step) };
            let reason = if report.reason.is_empty() { String::new() } else { format!(": {}", report.reason) };
            lines.push(line("observed", at, format!("reported {:?}{at_step}{reason}", report.observed)));
            for a in report.attachments.iter().filter(|a| !a.reason.is_empty()) {
                lines.push(line("observed", at, format!("{}: {}", a.volume, a.reason)));
            }
        }
        Ok(WhyAnswer { lines })
    }

    async fn status(&self, from: &Peer, _: StatusAsked) -> Result<NodeStatus, TierError> {
        self.admit(from)?;
        Ok(NodeStatus {
            tier: self.about.status(),
            hypervisor: self.machine.hypervisor.kind().to_owned(),
            hypervisor_reason: self.machine.hypervisor.why().to_owned(),
            engines: self.engines().await,
        })
    }
}

/// An id becomes the name of a folder and of a domain, so it is checked although its sender is trusted.
fn check_id(id: &str) -> Result<(), TierError> {
    let digits = id.strip_prefix("i-").unwrap_or_default();
    if (1..=32).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(TierError::new(TierErrorKind::Malformed, format!("{id:?} is no instance id")))
}

#[cfg(test)]
mod tests {
    use super::check_id;

    #[test]
    fn an_id_cannot_name_another_folder() {
        assert!(check_id("i-0123456789abcdef0").is_ok());
        for bad in ["", "i-", "i-../../etc", "../i-1", "i-1/..", "x-1", "i-1\0", "i-é"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
