//! `mallee up`: a cloud on this machine, from whatever is there: nothing, half of it, or all of it.
//!
//! Every step looks first and does only what is missing, so running it again is how a cloud is mended, upgraded (tiers whose
//! program was replaced are restarted) or told something new (tiers whose configuration changed are restarted).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mallee_engines::network::Ipv4Net;
use mallee_engines::{Engines, EnginesConfig, Layout, NamespaceConfig, Plan, process};
use mallee_tiers::{CloudStatus, Role, StatusAsked};

use crate::error::{Error, Result};
use crate::internet::Internet;
use crate::machine::{Machine, Tier, Wanted, listen, node_name};
use crate::output::out;
use crate::progress::{Step, step};
use crate::state::State;
use crate::supervise::{Ask, ask};
use crate::tunnel::{self, Tunnel};
use crate::{account, admin, config_files, guard, internet, join, needs, tier};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What was said on the command line; `None` keeps what was chosen before, or the default.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Choices {
    /// Name of the cloud, which is its region's; one that AWS does not have [default: mallee-1]
    #[arg(long, alias = "region", value_name = "CLOUD")]
    pub name: Option<String>,
    /// Availability zone of this machine [default: the cloud's name and "a"]
    #[arg(long)]
    pub zone: Option<String>,
    /// This machine's name among the nodes [default: its host name]
    #[arg(long)]
    pub node: Option<String>,
    /// The link that joins the cloud's network to this machine [default: mallee0]
    #[arg(long)]
    pub link: Option<String>,
    /// Network namespace of the engines [default: mallee]
    #[arg(long)]
    pub namespace: Option<String>,
    /// This machine's address on the link, with the link's prefix length [default: 172.29.0.1/24]
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    pub address: Option<String>,
    /// The elastic IPs, inside the link's network [default: 172.29.0.128/25]
    #[arg(long, value_name = "NETWORK")]
    pub elastic: Option<Ipv4Net>,
    /// First of six ports: cloud-controller, cluster-, node-, storage-controller, walrus, OVN [default: 8773]
    #[arg(long, value_name = "PORT")]
    pub port_base: Option<u16>,
    /// An address of this machine that other machines reach it by; every tier serves there, too, and OVN's southbound database
    #[arg(long, value_name = "ADDRESS")]
    pub public: Option<IpAddr>,
    /// With --public: a second address on a link of this machine, for the tunnels to other machines
    #[arg(long, value_name = tunnel::FORM)]
    pub tunnel: Option<Tunnel>,
    /// Let guests reach beyond this machine (`--internet no` stops it): forwards, and hides them behind this machine's address
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "yes", value_name = "yes|no")]
    pub internet: Option<Answer>,
    /// What guests run on, instead of finding out by trial
    #[arg(long, value_enum)]
    pub accelerator: Option<Accelerator>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Answer {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Accelerator {
    Auto,
    Kvm,
    Tcg,
}

pub async fn run(state: &State, choices: &Choices) -> Result<()> {
    needs::root()?;
    needs::packages(true, true)?;
    let _only_one = state.lock()?;
    let old = Machine::load(state)?;
    if let Some(joined) = old.as_ref().filter(|old| old.region.is_empty()) {
        return join::resume(state, joined).await;
    }
    let machine = choose(state, old.as_ref(), choices)?;
    let roles: Vec<Role> = machine.tiers.iter().map(|tier| tier.role).collect();
    needs::tiers(&machine.programs, &roles)?;
    state.create()?;

    let begun = step("network and engines' files");
    let prepared = match &machine.engines {
        Some(config) => Engines::prepare(config.clone()).await.map_err(Error::from),
        None => Err(Error::refused("this machine joined a cloud: `mallee join` starts what runs here")),
    };
    let engines = begun.outcome(prepared, |engines| {
        let verdict = engines.verdict();
        format!("guests run under {} ({})", accelerator_name(verdict), verdict.reason)
    })?;
    ports_are_free(state, &machine)?;
    // Only now, when nothing was in the way, is the choice kept.
    machine.save(state)?;
    if let Some(link) = machine.link() {
        guard::close(link).await?;
    }
    set_internet(old.as_ref(), &machine).await?;
    let restart = write_configs(state, &machine)?;

    let begun = step("supervisor");
    let started = start_supervisor(state, &machine, old.as_ref()).await;
    begun.outcome(started, |started| started.to_string())?;
    for role in &restart {
        ask(state, &Ask::Restart { tier: role.to_string() }).await?;
    }
    finish(state, &machine, &engines).await
}

async fn set_internet(old: Option<&Machine>, machine: &Machine) -> Result<()> {
    let before = old.and_then(|old| old.internet.as_ref());
    match (machine.link(), &machine.internet, before) {
        (Some(link), Some(_), _) => internet::open(link).await,
        (Some(link), None, Some(before)) => internet::close(link, before).await,
        _ => Ok(()),
    }
}

/// Waits for everything, makes the first account, and says what to do next.
async fn finish(state: &State, machine: &Machine, engines: &Engines) -> Result<()> {
    let begun = step("engines");
    let ready = wait_for_engines(engines, &begun).await;
    begun.outcome(ready, |()| format!("{} answer", engines.plans().len()))?;
    let begun = step("tiers");
    let cloud = wait_for_tiers(state, machine, &begun).await;
    let cloud = begun.outcome(cloud, |cloud| format!("{} answer", cloud.tiers.len() + cloud.nodes.len()))?;
    if let (Some(link), true) = (machine.link(), machine.internet.is_some()) {
        internet::shut(link, &internet::machines(link, &cloud)).await?;
    }
    let begun = step("account");
    let made = account::made(state, account::FIRST, true).await;
    let keys = begun.outcome(made, |keys| format!("{} ({})", keys.name, keys.account))?;
    mallee_service::pki::write_public(&state.ca(), keys.ca_pem.as_bytes())?;

    let ec2 = machine.url(Role::CloudController)?;
    let s3 = machine.url(Role::Walrus)?;
    out!("\nThe cloud {} is up: EC2 at {ec2}, S3 at {s3}.", cloud.region);
    out!("Next:\n");
    out!("    eval \"$(mallee{} env)\"", state_option(state));
    out!("    aws ec2 describe-availability-zones\n");
    out!("`mallee status` shows how it is; `mallee image --help` tells how images come in.");
    Ok(())
}

/// The option that says which cloud, where it is not the default one.
fn state_option(state: &State) -> String {
    if state.root() == std::path::Path::new(crate::state::DEFAULT) {
        return String::new();
    }
    format!(" --state {}", state.root().display())
}

fn accelerator_name(verdict: &mallee_engines::kvm::Verdict) -> &'static str {
    match verdict.accelerator {
        mallee_engines::kvm::Accelerator::Kvm => "KVM",
        mallee_engines::kvm::Accelerator::Tcg => "QEMU's translator (TCG), slowly",
    }
}

/// The machine as it shall be: what was chosen before, changed by what is said now.
fn choose(state: &State, old: Option<&Machine>, choices: &Choices) -> Result<Machine> {
    if let (Some(old), Some(name)) = (old, &choices.name)
        && old.region != *name
    {
        return Err(Error::refused(format!(
            "the cloud in {} is {:?}: its name is in everything it has signed and cannot be changed",
            state.root().display(),
            old.region
        )));
    }
    let region = choices.name.clone().or(old.map(|old| old.region.clone())).unwrap_or_else(|| "mallee-1".to_owned());
    let mut zones = old.map(|old| old.zones.clone()).unwrap_or_default();
    let zone = choices.zone.clone().or_else(|| zones.first().cloned()).unwrap_or_else(|| format!("{region}a"));
    if zones.first().is_some_and(|first| *first != zone) {
        return Err(Error::refused(format!("this machine is in the zone {}, and stays there", zones.join(", "))));
    }
    if zones.is_empty() {
        zones.push(zone.clone());
    }
    for (what, name) in [("cloud", &region), ("zone", &zone)] {
        check_name(what, name)?;
    }
    let node =
        choices.node.clone().or(old.map(|old| old.node.clone())).unwrap_or_else(|| {
            node_name(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim())
        });
    if node_name(&node) != node {
        return Err(Error::refused(format!("{node:?} is no name for a node: lower-case letters, digits and '-'")));
    }
    if let Some(old) = old
        && old.node != node
    {
        return Err(Error::refused(format!("this machine is the node {:?}, and stays it", old.node)));
    }
    let engines = choose_engines(state, old.and_then(|old| old.engines.clone()), choices, &node)?;
    let tiers = choose_tiers(old, choices, &zone, &node, &engines)?;
    let engines = serve_others(state, engines, choices, &tiers)?;
    let internet = match (choices.internet, old.and_then(|old| old.internet.clone())) {
        (Some(Answer::No), _) => None,
        (_, Some(before)) => Some(before),
        (Some(Answer::Yes), None) => Some(Internet::look()?),
        (None, None) => None,
    };
    let cloud_controller =
        tiers.first().and_then(|tier| tier.listen.first()).map(ToString::to_string).unwrap_or_default();
    Ok(Machine {
        region,
        zones,
        node,
        cloud_controller,
        programs: needs::programs()?,
        engines: Some(engines),
        internet,
        tiers,
        wanted: Wanted::Everything,
    })
}

pub fn check_name(what: &str, name: &str) -> Result<()> {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if plain && (1..=32).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::refused(format!("{name:?} is no name for a {what}: lower-case letters, digits and '-'")))
}

fn choose_engines(state: &State, old: Option<EnginesConfig>, choices: &Choices, node: &str) -> Result<EnginesConfig> {
    let before = old.clone();
    let mut engines = old.unwrap_or_else(|| EnginesConfig::one_machine(state.engines(), node));
    // Refuses a state directory whose name is too long for sockets before anything is made.
    Layout::new(&engines.base)?;
    let link = engines.namespace.get_or_insert_with(NamespaceConfig::default);
    if let Some(name) = &choices.link {
        link.host_link.clone_from(name);
    }
    if let Some(name) = &choices.namespace {
        link.name.clone_from(name);
    }
    if let Some(text) = &choices.address {
        let malformed = || Error::refused(format!("{text} is no address with a prefix length, such as 172.29.0.1/24"));
        let (address, length) = text.split_once('/').ok_or_else(malformed)?;
        link.host_address = address.parse::<Ipv4Addr>().map_err(|_| malformed())?;
        link.prefix_length = length.parse().map_err(|_| malformed())?;
    }
    match (choices.elastic, &choices.address) {
        (Some(pool), _) => link.pool = pool,
        // The upper half, as in the default.
        (None, Some(_)) => {
            let upper = mallee_engines::network::Ipv4Net::new(link.network().last(), link.prefix_length + 1);
            link.pool = upper;
        }
        (None, None) => {}
    }
    if let (Some(accelerator), Some(node)) = (choices.accelerator, &mut engines.node) {
        node.kvm = match accelerator {
            Accelerator::Auto => mallee_engines::kvm::KvmChoice::Auto,
            Accelerator::Kvm => mallee_engines::kvm::KvmChoice::Kvm,
            Accelerator::Tcg => mallee_engines::kvm::KvmChoice::Tcg,
        };
    }
    engines.check()?;
    let network = |engines: &EnginesConfig| serde_json::to_value(&engines.namespace).ok();
    if before.is_some_and(|before| network(&before) != network(&engines)) {
        return Err(Error::refused(
            "link, address, namespace and elastic IPs are those the cloud was made with: instances and addresses are in them",
        ));
    }
    Ok(engines)
}

/// Where other machines may join, tunnels have an address and OVN's southbound database a port.
fn serve_others(state: &State, mut engines: EnginesConfig, choices: &Choices, tiers: &[Tier]) -> Result<EnginesConfig> {
    if let (Some(Tunnel(tunnel)), Some(node)) = (&choices.tunnel, &mut engines.node) {
        node.tunnel = Some(tunnel.clone());
    }
    // The first address of every tier is what others are told.
    let announced = tiers.iter().find_map(|tier| tier.listen.first()).filter(|first| !first.ip().is_loopback());
    let Some(announced) = announced else { return Ok(engines) };
    if engines.node.as_ref().is_some_and(|node| node.tunnel.is_none()) {
        return Err(Error::refused(format!(
            "guests here reach those of other machines through tunnels, which need an address of their own: say --tunnel {}",
            tunnel::FORM
        )));
    }
    if let Some(central) = &mut engines.central {
        central.southbound = Some(SocketAddr::new(announced.ip(), announced.port() + 5));
        central.tls = Some(state.tls(Role::CloudController.as_str()));
    }
    engines.check()?;
    Ok(engines)
}

/// Users reach the two public fronts from guests and from this machine; the other tiers are for this machine only, unless
/// other machines shall join.
fn choose_tiers(
    old: Option<&Machine>,
    choices: &Choices,
    zone: &str,
    node: &str,
    engines: &EnginesConfig,
) -> Result<Vec<Tier>> {
    let old_listen = |role: Role| old.and_then(|old| old.tier(role)).map(|tier| tier.listen.clone());
    let base = match (choices.port_base, old_listen(Role::CloudController).and_then(|l| l.first().copied())) {
        (Some(port), _) => port,
        (None, Some(address)) => address.port(),
        (None, None) => 8773,
    };
    if base == 0 || base > u16::MAX - 5 {
        return Err(Error::refused(format!("{base} leaves no room for six ports")));
    }
    let public: Vec<IpAddr> = match (choices.public, old_listen(Role::ClusterController)) {
        (Some(address), _) => vec![address],
        (None, Some(addresses)) => addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_loopback()).collect(),
        (None, None) => Vec::new(),
    };
    let link: Vec<IpAddr> = engines.namespace.iter().map(|link| IpAddr::V4(link.host_address)).collect();
    let ports = [
        (Role::CloudController, 0, "", "cloud-controller"),
        (Role::Walrus, 4, "", "walrus"),
        (Role::ClusterController, 1, zone, zone),
        (Role::StorageController, 3, zone, zone),
        (Role::NodeController, 2, zone, node),
    ];
    let tiers = ports.map(|(role, offset, zone, name)| {
        let fronts = matches!(role, Role::CloudController | Role::Walrus);
        let beyond: Vec<IpAddr> = public.iter().chain(if fronts { &link[..] } else { &[] }).copied().collect();
        let mut addresses = listen(base + offset, &beyond);
        if !public.is_empty() {
            // What other tiers are told comes first, and they may be on other machines.
            addresses.rotate_left(1);
        }
        Tier { role, zone: zone.to_owned(), name: name.to_owned(), listen: addresses }
    });
    Ok(tiers.into())
}

/// A port that somebody else has would look like a tier that answers.
fn ports_are_free(state: &State, machine: &Machine) -> Result<()> {
    for tier in &machine.tiers {
        if process::find(&tier::plan(state, machine, tier)).is_some() {
            continue;
        }
        for address in &tier.listen {
            if let Err(error) = std::net::TcpListener::bind(address) {
                return Err(Error::refused(format!(
                    "{} cannot listen on {address}: {error} (`ss -ltnp` shows who does; --port-base chooses other ports)",
                    tier.role
                )));
            }
        }
    }
    Ok(())
}

/// The running tiers that have to be restarted: their configuration or their program is another one now.
pub fn write_configs(state: &State, machine: &Machine) -> Result<Vec<Role>> {
    let mut restart = Vec::new();
    for tier in &machine.tiers {
        let path = state.config(tier.role.as_str());
        let own = state.own_config(tier.role.as_str());
        let own = match std::fs::read_to_string(&own) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("reading", own)(error));
            }
            read => read.unwrap_or_default(),
        };
        let text = config_files::render(state, machine, tier, &own)?;
        let plan = tier::plan(state, machine, tier);
        let changed = std::fs::read_to_string(&path).ok().as_ref() != Some(&text);
        if changed {
            mallee_service::pki::write_secret(&path, text.as_bytes())?;
        }
        if process::find(&plan).is_some() && (changed || tier::is_outdated(&plan)) {
            restart.push(tier.role);
        }
    }
    Ok(restart)
}

/// Starts the supervisor, or tells the running one to look. The answer says which.
pub async fn start_supervisor(state: &State, machine: &Machine, old: Option<&Machine>) -> Result<&'static str> {
    let plan = tier::supervisor_plan(state)?;
    let engines_changed =
        old.is_some_and(|old| serde_json::to_value(&old.engines).ok() != serde_json::to_value(&machine.engines).ok());
    let mut word = "started";
    if let Some(running) = process::find(&plan) {
        if !engines_changed && !tier::is_outdated(&plan) {
            ask(state, &Ask::Look).await?;
            return Ok("runs already");
        }
        running.stop(&plan).await?;
        word = "started anew";
    }
    if engines_changed && let Some(config) = &machine.engines {
        // Whether libvirtd sees /dev/kvm was settled when it was started. Its guests live on.
        let engines = Engines::look(config.clone()).await?;
        let outdated = |plan: &&Plan| plan.name == "libvirtd" || process::is_outdated(plan);
        for engine in engines.plans().iter().filter(outdated) {
            process::stop(engine).await?;
        }
    }
    let mut started = process::start(&plan)?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while plan.ready.probe(started.pid()).await.is_err() {
        let ended = tokio::time::timeout(LOOK_AGAIN, started.exited()).await.is_ok();
        if ended || tokio::time::Instant::now() > deadline {
            let words = process::last_words(&plan, &started);
            return Err(Error::refused(format!("the supervisor did not start: {words}")));
        }
    }
    Ok(word)
}

async fn wait_for_engines(engines: &Engines, step: &Step) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let waiting = not_ready(engines.plans()).await;
        if waiting.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::refused(format!(
                "not ready after {} s: {}; `mallee logs {}` may tell why",
                PATIENCE.as_secs(),
                waiting.join(", "),
                waiting[0]
            )));
        }
        step.at(&format!("waiting for {}", waiting.join(", ")));
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn not_ready(plans: &[Plan]) -> Vec<String> {
    let statuses = mallee_engines::status(plans).await;
    statuses
        .into_iter()
        .filter(|status| !matches!(status.phase, mallee_engines::Phase::Ready { .. }))
        .map(|status| status.name)
        .collect()
}

/// Until every tier of this machine answers the cloud-controller.
async fn wait_for_tiers(state: &State, machine: &Machine, step: &Step) -> Result<CloudStatus> {
    let client = admin::client(state);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let missing = match client.status(&StatusAsked::default()).await {
            Ok(cloud) => {
                let missing = missing(machine, &cloud);
                if missing.is_empty() {
                    return Ok(cloud);
                }
                missing
            }
            Err(error) => vec![("cloud-controller", error.message)],
        };
        let names: Vec<&str> = missing.iter().map(|(role, _)| *role).collect();
        if tokio::time::Instant::now() > deadline {
            let words: Vec<String> = missing.iter().map(|(role, why)| format!("{role} ({why})")).collect();
            return Err(Error::refused(format!(
                "not answering after {} s: {}; {}",
                PATIENCE.as_secs(),
                words.join(", "),
                last_lines(state, &names)
            )));
        }
        step.at(&format!("waiting for {}", names.join(", ")));
        tokio::time::sleep(LOOK_AGAIN * 2).await;
    }
}

fn last_lines(state: &State, tiers: &[&str]) -> String {
    let mut text = "they last wrote:".to_owned();
    for tier in tiers {
        let log = std::fs::read_to_string(state.output(tier)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        for line in lines.iter().rev() {
            text += &format!("\n  {tier}: {line}");
        }
    }
    text
}

/// The tiers of this machine that the cloud does not hear of, and why.
pub fn missing(machine: &Machine, cloud: &CloudStatus) -> Vec<(&'static str, String)> {
    let mut missing = Vec::new();
    for tier in &machine.tiers {
        let trouble = if tier.role == Role::NodeController {
            match cloud.nodes.iter().find(|row| row.node.node == tier.name) {
                Some(row) if row.node.state == "up" => None,
                Some(row) => Some(format!("{} {}", row.node.state, row.node.reason)),
                None => Some("not registered yet".to_owned()),
            }
        } else {
            match cloud.tiers.iter().find(|row| row.role == tier.role && row.name == tier.name) {
                Some(row) if row.status.is_some() => None,
                Some(row) => Some(row.trouble.clone()),
                None => Some("not registered yet".to_owned()),
            }
        };
        missing.extend(trouble.map(|why| (tier.role.as_str(), why.trim().to_owned())));
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn state() -> State {
        State::new(Path::new("/var/lib/m")).unwrap()
    }

    #[test]
    fn what_was_chosen_stays_until_something_else_is_said() {
        let first = Choices {
            name: Some("lab".to_owned()),
            node: Some("n1".to_owned()),
            address: Some("10.9.0.1/24".to_owned()),
            port_base: Some(9000),
            ..Choices::default()
        };
        let machine = choose(&state(), None, &first).unwrap();
        assert_eq!(machine.zones, ["laba"]);
        let again = choose(&state(), Some(&machine), &Choices::default()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&machine).unwrap());
        let link = again.engines.unwrap().namespace.unwrap();
        assert_eq!(link.pool.to_string(), "10.9.0.128/25", "the pool follows the address");
        assert_eq!(again.cloud_controller, "127.0.0.1:9000");
        assert_eq!(again.tiers[1].listen[1].to_string(), "10.9.0.1:9004");
        assert_eq!(again.tiers[2].listen.len(), 1, "only the public fronts serve on the link");
        let renamed = Choices { name: Some("other".to_owned()), ..Choices::default() };
        assert!(choose(&state(), Some(&machine), &renamed).is_err());
    }

    #[test]
    fn other_machines_are_told_the_public_address() {
        let public = Some("192.0.2.7".parse().unwrap());
        let alone = Choices { node: Some("n1".to_owned()), public, ..Choices::default() };
        let refused = choose(&state(), None, &alone).unwrap_err().to_string();
        assert!(refused.contains("--tunnel"), "{refused}");
        let choices = Choices { tunnel: Some("eth0:192.0.2.107/24".parse().unwrap()), ..alone };
        let machine = choose(&state(), None, &choices).unwrap();
        assert_eq!(machine.cloud_controller, "192.0.2.7:8773");
        let central = machine.engines.as_ref().and_then(|engines| engines.central.clone()).unwrap();
        assert_eq!(central.southbound, Some("192.0.2.7:8778".parse().unwrap()));
        let again = choose(&state(), Some(&machine), &Choices::default()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&machine).unwrap());
    }
}
