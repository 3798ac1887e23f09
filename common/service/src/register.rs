//! Tells the cloud-controller where this tier is, for as long as it lives.

use std::{sync::Arc, time::Duration};

use mallee_tiers::{CloudClient, TierError, TierRegistration};

use crate::{TierHttp, process::About};

/// Clocks further apart than this are shown as a fault; nothing is ever decided by comparing them.
pub const CLOCK_OFFSET_MS: i64 = 5_000;

/// Registers with the cloud-controller at once and then twice per lease. What keeps it from doing so is a fault of `about`.
pub fn keep_registered(cloud: TierHttp, about: About) {
    tokio::spawn(async move {
        let client = CloudClient::new(Arc::new(cloud));
        let mut pause = Duration::from_millis(100);
        loop {
            match register(&client, &about).await {
                Ok(lease) => {
                    about.faults.clear("register");
                    pause = Duration::from_millis(100);
                    tokio::time::sleep(lease / 2).await;
                }
                Err(e) => {
                    pause = (pause * 2).min(Duration::from_secs(5));
                    if pause > Duration::from_secs(1) {
                        about.faults.raise(
                            "register",
                            format!("the cloud-controller does not hear of this tier: {e}"),
                            "is the cloud-controller up?",
                        );
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    });
}

async fn register(client: &CloudClient, about: &About) -> Result<Duration, TierError> {
    let registration =
        TierRegistration { address: about.address.clone(), version: about.version.into(), now: about.clock.now_ms() };
    let answer = client.register_tier(&registration).await?;
    show_offset(about, "the cloud-controller", answer.now);
    Ok(Duration::from_millis(answer.lease_ms.max(200)))
}

/// Raises or clears the fault that says how far `who`'s clock is from ours.
pub fn show_offset(about: &About, who: &str, its_now: i64) {
    let key = format!("clock {who}");
    let offset = its_now - about.clock.now_ms();
    if offset.abs() > CLOCK_OFFSET_MS {
        // Whole seconds, so that the fault does not change with every call.
        about.faults.raise(
            &key,
            format!("the clock of {who} is {} s away from this machine's", offset / 1000),
            "run an NTP daemon on both machines",
        );
    } else {
        about.faults.clear(&key);
    }
}
