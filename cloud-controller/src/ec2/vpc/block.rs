//! CIDR blocks of a VPC beside its first.

use std::collections::BTreeMap;

use mallee_aws::{
    AwsError,
    id::{VpcCidrAssociationId, VpcId},
};
use mallee_store::{Error as StoreError, Tx, params};
use serde::{Deserialize, Serialize};

use super::{CidrBlockAssociation, VpcRow, change::check_size, get, ipv6};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id, peering, subnet,
        unsupported::{self, Unsupported},
    },
    network::Cidr,
    service::Call,
};

actions![AssociateVpcCidrBlock => associate, DisassociateVpcCidrBlock => disassociate];

pub const TABLES: &str = "
CREATE TABLE vpc_cidr (
    id TEXT PRIMARY KEY,
    vpc TEXT NOT NULL REFERENCES vpc (id),
    cidr TEXT NOT NULL,
    UNIQUE (vpc, cidr)
);
";

/// AWS' default, the first block included.
const MAX_BLOCKS: usize = 5;

type Block = (VpcCidrAssociationId, Cidr);

/// The later blocks of every VPC.
pub fn all(tx: &mut Tx<'_>) -> Result<BTreeMap<VpcId, Vec<Block>>, StoreError> {
    let mut blocks: BTreeMap<VpcId, Vec<Block>> = BTreeMap::new();
    let found = tx.query("SELECT vpc, id, cidr FROM vpc_cidr ORDER BY id", params![], |row| {
        Ok((row.get::<Id<_>>(0)?.0, (row.get::<Id<_>>(1)?.0, row.get(2)?)))
    })?;
    for (vpc, block) in found {
        blocks.entry(vpc).or_default().push(block);
    }
    Ok(blocks)
}

pub fn of(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<Vec<Block>, StoreError> {
    tx.query("SELECT id, cidr FROM vpc_cidr WHERE vpc = ?1 ORDER BY id", params![vpc.as_str()], |row| {
        Ok((row.get::<Id<_>>(0)?.0, row.get(1)?))
    })
}

pub fn drop_of_vpc(tx: &mut Tx<'_>, vpc: &VpcId) -> Result<(), StoreError> {
    tx.execute("DELETE FROM vpc_cidr WHERE vpc = ?1", params![vpc.as_str()]).map(|_| ())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssociateVpcCidrBlock {
    vpc_id: VpcId,
    cidr_block: Option<String>,
    amazon_provided_ipv6_cidr_block: Option<bool>,
    #[serde(rename = "Ipv6CidrBlock")]
    ipv6_cidr_block: Option<Unsupported>,
    #[serde(rename = "Ipv6Pool")]
    ipv6_pool: Option<Unsupported>,
    #[serde(rename = "Ipv4IpamPoolId")]
    ipv4_ipam_pool_id: Option<Unsupported>,
    #[serde(rename = "Ipv6IpamPoolId")]
    ipv6_ipam_pool_id: Option<Unsupported>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangedVpcCidrBlock {
    vpc_id: VpcId,
    cidr_block_association: Option<CidrBlockAssociation>,
    ipv6_cidr_block_association: Option<ipv6::Association>,
}

impl ChangedVpcCidrBlock {
    fn of(vpc_id: VpcId, block: CidrBlockAssociation) -> Self {
        Self { vpc_id, cidr_block_association: Some(block), ipv6_cidr_block_association: None }
    }

    fn of_ipv6(vpc_id: VpcId, block: ipv6::Association) -> Self {
        Self { vpc_id, cidr_block_association: None, ipv6_cidr_block_association: Some(block) }
    }
}

async fn associate(call: &Call, input: AssociateVpcCidrBlock) -> Outcome<ChangedVpcCidrBlock> {
    unsupported::refuse(&[
        ("Ipv6CidrBlock", input.ipv6_cidr_block),
        ("Ipv6Pool", input.ipv6_pool),
        ("Ipv4IpamPoolId", input.ipv4_ipam_pool_id),
        ("Ipv6IpamPoolId", input.ipv6_ipam_pool_id),
    ])?;
    let (account, id) = (call.account().to_owned(), input.vpc_id);
    if input.amazon_provided_ipv6_cidr_block == Some(true) {
        if input.cidr_block.is_some() {
            let message = "Only one of CidrBlock and AmazonProvidedIpv6CidrBlock may be given";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        return associate_ipv6(call, id).await;
    }
    let text = input.cidr_block.ok_or_else(|| AwsError::missing_parameter("CidrBlock"))?;
    let cidr = check_size(&text)?;
    let done = call
        .cloud
        .store
        .write("associate a CIDR block", move |tx| {
            let vpc = get(tx, &account, &id)?;
            check_fits(tx, &vpc, cidr)?;
            let association = VpcCidrAssociationId::from_random(rand::random());
            tx.execute(
                "INSERT INTO vpc_cidr (id, vpc, cidr) VALUES (?1, ?2, ?3)",
                params![association.as_str(), vpc.id.as_str(), cidr],
            )?;
            let cidr_block_association = CidrBlockAssociation::new(association.to_string(), cidr, "associating");
            Ok::<_, Refusal>(ChangedVpcCidrBlock::of(vpc.id, cidr_block_association))
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(done)
}

/// The cloud chooses which.
async fn associate_ipv6(call: &Call, id: VpcId) -> Outcome<ChangedVpcCidrBlock> {
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    let (vpc_id, block) = call
        .cloud
        .store
        .write("associate an IPv6 CIDR block", move |tx| {
            let vpc = get(tx, &account, &id)?;
            let block = ipv6::give(tx, &cloud.config.network, &vpc)?;
            Ok::<_, Refusal>((vpc.id, block))
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    let block = ipv6::Association::of(block, call.cloud.region(), "associating");
    Ok(ChangedVpcCidrBlock::of_ipv6(vpc_id, block))
}

fn check_fits(tx: &mut Tx<'_>, vpc: &VpcRow, cidr: Cidr) -> Outcome<()> {
    if vpc.more.len() + 1 >= MAX_BLOCKS {
        let message = format!("This network '{}' has met its maximum number of allowed CIDRs: {MAX_BLOCKS}", vpc.id);
        return Err(Refusal::new("CidrLimitExceeded", message));
    }
    if vpc.blocks().any(|block| block.overlaps(&cidr)) {
        return Err(Refusal::new("InvalidVpc.Range", format!("The CIDR '{cidr}' overlaps a CIDR block of the VPC")));
    }
    // A peer's addresses must stay its own.
    for peer in peering::peers_of(tx, &vpc.id)? {
        if super::any(tx, &peer)?.is_some_and(|other| other.blocks().any(|block| block.overlaps(&cidr))) {
            return Err(Refusal::new(
                "InvalidVpc.Range",
                format!("The CIDR '{cidr}' overlaps that of the peer VPC {peer}"),
            ));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DisassociateVpcCidrBlock {
    association_id: String,
}

async fn disassociate(call: &Call, input: DisassociateVpcCidrBlock) -> Outcome<ChangedVpcCidrBlock> {
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    let done = call
        .cloud
        .store
        .write("disassociate a CIDR block", move |tx| {
            let id = &input.association_id;
            let vpcs = super::all(tx, Some(&account))?;
            if vpcs.iter().any(|vpc| vpc.cidr_association == *id) {
                let message = format!("The vpc CIDR block with association ID {id} may not be disassociated. It is the primary IPv4 CIDR block of the VPC");
                return Err(Refusal::new("OperationNotPermitted", message));
            }
            let ipv6 = vpcs.iter().find_map(|vpc| Some((&vpc.id, vpc.ipv6.clone().filter(|b| b.0.as_str() == id)?)));
            if let Some((vpc, block)) = ipv6 {
                ipv6::take_back(tx, vpc)?;
                let block = ipv6::Association::of(block, cloud.region(), "disassociating");
                return Ok(ChangedVpcCidrBlock::of_ipv6(vpc.clone(), block));
            }
            let found = vpcs.iter().find_map(|vpc| {
                vpc.more.iter().find(|(association, _)| association.as_str() == id).map(|(_, cidr)| (vpc.id.clone(), *cidr))
            });
            let Some((vpc, cidr)) = found else {
                let message = format!("The vpc CIDR block association ID '{id}' does not exist");
                return Err(Refusal::new("InvalidVpcCidrBlockAssociationID.NotFound", message));
            };
            if subnet::in_vpc(tx, &vpc)?.iter().any(|subnet| subnet.cidr.overlaps(&cidr)) {
                let message = format!("The vpc '{vpc}' has subnets in the CIDR block '{cidr}', which cannot be disassociated");
                return Err(Refusal::new("DependencyViolation", message));
            }
            tx.execute("DELETE FROM vpc_cidr WHERE id = ?1", params![id])?;
            let cidr_block_association = CidrBlockAssociation::new(id.clone(), cidr, "disassociating");
            Ok(ChangedVpcCidrBlock::of(vpc, cidr_block_association))
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(done)
}
