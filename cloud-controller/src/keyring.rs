//! Access keys with their secrets opened, kept in memory once they were used: a signature is checked on every request.
//!
//! The store is the truth. The keyring is emptied whenever a key or an account changes here.

use std::{
    collections::HashMap,
    sync::{Arc, RwLock},
};

use mallee_aws::SecretKey;
use mallee_service::seal::SealingKey;
use mallee_store::Store;

use crate::{Outcome, Principal, Refusal, account};

/// A key that may sign.
pub struct Signer {
    pub principal: Principal,
    pub secret: SecretKey,
}

#[derive(Default)]
pub struct Keyring {
    opened: RwLock<HashMap<String, Arc<Signer>>>,
}

impl Keyring {
    /// The key of this id, when it is there and active.
    pub async fn find(&self, store: &Store, sealing: &SealingKey, access_key: &str) -> Outcome<Option<Arc<Signer>>> {
        if let Some(signer) = self.opened.read().unwrap_or_else(|p| p.into_inner()).get(access_key) {
            return Ok(Some(signer.clone()));
        }
        let id = access_key.to_owned();
        let found = store.read("look up an access key", move |tx| account::key(tx, &id)).await?;
        let Some(key) = found.filter(|k| k.active) else { return Ok(None) };
        let secret = sealing.open(access_key, &key.sealed_secret).map_err(|e| Refusal::internal(e.to_string()))?;
        let secret = String::from_utf8(secret).map_err(|_| Refusal::internal("a sealed secret is not text"))?;
        let signer = Arc::new(Signer { principal: key.principal, secret: SecretKey::new(secret) });
        self.opened.write().unwrap_or_else(|p| p.into_inner()).insert(access_key.to_owned(), signer.clone());
        Ok(Some(signer))
    }

    /// Something about keys changed.
    pub fn forget_all(&self) {
        self.opened.write().unwrap_or_else(|p| p.into_inner()).clear();
    }
}
