//! Subnets: pieces of a VPC's addresses, each in one zone. Each is a logical switch in OVN.

use std::{collections::BTreeMap, net::Ipv4Addr};

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::{SubnetId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        Id, interface,
        listing::{self, Wanted},
        tag::{self, Tag},
        vpc,
    },
    network::{Cidr, mac},
    service::Call,
};

pub mod change;
pub mod ipv6;
pub mod kind;

pub use kind::Kind;

actions![DescribeSubnets => describe];

/// `default_of` is the account and zone (`ACCOUNT ZONE`) whose default subnet it is.
pub const TABLES: &str = "
CREATE TABLE subnet (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    zone TEXT NOT NULL,
    cidr TEXT NOT NULL,
    default_of TEXT UNIQUE,
    public_on_launch BIGINT NOT NULL,
    router_mac TEXT NOT NULL UNIQUE,
    created BIGINT NOT NULL,
    UNIQUE (vpc, cidr)
);
CREATE INDEX subnet_of ON subnet (account);
";

/// A subnet as its row is.
#[derive(Debug, Clone)]
pub struct SubnetRow {
    pub id: SubnetId,
    pub account: String,
    pub vpc: VpcId,
    pub zone: String,
    pub cidr: Cidr,
    pub kind: Kind,
    pub is_default: bool,
    /// Interfaces made at a launch get a public address from the pool, while it has any.
    pub public_on_launch: bool,
    pub ipv6: Option<ipv6::Block>,
    /// New interfaces get an IPv6 address.
    pub ipv6_on_creation: bool,
    /// Of the VPC router's port in it, at its first usable address.
    pub router_mac: String,
    pub created: i64,
}

impl SubnetRow {
    pub fn router(&self) -> Ipv4Addr {
        self.cidr.nth(1)
    }

    /// Whether an interface may have this address. As at AWS the first four (network, router, DNS, reserve) and the last
    /// are nobody's.
    pub fn usable(&self, address: Ipv4Addr) -> bool {
        self.cidr.contains(address) && address >= self.cidr.nth(RESERVED_FIRST) && address < self.cidr.last()
    }

    /// How many addresses interfaces may have.
    pub fn capacity(&self) -> u64 {
        self.cidr.size().saturating_sub(u64::from(RESERVED_FIRST) + 1)
    }
}

const RESERVED_FIRST: u32 = 4;

const COLUMNS: &str =
    "id, account, vpc, zone, cidr, default_of, public_on_launch, router_mac, created, ipv6_on_creation, kind";

fn read(row: &Row<'_>) -> Result<SubnetRow, StoreError> {
    Ok(SubnetRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        vpc: row.get::<Id<_>>(2)?.0,
        zone: row.get(3)?,
        cidr: row.get(4)?,
        kind: row.get(10)?,
        is_default: row.get::<Option<String>>(5)?.is_some(),
        public_on_launch: row.get(6)?,
        ipv6: None,
        ipv6_on_creation: row.get(9)?,
        router_mac: row.get(7)?,
        created: row.get(8)?,
    })
}

/// A subnet that is to be.
pub struct New {
    pub vpc: VpcId,
    pub zone: String,
    pub cidr: Cidr,
    pub kind: Kind,
    pub is_default: bool,
    pub public_on_launch: bool,
    pub now: i64,
}

pub fn insert(tx: &mut Tx<'_>, account: &str, new: New) -> Outcome<SubnetRow> {
    let id = SubnetId::from_random(rand::random());
    let subnet = SubnetRow {
        router_mac: mac::take(tx, id.as_str())?,
        id,
        account: account.to_owned(),
        vpc: new.vpc,
        zone: new.zone,
        cidr: new.cidr,
        kind: new.kind,
        is_default: new.is_default,
        public_on_launch: new.public_on_launch,
        ipv6: None,
        ipv6_on_creation: false,
        created: new.now,
    };
    tx.execute(
        &format!("INSERT INTO subnet ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"),
        params![
            subnet.id.as_str(),
            subnet.account,
            subnet.vpc.as_str(),
            subnet.zone,
            subnet.cidr,
            subnet.is_default.then(|| format!("{account} {}", subnet.zone)),
            subnet.public_on_launch,
            subnet.router_mac,
            subnet.created,
            subnet.ipv6_on_creation,
            subnet.kind
        ],
    )?;
    Ok(subnet)
}

/// The subnets of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<SubnetRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM subnet WHERE {} ORDER BY id", listing::whose(account));
    let rows = tx.query(&sql, params![account], read)?;
    with_ipv6(tx, rows)
}

fn with_ipv6(tx: &mut Tx<'_>, mut rows: Vec<SubnetRow>) -> Result<Vec<SubnetRow>, StoreError> {
    let mut blocks = ipv6::all(tx)?;
    for row in &mut rows {
        row.ipv6 = blocks.remove(&row.id);
    }
    Ok(rows)
}

/// The subnets of a VPC.
pub fn in_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<Vec<SubnetRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM subnet WHERE vpc = ?1 ORDER BY id");
    let rows = tx.query(&sql, params![vpc.as_str()], read)?;
    with_ipv6(tx, rows)
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &SubnetId) -> Outcome<SubnetRow> {
    let sql = format!("SELECT {COLUMNS} FROM subnet WHERE account = ?1 AND id = ?2");
    let found = tx.query_opt(&sql, params![account, id.as_str()], read)?;
    let mut row = found.ok_or_else(|| not_found(id.as_str()))?;
    row.ipv6 = ipv6::of(tx, &row.id)?;
    Ok(row)
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
}

/// Where a launch shall be, as the request says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Subnet(SubnetId),
    /// The zone's default subnet.
    Zone(String),
    /// Any default subnet: the first zone's that has one.
    Any,
}

/// The subnet of a launch.
pub fn for_launch(tx: &mut Tx<'_>, account: &str, place: &Place) -> Outcome<SubnetRow> {
    if let Place::Subnet(id) = place {
        return get(tx, account, id);
    }
    let vpc = vpc::or_default(tx, account)?;
    let defaults = tx.query(
        &format!("SELECT {COLUMNS} FROM subnet WHERE vpc = ?1 AND default_of IS NOT NULL ORDER BY zone"),
        params![vpc.id.as_str()],
        read,
    )?;
    let wanted = |s: &SubnetRow| match place {
        Place::Zone(zone) => s.zone == *zone,
        _ => true,
    };
    let defaults = with_ipv6(tx, defaults)?;
    defaults.into_iter().find(wanted).ok_or_else(|| match place {
        Place::Zone(zone) => {
            Refusal::new("MissingInput", format!("No default subnet for availability zone: '{zone}'. Name a subnet."))
        }
        _ => Refusal::new("MissingInput", "No subnets found for the default VPC. Name a subnet."),
    })
}

/// `mallee1-az1`: what AWS calls a zone's id, the same in every account.
pub fn zone_id(config: &Config, zone: &str) -> String {
    let number = config.zones.iter().position(|z| z == zone).map_or(0, |n| n + 1);
    format!("{}-az{number}", config.region.replace('-', ""))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeSubnets {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    subnet_id: Vec<SubnetId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedSubnets {
    subnet_set: Vec<SubnetInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SubnetInfo {
    subnet_id: SubnetId,
    subnet_arn: String,
    state: &'static str,
    owner_id: String,
    vpc_id: VpcId,
    cidr_block: Cidr,
    ipv6_cidr_block_association_set: Vec<ipv6::Association>,
    available_ip_address_count: u64,
    availability_zone: String,
    availability_zone_id: String,
    default_for_az: bool,
    map_public_ip_on_launch: bool,
    map_customer_owned_ip_on_launch: bool,
    assign_ipv6_address_on_creation: bool,
    enable_dns64: bool,
    ipv6_native: bool,
    private_dns_name_options_on_launch: NameOptions,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NameOptions {
    hostname_type: &'static str,
    enable_resource_name_dns_a_record: bool,
    #[serde(rename = "enableResourceNameDnsAAAARecord")]
    enable_resource_name_dns_aaaa_record: bool,
}

impl Tagged for SubnetInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<SubnetInfo>] = &[
    ("availability-zone", |subnet| vec![(&subnet.availability_zone).into()]),
    ("availabilityZone", |subnet| vec![(&subnet.availability_zone).into()]),
    ("availability-zone-id", |subnet| vec![(&subnet.availability_zone_id).into()]),
    ("availabilityZoneId", |subnet| vec![(&subnet.availability_zone_id).into()]),
    ("available-ip-address-count", |subnet| vec![subnet.available_ip_address_count.to_string().into()]),
    ("cidr", |subnet| vec![subnet.cidr_block.to_string().into()]),
    ("cidr-block", |subnet| vec![subnet.cidr_block.to_string().into()]),
    ("cidrBlock", |subnet| vec![subnet.cidr_block.to_string().into()]),
    ("customer-owned-ipv4-pool", |_| vec![]),
    ("default-for-az", |subnet| vec![subnet.default_for_az.to_string().into()]),
    ("defaultForAz", |subnet| vec![subnet.default_for_az.to_string().into()]),
    ("enable-dns64", |subnet| vec![subnet.enable_dns64.to_string().into()]),
    ("enable-lni-at-device-index", |_| vec![]),
    ("ipv6-cidr-block-association.association-id", |subnet| {
        subnet.ipv6_cidr_block_association_set.iter().map(|a| a.id().into()).collect()
    }),
    ("ipv6-cidr-block-association.ipv6-cidr-block", |subnet| {
        subnet.ipv6_cidr_block_association_set.iter().map(|a| a.ipv6_cidr_block.to_string().into()).collect()
    }),
    ("ipv6-cidr-block-association.state", |subnet| {
        subnet.ipv6_cidr_block_association_set.iter().map(|a| a.state().into()).collect()
    }),
    ("ipv6-native", |subnet| vec![subnet.ipv6_native.to_string().into()]),
    ("map-customer-owned-ip-on-launch", |subnet| vec![subnet.map_customer_owned_ip_on_launch.to_string().into()]),
    ("map-public-ip-on-launch", |subnet| vec![subnet.map_public_ip_on_launch.to_string().into()]),
    ("outpost-arn", |_| vec![]),
    ("owner-id", |subnet| vec![(&subnet.owner_id).into()]),
    ("private-dns-name-options-on-launch.enable-resource-name-dns-a-record", |_| vec!["false".into()]),
    ("private-dns-name-options-on-launch.enable-resource-name-dns-aaaa-record", |_| vec!["false".into()]),
    ("private-dns-name-options-on-launch.hostname-type", |subnet| {
        vec![subnet.private_dns_name_options_on_launch.hostname_type.into()]
    }),
    ("state", |subnet| vec![subnet.state.into()]),
    ("subnet-arn", |subnet| vec![(&subnet.subnet_arn).into()]),
    ("subnet-id", |subnet| vec![subnet.subnet_id.as_str().into()]),
    ("vpc-id", |subnet| vec![subnet.vpc_id.as_str().into()]),
];

fn info(call: &Call, subnet: SubnetRow, used: u64, tag_set: Vec<Tag>) -> SubnetInfo {
    SubnetInfo {
        subnet_arn: call.cloud.arn("ec2", &subnet.account, &format!("subnet/{}", subnet.id)),
        state: "available",
        owner_id: subnet.account.clone(),
        cidr_block: subnet.cidr,
        ipv6_cidr_block_association_set: subnet
            .ipv6
            .clone()
            .map(|block| ipv6::Association::of(block, "associated"))
            .into_iter()
            .collect(),
        available_ip_address_count: subnet.capacity().saturating_sub(used),
        availability_zone_id: zone_id(&call.cloud.config, &subnet.zone),
        default_for_az: subnet.is_default,
        map_public_ip_on_launch: subnet.public_on_launch,
        map_customer_owned_ip_on_launch: false,
        assign_ipv6_address_on_creation: subnet.ipv6_on_creation,
        enable_dns64: false,
        ipv6_native: false,
        private_dns_name_options_on_launch: NameOptions {
            hostname_type: "ip-name",
            enable_resource_name_dns_a_record: false,
            enable_resource_name_dns_aaaa_record: false,
        },
        tag_set,
        subnet_id: subnet.id,
        vpc_id: subnet.vpc,
        availability_zone: subnet.zone,
    }
}

async fn describe(call: &Call, input: DescribeSubnets) -> Outcome<DescribedSubnets> {
    let account = call.account().to_owned();
    let (rows, mut tags, used) = call
        .cloud
        .store
        .read("describe subnets", move |tx| {
            let rows = all(tx, Some(&account))?;
            let tags = tag::of_kind(tx, &account, SubnetId::PREFIX)?;
            let used: BTreeMap<String, u64> = interface::count_by_subnet(tx, &account)?;
            Ok::<_, StoreError>((rows, tags, used))
        })
        .await?;
    let infos = rows
        .into_iter()
        .map(|subnet| {
            let tag_set = tags.take(subnet.id.as_str());
            let used = used.get(subnet.id.as_str()).copied().unwrap_or_default();
            info(call, subnet, used, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.subnet_id.iter().map(SubnetId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (subnet_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |subnet| subnet.subnet_id.as_str(), not_found, infos)?;
    Ok(DescribedSubnets { subnet_set, next_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_addresses_of_a_subnet_are_nobodys() {
        let subnet = SubnetRow {
            id: SubnetId::from_random([1; 9]),
            account: String::new(),
            vpc: VpcId::from_random([1; 9]),
            zone: String::new(),
            cidr: "10.0.0.0/28".parse().unwrap(),
            kind: Kind::Routed,
            is_default: false,
            public_on_launch: false,
            ipv6: None,
            ipv6_on_creation: false,
            router_mac: String::new(),
            created: 0,
        };
        let usable = (0..=255).filter(|n| subnet.usable(Ipv4Addr::new(10, 0, 0, *n))).collect::<Vec<u8>>();
        assert_eq!(usable, (4..15).collect::<Vec<u8>>());
        assert_eq!(subnet.capacity(), 11);
    }
}
