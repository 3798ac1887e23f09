//! Keys that disks are encrypted with: one of each account, made when it is first needed, sealed in the store.
//!
//! EC2 shows it as the KMS key `alias/aws/ebs` of the account. Zones ask for it by its id (`CloudController::disk_key`).

use mallee_service::{DiskKey, seal::SealingKey};
use mallee_store::{Error as StoreError, Tx, params};
use uuid::Uuid;

use crate::{Outcome, Refusal};

pub const TABLES: &str = "
CREATE TABLE disk_key (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    alias TEXT NOT NULL,
    sealed BLOB NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (account, alias)
);
";

/// What AWS calls the key that is used when none is named.
const DEFAULT: &str = "aws/ebs";

/// A key that may become an account's, drawn and sealed outside of the transaction that needs one.
#[derive(Debug, Clone)]
pub struct New {
    id: String,
    sealed: Vec<u8>,
}

impl New {
    pub fn draw(sealing: &SealingKey) -> Outcome<Self> {
        let (id, key) = (Uuid::new_v4().to_string(), DiskKey::new(rand::random()));
        let sealed = sealing.seal(&about(&id), key.bytes()).map_err(|e| Refusal::internal(e.to_string()))?;
        Ok(Self { id, sealed })
    }
}

fn about(id: &str) -> String {
    format!("disk key {id}")
}

/// The id of the account's key; `new` becomes it when there is none.
pub fn of_account(tx: &mut Tx<'_>, account: &str, new: &New, now: i64) -> Result<String, StoreError> {
    tx.execute(
        "INSERT INTO disk_key (id, account, alias, sealed, created) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
        params![new.id, account, DEFAULT, new.sealed.as_slice(), now],
    )?;
    let sql = "SELECT id FROM disk_key WHERE account = ?1 AND alias = ?2";
    let found = tx.query_opt(sql, params![account, DEFAULT], |row| row.get(0))?;
    found.ok_or_else(|| StoreError::Other { what: "find a disk key", detail: "it was not written".into() })
}

/// A key as it is sealed.
pub fn sealed(tx: &mut Tx<'_>, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
    tx.query_opt("SELECT sealed FROM disk_key WHERE id = ?1", params![id], |row| row.get(0))
}

/// Opens what [`sealed`] found.
pub fn open(sealing: &SealingKey, id: &str, sealed: &[u8]) -> Outcome<DiskKey> {
    let bytes = sealing.open(&about(id), sealed).map_err(|e| Refusal::internal(e.to_string()))?;
    let bytes = bytes.try_into().map_err(|_| Refusal::internal(format!("disk key {id} has not 32 bytes")))?;
    Ok(DiskKey::new(bytes))
}

#[cfg(test)]
mod tests {
    use mallee_store::{Config, Migration, Store};

    use super::*;

    #[tokio::test]
    async fn an_account_has_one_key_whoever_asks_first_and_the_store_does_not_show_it() {
        let dir = tempfile::tempdir().unwrap();
        let migrations = [Migration { version: 1, name: "disk keys", sql: TABLES }];
        let store = Store::open(&Config::Sqlite { path: dir.path().join("s.db") }, &migrations).unwrap();
        let sealing = SealingKey::open_or_create(&dir.path().join("key")).unwrap();
        let (one, two) = (New::draw(&sealing).unwrap(), New::draw(&sealing).unwrap());
        let (first, again, stranger) = store
            .write("keys", move |tx| {
                let mut of = |account, new| of_account(tx, account, new, 1);
                Ok::<_, StoreError>((of("a", &one)?, of("a", &two)?, of("b", &two)?))
            })
            .await
            .unwrap();
        assert_eq!(first, again);
        assert_ne!(first, stranger);
        let id = first.clone();
        let kept = store.read("key", move |tx| sealed(tx, &id)).await.unwrap().unwrap();
        let key = open(&sealing, &first, &kept).unwrap();
        assert!(!kept.windows(32).any(|w| w == key.bytes()));
        assert!(open(&sealing, &stranger, &kept).is_err(), "a sealed key moved to another row does not open");
    }
}
