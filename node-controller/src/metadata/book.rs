//! What every guest of this node may read, in memory, by (VPC, address).

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mallee_tiers::{Desired, Instance};

/// One guest's metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    pub instance: String,
    /// `meta-data/instance-id` → value.
    pub tree: BTreeMap<String, String>,
    pub user_data: Option<Vec<u8>>,
    pub enabled: bool,
    pub tokens_required: bool,
    pub hop_limit: u8,
}

impl Guest {
    pub fn of(instance: &Instance) -> Self {
        let metadata = &instance.metadata;
        let user_data = metadata.user_data.as_ref().filter(|text| !text.is_empty());
        Self {
            instance: instance.id.clone(),
            tree: metadata
                .tree
                .iter()
                .map(|(path, value)| (path.trim_matches('/').to_owned(), value.clone()))
                .collect(),
            // The cloud-controller checked it; what is no base64 after all is served as it was sent.
            user_data: user_data.map(|text| STANDARD.decode(text).unwrap_or_else(|_| text.clone().into_bytes())),
            enabled: metadata.enabled,
            tokens_required: metadata.tokens_required,
            hop_limit: metadata.hop_limit,
        }
    }
}

#[derive(Default)]
pub struct Book {
    guests: RwLock<HashMap<(String, Ipv4Addr), Arc<Guest>>>,
}

impl Book {
    pub fn get(&self, vpc: &str, address: Ipv4Addr) -> Option<Arc<Guest>> {
        self.guests.read().unwrap_or_else(PoisonError::into_inner).get(&(vpc.to_owned(), address)).cloned()
    }

    /// Whether any guest here is in this VPC.
    pub fn has(&self, vpc: &str) -> bool {
        self.guests.read().unwrap_or_else(PoisonError::into_inner).keys().any(|(of, _)| of == vpc)
    }

    /// Replaces everything: `instances` are all whose guests may be running.
    pub fn replace<'a>(&self, instances: impl Iterator<Item = &'a Instance>) {
        let mut all: HashMap<(String, Ipv4Addr), (bool, Arc<Guest>)> = HashMap::new();
        for instance in instances {
            let leaving = instance.desired == Desired::Terminated;
            let guest = Arc::new(Guest::of(instance));
            for (vpc, address) in addresses(instance) {
                let key = (vpc.to_owned(), address);
                // An address may have a new owner while the old one is still being removed.
                if all.get(&key).is_none_or(|(before, _)| *before && !leaving) {
                    all.insert(key, (leaving, guest.clone()));
                }
            }
        }
        *self.guests.write().unwrap_or_else(PoisonError::into_inner) =
            all.into_iter().map(|(key, (_, guest))| (key, guest)).collect();
    }

    /// Makes sure of one instance, before its guest starts.
    pub fn put(&self, instance: &Instance) {
        let guest = Arc::new(Guest::of(instance));
        let mut guests = self.guests.write().unwrap_or_else(PoisonError::into_inner);
        for (vpc, address) in addresses(instance) {
            guests.insert((vpc.to_owned(), address), guest.clone());
        }
    }

    /// One guest, for a test.
    #[cfg(test)]
    pub fn put_guest(&self, vpc: &str, address: Ipv4Addr, guest: Guest) {
        let mut guests = self.guests.write().unwrap_or_else(PoisonError::into_inner);
        guests.insert((vpc.to_owned(), address), Arc::new(guest));
    }
}

/// Every address an instance may ask from, with the VPC it is in.
fn addresses(instance: &Instance) -> impl Iterator<Item = (&str, Ipv4Addr)> {
    instance.interfaces.iter().flat_map(|interface| {
        let all = std::iter::once(interface.address).chain(interface.secondary.iter().copied());
        all.map(|address| (interface.vpc.id.as_str(), address))
    })
}
