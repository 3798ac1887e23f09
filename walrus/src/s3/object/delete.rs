//! DeleteObject and DeleteObjects.

use http::{Response, StatusCode};
use mallee_aws::document;
use mallee_service::Body;
use mallee_store::Tx;
use serde::{Deserialize, Serialize};

use super::{check_version, remove, writable};
use crate::{
    Error, Walrus,
    call::Call,
    error::refuse,
    principal::Action,
    s3::{bucket::BucketId, condition::Conditions, done, xml},
};

/// Keys per request, by AWS.
const MOST_KEYS: usize = 1000;
/// Keys per transaction, so that nobody waits long behind it.
const KEYS_AT_ONCE: usize = 250;

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = writable(walrus, call, Action::DeleteObject).await?;
    check_version(call)?;
    let conditions = Conditions::of(call, "")?;
    let (id, key, now) = (bucket.id, call.target.key.clone(), call.now);
    walrus
        .store
        .write("delete an object", move |tx| {
            check_etag(tx, id, &key, &conditions)?;
            remove(tx, id, &key, now)
        })
        .await?;
    Ok(done(StatusCode::NO_CONTENT))
}

fn check_etag(tx: &mut Tx<'_>, bucket: BucketId, key: &str, conditions: &Conditions) -> Result<(), Error> {
    if conditions.if_match.is_none() {
        return Ok(());
    }
    let there = super::content_at(tx, bucket, key)?;
    conditions.check_write(key, there.as_ref().map(|there| there.etag.as_str()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    #[serde(default)]
    object: Vec<Named>,
    quiet: Option<bool>,
}

#[derive(Deserialize, Clone)]
struct Named {
    #[serde(rename = "Key")]
    key: String,
    #[serde(rename = "VersionId")]
    version_id: Option<String>,
    #[serde(rename = "ETag")]
    etag: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Deleted {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failed {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    code: String,
    message: String,
}

pub async fn delete_many(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        deleted: Vec<Deleted>,
        error: Vec<Failed>,
    }

    let bucket = writable(walrus, call, Action::DeleteObject).await?;
    let body = call.document(document::Limits::LARGE.bytes).await?;
    let asked: Delete = document::parse(&body, "Delete", document::Limits::LARGE)?;
    if asked.object.is_empty() || asked.object.len() > MOST_KEYS {
        return Err(refuse::malformed_xml());
    }
    let quiet = asked.quiet == Some(true);
    let mut answer = Answer { deleted: Vec::new(), error: Vec::new() };
    for batch in asked.object.chunks(KEYS_AT_ONCE) {
        let (batch, id, now) = (batch.to_vec(), bucket.id, call.now);
        let outcomes = walrus
            .store
            .write("delete objects", move |tx| {
                let mut outcomes = Vec::with_capacity(batch.len());
                for named in &batch {
                    outcomes.push((named.clone(), delete_named(tx, id, named, now)?));
                }
                Ok::<_, Error>(outcomes)
            })
            .await?;
        for (named, refusal) in outcomes {
            match refusal {
                None if quiet => {}
                None => answer.deleted.push(Deleted { key: named.key, version_id: named.version_id }),
                Some(refusal) => answer.error.push(Failed {
                    key: named.key,
                    version_id: named.version_id,
                    code: refusal.code.into_owned(),
                    message: refusal.message,
                }),
            }
        }
    }
    xml("DeleteResult", &answer)
}

/// One of many: what is refused about it does not stop the others.
fn delete_named(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    named: &Named,
    now: i64,
) -> Result<Option<mallee_aws::AwsError>, Error> {
    let refused = |e: Error| match e {
        Error::Refused(refusal) => Ok(Some(refusal)),
        e => Err(e),
    };
    if let Some(version) = named.version_id.as_deref().filter(|version| !["", "null"].contains(version)) {
        return refused(refuse::no_such_version(&named.key, version));
    }
    let conditions = Conditions { if_match: named.etag.clone(), ..Conditions::default() };
    if let Err(e) = check_etag(tx, bucket, &named.key, &conditions) {
        return refused(e);
    }
    remove(tx, bucket, &named.key, now)?;
    Ok(None)
}
