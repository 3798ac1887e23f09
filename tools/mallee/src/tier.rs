//! How the tiers of this machine are started: one [`Plan`] each, like any engine.

use std::path::{Path, PathBuf};

use mallee_engines::{Plan, Ready, process};
use mallee_tiers::Role;

use crate::error::{Error, Result};
use crate::machine::{Machine, Tier};
use crate::state::State;

/// The tiers' programs, in the order they are started.
pub const ROLES: [Role; 5] =
    [Role::CloudController, Role::Walrus, Role::ClusterController, Role::StorageController, Role::NodeController];

/// The supervisor's own name among the records and logs.
pub const SUPERVISOR: &str = "supervisor";

pub fn plan(state: &State, machine: &Machine, tier: &Tier) -> Plan {
    let role = tier.role.as_str();
    let command = vec![
        machine.programs.join(role).display().to_string(),
        "--config".to_owned(),
        state.config(role).display().to_string(),
    ];
    let ready = match tier.listen.first() {
        Some(address) => Ready::Tcp { address: *address },
        None => Ready::Unix { socket: state.tier(role).join("admin.sock") },
    };
    Plan { environment: environment(), ..Plan::new(role, &state.run(), &state.log(), command, ready) }
}

pub fn plans(state: &State, machine: &Machine) -> Vec<Plan> {
    machine.tiers.iter().map(|tier| plan(state, machine, tier)).collect()
}

/// The supervisor is started like what it supervises: in a session of its own, found again by its record.
pub fn supervisor_plan(state: &State) -> Result<Plan> {
    let program = own_program()?;
    let command = vec![
        program.display().to_string(),
        "supervise".to_owned(),
        "--state".to_owned(),
        state.root().display().to_string(),
    ];
    let ready = Ready::Unix { socket: state.supervisor_socket() };
    Ok(Plan { environment: environment(), ..Plan::new(SUPERVISOR, &state.run(), &state.log(), command, ready) })
}

/// Daemons are started with an empty environment; how much they log is the one thing that may be said from outside.
fn environment() -> Vec<(String, String)> {
    let level = std::env::var("MALLEE_LOG").ok();
    level.map(|level| ("MALLEE_LOG".to_owned(), level)).into_iter().collect()
}

pub fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().map_err(Error::file("finding", "the program of this command"))?;
    // After a rebuild the kernel says that the file this process was started from is gone; its successor has its name.
    match path.to_string_lossy().strip_suffix(" (deleted)") {
        Some(name) => Ok(name.into()),
        None => Ok(path),
    }
}

/// Runs, but from a file that was replaced since (an upgrade, a rebuild) or is another one than now wanted.
pub fn is_outdated(plan: &Plan) -> bool {
    let Some(process) = process::find(plan) else {
        return false;
    };
    let running = std::fs::read_link(format!("/proc/{}/exe", process.pid()));
    let wanted = plan.command.first().map(|program| Path::new(program).canonicalize());
    match (running, wanted) {
        (Ok(running), Some(Ok(wanted))) => running != wanted,
        _ => false,
    }
}
