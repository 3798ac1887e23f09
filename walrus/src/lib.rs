//! walrus: Mallee's S3. It owns buckets and objects, and asks the cloud-controller whose keys there are.
//!
//! A request comes in at [`front`], is told which [`operation`] it asks for, and is done in the file of its noun under
//! `s3/`. Whether it may be done says [`access::allow`], and nobody else. Bytes are in `blob/`, everything else in rows
//! of the store. [`sweep`] removes bytes whose rows are gone; [`tier`] is what the other tiers see.

pub mod access;
mod arrival;
pub mod blob;
mod call;
pub mod checksum;
mod circumstances;
pub mod config;
mod error;
mod flow_log;
mod front;
pub mod identity;
pub mod operation;
pub mod principal;
pub mod s3;
pub mod scrub;
mod sweep;
mod tier;

use std::{net::SocketAddr, sync::Arc, time::Duration};

pub use config::{Config, StaticIdentity};
pub use error::Error;

use mallee_service::{
    Clock, Driven, Faults, Identity, Poke, Server, TierHttp, drive, join, process::About, seal::SealingKey,
};
use mallee_store::{Migration, Store};
use mallee_tiers::{CloudClient, Peer, Role, TierRegistration};
use std::sync::{PoisonError, RwLock};

use arrival::Pace;
use blob::{BlobId, BlobIds, Blobs, Damage, FileBlobs, Intake, Lanes, Pins};
use checksum::Algorithm;
use identity::{Holders, SealedCopy};
use s3::bucket::{
    known_policies::KnownPolicies,
    lifecycle::Lifecycle,
    logging::{AccessLogs, Delivery},
    notification::{Courier, Webhooks},
};

/// The store's history; each step belongs to the file that owns the table.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "identities", sql: identity::TABLES },
    Migration { version: 2, name: "blobs", sql: blob::TABLES },
    Migration { version: 3, name: "buckets", sql: s3::bucket::TABLES },
    Migration { version: 4, name: "objects", sql: s3::object::TABLES },
    Migration { version: 5, name: "multipart uploads", sql: s3::multipart::TABLES },
    Migration { version: 6, name: "blobs of the tiers", sql: tier::TABLES },
    Migration { version: 7, name: "bucket settings", sql: s3::bucket::settings::TABLES },
    Migration { version: 8, name: "access logs", sql: s3::bucket::logging::TABLES },
    Migration { version: 9, name: "event notices", sql: s3::bucket::notification::TABLES },
    Migration { version: 20, name: "versioning of buckets", sql: s3::bucket::versioning::TABLES },
    Migration { version: 21, name: "object lock of buckets", sql: s3::bucket::object_lock::TABLES },
    Migration { version: 22, name: "versions of objects", sql: s3::object::version::TABLES },
    Migration { version: 23, name: "locks and seals of uploads", sql: s3::multipart::LOCKS_AND_SEALS },
    Migration { version: 24, name: "the master key", sql: s3::encryption::TABLES },
    Migration { version: 25, name: "what is verified", sql: scrub::TABLES },
    Migration { version: 26, name: "processes", sql: sweep::TABLES },
];

/// The daemon's one struct: everything hangs from it.
pub struct Walrus {
    pub(crate) store: Store,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) ids: BlobIds,
    pub(crate) lanes: Lanes,
    pub(crate) pins: Pins,
    pub(crate) holders: Holders,
    pub(crate) clock: Clock,
    /// How slow who uploads may be.
    pub(crate) pace: Pace,
    pub(crate) faults: Faults,
    pub(crate) about: About,
    /// What wraps the data keys of encrypted objects.
    pub(crate) master: SealingKey,
    /// Wakes what does as lifecycles say.
    pub(crate) lifecycle: Poke,
    pub(crate) host_suffixes: Vec<String>,
    pub(crate) website_suffixes: Vec<String>,
    pub(crate) webhooks: Arc<Webhooks>,
    /// Wakes what delivers events.
    pub(crate) courier: Poke,
    pub(crate) access_logs: AccessLogs,
    pub(crate) known_policies: Arc<KnownPolicies>,
    pub(crate) sigv2: mallee_aws::signature::SigV2,
    region: RwLock<String>,
}

/// A walrus that is up and answering.
pub struct Running {
    /// Where it listens, with the ports it was given.
    pub addresses: Vec<SocketAddr>,
    pub walrus: Arc<Walrus>,
    /// The rows, for whoever wants to see what it costs to find them.
    pub store: Store,
    /// The sweep, for whoever wants to see what it does.
    pub sweep: Driven,
    /// What does as lifecycles say, for whoever wants it done at another time.
    pub lifecycle: Arc<Lifecycle>,
    /// What looks for damage.
    pub scrub: Arc<scrub::Scrub>,
}

/// Brings walrus up in this process; it serves until the runtime ends. Port 0 takes a free port.
pub async fn start(config: Config) -> Result<Running, Error> {
    let clock = Clock::System;
    let faults = Faults::new(clock.clone());
    let failed = |what: &str, e: &dyn std::fmt::Display| Error::Internal(format!("{what}: {e}"));
    mallee_store::durable_folder(&config.daemon.state)
        .map_err(|e| failed(&config.daemon.state.display().to_string(), &e))?;
    let tls = certificate(&config).await?;
    let server = Server::bind(&config.daemon.listen, tls.as_ref()).await.map_err(|e| failed("listen", &e))?;
    let addresses = server.addresses();

    let (store_config, blobs_dir, reserve) = (config.store(), config.blobs_dir(), config.reserve_mib << 20);
    let opened = tokio::task::spawn_blocking(move || {
        let store = Store::open(&store_config, MIGRATIONS)?;
        let blobs = FileBlobs::open(&blobs_dir, reserve)?;
        Ok::<_, Error>((store, blobs))
    });
    let (store, blobs) = opened.await??;

    let webhooks = Arc::new(config.webhooks().map_err(Error::Internal)?);
    let (courier_poke, logs_poke) = (Poke::default(), Poke::default());
    let master = s3::encryption::master_key(&store, &config.master_key()).await?;
    let holders = Holders::default();
    let poke = Poke::default();
    let announced = match &config.daemon.announce {
        Some(address) => address.clone(),
        None => addresses.first().map(ToString::to_string).unwrap_or_default(),
    };
    let peer = Peer::new(Role::Walrus, "", config.daemon.name.clone());
    let lifecycle_poke = Poke::default();
    let walrus = Arc::new(Walrus {
        blobs: Arc::new(blobs),
        ids: BlobIds::new(store.clone(), clock.clone(), poke.clone()),
        pace: config.pace(),
        lanes: Lanes::default(),
        pins: Pins::default(),
        holders: holders.clone(),
        about: About::new(peer, env!("CARGO_PKG_VERSION"), announced.clone(), clock.clone(), faults.clone()),
        host_suffixes: config.host_suffixes.clone(),
        website_suffixes: config.website_suffixes.clone(),
        webhooks: webhooks.clone(),
        courier: courier_poke.clone(),
        access_logs: AccessLogs::new(store.clone()),
        known_policies: Arc::default(),
        sigv2: if config.sigv2 { mallee_aws::signature::SigV2::Allowed } else { mallee_aws::signature::SigV2::Refused },
        region: RwLock::new(config.region.clone()),
        master,
        lifecycle: lifecycle_poke.clone(),
        store: store.clone(),
        clock: clock.clone(),
        faults: faults.clone(),
    });

    if config.stands_alone() {
        holders.take(None, &identity::from_config(&config.identities));
    } else {
        let tls = tls.as_ref().ok_or_else(|| Error::Internal("a walrus of a cloud needs a certificate".into()))?;
        join_cloud(&walrus, &config, tls, announced).await?;
    }
    let courier = Courier::new(store.clone(), webhooks, clock.clone(), faults.clone())?;
    drive(Arc::new(courier), courier_poke, Duration::from_secs(1));
    let delivery = Delivery { walrus: walrus.clone(), after_ms: config.log_delivery_ms };
    drive(Arc::new(delivery), logs_poke, Duration::from_secs(30));
    let lifecycle = Arc::new(Lifecycle {
        store: store.clone(),
        clock: clock.clone(),
        faults: faults.clone(),
        every: Duration::from_millis(config.lifecycle_every_ms),
    });
    drive(lifecycle.clone(), lifecycle_poke, lifecycle.every);
    let rate = config.scrub_mib_per_second << 20;
    let scrub =
        Arc::new(scrub::Scrub { store: store.clone(), blobs: walrus.blobs.clone(), faults: faults.clone(), rate });
    drive(scrub.clone(), Poke::default(), Duration::from_secs(600));
    let shared = matches!(config.store(), mallee_store::Config::Postgres { .. });
    sweep::enroll(&store, walrus.ids.boot(), clock.now_ms()).await?;
    let sweep = sweep::Sweep {
        shared,
        store,
        blobs: walrus.blobs.clone(),
        ids: walrus.ids.clone(),
        pins: walrus.pins.clone(),
        clock,
        faults,
        patience_ms: config.sweep_after_ms,
    };
    let sweep = drive(Arc::new(sweep), poke, Duration::from_secs(2));
    server.serve(Arc::new(front::Front::new(walrus.clone())));
    tracing::info!(addresses = ?addresses, region = walrus.region(), "walrus serves");
    Ok(Running { addresses, store: walrus.store.clone(), walrus, sweep, lifecycle, scrub })
}

/// The certificate, from disk or for a join token; a walrus that stands alone may do without.
async fn certificate(config: &Config) -> Result<Option<Identity>, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Internal(format!("certificate: {e}"));
    if !config.stands_alone() {
        return join::identity(&config.daemon).await.map(Some).map_err(|e| failed(&e));
    }
    let dir = config.daemon.tls_dir();
    if !dir.join("cert.pem").exists() {
        return Ok(None);
    }
    Identity::load(&dir).map(Some).map_err(|e| failed(&e))
}

/// Starts what keeps walrus a part of its cloud: identities, its registration, its certificate.
async fn join_cloud(walrus: &Arc<Walrus>, config: &Config, tls: &Identity, announced: String) -> Result<(), Error> {
    let copy = SealedCopy::open(walrus.store.clone(), &config.daemon.state.join("seal.key"))?;
    match copy.load().await {
        Ok(Some((generation, identities))) => walrus.holders.take(Some(generation), &identities),
        Ok(None) => {}
        // They can be asked for again; until then nobody is known.
        Err(e) => {
            walrus.faults.raise("identities.copy", e.to_string(), "put seal.key back, or start the cloud-controller")
        }
    }
    let cloud = TierHttp::new(tls, &config.daemon.cloud_controller, Role::CloudController, "cloud-controller")
        .map_err(|e| Error::Internal(e.to_string()))?;
    tokio::spawn(identity::follow(walrus.holders.clone(), copy, cloud.clone(), walrus.faults.clone()));
    tokio::spawn(register(walrus.clone(), cloud.clone(), announced));
    join::keep_renewed(tls.clone(), cloud, walrus.faults.clone());
    Ok(())
}

/// Tells the cloud-controller where walrus is, twice per lease.
async fn register(walrus: Arc<Walrus>, cloud: TierHttp, address: String) {
    let client = CloudClient::new(Arc::new(cloud));
    loop {
        let told = client
            .register_tier(&TierRegistration {
                address: address.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                now: walrus.clock.now_ms(),
            })
            .await;
        let pause = match told {
            Ok(registered) => {
                walrus.faults.clear("registration");
                if !registered.region.is_empty() {
                    *walrus.region.write().unwrap_or_else(PoisonError::into_inner) = registered.region;
                }
                Duration::from_millis(registered.lease_ms / 2).max(Duration::from_millis(500))
            }
            Err(e) => {
                walrus.faults.raise(
                    "registration",
                    format!("the cloud-controller could not be told where walrus is: {e}"),
                    "start the cloud-controller",
                );
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

impl Walrus {
    pub fn region(&self) -> String {
        self.region.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn intake(&self, sha256: bool, checksums: &[Algorithm]) -> Result<Intake, Error> {
        Intake::new(self.blobs.clone(), self.ids.clone(), self.lanes.clone(), sha256, checksums)
    }

    /// Shows damage to the operator, by the name of what it is in.
    pub(crate) fn damage(&self, resource: &str, content: &BlobId) -> Damage {
        let (faults, resource, key) = (self.faults.clone(), resource.to_owned(), format!("damage.{content}"));
        Box::new(move |e| {
            faults.raise(&key, format!("{resource} is damaged: {e}"), "restore it from a copy, and check the disk");
        })
    }
}
