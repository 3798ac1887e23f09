//! What the cloud-controller does for the tiers below.

use std::{sync::Arc, time::Duration};

use mallee_tiers::{
    CloudController, DiskKey, DiskKeyAsked, Identities, IdentitiesAsked, Locate, Located, Peer, SignedCertificate,
    SigningRequest, TierError, TierRegistered, TierRegistration,
};

use crate::{Cloud, account, disk_key, join, zone::registry};

pub struct Tier {
    cloud: Arc<Cloud>,
}

impl Tier {
    pub fn new(cloud: Arc<Cloud>) -> Self {
        Self { cloud }
    }
}

fn internal(e: mallee_store::Error) -> TierError {
    TierError::internal(e.to_string())
}

#[async_trait::async_trait]
impl CloudController for Tier {
    async fn register_tier(&self, from: &Peer, said: TierRegistration) -> Result<TierRegistered, TierError> {
        let (peer, now) = (from.clone(), self.cloud.now());
        let news = self
            .cloud
            .store
            .write("register a tier", move |tx| registry::register(tx, &peer, &said, now))
            .await
            .map_err(internal)?;
        if news {
            tracing::info!(peer.role = %from.role, peer.zone = from.zone, peer.name = from.name, "registered");
            self.cloud.pokes.all();
        }
        Ok(TierRegistered { lease_ms: registry::LEASE_MS, now, region: self.cloud.region().to_owned() })
    }

    async fn identities(&self, _: &Peer, asked: IdentitiesAsked) -> Result<Identities, TierError> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(asked.wait_ms.min(25_000));
        loop {
            // Listen before looking: a change between the two is not missed.
            let changed = self.cloud.identities_changed.subscribe();
            let (generation, identities) = account::identities(&self.cloud, asked.since).await?;
            if identities.is_some() || tokio::time::Instant::now() >= deadline {
                return Ok(Identities { generation, identities });
            }
            let mut changed = changed;
            let _ = tokio::time::timeout_at(deadline, changed.changed()).await;
        }
    }

    async fn renew(&self, from: &Peer, request: SigningRequest) -> Result<SignedCertificate, TierError> {
        tracing::info!(peer.role = %from.role, peer.zone = from.zone, peer.name = from.name, "renews its certificate");
        join::sign(&self.cloud, from, &request)
    }

    async fn disk_key(&self, from: &Peer, asked: DiskKeyAsked) -> Result<DiskKey, TierError> {
        let id = asked.id.clone();
        let found = self.cloud.store.read("read a disk key", move |tx| disk_key::sealed(tx, &id)).await;
        let sealed = found.map_err(internal)?;
        let sealed = sealed.ok_or_else(|| TierError::not_found(format!("there is no disk key {}", asked.id)))?;
        let key = disk_key::open(&self.cloud.sealing, &asked.id, &sealed);
        let key = key.map_err(|e| TierError::internal(e.cause.unwrap_or_default()))?;
        tracing::info!(peer.zone = from.zone, disk_key.id = asked.id, "a zone has fetched a disk key");
        Ok(DiskKey { secret: key.to_secret() })
    }

    async fn locate(&self, _: &Peer, asked: Locate) -> Result<Located, TierError> {
        let (role, zone) = (asked.role, asked.zone.clone());
        self.cloud
            .store
            .read("locate a tier", move |tx| registry::locate(tx, role, &zone))
            .await
            .map_err(internal)?
            .ok_or_else(|| TierError::not_found(format!("no {} of zone {:?} has registered", asked.role, asked.zone)))
    }
}
