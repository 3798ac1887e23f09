//! Tags: keys and values on any resource, given at its creation (`TagSpecification`) or later.

use std::collections::BTreeMap;

use mallee_aws::{
    AwsError,
    filter::{Attribute, Filter, Filters, Tagged},
    paging::{Asked, Page},
};
use mallee_store::{Error as StoreError, Tx, params};
use serde::{Deserialize, Serialize};

use crate::{
    Outcome, Refusal, actions,
    ec2::{subnet, unless_dry_run},
    service::Call,
};

actions![CreateTags => create, DeleteTags => delete, DescribeTags => describe];

pub const TABLES: &str = "
CREATE TABLE tag (
    account TEXT NOT NULL,
    resource TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (resource, name)
);
CREATE INDEX tag_of ON tag (account, resource);
";

/// Keys that mean something to the cloud: given with a resource, if at all, and never changed.
const OWN: &str = "mallee:";
/// Which of them a request may give to what it makes.
const MEANT: [(&str, &str); 1] = [("subnet", subnet::kind::TAG)];

/// AWS' bounds.
const MAX_TAGS: usize = 50;
const MAX_KEY: usize = 128;
const MAX_VALUE: usize = 256;

/// `Tag.N.Key`, `Tag.N.Value`; also how a resource shows its tags.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all(deserialize = "PascalCase", serialize = "camelCase"))]
pub struct Tag {
    pub key: String,
    #[serde(default)]
    pub value: String,
}

/// `TagSpecification.N`: tags for the things a request makes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TagSpecification {
    pub resource_type: String,
    #[serde(default)]
    pub tag: Vec<Tag>,
}

/// The tags asked for each kind in `kinds` (`instance`, `volume`, ...); any other kind is refused, as the request makes
/// none of it.
pub fn specified(
    specifications: &[TagSpecification],
    kinds: &[&'static str],
) -> Outcome<BTreeMap<&'static str, Vec<Tag>>> {
    let mut by_kind: BTreeMap<&'static str, Vec<Tag>> = BTreeMap::new();
    for specification in specifications {
        let kind = kinds.iter().find(|k| **k == specification.resource_type).ok_or_else(|| {
            AwsError::invalid_parameter_value(format!(
                "'{}' is not a valid taggable resource type for this operation.",
                specification.resource_type
            ))
        })?;
        check(&specification.tag)?;
        for tag in &specification.tag {
            if !MEANT.contains(&(*kind, tag.key.as_str())) {
                check_not_own(&tag.key)?;
            }
        }
        let tags: &mut Vec<Tag> = by_kind.entry(*kind).or_default();
        for tag in &specification.tag {
            // The answer would show two, and the store keeps one.
            if tags.iter().any(|other| other.key == tag.key) {
                return Err(
                    AwsError::invalid_parameter_value(format!("Duplicate tag key '{}' specified.", tag.key)).into()
                );
            }
            tags.push(tag.clone());
        }
    }
    Ok(by_kind)
}

fn check(tags: &[Tag]) -> Outcome<()> {
    for Tag { key, value } in tags {
        if key.is_empty() || key.chars().count() > MAX_KEY {
            return Err(
                AwsError::invalid_parameter_value(format!("Tag key must have 1 to {MAX_KEY} characters")).into()
            );
        }
        if value.chars().count() > MAX_VALUE {
            return Err(AwsError::invalid_parameter_value(format!(
                "Tag value exceeds the maximum length of {MAX_VALUE} characters"
            ))
            .into());
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(AwsError::invalid_parameter_value(
                "Tag keys starting with 'aws:' are reserved for internal use",
            )
            .into());
        }
    }
    Ok(())
}

fn check_not_own(key: &str) -> Outcome<()> {
    if !key.starts_with(OWN) {
        return Ok(());
    }
    let message = format!(
        "Tag keys starting with '{OWN}' mean something to this cloud, and '{key}' is not one that can be given or taken here"
    );
    Err(AwsError::invalid_parameter_value(message).into())
}

/// Puts tags on a resource, over those of the same key.
pub fn put(tx: &mut Tx<'_>, account: &str, resource: &str, tags: &[Tag]) -> Outcome<()> {
    for tag in tags {
        tx.execute(
            "INSERT INTO tag (account, resource, name, value) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (resource, name) DO UPDATE SET value = ?4",
            params![account, resource, tag.key, tag.value],
        )?;
    }
    let count: i64 =
        tx.query_one("SELECT COUNT(*) FROM tag WHERE resource = ?1", params![resource], |row| row.get(0))?;
    if count as usize > MAX_TAGS {
        return Err(Refusal::new("TagLimitExceeded", format!("{resource} may have at most {MAX_TAGS} tags")));
    }
    Ok(())
}

/// The resource is gone, and its tags with it.
pub fn drop_all(tx: &mut Tx<'_>, resource: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM tag WHERE resource = ?1", params![resource]).map(|_| ())
}

/// Tags by resource id.
#[derive(Debug, Default)]
pub struct TagsOf(BTreeMap<String, Vec<Tag>>);

impl TagsOf {
    pub fn extend(&mut self, other: TagsOf) {
        self.0.extend(other.0);
    }

    pub fn take(&mut self, resource: &str) -> Vec<Tag> {
        self.0.remove(resource).unwrap_or_default()
    }
}

/// The tags of one resource.
pub fn of(tx: &mut Tx<'_>, resource: &str) -> Result<Vec<Tag>, StoreError> {
    tx.query("SELECT name, value FROM tag WHERE resource = ?1 ORDER BY name", params![resource], |row| {
        Ok(Tag { key: row.get(0)?, value: row.get(1)? })
    })
}

/// All tags of an account's resources whose ids start with `prefix` (`i-`), in one query.
pub fn of_kind(tx: &mut Tx<'_>, account: &str, prefix: &str) -> Result<TagsOf, StoreError> {
    // The character after '-' in byte order, so that the range is everything that starts with the prefix.
    let end = format!("{}.", prefix.strip_suffix('-').unwrap_or(prefix));
    let mut tags = TagsOf::default();
    tx.each(
        "SELECT resource, name, value FROM tag WHERE account = ?1 AND resource >= ?2 AND resource < ?3 ORDER BY resource, name",
        params![account, prefix, end],
        |row| {
            tags.0.entry(row.get(0)?).or_default().push(Tag { key: row.get(1)?, value: row.get(2)? });
            Ok(std::ops::ControlFlow::Continue(()))
        },
    )?;
    Ok(tags)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateTags {
    dry_run: Option<bool>,
    resource_id: Vec<String>,
    tag: Vec<Tag>,
}

async fn create(call: &Call, input: CreateTags) -> Outcome<()> {
    check(&input.tag)?;
    input.tag.iter().try_for_each(|tag| check_not_own(&tag.key))?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("create tags", move |tx| {
            for id in &input.resource_id {
                super::resource::require(tx, &account, id)?;
                put(tx, &account, id, &input.tag)?;
                super::instance::tags_changed(tx, id)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    // Tags may be shown in an instance's metadata.
    call.cloud.pokes.instances.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteTags {
    dry_run: Option<bool>,
    resource_id: Vec<String>,
    #[serde(default)]
    tag: Vec<TagToDelete>,
}

/// Without a value the tag goes whatever its value is; with one (also the empty one) only if it has that value.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TagToDelete {
    key: String,
    value: Option<String>,
}

async fn delete(call: &Call, input: DeleteTags) -> Outcome<()> {
    input.tag.iter().try_for_each(|tag| check_not_own(&tag.key))?;
    let account = call.account().to_owned();
    call.cloud
        .store
        .write("delete tags", move |tx| {
            for id in &input.resource_id {
                super::resource::require(tx, &account, id)?;
                if input.tag.is_empty() {
                    let sql = "DELETE FROM tag WHERE resource = ?1 AND substr(name, 1, ?2) <> ?3";
                    tx.execute(sql, params![id, OWN.len() as i64, OWN])?;
                }
                for tag in &input.tag {
                    tx.execute(
                        "DELETE FROM tag WHERE resource = ?1 AND name = ?2 AND (value = ?3 OR ?3 IS NULL)",
                        params![id, tag.key, tag.value],
                    )?;
                }
                super::instance::tags_changed(tx, id)?;
            }
            unless_dry_run(input.dry_run)
        })
        .await?;
    call.cloud.pokes.instances.poke();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeTags {
    dry_run: Option<bool>,
    #[serde(default)]
    filter: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedTags {
    tag_set: Vec<TagDescription>,
    next_token: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TagDescription {
    resource_id: String,
    resource_type: &'static str,
    key: String,
    value: String,
    /// What the page goes on after; not shown.
    #[serde(skip)]
    position: String,
}

impl Tagged for TagDescription {
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        std::iter::once((self.key.as_str(), self.value.as_str()))
    }
}

const ATTRIBUTES: &[Attribute<TagDescription>] = &[
    ("key", |tag| vec![(&tag.key).into()]),
    ("resource-id", |tag| vec![(&tag.resource_id).into()]),
    ("resource-type", |tag| vec![tag.resource_type.into()]),
    ("value", |tag| vec![(&tag.value).into()]),
];

async fn describe(call: &Call, input: DescribeTags) -> Outcome<DescribedTags> {
    unless_dry_run(input.dry_run)?;
    let filters = Filters::compile(&input.filter, ATTRIBUTES)?;
    let context = super::paging_context(call, &input.filter);
    let asked = Asked { max_results: input.max_results, next_token: input.next_token.as_deref(), explicit_ids: 0 };
    let page = Page::open(&call.cloud.token_key, &context.iter().map(String::as_str).collect::<Vec<_>>(), asked)?;
    let account = call.account().to_owned();
    let mut tag_set: Vec<TagDescription> = call
        .cloud
        .store
        .read("describe tags", move |tx| {
            tx.query(
                "SELECT resource, name, value FROM tag WHERE account = ?1 ORDER BY resource, name",
                params![account],
                |row| {
                    let (resource_id, key): (String, String) = (row.get(0)?, row.get(1)?);
                    let position = format!("{resource_id} {key}");
                    let resource_type = super::resource::kind(&resource_id);
                    Ok(TagDescription { resource_id, resource_type, key, value: row.get(2)?, position })
                },
            )
        })
        .await
        .map_err(Refusal::from)?;
    tag_set.retain(|t| page.after().is_none_or(|after| t.position.as_str() > after) && filters.matches(t));
    let next_token = page.cut(&mut tag_set, |t| &t.position);
    Ok(DescribedTags { tag_set, next_token })
}
