//! Network interfaces: an address, a MAC and a logical port in a subnet, and which instance wears them.
//!
//! An interface belongs to this page from its creation to [`remove`]; the instance page asks for what it needs. Two
//! steps end one that goes with its instance: [`release`] when the instance is asked to terminate (its public address is
//! given back and its port is shut), [`remove`] when the node has reported that nothing of the guest is left (its private
//! address is free only then: the guest might still be using it).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use mallee_aws::{
    AwsError,
    id::{InstanceId, InterfaceAttachmentId, NetworkInterfaceId, SecurityGroupId, SubnetId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::VpcLink;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    Outcome, Refusal, config,
    ec2::{
        Id,
        address::{self as ec2_address, Elastic},
        flow_log, instance, listing,
        security_group::{self, MAX_PER_INTERFACE},
        subnet::{self, SubnetRow},
        tag, vpc,
    },
    network::{
        self,
        cidr::Address,
        mac,
        outside::{self, Pool},
    },
};

pub mod address;
pub mod attach;
pub mod attribute;
pub mod change;
mod describe;
pub mod ipv6;
pub mod phase;

pub use address::Secondary;
pub use describe::{ACTIONS, Ipv6Address};
pub use phase::Phase;

/// An interface of a NAT gateway is none of an instance: it has no port, and nobody may touch it.
pub const KIND_COLUMN: &str = "ALTER TABLE network_interface ADD COLUMN kind TEXT NOT NULL DEFAULT 'interface';";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Interface,
    NatGateway,
}

impl Kind {
    /// As `interfaceType` shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Interface => "interface",
            Kind::NatGateway => "nat_gateway",
        }
    }
}

/// `automatic_ip`: the public address from the pool that came with the launch. `released`: its instance is terminating.
pub const TABLES: &str = "
CREATE TABLE network_interface (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    subnet TEXT NOT NULL REFERENCES subnet (id),
    zone TEXT NOT NULL,
    instance TEXT,
    attachment TEXT UNIQUE,
    device_index BIGINT NOT NULL,
    attached BIGINT NOT NULL,
    delete_on_termination BIGINT NOT NULL,
    mac TEXT NOT NULL UNIQUE,
    address TEXT NOT NULL,
    port TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    source_dest_check BIGINT NOT NULL,
    public_wanted BIGINT NOT NULL,
    automatic_ip TEXT UNIQUE,
    released BIGINT NOT NULL,
    created BIGINT NOT NULL,
    UNIQUE (instance, device_index)
);
CREATE INDEX network_interface_of ON network_interface (account);
CREATE INDEX network_interface_in ON network_interface (subnet);
CREATE TABLE private_address (
    vpc TEXT NOT NULL,
    address TEXT NOT NULL,
    interface TEXT NOT NULL,
    PRIMARY KEY (vpc, address)
);
CREATE INDEX private_address_of ON private_address (interface);
CREATE TABLE interface_group (
    interface TEXT NOT NULL,
    security_group TEXT NOT NULL,
    PRIMARY KEY (interface, security_group)
);
CREATE INDEX interface_group_of ON interface_group (security_group);
";

/// A group as interfaces and instances show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupIdentifier {
    pub group_id: SecurityGroupId,
    pub group_name: String,
}

/// An interface with what hangs on it.
#[derive(Debug, Clone)]
pub struct InterfaceRow {
    pub id: NetworkInterfaceId,
    pub account: String,
    pub vpc: VpcId,
    pub subnet: SubnetId,
    pub zone: String,
    pub instance: Option<InstanceId>,
    pub attachment: Option<InterfaceAttachmentId>,
    /// Of its attachment, if it has one.
    pub phase: Phase,
    pub device_index: u32,
    /// Milliseconds.
    pub attached: i64,
    pub delete_on_termination: bool,
    pub mac: String,
    pub address: Ipv4Addr,
    /// Name of the logical port.
    pub port: Uuid,
    pub description: String,
    pub source_dest_check: bool,
    /// A start of the instance gets it an automatic public address.
    pub public_wanted: bool,
    pub automatic_ip: Option<Ipv4Addr>,
    pub released: bool,
    pub created: i64,
    /// By id.
    pub groups: Vec<GroupIdentifier>,
    pub kind: Kind,
    /// Of the primary address.
    pub elastic: Option<Elastic>,
    /// Its other addresses, in order.
    pub secondary: Vec<SecondaryAddress>,
    /// In order.
    pub ipv6: Vec<Ipv6Addr>,
    pub link: VpcLink,
}

/// An address beside the primary one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondaryAddress {
    pub address: Ipv4Addr,
    pub elastic: Option<Elastic>,
}

impl InterfaceRow {
    /// What it is reached by from outside.
    pub fn public_ip(&self) -> Option<Ipv4Addr> {
        self.elastic.as_ref().map(|e| e.public_ip).or(self.automatic_ip)
    }

    /// Every elastic IP that points at it.
    pub fn elastics(&self) -> impl Iterator<Item = &Elastic> {
        self.elastic.iter().chain(self.secondary.iter().filter_map(|s| s.elastic.as_ref()))
    }

    /// Its private addresses, the primary one first.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        std::iter::once(self.address).chain(self.secondary.iter().map(|s| s.address))
    }

    fn put_elastic(&mut self, elastics: Vec<Elastic>) {
        for elastic in elastics {
            match self.secondary.iter_mut().find(|s| s.address == elastic.private_ip) {
                Some(secondary) => secondary.elastic = Some(elastic),
                None => self.elastic = Some(elastic),
            }
        }
    }

    /// EC2's word for the state of its attachment.
    pub fn attachment_status(&self) -> &'static str {
        if self.released { Phase::Detaching.shown() } else { self.phase.shown() }
    }

    /// As the tiers below know it.
    pub fn wanted(&self) -> mallee_tiers::Interface {
        mallee_tiers::Interface {
            id: self.id.to_string(),
            port: self.port,
            device_index: self.device_index,
            mac: self.mac.clone(),
            address: self.address,
            secondary: self.secondary.iter().map(|s| s.address).collect(),
            vpc: self.link.clone(),
            flow: None,
        }
    }
}

/// `ip-172-31-0-5.REGION.compute.internal`. The nodes' resolver reads the address out of it.
pub fn private_dns_name(region: &str, address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("ip-{a}-{b}-{c}-{d}.{region}.compute.internal")
}

const COLUMNS: &str = "id, account, vpc, subnet, zone, instance, attachment, device_index, attached, \
                       delete_on_termination, mac, address, port, description, source_dest_check, public_wanted, \
                       automatic_ip, released, created, kind, phase";

fn read(row: &Row<'_>) -> Result<InterfaceRow, StoreError> {
    Ok(InterfaceRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Id<_>>(2)?.0,
        subnet: row.get::<Id<_>>(3)?.0,
        zone: row.get(4)?,
        instance: row.get::<Option<Id<_>>>(5)?.map(|i| i.0),
        attachment: row.get::<Option<Id<_>>>(6)?.map(|i| i.0),
        device_index: row.get::<i64>(7)?.try_into().unwrap_or_default(),
        attached: row.get(8)?,
        delete_on_termination: row.get(9)?,
        mac: row.get(10)?,
        address: row.get::<Address>(11)?.0,
        port: row.get(12)?,
        description: row.get(13)?,
        source_dest_check: row.get(14)?,
        public_wanted: row.get(15)?,
        automatic_ip: row.get::<Option<Address>>(16)?.map(|a| a.0),
        released: row.get(17)?,
        created: row.get(18)?,
        phase: instance::unword(row.get(20)?)?,
        kind: if row.get::<String>(19)? == Kind::NatGateway.as_str() { Kind::NatGateway } else { Kind::Interface },
        groups: Vec::new(),
        elastic: None,
        secondary: Vec::new(),
        ipv6: Vec::new(),
        link: VpcLink { id: String::new(), metadata_port: String::new(), metadata_mac: String::new() },
    })
}

/// Many interfaces with groups, elastic IPs and links, by id, in as many queries for one as for thousands: an account's, or
/// the whole cloud's.
fn load(tx: &mut Tx<'_>, account: Option<&str>) -> Outcome<Vec<InterfaceRow>> {
    let sql = format!("SELECT {COLUMNS} FROM network_interface WHERE {} ORDER BY id", listing::whose(account));
    let mut rows = tx.query(&sql, params![account], read)?;
    let links: BTreeMap<VpcId, VpcLink> =
        vpc::all(tx, account)?.into_iter().map(|v| (v.id.clone(), v.link())).collect();
    let names = security_group::names(tx, account)?;
    let mut groups: BTreeMap<String, Vec<GroupIdentifier>> = BTreeMap::new();
    for (interface, group_id) in members(tx, account)? {
        if let Some(group_name) = names.get(&group_id).cloned() {
            groups.entry(interface).or_default().push(GroupIdentifier { group_id, group_name });
        }
    }
    let mut elastic = ec2_address::by_interface(tx, account)?;
    let mut addresses = address::all(tx, account)?;
    let mut ipv6 = ipv6::all(tx, account)?;
    for row in &mut rows {
        row.groups = groups.remove(row.id.as_str()).unwrap_or_default();
        row.secondary = address::secondary(row.address, addresses.remove(row.id.as_str()).unwrap_or_default());
        row.ipv6 = ipv6.remove(row.id.as_str()).unwrap_or_default();
        row.put_elastic(elastic.remove(&row.id).unwrap_or_default());
        if let Some(link) = links.get(&row.vpc) {
            row.link = link.clone();
        }
    }
    Ok(rows)
}

/// One interface with its groups, elastic IP and link, by their keys.
fn complete(tx: &mut Tx<'_>, mut row: InterfaceRow) -> Outcome<InterfaceRow> {
    row.link = vpc::get(tx, &row.account, &row.vpc)?.link();
    for group_id in groups_of(tx, &row.id)? {
        let group_name = security_group::get(tx, &row.account, &group_id)?.name;
        row.groups.push(GroupIdentifier { group_id, group_name });
    }
    row.secondary = address::secondary(row.address, address::of(tx, &row.id)?);
    row.ipv6 = ipv6::of(tx, &row.id)?;
    let elastics = ec2_address::of_interface(tx, &row.id)?;
    row.put_elastic(elastics);
    Ok(row)
}

/// Who is in which group.
fn members(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<(String, SecurityGroupId)>, StoreError> {
    tx.query(
        &format!(
            "SELECT g.interface, g.security_group FROM interface_group g JOIN network_interface i ON i.id = g.interface
             WHERE {} ORDER BY g.interface, g.security_group",
            listing::whose(account)
        ),
        params![account],
        |row| Ok((row.get(0)?, row.get::<Id<_>>(1)?.0)),
    )
}

/// The groups one interface is in.
fn groups_of(tx: &mut Tx<'_>, interface: &NetworkInterfaceId) -> Result<Vec<SecurityGroupId>, StoreError> {
    tx.query(
        "SELECT security_group FROM interface_group WHERE interface = ?1 ORDER BY security_group",
        params![interface.as_str()],
        |row| Ok(row.get::<Id<_>>(0)?.0),
    )
}

/// Every interface of the cloud.
pub fn all(tx: &mut Tx<'_>) -> Outcome<Vec<InterfaceRow>> {
    load(tx, None)
}

/// Every interface of an account, in a few queries however many there are.
pub fn of_account(tx: &mut Tx<'_>, account: &str) -> Outcome<Vec<InterfaceRow>> {
    load(tx, Some(account))
}

/// The interfaces of one instance, by device index.
pub fn of_instance(tx: &mut Tx<'_>, instance: &InstanceId) -> Outcome<Vec<InterfaceRow>> {
    let sql = format!("SELECT {COLUMNS} FROM network_interface WHERE instance = ?1 ORDER BY device_index");
    let rows = tx.query(&sql, params![instance.as_str()], read)?;
    rows.into_iter().map(|row| complete(tx, row)).collect()
}

/// Interfaces by instance, by device index: all of the account's (None: of the cloud's) instances in a few queries.
pub fn of_instances(tx: &mut Tx<'_>, account: Option<&str>) -> Outcome<BTreeMap<InstanceId, Vec<InterfaceRow>>> {
    let rows = load(tx, account)?;
    let mut by_instance: BTreeMap<InstanceId, Vec<InterfaceRow>> = BTreeMap::new();
    for row in rows {
        if let Some(instance) = row.instance.clone() {
            by_instance.entry(instance).or_default().push(row);
        }
    }
    for interfaces in by_instance.values_mut() {
        interfaces.sort_by_key(|r| r.device_index);
    }
    Ok(by_instance)
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &NetworkInterfaceId) -> Outcome<InterfaceRow> {
    let sql = format!("SELECT {COLUMNS} FROM network_interface WHERE account = ?1 AND id = ?2");
    let row = tx.query_opt(&sql, params![account, id.as_str()], read)?.ok_or_else(|| not_found(id.as_str()))?;
    complete(tx, row)
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidNetworkInterfaceID.NotFound", format!("The networkInterface ID '{id}' does not exist"))
}

/// How many addresses are in use, by subnet.
pub fn count_by_subnet(tx: &mut Tx<'_>, account: &str) -> Result<BTreeMap<String, u64>, StoreError> {
    let counts = tx.query(
        "SELECT i.subnet, COUNT(*) FROM network_interface i JOIN private_address a ON a.interface = i.id
         WHERE i.account = ?1 GROUP BY i.subnet",
        params![account],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(counts.into_iter().collect())
}

/// How many interfaces a subnet has.
pub fn count_in(tx: &mut Tx<'_>, subnet: &SubnetId) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM network_interface WHERE subnet = ?1";
    tx.query_one(sql, params![subnet.as_str()], |row| row.get(0))
}

/// Whether anything in a VPC has a public address.
pub fn has_public(tx: &mut Tx<'_>, account: &str, vpc: &VpcId) -> Outcome<bool> {
    let rows = load(tx, Some(account))?;
    Ok(rows.iter().any(|row| row.vpc == *vpc && (row.automatic_ip.is_some() || row.elastics().next().is_some())))
}

/// Who wears which interface; of all accounts when None.
pub fn attached(
    tx: &mut Tx<'_>,
    account: Option<&str>,
) -> Result<BTreeMap<NetworkInterfaceId, InstanceId>, StoreError> {
    let sql = format!(
        "SELECT id, instance FROM network_interface WHERE instance IS NOT NULL AND {}",
        listing::whose(account)
    );
    let rows = tx.query(&sql, params![account], |row| Ok((row.get::<Id<_>>(0)?.0, row.get::<Id<_>>(1)?.0)))?;
    Ok(rows.into_iter().collect())
}

/// Whether anybody is in the group.
pub fn group_in_use(tx: &mut Tx<'_>, group: &SecurityGroupId) -> Result<bool, StoreError> {
    let count: i64 = tx.query_one(
        "SELECT COUNT(*) FROM interface_group WHERE security_group = ?1",
        params![group.as_str()],
        |row| row.get(0),
    )?;
    Ok(count > 0)
}

/// The instances that have an interface in the group: what shows groups' names in its metadata.
pub fn instances_of_group(tx: &mut Tx<'_>, group: &SecurityGroupId) -> Result<Vec<InstanceId>, StoreError> {
    let ids = tx.query(
        "SELECT DISTINCT i.instance FROM network_interface i JOIN interface_group g ON g.interface = i.id
         WHERE g.security_group = ?1 AND i.instance IS NOT NULL",
        params![group.as_str()],
        |row| Ok(row.get::<Id<InstanceId>>(0)?.0),
    )?;
    Ok(ids)
}

/// An interface that is to be.
pub struct New<'a> {
    pub account: &'a str,
    pub subnet: &'a SubnetRow,
    /// To which instance it is attached from the start, and as which device.
    pub attached: Option<(&'a InstanceId, u32)>,
    /// The private address that was asked for.
    pub address: Option<Ipv4Addr>,
    pub secondary: Secondary,
    pub ipv6: ipv6::Wanted,
    /// From [`security_group::for_launch`].
    pub groups: &'a [SecurityGroupId],
    pub description: &'a str,
    pub delete_on_termination: bool,
    pub source_dest_check: bool,
    /// `AssociatePublicIpAddress`; None is as the subnet says.
    pub public: Option<bool>,
    pub kind: Kind,
    pub now: i64,
}

/// AWS' default, of an account.
const MAX_INTERFACES: i64 = 5000;

/// Makes an interface with all it needs. When it shall have a public address and the pool has none, it has none: the launch
/// goes on.
pub fn create(tx: &mut Tx<'_>, network: &config::Network, new: New<'_>) -> Outcome<InterfaceRow> {
    let sql = "SELECT COUNT(*) FROM network_interface WHERE account = ?1";
    let count: i64 = tx.query_one(sql, params![new.account], |row| row.get(0))?;
    if count >= MAX_INTERFACES {
        let message = format!("The maximum number of network interfaces has been reached ({MAX_INTERFACES}).");
        return Err(Refusal::new("NetworkInterfaceLimitExceeded", message));
    }
    if new.groups.len() > MAX_PER_INTERFACE {
        return Err(Refusal::new(
            "SecurityGroupsPerInterfaceLimitExceeded",
            format!("An interface may be in at most {MAX_PER_INTERFACE} security groups"),
        ));
    }
    let id = NetworkInterfaceId::from_random(rand::random());
    let address = take_address(tx, new.subnet, new.address, &id)?;
    address::take(tx, new.subnet, &new.secondary, &id)?;
    ipv6::take_first(tx, new.subnet, &new.ipv6, &id)?;
    let mac = mac::take(tx, id.as_str())?;
    let public_wanted = new.public.unwrap_or(new.attached.is_some() && new.subnet.public_on_launch);
    if public_wanted {
        new.subnet.require_routed("public addresses")?;
    }
    let automatic_ip = if public_wanted { outside::take(tx, network, Pool::Elastic, id.as_str())? } else { None };
    let attachment = new.attached.map(|_| InterfaceAttachmentId::from_random(rand::random()));
    tx.execute(
        &format!(
            "INSERT INTO network_interface ({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, 0, ?9, ?18, ?19)"
        ),
        params![
            id.as_str(),
            new.account,
            new.subnet.vpc.as_str(),
            new.subnet.id.as_str(),
            new.subnet.zone,
            new.attached.map(|(instance, _)| instance.as_str()),
            attachment.as_ref().map(InterfaceAttachmentId::as_str),
            i64::from(new.attached.map_or(0, |(_, index)| index)),
            new.now,
            new.delete_on_termination,
            mac,
            Address(address),
            Uuid::new_v4(),
            new.description,
            new.source_dest_check && new.subnet.kind == subnet::Kind::Routed,
            public_wanted,
            automatic_ip.map(Address),
            new.kind.as_str(),
            if new.attached.is_some() { Phase::Attaching.shown() } else { Phase::Attached.shown() },
        ],
    )?;
    put_groups(tx, &id, new.groups)?;
    get(tx, new.account, &id)
}

fn take_address(
    tx: &mut Tx<'_>,
    subnet: &SubnetRow,
    asked: Option<Ipv4Addr>,
    interface: &NetworkInterfaceId,
) -> Outcome<Ipv4Addr> {
    let mut claim = |address: Ipv4Addr| {
        tx.execute(
            "INSERT INTO private_address (vpc, address, interface) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![subnet.vpc.as_str(), Address(address), interface.as_str()],
        )
        .map(|taken| taken == 1)
    };
    if let Some(address) = asked {
        if !subnet.cidr.contains(address) {
            let message = format!("Address {address} does not fall within the subnet's address range");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
        if !subnet.usable(address) {
            let message = format!("Address {address} is in subnet's reserved address range");
            return Err(AwsError::invalid_parameter_value(message).into());
        }
        if !claim(address)? {
            return Err(Refusal::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
        }
        return Ok(address);
    }
    let capacity = u32::try_from(subnet.capacity()).unwrap_or(u32::MAX);
    if capacity > 0 {
        // Random ones first: an address that was just freed is seldom met again, and in a subnet that is not nearly full
        // a few tries find one.
        for _ in 0..16 {
            let address = subnet.cidr.nth(4 + rand::random_range(0..capacity));
            if claim(address)? {
                return Ok(address);
            }
        }
        for n in 0..capacity {
            let address = subnet.cidr.nth(4 + n);
            if claim(address)? {
                return Ok(address);
            }
        }
    }
    Err(Refusal::new(
        "InsufficientFreeAddressesInSubnet",
        format!("There are no free addresses in subnet '{}'.", subnet.id),
    ))
}

fn put_groups(tx: &mut Tx<'_>, interface: &NetworkInterfaceId, groups: &[SecurityGroupId]) -> Result<(), StoreError> {
    tx.execute("DELETE FROM interface_group WHERE interface = ?1", params![interface.as_str()])?;
    for group in groups {
        tx.execute(
            "INSERT INTO interface_group (interface, security_group) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![interface.as_str(), group.as_str()],
        )?;
    }
    Ok(())
}

/// The instance's only interface, for attributes of an instance that are its interface's.
pub fn only_of(tx: &mut Tx<'_>, instance: &InstanceId) -> Outcome<InterfaceRow> {
    let mut rows = of_instance(tx, instance)?;
    match rows.len() {
        1 => Ok(rows.remove(0)),
        0 => Err(Refusal::new("IncorrectInstanceState", format!("The instance '{instance}' has no network interface"))),
        _ => Err(Refusal::new(
            "InvalidInstanceID",
            format!("There are multiple interfaces attached to instance '{instance}'. Name an interface ID."),
        )),
    }
}

/// `ModifyInstanceAttribute GroupId`: the instance's interface is in exactly these groups from now on.
pub fn set_groups(tx: &mut Tx<'_>, instance: &InstanceId, groups: &[SecurityGroupId]) -> Outcome<()> {
    let row = only_of(tx, instance)?;
    subnet::kind::require_routed(tx, &row.subnet, "security groups")?;
    let groups = security_group::for_launch(tx, &row.account, &row.vpc, groups, &[])?;
    put_groups(tx, &row.id, &groups)?;
    network::touch(tx, instance)
}

/// `ModifyInstanceAttribute SourceDestCheck`.
pub fn set_source_dest_check(tx: &mut Tx<'_>, instance: &InstanceId, check: bool) -> Outcome<()> {
    let row = only_of(tx, instance)?;
    set_check(tx, &row, check)
}

fn set_check(tx: &mut Tx<'_>, row: &InterfaceRow, check: bool) -> Outcome<()> {
    if check {
        subnet::kind::require_routed(tx, &row.subnet, "check of sources and destinations")?;
    }
    tx.execute("UPDATE network_interface SET source_dest_check = ?2 WHERE id = ?1", params![row.id.as_str(), check])?;
    row.instance.as_ref().map_or(Ok(()), |instance| network::touch(tx, instance))
}

/// The instance starts again: interfaces that came with an automatic public address get a new one, while the pool has any.
pub fn give_public(tx: &mut Tx<'_>, network: &config::Network, instance: &InstanceId) -> Outcome<()> {
    for row in of_instance(tx, instance)? {
        if row.public_wanted && row.public_ip().is_none() {
            let taken = outside::take(tx, network, Pool::Elastic, row.id.as_str())?;
            tx.execute(
                "UPDATE network_interface SET automatic_ip = ?2 WHERE id = ?1",
                params![row.id.as_str(), taken.map(Address)],
            )?;
        }
    }
    Ok(())
}

/// The instance stops: automatic public addresses go back to the pool. Elastic IPs stay.
pub fn return_public(tx: &mut Tx<'_>, instance: &InstanceId) -> Outcome<()> {
    for row in of_instance(tx, instance)? {
        drop_automatic(tx, &row)?;
    }
    Ok(())
}

/// Gives back the interface's automatic address, if it has one.
pub fn drop_automatic(tx: &mut Tx<'_>, row: &InterfaceRow) -> Outcome<()> {
    if row.automatic_ip.is_some() {
        outside::free(tx, row.id.as_str())?;
        tx.execute("UPDATE network_interface SET automatic_ip = NULL WHERE id = ?1", params![row.id.as_str()])?;
    }
    Ok(())
}

/// The instance is asked to terminate: public addresses of what goes with it are dropped at once and its ports are shut.
pub fn release(tx: &mut Tx<'_>, instance: &InstanceId) -> Outcome<()> {
    for row in of_instance(tx, instance)? {
        drop_automatic(tx, &row)?;
        if row.delete_on_termination {
            ec2_address::forget_interface(tx, &row.id)?;
            tx.execute("UPDATE network_interface SET released = 1 WHERE id = ?1", params![row.id.as_str()])?;
        }
    }
    Ok(())
}

/// Nothing is left of the instance: its interfaces go, and their addresses are free. Those that outlive it are free to be
/// attached again.
pub fn remove(tx: &mut Tx<'_>, instance: &InstanceId) -> Outcome<()> {
    for row in of_instance(tx, instance)? {
        if row.delete_on_termination && row.phase != Phase::Detaching {
            delete_row(tx, &row)?;
        } else {
            drop_automatic(tx, &row)?;
            unattach(tx, &row.id)?;
        }
    }
    Ok(())
}

/// An interface of the cloud's own goes.
pub fn discard(tx: &mut Tx<'_>, account: &str, id: &NetworkInterfaceId) -> Outcome<()> {
    let row = get(tx, account, id)?;
    delete_row(tx, &row)
}

fn unattach(tx: &mut Tx<'_>, id: &NetworkInterfaceId) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE network_interface
         SET instance = NULL, attachment = NULL, device_index = 0, delete_on_termination = 0, released = 0,
             phase = 'attached', attach_reason = '' WHERE id = ?1",
        params![id.as_str()],
    )
    .map(|_| ())
}

fn delete_row(tx: &mut Tx<'_>, row: &InterfaceRow) -> Outcome<()> {
    drop_automatic(tx, row)?;
    ec2_address::forget_interface(tx, &row.id)?;
    let id = row.id.as_str();
    for table in ["interface_group", "private_address", "ipv6_address"] {
        tx.execute(&format!("DELETE FROM {table} WHERE interface = ?1"), params![id])?;
    }
    mac::free(tx, id)?;
    flow_log::forget(tx, id)?;
    tag::drop_all(tx, id)?;
    tx.execute("DELETE FROM network_interface WHERE id = ?1", params![id])?;
    Ok(())
}

#[cfg(test)]
mod tests;
