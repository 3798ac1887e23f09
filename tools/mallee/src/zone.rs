//! `mallee zone`: the controllers of availability zones.

use mallee_tiers::ZoneAsked;

use crate::error::Result;
use crate::output::out;
use crate::state::State;
use crate::{admin, needs};

/// After the cloud-controller's store was lost or put back: the zone takes its lists from now on.
pub async fn adopt(state: &State, zone: &str) -> Result<()> {
    needs::root()?;
    admin::client(state).zone_adopt(&ZoneAsked { zone: zone.to_owned() }).await?;
    out!("{zone} takes its lists from this cloud-controller now; what they do not name shows as orphans");
    Ok(())
}
