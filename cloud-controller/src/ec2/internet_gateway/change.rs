//! Making internet gateways, attaching and detaching them, and ending them.

use mallee_aws::{
    AwsError,
    id::{InternetGatewayId, VpcId},
};
use mallee_store::params;
use serde::{Deserialize, Serialize};

use super::{GatewayInfo, InternetGatewayRow, get, info, of_vpc};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        interface,
        tag::{self, Tag, TagSpecification},
        unless_dry_run, vpc,
    },
    service::Call,
};

actions![
    AttachInternetGateway => attach,
    CreateInternetGateway => create,
    DeleteInternetGateway => delete,
    DetachInternetGateway => detach,
];

/// As many as VPCs.
fn check_limit(count: u64, most: u64) -> Outcome<()> {
    if count >= most {
        let message = format!("The maximum number of internet gateways has been reached ({most}).");
        return Err(Refusal::new("InternetGatewayLimitExceeded", message));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateInternetGateway {
    dry_run: Option<bool>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedInternetGateway {
    internet_gateway: GatewayInfo,
}

async fn create(call: &Call, input: CreateInternetGateway) -> Outcome<CreatedInternetGateway> {
    let kind = "internet-gateway";
    let tags = tag::specified(&input.tag_specification, &[kind])?.remove(kind).unwrap_or_default();
    let (account, now, most) = (call.account().to_owned(), call.now, call.cloud.config.max_vpcs);
    let (row, tag_set) = call
        .cloud
        .store
        .write("create an internet gateway", move |tx| {
            let count = super::all(tx, Some(&account))?.len() as u64;
            check_limit(count, most)?;
            let id = InternetGatewayId::from_random(rand::random());
            tx.execute(
                "INSERT INTO internet_gateway (id, account, created) VALUES (?1, ?2, ?3)",
                params![id.as_str(), account, now],
            )?;
            tag::put(tx, &account, id.as_str(), &tags)?;
            let tag_set: Vec<Tag> = tag::of(tx, id.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((InternetGatewayRow { id, account: account.clone(), vpc: None }, tag_set))
        })
        .await?;
    Ok(CreatedInternetGateway { internet_gateway: info(row, tag_set) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AttachInternetGateway {
    dry_run: Option<bool>,
    internet_gateway_id: InternetGatewayId,
    vpc_id: VpcId,
}

async fn attach(call: &Call, input: AttachInternetGateway) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("attach an internet gateway", move |tx| {
            let gateway = get(tx, &account, &input.internet_gateway_id)?;
            let vpc = vpc::get(tx, &account, &input.vpc_id)?;
            if let Some(there) = &gateway.vpc {
                let message = format!("resource {} is already attached to network {there}", gateway.id);
                return Err(Refusal::new("Resource.AlreadyAssociated", message));
            }
            if of_vpc(tx, &vpc.id)?.is_some() {
                let message = format!("Network {} already has an internet gateway attached", vpc.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            tx.execute(
                "UPDATE internet_gateway SET vpc = ?2 WHERE id = ?1",
                params![gateway.id.as_str(), vpc.id.as_str()],
            )?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DetachInternetGateway {
    dry_run: Option<bool>,
    internet_gateway_id: InternetGatewayId,
    vpc_id: VpcId,
}

/// Not while the VPC has public addresses: they would lead nowhere.
async fn detach(call: &Call, input: DetachInternetGateway) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("detach an internet gateway", move |tx| {
            let gateway = get(tx, &account, &input.internet_gateway_id)?;
            let vpc = vpc::get(tx, &account, &input.vpc_id)?;
            if gateway.vpc.as_ref() != Some(&vpc.id) {
                let message = format!("resource {} is not attached to network {}", gateway.id, vpc.id);
                return Err(Refusal::new("Gateway.NotAttached", message));
            }
            if interface::has_public(tx, &account, &vpc.id)? {
                let message = format!(
                    "Network {} has some mapped public address(es). Please unmap those public address(es) before \
                     detaching the gateway.",
                    vpc.id
                );
                return Err(Refusal::new("DependencyViolation", message));
            }
            tx.execute("UPDATE internet_gateway SET vpc = NULL WHERE id = ?1", params![gateway.id.as_str()])?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteInternetGateway {
    dry_run: Option<bool>,
    internet_gateway_id: InternetGatewayId,
}

/// Routes to it stay, as black holes.
async fn delete(call: &Call, input: DeleteInternetGateway) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete an internet gateway", move |tx| {
            let gateway = get(tx, &account, &input.internet_gateway_id)?;
            if gateway.vpc.is_some() {
                let message = format!("The internetGateway '{}' has dependencies and cannot be deleted.", gateway.id);
                return Err(Refusal::new("DependencyViolation", message));
            }
            tag::drop_all(tx, gateway.id.as_str())?;
            tx.execute("DELETE FROM internet_gateway WHERE id = ?1", params![gateway.id.as_str()])?;
            unless_dry_run(input.dry_run)
        })
        .await
}
