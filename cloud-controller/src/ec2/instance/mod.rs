//! Instances: virtual machines as users ask for them.
//!
//! What is wanted of one and what was seen of it are in its row (`row`); `state` is the one place where the two become
//! EC2's state; `wanted` renders what the zone is sent; `report` takes what it answers. Every change of what the zone is
//! sent must end in [`touch`].

pub mod attribute;
mod bodies;
pub mod console;
pub mod describe;
pub mod lifecycle;
pub mod metadata_default;
mod report;
mod row;
pub mod run;
mod state;
pub mod status;
mod wanted;

use mallee_aws::id::InstanceId;
use mallee_store::{Error as StoreError, Tx};

pub use bodies::{Body, render};
pub use report::{Consequences, give_up, take as take_report};
pub use row::{
    Hold, Instance, Options, TABLES, any, boots_from, count, ended_before, listed_in, nodes_in, set_options, touch,
    unword, word,
};
pub use state::{RUNNING, STOPPED};

use crate::{Outcome, Refusal};

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
}

/// An instance of this account.
pub fn get(tx: &mut Tx<'_>, account: &str, id: &InstanceId) -> Outcome<Instance> {
    row::get(tx, account, id.as_str())?.ok_or_else(|| not_found(id.as_str()))
}

/// Tags were put on or taken off a resource: an instance that shows its tags in its metadata is sent anew.
pub fn tags_changed(tx: &mut Tx<'_>, resource: &str) -> Result<(), StoreError> {
    if !resource.starts_with(InstanceId::PREFIX) {
        return Ok(());
    }
    match row::any(tx, resource)? {
        Some(instance) if instance.options.metadata.tags => touch(tx, resource),
        _ => Ok(()),
    }
}

/// How many instances of the cloud are in each state, in the order of life; states that none is in are left out.
pub fn count_by_state(tx: &mut Tx<'_>) -> Result<Vec<(String, u64)>, StoreError> {
    let mut counts = [0u64; state::ALL.len()];
    for ((desired, observed, started), count) in row::by_condition(tx)? {
        let now = state::state(desired, observed, started);
        if let Some(at) = state::ALL.iter().position(|s| *s == now) {
            counts[at] += count;
        }
    }
    Ok(state::ALL.iter().zip(counts).filter(|(_, n)| *n > 0).map(|(s, n)| (s.name.to_owned(), n)).collect())
}

/// Everything about an instance that ended long enough ago goes.
pub fn forget(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    crate::ec2::tag::drop_all(tx, id)?;
    crate::zone::event::drop_all(tx, id)?;
    row::remove(tx, id)
}

#[cfg(test)]
mod tests;
