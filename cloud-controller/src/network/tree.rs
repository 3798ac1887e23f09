//! The network as a tree, for people: `mallee net show`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use mallee_tiers::{NetworkThing, NetworkTree};

use super::wanted::Wanted;
use crate::ec2::{
    dhcp_options::DhcpOptionsRow,
    interface::InterfaceRow,
    network_acl::NetworkAclRow,
    prefix_list::PrefixListRow,
    route_table::{Destination, RouteTableRow, Target},
    security_group::{Direction, GroupRow, Peer, RuleRow},
    subnet::{Kind, SubnetRow},
    vpc::VpcRow,
};

pub fn tree(wanted: &Wanted) -> NetworkTree {
    NetworkTree { vpcs: wanted.vpcs.iter().map(|vpc| of_vpc(wanted, vpc)).collect() }
}

fn of_vpc(wanted: &Wanted, vpc: &VpcRow) -> NetworkThing {
    let nets: Vec<String> = vpc.nets().map(|net| net.to_string()).collect();
    let default = if vpc.is_default { ", the default VPC" } else { "" };
    let subnets = wanted.subnets.iter().filter(|s| s.vpc == vpc.id).map(|s| of_subnet(wanted, s));
    let tables = wanted.route_tables.iter().filter(|t| t.vpc == vpc.id).map(of_table);
    let acls = wanted.acls.iter().filter(|a| a.vpc == vpc.id).map(of_acl);
    let groups = wanted.groups.iter().filter(|g| g.vpc == vpc.id).map(|g| of_group(wanted, g));
    let peerings = wanted.peerings.iter().filter(|p| p.is_of(&vpc.id)).map(|p| NetworkThing {
        id: p.id.to_string(),
        text: format!("peering of {} and {}", p.requester.vpc, p.accepter.vpc),
        ..NetworkThing::default()
    });
    let options = wanted.dhcp_options.iter().filter(|set| vpc.dhcp_options.as_ref() == Some(&set.id)).map(of_options);
    let first = subnets.chain(of_ways(wanted, vpc)).chain(tables).chain(acls).chain(groups);
    NetworkThing {
        id: vpc.id.to_string(),
        text: format!("{} of account {}{default}; leaves as {}", nets.join(", "), vpc.account, vpc.outer_address),
        leads_to: Vec::new(),
        inside: first.chain(of_lists(wanted, vpc)).chain(peerings).chain(options).collect(),
    }
}

/// The gateways and endpoints that routes of the VPC lead to.
fn of_ways(wanted: &Wanted, vpc: &VpcRow) -> Vec<NetworkThing> {
    let mut ways: BTreeMap<&str, String> = BTreeMap::new();
    for route in wanted.route_tables.iter().filter(|t| t.vpc == vpc.id).flat_map(|t| &t.routes) {
        let text = match &route.target {
            Target::Gateway(_) => "internet gateway".to_owned(),
            Target::EgressOnly(_) => "egress-only internet gateway".to_owned(),
            Target::Endpoint(_) => format!("endpoint for {}", route.destination),
            Target::Nat(_) | Target::Interface(_) | Target::Peering(_) => continue,
        };
        ways.insert(route.target.as_str(), text);
    }
    let thing = |(id, text): (&str, String)| NetworkThing { id: id.to_owned(), text, ..NetworkThing::default() };
    ways.into_iter().map(thing).collect()
}

/// The prefix lists that the VPC's rules and routes name.
fn of_lists(wanted: &Wanted, vpc: &VpcRow) -> Vec<NetworkThing> {
    let groups: BTreeSet<_> = wanted.groups.iter().filter(|g| g.vpc == vpc.id).map(|g| &g.id).collect();
    let in_rules =
        wanted.rules.iter().filter(|r| groups.contains(&r.group)).filter_map(|rule| match &rule.traffic.peer {
            Peer::PrefixList(id) => Some(id),
            _ => None,
        });
    let routes = wanted.route_tables.iter().filter(|t| t.vpc == vpc.id).flat_map(|t| &t.routes);
    let in_routes = routes.filter_map(|route| match &route.destination {
        Destination::PrefixList(id) => Some(id),
        Destination::Net(_) => None,
    });
    let named: BTreeSet<_> = in_rules.chain(in_routes).collect();
    wanted.prefix_lists.iter().filter(|list| named.contains(&list.id)).map(of_list).collect()
}

fn of_list(list: &PrefixListRow) -> NetworkThing {
    let nets: Vec<String> = list.nets().map(|net| net.to_string()).collect();
    NetworkThing {
        id: list.id.to_string(),
        text: format!("prefix list {}, version {}: {}", list.name, list.version, nets.join(", ")),
        ..NetworkThing::default()
    }
}

fn of_options(set: &DhcpOptionsRow) -> NetworkThing {
    let options: Vec<String> =
        set.options.iter().map(|(name, values)| format!("{name} {}", values.join(" "))).collect();
    NetworkThing {
        id: set.id.to_string(),
        text: format!("DHCP options: {}", options.join(", ")),
        ..NetworkThing::default()
    }
}

fn of_subnet(wanted: &Wanted, subnet: &SubnetRow) -> NetworkThing {
    let mut nets = vec![subnet.cidr.to_string()];
    nets.extend(subnet.ipv6.iter().map(|(_, cidr)| cidr.to_string()));
    let routed = subnet.kind == Kind::Routed;
    let own = wanted.route_tables.iter().find(|t| t.associations.iter().any(|a| a.subnet.as_ref() == Some(&subnet.id)));
    let main = || wanted.route_tables.iter().find(|t| t.vpc == subnet.vpc && t.is_main());
    let table = own.or_else(main).filter(|_| routed);
    let acl = wanted.acls.iter().find(|a| a.associations.iter().any(|(_, of)| *of == subnet.id));
    let leads_to = table.map(|t| t.id.to_string()).into_iter().chain(acl.map(|a| a.id.to_string())).collect();
    let nats = wanted.nat_gateways.iter().filter(|n| n.subnet == subnet.id).map(|n| NetworkThing {
        id: n.id.to_string(),
        text: format!("NAT gateway {} as {}, {}", n.private_ip, n.public_ip, n.state.as_str()),
        ..NetworkThing::default()
    });
    // Those of NAT gateways are told with them.
    let worn = |i: &&InterfaceRow| !wanted.nat_gateways.iter().any(|n| n.interface == i.id);
    let interfaces = wanted.interfaces.iter().filter(|i| i.subnet == subnet.id).filter(worn);
    let interfaces = interfaces.map(|i| of_interface(i, wanted.flow_logged.contains(&i.id)));
    NetworkThing {
        id: subnet.id.to_string(),
        text: format!("{} in {}{}", nets.join(", "), subnet.zone, if routed { "" } else { ", private L2" }),
        leads_to,
        inside: nats.chain(interfaces).collect(),
    }
}

fn of_interface(interface: &InterfaceRow, logged: bool) -> NetworkThing {
    let ipv4 = interface.addresses().map(|a| a.to_string());
    let addresses: Vec<String> = ipv4.chain(interface.ipv6.iter().map(|a| a.to_string())).collect();
    let mut text = addresses.join(", ");
    if let Some(public) = interface.public_ip() {
        text += &format!(", public {public}");
    }
    match &interface.instance {
        Some(instance) => text += &format!(" at {instance}"),
        None => text += ", free",
    }
    if logged {
        text += ", its flows are logged";
    }
    NetworkThing {
        id: interface.id.to_string(),
        text,
        leads_to: interface.groups.iter().map(|g| g.group_id.to_string()).collect(),
        inside: Vec::new(),
    }
}

fn of_table(table: &RouteTableRow) -> NetworkThing {
    let routes = table.routes.iter().map(|route| {
        let state = if route.active { "" } else { ", a black hole" };
        NetworkThing {
            id: route.destination.to_string(),
            text: format!("to {}{state}", route.target.as_str()),
            leads_to: vec![route.target.as_str().to_owned()],
            inside: Vec::new(),
        }
    });
    NetworkThing {
        id: table.id.to_string(),
        text: if table.is_main() { "the main route table".into() } else { "route table".into() },
        leads_to: Vec::new(),
        inside: routes.collect(),
    }
}

fn of_acl(acl: &NetworkAclRow) -> NetworkThing {
    let entries = acl.entries.iter().map(|entry| {
        let (way, side) = if entry.egress { ("out", "to") } else { ("in", "from") };
        let does = if entry.allow { "allows" } else { "denies" };
        let ports = entry.range.map(|(a, b)| format!(" {a}-{b}")).unwrap_or_default();
        NetworkThing {
            id: format!("{way} {}", entry.number),
            text: format!("{does} protocol {}{ports} {side} {}", entry.protocol, entry.cidr),
            ..NetworkThing::default()
        }
    });
    NetworkThing {
        id: acl.id.to_string(),
        text: if acl.is_default { "the default network ACL".into() } else { "network ACL".into() },
        leads_to: Vec::new(),
        inside: entries.collect(),
    }
}

fn of_group(wanted: &Wanted, group: &GroupRow) -> NetworkThing {
    let rules = wanted.rules.iter().filter(|r| r.group == group.id).map(|rule| NetworkThing {
        id: rule.id.to_string(),
        text: rule_text(rule),
        ..NetworkThing::default()
    });
    NetworkThing {
        id: group.id.to_string(),
        text: format!("security group {}", group.name),
        leads_to: Vec::new(),
        inside: rules.collect(),
    }
}

/// `in tcp 22 from 0.0.0.0/0`.
pub fn rule_text(rule: &RuleRow) -> String {
    let (way, side) = match rule.direction {
        Direction::Ingress => ("in", "from"),
        Direction::Egress => ("out", "to"),
    };
    let ports = match rule.traffic.shown_ports() {
        (Some(from), Some(to)) if from == to => format!(" {from}"),
        (Some(from), Some(to)) => format!(" {from}-{to}"),
        _ => String::new(),
    };
    let protocol = match rule.traffic.protocol.to_string().as_str() {
        "-1" => "everything".to_owned(),
        name => name.to_owned(),
    };
    format!("{way} {protocol}{ports} {side} {}", rule.traffic.peer)
}

#[cfg(test)]
mod tests {
    use mallee_aws::id::{DhcpOptionsId, EgressOnlyInternetGatewayId, PrefixListId, VpcEndpointId};

    use super::*;
    use crate::{
        ec2::{
            prefix_list::Entry,
            route_table::RouteRow,
            security_group::{Protocol, Traffic},
        },
        network::render::tests::{cloud, launch, rule},
    };

    #[test]
    fn all_that_a_vpc_uses_is_in_its_tree_and_nothing_of_another_ones() {
        let mut all = cloud(2);
        launch(&mut all, 0, 1, false);
        let list = |n: u8, cidr: &str| PrefixListRow {
            id: PrefixListId::from_random([n; 9]),
            account: String::new(),
            name: format!("list-{n}"),
            is_ipv6: false,
            max_entries: 5,
            version: 3,
            state: String::new(),
            entries: vec![Entry { cidr: cidr.parse().unwrap(), description: None }],
        };
        all.prefix_lists = vec![list(1, "10.1.0.0/16"), list(2, "10.2.0.0/16"), list(3, "10.3.0.0/16")];
        let route = |destination, target| RouteRow { destination, target, active: true, instance: None };
        let listed = |n: u8| Destination::PrefixList(PrefixListId::from_random([n; 9]));
        let egress = EgressOnlyInternetGatewayId::from_random([1; 9]);
        let endpoint = VpcEndpointId::from_random([1; 9]);
        all.route_tables[0].routes.extend([
            route(Destination::Net("::/0".parse().unwrap()), Target::EgressOnly(egress.clone())),
            route(listed(1), Target::Endpoint(endpoint.clone())),
        ]);
        let peer = Peer::PrefixList(PrefixListId::from_random([2; 9]));
        let traffic = Traffic { protocol: Protocol::Tcp, from: 22, to: 22, peer };
        let group = all.groups[0].id.clone();
        all.rules.push(rule(&group, 1, Direction::Ingress, traffic));
        all.dhcp_options = vec![DhcpOptionsRow {
            id: DhcpOptionsId::from_random([1; 9]),
            account: String::new(),
            options: [("domain-name".to_owned(), vec!["example.org".to_owned()])].into(),
        }];
        all.flow_logged.insert(all.interfaces[0].id.clone());
        let told = |n: usize| -> BTreeMap<String, String> {
            tree(&all).vpcs[n].inside.iter().map(|thing| (thing.id.clone(), thing.text.clone())).collect()
        };
        let (own, other) = (told(0), told(1));
        for (id, text) in [
            (egress.as_str(), "egress-only internet gateway"),
            (endpoint.as_str(), "endpoint for pl-01010101010101010"),
            (all.route_tables[0].routes[0].target.as_str(), "internet gateway"),
            ("pl-01010101010101010", "prefix list list-1, version 3: 10.1.0.0/16"),
            ("pl-02020202020202020", "prefix list list-2, version 3: 10.2.0.0/16"),
            ("dopt-01010101010101010", "DHCP options: domain-name example.org"),
        ] {
            assert_eq!(own.get(id).map(String::as_str), Some(text), "{own:?}");
            assert!(!other.contains_key(id), "{id} is in {other:?}");
        }
        assert!(!own.contains_key("pl-03030303030303030"), "what nobody names is in no VPC");
        let interface = tree(&all).vpcs[0].inside[0].inside[0].text.clone();
        assert!(interface.ends_with(", its flows are logged"), "{interface}");
    }
}
