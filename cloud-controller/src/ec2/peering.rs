//! VPC peering connections: two VPCs of this cloud, of one account or two, whose route tables may lead into each other.
//!
//! ```text
//! pending-acceptance ──► active ──► deleted        (or `rejected`; `failed` from the start when their addresses overlap)
//! ```
//! Those that ended are shown for two hours.

use std::net::Ipv4Addr;

use mallee_aws::{
    AwsError,
    id::{VpcId, VpcPeeringConnectionId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id,
        tag::{self, Tag, TagSpecification},
        unless_dry_run,
        vpc::{self, VpcRow},
    },
    network::{Cidr, mac},
    service::Call,
};

pub mod describe;

use describe::{PeeringInfo, info};

actions![
    AcceptVpcPeeringConnection => accept,
    CreateVpcPeeringConnection => create,
    DeleteVpcPeeringConnection => delete,
    RejectVpcPeeringConnection => reject,
];

/// `account` is the requester's. `link` numbers the transit network between the two routers. It is given back when the connection ends.
pub const TABLES: &str = "
CREATE TABLE vpc_peering (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    requester TEXT NOT NULL,
    requester_mac TEXT NOT NULL,
    accepter_account TEXT NOT NULL,
    accepter TEXT NOT NULL,
    accepter_mac TEXT NOT NULL,
    link BIGINT UNIQUE,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    created BIGINT NOT NULL,
    ended BIGINT
);
CREATE INDEX vpc_peering_by ON vpc_peering (requester);
CREATE INDEX vpc_peering_with ON vpc_peering (accepter);
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    PendingAcceptance,
    Active,
    Rejected,
    Failed,
    Deleted,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::PendingAcceptance => "pending-acceptance",
            State::Active => "active",
            State::Rejected => "rejected",
            State::Failed => "failed",
            State::Deleted => "deleted",
        }
    }

    fn of(text: &str) -> Self {
        match text {
            "pending-acceptance" => State::PendingAcceptance,
            "active" => State::Active,
            "rejected" => State::Rejected,
            "failed" => State::Failed,
            _ => State::Deleted,
        }
    }

    fn is_alive(self) -> bool {
        matches!(self, State::PendingAcceptance | State::Active)
    }
}

/// One end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub account: String,
    pub vpc: VpcId,
    /// Of its router's port to the other.
    pub mac: String,
}

/// A peering connection as its row is.
#[derive(Debug, Clone)]
pub struct PeeringRow {
    pub id: VpcPeeringConnectionId,
    pub requester: End,
    pub accepter: End,
    pub link: Option<u32>,
    pub state: State,
    pub message: String,
    pub created: i64,
    pub ended: Option<i64>,
}

impl PeeringRow {
    pub fn is_of(&self, vpc: &VpcId) -> bool {
        self.requester.vpc == *vpc || self.accepter.vpc == *vpc
    }

    /// The network between the routers, of which the requester's has the first address and the accepter's the second.
    pub fn transit(&self) -> Option<Cidr> {
        self.link.map(|n| Cidr::new(Ipv4Addr::from(u32::from(TRANSIT_FIRST) + 4 * n), 30))
    }
}

/// 169.254.0.0/17 is for transit: VPCs cannot have it, and 169.254.169.0/24 is not in it.
const TRANSIT_FIRST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);
const TRANSITS: u32 = 1 << 13;
/// How long one that ended is shown.
const SHOWN_MS: i64 = 2 * 3600 * 1000;
/// AWS' default.
const MAX_PER_VPC: usize = 50;

const COLUMNS: &str = "id, account, requester, requester_mac, accepter_account, accepter, accepter_mac, link, \
                       state, message, created, ended";

fn read(row: &Row<'_>) -> Result<PeeringRow, StoreError> {
    Ok(PeeringRow {
        id: row.get::<Id<_>>(0)?.0,
        requester: End { account: row.get(1)?, vpc: row.get::<Id<_>>(2)?.0, mac: row.get(3)? },
        accepter: End { account: row.get(4)?, vpc: row.get::<Id<_>>(5)?.0, mac: row.get(6)? },
        link: row.get::<Option<i64>>(7)?.and_then(|n| n.try_into().ok()),
        state: State::of(&row.get::<String>(8)?),
        message: row.get(9)?,
        created: row.get(10)?,
        ended: row.get(11)?,
    })
}

/// Those of the whole cloud that carry packets.
pub fn active(tx: &mut Tx<'_>) -> Result<Vec<PeeringRow>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM vpc_peering WHERE state = 'active' ORDER BY id"), params![], read)
}

/// Either end may ask.
pub fn get(tx: &mut Tx<'_>, account: &str, id: &VpcPeeringConnectionId) -> Outcome<PeeringRow> {
    let sql = format!("SELECT {COLUMNS} FROM vpc_peering WHERE id = ?2 AND (account = ?1 OR accepter_account = ?1)");
    tx.query_opt(&sql, params![account, id.as_str()], read)?.ok_or_else(|| not_found(id.as_str()))
}

fn not_found(id: &str) -> Refusal {
    let message = format!("The vpcPeeringConnection ID '{id}' does not exist");
    Refusal::new("InvalidVpcPeeringConnectionID.NotFound", message)
}

fn of_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<Vec<PeeringRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM vpc_peering WHERE requester = ?1 OR accepter = ?1 ORDER BY id");
    tx.query(&sql, params![vpc.as_str()], read)
}

/// The VPCs at the other ends of a VPC's connections that are there or asked for.
pub fn peers_of(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<Vec<VpcId>, StoreError> {
    let alive = of_vpc(tx, vpc)?.into_iter().filter(|p| p.state.is_alive());
    Ok(alive.map(|p| if p.requester.vpc == *vpc { p.accepter.vpc } else { p.requester.vpc }).collect())
}

/// The VPC ends: what ended before it is not shown any more.
pub fn forget_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<(), StoreError> {
    for row in of_vpc(tx, vpc)? {
        forget(tx, &row)?;
    }
    Ok(())
}

fn forget(tx: &mut Tx<'_>, row: &PeeringRow) -> Result<(), StoreError> {
    tag::drop_all(tx, row.id.as_str())?;
    tx.execute("DELETE FROM vpc_peering WHERE id = ?1", params![row.id.as_str()]).map(|_| ())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateVpcPeeringConnection {
    dry_run: Option<bool>,
    vpc_id: Option<VpcId>,
    peer_vpc_id: Option<VpcId>,
    peer_owner_id: Option<String>,
    peer_region: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OnePeering {
    vpc_peering_connection: PeeringInfo,
}

async fn create(call: &Call, input: CreateVpcPeeringConnection) -> Outcome<OnePeering> {
    if let Some(other) = input.peer_region.as_deref().filter(|r| !r.is_empty() && *r != call.cloud.region()) {
        return Err(AwsError::unsupported(format!("PeerRegion={other}: this cloud has one region")).into());
    }
    let vpc_id = input.vpc_id.ok_or_else(|| AwsError::missing_parameter("VpcId"))?;
    let peer_id = input.peer_vpc_id.ok_or_else(|| AwsError::missing_parameter("PeerVpcId"))?;
    let kind = "vpc-peering-connection";
    let tags = tag::specified(&input.tag_specification, &[kind])?.remove(kind).unwrap_or_default();
    let (account, now) = (call.account().to_owned(), call.now);
    let peer_account = input.peer_owner_id.filter(|a| !a.is_empty()).unwrap_or_else(|| account.clone());
    let (row, ends, tag_set) = call
        .cloud
        .store
        .write("create a VPC peering connection", move |tx| {
            let vpc = vpc::get(tx, &account, &vpc_id)?;
            let peer = vpc::get(tx, &peer_account, &peer_id)?;
            let row = insert(tx, &vpc, &peer, now)?;
            tag::put(tx, &account, row.id.as_str(), &tags)?;
            let tag_set: Vec<Tag> = tag::of(tx, row.id.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((row, [Some(vpc), Some(peer)], tag_set))
        })
        .await?;
    Ok(OnePeering { vpc_peering_connection: info(call.cloud.region(), row, &ends, tag_set) })
}

/// Asked for twice it is the same connection. VPCs whose addresses overlap cannot route to each other: it failed.
pub fn insert(tx: &mut Tx<'_>, vpc: &VpcRow, peer: &VpcRow, now: i64) -> Outcome<PeeringRow> {
    if vpc.id == peer.id {
        let message = "The requester VPC and the accepter VPC must be two";
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    let there = of_vpc(tx, &vpc.id)?;
    if let Some(row) = there.iter().find(|p| p.state.is_alive() && p.is_of(&peer.id)) {
        if row.requester.vpc == vpc.id {
            return Ok(row.clone());
        }
        let message = format!("A peering connection of these VPCs is there already: {}", row.id);
        return Err(Refusal::new("VpcPeeringConnectionAlreadyExists", message));
    }
    if there.iter().filter(|p| p.state.is_alive()).count() >= MAX_PER_VPC {
        let message = format!("The maximum number of active VPC peering connections has been reached ({MAX_PER_VPC}).");
        return Err(Refusal::new("ActiveVpcPeeringConnectionPerVpcLimitExceeded", message));
    }
    for old in there.iter().filter(|p| p.ended.is_some_and(|at| at < now - SHOWN_MS)) {
        forget(tx, old)?;
    }
    let id = VpcPeeringConnectionId::from_random(rand::random());
    let overlap = vpc.blocks().any(|mine| peer.blocks().any(|other| other.overlaps(&mine)));
    let (state, message, link) = match overlap {
        true => {
            (State::Failed, "Failed due to incorrect VPC-ID, Account ID, or overlapping CIDR range".to_owned(), None)
        }
        false => {
            let message = format!("Pending Acceptance by {}", peer.account);
            (State::PendingAcceptance, message, Some(free_link(tx)?))
        }
    };
    let row = PeeringRow {
        requester: End { account: vpc.account.clone(), vpc: vpc.id.clone(), mac: mac::take(tx, id.as_str())? },
        accepter: End { account: peer.account.clone(), vpc: peer.id.clone(), mac: mac::take(tx, id.as_str())? },
        link,
        state,
        message,
        created: now,
        ended: (state == State::Failed).then_some(now),
        id,
    };
    tx.execute(
        &format!("INSERT INTO vpc_peering ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"),
        params![
            row.id.as_str(),
            row.requester.account,
            row.requester.vpc.as_str(),
            row.requester.mac,
            row.accepter.account,
            row.accepter.vpc.as_str(),
            row.accepter.mac,
            row.link.map(i64::from),
            row.state.as_str(),
            row.message,
            row.created,
            row.ended
        ],
    )?;
    Ok(row)
}

fn free_link(tx: &mut Tx<'_>) -> Outcome<u32> {
    let used: std::collections::BTreeSet<i64> = tx
        .query("SELECT link FROM vpc_peering WHERE link IS NOT NULL", params![], |row| row.get(0))?
        .into_iter()
        .collect();
    (0..TRANSITS).find(|n| !used.contains(&i64::from(*n))).ok_or_else(|| {
        let message = "All transit networks of this cloud are in use";
        Refusal::new("VpcPeeringConnectionLimitExceeded", message)
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AcceptVpcPeeringConnection {
    dry_run: Option<bool>,
    vpc_peering_connection_id: Option<VpcPeeringConnectionId>,
}
type RejectVpcPeeringConnection = AcceptVpcPeeringConnection;
type DeleteVpcPeeringConnection = AcceptVpcPeeringConnection;

fn named(id: Option<VpcPeeringConnectionId>) -> Outcome<VpcPeeringConnectionId> {
    id.ok_or_else(|| AwsError::missing_parameter("VpcPeeringConnectionId").into())
}

/// Only a request that waits may be answered, and only by whom it was made to.
fn waiting(tx: &mut Tx<'_>, account: &str, id: &VpcPeeringConnectionId) -> Outcome<PeeringRow> {
    let row = get(tx, account, id)?;
    if row.accepter.account != account {
        let message = format!("User {account} cannot accept or reject peering {id}");
        return Err(Refusal::new("OperationNotPermitted", message));
    }
    if row.state != State::PendingAcceptance {
        let message = format!("Invalid state transition for {id}, attempted to transition from {}", row.state.as_str());
        return Err(Refusal::new("InvalidStateTransition", message));
    }
    Ok(row)
}

fn set(tx: &mut Tx<'_>, row: &PeeringRow, state: State, message: &str, ended: Option<i64>) -> Outcome<()> {
    let link = row.link.filter(|_| ended.is_none()).map(i64::from);
    tx.execute(
        "UPDATE vpc_peering SET state = ?2, message = ?3, ended = ?4, link = ?5 WHERE id = ?1",
        params![row.id.as_str(), state.as_str(), message, ended, link],
    )?;
    if ended.is_some() {
        mac::free(tx, row.id.as_str())?;
    }
    Ok(())
}

async fn accept(call: &Call, input: AcceptVpcPeeringConnection) -> Outcome<OnePeering> {
    let id = named(input.vpc_peering_connection_id)?;
    let account = call.account().to_owned();
    let (row, ends, tag_set) = call
        .cloud
        .store
        .write("accept a VPC peering connection", move |tx| {
            let row = waiting(tx, &account, &id)?;
            set(tx, &row, State::Active, "Active", None)?;
            let ends = [vpc::any(tx, &row.requester.vpc)?, vpc::any(tx, &row.accepter.vpc)?];
            let tag_set: Vec<Tag> = tag::of(tx, row.id.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((get(tx, &account, &row.id)?, ends, tag_set))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(OnePeering { vpc_peering_connection: info(call.cloud.region(), row, &ends, tag_set) })
}

#[derive(Serialize)]
struct Done {
    r#return: bool,
}

async fn reject(call: &Call, input: RejectVpcPeeringConnection) -> Outcome<Done> {
    let id = named(input.vpc_peering_connection_id)?;
    let (account, now) = (call.account().to_owned(), call.now);
    call.cloud
        .store
        .write("reject a VPC peering connection", move |tx| {
            let row = waiting(tx, &account, &id)?;
            set(tx, &row, State::Rejected, "Rejected", Some(now))?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    Ok(Done { r#return: true })
}

/// Either end may. Routes to it stay, as black holes.
async fn delete(call: &Call, input: DeleteVpcPeeringConnection) -> Outcome<Done> {
    let id = named(input.vpc_peering_connection_id)?;
    let (account, now) = (call.account().to_owned(), call.now);
    call.cloud
        .store
        .write("delete a VPC peering connection", move |tx| {
            let row = get(tx, &account, &id)?;
            if row.state.is_alive() {
                set(tx, &row, State::Deleted, &format!("Deleted by {account}"), Some(now))?;
            } else if row.state != State::Deleted {
                let message = format!(
                    "Invalid state transition for {id}, attempted to transition from {} to deleting",
                    row.state.as_str()
                );
                return Err(Refusal::new("InvalidStateTransition", message));
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Done { r#return: true })
}
