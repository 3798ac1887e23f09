//! Whose keys there are. The cloud-controller owns them; walrus holds a copy of all, in memory to serve from and sealed in
//! its own store to serve from while the cloud-controller is down.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, RwLock},
    time::Duration,
};

use mallee_aws::{AccessKeyId, SecretKey};
use mallee_service::{Faults, TierHttp, pki::PkiError, seal::SealingKey};
use mallee_store::{Row, Store, params};
use mallee_tiers::{CloudClient, Generation, IdentitiesAsked, Identity};
use sha2::Digest;

use crate::{Error, config::StaticIdentity, principal::Account};

pub const TABLES: &str = "
    CREATE TABLE identity_copy (
        one BIGINT PRIMARY KEY,
        epoch BIGINT NOT NULL,
        counter BIGINT NOT NULL,
        sealed BLOB NOT NULL
    );
";

/// How long one question for newer identities hangs.
const WAIT_MS: u64 = 25_000;

/// What a request's key stands for.
#[derive(Clone)]
pub struct Holder {
    pub secret: SecretKey,
    pub active: bool,
    pub account: Account,
}

/// The identities held now.
#[derive(Clone, Default)]
pub struct Holders(Arc<RwLock<Arc<Held>>>);

#[derive(Default)]
struct Held {
    generation: Option<Generation>,
    by_key: HashMap<String, Arc<Holder>>,
    by_canonical_id: HashMap<String, Account>,
    by_account: HashMap<String, Account>,
}

impl Holders {
    fn held(&self) -> Arc<Held> {
        self.0.read().unwrap_or_else(|p| p.into_inner()).clone()
    }

    /// The holder of an active key.
    pub fn holder(&self, key: &AccessKeyId) -> Option<Arc<Holder>> {
        self.held().by_key.get(key.as_str()).filter(|holder| holder.active).cloned()
    }

    pub fn by_canonical_id(&self, id: &str) -> Option<Account> {
        self.held().by_canonical_id.get(id).cloned()
    }

    pub fn by_account(&self, account: &str) -> Option<Account> {
        self.held().by_account.get(account).cloned()
    }

    pub fn generation(&self) -> Option<Generation> {
        self.held().generation
    }

    pub fn take(&self, generation: Option<Generation>, identities: &[Identity]) {
        let mut held = Held { generation, ..Held::default() };
        for identity in identities {
            let account = Account {
                account: identity.account.clone(),
                name: identity.account_name.clone(),
                canonical_id: identity.canonical_id.clone(),
            };
            held.by_canonical_id.insert(account.canonical_id.clone(), account.clone());
            held.by_account.insert(account.account.clone(), account.clone());
            let holder = Holder { secret: SecretKey::new(identity.secret.0.clone()), active: identity.active, account };
            held.by_key.insert(identity.access_key.clone(), Arc::new(holder));
        }
        *self.0.write().unwrap_or_else(|p| p.into_inner()) = Arc::new(held);
    }
}

/// The identities of a walrus that stands alone.
pub fn from_config(identities: &[StaticIdentity]) -> Vec<Identity> {
    identities
        .iter()
        .map(|given| Identity {
            access_key: given.access_key.clone(),
            secret: given.secret.clone(),
            active: true,
            account: given.account.clone(),
            account_name: given.account_name.clone(),
            canonical_id: hex::encode(sha2::Sha256::digest(format!("mallee account {}", given.account))),
            arn: format!("arn:aws:iam::{}:root", given.account),
        })
        .collect()
}

/// The sealed copy in the store.
#[derive(Clone)]
pub struct SealedCopy {
    store: Store,
    key: SealingKey,
}

impl SealedCopy {
    /// The key is a file beside the store, made when it is not there: a copy of the store alone gives no secrets away.
    pub fn open(store: Store, key_file: &Path) -> Result<Self, Error> {
        Ok(Self { store, key: SealingKey::open_or_create(key_file).map_err(sealing)? })
    }

    /// What was kept; nothing in a new store.
    pub async fn load(&self) -> Result<Option<(Generation, Vec<Identity>)>, Error> {
        let read =
            |row: &Row<'_>| Ok((Generation { epoch: row.get(0)?, counter: row.get(1)? }, row.get::<Vec<u8>>(2)?));
        let row = self
            .store
            .read("load the identities", move |tx| {
                Ok::<_, Error>(tx.query_opt("SELECT epoch, counter, sealed FROM identity_copy", params![], read)?)
            })
            .await?;
        let Some((generation, sealed)) = row else { return Ok(None) };
        let identities = serde_json::from_slice(&self.key.open(SEAL, &sealed).map_err(sealing)?)
            .map_err(|e| Error::Internal(format!("the kept identities: {e}")))?;
        Ok(Some((generation, identities)))
    }

    pub async fn keep(&self, generation: Generation, identities: &[Identity]) -> Result<(), Error> {
        let plain = serde_json::to_vec(identities).map_err(|e| Error::Internal(e.to_string()))?;
        let sealed = self.key.seal(SEAL, &plain).map_err(sealing)?;
        self.store
            .write("keep the identities", move |tx| {
                tx.execute(
                    "INSERT INTO identity_copy (one, epoch, counter, sealed) VALUES (1, ?1, ?2, ?3)
                     ON CONFLICT (one) DO UPDATE SET epoch = ?1, counter = ?2, sealed = ?3",
                    params![generation.epoch, generation.counter, sealed],
                )?;
                Ok::<_, Error>(())
            })
            .await
    }
}

/// Binds a sealed copy to what it is.
const SEAL: &str = "mallee walrus identities 1";

fn sealing(e: PkiError) -> Error {
    Error::Internal(e.to_string())
}

/// Keeps the copy as new as the cloud-controller's, for as long as the daemon runs: a question that hangs until there is
/// something newer.
pub async fn follow(holders: Holders, copy: SealedCopy, cloud: TierHttp, faults: Faults) {
    let client = CloudClient::new(Arc::new(cloud));
    let mut pause = Duration::from_millis(100);
    loop {
        let asked = IdentitiesAsked { since: holders.generation(), wait_ms: WAIT_MS };
        match client.identities(&asked).await {
            Ok(answer) => {
                pause = Duration::from_millis(100);
                faults.clear("identities");
                let Some(identities) = answer.identities else { continue };
                // In force before it is on disk: a key that is gone must not be good for a moment longer.
                holders.take(Some(answer.generation), &identities);
                match copy.keep(answer.generation, &identities).await {
                    Ok(()) => faults.clear("identities.copy"),
                    Err(e) => faults.raise(
                        "identities.copy",
                        format!("the identities could not be kept: {e}"),
                        "is the disk of walrus' store full?",
                    ),
                }
            }
            Err(e) => {
                faults.raise(
                    "identities",
                    format!("no news of accounts and keys from the cloud-controller: {e}"),
                    "walrus serves the keys it knows; start the cloud-controller",
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_tiers::Secret;

    #[tokio::test]
    async fn the_kept_copy_is_sealed_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let open = || {
            let config = mallee_store::Config::Sqlite { path: path.clone() };
            let store = Store::open(&config, crate::MIGRATIONS).unwrap();
            SealedCopy::open(store, &dir.path().join("seal.key")).unwrap()
        };
        let identities = from_config(&[StaticIdentity {
            access_key: "AK".into(),
            secret: Secret("a secret that must not show".into()),
            account: "000000000001".into(),
            account_name: "one".into(),
        }]);
        let generation = Generation { epoch: 2, counter: 7 };
        open().keep(generation, &identities).await.unwrap();
        assert_eq!(open().load().await.unwrap(), Some((generation, identities)));
        for file in ["store.db", "store.db-wal"] {
            let bytes = std::fs::read(dir.path().join(file)).unwrap_or_default();
            assert!(!bytes.windows(8).any(|w| w == b"a secret"), "{file}");
        }
        std::fs::write(dir.path().join("seal.key"), hex::encode([1; 32])).unwrap();
        assert!(open().load().await.is_err());
    }
}
