//! From the rows of the network to northbound content. Pure.
//!
//! ```text
//! host ── mallee-ext (localnet) ── outer-vpc-… ─ vpc-… (router) ─ inner-subnet-… ── subnet-… ── port of an interface
//!                                                   └─ service-vpc-… ── service switch ── metadata-vpc-… (localport)
//! ```
//!
//! - What reaches an interface is decided by ACLs: port group `mallee_drop` holds every port and drops all IP at priority
//!   1000, but lets DHCP and metadata through at 2000; each security group is a port group whose rules allow at 1002.
//! - An outside address of an interface is a `dnat_and_snat`. In the default VPC instances without one leave by their
//!   router's own address, which AWS would not let them; everything that wants to reach them from outside is dropped, as at
//!   AWS. In other VPCs they do not leave: what a router lets out without having translated it is dropped on the outside
//!   switch.
//! - Route tables are OVN's own: a router port names its table (`options:route_table`), a route belongs to one. See [`route`].
//! - A network ACL is policies of the router, at the edge of the subnet. See [`nacl`].
//! - A peering connection is a switch between two routers. See [`peering`].
//! - IPv6 is not translated on its way in and out; see [`ipv6`].
//! - A private L2 subnet is a switch that hangs on nothing. See [`private`].
//! - What is refused of an interface with a flow log is told to its node: see [`flow_log`].
//! - A subnet whose table has no way out may not reach the outside link either, which the router is connected to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use mallee_aws::id::{PrefixListId, SecurityGroupId, SubnetId, VpcId};

mod flow_log;
mod ipv6;
mod nacl;
mod peering;
mod private;
mod route;

use super::{
    Cidr, Cidr6, Net,
    northbound::{Column, Content, Table},
    wanted::Wanted,
};
use crate::{
    ec2::{
        dhcp_options::{DhcpOptionsRow, OWN_DNS},
        interface::{InterfaceRow, Kind},
        route_table::RouteTableRow,
        security_group::{Direction, Peer, Protocol, RuleRow, Traffic},
        subnet::SubnetRow,
        vpc::{self, VpcRow},
    },
    refusal::Refusal,
};

/// The outside network, from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    pub network: Cidr,
    /// Elastic IPs, which may be on another network that is routed here.
    pub elastic: Cidr,
    pub gateway: Ipv4Addr,
    /// Chassis map this name to their bridge to it.
    pub physical: String,
    /// Most wanted first.
    pub chassis: Vec<String>,
    pub dns: Option<Ipv4Addr>,
    /// The outside network's own IPv6 addresses.
    pub ipv6: Cidr6,
}

impl Outside {
    pub fn of(config: &crate::config::Network) -> Result<Self, Refusal> {
        let read = |name: &str, text: &str| {
            text.parse().map_err(|()| Refusal::internal(format!("network.{name} = {text:?} is no IPv4 network")))
        };
        Ok(Self {
            network: read("outside", &config.outside)?,
            elastic: read("elastic", &config.elastic)?,
            gateway: config.gateway,
            physical: config.physical.clone(),
            chassis: config.gateway_chassis.clone(),
            dns: config.dns,
            ipv6: config.outside_ipv6.parse().map_err(|()| {
                Refusal::internal(format!("network.outside_ipv6 = {:?} is no IPv6 network", config.outside_ipv6))
            })?,
        })
    }
}

const EXT: &str = "mallee-ext";
const DROP: &str = "mallee_drop";
/// The routers' ports on the outside switch.
const OUTER: &str = "mallee_outer";
/// What leaves by them, and what enters, with a private address.
const UNTRANSLATED: [&str; 2] = ["outside-leaving", "outside-entering"];
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where nodes answer names. AWS has this address beside the VPC's third.
const NAMES: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
const SERVICE_ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 1);
/// Geneve over a link of 1500.
const MTU: &str = "1442";
const LEASE_SECONDS: &str = "3600";
const PRIORITY_DROP: i64 = 1000;
const PRIORITY_GROUP: i64 = 1002;
const PRIORITY_BASE: i64 = 2000;
/// Of a router's policies: what is closed to a subnet, what its network ACL drops, what peers may not reach, and, above
/// all, what nothing may come between.
const POLICY_CLOSED: i64 = 1000;
const POLICY_NACL: i64 = 2000;
const POLICY_PEER: i64 = 2500;
const POLICY_SERVICE: i64 = 3000;

pub fn render(wanted: &Wanted, outside: &Outside) -> Content {
    let mut out = Content::default();
    shared(&mut out, outside);
    for vpc in &wanted.vpcs {
        router(&mut out, vpc, outside);
        service(&mut out, vpc);
    }
    let tables = route::Tables::new(wanted);
    peering::render(&mut out, wanted, outside);
    route::render(&mut out, wanted, &tables, outside);
    let vpcs: BTreeMap<_, _> = wanted.vpcs.iter().map(|vpc| (&vpc.id, vpc)).collect();
    let options: BTreeMap<_, _> = wanted.dhcp_options.iter().map(|set| (&set.id, set)).collect();
    for subnet in wanted.routed() {
        let vpc = vpcs.get(&subnet.vpc).copied();
        let set = vpc.and_then(|vpc| vpc.dhcp_options.as_ref()).and_then(|id| options.get(id).copied());
        let table = tables.of(subnet);
        switch(&mut out, subnet, table);
        let own_dns = outside.dns.unwrap_or(NAMES);
        dhcp(&mut out, subnet, set, Some(own_dns).filter(|_| vpc.is_some_and(|v| v.dns_support)));
        if !table.is_some_and(|t| route::leads_to(t, outside.network)) {
            closed(&mut out, subnet, outside);
        }
    }
    ipv6::render(&mut out, wanted, &tables, outside);
    flow_log::render(&mut out, wanted);
    nacl::render(&mut out, wanted);
    for list in &wanted.prefix_lists {
        address_set(&mut out, address_set_of(&list.id), list.nets());
    }
    for group in &wanted.groups {
        out.add(
            Table::PortGroup,
            port_group(&group.id),
            &[("group", group.id.as_str())],
            [
                ("name", Column::text(port_group(&group.id))),
                ("ports", none(Table::SwitchPort)),
                ("acls", none(Table::Acl)),
            ],
        );
    }
    let families = Families::new(wanted);
    for rule in &wanted.rules {
        group_rule(&mut out, rule, &families);
    }
    let private = private::render(&mut out, wanted);
    for interface in wanted.interfaces.iter().filter(|i| i.kind == Kind::Interface) {
        match private.contains(&interface.subnet) {
            true => private::port(&mut out, interface),
            false => port(&mut out, interface),
        }
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

/// The name of a prefix list's address set.
fn address_set_of(list: &PrefixListId) -> String {
    list.as_str().replace('-', "_")
}

fn address_set(out: &mut Content, name: String, nets: impl Iterator<Item = Net>) {
    let addresses = Column::set(nets.map(|net| net.to_string()));
    out.add(Table::AddressSet, name.clone(), &[], [("name", Column::Text(name)), ("addresses", addresses)]);
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
    out.add(
        Table::Switch,
        EXT,
        &[],
        [
            ("name", Column::text(EXT)),
            ("ports", Column::rows(Table::SwitchPort, [localnet.as_str()])),
            ("acls", none(Table::Acl)),
            ("other_config", Column::map::<&str, &str>([])),
        ],
    );
    let (network, elastic) = (outside.network, outside.elastic);
    let elsewhere = |side: &str| {
        let elastic = if network.covers(&elastic) { String::new() } else { format!(" && ip4.{side} != {elastic}") };
        format!("ip4 && ip4.{side} != {network}{elastic}")
    };
    let (leaving, entering) =
        (format!("inport == @{OUTER} && {}", elsewhere("src")), format!("outport == @{OUTER} && {}", elsewhere("dst")));
    acl(out, UNTRANSLATED[0], "from-lport", PRIORITY_DROP, leaving, "drop");
    acl(out, UNTRANSLATED[1], "to-lport", PRIORITY_DROP, entering, "drop");
    out.add(
        Table::PortGroup,
        OUTER,
        &[],
        [
            ("name", Column::text(OUTER)),
            ("ports", none(Table::SwitchPort)),
            ("acls", Column::rows(Table::Acl, UNTRANSLATED)),
        ],
    );
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
            "base-dhcpv6",
            "from-lport",
            PRIORITY_BASE,
            format!("inport == @{DROP} && ip6 && udp.src == 546 && udp.dst == 547"),
            "allow",
        ),
        // Addresses are given by the switch: who else answers for it lies. (That a way is advertised by another than the
        // router is what OVN cannot be asked to drop: its ACLs let all of neighbour discovery pass.)
        (
            "base-no-dhcp-server",
            "from-lport",
            PRIORITY_BASE,
            format!("inport == @{DROP} && ip4 && udp.src == 67 && udp.dst == 68"),
            "drop",
        ),
        (
            "base-no-dhcpv6-server",
            "from-lport",
            PRIORITY_BASE,
            format!("inport == @{DROP} && ip6 && udp.src == 547 && udp.dst == 546"),
            "drop",
        ),
        (
            "base-metadata",
            "from-lport",
            PRIORITY_BASE,
            format!("inport == @{DROP} && ip4.dst == {METADATA} && tcp.dst == 80"),
            "allow-related",
        ),
        (
            "base-names",
            "from-lport",
            PRIORITY_BASE,
            format!("inport == @{DROP} && ip4.dst == {NAMES} && (udp.dst == 53 || tcp.dst == 53)"),
            "allow-related",
        ),
    ];
    out.add(
        Table::PortGroup,
        DROP,
        &[],
        [
            ("name", Column::text(DROP)),
            ("ports", none(Table::SwitchPort)),
            ("acls", Column::rows(Table::Acl, rules.iter().map(|r| r.0))),
        ],
    );
    for (key, direction, priority, expression, action) in rules {
        acl(out, key, direction, priority, expression, action);
    }
}

fn acl(out: &mut Content, key: &str, direction: &str, priority: i64, expression: String, action: &str) {
    out.add(
        Table::Acl,
        key,
        &[],
        [
            ("direction", Column::text(direction)),
            ("priority", Column::Number(priority)),
            ("match", Column::Text(expression)),
            ("action", Column::text(action)),
        ],
    );
}

/// A port of a switch that is no interface of an instance.
fn switch_port<const A: usize, const O: usize>(
    out: &mut Content,
    name: &str,
    kind: &str,
    addresses: [String; A],
    options: [(&str, &str); O],
) {
    out.add(
        Table::SwitchPort,
        name,
        &[],
        [
            ("name", Column::text(name)),
            ("type", Column::text(kind)),
            ("addresses", Column::set(addresses)),
            ("port_security", Column::set([""; 0])),
            ("enabled", Column::set([""; 0])),
            ("options", Column::map(options)),
            ("dhcpv4_options", none(Table::DhcpOptions)),
            ("dhcpv6_options", none(Table::DhcpOptions)),
        ],
    );
}

/// Both ends of a link between a router and a switch.
struct Link<'a> {
    port: String,
    mac: &'a str,
    networks: Vec<String>,
    /// What the router advertises there.
    advertised: &'a [(&'a str, &'a str)],
    /// Of the router's end.
    options: BTreeMap<String, String>,
    /// Of the switch's end, beside the name of the router's.
    switch_options: Vec<(&'a str, &'a str)>,
    chassis: Vec<String>,
}

/// Adds both ends; the answer is the name of the switch's, for its `ports`.
fn link(out: &mut Content, router: &str, link: Link<'_>) -> String {
    out.add(
        Table::RouterPort,
        link.port.clone(),
        &[],
        [
            ("name", Column::text(link.port.clone())),
            ("mac", Column::text(link.mac)),
            ("networks", Column::set(link.networks)),
            ("gateway_chassis", Column::rows(Table::GatewayChassis, link.chassis)),
            ("options", Column::Map(link.options)),
            ("ipv6_ra_configs", Column::map(link.advertised.iter().copied())),
        ],
    );
    out.refer(Table::Router, router, "ports", link.port.clone());
    let peer = format!("{}-peer", link.port);
    let options = link.switch_options.into_iter().chain([("router-port", link.port.as_str())]);
    out.add(
        Table::SwitchPort,
        peer.clone(),
        &[],
        [
            ("name", Column::text(peer.clone())),
            ("type", Column::text("router")),
            ("addresses", Column::set(["router"])),
            ("port_security", Column::set([""; 0])),
            ("enabled", Column::set([""; 0])),
            ("options", Column::map(options)),
            ("dhcpv4_options", none(Table::DhcpOptions)),
            ("dhcpv6_options", none(Table::DhcpOptions)),
        ],
    );
    peer
}

fn router(out: &mut Content, vpc: &VpcRow, outside: &Outside) {
    let mut translated = Vec::new();
    if vpc.is_default {
        for cidr in vpc.blocks() {
            let key = if cidr == vpc.cidr { format!("snat-{}", vpc.id) } else { format!("snat-{}-{cidr}", vpc.id) };
            nat(out, key.clone(), "snat", vpc.outer_address, cidr.to_string());
            translated.push(key);
        }
    }
    out.add(
        Table::Router,
        vpc.id.as_str(),
        &[("account", &vpc.account)],
        [
            ("name", Column::text(vpc.id.as_str())),
            ("ports", none(Table::RouterPort)),
            ("static_routes", none(Table::StaticRoute)),
            ("policies", none(Table::Policy)),
            ("nat", Column::rows(Table::Nat, translated)),
            ("options", Column::map::<&str, &str>([])),
        ],
    );
    let port = outer_port(&vpc.id);
    let chassis = chassis(out, &port, outside);
    let peer = link(
        out,
        vpc.id.as_str(),
        Link {
            port,
            mac: &vpc.outer_mac,
            networks: std::iter::once(format!("{}/{}", vpc.outer_address, outside.network.length()))
                .chain(vpc.ipv6.as_ref().map(|_| ipv6::outer_network(vpc, outside)))
                .collect(),
            advertised: &[],
            options: BTreeMap::new(),
            // The router's own and its NAT addresses are announced when they move to another chassis.
            switch_options: vec![("nat-addresses", "router")],
            chassis,
        },
    );
    out.refer(Table::PortGroup, OUTER, "ports", peer.clone());
    out.refer(Table::Switch, EXT, "ports", peer);
}

/// Which chassis carry a port to the outside, most wanted first.
fn chassis(out: &mut Content, port: &str, outside: &Outside) -> Vec<String> {
    let mut chassis = Vec::new();
    for (name, priority) in outside.chassis.iter().zip((1..=i64::try_from(outside.chassis.len()).unwrap_or(1)).rev()) {
        let key = format!("{port}-{name}");
        out.add(
            Table::GatewayChassis,
            key.clone(),
            &[],
            [
                ("name", Column::text(key.clone())),
                ("chassis_name", Column::text(name)),
                ("priority", Column::Number(priority)),
            ],
        );
        chassis.push(key);
    }
    chassis
}

fn nat(out: &mut Content, key: String, kind: &str, outer: impl Into<IpAddr>, inner: String) {
    nat_towards(out, key, kind, outer, inner, None);
}

/// One that is only for what goes to an address set.
fn nat_towards(
    out: &mut Content,
    key: String,
    kind: &str,
    outer: impl Into<IpAddr>,
    inner: String,
    towards: Option<String>,
) {
    out.add(
        Table::Nat,
        key,
        &[],
        [
            ("type", Column::text(kind)),
            ("external_ip", Column::text(outer.into().to_string())),
            ("logical_ip", Column::Text(inner)),
            ("allowed_ext_ips", Column::rows(Table::AddressSet, towards)),
        ],
    );
}

/// The network of 169.254.169.254.
fn service(out: &mut Content, vpc: &VpcRow) {
    let switch = service_switch(&vpc.id);
    let metadata = vpc::metadata_port(&vpc.id);
    let peer = link(
        out,
        vpc.id.as_str(),
        Link {
            port: format!("{switch}-router"),
            mac: &vpc.service_mac,
            networks: vec![format!("{SERVICE_ROUTER}/24")],
            advertised: &[],
            options: BTreeMap::new(),
            switch_options: Vec::new(),
            chassis: Vec::new(),
        },
    );
    // Network ACLs do not come between an instance and its metadata.
    let port = format!("{switch}-router");
    let between = format!("inport == \"{port}\" || outport == \"{port}\"");
    policy(out, &vpc.id, format!("service-{}", vpc.id), POLICY_SERVICE, between, "allow");
    switch_port(out, &metadata, "localport", [format!("{} {METADATA} {NAMES}", vpc.metadata_mac)], []);
    out.add(
        Table::Switch,
        switch.clone(),
        &[("vpc", vpc.id.as_str())],
        [
            ("name", Column::text(switch)),
            ("ports", Column::rows(Table::SwitchPort, [peer, metadata])),
            ("acls", none(Table::Acl)),
            ("other_config", Column::map::<&str, &str>([])),
        ],
    );
}

fn policy(out: &mut Content, router: &VpcId, key: String, priority: i64, expression: String, action: &str) {
    out.add(
        Table::Policy,
        key.clone(),
        &[],
        [("priority", Column::Number(priority)), ("match", Column::Text(expression)), ("action", Column::text(action))],
    );
    out.refer(Table::Router, router.as_str(), "policies", key);
}

fn switch(out: &mut Content, subnet: &SubnetRow, table: Option<&RouteTableRow>) {
    let peer = link(
        out,
        subnet.vpc.as_str(),
        Link {
            port: inner_port(&subnet.id),
            mac: &subnet.router_mac,
            networks: std::iter::once(format!("{}/{}", subnet.router(), subnet.cidr.length()))
                .chain(subnet.ipv6.as_ref().map(|(_, cidr)| ipv6::router_network(cidr)))
                .collect(),
            advertised: if subnet.ipv6.is_some() { ipv6::ADVERTISED } else { &[] },
            options: table.map(|t| ("route_table".to_owned(), t.id.to_string())).into_iter().collect(),
            switch_options: Vec::new(),
            chassis: Vec::new(),
        },
    );
    out.add(
        Table::Switch,
        subnet.id.as_str(),
        &[("vpc", subnet.vpc.as_str())],
        [
            ("name", Column::text(subnet.id.as_str())),
            ("ports", Column::rows(Table::SwitchPort, [peer])),
            ("acls", none(Table::Acl)),
            ("other_config", Column::map::<&str, &str>([])),
        ],
    );
}

/// What instances of a subnet are told with their address. `own_dns`: what AmazonProvidedDNS stands for.
fn dhcp(out: &mut Content, subnet: &SubnetRow, set: Option<&DhcpOptionsRow>, own_dns: Option<Ipv4Addr>) {
    let router = subnet.router().to_string();
    let mut options = vec![
        ("server_id", router.clone()),
        ("server_mac", subnet.router_mac.clone()),
        ("router", router),
        ("lease_time", LEASE_SECONDS.to_owned()),
        ("mtu", MTU.to_owned()),
    ];
    for (name, values) in set.iter().flat_map(|set| &set.options) {
        let list = |values: &[String]| match values {
            [only] => only.clone(),
            several => format!("{{{}}}", several.join(", ")),
        };
        let first = values.first().cloned().unwrap_or_default();
        match name.as_str() {
            "domain-name" => options.push(("domain_name", format!("\"{first}\""))),
            "domain-name-servers" if first == OWN_DNS => {
                options.extend(own_dns.map(|dns| ("dns_server", dns.to_string())))
            }
            "domain-name-servers" => options.push(("dns_server", list(values))),
            "ntp-servers" => options.push(("ntp_server", list(values))),
            "netbios-name-servers" => options.push(("netbios_name_server", list(values))),
            "netbios-node-type" => options.push(("netbios_node_type", first)),
            _ => {}
        }
    }
    out.add(
        Table::DhcpOptions,
        subnet.id.as_str(),
        &[],
        [("cidr", Column::text(subnet.cidr.to_string())), ("options", Column::map(options))],
    );
}

fn closed(out: &mut Content, subnet: &SubnetRow, outside: &Outside) {
    let expression = format!("inport == \"{}\" && ip4.dst == {}", inner_port(&subnet.id), outside.network);
    policy(out, &subnet.vpc, format!("closed-{}", subnet.id), POLICY_CLOSED, expression, "drop");
}

/// Who speaks which family.
struct Families<'a> {
    /// Groups of VPCs that have IPv6.
    dual: BTreeSet<&'a SecurityGroupId>,
    ipv6_lists: BTreeSet<&'a PrefixListId>,
}

impl<'a> Families<'a> {
    fn new(wanted: &'a Wanted) -> Self {
        let vpcs: BTreeSet<_> = wanted.vpcs.iter().filter(|v| v.ipv6.is_some()).map(|v| &v.id).collect();
        Self {
            dual: wanted.groups.iter().filter(|g| vpcs.contains(&g.vpc)).map(|g| &g.id).collect(),
            ipv6_lists: wanted.prefix_lists.iter().filter(|l| l.is_ipv6).map(|l| &l.id).collect(),
        }
    }
}

fn group_rule(out: &mut Content, rule: &RuleRow, families: &Families<'_>) {
    let group = port_group(&rule.group);
    let Some(traffic) = expression(rule, families) else { return };
    let (direction, port) = match rule.direction {
        Direction::Ingress => ("to-lport", "outport"),
        Direction::Egress => ("from-lport", "inport"),
    };
    let key = rule.id.as_str();
    acl(out, key, direction, PRIORITY_GROUP, format!("{port} == @{group} && {traffic}"), "allow-related");
    out.refer(Table::PortGroup, &group, "acls", key);
}

/// What a rule lets through, in OVN's words. None: nothing that can be there (ICMP of the other family).
fn expression(rule: &RuleRow, families: &Families<'_>) -> Option<String> {
    let side = match rule.direction {
        Direction::Ingress => "src",
        Direction::Egress => "dst",
    };
    let protocol = rule.traffic.protocol;
    let of = |family: &'static str, peer: Option<String>| {
        let mut parts = vec![family.to_owned()];
        parts.extend(traffic(&rule.traffic));
        parts.extend(peer.map(|peer| format!("{family}.{side} == {peer}")));
        let other = if family == "ip4" { Protocol::Icmpv6 } else { Protocol::Icmp };
        (protocol != other).then(|| parts.join(" && "))
    };
    match &rule.traffic.peer {
        Peer::Ipv4(cidr) => of("ip4", (cidr.length() > 0).then(|| cidr.to_string())),
        Peer::Ipv6(cidr) => of("ip6", (cidr.length() > 0).then(|| cidr.to_string())),
        Peer::PrefixList(id) => {
            let family = if families.ipv6_lists.contains(id) { "ip6" } else { "ip4" };
            of(family, Some(format!("${}", address_set_of(id))))
        }
        // northd keeps address sets for every port group.
        Peer::Group(id) => {
            let name = port_group(id);
            let ipv6 = || of("ip6", Some(format!("${name}_ip6"))).filter(|_| families.dual.contains(id));
            match (of("ip4", Some(format!("${name}_ip4"))), ipv6()) {
                (Some(ipv4), Some(ipv6)) => Some(format!("(({ipv4}) || ({ipv6}))")),
                (ipv4, ipv6) => ipv4.or(ipv6),
            }
        }
    }
}

/// Protocol and ports of a rule; nothing for all.
fn traffic(traffic: &Traffic) -> Vec<String> {
    let (from, to) = (traffic.from, traffic.to);
    match traffic.protocol {
        Protocol::All => Vec::new(),
        Protocol::Tcp | Protocol::Udp => {
            let name = traffic.protocol.to_string();
            vec![match (from, to) {
                (0, 65535) => name,
                (from, to) if from == to => format!("{name}.dst == {from}"),
                (from, to) => format!("{name}.dst >= {from} && {name}.dst <= {to}"),
            }]
        }
        Protocol::Icmp | Protocol::Icmpv6 => {
            let name = if traffic.protocol == Protocol::Icmp { "icmp4" } else { "icmp6" };
            let mut parts = vec![name.to_owned()];
            parts.extend((from >= 0).then(|| format!("{name}.type == {from}")));
            parts.extend((to >= 0).then(|| format!("{name}.code == {to}")));
            parts
        }
        Protocol::Number(number) => vec![format!("ip.proto == {number}")],
    }
}

/// Whose port it is.
fn interface_tags(interface: &InterfaceRow) -> [(&str, &str); 2] {
    let instance = interface.instance.as_ref().map(|i| i.as_str()).unwrap_or_default();
    [("interface", interface.id.as_str()), ("instance", instance)]
}

fn port(out: &mut Content, interface: &InterfaceRow) {
    let name = interface.port.to_string();
    // The first one is what DHCP gives.
    let ipv4 = interface.addresses().map(|a| a.to_string());
    let addresses: Vec<String> = ipv4.chain(interface.ipv6.iter().map(|a| a.to_string())).collect();
    let address = format!("{} {}", interface.mac, addresses.join(" "));
    // Without the check an instance may forward for others, but is still held to its own MAC.
    let security = if interface.source_dest_check { address.clone() } else { interface.mac.clone() };
    let dhcpv6 = (!interface.ipv6.is_empty()).then(|| ipv6::dhcp_key(&interface.subnet));
    out.add(
        Table::SwitchPort,
        name.clone(),
        &interface_tags(interface),
        [
            ("name", Column::text(name.clone())),
            ("type", Column::text("")),
            ("addresses", Column::set([address])),
            ("port_security", Column::set([security])),
            ("enabled", Column::Flag(!interface.released)),
            ("options", Column::map::<&str, &str>([])),
            ("dhcpv4_options", Column::rows(Table::DhcpOptions, [interface.subnet.as_str()])),
            ("dhcpv6_options", Column::rows(Table::DhcpOptions, dhcpv6)),
        ],
    );
    out.refer(Table::Switch, interface.subnet.as_str(), "ports", name.clone());
    out.refer(Table::PortGroup, DROP, "ports", name.clone());
    for group in &interface.groups {
        out.refer(Table::PortGroup, &port_group(&group.group_id), "ports", name.clone());
    }
    let elastics = interface.elastics().map(|e| (e.allocation.to_string(), e.public_ip, e.private_ip));
    let automatic = interface.automatic_ip.filter(|_| interface.elastic.is_none());
    let automatic = automatic.map(|public| (format!("auto-{}", interface.id), public, interface.address));
    for (key, public, private) in elastics.chain(automatic) {
        nat(out, key.clone(), "dnat_and_snat", public, private.to_string());
        out.refer(Table::Router, interface.vpc.as_str(), "nat", key);
    }
}

#[cfg(test)]
pub(in crate::network) mod tests;
