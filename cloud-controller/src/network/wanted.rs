//! The rows of the whole cloud's network, in one read.

use mallee_store::Tx;

use crate::{
    Outcome,
    ec2::{
        interface::{self, InterfaceRow},
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
}

pub fn read(tx: &mut Tx<'_>) -> Outcome<Wanted> {
    Ok(Wanted {
        vpcs: vpc::all(tx, None)?,
        subnets: subnet::all(tx, None)?,
        route_tables: route_table::all(tx, None)?,
        groups: security_group::all(tx, None)?,
        rules: security_group::all_rules(tx, None)?,
        interfaces: interface::all(tx)?,
    })
}
