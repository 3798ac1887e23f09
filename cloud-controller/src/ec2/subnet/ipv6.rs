//! The IPv6 block of a subnet: a /64 of its VPC's.

use std::collections::BTreeMap;

use mallee_aws::{
    AwsError,
    id::{SubnetCidrAssociationId, SubnetId},
};
use mallee_store::{Error as StoreError, Tx, params};
use serde::{Deserialize, Serialize};

use super::{SubnetRow, get, in_vpc};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, interface,
        unsupported::{self, Unsupported},
        vpc::{self, VpcRow},
    },
    network::Cidr6,
    service::Call,
};

actions![AssociateSubnetCidrBlock => associate, DisassociateSubnetCidrBlock => disassociate];

pub const TABLES: &str = "
ALTER TABLE subnet ADD COLUMN ipv6_on_creation BIGINT NOT NULL DEFAULT 0;
CREATE TABLE subnet_ipv6 (
    id TEXT PRIMARY KEY,
    subnet TEXT NOT NULL UNIQUE REFERENCES subnet (id),
    cidr TEXT NOT NULL UNIQUE
);
";

/// AWS' only length.
const LENGTH: u8 = 64;

pub type Block = (SubnetCidrAssociationId, Cidr6);

/// The blocks of every subnet.
pub fn all(tx: &mut Tx<'_>) -> Result<BTreeMap<SubnetId, Block>, StoreError> {
    let found = tx.query("SELECT subnet, id, cidr FROM subnet_ipv6", params![], |row| {
        Ok((row.get::<Id<_>>(0)?.0, (row.get::<Id<_>>(1)?.0, row.get(2)?)))
    })?;
    Ok(found.into_iter().collect())
}

pub fn of(tx: &mut Tx<'_>, subnet: &SubnetId) -> Result<Option<Block>, StoreError> {
    tx.query_opt("SELECT id, cidr FROM subnet_ipv6 WHERE subnet = ?1", params![subnet.as_str()], |row| {
        Ok((row.get::<Id<_>>(0)?.0, row.get(1)?))
    })
}

pub fn drop_of_subnet(tx: &mut Tx<'_>, subnet: &SubnetId) -> Result<(), StoreError> {
    tx.execute("DELETE FROM subnet_ipv6 WHERE subnet = ?1", params![subnet.as_str()]).map(|_| ())
}

/// What a request says.
pub fn asked(text: &str) -> Outcome<Cidr6> {
    text.parse().map_err(|()| {
        let message =
            format!("Value ({text}) for parameter ipv6CidrBlock is invalid. This is not a valid IPv6 CIDR block.");
        AwsError::invalid_parameter_value(message).into()
    })
}

/// Gives a subnet this block of its VPC's.
pub fn give(tx: &mut Tx<'_>, vpc: &VpcRow, subnet: &SubnetRow, cidr: Cidr6) -> Outcome<Block> {
    let fits = vpc.ipv6.as_ref().is_some_and(|(_, block)| block.covers(&cidr)) && cidr.length() == LENGTH;
    if !fits {
        return Err(Refusal::new("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid.")));
    }
    if subnet.ipv6.is_some() {
        let message = format!("The subnet '{}' has met its maximum number of allowed IPv6 CIDRs: 1", subnet.id);
        return Err(Refusal::new("SubnetCidrLimitExceeded", message));
    }
    if in_vpc(tx, &vpc.id)?.iter().any(|other| other.ipv6.as_ref().is_some_and(|(_, there)| there.overlaps(&cidr))) {
        let message = format!("The CIDR '{cidr}' conflicts with another subnet");
        return Err(Refusal::new("InvalidSubnet.Conflict", message));
    }
    let id = SubnetCidrAssociationId::from_random(rand::random());
    tx.execute(
        "INSERT INTO subnet_ipv6 (id, subnet, cidr) VALUES (?1, ?2, ?3)",
        params![id.as_str(), subnet.id.as_str(), cidr],
    )?;
    Ok((id, cidr))
}

/// A block as a subnet and its changes show it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Association {
    association_id: SubnetCidrAssociationId,
    pub ipv6_cidr_block: Cidr6,
    ipv6_cidr_block_state: State,
    ip_source: &'static str,
    ipv6_address_attribute: &'static str,
}

#[derive(Serialize)]
struct State {
    state: &'static str,
}

impl Association {
    pub fn of(block: Block, state: &'static str) -> Self {
        Self {
            association_id: block.0,
            ipv6_cidr_block: block.1,
            ipv6_cidr_block_state: State { state },
            ip_source: "amazon",
            ipv6_address_attribute: "public",
        }
    }

    pub fn id(&self) -> &str {
        self.association_id.as_str()
    }

    pub fn state(&self) -> &'static str {
        self.ipv6_cidr_block_state.state
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssociateSubnetCidrBlock {
    subnet_id: SubnetId,
    #[serde(rename = "Ipv6CidrBlock")]
    ipv6_cidr_block: Option<String>,
    #[serde(rename = "Ipv6IpamPoolId")]
    ipv6_ipam_pool_id: Option<Unsupported>,
    #[serde(rename = "Ipv6NetmaskLength")]
    ipv6_netmask_length: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed {
    subnet_id: SubnetId,
    ipv6_cidr_block_association: Association,
}

async fn associate(call: &Call, input: AssociateSubnetCidrBlock) -> Outcome<Changed> {
    unsupported::refuse(&[
        ("Ipv6IpamPoolId", input.ipv6_ipam_pool_id),
        ("Ipv6NetmaskLength", input.ipv6_netmask_length),
    ])?;
    let text = input.ipv6_cidr_block.ok_or_else(|| AwsError::missing_parameter("Ipv6CidrBlock"))?;
    let cidr = asked(&text)?;
    let account = call.account().to_owned();
    let (subnet_id, block) = call
        .cloud
        .store
        .write("associate an IPv6 CIDR block with a subnet", move |tx| {
            let subnet = get(tx, &account, &input.subnet_id)?;
            subnet.require_routed("IPv6 CIDR block")?;
            let vpc = vpc::get(tx, &account, &subnet.vpc)?;
            let block = give(tx, &vpc, &subnet, cidr)?;
            Ok::<_, Refusal>((subnet.id, block))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Changed { subnet_id, ipv6_cidr_block_association: Association::of(block, "associating") })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DisassociateSubnetCidrBlock {
    association_id: String,
}

async fn disassociate(call: &Call, input: DisassociateSubnetCidrBlock) -> Outcome<Changed> {
    let account = call.account().to_owned();
    let (subnet_id, block) = call
        .cloud
        .store
        .write("disassociate an IPv6 CIDR block from a subnet", move |tx| {
            let id = &input.association_id;
            let found = super::all(tx, Some(&account))?
                .into_iter()
                .find(|s| s.ipv6.as_ref().is_some_and(|(association, _)| association.as_str() == id));
            let Some((subnet, block)) = found.and_then(|s| Some((s.id, s.ipv6?))) else {
                let message = format!("The subnet CIDR block association ID '{id}' does not exist");
                return Err(Refusal::new("InvalidSubnetCidrBlockAssociationID.NotFound", message));
            };
            if interface::ipv6::are_in(tx, &subnet)? {
                let message = format!("The subnet '{subnet}' has interfaces with addresses of the block '{}'", block.1);
                return Err(Refusal::new("DependencyViolation", message));
            }
            drop_of_subnet(tx, &subnet)?;
            tx.execute("UPDATE subnet SET ipv6_on_creation = 0 WHERE id = ?1", params![subnet.as_str()])?;
            Ok((subnet, block))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Changed { subnet_id, ipv6_cidr_block_association: Association::of(block, "disassociating") })
}
