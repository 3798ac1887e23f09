//! What a rule lets through, as requests say it (`IpPermissions`, or EC2's first, flat form), as rows keep it, and as
//! answers group it again.

use std::{collections::BTreeMap, fmt, str::FromStr};

use mallee_aws::{
    AwsError,
    id::{PrefixListId, SecurityGroupId, VpcId},
};
use mallee_store::Tx;
use serde::{Deserialize, Serialize};

use super::{
    group::{self, GroupRow},
    rule::RuleRow,
};
use crate::{
    Config, Outcome, Refusal,
    ec2::prefix_list,
    network::{Cidr, Cidr6},
};

/// An IP protocol by EC2's name for it; `-1` is all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    All,
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
    /// Any other, which has no ports.
    Number(u8),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::All => f.write_str("-1"),
            Protocol::Tcp => f.write_str("tcp"),
            Protocol::Udp => f.write_str("udp"),
            Protocol::Icmp => f.write_str("icmp"),
            Protocol::Icmpv6 => f.write_str("icmpv6"),
            Protocol::Number(n) => write!(f, "{n}"),
        }
    }
}

impl FromStr for Protocol {
    type Err = AwsError;

    fn from_str(text: &str) -> Result<Self, AwsError> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "-1" | "all" => Protocol::All,
            "tcp" | "6" => Protocol::Tcp,
            "udp" | "17" => Protocol::Udp,
            "icmp" | "1" => Protocol::Icmp,
            "icmpv6" | "58" => Protocol::Icmpv6,
            other => Protocol::Number(other.parse().map_err(|_| {
                AwsError::invalid_parameter_value(format!("Invalid value '{text}' for IP protocol. Unknown protocol."))
            })?),
        })
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Ipv4(Cidr),
    Ipv6(Cidr6),
    Group(SecurityGroupId),
    PrefixList(PrefixListId),
}

impl Peer {
    /// `0.0.0.0/0`.
    pub fn anywhere() -> Self {
        Peer::Ipv4(Cidr::ANYWHERE)
    }

    /// `::/0`.
    pub fn anywhere6() -> Self {
        Peer::Ipv6(Cidr6::ANYWHERE)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Ipv4(cidr) => cidr.fmt(f),
            Peer::Ipv6(cidr) => cidr.fmt(f),
            Peer::Group(id) => id.fmt(f),
            Peer::PrefixList(id) => id.fmt(f),
        }
    }
}

/// What a rule is about, without its direction: the part that makes two rules the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traffic {
    pub protocol: Protocol,
    /// First port, or ICMP type; -1 is any.
    pub from: i64,
    /// Last port, or ICMP code; -1 is any.
    pub to: i64,
    pub peer: Peer,
}

impl Traffic {
    /// All protocols and ports.
    pub fn everything(peer: Peer) -> Self {
        Self { protocol: Protocol::All, from: -1, to: -1, peer }
    }

    /// From and to as answers show them: all protocols and those without ports have neither.
    pub fn shown_ports(&self) -> (Option<i64>, Option<i64>) {
        match self.protocol {
            Protocol::All | Protocol::Number(_) => (None, None),
            _ => (Some(self.from), Some(self.to)),
        }
    }
}

/// A rule that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub traffic: Traffic,
    pub description: Option<String>,
}

/// `IpPermissions.N`, asked or shown.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpPermissionInput {
    ip_protocol: Option<String>,
    from_port: Option<i64>,
    to_port: Option<i64>,
    #[serde(default)]
    groups: Vec<GroupInput>,
    #[serde(default)]
    ip_ranges: Vec<RangeInput>,
    #[serde(default)]
    ipv6_ranges: Vec<Ipv6RangeInput>,
    #[serde(default)]
    prefix_list_ids: Vec<PrefixListInput>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GroupInput {
    group_id: Option<SecurityGroupId>,
    group_name: Option<String>,
    user_id: Option<String>,
    description: Option<String>,
    vpc_id: Option<VpcId>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RangeInput {
    cidr_ip: String,
    description: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ipv6RangeInput {
    cidr_ipv6: String,
    description: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PrefixListInput {
    prefix_list_id: PrefixListId,
    description: Option<String>,
}

/// One permission in EC2's first form, in parameters of the action itself.
#[derive(Debug, Clone, Default)]
pub struct Flat {
    pub ip_protocol: Option<String>,
    pub from_port: Option<i64>,
    pub to_port: Option<i64>,
    pub cidr_ip: Option<String>,
    pub source_security_group_name: Option<String>,
    pub source_security_group_owner_id: Option<String>,
}

impl Flat {
    fn is_empty(&self) -> bool {
        self.ip_protocol.is_none()
            && self.from_port.is_none()
            && self.to_port.is_none()
            && self.cidr_ip.is_none()
            && self.source_security_group_name.is_none()
            && self.source_security_group_owner_id.is_none()
    }

    /// A source group without a protocol meant everything that TCP, UDP and ICMP can carry.
    fn into_permissions(self) -> Vec<IpPermissionInput> {
        let permission = |protocol: Option<String>, from_port, to_port| IpPermissionInput {
            ip_protocol: protocol,
            from_port,
            to_port,
            groups: Vec::from_iter(self.source_security_group_name.clone().map(|name| GroupInput {
                group_id: None,
                group_name: Some(name),
                user_id: self.source_security_group_owner_id.clone(),
                description: None,
                vpc_id: None,
            })),
            ip_ranges: Vec::from_iter(self.cidr_ip.clone().map(|cidr_ip| RangeInput { cidr_ip, description: None })),
            ipv6_ranges: Vec::new(),
            prefix_list_ids: Vec::new(),
        };
        if self.ip_protocol.is_none() && self.source_security_group_name.is_some() {
            return vec![
                permission(Some("tcp".into()), Some(0), Some(65535)),
                permission(Some("udp".into()), Some(0), Some(65535)),
                permission(Some("icmp".into()), Some(-1), Some(-1)),
            ];
        }
        vec![permission(self.ip_protocol.clone(), self.from_port, self.to_port)]
    }
}

/// Most rules a request may hold; a group holds fewer.
const MAX_ASKED: usize = 1000;

/// The rules of a request, in its order; groups are looked up in the VPC of `group`.
pub fn asked(
    tx: &mut Tx<'_>,
    config: &Config,
    group: &GroupRow,
    permissions: &[IpPermissionInput],
    flat: &Flat,
) -> Outcome<Vec<Asked>> {
    let flat = match (permissions.is_empty(), flat.is_empty()) {
        (true, true) => return Err(AwsError::missing_parameter("IpPermissions").into()),
        (false, false) => {
            let message = "The parameter 'ipPermissions' may not be used in combination with 'ipProtocol', 'fromPort', \
                           'toPort', 'cidrIp' or 'sourceSecurityGroupName'";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        (true, false) => flat.clone().into_permissions(),
        (false, true) => Vec::new(),
    };
    let mut all: Vec<Asked> = Vec::new();
    for permission in permissions.iter().chain(&flat) {
        for (peer, description) in peers(tx, config, group, permission)? {
            let (protocol, from, to) = what(permission)?;
            check_description(description.as_deref())?;
            all.push(Asked { traffic: Traffic { protocol, from, to, peer }, description });
        }
        if all.len() > MAX_ASKED {
            let message = format!("A request may have at most {MAX_ASKED} rules");
            return Err(Refusal::new("RulesPerSecurityGroupLimitExceeded", message));
        }
    }
    let mut distinct: Vec<&Traffic> = all.iter().map(|a| &a.traffic).collect();
    distinct.sort();
    distinct.dedup();
    if distinct.len() < all.len() {
        return Err(AwsError::invalid_parameter_value("The same permission must not appear multiple times").into());
    }
    Ok(all)
}

fn peers(
    tx: &mut Tx<'_>,
    config: &Config,
    group: &GroupRow,
    permission: &IpPermissionInput,
) -> Outcome<Vec<(Peer, Option<String>)>> {
    let mut peers = Vec::new();
    for range in &permission.ip_ranges {
        peers.push((Peer::Ipv4(Cidr::asked(&range.cidr_ip)?), range.description.clone()));
    }
    for range in &permission.ipv6_ranges {
        peers.push((Peer::Ipv6(Cidr6::asked(&range.cidr_ipv6)?), range.description.clone()));
    }
    for source in &permission.groups {
        peers.push((Peer::Group(referred(tx, group, source)?), source.description.clone()));
    }
    for list in &permission.prefix_list_ids {
        let found = prefix_list::referable(tx, config, &group.account, &list.prefix_list_id)?;
        peers.push((Peer::PrefixList(found.id), list.description.clone()));
    }
    if peers.is_empty() {
        let message = "A permission must name at least one range, IPv6 range, security group or prefix list";
        return Err(Refusal::new("InvalidPermission.Malformed", message));
    }
    Ok(peers)
}

/// The group a rule refers to: of this account (there is no peering) and of the same VPC.
fn referred(tx: &mut Tx<'_>, group: &GroupRow, source: &GroupInput) -> Outcome<SecurityGroupId> {
    let named = source.group_id.as_ref().map(ToString::to_string).or_else(|| source.group_name.clone());
    let named = named.ok_or_else(|| AwsError::missing_parameter("GroupId"))?;
    if source.user_id.as_ref().is_some_and(|user| *user != group.account) {
        return Err(group::not_found(&named));
    }
    let found = match (&source.group_id, &source.group_name) {
        (Some(id), _) => group::get(tx, &group.account, id)?,
        (None, Some(name)) => group::by_name(tx, &group.vpc, name)?,
        (None, None) => return Err(group::not_found(&named)),
    };
    if found.vpc != group.vpc || source.vpc_id.as_ref().is_some_and(|vpc| *vpc != found.vpc) {
        return Err(group::not_found(&named));
    }
    Ok(found.id)
}

/// Protocol, first and last, in the one form rows have.
fn what(permission: &IpPermissionInput) -> Result<(Protocol, i64, i64), AwsError> {
    let protocol: Protocol =
        permission.ip_protocol.as_deref().ok_or_else(|| AwsError::missing_parameter("IpProtocol"))?.parse()?;
    span(protocol, permission.from_port, permission.to_port).map(|(from, to)| (protocol, from, to))
}

/// First and last port (type and code) of a protocol, checked.
pub fn span(protocol: Protocol, from: Option<i64>, to: Option<i64>) -> Result<(i64, i64), AwsError> {
    let refuse = |message: String| Err(AwsError::invalid_parameter_value(message));
    match protocol {
        // AWS takes no notice of ports here.
        Protocol::All | Protocol::Number(_) => Ok((-1, -1)),
        Protocol::Tcp | Protocol::Udp => {
            let (Some(from), Some(to)) = (from, to) else {
                return refuse(
                    "Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange.".into(),
                );
            };
            if !(0..=65535).contains(&from) || !(0..=65535).contains(&to) || from > to {
                return refuse(format!(
                    "Invalid value '{from}-{to}' for portRange. Ports are 0 to 65535, the lower one first."
                ));
            }
            Ok((from, to))
        }
        Protocol::Icmp | Protocol::Icmpv6 => {
            let (kind, code) = (from.unwrap_or(-1), to.unwrap_or(-1));
            if !(-1..=255).contains(&kind) || !(-1..=255).contains(&code) {
                return refuse(format!("ICMP type ({kind}) and code ({code}) must be -1 to 255."));
            }
            if kind == -1 && code != -1 {
                return refuse(format!("ICMP code ({code}) must be -1 when the type is -1 (all)."));
            }
            Ok((kind, code))
        }
    }
}

/// The peer in a single rule, as `ModifySecurityGroupRules` says it.
#[derive(Debug, Clone, Copy)]
pub struct OnePeer<'a> {
    pub cidr_ipv4: Option<&'a str>,
    pub cidr_ipv6: Option<&'a str>,
    pub referenced: Option<&'a SecurityGroupId>,
    pub prefix_list: Option<&'a PrefixListId>,
}

impl OnePeer<'_> {
    /// None: the request says nothing about it.
    pub fn read(self, tx: &mut Tx<'_>, config: &Config, group: &GroupRow) -> Outcome<Option<Peer>> {
        match (self.cidr_ipv4, self.cidr_ipv6, self.referenced, self.prefix_list) {
            (None, None, None, None) => Ok(None),
            (Some(text), None, None, None) => Ok(Some(Peer::Ipv4(Cidr::asked(text)?))),
            (None, Some(text), None, None) => Ok(Some(Peer::Ipv6(Cidr6::asked(text)?))),
            (None, None, None, Some(id)) => {
                Ok(Some(Peer::PrefixList(prefix_list::referable(tx, config, &group.account, id)?.id)))
            }
            (None, None, Some(id), None) => {
                let source = GroupInput {
                    group_id: Some(id.clone()),
                    group_name: None,
                    user_id: None,
                    description: None,
                    vpc_id: None,
                };
                Ok(Some(Peer::Group(referred(tx, group, &source)?)))
            }
            _ => {
                let message = "Only one of CidrIpv4, CidrIpv6, PrefixListId and ReferencedGroupId may be given";
                Err(AwsError::invalid_parameter_combination(message).into())
            }
        }
    }
}

/// AWS' bounds on a rule's description.
pub fn check_description(text: Option<&str>) -> Result<(), AwsError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    match text {
        Some(text) if text.chars().count() > 255 || !text.chars().all(allowed) => {
            Err(AwsError::invalid_parameter_value(
                "Invalid rule description. Valid descriptions are strings less than 256 characters from the following set: \
                 a-zA-Z0-9. _-:/()#,@[]+=&;{}!$*",
            ))
        }
        _ => Ok(()),
    }
}

/// A permission as answers show it: all rules of one protocol and span together.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPermission {
    pub ip_protocol: String,
    pub from_port: Option<i64>,
    pub to_port: Option<i64>,
    pub groups: Vec<UserIdGroupPair>,
    pub ip_ranges: Vec<IpRange>,
    pub ipv6_ranges: Vec<Ipv6Range>,
    pub prefix_list_ids: Vec<PrefixListPeer>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserIdGroupPair {
    pub user_id: String,
    pub group_id: SecurityGroupId,
    pub description: Option<String>,
    /// For a filter; AWS shows no names in a VPC.
    #[serde(skip)]
    pub group_name: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    pub cidr_ip: Cidr,
    pub description: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipv6Range {
    pub cidr_ipv6: Cidr6,
    pub description: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefixListPeer {
    pub prefix_list_id: PrefixListId,
    pub description: Option<String>,
}

/// Rules of one direction, grouped by protocol and span.
pub fn grouped(rules: &[RuleRow], account: &str, names: &BTreeMap<SecurityGroupId, String>) -> Vec<IpPermission> {
    // Rows come by their ids, which are random: the same rules shall always look the same.
    let mut rules: Vec<&RuleRow> = rules.iter().collect();
    rules.sort_by(|a, b| a.traffic.cmp(&b.traffic));
    let mut by_span: BTreeMap<(Protocol, i64, i64), IpPermission> = BTreeMap::new();
    for rule in rules {
        let Traffic { protocol, from, to, peer } = &rule.traffic;
        let (from_port, to_port) = rule.traffic.shown_ports();
        let permission = by_span.entry((*protocol, *from, *to)).or_insert_with(|| IpPermission {
            ip_protocol: protocol.to_string(),
            from_port,
            to_port,
            groups: Vec::new(),
            ip_ranges: Vec::new(),
            ipv6_ranges: Vec::new(),
            prefix_list_ids: Vec::new(),
        });
        let description = rule.description.clone();
        match peer {
            Peer::Ipv4(cidr) => permission.ip_ranges.push(IpRange { cidr_ip: *cidr, description }),
            Peer::Ipv6(cidr) => permission.ipv6_ranges.push(Ipv6Range { cidr_ipv6: *cidr, description }),
            Peer::Group(group_id) => permission.groups.push(UserIdGroupPair {
                user_id: account.to_owned(),
                group_name: names.get(group_id).cloned(),
                group_id: group_id.clone(),
                description,
            }),
            Peer::PrefixList(id) => {
                permission.prefix_list_ids.push(PrefixListPeer { prefix_list_id: id.clone(), description });
            }
        }
    }
    by_span.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_and_spans_have_one_form() {
        type Form = Result<(&'static str, i64, i64), ()>;
        let table: &[(&str, Option<i64>, Option<i64>, Form)] = &[
            ("tcp", Some(22), Some(22), Ok(("tcp", 22, 22))),
            ("6", Some(22), Some(80), Ok(("tcp", 22, 80))),
            ("TCP", Some(0), Some(65535), Ok(("tcp", 0, 65535))),
            ("udp", Some(80), Some(22), Err(())),
            ("udp", Some(80), None, Err(())),
            ("tcp", Some(-1), Some(-1), Err(())),
            ("tcp", Some(0), Some(65536), Err(())),
            ("icmp", Some(8), Some(-1), Ok(("icmp", 8, -1))),
            ("icmp", None, None, Ok(("icmp", -1, -1))),
            ("icmp", Some(-1), Some(0), Err(())),
            ("-1", Some(22), Some(22), Ok(("-1", -1, -1))),
            ("all", None, None, Ok(("-1", -1, -1))),
            ("50", None, None, Ok(("50", -1, -1))),
            ("256", None, None, Err(())),
            ("sctp?", None, None, Err(())),
        ];
        for (protocol, from, to, expected) in table {
            let got = protocol
                .parse::<Protocol>()
                .and_then(|p| span(p, *from, *to).map(|(from, to)| (p.to_string(), from, to)))
                .map_err(|e| assert_eq!(e.code, "InvalidParameterValue"));
            assert_eq!(got, expected.map(|(p, f, t)| (p.to_owned(), f, t)), "{protocol} {from:?} {to:?}");
        }
    }
}
