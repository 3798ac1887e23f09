//! Routes of a table.

use mallee_aws::{
    AwsError,
    id::{InstanceId, NatGatewayId, NetworkInterfaceId, RouteTableId, VpcPeeringConnectionId},
};
use mallee_store::{Tx, params};
use serde::Deserialize;

use super::{RouteTableRow, Target, get, insert_route};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        interface, internet_gateway, nat_gateway, peering, resource, unless_dry_run,
        unsupported::{self, Unsupported},
        vpc,
    },
    network::Cidr,
    service::Call,
};

actions![CreateRoute => create, DeleteRoute => delete, ReplaceRoute => replace];

/// AWS' default.
const MAX_PER_TABLE: usize = 500;

/// The parameters of CreateRoute; ReplaceRoute's are the same but for one.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateRoute {
    dry_run: Option<bool>,
    route_table_id: RouteTableId,
    destination_cidr_block: Option<String>,
    gateway_id: Option<String>,
    instance_id: Option<InstanceId>,
    nat_gateway_id: Option<NatGatewayId>,
    network_interface_id: Option<NetworkInterfaceId>,
    vpc_peering_connection_id: Option<VpcPeeringConnectionId>,
    destination_ipv6_cidr_block: Option<Unsupported>,
    destination_prefix_list_id: Option<Unsupported>,
    egress_only_internet_gateway_id: Option<Unsupported>,
    transit_gateway_id: Option<Unsupported>,
    local_gateway_id: Option<Unsupported>,
    carrier_gateway_id: Option<Unsupported>,
    core_network_arn: Option<Unsupported>,
    vpc_endpoint_id: Option<Unsupported>,
    odb_network_arn: Option<Unsupported>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReplaceRoute {
    dry_run: Option<bool>,
    route_table_id: RouteTableId,
    destination_cidr_block: Option<String>,
    gateway_id: Option<String>,
    instance_id: Option<InstanceId>,
    nat_gateway_id: Option<NatGatewayId>,
    network_interface_id: Option<NetworkInterfaceId>,
    vpc_peering_connection_id: Option<VpcPeeringConnectionId>,
    local_target: Option<bool>,
    destination_ipv6_cidr_block: Option<Unsupported>,
    destination_prefix_list_id: Option<Unsupported>,
    egress_only_internet_gateway_id: Option<Unsupported>,
    transit_gateway_id: Option<Unsupported>,
    local_gateway_id: Option<Unsupported>,
    carrier_gateway_id: Option<Unsupported>,
    core_network_arn: Option<Unsupported>,
    vpc_endpoint_id: Option<Unsupported>,
    odb_network_arn: Option<Unsupported>,
}

impl From<ReplaceRoute> for CreateRoute {
    fn from(r: ReplaceRoute) -> Self {
        Self {
            dry_run: r.dry_run,
            route_table_id: r.route_table_id,
            destination_cidr_block: r.destination_cidr_block,
            gateway_id: r.gateway_id,
            instance_id: r.instance_id,
            nat_gateway_id: r.nat_gateway_id,
            network_interface_id: r.network_interface_id,
            vpc_peering_connection_id: r.vpc_peering_connection_id,
            destination_ipv6_cidr_block: r.destination_ipv6_cidr_block,
            destination_prefix_list_id: r.destination_prefix_list_id,
            egress_only_internet_gateway_id: r.egress_only_internet_gateway_id,
            transit_gateway_id: r.transit_gateway_id,
            local_gateway_id: r.local_gateway_id,
            carrier_gateway_id: r.carrier_gateway_id,
            core_network_arn: r.core_network_arn,
            vpc_endpoint_id: r.vpc_endpoint_id,
            odb_network_arn: r.odb_network_arn,
        }
    }
}

impl CreateRoute {
    fn refuse_what_is_not_done(&self) -> Outcome<()> {
        unsupported::refuse(&[
            ("DestinationIpv6CidrBlock", self.destination_ipv6_cidr_block),
            ("DestinationPrefixListId", self.destination_prefix_list_id),
            ("EgressOnlyInternetGatewayId", self.egress_only_internet_gateway_id),
            ("TransitGatewayId", self.transit_gateway_id),
            ("LocalGatewayId", self.local_gateway_id),
            ("CarrierGatewayId", self.carrier_gateway_id),
            ("CoreNetworkArn", self.core_network_arn),
            ("VpcEndpointId", self.vpc_endpoint_id),
            ("OdbNetworkArn", self.odb_network_arn),
        ])?;
        let given = [
            self.gateway_id.is_some(),
            self.instance_id.is_some(),
            self.nat_gateway_id.is_some(),
            self.network_interface_id.is_some(),
            self.vpc_peering_connection_id.is_some(),
        ];
        match given.into_iter().filter(|g| *g).count() {
            1 => Ok(()),
            n => {
                let code = if n == 0 { "MissingParameter" } else { "InvalidParameterCombination" };
                let message = "The request must contain exactly one of gatewayId, natGatewayId, networkInterfaceId, \
                               vpcPeeringConnectionId, instanceId";
                Err(Refusal::new(code, message))
            }
        }
    }

    /// Where the route leads, which must be there and in the table's network.
    fn target(&self, tx: &mut Tx<'_>, table: &RouteTableRow) -> Outcome<Target> {
        let elsewhere = |what: &str| {
            let message = format!("route table {} and {what} belong to different networks", table.id);
            Refusal::from(AwsError::invalid_parameter_value(message))
        };
        let account = table.account.as_str();
        if let Some(text) = &self.gateway_id {
            if text == "local" {
                return Err(AwsError::unsupported("GatewayId=local is not supported by this cloud").into());
            }
            let gateway = internet_gateway::get(tx, account, &text.parse().map_err(Refusal::from)?)?;
            if gateway.vpc.as_ref() != Some(&table.vpc) {
                return Err(elsewhere(&format!("network gateway {}", gateway.id)));
            }
            return Ok(Target::Gateway(gateway.id));
        }
        if let Some(id) = &self.nat_gateway_id {
            let nat = nat_gateway::get_alive(tx, account, id)?;
            if nat.vpc != table.vpc {
                return Err(elsewhere(&format!("NAT gateway {id}")));
            }
            return Ok(Target::Nat(nat.id));
        }
        if let Some(id) = &self.vpc_peering_connection_id {
            let peering = peering::get(tx, account, id)?;
            if !peering.is_of(&table.vpc) {
                return Err(elsewhere(&format!("VPC peering connection {id}")));
            }
            return Ok(Target::Peering(peering.id));
        }
        let interface = match (&self.network_interface_id, &self.instance_id) {
            (Some(id), _) => interface::get(tx, account, id)?,
            (None, Some(id)) => {
                resource::require(tx, account, id.as_str())?;
                interface::only_of(tx, id)?
            }
            (None, None) => return Err(AwsError::missing_parameter("GatewayId").into()),
        };
        if interface.vpc != table.vpc {
            return Err(elsewhere(&format!("interface {}", interface.id)));
        }
        Ok(Target::Interface(interface.id))
    }
}

fn destination(text: Option<&str>) -> Outcome<Cidr> {
    let text = text.ok_or_else(|| AwsError::missing_parameter("DestinationCidrBlock"))?;
    let wrong = || {
        let message =
            format!("Value ({text}) for parameter destinationCidrBlock is invalid. This is not a valid CIDR block.");
        Refusal::from(AwsError::invalid_parameter_value(message))
    };
    text.parse().map_err(|()| wrong())
}

/// The VPC's own addresses are always reached directly.
fn check_not_local(tx: &mut Tx<'_>, table: &RouteTableRow, destination: Cidr) -> Outcome<()> {
    let vpc = vpc::get(tx, &table.account, &table.vpc)?;
    if vpc.blocks().any(|block| block == destination) {
        let message = format!("The route identified by {destination} already exists.");
        return Err(Refusal::new("RouteAlreadyExists", message));
    }
    if vpc.blocks().any(|block| block.covers(&destination)) {
        let message = format!(
            "The destination CIDR block {destination} is equal to or more specific than one of this VPC's CIDR blocks, \
             which this cloud does not route otherwise."
        );
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    Ok(())
}

async fn create(call: &Call, input: CreateRoute) -> Outcome<()> {
    input.refuse_what_is_not_done()?;
    let destination = destination(input.destination_cidr_block.as_deref())?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("create a route", move |tx| {
            let table = get(tx, &account, &input.route_table_id)?;
            let target = input.target(tx, &table)?;
            check_not_local(tx, &table, destination)?;
            if table.routes.iter().any(|r| r.destination == destination) {
                let message = format!("The route identified by {destination} already exists.");
                return Err(Refusal::new("RouteAlreadyExists", message));
            }
            if table.routes.len() >= MAX_PER_TABLE {
                let message = format!("The maximum number of routes in a table has been reached ({MAX_PER_TABLE}).");
                return Err(Refusal::new("RouteLimitExceeded", message));
            }
            insert_route(tx, &table.id, destination, &target)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

async fn replace(call: &Call, input: ReplaceRoute) -> Outcome<()> {
    unsupported::refuse_set("LocalTarget", input.local_target)?;
    let input = CreateRoute::from(input);
    input.refuse_what_is_not_done()?;
    let destination = destination(input.destination_cidr_block.as_deref())?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("replace a route", move |tx| {
            let table = get(tx, &account, &input.route_table_id)?;
            let target = input.target(tx, &table)?;
            let changed = tx.execute(
                "UPDATE route SET gateway = ?3 WHERE route_table = ?1 AND destination = ?2",
                params![table.id.as_str(), destination, target],
            )?;
            if changed == 0 {
                let message = format!(
                    "There is no route defined for '{destination}' in the route table. Use CreateRoute instead."
                );
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteRoute {
    dry_run: Option<bool>,
    route_table_id: RouteTableId,
    destination_cidr_block: Option<String>,
    destination_ipv6_cidr_block: Option<Unsupported>,
    destination_prefix_list_id: Option<Unsupported>,
}

async fn delete(call: &Call, input: DeleteRoute) -> Outcome<()> {
    unsupported::refuse(&[
        ("DestinationIpv6CidrBlock", input.destination_ipv6_cidr_block),
        ("DestinationPrefixListId", input.destination_prefix_list_id),
    ])?;
    let destination = destination(input.destination_cidr_block.as_deref())?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a route", move |tx| {
            let table = get(tx, &account, &input.route_table_id)?;
            let vpc = vpc::get(tx, &account, &table.vpc)?;
            if vpc.blocks().any(|block| block == destination) {
                let message = format!("cannot remove local route {destination} in route table {}", table.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            let gone = tx.execute(
                "DELETE FROM route WHERE route_table = ?1 AND destination = ?2",
                params![table.id.as_str(), destination],
            )?;
            if gone == 0 {
                let message = format!("no route with destination-cidr-block {destination} in route table {}", table.id);
                return Err(Refusal::new("InvalidRoute.NotFound", message));
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}
