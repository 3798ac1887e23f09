//! Interfaces at an instance: which of its machine's cards stands for which, and what has to be attached and taken away. Pure.
//!
//! The logical port is the cloud-controller's; whoever binds its name is that interface, so the port's name is what a card is
//! known by. The first interface is there from the start and never leaves; every other one sits where it can be pulled.

use mallee_tiers::Interface;
use uuid::Uuid;

use crate::hypervisor::SeenNic;

/// One thing to do at a running instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Detach(SeenNic),
    Attach(Interface),
}

impl Change {
    /// The logical port.
    pub fn port(&self) -> Uuid {
        match self {
            Change::Detach(seen) => seen.port,
            Change::Attach(wanted) => wanted.port,
        }
    }
}

/// What has to change, taking away first: what shall go may hold the place of what shall come.
pub fn changes(wanted: &[Interface], seen: &[SeenNic]) -> Vec<Change> {
    let gone = seen.iter().filter(|s| !wanted.iter().any(|w| w.port == s.port)).cloned().map(Change::Detach);
    let new = by_index(wanted).into_iter().filter(|w| !seen.iter().any(|s| s.port == w.port)).cloned();
    gone.chain(new.map(Change::Attach)).collect()
}

/// In the order the guest shall count them.
pub fn by_index(wanted: &[Interface]) -> Vec<&Interface> {
    let mut all: Vec<&Interface> = wanted.iter().collect();
    all.sort_by_key(|interface| interface.device_index);
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mallee_tiers::VpcLink;

    pub(crate) fn wanted(number: u8, device_index: u32) -> Interface {
        Interface {
            id: format!("eni-{number}"),
            port: Uuid::from_bytes([number; 16]),
            device_index,
            mac: format!("0e:00:00:00:00:{number:02x}"),
            address: [10, 0, 0, number].into(),
            secondary: Vec::new(),
            vpc: VpcLink { id: "vpc-1".into(), metadata_port: "m".into(), metadata_mac: "m".into() },
            flow: None,
        }
    }
    pub(crate) fn seen(number: u8) -> SeenNic {
        SeenNic {
            port: Uuid::from_bytes([number; 16]),
            tap: format!("tap{number:012x}"),
            alias: format!("net{number}"),
        }
    }

    #[test]
    fn what_is_not_wanted_goes_before_what_is_new_comes() {
        assert_eq!(changes(&[wanted(1, 0)], &[seen(1)]), []);
        assert_eq!(
            changes(&[wanted(1, 0), wanted(3, 2), wanted(2, 1)], &[seen(1), seen(9)]),
            [Change::Detach(seen(9)), Change::Attach(wanted(2, 1)), Change::Attach(wanted(3, 2))]
        );
    }
}
