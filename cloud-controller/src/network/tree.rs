//! The network as a tree, for people: `mallee net show`. Pure.

use mallee_tiers::{NetworkThing, NetworkTree};

use super::wanted::Wanted;
use crate::ec2::{
    interface::InterfaceRow,
    network_acl::NetworkAclRow,
    route_table::RouteTableRow,
    security_group::{Direction, GroupRow, RuleRow},
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
    NetworkThing {
        id: vpc.id.to_string(),
        text: format!("{} of account {}{default}; leaves as {}", nets.join(", "), vpc.account, vpc.outer_address),
        leads_to: Vec::new(),
        inside: subnets.chain(tables).chain(acls).chain(groups).chain(peerings).collect(),
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
    let interfaces = wanted.interfaces.iter().filter(|i| i.subnet == subnet.id).filter(worn).map(of_interface);
    NetworkThing {
        id: subnet.id.to_string(),
        text: format!("{} in {}{}", nets.join(", "), subnet.zone, if routed { "" } else { ", private L2" }),
        leads_to,
        inside: nats.chain(interfaces).collect(),
    }
}

fn of_interface(interface: &InterfaceRow) -> NetworkThing {
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
