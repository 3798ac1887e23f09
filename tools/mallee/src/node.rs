//! `mallee node`: the machines of the cloud.

use mallee_engines::{Layout, ovn};
use mallee_tiers::{NodeAsked, NodeWish, Role, StatusAsked, TierErrorKind, TokenAsked, server_name};

use crate::error::{Error, Result};
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

async fn change(state: &State, name: &str, wish: NodeWish) -> Result<()> {
    needs::root()?;
    admin::client(state).change_node(&NodeAsked { node: name.to_owned(), wish }).await?;
    Ok(())
}

pub async fn drain(state: &State, name: &str) -> Result<()> {
    change(state, name, NodeWish::Drain).await?;
    out!("{name} keeps what it runs and is given nothing new; `mallee node serve {name}` undoes it");
    Ok(())
}

pub async fn serve(state: &State, name: &str) -> Result<()> {
    change(state, name, NodeWish::Serve).await?;
    out!("{name} is given new instances");
    Ok(())
}

/// The zone decides; then the network forgets the machine, or every change would wait for it.
pub async fn remove(state: &State, name: &str, lost: bool) -> Result<()> {
    let machine = Machine::expect(state)?;
    if machine.tiers.iter().any(|tier| tier.role == Role::NodeController && tier.name == name) {
        return Err(Error::refused("this is the machine that joins the cloud to the outside, and it cannot leave it"));
    }
    match change(state, name, if lost { NodeWish::RemoveLost } else { NodeWish::Remove }).await {
        // Said again after it was killed in the middle: the zone knows the node no more, and the network may still.
        Err(Error::Tier(error)) if error.kind == TierErrorKind::NotFound => {
            if !forget_chassis(state, name).await? {
                return Err(Error::Tier(error));
            }
        }
        outcome => {
            outcome?;
            forget_chassis(state, name).await?;
        }
    }
    out!("{name} is no node of this cloud any more; a new token lets it in again");
    Ok(())
}

async fn forget_chassis(state: &State, name: &str) -> Result<bool> {
    Ok(ovn::forget_chassis(&Layout::new(state.engines())?, &server_name(Role::NodeController, name)).await?)
}
