//! NAT gateways: what subnets without public addresses go out by. Each wears an interface in its subnet, and an elastic IP.
//!
//! ```text
//! pending ──► available ──► deleting ──► deleted (shown for an hour)
//! ```
//! Whoever writes the network says when it is done: [`settle`] after a pass has written what a request asked for. Then the
//! interface of one that is being deleted goes, and its address is free.

use std::{collections::BTreeSet, net::Ipv4Addr};

use mallee_aws::{
    AwsError,
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::{AddressAssociationId, AllocationId, NatGatewayId, NetworkInterfaceId, SubnetId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        Id, address, client_token,
        interface::{self, Kind},
        internet_gateway,
        listing::{self, Wanted},
        subnet,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        unsupported::{self, Unsupported},
    },
    network::cidr::Address,
    service::Call,
};

actions![
    CreateNatGateway => create,
    DeleteNatGateway => delete,
    DescribeNatGateways => describe,
];

pub const TABLES: &str = "
CREATE TABLE nat_gateway (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL,
    subnet TEXT NOT NULL,
    interface TEXT NOT NULL,
    private_ip TEXT NOT NULL,
    allocation TEXT NOT NULL,
    association TEXT NOT NULL,
    public_ip TEXT NOT NULL,
    state TEXT NOT NULL,
    created BIGINT NOT NULL,
    deleted BIGINT
);
CREATE INDEX nat_gateway_of ON nat_gateway (account);
";

/// How long one that is deleted is shown.
const SHOWN_MS: i64 = 3600 * 1000;
/// AWS' default, per zone.
const MAX_PER_ZONE: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    Available,
    Deleting,
    Deleted,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Available => "available",
            State::Deleting => "deleting",
            State::Deleted => "deleted",
        }
    }

    fn of(text: &str) -> Self {
        match text {
            "pending" => State::Pending,
            "available" => State::Available,
            "deleting" => State::Deleting,
            _ => State::Deleted,
        }
    }
}

/// A NAT gateway as its row is.
#[derive(Debug, Clone)]
pub struct NatGatewayRow {
    pub id: NatGatewayId,
    pub account: String,
    pub vpc: VpcId,
    pub subnet: SubnetId,
    pub interface: NetworkInterfaceId,
    pub private_ip: Ipv4Addr,
    pub allocation: AllocationId,
    pub association: AddressAssociationId,
    pub public_ip: Ipv4Addr,
    pub state: State,
    pub created: i64,
    pub deleted: Option<i64>,
}

const COLUMNS: &str =
    "id, account, vpc, subnet, interface, private_ip, allocation, association, public_ip, state, created, deleted";

fn read(row: &Row<'_>) -> Result<NatGatewayRow, StoreError> {
    Ok(NatGatewayRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Id<_>>(2)?.0,
        subnet: row.get::<Id<_>>(3)?.0,
        interface: row.get::<Id<_>>(4)?.0,
        private_ip: row.get::<Address>(5)?.0,
        allocation: row.get::<Id<_>>(6)?.0,
        association: row.get::<Id<_>>(7)?.0,
        public_ip: row.get::<Address>(8)?.0,
        state: State::of(&row.get::<String>(9)?),
        created: row.get(10)?,
        deleted: row.get(11)?,
    })
}

/// Those of the whole cloud that carry packets, or are about to.
pub fn alive(tx: &mut Tx<'_>) -> Result<Vec<NatGatewayRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM nat_gateway WHERE state = 'pending' OR state = 'available' ORDER BY id");
    tx.query(&sql, params![], read)
}

/// One of the account's that is still shown.
fn get(tx: &mut Tx<'_>, account: &str, id: &NatGatewayId) -> Outcome<NatGatewayRow> {
    let sql = format!("SELECT {COLUMNS} FROM nat_gateway WHERE account = ?1 AND id = ?2");
    tx.query_opt(&sql, params![account, id.as_str()], read)?.ok_or_else(|| not_found(id.as_str()))
}

/// One that a route may lead to.
pub fn get_alive(tx: &mut Tx<'_>, account: &str, id: &NatGatewayId) -> Outcome<NatGatewayRow> {
    let row = get(tx, account, id)?;
    match row.state {
        State::Pending | State::Available => Ok(row),
        State::Deleting | State::Deleted => Err(route_not_found(id)),
    }
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("NatGatewayNotFound", format!("NAT gateway {id} was not found"))
}

fn route_not_found(id: &NatGatewayId) -> Refusal {
    Refusal::new("InvalidNatGatewayID.NotFound", format!("The natGateway ID '{id}' does not exist"))
}

/// Whether nobody writes a network, so that there is nothing to wait for.
fn settles_at_once(config: &Config) -> bool {
    config.network.northbound.is_none()
}

/// The network is written, with these gateways and no others. True: something ended.
pub fn settle(tx: &mut Tx<'_>, written: &BTreeSet<NatGatewayId>, now: i64) -> Outcome<bool> {
    let sql = format!("SELECT {COLUMNS} FROM nat_gateway WHERE state = 'pending' OR state = 'deleting'");
    let mut ended = false;
    for row in tx.query(&sql, params![], read)? {
        match (row.state, written.contains(&row.id)) {
            (State::Pending, true) => {
                tx.execute("UPDATE nat_gateway SET state = 'available' WHERE id = ?1", params![row.id.as_str()])?;
            }
            (State::Deleting, false) => {
                end(tx, &row, now)?;
                ended = true;
            }
            _ => {}
        }
    }
    tx.execute("DELETE FROM nat_gateway WHERE state = 'deleted' AND deleted < ?1", params![now - SHOWN_MS])?;
    Ok(ended)
}

/// Whether anything waits for [`settle`].
pub fn is_unsettled(tx: &mut Tx<'_>) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM nat_gateway WHERE state = 'pending' OR state = 'deleting'";
    Ok(tx.query_one(sql, params![], |row| row.get::<i64>(0))? > 0)
}

fn end(tx: &mut Tx<'_>, row: &NatGatewayRow, now: i64) -> Outcome<()> {
    interface::discard(tx, &row.account, &row.interface)?;
    tx.execute("UPDATE nat_gateway SET state = 'deleted', deleted = ?2 WHERE id = ?1", params![row.id.as_str(), now])?;
    tag::drop_all(tx, row.id.as_str())?;
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateNatGateway {
    dry_run: Option<bool>,
    subnet_id: Option<SubnetId>,
    allocation_id: Option<AllocationId>,
    client_token: Option<String>,
    connectivity_type: Option<String>,
    private_ip_address: Option<Ipv4Addr>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    secondary_allocation_id: Option<Unsupported>,
    secondary_private_ip_address: Option<Unsupported>,
    secondary_private_ip_address_count: Option<Unsupported>,
    availability_mode: Option<Unsupported>,
    availability_zone_address: Option<Unsupported>,
    vpc_id: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedNatGateway {
    client_token: Option<String>,
    nat_gateway: GatewayInfo,
}

async fn create(call: &Call, input: CreateNatGateway) -> Outcome<CreatedNatGateway> {
    unsupported::refuse(&[
        ("SecondaryAllocationId", input.secondary_allocation_id),
        ("SecondaryPrivateIpAddress", input.secondary_private_ip_address),
        ("SecondaryPrivateIpAddressCount", input.secondary_private_ip_address_count),
        ("AvailabilityMode", input.availability_mode),
        ("AvailabilityZoneAddress", input.availability_zone_address),
        ("VpcId", input.vpc_id),
    ])?;
    match input.connectivity_type.as_deref() {
        None | Some("" | "public") => {}
        Some("private") => {
            return Err(AwsError::unsupported("ConnectivityType=private is not supported by this cloud").into());
        }
        Some(other) => {
            let message = format!("Value ({other}) for parameter connectivityType is invalid.");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
    }
    let subnet_id = input.subnet_id.clone().ok_or_else(|| AwsError::missing_parameter("SubnetId"))?;
    let allocation_id = input.allocation_id.clone().ok_or_else(|| AwsError::missing_parameter("AllocationId"))?;
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let tags = tag::specified(&input.tag_specification, &["natgateway"])?.remove("natgateway").unwrap_or_default();
    let (account, now, cloud, dry_run) = (call.account().to_owned(), call.now, call.cloud.clone(), input.dry_run);
    let address = input.private_ip_address;
    let (row, tag_set) = call
        .cloud
        .store
        .write("create a NAT gateway", move |tx| {
            let made = token.as_ref().filter(|_| dry_run != Some(true)).map(|t| t.made(tx)).transpose()?.flatten();
            let id = match made {
                Some(id) => id.parse().map_err(Refusal::from)?,
                None => {
                    let id = make(tx, &cloud.config, &account, &subnet_id, &allocation_id, address, now)?;
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
    Ok(CreatedNatGateway { client_token: input.client_token, nat_gateway: info(row, tag_set) })
}

/// Writes one with all that it wears.
pub fn make(
    tx: &mut Tx<'_>,
    config: &Config,
    account: &str,
    subnet: &SubnetId,
    allocation: &AllocationId,
    address: Option<Ipv4Addr>,
    now: i64,
) -> Outcome<NatGatewayId> {
    let subnet = subnet::get(tx, account, subnet)?;
    subnet.require_routed("NAT gateway")?;
    let elastic = address::named(tx, account, Some(allocation), None)?;
    if elastic.interface.is_some() {
        let message = format!("resource {allocation} is already associated");
        return Err(Refusal::new("Resource.AlreadyAssociated", message));
    }
    if internet_gateway::of_vpc(tx, &subnet.vpc)?.is_none() {
        let message = format!("Network {} has no Internet gateway attached", subnet.vpc);
        return Err(Refusal::new("Gateway.NotAttached", message));
    }
    let mut in_zone = 0;
    for other in alive(tx)?.iter().filter(|other| other.account == account) {
        in_zone += usize::from(subnet::get(tx, account, &other.subnet)?.zone == subnet.zone);
    }
    if in_zone >= MAX_PER_ZONE {
        let message =
            format!("The maximum number of NAT gateways in {} has been reached ({MAX_PER_ZONE}).", subnet.zone);
        return Err(Refusal::new("NatGatewayLimitExceeded", message));
    }
    let id = NatGatewayId::from_random(rand::random());
    let new = interface::New {
        account,
        subnet: &subnet,
        attached: None,
        address,
        secondary: interface::Secondary::none(),
        ipv6: interface::ipv6::Wanted { named: Vec::new(), count: Some(0) },
        groups: &[],
        description: &format!("Interface for NAT Gateway {id}"),
        delete_on_termination: false,
        source_dest_check: false,
        public: Some(false),
        kind: Kind::NatGateway,
        now,
    };
    let made = interface::create(tx, &config.network, new)?;
    let association = address::associate::point(tx, &elastic, &made, made.address, false)?;
    let state = if settles_at_once(config) { State::Available } else { State::Pending };
    tx.execute(
        &format!("INSERT INTO nat_gateway ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, NULL)"),
        params![
            id.as_str(),
            account,
            subnet.vpc.as_str(),
            subnet.id.as_str(),
            made.id.as_str(),
            Address(made.address),
            allocation.as_str(),
            association.as_str(),
            Address(elastic.public_ip),
            state.as_str(),
            now
        ],
    )?;
    Ok(id)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteNatGateway {
    dry_run: Option<bool>,
    nat_gateway_id: NatGatewayId,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletedNatGateway {
    nat_gateway_id: NatGatewayId,
}

/// Routes to it stay, as black holes. Its elastic IP stays the account's.
async fn delete(call: &Call, input: DeleteNatGateway) -> Outcome<DeletedNatGateway> {
    let (account, now, cloud) = (call.account().to_owned(), call.now, call.cloud.clone());
    let nat_gateway_id = call
        .cloud
        .store
        .write("delete a NAT gateway", move |tx| {
            let row = get(tx, &account, &input.nat_gateway_id)?;
            if matches!(row.state, State::Pending | State::Available) {
                tx.execute(
                    "UPDATE nat_gateway SET state = 'deleting', deleted = ?2 WHERE id = ?1",
                    params![row.id.as_str(), now],
                )?;
                if settles_at_once(&cloud.config) {
                    end(tx, &row, now)?;
                }
            }
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(row.id)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(DeletedNatGateway { nat_gateway_id })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeNatGateways {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    nat_gateway_id: Vec<NatGatewayId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedNatGateways {
    nat_gateway_set: Vec<GatewayInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayInfo {
    nat_gateway_id: NatGatewayId,
    subnet_id: SubnetId,
    vpc_id: VpcId,
    state: &'static str,
    create_time: String,
    delete_time: Option<String>,
    nat_gateway_address_set: Vec<GatewayAddress>,
    connectivity_type: &'static str,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayAddress {
    allocation_id: AllocationId,
    association_id: AddressAssociationId,
    network_interface_id: NetworkInterfaceId,
    private_ip: String,
    public_ip: String,
    is_primary: bool,
    status: &'static str,
}

impl Tagged for GatewayInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<GatewayInfo>] = &[
    ("nat-gateway-id", |nat| vec![nat.nat_gateway_id.as_str().into()]),
    ("state", |nat| vec![nat.state.into()]),
    ("subnet-id", |nat| vec![nat.subnet_id.as_str().into()]),
    ("vpc-id", |nat| vec![nat.vpc_id.as_str().into()]),
];

fn info(row: NatGatewayRow, tag_set: Vec<Tag>) -> GatewayInfo {
    GatewayInfo {
        nat_gateway_id: row.id,
        subnet_id: row.subnet,
        vpc_id: row.vpc,
        state: row.state.as_str(),
        create_time: timestamp(row.created),
        delete_time: row.deleted.map(timestamp),
        nat_gateway_address_set: vec![GatewayAddress {
            allocation_id: row.allocation,
            association_id: row.association,
            network_interface_id: row.interface,
            private_ip: row.private_ip.to_string(),
            public_ip: row.public_ip.to_string(),
            is_primary: true,
            status: match row.state {
                State::Pending => "associating",
                State::Available => "succeeded",
                State::Deleting | State::Deleted => "disassociating",
            },
        }],
        connectivity_type: "public",
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeNatGateways) -> Outcome<DescribedNatGateways> {
    let (account, now) = (call.account().to_owned(), call.now);
    let (mut rows, mut tags) = call
        .cloud
        .store
        .read("describe NAT gateways", move |tx| {
            let sql = format!("SELECT {COLUMNS} FROM nat_gateway WHERE {} ORDER BY id", listing::whose(Some(&account)));
            let rows = tx.query(&sql, params![account], read)?;
            Ok::<_, StoreError>((rows, tag::of_kind(tx, &account, NatGatewayId::PREFIX)?))
        })
        .await?;
    rows.retain(|row| row.state != State::Deleted || row.deleted.is_some_and(|at| at >= now - SHOWN_MS));
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
        ids: input.nat_gateway_id.iter().map(NatGatewayId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (nat_gateway_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |nat| nat.nat_gateway_id.as_str(), not_found, infos)?;
    Ok(DescribedNatGateways { nat_gateway_set, next_token })
}
