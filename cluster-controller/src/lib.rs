//! The cluster-controller: one per availability zone. It owns the zone's nodes, their capacity, and which node has which
//! instance. It knows no AWS and no accounts.
//!
//! The cloud-controller sends the whole list of instances wanted here ([`instance`] keeps it); [`reconcile`] gives each a
//! node, by the pure function in [`placement`], and writes that down before [`node`] sends that node its list. What the nodes
//! report goes up as it is.

mod config;
mod event;
mod instance;
mod membership;
mod node;
pub mod placement;
mod reconcile;
mod tier;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mallee_service::{
    Clock, Faults, Identity, IntentBook, Server, TierHttp, drive, intent::INTENT_TABLES, join, process::About,
    register, tiers::TierOnly,
};
use mallee_store::{Migration, Store};
use mallee_tiers::{ClusterServer, Instance, InstanceReport, Peer, Reports, Role, TierError};
use tokio::sync::{Mutex, watch};

pub use config::Config;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Tier(#[from] TierError),
    #[error(transparent)]
    Store(#[from] mallee_store::Error),
    #[error(transparent)]
    Tls(#[from] mallee_service::tls::TlsError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The tables of a cluster-controller's store.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "intent", sql: INTENT_TABLES },
    Migration { version: 2, name: "node", sql: node::TABLES },
    Migration { version: 3, name: "instance", sql: instance::TABLES },
    Migration { version: 4, name: "event", sql: event::TABLES },
    membership::REMOVED,
];

/// Everything a cluster-controller has.
pub(crate) struct Zone {
    pub config: Config,
    pub store: Store,
    pub clock: Clock,
    pub about: About,
    pub identity: Identity,
    pub book: IntentBook<Instance>,
    pub reports: Reports<InstanceReport>,
    pub nodes: node::Nodes,
    pub news: reconcile::News,
    /// None until the first pass, and after anything failed: the next pass makes it from the store.
    pub world: Mutex<Option<instance::World>>,
    /// Whether this store is still before its first list; none when that has not been looked up.
    pub first_list: Mutex<Option<bool>>,
    /// Set once every node was heard out after the start; before that a report would be missing what only nodes know.
    pub ready: watch::Sender<bool>,
    pub begun: Instant,
}

impl Zone {
    /// Every known node has reported, or has been silent for a lease.
    pub(crate) fn is_heard_out(&self) -> bool {
        let lease = self.config.lease();
        self.nodes
            .all()
            .iter()
            .all(|n| n.observed() || matches!(n.presence(self.begun, lease), node::Presence::Silent(_)))
    }
}

/// A cluster-controller that serves. It ends with the runtime it was started on.
pub struct Running {
    /// `host:port` as told to the other tiers.
    pub address: String,
    pub peer: Peer,
}

/// Starts a cluster-controller on the current runtime: joins the cloud if it has to, opens its store, serves.
pub async fn start(config: Config) -> Result<Running, Error> {
    let clock = Clock::System;
    let faults = Faults::new(clock.clone());
    std::fs::create_dir_all(&config.daemon.state)?;
    let identity = join::identity(&config.daemon).await?;
    let peer = identity.peer()?;
    if peer.role != Role::ClusterController || peer.zone != config.daemon.zone {
        let uri = peer.uri();
        return Err(Error::Config(format!(
            "the certificate is that of {uri}, the configuration that of a cluster-controller of zone {:?}",
            config.daemon.zone
        )));
    }
    if config.lease_ms < 100 {
        return Err(Error::Config("lease_ms: less than 100 ms is no time for a node to answer in".into()));
    }
    // Opening blocks: a migration may take its time.
    let store_config = config.daemon.store_config();
    let store = tokio::task::spawn_blocking(move || Store::open(&store_config, MIGRATIONS))
        .await
        .map_err(|e| Error::Config(e.to_string()))??;
    let server = Server::bind(&config.daemon.listen, Some(&identity)).await?;
    let bound = server.addresses().first().map(ToString::to_string).unwrap_or_default();
    let address = config.daemon.announce.clone().unwrap_or(bound);
    let about = About::new(peer.clone(), env!("CARGO_PKG_VERSION"), address.clone(), clock.clone(), faults.clone());
    let news = reconcile::News::default();
    let zone = Arc::new(Zone {
        book: IntentBook::new(store.clone(), news.poke.clone()),
        store,
        clock,
        about: about.clone(),
        identity: identity.clone(),
        reports: Reports::default(),
        nodes: node::Nodes::default(),
        news,
        world: Mutex::new(None),
        first_list: Mutex::new(None),
        ready: watch::channel(false).0,
        begun: Instant::now(),
        config,
    });
    for known in node::load(&zone.store).await? {
        zone.admit(&known.name, &known.machine());
    }
    tokio::spawn(zone.clone().watch_leases());
    let instances = Arc::new(reconcile::Instances { zone: zone.clone(), looked_at_all: Default::default() });
    // Driven more often than everything is looked at: a tick without news costs nothing.
    drive(instances, zone.news.poke.clone(), Duration::from_secs(20));
    server.serve(Arc::new(TierOnly(Arc::new(ClusterServer(Arc::new(tier::Front(zone.clone())))))));
    if !zone.config.daemon.cloud_controller.is_empty() {
        let cloud =
            TierHttp::new(&identity, &zone.config.daemon.cloud_controller, Role::CloudController, "cloud-controller")?;
        register::keep_registered(cloud.clone(), about);
        join::keep_renewed(identity, cloud, faults);
    }
    Ok(Running { address, peer })
}
