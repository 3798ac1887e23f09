//! Making route tables, saying which subnets they are for, and ending them.

use mallee_aws::{
    AwsError,
    id::{RouteTableAssociationId, RouteTableId, SubnetId, VpcId},
};
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};

use super::{RouteTableRow, State, TableInfo, all, get, info};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        client_token, subnet,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
        vpc::{self, VpcRow},
    },
    service::Call,
};

actions![
    AssociateRouteTable => associate,
    CreateRouteTable => create,
    DeleteRouteTable => delete,
    DisassociateRouteTable => disassociate,
    ReplaceRouteTableAssociation => replace_association,
];

/// AWS' default.
const MAX_PER_VPC: i64 = 200;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateRouteTable {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    client_token: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedRouteTable {
    route_table: TableInfo,
    client_token: Option<String>,
}

async fn create(call: &Call, input: CreateRouteTable) -> Outcome<CreatedRouteTable> {
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let tags = tag::specified(&input.tag_specification, &["route-table"])?.remove("route-table").unwrap_or_default();
    let (account, now, dry_run) = (call.account().to_owned(), call.now, input.dry_run);
    let (table, vpc, tag_set) = call
        .cloud
        .store
        .write("create a route table", move |tx| {
            let made = token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
            let id = match made {
                Some(id) => id.parse().map_err(Refusal::from)?,
                None => {
                    let id = insert(tx, &account, &input.vpc_id, now)?;
                    tag::put(tx, &account, id.as_str(), &tags)?;
                    unless_dry_run(dry_run)?;
                    if let Some(token) = &token {
                        token.remember(tx, id.as_str())?;
                    }
                    id
                }
            };
            let table = get(tx, &account, &id)?;
            let vpc: VpcRow = vpc::get(tx, &account, &table.vpc)?;
            let tag_set: Vec<Tag> = tag::of(tx, id.as_str())?;
            Ok::<_, Refusal>((table, vpc, tag_set))
        })
        .await?;
    call.cloud.pokes.network.poke();
    let client_token = input.client_token;
    Ok(CreatedRouteTable { route_table: info(table, Some(&vpc), tag_set), client_token })
}

/// Writes an empty table.
pub fn insert(tx: &mut Tx<'_>, account: &str, vpc: &VpcId, now: i64) -> Outcome<RouteTableId> {
    let vpc = vpc::get(tx, account, vpc)?;
    let count: i64 =
        tx.query_one("SELECT COUNT(*) FROM route_table WHERE vpc = ?1", params![vpc.id.as_str()], |row| row.get(0))?;
    if count >= MAX_PER_VPC {
        let message = format!("The maximum number of route tables has been reached ({MAX_PER_VPC}).");
        return Err(Refusal::new("RouteTableLimitExceeded", message));
    }
    let id = RouteTableId::from_random(rand::random());
    tx.execute(
        "INSERT INTO route_table (id, account, vpc, created) VALUES (?1, ?2, ?3, ?4)",
        params![id.as_str(), account, vpc.id.as_str(), now],
    )?;
    Ok(id)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteRouteTable {
    dry_run: Option<bool>,
    route_table_id: RouteTableId,
}

async fn delete(call: &Call, input: DeleteRouteTable) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a route table", move |tx| {
            let table = get(tx, &account, &input.route_table_id)?;
            let id = table.id.as_str();
            if !table.associations.is_empty() {
                let message = format!("The routeTable '{id}' has dependencies and cannot be deleted.");
                return Err(Refusal::new("DependencyViolation", message));
            }
            tx.execute("DELETE FROM route WHERE route_table = ?1", params![id])?;
            tx.execute("DELETE FROM route_table WHERE id = ?1", params![id])?;
            tag::drop_all(tx, id)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssociateRouteTable {
    dry_run: Option<bool>,
    route_table_id: RouteTableId,
    subnet_id: Option<SubnetId>,
    gateway_id: Option<Unsupported>,
    public_ipv4_pool: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Associated {
    association_id: RouteTableAssociationId,
    association_state: State,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Replaced {
    new_association_id: RouteTableAssociationId,
    association_state: State,
}

const ASSOCIATED: State = State { state: "associated" };

/// A subnet has one table at most; asking for what is there answers the association that is there.
async fn associate(call: &Call, input: AssociateRouteTable) -> Outcome<Associated> {
    unsupported::refuse(&[("GatewayId", input.gateway_id), ("PublicIpv4Pool", input.public_ipv4_pool)])?;
    let subnet_id = input.subnet_id.ok_or_else(|| AwsError::missing_parameter("SubnetId"))?;
    let account = call.account().to_owned();
    let association_id = call
        .cloud
        .store
        .write("associate a route table", move |tx| {
            let tables = all(tx, Some(&account))?;
            let table = find(&tables, &input.route_table_id)?;
            let subnet = subnet::get(tx, &account, &subnet_id)?;
            subnet.require_routed("route table")?;
            if subnet.vpc != table.vpc {
                let message = format!("Route table {} and subnet {} belong to different networks", table.id, subnet.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            let there = tables.iter().find_map(|t| {
                t.associations
                    .iter()
                    .find(|a| a.subnet.as_ref() == Some(&subnet.id))
                    .map(|a| (t.id == table.id, a.id.clone()))
            });
            let id = match there {
                Some((true, id)) => id,
                Some((false, id)) => {
                    let message = format!(
                        "the specified association for route table {} conflicts with an existing association {id}",
                        table.id
                    );
                    return Err(Refusal::new("Resource.AlreadyAssociated", message));
                }
                None => put(tx, table, Some(&subnet.id))?,
            };
            unless_dry_run(input.dry_run)?;
            Ok(id)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Associated { association_id, association_state: ASSOCIATED })
}

fn find<'a>(tables: &'a [RouteTableRow], id: &RouteTableId) -> Outcome<&'a RouteTableRow> {
    tables.iter().find(|t| t.id == *id).ok_or_else(|| super::not_found(id.as_str()))
}

/// None: the VPC's main association.
pub fn put(tx: &mut Tx<'_>, table: &RouteTableRow, subnet: Option<&SubnetId>) -> Outcome<RouteTableAssociationId> {
    let id = RouteTableAssociationId::from_random(rand::random());
    let main_of = subnet.is_none().then_some(table.vpc.as_str());
    tx.execute(
        "INSERT INTO route_table_association (id, route_table, subnet, main_of) VALUES (?1, ?2, ?3, ?4)",
        params![id.as_str(), table.id.as_str(), subnet.map(SubnetId::as_str), main_of],
    )?;
    Ok(id)
}

/// The table an association is of, and the subnet it is for.
fn association<'a>(
    tables: &'a [RouteTableRow],
    id: &RouteTableAssociationId,
) -> Outcome<(&'a RouteTableRow, Option<&'a SubnetId>)> {
    tables.iter().find_map(|t| t.associations.iter().find(|a| a.id == *id).map(|a| (t, a.subnet.as_ref()))).ok_or_else(
        || Refusal::new("InvalidAssociationID.NotFound", format!("The association ID '{id}' does not exist")),
    )
}

fn drop(tx: &mut Tx<'_>, id: &RouteTableAssociationId) -> Outcome<()> {
    tx.execute("DELETE FROM route_table_association WHERE id = ?1", params![id.as_str()])?;
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DisassociateRouteTable {
    dry_run: Option<bool>,
    association_id: RouteTableAssociationId,
}

/// The subnet has the main table from now on.
async fn disassociate(call: &Call, input: DisassociateRouteTable) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("disassociate a route table", move |tx| {
            let tables = all(tx, Some(&account))?;
            let (_, subnet) = association(&tables, &input.association_id)?;
            if subnet.is_none() {
                let message = format!("cannot disassociate the main route table association {}", input.association_id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            drop(tx, &input.association_id)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReplaceRouteTableAssociation {
    dry_run: Option<bool>,
    association_id: RouteTableAssociationId,
    route_table_id: RouteTableId,
}

/// Another table for a subnet; or, by the main association, another main table for the VPC.
async fn replace_association(call: &Call, input: ReplaceRouteTableAssociation) -> Outcome<Replaced> {
    let account = call.account().to_owned();
    let new_association_id = call
        .cloud
        .store
        .write("replace a route table association", move |tx| {
            let tables = all(tx, Some(&account))?;
            let (old, subnet) = association(&tables, &input.association_id)?;
            let table = find(&tables, &input.route_table_id)?;
            if old.vpc != table.vpc {
                let message = format!("route tables {} and {} belong to different networks", old.id, table.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            drop(tx, &input.association_id)?;
            let id = put(tx, table, subnet)?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(id)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Replaced { new_association_id, association_state: ASSOCIATED })
}
