//! `mallee node`: the machines of the cloud.

use mallee_tiers::{Role, StatusAsked, TokenAsked};

use crate::error::Result;
use crate::machine::Machine;
use crate::output::out;
use crate::state::State;
use crate::table::time;
use crate::{admin, needs, status};

pub async fn list(state: &State) -> Result<()> {
    needs::root()?;
    let cloud = admin::client(state).status(&StatusAsked::default()).await?;
    out!("{}", status::nodes_table(&cloud.nodes));
    Ok(())
}

/// Prints the token alone on standard output, so that it can be piped.
pub async fn token(state: &State, name: &str, zone: &str, role: Role, hours: u64) -> Result<()> {
    needs::root()?;
    let machine = Machine::load(state)?;
    if machine.is_some_and(|machine| machine.cloud_controller.starts_with("127.")) {
        eprintln!("this cloud serves on this machine only: `mallee up --public ADDRESS` first, and then a new token");
    }
    let asked = TokenAsked { role, zone: zone.to_owned(), name: name.to_owned(), seconds: hours * 3600 };
    let token = admin::client(state).join_token(&asked).await?;
    eprintln!("for {role} {name}, once, until {} UTC; on that machine: mallee join TOKEN", time(token.expires));
    out!("{}", token.token.0);
    Ok(())
}
