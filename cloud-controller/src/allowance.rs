//! What the operator allows an account beyond what every account may do: `mallee account allow NAME WHAT`.

use std::str::FromStr;

use mallee_store::{Error as StoreError, Tx, params};
use mallee_tiers::TierError;

pub const TABLES: &str = "
CREATE TABLE allowance (
    account TEXT NOT NULL REFERENCES account (id),
    what TEXT NOT NULL,
    PRIMARY KEY (account, what)
);
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Subnets of pure L2: `ec2/subnet/kind.rs`.
    PrivateL2,
}

impl Allowance {
    pub fn as_str(self) -> &'static str {
        match self {
            Allowance::PrivateL2 => "private-l2",
        }
    }
}

impl FromStr for Allowance {
    type Err = TierError;

    fn from_str(text: &str) -> Result<Self, TierError> {
        match text {
            "private-l2" => Ok(Allowance::PrivateL2),
            other => Err(TierError::refused(format!("{other:?} cannot be allowed; what can be is private-l2"))),
        }
    }
}

pub fn has(tx: &mut Tx<'_>, account: &str, what: Allowance) -> Result<bool, StoreError> {
    Ok(of(tx, account)?.iter().any(|allowed| allowed == what.as_str()))
}

/// Everything an account is allowed, in order.
pub fn of(tx: &mut Tx<'_>, account: &str) -> Result<Vec<String>, StoreError> {
    tx.query("SELECT what FROM allowance WHERE account = ?1 ORDER BY what", params![account], |row| row.get(0))
}

/// What was made while it was allowed stays when it is not any more.
pub fn set(tx: &mut Tx<'_>, account: &str, what: Allowance, allowed: bool) -> Result<(), StoreError> {
    let sql = match allowed {
        true => "INSERT INTO allowance (account, what) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        false => "DELETE FROM allowance WHERE account = ?1 AND what = ?2",
    };
    tx.execute(sql, params![account, what.as_str()]).map(|_| ())
}
