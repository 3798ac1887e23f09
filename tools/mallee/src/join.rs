//! `mallee join TOKEN`: this machine becomes the tier that the token was made for.

use std::net::{IpAddr, SocketAddr};

use mallee_engines::{Engines, EnginesConfig, Layout, NamespaceConfig, NodeConfig};
use mallee_service::join::Token;
use mallee_tiers::Role;

use crate::error::{Error, Result};
use crate::machine::{Machine, Tier, Wanted};
use crate::output::out;
use crate::progress::step;
use crate::state::State;
use crate::supervise::{Ask, ask};
use crate::tunnel::{self, Tunnel};
use crate::{needs, up};

#[derive(Debug, Clone, clap::Args)]
pub struct Choices {
    /// What `mallee node token` printed; "-" reads it from standard input, so that no shell history keeps it
    pub token: String,
    /// Where the tier serves and is told to be; [default: this machine's address towards the cloud, the role's usual port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// For a node: a second address on a link of this machine, for the tunnels to other machines
    #[arg(long, value_name = tunnel::FORM)]
    pub tunnel: Option<Tunnel>,
    /// For a node: network namespace of the engines [default: mallee]
    #[arg(long)]
    pub namespace: Option<String>,
}

pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    let text = match choices.token.as_str() {
        "-" => std::io::read_to_string(std::io::stdin()).map_err(Error::file("reading", "standard input"))?,
        text => text.to_owned(),
    };
    let token =
        Token::decode(&text).ok_or_else(|| Error::refused("this is no join token: `mallee node token` makes one"))?;
    let _only_one = state.lock()?;
    let old = Machine::load(state)?;
    if old.as_ref().is_some_and(|old| old.cloud_controller != token.address) {
        return Err(Error::refused(format!(
            "{} belongs to another cloud already; choose another directory with --state",
            state.root().display()
        )));
    }
    let own = own_address(&token.address)?;
    let listen = choices.listen.unwrap_or(SocketAddr::new(own, usual_port(token.role)));
    let tier = Tier { role: token.role, zone: token.zone.clone(), name: token.name.clone(), listen: vec![listen] };
    let machine = joined(state, old.clone(), &token, tier, choices)?;
    needs::packages(token.role == Role::NodeController, false)?;
    let roles: Vec<Role> = machine.tiers.iter().map(|tier| tier.role).collect();
    needs::tiers(&machine.programs, &roles)?;
    state.create()?;
    if !state.certificate(token.role.as_str()).exists() {
        mallee_service::pki::write_secret(&state.token(token.role.as_str()), text.trim().as_bytes())?;
    }
    start(state, &machine, old.as_ref()).await?;
    out!("{} {} is being started; `mallee logs {}` shows it join", token.role, token.name, token.role);
    Ok(())
}

/// `mallee up` on a machine that joined: what runs here is mended, upgraded, or started again.
pub async fn resume(state: &State, machine: &Machine) -> Result<()> {
    let now = Machine { programs: needs::programs()?, wanted: Wanted::Everything, ..machine.clone() };
    start(state, &now, Some(machine)).await?;
    let names: Vec<&str> = now.tiers.iter().map(|tier| tier.role.as_str()).collect();
    out!("{} of the cloud at {} run here; `mallee logs` shows them", names.join(", "), now.cloud_controller);
    Ok(())
}

async fn start(state: &State, machine: &Machine, old: Option<&Machine>) -> Result<()> {
    if let Some(engines) = &machine.engines {
        let begun = step("network and engines' files");
        let prepared = Engines::prepare(engines.clone()).await.map_err(Error::from);
        begun.outcome(prepared, |engines| engines.verdict().reason.clone())?;
    }
    machine.save(state)?;
    let restart = up::write_configs(state, machine)?;
    let begun = step("supervisor");
    let started = up::start_supervisor(state, machine, old).await;
    begun.outcome(started, |started| started.to_string())?;
    for role in restart {
        ask(state, &Ask::Restart { tier: role.to_string() }).await?;
    }
    Ok(())
}

fn joined(state: &State, old: Option<Machine>, token: &Token, tier: Tier, choices: &Choices) -> Result<Machine> {
    let mut machine = match old {
        Some(old) => old,
        None => Machine {
            region: String::new(),
            zones: Vec::new(),
            node: token.name.clone(),
            cloud_controller: token.address.clone(),
            programs: needs::programs()?,
            engines: None,
            internet: None,
            tiers: Vec::new(),
            wanted: Wanted::Everything,
        },
    };
    machine.programs = needs::programs()?;
    machine.wanted = Wanted::Everything;
    machine.tiers.retain(|known| known.role != token.role);
    machine.tiers.push(tier);
    if token.role == Role::NodeController && machine.engines.is_none() {
        machine.node.clone_from(&token.name);
        machine.engines = Some(node_engines(state, token, choices)?);
    }
    Ok(machine)
}

/// The engines of a machine that only runs guests. Its chassis is called as its certificate is: the southbound database lets it
/// change nothing else.
fn node_engines(state: &State, token: &Token, choices: &Choices) -> Result<EnginesConfig> {
    let southbound = token.southbound.clone().ok_or_else(|| {
        Error::refused(
            "this token says no OVN: its cloud serves its own machine only (`mallee up --public ADDRESS` there, and a new token)",
        )
    })?;
    let Some(Tunnel(tunnel)) = choices.tunnel.clone() else {
        return Err(Error::refused(format!(
            "guests here reach those of other machines through tunnels, which need an address of their own: say --tunnel {}",
            tunnel::FORM
        )));
    };
    Layout::new(state.engines())?;
    let mut node = NodeConfig::new(&token.peer().server_name());
    node.southbound = Some(southbound);
    node.tunnel = Some(tunnel);
    node.tls = Some(state.tls(token.role.as_str()));
    let engines = EnginesConfig {
        base: state.engines(),
        namespace: None,
        enclosed: Some(choices.namespace.clone().unwrap_or_else(|| NamespaceConfig::default().name)),
        central: None,
        node: Some(node),
    };
    engines.check()?;
    Ok(engines)
}

/// The address this machine has on the way to the cloud-controller. Nothing is sent.
fn own_address(cloud: &str) -> Result<IpAddr> {
    let looked = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(cloud)?;
        Ok(socket.local_addr()?.ip())
    };
    looked().map_err(|error| {
        Error::Unreachable(format!("no way from this machine to the cloud-controller at {cloud}: {error}"))
    })
}

fn usual_port(role: Role) -> u16 {
    match role {
        Role::ClusterController => 8774,
        Role::NodeController => 8775,
        Role::StorageController => 8776,
        Role::Walrus => 8777,
        Role::CloudController | Role::Operator => 8773,
    }
}
