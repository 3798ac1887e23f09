//! The supervisor of one machine, where no systemd does its work: a small process that keeps engines and tiers running.
//!
//! It holds nothing that cannot be found again. What it shall do is in `machine.json`; what runs is found by pid records; so
//! it may be killed at any moment, and `mallee up` starts the next one, which adopts everything. Its socket answers one
//! JSON line with another: how things are, or "look at `machine.json` again".

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mallee_engines::{Engines, Supervisor};
use mallee_tiers::{Role, StatusAsked, TokenAsked};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};
use crate::machine::{Machine, Tier, Wanted};
use crate::state::{State, make_private};
use crate::{admin, guard, internet, tier};

/// While a tier waits for its join token; the cloud-controller is up within that.
const RETRY: Duration = Duration::from_millis(100);
/// How long a machine that has joined may be reached by guests' way to the internet.
const MACHINES: Duration = Duration::from_secs(5);
const ENGINE_PATIENCE: Duration = Duration::from_secs(60);
/// A join token of ours is good for an hour; one nearly as old is replaced.
const TOKEN_AGE: Duration = Duration::from_secs(50 * 60);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Ask {
    Status,
    /// `machine.json` has changed. Answered when it is so.
    Look,
    /// A tier has a new program or a new configuration.
    Restart {
        tier: String,
    },
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    pub error: Option<String>,
    /// What keeps it from doing what it shall.
    #[serde(default)]
    pub troubles: Vec<String>,
    #[serde(default)]
    pub daemons: Vec<Daemon>,
}

/// A supervised process as the supervisor saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    pub name: String,
    pub restarts: u32,
    #[serde(default)]
    pub last_end: Option<String>,
}

/// Runs until SIGTERM. Nothing that it supervises ends with it.
pub async fn run(state: State) -> Result<()> {
    mallee_service::log::start();
    let machine = Machine::expect(&state)?;
    make_private(&state.run())?;
    allow_many_files();
    let _only_one = Supervisor::start(&state.run().join("supervisor.lock"), Vec::new())?;
    let engines = match &machine.engines {
        Some(config) => Some(Engines::prepare(config.clone()).await?),
        None => None,
    };
    if let Some(link) = machine.link() {
        guard::close(link).await?;
        if machine.internet.is_some() {
            internet::open(link).await?;
        }
    }
    let watched = match &engines {
        Some(engines) => Some(engines.supervise(Vec::new())?),
        None => None,
    };
    if let (Some(engines), Some(watched)) = (engines, &watched) {
        if let Some(vswitchd) = watched.watch("ovs-vswitchd") {
            let engines = engines.clone();
            tokio::spawn(async move { engines.keep_tunnel(vswitchd).await });
        }
        tokio::spawn(configure(engines));
    }
    if machine.link().is_some() {
        tokio::spawn(shut_machines(state.clone()));
    }
    let socket = state.supervisor_socket();
    // A leftover: we hold the lock.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(Error::file("listening on", &socket))?;
    let mut keeper = Keeper { state, engines: watched, tiers: BTreeMap::new(), troubles: Vec::new() };
    keeper.look().await;
    tracing::info!("supervising");
    tokio::select! {
        () = keeper.serve(listener) => {}
        () = mallee_service::process::asked_to_end() => {}
    }
    tracing::info!("supervising no more; everything runs on");
    Ok(())
}

/// A login's soft limit of 1,024 open files is for people; what is started here inherits ours.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

async fn configure(engines: Engines) {
    while let Err(error) = engines.configure(ENGINE_PATIENCE).await {
        tracing::error!(%error, "the switch is not configured; trying again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// While guests reach beyond this machine, they shall not reach the other machines of the cloud.
async fn shut_machines(state: State) {
    let mut shut = None;
    loop {
        let machine = Machine::expect(&state).ok().filter(|machine| machine.internet.is_some());
        match machine.as_ref().and_then(Machine::link) {
            None => shut = None,
            Some(link) => {
                if let Ok(cloud) = admin::client(&state).status(&StatusAsked::default()).await {
                    let machines = internet::machines(link, &cloud);
                    if shut.as_ref() != Some(&machines) {
                        match internet::shut(link, &machines).await {
                            Ok(()) => shut = Some(machines),
                            Err(error) => tracing::warn!(%error, "guests may reach machines of the cloud"),
                        }
                    }
                }
            }
        }
        tokio::time::sleep(MACHINES).await;
    }
}

struct Keeper {
    state: State,
    engines: Option<Supervisor>,
    /// One supervisor for each tier, so that each can be stopped alone.
    tiers: BTreeMap<Role, (Vec<String>, Supervisor)>,
    troubles: Vec<String>,
}

impl Keeper {
    async fn serve(&mut self, listener: UnixListener) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.converse(stream).await,
                    Err(error) => tracing::warn!(%error, "accept failed"),
                },
                () = tokio::time::sleep(RETRY), if !self.troubles.is_empty() => self.look().await,
            }
        }
    }

    /// One question, one answer. Whoever is silent (a probe) is not waited for.
    async fn converse(&mut self, stream: UnixStream) {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        match tokio::time::timeout(Duration::from_secs(1), stream.read_line(&mut line)).await {
            Ok(Ok(length)) if length > 0 => {}
            _ => return,
        }
        let error = match serde_json::from_str(&line) {
            Ok(Ask::Status) => None,
            Ok(Ask::Look) => {
                self.look().await;
                None
            }
            Ok(Ask::Restart { tier }) => self.restart(&tier).err().map(|error| error.to_string()),
            Err(error) => Some(format!("not understood: {error}")),
        };
        let answer = Answer { error, troubles: self.troubles.clone(), daemons: self.daemons() };
        let mut text = serde_json::to_vec(&answer).unwrap_or_default();
        text.push(b'\n');
        // Whoever asked and went away needs no answer.
        let _ = stream.get_mut().write_all(&text).await;
    }

    fn daemons(&self) -> Vec<Daemon> {
        let supervisors = self.engines.iter().chain(self.tiers.values().map(|(_, supervisor)| supervisor));
        supervisors
            .flat_map(Supervisor::statuses)
            .map(|status| Daemon { name: status.name, restarts: status.restarts, last_end: status.last_end })
            .collect()
    }

    fn restart(&self, name: &str) -> Result<()> {
        let found = self.tiers.iter().find(|(role, _)| role.as_str() == name);
        let (_, (_, supervisor)) = found.ok_or_else(|| Error::refused(format!("no tier {name} runs here")))?;
        Ok(supervisor.restart(name)?)
    }

    /// Makes the tiers that run those that shall.
    async fn look(&mut self) {
        self.troubles.clear();
        let machine = match Machine::expect(&self.state) {
            Ok(machine) => machine,
            Err(error) => {
                self.troubles.push(error.to_string());
                return;
            }
        };
        let wanted: Vec<&Tier> = match machine.wanted {
            Wanted::Everything => machine.tiers.iter().collect(),
            Wanted::Engines => Vec::new(),
        };
        self.stop_unwanted(&machine, &wanted).await;
        for tier in wanted {
            if let Err(error) = self.ensure(&machine, tier).await {
                let trouble = format!("{}: {error}", tier.role);
                tracing::debug!(trouble, "not started yet");
                self.troubles.push(trouble);
            }
        }
    }

    /// Also stops those that shall run from another place, and those that an earlier supervisor left.
    async fn stop_unwanted(&mut self, machine: &Machine, wanted: &[&Tier]) {
        let commands: BTreeMap<Role, Vec<String>> =
            wanted.iter().map(|tier| (tier.role, tier::plan(&self.state, machine, tier).command)).collect();
        let mut going = Vec::new();
        for (role, (command, supervisor)) in std::mem::take(&mut self.tiers) {
            if commands.get(&role) == Some(&command) {
                self.tiers.insert(role, (command, supervisor));
            } else {
                tracing::info!(tier = %role, "stopping");
                going.push(tokio::spawn(supervisor.stop()));
            }
        }
        for task in going {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "stopping a tier"),
                Err(error) => tracing::error!(%error, "stopping a tier"),
            }
        }
        for tier in machine.tiers.iter().filter(|tier| !commands.contains_key(&tier.role)) {
            if let Err(error) = mallee_engines::process::stop(&tier::plan(&self.state, machine, tier)).await {
                tracing::error!(tier = %tier.role, %error, "stopping a tier");
            }
        }
    }

    async fn ensure(&mut self, machine: &Machine, tier: &Tier) -> Result<()> {
        if self.tiers.contains_key(&tier.role) {
            return Ok(());
        }
        self.ensure_token(machine, tier).await?;
        let plan = tier::plan(&self.state, machine, tier);
        let command = plan.command.clone();
        let lock = self.state.run().join(format!("{}.lock", tier.role));
        self.tiers.insert(tier.role, (command, Supervisor::start(&lock, vec![plan])?));
        Ok(())
    }

    /// A tier without a certificate needs a token for its first one, which the cloud-controller beside us gives.
    async fn ensure_token(&self, machine: &Machine, tier: &Tier) -> Result<()> {
        let role = tier.role.as_str();
        let path = self.state.token(role);
        let beside = machine.tier(Role::CloudController).is_some();
        if tier.role == Role::CloudController
            || self.state.certificate(role).exists()
            || (path.exists() && (!beside || age(&path) < TOKEN_AGE))
        {
            return Ok(());
        }
        if !beside {
            return Err(Error::refused("it has no certificate and no token: `mallee join TOKEN`"));
        }
        let asked = TokenAsked { role: tier.role, zone: tier.zone.clone(), name: tier.name.clone(), seconds: 0 };
        let token = admin::client(&self.state).join_token(&asked).await?;
        Ok(mallee_service::pki::write_secret(&path, token.token.0.as_bytes())?)
    }
}

fn age(path: &Path) -> Duration {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default()
}

/// Asks the running supervisor.
pub async fn ask(state: &State, ask: &Ask) -> Result<Answer> {
    let socket = state.supervisor_socket();
    let failed = |detail: &dyn std::fmt::Display| {
        Error::Unreachable(format!("the supervisor ({}) does not answer: {detail}", socket.display()))
    };
    let mut stream = BufReader::new(UnixStream::connect(&socket).await.map_err(|e| failed(&e))?);
    let mut line = serde_json::to_vec(ask).map_err(|e| failed(&e))?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await.map_err(|e| failed(&e))?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await.map_err(|e| failed(&e))?;
    let value: Value = serde_json::from_str(&answer).map_err(|e| failed(&e))?;
    let answer: Answer = serde_json::from_value(value).map_err(|e| failed(&e))?;
    match answer.error {
        Some(error) => Err(Error::refused(error)),
        None => Ok(answer),
    }
}
