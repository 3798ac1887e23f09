//! The entries of network ACLs.

use mallee_aws::{AwsError, id::NetworkAclId};
use mallee_store::{Tx, params};
use serde::Deserialize;

use super::{EntryRow, LAST, NetworkAclRow, get};
use crate::{
    Outcome, Refusal, actions,
    ec2::{security_group::Protocol, unless_dry_run},
    network::{Cidr, Cidr6, Net},
    service::Call,
};

actions![
    CreateNetworkAclEntry => create,
    DeleteNetworkAclEntry => delete,
    ReplaceNetworkAclEntry => replace,
];

/// AWS' default, in each direction.
const MAX_PER_DIRECTION: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateNetworkAclEntry {
    dry_run: Option<bool>,
    network_acl_id: NetworkAclId,
    rule_number: i64,
    protocol: String,
    rule_action: String,
    egress: bool,
    cidr_block: Option<String>,
    icmp: Option<Icmp>,
    port_range: Option<Range>,
    #[serde(rename = "Ipv6CidrBlock")]
    ipv6_cidr_block: Option<String>,
}

/// It takes the same parameters.
type ReplaceNetworkAclEntry = CreateNetworkAclEntry;

/// `Icmp.Type`, `Icmp.Code`; -1 is any.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Icmp {
    r#type: Option<i64>,
    code: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Range {
    from: Option<i64>,
    to: Option<i64>,
}

fn wrong(message: String) -> Refusal {
    AwsError::invalid_parameter_value(message).into()
}

/// The number of a protocol as entries keep it.
fn number_of(protocol: &Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "6",
        Protocol::Udp => "17",
        Protocol::Icmp => "1",
        Protocol::Icmpv6 => "58",
        _ => "",
    }
}

impl CreateNetworkAclEntry {
    fn checked(&self) -> Outcome<EntryRow> {
        if !(1..LAST).contains(&self.rule_number) {
            return Err(wrong(format!("The rule number {} is not between 1 and {}", self.rule_number, LAST - 1)));
        }
        let allow = match self.rule_action.as_str() {
            "allow" => true,
            "deny" => false,
            other => return Err(wrong(format!("Value ({other}) for parameter ruleAction is invalid."))),
        };
        let cidr: Net = match (self.cidr_block.as_deref(), self.ipv6_cidr_block.as_deref()) {
            (Some(text), None) => Cidr::asked(text)?.into(),
            (None, Some(text)) => Cidr6::asked(text)?.into(),
            (None, None) => return Err(AwsError::missing_parameter("CidrBlock").into()),
            (Some(_), Some(_)) => {
                let message = "Only one of CidrBlock and Ipv6CidrBlock may be given";
                return Err(AwsError::invalid_parameter_combination(message).into());
            }
        };
        let protocol: Protocol = self.protocol.parse()?;
        let range = match protocol {
            Protocol::All | Protocol::Number(_) => None,
            Protocol::Tcp | Protocol::Udp => Some(self.ports()?),
            Protocol::Icmp | Protocol::Icmpv6 => Some(self.types()?),
        };
        let protocol = match protocol {
            Protocol::All => "-1".to_owned(),
            Protocol::Number(n) => n.to_string(),
            named => number_of(&named).to_owned(),
        };
        Ok(EntryRow { egress: self.egress, number: self.rule_number, protocol, allow, cidr, range })
    }

    fn ports(&self) -> Outcome<(i64, i64)> {
        let range = self.port_range.as_ref().and_then(|r| r.from.zip(r.to));
        let (from, to) = range.ok_or_else(|| AwsError::missing_parameter("PortRange"))?;
        if !(0..=65535).contains(&from) || !(from..=65535).contains(&to) {
            return Err(wrong(format!("Invalid TCP/UDP port range ({from}:{to})")));
        }
        Ok((from, to))
    }

    fn types(&self) -> Outcome<(i64, i64)> {
        let icmp = self.icmp.as_ref().and_then(|i| i.r#type.zip(i.code.or(Some(-1))));
        let (kind, code) = icmp.ok_or_else(|| AwsError::missing_parameter("Icmp"))?;
        if !(-1..=255).contains(&kind) || !(-1..=255).contains(&code) || (kind == -1 && code != -1) {
            return Err(wrong(format!("Invalid ICMP type and code ({kind}:{code})")));
        }
        Ok((kind, code))
    }
}

fn find(acl: &NetworkAclRow, egress: bool, number: i64) -> Option<&EntryRow> {
    acl.entries.iter().find(|e| e.egress == egress && e.number == number)
}

fn no_such_entry(number: i64) -> Refusal {
    let message = format!("The network acl entry identified by {number} does not exist");
    Refusal::new("InvalidNetworkAclEntry.NotFound", message)
}

/// Writes an entry, over one of its number.
pub fn put(tx: &mut Tx<'_>, acl: &NetworkAclRow, entry: &EntryRow) -> Outcome<()> {
    let (first, last) = (entry.range.map(|r| r.0), entry.range.map(|r| r.1));
    tx.execute(
        "INSERT INTO network_acl_entry (network_acl, egress, number, protocol, allow, cidr, first, last)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (network_acl, egress, number)
         DO UPDATE SET protocol = ?4, allow = ?5, cidr = ?6, first = ?7, last = ?8",
        params![acl.id.as_str(), entry.egress, entry.number, entry.protocol, entry.allow, entry.cidr, first, last],
    )?;
    Ok(())
}

async fn create(call: &Call, input: CreateNetworkAclEntry) -> Outcome<()> {
    let entry = input.checked()?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("create a network ACL entry", move |tx| {
            let acl = get(tx, &account, &input.network_acl_id)?;
            if find(&acl, entry.egress, entry.number).is_some() {
                let message = format!("The network acl entry identified by {} already exists.", entry.number);
                return Err(Refusal::new("NetworkAclEntryAlreadyExists", message));
            }
            if acl.entries.iter().filter(|e| e.egress == entry.egress).count() >= MAX_PER_DIRECTION {
                let message = format!("The maximum number of entries has been reached ({MAX_PER_DIRECTION}).");
                return Err(Refusal::new("NetworkAclEntryLimitExceeded", message));
            }
            put(tx, &acl, &entry)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

async fn replace(call: &Call, input: ReplaceNetworkAclEntry) -> Outcome<()> {
    let entry = input.checked()?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("replace a network ACL entry", move |tx| {
            let acl = get(tx, &account, &input.network_acl_id)?;
            find(&acl, entry.egress, entry.number).ok_or_else(|| no_such_entry(entry.number))?;
            put(tx, &acl, &entry)?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteNetworkAclEntry {
    dry_run: Option<bool>,
    network_acl_id: NetworkAclId,
    rule_number: i64,
    egress: bool,
}

async fn delete(call: &Call, input: DeleteNetworkAclEntry) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete a network ACL entry", move |tx| {
            let acl = get(tx, &account, &input.network_acl_id)?;
            let (number, egress) = (input.rule_number, input.egress);
            find(&acl, egress, number).ok_or_else(|| no_such_entry(number))?;
            tx.execute(
                "DELETE FROM network_acl_entry WHERE network_acl = ?1 AND egress = ?2 AND number = ?3",
                params![acl.id.as_str(), egress, number],
            )?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}
