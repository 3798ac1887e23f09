//! Making VPC endpoints, changing which route tables they are in, and ending them.

use mallee_aws::{
    AwsError,
    id::{RouteTableId, VpcEndpointId, VpcId},
};
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};

use super::{EndpointInfo, EndpointRow, POLICY, get, info, no_such_service, not_found, shown};
use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        client_token, prefix_list,
        route_table::{self, Destination, Target},
        tag::{self, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
        vpc,
    },
    service::Call,
};

actions![
    CreateVpcEndpoint => create,
    DeleteVpcEndpoints => delete,
    ModifyVpcEndpoint => modify,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateVpcEndpoint {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    service_name: Option<String>,
    vpc_endpoint_type: Option<String>,
    policy_document: Option<String>,
    #[serde(default)]
    route_table_id: Vec<RouteTableId>,
    client_token: Option<String>,
    private_dns_enabled: Option<bool>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    subnet_id: Option<Unsupported>,
    security_group_id: Option<Unsupported>,
    ip_address_type: Option<String>,
    dns_options: Option<Unsupported>,
    subnet_configuration: Option<Unsupported>,
    service_network_arn: Option<Unsupported>,
    resource_configuration_arn: Option<Unsupported>,
    service_region: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    vpc_endpoint: EndpointInfo,
    client_token: Option<String>,
}

/// Only the policy that allows everything is obeyed, because S3 does not ask which endpoint a request came by.
fn check_policy(document: Option<&str>) -> Outcome<()> {
    let Some(text) = document.filter(|t| !t.is_empty()) else { return Ok(()) };
    let malformed = || Refusal::new("InvalidPolicyDocument", "The policy document is no JSON");
    let asked: serde_json::Value = serde_json::from_str(text).map_err(|_| malformed())?;
    let open: serde_json::Value = serde_json::from_str(POLICY).map_err(|_| malformed())?;
    if asked.get("Statement") == open.get("Statement") {
        return Ok(());
    }
    Err(AwsError::unsupported(
        "A PolicyDocument other than the default, which allows everything, is not supported by this cloud",
    )
    .into())
}

async fn create(call: &Call, input: CreateVpcEndpoint) -> Outcome<Created> {
    match input.vpc_endpoint_type.as_deref() {
        None | Some("" | "Gateway") => {}
        Some(kind @ ("Interface" | "GatewayLoadBalancer" | "Resource" | "ServiceNetwork")) => {
            return Err(AwsError::unsupported(format!("VpcEndpointType={kind} is not supported by this cloud")).into());
        }
        Some(other) => {
            let message = format!("Value ({other}) for parameter vpcEndpointType is invalid.");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    unsupported::refuse(&[
        ("SubnetId", input.subnet_id),
        ("SecurityGroupId", input.security_group_id),
        ("DnsOptions", input.dns_options),
        ("SubnetConfiguration", input.subnet_configuration),
        ("ServiceNetworkArn", input.service_network_arn),
        ("ResourceConfigurationArn", input.resource_configuration_arn),
        ("ServiceRegion", input.service_region),
    ])?;
    if let Some(other) = input.ip_address_type.as_deref().filter(|t| !t.is_empty() && *t != "ipv4") {
        return Err(AwsError::unsupported(format!("IpAddressType={other} is not supported by this cloud")).into());
    }
    unsupported::refuse_set("PrivateDnsEnabled", input.private_dns_enabled)?;
    check_policy(input.policy_document.as_deref())?;
    let service = input.service_name.clone().ok_or_else(|| AwsError::missing_parameter("ServiceName"))?;
    let kind = "vpc-endpoint";
    let tags = tag::specified(&input.tag_specification, &[kind])?.remove(kind).unwrap_or_default();
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let (account, now, cloud, dry_run) = (call.account().to_owned(), call.now, call.cloud.clone(), input.dry_run);
    let (row, tag_set) = call
        .cloud
        .store
        .write("create a VPC endpoint", move |tx| {
            let token = token.as_ref().filter(|_| dry_run != Some(true));
            if let Some(id) = token.map(|t| t.made(tx)).transpose()?.flatten() {
                return shown(tx, &account, &id.parse().map_err(Refusal::from)?, None);
            }
            for table in &input.route_table_id {
                route_table::get(tx, &account, table)?;
            }
            let id = make(tx, &cloud.config, &account, &input.vpc_id, &service, now)?;
            tag::put(tx, &account, id.as_str(), &tags)?;
            let row = get(tx, &account, &id)?;
            join(tx, &cloud.config, &row, &input.route_table_id)?;
            if let Some(token) = token {
                token.remember(tx, id.as_str())?;
            }
            shown(tx, &account, &id, dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Created { vpc_endpoint: info(row, tag_set), client_token: input.client_token })
}

/// Writes one that is in no table yet.
pub fn make(
    tx: &mut Tx<'_>,
    config: &Config,
    account: &str,
    vpc: &VpcId,
    service: &str,
    now: i64,
) -> Outcome<VpcEndpointId> {
    let vpc = vpc::get(tx, account, vpc)?;
    if prefix_list::of_s3(config).is_none_or(|list| list.name != service) {
        return Err(no_such_service(service));
    }
    let id = VpcEndpointId::from_random(rand::random());
    tx.execute(
        "INSERT INTO vpc_endpoint (id, account, vpc, service, created) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id.as_str(), account, vpc.id.as_str(), service, now],
    )?;
    Ok(id)
}

/// Puts it into these tables.
pub fn join(tx: &mut Tx<'_>, config: &Config, row: &EndpointRow, tables: &[RouteTableId]) -> Outcome<()> {
    let list = prefix_list::of_s3(config).ok_or_else(|| no_such_service(&row.service))?;
    let destination = Destination::PrefixList(list.id);
    for id in tables {
        let table = route_table::get(tx, &row.account, id)?;
        if table.vpc != row.vpc {
            let message = format!("Route table {id} and endpoint {} belong to different networks", row.id);
            return Err(AwsError::invalid_parameter_value(message).into());
        }
        match table.routes.iter().find(|r| r.destination == destination) {
            Some(there) if there.target == Target::Endpoint(row.id.clone()) => {}
            Some(_) => {
                let message =
                    format!("route table {id} already has a route with destination-prefix-list-id {destination}");
                return Err(Refusal::new("RouteAlreadyExists", message));
            }
            None => route_table::insert_route(tx, id, &destination, &Target::Endpoint(row.id.clone()))?,
        }
    }
    Ok(())
}

fn leave(tx: &mut Tx<'_>, row: &EndpointRow, tables: &[RouteTableId]) -> Outcome<()> {
    for id in tables {
        route_table::get(tx, &row.account, id)?;
        let gone = tx.execute(
            "DELETE FROM route WHERE route_table = ?1 AND gateway = ?2",
            params![id.as_str(), row.id.as_str()],
        )?;
        if gone == 0 {
            let message = format!("The endpoint {} is not associated with route table {id}", row.id);
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyVpcEndpoint {
    dry_run: Option<bool>,
    vpc_endpoint_id: VpcEndpointId,
    reset_policy: Option<bool>,
    policy_document: Option<String>,
    #[serde(default)]
    add_route_table_id: Vec<RouteTableId>,
    #[serde(default)]
    remove_route_table_id: Vec<RouteTableId>,
    private_dns_enabled: Option<bool>,
    add_subnet_id: Option<Unsupported>,
    remove_subnet_id: Option<Unsupported>,
    add_security_group_id: Option<Unsupported>,
    remove_security_group_id: Option<Unsupported>,
    ip_address_type: Option<Unsupported>,
    dns_options: Option<Unsupported>,
    subnet_configuration: Option<Unsupported>,
}

/// `ResetPolicy` finds the policy as it was: it is never another.
async fn modify(call: &Call, input: ModifyVpcEndpoint) -> Outcome<()> {
    unsupported::refuse(&[
        ("AddSubnetId", input.add_subnet_id),
        ("RemoveSubnetId", input.remove_subnet_id),
        ("AddSecurityGroupId", input.add_security_group_id),
        ("RemoveSecurityGroupId", input.remove_security_group_id),
        ("IpAddressType", input.ip_address_type),
        ("DnsOptions", input.dns_options),
        ("SubnetConfiguration", input.subnet_configuration),
    ])?;
    unsupported::refuse_set("PrivateDnsEnabled", input.private_dns_enabled)?;
    check_policy(input.policy_document.as_deref())?;
    if input.reset_policy == Some(true) && input.policy_document.is_some() {
        let message = "You may specify either ResetPolicy or PolicyDocument, but not both";
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    call.cloud
        .store
        .write("modify a VPC endpoint", move |tx| {
            let row = get(tx, &account, &input.vpc_endpoint_id)?;
            leave(tx, &row, &input.remove_route_table_id)?;
            join(tx, &cloud.config, &row, &input.add_route_table_id)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteVpcEndpoints {
    dry_run: Option<bool>,
    vpc_endpoint_id: Vec<VpcEndpointId>,
}

#[derive(Serialize)]
struct Deleted {
    unsuccessful: Vec<Unsuccessful>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unsuccessful {
    resource_id: VpcEndpointId,
    error: Error,
}

#[derive(Serialize)]
struct Error {
    code: String,
    message: String,
}

/// What cannot be deleted is told, and the others go, with their routes.
async fn delete(call: &Call, input: DeleteVpcEndpoints) -> Outcome<Deleted> {
    if input.vpc_endpoint_id.is_empty() {
        return Err(AwsError::missing_parameter("VpcEndpointId").into());
    }
    let account = call.account().to_owned();
    let unsuccessful = call
        .cloud
        .store
        .write("delete VPC endpoints", move |tx| {
            let mut unsuccessful = Vec::new();
            for id in &input.vpc_endpoint_id {
                let sql = "DELETE FROM route WHERE gateway = ?1";
                let own = "SELECT 1 FROM vpc_endpoint WHERE id = ?1 AND account = ?2";
                if tx.query_opt(own, params![id.as_str(), account], |row| row.get::<i64>(0))?.is_none() {
                    let answer = not_found(id.as_str()).answer;
                    let error = Error { code: answer.code.to_string(), message: answer.message };
                    unsuccessful.push(Unsuccessful { resource_id: id.clone(), error });
                    continue;
                }
                tx.execute(sql, params![id.as_str()])?;
                tx.execute("DELETE FROM vpc_endpoint WHERE id = ?1", params![id.as_str()])?;
                tag::drop_all(tx, id.as_str())?;
            }
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(unsuccessful)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Deleted { unsuccessful })
}
