//! The rows of the whole cloud's network, in one read.

use std::collections::BTreeSet;

use mallee_aws::id::NetworkInterfaceId;
use mallee_store::Tx;

use crate::{
    Outcome,
    ec2::{
        dhcp_options::{self, DhcpOptionsRow},
        flow_log,
        interface::{self, InterfaceRow},
        nat_gateway::{self, NatGatewayRow},
        network_acl::{self, NetworkAclRow},
        peering::{self, PeeringRow},
        prefix_list::{self, PrefixListRow},
        route_table::{self, RouteTableRow},
        security_group::{self, GroupRow, RuleRow},
        subnet::{self, Kind, SubnetRow},
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
    /// The accounts' and the cloud's own.
    pub prefix_lists: Vec<PrefixListRow>,
    /// Interfaces whose packets nodes write down.
    pub flow_logged: BTreeSet<NetworkInterfaceId>,
}

impl Wanted {
    /// The subnets that hang on their VPC's router.
    pub fn routed(&self) -> impl Iterator<Item = &SubnetRow> {
        self.subnets.iter().filter(|subnet| subnet.kind == Kind::Routed)
    }
}

/// `s3`: the cloud's own prefix list.
pub fn read(tx: &mut Tx<'_>, s3: Option<&PrefixListRow>) -> Outcome<Wanted> {
    let mut prefix_lists = prefix_list::all(tx, None)?;
    prefix_lists.extend(s3.cloned());
    let interfaces = interface::all(tx)?;
    Ok(Wanted {
        prefix_lists,
        flow_logged: flow_log::Logs::read(tx)?.watched(&interfaces),
        vpcs: vpc::all(tx, None)?,
        subnets: subnet::all(tx, None)?,
        route_tables: route_table::all(tx, None)?,
        groups: security_group::all(tx, None)?,
        rules: security_group::all_rules(tx, None)?,
        interfaces,
        acls: network_acl::all(tx, None)?,
        dhcp_options: dhcp_options::all(tx, None)?,
        nat_gateways: nat_gateway::alive(tx)?,
        peerings: peering::active(tx)?,
    })
}
