//! Server access logging: who asked what of a bucket, delivered as objects into a bucket of the same owner.
//!
//! A line is made when a request is answered, and is a row before the answer goes out: what a client has read, the log
//! has. From the row on it is delivered once ([`Delivery`]).

mod delivery;
mod line;

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_policy::Context;
use mallee_service::Body;
use mallee_store::{Store, Tx, params};
use serde::{Deserialize, Serialize};

use super::{Bucket, find, opened, settings::Ownership, settings::update};
use crate::{
    Error, Walrus,
    access::{Action, allow},
    call::Call,
    error::refuse,
    principal::{Account, Grant, Permission, Principal},
    s3::{acl, done, xml},
};

pub use delivery::Delivery;
pub use line::{Logged, line};

pub const TABLES: &str = "
    CREATE TABLE access_log (
        id TEXT PRIMARY KEY,
        bucket BIGINT NOT NULL REFERENCES bucket (id) ON DELETE CASCADE,
        at BIGINT NOT NULL,
        line TEXT NOT NULL
    );
    CREATE INDEX access_log_by_bucket ON access_log (bucket, at);
";

/// Where a bucket's log goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logging {
    pub bucket: String,
    pub prefix: String,
    /// None: none was named, and it is the simple one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<KeyFormat>,
    /// Who else has the objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
}

/// How the objects' keys go on after the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyFormat {
    /// One after the other.
    Simple,
    /// By day and source.
    Partitioned(DateSource),
}

/// Whose day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DateSource {
    EventTime,
    DeliveryTime,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Status<Grants> {
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    logging_enabled: Option<Enabled<Grants>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Enabled<Grants> {
    target_bucket: String,
    target_prefix: String,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    target_grants: Option<Grants>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_object_key_format: Option<KeyFormatXml>,
}

#[derive(Serialize, Deserialize)]
struct Nothing {}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyFormatXml {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    simple_prefix: Option<Nothing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partitioned_prefix: Option<Partitioned>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Partitioned {
    partition_date_source: DateSource,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketLogging).await?;
    let logging_enabled = bucket.settings.logging.map(|logging| Enabled {
        target_bucket: logging.bucket,
        target_prefix: logging.prefix,
        target_grants: Some(acl::GrantsOut::of(walrus, &logging.grants)).filter(|_| !logging.grants.is_empty()),
        target_object_key_format: logging.format.map(|format| match format {
            KeyFormat::Simple => KeyFormatXml { simple_prefix: Some(Nothing {}), partitioned_prefix: None },
            KeyFormat::Partitioned(partition_date_source) => {
                KeyFormatXml { simple_prefix: None, partitioned_prefix: Some(Partitioned { partition_date_source }) }
            }
        }),
    });
    xml("BucketLoggingStatus", &Status { logging_enabled })
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketLogging).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Status<acl::GrantsIn> = document::parse(&body, "BucketLoggingStatus", document::Limits::SMALL)?;
    let logging = match asked.logging_enabled {
        None => None,
        Some(enabled) => Some(checked(walrus, &bucket, enabled).await?),
    };
    let (name, owner) = (bucket.name.clone(), logging.is_some().then(|| bucket.owner.clone()));
    update(walrus, bucket, move |settings| settings.logging = logging.clone()).await?;
    walrus.access_logs.know(&name, owner);
    Ok(done(StatusCode::OK))
}

async fn checked(walrus: &Walrus, source: &Bucket, enabled: Enabled<acl::GrantsIn>) -> Result<Logging, Error> {
    let format = match enabled.target_object_key_format {
        None => None,
        Some(KeyFormatXml { simple_prefix: Some(_), partitioned_prefix: None }) => Some(KeyFormat::Simple),
        Some(KeyFormatXml { simple_prefix: None, partitioned_prefix: Some(partitioned) }) => {
            Some(KeyFormat::Partitioned(partitioned.partition_date_source))
        }
        Some(_) => return Err(refuse::malformed_xml()),
    };
    let grants =
        enabled.target_grants.map_or_else(|| Ok(Vec::new()), |grants| grants.read(walrus, refuse::malformed_xml))?;
    let of_logs = [Permission::FullControl, Permission::Read, Permission::Write];
    if grants.iter().any(|grant| !of_logs.contains(&grant.permission)) {
        return Err(refuse::malformed_xml());
    }
    let logging = Logging { bucket: enabled.target_bucket, prefix: enabled.target_prefix, format, grants };
    let invalid = |message: &str, target: &str| {
        Error::Refused(
            AwsError::bad_request("InvalidTargetBucketForLogging", message).with_field("TargetBucket", target),
        )
    };
    let name = logging.bucket.clone();
    let target = match walrus.store.read("find a bucket", move |tx| find(tx, &name)).await {
        Err(Error::Refused(_)) => {
            return Err(invalid("The target bucket for logging does not exist", &logging.bucket));
        }
        target => target?,
    };
    if target.owner != source.owner {
        return Err(invalid(
            "The owner for the bucket to be logged and the target bucket must be the same.",
            &target.name,
        ));
    }
    if !logging.grants.is_empty() && target.settings.ownership == Some(Ownership::BucketOwnerEnforced) {
        return Err(refuse::coded("AccessControlListNotSupported", 400, "The bucket does not allow ACLs"));
    }
    if !deliverable(walrus, source, &target, &logging.prefix) {
        return Err(invalid(
            "You must give the log-delivery group WRITE and READ_ACP permissions to the target bucket",
            &target.name,
        ));
    }
    Ok(logging)
}

/// walrus itself, as policies of the target see it: for whom, and about which bucket.
fn deliverer(walrus: &Walrus, source: &Bucket, target: &Bucket) -> Option<Principal> {
    let account: Account = walrus.holders.by_canonical_id(&target.owner)?;
    let mut context = Context::default();
    context.add("aws:SourceArn", format!("arn:aws:s3:::{}", source.name));
    context.add("aws:SourceAccount", &source.account);
    context.add("aws:SecureTransport", "true");
    Some(Principal::log_delivery(account).with_context(context))
}

/// Whether the target's owner lets logs in: by the log delivery group in its list, or by its policy.
fn deliverable(walrus: &Walrus, source: &Bucket, target: &Bucket, key: &str) -> bool {
    deliverer(walrus, source, target).is_some_and(|who| allow(&who, Action::PutObject, target.key(key, None)))
}

/// Which buckets are logged, and the way of their lines to the store.
pub struct AccessLogs {
    /// By name, with the canonical id of the owner.
    logged: RwLock<HashMap<String, String>>,
    store: Store,
}

impl AccessLogs {
    pub fn new(store: Store) -> Self {
        Self { logged: RwLock::default(), store }
    }

    fn know(&self, bucket: &str, owner: Option<String>) {
        let mut logged = self.logged.write().unwrap_or_else(PoisonError::into_inner);
        match owner {
            Some(owner) => logged.insert(bucket.to_owned(), owner),
            None => logged.remove(bucket),
        };
    }

    fn learn(&self, buckets: HashMap<String, String>) {
        *self.logged.write().unwrap_or_else(PoisonError::into_inner) = buckets;
    }

    /// The owner of a bucket whose requests are logged.
    pub fn owner(&self, bucket: &str) -> Option<String> {
        self.logged.read().unwrap_or_else(PoisonError::into_inner).get(bucket).cloned()
    }

    /// Returns when the line is a row. What cannot be logged has been done all the same.
    pub async fn take(&self, bucket: &str, at: i64, line: String) {
        let name = bucket.to_owned();
        let kept = self.store.write("keep an access log line", move |tx| keep(tx, &name, at, &line)).await;
        if let Err(e) = kept {
            tracing::error!(bucket, error = %e, "an access log line was lost");
        }
    }
}

fn keep(tx: &mut Tx<'_>, bucket: &str, at: i64, line: &str) -> Result<(), Error> {
    // A request has one id.
    let id = format!("{at:016X}{}", line.split(' ').nth(6).unwrap_or_default());
    tx.execute(
        "INSERT INTO access_log (id, bucket, at, line) SELECT ?1, id, ?3, ?4 FROM bucket WHERE name = ?2
         ON CONFLICT DO NOTHING",
        params![id, bucket, at, line],
    )?;
    Ok(())
}
