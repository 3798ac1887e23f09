//! Routes of a table.

use mallee_aws::{
    AwsError,
    id::{
        EgressOnlyInternetGatewayId, InstanceId, NatGatewayId, NetworkInterfaceId, PrefixListId, RouteTableId,
        VpcEndpointId, VpcPeeringConnectionId,
    },
};
use mallee_store::{Tx, params};
use serde::Deserialize;

use super::{Destination, RouteTableRow, Target, get, insert_route};
use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        egress_only_gateway, interface, internet_gateway, nat_gateway, peering, prefix_list, resource, subnet,
        unless_dry_run,
        unsupported::{self, Unsupported},
        vpc,
    },
    network::Net,
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
    destination_ipv6_cidr_block: Option<String>,
    destination_prefix_list_id: Option<PrefixListId>,
    egress_only_internet_gateway_id: Option<EgressOnlyInternetGatewayId>,
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
    destination_ipv6_cidr_block: Option<String>,
    destination_prefix_list_id: Option<PrefixListId>,
    egress_only_internet_gateway_id: Option<EgressOnlyInternetGatewayId>,
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
            ("TransitGatewayId", self.transit_gateway_id),
            ("LocalGatewayId", self.local_gateway_id),
            ("CarrierGatewayId", self.carrier_gateway_id),
            ("CoreNetworkArn", self.core_network_arn),
            ("VpcEndpointId", self.vpc_endpoint_id),
            ("OdbNetworkArn", self.odb_network_arn),
        ])?;
        let given = [
            self.gateway_id.is_some(),
            self.egress_only_internet_gateway_id.is_some(),
            self.instance_id.is_some(),
            self.nat_gateway_id.is_some(),
            self.network_interface_id.is_some(),
            self.vpc_peering_connection_id.is_some(),
        ];
        match given.into_iter().filter(|g| *g).count() {
            1 => Ok(()),
            n => {
                let code = if n == 0 { "MissingParameter" } else { "InvalidParameterCombination" };
                let message = "The request must contain exactly one of gatewayId, egressOnlyInternetGatewayId, natGatewayId, networkInterfaceId, \
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
            if text.starts_with(VpcEndpointId::PREFIX) {
                let message = "Routes to a gateway endpoint are made by CreateVpcEndpoint and ModifyVpcEndpoint";
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            let gateway = internet_gateway::get(tx, account, &text.parse().map_err(Refusal::from)?)?;
            if gateway.vpc.as_ref() != Some(&table.vpc) {
                return Err(elsewhere(&format!("network gateway {}", gateway.id)));
            }
            return Ok(Target::Gateway(gateway.id));
        }
        if let Some(id) = &self.egress_only_internet_gateway_id {
            let gateway = egress_only_gateway::get(tx, account, id)?;
            if gateway.vpc != table.vpc {
                return Err(elsewhere(&format!("egress-only internet gateway {id}")));
            }
            return Ok(Target::EgressOnly(gateway.id));
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
        subnet::kind::require_routed(tx, &interface.subnet, "router")?;
        Ok(Target::Interface(interface.id))
    }
}

/// A destination in each of the three ways it can be said.
struct Asked<'a> {
    cidr: Option<&'a str>,
    ipv6: Option<&'a str>,
    list: Option<&'a PrefixListId>,
}

impl Asked<'_> {
    fn read(self) -> Outcome<Destination> {
        let wrong = |text: &str, name: &str| {
            let message = format!("Value ({text}) for parameter {name} is invalid. This is not a valid CIDR block.");
            Refusal::from(AwsError::invalid_parameter_value(message))
        };
        match (self.cidr, self.ipv6, self.list) {
            (Some(text), None, None) => {
                let net = text.parse().map_err(|()| wrong(text, "destinationCidrBlock"))?;
                Ok(Destination::Net(Net::V4(net)))
            }
            (None, Some(text), None) => {
                let net = text.parse().map_err(|()| wrong(text, "destinationIpv6CidrBlock"))?;
                Ok(Destination::Net(Net::V6(net)))
            }
            (None, None, Some(list)) => Ok(Destination::PrefixList(list.clone())),
            (None, None, None) => Err(AwsError::missing_parameter("DestinationCidrBlock").into()),
            _ => {
                let message = "The request must contain exactly one of destinationCidrBlock, destinationIpv6CidrBlock, \
                               destinationPrefixListId";
                Err(AwsError::invalid_parameter_combination(message).into())
            }
        }
    }
}

impl CreateRoute {
    fn destination(&self) -> Outcome<Destination> {
        let asked = Asked {
            cidr: self.destination_cidr_block.as_deref(),
            ipv6: self.destination_ipv6_cidr_block.as_deref(),
            list: self.destination_prefix_list_id.as_ref(),
        };
        asked.read()
    }
}

/// What a target takes: an egress-only gateway IPv6, a NAT gateway and an interface IPv4 (there is no NAT64).
fn check_target(destination: &Destination, target: &Target) -> Outcome<()> {
    let is_ipv6 = destination.net().is_some_and(|net| net.v6().is_some());
    match target {
        Target::Gateway(_) | Target::Peering(_) => Ok(()),
        Target::EgressOnly(_) if is_ipv6 => Ok(()),
        Target::EgressOnly(id) => {
            let message = format!("The egress-only internet gateway {id} takes IPv6 destinations only");
            Err(AwsError::invalid_parameter_value(message).into())
        }
        Target::Nat(_) | Target::Interface(_) | Target::Endpoint(_) if is_ipv6 => {
            let message = format!("IPv6 routes to {} are not supported by this cloud", target.as_str());
            Err(AwsError::unsupported(message).into())
        }
        Target::Nat(_) | Target::Interface(_) | Target::Endpoint(_) => Ok(()),
    }
}

/// Routes of endpoints come and go with the endpoint's table associations.
fn check_not_endpoint(table: &RouteTableRow, destination: &Destination) -> Outcome<()> {
    let route = table.routes.iter().find(|r| r.destination == *destination);
    match route.map(|r| &r.target) {
        Some(Target::Endpoint(id)) => {
            let message = format!("cannot change the route of VPC endpoint {id} in route table {}", table.id);
            Err(AwsError::invalid_parameter_value(message).into())
        }
        _ => Ok(()),
    }
}

/// The VPC's own addresses are always reached directly.
fn check_fits(
    tx: &mut Tx<'_>,
    config: &Config,
    table: &RouteTableRow,
    destination: &Destination,
    target: &Target,
) -> Outcome<()> {
    check_target(destination, target)?;
    let nets = match destination {
        Destination::Net(net) => vec![*net],
        Destination::PrefixList(id) => {
            let list = prefix_list::referable(tx, config, &table.account, id)?;
            let takes = matches!(target, Target::Gateway(_) | Target::EgressOnly(_) | Target::Peering(_));
            if list.is_ipv6 && !takes {
                let message = format!("IPv6 routes to {} are not supported by this cloud", target.as_str());
                return Err(AwsError::unsupported(message).into());
            }
            list.nets().collect()
        }
    };
    let vpc = vpc::get(tx, &table.account, &table.vpc)?;
    for net in nets {
        if vpc.nets().any(|block| block == net) {
            let message = format!("The route identified by {net} already exists.");
            return Err(Refusal::new("RouteAlreadyExists", message));
        }
        if vpc.nets().any(|block| block.covers(&net)) {
            let message = format!(
                "The destination CIDR block {net} is equal to or more specific than one of this VPC's CIDR blocks, \
                 which this cloud does not route otherwise."
            );
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    Ok(())
}

/// A prefix list counts as many routes as it may have entries, as at AWS.
fn weight(tx: &mut Tx<'_>, config: &Config, account: &str, destination: &Destination) -> Outcome<usize> {
    match destination {
        Destination::Net(_) => Ok(1),
        Destination::PrefixList(id) => {
            let list = prefix_list::referable(tx, config, account, id)?;
            Ok(usize::try_from(list.max_entries).unwrap_or(MAX_PER_TABLE))
        }
    }
}

fn count(tx: &mut Tx<'_>, config: &Config, table: &RouteTableRow) -> Outcome<usize> {
    let mut sum = 0;
    for route in &table.routes {
        sum += weight(tx, config, &table.account, &route.destination)?;
    }
    Ok(sum)
}

async fn create(call: &Call, input: CreateRoute) -> Outcome<()> {
    input.refuse_what_is_not_done()?;
    let destination = input.destination()?;
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    call.cloud
        .store
        .write("create a route", move |tx| {
            let table = get(tx, &account, &input.route_table_id)?;
            let target = input.target(tx, &table)?;
            check_fits(tx, &cloud.config, &table, &destination, &target)?;
            if table.routes.iter().any(|r| r.destination == destination) {
                let message = format!("The route identified by {destination} already exists.");
                return Err(Refusal::new("RouteAlreadyExists", message));
            }
            if count(tx, &cloud.config, &table)? + weight(tx, &cloud.config, &account, &destination)? > MAX_PER_TABLE {
                let message = format!("The maximum number of routes in a table has been reached ({MAX_PER_TABLE}).");
                return Err(Refusal::new("RouteLimitExceeded", message));
            }
            insert_route(tx, &table.id, &destination, &target)?;
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
    let destination = input.destination()?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("replace a route", move |tx| {
            let table = get(tx, &account, &input.route_table_id)?;
            let target = input.target(tx, &table)?;
            check_target(&destination, &target)?;
            check_not_endpoint(&table, &destination)?;
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
    destination_ipv6_cidr_block: Option<String>,
    destination_prefix_list_id: Option<PrefixListId>,
}

async fn delete(call: &Call, input: DeleteRoute) -> Outcome<()> {
    let asked = Asked {
        cidr: input.destination_cidr_block.as_deref(),
        ipv6: input.destination_ipv6_cidr_block.as_deref(),
        list: input.destination_prefix_list_id.as_ref(),
    };
    let destination = asked.read()?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a route", move |tx| {
            let table = get(tx, &account, &input.route_table_id)?;
            let vpc = vpc::get(tx, &account, &table.vpc)?;
            if vpc.nets().any(|net| Some(net) == destination.net()) {
                let message = format!("cannot remove local route {destination} in route table {}", table.id);
                return Err(AwsError::invalid_parameter_value(message).into());
            }
            check_not_endpoint(&table, &destination)?;
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
