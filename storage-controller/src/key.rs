//! Keys of encrypted volumes: asked of the cloud-controller once, and kept sealed, so that a volume is served while that is
//! down.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use mallee_service::{DiskKey, Identity, TierHttp, seal::SealingKey};
use mallee_store::{Store, params};
use mallee_tiers::{CloudClient, DiskKeyAsked, Role, Secret, TierError};

use crate::volume::Trouble;

pub(crate) const TABLES: &str = "
CREATE TABLE disk_key (id TEXT PRIMARY KEY, sealed BLOB NOT NULL);
ALTER TABLE volume ADD COLUMN disk_key TEXT;
";

pub(crate) struct Keys {
    pub store: Store,
    pub sealing: SealingKey,
    pub identity: Identity,
    /// `host:port` of the cloud-controller.
    pub cloud: String,
    pub opened: Mutex<BTreeMap<String, DiskKey>>,
}

fn about(id: &str) -> String {
    format!("disk key {id}")
}

fn internal(e: impl std::fmt::Display) -> Trouble {
    Trouble::Other(format!("the key of an encrypted volume: {e}"))
}

impl Keys {
    pub async fn get(&self, id: &str) -> Result<DiskKey, Trouble> {
        if let Some(key) = self.opened().get(id) {
            return Ok(key.clone());
        }
        let asked = id.to_owned();
        let read = self.store.read("read a disk key", move |tx| {
            tx.query_opt("SELECT sealed FROM disk_key WHERE id = ?1", params![asked], |row| row.get::<Vec<u8>>(0))
        });
        let key = match read.await? {
            Some(sealed) => {
                let bytes = self.sealing.open(&about(id), &sealed).map_err(internal)?;
                DiskKey::new(bytes.try_into().map_err(|_| internal("it has not 32 bytes"))?)
            }
            None => self.fetch(id).await?,
        };
        self.opened().insert(id.to_owned(), key.clone());
        Ok(key)
    }

    pub async fn passphrase(&self, id: Option<&str>) -> Result<Option<Secret>, Trouble> {
        match id {
            Some(id) => self.get(id).await?.passphrase().map(Some).map_err(internal),
            None => Ok(None),
        }
    }

    async fn fetch(&self, id: &str) -> Result<DiskKey, Trouble> {
        if self.cloud.is_empty() {
            return Err(TierError::unreachable("there is no cloud-controller to ask for a disk's key").into());
        }
        let cloud = TierHttp::new(&self.identity, &self.cloud, Role::CloudController, "cloud-controller")?;
        let answer = CloudClient::new(Arc::new(cloud)).disk_key(&DiskKeyAsked { id: id.to_owned() }).await?;
        let key = DiskKey::from_secret(&answer.secret).map_err(internal)?;
        let sealed = self.sealing.seal(&about(id), key.bytes()).map_err(internal)?;
        let id = id.to_owned();
        let sql = "INSERT INTO disk_key (id, sealed) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        self.store
            .write("keep a disk key", move |tx| tx.execute(sql, params![id, sealed.as_slice()]).map(|_| ()))
            .await
            .map_err(Trouble::from)?;
        Ok(key)
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, DiskKey>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
