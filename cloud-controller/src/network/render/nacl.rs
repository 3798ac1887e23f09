//! Network ACLs: what may cross a subnet's edge.
//!
//! An ACL is read from its lowest number on, and the first entry that fits decides; what none fits is dropped. It knows no
//! connections, and it is not asked about what stays inside the subnet. So it cannot be ACLs of OVN's switches, which let
//! answers through before they are looked at: it becomes policies of the VPC's router, by which everything goes that
//! crosses the edge. A router's policies end at the first that fits, and a packet between two subnets must pass two ACLs:
//! hence each direction of each subnet is one policy that drops everything that direction does not allow.
//!
//! That set is computed as boxes (addresses × ports) that are taken apart, because its negation in OVN's language would
//! multiply out; once for each protocol that the ACL names, and once for all others. OVN knows of a protocol, and of a type of
//! ICMP, only whether it is equal to something: a match with `<=` on one, or with `!=`, makes no flow at all, and what should
//! be dropped passes. So the other protocols are told one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{POLICY_NACL, flow_log, inner_port, policy};
use crate::{
    ec2::network_acl::{EntryRow, NetworkAclRow},
    network::{Cidr, Cidr6, Net, northbound::Content, wanted::Wanted},
};

pub fn render(out: &mut Content, wanted: &Wanted) {
    let mut acls: BTreeMap<_, &NetworkAclRow> = BTreeMap::new();
    for acl in &wanted.acls {
        acls.extend(acl.associations.iter().map(|(_, subnet)| (subnet, acl)));
    }
    for subnet in wanted.routed() {
        let Some(acl) = acls.get(&subnet.id) else { continue };
        for egress in [false, true] {
            let (edge, name) = if egress { ("inport", "out") } else { ("outport", "in") };
            let port = inner_port(&subnet.id);
            if let Some(dropped) = expression(&drop_set::<Cidr>(&acl.entries, egress), egress) {
                if egress {
                    flow_log::edge(out, wanted, subnet, "ip4", &dropped);
                }
                let expression = format!("{edge} == \"{port}\" && ip4 && ({dropped})");
                policy(out, &subnet.vpc, format!("acl-{name}-{}", subnet.id), POLICY_NACL, expression, "drop");
            }
            let dropped = expression(&drop_set::<Cidr6>(&acl.entries, egress), egress);
            if let Some(dropped) = dropped.filter(|_| subnet.ipv6.is_some()) {
                if egress {
                    flow_log::edge(out, wanted, subnet, "ip6", &dropped);
                }
                let expression = format!("{edge} == \"{port}\" && ip6 && ({dropped})");
                policy(out, &subnet.vpc, format!("acl6-{name}-{}", subnet.id), POLICY_NACL, expression, "drop");
            }
        }
    }
}

/// A network of one of the two families; an entry of one says nothing about packets of the other.
trait Prefix: Copy + Ord + fmt::Display {
    const FAMILY: &'static str;
    const ANYWHERE: Self;
    fn of(net: &Net) -> Option<Self>;
    fn covers(&self, other: &Self) -> bool;
    /// Without `part`, which is in it: at each length on the way the half that `part` is not in.
    fn around(self, part: Self) -> impl Iterator<Item = Self>;
}

impl Prefix for Cidr {
    const FAMILY: &'static str = "ip4";
    const ANYWHERE: Self = Cidr::ANYWHERE;
    fn of(net: &Net) -> Option<Self> {
        net.v4()
    }
    fn covers(&self, other: &Self) -> bool {
        Cidr::covers(self, other)
    }
    fn around(self, part: Self) -> impl Iterator<Item = Self> {
        (self.length() + 1..=part.length()).map(move |length| {
            let flipped = u32::from(part.first()) ^ (1 << (32 - u32::from(length)));
            Cidr::new(flipped.into(), length)
        })
    }
}

impl Prefix for Cidr6 {
    const FAMILY: &'static str = "ip6";
    const ANYWHERE: Self = Cidr6::ANYWHERE;
    fn of(net: &Net) -> Option<Self> {
        net.v6()
    }
    fn covers(&self, other: &Self) -> bool {
        Cidr6::covers(self, other)
    }
    fn around(self, part: Self) -> impl Iterator<Item = Self> {
        (self.length() + 1..=part.length()).map(move |length| {
            let flipped = u128::from(part.first()) ^ (1 << (128 - u32::from(length)));
            Cidr6::new(flipped.into(), length)
        })
    }
}

/// Inclusive.
type Range = (u32, u32);

const LAST_PROTOCOL: u32 = 255;
/// Ports of TCP and UDP; for ICMP type × 256 + code. Other protocols have none, and always all of it.
const ALL_PORTS: Range = (0, 65535);
const ICMP: u32 = 1;
const ICMP6: u32 = 58;
const TCP: u32 = 6;
const UDP: u32 = 17;

/// The packets that a set of blocks is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Protocols {
    One(u32),
    AllBut(BTreeSet<u32>),
}

/// The protocol an entry names. None: it speaks of all.
fn named(entry: &EntryRow) -> Option<u32> {
    entry.protocol.parse().ok()
}

/// Packets that come from (go to) a network and have a port in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block<N> {
    ports: Range,
    net: N,
}

impl<N: Prefix> Block<N> {
    const EVERYTHING: Block<N> = Block { ports: ALL_PORTS, net: N::ANYWHERE };

    /// None: an entry of the other family.
    fn of(entry: &EntryRow) -> Option<Self> {
        let net = N::of(&entry.cidr)?;
        let unsigned = |n: i64| u32::try_from(n).unwrap_or_default();
        let ports = match entry.range {
            None => ALL_PORTS,
            Some((kind, code)) if entry.is_icmp() => match (kind, code) {
                (-1, _) => ALL_PORTS,
                (kind, -1) => (unsigned(kind) * 256, unsigned(kind) * 256 + 255),
                (kind, code) => (unsigned(kind) * 256 + unsigned(code), unsigned(kind) * 256 + unsigned(code)),
            },
            Some((from, to)) => (unsigned(from), unsigned(to)),
        };
        Some(Self { ports, net })
    }

    fn and(&self, other: &Self) -> Option<Self> {
        let net = match (self.net.covers(&other.net), other.net.covers(&self.net)) {
            (true, _) => other.net,
            (_, true) => self.net,
            _ => return None,
        };
        Some(Block { ports: both(self.ports, other.ports)?, net })
    }

    /// What is left without `other`, in pieces that do not overlap.
    fn without(&self, other: &Self, left: &mut Vec<Self>) {
        let Some(common) = self.and(other) else {
            left.push(*self);
            return;
        };
        left.extend(self.net.around(common.net).map(|net| Block { net, ..*self }));
        left.extend(rest(self.ports, common.ports).map(|ports| Block { ports, net: common.net }));
    }
}

fn both(a: Range, b: Range) -> Option<Range> {
    let (first, last) = (a.0.max(b.0), a.1.min(b.1));
    (first <= last).then_some((first, last))
}

/// `whole` without `part`, which is in it.
fn rest(whole: Range, part: Range) -> impl Iterator<Item = Range> {
    let before = (part.0 > whole.0).then(|| (whole.0, part.0 - 1));
    let after = (part.1 < whole.1).then(|| (part.1 + 1, whole.1));
    before.into_iter().chain(after)
}

/// What a direction of an ACL drops. Entries are in the order of their numbers.
fn drop_set<N: Prefix>(entries: &[EntryRow], egress: bool) -> Vec<(Protocols, Vec<Block<N>>)> {
    let asked: Vec<(&EntryRow, Block<N>)> =
        entries.iter().filter(|e| e.egress == egress).filter_map(|e| Some((e, Block::of(e)?))).collect();
    let names: BTreeSet<u32> = asked.iter().filter_map(|(entry, _)| named(entry)).collect();
    let classes = names.iter().map(|number| Protocols::One(*number)).chain([Protocols::AllBut(names.clone())]);
    let dropped = classes.map(|class| {
        let speaks = |entry: &EntryRow| named(entry).is_none_or(|number| class == Protocols::One(number));
        let dropped = dropped_of(asked.iter().filter(|(entry, _)| speaks(entry)));
        (class, dropped)
    });
    dropped.filter(|(_, dropped)| !dropped.is_empty()).collect()
}

/// What is dropped of one class of protocols, by the entries that speak of it.
fn dropped_of<'a, N: Prefix + 'a>(entries: impl Iterator<Item = &'a (&'a EntryRow, Block<N>)>) -> Vec<Block<N>> {
    let mut open = vec![Block::EVERYTHING];
    let mut dropped = Vec::new();
    for (entry, block) in entries {
        if !entry.allow {
            dropped.extend(open.iter().filter_map(|o| o.and(block)));
        }
        let mut left = Vec::with_capacity(open.len());
        for piece in &open {
            piece.without(block, &mut left);
        }
        open = left;
    }
    dropped.extend(open);
    dropped
}

/// The set in OVN's words; networks that share protocols and ports are one set of addresses. None: it is empty.
fn expression<N: Prefix>(dropped: &[(Protocols, Vec<Block<N>>)], egress: bool) -> Option<String> {
    let mut nets: BTreeMap<(&Protocols, Range), Vec<N>> = BTreeMap::new();
    for (protocols, blocks) in dropped {
        for block in blocks {
            nets.entry((protocols, block.ports)).or_default().push(block.net);
        }
    }
    let side = if egress { "dst" } else { "src" };
    let mut parts = Vec::new();
    for ((protocols, ports), mut nets) in nets {
        nets.sort();
        let mut terms = Vec::new();
        if !nets.contains(&N::ANYWHERE) {
            let nets: Vec<String> = nets.iter().map(N::to_string).collect();
            terms.push(format!("{}.{side} == {{{}}}", N::FAMILY, nets.join(", ")));
        }
        terms.extend(what(protocols, ports));
        parts.push(if terms.is_empty() { N::FAMILY.to_owned() } else { terms.join(" && ") });
    }
    (!parts.is_empty()).then(|| parts.iter().map(|p| format!("({p})")).collect::<Vec<_>>().join(" || "))
}

/// Protocols and ports. None: all of them.
fn what(protocols: &Protocols, ports: Range) -> Option<String> {
    let number = match protocols {
        Protocols::One(number) => *number,
        Protocols::AllBut(named) if named.is_empty() => return None,
        Protocols::AllBut(named) => {
            return Some(one_of("ip.proto", (0..=LAST_PROTOCOL).filter(|number| !named.contains(number))));
        }
    };
    let port = |name: &str| match ports {
        ALL_PORTS => name.to_owned(),
        (from, to) if from == to => format!("{name}.dst == {from}"),
        (from, to) => format!("{name}.dst >= {from} && {name}.dst <= {to}"),
    };
    Some(match number {
        TCP => port("tcp"),
        UDP => port("udp"),
        ICMP => types("icmp4", ports),
        ICMP6 => types("icmp6", ports),
        number => format!("ip.proto == {number}"),
    })
}

/// For a field that OVN compares only for equality.
fn one_of(field: &str, values: impl Iterator<Item = u32>) -> String {
    let values: Vec<String> = values.map(|value| value.to_string()).collect();
    match values.as_slice() {
        [only] => format!("{field} == {only}"),
        several => format!("{field} == {{{}}}", several.join(", ")),
    }
}

/// Types and codes of ICMP: whole types in the middle, parts of one at either end.
fn types(name: &str, ports: Range) -> String {
    if ports == ALL_PORTS {
        return name.to_owned();
    }
    let mut parts = Vec::new();
    let (mut first, last) = ports;
    while first <= last {
        let kind = first / 256;
        let end_of_type = kind * 256 + 255;
        if first % 256 == 0 && end_of_type <= last {
            let whole = (last + 1) / 256 - 1;
            parts.push(one_of(&format!("{name}.type"), kind..=whole));
            first = (whole + 1) * 256;
        } else {
            let to = end_of_type.min(last);
            let codes = one_of(&format!("{name}.code"), first % 256..=to % 256);
            parts.push(format!("{name}.type == {kind} && {codes}"));
            first = to + 1;
        }
    }
    match parts.as_slice() {
        [only] => only.clone(),
        several => format!("({})", several.iter().map(|p| format!("({p})")).collect::<Vec<_>>().join(" || ")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn entry(number: i64, protocol: &str, allow: bool, cidr: &str, range: Option<(i64, i64)>) -> EntryRow {
        EntryRow { egress: false, number, protocol: protocol.into(), allow, cidr: cidr.parse().unwrap(), range }
    }

    fn told(entries: &[EntryRow]) -> Option<String> {
        expression(&drop_set::<Cidr>(entries, false), false)
    }

    #[test]
    fn what_is_dropped_in_ovns_words() {
        let all = |number, allow| entry(number, "-1", allow, "0.0.0.0/0", None);
        assert_eq!(told(&[all(100, true)]), None, "the default ACL drops nothing");
        assert_eq!(told(&[]).as_deref(), Some("(ip4)"), "a new ACL drops everything");
        let deny = entry(90, "6", false, "10.0.1.0/24", Some((22, 22)));
        assert_eq!(
            told(&[deny.clone(), all(100, true)]).as_deref(),
            Some("(ip4.src == {10.0.1.0/24} && tcp.dst == 22)")
        );
        assert_eq!(told(&[all(80, true), deny]), None, "a later entry is not read");
        let web = entry(100, "6", true, "0.0.0.0/0", Some((80, 80)));
        let told_web = told(&[web]).unwrap();
        let expected = "(tcp.dst >= 0 && tcp.dst <= 79) || (tcp.dst >= 81 && tcp.dst <= 65535) || (ip.proto == {0, 1, 2, 3, 4, 5, 7, 8,";
        assert!(told_web.starts_with(expected) && told_web.ends_with(" 254, 255})"), "{told_web}");
        let echo = entry(10, "1", false, "0.0.0.0/0", Some((8, -1)));
        assert_eq!(told(&[echo, all(100, true)]).as_deref(), Some("(icmp4.type == 8)"));
    }

    /// OVN makes no flow of a match it cannot parse, and then nothing is dropped.
    #[test]
    fn what_ovn_compares_for_equality_only_is_never_compared_otherwise() {
        let echo = |code| entry(10, "1", true, "10.0.0.0/8", Some((8, code)));
        let esp = entry(20, "50", true, "10.0.0.0/8", None);
        for told in [told(&[echo(-1)]), told(&[echo(0), esp.clone()]), told(&[esp])] {
            let told = told.unwrap();
            for field in ["ip.proto", ".type", ".code"] {
                for (at, _) in told.match_indices(field) {
                    assert!(told[at + field.len()..].starts_with(" == "), "{told}");
                }
            }
        }
    }

    #[test]
    fn an_entry_of_one_family_says_nothing_about_the_other() {
        let all = |cidr| entry(100, "-1", true, cidr, None);
        let told6 = |entries: &[EntryRow]| {
            let all: Vec<_> = entries.iter().map(|e| EntryRow { egress: true, ..e.clone() }).collect();
            expression(&drop_set::<Cidr6>(&all, true), true)
        };
        assert_eq!(told6(&[all("0.0.0.0/0")]).as_deref(), Some("(ip6)"));
        assert_eq!(told6(&[all("::/0")]), None);
        let deny = entry(90, "58", false, "fd00:1::/64", Some((128, -1)));
        let expected = "(ip6.dst == {fd00:1::/64} && icmp6.type == 128)";
        assert_eq!(told6(&[deny, all("::/0")]).as_deref(), Some(expected));
    }

    /// A packet as entries see it.
    #[derive(Debug, Clone)]
    struct Packet {
        protocol: u32,
        port: u32,
        from: u32,
    }

    fn fits(entry: &EntryRow, p: &Packet) -> bool {
        let protocol = entry.protocol == "-1" || entry.protocol == p.protocol.to_string();
        let port = i64::from(p.port);
        let range = match entry.range {
            None => true,
            Some((kind, code)) if entry.is_icmp() => {
                (kind == -1 || kind == port / 256) && (code == -1 || code == port % 256)
            }
            Some((from, to)) => (from..=to).contains(&port),
        };
        protocol && range && entry.cidr.v4().unwrap().contains(Ipv4Addr::from(p.from))
    }

    fn entries() -> impl Strategy<Value = Vec<EntryRow>> {
        let net = (0u32..8, 26u8..=32).prop_map(|(n, length)| Cidr::new(Ipv4Addr::from(0x0a00_0000 + n * 9), length));
        let net = prop_oneof![net, Just(Cidr::ANYWHERE)];
        let protocol = prop_oneof![Just("-1"), Just("6"), Just("17"), Just("1"), Just("50")];
        let one = (protocol, any::<bool>(), net, 0i64..12, 0i64..12).prop_map(|(protocol, allow, cidr, a, b)| {
            let range = match protocol {
                "6" | "17" => Some((a.min(b), a.max(b))),
                "1" => Some(if a > 8 { (-1, -1) } else { (a % 3, b % 3 - 1) }),
                _ => None,
            };
            EntryRow { egress: false, number: 0, protocol: protocol.into(), allow, cidr: cidr.into(), range }
        });
        prop::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn exactly_what_the_first_entry_that_fits_does_not_allow_is_dropped(
            entries in entries(),
            protocol in prop_oneof![Just(1u32), Just(6), Just(17), Just(50), Just(0), Just(255)],
            port in prop_oneof![0u32..14, Just(256), Just(257), Just(513), Just(65535)],
            from in prop_oneof![0x0a00_0000u32..0x0a00_0060, any::<u32>()],
        ) {
            let packet = Packet { protocol, port, from };
            let allowed = entries.iter().find(|e| fits(e, &packet)).is_some_and(|e| e.allow);
            let blocks = drop_set::<Cidr>(&entries, false);
            let hits = blocks
                .iter()
                .filter(|(protocols, _)| match protocols {
                    Protocols::One(number) => *number == protocol,
                    Protocols::AllBut(named) => !named.contains(&protocol),
                })
                .flat_map(|(_, blocks)| blocks)
                .filter(|b| both(b.ports, (port, port)).is_some() && b.net.contains(Ipv4Addr::from(from)))
                .count();
            prop_assert_eq!(hits, usize::from(!allowed), "no piece overlaps another: {:?}", blocks);
            for (_, blocks) in blocks.iter().filter(|(protocols, _)| matches!(protocols, Protocols::AllBut(_))) {
                prop_assert!(blocks.iter().all(|b| b.ports == ALL_PORTS), "what has no ports is not cut by them");
            }
            prop_assert!(blocks.iter().map(|(_, b)| b.len()).sum::<usize>() <= 40 * (entries.len() + 1).pow(2));
        }
    }
}
