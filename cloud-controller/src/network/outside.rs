//! Addresses on the outside network: routers' own, elastic IPs, automatic public addresses. Each that is in use is a row.

use std::{collections::BTreeSet, net::Ipv4Addr};

use mallee_store::{Tx, params};

use super::{Cidr, cidr::Address};
use crate::{Outcome, Refusal, config};

pub const TABLES: &str = "
CREATE TABLE outside_address (
    address TEXT PRIMARY KEY,
    owner TEXT NOT NULL
);
CREATE INDEX outside_address_of ON outside_address (owner);
";

/// Which part of the outside network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    Routers,
    Elastic,
}

/// Takes a free address of the pool, chosen at random, so that one that was just given back is not met again at once. None:
/// the pool is used up.
pub fn take(tx: &mut Tx<'_>, network: &config::Network, pool: Pool, owner: &str) -> Outcome<Option<Ipv4Addr>> {
    let part = Part::of(network, pool)?;
    // In a large pool a few tries nearly always find one; only where they do not is the whole pool looked at.
    if part.size() > LARGE {
        for _ in 0..16 {
            let address = Ipv4Addr::from(rand::random_range(part.first..=part.last));
            if part.has(address) && take_this(tx, address, owner)? {
                return Ok(Some(address));
            }
        }
    }
    let mut free = part.addresses();
    let used = tx.query("SELECT address FROM outside_address", params![], |row| row.get::<Address>(0))?;
    for Address(address) in used {
        free.remove(&address);
    }
    let mut free: Vec<Ipv4Addr> = free.into_iter().collect();
    while !free.is_empty() {
        let address = free.swap_remove(rand::random_range(0..free.len()));
        if take_this(tx, address, owner)? {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

/// A pool of more addresses than this is not listed for every one that is taken.
const LARGE: u64 = 1024;
/// Nor is ever more than this many of them.
const MOST: usize = 1 << 16;

/// False: somebody has it.
fn take_this(tx: &mut Tx<'_>, address: Ipv4Addr, owner: &str) -> Outcome<bool> {
    let taken = tx.execute(
        "INSERT INTO outside_address (address, owner) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![Address(address), owner],
    )?;
    Ok(taken == 1)
}

/// Gives all addresses of this owner back.
pub fn free(tx: &mut Tx<'_>, owner: &str) -> Outcome<()> {
    tx.execute("DELETE FROM outside_address WHERE owner = ?1", params![owner])?;
    Ok(())
}

/// A pool: what lies between two addresses, but never the outside network's own first and last address, its gateway, or an
/// address that belongs to the other pool. Where the two overlap, an address belongs to neither.
struct Part {
    first: u32,
    last: u32,
    other: (u32, u32),
    never: [Ipv4Addr; 3],
}

impl Part {
    fn of(network: &config::Network, pool: Pool) -> Outcome<Self> {
        let wrong = |what: &str, text: &str| Refusal::internal(format!("network.{what} = {text:?} is no IPv4 network"));
        let outside: Cidr = network.outside.parse().map_err(|()| wrong("outside", &network.outside))?;
        let elastic: Cidr = network.elastic.parse().map_err(|()| wrong("elastic", &network.elastic))?;
        let routers = (u32::from(network.routers.0), u32::from(network.routers.1).max(u32::from(network.routers.0)));
        let elastic = (u32::from(elastic.first()), u32::from(elastic.last()));
        let ((first, last), other) = match pool {
            Pool::Routers => (routers, elastic),
            Pool::Elastic => (elastic, routers),
        };
        Ok(Self { first, last, other, never: [outside.first(), outside.last(), network.gateway] })
    }

    fn size(&self) -> u64 {
        u64::from(self.last - self.first) + 1
    }

    fn has(&self, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        (self.first..=self.last).contains(&number)
            && !(self.other.0..=self.other.1).contains(&number)
            && !self.never.contains(&address)
    }

    fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        (self.first..=self.last).take(MOST).map(Ipv4Addr::from).filter(|a| self.has(*a)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pools_keep_off_the_networks_ends_and_each_other() {
        let network = config::Network::default();
        let elastic = Part::of(&network, Pool::Elastic).unwrap().addresses();
        assert_eq!(elastic.len(), 127);
        assert!(elastic.contains(&[172, 29, 0, 128].into()) && !elastic.contains(&[172, 29, 0, 255].into()));
        let routers = Part::of(&network, Pool::Routers).unwrap().addresses();
        assert_eq!(routers.len(), 118);
        assert!(routers.is_disjoint(&elastic));
        let overlapping = config::Network { routers: ([172, 29, 0, 1].into(), [172, 29, 0, 200].into()), ..network };
        let routers = Part::of(&overlapping, Pool::Routers).unwrap().addresses();
        assert!(
            !routers.contains(&overlapping.gateway)
                && routers.is_disjoint(&Part::of(&overlapping, Pool::Elastic).unwrap().addresses())
        );
    }
}
