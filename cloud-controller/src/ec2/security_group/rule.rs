//! The rules of groups as rows with ids of their own (`sgr-…`).

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::{PrefixListId, SecurityGroupId, SecurityGroupRuleId},
};
use mallee_store::{Error as StoreError, FromValue, Row, ToValue, Tx, Value, params};
use serde::{Deserialize, Serialize};

use super::{
    MAX_RULES,
    group::GroupRow,
    permission::{Peer, Protocol, Traffic},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id,
        listing::{self, Wanted},
        tag::{self, Tag},
        unique_is,
    },
    network::{Cidr, Cidr6},
    service::Call,
};

actions![DescribeSecurityGroupRules => describe];

/// -1 stands for any port, type or code, never NULL: two NULLs would be two different rules.
pub const TABLES: &str = "
CREATE TABLE security_group_rule (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    security_group TEXT NOT NULL REFERENCES security_group (id),
    egress BIGINT NOT NULL,
    protocol TEXT NOT NULL,
    from_port BIGINT NOT NULL,
    to_port BIGINT NOT NULL,
    peer_kind TEXT NOT NULL,
    peer TEXT NOT NULL,
    description TEXT,
    UNIQUE (security_group, egress, protocol, from_port, to_port, peer_kind, peer)
);
CREATE INDEX security_group_rule_of ON security_group_rule (account);
CREATE INDEX security_group_rule_to ON security_group_rule (peer);
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// A rule as its row is.
#[derive(Debug, Clone)]
pub struct RuleRow {
    pub id: SecurityGroupRuleId,
    pub account: String,
    pub group: SecurityGroupId,
    pub direction: Direction,
    pub traffic: Traffic,
    pub description: Option<String>,
}

const COLUMNS: &str = "id, account, security_group, egress, protocol, from_port, to_port, peer_kind, peer, description";

fn read(row: &Row<'_>) -> Result<RuleRow, StoreError> {
    let peer = match row.get::<PeerKind>(7)? {
        PeerKind::Ipv4 => Peer::Ipv4(row.get(8)?),
        PeerKind::Ipv6 => Peer::Ipv6(row.get(8)?),
        PeerKind::Group => Peer::Group(row.get::<Id<_>>(8)?.0),
        PeerKind::PrefixList => Peer::PrefixList(row.get::<Id<_>>(8)?.0),
    };
    Ok(RuleRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        group: row.get::<Id<_>>(2)?.0,
        direction: if row.get(3)? { Direction::Egress } else { Direction::Ingress },
        traffic: Traffic { protocol: row.get(4)?, from: row.get(5)?, to: row.get(6)?, peer },
        description: row.get(9)?,
    })
}

enum PeerKind {
    Ipv4,
    Ipv6,
    Group,
    PrefixList,
}

impl PeerKind {
    fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Ipv4(_) => PeerKind::Ipv4,
            Peer::Ipv6(_) => PeerKind::Ipv6,
            Peer::Group(_) => PeerKind::Group,
            Peer::PrefixList(_) => PeerKind::PrefixList,
        }
    }
}

impl ToValue for PeerKind {
    fn to_value(&self) -> Value<'_> {
        let text = match self {
            PeerKind::Ipv4 => "ipv4",
            PeerKind::Ipv6 => "ipv6",
            PeerKind::Group => "group",
            PeerKind::PrefixList => "prefix-list",
        };
        Value::Text(text.into())
    }
}

impl FromValue for PeerKind {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        match String::from_value(value)?.as_str() {
            "ipv4" => Ok(PeerKind::Ipv4),
            "ipv6" => Ok(PeerKind::Ipv6),
            "group" => Ok(PeerKind::Group),
            "prefix-list" => Ok(PeerKind::PrefixList),
            other => Err(format!("peers of kind {other:?} are not known")),
        }
    }
}

impl FromValue for Protocol {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        String::from_value(value)?.parse().map_err(|e: mallee_aws::AwsError| e.message)
    }
}

/// The rules of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<RuleRow>, StoreError> {
    tx.query(
        &format!("SELECT {COLUMNS} FROM security_group_rule WHERE {} ORDER BY id", listing::whose(account)),
        params![account],
        read,
    )
}

/// The rules of a group in one direction.
pub fn of_group(tx: &mut Tx<'_>, group: &SecurityGroupId, direction: Direction) -> Result<Vec<RuleRow>, StoreError> {
    tx.query(
        &format!("SELECT {COLUMNS} FROM security_group_rule WHERE security_group = ?1 AND egress = ?2 ORDER BY id"),
        params![group.as_str(), direction == Direction::Egress],
        read,
    )
}

/// Whether a rule of another group refers to this one.
pub fn refers_to(tx: &mut Tx<'_>, group: &SecurityGroupId) -> Result<bool, StoreError> {
    let count: i64 = tx.query_one(
        "SELECT COUNT(*) FROM security_group_rule WHERE peer = ?1 AND security_group <> ?1",
        params![group.as_str()],
        |row| row.get(0),
    )?;
    Ok(count > 0)
}

/// Writes one more rule of the group.
pub fn insert(
    tx: &mut Tx<'_>,
    group: &GroupRow,
    direction: Direction,
    traffic: &Traffic,
    description: Option<&str>,
) -> Outcome<RuleRow> {
    let rule = RuleRow {
        id: SecurityGroupRuleId::from_random(rand::random()),
        account: group.account.clone(),
        group: group.id.clone(),
        direction,
        traffic: traffic.clone(),
        description: description.filter(|d| !d.is_empty()).map(str::to_owned),
    };
    tx.execute(
        &format!("INSERT INTO security_group_rule ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"),
        params![
            rule.id.as_str(),
            rule.account,
            rule.group.as_str(),
            direction == Direction::Egress,
            traffic.protocol.to_string(),
            traffic.from,
            traffic.to,
            PeerKind::of(&traffic.peer),
            traffic.peer.to_string(),
            rule.description
        ],
    )
    .map_err(|e| unique_is(e, || duplicate(traffic)))?;
    check_count(tx, &group.id)?;
    Ok(rule)
}

/// A rule that refers to a prefix list counts as many as the list may have entries, as at AWS.
pub fn check_count(tx: &mut Tx<'_>, group: &SecurityGroupId) -> Outcome<()> {
    let counts = tx.query(
        "SELECT r.egress, CAST(SUM(COALESCE(l.max_entries, 1)) AS BIGINT) FROM security_group_rule r
         LEFT JOIN prefix_list l ON l.id = r.peer WHERE r.security_group = ?1 GROUP BY r.egress",
        params![group.as_str()],
        |row| row.get::<i64>(1),
    )?;
    if counts.into_iter().any(|count| count > MAX_RULES) {
        let message = format!("A security group may have at most {MAX_RULES} rules in each direction");
        return Err(Refusal::new("RulesPerSecurityGroupLimitExceeded", message));
    }
    Ok(())
}

/// A list may have more entries from now on.
pub fn check_groups_of_list(tx: &mut Tx<'_>, list: &PrefixListId) -> Outcome<()> {
    let groups = tx.query(
        "SELECT DISTINCT security_group FROM security_group_rule WHERE peer = ?1",
        params![list.as_str()],
        |row| Ok(row.get::<Id<_>>(0)?.0),
    )?;
    groups.iter().try_for_each(|group| check_count(tx, group))
}

/// The groups of an account that have rules about a prefix list.
pub fn groups_referring_to(tx: &mut Tx<'_>, account: &str, list: &PrefixListId) -> Result<Vec<String>, StoreError> {
    tx.query(
        "SELECT DISTINCT security_group FROM security_group_rule WHERE peer = ?1 AND account = ?2",
        params![list.as_str(), account],
        |row| row.get(0),
    )
}

fn duplicate(traffic: &Traffic) -> Refusal {
    let ports = match traffic.shown_ports() {
        (Some(from), Some(to)) => {
            format!("{}, from port: {from}, to port: {to}", traffic.protocol.to_string().to_uppercase())
        }
        _ => "ALL".into(),
    };
    let message = format!("the specified rule \"peer: {}, {ports}, ALLOW\" already exists", traffic.peer);
    Refusal::new("InvalidPermission.Duplicate", message)
}

/// Changes what a rule is about.
pub fn update(tx: &mut Tx<'_>, rule: &RuleRow) -> Outcome<()> {
    tx.execute(
        "UPDATE security_group_rule
         SET protocol = ?2, from_port = ?3, to_port = ?4, peer_kind = ?5, peer = ?6, description = ?7 WHERE id = ?1",
        params![
            rule.id.as_str(),
            rule.traffic.protocol.to_string(),
            rule.traffic.from,
            rule.traffic.to,
            PeerKind::of(&rule.traffic.peer),
            rule.traffic.peer.to_string(),
            rule.description
        ],
    )
    .map_err(|e| unique_is(e, || duplicate(&rule.traffic)))?;
    Ok(())
}

/// Takes a rule away.
pub fn delete(tx: &mut Tx<'_>, id: &SecurityGroupRuleId) -> Result<(), StoreError> {
    tag::drop_all(tx, id.as_str())?;
    tx.execute("DELETE FROM security_group_rule WHERE id = ?1", params![id.as_str()]).map(|_| ())
}

/// Takes all rules of a group away.
pub fn drop_of_group(tx: &mut Tx<'_>, group: &SecurityGroupId) -> Result<(), StoreError> {
    for direction in [Direction::Ingress, Direction::Egress] {
        for rule in of_group(tx, group, direction)? {
            delete(tx, &rule.id)?;
        }
    }
    Ok(())
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidSecurityGroupRuleId.NotFound", format!("The security group rule ID '{id}' does not exist"))
}

/// A rule as answers show it by itself.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleInfo {
    security_group_rule_id: SecurityGroupRuleId,
    group_id: SecurityGroupId,
    group_owner_id: String,
    is_egress: bool,
    ip_protocol: String,
    from_port: i64,
    to_port: i64,
    cidr_ipv4: Option<Cidr>,
    cidr_ipv6: Option<Cidr6>,
    prefix_list_id: Option<PrefixListId>,
    referenced_group_info: Option<ReferencedGroup>,
    description: Option<String>,
    tag_set: Vec<Tag>,
    security_group_rule_arn: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReferencedGroup {
    group_id: SecurityGroupId,
    user_id: String,
}

impl Tagged for RuleInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

pub fn info(call: &Call, rule: RuleRow, tag_set: Vec<Tag>) -> RuleInfo {
    let mut shown = RuleInfo {
        security_group_rule_arn: call.cloud.arn("ec2", &rule.account, &format!("security-group-rule/{}", rule.id)),
        security_group_rule_id: rule.id,
        group_id: rule.group,
        group_owner_id: rule.account,
        is_egress: rule.direction == Direction::Egress,
        ip_protocol: rule.traffic.protocol.to_string(),
        from_port: rule.traffic.from,
        to_port: rule.traffic.to,
        cidr_ipv4: None,
        cidr_ipv6: None,
        prefix_list_id: None,
        referenced_group_info: None,
        description: rule.description,
        tag_set,
    };
    match rule.traffic.peer {
        Peer::Ipv4(cidr) => shown.cidr_ipv4 = Some(cidr),
        Peer::Ipv6(cidr) => shown.cidr_ipv6 = Some(cidr),
        Peer::PrefixList(id) => shown.prefix_list_id = Some(id),
        Peer::Group(group_id) => {
            shown.referenced_group_info = Some(ReferencedGroup { group_id, user_id: shown.group_owner_id.clone() });
        }
    }
    shown
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeSecurityGroupRules {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    security_group_rule_id: Vec<SecurityGroupRuleId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedSecurityGroupRules {
    security_group_rule_set: Vec<RuleInfo>,
    next_token: Option<String>,
}

const ATTRIBUTES: &[Attribute<RuleInfo>] = &[
    ("group-id", |rule| vec![rule.group_id.as_str().into()]),
    ("security-group-rule-id", |rule| vec![rule.security_group_rule_id.as_str().into()]),
];

async fn describe(call: &Call, input: DescribeSecurityGroupRules) -> Outcome<DescribedSecurityGroupRules> {
    let account = call.account().to_owned();
    let (rules, mut tags) = call
        .cloud
        .store
        .read("describe security group rules", move |tx| {
            Ok::<_, StoreError>((all(tx, Some(&account))?, tag::of_kind(tx, &account, SecurityGroupRuleId::PREFIX)?))
        })
        .await?;
    let infos = rules
        .into_iter()
        .map(|rule| {
            let tag_set = tags.take(rule.id.as_str());
            info(call, rule, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.security_group_rule_id.iter().map(SecurityGroupRuleId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (security_group_rule_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |rule| rule.security_group_rule_id.as_str(), not_found, infos)?;
    Ok(DescribedSecurityGroupRules { security_group_rule_set, next_token })
}
