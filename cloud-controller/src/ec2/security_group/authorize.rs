//! Adding rules to groups and taking them away.

use mallee_aws::{
    AwsError,
    id::{PrefixListId, SecurityGroupId, SecurityGroupRuleId},
};
use mallee_store::Tx;
use serde::{Deserialize, Serialize};

use super::{
    group::{self, GroupRow},
    permission::{self, Asked, Flat, IpPermission, IpPermissionInput},
    rule::{self, Direction, RuleInfo, RuleRow},
};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
    },
    service::Call,
};

actions![
    AuthorizeSecurityGroupEgress => authorize_egress,
    AuthorizeSecurityGroupIngress => authorize_ingress,
    RevokeSecurityGroupEgress => revoke_egress,
    RevokeSecurityGroupIngress => revoke_ingress,
];

/// Declares an input of this page: all four actions take the same, but tags, rule ids and the flat form's source of
/// EC2's first days.
macro_rules! input {
    ($name:ident, $tags_or_rules:ident: $kind:ty) => {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct $name {
            dry_run: Option<bool>,
            group_id: Option<SecurityGroupId>,
            group_name: Option<String>,
            #[serde(default)]
            ip_permissions: Vec<IpPermissionInput>,
            ip_protocol: Option<String>,
            from_port: Option<i64>,
            to_port: Option<i64>,
            cidr_ip: Option<String>,
            source_security_group_name: Option<String>,
            source_security_group_owner_id: Option<String>,
            #[serde(default)]
            $tags_or_rules: Vec<$kind>,
        }

        impl $name {
            fn split(self) -> (Subject, Vec<$kind>) {
                let flat = Flat {
                    ip_protocol: self.ip_protocol,
                    from_port: self.from_port,
                    to_port: self.to_port,
                    cidr_ip: self.cidr_ip,
                    source_security_group_name: self.source_security_group_name,
                    source_security_group_owner_id: self.source_security_group_owner_id,
                };
                let subject = Subject {
                    dry_run: self.dry_run,
                    group_id: self.group_id,
                    group_name: self.group_name,
                    permissions: self.ip_permissions,
                    flat,
                };
                (subject, self.$tags_or_rules)
            }
        }
    };
}

input!(AuthorizeSecurityGroupIngress, tag_specification: TagSpecification);
input!(AuthorizeSecurityGroupEgress, tag_specification: TagSpecification);
input!(RevokeSecurityGroupIngress, security_group_rule_id: SecurityGroupRuleId);
input!(RevokeSecurityGroupEgress, security_group_rule_id: SecurityGroupRuleId);

/// Which group, and which permissions.
struct Subject {
    dry_run: Option<bool>,
    group_id: Option<SecurityGroupId>,
    group_name: Option<String>,
    permissions: Vec<IpPermissionInput>,
    flat: Flat,
}

impl Subject {
    fn group(&self, tx: &mut Tx<'_>, account: &str) -> Outcome<GroupRow> {
        group::named(tx, account, self.group_id.as_ref(), self.group_name.as_deref())
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Authorized {
    #[serde(rename = "return")]
    done: bool,
    security_group_rule_set: Vec<RuleInfo>,
}

async fn authorize_ingress(call: &Call, input: AuthorizeSecurityGroupIngress) -> Outcome<Authorized> {
    let (subject, tags) = input.split();
    authorize(call, subject, tags, Direction::Ingress).await
}

async fn authorize_egress(call: &Call, input: AuthorizeSecurityGroupEgress) -> Outcome<Authorized> {
    let (subject, tags) = input.split();
    authorize(call, subject, tags, Direction::Egress).await
}

/// All rules or none.
async fn authorize(
    call: &Call,
    subject: Subject,
    specifications: Vec<TagSpecification>,
    direction: Direction,
) -> Outcome<Authorized> {
    let kind = "security-group-rule";
    let tags: Vec<Tag> = tag::specified(&specifications, &[kind])?.remove(kind).unwrap_or_default();
    let (account, cloud, asked_tags) = (call.account().to_owned(), call.cloud.clone(), tags.clone());
    let rules = call
        .cloud
        .store
        .write("authorize traffic", move |tx| {
            let group = subject.group(tx, &account)?;
            let mut rules = Vec::new();
            for Asked { traffic, description } in
                permission::asked(tx, &cloud.config, &group, &subject.permissions, &subject.flat)?
            {
                let rule = rule::insert(tx, &group, direction, &traffic, description.as_deref())?;
                tag::put(tx, &account, rule.id.as_str(), &tags)?;
                rules.push(rule);
            }
            unless_dry_run(subject.dry_run)?;
            Ok::<_, Refusal>(rules)
        })
        .await?;
    call.cloud.pokes.network.poke();
    let security_group_rule_set = rules.into_iter().map(|r| rule::info(call, r, asked_tags.clone())).collect();
    Ok(Authorized { done: true, security_group_rule_set })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Revoked {
    #[serde(rename = "return")]
    done: bool,
    unknown_ip_permission_set: Vec<IpPermission>,
    revoked_security_group_rule_set: Vec<RevokedRule>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RevokedRule {
    security_group_rule_id: SecurityGroupRuleId,
    group_id: SecurityGroupId,
    is_egress: bool,
    ip_protocol: String,
    from_port: i64,
    to_port: i64,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    referenced_group_id: Option<SecurityGroupId>,
    prefix_list_id: Option<PrefixListId>,
    description: Option<String>,
}

async fn revoke_ingress(call: &Call, input: RevokeSecurityGroupIngress) -> Outcome<Revoked> {
    let (subject, rules) = input.split();
    revoke(call, subject, rules, Direction::Ingress).await
}

async fn revoke_egress(call: &Call, input: RevokeSecurityGroupEgress) -> Outcome<Revoked> {
    let (subject, rules) = input.split();
    revoke(call, subject, rules, Direction::Egress).await
}

/// All rules or none: one that is not there refuses the request.
async fn revoke(
    call: &Call,
    subject: Subject,
    ids: Vec<SecurityGroupRuleId>,
    direction: Direction,
) -> Outcome<Revoked> {
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    let revoked = call
        .cloud
        .store
        .write("revoke traffic", move |tx| {
            let group = subject.group(tx, &account)?;
            let there = rule::of_group(tx, &group.id, direction)?;
            let gone = if ids.is_empty() {
                by_permission(
                    &there,
                    &permission::asked(tx, &cloud.config, &group, &subject.permissions, &subject.flat)?,
                )?
            } else if subject.permissions.is_empty() {
                by_id(&there, &ids)?
            } else {
                let message = "You may specify IpPermissions or SecurityGroupRuleId, but not both in the same call";
                return Err(Refusal::from(AwsError::invalid_parameter_combination(message)));
            };
            for rule in &gone {
                rule::delete(tx, &rule.id)?;
            }
            unless_dry_run(subject.dry_run)?;
            Ok(gone)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Revoked {
        done: true,
        unknown_ip_permission_set: Vec::new(),
        revoked_security_group_rule_set: revoked.into_iter().map(shown).collect(),
    })
}

fn shown(rule: RuleRow) -> RevokedRule {
    use permission::Peer;
    let mut shown = RevokedRule {
        security_group_rule_id: rule.id,
        group_id: rule.group,
        is_egress: rule.direction == Direction::Egress,
        ip_protocol: rule.traffic.protocol.to_string(),
        from_port: rule.traffic.from,
        to_port: rule.traffic.to,
        cidr_ipv4: None,
        cidr_ipv6: None,
        referenced_group_id: None,
        prefix_list_id: None,
        description: rule.description,
    };
    match rule.traffic.peer {
        Peer::Ipv4(cidr) => shown.cidr_ipv4 = Some(cidr.to_string()),
        Peer::Ipv6(cidr) => shown.cidr_ipv6 = Some(cidr.to_string()),
        Peer::Group(id) => shown.referenced_group_id = Some(id),
        Peer::PrefixList(id) => shown.prefix_list_id = Some(id),
    }
    shown
}

/// Descriptions say nothing about which rule is meant.
fn by_permission(there: &[RuleRow], asked: &[Asked]) -> Outcome<Vec<RuleRow>> {
    let find = |a: &Asked| there.iter().find(|r| r.traffic == a.traffic).cloned().ok_or_else(missing);
    asked.iter().map(find).collect()
}

fn by_id(there: &[RuleRow], ids: &[SecurityGroupRuleId]) -> Outcome<Vec<RuleRow>> {
    let find = |id: &SecurityGroupRuleId| {
        there.iter().find(|r| r.id == *id).cloned().ok_or_else(|| rule::not_found(id.as_str()))
    };
    ids.iter().map(find).collect()
}

pub fn missing() -> Refusal {
    Refusal::new("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
}
