//! Egress-only internet gateways: what IPv6 routes of a VPC lead to when its instances may speak to the outside, and nobody
//! there to them first.

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::{EgressOnlyInternetGatewayId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, client_token,
        listing::{self, Wanted},
        tag::{self, Tag, TagSpecification},
        unless_dry_run, vpc,
    },
    service::Call,
};

actions![
    CreateEgressOnlyInternetGateway => create,
    DeleteEgressOnlyInternetGateway => delete,
    DescribeEgressOnlyInternetGateways => describe,
];

pub const TABLES: &str = "
CREATE TABLE egress_only_gateway (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    created BIGINT NOT NULL
);
CREATE INDEX egress_only_gateway_of ON egress_only_gateway (account);
CREATE INDEX egress_only_gateway_in ON egress_only_gateway (vpc);
";

/// AWS' default.
const MAX_PER_ACCOUNT: usize = 5;

/// A gateway as its row is.
#[derive(Debug, Clone)]
pub struct GatewayRow {
    pub id: EgressOnlyInternetGatewayId,
    pub vpc: VpcId,
}

fn read(row: &Row<'_>) -> Result<GatewayRow, StoreError> {
    Ok(GatewayRow { id: row.get::<Id<_>>(0)?.0, vpc: row.get::<Id<_>>(1)?.0 })
}

/// The gateways of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<GatewayRow>, StoreError> {
    let sql = format!("SELECT id, vpc FROM egress_only_gateway WHERE {} ORDER BY id", listing::whose(account));
    tx.query(&sql, params![account], read)
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &EgressOnlyInternetGatewayId) -> Outcome<GatewayRow> {
    let sql = "SELECT id, vpc FROM egress_only_gateway WHERE account = ?1 AND id = ?2";
    tx.query_opt(sql, params![account, id.as_str()], read)?.ok_or_else(|| not_found(id.as_str()))
}

/// Whether a VPC has any.
pub fn is_in(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM egress_only_gateway WHERE vpc = ?1";
    Ok(tx.query_one(sql, params![vpc.as_str()], |row| row.get::<i64>(0))? > 0)
}

fn not_found(id: &str) -> Refusal {
    let message = format!("The egressOnlyInternetGateway ID '{id}' does not exist");
    Refusal::new("InvalidGatewayID.NotFound", message)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateEgressOnlyInternetGateway {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    client_token: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedEgressOnlyInternetGateway {
    client_token: Option<String>,
    egress_only_internet_gateway: GatewayInfo,
}

async fn create(call: &Call, input: CreateEgressOnlyInternetGateway) -> Outcome<CreatedEgressOnlyInternetGateway> {
    let kind = "egress-only-internet-gateway";
    let tags = tag::specified(&input.tag_specification, &[kind])?.remove(kind).unwrap_or_default();
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let (account, now, dry_run) = (call.account().to_owned(), call.now, input.dry_run);
    let (row, tag_set) = call
        .cloud
        .store
        .write("create an egress-only internet gateway", move |tx| {
            let token = token.as_ref().filter(|_| dry_run != Some(true));
            if let Some(id) = token.map(|t| t.made(tx)).transpose()?.flatten() {
                let row = get(tx, &account, &id.parse().map_err(Refusal::from)?)?;
                let tags = tag::of(tx, row.id.as_str())?;
                return Ok((row, tags));
            }
            let vpc = vpc::get(tx, &account, &input.vpc_id)?;
            if all(tx, Some(&account))?.len() >= MAX_PER_ACCOUNT {
                let message = format!("The maximum number of such gateways has been reached ({MAX_PER_ACCOUNT}).");
                return Err(Refusal::new("GatewayLimitExceeded", message));
            }
            let row = GatewayRow { id: EgressOnlyInternetGatewayId::from_random(rand::random()), vpc: vpc.id };
            tx.execute(
                "INSERT INTO egress_only_gateway (id, account, vpc, created) VALUES (?1, ?2, ?3, ?4)",
                params![row.id.as_str(), account, row.vpc.as_str(), now],
            )?;
            tag::put(tx, &account, row.id.as_str(), &tags)?;
            if let Some(token) = token {
                token.remember(tx, row.id.as_str())?;
            }
            let tag_set: Vec<Tag> = tag::of(tx, row.id.as_str())?;
            unless_dry_run(dry_run)?;
            Ok::<_, Refusal>((row, tag_set))
        })
        .await?;
    Ok(CreatedEgressOnlyInternetGateway {
        client_token: input.client_token,
        egress_only_internet_gateway: info(row, tag_set),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteEgressOnlyInternetGateway {
    dry_run: Option<bool>,
    egress_only_internet_gateway_id: EgressOnlyInternetGatewayId,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Deleted {
    return_code: bool,
}

/// Routes to it stay, as black holes.
async fn delete(call: &Call, input: DeleteEgressOnlyInternetGateway) -> Outcome<Deleted> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete an egress-only internet gateway", move |tx| {
            let row = get(tx, &account, &input.egress_only_internet_gateway_id)?;
            tag::drop_all(tx, row.id.as_str())?;
            tx.execute("DELETE FROM egress_only_gateway WHERE id = ?1", params![row.id.as_str()])?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Deleted { return_code: true })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeEgressOnlyInternetGateways {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    egress_only_internet_gateway_id: Vec<EgressOnlyInternetGatewayId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    egress_only_internet_gateway_set: Vec<GatewayInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayInfo {
    egress_only_internet_gateway_id: EgressOnlyInternetGatewayId,
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

/// AWS filters these by tags only.
const ATTRIBUTES: &[Attribute<GatewayInfo>] = &[];

fn info(row: GatewayRow, tag_set: Vec<Tag>) -> GatewayInfo {
    GatewayInfo {
        egress_only_internet_gateway_id: row.id,
        attachment_set: vec![Attachment { vpc_id: row.vpc, state: "attached" }],
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeEgressOnlyInternetGateways) -> Outcome<Described> {
    let account = call.account().to_owned();
    let (rows, mut tags) = call
        .cloud
        .store
        .read("describe egress-only internet gateways", move |tx| {
            let tags = tag::of_kind(tx, &account, EgressOnlyInternetGatewayId::PREFIX)?;
            Ok::<_, StoreError>((all(tx, Some(&account))?, tags))
        })
        .await?;
    let infos = rows
        .into_iter()
        .map(|row| {
            let tag_set = tags.take(row.id.as_str());
            info(row, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.egress_only_internet_gateway_id.iter().map(EgressOnlyInternetGatewayId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (egress_only_internet_gateway_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |g| g.egress_only_internet_gateway_id.as_str(), not_found, infos)?;
    Ok(Described { egress_only_internet_gateway_set, next_token })
}
