//! Buckets: a name in the whole cloud, an owner, an access control list, and configurations, a file each.

use std::sync::Arc;

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_policy::Policy;
use mallee_service::Body;
use mallee_store::{Row, Tx, params};
use serde::{Deserialize, Serialize};

pub mod cors;
pub mod encryption;
pub mod known_policies;
pub mod lifecycle;
pub mod logging;
pub mod notification;
pub mod object_lock;
pub mod ownership;
pub mod policy;
pub mod public_access;
pub mod request_payment;
pub mod settings;
pub mod tagging;
pub mod versioning;
pub mod website;

pub use object_lock::LockDefault;
pub use settings::{Ownership, Settings};
pub use versioning::Versioning;

use known_policies::KnownPolicies;

use super::{Owner, acl, done, iso_time, multipart, set, xml, xml_text};
use crate::{
    Error, Walrus,
    access::{Action, BucketAccess, ObjectAccess, Resource, allow},
    call::Call,
    error::refuse,
    principal::Acl,
};

/// How many buckets one account may have, as at AWS by default.
const MOST_BUCKETS: i64 = 10_000;

pub const TABLES: &str = "
    CREATE TABLE bucket (
        id BIGINT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        account TEXT NOT NULL,
        created BIGINT NOT NULL,
        location TEXT NOT NULL,
        acl TEXT NOT NULL
    );
    CREATE INDEX bucket_by_owner ON bucket (owner, name);
";

/// A bucket's number: rows of objects refer to it, so a new bucket of an old name has none of the old one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BucketId(pub i64);

impl mallee_store::ToValue for BucketId {
    fn to_value(&self) -> mallee_store::Value<'_> {
        mallee_store::Value::Integer(self.0)
    }
}

impl mallee_store::FromValue for BucketId {
    fn from_value(value: mallee_store::Value<'_>) -> Result<Self, String> {
        i64::from_value(value).map(BucketId)
    }
}

#[derive(Debug, Clone)]
pub struct Bucket {
    pub id: BucketId,
    pub name: String,
    /// Canonical id.
    pub owner: String,
    pub account: String,
    pub created: i64,
    pub location: String,
    pub acl: Acl,
    pub versioning: Versioning,
    /// Object lock, and what it does by default; `None` where the bucket was made without it.
    pub lock: Option<LockDefault>,
    pub settings: Settings,
    pub policy: Option<Arc<Policy>>,
}

impl Bucket {
    /// What it says about access.
    pub fn access(&self) -> BucketAccess<'_> {
        BucketAccess {
            name: &self.name,
            owner: &self.owner,
            account: &self.account,
            acl: &self.acl,
            policy: self.policy.as_deref(),
            ownership: self.settings.ownership.unwrap_or_default(),
            block: self.settings.block.unwrap_or_default(),
            requester_pays: self.settings.requester_pays,
        }
    }

    pub fn resource(&self) -> Resource<'_> {
        Resource::Bucket(self.access())
    }

    /// A key in it, with what is there.
    pub fn key<'a>(&'a self, key: &'a str, object: Option<ObjectAccess<'a>>) -> Resource<'a> {
        Resource::Key { bucket: self.access(), key, object }
    }
}

const COLUMNS: &str = "id, name, owner, account, created, location, acl, versioning, object_lock, settings";

/// A row's lists and configurations, as the store has them.
struct Texts {
    acl: String,
    lock: String,
    settings: String,
}

fn from_row(row: &Row<'_>) -> Result<(Bucket, Texts), mallee_store::Error> {
    let bucket = Bucket {
        id: row.get(0)?,
        name: row.get(1)?,
        owner: row.get(2)?,
        account: row.get(3)?,
        created: row.get(4)?,
        location: row.get(5)?,
        acl: Acl::default(),
        versioning: Versioning::from_number(row.get(7)?),
        lock: None,
        settings: Settings::default(),
        policy: None,
    };
    Ok((bucket, Texts { acl: row.get(6)?, lock: row.get(8)?, settings: row.get(9)? }))
}

fn with_texts((mut bucket, texts): (Bucket, Texts), known: &KnownPolicies) -> Result<Bucket, Error> {
    bucket.acl = acl::from_text(&texts.acl, &bucket.owner)?;
    bucket.lock = object_lock::from_text(&texts.lock)?;
    bucket.settings = Settings::from_text(&texts.settings)?;
    if let Some(text) = &bucket.settings.policy {
        let broken = |e| Error::Internal(format!("the policy of {}: {e}", bucket.name));
        bucket.policy = Some(known.parsed(bucket.id, text).map_err(broken)?);
    }
    Ok(bucket)
}

/// The bucket of this name, or `NoSuchBucket`.
pub fn find(tx: &mut Tx<'_>, name: &str) -> Result<Bucket, Error> {
    find_known(tx, &KnownPolicies::default(), name)
}

/// [`find`], for what is done with every request.
pub fn find_known(tx: &mut Tx<'_>, known: &KnownPolicies, name: &str) -> Result<Bucket, Error> {
    let sql = format!("SELECT {COLUMNS} FROM bucket WHERE name = ?1");
    with_texts(tx.query_opt(&sql, params![name], from_row)?.ok_or_else(|| refuse::no_such_bucket(name))?, known)
}

/// The bucket of this number, unless it is gone.
pub fn find_by_id(tx: &mut Tx<'_>, id: BucketId) -> Result<Option<Bucket>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM bucket WHERE id = ?1");
    tx.query_opt(&sql, params![id], from_row)?.map(|row| with_texts(row, &KnownPolicies::default())).transpose()
}

/// That the bucket is the account's whom the client believes it to be.
pub fn check_expected_owner(call: &Call, bucket: &Bucket) -> Result<(), Error> {
    match call.header("x-amz-expected-bucket-owner")? {
        Some(account) if account != bucket.account => Err(refuse::access_denied()),
        _ => Ok(()),
    }
}

/// The request's bucket, once the principal may do `action` to it.
pub async fn opened(walrus: &Walrus, call: &Call, action: Action) -> Result<Bucket, Error> {
    let (name, known) = (call.target.bucket.clone(), walrus.known_policies.clone());
    let bucket = walrus.store.look_up("find a bucket", move |tx| find_known(tx, &known, &name)).await?;
    check_expected_owner(call, &bucket)?;
    if !allow(&call.principal, action, bucket.resource()) {
        return Err(refuse::access_denied());
    }
    Ok(bucket)
}

/// AWS' rules for names; what breaks them could not be part of a host name, whose labels neither begin nor end with a
/// hyphen.
fn check_name(name: &str) -> Result<(), Error> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    let good = (3..=63).contains(&bytes.len())
        && bytes.iter().all(|b| plain(*b))
        && edge(bytes.first())
        && edge(bytes.last())
        && !["..", ".-", "-."].iter().any(|pair| name.contains(pair))
        && !like_an_address(name)
        && !["xn--", "sthree-"].iter().any(|prefix| name.starts_with(prefix))
        && !["-s3alias", "--ol-s3"].iter().any(|suffix| name.ends_with(suffix));
    if good {
        return Ok(());
    }
    Err(Error::Refused(
        AwsError::bad_request("InvalidBucketName", "The specified bucket is not valid.").with_field("BucketName", name),
    ))
}

/// Four numbers, whether or not such an address can be.
fn like_an_address(name: &str) -> bool {
    let numbers = name.split('.').filter(|label| label.bytes().all(|b| b.is_ascii_digit()));
    name.split('.').count() == 4 && numbers.count() == 4
}

pub async fn list(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        owner: Owner,
        buckets: Buckets,
        #[serde(skip_serializing_if = "Option::is_none")]
        continuation_token: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prefix: Option<String>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Buckets {
        bucket: Vec<Listed>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listed {
        name: String,
        creation_date: String,
        bucket_region: String,
    }

    let Some(account) =
        call.principal.account().filter(|_| allow(&call.principal, Action::ListAllMyBuckets, Resource::Service))
    else {
        return Err(refuse::access_denied());
    };
    let most = match call.query.get("max-buckets") {
        None => MOST_BUCKETS,
        Some(text) => text.parse::<i64>().ok().filter(|n| (1..=MOST_BUCKETS).contains(n)).ok_or_else(|| {
            refuse::argument("max-buckets", text, "Argument max-buckets must be an integer between 1 and 10000.")
        })?,
    };
    // The token is the last name shown: it says nothing the client has not been told.
    let after = call.query.get("continuation-token").unwrap_or_default().to_owned();
    let prefix = call.query.get("prefix").unwrap_or_default().to_owned();
    let (owner, wanted_prefix) = (account.canonical_id.clone(), prefix.clone());
    let mut rows = walrus
        .store
        .read("list buckets", move |tx| {
            let mut found = Vec::new();
            let sql =
                format!("SELECT {COLUMNS} FROM bucket WHERE owner = ?1 AND name > ?2 AND name >= ?3 ORDER BY name");
            tx.each(&sql, params![owner, after, wanted_prefix], |row| {
                let (bucket, _) = from_row(row)?;
                if !bucket.name.starts_with(&wanted_prefix) || found.len() as i64 > most {
                    return Ok(std::ops::ControlFlow::Break(()));
                }
                found.push(bucket);
                Ok(std::ops::ControlFlow::Continue(()))
            })?;
            Ok::<_, Error>(found)
        })
        .await?;
    let more = rows.len() as i64 > most;
    rows.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    let answer = Answer {
        owner: account.into(),
        continuation_token: rows.last().filter(|_| more).map(|bucket| bucket.name.clone()),
        buckets: Buckets {
            bucket: rows
                .into_iter()
                .map(|b| Listed { name: b.name, creation_date: iso_time(b.created), bucket_region: b.location })
                .collect(),
        },
        prefix: Some(prefix).filter(|p| !p.is_empty()),
    };
    xml("ListAllMyBucketsResult", &answer)
}

/// Clients that know of no regions sign for this one. Where it is meant, a bucket that is there already and is theirs is
/// no error, as it has always been at AWS; everywhere else it is.
const OLDEST_REGION: &str = "us-east-1";

fn taken() -> Error {
    refuse::coded(
        "BucketAlreadyExists",
        409,
        "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Please select a different name and try again.",
    )
}

pub async fn create(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Configuration {
        location_constraint: Option<String>,
    }

    if !allow(&call.principal, Action::CreateBucket, Resource::Service) {
        return Err(refuse::access_denied());
    }
    let Some(account) = call.principal.account().cloned() else { return Err(refuse::access_denied()) };
    check_name(&call.target.bucket)?;
    let locks = call.header("x-amz-bucket-object-lock-enabled")?.is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let configuration: Configuration = if body.is_empty() {
        Configuration::default()
    } else {
        document::parse(&body, "CreateBucketConfiguration", document::Limits::SMALL)?
    };
    let anywhere = configuration.location_constraint.is_none() && call.region.as_deref() == Some(OLDEST_REGION);
    // Any region's name is taken: there is one, and clients have theirs built in.
    let location = configuration.location_constraint.filter(|l| !l.is_empty()).unwrap_or_else(|| walrus.region());
    if location.len() > 64 || !location.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(refuse::coded("InvalidLocationConstraint", 400, "The specified location-constraint is not valid"));
    }
    let acl = acl::asked(walrus, call, &account.canonical_id, &account.canonical_id)?
        .unwrap_or_else(|| Acl::private(&account.canonical_id));
    let ownership = ownership::asked(call)?;
    if ownership == Some(Ownership::BucketOwnerEnforced) && acl != Acl::private(&account.canonical_id) {
        return Err(ownership::lists_are_off());
    }
    let text = acl::to_text(&acl, &account.canonical_id)?;
    // A lock is on a version, so a bucket with locks keeps them all.
    let (versioning, object_lock) = match locks {
        true => (Versioning::Enabled, object_lock::to_text(&LockDefault::default())?),
        false => (Versioning::Never, String::new()),
    };
    let settings = Settings { ownership, ..Settings::default() }.to_text()?;
    let (name, now) = (call.target.bucket.clone(), call.now);
    let id = BucketId(i64::from(rand::random::<u32>()) << 31 | i64::from(rand::random::<u32>() >> 1));
    walrus
        .store
        .write("create a bucket", move |tx| {
            let made = tx.execute(
                "INSERT INTO bucket (id, name, owner, account, created, location, acl, versioning, object_lock, settings)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
                params![
                    id,
                    name,
                    account.canonical_id,
                    account.account,
                    now,
                    location,
                    text,
                    versioning.number(),
                    object_lock,
                    settings
                ],
            )?;
            if made == 1 {
                return Ok(());
            }
            let there = find(tx, &name)?;
            if there.owner != account.canonical_id {
                return Err(taken());
            }
            match anywhere {
                true if there.acl == acl && there.lock.is_some() == locks => Ok(()),
                true => Err(taken()),
                false => Err(refuse::coded(
                    "BucketAlreadyOwnedByYou",
                    409,
                    "Your previous request to create the named bucket succeeded and you already own it.",
                )),
            }
        })
        .await?;
    let mut response = done(StatusCode::OK);
    set(&mut response, "location", &format!("/{}", call.target.bucket))?;
    Ok(response)
}

pub async fn head(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::ListBucket).await?;
    let mut response = done(StatusCode::OK);
    set(&mut response, "x-amz-bucket-region", &bucket.location)?;
    set(&mut response, "x-amz-access-point-alias", "false")?;
    Ok(response)
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::DeleteBucket).await?;
    let (id, now) = (bucket.id, call.now);
    let outcome = walrus
        .store
        .write("delete a bucket", move |tx| {
            multipart::abandon_all(tx, id, now)?;
            tx.execute("DELETE FROM bucket WHERE id = ?1", params![id])?;
            Ok::<_, Error>(())
        })
        .await;
    match outcome {
        // An object's row refers to it.
        Err(Error::Store(mallee_store::Error::Reference { .. })) => Err(Error::Refused(
            AwsError::new("BucketNotEmpty", 409, "The bucket you tried to delete is not empty")
                .with_field("BucketName", &bucket.name),
        )),
        outcome => outcome.map(|()| done(StatusCode::NO_CONTENT)),
    }
}

pub async fn location(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketLocation).await?;
    // The oldest region has no name here, by the manual.
    let location = if bucket.location == OLDEST_REGION { "" } else { &bucket.location };
    Ok(xml_text(document::render_text("LocationConstraint", location)))
}

pub async fn get_acl(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketAcl).await?;
    acl::answer(walrus, &bucket.owner, &bucket.acl)
}

pub async fn put_acl(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketAcl).await?;
    let acl = acl::from_request(walrus, call, &bucket.owner, &bucket.owner).await?;
    ownership::check_acl(&bucket, &acl)?;
    let (id, text) = (bucket.id, acl::to_text(&acl, &bucket.owner)?);
    let changed = walrus
        .store
        .write("change a bucket's ACL", move |tx| {
            Ok::<_, Error>(tx.execute("UPDATE bucket SET acl = ?2 WHERE id = ?1", params![id, text])?)
        })
        .await?;
    if changed == 0 {
        return Err(refuse::no_such_bucket(&bucket.name));
    }
    Ok(done(StatusCode::OK))
}

/// The rows of the operation table that do nothing but say that there is nothing.
pub async fn configuration(walrus: &Walrus, call: &Call, action: Action) -> Result<Bucket, Error> {
    if call.principal.is_anonymous() {
        return Err(refuse::access_denied());
    }
    opened(walrus, call, action).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_aws_rules() {
        for good in ["abc", "a.b-c", "123", "my-bucket.example", &"a".repeat(63)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "ab",
            "Abc",
            "a_b",
            "-ab",
            "ab-",
            "a..b",
            "a.-b",
            "a-.b",
            "192.168.0.1",
            "192.168.001.999",
            "xn--a",
            "b-s3alias",
            "é12",
            &"a".repeat(64),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
