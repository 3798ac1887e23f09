//! Which groups a VPC's interfaces may be in, which VPCs at the other end of a peering connection refer to a group, and which rules refer to what is gone.
//!
//! Rules refer to groups of their own VPC only, so nothing across a peering connection refers to anything, and no rule is
//! ever stale.

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::{SecurityGroupId, VpcId},
};
use serde::{Deserialize, Serialize};

use super::group;
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        listing::{self, Wanted},
        tag::{self, Tag},
        unless_dry_run, vpc,
    },
    service::Call,
};

actions![
    DescribeSecurityGroupReferences => references,
    DescribeStaleSecurityGroups => stale,
    GetSecurityGroupsForVpc => of_vpc,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeSecurityGroupReferences {
    dry_run: Option<bool>,
    group_id: Vec<SecurityGroupId>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct References {
    security_group_reference_set: [(); 0],
}

async fn references(call: &Call, input: DescribeSecurityGroupReferences) -> Outcome<References> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .read("find security groups", move |tx| {
            for id in &input.group_id {
                group::get(tx, &account, id)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    Ok(References { security_group_reference_set: [] })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeStaleSecurityGroups {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Stale {
    stale_security_group_set: Vec<StaleGroup>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StaleGroup {
    group_id: SecurityGroupId,
}

impl Tagged for StaleGroup {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

async fn stale(call: &Call, input: DescribeStaleSecurityGroups) -> Outcome<Stale> {
    let account = call.account().to_owned();
    call.cloud.store.read("find a VPC", move |tx| vpc::get(tx, &account, &input.vpc_id)).await?;
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &[],
        ids: Vec::new(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let nothing = |id: &str| Refusal::internal(format!("{id} was not asked for"));
    let (stale_security_group_set, next_token) =
        listing::page(call, &wanted, &[], |group: &StaleGroup| group.group_id.as_str(), nothing, Vec::new())?;
    Ok(Stale { stale_security_group_set, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetSecurityGroupsForVpc {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfVpc {
    security_group_for_vpc_set: Vec<Member>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    group_id: SecurityGroupId,
    group_name: String,
    description: String,
    owner_id: String,
    primary_vpc_id: VpcId,
    tag_set: Vec<Tag>,
}

impl Tagged for Member {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<Member>] = &[
    ("description", |g| vec![(&g.description).into()]),
    ("group-id", |g| vec![g.group_id.as_str().into()]),
    ("group-name", |g| vec![(&g.group_name).into()]),
    ("owner-id", |g| vec![(&g.owner_id).into()]),
    ("primary-vpc-id", |g| vec![g.primary_vpc_id.as_str().into()]),
];

/// A group belongs to one VPC, and no other shares it.
async fn of_vpc(call: &Call, input: GetSecurityGroupsForVpc) -> Outcome<OfVpc> {
    let (account, id) = (call.account().to_owned(), input.vpc_id);
    let read = move |tx: &mut mallee_store::Tx<'_>| {
        let vpc = vpc::get(tx, &account, &id)?.id;
        let mut tags = tag::of_kind(tx, &account, SecurityGroupId::PREFIX)?;
        let groups = group::all(tx, Some(&account))?.into_iter().filter(|group| group.vpc == vpc);
        let members = groups.map(|group| Member {
            tag_set: tags.take(group.id.as_str()),
            group_id: group.id,
            group_name: group.name,
            description: group.description,
            owner_id: group.account,
            primary_vpc_id: group.vpc,
        });
        Ok::<Vec<Member>, Refusal>(members.collect())
    };
    let members = call.cloud.store.read("list a VPC's security groups", read).await?;
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: Vec::new(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (security_group_for_vpc_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |g| g.group_id.as_str(), group::not_found, members)?;
    Ok(OfVpc { security_group_for_vpc_set, next_token })
}
