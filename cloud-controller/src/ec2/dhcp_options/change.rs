//! Making sets of DHCP options, giving them to VPCs, and ending them.

use std::net::Ipv4Addr;

use mallee_aws::{
    AwsError,
    id::{DhcpOptionsId, VpcId},
};
use mallee_store::params;
use serde::{Deserialize, Serialize};

use super::{DhcpOptionsRow, OWN_DNS, Options, OptionsInfo, get, info, insert};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        tag::{self, TagSpecification},
        unless_dry_run, vpc,
    },
    service::Call,
};

actions![
    AssociateDhcpOptions => associate,
    CreateDhcpOptions => create,
    DeleteDhcpOptions => delete,
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateDhcpOptions {
    dry_run: Option<bool>,
    #[serde(default)]
    dhcp_configuration: Vec<DhcpConfiguration>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DhcpConfiguration {
    key: String,
    #[serde(default)]
    value: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreatedDhcpOptions {
    dhcp_options: OptionsInfo,
}

/// The options AWS knows, with at most four addresses each. Several addresses may come with commas in one value.
fn checked(asked: &[DhcpConfiguration]) -> Outcome<Options> {
    let wrong = |value: &str, key: &str| {
        let message = format!("Value ({value}) for parameter {key} is invalid.");
        Refusal::from(AwsError::invalid_parameter_value(message))
    };
    let mut options = Options::new();
    for DhcpConfiguration { key, value } in asked {
        let values: Vec<String> =
            value.iter().flat_map(|v| v.split(',')).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect();
        let all = values.join(",");
        let addresses = || values.iter().all(|v| v.parse::<Ipv4Addr>().is_ok()) && (1..=4).contains(&values.len());
        let fits = match key.as_str() {
            "domain-name" => {
                let allowed = |c: char| c.is_ascii_alphanumeric() || "-._ ".contains(c);
                values.len() == 1 && all.len() <= 253 && all.chars().all(allowed)
            }
            "domain-name-servers" => values == [OWN_DNS] || addresses(),
            "ntp-servers" | "netbios-name-servers" => addresses(),
            "netbios-node-type" => values.len() == 1 && ["1", "2", "4", "8"].contains(&all.as_str()),
            "ipv6-address-preferred-lease-time" => {
                return Err(
                    AwsError::unsupported(format!("DhcpConfiguration {key} is not supported by this cloud")).into()
                );
            }
            _ => return Err(wrong(key, "key")),
        };
        if !fits {
            return Err(wrong(&all, key));
        }
        if options.insert(key.clone(), values).is_some() {
            return Err(AwsError::invalid_parameter_value(format!("The option {key} is given twice")).into());
        }
    }
    if options.is_empty() {
        return Err(AwsError::missing_parameter("DhcpConfiguration").into());
    }
    Ok(options)
}

async fn create(call: &Call, input: CreateDhcpOptions) -> Outcome<CreatedDhcpOptions> {
    let options = checked(&input.dhcp_configuration)?;
    let tags = tag::specified(&input.tag_specification, &["dhcp-options"])?.remove("dhcp-options").unwrap_or_default();
    let (account, now) = (call.account().to_owned(), call.now);
    let (row, tag_set) = call
        .cloud
        .store
        .write("create DHCP options", move |tx| {
            let id = insert(tx, &account, &options, now)?;
            tag::put(tx, &account, id.as_str(), &tags)?;
            let tag_set = tag::of(tx, id.as_str())?;
            unless_dry_run(input.dry_run)?;
            Ok::<_, Refusal>((DhcpOptionsRow { id, account: account.clone(), options: options.clone() }, tag_set))
        })
        .await?;
    Ok(CreatedDhcpOptions { dhcp_options: info(row, tag_set) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AssociateDhcpOptions {
    dry_run: Option<bool>,
    dhcp_options_id: String,
    vpc_id: VpcId,
}

/// `default` is no options at all. Instances see it when they renew their lease.
async fn associate(call: &Call, input: AssociateDhcpOptions) -> Outcome<()> {
    let options: Option<DhcpOptionsId> = match input.dhcp_options_id.as_str() {
        "default" => None,
        id => Some(id.parse()?),
    };
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("associate DHCP options", move |tx| {
            if let Some(id) = &options {
                get(tx, &account, id)?;
            }
            let vpc = vpc::get(tx, &account, &input.vpc_id)?;
            vpc::set_dhcp_options(tx, &vpc.id, options.as_ref())?;
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteDhcpOptions {
    dry_run: Option<bool>,
    dhcp_options_id: DhcpOptionsId,
}

async fn delete(call: &Call, input: DeleteDhcpOptions) -> Outcome<()> {
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete DHCP options", move |tx| {
            let set = get(tx, &account, &input.dhcp_options_id)?;
            let id = set.id.as_str();
            if vpc::all(tx, Some(&account))?.iter().any(|vpc| vpc.dhcp_options.as_ref() == Some(&set.id)) {
                let message = format!("The dhcpOptions '{id}' has dependencies and cannot be deleted.");
                return Err(Refusal::new("DependencyViolation", message));
            }
            tx.execute("DELETE FROM dhcp_option WHERE dhcp_options = ?1", params![id])?;
            tx.execute("DELETE FROM dhcp_options WHERE id = ?1", params![id])?;
            tag::drop_all(tx, id)?;
            unless_dry_run(input.dry_run)
        })
        .await
}
