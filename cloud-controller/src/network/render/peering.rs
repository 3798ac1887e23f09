//! Peering connections: a switch between two routers, which route to each other only what their tables say.
//!
//! Of IPv6 the link has what its ports' MACs give them: a route goes on by the other's link-local address.
//!
//! What comes from a peer goes to subnets and nowhere else: not to the outside, not to metadata, not on to another peer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use mallee_aws::id::{VpcId, VpcPeeringConnectionId};

use super::{Link, Outside, POLICY_PEER, link, none, policy};
use crate::{
    ec2::peering::{End, PeeringRow},
    network::{
        mac,
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

/// The same for IPv6.
pub fn hop6(peering: &PeeringRow, vpc: &VpcId) -> Option<(Ipv6Addr, String)> {
    peering.transit()?;
    let other = if peering.requester.vpc == *vpc { &peering.accepter } else { &peering.requester };
    Some((mac::link_local(&other.mac)?, port(&peering.id, vpc)))
}

pub fn render(out: &mut Content, wanted: &Wanted, outside: &Outside) {
    let dual: BTreeSet<_> = wanted.vpcs.iter().filter(|vpc| vpc.ipv6.is_some()).map(|vpc| &vpc.id).collect();
    for peering in &wanted.peerings {
        let Some(transit) = peering.transit() else { continue };
        let mut end = |end: &End, n: u32| {
            let port = port(&peering.id, &end.vpc);
            let expression = format!("inport == \"{port}\" && ip4.dst == {{{}, 169.254.0.0/16}}", outside.network);
            policy(out, &end.vpc, format!("peer-{port}"), POLICY_PEER, expression, "drop");
            if dual.contains(&end.vpc) {
                let expression = format!("inport == \"{port}\" && ip6.dst == {}", outside.ipv6);
                policy(out, &end.vpc, format!("peer6-{port}"), POLICY_PEER, expression, "drop");
            }
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
