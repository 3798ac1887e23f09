//! Which VPCs at the other end of a peering connection refer to a group, and which rules refer to what is gone.
//!
//! Rules refer to groups of their own VPC only, so nothing across a peering connection refers to anything, and no rule is
//! ever stale.

use mallee_aws::{
    filter::Tagged,
    id::{SecurityGroupId, VpcId},
};
use serde::{Deserialize, Serialize};

use super::group;
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        listing::{self, Wanted},
        unless_dry_run, vpc,
    },
    service::Call,
};

actions![
    DescribeSecurityGroupReferences => references,
    DescribeStaleSecurityGroups => stale,
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
