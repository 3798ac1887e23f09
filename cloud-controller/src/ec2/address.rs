//! Elastic IPs: public addresses an account holds until it releases them, whatever they point at.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mallee_aws::{
    AwsError,
    id::{AddressAssociationId, AllocationId, InstanceId, NetworkInterfaceId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};

use crate::{
    Outcome, Refusal,
    ec2::{
        Id,
        interface::{self, InterfaceRow},
        listing,
    },
    network::{self, cidr::Address},
};

pub mod associate;
pub mod describe;

/// `interface` and `association` are set while it points at something; an interface has one elastic IP at most.
pub const TABLES: &str = "
CREATE TABLE address (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    public_ip TEXT NOT NULL UNIQUE,
    interface TEXT UNIQUE,
    association TEXT UNIQUE,
    created BIGINT NOT NULL
);
CREATE INDEX address_of ON address (account);
";

/// An elastic IP points at one private address of an interface: each address has one at most.
pub const PRIVATE_ADDRESS_COLUMN: &str = "
CREATE TABLE address_2 (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    public_ip TEXT NOT NULL UNIQUE,
    interface TEXT,
    private_ip TEXT,
    association TEXT UNIQUE,
    created BIGINT NOT NULL,
    UNIQUE (interface, private_ip)
);
INSERT INTO address_2 (id, account, public_ip, interface, private_ip, association, created)
    SELECT a.id, a.account, a.public_ip, a.interface,
           (SELECT i.address FROM network_interface i WHERE i.id = a.interface), a.association, a.created
    FROM address a;
DROP TABLE address;
ALTER TABLE address_2 RENAME TO address;
CREATE INDEX address_of ON address (account);
";

/// An elastic IP as its row is.
#[derive(Debug, Clone)]
pub struct AddressRow {
    pub id: AllocationId,
    pub account: String,
    pub public_ip: Ipv4Addr,
    pub interface: Option<NetworkInterfaceId>,
    /// The address of the interface it points at.
    pub private_ip: Option<Ipv4Addr>,
    pub association: Option<AddressAssociationId>,
    pub created: i64,
}

/// An elastic IP as the interface it points at shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elastic {
    pub public_ip: Ipv4Addr,
    pub private_ip: Ipv4Addr,
    pub allocation: AllocationId,
    pub association: AddressAssociationId,
}

impl Elastic {
    fn of(row: AddressRow) -> Option<Self> {
        Some(Self {
            public_ip: row.public_ip,
            private_ip: row.private_ip?,
            allocation: row.id,
            association: row.association?,
        })
    }
}

const COLUMNS: &str = "id, account, public_ip, interface, association, created, private_ip";

fn read(row: &Row<'_>) -> Result<AddressRow, StoreError> {
    Ok(AddressRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        public_ip: row.get::<Address>(2)?.0,
        interface: row.get::<Option<Id<_>>>(3)?.map(|i| i.0),
        association: row.get::<Option<Id<_>>>(4)?.map(|i| i.0),
        created: row.get(5)?,
        private_ip: row.get::<Option<Address>>(6)?.map(|a| a.0),
    })
}

/// The elastic IPs of an account, by allocation.
pub fn all(tx: &mut Tx<'_>, account: &str) -> Result<Vec<AddressRow>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM address WHERE account = ?1 ORDER BY id"), params![account], read)
}

/// Elastic IPs by the interface they point at; of all accounts when None.
pub fn by_interface(
    tx: &mut Tx<'_>,
    account: Option<&str>,
) -> Result<BTreeMap<NetworkInterfaceId, Vec<Elastic>>, StoreError> {
    let rows = tx.query(
        &format!("SELECT {COLUMNS} FROM address WHERE interface IS NOT NULL AND {}", listing::whose(account)),
        params![account],
        read,
    )?;
    let mut found: BTreeMap<NetworkInterfaceId, Vec<Elastic>> = BTreeMap::new();
    for (interface, elastic) in rows.into_iter().filter_map(|row| Some((row.interface.clone()?, Elastic::of(row)?))) {
        found.entry(interface).or_default().push(elastic);
    }
    Ok(found)
}

/// The elastic IPs that point at an interface.
pub fn of_interface(tx: &mut Tx<'_>, id: &NetworkInterfaceId) -> Result<Vec<Elastic>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM address WHERE interface = ?1 ORDER BY id");
    Ok(tx.query(&sql, params![id.as_str()], read)?.into_iter().filter_map(Elastic::of).collect())
}

/// The public address instances of other tiers and metadata are told: an elastic IP, else the automatic one.
pub fn of_instance(tx: &mut Tx<'_>, instance: &InstanceId) -> Outcome<Option<Ipv4Addr>> {
    Ok(interface::of_instance(tx, instance)?.iter().find_map(InterfaceRow::public_ip))
}

/// The interface ends: whatever pointed at it points at nothing.
pub fn forget_interface(tx: &mut Tx<'_>, id: &NetworkInterfaceId) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE address SET interface = NULL, private_ip = NULL, association = NULL WHERE interface = ?1",
        params![id.as_str()],
    )
    .map(|_| ())
}

/// Points at nothing from now on.
pub fn let_go(tx: &mut Tx<'_>, id: &AllocationId) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE address SET interface = NULL, private_ip = NULL, association = NULL WHERE id = ?1",
        params![id.as_str()],
    )
    .map(|_| ())
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidAllocationID.NotFound", format!("The allocation ID '{id}' does not exist"))
}

fn no_such_ip(ip: &str) -> Refusal {
    Refusal::new("InvalidAddress.NotFound", format!("Address '{ip}' not found."))
}

/// An address as requests name it: by allocation, or by itself as in EC2 classic.
pub fn named(
    tx: &mut Tx<'_>,
    account: &str,
    allocation: Option<&AllocationId>,
    public_ip: Option<&str>,
) -> Outcome<AddressRow> {
    let (condition, value) = match (allocation, public_ip) {
        (Some(id), None) => ("id = ?2", id.to_string()),
        (None, Some(ip)) => ("public_ip = ?2", ip.to_owned()),
        (Some(_), Some(_)) => {
            let message = "You may specify public IP or allocation id, but not both in the same call";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        (None, None) => return Err(AwsError::missing_parameter("AllocationId").into()),
    };
    tx.query_opt(
        &format!("SELECT {COLUMNS} FROM address WHERE account = ?1 AND {condition}"),
        params![account, value],
        read,
    )?
    .ok_or_else(|| match allocation {
        Some(id) => not_found(id.as_str()),
        None => no_such_ip(&value),
    })
}

/// Instances whose metadata shows the address of this interface.
fn touch_instance_of(tx: &mut Tx<'_>, interface: &InterfaceRow) -> Outcome<()> {
    match &interface.instance {
        Some(instance) => network::touch(tx, instance),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
