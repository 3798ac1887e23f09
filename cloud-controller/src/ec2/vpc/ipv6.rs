//! The IPv6 block of a VPC: a /56 of the cloud's pool, chosen for it. A VPC has one at most.

use std::collections::BTreeMap;

use mallee_aws::id::{VpcCidrAssociationId, VpcId};
use mallee_store::{Error as StoreError, Tx, params};
use serde::Serialize;

use super::{State, VpcRow};
use crate::{
    Outcome, Refusal, config,
    ec2::{Id, network_acl, security_group, subnet},
    network::Cidr6,
};

pub const TABLES: &str = "
CREATE TABLE vpc_ipv6 (
    id TEXT PRIMARY KEY,
    vpc TEXT NOT NULL UNIQUE REFERENCES vpc (id),
    cidr TEXT NOT NULL UNIQUE
);
";

/// AWS gives a VPC this much.
const LENGTH: u8 = 56;

pub type Block = (VpcCidrAssociationId, Cidr6);

/// The blocks of every VPC.
pub fn all(tx: &mut Tx<'_>) -> Result<BTreeMap<VpcId, Block>, StoreError> {
    let found = tx.query("SELECT vpc, id, cidr FROM vpc_ipv6", params![], |row| {
        Ok((row.get::<Id<_>>(0)?.0, (row.get::<Id<_>>(1)?.0, row.get(2)?)))
    })?;
    Ok(found.into_iter().collect())
}

pub fn of(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<Option<Block>, StoreError> {
    tx.query_opt("SELECT id, cidr FROM vpc_ipv6 WHERE vpc = ?1", params![vpc.as_str()], |row| {
        Ok((row.get::<Id<_>>(0)?.0, row.get(1)?))
    })
}

/// Gives a VPC its block, and lets IPv6 through where IPv4 is as well, as AWS does: by the default network ACL, and out of
/// groups that let all IPv4 out.
pub fn give(tx: &mut Tx<'_>, network: &config::Network, vpc: &VpcRow) -> Outcome<Block> {
    if vpc.ipv6.is_some() {
        let message = format!("This network '{}' has met its maximum number of allowed CIDRs: 1", vpc.id);
        return Err(Refusal::new("CidrLimitExceeded", message));
    }
    let block = take(tx, network, vpc)?;
    network_acl::let_ipv6_through(tx, &vpc.id)?;
    security_group::group::let_ipv6_out(tx, &vpc.id)?;
    Ok(block)
}

/// A random free part of the pool: one that was just given back is not met again at once.
fn take(tx: &mut Tx<'_>, network: &config::Network, vpc: &VpcRow) -> Outcome<Block> {
    let pool = network.ipv6_pool()?.filter(|pool| pool.length() <= LENGTH);
    let pool = pool.ok_or_else(|| {
        Refusal::from(mallee_aws::AwsError::unsupported(
            "This cloud has no IPv6 pool (network.ipv6 in its configuration)",
        ))
    })?;
    let count = 1u64 << u32::from(LENGTH - pool.length()).min(63);
    for _ in 0..256 {
        let cidr = pool.part(LENGTH, u128::from(rand::random_range(0..count)));
        let id = VpcCidrAssociationId::from_random(rand::random());
        let taken = tx.execute(
            "INSERT INTO vpc_ipv6 (id, vpc, cidr) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![id.as_str(), vpc.id.as_str(), cidr],
        )?;
        if taken == 1 {
            return Ok((id, cidr));
        }
    }
    Err(Refusal::new("InsufficientCidrBlocks", "There is no free IPv6 CIDR block left in this cloud's pool"))
}

/// Takes the block back, which no subnet may use any more.
pub fn take_back(tx: &mut Tx<'_>, vpc: &VpcId) -> Outcome<()> {
    if subnet::in_vpc(tx, vpc)?.iter().any(|subnet| subnet.ipv6.is_some()) {
        let message = format!("The vpc '{vpc}' has subnets with IPv6 CIDR blocks; its own cannot be disassociated");
        return Err(Refusal::new("DependencyViolation", message));
    }
    drop_of_vpc(tx, vpc)?;
    Ok(())
}

pub fn drop_of_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<(), StoreError> {
    tx.execute("DELETE FROM vpc_ipv6 WHERE vpc = ?1", params![vpc.as_str()]).map(|_| ())
}

/// A block as a VPC and its changes show it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Association {
    association_id: VpcCidrAssociationId,
    pub ipv6_cidr_block: Cidr6,
    ipv6_cidr_block_state: State,
    network_border_group: String,
    ipv6_pool: &'static str,
    ip_source: &'static str,
}

impl Association {
    pub fn of(block: Block, region: &str, state: &'static str) -> Self {
        Self {
            association_id: block.0,
            ipv6_cidr_block: block.1,
            ipv6_cidr_block_state: State { state },
            network_border_group: region.to_owned(),
            ipv6_pool: "Amazon",
            ip_source: "amazon",
        }
    }

    pub fn id(&self) -> &str {
        self.association_id.as_str()
    }

    pub fn state(&self) -> &'static str {
        self.ipv6_cidr_block_state.state
    }
}
