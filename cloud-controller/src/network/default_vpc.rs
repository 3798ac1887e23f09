//! What an account is born with: a VPC with a subnet in every zone, so that its first launch needs no network of its own.

use mallee_aws::id::NetworkAclId;
use mallee_store::Tx;

use super::Cidr;
use crate::{
    Config, Outcome, Refusal,
    ec2::{
        dhcp_options, internet_gateway, network_acl,
        route_table::{self, Target},
        security_group::{self, Direction, Peer, Traffic},
        subnet::{self, SubnetRow},
        vpc::{self, VpcRow},
    },
};

/// AWS' addresses: 172.31.0.0/16, a /20 for each zone. Zones after the sixteenth get none.
const FIRST: [u8; 4] = [172, 31, 0, 0];
const VPC_LENGTH: u8 = 16;
const SUBNET_LENGTH: u8 = 20;
const MOST_SUBNETS: u32 = 1 << (SUBNET_LENGTH - VPC_LENGTH);

/// Makes the default VPC of a new account, with all that belongs to it. An account that has one already keeps it, which the
/// UNIQUE constraint on `default_of` sees to.
pub fn create_default_vpc(tx: &mut Tx<'_>, config: &Config, account: &str, now: i64) -> Outcome<VpcRow> {
    let cidr = Cidr::new(FIRST.into(), VPC_LENGTH);
    let dhcp_options = dhcp_options::default_of(tx, account, &config.region, now)?;
    let vpc = vpc::insert(tx, &config.network, account, vpc::New { cidr, is_default: true, dhcp_options, now })?;
    let gateway = internet_gateway::insert(tx, account, &vpc.id, now)?;
    let routes = route_table::insert_main(tx, account, &vpc.id, now)?;
    route_table::insert_route(tx, &routes, &Cidr::ANYWHERE.into(), &Target::Gateway(gateway))?;
    let acl = network_acl::insert_default(tx, account, &vpc.id, now)?;
    let group = security_group::insert(tx, account, &vpc.id, "default", "default VPC security group", now)?;
    let itself = Traffic::everything(Peer::Group(group.id.clone()));
    security_group::insert_rule(tx, &group, Direction::Ingress, &itself, None)?;
    for (zone, n) in config.zones.iter().zip(0..MOST_SUBNETS) {
        let block = Cidr::new(cidr.nth(n << (32 - SUBNET_LENGTH)), SUBNET_LENGTH);
        default_subnet(tx, &vpc, zone, block, &acl, now)?;
    }
    Ok(vpc)
}

fn default_subnet(
    tx: &mut Tx<'_>,
    vpc: &VpcRow,
    zone: &str,
    cidr: Cidr,
    acl: &NetworkAclId,
    now: i64,
) -> Outcome<SubnetRow> {
    let new = subnet::New {
        vpc: vpc.id.clone(),
        zone: zone.to_owned(),
        cidr,
        kind: subnet::Kind::Routed,
        is_default: true,
        public_on_launch: true,
        now,
    };
    let subnet = subnet::insert(tx, &vpc.account, new)?;
    network_acl::associate(tx, acl, &subnet.id)?;
    Ok(subnet)
}

/// A default subnet for a zone that has none (any more), at the first free /20.
pub fn create_default_subnet(tx: &mut Tx<'_>, vpc: &VpcRow, zone: &str, now: i64) -> Outcome<SubnetRow> {
    let there = subnet::in_vpc(tx, &vpc.id)?;
    if let Some(subnet) = there.iter().find(|s| s.is_default && s.zone == zone) {
        let message = format!("'{}' is already the default subnet in {zone}.", subnet.id);
        return Err(Refusal::new("DefaultSubnetAlreadyExistsInAvailabilityZone", message));
    }
    let free = (0..MOST_SUBNETS)
        .map(|n| Cidr::new(vpc.cidr.nth(n << (32 - SUBNET_LENGTH)), SUBNET_LENGTH))
        .find(|block| !there.iter().any(|s| s.cidr.overlaps(block)));
    let Some(cidr) = free else {
        let message = format!("The default VPC has no free /{SUBNET_LENGTH} left for a subnet in {zone}");
        return Err(Refusal::new("InsufficientCidrBlocks", message));
    };
    let acl = network_acl::default_of(tx, &vpc.id)?;
    default_subnet(tx, vpc, zone, cidr, &acl, now)
}
