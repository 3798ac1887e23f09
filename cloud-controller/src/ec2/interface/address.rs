//! Private addresses of interfaces: each is a row, the primary one's as well.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mallee_aws::{AwsError, id::NetworkInterfaceId};
use mallee_store::{Error as StoreError, Tx, params};
use serde::{Deserialize, Serialize};

use super::{InterfaceRow, Kind, SecondaryAddress, get, take_address};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        address as elastic, listing,
        subnet::{self, SubnetRow},
        unsupported::{self, Unsupported},
    },
    network::{self, cidr::Address},
    service::Call,
};

actions![
    AssignPrivateIpAddresses => assign,
    UnassignPrivateIpAddresses => unassign,
];

/// Most private addresses of one interface: that of AWS' largest instance types.
const MOST: usize = 50;

/// The addresses an interface shall have beside its primary one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secondary {
    pub named: Vec<Ipv4Addr>,
    /// So many more, whichever are free.
    pub count: u32,
}

impl Secondary {
    pub fn none() -> Self {
        Self::default()
    }
}

/// Takes them all, or says which is not to be had.
pub fn take(tx: &mut Tx<'_>, subnet: &SubnetRow, asked: &Secondary, id: &NetworkInterfaceId) -> Outcome<Vec<Ipv4Addr>> {
    let count = usize::try_from(asked.count).unwrap_or(usize::MAX);
    if asked.named.len().saturating_add(count) >= MOST {
        let message = format!("Number of private addresses will exceed limit: an interface may have {MOST}");
        return Err(Refusal::new("PrivateIpAddressLimitExceeded", message));
    }
    let named = asked.named.iter().copied().map(Some);
    named.chain(std::iter::repeat_n(None, count)).map(|address| take_address(tx, subnet, address, id)).collect()
}

/// Every address by interface; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<BTreeMap<String, Vec<Ipv4Addr>>, StoreError> {
    let sql = format!(
        "SELECT a.interface, a.address FROM private_address a JOIN network_interface i ON i.id = a.interface WHERE {}",
        listing::whose(account)
    );
    let mut found: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
    let rows = tx.query(&sql, params![account], |row| Ok((row.get::<String>(0)?, row.get::<Address>(1)?.0)))?;
    for (interface, address) in rows {
        found.entry(interface).or_default().push(address);
    }
    Ok(found)
}

/// The addresses of one interface.
pub fn of(tx: &mut Tx<'_>, id: &NetworkInterfaceId) -> Result<Vec<Ipv4Addr>, StoreError> {
    tx.query("SELECT address FROM private_address WHERE interface = ?1", params![id.as_str()], |row| {
        Ok(row.get::<Address>(0)?.0)
    })
}

/// Those that are not the primary one, in order.
pub fn secondary(primary: Ipv4Addr, mut addresses: Vec<Ipv4Addr>) -> Vec<SecondaryAddress> {
    addresses.retain(|a| *a != primary);
    addresses.sort();
    addresses.into_iter().map(|address| SecondaryAddress { address, elastic: None }).collect()
}

/// What hangs on an interface's addresses is told.
pub fn changed(tx: &mut Tx<'_>, row: &InterfaceRow) -> Outcome<()> {
    row.instance.as_ref().map_or(Ok(()), |instance| network::touch(tx, instance))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssignPrivateIpAddresses {
    network_interface_id: NetworkInterfaceId,
    #[serde(default)]
    private_ip_address: Vec<Ipv4Addr>,
    secondary_private_ip_address_count: Option<u32>,
    allow_reassignment: Option<bool>,
    #[serde(rename = "Ipv4Prefix")]
    ipv4_prefix: Option<Unsupported>,
    #[serde(rename = "Ipv4PrefixCount")]
    ipv4_prefix_count: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Assigned {
    network_interface_id: NetworkInterfaceId,
    assigned_private_ip_addresses_set: Vec<AssignedAddress>,
    assigned_ipv4_prefix_set: [(); 0],
    r#return: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AssignedAddress {
    private_ip_address: String,
}

async fn assign(call: &Call, input: AssignPrivateIpAddresses) -> Outcome<Assigned> {
    unsupported::refuse(&[("Ipv4Prefix", input.ipv4_prefix), ("Ipv4PrefixCount", input.ipv4_prefix_count)])?;
    let asked =
        Secondary { named: input.private_ip_address, count: input.secondary_private_ip_address_count.unwrap_or(0) };
    match (asked.named.is_empty(), asked.count) {
        (true, 0) => return Err(AwsError::missing_parameter("SecondaryPrivateIpAddressCount").into()),
        (false, 1..) => {
            let message = "You may specify private IP addresses or a count, but not both in the same call";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        _ => {}
    }
    let account = call.account().to_owned();
    let (network_interface_id, addresses) = call
        .cloud
        .store
        .write("assign private addresses", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            let subnet = subnet::get(tx, &account, &row.subnet)?;
            if input.allow_reassignment == Some(true) {
                for address in &asked.named {
                    leave_other(tx, &row, *address)?;
                }
            }
            let already = row.addresses().count();
            let mut asked = asked.clone();
            asked.named.retain(|address| !row.addresses().any(|a| a == *address));
            if already + asked.named.len() + usize::try_from(asked.count).unwrap_or(MOST) > MOST {
                let message = format!("Number of private addresses will exceed limit: an interface may have {MOST}");
                return Err(Refusal::new("PrivateIpAddressLimitExceeded", message));
            }
            let taken = take(tx, &subnet, &asked, &row.id)?;
            changed(tx, &row)?;
            Ok::<_, Refusal>((row.id, taken))
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    let assigned = addresses.into_iter().map(|a| AssignedAddress { private_ip_address: a.to_string() });
    Ok(Assigned {
        network_interface_id,
        assigned_private_ip_addresses_set: assigned.collect(),
        assigned_ipv4_prefix_set: [],
        r#return: true,
    })
}

/// An interface that requests may change.
pub fn own(tx: &mut Tx<'_>, account: &str, id: &NetworkInterfaceId) -> Outcome<InterfaceRow> {
    let row = get(tx, account, id)?;
    match row.kind {
        Kind::Interface => Ok(row),
        Kind::NatGateway => {
            let message = format!("You do not have permission to access the specified resource {id}.");
            Err(Refusal::new("AuthFailure", message))
        }
    }
}

/// A secondary address of another interface in the same VPC becomes free.
fn leave_other(tx: &mut Tx<'_>, row: &InterfaceRow, address: Ipv4Addr) -> Outcome<()> {
    let holder: Option<String> = tx.query_opt(
        "SELECT interface FROM private_address WHERE vpc = ?1 AND address = ?2",
        params![row.vpc.as_str(), Address(address)],
        |r| r.get(0),
    )?;
    let Some(holder) = holder.filter(|h| *h != row.id.as_str()) else { return Ok(()) };
    let holder: NetworkInterfaceId = holder.parse().map_err(Refusal::from)?;
    let other = own(tx, &row.account, &holder)?;
    if other.address == address {
        let message = format!("The primary private IP address {address} of {} cannot be reassigned", other.id);
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    drop(tx, &other, address)
}

fn drop(tx: &mut Tx<'_>, row: &InterfaceRow, address: Ipv4Addr) -> Outcome<()> {
    if let Some(found) = row.elastics().find(|e| e.private_ip == address) {
        elastic::let_go(tx, &found.allocation)?;
    }
    tx.execute(
        "DELETE FROM private_address WHERE interface = ?1 AND address = ?2",
        params![row.id.as_str(), Address(address)],
    )?;
    changed(tx, row)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UnassignPrivateIpAddresses {
    network_interface_id: NetworkInterfaceId,
    #[serde(default)]
    private_ip_address: Vec<Ipv4Addr>,
    #[serde(rename = "Ipv4Prefix")]
    ipv4_prefix: Option<Unsupported>,
}

async fn unassign(call: &Call, input: UnassignPrivateIpAddresses) -> Outcome<()> {
    unsupported::refuse(&[("Ipv4Prefix", input.ipv4_prefix)])?;
    if input.private_ip_address.is_empty() {
        return Err(AwsError::missing_parameter("PrivateIpAddress").into());
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("unassign private addresses", move |tx| {
            let row = own(tx, &account, &input.network_interface_id)?;
            for address in &input.private_ip_address {
                if row.address == *address {
                    let message = format!("The primary private IP address {address} cannot be unassigned");
                    return Err(AwsError::invalid_parameter_value(message).into());
                }
                if !row.secondary.iter().any(|s| s.address == *address) {
                    let message = format!("Some of [{address}] are not assigned to interface {}", row.id);
                    return Err(AwsError::invalid_parameter_value(message).into());
                }
                drop(tx, &row, *address)?;
            }
            Ok::<_, Refusal>(())
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(())
}
