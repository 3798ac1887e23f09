//! IPv6: subnets with addresses that are the same inside and outside.
//!
//! ```text
//! gateway (…::1) ── mallee-ext ─┬─ outer-vpc-… (…::OUTER IPv4 ADDRESS)
//!                               └─ mallee-transit6 (…::2): all of the pool, on to the VPC's router
//! ```
//!
//! Nothing is translated, so the way in must be known outside: one route for the whole pool to `mallee-transit6`, which knows
//! the router of each VPC. Only a subnet whose table leads to an internet gateway is let in and out by its own addresses. One
//! that leads to an egress-only gateway leaves by its router's address, where at AWS it keeps its own: what OVN 23.03 lets a
//! gateway port track is what it translates. Neighbour discovery passes every ACL by OVN's own rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
};

use mallee_aws::id::{PrefixListId, SubnetId};

use super::{
    EXT, Link, MTU, OUTER, Outside, POLICY_CLOSED, PRIORITY_DROP, acl, address_set, chassis, inner_port, link, nat,
    none, outer_port, policy, route,
};
use crate::{
    ec2::{
        route_table::{Destination, RouteTableRow, Target},
        subnet::SubnetRow,
        vpc::VpcRow,
    },
    network::{
        Cidr6, Net,
        northbound::{Column, Content, Table},
        wanted::Wanted,
    },
};

/// Addresses come by DHCPv6, as at AWS: the advertisement names the router and says so. A guest that advertises itself by
/// mistake is of ordinary preference.
pub const ADVERTISED: &[(&str, &str)] =
    &[("address_mode", "dhcpv6_stateful"), ("router_preference", "HIGH"), ("send_periodic", "true"), ("mtu", MTU)];

const TRANSIT: &str = "mallee-transit6";
/// Of a range that interfaces' and routers' MACs are not in.
const TRANSIT_MAC: &str = "02:6d:61:6c:6c:65";
/// The subnets that are let in and out.
const OPEN: &str = "mallee_open6";
const ACLS: [(&str, &str, &str, &str); 2] =
    [("outside6-leaving", "from-lport", "inport", "src"), ("outside6-entering", "to-lport", "outport", "dst")];
const GATEWAY: u128 = 1;
const CLOUD: u128 = 2;

/// The router's own address in a subnet, with the subnet's length.
pub fn router_network(subnet: &Cidr6) -> String {
    format!("{}/{}", subnet.nth(1), subnet.length())
}

/// The router's address on the outside network.
fn outer_address(vpc: &VpcRow, outside: &Outside) -> Ipv6Addr {
    outside.ipv6.nth(u128::from(u32::from(vpc.outer_address)))
}

pub fn outer_network(vpc: &VpcRow, outside: &Outside) -> String {
    format!("{}/{}", outer_address(vpc, outside), outside.ipv6.length())
}

pub fn gateway(outside: &Outside) -> Ipv6Addr {
    outside.ipv6.nth(GATEWAY)
}

pub fn dhcp_key(subnet: &SubnetId) -> String {
    format!("{subnet}-ipv6")
}

pub fn render(out: &mut Content, wanted: &Wanted, tables: &route::Tables<'_>, outside: &Outside) {
    let vpcs: BTreeMap<_, _> = wanted.vpcs.iter().filter(|v| v.ipv6.is_some()).map(|v| (&v.id, v)).collect();
    if vpcs.is_empty() {
        return;
    }
    transit(out, vpcs.values().copied(), outside);
    let lists: BTreeSet<_> = wanted.prefix_lists.iter().filter(|l| l.is_ipv6).map(|l| &l.id).collect();
    let mut open = Vec::new();
    for subnet in wanted.routed() {
        let (Some((_, cidr)), Some(vpc)) = (&subnet.ipv6, vpcs.get(&subnet.vpc)) else { continue };
        dhcp(out, subnet, cidr);
        let ways = tables.of(subnet).map(|table| Ways::of(table, &lists)).unwrap_or_default();
        if ways.open {
            open.push(Net::V6(*cidr));
        }
        if ways.egress_only {
            let key = format!("egress-only-{}", subnet.id);
            nat(out, key.clone(), "snat", outer_address(vpc, outside), cidr.to_string());
            out.refer(Table::Router, vpc.id.as_str(), "nat", key);
        }
        if !ways.open && !ways.egress_only {
            let expression = format!("inport == \"{}\" && ip6.dst == {}", inner_port(&subnet.id), outside.ipv6);
            policy(out, &vpc.id, format!("closed6-{}", subnet.id), POLICY_CLOSED, expression, "drop");
        }
    }
    edge(out, open, outside);
}

/// How a table leads out.
#[derive(Default)]
struct Ways {
    open: bool,
    egress_only: bool,
}

impl Ways {
    fn of(table: &RouteTableRow, lists: &BTreeSet<&PrefixListId>) -> Self {
        let is_ipv6 = |destination: &Destination| match destination {
            Destination::Net(net) => net.v6().is_some(),
            Destination::PrefixList(id) => lists.contains(id),
        };
        let leads =
            |is: fn(&Target) -> bool| table.routes.iter().any(|r| r.active && is(&r.target) && is_ipv6(&r.destination));
        Self {
            open: leads(|target| matches!(target, Target::Gateway(_))),
            egress_only: leads(|target| matches!(target, Target::EgressOnly(_))),
        }
    }
}

/// The router that all of the pool is reached by.
fn transit<'a>(out: &mut Content, vpcs: impl Iterator<Item = &'a VpcRow>, outside: &Outside) {
    let port = format!("{TRANSIT}-outer");
    let mut routes = Vec::new();
    for vpc in vpcs {
        let Some((_, cidr)) = &vpc.ipv6 else { continue };
        let key = format!("{TRANSIT}-{}", vpc.id);
        out.add(
            Table::StaticRoute,
            key.clone(),
            &[],
            [
                ("ip_prefix", Column::text(cidr.to_string())),
                ("nexthop", Column::text(outer_address(vpc, outside).to_string())),
                ("output_port", Column::set([port.as_str()])),
                ("route_table", Column::text("")),
            ],
        );
        routes.push(key);
    }
    out.add(
        Table::Router,
        TRANSIT,
        &[],
        [
            ("name", Column::text(TRANSIT)),
            ("ports", none(Table::RouterPort)),
            ("static_routes", Column::rows(Table::StaticRoute, routes)),
            ("policies", none(Table::Policy)),
            ("nat", none(Table::Nat)),
            ("options", Column::map::<&str, &str>([])),
        ],
    );
    let chassis = chassis(out, &port, outside);
    let peer = link(
        out,
        TRANSIT,
        Link {
            port,
            mac: TRANSIT_MAC,
            networks: vec![format!("{}/{}", outside.ipv6.nth(CLOUD), outside.ipv6.length())],
            advertised: &[],
            options: BTreeMap::new(),
            switch_options: Vec::new(),
            chassis,
        },
    );
    out.refer(Table::Switch, EXT, "ports", peer);
}

/// What crosses the routers' outer ports: open subnets, and the routers themselves.
fn edge(out: &mut Content, open: Vec<Net>, outside: &Outside) {
    address_set(out, OPEN.to_owned(), open.into_iter());
    for (key, direction, port, side) in ACLS {
        let whose = format!("{{${OPEN}, {}, fe80::/10, ff02::/16}}", outside.ipv6);
        let allowed = format!("{port} == @{OUTER} && ip6.{side} == {whose}");
        acl(out, key, direction, PRIORITY_DROP + 1, allowed, "allow");
        let dropped = format!("{key}-others");
        acl(out, &dropped, direction, PRIORITY_DROP, format!("{port} == @{OUTER} && ip6"), "drop");
        out.refer(Table::PortGroup, OUTER, "acls", key);
        out.refer(Table::PortGroup, OUTER, "acls", dropped);
    }
}

fn dhcp(out: &mut Content, subnet: &SubnetRow, cidr: &Cidr6) {
    out.add(
        Table::DhcpOptions,
        dhcp_key(&subnet.id),
        &[],
        [
            ("cidr", Column::text(cidr.to_string())),
            ("options", Column::map([("server_id", subnet.router_mac.as_str())])),
        ],
    );
}

/// How a route to a gateway of either kind goes on.
pub fn hop(table: &RouteTableRow, outside: &Outside) -> (Ipv6Addr, String) {
    (gateway(outside), outer_port(&table.vpc))
}
