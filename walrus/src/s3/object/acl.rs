//! GetObjectAcl and PutObjectAcl.

use http::{Response, StatusCode};
use mallee_service::Body;
use mallee_store::params;

use super::{Object, check_version, opened};
use crate::{
    Error, Walrus,
    call::Call,
    error::refuse,
    principal::Action,
    s3::{
        acl,
        bucket::{self, Bucket},
        done,
    },
};

/// The request's object, once the principal may do `action` to it.
pub async fn found(walrus: &Walrus, call: &Call, action: Action) -> Result<(Bucket, Object), Error> {
    check_version(call)?;
    let (target, principal) = (call.target.clone(), call.principal.clone());
    let (bucket, object) = walrus
        .store
        .read("find an object", move |tx| {
            let bucket = bucket::find(tx, &target.bucket)?;
            let object = opened(tx, &principal, action, &bucket, &target.key)?;
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
    let (owner, text) = (object.owner.clone(), acl::to_text(&acl, &object.owner)?);
    let changed = walrus
        .store
        .write("change an object's ACL", move |tx| {
            // The object may have become another one; its new owner did not ask for this list.
            Ok::<_, Error>(tx.execute(
                "UPDATE object SET acl = ?4 WHERE bucket = ?1 AND key = ?2 AND owner = ?3",
                params![bucket.id, object.key, owner, text],
            )?)
        })
        .await?;
    if changed == 0 {
        return Err(refuse::no_such_key(&call.target.key));
    }
    Ok(done(StatusCode::OK))
}
