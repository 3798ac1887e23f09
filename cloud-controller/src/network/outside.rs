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
    let mut free = usable(network, pool)?;
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

/// What may be given out: never the outside network's own first and last address, its gateway, or an address that belongs
/// to the other pool.
fn usable(network: &config::Network, pool: Pool) -> Outcome<BTreeSet<Ipv4Addr>> {
    let wrong = |what: &str, text: &str| Refusal::internal(format!("network.{what} = {text:?} is no IPv4 network"));
    let outside: Cidr = network.outside.parse().map_err(|()| wrong("outside", &network.outside))?;
    let elastic: Cidr = network.elastic.parse().map_err(|()| wrong("elastic", &network.elastic))?;
    let (first, last) = (u32::from(network.routers.0), u32::from(network.routers.1));
    // A pool of more than 65,536 addresses is not listed whole.
    const MOST: usize = 1 << 16;
    let mut all: Vec<u32> = match pool {
        Pool::Routers => (first..=last).take(MOST).filter(|a| !elastic.contains(Ipv4Addr::from(*a))).collect(),
        Pool::Elastic => (u32::from(elastic.first())..=u32::from(elastic.last()))
            .take(MOST)
            .filter(|a| !(first..=last).contains(a))
            .collect(),
    };
    all.retain(|a| ![outside.first(), outside.last(), network.gateway].contains(&Ipv4Addr::from(*a)));
    Ok(all.into_iter().map(Ipv4Addr::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pools_keep_off_the_networks_ends_and_each_other() {
        let network = config::Network::default();
        let elastic = usable(&network, Pool::Elastic).unwrap();
        assert_eq!(elastic.len(), 127);
        assert!(elastic.contains(&[172, 29, 0, 128].into()) && !elastic.contains(&[172, 29, 0, 255].into()));
        let routers = usable(&network, Pool::Routers).unwrap();
        assert_eq!(routers.len(), 118);
        assert!(routers.is_disjoint(&elastic));
        let overlapping = config::Network { routers: ([172, 29, 0, 1].into(), [172, 29, 0, 200].into()), ..network };
        let routers = usable(&overlapping, Pool::Routers).unwrap();
        assert!(!routers.contains(&overlapping.gateway) && routers.is_disjoint(&usable(&overlapping, Pool::Elastic).unwrap()));
    }
}
