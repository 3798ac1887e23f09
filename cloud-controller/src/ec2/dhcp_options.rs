//! DHCP options: what a VPC's instances are told with their addresses. Each account has the default set; what is served is
//! the router, the MTU and, where the cloud has a resolver for its instances, that.

use std::collections::BTreeMap;

use mallee_aws::{
    filter::{Attribute, Filter, Tagged},
    id::DhcpOptionsId,
};
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{
        Id,
        listing::{self, Wanted},
        tag::{self, Tag},
    },
    service::Call,
};

pub mod change;

actions![DescribeDhcpOptions => describe];

pub const TABLES: &str = "
CREATE TABLE dhcp_options (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    created BIGINT NOT NULL
);
CREATE INDEX dhcp_options_of ON dhcp_options (account);
CREATE TABLE dhcp_option (
    dhcp_options TEXT NOT NULL REFERENCES dhcp_options (id),
    name TEXT NOT NULL,
    position BIGINT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (dhcp_options, name, position)
);
";

/// A set of DHCP options as its rows are.
#[derive(Debug, Clone)]
pub struct DhcpOptionsRow {
    pub id: DhcpOptionsId,
    pub account: String,
    /// `domain-name` → values in order.
    pub options: BTreeMap<String, Vec<String>>,
}

fn read(row: &Row<'_>) -> Result<DhcpOptionsRow, StoreError> {
    Ok(DhcpOptionsRow { id: row.get::<Id<_>>(0)?.0, account: row.get(1)?, options: BTreeMap::new() })
}

/// The sets of an account; of all accounts when None.
pub fn all(tx: &mut Tx<'_>, account: Option<&str>) -> Result<Vec<DhcpOptionsRow>, StoreError> {
    let sql = format!("SELECT id, account FROM dhcp_options WHERE {} ORDER BY id", listing::whose(account));
    let mut sets = tx.query(&sql, params![account], read)?;
    for set in &mut sets {
        fill(tx, set)?;
    }
    Ok(sets)
}

fn fill(tx: &mut Tx<'_>, set: &mut DhcpOptionsRow) -> Result<(), StoreError> {
    let options = tx.query(
        "SELECT name, value FROM dhcp_option WHERE dhcp_options = ?1 ORDER BY name, position",
        params![set.id.as_str()],
        |row| Ok((row.get::<String>(0)?, row.get(1)?)),
    )?;
    for (name, value) in options {
        set.options.entry(name).or_default().push(value);
    }
    Ok(())
}

pub fn get(tx: &mut Tx<'_>, account: &str, id: &DhcpOptionsId) -> Outcome<DhcpOptionsRow> {
    let sql = "SELECT id, account FROM dhcp_options WHERE account = ?1 AND id = ?2";
    tx.query_opt(sql, params![account, id.as_str()], read)?.ok_or_else(|| not_found(id.as_str()))
}

/// Options by name, each with its values in order.
type Options = BTreeMap<String, Vec<String>>;

fn insert(tx: &mut Tx<'_>, account: &str, options: &Options, now: i64) -> Result<DhcpOptionsId, StoreError> {
    let id = DhcpOptionsId::from_random(rand::random());
    tx.execute(
        "INSERT INTO dhcp_options (id, account, created) VALUES (?1, ?2, ?3)",
        params![id.as_str(), account, now],
    )?;
    for (name, values) in options {
        for (position, value) in (0i64..).zip(values) {
            tx.execute(
                "INSERT INTO dhcp_option (dhcp_options, name, position, value) VALUES (?1, ?2, ?3, ?4)",
                params![id.as_str(), name, position, value],
            )?;
        }
    }
    Ok(id)
}

/// The value that stands for the cloud's own resolver.
pub const OWN_DNS: &str = "AmazonProvidedDNS";

/// The default set of an account: the one it has, or a new one.
pub fn default_of(tx: &mut Tx<'_>, account: &str, region: &str, now: i64) -> Outcome<DhcpOptionsId> {
    let options = Options::from([
        ("domain-name".to_owned(), vec![format!("{region}.compute.internal")]),
        ("domain-name-servers".to_owned(), vec![OWN_DNS.to_owned()]),
    ]);
    if let Some(set) = all(tx, Some(account))?.into_iter().find(|set| set.options == options) {
        return Ok(set.id);
    }
    Ok(insert(tx, account, &options, now)?)
}

fn not_found(id: &str) -> Refusal {
    Refusal::new("InvalidDhcpOptionID.NotFound", format!("The dhcpOption ID '{id}' does not exist"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeDhcpOptions {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    #[serde(default)]
    dhcp_options_id: Vec<DhcpOptionsId>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedDhcpOptions {
    dhcp_options_set: Vec<OptionsInfo>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OptionsInfo {
    dhcp_options_id: DhcpOptionsId,
    owner_id: String,
    dhcp_configuration_set: Vec<Configuration>,
    tag_set: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    key: String,
    value_set: Vec<AttributeValue>,
}

#[derive(Serialize)]
struct AttributeValue {
    value: String,
}

impl Tagged for OptionsInfo {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tag_set.iter().map(|t| (t.key.as_str(), t.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<OptionsInfo>] = &[
    ("dhcp-options-id", |set| vec![set.dhcp_options_id.as_str().into()]),
    ("key", |set| set.dhcp_configuration_set.iter().map(|c| (&c.key).into()).collect()),
    ("owner-id", |set| vec![(&set.owner_id).into()]),
    ("value", |set| {
        set.dhcp_configuration_set.iter().flat_map(|c| c.value_set.iter().map(|v| (&v.value).into())).collect()
    }),
];

fn info(set: DhcpOptionsRow, tag_set: Vec<Tag>) -> OptionsInfo {
    let configuration = |(key, values): (String, Vec<String>)| Configuration {
        key,
        value_set: values.into_iter().map(|value| AttributeValue { value }).collect(),
    };
    OptionsInfo {
        dhcp_options_id: set.id,
        owner_id: set.account,
        dhcp_configuration_set: set.options.into_iter().map(configuration).collect(),
        tag_set,
    }
}

async fn describe(call: &Call, input: DescribeDhcpOptions) -> Outcome<DescribedDhcpOptions> {
    let account = call.account().to_owned();
    let (sets, mut tags) = call
        .cloud
        .store
        .read("describe DHCP options", move |tx| {
            Ok::<_, StoreError>((all(tx, Some(&account))?, tag::of_kind(tx, &account, DhcpOptionsId::PREFIX)?))
        })
        .await?;
    let infos = sets
        .into_iter()
        .map(|set| {
            let tag_set = tags.take(set.id.as_str());
            info(set, tag_set)
        })
        .collect();
    let wanted = Wanted {
        dry_run: input.dry_run,
        filter: &input.filter,
        ids: input.dhcp_options_id.iter().map(DhcpOptionsId::as_str).collect(),
        max_results: input.max_results,
        next_token: input.next_token.as_deref(),
    };
    let (dhcp_options_set, next_token) =
        listing::page(call, &wanted, ATTRIBUTES, |set| set.dhcp_options_id.as_str(), not_found, infos)?;
    Ok(DescribedDhcpOptions { dhcp_options_set, next_token })
}
