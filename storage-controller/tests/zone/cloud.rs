//! What a storage-controller asks of a cloud-controller, answered by the test.

use mallee_tiers::*;
use sha2::{Digest, Sha256};

pub struct Played;

/// Every id of a key names one.
pub fn key(id: &str) -> mallee_service::DiskKey {
    mallee_service::DiskKey::new(Sha256::digest(id.as_bytes()).into())
}

fn not_played<T>() -> Result<T, TierError> {
    Err(TierError::new(TierErrorKind::Unsupported, "the test does not play this"))
}

#[async_trait::async_trait]
impl CloudController for Played {
    async fn register_tier(&self, _: &Peer, said: TierRegistration) -> Result<TierRegistered, TierError> {
        Ok(TierRegistered { lease_ms: 60_000, now: said.now, region: "test-1".into() })
    }
    async fn identities(&self, _: &Peer, _: IdentitiesAsked) -> Result<Identities, TierError> {
        not_played()
    }
    async fn renew(&self, _: &Peer, _: SigningRequest) -> Result<SignedCertificate, TierError> {
        not_played()
    }
    async fn locate(&self, _: &Peer, _: Locate) -> Result<Located, TierError> {
        not_played()
    }
    async fn disk_key(&self, from: &Peer, asked: DiskKeyAsked) -> Result<DiskKey, TierError> {
        assert_eq!(from.role, Role::StorageController);
        Ok(DiskKey { secret: key(&asked.id).to_secret() })
    }
}
