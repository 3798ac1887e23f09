//! Network ACLs: what may cross a subnet's edge, whatever security groups say: numbered entries, the first that fits decides,
//! each packet for itself. Every VPC has a default one that lets all through. `network/render/nacl.rs` makes packets obey.

use std::collections::BTreeMap;

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::{NetworkAclAssociationId, NetworkAclId, SubnetId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id,
        listing::{self, Wanted},
        tag::{self, Tag},
    },
    network::{Cidr, Cidr6, Net},
    service::Call,
};

pub mod change;
pub mod entry;

actions![DescribeNetworkAcls => describe];

/// The last rule of each direction (number 32767, and 32768 for IPv6) is not a row: every ACL denies what no rule of it allows.
pub const TABLES: &str = "
CREATE TABLE network_acl (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    default_of TEXT UNIQUE,
    created BIGINT NOT NULL
);
CREATE INDEX network_acl_of ON network_acl (account);
CREATE TABLE network_acl_entry (
    network_acl TEXT NOT NULL REFERENCES network_acl (id),
    egress BIGINT NOT NULL,
    number BIGINT NOT NULL,
    protocol TEXT NOT NULL,
    allow BIGINT NOT NULL,
    cidr TEXT NOT NULL,
    PRIMARY KEY (network_acl, egress, number)
);
CREATE TABLE network_acl_association (
    id TEXT PRIMARY KEY,
    network_acl TEXT NOT NULL REFERENCES network_acl (id),
    subnet TEXT NOT NULL UNIQUE
);
";

/// First and last port, or type and code of ICMP (-1 is any).
pub const PORT_COLUMNS: &str = "
ALTER TABLE network_acl_entry ADD COLUMN first BIGINT;
ALTER TABLE network_acl_entry ADD COLUMN last BIGINT;
";

/// A network ACL as its rows are.
#[derive(Debug, Clone)]
pub struct NetworkAclRow {
    pub id: NetworkAclId,
    pub account: String,
    pub vpc: VpcId,
    pub is_default: bool,
    /// By direction and number.
    pub entries: Vec<EntryRow>,
    pub associations: Vec<(NetworkAclAssociationId, SubnetId)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRow {
    pub egress: bool,
    pub number: i64,
    /// A number as text; `-1` is all.
    pub protocol: String,
    pub allow: bool,
    pub cidr: Net,
    /// First and last port of TCP and UDP; type and code of ICMP, where -1 is any.
    pub range: Option<(i64, i64)>,
}

impl EntryRow {
    /// Of either family.
    pub fn is_icmp(&self) -> bool {
        self.protocol == "1" || self.protocol == "58"
    }
}

/// Number of the rule every ACL ends with.
const LAST: i64 = 32767;

fn read(row: &Row<'_>) -> Result<NetworkAclRow, StoreError> {
    Ok(NetworkAclRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Id<_>>(2)?.0,
        is_default: row.get::<Option<String>>(3)?.is_some(),
        entries: Vec::new(),
        associations: Vec::new(),
    })
}

/// The ACLs of an account with entries and associations; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<NetworkAclRow>, StoreError> {
    let whose = listing::whose(account);
    let mut acls = tx.query(
        &format!("SELECT id, account, vpc, default_of FROM network_acl WHERE {whose} ORDER BY id"),
        params![account],
        read,
    )?;
    let mut entries: BTreeMap<NetworkAclId, Vec<EntryRow>> = BTreeMap::new();
    let found = tx.query(
        &format!(
            "SELECT e.network_acl, e.egress, e.number, e.protocol, e.allow, e.cidr, e.first, e.last
             FROM network_acl_entry e JOIN network_acl a ON a.id = e.network_acl
             WHERE {whose} ORDER BY e.egress, e.number"
        ),
        params![account],
        |row| {
            let entry = EntryRow {
                egress: row.get(1)?,
                number: row.get(2)?,
                protocol: row.get(3)?,
                allow: row.get(4)?,
                cidr: row.get(5)?,
                range: row.get::<Option<i64>>(6)?.zip(row.get::<Option<i64>>(7)?),
            };
            Ok((row.get::<Id<_>>(0)?.0, entry))
        },
    )?;
    for (acl, entry) in found {
        entries.entry(acl).or_default().push(entry);
    }
    let mut associations: BTreeMap<NetworkAclId, Vec<_>> = BTreeMap::new();
    let found = tx.query(
        &format!(
            "SELECT s.network_acl, s.id, s.subnet FROM network_acl_association s JOIN network_acl a ON a.id = s.network_acl
             WHERE {whose} ORDER BY s.id"
        ),
        params![account],
        |row| Ok((row.get::<Id<_>>(0)?.0, (row.get::<Id<_>>(1)?.0, row.get::<Id<_>>(2)?.0))),
    )?;
    for (acl, association) in found {
        associations.entry(acl).or_default().push(association);
    }
    for acl in &mut acls {
        acl.entries = entries.remove(&acl.id).unwrap_or_default();
        acl.associations = associations.remove(&acl.id).unwrap_or_default();
    }
    Ok(acls)
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &NetworkAclId) -> Outcome<NetworkAclRow> {
    all(tx, Some(account))?.into_iter().find(|acl| acl.id == *id).ok_or_else(|| not_found(id.as_str()))
}

/// The ACL new subnets of a VPC are under.
pub fn default_of(tx: &mut Tx<'_>, vpc: &VpcId) -> Outcome<NetworkAclId> {
    tx.query_opt("SELECT id FROM network_acl WHERE default_of = ?1", params![vpc.as_str()], |row| row.get::<Id<_>>(0))?
        .map(|id| id.0)
        .ok_or_else(|| Refusal::internal(format!("{vpc} has no default network ACL")))
}

/// How many ACLs a VPC has beside its default one.
pub fn count_but_default(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM network_acl WHERE vpc = ?1 AND default_of IS NULL";
    tx.query_one(sql, params![vpc.as_str()], |row| row.get(0))
}

/// The VPC ends: its ACLs go.
pub fn drop_of_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<(), StoreError> {
    let ids: Vec<String> =
        tx.query("SELECT id FROM network_acl WHERE vpc = ?1", params![vpc.as_str()], |row| row.get(0))?;
    ids.iter().try_for_each(|id| drop_acl(tx, id))
}

fn drop_acl(tx: &mut Tx<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM network_acl_entry WHERE network_acl = ?1", params![id])?;
    tx.execute("DELETE FROM network_acl_association WHERE network_acl = ?1", params![id])?;
    tx.execute("DELETE FROM network_acl WHERE id = ?1", params![id])?;
    tag::drop_all(tx, id)
}

/// The subnet ends.
pub fn forget_subnet(tx: &mut Tx<'_>, subnet: &SubnetId) -> Result<(), StoreError> {
    tx.execute("DELETE FROM network_acl_association WHERE subnet = ?1", params![subnet.as_str()]).map(|_| ())
}

/// Writes the default ACL of a new VPC: all is let through, both ways.
pub fn insert_default(tx: &mut Tx<'_>, account: &str, vpc: &VpcId, now: i64) -> Outcome<NetworkAclId> {
    let id = NetworkAclId::from_random(rand::random());
    tx.execute(
        "INSERT INTO network_acl (id, account, vpc, default_of, created) VALUES (?1, ?2, ?3, ?3, ?4)",
        params![id.as_str(), account, vpc.as_str(), now],
    )?;
    for egress in [false, true] {
        tx.execute(
            "INSERT INTO network_acl_entry (network_acl, egress, number, protocol, allow, cidr)
             VALUES (?1, ?2, 100, '-1', 1, '0.0.0.0/0')",
            params![id.as_str(), egress],
        )?;
    }
    Ok(id)
}

/// The VPC has IPv6 from now on: its default ACL lets that through as well, unless it says something about it already.
pub fn let_ipv6_through(tx: &mut Tx<'_>, vpc: &VpcId) -> Outcome<()> {
    let acl = default_of(tx, vpc)?;
    for egress in [false, true] {
        tx.execute(
            "INSERT INTO network_acl_entry (network_acl, egress, number, protocol, allow, cidr)
             SELECT ?1, ?2, 101, '-1', 1, '::/0'
             WHERE NOT EXISTS (SELECT 1 FROM network_acl_entry WHERE network_acl = ?1 AND egress = ?2 AND cidr LIKE '%:%')
             ON CONFLICT DO NOTHING",
            params![acl.as_str(), egress],
        )?;
    }
    Ok(())
}

/// A subnet is under this ACL from now on.
pub fn associate(tx: &mut Tx<'_>, acl: &NetworkAclId, subnet: &SubnetId) -> Outcome<NetworkAclAssociationId> {
    let id = NetworkAclAssociationId::from_random(rand::random());
    tx.execute(
        "INSERT INTO network_acl_association (id, network_acl, subnet) VALUES (?1, ?2, ?3)
         ON CONFLICT (subnet) DO UPDATE SET id = ?1, network_acl = ?2",
        params![id.as_str(), acl.as_str(), subnet.as_str()],
    )?;
    Ok(id)
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidNetworkAclID.NotFound", format!("The networkAcl ID '{id}' does not exist"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeNetworkAcls {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    network_acl_id: Vec<NetworkAclId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedNetworkAcls {
    network_acl_set: Vec<AclInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AclInfo {
    network_acl_id: NetworkAclId,
    vpc_id: VpcId,
    owner_id: String,
    default: bool,
    entry_set: Vec<EntryInfo>,
    association_set: Vec<AssociationInfo>,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryInfo {
    rule_number: i64,
    protocol: String,
    rule_action: &'static str,
    egress: bool,
    cidr_block: Option<Cidr>,
    ipv6_cidr_block: Option<Cidr6>,
    icmp_type_code: Option<IcmpTypeCode>,
    port_range: Option<PortRange>,
}

/// `type` and `code`, -1 is any.
#[derive(Clone, Copy, Serialize)]
struct IcmpTypeCode {
    r#type: i64,
    code: i64,
}

#[derive(Clone, Copy, Serialize)]
struct PortRange {
    from: i64,
    to: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AssociationInfo {
    network_acl_association_id: NetworkAclAssociationId,
    network_acl_id: NetworkAclId,
    subnet_id: SubnetId,
}

impl Tagged for AclInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<AclInfo>] = &[
    ("association.association-id", |acl| {
        acl.association_set.iter().map(|a| a.network_acl_association_id.as_str().into()).collect()
    }),
    ("association.network-acl-id", |acl| {
        acl.association_set.iter().map(|a| a.network_acl_id.as_str().into()).collect()
    }),
    ("association.subnet-id", |acl| acl.association_set.iter().map(|a| a.subnet_id.as_str().into()).collect()),
    ("default", |acl| vec![acl.default.to_string().into()]),
    ("entry.cidr", |acl| acl.entry_set.iter().filter_map(|e| e.cidr_block.map(|c| c.to_string().into())).collect()),
    ("entry.egress", |acl| acl.entry_set.iter().map(|e| e.egress.to_string().into()).collect()),
    ("entry.icmp.code", |acl| {
        acl.entry_set.iter().filter_map(|e| e.icmp_type_code.map(|i| i.code.to_string().into())).collect()
    }),
    ("entry.icmp.type", |acl| {
        acl.entry_set.iter().filter_map(|e| e.icmp_type_code.map(|i| i.r#type.to_string().into())).collect()
    }),
    ("entry.ipv6-cidr", |acl| {
        acl.entry_set.iter().filter_map(|e| e.ipv6_cidr_block.map(|c| c.to_string().into())).collect()
    }),
    ("entry.port-range.from", |acl| {
        acl.entry_set.iter().filter_map(|e| e.port_range.map(|p| p.from.to_string().into())).collect()
    }),
    ("entry.port-range.to", |acl| {
        acl.entry_set.iter().filter_map(|e| e.port_range.map(|p| p.to.to_string().into())).collect()
    }),
    ("entry.protocol", |acl| acl.entry_set.iter().map(|e| (&e.protocol).into()).collect()),
    ("entry.rule-action", |acl| acl.entry_set.iter().map(|e| e.rule_action.into()).collect()),
    ("entry.rule-number", |acl| acl.entry_set.iter().map(|e| e.rule_number.to_string().into()).collect()),
    ("network-acl-id", |acl| vec![acl.network_acl_id.as_str().into()]),
    ("owner-id", |acl| vec![(&acl.owner_id).into()]),
    ("vpc-id", |acl| vec![acl.vpc_id.as_str().into()]),
];

fn info(acl: NetworkAclRow, tag_set: Vec<Tag>) -> AclInfo {
    let knows_ipv6 = acl.entries.iter().any(|e| e.cidr.v6().is_some());
    let ipv6 = knows_ipv6.then_some((LAST + 1, Net::V6(Cidr6::ANYWHERE)));
    let last = std::iter::once((LAST, Net::V4(Cidr::ANYWHERE))).chain(ipv6).flat_map(|(number, cidr)| {
        [false, true].map(|egress| EntryRow { egress, number, protocol: "-1".into(), allow: false, cidr, range: None })
    });
    let mut entries: Vec<EntryRow> = acl.entries.into_iter().chain(last).collect();
    entries.sort_by_key(|e| (!e.egress, e.number));
    let entry = |e: EntryRow| EntryInfo {
        icmp_type_code: e.range.filter(|_| e.is_icmp()).map(|(r#type, code)| IcmpTypeCode { r#type, code }),
        port_range: e.range.filter(|_| !e.is_icmp()).map(|(from, to)| PortRange { from, to }),
        rule_number: e.number,
        protocol: e.protocol,
        rule_action: if e.allow { "allow" } else { "deny" },
        egress: e.egress,
        cidr_block: e.cidr.v4(),
        ipv6_cidr_block: e.cidr.v6(),
    };
    let association =
        |(id, subnet_id)| AssociationInfo { network_acl_association_id: id, network_acl_id: acl.id.clone(), subnet_id };
    AclInfo {
        entry_set: entries.into_iter().map(entry).collect(),
        association_set: acl.associations.into_iter().map(association).collect(),
        network_acl_id: acl.id.clone(),
        vpc_id: acl.vpc,
        owner_id: acl.account,
        default: acl.is_default,
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeNetworkAcls) -> Outcome<DescribedNetworkAcls> {
    let account = call.account().to_owned();
    let (acls, mut tags) = call
        .cloud
        .store
        .read("describe network ACLs", move |tx| {
            Ok::<_, StoreError>((all(tx, Some(&account))?, tag::of_kind(tx, &account, NetworkAclId::PREFIX)?))
        })
        .await?;
    let infos = acls
        .into_iter()
        .map(|acl| {
            let tag_set = tags.take(acl.id.as_str());
            info(acl, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.network_acl_id.iter().map(NetworkAclId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (network_acl_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |acl| acl.network_acl_id.as_str(), not_found, infos)?;
    Ok(DescribedNetworkAcls { network_acl_set, next_token })
}
