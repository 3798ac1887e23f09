//! The one struct everything hangs from.

use mallee_aws::paging::TokenKey;
use mallee_service::{Clock, Faults, Poke, pki::Ca, process::About, seal::SealingKey};
use mallee_store::Store;

use crate::{Config, bundling::Bundling, identity_document::IdentityKey, keyring::Keyring, zone::Tiers};

/// A running cloud-controller, as its rules and reconcilers see it.
pub struct Cloud {
    pub config: Config,
    pub store: Store,
    pub clock: Clock,
    pub faults: Faults,
    pub pokes: Pokes,
    /// Signs the tokens of paged answers.
    pub token_key: TokenKey,
    /// Seals secrets before they are stored.
    pub sealing: SealingKey,
    pub keyring: Keyring,
    pub ca: Ca,
    pub bundling: Bundling,
    pub identity_key: IdentityKey,
    /// Clients to the other tiers.
    pub tiers: Tiers,
    pub about: About,
    /// Counts changes of accounts and keys, for walrus' hanging question.
    pub identities_changed: tokio::sync::watch::Sender<u64>,
}

/// Wakes what follows a transaction. Poked after the commit; a lost poke only costs the time to the next tick.
#[derive(Clone, Default)]
pub struct Pokes {
    /// Something is wanted of a zone's instances.
    pub instances: Poke,
    /// Something is wanted of a zone's volumes.
    pub volumes: Poke,
    /// Something is wanted of a zone's snapshots.
    pub snapshots: Poke,
    /// What snapshots have in walrus is to be looked through, or taken away.
    pub kept: Poke,
    /// The network's rows changed.
    pub network: Poke,
    /// An image waits for its import.
    pub images: Poke,
    /// A disk waits for its import.
    pub imports: Poke,
    /// Snapshots are being taken together, and may go on.
    pub creations: Poke,
    /// A snapshot was written through the EBS direct API.
    pub direct: Poke,
}

impl Pokes {
    /// Everything: a tier came back, and whatever waited for it can go on.
    pub fn all(&self) {
        let work = [&self.instances, &self.volumes, &self.snapshots, &self.kept, &self.network];
        for poke in work.into_iter().chain([&self.images, &self.imports, &self.creations, &self.direct]) {
            poke.poke();
        }
    }
}

impl Cloud {
    pub fn now(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Accounts or keys changed: the keyring reads them again, and walrus is told.
    pub fn identities_have_changed(&self) {
        self.keyring.forget_all();
        self.identities_changed.send_modify(|n| *n += 1);
    }

    pub fn region(&self) -> &str {
        &self.config.region
    }

    /// `arn:aws:SERVICE:REGION:ACCOUNT:REST`.
    pub fn arn(&self, service: &str, account: &str, rest: &str) -> String {
        format!("arn:aws:{service}:{}:{account}:{rest}", self.config.region)
    }
}
