//! DeleteObject and DeleteObjects.

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{
    VersionId, lock, put,
    version::{self, Removed},
    writable,
};
use crate::{
    Error, Walrus,
    access::{Action, allow},
    call::Call,
    error::refuse,
    s3::{
        bucket::{
            self, Versioning,
            notification::{self, Cause},
        },
        condition::{Conditions, seconds_of},
        done, set, xml,
    },
};

/// Keys per request, by AWS.
const MOST_KEYS: usize = 1000;
/// Keys per transaction, so that nobody waits long behind it.
const KEYS_AT_ONCE: usize = 250;

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let version = VersionId::asked(call)?;
    let action = if version.is_some() { Action::DeleteObjectVersion } else { Action::DeleteObject };
    let bucket = writable(walrus, call, action).await?;
    let bypass = lock::bypass(call, &bucket, &call.target.key)?;
    let conditions = Conditions::of_delete(call)?;
    let owner = put::owner_of_new(&call.principal, &bucket);
    let (key, now, of) = (call.target.key.clone(), call.now, bucket.clone());
    let cause = Cause::of(walrus, call, "s3:ObjectRemoved:Delete");
    let removed = walrus
        .store
        .write("delete an object", move |tx| {
            let removed = match &version {
                None => version::hide(tx, &of, &key, &owner, &conditions, now),
                Some(version) => version::destroy(tx, of.id, &key, version, bypass, &conditions, now),
            }?;
            notification::removed(tx, &of, &cause, &key, version.is_none(), &removed)?;
            Ok(removed)
        })
        .await
        .map_err(put::conflict)?;
    notification::wake(&walrus.courier, &bucket);
    let mut response = done(StatusCode::NO_CONTENT);
    if let Some(version) = removed.version.filter(|_| bucket.versioning != Versioning::Never) {
        set(&mut response, "x-amz-version-id", version.as_str())?;
    }
    if removed.marker {
        set(&mut response, "x-amz-delete-marker", "true")?;
    }
    Ok(response)
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
    #[serde(rename = "LastModifiedTime")]
    modified: Option<String>,
    #[serde(rename = "Size")]
    size: Option<u64>,
}

impl Named {
    fn conditions(&self) -> Result<Conditions, Error> {
        let modified = match &self.modified {
            None => None,
            Some(text) => Some(seconds_of(text).ok_or_else(refuse::malformed_xml)?),
        };
        let if_match = self.etag.clone();
        Ok(Conditions { if_match, if_match_modified: modified, if_match_size: self.size, ..Conditions::default() })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Deleted {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_marker: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_marker_version_id: Option<String>,
}

impl Deleted {
    fn new(named: Named, removed: Removed) -> Self {
        let marker = removed.marker.then(|| removed.version.as_ref().map(|v| v.as_str().to_owned())).flatten();
        Self {
            key: named.key,
            version_id: named.version_id.filter(|version| !version.is_empty()),
            delete_marker: removed.marker.then_some(true),
            delete_marker_version_id: marker,
        }
    }
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

impl Failed {
    fn new(named: &Named, refusal: &AwsError) -> Self {
        Self {
            key: named.key.clone(),
            version_id: named.version_id.clone(),
            code: refusal.code.clone().into_owned(),
            message: refusal.message.clone(),
        }
    }
}

pub async fn delete_many(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        deleted: Vec<Deleted>,
        error: Vec<Failed>,
    }

    let (name, known) = (call.target.bucket.clone(), walrus.known_policies.clone());
    let bucket = walrus.store.look_up("find a bucket", move |tx| bucket::find_known(tx, &known, &name)).await?;
    bucket::check_expected_owner(call, &bucket)?;
    // Without a policy every key is the same.
    if bucket.policy.is_none() && !allow(&call.principal, Action::DeleteObject, bucket.key("", None)) {
        return Err(refuse::access_denied());
    }
    let owner = put::owner_of_new(&call.principal, &bucket);
    let body = call.document(document::Limits::LARGE.bytes).await?;
    let asked: Delete = document::parse(&body, "Delete", document::Limits::LARGE)?;
    let nameless = asked.object.iter().any(|named| named.key.is_empty());
    if asked.object.is_empty() || asked.object.len() > MOST_KEYS || nameless {
        return Err(refuse::malformed_xml());
    }
    let quiet = asked.quiet == Some(true);
    let mut answer = Answer { deleted: Vec::new(), error: Vec::new() };
    for batch in asked.object.chunks(KEYS_AT_ONCE) {
        // Each key is judged by itself: policies name keys.
        let mut wanted = Vec::with_capacity(batch.len());
        for named in batch {
            let version = named.version_id.as_deref().filter(|version| !version.is_empty());
            let action = if version.is_some() { Action::DeleteObjectVersion } else { Action::DeleteObject };
            let judged = match version.map(VersionId::parse).transpose() {
                _ if !allow(&call.principal, action, bucket.key(&named.key, None)) => Err(refuse::access_denied()),
                version => version
                    .and_then(|version| Ok((version, named.conditions()?, lock::bypass(call, &bucket, &named.key)?))),
            };
            match judged {
                Ok((version, conditions, bypass)) => wanted.push((named.clone(), version, conditions, bypass)),
                Err(e) => answer.error.push(Failed::new(named, &e.told())),
            }
        }
        let (of, owner, now) = (bucket.clone(), owner.clone(), call.now);
        let cause = Cause::of(walrus, call, "s3:ObjectRemoved:Delete");
        let outcomes = walrus
            .store
            .write("delete objects", move |tx| {
                let mut outcomes = Vec::with_capacity(wanted.len());
                for (named, version, conditions, bypass) in &wanted {
                    let outcome = match version {
                        None => version::hide(tx, &of, &named.key, &owner, conditions, now),
                        Some(version) => version::destroy(tx, of.id, &named.key, version, *bypass, conditions, now),
                    };
                    // One of many: what is refused about it does not stop the others.
                    outcomes.push(match outcome {
                        Ok(removed) => {
                            notification::removed(tx, &of, &cause, &named.key, version.is_none(), &removed)?;
                            (named.clone(), Ok(removed))
                        }
                        Err(Error::Refused(refusal)) => (named.clone(), Err(refusal)),
                        Err(e) => return Err(e),
                    });
                }
                Ok::<_, Error>(outcomes)
            })
            .await?;
        for (named, outcome) in outcomes {
            match outcome {
                Ok(_) if quiet => {}
                Ok(removed) => answer.deleted.push(Deleted::new(named, removed)),
                Err(refusal) => answer.error.push(Failed::new(&named, &refusal)),
            }
        }
    }
    notification::wake(&walrus.courier, &bucket);
    xml("DeleteResult", &answer)
}
