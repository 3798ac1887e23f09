//! The rows of the whole cloud's network, in one read.

use mallee_store::Tx;

use crate::{
    Outcome,
    ec2::{
        dhcp_options::{self, DhcpOptionsRow},
        interface::{self, InterfaceRow},
        nat_gateway::{self, NatGatewayRow},
        network_acl::{self, NetworkAclRow},
        peering::{self, PeeringRow},
        route_table::{self, RouteTableRow},
        security_group::{self, GroupRow, RuleRow},
        subnet::{self, SubnetRow},
        vpc::{self, VpcRow},
    },
};

/// What the network shall be, as rows say it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub vpcs: Vec<VpcRow>,
    pub subnets: Vec<SubnetRow>,
    pub route_tables: Vec<RouteTableRow>,
    pub groups: Vec<GroupRow>,
    pub rules: Vec<RuleRow>,
    pub interfaces: Vec<InterfaceRow>,
    pub acls: Vec<NetworkAclRow>,
    pub dhcp_options: Vec<DhcpOptionsRow>,
    /// Those that carry packets.
    pub nat_gateways: Vec<NatGatewayRow>,
    /// Those that carry packets.
    pub peerings: Vec<PeeringRow>,
}

pub fn read(tx: &mut Tx<'_>) -> Outcome<Wanted> {
    Ok(Wanted {
        vpcs: vpc::all(tx, None)?,
        subnets: subnet::all(tx, None)?,
        route_tables: route_table::all(tx, None)?,
        groups: security_group::all(tx, None)?,
        rules: security_group::all_rules(tx, None)?,
        interfaces: interface::all(tx)?,
        acls: network_acl::all(tx, None)?,
        dhcp_options: dhcp_options::all(tx, None)?,
        nat_gateways: nat_gateway::alive(tx)?,
        peerings: peering::active(tx)?,
    })
}
