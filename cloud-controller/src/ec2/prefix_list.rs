//! Prefix lists: named sets of networks that rules of security groups and routes refer to. A list keeps every version it had.
//!
//! One list is the cloud's own: `com.amazonaws.REGION.s3`, the addresses S3 has for instances. It is no row: configuration
//! says what is in it.

use std::collections::BTreeMap;

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::PrefixListId,
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Config, Outcome, Refusal, actions,
    ec2::{
        Id,
        listing::{self, Wanted},
        route_table, security_group,
        tag::{self, Tag},
        unless_dry_run,
    },
    network::{Cidr, Net},
    service::Call,
};

pub mod change;

actions![
    DescribeManagedPrefixLists => describe,
    DescribePrefixLists => describe_services,
    GetManagedPrefixListAssociations => associations,
    GetManagedPrefixListEntries => entries,
];

pub const TABLES: &str = "
CREATE TABLE prefix_list (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    is_ipv6 BIGINT NOT NULL,
    max_entries BIGINT NOT NULL,
    version BIGINT NOT NULL,
    state TEXT NOT NULL
);
CREATE INDEX prefix_list_of ON prefix_list (account);
CREATE TABLE prefix_list_entry (
    prefix_list TEXT NOT NULL REFERENCES prefix_list (id),
    version BIGINT NOT NULL,
    cidr TEXT NOT NULL,
    description TEXT,
    PRIMARY KEY (prefix_list, version, cidr)
);
";

/// A prefix list as its rows are.
#[derive(Debug, Clone)]
pub struct PrefixListRow {
    pub id: PrefixListId,
    /// `AWS` of the cloud's own.
    pub account: String,
    pub name: String,
    pub is_ipv6: bool,
    pub max_entries: i64,
    pub version: i64,
    /// What the last change of it came to: `create-complete`, `modify-complete`, `restore-complete`.
    pub state: String,
    /// Of its newest version, in order.
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub cidr: Net,
    pub description: Option<String>,
}

/// Who the cloud's own lists belong to.
pub const CLOUD: &str = "AWS";

impl PrefixListRow {
    pub fn nets(&self) -> impl Iterator<Item = Net> {
        self.entries.iter().map(|e| e.cidr)
    }
}

/// `com.amazonaws.REGION.s3`.
pub fn s3_service(config: &Config) -> String {
    format!("com.amazonaws.{}.s3", config.region)
}

/// The list of S3's addresses. None: instances cannot reach S3, as nothing but this machine can.
pub fn of_s3(config: &Config) -> Option<PrefixListRow> {
    let address = config.s3_address()?;
    let name = s3_service(config);
    let mut random = [0; 9];
    random.copy_from_slice(&Sha256::digest(&name)[..9]);
    Some(PrefixListRow {
        id: PrefixListId::from_random(random),
        account: CLOUD.into(),
        name,
        is_ipv6: false,
        max_entries: 1,
        version: 1,
        state: "create-complete".into(),
        entries: vec![Entry { cidr: Cidr::new(address, 32).into(), description: None }],
    })
}

const COLUMNS: &str = "id, account, name, is_ipv6, max_entries, version, state";

fn read(row: &Row<'_>) -> Result<PrefixListRow, StoreError> {
    Ok(PrefixListRow {
        id: row.get::<Id<_>>(0)?.0,
        account: row.get(1)?,
        name: row.get(2)?,
        is_ipv6: row.get(3)?,
        max_entries: row.get(4)?,
        version: row.get(5)?,
        state: row.get(6)?,
        entries: Vec::new(),
    })
}

/// The lists of an account with their entries; of all accounts when None. The cloud's own are not among them.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<PrefixListRow>, StoreError> {
    let whose = listing::whose(account);
    let mut lists =
        tx.query(&format!("SELECT {COLUMNS} FROM prefix_list WHERE {whose} ORDER BY id"), params![account], read)?;
    let found = tx.query(
        &format!(
            "SELECT e.prefix_list, e.cidr, e.description FROM prefix_list_entry e
             JOIN prefix_list l ON l.id = e.prefix_list AND l.version = e.version WHERE {whose}"
        ),
        params![account],
        |row| Ok((row.get::<Id<_>>(0)?.0, Entry { cidr: row.get(1)?, description: row.get(2)? })),
    )?;
    let mut entries: BTreeMap<PrefixListId, Vec<Entry>> = BTreeMap::new();
    for (list, entry) in found {
        entries.entry(list).or_default().push(entry);
    }
    for list in &mut lists {
        list.entries = sorted(entries.remove(&list.id).unwrap_or_default());
    }
    Ok(lists)
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|e| e.cidr);
    entries
}

/// One of the account's, with the entries of its newest version.
pub fn get(tx: &mut Tx<'_>, account: &str, id: &PrefixListId) -> Outcome<PrefixListRow> {
    let sql = format!("SELECT {COLUMNS} FROM prefix_list WHERE account = ?1 AND id = ?2");
    let found = tx.query_opt(&sql, params![account, id.as_str()], read)?;
    let mut list = found.ok_or_else(|| not_found(id.as_str()))?;
    list.entries = version_of(tx, id, list.version)?;
    Ok(list)
}

/// One that rules and routes of the account may refer to: its own, or the cloud's.
pub fn referable(tx: &mut Tx<'_>, config: &Config, account: &str, id: &PrefixListId) -> Outcome<PrefixListRow> {
    match of_s3(config).filter(|list| list.id == *id) {
        Some(list) => Ok(list),
        None => get(tx, account, id),
    }
}

fn version_of(tx: &mut Tx<'_>, id: &PrefixListId, version: i64) -> Result<Vec<Entry>, StoreError> {
    let entries = tx.query(
        "SELECT cidr, description FROM prefix_list_entry WHERE prefix_list = ?1 AND version = ?2",
        params![id.as_str(), version],
        |row| Ok(Entry { cidr: row.get(0)?, description: row.get(1)? }),
    )?;
    Ok(sorted(entries))
}

pub fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidPrefixListID.NotFound", format!("The prefix list ID '{id}' does not exist"))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListInfo {
    prefix_list_id: PrefixListId,
    address_family: &'static str,
    state: String,
    prefix_list_arn: String,
    prefix_list_name: String,
    /// The cloud's own show none, nor a version.
    max_entries: Option<i64>,
    version: Option<i64>,
    tag_set: Vec<Tag>,
    owner_id: String,
}

impl Tagged for ListInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<ListInfo>] = &[
    ("owner-id", |list| vec![(&list.owner_id).into()]),
    ("prefix-list-id", |list| vec![list.prefix_list_id.as_str().into()]),
    ("prefix-list-name", |list| vec![(&list.prefix_list_name).into()]),
];

fn info(call: &Call, list: PrefixListRow, tag_set: Vec<Tag>) -> ListInfo {
    let is_own = list.account != CLOUD;
    let owner = if is_own { list.account.as_str() } else { "aws" };
    ListInfo {
        prefix_list_arn: call.cloud.arn("ec2", owner, &format!("prefix-list/{}", list.id)),
        prefix_list_id: list.id,
        address_family: if list.is_ipv6 { "IPv6" } else { "IPv4" },
        state: list.state,
        prefix_list_name: list.name,
        max_entries: is_own.then_some(list.max_entries),
        version: is_own.then_some(list.version),
        tag_set,
        owner_id: list.account,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeManagedPrefixLists {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    prefix_list_id: Vec<PrefixListId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedManagedPrefixLists {
    prefix_list_set: Vec<ListInfo>,
    next_token: Option<String>,
}

async fn describe(call: &Call, input: DescribeManagedPrefixLists) -> Outcome<DescribedManagedPrefixLists> {
    let account = call.account().to_owned();
    let (mut lists, mut tags) = call
        .cloud
        .store
        .read("describe prefix lists", move |tx| {
            Ok::<_, StoreError>((all(tx, Some(&account))?, tag::of_kind(tx, &account, PrefixListId::PREFIX)?))
        })
        .await?;
    lists.extend(of_s3(&call.cloud.config));
    lists.sort_by(|a, b| a.id.cmp(&b.id));
    let infos = lists
        .into_iter()
        .map(|list| {
            let tag_set = tags.take(list.id.as_str());
            info(call, list, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.prefix_list_id.iter().map(PrefixListId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (prefix_list_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |list| list.prefix_list_id.as_str(), not_found, infos)?;
    Ok(DescribedManagedPrefixLists { prefix_list_set, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribePrefixLists {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    prefix_list_id: Vec<PrefixListId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedPrefixLists {
    prefix_list_set: Vec<ServiceInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceInfo {
    prefix_list_id: PrefixListId,
    prefix_list_name: String,
    cidr_set: Vec<String>,
}

impl Tagged for ServiceInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

const SERVICE_ATTRIBUTES: &[Attribute<ServiceInfo>] = &[
    ("prefix-list-id", |list| vec![list.prefix_list_id.as_str().into()]),
    ("prefix-list-name", |list| vec![(&list.prefix_list_name).into()]),
];

/// Only those of services, as AWS' first form of this call.
async fn describe_services(call: &Call, input: DescribePrefixLists) -> Outcome<DescribedPrefixLists> {
    let infos = of_s3(&call.cloud.config)
        .into_iter()
        .map(|list| ServiceInfo {
            cidr_set: list.nets().map(|net| net.to_string()).collect(),
            prefix_list_id: list.id,
            prefix_list_name: list.name,
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.prefix_list_id.iter().map(PrefixListId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (prefix_list_set, next_token) =
        listing::page(call, &wanted, SERVICE_ATTRIBUTES, |list| list.prefix_list_id.as_str(), not_found, infos)?;
    Ok(DescribedPrefixLists { prefix_list_set, next_token })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetManagedPrefixListEntries {
    dry_run: Option<bool>,
    prefix_list_id: PrefixListId,
    target_version: Option<i64>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GotEntries {
    entry_set: Vec<EntryInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryInfo {
    cidr: String,
    description: Option<String>,
}

impl Tagged for EntryInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

async fn entries(call: &Call, input: GetManagedPrefixListEntries) -> Outcome<GotEntries> {
    let (account, cloud) = (call.account().to_owned(), call.cloud.clone());
    let (id, target) = (input.prefix_list_id, input.target_version);
    let found = call
        .cloud
        .store
        .read("get the entries of a prefix list", move |tx| {
            let list = referable(tx, &cloud.config, &account, &id)?;
            match target {
                Some(version) if !(1..=list.version).contains(&version) => {
                    Err(change::no_such_version(&list.id, version))
                }
                Some(version) if list.account != CLOUD => Ok(version_of(tx, &list.id, version)?),
                _ => Ok(list.entries),
            }
        })
        .await?;
    // Pages go by text, not by address.
    let mut infos: Vec<EntryInfo> =
        found.into_iter().map(|e| EntryInfo { cidr: e.cidr.to_string(), description: e.description }).collect();
    infos.sort_by(|a, b| a.cidr.cmp(&b.cidr));
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &[],
        ids: Vec::new(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (entry_set, next_token) = listing::page(call, &wanted, &[], |entry| &entry.cidr, not_found, infos)?;
    Ok(GotEntries { entry_set, next_token })
}

/// The security groups and route tables of an account that refer to a list.
fn referring(tx: &mut Tx<'_>, account: &str, id: &PrefixListId) -> Result<Vec<String>, StoreError> {
    let mut found = security_group::rule::groups_referring_to(tx, account, id)?;
    found.extend(route_table::tables_leading_to(tx, account, id)?);
    Ok(found)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetManagedPrefixListAssociations {
    dry_run: Option<bool>,
    prefix_list_id: PrefixListId,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GotAssociations {
    prefix_list_association_set: Vec<Association>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Association {
    resource_id: String,
    resource_owner: String,
}

impl Tagged for Association {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::empty()
    }
}

async fn associations(call: &Call, input: GetManagedPrefixListAssociations) -> Outcome<GotAssociations> {
    let (account, id) = (call.account().to_owned(), input.prefix_list_id);
    let mut found = call
        .cloud
        .store
        .read("find what refers to a prefix list", move |tx| {
            let list = get(tx, &account, &id)?;
            Ok::<_, Refusal>(referring(tx, &account, &list.id)?)
        })
        .await?;
    found.sort();
    let infos = found
        .into_iter()
        .map(|resource_id| Association { resource_id, resource_owner: call.account().to_owned() })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &[],
        ids: Vec::new(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (prefix_list_association_set, next_token) =
        listing::page(call, &wanted, &[], |one| &one.resource_id, not_found, infos)?;
    Ok(GotAssociations { prefix_list_association_set, next_token })
}

/// What [`change`] answers with.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed {
    prefix_list: ListInfo,
}

fn shown(
    tx: &mut Tx<'_>,
    account: &str,
    id: &PrefixListId,
    dry_run: Option<bool>,
) -> Outcome<(PrefixListRow, Vec<Tag>)> {
    let tags = tag::of(tx, id.as_str())?;
    let list = get(tx, account, id)?;
    unless_dry_run(dry_run)?;
    Ok((list, tags))
}

#[cfg(test)]
mod tests;
