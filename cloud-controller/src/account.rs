//! Accounts, and the access keys that speak for them.
//!
//! Secrets are sealed with the cloud's key file before they are stored, and never logged.

use mallee_aws::SecretKey;
use mallee_store::{Error as StoreError, Tx, params};

use crate::Principal;

pub const TABLES: &str = "
CREATE TABLE account (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    canonical_id TEXT NOT NULL UNIQUE,
    created BIGINT NOT NULL
);
CREATE TABLE access_key (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES account (id),
    sealed_secret BLOB NOT NULL,
    active BIGINT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX access_key_of ON access_key (account);
CREATE TABLE signing_certificate (
    fingerprint TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES account (id),
    pem TEXT NOT NULL,
    created BIGINT NOT NULL
);
CREATE TABLE identity_generation (one BIGINT PRIMARY KEY, counter BIGINT NOT NULL);
INSERT INTO identity_generation (one, counter) VALUES (1, 1);
";

/// An account as its row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: String,
    pub name: String,
    pub canonical_id: String,
    pub created: i64,
}

pub fn by_name(tx: &mut Tx<'_>, name: &str) -> Result<Option<Account>, StoreError> {
    tx.query_opt("SELECT id, name, canonical_id, created FROM account WHERE name = ?1", params![name], |row| {
        Ok(Account { id: row.get(0)?, name: row.get(1)?, canonical_id: row.get(2)?, created: row.get(3)? })
    })
}

/// An access key with its secret still sealed.
pub struct Key {
    pub principal: Principal,
    pub sealed_secret: Vec<u8>,
    pub active: bool,
}

pub fn key(tx: &mut Tx<'_>, access_key: &str) -> Result<Option<Key>, StoreError> {
    tx.query_opt(
        "SELECT a.id, a.name, k.sealed_secret, k.active FROM access_key k JOIN account a ON a.id = k.account WHERE k.id = ?1",
        params![access_key],
        |row| {
            let account: String = row.get(0)?;
            Ok(Key {
                principal: Principal {
                    arn: format!("arn:aws:iam::{account}:root"),
                    user_id: account.clone(),
                    account,
                    account_name: row.get(1)?,
                    access_key: access_key.to_owned(),
                },
                sealed_secret: row.get(2)?,
                active: row.get::<i64>(3)? != 0,
            })
        },
    )
}

/// A new secret: 40 characters, as AWS' are.
pub fn new_secret() -> SecretKey {
    use base64::Engine;
    SecretKey::new(base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 30]>()))
}
