//! Taking elastic IPs, pointing them at instances and interfaces, and giving them back.

use std::net::Ipv4Addr;

use mallee_aws::{
    AwsError,
    id::{AddressAssociationId, AllocationId, InstanceId, NetworkInterfaceId},
};
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};

use super::{AddressRow, COLUMNS, named, read, touch_instance_of};
use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        interface::{self, InterfaceRow},
        internet_gateway, resource, subnet,
        tag::{self, TagSpecification},
        unless_dry_run,
    },
    network::{
        cidr::Address,
        outside::{self, Pool},
    },
    service::Call,
};

actions![
    AllocateAddress => allocate,
    AssociateAddress => associate,
    DisassociateAddress => disassociate,
    ReleaseAddress => release,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AllocateAddress {
    dry_run: Option<bool>,
    domain: Option<String>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Allocated {
    public_ip: String,
    domain: &'static str,
    allocation_id: AllocationId,
    public_ipv4_pool: &'static str,
    network_border_group: String,
}

/// `standard`, of EC2 classic, gets an address like any other, as AWS does in an account without classic.
async fn allocate(call: &Call, input: AllocateAddress) -> Outcome<Allocated> {
    if let Some(other) = input.domain.filter(|d| d != "vpc" && d != "standard") {
        return Err(AwsError::invalid_parameter_value(format!("Invalid value '{other}' for domain.")).into());
    }
    let kind = "elastic-ip";
    let tags = tag::specified(&input.tag_specification, &[kind])?.remove(kind).unwrap_or_default();
    let (account, now, cloud) = (call.account().to_owned(), call.now, call.cloud.clone());
    let (allocation_id, public_ip) = call
        .cloud
        .store
        .write("allocate an address", move |tx| {
            let AddressRow { id, public_ip, .. } = take(tx, &cloud.config, &account, now)?;
            tag::put(tx, &account, id.as_str(), &tags)?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((id, public_ip))
        })
        .await?;
    Ok(Allocated {
        public_ip: public_ip.to_string(),
        domain: "vpc",
        allocation_id,
        public_ipv4_pool: "amazon",
        network_border_group: call.cloud.region().to_owned(),
    })
}

/// Takes an address out of the pool for an account.
pub fn take(tx: &mut Tx<'_>, config: &Config, account: &str, now: i64) -> Outcome<AddressRow> {
    let most = config.max_addresses;
    let count: u64 =
        tx.query_one("SELECT COUNT(*) FROM address WHERE account = ?1", params![account], |row| row.get(0))?;
    if count >= most {
        let message = format!("The maximum number of addresses has been reached ({most}).");
        return Err(Refusal::new("AddressLimitExceeded", message));
    }
    let id = AllocationId::from_random(rand::random());
    let public_ip = outside::take(tx, &config.network, Pool::Elastic, id.as_str())?
        .ok_or_else(|| Refusal::new("InsufficientAddressCapacity", "All elastic IPs of this cloud are in use."))?;
    tx.execute(
        "INSERT INTO address (id, account, public_ip, created) VALUES (?1, ?2, ?3, ?4)",
        params![id.as_str(), account, Address(public_ip), now],
    )?;
    let account = account.to_owned();
    Ok(AddressRow { id, account, public_ip, interface: None, private_ip: None, association: None, created: now })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssociateAddress {
    dry_run: Option<bool>,
    allocation_id: Option<AllocationId>,
    public_ip: Option<String>,
    instance_id: Option<InstanceId>,
    network_interface_id: Option<NetworkInterfaceId>,
    private_ip_address: Option<Ipv4Addr>,
    allow_reassociation: Option<bool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Associated {
    #[serde(rename = "return")]
    done: bool,
    association_id: AddressAssociationId,
}

/// An address that points elsewhere is moved only if the request allows it. What the interface had before, elastic or
/// automatic, it loses. Asking again for what is there answers the association that is there.
async fn associate(call: &Call, input: AssociateAddress) -> Outcome<Associated> {
    let account = call.account().to_owned();
    let association_id = call
        .cloud
        .store
        .write("associate an address", move |tx| {
            let address = named(tx, &account, input.allocation_id.as_ref(), input.public_ip.as_deref())?;
            let (target, private_ip) = target(tx, &account, &input)?;
            // By public IP, as in EC2 classic, an address always moved.
            let may_move = input.allow_reassociation.unwrap_or(input.allocation_id.is_none());
            let association = point(tx, &address, &target, private_ip, may_move)?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>(association)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(Associated { done: true, association_id })
}

/// The interface the address shall point at, named itself or an instance's, and which address of it.
fn target(tx: &mut Tx<'_>, account: &str, input: &AssociateAddress) -> Outcome<(InterfaceRow, Ipv4Addr)> {
    let row = match (&input.instance_id, &input.network_interface_id) {
        (Some(_), Some(_)) => {
            let message = "You may specify an instance id or a network interface id, but not both in the same call";
            return Err(AwsError::invalid_parameter_combination(message).into());
        }
        (None, None) => {
            return Err(AwsError::missing_parameter("InstanceId").into());
        }
        (None, Some(id)) => interface::get(tx, account, id)?,
        (Some(id), None) => {
            resource::require(tx, account, id.as_str())?;
            let mut rows = interface::of_instance(tx, id)?;
            if rows.is_empty() {
                return Err(not_valid_state(id));
            }
            if rows.len() > 1 && input.private_ip_address.is_none() {
                let message =
                    format!("There are multiple interfaces attached to instance '{id}'. Name an interface ID.");
                return Err(Refusal::new("InvalidInstanceID", message));
            }
            let wanted = input.private_ip_address;
            let at =
                rows.iter().position(|r| wanted.is_none_or(|ip| r.addresses().any(|a| a == ip))).unwrap_or_default();
            rows.swap_remove(at)
        }
    };
    if let Some(ip) = input.private_ip_address.filter(|ip| !row.addresses().any(|a| a == *ip)) {
        let message = format!("The private IP address {ip} is not assigned to the network interface '{}'", row.id);
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    if row.kind != interface::Kind::Interface {
        let message = format!("You do not have permission to access the specified resource {}.", row.id);
        return Err(Refusal::new("AuthFailure", message));
    }
    subnet::kind::require_routed(tx, &row.subnet, "public addresses")?;
    if internet_gateway::of_vpc(tx, &row.vpc)?.is_none() {
        let message = format!("Network {} is not attached to any internet gateway", row.vpc);
        return Err(Refusal::new("Gateway.NotAttached", message));
    }
    match &row.instance {
        Some(id) if row.released => Err(not_valid_state(id)),
        _ => {
            let private_ip = input.private_ip_address.unwrap_or(row.address);
            Ok((row, private_ip))
        }
    }
}

fn not_valid_state(instance: &InstanceId) -> Refusal {
    let message = format!("The instance '{instance}' is not in a valid state for this operation.");
    Refusal::new("IncorrectInstanceState", message)
}

/// Points an address at one of an interface. `may_move`: also one that points elsewhere, or instead of one that is there.
pub fn point(
    tx: &mut Tx<'_>,
    address: &AddressRow,
    target: &InterfaceRow,
    private_ip: Ipv4Addr,
    may_move: bool,
) -> Outcome<AddressAssociationId> {
    match (&address.interface, &address.association) {
        (Some(interface), Some(association)) if *interface == target.id && address.private_ip == Some(private_ip) => {
            return Ok(association.clone());
        }
        (Some(interface), _) => {
            if !may_move {
                let message = format!("resource {} is already associated with associate-id {}", address.id, interface);
                return Err(Refusal::new("Resource.AlreadyAssociated", message));
            }
            leave(tx, address, interface)?;
        }
        (None, _) => {}
    }
    if let Some(elastic) = target.elastics().find(|e| e.private_ip == private_ip) {
        if !may_move {
            let message =
                format!("resource {} is already associated with associate-id {}", target.id, elastic.association);
            return Err(Refusal::new("Resource.AlreadyAssociated", message));
        }
        super::let_go(tx, &elastic.allocation)?;
    }
    if private_ip == target.address {
        interface::drop_automatic(tx, target)?;
    }
    let association = AddressAssociationId::from_random(rand::random());
    tx.execute(
        "UPDATE address SET interface = ?2, private_ip = ?3, association = ?4 WHERE id = ?1",
        params![address.id.as_str(), target.id.as_str(), Address(private_ip), association.as_str()],
    )?;
    touch_instance_of(tx, target)?;
    Ok(association)
}

/// Points at this interface no more. An address of a NAT gateway is the gateway's while it lives.
fn leave(tx: &mut Tx<'_>, address: &AddressRow, id: &NetworkInterfaceId) -> Outcome<()> {
    let row = interface::get(tx, &address.account, id)?;
    if row.kind != interface::Kind::Interface {
        let message = format!("You do not have permission to access the specified resource {}.", address.id);
        return Err(Refusal::new("AuthFailure", message));
    }
    super::let_go(tx, &address.id)?;
    touch_instance_of(tx, &row)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DisassociateAddress {
    dry_run: Option<bool>,
    association_id: Option<AddressAssociationId>,
    public_ip: Option<String>,
}

async fn disassociate(call: &Call, input: DisassociateAddress) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("disassociate an address", move |tx| {
            let address = match (&input.association_id, &input.public_ip) {
                (Some(id), None) => tx
                    .query_opt(
                        &format!("SELECT {COLUMNS} FROM address WHERE account = ?1 AND association = ?2"),
                        params![account, id.as_str()],
                        read,
                    )?
                    .ok_or_else(|| no_association(id.as_str()))?,
                (None, Some(ip)) => {
                    let address = named(tx, &account, None, Some(ip))?;
                    if address.interface.is_none() {
                        return Err(no_association(ip));
                    }
                    address
                }
                (Some(_), Some(_)) => {
                    let message = "You may specify public IP or association id, but not both in the same call";
                    return Err(AwsError::invalid_parameter_combination(message).into());
                }
                (None, None) => return Err(AwsError::missing_parameter("AssociationId").into()),
            };
            if let Some(interface) = &address.interface {
                leave(tx, &address, interface)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    call.cloud.pokes.instances.poke();
    Ok(())
}

fn no_association(id: &str) -> Refusal {
    Refusal::new("InvalidAssociationID.NotFound", format!("The association ID '{id}' does not exist"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ReleaseAddress {
    dry_run: Option<bool>,
    allocation_id: Option<AllocationId>,
    public_ip: Option<String>,
    network_border_group: Option<String>,
}

async fn release(call: &Call, input: ReleaseAddress) -> Outcome<()> {
    if let Some(other) = input.network_border_group.filter(|g| g != call.cloud.region()) {
        let message = format!("'{other}' is not the network border group of this address");
        return Err(AwsError::invalid_parameter_value(message).into());
    }
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("release an address", move |tx| {
            let address = named(tx, &account, input.allocation_id.as_ref(), input.public_ip.as_deref())?;
            if address.interface.is_some() {
                let message = format!("Address {} is in use.", address.public_ip);
                return Err(Refusal::new("InvalidIPAddress.InUse", message));
            }
            tx.execute("DELETE FROM address WHERE id = ?1", params![address.id.as_str()])?;
            outside::free(tx, address.id.as_str())?;
            tag::drop_all(tx, address.id.as_str())?;
            unless_dry_run(input.dry_run)
        })
        .await
}
