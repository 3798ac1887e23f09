//! `mallee zone`: the availability zones and their controllers.

use mallee_tiers::{Role, ZoneAsked};

use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::output::out;
use crate::state::State;
use crate::supervise::{Ask, ask};
use crate::{admin, needs, up};

/// The cloud has the zone from now on; what it shall do there waits until its controllers join.
pub async fn add(state: &State, zone: &str) -> Result<()> {
    needs::root()?;
    up::check_name("zone", zone)?;
    let _only_one = state.lock()?;
    let mut machine = Machine::expect(state)?;
    if machine.tier(Role::CloudController).is_none() {
        return Err(Error::refused("say this where the cloud-controller is"));
    }
    if !machine.zones.iter().any(|known| known == zone) {
        machine.zones.push(zone.to_owned());
        machine.save(state)?;
    }
    // Also after a command that was killed between the two.
    for role in up::write_configs(state, &machine)? {
        ask(state, &Ask::Restart { tier: role.to_string() }).await?;
    }
    out!(
        "{zone} is a zone of {}; its controllers come next: `mallee node token {zone} --zone {zone} --role ...`",
        machine.region
    );
    Ok(())
}

/// After the cloud-controller's store was lost or put back: the zone takes its lists from now on.
pub async fn adopt(state: &State, zone: &str) -> Result<()> {
    needs::root()?;
    admin::client(state).zone_adopt(&ZoneAsked { zone: zone.to_owned() }).await?;
    out!("{zone} takes its lists from this cloud-controller now; what they do not name shows as orphans");
    Ok(())
}
