//! Making network ACLs, saying which subnets are under them, and ending them.

use mallee_aws::{
    AwsError,
    id::{NetworkAclAssociationId, NetworkAclId, VpcId},
};
use mallee_store::params;
use serde::{Deserialize, Serialize};

use super::{AclInfo, all, associate, drop_acl, get, info};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        client_token,
        tag::{self, Tag, TagSpecification},
        unless_dry_run, vpc,
    },
    service::Call,
};

actions![
    CreateNetworkAcl => create,
    DeleteNetworkAcl => delete,
    ReplaceNetworkAclAssociation => replace_association,
];

/// AWS' default.
const MAX_PER_VPC: i64 = 200;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateNetworkAcl {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    client_token: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedNetworkAcl {
    network_acl: AclInfo,
    client_token: Option<String>,
}

/// A new one denies everything.
async fn create(call: &Call, input: CreateNetworkAcl) -> Outcome<CreatedNetworkAcl> {
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let tags = tag::specified(&input.tag_specification, &["network-acl"])?.remove("network-acl").unwrap_or_default();
    let (account, now, dry_run) = (call.account().to_owned(), call.now, input.dry_run);
    let (acl, tag_set) = call
        .cloud
        .store
        .write("create a network ACL", move |tx| {
            let made = token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
            let id = match made {
                Some(id) => id.parse().map_err(Refusal::from)?,
                None => {
                    let vpc = vpc::get(tx, &account, &input.vpc_id)?;
                    if super::count_but_default(tx, &vpc.id)? + 1 >= MAX_PER_VPC {
                        let message = format!("The maximum number of network ACLs has been reached ({MAX_PER_VPC}).");
                        return Err(Refusal::new("NetworkAclLimitExceeded", message));
                    }
                    let id = NetworkAclId::from_random(rand::random());
                    tx.execute(
                        "INSERT INTO network_acl (id, account, vpc, created) VALUES (?1, ?2, ?3, ?4)",
                        params![id.as_str(), account, vpc.id.as_str(), now],
                    )?;
                    tag::put(tx, &account, id.as_str(), &tags)?;
                    unless_dry_run(dry_run)?;
                    if let Some(token) = &token {
                        token.remember(tx, id.as_str())?;
                    }
                    id
                }
            };
            let tag_set: Vec<Tag> = tag::of(tx, id.as_str())?;
            Ok::<_, Refusal>((get(tx, &account, &id)?, tag_set))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(CreatedNetworkAcl { network_acl: info(acl, tag_set), client_token: input.client_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteNetworkAcl {
    dry_run: Option<bool>,
    network_acl_id: NetworkAclId,
}

async fn delete(call: &Call, input: DeleteNetworkAcl) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a network ACL", move |tx| {
            let acl = get(tx, &account, &input.network_acl_id)?;
            if acl.is_default {
                let message = format!("cannot delete default network ACL {}", acl.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            if !acl.associations.is_empty() {
                let message = format!("The networkAcl '{}' has dependencies and cannot be deleted.", acl.id);
                return Err(Refusal::new("DependencyViolation", message));
            }
            drop_acl(tx, acl.id.as_str())?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReplaceNetworkAclAssociation {
    dry_run: Option<bool>,
    association_id: NetworkAclAssociationId,
    network_acl_id: NetworkAclId,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Replaced {
    new_association_id: NetworkAclAssociationId,
}

async fn replace_association(call: &Call, input: ReplaceNetworkAclAssociation) -> Outcome<Replaced> {
    let account = call.account().to_owned();
    let new_association_id = call
        .cloud
        .store
        .write("replace a network ACL association", move |tx| {
            let acls = all(tx, Some(&account))?;
            let id = &input.association_id;
            let found = acls.iter().find_map(|acl| {
                acl.associations.iter().find(|(association, _)| association == id).map(|(_, subnet)| (acl, subnet))
            });
            let Some((old, subnet)) = found else {
                return Err(Refusal::new(
                    "InvalidAssociationID.NotFound",
                    format!("The association ID '{id}' does not exist"),
                ));
            };
            let acl = get(tx, &account, &input.network_acl_id)?;
            if acl.vpc != old.vpc {
                let message = format!("network ACL {} and subnet {subnet} belong to different networks", acl.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            let id = associate(tx, &acl.id, subnet)?;
            unless_dry_run(input.dry_run)?;
            Ok(id)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Replaced { new_association_id })
}
