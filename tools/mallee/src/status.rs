//! `mallee status`: how the cloud is, as far as it can be asked, and how this machine is, which always can be. The exit code
//! says whether all of it is as it should be.

use std::collections::BTreeMap;

use mallee_engines::{Engines, Phase};
use mallee_service::process::rss_kib;
use mallee_tiers::{CloudStatus, Fault, Role, StatusAsked, ZoneNode};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::machine::{Machine, Wanted};
use crate::output::out;
use crate::state::State;
use crate::supervise::{Answer, Ask, ask};
use crate::table::{memory, span, table, time};
use crate::{admin, down, needs, tier, up};

#[derive(Serialize)]
struct Shown {
    state: String,
    /// What the cloud-controller says; absent while it does not answer.
    cloud: Option<CloudStatus>,
    cloud_trouble: Option<String>,
    /// Of this machine, from its own processes.
    tiers: Vec<Process>,
    engines: Vec<Process>,
    supervisor: Process,
    /// Running QEMU processes of this machine.
    guests: Vec<String>,
    rss_kib: Rss,
}

#[derive(Serialize)]
struct Rss {
    tiers: u64,
    engines: u64,
    supervisor: u64,
}

#[derive(Serialize)]
struct Process {
    name: String,
    phase: &'static str,
    pid: Option<i32>,
    rss_kib: u64,
    restarts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_end: Option<String>,
}

/// Whether everything answers.
pub async fn run(state: &State, json: bool) -> Result<bool> {
    needs::root()?;
    let machine = Machine::expect(state)?;
    let shown = gather(state, &machine).await?;
    let well = shown.is_well(&machine);
    if json {
        let text = serde_json::to_string_pretty(&shown).map_err(|error| Error::refused(error.to_string()))?;
        out!("{text}");
        return Ok(well);
    }
    print(&machine, &shown);
    Ok(well)
}

impl Shown {
    fn is_well(&self, machine: &Machine) -> bool {
        let processes = self.tiers.iter().chain(&self.engines).chain([&self.supervisor]);
        let heard = match &self.cloud {
            Some(cloud) => up::missing(machine, cloud).is_empty(),
            // A machine that joined cannot ask; its own processes are all it knows.
            None => machine.tier(Role::CloudController).is_none(),
        };
        heard && processes.into_iter().all(|process| process.phase == "answers")
    }
}

async fn gather(state: &State, machine: &Machine) -> Result<Shown> {
    let (cloud, cloud_trouble) = if machine.tier(Role::CloudController).is_some() {
        match admin::client(state).status(&StatusAsked::default()).await {
            Ok(cloud) => (Some(cloud), None),
            Err(error) => (None, Some(error.message)),
        }
    } else {
        let words = format!(
            "this machine belongs to the cloud at {}; `mallee status` there shows all of it",
            machine.cloud_controller
        );
        (None, Some(words))
    };
    let answer = ask(state, &Ask::Status).await.unwrap_or_default();
    let tiers = processes(&tier::plans(state, machine), &answer).await;
    let engines = match &machine.engines {
        Some(config) => processes(Engines::look(config.clone()).await?.plans(), &answer).await,
        None => Vec::new(),
    };
    let supervisor = processes(&[tier::supervisor_plan(state)?], &answer).await;
    let sum = |processes: &[Process]| processes.iter().map(|process| process.rss_kib).sum();
    let rss_kib = Rss { tiers: sum(&tiers), engines: sum(&engines), supervisor: sum(&supervisor) };
    let supervisor = supervisor.into_iter().next().ok_or_else(|| Error::refused("no supervisor is planned"))?;
    Ok(Shown {
        state: state.root().display().to_string(),
        cloud,
        cloud_trouble,
        tiers,
        engines,
        supervisor,
        guests: down::guests(state),
        rss_kib,
    })
}

async fn processes(plans: &[mallee_engines::Plan], answer: &Answer) -> Vec<Process> {
    let seen: BTreeMap<&str, _> = answer.daemons.iter().map(|daemon| (daemon.name.as_str(), daemon)).collect();
    let statuses = mallee_engines::status(plans).await;
    statuses
        .into_iter()
        .map(|status| {
            let (phase, pid) = match status.phase {
                Phase::Ready { pid } => ("answers", Some(pid)),
                Phase::Starting { pid } => ("starting", Some(pid)),
                Phase::Waiting | Phase::Down { .. } | Phase::Stopped => ("down", None),
            };
            let watched = seen.get(status.name.as_str());
            Process {
                phase,
                pid,
                rss_kib: pid.and_then(|pid| u32::try_from(pid).ok()).map(rss_kib).unwrap_or_default(),
                restarts: watched.map(|daemon| daemon.restarts).unwrap_or_default(),
                last_end: watched.and_then(|daemon| daemon.last_end.clone()),
                name: status.name,
            }
        })
        .collect()
}

fn print(machine: &Machine, shown: &Shown) {
    if machine.wanted == Wanted::Engines {
        out!("The cloud was taken down; `mallee up` brings it back.\n");
    }
    match (&shown.cloud, &shown.cloud_trouble) {
        (Some(cloud), _) => print_cloud(cloud),
        (None, trouble) => {
            let asked = machine.tier(Role::CloudController).is_some();
            let words = if asked { "The cloud-controller does not answer" } else { "Joined" };
            out!("{words}: {}\n", trouble.as_deref().unwrap_or("unknown"));
            out!("{}\n", processes_table("TIER", &shown.tiers));
        }
    }
    // Tiers of this machine that the cloud cannot know to be down are shown by their processes.
    let down: Vec<&Process> =
        shown.tiers.iter().filter(|process| process.phase != "answers" || process.restarts > 0).collect();
    if shown.cloud.is_some() && !down.is_empty() {
        let mut lines = table(["TIER", "HERE", "PID", "RESTARTS", "LAST END"]);
        for process in down {
            lines.add_row(row_of(process));
        }
        out!("{lines}\n");
    }
    if !shown.engines.is_empty() {
        out!("{}\n", processes_table("ENGINE", &shown.engines));
    }
    if shown.supervisor.pid.is_none() {
        out!("No supervisor runs here: what ends stays down until `mallee up`.\n");
    }
    if !shown.guests.is_empty() {
        out!("Guests running on this machine: {}\n", shown.guests.join(", "));
    }
    out!(
        "Memory: tiers {}, engines {}, supervisor {}",
        memory(shown.rss_kib.tiers),
        memory(shown.rss_kib.engines),
        memory(shown.rss_kib.supervisor)
    );
}

fn row_of(process: &Process) -> [String; 5] {
    [
        process.name.clone(),
        process.phase.to_owned(),
        process.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        process.restarts.to_string(),
        process.last_end.clone().unwrap_or_default(),
    ]
}

fn processes_table(what: &str, processes: &[Process]) -> String {
    let mut lines = table([what, "STATE", "PID", "RESTARTS", "MEMORY"]);
    for process in processes {
        let [name, phase, pid, restarts, _] = row_of(process);
        lines.add_row([name, phase, pid, restarts, memory(process.rss_kib)]);
    }
    lines.to_string()
}

fn print_cloud(cloud: &CloudStatus) {
    out!("Cloud {}\n", cloud.region);
    let mut tiers = table(["TIER", "ZONE", "NAME", "ADDRESS", "STATE", "PID", "VERSION", "MEMORY", "UP"]);
    let mut faults: Vec<(String, Fault)> = Vec::new();
    let mut troubles = Vec::new();
    for row in &cloud.tiers {
        let (state, pid, version, rss, up) = match &row.status {
            Some(status) => {
                faults.extend(status.faults.iter().map(|fault| (format!("{} {}", row.role, row.name), fault.clone())));
                let up = span(status.now - status.started);
                ("answers".to_owned(), status.pid.to_string(), status.version.clone(), memory(status.rss_kib), up)
            }
            None => {
                troubles.push(format!("No answer: {}", row.trouble));
                ("no answer".to_owned(), String::new(), String::new(), String::new(), String::new())
            }
        };
        let who = [row.role.to_string(), row.zone.clone(), row.name.clone(), row.address.clone()];
        tiers.add_row(who.into_iter().chain([state, pid, version, rss, up]));
    }
    for ZoneNode { zone, node } in &cloud.nodes {
        let status = node.status.as_ref().map(|status| &status.tier);
        if let Some(status) = status {
            faults.extend(status.faults.iter().map(|fault| (format!("node {}", node.node), fault.clone())));
        }
        let state = if node.state == "up" { "answers".to_owned() } else { format!("{} {}", node.state, node.reason) };
        tiers.add_row([
            Role::NodeController.to_string(),
            zone.clone(),
            node.node.clone(),
            node.address.clone(),
            state,
            status.map(|status| status.pid.to_string()).unwrap_or_default(),
            status.map(|status| status.version.clone()).unwrap_or_default(),
            status.map(|status| memory(status.rss_kib)).unwrap_or_default(),
            status.map(|status| span(status.now - status.started)).unwrap_or_default(),
        ]);
    }
    out!("{tiers}\n");
    for trouble in &troubles {
        out!("{trouble}");
    }
    if !troubles.is_empty() {
        out!("");
    }
    out!("{}\n", nodes_table(&cloud.nodes));
    if !cloud.instances_by_state.is_empty() {
        let states: Vec<String> =
            cloud.instances_by_state.iter().map(|(state, count)| format!("{count} {state}")).collect();
        out!("Instances: {}\n", states.join(", "));
    }
    if !cloud.orphans.is_empty() {
        out!("Orphans (run, and nobody asked for them; nothing touches them): {}\n", cloud.orphans.join(", "));
    }
    if !faults.is_empty() {
        let mut lines = table(["FAULT OF", "SINCE (UTC)", "WHAT", "REMEDY"]);
        for (of, fault) in faults {
            lines.add_row([of, time(fault.since), fault.what, fault.remedy]);
        }
        out!("{lines}\n");
    }
}

pub fn nodes_table(nodes: &[ZoneNode]) -> String {
    let mut lines = table(["NODE", "ZONE", "STATE", "HYPERVISOR", "VCPUS", "MEMORY MiB", "DISK GiB", "INSTANCES"]);
    for ZoneNode { zone, node } in nodes {
        let of = |used: u64, total: u64| format!("{used} of {total}");
        let state =
            if node.reason.is_empty() { node.state.clone() } else { format!("{}: {}", node.state, node.reason) };
        lines.add_row([
            node.node.clone(),
            zone.clone(),
            state,
            node.hypervisor.clone(),
            of(node.used.vcpus.into(), node.capacity.vcpus.into()),
            of(node.used.memory_mib, node.capacity.memory_mib),
            of(node.used.disk_gib, node.capacity.disk_gib),
            node.instances.to_string(),
        ]);
    }
    lines.to_string()
}
