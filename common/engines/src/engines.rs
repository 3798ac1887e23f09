//! All engines of a machine: made ready, planned, configured, and taken down without a trace.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mallee_ovsdb::Client;
use tokio::sync::watch;

use crate::config::{Datapath, EnginesConfig, NodeConfig};
use crate::error::{Error, Result};
use crate::ip::run;
use crate::kvm::{self, Accelerator, KvmChoice, Verdict};
use crate::layout::Layout;
use crate::made::Made;
use crate::netns::Netns;
use crate::plan::Plan;
use crate::process::{self, Process};
use crate::supervisor::{Phase, Status, Supervisor, take_lock};
use crate::{libvirt, network, ovn, ovs, supervisor};

/// How long guests may take to end in a teardown (QEMU needs about a second after SIGTERM).
const GUEST_PATIENCE: Duration = Duration::from_secs(10);

/// The engines one machine's configuration asks for.
#[derive(Debug, Clone)]
pub struct Engines {
    config: EnginesConfig,
    layout: Layout,
    netns: Netns,
    verdict: Verdict,
    plans: Vec<Plan>,
}

/// What a teardown had to end besides the engines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Guests that nobody had stopped, by their names.
    pub guests: Vec<String>,
    /// Other processes: with a record here but in no plan of this configuration (tiers, engines of an earlier
    /// configuration), or in the namespace.
    pub processes: Vec<i32>,
}

impl Engines {
    /// Makes everything the engines need and do not make themselves: directories, namespace and link, databases,
    /// configuration files, the KVM verdict. Called at every start; what is there already stays.
    pub async fn prepare(config: EnginesConfig) -> Result<Engines> {
        config.check()?;
        let layout = Layout::new(&config.base)?;
        layout.create()?;
        let mut made = Made::load(&layout)?;
        match (&config.namespace, &config.enclosed) {
            (Some(namespace), _) => network::ensure(namespace, &layout, &mut made).await?,
            (None, Some(name)) => network::enclose(name, &layout, &mut made).await.map(drop)?,
            (None, None) => {}
        }
        if let Some(tunnel) = config.node.as_ref().and_then(|node| node.tunnel.as_ref()) {
            network::ensure_tunnel(tunnel, &config.netns()).await?;
        }
        let verdict = match &config.node {
            Some(node) => kvm::verdict(node.kvm, &layout).await?,
            None => no_guests(),
        };
        let engines = Engines::plan(config, layout, verdict);
        engines.make_databases().await?;
        if engines.config.node.is_some() {
            libvirt::write_files(&engines.layout)?;
            make_directories(libvirt::mount_points(&engines.layout), &engines.layout, &mut made)?;
        }
        Ok(engines)
    }

    /// The same plans for a process that only looks (`mallee status`, a tier that wants the paths); nothing is made.
    pub async fn look(config: EnginesConfig) -> Result<Engines> {
        config.check()?;
        let layout = Layout::new(&config.base)?;
        let verdict = match &config.node {
            Some(node) if node.kvm != KvmChoice::Auto || layout.kvm_verdict().exists() => {
                kvm::verdict(node.kvm, &layout).await?
            }
            _ => no_guests(),
        };
        Ok(Engines::plan(config, layout, verdict))
    }

    fn plan(config: EnginesConfig, layout: Layout, verdict: Verdict) -> Engines {
        let netns = config.netns();
        let mut plans = Vec::new();
        if let Some(central) = &config.central {
            plans.extend(ovn::plans(&layout, &netns, central));
        }
        if let Some(node) = &config.node {
            plans.extend(ovs::plans(&layout, &netns, node));
            plans.extend(libvirt::plans(&layout, &netns, &verdict));
        }
        Engines { config, layout, netns, verdict, plans }
    }

    /// In the order they are started; they are stopped in the opposite one.
    pub fn plans(&self) -> &[Plan] {
        &self.plans
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Starts watching the engines, and after them `others` (the tiers, where no systemd does it).
    pub fn supervise(&self, others: Vec<Plan>) -> Result<Supervisor> {
        let plans = self.plans.iter().cloned().chain(others).collect();
        Supervisor::start(&self.layout.lock(), plans)
    }

    /// Makes the southbound database serve other machines, if it shall; writes the chassis and the bridge to the outside into
    /// the local switch's database, and returns when the switch and ovn-controller have both bridges. Waits for the daemons,
    /// so it may be called right after [`Engines::supervise`].
    pub async fn configure(&self, patience: Duration) -> Result<()> {
        if let Some(address) = self.config.central.as_ref().and_then(|central| central.southbound) {
            let served = tokio::time::timeout(patience, self.serve_chassis(address)).await;
            served.map_err(|_| Error::engine("ovn-sb", format!("it does not serve at {address}")))??;
        }
        let Some(node) = &self.config.node else {
            return Ok(());
        };
        let work = async {
            let chassis = self.chassis(node).await?;
            loop {
                let client = self.switch().await;
                match self.configure_switch(&client, &chassis).await {
                    // The database died in the middle and is back in milliseconds; all of it can be said again.
                    Err(Error::Database(error)) if error.is_closed() => {}
                    outcome => return outcome,
                }
            }
        };
        match tokio::time::timeout(patience, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::engine(
                "ovs-vswitchd",
                format!("the switch did not take its configuration within {} s", patience.as_secs()),
            )),
        }
    }

    async fn serve_chassis(&self, address: SocketAddr) -> Result<()> {
        loop {
            if let Ok(client) = Client::connect_unix(self.layout.southbound_socket()).await
                && ovn::serve_chassis(&client, address).await?
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn configure_switch(&self, client: &Client, chassis: &ovs::Chassis) -> Result<()> {
        ovs::configure(client, chassis).await?;
        self.address_tunnel(chassis.datapath).await?;
        ovs::wait_for_bridge(client, ovs::INTEGRATION_BRIDGE).await
    }

    /// Gives tunnels their address. The userspace datapath's bridges end with vswitchd and come back without it, so this is
    /// said each time vswitchd has been started.
    pub async fn address_tunnel(&self, datapath: Datapath) -> Result<()> {
        let Some(tunnel) = self.config.node.as_ref().and_then(|node| node.tunnel.as_ref()) else {
            return Ok(());
        };
        let link = match datapath {
            Datapath::Netdev => ovs::TUNNEL_BRIDGE,
            Datapath::System => network::TUNNEL_LINK,
        };
        network::address_tunnel(tunnel, &self.netns, link).await
    }

    /// For as long as this machine has tunnels: gives them their address back whenever vswitchd was started again.
    pub async fn keep_tunnel(&self, mut vswitchd: watch::Receiver<Status>) {
        let Some(node) = self.config.node.as_ref().filter(|node| node.tunnel.is_some()) else {
            return;
        };
        let datapath = match node.datapath {
            Some(datapath) => datapath,
            None => ovs::find_datapath().await,
        };
        let mut last = None;
        loop {
            let ready = vswitchd.wait_for(|now| matches!(now.phase, Phase::Ready { pid } if Some(pid) != last)).await;
            let Ok(Phase::Ready { pid }) = ready.map(|now| now.phase.clone()) else { return };
            match self.address_tunnel(datapath).await {
                Ok(()) => last = Some(pid),
                // The bridge is not there yet, or vswitchd ended again.
                Err(error) => {
                    tracing::debug!(%error, "the tunnels have no address yet");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Waits until every engine answers, whoever supervises them: for a tier that starts beside them.
    pub async fn wait_ready(&self, patience: Duration) -> Result<()> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let missing: Vec<String> = supervisor::status(&self.plans)
                .await
                .into_iter()
                .filter(|status| !matches!(status.phase, Phase::Ready { .. }))
                .map(|status| status.name)
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                let detail = format!("not ready after {} s", patience.as_secs());
                return Err(Error::engine(&missing.join(", "), detail));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Connects to the local switch's database as soon as it can be reached.
    pub async fn switch(&self) -> Client {
        loop {
            match Client::connect_unix(self.layout.ovs_socket()).await {
                Ok(client) => return client,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn chassis(&self, node: &NodeConfig) -> Result<ovs::Chassis> {
        let own = || format!("unix:{}", self.layout.southbound_socket().display());
        let inner = self.config.namespace.as_ref().map(|namespace| namespace.inner_link.clone());
        let tunnel = match &node.tunnel {
            Some(_) => Some(network::hardware_address(&self.netns, network::TUNNEL_LINK).await?),
            None => None,
        };
        Ok(ovs::Chassis {
            system_id: node.system_id.clone(),
            southbound: node.southbound.clone().unwrap_or_else(own),
            encap_address: node.tunnel.as_ref().map_or(node.encap_address, |tunnel| tunnel.address.into()),
            tunnel,
            datapath: match node.datapath {
                Some(datapath) => datapath,
                None => ovs::find_datapath().await,
            },
            uplink: node.uplink.clone().or(inner),
        })
    }

    async fn make_databases(&self) -> Result<()> {
        let mut wanted = Vec::new();
        if self.config.central.is_some() {
            wanted.push(("ovn-nb", self.layout.ovn().join("nb.db"), ovn::NORTHBOUND_SCHEMA));
            wanted.push(("ovn-sb", self.layout.ovn().join("sb.db"), ovn::SOUTHBOUND_SCHEMA));
        }
        if self.config.node.is_some() {
            wanted.push(("ovsdb", self.layout.ovs().join("conf.db"), ovs::SCHEMA));
        }
        for (server, file, schema) in wanted {
            let running = self.plans.iter().find(|plan| plan.name == server).and_then(process::find).is_some();
            if !running {
                make_database(&file, schema).await?;
            }
        }
        Ok(())
    }

    /// Ends everything and removes everything, also after a crash in the middle of anything. The engines' supervisor must
    /// be gone (its lock is taken first) and the tiers be stopped. Guests that still run are ended.
    pub async fn teardown(config: EnginesConfig) -> Result<Remains> {
        let engines = Engines::look(config).await?;
        let layout = &engines.layout;
        if !layout.run().exists() {
            return Ok(Remains::default());
        }
        let _lock = take_lock(&layout.lock())?;
        let made = Made::load(layout)?;
        let mut processes = engines.end_others().await?;
        let guests = engines.end_guests().await?;
        for plan in engines.plans.iter().rev() {
            process::stop(plan).await?;
        }
        processes.extend(end_inhabitants(&made).await?);
        network::remove(&made).await?;
        for directory in made.directories.iter().rev() {
            // Removing a directory takes away what is mounted on it in *other* mount namespaces, such as another cloud's
            // libvirtd on this machine; whoever still uses it keeps it.
            if !process::is_mount_point_anywhere(directory) {
                remove_if_empty(directory)?;
            }
        }
        // The list of what was made goes last, so that a teardown that failed can be repeated.
        for directory in layout.own_directories().iter().rev() {
            remove_all(directory)?;
        }
        remove_if_empty(layout.base())?;
        Ok(Remains { guests, processes })
    }

    async fn end_others(&self) -> Result<Vec<i32>> {
        let others: Vec<Process> = process::recorded(&self.layout.run())
            .into_iter()
            .filter(|(name, _)| !self.plans.iter().any(|plan| plan.name == *name))
            .map(|(_, process)| process)
            .collect();
        let pids = others.iter().map(Process::pid).collect();
        process::end_all(others, GUEST_PATIENCE).await?;
        Ok(pids)
    }

    async fn end_guests(&self) -> Result<Vec<String>> {
        let directory = self.layout.virt().join("run/qemu");
        let mut names = Vec::new();
        let mut processes = Vec::new();
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "pid") {
                continue;
            }
            if let Some(process) = guest_process(&path) {
                processes.push(process);
                names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        process::end_all(processes, GUEST_PATIENCE).await?;
        Ok(names)
    }
}

/// A machine that runs no guests needs no verdict; the plans' mounts are the same as under TCG.
fn no_guests() -> Verdict {
    Verdict { accelerator: Accelerator::Tcg, reason: "not tried on this machine".to_owned() }
}

/// libvirt's record of a guest. The pid is only believed if its command line says the same name.
fn guest_process(record: &Path) -> Option<Process> {
    let pid = fs::read_to_string(record).ok()?.trim().parse().ok()?;
    let name = record.file_stem()?.to_str()?;
    let argument = format!("guest={name},");
    process::attach_if(pid, |command| command.iter().any(|word| word.starts_with(&argument)))
}

async fn end_inhabitants(made: &Made) -> Result<Vec<i32>> {
    let pids: Vec<i32> = made.namespaces.iter().flat_map(|name| process::inside_netns(&Netns::path_of(name))).collect();
    let processes = pids.iter().filter_map(|pid| process::attach_if(*pid, |_| true)).collect();
    process::end_all(processes, Duration::from_secs(2)).await?;
    Ok(pids)
}

/// A new database, or an old one brought to the installed version's schema.
async fn make_database(file: &Path, schema: &str) -> Result<()> {
    let path = file.display().to_string();
    if !file.exists() {
        let new = format!("{path}.new");
        remove_all(Path::new(&new))?;
        run("ovsdb-tool", &["create", &new, schema]).await?;
        return fs::rename(&new, file).map_err(Error::file("creating", file));
    }
    let answer = run("ovsdb-tool", &["needs-conversion", &path, schema]).await?;
    if answer.trim_ascii() == b"yes" {
        run("ovsdb-tool", &["convert", &path, schema]).await?;
    }
    Ok(())
}

fn make_directories(wanted: Vec<PathBuf>, layout: &Layout, made: &mut Made) -> Result<()> {
    for directory in wanted {
        let mut missing: Vec<PathBuf> =
            directory.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
        missing.reverse();
        missing.retain(|path| !made.directories.contains(path));
        made.directories.extend(missing);
        made.save(layout)?;
        fs::create_dir_all(&directory).map_err(Error::file("creating", &directory))?;
    }
    Ok(())
}

/// A directory somebody else has put something into by now is theirs.
fn remove_if_empty(directory: &Path) -> Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(Error::file("removing", directory)(error))
        }
        _ => Ok(()),
    }
}

fn remove_all(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("removing", path)(error)),
        _ => Ok(()),
    }
}
