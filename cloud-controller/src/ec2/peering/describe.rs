//! Showing peering connections, and the options of theirs that cannot be changed.

use mallee_aws::{
    AwsError,
    answer::timestamp,
    filter::{Attribute, Filter, Tagged},
    id::{VpcId, VpcPeeringConnectionId},
};
use mallee_store::params;
use serde::{Deserialize, Serialize};

use super::{COLUMNS, End, PeeringRow, SHOWN_MS, State, get, not_found, read};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        listing::{self, Wanted},
        tag::{self, Tag},
        unless_dry_run,
        unsupported::{self, Unsupported},
        vpc::{self, VpcRow},
    },
    network::{Cidr, Cidr6},
    service::Call,
};

actions![
    DescribeVpcPeeringConnections => describe,
    ModifyVpcPeeringConnectionOptions => modify_options,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVpcPeeringConnections {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    vpc_peering_connection_id: Vec<VpcPeeringConnectionId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    vpc_peering_connection_set: Vec<PeeringInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeeringInfo {
    vpc_peering_connection_id: VpcPeeringConnectionId,
    requester_vpc_info: VpcInfo,
    accepter_vpc_info: VpcInfo,
    status: Status,
    expiration_time: Option<String>,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VpcInfo {
    owner_id: String,
    vpc_id: VpcId,
    cidr_block: Option<Cidr>,
    cidr_block_set: Vec<Block>,
    ipv6_cidr_block_set: Vec<Ipv6Block>,
    peering_options: Options,
    region: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Block {
    cidr_block: Cidr,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ipv6Block {
    ipv6_cidr_block: Cidr6,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    allow_egress_from_local_classic_link_to_remote_vpc: bool,
    allow_egress_from_local_vpc_to_remote_classic_link: bool,
    allow_dns_resolution_from_remote_vpc: bool,
}

const NO_OPTIONS: fn() -> Options = || Options {
    allow_egress_from_local_classic_link_to_remote_vpc: false,
    allow_egress_from_local_vpc_to_remote_classic_link: false,
    allow_dns_resolution_from_remote_vpc: false,
};

#[derive(Serialize)]
struct Status {
    code: &'static str,
    message: String,
}

impl Tagged for PeeringInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<PeeringInfo>] = &[
    ("accepter-vpc-info.cidr-block", |p| p.accepter_vpc_info.blocks()),
    ("accepter-vpc-info.owner-id", |p| vec![(&p.accepter_vpc_info.owner_id).into()]),
    ("accepter-vpc-info.vpc-id", |p| vec![p.accepter_vpc_info.vpc_id.as_str().into()]),
    ("expiration-time", |p| p.expiration_time.iter().map(Into::into).collect()),
    ("requester-vpc-info.cidr-block", |p| p.requester_vpc_info.blocks()),
    ("requester-vpc-info.owner-id", |p| vec![(&p.requester_vpc_info.owner_id).into()]),
    ("requester-vpc-info.vpc-id", |p| vec![p.requester_vpc_info.vpc_id.as_str().into()]),
    ("status-code", |p| vec![p.status.code.into()]),
    ("status-message", |p| vec![(&p.status.message).into()]),
    ("vpc-peering-connection-id", |p| vec![p.vpc_peering_connection_id.as_str().into()]),
];

impl VpcInfo {
    fn blocks(&self) -> Vec<std::borrow::Cow<'_, str>> {
        self.cidr_block_set.iter().map(|b| b.cidr_block.to_string().into()).collect()
    }

    fn new(region: &str, end: End, vpc: Option<&VpcRow>) -> Self {
        Self {
            owner_id: end.account,
            vpc_id: end.vpc,
            cidr_block: vpc.map(|v| v.cidr),
            cidr_block_set: vpc.into_iter().flat_map(VpcRow::blocks).map(|cidr_block| Block { cidr_block }).collect(),
            ipv6_cidr_block_set: vpc
                .and_then(|v| v.ipv6.as_ref())
                .map(|(_, cidr)| Ipv6Block { ipv6_cidr_block: *cidr })
                .into_iter()
                .collect(),
            peering_options: NO_OPTIONS(),
            region: region.to_owned(),
        }
    }
}

const WEEK_MS: i64 = 7 * 24 * 3600 * 1000;

/// `ends`: requester and accepter, as far as they are still there.
pub fn info(region: &str, row: PeeringRow, ends: &[Option<VpcRow>; 2], tag_set: Vec<Tag>) -> PeeringInfo {
    PeeringInfo {
        vpc_peering_connection_id: row.id,
        requester_vpc_info: VpcInfo::new(region, row.requester, ends[0].as_ref()),
        accepter_vpc_info: VpcInfo::new(region, row.accepter, ends[1].as_ref()),
        expiration_time: (row.state == State::PendingAcceptance).then(|| timestamp(row.created + WEEK_MS)),
        status: Status { code: row.state.as_str(), message: row.message },
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeVpcPeeringConnections) -> Outcome<Described> {
    let (account, now) = (call.account().to_owned(), call.now);
    let region = call.cloud.region().to_owned();
    let infos = call
        .cloud
        .store
        .read("describe VPC peering connections", move |tx| {
            let sql =
                format!("SELECT {COLUMNS} FROM vpc_peering WHERE account = ?1 OR accepter_account = ?1 ORDER BY id");
            let mut tags = tag::of_kind(tx, &account, VpcPeeringConnectionId::PREFIX)?;
            let mut infos = Vec::new();
            for row in tx.query(&sql, params![account], read)? {
                if row.ended.is_some_and(|at| at < now - SHOWN_MS) {
                    continue;
                }
                let ends = [vpc::any(tx, &row.requester.vpc)?, vpc::any(tx, &row.accepter.vpc)?];
                let tag_set = tags.take(row.id.as_str());
                infos.push(info(&region, row, &ends, tag_set));
            }
            Ok::<_, Refusal>(infos)
        })
        .await?;
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.vpc_peering_connection_id.iter().map(VpcPeeringConnectionId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (vpc_peering_connection_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |p| p.vpc_peering_connection_id.as_str(), not_found, infos)?;
    Ok(Described { vpc_peering_connection_set, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyVpcPeeringConnectionOptions {
    dry_run: Option<bool>,
    vpc_peering_connection_id: VpcPeeringConnectionId,
    accepter_peering_connection_options: Option<Unsupported>,
    requester_peering_connection_options: Option<Unsupported>,
}

#[derive(Serialize)]
struct NothingChanged {}

/// There is no option this cloud has: names are not resolved across VPCs.
async fn modify_options(call: &Call, input: ModifyVpcPeeringConnectionOptions) -> Outcome<NothingChanged> {
    let (account, id) = (call.account().to_owned(), input.vpc_peering_connection_id);
    call.cloud.store.read("find a VPC peering connection", move |tx| get(tx, &account, &id)).await?;
    unsupported::refuse(&[
        ("AccepterPeeringConnectionOptions", input.accepter_peering_connection_options),
        ("RequesterPeeringConnectionOptions", input.requester_peering_connection_options),
    ])?;
    unless_dry_run(input.dry_run)?;
    Err(AwsError::missing_parameter("RequesterPeeringConnectionOptions").into())
}
