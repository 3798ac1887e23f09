//! `mallee down`: the tiers end, guests go on. `mallee down --all`: nothing is left.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mallee_engines::{Engines, process};

use crate::error::{Error, Result};
use crate::machine::{Machine, Wanted};
use crate::output::out;
use crate::progress::step;
use crate::state::State;
use crate::supervise::{Ask, ask};
use crate::{guard, internet, needs, tier, up};

const EXPORT_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// End the guests too, and remove everything: volumes, images, buckets, accounts, the network
    #[arg(long)]
    pub all: bool,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    let mut machine = Machine::expect(state)?;
    let _only_one = state.lock()?;
    let guests = guests(state);
    if choices.all {
        confirm(state, &guests, choices)?;
    }
    machine.wanted = Wanted::Engines;
    machine.save(state)?;
    let begun = step("tiers");
    let stopped = stop_tiers(state, &machine).await;
    begun.outcome(stopped, |()| "ended".to_owned())?;
    if choices.all {
        return remove_all(state, &machine).await;
    }
    if guests.is_empty() {
        let begun = step("engines");
        let stopped = stop_engines(state, &machine).await;
        begun.outcome(stopped, |()| "ended: no guest needs them".to_owned())?;
        out!("Everything has ended; what the cloud keeps is in {}. `mallee up` goes on.", state.root().display());
    } else {
        // Also where it had been killed: the switch must be back at once, whatever ends it.
        up::start_supervisor(state, &machine, Some(&machine)).await?;
        out!("Running on: {}.", guests.join(", "));
        out!("For their disks and packets these stay: libvirtd, Open vSwitch, OVN, volume exports, and the supervisor");
        out!("that restarts them. `mallee up` goes on; `mallee down --all` ends them too.");
    }
    Ok(())
}

/// Guests by their names, whoever started them: QEMU processes that libvirt has a record of.
pub fn guests(state: &State) -> Vec<String> {
    let records = std::fs::read_dir(state.engines().join("virt/run/qemu"));
    let mut names: Vec<String> = records
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
        .filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            let pid = std::fs::read_to_string(&path).ok()?;
            let command = std::fs::read(format!("/proc/{}/cmdline", pid.trim())).ok()?;
            String::from_utf8_lossy(&command).contains(&format!("guest={name},")).then_some(name)
        })
        .collect();
    names.sort();
    names
}

fn confirm(state: &State, guests: &[String], choices: &Choices) -> Result<()> {
    if choices.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::refused("this removes everything the cloud keeps: say --yes"));
    }
    eprintln!("This ends {} guests and removes {} with everything in it:", guests.len(), state.root().display());
    eprint!("instances, volumes, images, buckets, accounts. Type yes to go on: ");
    // Only a prompt.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Error::file("reading", "standard input"))?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Error::refused("nothing was done")) }
}

/// Through the supervisor where one runs, else one by one.
async fn stop_tiers(state: &State, machine: &Machine) -> Result<()> {
    if process::find(&tier::supervisor_plan(state)?).is_some() && ask(state, &Ask::Look).await.is_ok() {
        return Ok(());
    }
    for plan in tier::plans(state, machine).iter().rev() {
        process::stop(plan).await?;
    }
    Ok(())
}

async fn stop_engines(state: &State, machine: &Machine) -> Result<()> {
    process::stop(&tier::supervisor_plan(state)?).await?;
    if let Some(config) = &machine.engines {
        let engines = Engines::look(config.clone()).await?;
        for plan in engines.plans().iter().rev() {
            process::stop(plan).await?;
        }
    }
    Ok(())
}

async fn remove_all(state: &State, machine: &Machine) -> Result<()> {
    process::stop(&tier::supervisor_plan(state)?).await?;
    // An asked supervisor that had no answer, or none at all: whatever tier still runs.
    for plan in tier::plans(state, machine).iter().rev() {
        process::stop(plan).await?;
    }
    if let Some(config) = &machine.engines {
        let begun = step("guests, engines, network");
        let removed = Engines::teardown(config.clone()).await.map_err(Error::from);
        begun.outcome(removed, |remains| match remains.guests.len() {
            0 => String::new(),
            _ => format!("ended {}", remains.guests.join(", ")),
        })?;
    }
    if let Some(link) = machine.link() {
        guard::remove(link).await?;
        if let Some(before) = &machine.internet {
            internet::close(link, before).await?;
        }
    }
    let begun = step("volume exports");
    let ended = end_exports(state).await;
    begun.outcome(ended, |count| count.to_string())?;
    let begun = step("state");
    begun.outcome(remove_state(state), |()| format!("{} removed", state.root().display()))?;
    if state.root().exists() {
        out!("{} stays: there are files in it that this command did not make.", state.root().display());
    }
    out!("Nothing of the cloud is left on this machine.");
    Ok(())
}

/// Export daemons outlive the storage-controller on purpose; they are known by the volumes they serve.
async fn end_exports(state: &State) -> Result<usize> {
    let ours = format!("{}/", state.root().display());
    let running = || -> Vec<i32> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command);
                let mut words = command.split('\0');
                let program =
                    words.next().and_then(|word| Path::new(word).file_name()).map(|name| name.to_string_lossy());
                program.is_some_and(|name| name == "qemu-storage-daemon") && words.any(|word| word.contains(&ours))
            })
            .collect()
    };
    let found = running();
    let signal = |pids: &[i32], signal| {
        for pid in pids {
            // It may have ended by itself.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
        }
    };
    signal(&found, nix::sys::signal::Signal::SIGTERM);
    let deadline = tokio::time::Instant::now() + EXPORT_PATIENCE;
    while !running().is_empty() {
        if tokio::time::Instant::now() > deadline {
            signal(&running(), nix::sys::signal::Signal::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(found.len())
}

/// Only a directory that this command made, and only what it makes in one: `--state /` must never be an accident.
fn remove_state(state: &State) -> Result<()> {
    let mut made: Vec<PathBuf> =
        ["etc", "tokens", "engines", "run", "log", "accounts"].map(|name| state.root().join(name)).into();
    made.extend(tier::ROLES.map(|role| state.tier(role.as_str())));
    for directory in made {
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("removing", directory)(error));
            }
            _ => {}
        }
    }
    // Last, so that a removal that failed can be repeated.
    for file in [state.ca(), state.root().join("lock"), state.machine()] {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("removing", file)(error));
            }
            _ => {}
        }
    }
    match std::fs::remove_dir(state.root()) {
        Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
            Err(Error::file("removing", state.root())(error))
        }
        _ => Ok(()),
    }
}
