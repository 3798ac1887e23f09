//! Changing rules where they are: descriptions, and a rule as a whole.

use std::collections::BTreeSet;

use mallee_aws::{
    AwsError,
    id::{PrefixListId, SecurityGroupId, SecurityGroupRuleId},
};
use mallee_store::Tx;
use serde::Deserialize;

use super::{
    authorize,
    group::{self, GroupRow},
    permission::{self, Flat, IpPermissionInput, OnePeer, Protocol, Traffic, check_description, span},
    rule::{self, Direction, RuleRow},
};
use crate::{Config, Outcome, actions, ec2::unless_dry_run, service::Call};

actions![
    ModifySecurityGroupRules => modify,
    UpdateSecurityGroupRuleDescriptionsEgress => describe_egress,
    UpdateSecurityGroupRuleDescriptionsIngress => describe_ingress,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifySecurityGroupRules {
    dry_run: Option<bool>,
    group_id: SecurityGroupId,
    security_group_rule: Vec<RuleUpdate>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RuleUpdate {
    security_group_rule_id: SecurityGroupRuleId,
    security_group_rule: Option<RuleRequest>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RuleRequest {
    ip_protocol: Option<String>,
    from_port: Option<i64>,
    to_port: Option<i64>,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    referenced_group_id: Option<SecurityGroupId>,
    prefix_list_id: Option<PrefixListId>,
    description: Option<String>,
}

/// Rules keep their ids and their direction; everything else is as the request says.
async fn modify(call: &Call, input: ModifySecurityGroupRules) -> Outcome<()> {
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    call.cloud
        .store
        .write("modify security group rules", move |tx| {
            let group = group::get(tx, &account, &input.group_id)?;
            let mut there = rule::of_group(tx, &group.id, Direction::Ingress)?;
            there.extend(rule::of_group(tx, &group.id, Direction::Egress)?);
            let mut named = BTreeSet::new();
            for update in &input.security_group_rule {
                let id = &update.security_group_rule_id;
                if !named.insert(id.clone()) {
                    let message = format!("The rule '{id}' is named more than once");
                    return Err(AwsError::invalid_parameter_value(message).into());
                }
                let old = there.iter().find(|r| r.id == *id).ok_or_else(|| rule::not_found(id.as_str()))?;
                let request = update.security_group_rule.clone().unwrap_or_default();
                let rule = changed(tx, &cloud.config, &group, old, request)?;
                rule::update(tx, &rule)?;
            }
            rule::check_count(tx, &group.id)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

/// What the request leaves out is dropped if it may be (the description), else kept.
fn changed(
    tx: &mut Tx<'_>,
    config: &Config,
    group: &GroupRow,
    old: &RuleRow,
    request: RuleRequest,
) -> Outcome<RuleRow> {
    check_description(request.description.as_deref())?;
    let peer = OnePeer {
        cidr_ipv4: request.cidr_ipv4.as_deref(),
        cidr_ipv6: request.cidr_ipv6.as_deref(),
        referenced: request.referenced_group_id.as_ref(),
        prefix_list: request.prefix_list_id.as_ref(),
    };
    let peer = peer.read(tx, config, group)?;
    let protocol = request.ip_protocol.as_deref().map_or(Ok(old.traffic.protocol), str::parse::<Protocol>)?;
    let same_protocol = protocol == old.traffic.protocol;
    let (from, to) = match (request.from_port, request.to_port) {
        (None, None) if same_protocol => (old.traffic.from, old.traffic.to),
        (from, to) => span(protocol, from, to)?,
    };
    Ok(RuleRow {
        traffic: Traffic { protocol, from, to, peer: peer.unwrap_or_else(|| old.traffic.peer.clone()) },
        description: request.description.filter(|d| !d.is_empty()),
        ..old.clone()
    })
}

/// Declares the inputs of the two directions, which are alike.
macro_rules! input {
    ($name:ident) => {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct $name {
            dry_run: Option<bool>,
            group_id: Option<SecurityGroupId>,
            group_name: Option<String>,
            #[serde(default)]
            ip_permissions: Vec<IpPermissionInput>,
            #[serde(default)]
            security_group_rule_description: Vec<RuleDescription>,
        }

        impl From<$name> for Descriptions {
            fn from(input: $name) -> Self {
                Self {
                    dry_run: input.dry_run,
                    group_id: input.group_id,
                    group_name: input.group_name,
                    permissions: input.ip_permissions,
                    by_id: input.security_group_rule_description,
                }
            }
        }
    };
}

input!(UpdateSecurityGroupRuleDescriptionsIngress);
input!(UpdateSecurityGroupRuleDescriptionsEgress);

struct Descriptions {
    dry_run: Option<bool>,
    group_id: Option<SecurityGroupId>,
    group_name: Option<String>,
    permissions: Vec<IpPermissionInput>,
    by_id: Vec<RuleDescription>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RuleDescription {
    security_group_rule_id: SecurityGroupRuleId,
    description: Option<String>,
}

async fn describe_ingress(call: &Call, input: UpdateSecurityGroupRuleDescriptionsIngress) -> Outcome<()> {
    set_descriptions(call, input.into(), Direction::Ingress).await
}

async fn describe_egress(call: &Call, input: UpdateSecurityGroupRuleDescriptionsEgress) -> Outcome<()> {
    set_descriptions(call, input.into(), Direction::Egress).await
}

/// Without a description a rule's is removed.
async fn set_descriptions(call: &Call, input: Descriptions, direction: Direction) -> Outcome<()> {
    if input.permissions.is_empty() == input.by_id.is_empty() {
        let message = "Exactly one of IpPermissions and SecurityGroupRuleDescription must be given";
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    call.cloud
        .store
        .write("describe security group rules", move |tx| {
            let group = group::named(tx, &account, input.group_id.as_ref(), input.group_name.as_deref())?;
            let there = rule::of_group(tx, &group.id, direction)?;
            let mut changes: Vec<(&RuleRow, Option<String>)> = Vec::new();
            for RuleDescription { security_group_rule_id: id, description } in &input.by_id {
                check_description(description.as_deref())?;
                let found = there.iter().find(|r| r.id == *id).ok_or_else(|| rule::not_found(id.as_str()))?;
                changes.push((found, description.clone()));
            }
            if !input.permissions.is_empty() {
                for asked in permission::asked(tx, &cloud.config, &group, &input.permissions, &Flat::default())? {
                    let found = there.iter().find(|r| r.traffic == asked.traffic).ok_or_else(authorize::missing)?;
                    changes.push((found, asked.description));
                }
            }
            for (rule, description) in changes {
                let description = description.filter(|d| !d.is_empty());
                rule::update(tx, &RuleRow { description, ..rule.clone() })?;
            }
            unless_dry_run(input.dry_run)
        })
        .await
}
