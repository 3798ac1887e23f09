//! Internet gateways: what a VPC has attached when routes may lead out of it.

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::{InternetGatewayId, VpcId},
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
    service::Call,
};

pub mod change;

actions![DescribeInternetGateways => describe];

pub const TABLES: &str = "
CREATE TABLE internet_gateway (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT UNIQUE REFERENCES vpc (id),
    created BIGINT NOT NULL
);
CREATE INDEX internet_gateway_of ON internet_gateway (account);
";

/// An internet gateway as its row is.
#[derive(Debug, Clone)]
pub struct InternetGatewayRow {
    pub id: InternetGatewayId,
    pub account: String,
    pub vpc: Option<VpcId>,
}

fn read(row: &Row<'_>) -> Result<InternetGatewayRow, StoreError> {
    Ok(InternetGatewayRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Option<Id<_>>>(2)?.map(|i| i.0),
    })
}

/// The gateways of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<InternetGatewayRow>, StoreError> {
    let sql = format!("SELECT id, account, vpc FROM internet_gateway WHERE {} ORDER BY id", listing::whose(account));
    tx.query(&sql, params![account], read)
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &InternetGatewayId) -> Outcome<InternetGatewayRow> {
    let sql = "SELECT id, account, vpc FROM internet_gateway WHERE account = ?1 AND id = ?2";
    tx.query_opt(sql, params![account, id.as_str()], read)?.ok_or_else(|| not_found(id.as_str()))
}

/// The gateway that is attached to a VPC.
pub fn of_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<Option<InternetGatewayRow>, StoreError> {
    tx.query_opt("SELECT id, account, vpc FROM internet_gateway WHERE vpc = ?1", params![vpc.as_str()], read)
}

/// Writes a gateway that is attached from the start.
pub fn insert(tx: &mut Tx<'_>, account: &str, vpc: &VpcId, now: i64) -> Outcome<InternetGatewayId> {
    let id = InternetGatewayId::from_random(rand::random());
    tx.execute(
        "INSERT INTO internet_gateway (id, account, vpc, created) VALUES (?1, ?2, ?3, ?4)",
        params![id.as_str(), account, vpc.as_str(), now],
    )?;
    Ok(id)
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidInternetGatewayID.NotFound", format!("The internetGateway ID '{id}' does not exist"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeInternetGateways {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    internet_gateway_id: Vec<InternetGatewayId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedInternetGateways {
    internet_gateway_set: Vec<GatewayInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayInfo {
    internet_gateway_id: InternetGatewayId,
    owner_id: String,
    attachment_set: Vec<Attachment>,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    vpc_id: VpcId,
    state: &'static str,
}

impl Tagged for GatewayInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<GatewayInfo>] = &[
    ("attachment.state", |gateway| gateway.attachment_set.iter().map(|a| a.state.into()).collect()),
    ("attachment.vpc-id", |gateway| gateway.attachment_set.iter().map(|a| a.vpc_id.as_str().into()).collect()),
    ("internet-gateway-id", |gateway| vec![gateway.internet_gateway_id.as_str().into()]),
    ("owner-id", |gateway| vec![(&gateway.owner_id).into()]),
];

fn info(gateway: InternetGatewayRow, tag_set: Vec<Tag>) -> GatewayInfo {
    GatewayInfo {
        internet_gateway_id: gateway.id,
        owner_id: gateway.account,
        attachment_set: gateway.vpc.map(|vpc_id| Attachment { vpc_id, state: "available" }).into_iter().collect(),
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeInternetGateways) -> Outcome<DescribedInternetGateways> {
    let account = call.account().to_owned();
    let (rows, mut tags) = call
        .cloud
        .store
        .read("describe internet gateways", move |tx| {
            Ok::<_, StoreError>((all(tx, Some(&account))?, tag::of_kind(tx, &account, InternetGatewayId::PREFIX)?))
        })
        .await?;
    let infos = rows
        .into_iter()
        .map(|gateway| {
            let tag_set = tags.take(gateway.id.as_str());
            info(gateway, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.internet_gateway_id.iter().map(InternetGatewayId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (internet_gateway_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |g| g.internet_gateway_id.as_str(), not_found, infos)?;
    Ok(DescribedInternetGateways { internet_gateway_set, next_token })
}
