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

use super::{PRIORITY_DROP, inner_port};
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
/// Refused packets a node is told of, a second, and at once after a quiet time.
const RATE: i64 = 200;
const BURST: i64 = 2_000;
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
        [
            ("action", Column::text("drop")),
            ("rate", Column::Number(RATE)),
            ("burst_size", Column::Number(BURST)),
        ],
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
