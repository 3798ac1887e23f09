//! Route tables: where packets that leave a subnet go. A subnet without an association of its own has its VPC's main table.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::{
        EgressOnlyInternetGatewayId, InstanceId, InternetGatewayId, NatGatewayId, NetworkInterfaceId, PrefixListId,
        RouteTableAssociationId, RouteTableId, SubnetId, VpcEndpointId, VpcId, VpcPeeringConnectionId,
    },
};
use mallee_store::{Error as StoreError, FromValue, Row, ToValue, Tx, Value, params};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, egress_only_gateway, endpoint, interface, internet_gateway,
        listing::{self, Wanted},
        nat_gateway, peering,
        tag::{self, Tag},
        vpc::{self, VpcRow},
    },
    network::{Cidr, Cidr6, Net},
    service::Call,
};

pub mod change;
pub mod route;

actions![DescribeRouteTables => describe];

/// The local route is not a row: every table has it. `main_of` is the VPC whose main table an association makes it.
pub const TABLES: &str = "
CREATE TABLE route_table (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    created BIGINT NOT NULL
);
CREATE INDEX route_table_of ON route_table (account);
CREATE TABLE route (
    route_table TEXT NOT NULL REFERENCES route_table (id),
    destination TEXT NOT NULL,
    gateway TEXT NOT NULL,
    PRIMARY KEY (route_table, destination)
);
CREATE TABLE route_table_association (
    id TEXT PRIMARY KEY,
    route_table TEXT NOT NULL REFERENCES route_table (id),
    subnet TEXT UNIQUE,
    main_of TEXT UNIQUE
);
";

/// A route table as its rows are.
#[derive(Debug, Clone)]
pub struct RouteTableRow {
    pub id: RouteTableId,
    pub account: String,
    pub vpc: VpcId,
    /// But the local one, by destination.
    pub routes: Vec<RouteRow>,
    pub associations: Vec<AssociationRow>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRow {
    pub destination: Destination,
    pub target: Target,
    /// Whether the target is there and takes packets. A route that is not active is a black hole.
    pub active: bool,
    /// The instance that wears the interface a route leads to.
    pub instance: Option<InstanceId>,
}

/// Which packets a route is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    Net(Net),
    /// All that the list has.
    PrefixList(PrefixListId),
}

impl Destination {
    pub fn net(&self) -> Option<Net> {
        match self {
            Destination::Net(net) => Some(*net),
            Destination::PrefixList(_) => None,
        }
    }
}

impl From<Cidr> for Destination {
    fn from(net: Cidr) -> Self {
        Destination::Net(net.into())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Net(net) => net.fmt(f),
            Destination::PrefixList(id) => id.fmt(f),
        }
    }
}

impl ToValue for Destination {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self.to_string().into())
    }
}

impl FromValue for Destination {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        text.parse()
            .map(Destination::Net)
            .or_else(|()| text.parse().map(Destination::PrefixList))
            .map_err(|_| format!("{text:?} is nothing a route is about"))
    }
}

/// Where a route leads. One that leads to an instance leads to its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Gateway(InternetGatewayId),
    EgressOnly(EgressOnlyInternetGatewayId),
    Endpoint(VpcEndpointId),
    Nat(NatGatewayId),
    Interface(NetworkInterfaceId),
    Peering(VpcPeeringConnectionId),
}

impl Target {
    pub fn as_str(&self) -> &str {
        match self {
            Target::Gateway(id) => id.as_str(),
            Target::EgressOnly(id) => id.as_str(),
            Target::Endpoint(id) => id.as_str(),
            Target::Nat(id) => id.as_str(),
            Target::Interface(id) => id.as_str(),
            Target::Peering(id) => id.as_str(),
        }
    }
}

impl ToValue for Target {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self.as_str().into())
    }
}

impl FromValue for Target {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        text.parse()
            .map(Target::Gateway)
            .or_else(|_| text.parse().map(Target::Nat))
            .or_else(|_| text.parse().map(Target::Interface))
            .or_else(|_| text.parse().map(Target::Peering))
            .or_else(|_| text.parse().map(Target::EgressOnly))
            .or_else(|_| text.parse().map(Target::Endpoint))
            .map_err(|_| format!("{text:?} is nothing a route leads to"))
    }
}

#[derive(Debug, Clone)]
pub struct AssociationRow {
    pub id: RouteTableAssociationId,
    /// None: it is the main association.
    pub subnet: Option<SubnetId>,
}

impl RouteTableRow {
    pub fn is_main(&self) -> bool {
        self.associations.iter().any(|a| a.subnet.is_none())
    }
}

fn read(row: &Row<'_>) -> Result<RouteTableRow, StoreError> {
    Ok(RouteTableRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Id<_>>(2)?.0,
        routes: Vec::new(),
        associations: Vec::new(),
    })
}

/// The tables of an account with their routes and associations; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<RouteTableRow>, StoreError> {
    let whose = listing::whose(account);
    let mut tables = tx.query(
        &format!("SELECT id, account, vpc FROM route_table WHERE {whose} ORDER BY id"),
        params![account],
        read,
    )?;
    let mut routes: BTreeMap<RouteTableId, Vec<RouteRow>> = BTreeMap::new();
    let found = tx.query(
        &format!(
            "SELECT r.route_table, r.destination, r.gateway FROM route r JOIN route_table t ON t.id = r.route_table
             WHERE {whose} ORDER BY r.destination"
        ),
        params![account],
        |row| {
            let route = RouteRow { destination: row.get(1)?, target: row.get(2)?, active: false, instance: None };
            Ok((row.get::<Id<_>>(0)?.0, route))
        },
    )?;
    for (table, route) in found {
        routes.entry(table).or_default().push(route);
    }
    let mut associations: BTreeMap<RouteTableId, Vec<AssociationRow>> = BTreeMap::new();
    let found = tx.query(
        &format!(
            "SELECT a.route_table, a.id, a.subnet FROM route_table_association a JOIN route_table t ON t.id = a.route_table
             WHERE {whose} ORDER BY a.id"
        ),
        params![account],
        |row| {
            let subnet = row.get::<Option<Id<_>>>(2)?.map(|i| i.0);
            Ok((row.get::<Id<_>>(0)?.0, AssociationRow { id: row.get::<Id<_>>(1)?.0, subnet }))
        },
    )?;
    for (table, association) in found {
        associations.entry(table).or_default().push(association);
    }
    let standing = Standing::read(tx, account)?;
    for table in &mut tables {
        for route in routes.get_mut(&table.id).into_iter().flatten() {
            standing.tell(&table.vpc, route);
        }
        table.routes = routes.remove(&table.id).unwrap_or_default();
        table.associations = associations.remove(&table.id).unwrap_or_default();
    }
    Ok(tables)
}

/// What routes may lead to, and whether it takes packets.
struct Standing {
    gateways: BTreeMap<InternetGatewayId, VpcId>,
    egress_only: BTreeMap<EgressOnlyInternetGatewayId, VpcId>,
    endpoints: BTreeMap<VpcEndpointId, VpcId>,
    nats: BTreeMap<NatGatewayId, VpcId>,
    interfaces: BTreeMap<NetworkInterfaceId, InstanceId>,
    peerings: BTreeSet<VpcPeeringConnectionId>,
}

impl Standing {
    fn read(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Self, StoreError> {
        let gateways = internet_gateway::all(tx, account)?;
        Ok(Self {
            gateways: gateways.into_iter().filter_map(|g| Some((g.id, g.vpc?))).collect(),
            egress_only: egress_only_gateway::all(tx, account)?.into_iter().map(|g| (g.id, g.vpc)).collect(),
            endpoints: endpoint::all(tx, account)?.into_iter().map(|e| (e.id, e.vpc)).collect(),
            nats: nat_gateway::alive(tx)?.into_iter().map(|n| (n.id, n.vpc)).collect(),
            interfaces: interface::attached(tx, account)?,
            peerings: peering::active(tx)?.into_iter().map(|p| p.id).collect(),
        })
    }

    fn tell(&self, vpc: &VpcId, route: &mut RouteRow) {
        route.active = match &route.target {
            Target::Gateway(id) => self.gateways.get(id) == Some(vpc),
            Target::EgressOnly(id) => self.egress_only.get(id) == Some(vpc),
            Target::Endpoint(id) => self.endpoints.get(id) == Some(vpc),
            Target::Nat(id) => self.nats.get(id) == Some(vpc),
            Target::Interface(id) => self.interfaces.contains_key(id),
            Target::Peering(id) => self.peerings.contains(id),
        };
        if let Target::Interface(id) = &route.target {
            route.instance = self.interfaces.get(id).cloned();
        }
    }
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &RouteTableId) -> Outcome<RouteTableRow> {
    all(tx, Some(account))?.into_iter().find(|t| t.id == *id).ok_or_else(|| not_found(id.as_str()))
}

/// The tables of an account with routes about a prefix list.
pub fn tables_leading_to(tx: &mut Tx<'_>, account: &str, list: &PrefixListId) -> Result<Vec<String>, StoreError> {
    tx.query(
        "SELECT r.route_table FROM route r JOIN route_table t ON t.id = r.route_table
         WHERE r.destination = ?1 AND t.account = ?2",
        params![list.as_str(), account],
        |row| row.get(0),
    )
}

/// How many tables a VPC has beside its main one.
pub fn count_but_main(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM route_table t WHERE t.vpc = ?1
               AND NOT EXISTS (SELECT 1 FROM route_table_association a WHERE a.route_table = t.id AND a.main_of = t.vpc)";
    tx.query_one(sql, params![vpc.as_str()], |row| row.get(0))
}

/// The VPC ends: its tables go, and all that is in them.
pub fn drop_of_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<(), StoreError> {
    let tables: Vec<String> =
        tx.query("SELECT id FROM route_table WHERE vpc = ?1", params![vpc.as_str()], |row| row.get(0))?;
    for id in tables {
        tx.execute("DELETE FROM route WHERE route_table = ?1", params![id])?;
        tx.execute("DELETE FROM route_table_association WHERE route_table = ?1", params![id])?;
        tx.execute("DELETE FROM route_table WHERE id = ?1", params![id])?;
        tag::drop_all(tx, &id)?;
    }
    Ok(())
}

/// The subnet ends.
pub fn forget_subnet(tx: &mut Tx<'_>, subnet: &SubnetId) -> Result<(), StoreError> {
    tx.execute("DELETE FROM route_table_association WHERE subnet = ?1", params![subnet.as_str()]).map(|_| ())
}

/// Writes the main table of a new VPC.
pub fn insert_main(tx: &mut Tx<'_>, account: &str, vpc: &VpcId, now: i64) -> Outcome<RouteTableId> {
    let id = RouteTableId::from_random(rand::random());
    tx.execute(
        "INSERT INTO route_table (id, account, vpc, created) VALUES (?1, ?2, ?3, ?4)",
        params![id.as_str(), account, vpc.as_str(), now],
    )?;
    let association = RouteTableAssociationId::from_random(rand::random());
    tx.execute(
        "INSERT INTO route_table_association (id, route_table, main_of) VALUES (?1, ?2, ?3)",
        params![association.as_str(), id.as_str(), vpc.as_str()],
    )?;
    Ok(id)
}

/// Writes a route.
pub fn insert_route(
    tx: &mut Tx<'_>,
    table: &RouteTableId,
    destination: &Destination,
    target: &Target,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO route (route_table, destination, gateway) VALUES (?1, ?2, ?3)",
        params![table.as_str(), *destination, *target],
    )
    .map(|_| ())
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidRouteTableID.NotFound", format!("The routeTable ID '{id}' does not exist"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeRouteTables {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    route_table_id: Vec<RouteTableId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedRouteTables {
    route_table_set: Vec<TableInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TableInfo {
    route_table_id: RouteTableId,
    vpc_id: VpcId,
    owner_id: String,
    route_set: Vec<RouteInfo>,
    association_set: Vec<AssociationInfo>,
    propagating_vgw_set: [(); 0],
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteInfo {
    destination_cidr_block: Option<Cidr>,
    destination_ipv6_cidr_block: Option<Cidr6>,
    destination_prefix_list_id: Option<PrefixListId>,
    egress_only_internet_gateway_id: Option<EgressOnlyInternetGatewayId>,
    gateway_id: Option<String>,
    instance_id: Option<InstanceId>,
    instance_owner_id: Option<String>,
    network_interface_id: Option<NetworkInterfaceId>,
    vpc_peering_connection_id: Option<VpcPeeringConnectionId>,
    nat_gateway_id: Option<NatGatewayId>,
    state: &'static str,
    origin: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AssociationInfo {
    route_table_association_id: RouteTableAssociationId,
    route_table_id: RouteTableId,
    subnet_id: Option<SubnetId>,
    main: bool,
    association_state: State,
}

#[derive(Serialize)]
struct State {
    state: &'static str,
}

impl Tagged for TableInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<TableInfo>] = &[
    ("association.gateway-id", |_| vec![]),
    ("association.main", |table| table.association_set.iter().map(|a| a.main.to_string().into()).collect()),
    ("association.route-table-association-id", |table| {
        table.association_set.iter().map(|a| a.route_table_association_id.as_str().into()).collect()
    }),
    ("association.route-table-id", |table| {
        table.association_set.iter().map(|a| a.route_table_id.as_str().into()).collect()
    }),
    ("association.subnet-id", |table| {
        table.association_set.iter().filter_map(|a| a.subnet_id.as_ref().map(|s| s.as_str().into())).collect()
    }),
    ("owner-id", |table| vec![(&table.owner_id).into()]),
    ("route-table-id", |table| vec![table.route_table_id.as_str().into()]),
    ("route.destination-cidr-block", |table| {
        table.route_set.iter().filter_map(|r| r.destination_cidr_block.map(|c| c.to_string().into())).collect()
    }),
    ("route.destination-ipv6-cidr-block", |table| {
        table.route_set.iter().filter_map(|r| r.destination_ipv6_cidr_block.map(|c| c.to_string().into())).collect()
    }),
    ("route.destination-prefix-list-id", |table| {
        let lists = table.route_set.iter().filter_map(|r| r.destination_prefix_list_id.as_ref());
        lists.map(|id| id.as_str().into()).collect()
    }),
    ("route.egress-only-internet-gateway-id", |table| {
        let gateways = table.route_set.iter().filter_map(|r| r.egress_only_internet_gateway_id.as_ref());
        gateways.map(|id| id.as_str().into()).collect()
    }),
    ("route.gateway-id", |table| {
        table.route_set.iter().filter_map(|r| r.gateway_id.as_ref()).map(Into::into).collect()
    }),
    ("route.instance-id", |table| {
        table.route_set.iter().filter_map(|r| r.instance_id.as_ref().map(|i| i.as_str().into())).collect()
    }),
    ("route.nat-gateway-id", |table| {
        table.route_set.iter().filter_map(|r| r.nat_gateway_id.as_ref().map(|i| i.as_str().into())).collect()
    }),
    ("route.origin", |table| table.route_set.iter().map(|r| r.origin.into()).collect()),
    ("route.state", |table| table.route_set.iter().map(|r| r.state.into()).collect()),
    ("route.transit-gateway-id", |_| vec![]),
    ("route.vpc-peering-connection-id", |table| {
        table.route_set.iter().filter_map(|r| r.vpc_peering_connection_id.as_ref().map(|i| i.as_str().into())).collect()
    }),
    ("vpc-id", |table| vec![table.vpc_id.as_str().into()]),
];

impl RouteInfo {
    fn new(destination: Destination, state: &'static str, origin: &'static str) -> Self {
        let net = destination.net();
        Self {
            destination_cidr_block: net.and_then(|n| n.v4()),
            destination_ipv6_cidr_block: net.and_then(|n| n.v6()),
            destination_prefix_list_id: match destination {
                Destination::Net(_) => None,
                Destination::PrefixList(id) => Some(id),
            },
            egress_only_internet_gateway_id: None,
            gateway_id: None,
            instance_id: None,
            instance_owner_id: None,
            network_interface_id: None,
            vpc_peering_connection_id: None,
            nat_gateway_id: None,
            state,
            origin,
        }
    }

    fn local(net: Net) -> Self {
        let destination = Destination::Net(net);
        Self { gateway_id: Some("local".into()), ..Self::new(destination, "active", "CreateRouteTable") }
    }

    fn of(route: RouteRow, owner: &str) -> Self {
        let state = if route.active { "active" } else { "blackhole" };
        let mut info = Self::new(route.destination, state, "CreateRoute");
        match route.target {
            Target::Gateway(id) => info.gateway_id = Some(id.to_string()),
            Target::Endpoint(id) => info.gateway_id = Some(id.to_string()),
            Target::EgressOnly(id) => info.egress_only_internet_gateway_id = Some(id),
            Target::Nat(id) => info.nat_gateway_id = Some(id),
            Target::Peering(id) => info.vpc_peering_connection_id = Some(id),
            Target::Interface(id) => {
                info.network_interface_id = Some(id);
                info.instance_owner_id = route.instance.is_some().then(|| owner.to_owned());
                info.instance_id = route.instance;
            }
        }
        info
    }
}

fn info(table: RouteTableRow, vpc: Option<&VpcRow>, tag_set: Vec<Tag>) -> TableInfo {
    let local = vpc.into_iter().flat_map(VpcRow::nets).map(RouteInfo::local);
    let others = table.routes.into_iter().map(|route| RouteInfo::of(route, &table.account));
    let association = |a: AssociationRow| AssociationInfo {
        route_table_association_id: a.id,
        route_table_id: table.id.clone(),
        main: a.subnet.is_none(),
        subnet_id: a.subnet,
        association_state: State { state: "associated" },
    };
    TableInfo {
        association_set: table.associations.into_iter().map(association).collect(),
        route_set: local.chain(others).collect(),
        route_table_id: table.id.clone(),
        vpc_id: table.vpc,
        owner_id: table.account,
        propagating_vgw_set: [],
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeRouteTables) -> Outcome<DescribedRouteTables> {
    let account = call.account().to_owned();
    let (tables, vpcs, mut tags) = call
        .cloud
        .store
        .read("describe route tables", move |tx| {
            let tags = tag::of_kind(tx, &account, RouteTableId::PREFIX)?;
            Ok::<_, StoreError>((all(tx, Some(&account))?, vpc::all(tx, Some(&account))?, tags))
        })
        .await?;
    let infos = tables
        .into_iter()
        .map(|table| {
            let (vpc, tag_set) = (vpcs.iter().find(|v| v.id == table.vpc), tags.take(table.id.as_str()));
            info(table, vpc, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.route_table_id.iter().map(RouteTableId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (route_table_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |t| t.route_table_id.as_str(), not_found, infos)?;
    Ok(DescribedRouteTables { route_table_set, next_token })
}
