//! Resources by id alone, for the actions that take any kind: tags, and telling somebody else's id from none at all.

use mallee_store::{Tx, params};

use crate::{Outcome, Refusal};

/// A kind of resource that can be tagged: prefix of its ids, its name in `ResourceType`, where its rows are, and the code
/// for an id that is not there (or not yours: the two must look the same).
struct Kind {
    prefix: &'static str,
    name: &'static str,
    table: &'static str,
    not_found: &'static str,
}

/// Every taggable kind. Tables have columns `id` and `account`.
const KINDS: &[Kind] = &[
    Kind { prefix: "ami-", name: "image", table: "image", not_found: "InvalidAMIID.NotFound" },
    Kind { prefix: "aki-", name: "image", table: "image", not_found: "InvalidAMIID.NotFound" },
    Kind { prefix: "ari-", name: "image", table: "image", not_found: "InvalidAMIID.NotFound" },
    Kind { prefix: "i-", name: "instance", table: "instance", not_found: "InvalidInstanceID.NotFound" },
    Kind {
        prefix: "import-ami-",
        name: "import-image-task",
        table: "import_task",
        not_found: "InvalidConversionTaskId",
    },
    Kind {
        prefix: "import-snap-",
        name: "import-snapshot-task",
        table: "import_task",
        not_found: "InvalidConversionTaskId",
    },
    Kind { prefix: "key-", name: "key-pair", table: "key_pair", not_found: "InvalidKeyPair.NotFound" },
    Kind { prefix: "snap-", name: "snapshot", table: "snapshot", not_found: "InvalidSnapshot.NotFound" },
    Kind { prefix: "vol-", name: "volume", table: "volume", not_found: "InvalidVolume.NotFound" },
    Kind { prefix: "acl-", name: "network-acl", table: "network_acl", not_found: "InvalidNetworkAclID.NotFound" },
    Kind { prefix: "fl-", name: "vpc-flow-log", table: "flow_log", not_found: "InvalidFlowLogId.NotFound" },
    Kind { prefix: "dopt-", name: "dhcp-options", table: "dhcp_options", not_found: "InvalidDhcpOptionID.NotFound" },
    Kind { prefix: "eipalloc-", name: "elastic-ip", table: "address", not_found: "InvalidAllocationID.NotFound" },
    Kind {
        prefix: "eni-",
        name: "network-interface",
        table: "network_interface",
        not_found: "InvalidNetworkInterfaceID.NotFound",
    },
    Kind {
        prefix: "igw-",
        name: "internet-gateway",
        table: "internet_gateway",
        not_found: "InvalidInternetGatewayID.NotFound",
    },
    Kind { prefix: "nat-", name: "natgateway", table: "nat_gateway", not_found: "NatGatewayNotFound" },
    Kind {
        prefix: "pcx-",
        name: "vpc-peering-connection",
        table: "vpc_peering",
        not_found: "InvalidVpcPeeringConnectionID.NotFound",
    },
    Kind { prefix: "pl-", name: "prefix-list", table: "prefix_list", not_found: "InvalidPrefixListID.NotFound" },
    Kind {
        prefix: "eigw-",
        name: "egress-only-internet-gateway",
        table: "egress_only_gateway",
        not_found: "InvalidGatewayID.NotFound",
    },
    Kind { prefix: "vpce-", name: "vpc-endpoint", table: "vpc_endpoint", not_found: "InvalidVpcEndpointId.NotFound" },
    Kind { prefix: "rtb-", name: "route-table", table: "route_table", not_found: "InvalidRouteTableID.NotFound" },
    Kind { prefix: "sg-", name: "security-group", table: "security_group", not_found: "InvalidGroup.NotFound" },
    Kind {
        prefix: "sgr-",
        name: "security-group-rule",
        table: "security_group_rule",
        not_found: "InvalidSecurityGroupRuleId.NotFound",
    },
    Kind { prefix: "subnet-", name: "subnet", table: "subnet", not_found: "InvalidSubnetID.NotFound" },
    Kind { prefix: "vpc-", name: "vpc", table: "vpc", not_found: "InvalidVpcID.NotFound" },
];

fn of(id: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| id.starts_with(k.prefix))
}

/// The name of the kind an id is of, as `DescribeTags` shows it.
pub fn kind(id: &str) -> &'static str {
    of(id).map_or("", |k| k.name)
}

/// Refuses an id that is not a resource of this account.
pub fn require(tx: &mut Tx<'_>, account: &str, id: &str) -> Outcome<()> {
    let kind = of(id).ok_or_else(|| Refusal::new("InvalidID", format!("The ID '{id}' is not valid")))?;
    let found = tx.query_opt(
        &format!("SELECT 1 FROM {} WHERE id = ?1 AND account = ?2", kind.table),
        params![id, account],
        |row| row.get::<i64>(0),
    )?;
    match found {
        Some(_) => Ok(()),
        None => Err(Refusal::new(kind.not_found, format!("The {} ID '{id}' does not exist", kind.name))),
    }
}
