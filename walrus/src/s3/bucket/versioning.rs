//! Whether a bucket keeps the versions of its objects.

use http::{Response, StatusCode};
use mallee_aws::document;
use mallee_service::Body;
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};

use super::{Bucket, BucketId, opened};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{done, xml},
};

pub const TABLES: &str = "
    ALTER TABLE bucket ADD COLUMN versioning BIGINT NOT NULL DEFAULT 0;
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// A key has one version, `null`. What was once switched on can only be suspended.
    Never,
    Enabled,
    /// New objects are `null` again; versions that are there stay.
    Suspended,
}

impl Versioning {
    pub const fn number(self) -> i64 {
        match self {
            Versioning::Never => 0,
            Versioning::Enabled => 1,
            Versioning::Suspended => 2,
        }
    }

    pub const fn from_number(n: i64) -> Self {
        match n {
            1 => Versioning::Enabled,
            2 => Versioning::Suspended,
            _ => Versioning::Never,
        }
    }

    const fn name(self) -> Option<&'static str> {
        match self {
            Versioning::Never => None,
            Versioning::Enabled => Some("Enabled"),
            Versioning::Suspended => Some("Suspended"),
        }
    }
}

/// As this transaction sees it: what a request read before its body came may be out of date.
pub fn now(tx: &mut Tx<'_>, bucket: &Bucket) -> Result<Versioning, Error> {
    of(tx, bucket.id)?.ok_or_else(|| refuse::no_such_bucket(&bucket.name))
}

fn of(tx: &mut Tx<'_>, bucket: BucketId) -> Result<Option<Versioning>, Error> {
    let sql = "SELECT versioning FROM bucket WHERE id = ?1";
    Ok(tx.query_opt(sql, params![bucket], |row| row.get::<i64>(0))?.map(Versioning::from_number))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(rename = "MfaDelete", skip_serializing)]
    mfa_delete: Option<String>,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketVersioning).await?;
    let status = bucket.versioning.name().map(str::to_owned);
    xml("VersioningConfiguration", &Configuration { status, mfa_delete: None })
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketVersioning).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Configuration = document::parse(&body, "VersioningConfiguration", document::Limits::SMALL)?;
    if asked.mfa_delete.as_deref().is_some_and(|mfa| mfa != "Disabled") || call.headers.contains_key("x-amz-mfa") {
        return Err(refuse::not_implemented("MfaDelete"));
    }
    let wanted = match asked.status.as_deref() {
        Some("Enabled") => Versioning::Enabled,
        Some("Suspended") => Versioning::Suspended,
        _ => return Err(refuse::malformed_xml()),
    };
    if wanted == Versioning::Suspended && bucket.lock.is_some() {
        return Err(refuse::coded(
            "InvalidBucketState",
            409,
            "An Object Lock configuration is present on this bucket, so the versioning state cannot be changed.",
        ));
    }
    let id = bucket.id;
    let changed = walrus
        .store
        .write("change a bucket's versioning", move |tx| {
            // Only where there is still no lock: two requests may race.
            Ok::<_, Error>(tx.execute(
                "UPDATE bucket SET versioning = ?2 WHERE id = ?1 AND (?2 = 1 OR object_lock = '')",
                params![id, wanted.number()],
            )?)
        })
        .await?;
    if changed == 0 {
        return Err(refuse::no_such_bucket(&bucket.name));
    }
    Ok(done(StatusCode::OK))
}
