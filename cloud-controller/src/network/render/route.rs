//! Route tables: static routes of the VPC's router, each in the table of its own, and the translation NAT gateways do.
//!
//! A route whose target takes no packets is there all the same, and discards them, as at AWS: what it names does not fall
//! through to a wider route. A NAT gateway is a `snat` for each subnet whose table leads to it, so what such a subnet sends
//! to an internet gateway by another route is translated, too, where AWS would drop it.

use std::{collections::BTreeMap, net::IpAddr};

use mallee_aws::id::{NatGatewayId, NetworkInterfaceId, PrefixListId, SubnetId, VpcId, VpcPeeringConnectionId};

use super::{Outside, POLICY_CLOSED, address_set_of, inner_port, ipv6, nat, nat_towards, outer_port, peering, policy};
use crate::{
    ec2::{
        interface::InterfaceRow,
        nat_gateway::NatGatewayRow,
        prefix_list::PrefixListRow,
        route_table::{Destination, RouteRow, RouteTableRow, Target},
        subnet::SubnetRow,
        vpc::VpcRow,
    },
    network::{
        Cidr, Net,
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
    let covers = |route: &RouteRow| route.destination.net().is_some_and(|net| net.covers(&network.into()));
    table.routes.iter().any(|route| route.active && is_outer(route) && covers(route))
}

fn is_outer(route: &RouteRow) -> bool {
    matches!(route.target, Target::Gateway(_) | Target::Nat(_))
}

/// What routes lead to.
struct Ends<'a> {
    nats: BTreeMap<&'a NatGatewayId, &'a NatGatewayRow>,
    interfaces: BTreeMap<&'a NetworkInterfaceId, &'a InterfaceRow>,
    lists: BTreeMap<&'a PrefixListId, &'a PrefixListRow>,
    vpcs: BTreeMap<&'a VpcId, &'a VpcRow>,
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
        lists: wanted.prefix_lists.iter().map(|l| (&l.id, l)).collect(),
        vpcs: wanted.vpcs.iter().map(|v| (&v.id, v)).collect(),
        leading: wanted.nat_gateways.iter().filter(leads_out).map(|n| &n.id).collect(),
    };
    for table in &wanted.route_tables {
        for (net, route) in nets(table, &ends) {
            let hop = hop(route, net, table, &ends, wanted, outside);
            let (nexthop, port) =
                hop.map_or_else(|| ("discard".to_owned(), None), |(ip, port)| (ip.to_string(), Some(port)));
            let key = format!("{}-{net}", table.id);
            out.add(
                Table::StaticRoute,
                key.clone(),
                &[],
                [
                    ("ip_prefix", Column::text(net.to_string())),
                    ("nexthop", Column::Text(nexthop)),
                    ("output_port", Column::set(port)),
                    ("route_table", Column::text(table.id.as_str())),
                ],
            );
            out.refer(Table::Router, table.vpc.as_str(), "static_routes", key);
        }
    }
    for subnet in wanted.routed() {
        translations(out, subnet, tables.of(subnet), &ends);
        endpoints(out, subnet, tables.of(subnet), &ends);
    }
}

/// What each route of a table is about. A route of its own comes before one of a prefix list, and nothing before the VPC's
/// own addresses, whatever a list says later.
fn nets<'a>(table: &'a RouteTableRow, ends: &Ends<'a>) -> BTreeMap<Net, &'a RouteRow> {
    let mut nets: BTreeMap<Net, &RouteRow> = BTreeMap::new();
    let local = |net: &Net| ends.vpcs.get(&table.vpc).is_some_and(|vpc| vpc.nets().any(|own| own.covers(net)));
    for route in &table.routes {
        match &route.destination {
            Destination::Net(net) => {
                nets.insert(*net, route);
            }
            Destination::PrefixList(id) => {
                let listed = ends.lists.get(id).into_iter().flat_map(|list| list.nets());
                for net in listed.filter(|net| !local(net)) {
                    let named = nets.get(&net).is_some_and(|r| r.destination.net().is_some());
                    if !named {
                        nets.insert(net, route);
                    }
                }
            }
        }
    }
    nets
}

/// A subnet whose table has an endpoint goes to what the endpoint is for, and only there, by its router's own address.
fn endpoints(out: &mut Content, subnet: &SubnetRow, table: Option<&RouteTableRow>, ends: &Ends<'_>) {
    let (Some(table), Some(vpc)) = (table, ends.vpcs.get(&subnet.vpc)) else { return };
    for route in table.routes.iter().filter(|r| r.active) {
        let (Target::Endpoint(id), Destination::PrefixList(list)) = (&route.target, &route.destination) else {
            continue;
        };
        let set = address_set_of(list);
        let key = format!("{id}-{}", subnet.id);
        nat_towards(out, key.clone(), "snat", vpc.outer_address, subnet.cidr.to_string(), Some(set.clone()));
        out.refer(Table::Router, vpc.id.as_str(), "nat", key.clone());
        let expression = format!("inport == \"{}\" && ip4.dst == ${set}", inner_port(&subnet.id));
        policy(out, &vpc.id, key, POLICY_CLOSED + 1, expression, "allow");
    }
}

/// The next hop and the router's port to it. None: nobody takes the packets.
fn hop(
    route: &RouteRow,
    net: Net,
    table: &RouteTableRow,
    ends: &Ends<'_>,
    wanted: &Wanted,
    outside: &Outside,
) -> Option<(IpAddr, String)> {
    if !route.active {
        return None;
    }
    let peering = |id: &VpcPeeringConnectionId| wanted.peerings.iter().find(|p| p.id == *id);
    let outer = || (IpAddr::V4(outside.gateway), outer_port(&table.vpc));
    if net.v6().is_some() {
        // The VPC's router has an address to leave by only when the VPC has IPv6.
        let has_ipv6 = |vpc: &VpcId| ends.vpcs.get(vpc).is_some_and(|vpc| vpc.ipv6.is_some());
        let (hop, port) = match &route.target {
            Target::Gateway(_) | Target::EgressOnly(_) => ipv6::hop(table, outside),
            Target::Peering(id) => {
                let peering = peering(id)?;
                let both = has_ipv6(&peering.requester.vpc) && has_ipv6(&peering.accepter.vpc);
                peering::hop6(peering, &table.vpc).filter(|_| both)?
            }
            _ => return None,
        };
        return has_ipv6(&table.vpc).then_some((hop.into(), port));
    }
    match &route.target {
        Target::Gateway(_) | Target::Endpoint(_) => Some(outer()),
        Target::EgressOnly(_) => None,
        Target::Nat(id) => ends.leading.contains(&id).then(outer),
        Target::Interface(id) => ends.interfaces.get(id).map(|i| (i.address.into(), inner_port(&i.subnet))),
        Target::Peering(id) => peering::hop(peering(id)?, &table.vpc).map(|(ip, port)| (ip.into(), port)),
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
