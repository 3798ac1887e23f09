//! Route tables: static routes of the VPC's router, each in the table of its own, and the translation NAT gateways do.
//!
//! A route whose target takes no packets is there all the same, and discards them, as at AWS: what it names does not fall
//! through to a wider route. A NAT gateway is a `snat` for each subnet whose table leads to it, so what such a subnet sends
//! to an internet gateway by another route is translated, too, where AWS would drop it.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mallee_aws::id::{NatGatewayId, NetworkInterfaceId, SubnetId, VpcId};

use super::{Outside, inner_port, nat, outer_port, peering};
use crate::{
    ec2::{
        interface::InterfaceRow,
        nat_gateway::NatGatewayRow,
        route_table::{RouteRow, RouteTableRow, Target},
        subnet::SubnetRow,
    },
    network::{
        Cidr,
        northbound::{Column, Content, Table},
        wanted::Wanted,
    },
};

/// Which table a subnet has.
pub struct Tables<'a> {
    own: BTreeMap<&'a SubnetId, &'a RouteTableRow>,
    main: BTreeMap<&'a VpcId, &'a RouteTableRow>,
}

impl<'a> Tables<'a> {
    pub fn new(wanted: &'a Wanted) -> Self {
        let mut tables = Self { own: BTreeMap::new(), main: BTreeMap::new() };
        for table in &wanted.route_tables {
            for association in &table.associations {
                match &association.subnet {
                    Some(subnet) => tables.own.insert(subnet, table),
                    None => tables.main.insert(&table.vpc, table),
                };
            }
        }
        tables
    }

    /// Its own, else its VPC's main one.
    pub fn of(&self, subnet: &SubnetRow) -> Option<&'a RouteTableRow> {
        self.own.get(&subnet.id).or_else(|| self.main.get(&subnet.vpc)).copied()
    }
}

/// Whether a table leads to a network by the outside.
pub fn leads_to(table: &RouteTableRow, network: Cidr) -> bool {
    table.routes.iter().any(|route| route.active && is_outer(route) && route.destination.covers(&network))
}

fn is_outer(route: &RouteRow) -> bool {
    matches!(route.target, Target::Gateway(_) | Target::Nat(_))
}

/// What routes lead to.
struct Ends<'a> {
    nats: BTreeMap<&'a NatGatewayId, &'a NatGatewayRow>,
    interfaces: BTreeMap<&'a NetworkInterfaceId, &'a InterfaceRow>,
    /// NAT gateways whose own subnet leads to an internet gateway.
    leading: Vec<&'a NatGatewayId>,
}

pub fn render(out: &mut Content, wanted: &Wanted, tables: &Tables<'_>, outside: &Outside) {
    let subnets: BTreeMap<_, _> = wanted.subnets.iter().map(|s| (&s.id, s)).collect();
    let leads_out = |nat: &&NatGatewayRow| {
        let table = subnets.get(&nat.subnet).and_then(|subnet| tables.of(subnet));
        table.is_some_and(|t| t.routes.iter().any(|r| r.active && matches!(r.target, Target::Gateway(_))))
    };
    let ends = Ends {
        nats: wanted.nat_gateways.iter().map(|n| (&n.id, n)).collect(),
        interfaces: wanted.interfaces.iter().map(|i| (&i.id, i)).collect(),
        leading: wanted.nat_gateways.iter().filter(leads_out).map(|n| &n.id).collect(),
    };
    for table in &wanted.route_tables {
        for route in &table.routes {
            let hop = hop(route, table, &ends, wanted, outside);
            let (nexthop, port) =
                hop.map_or_else(|| ("discard".to_owned(), None), |(ip, port)| (ip.to_string(), Some(port)));
            let key = format!("{}-{}", table.id, route.destination);
            out.add(
                Table::StaticRoute,
                key.clone(),
                &[],
                [
                    ("ip_prefix", Column::text(route.destination.to_string())),
                    ("nexthop", Column::Text(nexthop)),
                    ("output_port", Column::set(port)),
                    ("route_table", Column::text(table.id.as_str())),
                ],
            );
            out.refer(Table::Router, table.vpc.as_str(), "static_routes", key);
        }
    }
    for subnet in &wanted.subnets {
        translations(out, subnet, tables.of(subnet), &ends);
    }
}

/// The next hop and the router's port to it. None: nobody takes the packets.
fn hop(
    route: &RouteRow,
    table: &RouteTableRow,
    ends: &Ends<'_>,
    wanted: &Wanted,
    outside: &Outside,
) -> Option<(Ipv4Addr, String)> {
    if !route.active {
        return None;
    }
    match &route.target {
        Target::Gateway(_) => Some((outside.gateway, outer_port(&table.vpc))),
        Target::Nat(id) => ends.leading.contains(&id).then(|| (outside.gateway, outer_port(&table.vpc))),
        Target::Interface(id) => ends.interfaces.get(id).map(|i| (i.address, inner_port(&i.subnet))),
        Target::Peering(id) => wanted.peerings.iter().find(|p| p.id == *id).and_then(|p| peering::hop(p, &table.vpc)),
    }
}

/// A subnet goes out by the public address of each NAT gateway its table leads to.
fn translations(out: &mut Content, subnet: &SubnetRow, table: Option<&RouteTableRow>, ends: &Ends<'_>) {
    let Some(table) = table else { return };
    for route in table.routes.iter().filter(|r| r.active) {
        let Target::Nat(id) = &route.target else { continue };
        let Some(gateway) = ends.nats.get(id).filter(|_| ends.leading.contains(&id)) else { continue };
        let key = format!("{id}-{}", subnet.id);
        if out.get(Table::Nat, &key).is_none() {
            nat(out, key.clone(), "snat", gateway.public_ip, subnet.cidr.to_string());
            out.refer(Table::Router, subnet.vpc.as_str(), "nat", key);
        }
    }
}
