//! Private L2 subnets: a switch without a router, and ports that are held to nothing.
//!
//! No port is in a port group, so no ACL is there for the switch. Their addresses are `unknown` alone: OVN answers no question
//! of ARP for them, learns which MAC is where, and floods what it has not learnt.

use std::collections::BTreeSet;

use mallee_aws::id::SubnetId;

use super::{interface_tags, none};
use crate::{
    ec2::{interface::InterfaceRow, subnet::Kind},
    network::{
        northbound::{Column, Content, Table},
        wanted::Wanted,
    },
};

/// Adds the switches, and says which subnets they are.
pub fn render<'a>(out: &mut Content, wanted: &'a Wanted) -> BTreeSet<&'a SubnetId> {
    let private: Vec<_> = wanted.subnets.iter().filter(|s| s.kind == Kind::PrivateL2).collect();
    for subnet in &private {
        out.add(
            Table::Switch,
            subnet.id.as_str(),
            &[("vpc", subnet.vpc.as_str())],
            [
                ("name", Column::text(subnet.id.as_str())),
                ("ports", none(Table::SwitchPort)),
                ("acls", none(Table::Acl)),
                ("other_config", Column::map::<&str, &str>([])),
            ],
        );
    }
    private.into_iter().map(|subnet| &subnet.id).collect()
}

pub fn port(out: &mut Content, interface: &InterfaceRow) {
    let name = interface.port.to_string();
    out.add(
        Table::SwitchPort,
        name.clone(),
        &interface_tags(interface),
        [
            ("name", Column::text(name.clone())),
            ("type", Column::text("")),
            ("addresses", Column::set(["unknown"])),
            ("port_security", Column::set([""; 0])),
            ("enabled", Column::Flag(!interface.released)),
            ("options", Column::map::<&str, &str>([])),
            ("dhcpv4_options", none(Table::DhcpOptions)),
            ("dhcpv6_options", none(Table::DhcpOptions)),
        ],
    );
    out.refer(Table::Switch, interface.subnet.as_str(), "ports", name);
}
