//! VPCs: private networks that know nothing of each other. Each is a logical router in OVN.

use std::net::Ipv4Addr;

use mallee_aws::{
    AwsError,
    filter::{Attribute, Filter, Tagged},
    id::{DhcpOptionsId, VpcCidrAssociationId, VpcId},
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use mallee_tiers::VpcLink;
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions, config,
    ec2::{
        Id,
        listing::{self, Wanted},
        tag::{self, Tag},
        unless_dry_run,
    },
    network::{
        Cidr, Net,
        cidr::Address,
        mac,
        outside::{self, Pool},
    },
    service::Call,
};

pub mod block;
pub mod change;
pub mod ipv6;

actions![DescribeVpcs => describe, DescribeVpcAttribute => describe_attribute];

/// `default_of` is the account whose default VPC it is: an account has one at most.
pub const TABLES: &str = "
CREATE TABLE vpc (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    cidr TEXT NOT NULL,
    cidr_association TEXT NOT NULL UNIQUE,
    default_of TEXT UNIQUE,
    dhcp_options TEXT NOT NULL,
    dns_support BIGINT NOT NULL,
    dns_hostnames BIGINT NOT NULL,
    outer_address TEXT NOT NULL UNIQUE,
    outer_mac TEXT NOT NULL UNIQUE,
    service_mac TEXT NOT NULL UNIQUE,
    metadata_mac TEXT NOT NULL UNIQUE,
    created BIGINT NOT NULL
);
CREATE INDEX vpc_of ON vpc (account);
";

/// A VPC as its row is.
#[derive(Debug, Clone)]
pub struct VpcRow {
    pub id: VpcId,
    pub account: String,
    pub cidr: Cidr,
    /// `vpc-cidr-assoc-…`, of its first CIDR block.
    pub cidr_association: String,
    /// Blocks that were associated later.
    pub more: Vec<(VpcCidrAssociationId, Cidr)>,
    pub ipv6: Option<ipv6::Block>,
    pub is_default: bool,
    /// None: instances are told nothing but their address, which AWS calls the options `default`.
    pub dhcp_options: Option<DhcpOptionsId>,
    pub dns_support: bool,
    pub dns_hostnames: bool,
    /// Its router's address on the outside network: what instances without a public address are seen as.
    pub outer_address: Ipv4Addr,
    pub outer_mac: String,
    /// Its router's port to the network of 169.254.169.254.
    pub service_mac: String,
    pub metadata_mac: String,
    pub created: i64,
}

impl VpcRow {
    /// Its CIDR blocks, the first one first.
    pub fn blocks(&self) -> impl Iterator<Item = Cidr> {
        std::iter::once(self.cidr).chain(self.more.iter().map(|(_, cidr)| *cidr))
    }

    /// All that is its own, of either family.
    pub fn nets(&self) -> impl Iterator<Item = Net> {
        self.blocks().map(Net::V4).chain(self.ipv6.iter().map(|(_, cidr)| Net::V6(*cidr)))
    }

    /// What a node must know of it.
    pub fn link(&self) -> VpcLink {
        VpcLink {
            id: self.id.to_string(),
            metadata_port: metadata_port(&self.id),
            metadata_mac: self.metadata_mac.clone(),
        }
    }
}

/// Name of the `localport` at 169.254.169.254.
pub fn metadata_port(vpc: &VpcId) -> String {
    format!("metadata-{vpc}")
}

const COLUMNS: &str = "id, account, cidr, cidr_association, default_of, dhcp_options, dns_support, dns_hostnames, \
                       outer_address, outer_mac, service_mac, metadata_mac, created";

fn read(row: &Row<'_>) -> Result<VpcRow, StoreError> {
    Ok(VpcRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        cidr: row.get(2)?,
        cidr_association: row.get(3)?,
        more: Vec::new(),
        ipv6: None,
        is_default: row.get::<Option<String>>(4)?.is_some(),
        dhcp_options: row.get::<String>(5)?.parse().ok(),
        dns_support: row.get(6)?,
        dns_hostnames: row.get(7)?,
        outer_address: row.get::<Address>(8)?.0,
        outer_mac: row.get(9)?,
        service_mac: row.get(10)?,
        metadata_mac: row.get(11)?,
        created: row.get(12)?,
    })
}

/// A VPC that is to be.
pub struct New {
    pub cidr: Cidr,
    pub is_default: bool,
    pub dhcp_options: DhcpOptionsId,
    pub now: i64,
}

/// Writes the row, with an outer address and the MACs its router needs.
pub fn insert(tx: &mut Tx<'_>, network: &config::Network, account: &str, new: New) -> Outcome<VpcRow> {
    let id = VpcId::from_random(rand::random());
    let outer_address = outside::take(tx, network, Pool::Routers, id.as_str())?.ok_or_else(|| {
        Refusal::new("VpcLimitExceeded", "All outer addresses of this cloud's routers (network.routers) are in use")
    })?;
    let vpc = VpcRow {
        account: account.to_owned(),
        cidr: new.cidr,
        cidr_association: format!("vpc-cidr-assoc-{}", id.as_str().trim_start_matches(VpcId::PREFIX)),
        more: Vec::new(),
        ipv6: None,
        is_default: new.is_default,
        dhcp_options: Some(new.dhcp_options),
        dns_support: true,
        dns_hostnames: false,
        outer_address,
        outer_mac: mac::take(tx, id.as_str())?,
        service_mac: mac::take(tx, id.as_str())?,
        metadata_mac: mac::take(tx, id.as_str())?,
        created: new.now,
        id,
    };
    tx.execute(
        &format!("INSERT INTO vpc ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"),
        params![
            Id(vpc.id.clone()),
            vpc.account,
            vpc.cidr,
            vpc.cidr_association,
            vpc.is_default.then_some(account),
            options_text(vpc.dhcp_options.as_ref()),
            vpc.dns_support,
            vpc.dns_hostnames,
            Address(vpc.outer_address),
            vpc.outer_mac,
            vpc.service_mac,
            vpc.metadata_mac,
            vpc.created
        ],
    )?;
    Ok(vpc)
}

/// The VPCs of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<VpcRow>, StoreError> {
    let mut vpcs = tx.query(
        &format!("SELECT {COLUMNS} FROM vpc WHERE {} ORDER BY id", listing::whose(account)),
        params![account],
        read,
    )?;
    let (mut blocks, mut ipv6) = (block::all(tx)?, ipv6::all(tx)?);
    for vpc in &mut vpcs {
        vpc.ipv6 = ipv6.remove(&vpc.id);
        vpc.more = blocks.remove(&vpc.id).unwrap_or_default();
    }
    Ok(vpcs)
}

pub fn set_dhcp_options(tx: &mut Tx<'_>, id: &VpcId, options: Option<&DhcpOptionsId>) -> Result<(), StoreError> {
    tx.execute("UPDATE vpc SET dhcp_options = ?2 WHERE id = ?1", params![id.as_str(), options_text(options)])
        .map(|_| ())
}

fn options_text(options: Option<&DhcpOptionsId>) -> &str {
    options.map_or(NO_OPTIONS, DhcpOptionsId::as_str)
}

/// What AWS calls it when a VPC has no DHCP options.
const NO_OPTIONS: &str = "default";

pub fn get(tx: &mut Tx<'_>, account: &str, id: &VpcId) -> Outcome<VpcRow> {
    any(tx, id)?.filter(|vpc| vpc.account == account).ok_or_else(|| not_found(id.as_str()))
}

/// Whosever it is: for the other end of a peering connection.
pub fn any(tx: &mut Tx<'_>, id: &VpcId) -> Result<Option<VpcRow>, StoreError> {
    let found = tx.query_opt(&format!("SELECT {COLUMNS} FROM vpc WHERE id = ?1"), params![id.as_str()], read)?;
    found.map(|vpc| with_blocks(tx, vpc)).transpose()
}

fn with_blocks(tx: &mut Tx<'_>, mut vpc: VpcRow) -> Result<VpcRow, StoreError> {
    vpc.more = block::of(tx, &vpc.id)?;
    vpc.ipv6 = ipv6::of(tx, &vpc.id)?;
    Ok(vpc)
}

/// The account's default VPC, if it still has one.
pub fn default_of(tx: &mut Tx<'_>, account: &str) -> Result<Option<VpcRow>, StoreError> {
    let found = tx.query_opt(&format!("SELECT {COLUMNS} FROM vpc WHERE default_of = ?1"), params![account], read)?;
    found.map(|vpc| with_blocks(tx, vpc)).transpose()
}

/// The default VPC, for a request that names none.
pub fn or_default(tx: &mut Tx<'_>, account: &str) -> Outcome<VpcRow> {
    default_of(tx, account)?
        .ok_or_else(|| Refusal::new("VPCIdNotSpecified", "No default VPC for this user. Name a VPC or a subnet."))
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidVpcID.NotFound", format!("The vpc ID '{id}' does not exist"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVpcs {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    vpc_id: Vec<VpcId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedVpcs {
    vpc_set: Vec<VpcInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VpcInfo {
    vpc_id: VpcId,
    owner_id: String,
    state: &'static str,
    cidr_block: Cidr,
    cidr_block_association_set: Vec<CidrBlockAssociation>,
    ipv6_cidr_block_association_set: Vec<ipv6::Association>,
    dhcp_options_id: String,
    tag_set: Vec<Tag>,
    instance_tenancy: &'static str,
    is_default: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CidrBlockAssociation {
    association_id: String,
    cidr_block: Cidr,
    cidr_block_state: State,
}

#[derive(Serialize)]
struct State {
    state: &'static str,
}

impl Tagged for VpcInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<VpcInfo>] = &[
    ("cidr", |vpc| vec![vpc.cidr_block.to_string().into()]),
    ("cidr-block", |vpc| vec![vpc.cidr_block.to_string().into()]),
    ("cidr-block-association.association-id", |vpc| {
        vpc.cidr_block_association_set.iter().map(|a| (&a.association_id).into()).collect()
    }),
    ("cidr-block-association.cidr-block", |vpc| {
        vpc.cidr_block_association_set.iter().map(|a| a.cidr_block.to_string().into()).collect()
    }),
    ("cidr-block-association.state", |vpc| {
        vpc.cidr_block_association_set.iter().map(|a| a.cidr_block_state.state.into()).collect()
    }),
    ("dhcp-options-id", |vpc| vec![(&vpc.dhcp_options_id).into()]),
    ("ipv6-cidr-block-association.association-id", |vpc| {
        vpc.ipv6_cidr_block_association_set.iter().map(|a| a.id().into()).collect()
    }),
    ("ipv6-cidr-block-association.ipv6-cidr-block", |vpc| {
        vpc.ipv6_cidr_block_association_set.iter().map(|a| a.ipv6_cidr_block.to_string().into()).collect()
    }),
    ("ipv6-cidr-block-association.ipv6-pool", |vpc| {
        vpc.ipv6_cidr_block_association_set.iter().map(|_| "Amazon".into()).collect()
    }),
    ("ipv6-cidr-block-association.state", |vpc| {
        vpc.ipv6_cidr_block_association_set.iter().map(|a| a.state().into()).collect()
    }),
    ("is-default", |vpc| vec![vpc.is_default.to_string().into()]),
    ("isDefault", |vpc| vec![vpc.is_default.to_string().into()]),
    ("owner-id", |vpc| vec![(&vpc.owner_id).into()]),
    ("state", |vpc| vec![vpc.state.into()]),
    ("vpc-id", |vpc| vec![vpc.vpc_id.as_str().into()]),
];

fn info(call: &Call, vpc: VpcRow, tag_set: Vec<Tag>) -> VpcInfo {
    let first = std::iter::once((vpc.cidr_association, vpc.cidr));
    let more = vpc.more.into_iter().map(|(id, cidr)| (id.to_string(), cidr));
    let associations = first.chain(more).map(|(id, cidr)| CidrBlockAssociation::new(id, cidr, "associated"));
    VpcInfo {
        vpc_id: vpc.id,
        owner_id: vpc.account,
        state: "available",
        cidr_block: vpc.cidr,
        cidr_block_association_set: associations.collect(),
        ipv6_cidr_block_association_set: vpc
            .ipv6
            .map(|block| ipv6::Association::of(block, call.cloud.region(), "associated"))
            .into_iter()
            .collect(),
        dhcp_options_id: options_text(vpc.dhcp_options.as_ref()).to_owned(),
        tag_set,
        instance_tenancy: "default",
        is_default: vpc.is_default,
    }
}

impl CidrBlockAssociation {
    fn new(association_id: String, cidr_block: Cidr, state: &'static str) -> Self {
        Self { association_id, cidr_block, cidr_block_state: State { state } }
    }
}

async fn describe(call: &Call, input: DescribeVpcs) -> Outcome<DescribedVpcs> {
    let account = call.account().to_owned();
    let (rows, mut tags) = call
        .cloud
        .store
        .read("describe VPCs", move |tx| {
            Ok::<_, StoreError>((all(tx, Some(&account))?, tag::of_kind(tx, &account, VpcId::PREFIX)?))
        })
        .await?;
    let infos = rows
        .into_iter()
        .map(|vpc| {
            let tag_set = tags.take(vpc.id.as_str());
            info(call, vpc, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.vpc_id.iter().map(VpcId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (vpc_set, next_token) = listing::page(call, &wanted, ATTRIBUTES, |vpc| vpc.vpc_id.as_str(), not_found, infos)?;
    Ok(DescribedVpcs { vpc_set, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVpcAttribute {
    dry_run: Option<bool>,
    vpc_id: VpcId,
    attribute: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedVpcAttribute {
    vpc_id: VpcId,
    enable_dns_support: Option<Flag>,
    enable_dns_hostnames: Option<Flag>,
    enable_network_address_usage_metrics: Option<Flag>,
}

#[derive(Serialize)]
struct Flag {
    value: bool,
}

/// One attribute per call.
async fn describe_attribute(call: &Call, input: DescribeVpcAttribute) -> Outcome<DescribedVpcAttribute> {
    let (account, id) = (call.account().to_owned(), input.vpc_id);
    let vpc = call.cloud.store.read("describe a VPC's attribute", move |tx| get(tx, &account, &id)).await?;
    unless_dry_run(input.dry_run)?;
    let mut described = DescribedVpcAttribute {
        vpc_id: vpc.id,
        enable_dns_support: None,
        enable_dns_hostnames: None,
        enable_network_address_usage_metrics: None,
    };
    match input.attribute.as_str() {
        "enableDnsSupport" => described.enable_dns_support = Some(Flag { value: vpc.dns_support }),
        "enableDnsHostnames" => described.enable_dns_hostnames = Some(Flag { value: vpc.dns_hostnames }),
        "enableNetworkAddressUsageMetrics" => {
            described.enable_network_address_usage_metrics = Some(Flag { value: false });
        }
        other => {
            return Err(AwsError::invalid_parameter_value(format!(
                "Value ({other}) for parameter attribute is invalid."
            ))
            .into());
        }
    }
    Ok(described)
}

#[cfg(test)]
mod tests;
