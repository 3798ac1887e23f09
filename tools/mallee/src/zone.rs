//! `mallee zone`: the availability zones and their controllers.

use std::time::Duration;

use mallee_tiers::{CloudStatus, Role, StatusAsked, ZoneAsked};

use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::output::out;
use crate::state::State;
use crate::supervise::{Ask, ask};
use crate::{admin, needs, up};

const PATIENCE: Duration = Duration::from_secs(30);

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
    let restart = up::write_configs(state, &machine)?;
    let before = admin::client(state).status(&StatusAsked::default()).await.ok().map(|cloud| pid(&cloud));
    for role in &restart {
        ask(state, &Ask::Restart { tier: role.to_string() }).await?;
    }
    if !restart.is_empty() {
        until_another_answers(state, before.flatten()).await?;
    }
    out!(
        "{zone} is a zone of {}; its controllers come next: `mallee node token {zone} --zone {zone} --role ...`",
        machine.region
    );
    Ok(())
}

fn pid(cloud: &CloudStatus) -> Option<u32> {
    let own = cloud.tiers.iter().find(|row| row.role == Role::CloudController);
    own.and_then(|row| row.status.as_ref()).map(|status| status.pid)
}

/// Whoever says the next command shall find the zone.
async fn until_another_answers(state: &State, before: Option<u32>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = admin::client(state).status(&StatusAsked::default()).await;
        if now.is_ok_and(|cloud| pid(&cloud) != before) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(Error::refused(
                "the cloud-controller was restarted and does not answer: `mallee logs cloud-controller`",
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// After the cloud-controller's store was lost or put back: the zone takes its lists from now on.
pub async fn adopt(state: &State, zone: &str) -> Result<()> {
    needs::root()?;
    admin::client(state).zone_adopt(&ZoneAsked { zone: zone.to_owned() }).await?;
    out!("{zone} takes its lists from this cloud-controller now; what they do not name shows as orphans");
    Ok(())
}
