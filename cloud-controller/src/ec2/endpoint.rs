//! VPC endpoints of the kind `Gateway`, for S3: subnets whose tables an endpoint is associated with reach S3 without any
//! other way out. Endpoints of other kinds are refused by name.
//!
//! What goes by an endpoint leaves by the VPC router's own outer address. Its policy is the one AWS gives by default, which
//! allows everything; another is refused, because S3 does not ask for one.

use mallee_aws::{
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::{RouteTableId, VpcEndpointId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id,
        listing::{self, Wanted},
        prefix_list,
        tag::{self, Tag},
        unless_dry_run,
    },
    service::Call,
};

pub mod change;

actions![DescribeVpcEndpointServices => services, DescribeVpcEndpoints => describe];

/// Which tables it is in, its routes say.
pub const TABLES: &str = "
CREATE TABLE vpc_endpoint (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    service TEXT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX vpc_endpoint_of ON vpc_endpoint (account);
CREATE INDEX vpc_endpoint_in ON vpc_endpoint (vpc);
";

/// An endpoint as its rows are.
#[derive(Debug, Clone)]
pub struct EndpointRow {
    pub id: VpcEndpointId,
    pub account: String,
    pub vpc: VpcId,
    pub service: String,
    pub created: i64,
    pub tables: Vec<RouteTableId>,
}

const COLUMNS: &str = "id, account, vpc, service, created";

fn read(row: &Row<'_>) -> Result<EndpointRow, StoreError> {
    Ok(EndpointRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Id<_>>(2)?.0,
        service: row.get(3)?,
        created: row.get(4)?,
        tables: Vec::new(),
    })
}

/// The endpoints of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<EndpointRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM vpc_endpoint WHERE {} ORDER BY id", listing::whose(account));
    let mut rows = tx.query(&sql, params![account], read)?;
    for row in &mut rows {
        row.tables = tables_of(tx, &row.id)?;
    }
    Ok(rows)
}

fn tables_of(tx: &mut Tx<'_>, id: &VpcEndpointId) -> Result<Vec<RouteTableId>, StoreError> {
    let sql = "SELECT route_table FROM route WHERE gateway = ?1 ORDER BY route_table";
    tx.query(sql, params![id.as_str()], |row| Ok(row.get::<Id<_>>(0)?.0))
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &VpcEndpointId) -> Outcome<EndpointRow> {
    let sql = format!("SELECT {COLUMNS} FROM vpc_endpoint WHERE account = ?1 AND id = ?2");
    let mut row = tx.query_opt(&sql, params![account, id.as_str()], read)?.ok_or_else(|| not_found(id.as_str()))?;
    row.tables = tables_of(tx, id)?;
    Ok(row)
}

/// Whether a VPC has any.
pub fn is_in(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM vpc_endpoint WHERE vpc = ?1";
    Ok(tx.query_one(sql, params![vpc.as_str()], |row| row.get::<i64>(0))? > 0)
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidVpcEndpointId.NotFound", format!("The Vpc Endpoint Id '{id}' does not exist"))
}

/// What AWS gives an endpoint that is made without one.
const POLICY: &str =
    r#"{"Version":"2008-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*"}]}"#;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointInfo {
    vpc_endpoint_id: VpcEndpointId,
    vpc_endpoint_type: &'static str,
    vpc_id: VpcId,
    service_name: String,
    state: &'static str,
    policy_document: &'static str,
    route_table_id_set: Vec<RouteTableId>,
    subnet_id_set: [(); 0],
    group_set: [(); 0],
    ip_address_type: &'static str,
    private_dns_enabled: bool,
    requester_managed: bool,
    network_interface_id_set: [(); 0],
    dns_entry_set: [(); 0],
    creation_timestamp: String,
    tag_set: Vec<Tag>,
    owner_id: String,
}

impl Tagged for EndpointInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<EndpointInfo>] = &[
    ("ip-address-type", |endpoint| vec![endpoint.ip_address_type.into()]),
    ("service-name", |endpoint| vec![(&endpoint.service_name).into()]),
    // `com.amazonaws.REGION.s3`.
    ("service-region", |endpoint| endpoint.service_name.split('.').nth(2).map(Into::into).into_iter().collect()),
    ("vpc-endpoint-id", |endpoint| vec![endpoint.vpc_endpoint_id.as_str().into()]),
    ("vpc-endpoint-state", |endpoint| vec![endpoint.state.into()]),
    ("vpc-endpoint-type", |endpoint| vec![endpoint.vpc_endpoint_type.into()]),
    ("vpc-id", |endpoint| vec![endpoint.vpc_id.as_str().into()]),
];

fn info(row: EndpointRow, tag_set: Vec<Tag>) -> EndpointInfo {
    EndpointInfo {
        vpc_endpoint_id: row.id,
        vpc_endpoint_type: "Gateway",
        vpc_id: row.vpc,
        service_name: row.service,
        state: "available",
        policy_document: POLICY,
        route_table_id_set: row.tables,
        subnet_id_set: [],
        group_set: [],
        ip_address_type: "ipv4",
        private_dns_enabled: false,
        requester_managed: false,
        network_interface_id_set: [],
        dns_entry_set: [],
        creation_timestamp: timestamp(row.created),
        tag_set,
        owner_id: row.account,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVpcEndpoints {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    vpc_endpoint_id: Vec<VpcEndpointId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedVpcEndpoints {
    vpc_endpoint_set: Vec<EndpointInfo>,
    next_token: Option<String>,
}

async fn describe(call: &Call, input: DescribeVpcEndpoints) -> Outcome<DescribedVpcEndpoints> {
    let account = call.account().to_owned();
    let (rows, mut tags) = call
        .cloud
        .store
        .read("describe VPC endpoints", move |tx| {
            Ok::<_, StoreError>((all(tx, Some(&account))?, tag::of_kind(tx, &account, VpcEndpointId::PREFIX)?))
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
        ids: input.vpc_endpoint_id.iter().map(VpcEndpointId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (vpc_endpoint_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |e| e.vpc_endpoint_id.as_str(), not_found, infos)?;
    Ok(DescribedVpcEndpoints { vpc_endpoint_set, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVpcEndpointServices {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    service_name: Vec<String>,
    max_results: Option<i64>,
    next_token: Option<String>,
    #[serde(default)]
    service_region: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedServices {
    service_name_set: Vec<String>,
    service_detail_set: Vec<ServiceInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceInfo {
    service_name: String,
    service_type: Vec<ServiceType>,
    service_region: String,
    availability_zone_set: Vec<String>,
    owner: &'static str,
    base_endpoint_dns_name_set: Vec<String>,
    vpc_endpoint_policy_supported: bool,
    acceptance_required: bool,
    manages_vpc_endpoints: bool,
    tag_set: [(); 0],
    supported_ip_address_type_set: Vec<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceType {
    service_type: &'static str,
}

impl Tagged for ServiceInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

const SERVICE_ATTRIBUTES: &[Attribute<ServiceInfo>] = &[
    ("owner", |service| vec![service.owner.into()]),
    ("service-name", |service| vec![(&service.service_name).into()]),
    ("service-region", |service| vec![(&service.service_region).into()]),
    ("service-type", |service| service.service_type.iter().map(|t| t.service_type.into()).collect()),
    ("supported-ip-address-types", |service| {
        service.supported_ip_address_type_set.iter().map(|t| (*t).into()).collect()
    }),
];

fn no_such_service(name: &str) -> Refusal {
    Refusal::new("InvalidServiceName", format!("The Vpc Endpoint Service '{name}' does not exist"))
}

/// S3, where instances can reach it.
async fn services(call: &Call, input: DescribeVpcEndpointServices) -> Outcome<DescribedServices> {
    if let Some(other) = input.service_region.iter().find(|region| *region != call.cloud.region()) {
        return Err(Refusal::new("InvalidParameterValue", format!("The region '{other}' does not exist")));
    }
    let config = &call.cloud.config;
    let infos = prefix_list::of_s3(config)
        .into_iter()
        .map(|list| ServiceInfo {
            service_name: list.name,
            service_type: vec![ServiceType { service_type: "Gateway" }],
            service_region: config.region.clone(),
            availability_zone_set: config.zones.clone(),
            owner: "amazon",
            base_endpoint_dns_name_set: list.entries.iter().map(|e| e.cidr.to_string()).collect(),
            vpc_endpoint_policy_supported: false,
            acceptance_required: false,
            manages_vpc_endpoints: false,
            tag_set: [],
            supported_ip_address_type_set: vec!["ipv4"],
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.service_name.iter().map(String::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (service_detail_set, next_token) =
        listing::page(call, &wanted, SERVICE_ATTRIBUTES, |s| &s.service_name, no_such_service, infos)?;
    let service_name_set = service_detail_set.iter().map(|s| s.service_name.clone()).collect();
    Ok(DescribedServices { service_name_set, service_detail_set, next_token })
}

/// What [`change`] looks up before it answers.
fn shown(
    tx: &mut Tx<'_>,
    account: &str,
    id: &VpcEndpointId,
    dry_run: Option<bool>,
) -> Outcome<(EndpointRow, Vec<Tag>)> {
    let found = (get(tx, account, id)?, tag::of(tx, id.as_str())?);
    unless_dry_run(dry_run)?;
    Ok(found)
}

#[cfg(test)]
mod tests;
