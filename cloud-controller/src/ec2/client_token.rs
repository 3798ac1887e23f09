//! Client tokens: the same token never makes two of anything.
//!
//! The token, a hash of the request and what it made are written in the transaction of the effect itself.

use mallee_store::{Tx, params};
use sha2::{Digest, Sha256};

use crate::{Refusal, service::Call};

pub const TABLES: &str = "
CREATE TABLE client_token (
    account TEXT NOT NULL,
    action TEXT NOT NULL,
    token TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    made TEXT NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (account, action, token)
);
CREATE INDEX client_token_age ON client_token (created);
";

/// How long a token is remembered.
pub const KEPT_MS: i64 = 24 * 3600 * 1000;

/// A token together with what the request said, whatever order it said it in.
pub struct Given {
    account: String,
    action: String,
    token: String,
    request_hash: String,
    now: i64,
}

impl Given {
    /// None: the request has no token.
    pub fn of(call: &Call, token: Option<&str>) -> Result<Option<Self>, Refusal> {
        let Some(token) = token.filter(|t| !t.is_empty()) else { return Ok(None) };
        if token.len() > 64 || !token.is_ascii() {
            return Err(Refusal::new("InvalidParameterValue", "ClientToken must be at most 64 ASCII characters"));
        }
        let mut hash = Sha256::new();
        let action = call.params.action().unwrap_or_default();
        for (name, value) in call.params.iter().filter(|(n, _)| !is_envelope(n)) {
            for part in [name, value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        Ok(Some(Self::of_hash(call, action, token, hash.finalize().into())))
    }

    /// Of a request that is not in parameters: `request_hash` is of everything it said but the token.
    pub fn of_hash(call: &Call, action: &str, token: &str, request_hash: [u8; 32]) -> Self {
        Self {
            account: call.account().to_owned(),
            action: action.to_owned(),
            token: token.to_owned(),
            request_hash: hex::encode(request_hash),
            now: call.now,
        }
    }

    /// What an earlier request with this token made; another request under the same token is refused.
    pub fn made(&self, tx: &mut Tx<'_>) -> Result<Option<String>, Refusal> {
        let found: Option<(String, String)> = tx.query_opt(
            "SELECT request_hash, made FROM client_token WHERE account = ?1 AND action = ?2 AND token = ?3",
            params![self.account, self.action, self.token],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        match found {
            None => Ok(None),
            Some((hash, made)) if hash == self.request_hash => Ok(Some(made)),
            Some(_) => Err(Refusal::new(
                "IdempotentParameterMismatch",
                format!("The client token {} was used before, with other parameters", self.token),
            )),
        }
    }

    /// Remembers what this request made.
    pub fn remember(&self, tx: &mut Tx<'_>, made: &str) -> Result<(), Refusal> {
        tx.execute(
            "INSERT INTO client_token (account, action, token, request_hash, made, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![self.account, self.action, self.token, self.request_hash, made, self.now],
        )?;
        Ok(())
    }
}

/// Forgets tokens that are older than `before`, a bounded number of them; how many.
pub fn sweep(tx: &mut Tx<'_>, before: i64) -> Result<u64, mallee_store::Error> {
    tx.execute(
        "DELETE FROM client_token WHERE (account, action, token) IN
             (SELECT account, action, token FROM client_token WHERE created < ?1 ORDER BY created LIMIT 500)",
        params![before],
    )
}

/// Parameters of the request's envelope, which differ between two tries of the same request.
fn is_envelope(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "Version",
        "SignatureVersion",
        "SignatureMethod",
        "Signature",
        "AWSAccessKeyId",
        "Timestamp",
        "Expires",
        "SecurityToken",
    ];
    NAMES.contains(&name) || name.starts_with("X-Amz-")
}
