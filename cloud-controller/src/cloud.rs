//! The one struct everything hangs from.


use mallee_aws::paging::TokenKey;
use mallee_service::{Clock, Faults, Poke};
use mallee_store::Store;

use crate::Config;

/// A running cloud-controller, as its rules and reconcilers see it.
pub struct Cloud {
    pub config: Config,
    pub store: Store,
    pub clock: Clock,
    pub faults: Faults,
    pub pokes: Pokes,
    /// Signs the tokens of paged answers.
    pub token_key: TokenKey,
}

/// Wakes what follows a transaction. Poked after the commit; a lost poke only costs the time to the next tick.
#[derive(Clone, Default)]
pub struct Pokes {
    /// Something is wanted of a zone's instances.
    pub instances: Poke,
    /// Something is wanted of a zone's volumes.
    pub volumes: Poke,
    /// The network's rows changed.
    pub network: Poke,
    /// An image waits for its import.
    pub images: Poke,
    /// Accounts or keys changed.
    pub identities: Poke,
}

impl Cloud {
    pub fn now(&self) -> i64 {
        self.clock.now_ms()
    }

    pub fn region(&self) -> &str {
        &self.config.region
    }

    /// `arn:aws:SERVICE:REGION:ACCOUNT:REST`.
    pub fn arn(&self, service: &str, account: &str, rest: &str) -> String {
        format!("arn:aws:{service}:{}:{account}:{rest}", self.config.region)
    }
}

