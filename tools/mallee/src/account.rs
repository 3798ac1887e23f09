//! `mallee account`: the owners of things in the cloud.

use mallee_tiers::{AccountAllow, AccountCreate, AccountKeys, StatusAsked};

use crate::error::{Error, Result};
use crate::output::out;
use crate::state::State;
use crate::table::{table, time};
use crate::{admin, certificate, needs};

/// The account that `mallee up` makes.
pub const FIRST: &str = "admin";

pub async fn create(state: &State, name: &str) -> Result<()> {
    needs::root()?;
    check_name(name)?;
    let keys = made(state, name, false).await?;
    out!("account {} has the number {} and the access key {}", keys.name, keys.account, keys.access_key);
    out!("use it with: eval \"$(mallee env --account {})\"", keys.name);
    Ok(())
}

/// The account with its signing certificate. With `ensure`, one that is there already is as good.
pub async fn made(state: &State, name: &str, ensure: bool) -> Result<AccountKeys> {
    let keys = admin::client(state).account_create(&AccountCreate { name: name.to_owned(), ensure }).await?;
    certificate::ensure(state, &keys).await?;
    Ok(keys)
}

pub async fn list(state: &State) -> Result<()> {
    needs::root()?;
    let accounts = admin::client(state).account_list(&StatusAsked::default()).await?.accounts;
    let mut shown = table(["NAME", "NUMBER", "CREATED (UTC)", "INSTANCES", "ALLOWED"]);
    for row in accounts {
        let allowed = row.allowed.join(", ");
        shown.add_row([row.name, row.account, time(row.created), row.instances.to_string(), allowed]);
    }
    out!("{shown}");
    Ok(())
}

/// Lets an account do what not every account may, or not any more; what it made in the meantime stays.
pub async fn allow(state: &State, name: &str, what: &str, allowed: bool) -> Result<()> {
    needs::root()?;
    admin::client(state).account_allow(&AccountAllow { name: name.into(), what: what.into(), allowed }).await?;
    out!("account {name} {} {what}", if allowed { "is allowed" } else { "is not allowed any more:" });
    Ok(())
}

/// The name is a directory here and an alias in the cloud.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !name.is_empty() && name.len() <= 63 && name.chars().all(plain) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    Err(Error::refused(format!("{name:?} is no name for an account: 1 to 63 letters, digits, '-', '_' and '.'")))
}
