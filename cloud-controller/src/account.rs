//! Accounts, and the access keys that speak for them.
//!
//! Secrets are sealed with the cloud's key file before they are stored, and never logged.

use mallee_aws::SecretKey;
use mallee_service::seal::SealingKey;
use mallee_store::{Error as StoreError, Tx, params};
use mallee_tiers::{Generation, Identity, Secret, TierError};

use crate::{Cloud, Principal};

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

/// A new account with its first key, as it will be written.
pub struct New {
    pub account: Account,
    pub access_key: String,
    pub secret: SecretKey,
    sealed_secret: Vec<u8>,
}

impl New {
    /// Makes up number, canonical id and keys. Names are 1 to 64 letters, digits, dashes, dots and underscores.
    pub fn named(name: &str, sealing: &SealingKey, now: i64) -> Result<Self, TierError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            return Err(TierError::refused(
                "an account's name has 1 to 64 letters, digits, dashes, dots and underscores",
            ));
        }
        let access_key = new_access_key();
        let secret = new_secret();
        let sealed_secret =
            sealing.seal(&access_key, secret.expose().as_bytes()).map_err(|e| TierError::internal(e.to_string()))?;
        let account = Account {
            // Never starts with zero: some tools read it as a number.
            id: rand::random_range(100_000_000_000u64..1_000_000_000_000).to_string(),
            name: name.to_owned(),
            canonical_id: hex::encode(rand::random::<[u8; 32]>()),
            created: now,
        };
        Ok(Self { account, access_key, secret, sealed_secret })
    }

    pub fn insert(&self, tx: &mut Tx<'_>) -> Result<(), StoreError> {
        let Account { id, name, canonical_id, created } = &self.account;
        tx.execute(
            "INSERT INTO account (id, name, canonical_id, created) VALUES (?1, ?2, ?3, ?4)",
            params![id, name, canonical_id, created],
        )?;
        tx.execute(
            "INSERT INTO access_key (id, account, sealed_secret, active, created) VALUES (?1, ?2, ?3, 1, ?4)",
            params![self.access_key, id, self.sealed_secret, created],
        )?;
        changed(tx)
    }
}

/// Something about identities changed: walrus will be told.
fn changed(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    tx.execute("UPDATE identity_generation SET counter = counter + 1 WHERE one = 1", params![]).map(|_| ())
}

pub fn all(tx: &mut Tx<'_>) -> Result<Vec<Account>, StoreError> {
    tx.query("SELECT id, name, canonical_id, created FROM account ORDER BY created, id", params![], |row| {
        Ok(Account { id: row.get(0)?, name: row.get(1)?, canonical_id: row.get(2)?, created: row.get(3)? })
    })
}

/// The oldest active key of an account, still sealed.
pub fn first_key(tx: &mut Tx<'_>, account: &str) -> Result<Option<(String, Vec<u8>)>, StoreError> {
    tx.query_opt(
        "SELECT id, sealed_secret FROM access_key WHERE account = ?1 AND active = 1 ORDER BY created, id LIMIT 1",
        params![account],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Registers a certificate image manifests may be signed with.
pub fn add_certificate(
    tx: &mut Tx<'_>,
    account: &str,
    fingerprint: &str,
    pem: &str,
    now: i64,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO signing_certificate (fingerprint, account, pem, created) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
        params![fingerprint, account, pem, now],
    )
    .map(|_| ())
}

/// The signing certificates of an account, PEM.
pub fn certificates(tx: &mut Tx<'_>, account: &str) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT pem FROM signing_certificate WHERE account = ?1 ORDER BY created", params![account], |row| {
        row.get(0)
    })
}

/// Every identity of the cloud, for walrus, when it is newer than `since`.
pub async fn identities(
    cloud: &Cloud,
    since: Option<Generation>,
) -> Result<(Generation, Option<Vec<Identity>>), TierError> {
    type Raw = (String, Vec<u8>, i64, String, String, String);
    let (generation, rows): (Generation, Option<Vec<Raw>>) = cloud
        .store
        .read("read the identities", move |tx| {
            let epoch = tx.epoch()?;
            let counter =
                tx.query_one("SELECT counter FROM identity_generation WHERE one = 1", params![], |row| row.get(0))?;
            let generation = Generation { epoch, counter };
            if since == Some(generation) {
                return Ok::<_, StoreError>((generation, None));
            }
            let rows = tx.query(
                "SELECT k.id, k.sealed_secret, k.active, a.id, a.name, a.canonical_id
                 FROM access_key k JOIN account a ON a.id = k.account ORDER BY k.id",
                params![],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)),
            )?;
            Ok((generation, Some(rows)))
        })
        .await
        .map_err(|e| TierError::internal(e.to_string()))?;
    let Some(rows) = rows else { return Ok((generation, None)) };
    let open = |(access_key, sealed, active, account, account_name, canonical_id): Raw| {
        let secret = cloud.sealing.open(&access_key, &sealed).map_err(|e| TierError::internal(e.to_string()))?;
        Ok(Identity {
            secret: Secret(String::from_utf8_lossy(&secret).into_owned()),
            access_key,
            active: active != 0,
            arn: format!("arn:aws:iam::{account}:root"),
            account,
            account_name,
            canonical_id,
        })
    };
    Ok((generation, Some(rows.into_iter().map(open).collect::<Result<_, TierError>>()?)))
}

/// A new key id: `AKIA` and 16 of base32's letters.
fn new_access_key() -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let random: [u8; 16] = rand::random();
    let tail: String = random.iter().map(|b| char::from(LETTERS[usize::from(b % 32)])).collect();
    format!("AKIA{tail}")
}

/// A new secret: 40 characters, as AWS' are.
pub fn new_secret() -> SecretKey {
    use base64::Engine;
    SecretKey::new(base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 30]>()))
}
