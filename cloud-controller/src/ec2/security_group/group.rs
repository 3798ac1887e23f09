//! The groups themselves.

use std::collections::BTreeMap;

use mallee_aws::{
    AwsError,
    filter::{Attribute, Filter, Tagged},
    id::{SecurityGroupId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use super::{
    MAX_PER_VPC,
    permission::{IpPermission, Peer, Traffic, grouped},
    rule::{self, Direction, RuleRow},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, interface,
        listing::{self, Wanted},
        tag::{self, Tag, TagSpecification},
        unique_is, unless_dry_run, vpc,
    },
    service::Call,
};

actions![
    CreateSecurityGroup => create,
    DeleteSecurityGroup => delete,
    DescribeSecurityGroups => describe,
];

pub const TABLES: &str = "
CREATE TABLE security_group (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (vpc, name)
);
CREATE INDEX security_group_of ON security_group (account);
";

/// Every VPC has one of this name, and nobody may make or delete it.
pub const DEFAULT: &str = "default";

/// A group as its row is.
#[derive(Debug, Clone)]
pub struct GroupRow {
    pub id: SecurityGroupId,
    pub account: String,
    pub vpc: VpcId,
    pub name: String,
    pub description: String,
}

const COLUMNS: &str = "id, account, vpc, name, description";

fn read(row: &Row<'_>) -> Result<GroupRow, StoreError> {
    Ok(GroupRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Id<_>>(2)?.0,
        name: row.get(3)?,
        description: row.get(4)?,
    })
}

/// The groups of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<GroupRow>, StoreError> {
    tx.query(
        &format!("SELECT {COLUMNS} FROM security_group WHERE {} ORDER BY id", listing::whose(account)),
        params![account],
        read,
    )
}

/// How many groups a VPC has, the default one included.
pub fn count_in_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<i64, StoreError> {
    tx.query_one("SELECT COUNT(*) FROM security_group WHERE vpc = ?1", params![vpc.as_str()], |row| row.get(0))
}

/// The VPC ends: its groups go.
pub fn drop_of_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<(), StoreError> {
    let ids: Vec<SecurityGroupId> =
        tx.query("SELECT id FROM security_group WHERE vpc = ?1", params![vpc.as_str()], |row| {
            Ok(row.get::<Id<_>>(0)?.0)
        })?;
    for id in ids {
        rule::drop_of_group(tx, &id)?;
        tx.execute("DELETE FROM security_group WHERE id = ?1", params![id.as_str()])?;
        tag::drop_all(tx, id.as_str())?;
    }
    Ok(())
}

/// Names by id.
pub fn names(tx: &mut Tx<'_>, account: Option<&str>) -> Result<BTreeMap<SecurityGroupId, String>, StoreError> {
    Ok(all(tx, account)?.into_iter().map(|g| (g.id, g.name)).collect())
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &SecurityGroupId) -> Outcome<GroupRow> {
    tx.query_opt(
        &format!("SELECT {COLUMNS} FROM security_group WHERE account = ?1 AND id = ?2"),
        params![account, id.as_str()],
        read,
    )?
    .ok_or_else(|| not_found(id.as_str()))
}

/// The group of this name in a VPC.
pub fn by_name(tx: &mut Tx<'_>, vpc: &VpcId, name: &str) -> Outcome<GroupRow> {
    tx.query_opt(
        &format!("SELECT {COLUMNS} FROM security_group WHERE vpc = ?1 AND name = ?2"),
        params![vpc.as_str(), name],
        read,
    )?
    .ok_or_else(|| not_found_named(name, vpc))
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidGroup.NotFound", format!("The security group '{id}' does not exist"))
}

fn not_found_named(name: &str, vpc: &VpcId) -> Refusal {
    Refusal::new("InvalidGroup.NotFound", format!("The security group '{name}' does not exist in VPC '{vpc}'"))
}

/// The group a request means by `GroupId`, or by `GroupName` in the default VPC.
pub fn named(tx: &mut Tx<'_>, account: &str, id: Option<&SecurityGroupId>, name: Option<&str>) -> Outcome<GroupRow> {
    match (id, name) {
        (Some(id), Some(name)) => {
            let group = get(tx, account, id)?;
            if group.name == name {
                return Ok(group);
            }
            let message = "The parameters groupName and groupId name two different groups";
            Err(AwsError::invalid_parameter_combination(message).into())
        }
        (Some(id), None) => get(tx, account, id),
        (None, Some(name)) => {
            let vpc = vpc::or_default(tx, account)?;
            by_name(tx, &vpc.id, name)
        }
        (None, None) => {
            let message = "The request must contain the parameter groupName or groupId";
            Err(Refusal::new("MissingParameter", message))
        }
    }
}

/// The groups of a launch in `vpc`, by id and by name; the VPC's default group when none is named. No group twice.
pub fn for_launch(
    tx: &mut Tx<'_>,
    account: &str,
    vpc: &VpcId,
    ids: &[SecurityGroupId],
    names: &[String],
) -> Outcome<Vec<SecurityGroupId>> {
    let mut groups = Vec::new();
    for id in ids {
        let group = get(tx, account, id)?;
        if group.vpc != *vpc {
            let message = format!("Security group {id} and the subnet belong to different networks.");
            return Err(Refusal::new("InvalidGroup.NotFound", message));
        }
        groups.push(group.id);
    }
    for name in names {
        groups.push(by_name(tx, vpc, name)?.id);
    }
    if groups.is_empty() {
        groups.push(by_name(tx, vpc, DEFAULT)?.id);
    }
    groups.sort();
    groups.dedup();
    Ok(groups)
}

/// Writes a new group, and the rule every group is born with: all that its members send may go out.
pub fn insert(
    tx: &mut Tx<'_>,
    account: &str,
    vpc: &VpcId,
    name: &str,
    description: &str,
    now: i64,
) -> Outcome<GroupRow> {
    let group = GroupRow {
        id: SecurityGroupId::from_random(rand::random()),
        account: account.to_owned(),
        vpc: vpc.clone(),
        name: name.to_owned(),
        description: description.to_owned(),
    };
    tx.execute(
        "INSERT INTO security_group (id, account, vpc, name, description, created) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![group.id.as_str(), account, vpc.as_str(), name, description, now],
    )
    .map_err(|e| unique_is(e, || duplicate(name, vpc)))?;
    rule::insert(tx, &group, Direction::Egress, &Traffic::everything(Peer::anywhere()), None)?;
    if vpc::ipv6::of(tx, vpc)?.is_some() {
        rule::insert(tx, &group, Direction::Egress, &Traffic::everything(Peer::anywhere6()), None)?;
    }
    Ok(group)
}

/// The VPC has IPv6 from now on: groups that still let everything out let that out as well.
pub fn let_ipv6_out(tx: &mut Tx<'_>, vpc: &VpcId) -> Outcome<()> {
    let groups = tx.query(
        &format!("SELECT {COLUMNS} FROM security_group WHERE vpc = ?1 ORDER BY id"),
        params![vpc.as_str()],
        read,
    )?;
    for group in groups {
        let there = rule::of_group(tx, &group.id, Direction::Egress)?;
        let has = |peer: &Peer| there.iter().any(|r| r.traffic == Traffic::everything(peer.clone()));
        if has(&Peer::anywhere()) && !has(&Peer::anywhere6()) {
            rule::insert(tx, &group, Direction::Egress, &Traffic::everything(Peer::anywhere6()), None)?;
        }
    }
    Ok(())
}

fn duplicate(name: &str, vpc: &VpcId) -> Refusal {
    let message = format!("The security group '{name}' already exists for VPC '{vpc}'");
    Refusal::new("InvalidGroup.Duplicate", message)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateSecurityGroup {
    dry_run: Option<bool>,
    group_name: String,
    group_description: String,
    vpc_id: Option<VpcId>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedSecurityGroup {
    #[serde(rename = "return")]
    done: bool,
    group_id: SecurityGroupId,
    tag_set: Vec<Tag>,
    security_group_arn: String,
}

/// AWS' characters for names and descriptions.
fn check_text(what: &str, text: &str) -> Outcome<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    let length = text.chars().count();
    if length == 0 || length > 255 {
        let message = format!("Value ({text}) for parameter {what} is invalid. It must have 1 to 255 characters.");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    if !text.chars().all(allowed) {
        let message = format!(
            "Value ({text}) for parameter {what} is invalid. Character sets beyond ASCII are not supported: use a-z, A-Z, \
             0-9, spaces, and ._-:/()#,@[]+=&;{{}}!$*"
        );
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    Ok(())
}

async fn create(call: &Call, input: CreateSecurityGroup) -> Outcome<CreatedSecurityGroup> {
    check_text("GroupName", &input.group_name)?;
    check_text("GroupDescription", &input.group_description)?;
    if input.group_name.starts_with("sg-") {
        let message = "Invalid value for groupName: group names may not be in the format sg-*";
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    if input.group_name == DEFAULT {
        return Err(Refusal::new("InvalidGroup.Reserved", "The group name 'default' is reserved"));
    }
    let tags =
        tag::specified(&input.tag_specification, &["security-group"])?.remove("security-group").unwrap_or_default();
    let (account, now) = (call.account().to_owned(), call.now);
    let (group, tag_set) = call
        .cloud
        .store
        .write("create a security group", move |tx| {
            let vpc = match &input.vpc_id {
                Some(id) => vpc::get(tx, &account, id)?,
                None => vpc::or_default(tx, &account)?,
            };
            let count: i64 =
                tx.query_one("SELECT COUNT(*) FROM security_group WHERE vpc = ?1", params![vpc.id.as_str()], |row| {
                    row.get(0)
                })?;
            if count >= MAX_PER_VPC {
                let message = format!("The VPC already has {MAX_PER_VPC} security groups");
                return Err(Refusal::new("SecurityGroupLimitExceeded", message));
            }
            let group = insert(tx, &account, &vpc.id, &input.group_name, &input.group_description, now)?;
            tag::put(tx, &account, group.id.as_str(), &tags)?;
            unless_dry_run(input.dry_run)?;
            Ok((group, tags.clone()))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(CreatedSecurityGroup { done: true, security_group_arn: arn(call, &group), group_id: group.id, tag_set })
}

fn arn(call: &Call, group: &GroupRow) -> String {
    call.cloud.arn("ec2", &group.account, &format!("security-group/{}", group.id))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteSecurityGroup {
    dry_run: Option<bool>,
    group_id: Option<SecurityGroupId>,
    group_name: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletedSecurityGroup {
    #[serde(rename = "return")]
    done: bool,
    group_id: SecurityGroupId,
}

async fn delete(call: &Call, input: DeleteSecurityGroup) -> Outcome<DeletedSecurityGroup> {
    let account = call.account().to_owned();
    let group_id = call
        .cloud
        .store
        .write("delete a security group", move |tx| {
            let group = named(tx, &account, input.group_id.as_ref(), input.group_name.as_deref())?;
            if group.name == DEFAULT {
                let message =
                    format!("the specified group: \"{}\" name: \"default\" cannot be deleted by a user", group.id);
                return Err(Refusal::new("CannotDelete", message));
            }
            let id = group.id.as_str();
            if interface::group_in_use(tx, &group.id)? || rule::refers_to(tx, &group.id)? {
                // By name is EC2 classic's way to ask, which has its own code.
                let code = if input.group_id.is_some() { "DependencyViolation" } else { "InvalidGroup.InUse" };
                return Err(Refusal::new(code, format!("resource {id} has a dependent object")));
            }
            rule::drop_of_group(tx, &group.id)?;
            tx.execute("DELETE FROM security_group WHERE id = ?1", params![id])?;
            tag::drop_all(tx, id)?;
            unless_dry_run(input.dry_run)?;
            Ok(group.id)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(DeletedSecurityGroup { done: true, group_id })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeSecurityGroups {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    group_id: Vec<SecurityGroupId>,
    #[serde(default)]
    group_name: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedSecurityGroups {
    security_group_info: Vec<GroupInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupInfo {
    owner_id: String,
    group_id: SecurityGroupId,
    group_name: String,
    group_description: String,
    vpc_id: VpcId,
    ip_permissions: Vec<IpPermission>,
    ip_permissions_egress: Vec<IpPermission>,
    tag_set: Vec<Tag>,
    security_group_arn: String,
}

impl Tagged for GroupInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

/// A filter on any permission of one direction.
macro_rules! permission_filters {
    ($prefix:literal, $list:ident) => {
        [
            (concat!($prefix, "cidr"), |g| {
                g.$list.iter().flat_map(|p| p.ip_ranges.iter().map(|r| r.cidr_ip.to_string().into())).collect()
            }),
            (concat!($prefix, "from-port"), |g| {
                g.$list.iter().filter_map(|p| p.from_port.map(|n| n.to_string().into())).collect()
            }),
            (concat!($prefix, "group-id"), |g| {
                g.$list.iter().flat_map(|p| p.groups.iter().map(|r| r.group_id.to_string().into())).collect()
            }),
            (concat!($prefix, "group-name"), |g| {
                g.$list
                    .iter()
                    .flat_map(|p| p.groups.iter().filter_map(|r| r.group_name.as_deref().map(Into::into)))
                    .collect()
            }),
            (concat!($prefix, "ipv6-cidr"), |g| {
                g.$list.iter().flat_map(|p| p.ipv6_ranges.iter().map(|r| r.cidr_ipv6.to_string().into())).collect()
            }),
            (concat!($prefix, "prefix-list-id"), |g| {
                g.$list
                    .iter()
                    .flat_map(|p| p.prefix_list_ids.iter().map(|r| r.prefix_list_id.to_string().into()))
                    .collect()
            }),
            (concat!($prefix, "protocol"), |g| g.$list.iter().map(|p| (&p.ip_protocol).into()).collect()),
            (concat!($prefix, "to-port"), |g| {
                g.$list.iter().filter_map(|p| p.to_port.map(|n| n.to_string().into())).collect()
            }),
            (concat!($prefix, "user-id"), |g| {
                g.$list.iter().flat_map(|p| p.groups.iter().map(|r| (&r.user_id).into())).collect()
            }),
        ]
    };
}

const PERMISSION: [Attribute<GroupInfo>; 9] = permission_filters!("ip-permission.", ip_permissions);
const EGRESS: [Attribute<GroupInfo>; 9] = permission_filters!("egress.ip-permission.", ip_permissions_egress);

const ATTRIBUTES: &[Attribute<GroupInfo>] = &[
    ("description", |g| vec![(&g.group_description).into()]),
    ("group-id", |g| vec![g.group_id.as_str().into()]),
    ("group-name", |g| vec![(&g.group_name).into()]),
    ("owner-id", |g| vec![(&g.owner_id).into()]),
    ("vpc-id", |g| vec![g.vpc_id.as_str().into()]),
    PERMISSION[0],
    PERMISSION[1],
    PERMISSION[2],
    PERMISSION[3],
    PERMISSION[4],
    PERMISSION[5],
    PERMISSION[6],
    PERMISSION[7],
    PERMISSION[8],
    EGRESS[0],
    EGRESS[1],
    EGRESS[2],
    EGRESS[3],
    EGRESS[4],
    EGRESS[5],
    EGRESS[6],
    EGRESS[7],
    EGRESS[8],
];

async fn describe(call: &Call, input: DescribeSecurityGroups) -> Outcome<DescribedSecurityGroups> {
    let account = call.account().to_owned();
    let (groups, mut rules, mut tags, default_vpc) = call
        .cloud
        .store
        .read("describe security groups", move |tx| {
            let groups = all(tx, Some(&account))?;
            let mut rules: BTreeMap<SecurityGroupId, Vec<RuleRow>> = BTreeMap::new();
            for rule in rule::all(tx, Some(&account))? {
                rules.entry(rule.group.clone()).or_default().push(rule);
            }
            let tags = tag::of_kind(tx, &account, SecurityGroupId::PREFIX)?;
            Ok::<_, StoreError>((groups, rules, tags, vpc::default_of(tx, &account)?))
        })
        .await?;
    // Names mean groups of the default VPC, as they always did.
    let mut ids: Vec<&str> = input.group_id.iter().map(SecurityGroupId::as_str).collect();
    for name in &input.group_name {
        let found = groups.iter().find(|g| g.name == *name && default_vpc.as_ref().is_some_and(|v| v.id == g.vpc));
        match (found, &default_vpc) {
            (Some(group), _) => ids.push(group.id.as_str()),
            (None, Some(vpc)) => return Err(not_found_named(name, &vpc.id)),
            (None, None) => return Err(not_found(name)),
        }
    }
    let names: BTreeMap<SecurityGroupId, String> = groups.iter().map(|g| (g.id.clone(), g.name.clone())).collect();
    let infos = groups
        .iter()
        .map(|group| {
            let (ingress, egress): (Vec<_>, Vec<_>) = rules
                .remove(&group.id)
                .unwrap_or_default()
                .into_iter()
                .partition(|rule| rule.direction == Direction::Ingress);
            GroupInfo {
                security_group_arn: arn(call, group),
                owner_id: group.account.clone(),
                group_id: group.id.clone(),
                group_name: group.name.clone(),
                group_description: group.description.clone(),
                vpc_id: group.vpc.clone(),
                ip_permissions: grouped(&ingress, call.account(), &names),
                ip_permissions_egress: grouped(&egress, call.account(), &names),
                tag_set: tags.take(group.id.as_str()),
            }
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids,
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (security_group_info, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |g| g.group_id.as_str(), not_found, infos)?;
    Ok(DescribedSecurityGroups { security_group_info, next_token })
}
