//! The storage-controller: one per availability zone. It owns the zone's volumes: their bytes, and who they are served to.
//! It knows no AWS and no accounts.
//!
//! The cloud-controller sends the whole list of volumes wanted here; [`volume`] takes each there, step by step, by a
//! [`backend`] that keeps bytes and an [`export`] that serves them.

pub mod backend;
mod background;
mod blobs;
mod config;
pub mod export;
mod grow;
mod key;
mod snapshot;
mod source;
mod tier;
pub mod volume;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use mallee_service::{
    Clock, Faults, IntentBook, Poke, Server, TierHttp, drive,
    intent::{INTENT_TABLES, SNAPSHOT_INTENT_TABLES},
    join,
    process::About,
    register,
    seal::SealingKey,
    tiers::TierOnly,
};
use mallee_store::{Migration, Store};
use mallee_tiers::{Peer, Reports, Role, Snapshot, SnapshotReport, StorageServer, TierError, Volume, VolumeReport};
use tokio::sync::watch;

pub use blobs::Place;
pub use config::Config;
pub use export::Beyond;

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
    Place(#[from] export::PlaceError),
    #[error(transparent)]
    Pki(#[from] mallee_service::pki::PkiError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Engine(#[from] mallee_engines::Error),
}

/// The tables of a storage-controller's store.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "intent", sql: INTENT_TABLES },
    Migration { version: 2, name: "volume", sql: volume::TABLES },
    Migration { version: 3, name: "intent of snapshots", sql: SNAPSHOT_INTENT_TABLES },
    Migration { version: 4, name: "snapshot", sql: snapshot::TABLES },
    Migration { version: 5, name: "keys of disks", sql: key::TABLES },
    Migration { version: 6, name: "exports to other machines", sql: volume::PLACE_COLUMNS },
];

/// Everything a storage-controller has.
pub(crate) struct Storage {
    pub store: Store,
    pub clock: Clock,
    pub about: About,
    pub book: IntentBook<Volume>,
    pub reports: Reports<VolumeReport>,
    pub backend: Arc<dyn backend::Backend>,
    pub exports: Arc<export::Exports>,
    pub snapshot_book: IntentBook<Snapshot>,
    pub snapshot_reports: Reports<SnapshotReport>,
    pub blobs: Arc<blobs::Blobs>,
    pub keys: Arc<key::Keys>,
    pub sources: Arc<source::Sources>,
    /// Uploads, fills and merges.
    pub background: background::Background,
    /// Who changes what a volume consists of, or whether it is exported, does so alone.
    pub locks: Mutex<BTreeMap<volume::VolumeId, Arc<tokio::sync::Mutex<()>>>>,
    /// Set after the first pass.
    pub ready: watch::Sender<bool>,
    pub snapshots_ready: watch::Sender<bool>,
}

/// A storage-controller that serves. It ends with the runtime it was started on; its export daemons do not.
pub struct Running {
    /// `host:port` as told to the other tiers.
    pub address: String,
    pub peer: Peer,
}

/// Starts a storage-controller on the current runtime: joins the cloud if it has to, opens its store, serves.
pub async fn start(config: Config) -> Result<Running, Error> {
    let clock = Clock::System;
    let faults = Faults::new(clock.clone());
    let state = config.daemon.state.clone();
    std::fs::create_dir_all(&state)?;
    let sockets = config.sockets()?;
    let identity = join::identity(&config.daemon).await?;
    let peer = identity.peer()?;
    if peer.role != Role::StorageController || peer.zone != config.daemon.zone {
        let uri = peer.uri();
        return Err(Error::Config(format!(
            "the certificate is that of {uri}, the configuration that of a storage-controller of zone {:?}",
            config.daemon.zone
        )));
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
    let (poke, snapshots_poke) = (Poke::default(), Poke::default());
    // What happened in the background may matter to either.
    let background_poke = Poke::default();
    tokio::spawn(pass_on(background_poke.clone(), [poke.clone(), snapshots_poke.clone()]));
    let sealing = SealingKey::open_or_create(&state.join("sealing.key"))?;
    let keys = Arc::new(key::Keys {
        store: store.clone(),
        sealing,
        identity: identity.clone(),
        cloud: config.daemon.cloud_controller.clone(),
        opened: Mutex::default(),
    });
    let blobs = blobs::Blobs::new(identity.clone(), config.daemon.cloud_controller.clone(), config.walrus.clone());
    let (blobs, backend) = (Arc::new(blobs), Arc::new(backend::Files::open(config.volumes())?));
    let exports =
        Arc::new(export::Exports::open(sockets.clone(), &state, config.nbd.clone(), background_poke.clone())?);
    if config.nbd.is_some() {
        exports.show_certificate(identity.dir())?;
    }
    let sources = Arc::new(source::Sources::new(backend.clone(), blobs.clone(), keys.clone(), background_poke.clone()));
    // Before any daemon is started: some read from it at once.
    source::listen(&sockets, sources.clone())?;
    let storage = Arc::new(Storage {
        book: IntentBook::new(store.clone(), poke.clone()),
        snapshot_book: IntentBook::of_snapshots(store.clone(), snapshots_poke.clone()),
        snapshot_reports: Reports::default(),
        blobs,
        keys,
        sources,
        background: background::Background::new(background_poke),
        locks: Mutex::default(),
        store,
        clock,
        about: about.clone(),
        reports: Reports::default(),
        backend,
        exports,
        ready: watch::channel(false).0,
        snapshots_ready: watch::channel(false).0,
    });
    let volumes = Arc::new(volume::Volumes { storage: storage.clone(), surveyed: Default::default() });
    drive(volumes, poke, Duration::from_secs(30));
    drive(Arc::new(snapshot::Snapshots { storage: storage.clone() }), snapshots_poke, Duration::from_secs(30));
    server.serve(Arc::new(TierOnly(Arc::new(StorageServer(Arc::new(tier::Front(storage)))))));
    if !config.daemon.cloud_controller.is_empty() {
        let cloud =
            TierHttp::new(&identity, &config.daemon.cloud_controller, Role::CloudController, "cloud-controller")?;
        register::keep_registered(cloud.clone(), about);
        join::keep_renewed(identity, cloud, faults);
    }
    Ok(Running { address, peer })
}

/// A poke wakes one waiter; here there are two.
async fn pass_on(from: Poke, to: [Poke; 2]) {
    loop {
        from.poked().await;
        to.iter().for_each(Poke::poke);
    }
}

/// Ends all export daemons of a storage-controller that does not run any more: for `mallee down --all`, which leaves nothing.
/// How many there were.
pub async fn end_exports(config: &Config) -> Result<usize, Error> {
    let exports = export::Exports::open(config.sockets()?, &config.daemon.state, config.nbd.clone(), Poke::default())?;
    Ok(exports.end_all().await?)
}
