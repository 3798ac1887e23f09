//! IPv6 addresses of interfaces: each is a row.

use std::{collections::BTreeMap, net::Ipv6Addr};

use mallee_aws::{AwsError, id::NetworkInterfaceId};
use mallee_store::{Error as StoreError, Tx, params};
use serde::{Deserialize, Serialize};

use super::address::{changed, own};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        listing,
        subnet::{self, SubnetRow},
        unsupported::{self, Unsupported},
    },
    network::{Cidr6, cidr::Address6},
    service::Call,
};

actions![AssignIpv6Addresses => assign, UnassignIpv6Addresses => unassign];

pub const TABLES: &str = "
CREATE TABLE ipv6_address (
    address TEXT PRIMARY KEY,
    interface TEXT NOT NULL
);
CREATE INDEX ipv6_address_of ON ipv6_address (interface);
";

/// As for private addresses: that of AWS' largest instance types.
const MOST: usize = 50;
/// As in IPv4: the first four addresses of a subnet and its last are nobody's.
const RESERVED: u128 = 4;

/// The IPv6 addresses an interface shall have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub named: Vec<Ipv6Addr>,
    /// So many, whichever are free. None, and none named: as the subnet says.
    pub count: Option<u32>,
}

/// `Ipv6Addresses.N.Ipv6Address`, as a launch and a new interface say it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Named {
    #[serde(rename = "Ipv6Address")]
    pub address: Ipv6Addr,
}

impl Wanted {
    pub fn asked(named: &[Named], count: Option<u32>) -> Outcome<Self> {
        if !named.is_empty() && count.is_some() {
            let message = "You may specify IPv6 addresses or a count, but not both in the same call";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        Ok(Self { named: named.iter().map(|n| n.address).collect(), count })
    }
}

/// Takes what a new interface shall have.
pub fn take_first(tx: &mut Tx<'_>, subnet: &SubnetRow, asked: &Wanted, id: &NetworkInterfaceId) -> Outcome<()> {
    let by_itself = u32::from(subnet.ipv6_on_creation && subnet.ipv6.is_some() && asked.named.is_empty());
    take(tx, subnet, &asked.named, asked.count.unwrap_or(by_itself), id).map(drop)
}

/// Takes them all, or says which is not to be had.
fn take(
    tx: &mut Tx<'_>,
    subnet: &SubnetRow,
    named: &[Ipv6Addr],
    count: u32,
    id: &NetworkInterfaceId,
) -> Outcome<Vec<Ipv6Addr>> {
    if named.is_empty() && count == 0 {
        return Ok(Vec::new());
    }
    let Some((_, block)) = &subnet.ipv6 else {
        let message = format!("The subnet {} has no IPv6 CIDR block", subnet.id);
        return Err(AwsError::invalid_parameter_value(message).into());
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if of(tx, id)?.len().saturating_add(named.len()).saturating_add(count) > MOST {
        let message = format!("Number of IPv6 addresses will exceed limit: an interface may have {MOST}");
        return Err(Refusal::new("AddressLimitExceeded", message));
    }
    let mut taken = Vec::new();
    for address in named {
        check(block, *address)?;
        if !claim(tx, *address, id)? {
            return Err(Refusal::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
        }
        taken.push(*address);
    }
    for _ in 0..count {
        taken.push(any_free(tx, block, id)?);
    }
    Ok(taken)
}

fn check(block: &Cidr6, address: Ipv6Addr) -> Outcome<()> {
    if !block.contains(address) {
        let message = format!("Address {address} does not fall within the subnet's address range");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    let last = u128::from(block.part(block.length(), 1).first()).wrapping_sub(1);
    if address < block.nth(RESERVED) || u128::from(address) == last {
        let message = format!("Address {address} is in subnet's reserved address range");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    Ok(())
}

fn claim(tx: &mut Tx<'_>, address: Ipv6Addr, id: &NetworkInterfaceId) -> Result<bool, StoreError> {
    let taken = tx.execute(
        "INSERT INTO ipv6_address (address, interface) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![Address6(address), id.as_str()],
    )?;
    Ok(taken == 1)
}

/// Random in the /64, so that nobody scans for them, and hardly ever taken.
fn any_free(tx: &mut Tx<'_>, block: &Cidr6, id: &NetworkInterfaceId) -> Outcome<Ipv6Addr> {
    for _ in 0..16 {
        let address = block.nth(RESERVED + u128::from(rand::random_range(0..u64::MAX - 8)));
        if claim(tx, address, id)? {
            return Ok(address);
        }
    }
    Err(Refusal::internal("no free IPv6 address found in 16 tries"))
}

/// Every address by interface, in order; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<BTreeMap<String, Vec<Ipv6Addr>>, StoreError> {
    let sql = format!(
        "SELECT a.interface, a.address FROM ipv6_address a JOIN network_interface i ON i.id = a.interface WHERE {}",
        listing::whose(account)
    );
    let mut found: BTreeMap<String, Vec<Ipv6Addr>> = BTreeMap::new();
    let rows = tx.query(&sql, params![account], |row| Ok((row.get::<String>(0)?, row.get::<Address6>(1)?.0)))?;
    for (interface, address) in rows {
        found.entry(interface).or_default().push(address);
    }
    found.values_mut().for_each(|addresses| addresses.sort());
    Ok(found)
}

/// The addresses of one interface, in order.
pub fn of(tx: &mut Tx<'_>, id: &NetworkInterfaceId) -> Result<Vec<Ipv6Addr>, StoreError> {
    let sql = "SELECT address FROM ipv6_address WHERE interface = ?1";
    let mut addresses = tx.query(sql, params![id.as_str()], |row| Ok(row.get::<Address6>(0)?.0))?;
    addresses.sort();
    Ok(addresses)
}

/// Whether any interface of a subnet has one.
pub fn are_in(tx: &mut Tx<'_>, subnet: &mallee_aws::id::SubnetId) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM ipv6_address a JOIN network_interface i ON i.id = a.interface WHERE i.subnet = ?1";
    Ok(tx.query_one(sql, params![subnet.as_str()], |row| row.get::<i64>(0))? > 0)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssignIpv6Addresses {
    network_interface_id: NetworkInterfaceId,
    #[serde(default)]
    ipv6_addresses: Vec<Ipv6Addr>,
    ipv6_address_count: Option<u32>,
    #[serde(rename = "Ipv6Prefix")]
    ipv6_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv6PrefixCount")]
    ipv6_prefix_count: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Assigned {
    network_interface_id: NetworkInterfaceId,
    assigned_ipv6_addresses: Vec<String>,
    assigned_ipv6_prefix_set: [(); 0],
}

async fn assign(call: &Call, input: AssignIpv6Addresses) -> Outcome<Assigned> {
    unsupported::refuse(&[("Ipv6Prefix", input.ipv6_prefix), ("Ipv6PrefixCount", input.ipv6_prefix_count)])?;
    let count = match (input.ipv6_addresses.is_empty(), input.ipv6_address_count) {
        (true, None | Some(0)) => return Err(AwsError::missing_parameter("Ipv6AddressCount").into()),
        (false, Some(1..)) => {
            let message = "You may specify IPv6 addresses or a count, but not both in the same call";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        (_, count) => count.unwrap_or(0),
    };
    let account = call.account().to_owned();
    let (network_interface_id, taken) = call
        .cloud
        .store
        .write("assign IPv6 addresses", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            let subnet = subnet::get(tx, &account, &row.subnet)?;
            let new: Vec<Ipv6Addr> = input.ipv6_addresses.iter().copied().filter(|a| !row.ipv6.contains(a)).collect();
            let taken = take(tx, &subnet, &new, count, &row.id)?;
            changed(tx, &row)?;
            Ok::<_, Refusal>((row.id, taken))
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(Assigned {
        network_interface_id,
        assigned_ipv6_addresses: taken.iter().map(Ipv6Addr::to_string).collect(),
        assigned_ipv6_prefix_set: [],
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UnassignIpv6Addresses {
    network_interface_id: NetworkInterfaceId,
    #[serde(default)]
    ipv6_addresses: Vec<Ipv6Addr>,
    #[serde(rename = "Ipv6Prefix")]
    ipv6_prefix: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Unassigned {
    network_interface_id: NetworkInterfaceId,
    unassigned_ipv6_addresses: Vec<String>,
    unassigned_ipv6_prefix_set: [(); 0],
}

async fn unassign(call: &Call, input: UnassignIpv6Addresses) -> Outcome<Unassigned> {
    unsupported::refuse(&[("Ipv6Prefix", input.ipv6_prefix)])?;
    if input.ipv6_addresses.is_empty() {
        return Err(AwsError::missing_parameter("Ipv6Addresses").into());
    }
    let account = call.account().to_owned();
    let (network_interface_id, gone) = call
        .cloud
        .store
        .write("unassign IPv6 addresses", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            for address in &input.ipv6_addresses {
                if !row.ipv6.contains(address) {
                    let message = format!("Some of [{address}] are not assigned to interface {}", row.id);
                    return Err(AwsError::invalid_parameter_value(message).into());
                }
                tx.execute("DELETE FROM ipv6_address WHERE address = ?1", params![Address6(*address)])?;
            }
            changed(tx, &row)?;
            Ok::<_, Refusal>((row.id, input.ipv6_addresses.clone()))
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(Unassigned {
        network_interface_id,
        unassigned_ipv6_addresses: gone.iter().map(Ipv6Addr::to_string).collect(),
        unassigned_ipv6_prefix_set: [],
    })
}
