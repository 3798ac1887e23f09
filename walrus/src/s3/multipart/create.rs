//! CreateMultipartUpload and AbortMultipartUpload.

use http::{Response, StatusCode};
use mallee_service::Body;
use mallee_store::params;
use serde::Serialize;

use super::{checksum_asked, find_open};
use crate::{
    Error, Walrus,
    access::Action,
    blob::{BlobId, Place, forget},
    call::Call,
    error::refuse,
    s3::{
        acl, done,
        object::{
            encryption, lock, meta,
            put::{acl_of_new, check_also, owner_of_new},
            to_json, writable,
        },
        set, xml,
    },
};

pub async fn create(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        bucket: String,
        key: String,
        upload_id: String,
    }

    let bucket = writable(walrus, call, Action::PutObject).await?;
    meta::refuse_unsupported(call)?;
    // AWS lets nobody do this whom it could not ask later.
    let Some(initiator) = call.principal.account().map(|account| account.canonical_id.clone()) else {
        return Err(refuse::access_denied());
    };
    let owner = owner_of_new(&call.principal, &bucket);
    let (algorithm, kind) = checksum_asked(call)?;
    let headers = to_json(&meta::headers(call)?)?;
    let tags = meta::tags(call)?;
    if !tags.is_empty() {
        check_also(call, &bucket, Action::PutObjectTagging)?;
    }
    let tags = to_json(&tags)?;
    let storage_class = meta::storage_class(call)?.unwrap_or_else(|| meta::STANDARD.into());
    let acl = acl_of_new(walrus, call, &bucket, &owner)?;
    let acl = acl::to_text(&acl, &owner)?;
    let lock = to_json(&lock::asked(call, &bucket)?)?;
    let wish = encryption(call, &bucket)?;
    let seal = to_json(&wish.key(walrus)?.map(|(_, seal)| seal))?;
    let (id, key, now) = (BlobId::new(call.now), call.target.key.clone(), call.now);
    let answer =
        Answer { bucket: bucket.name.clone(), key: call.target.key.clone(), upload_id: id.as_str().to_owned() };
    walrus
        .store
        .write("create an upload", move |tx| {
            let made = tx.execute(
                "INSERT INTO upload
                    (id, bucket, key, created, initiator, owner, storage_class, algorithm, kind, headers, tags, acl,
                     completed, result, lock, seal)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, NULL, '', ?13, ?14)",
                params![
                    id,
                    bucket.id,
                    key,
                    now,
                    initiator,
                    owner,
                    storage_class,
                    algorithm.map_or("", |a| a.name()),
                    kind.name(),
                    headers,
                    tags,
                    acl,
                    lock,
                    seal
                ],
            );
            match made {
                Err(mallee_store::Error::Reference { .. }) => Err(refuse::no_such_bucket(&bucket.name)),
                made => Ok(made.map(drop)?),
            }
        })
        .await?;
    let mut response = xml("InitiateMultipartUploadResult", &answer)?;
    wish.show(&mut response)?;
    if let Some(algorithm) = algorithm {
        set(&mut response, "x-amz-checksum-algorithm", algorithm.name())?;
        set(&mut response, "x-amz-checksum-type", kind.name())?;
    }
    Ok(response)
}

pub async fn abort(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = writable(walrus, call, Action::AbortMultipartUpload).await?;
    let id = call.query.get("uploadId").unwrap_or_default().to_owned();
    let (key, now) = (call.target.key.clone(), call.now);
    walrus
        .store
        .write("abort an upload", move |tx| {
            let upload = find_open(tx, &bucket, &key, &id)?;
            tx.execute("DELETE FROM upload WHERE id = ?1", params![upload.id])?;
            forget(tx, &upload.id, Place::Parts, now)
        })
        .await?;
    Ok(done(StatusCode::NO_CONTENT))
}
