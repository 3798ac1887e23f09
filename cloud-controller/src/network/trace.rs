//! What `ovn-trace` is to be asked about a packet, and what the rules it meets are called in EC2's words. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use mallee_tiers::{TraceAsked, TracePlan, TraceRule};

use super::{
    northbound::{Column, Columns, Table},
    render::{Outside, render},
    tree::rule_text,
    wanted::Wanted,
};
use crate::ec2::{
    interface::{InterfaceRow, Kind},
    subnet,
};

/// Any port a client would take.
const SOURCE_PORT: u16 = 40_000;

/// The error says what there is not.
pub fn trace(wanted: &Wanted, outside: &Outside, asked: &TraceAsked) -> Result<TracePlan, String> {
    let from =
        interface(wanted, &asked.from).ok_or_else(|| format!("{} is no instance or interface here", asked.from))?;
    let to = interface(wanted, &asked.to);
    let address: IpAddr = match to {
        Some(to) if asked.ipv6 => of_ipv6(to)?,
        // From another VPC it is reached by its public address, if at all.
        Some(to) if to.vpc == from.vpc || peered(wanted, from, to) => to.address.into(),
        Some(to) => to.public_ip().unwrap_or(to.address).into(),
        None => asked.to.parse().map_err(|_| format!("{} is no instance, interface or address", asked.to))?,
    };
    let subnet = wanted.subnets.iter().find(|s| s.id == from.subnet).ok_or("its subnet is gone")?;
    if subnet.kind == subnet::Kind::PrivateL2 {
        return Err(format!(
            "{} is in the private L2 subnet {}: everything there reaches everybody",
            from.id, subnet.id
        ));
    }
    let own: IpAddr = if address.is_ipv6() { of_ipv6(from)? } else { from.address.into() };
    let neighbour = wanted.interfaces.iter().find(|to| to.subnet == from.subnet && wears(to, address));
    let hop = neighbour.map_or(subnet.router_mac.as_str(), |to| to.mac.as_str());
    let (family, echo) = match address {
        IpAddr::V4(_) => ("ip4", "icmp4.type == 8 && icmp4.code == 0"),
        IpAddr::V6(_) => ("ip6", "icmp6.type == 128 && icmp6.code == 0"),
    };
    let flow = match (asked.protocol.as_str(), asked.port) {
        (name @ ("tcp" | "udp"), Some(port)) => format!("{name}.src == {SOURCE_PORT} && {name}.dst == {port}"),
        ("icmp", None) => echo.to_owned(),
        ("icmp", Some(_)) => return Err("icmp has no port".into()),
        ("tcp" | "udp", None) => return Err(format!("{} needs a port", asked.protocol)),
        (other, _) => return Err(format!("the protocol is tcp, udp or icmp, not {other}")),
    };
    let packet = format!(
        "inport == \"{}\" && eth.src == {} && eth.dst == {hop} && {family}.src == {own} && {family}.dst == {address} && ip.ttl == 64 && {flow}",
        from.port, from.mac
    );
    Ok(TracePlan { switch: from.subnet.to_string(), packet, ports: ports(wanted), rules: rules(wanted, outside) })
}

fn interface<'a>(wanted: &'a Wanted, id: &str) -> Option<&'a InterfaceRow> {
    let of =
        |i: &&InterfaceRow| i.id.as_str() == id || i.instance.as_ref().is_some_and(|instance| instance.as_str() == id);
    wanted.interfaces.iter().filter(|i| i.kind == Kind::Interface).filter(of).min_by_key(|i| i.device_index)
}

fn of_ipv6(interface: &InterfaceRow) -> Result<IpAddr, String> {
    let first = interface.ipv6.first().ok_or_else(|| format!("{} has no IPv6 address", interface.id))?;
    Ok(IpAddr::V6(*first))
}

fn wears(interface: &InterfaceRow, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => interface.addresses().any(|own| own == address),
        IpAddr::V6(address) => interface.ipv6.contains(&address),
    }
}

fn peered(wanted: &Wanted, a: &InterfaceRow, b: &InterfaceRow) -> bool {
    wanted.peerings.iter().any(|p| p.is_of(&a.vpc) && p.is_of(&b.vpc))
}

fn ports(wanted: &Wanted) -> BTreeMap<String, String> {
    let of = |i: &InterfaceRow| match &i.instance {
        Some(instance) => format!("{} of {instance}", i.id),
        None => i.id.to_string(),
    };
    let mut ports: BTreeMap<String, String> = wanted.interfaces.iter().map(|i| (i.port.to_string(), of(i))).collect();
    ports.insert("mallee-ext-localnet".into(), "the outside".into());
    for vpc in &wanted.vpcs {
        ports.insert(vpc.link().metadata_port, "the metadata service".into());
    }
    ports
}

/// Every rule a packet may meet. Longer expressions first: one may begin another.
fn rules(wanted: &Wanted, outside: &Outside) -> Vec<TraceRule> {
    let content = render(wanted, outside);
    let mut rules = Vec::new();
    for table in [Table::Acl, Table::Policy] {
        for (key, columns) in content.rows(table) {
            let Some(Column::Text(expression)) = columns.get("match") else { continue };
            rules.push(TraceRule { expression: expression.clone(), told: told(wanted, key, columns) });
        }
    }
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.expression.len()));
    rules
}

/// What a row of ours is, by its key.
fn told(wanted: &Wanted, key: &str, columns: &Columns) -> String {
    if let Some(rule) = wanted.rules.iter().find(|r| r.id.as_str() == key) {
        return format!("rule {key} of {} lets it through: {}", rule.group, rule_text(rule));
    }
    let acl_of = |subnet: &str| {
        let acl = wanted.acls.iter().find(|a| a.associations.iter().any(|(_, of)| of.as_str() == subnet));
        acl.map_or_else(String::new, |a| format!("network ACL {} of {subnet}", a.id))
    };
    for (prefix, way) in [
        ("acl-in-", "in"),
        ("acl6-in-", "in"),
        ("acl-out-", "out"),
        ("acl6-out-", "out"),
        ("flow-ip4-", "out"),
        ("flow-ip6-", "out"),
    ] {
        if let Some(subnet) = key.strip_prefix(prefix) {
            return format!("{} does not let it {way}", acl_of(subnet));
        }
    }
    for prefix in ["closed-", "closed6-"] {
        if let Some(subnet) = key.strip_prefix(prefix) {
            return format!("the route table of {subnet} leads to nothing outside");
        }
    }
    match key {
        "base-drop-in" | "flow-drop-in" => "no rule of the receiver's security groups lets it in".into(),
        "base-drop-out" | "flow-drop-out" => "no rule of the sender's security groups lets it out".into(),
        "outside-leaving" | "outside6-leaving-others" => "it has no public address to leave with".into(),
        "outside-entering" | "outside6-entering-others" => "nothing outside knows that address".into(),
        "base-metadata" => "metadata passes all security groups".into(),
        "base-no-dhcp-server" | "base-no-dhcpv6-server" => "nobody but the subnet itself gives addresses".into(),
        "base-names" => "questions about names pass all security groups".into(),
        _ if key.starts_with("vpce-") => format!("by the endpoint {}", key.split("-subnet-").next().unwrap_or(key)),
        _ if key.starts_with("peer-") => "what comes from a peer goes to subnets only".into(),
        _ => match columns.get("action") {
            Some(Column::Text(action)) => format!("{action} by {key}"),
            _ => key.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::render::tests::{cloud, launch, outside};

    fn asked(to: &str, protocol: &str, port: Option<u16>) -> TraceAsked {
        TraceAsked { from: String::new(), to: to.into(), protocol: protocol.into(), port, ipv6: false }
    }

    #[test]
    fn a_packet_goes_to_its_neighbour_or_to_the_router() {
        let mut all = cloud(2);
        for (vpc, n) in [(0, 1), (0, 2), (1, 3)] {
            launch(&mut all, vpc, n, n == 3);
        }
        let id = |n: usize| all.interfaces[n].instance.as_ref().unwrap().to_string();
        let plan = |to: &str| {
            trace(&all, &outside(), &TraceAsked { from: id(0), ..asked(to, "tcp", Some(443)) }).unwrap().packet
        };
        let beside = plan(&id(1));
        assert!(
            beside.contains("eth.dst == 06:00:00:01:00:02 && ip4.src == 172.31.0.5 && ip4.dst == 172.31.0.6"),
            "{beside}"
        );
        let router = &all.subnets[0].router_mac;
        assert!(
            plan("8.8.8.8").contains(&format!("eth.dst == {router} && ip4.src == 172.31.0.5 && ip4.dst == 8.8.8.8"))
        );
        assert!(plan(&id(2)).contains("ip4.dst == 10.9.0.3"), "another VPC is reached by a public address");
        assert!(plan(all.interfaces[1].id.as_str()).contains("tcp.dst == 443"));
    }

    #[test]
    fn by_ipv6_a_packet_has_ipv6_addresses_of_both_ends() {
        let mut all = cloud(1);
        for n in 1..=3 {
            launch(&mut all, 0, n, false);
        }
        for (n, address) in ["fd00:1::5", "fd00:1::6"].iter().enumerate() {
            all.interfaces[n].ipv6 = vec![address.parse().unwrap()];
        }
        let id = |n: usize| all.interfaces[n].id.to_string();
        let plan = |to: &str, protocol: &str, port| {
            let asked = TraceAsked { from: id(0), ipv6: true, ..asked(to, protocol, port) };
            trace(&all, &outside(), &asked).map(|plan| plan.packet)
        };
        let beside = "eth.dst == 06:00:00:01:00:02 && ip6.src == fd00:1::5 && ip6.dst == fd00:1::6 && ip.ttl == 64 && tcp.src == 40000";
        for to in [id(1), "fd00:1::6".to_owned()] {
            let packet = plan(&to, "tcp", Some(443)).unwrap();
            assert!(packet.contains(beside), "{packet}");
        }
        let router = &all.subnets[0].router_mac;
        let away = plan("2001:db8::1", "icmp", None).unwrap();
        assert!(away.contains(&format!("eth.dst == {router} && ip6.src == fd00:1::5 && ip6.dst == 2001:db8::1")));
        assert!(away.ends_with("icmp6.type == 128 && icmp6.code == 0"), "{away}");
        assert_eq!(plan(&id(2), "icmp", None), Err(format!("{} has no IPv6 address", id(2))));
    }

    #[test]
    fn what_cannot_be_asked_is_said() {
        let mut all = cloud(1);
        launch(&mut all, 0, 1, false);
        let from = all.interfaces[0].id.to_string();
        for (asked, error) in [
            (asked("10.0.0.1", "tcp", Some(1)), " is no instance or interface here"),
            (TraceAsked { from: from.clone(), ..asked("x", "tcp", Some(1)) }, "x is no instance, interface or address"),
            (TraceAsked { from: from.clone(), ..asked("10.0.0.1", "tcp", None) }, "tcp needs a port"),
            (TraceAsked { from: from.clone(), ..asked("10.0.0.1", "icmp", Some(1)) }, "icmp has no port"),
            (TraceAsked { from, ..asked("10.0.0.1", "gre", None) }, "the protocol is tcp, udp or icmp, not gre"),
        ] {
            assert_eq!(trace(&all, &outside(), &asked), Err(error.into()));
        }
    }
}
