//! From the rows of the network to northbound content. Pure.
//!
//! ```text
//! host ── mallee-ext (localnet) ── outer-vpc-… ─ vpc-… (router) ─ inner-subnet-… ── subnet-… ── port of an interface
//!                                                   └─ service-vpc-… ── service switch ── metadata-vpc-… (localport)
//! ```
//!
//! - What reaches an interface is decided by ACLs: port group `mallee_drop` holds every port and drops all IP at priority
//!   1000, but lets DHCP and metadata through at 2000; each security group is a port group whose rules allow at 1002.
//! - An outside address of an interface is a `dnat_and_snat`. Instances without one leave by their router's own address,
//!   which AWS would not let them; everything that wants to reach them from outside is dropped, as at AWS.
//! - Route tables are OVN's own: a router port names its table (`options:route_table`), a route belongs to one.
//! - A subnet whose table has no default route may not reach the outside link either, which the router is connected to.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mallee_aws::id::{SecurityGroupId, SubnetId, VpcId};

use super::{
    Cidr,
    northbound::{Column, Content, Table},
    wanted::Wanted,
};
use crate::{
    ec2::{
        interface::InterfaceRow,
        route_table::RouteTableRow,
        security_group::{Direction, Peer, Protocol, RuleRow},
        subnet::SubnetRow,
        vpc::{self, VpcRow},
    },
    refusal::Refusal,
};

/// The outside network, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    pub network: Cidr,
    pub gateway: Ipv4Addr,
    /// Chassis map this name to their bridge to it.
    pub physical: String,
    /// Most wanted first.
    pub chassis: Vec<String>,
    pub dns: Option<Ipv4Addr>,
}

impl Outside {
    pub fn of(config: &crate::config::Network) -> Result<Self, Refusal> {
        let network = config
            .outside
            .parse()
            .map_err(|()| Refusal::internal(format!("network.outside = {:?} is no IPv4 network", config.outside)))?;
        Ok(Self {
            network,
            gateway: config.gateway,
            physical: config.physical.clone(),
            chassis: config.gateway_chassis.clone(),
            dns: config.dns,
        })
    }
}

const EXT: &str = "mallee-ext";
const DROP: &str = "mallee_drop";
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const SERVICE_ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 1);
/// Geneve over a link of 1500.
const MTU: &str = "1442";
const LEASE_SECONDS: &str = "3600";
const PRIORITY_DROP: i64 = 1000;
const PRIORITY_GROUP: i64 = 1002;
const PRIORITY_BASE: i64 = 2000;

pub fn render(wanted: &Wanted, outside: &Outside) -> Content {
    let mut out = Content::default();
    shared(&mut out, outside);
    for vpc in &wanted.vpcs {
        router(&mut out, vpc, outside);
        service(&mut out, vpc);
    }
    for table in &wanted.route_tables {
        routes(&mut out, table, outside);
    }
    let mut subnets = BTreeMap::new();
    for subnet in &wanted.subnets {
        switch(&mut out, subnet, table_of(subnet, &wanted.route_tables), outside);
        subnets.insert(&subnet.id, subnet);
    }
    for group in &wanted.groups {
        out.add(Table::PortGroup, port_group(&group.id), &[("group", group.id.as_str())], [
            ("name", Column::text(port_group(&group.id))),
            ("ports", none(Table::SwitchPort)),
            ("acls", none(Table::Acl)),
        ]);
    }
    for rule in &wanted.rules {
        group_rule(&mut out, rule);
    }
    for interface in &wanted.interfaces {
        port(&mut out, interface);
    }
    out
}

fn none(table: Table) -> Column {
    Column::rows(table, [""; 0])
}

/// The name of a group's port group: an identifier in OVN's expressions.
pub fn port_group(group: &SecurityGroupId) -> String {
    group.as_str().replace('-', "_")
}

fn outer_port(vpc: &VpcId) -> String {
    format!("outer-{vpc}")
}

fn inner_port(subnet: &SubnetId) -> String {
    format!("inner-{subnet}")
}

fn service_switch(vpc: &VpcId) -> String {
    format!("service-{vpc}")
}

/// What all VPCs share: the switch to the outside and the rules that hold for every port.
fn shared(out: &mut Content, outside: &Outside) {
    let localnet = format!("{EXT}-localnet");
    out.add(Table::Switch, EXT, &[], [
        ("name", Column::text(EXT)),
        ("ports", Column::rows(Table::SwitchPort, [localnet.as_str()])),
        ("acls", none(Table::Acl)),
        ("other_config", Column::map::<&str, &str>([])),
    ]);
    switch_port(out, &localnet, "localnet", ["unknown".to_owned()], [("network_name", outside.physical.as_str())]);
    let rules = [
        ("base-drop-out", "from-lport", PRIORITY_DROP, format!("inport == @{DROP} && ip"), "drop"),
        ("base-drop-in", "to-lport", PRIORITY_DROP, format!("outport == @{DROP} && ip"), "drop"),
        (
            "base-dhcp",
            "from-lport",
            PRIORITY_BASE,
            format!("inport == @{DROP} && ip4 && udp.src == 68 && udp.dst == 67"),
            "allow",
        ),
        (
            "base-metadata",
            "from-lport",
            PRIORITY_BASE,
            format!("inport == @{DROP} && ip4.dst == {METADATA} && tcp.dst == 80"),
            "allow-related",
        ),
    ];
    out.add(Table::PortGroup, DROP, &[], [
        ("name", Column::text(DROP)),
        ("ports", none(Table::SwitchPort)),
        ("acls", Column::rows(Table::Acl, rules.iter().map(|r| r.0))),
    ]);
    for (key, direction, priority, expression, action) in rules {
        acl(out, key, direction, priority, expression, action);
    }
}

fn acl(out: &mut Content, key: &str, direction: &str, priority: i64, expression: String, action: &str) {
    out.add(Table::Acl, key, &[], [
        ("direction", Column::text(direction)),
        ("priority", Column::Number(priority)),
        ("match", Column::Text(expression)),
        ("action", Column::text(action)),
    ]);
}

/// A port of a switch that is no interface of an instance.
fn switch_port<const A: usize, const O: usize>(
    out: &mut Content,
    name: &str,
    kind: &str,
    addresses: [String; A],
    options: [(&str, &str); O],
) {
    out.add(Table::SwitchPort, name, &[], [
        ("name", Column::text(name)),
        ("type", Column::text(kind)),
        ("addresses", Column::set(addresses)),
        ("port_security", Column::set([""; 0])),
        ("enabled", Column::set([""; 0])),
        ("options", Column::map(options)),
        ("dhcpv4_options", none(Table::DhcpOptions)),
    ]);
}

/// Both ends of a link between a router and a switch.
struct Link<'a> {
    port: String,
    mac: &'a str,
    network: String,
    /// Of the router's end.
    options: BTreeMap<String, String>,
    /// Of the switch's end, beside the name of the router's.
    switch_options: Vec<(&'a str, &'a str)>,
    chassis: Vec<String>,
}

/// Adds both ends; the answer is the name of the switch's, for its `ports`.
fn link(out: &mut Content, router: &VpcId, link: Link<'_>) -> String {
    out.add(Table::RouterPort, link.port.clone(), &[], [
        ("name", Column::text(link.port.clone())),
        ("mac", Column::text(link.mac)),
        ("networks", Column::set([link.network])),
        ("gateway_chassis", Column::rows(Table::GatewayChassis, link.chassis)),
        ("options", Column::Map(link.options)),
    ]);
    out.refer(Table::Router, router.as_str(), "ports", link.port.clone());
    let peer = format!("{}-peer", link.port);
    let options = link.switch_options.into_iter().chain([("router-port", link.port.as_str())]);
    out.add(Table::SwitchPort, peer.clone(), &[], [
        ("name", Column::text(peer.clone())),
        ("type", Column::text("router")),
        ("addresses", Column::set(["router"])),
        ("port_security", Column::set([""; 0])),
        ("enabled", Column::set([""; 0])),
        ("options", Column::map(options)),
        ("dhcpv4_options", none(Table::DhcpOptions)),
    ]);
    peer
}

fn router(out: &mut Content, vpc: &VpcRow, outside: &Outside) {
    let snat = format!("snat-{}", vpc.id);
    out.add(Table::Router, vpc.id.as_str(), &[("account", &vpc.account)], [
        ("name", Column::text(vpc.id.as_str())),
        ("ports", none(Table::RouterPort)),
        ("static_routes", none(Table::StaticRoute)),
        ("policies", none(Table::Policy)),
        ("nat", Column::rows(Table::Nat, [snat.as_str()])),
        ("options", Column::map::<&str, &str>([])),
    ]);
    nat(out, snat, "snat", vpc.outer_address, vpc.cidr.to_string());
    let port = outer_port(&vpc.id);
    let mut chassis = Vec::new();
    for (name, priority) in outside.chassis.iter().zip((1..=i64::try_from(outside.chassis.len()).unwrap_or(1)).rev()) {
        let key = format!("{port}-{name}");
        out.add(Table::GatewayChassis, key.clone(), &[], [
            ("name", Column::text(key.clone())),
            ("chassis_name", Column::text(name)),
            ("priority", Column::Number(priority)),
        ]);
        chassis.push(key);
    }
    let peer = link(out, &vpc.id, Link {
        port,
        mac: &vpc.outer_mac,
        network: format!("{}/{}", vpc.outer_address, outside.network.length()),
        options: BTreeMap::new(),
        // The router's own and its NAT addresses are announced when they move to another chassis.
        switch_options: vec![("nat-addresses", "router")],
        chassis,
    });
    out.refer(Table::Switch, EXT, "ports", peer);
}

fn nat(out: &mut Content, key: String, kind: &str, outer: Ipv4Addr, inner: String) {
    out.add(Table::Nat, key, &[], [
        ("type", Column::text(kind)),
        ("external_ip", Column::text(outer.to_string())),
        ("logical_ip", Column::Text(inner)),
    ]);
}

/// The network of 169.254.169.254.
fn service(out: &mut Content, vpc: &VpcRow) {
    let switch = service_switch(&vpc.id);
    let metadata = vpc::metadata_port(&vpc.id);
    let peer = link(out, &vpc.id, Link {
        port: format!("{switch}-router"),
        mac: &vpc.service_mac,
        network: format!("{SERVICE_ROUTER}/24"),
        options: BTreeMap::new(),
        switch_options: Vec::new(),
        chassis: Vec::new(),
    });
    switch_port(out, &metadata, "localport", [format!("{} {METADATA}", vpc.metadata_mac)], []);
    out.add(Table::Switch, switch.clone(), &[("vpc", vpc.id.as_str())], [
        ("name", Column::text(switch)),
        ("ports", Column::rows(Table::SwitchPort, [peer, metadata])),
        ("acls", none(Table::Acl)),
        ("other_config", Column::map::<&str, &str>([])),
    ]);
}

fn routes(out: &mut Content, table: &RouteTableRow, outside: &Outside) {
    for route in &table.routes {
        let key = format!("{}-{}", table.id, route.destination);
        out.add(Table::StaticRoute, key.clone(), &[], [
            ("ip_prefix", Column::text(route.destination.to_string())),
            ("nexthop", Column::text(outside.gateway.to_string())),
            ("output_port", Column::set([outer_port(&table.vpc)])),
            ("route_table", Column::text(table.id.as_str())),
        ]);
        out.refer(Table::Router, table.vpc.as_str(), "static_routes", key);
    }
}

/// The table of a subnet: its own, else its VPC's main one.
fn table_of<'a>(subnet: &SubnetRow, tables: &'a [RouteTableRow]) -> Option<&'a RouteTableRow> {
    let own = |t: &&RouteTableRow| t.associations.iter().any(|a| a.subnet.as_ref() == Some(&subnet.id));
    tables.iter().find(own).or_else(|| tables.iter().find(|t| t.vpc == subnet.vpc && t.is_main()))
}

fn switch(out: &mut Content, subnet: &SubnetRow, table: Option<&RouteTableRow>, outside: &Outside) {
    let port = inner_port(&subnet.id);
    let router = subnet.router();
    let peer = link(out, &subnet.vpc, Link {
        port: port.clone(),
        mac: &subnet.router_mac,
        network: format!("{router}/{}", subnet.cidr.length()),
        options: table.map(|t| ("route_table".to_owned(), t.id.to_string())).into_iter().collect(),
        switch_options: Vec::new(),
        chassis: Vec::new(),
    });
    out.add(Table::Switch, subnet.id.as_str(), &[("vpc", subnet.vpc.as_str())], [
        ("name", Column::text(subnet.id.as_str())),
        ("ports", Column::rows(Table::SwitchPort, [peer])),
        ("acls", none(Table::Acl)),
        ("other_config", Column::map::<&str, &str>([])),
    ]);
    let mut options = vec![
        ("server_id", router.to_string()),
        ("server_mac", subnet.router_mac.clone()),
        ("router", router.to_string()),
        ("lease_time", LEASE_SECONDS.to_owned()),
        ("mtu", MTU.to_owned()),
    ];
    if let Some(dns) = outside.dns {
        options.push(("dns_server", dns.to_string()));
    }
    out.add(Table::DhcpOptions, subnet.id.as_str(), &[], [
        ("cidr", Column::text(subnet.cidr.to_string())),
        ("options", Column::map(options)),
    ]);
    let leads_out = table.is_some_and(|t| t.routes.iter().any(|r| r.destination.length() == 0));
    if !leads_out {
        let key = format!("closed-{}", subnet.id);
        out.add(Table::Policy, key.clone(), &[], [
            ("priority", Column::Number(PRIORITY_DROP)),
            ("match", Column::Text(format!("inport == \"{port}\" && ip4.dst == {}", outside.network))),
            ("action", Column::text("drop")),
        ]);
        out.refer(Table::Router, subnet.vpc.as_str(), "policies", key);
    }
}

fn group_rule(out: &mut Content, rule: &RuleRow) {
    let group = port_group(&rule.group);
    let Some(traffic) = expression(rule) else { return };
    let (direction, port) = match rule.direction {
        Direction::Ingress => ("to-lport", "outport"),
        Direction::Egress => ("from-lport", "inport"),
    };
    let key = rule.id.as_str();
    acl(out, key, direction, PRIORITY_GROUP, format!("{port} == @{group} && {traffic}"), "allow-related");
    out.refer(Table::PortGroup, &group, "acls", key);
}

/// What a rule lets through, in OVN's words. None: nothing that can be there (IPv6, as subnets have none).
fn expression(rule: &RuleRow) -> Option<String> {
    let traffic = &rule.traffic;
    let (from, to) = (traffic.from, traffic.to);
    let mut parts = vec!["ip4".to_owned()];
    match traffic.protocol {
        Protocol::All => {}
        Protocol::Tcp | Protocol::Udp => {
            let name = traffic.protocol.to_string();
            parts.push(match (from, to) {
                (0, 65535) => name,
                (from, to) if from == to => format!("{name}.dst == {from}"),
                (from, to) => format!("{name}.dst >= {from} && {name}.dst <= {to}"),
            });
        }
        Protocol::Icmp => {
            parts.push("icmp4".into());
            parts.extend((from >= 0).then(|| format!("icmp4.type == {from}")));
            parts.extend((to >= 0).then(|| format!("icmp4.code == {to}")));
        }
        Protocol::Icmpv6 => return None,
        Protocol::Number(number) => parts.push(format!("ip.proto == {number}")),
    }
    let side = match rule.direction {
        Direction::Ingress => "src",
        Direction::Egress => "dst",
    };
    match &traffic.peer {
        Peer::Ipv4(cidr) if cidr.length() == 0 => {}
        Peer::Ipv4(cidr) => parts.push(format!("ip4.{side} == {cidr}")),
        Peer::Ipv6(_) => return None,
        // northd keeps an address set for every port group.
        Peer::Group(id) => parts.push(format!("ip4.{side} == ${}_ip4", port_group(id))),
    }
    Some(parts.join(" && "))
}

fn port(out: &mut Content, interface: &InterfaceRow) {
    let name = interface.port.to_string();
    let address = format!("{} {}", interface.mac, interface.address);
    // Without the check an instance may forward for others, but is still held to its own MAC.
    let security = if interface.source_dest_check { address.clone() } else { interface.mac.clone() };
    let instance = interface.instance.as_ref().map(|i| i.as_str()).unwrap_or_default();
    out.add(Table::SwitchPort, name.clone(), &[("interface", interface.id.as_str()), ("instance", instance)], [
        ("name", Column::text(name.clone())),
        ("type", Column::text("")),
        ("addresses", Column::set([address])),
        ("port_security", Column::set([security])),
        ("enabled", Column::Flag(!interface.released)),
        ("options", Column::map::<&str, &str>([])),
        ("dhcpv4_options", Column::rows(Table::DhcpOptions, [interface.subnet.as_str()])),
    ]);
    out.refer(Table::Switch, interface.subnet.as_str(), "ports", name.clone());
    out.refer(Table::PortGroup, DROP, "ports", name.clone());
    for group in &interface.groups {
        out.refer(Table::PortGroup, &port_group(&group.group_id), "ports", name.clone());
    }
    if let Some(public) = interface.public_ip() {
        let key = interface.elastic.as_ref().map_or_else(|| format!("auto-{}", interface.id), |e| e.allocation.to_string());
        nat(out, key.clone(), "dnat_and_snat", public, interface.address.to_string());
        out.refer(Table::Router, interface.vpc.as_str(), "nat", key);
    }
}

#[cfg(test)]
mod tests;
