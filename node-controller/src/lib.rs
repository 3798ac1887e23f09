//! The node-controller: what really runs on one machine — domains, disks, taps, the image cache, the metadata service.
//!
//! | module | what it is |
//! |---|---|
//! | [`instance`] | the reconciler: what is wanted against what is seen, one step at a time |
//! | [`hypervisor`] | the boundary to libvirt (KVM or TCG), and the simulated machine |
//! | [`image`] | plain images by digest, fetched from walrus |
//! | [`volume`], [`nic`] | which disks stand for which volumes, which cards for which interfaces |
//! | `flow_log` | the packets of watched interfaces, written down and brought to walrus |
//! | [`metadata`] | 169.254.169.254 in every VPC |
//! | [`host`] | the metadata service's links in the machine's network |
//! | [`cluster`] | where other tiers are, and the lease at the cluster-controller |
//!
//! It knows no AWS and no accounts. Guests run on without it: it finds its domains again and touches none of them.

pub mod cluster;
pub mod config;
mod flow_log;
pub mod host;
pub mod hypervisor;
pub mod image;
pub mod instance;
pub mod metadata;
pub mod nic;
mod service;
pub mod volume;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use mallee_engines::{Engines, Layout, Plan, kvm};
use mallee_service::{
    Clock, Driven, Faults, Identity, IntentBook, Poke, Server, TierHttp, drive, intent::INTENT_TABLES, join,
    process::About, tiers::TierOnly,
};
use mallee_store::{Migration, Store};
use mallee_tiers::{InstanceReport, NodeServer, Peer, Reports, Role, TierError};
use tokio::sync::{Semaphore, mpsc};

pub use config::Config;

use cluster::{Cloud, Standing};
use config::{AcceleratorChoice, HypervisorChoice};
use flow_log::FlowLogs;
use hypervisor::{Accelerator, Hypervisor, Libvirt, Simulated};
use image::{ImageCache, Walrus};
use instance::{Instances, Machine, Rows, Wishes};
use metadata::{Book, Links, MetadataSockets, NoSockets, Service, TokenKey};

/// A clock tick of the reconcilers; what matters wakes them earlier.
const EVERY: Duration = Duration::from_secs(5);
const METADATA_EVERY: Duration = Duration::from_secs(30);
/// Overlays made at a time.
const DISKS_AT_ONCE: usize = 4;

const MIGRATIONS: [Migration; 4] = [
    Migration { version: 1, name: "intent", sql: INTENT_TABLES },
    instance::MIGRATION,
    metadata::MIGRATION,
    flow_log::MIGRATION,
];

/// What a test may bring along; a daemon brings nothing.
#[derive(Default)]
pub struct Parts {
    pub clock: Clock,
    /// Instead of the certificate in the state directory, or the join token.
    pub identity: Option<Identity>,
    /// The simulated machine, when it is to outlive this node-controller as real guests do.
    pub simulated: Option<Simulated>,
}

/// A node-controller that serves. It runs until the runtime ends.
pub struct Running {
    pub addresses: Vec<SocketAddr>,
    pub reports: Arc<Reports<InstanceReport>>,
    pub faults: Faults,
    pub instances: Driven,
    pub simulated: Option<Simulated>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] mallee_store::Error),
    #[error(transparent)]
    Tier(#[from] TierError),
    #[error(transparent)]
    Engines(#[from] mallee_engines::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::HypervisorError),
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("{0}")]
    Config(String),
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    move |e| StartError::Io(what, e)
}

/// What the machine under the node is.
struct Ground {
    hypervisor: Arc<dyn Hypervisor>,
    accelerator: Accelerator,
    simulated: Option<Simulated>,
    plans: Vec<Plan>,
    sockets: Arc<dyn MetadataSockets>,
    /// Where packets of guests are seen.
    flow_logs: Option<flow_log::Ground>,
}

/// Starts a node-controller: port 0 in `listen` asks for a free one.
pub async fn start(config: Config, parts: Parts) -> Result<Running, StartError> {
    let daemon = &config.daemon;
    // Disks, consoles and images are their users' business; QEMU and libvirt run as root.
    for dir in [&daemon.state, &config.instances_dir(), &config.images_dir()] {
        let mut private = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(private.recursive(true), 0o700)
            .create(dir)
            .map_err(io(dir.display().to_string()))?;
    }
    let store = open_store(&config)?;
    let faults = Faults::new(parts.clock.clone());
    let identity = match parts.identity {
        Some(identity) => identity,
        None => join::identity(daemon).await?,
    };
    let controller = TierHttp::new(&identity, &daemon.cloud_controller, Role::CloudController, "cloud-controller")?;
    join::keep_renewed(identity.clone(), controller.clone(), faults.clone());
    let mut disk_tls = None;
    if let Some(engines) = &config.engines {
        let layout = Layout::new(&engines.base).map_err(|e| StartError::Config(e.to_string()))?;
        host::certificate::show(identity.dir(), &layout.nbd_tls()).map_err(io("the certificate for QEMU"))?;
        disk_tls = Some(layout.nbd_tls());
    }
    let cloud = Arc::new(Cloud {
        identity: identity.clone(),
        controller,
        zone: daemon.zone.clone(),
        walrus: config.walrus.clone(),
        cluster: config.cluster.clone(),
    });

    let (events, heard) = mpsc::unbounded_channel();
    let ground = ground(&config, &store, events, parts.simulated).await?;
    let images = match ground.hypervisor.simulated() {
        true => None,
        false => {
            let walrus = Arc::new(Walrus::new(cloud.clone()));
            let dir = config.images_dir();
            Some(ImageCache::open(&dir, walrus, config.disk_floor_gib << 30).map_err(io(dir.display().to_string()))?)
        }
    };
    let (poke, wished) = (Poke::default(), Poke::default());
    let book = Arc::new(Book::default());
    let key = TokenKey::load(&daemon.state.join("metadata.key")).map_err(io("the key of metadata tokens"))?;
    let metadata = Service::new(book.clone(), key, ground.sockets, parts.clock.clone(), faults.clone());
    let flow_logs = FlowLogs::new(flow_log::Parts {
        node: daemon.name.clone(),
        ground: ground.flow_logs,
        store: store.clone(),
        dir: daemon.state.join("flow-logs"),
        carrier: flow_log::Carrier::new(cloud.clone()),
        longest_window: config.flow_log_window_s.map(Duration::from_secs),
        clock: parts.clock.clone(),
        faults: faults.clone(),
        changed: poke.clone(),
    })
    .map_err(io("the flow logs"))?;
    flow_logs.run();
    let machine = Arc::new(Machine {
        flow_logs,
        node: daemon.name.clone(),
        hypervisor: ground.hypervisor,
        images,
        book,
        metadata,
        rows: Rows::new(store.clone()),
        wishes: IntentBook::new(store, wished.clone()),
        instances: config.instances_dir(),
        bridge: config.bridge.clone(),
        accelerator: ground.accelerator,
        clock: parts.clock.clone(),
        faults: faults.clone(),
        used: Mutex::default(),
        disks: Semaphore::new(DISKS_AT_ONCE),
    });
    // Running guests may ask at any moment: what they may read is known before anything listens.
    let wishes = machine.wishes.all().await?;
    machine.book.replace(wishes.iter().map(|w| &w.body));

    let reports = Arc::new(Reports::default());
    let patience = Duration::from_secs(config.patience_s);
    let instances = Instances::new(machine.clone(), reports.clone(), poke.clone(), wished.clone(), patience);
    instances.listen(heard);
    let looked = instances.looked();
    drive(Arc::new(Wishes(instances.clone())), wished, EVERY);
    let driven = drive(instances, poke, EVERY);
    drive(instance::keep_metadata(machine.clone()), Poke::default(), METADATA_EVERY);
    if let Some(folder) = disk_tls {
        let (machine, identity, state) = (machine.clone(), identity.clone(), daemon.state.clone());
        drive(
            Arc::new(instance::DiskCredentials { machine, identity, folder, state, given: Default::default() }),
            Poke::default(),
            METADATA_EVERY,
        );
    }

    let server = Server::bind(&daemon.listen, Some(&identity)).await.map_err(io("the front"))?;
    let addresses = server.addresses();
    let address = match (&daemon.announce, addresses.first()) {
        (Some(announced), _) => announced.clone(),
        (None, Some(address)) => address.to_string(),
        (None, None) => return Err(StartError::Config("`listen` names no address".into())),
    };
    let peer = Peer::new(Role::NodeController, daemon.zone.clone(), daemon.name.clone());
    let about = About::new(peer, env!("CARGO_PKG_VERSION"), address.clone(), parts.clock.clone(), faults.clone());
    let node = service::Node {
        zone: daemon.zone.clone(),
        machine: machine.clone(),
        reports: reports.clone(),
        about,
        plans: ground.plans,
        versions: Mutex::default(),
        looked,
    };
    server.serve(Arc::new(TierOnly(Arc::new(NodeServer(Arc::new(node))))));
    let capacity = config
        .capacity
        .unwrap_or_else(|| cluster::capacity(&config.instances_dir(), &config.images_dir(), config.reserve_mib));
    let standing = Standing {
        node: daemon.name.clone(),
        address: address.clone(),
        capacity,
        hypervisor: machine.hypervisor.kind().to_owned(),
        clock: parts.clock,
        faults: faults.clone(),
    };
    cluster::keep_registered(cloud, standing);
    tracing::info!(
        node = daemon.name,
        zone = daemon.zone,
        address,
        hypervisor = machine.hypervisor.kind(),
        hypervisor.why = machine.hypervisor.why(),
        "node-controller serves"
    );
    Ok(Running { addresses, reports, faults, instances: driven, simulated: ground.simulated })
}

fn open_store(config: &Config) -> Result<Store, StartError> {
    let where_it_is = match &config.daemon.store {
        mallee_service::config::Store::Sqlite => mallee_store::Config::Sqlite { path: config.daemon.store_path() },
        mallee_service::config::Store::Postgres { url, schema } => {
            mallee_store::Config::Postgres { url: url.clone(), schema: schema.clone() }
        }
    };
    Ok(Store::open(&where_it_is, &MIGRATIONS)?)
}

async fn ground(
    config: &Config,
    store: &Store,
    events: hypervisor::Events,
    simulated: Option<Simulated>,
) -> Result<Ground, StartError> {
    if config.hypervisor == HypervisorChoice::Simulated {
        let machine = simulated.unwrap_or_else(|| Simulated::new(config.simulated.clone()));
        machine.listen(events);
        return Ok(Ground {
            hypervisor: Arc::new(machine.clone()),
            accelerator: Accelerator::Tcg,
            simulated: Some(machine),
            plans: Vec::new(),
            sockets: Arc::new(NoSockets),
            flow_logs: None,
        });
    }
    let engines = match &config.engines {
        Some(engines) => Some(Engines::look(engines.clone()).await?),
        None => None,
    };
    let (accelerator, why) = match (config.accelerator, &config.engines, &engines) {
        (Some(AcceleratorChoice::Kvm), ..) => (Accelerator::Kvm, "the configuration says so".to_owned()),
        (Some(AcceleratorChoice::Tcg), ..) => (Accelerator::Tcg, "the configuration says so".to_owned()),
        (None, Some(configured), Some(engines)) => {
            let choice = configured.node.as_ref().map(|node| node.kvm).unwrap_or_default();
            let verdict = kvm::verdict(choice, engines.layout()).await?;
            let accelerator = match verdict.accelerator {
                kvm::Accelerator::Kvm => Accelerator::Kvm,
                kvm::Accelerator::Tcg => Accelerator::Tcg,
            };
            (accelerator, verdict.reason)
        }
        _ => (Accelerator::Tcg, "KVM was not tried: the configuration names no engines".to_owned()),
    };
    let uri = config.libvirt_uri.clone().or_else(|| engines.as_ref().map(|e| e.layout().libvirt_uri()));
    let uri =
        uri.ok_or_else(|| StartError::Config("neither `engines` nor `libvirt_uri` says where libvirt is".into()))?;
    let kind = if accelerator == Accelerator::Kvm { "kvm" } else { "tcg" };
    let sockets: Arc<dyn MetadataSockets> = match &engines {
        Some(engines) => Arc::new(Links::new(store.clone(), engines.netns().clone(), engines.layout().ovs_socket())),
        None => {
            tracing::warn!("no engines are configured: instances of this node cannot read metadata");
            Arc::new(NoSockets)
        }
    };
    let flow_logs = engines.as_ref().map(|e| flow_log::Ground {
        netns: e.netns().clone(),
        management: e.layout().ovs().join(format!("{}.mgmt", config.bridge)),
    });
    Ok(Ground {
        flow_logs,
        hypervisor: Arc::new(Libvirt::new(&uri, kind, &why, events)?),
        accelerator,
        simulated: None,
        plans: engines.map(|e| e.plans().to_vec()).unwrap_or_default(),
        sockets,
    })
}
