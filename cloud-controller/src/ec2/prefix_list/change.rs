//! Making prefix lists, changing them by versions, and ending them.

use std::collections::BTreeMap;

use mallee_aws::{AwsError, id::PrefixListId};
use mallee_store::{Tx, params};
use serde::Deserialize;

use super::{COLUMNS, Changed, Entry, PrefixListRow, get, info, referring, shown, version_of};
use crate::{
    Outcome, Refusal, actions,
    ec2::{
        client_token,
        security_group::rule,
        tag::{self, TagSpecification},
        unless_dry_run,
    },
    network::Net,
    service::Call,
};

actions![
    CreateManagedPrefixList => create,
    DeleteManagedPrefixList => delete,
    ModifyManagedPrefixList => modify,
    RestoreManagedPrefixListVersion => restore,
];

/// AWS' default.
const MAX_ENTRIES: i64 = 1000;
/// AWS' bound, of lists in an account.
const MAX_LISTS: usize = 100;
/// AWS' bound, of entries in one request.
const MAX_AT_ONCE: usize = 100;
/// Names of the cloud's own.
const RESERVED: &str = "com.amazonaws";

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AddEntry {
    cidr: String,
    description: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateManagedPrefixList {
    dry_run: Option<bool>,
    prefix_list_name: String,
    max_entries: i64,
    address_family: String,
    #[serde(default)]
    entry: Vec<AddEntry>,
    #[serde(default)]
    tag_specification: Vec<TagSpecification>,
    client_token: Option<String>,
}

fn wrong(message: String) -> Refusal {
    AwsError::invalid_parameter_value(message).into()
}

fn check_name(name: &str) -> Outcome<()> {
    if name.is_empty() || name.chars().count() > 255 || name.starts_with(RESERVED) {
        return Err(wrong(format!(
            "The prefix list name ({name}) must have 1 to 255 characters and not begin {RESERVED}"
        )));
    }
    Ok(())
}

fn check_most(most: i64) -> Outcome<()> {
    if !(1..=MAX_ENTRIES).contains(&most) {
        return Err(wrong(format!("MaxEntries ({most}) must be 1 to {MAX_ENTRIES}")));
    }
    Ok(())
}

/// The entries a request says, each of the list's family and once.
fn read_entries(asked: &[AddEntry], is_ipv6: bool) -> Outcome<Vec<Entry>> {
    if asked.len() > MAX_AT_ONCE {
        return Err(wrong(format!("A request may have at most {MAX_AT_ONCE} entries")));
    }
    let mut entries: Vec<Entry> = Vec::new();
    for entry in asked {
        let cidr = read_cidr(&entry.cidr, is_ipv6)?;
        if entry.description.as_ref().is_some_and(|d| d.chars().count() > 255) {
            return Err(wrong("A description of an entry may have 255 characters".into()));
        }
        if entries.iter().any(|e| e.cidr == cidr) {
            return Err(wrong(format!("The CIDR {cidr} is there more than once")));
        }
        entries.push(Entry { cidr, description: entry.description.clone().filter(|d| !d.is_empty()) });
    }
    Ok(entries)
}

fn read_cidr(text: &str, is_ipv6: bool) -> Outcome<Net> {
    let family = if is_ipv6 { "IPv6" } else { "IPv4" };
    let net: Option<Net> = text.parse().ok();
    net.filter(|net| net.v6().is_some() == is_ipv6)
        .ok_or_else(|| wrong(format!("The CIDR {text} is no {family} network")))
}

fn check_count(count: usize, most: i64) -> Outcome<()> {
    if i64::try_from(count).is_ok_and(|count| count <= most) {
        return Ok(());
    }
    let message = format!("The prefix list would have {count} entries; it may have {most}");
    Err(Refusal::new("PrefixListMaxEntriesExceeded", message))
}

fn write_version(tx: &mut Tx<'_>, id: &PrefixListId, version: i64, entries: &[Entry]) -> Outcome<()> {
    for entry in entries {
        tx.execute(
            "INSERT INTO prefix_list_entry (prefix_list, version, cidr, description) VALUES (?1, ?2, ?3, ?4)",
            params![id.as_str(), version, entry.cidr, entry.description],
        )?;
    }
    Ok(())
}

async fn create(call: &Call, input: CreateManagedPrefixList) -> Outcome<Changed> {
    let is_ipv6 = match input.address_family.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        other => return Err(wrong(format!("Value ({other}) for parameter addressFamily is invalid."))),
    };
    check_name(&input.prefix_list_name)?;
    check_most(input.max_entries)?;
    let entries = read_entries(&input.entry, is_ipv6)?;
    check_count(entries.len(), input.max_entries)?;
    let tags = tag::specified(&input.tag_specification, &["prefix-list"])?.remove("prefix-list").unwrap_or_default();
    let token = client_token::Given::of(call, input.client_token.as_deref())?;
    let account = call.account().to_owned();
    let (list, tag_set) = call
        .cloud
        .store
        .write("create a prefix list", move |tx| {
            let dry_run = input.dry_run == Some(true);
            let made = token.as_ref().filter(|_| !dry_run).map(|t| t.made(tx)).transpose()?.flatten();
            if let Some(id) = made {
                return shown(tx, &account, &id.parse().map_err(Refusal::from)?, None);
            }
            if super::all(tx, Some(&account))?.len() >= MAX_LISTS {
                let message = format!("The maximum number of prefix lists has been reached ({MAX_LISTS}).");
                return Err(Refusal::new("PrefixListLimitExceeded", message));
            }
            let id = PrefixListId::from_random(rand::random());
            tx.execute(
                &format!("INSERT INTO prefix_list ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, 1, 'create-complete')"),
                params![id.as_str(), account, input.prefix_list_name, is_ipv6, input.max_entries],
            )?;
            write_version(tx, &id, 1, &entries)?;
            tag::put(tx, &account, id.as_str(), &tags)?;
            if let Some(token) = token.as_ref().filter(|_| !dry_run) {
                token.remember(tx, id.as_str())?;
            }
            shown(tx, &account, &id, input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Changed { prefix_list: info(call, list, tag_set) })
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RemoveEntry {
    cidr: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyManagedPrefixList {
    dry_run: Option<bool>,
    prefix_list_id: PrefixListId,
    current_version: Option<i64>,
    prefix_list_name: Option<String>,
    max_entries: Option<i64>,
    #[serde(default)]
    add_entry: Vec<AddEntry>,
    #[serde(default)]
    remove_entry: Vec<RemoveEntry>,
}

/// The version somebody saw must still be the newest: two who change a list at once do not undo each other.
fn check_current(list: &PrefixListRow, asked: Option<i64>) -> Outcome<()> {
    match asked {
        None => Err(AwsError::missing_parameter("CurrentVersion").into()),
        Some(version) if version == list.version => Ok(()),
        Some(version) => {
            let message =
                format!("The prefix list {} has version {}, not the current version {version}", list.id, list.version);
            Err(Refusal::new("PrefixListVersionMismatch", message))
        }
    }
}

pub fn no_such_version(id: &PrefixListId, version: i64) -> Refusal {
    wrong(format!("The prefix list {id} has no version {version}"))
}

/// Entries after those in `gone` went and those in `added` came, or changed their description.
fn changed(list: &PrefixListRow, added: Vec<Entry>, gone: &[Net]) -> Outcome<Vec<Entry>> {
    let mut entries: BTreeMap<Net, Entry> = list.entries.iter().map(|e| (e.cidr, e.clone())).collect();
    for net in gone {
        if entries.remove(net).is_none() {
            return Err(wrong(format!("The CIDR {net} is not in the prefix list {}", list.id)));
        }
        if added.iter().any(|e| e.cidr == *net) {
            return Err(wrong(format!("The CIDR {net} cannot be added and removed in the same request")));
        }
    }
    entries.extend(added.into_iter().map(|e| (e.cidr, e)));
    Ok(entries.into_values().collect())
}

fn next_version(tx: &mut Tx<'_>, list: &PrefixListRow, state: &str, entries: &[Entry]) -> Outcome<()> {
    let version = list.version + 1;
    write_version(tx, &list.id, version, entries)?;
    tx.execute(
        "UPDATE prefix_list SET version = ?2, state = ?3 WHERE id = ?1",
        params![list.id.as_str(), version, state],
    )?;
    Ok(())
}

async fn modify(call: &Call, input: ModifyManagedPrefixList) -> Outcome<Changed> {
    if let Some(name) = &input.prefix_list_name {
        check_name(name)?;
    }
    input.max_entries.map_or(Ok(()), check_most)?;
    let changes_entries = !input.add_entry.is_empty() || !input.remove_entry.is_empty();
    if changes_entries && input.max_entries.is_some() {
        let message = "MaxEntries cannot be changed in the same request as entries";
        return Err(AwsError::invalid_parameter_combination(message).into());
    }
    let account = call.account().to_owned();
    let (list, tag_set) = call
        .cloud
        .store
        .write("modify a prefix list", move |tx| {
            let list = get(tx, &account, &input.prefix_list_id)?;
            if changes_entries {
                check_current(&list, input.current_version)?;
                let added = read_entries(&input.add_entry, list.is_ipv6)?;
                let gone: Outcome<Vec<Net>> =
                    input.remove_entry.iter().map(|e| read_cidr(&e.cidr, list.is_ipv6)).collect();
                let entries = changed(&list, added, &gone?)?;
                check_count(entries.len(), list.max_entries)?;
                next_version(tx, &list, "modify-complete", &entries)?;
            }
            if let Some(name) = &input.prefix_list_name {
                tx.execute("UPDATE prefix_list SET name = ?2 WHERE id = ?1", params![list.id.as_str(), name])?;
            }
            if let Some(most) = input.max_entries {
                check_count(list.entries.len(), most)?;
                tx.execute("UPDATE prefix_list SET max_entries = ?2 WHERE id = ?1", params![list.id.as_str(), most])?;
                // A rule counts as many as its list may have.
                rule::check_groups_of_list(tx, &list.id)?;
            }
            shown(tx, &account, &list.id, input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Changed { prefix_list: info(call, list, tag_set) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestoreManagedPrefixListVersion {
    dry_run: Option<bool>,
    prefix_list_id: PrefixListId,
    previous_version: i64,
    current_version: i64,
}

/// What was restored is a new version again.
async fn restore(call: &Call, input: RestoreManagedPrefixListVersion) -> Outcome<Changed> {
    let account = call.account().to_owned();
    let (list, tag_set) = call
        .cloud
        .store
        .write("restore a version of a prefix list", move |tx| {
            let list = get(tx, &account, &input.prefix_list_id)?;
            check_current(&list, Some(input.current_version))?;
            if !(1..list.version).contains(&input.previous_version) {
                return Err(no_such_version(&list.id, input.previous_version));
            }
            let entries = version_of(tx, &list.id, input.previous_version)?;
            check_count(entries.len(), list.max_entries)?;
            next_version(tx, &list, "restore-complete", &entries)?;
            shown(tx, &account, &list.id, input.dry_run)
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Changed { prefix_list: info(call, list, tag_set) })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteManagedPrefixList {
    dry_run: Option<bool>,
    prefix_list_id: PrefixListId,
}

/// Not while anything refers to it.
async fn delete(call: &Call, input: DeleteManagedPrefixList) -> Outcome<Changed> {
    let account = call.account().to_owned();
    let (list, tag_set) = call
        .cloud
        .store
        .write("delete a prefix list", move |tx| {
            let mut list = get(tx, &account, &input.prefix_list_id)?;
            if let Some(user) = referring(tx, &account, &list.id)?.first() {
                let message = format!("The prefix list '{}' is referred to by {user} and cannot be deleted.", list.id);
                return Err(Refusal::new("DependencyViolation", message));
            }
            let tags = tag::of(tx, list.id.as_str())?;
            tx.execute("DELETE FROM prefix_list_entry WHERE prefix_list = ?1", params![list.id.as_str()])?;
            tx.execute("DELETE FROM prefix_list WHERE id = ?1", params![list.id.as_str()])?;
            tag::drop_all(tx, list.id.as_str())?;
            list.state = "delete-complete".into();
            unless_dry_run(input.dry_run)?;
            Ok((list, tags))
        })
        .await?;
    call.cloud.pokes.network.poke();
    Ok(Changed { prefix_list: info(call, list, tag_set) })
}
