//! Peering connections: a switch between two routers, which route to each other only what their tables say.
//!
//! What comes from a peer goes to subnets and nowhere else: not to the outside, not to metadata, not on to another peer.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mallee_aws::id::{VpcId, VpcPeeringConnectionId};

use super::{Link, Outside, POLICY_PEER, link, none, policy};
use crate::{
    ec2::peering::{End, PeeringRow},
    network::{
        northbound::{Column, Content, Table},
        wanted::Wanted,
    },
};

fn port(peering: &VpcPeeringConnectionId, vpc: &VpcId) -> String {
    format!("{peering}-{vpc}")
}

/// How the router of `vpc` reaches the other one.
pub fn hop(peering: &PeeringRow, vpc: &VpcId) -> Option<(Ipv4Addr, String)> {
    let transit = peering.transit()?;
    let other = if peering.requester.vpc == *vpc { transit.nth(2) } else { transit.nth(1) };
    Some((other, port(&peering.id, vpc)))
}

pub fn render(out: &mut Content, wanted: &Wanted, outside: &Outside) {
    for peering in &wanted.peerings {
        let Some(transit) = peering.transit() else { continue };
        let mut end = |end: &End, n: u32| {
            let port = port(&peering.id, &end.vpc);
            let expression = format!("inport == \"{port}\" && ip4.dst == {{{}, 169.254.0.0/16}}", outside.network);
            policy(out, &end.vpc, format!("peer-{port}"), POLICY_PEER, expression, "drop");
            link(
                out,
                end.vpc.as_str(),
                Link {
                    port,
                    mac: &end.mac,
                    networks: vec![format!("{}/{}", transit.nth(n), transit.length())],
                    advertised: &[],
                    options: BTreeMap::new(),
                    switch_options: Vec::new(),
                    chassis: Vec::new(),
                },
            )
        };
        let ports = [end(&peering.requester, 1), end(&peering.accepter, 2)];
        out.add(
            Table::Switch,
            peering.id.as_str(),
            &[],
            [
                ("name", Column::text(peering.id.as_str())),
                ("ports", Column::rows(Table::SwitchPort, ports)),
                ("acls", none(Table::Acl)),
                ("other_config", Column::map::<&str, &str>([])),
            ],
        );
    }
}
