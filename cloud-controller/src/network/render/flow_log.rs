//! Flow logs: what is refused of an interface that has one is told to its node.
//!
//! A rule of OVN that logs makes the switch tell whoever listens there of each packet it refused. So watched ports are in one
//! more port group, whose rules refuse what `mallee_drop` would refuse a step later, and log that. A network ACL's policies of
//! the router cannot log; on the way out of the subnet the same set is refused one hop earlier, by a rule of the switch
//! at the router's port, which knows no connections either. On the way in it is the sender's node that drops the packet, and
//! nothing is told.
//!
//! A meter bounds what a flood may cost a node; nodes see in its counters that they were not told everything.

use std::collections::BTreeSet;

use super::{PRIORITY_DROP, acl, inner_port};
use crate::{
    ec2::{interface::InterfaceRow, subnet::SubnetRow},
    network::{
        northbound::{Column, Content, Table},
        wanted::Wanted,
    },
};

const WATCHED: &str = "mallee_flow_log";
const METER: &str = "mallee-flow-log";
const BAND: &str = "mallee-flow-log-band";
/// Metadata and names.
const LINK: &str = "169.254.0.0/16";
/// Refused packets a node is told of, a second, and at once after a quiet time.
const RATE: i64 = 200;
const BURST: i64 = 100;
/// Above what refuses the same without saying so, and below what lets pass.
const PRIORITY: i64 = PRIORITY_DROP + 1;

pub fn render(out: &mut Content, wanted: &Wanted) {
    if wanted.flow_logged.is_empty() {
        return;
    }
    out.add(
        Table::MeterBand,
        BAND,
        &[],
        [("action", Column::text("drop")), ("rate", Column::Number(RATE)), ("burst_size", Column::Number(BURST))],
    );
    out.add(
        Table::Meter,
        METER,
        &[],
        [
            ("name", Column::text(METER)),
            ("unit", Column::text("pktps")),
            ("bands", Column::rows(Table::MeterBand, [BAND])),
        ],
    );
    let routed: BTreeSet<_> = wanted.routed().map(|subnet| &subnet.id).collect();
    let ports = watched(wanted).filter(|i| routed.contains(&i.subnet)).map(|i| i.port.to_string());
    let rules = ["flow-drop-out", "flow-drop-in"];
    out.add(
        Table::PortGroup,
        WATCHED,
        &[],
        [
            ("name", Column::text(WATCHED)),
            ("ports", Column::rows(Table::SwitchPort, ports)),
            ("acls", Column::rows(Table::Acl, rules)),
        ],
    );
    logging(out, rules[0], "mallee-flow-out", "from-lport", format!("inport == @{WATCHED} && ip"));
    logging(out, rules[1], "mallee-flow-in", "to-lport", format!("outport == @{WATCHED} && ip"));
    for subnet in wanted.routed() {
        let macs: BTreeSet<String> = watched_in(wanted, subnet).map(|i| i.mac.clone()).collect();
        if !macs.is_empty() {
            let name = macs_of(subnet);
            let columns = [("name", Column::text(name.clone())), ("addresses", Column::Set(macs))];
            out.add(Table::AddressSet, name, &[], columns);
        }
    }
}

/// What a subnet's network ACL drops on the way out, of one family.
pub fn edge(out: &mut Content, wanted: &Wanted, subnet: &SubnetRow, family: &str, dropped: &str) {
    if watched_in(wanted, subnet).next().is_none() {
        return;
    }
    let key = format!("flow-{family}-{}", subnet.id);
    let (port, macs) = (inner_port(&subnet.id), macs_of(subnet));
    let expression = format!("outport == \"{port}-peer\" && eth.src == ${macs} && {family} && ({dropped})");
    logging(out, &key, "mallee-flow-edge", "to-lport", expression);
    out.refer(Table::Switch, subnet.id.as_str(), "acls", key);
    // What the router takes for itself, or lets pass to the metadata service, it does not ask the network ACL about.
    let key = format!("flow-pass-{}", subnet.id);
    let router = subnet.router();
    let own = format!("ip4.dst == {{{LINK}, {router}}} || ip6.dst == {{fe80::/10, ff00::/8}}");
    let expression = format!("outport == \"{port}-peer\" && eth.src == ${macs} && ({own})");
    acl(out, &key, "to-lport", PRIORITY + 1, expression, "allow-stateless");
    out.refer(Table::Switch, subnet.id.as_str(), "acls", key);
}

fn watched(wanted: &Wanted) -> impl Iterator<Item = &InterfaceRow> {
    wanted.interfaces.iter().filter(|i| wanted.flow_logged.contains(&i.id))
}

fn watched_in<'a>(wanted: &'a Wanted, subnet: &'a SubnetRow) -> impl Iterator<Item = &'a InterfaceRow> {
    watched(wanted).filter(|i| i.subnet == subnet.id)
}

fn macs_of(subnet: &SubnetRow) -> String {
    format!("flow_{}", subnet.id.as_str().replace('-', "_"))
}

/// `name` is what nodes know the rule by.
fn logging(out: &mut Content, key: &str, name: &str, direction: &str, expression: String) {
    out.add(
        Table::Acl,
        key,
        &[],
        [
            ("direction", Column::text(direction)),
            ("priority", Column::Number(PRIORITY)),
            ("match", Column::Text(expression)),
            ("action", Column::text("drop")),
            ("name", Column::set([name])),
            ("log", Column::Flag(true)),
            ("severity", Column::set(["debug"])),
            ("meter", Column::set([METER])),
        ],
    );
}

#[cfg(test)]
mod tests {
    use mallee_aws::id::{NetworkAclAssociationId, NetworkAclId};

    use super::*;
    use crate::{
        ec2::network_acl::{EntryRow, NetworkAclRow},
        network::render::{
            render,
            tests::{cloud, launch, outside},
        },
    };

    /// Two instances in a subnet whose network ACL lets nothing out to one network.
    fn two() -> Wanted {
        let mut all = cloud(1);
        launch(&mut all, 0, 5, true);
        launch(&mut all, 0, 6, true);
        let entry = |number, allow, cidr: &str| EntryRow {
            egress: true,
            number,
            protocol: "-1".into(),
            allow,
            cidr: cidr.parse().unwrap(),
            range: None,
        };
        all.acls.push(NetworkAclRow {
            id: NetworkAclId::from_random([1; 9]),
            account: String::new(),
            vpc: all.vpcs[0].id.clone(),
            is_default: true,
            entries: vec![entry(90, false, "192.0.2.0/24"), entry(100, true, "0.0.0.0/0")],
            associations: vec![(NetworkAclAssociationId::from_random([1; 9]), all.subnets[0].id.clone())],
        });
        all
    }

    #[test]
    fn only_ports_with_a_flow_log_are_under_rules_that_log() {
        let mut all = two();
        let before = render(&all, &outside()).to_string();
        assert!(!before.contains("flow") && !before.contains("Meter"), "{before}");
        all.flow_logged.insert(all.interfaces[0].id.clone());
        let after = render(&all, &outside()).to_string();
        let lines: Vec<&str> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
        let (subnet, port, mac) = (&all.subnets[0].id, all.interfaces[0].port, &all.interfaces[0].mac);
        let set = macs_of(&all.subnets[0]);
        let edge = format!("outport == \\\"inner-{subnet}-peer\\\" && eth.src == ${set}");
        let logs = "log=true match";
        for expected in [
            format!(
                "Port_Group mallee_flow_log: acls=<flow-drop-in, flow-drop-out> name=\"mallee_flow_log\" ports=<{port}>"
            ),
            format!(
                "ACL flow-drop-in: action=\"drop\" direction=\"to-lport\" {logs}=\"outport == @mallee_flow_log && ip\" meter=[mallee-flow-log] name=[mallee-flow-in] priority=1001 severity=[debug]"
            ),
            format!(
                "ACL flow-drop-out: action=\"drop\" direction=\"from-lport\" {logs}=\"inport == @mallee_flow_log && ip\" meter=[mallee-flow-log] name=[mallee-flow-out] priority=1001 severity=[debug]"
            ),
            format!(
                "ACL flow-ip4-{subnet}: action=\"drop\" direction=\"to-lport\" {logs}=\"{edge} && ip4 && ((ip4.dst == {{192.0.2.0/24}}))\" meter=[mallee-flow-log] name=[mallee-flow-edge] priority=1001 severity=[debug]"
            ),
            format!(
                "ACL flow-pass-{subnet}: action=\"allow-stateless\" direction=\"to-lport\" match=\"{edge} && (ip4.dst == {{169.254.0.0/16, 172.31.0.1}} || ip6.dst == {{fe80::/10, ff00::/8}})\" priority=1002"
            ),
            format!("Address_Set {set}: addresses=[{mac}] name=\"{set}\""),
            "Meter mallee-flow-log: bands=<mallee-flow-log-band> name=\"mallee-flow-log\" unit=\"pktps\"".to_owned(),
            "Meter_Band mallee-flow-log-band: action=\"drop\" burst_size=100 rate=200".to_owned(),
        ] {
            assert!(lines.contains(&expected.as_str()), "{expected}\nis not in\n{}", lines.join("\n"));
        }
        // Beside these only the switch, which the two rules of its edge hang on.
        assert_eq!(lines.len(), 9, "{}", lines.join("\n"));
    }
}
