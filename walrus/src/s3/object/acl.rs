//! GetObjectAcl and PutObjectAcl.

use http::{Response, StatusCode};
use mallee_service::Body;

use super::{Object, Wanted, lock::set_column, opened, version};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{
        acl,
        bucket::{
            self, Bucket,
            notification::{self, Cause, Happened},
            ownership,
        },
        done,
    },
};

/// The request's object, once the principal may do `action` to it.
pub async fn found(walrus: &Walrus, call: &Call, action: Action) -> Result<(Bucket, Object), Error> {
    let (wanted, principal, known) = (Wanted::of(call)?, call.principal.clone(), walrus.known_policies.clone());
    let (bucket, object) = walrus
        .store
        .read("find an object", move |tx| {
            let bucket = bucket::find_known(tx, &known, &wanted.bucket)?;
            let object = opened(tx, &principal, action, &bucket, &wanted)?;
            Ok::<_, Error>((bucket, object))
        })
        .await?;
    bucket::check_expected_owner(call, &bucket)?;
    Ok((bucket, object))
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (_, object) = found(walrus, call, Action::GetObjectAcl).await?;
    acl::answer(walrus, &object.owner, &object.acl)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (bucket, object) = found(walrus, call, Action::PutObjectAcl).await?;
    let acl = acl::from_request(walrus, call, &object.owner, &bucket.owner).await?;
    ownership::check_acl(&bucket, &acl)?;
    let (owner, text) = (object.owner.clone(), acl::to_text(&acl, &object.owner)?);
    let (cause, told) = (Cause::of(walrus, call, "s3:ObjectAcl:Put"), bucket.clone());
    let changed = walrus
        .store
        .write("change an object's ACL", move |tx| {
            // It may have become another one; its new owner did not ask for this list.
            let there = version::find(tx, bucket.id, &object.key, &object.version)?;
            if there.is_none_or(|there| there.owner != owner) {
                return Ok(0);
            }
            let happened = Happened {
                key: &object.key,
                etag: Some(&object.etag),
                version: Some(object.version.as_str()),
                size: None,
            };
            notification::record(tx, &bucket, &cause, happened)?;
            set_column(tx, &bucket, &object.key, &object.version, "acl", &text)
        })
        .await?;
    if changed == 0 {
        return Err(refuse::no_such_key(&call.target.key));
    }
    notification::wake(&walrus.courier, &told);
    Ok(done(StatusCode::OK))
}
