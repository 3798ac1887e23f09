//! Ownership controls: who owns what is put into a bucket, and whether access control lists count in it.

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{
    Bucket, opened,
    settings::{Ownership, update},
};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    principal::Acl,
    s3::{done, xml},
};

#[derive(Serialize, Deserialize)]
struct Controls {
    #[serde(rename = "Rule", default)]
    rules: Vec<Rule>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    object_ownership: Ownership,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketOwnershipControls).await?;
    let Some(object_ownership) = bucket.settings.ownership else {
        return Err(Error::Refused(
            AwsError::new("OwnershipControlsNotFoundError", 404, "The bucket ownership controls were not found")
                .with_field("BucketName", bucket.name),
        ));
    };
    xml("OwnershipControls", &Controls { rules: vec![Rule { object_ownership }] })
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketOwnershipControls).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let controls: Controls = document::parse(&body, "OwnershipControls", document::Limits::SMALL)?;
    let [Rule { object_ownership }] = controls.rules[..] else { return Err(refuse::malformed_xml()) };
    // What a list gives to others would be gone without a word.
    if object_ownership == Ownership::BucketOwnerEnforced && bucket.acl != Acl::private(&bucket.owner) {
        return Err(lists_are_off());
    }
    update(walrus, bucket, move |settings| settings.ownership = Some(object_ownership)).await?;
    Ok(done(StatusCode::OK))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketOwnershipControls).await?;
    update(walrus, bucket, |settings| settings.ownership = None).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

/// `x-amz-object-ownership`, of a bucket that is being made.
pub fn asked(call: &Call) -> Result<Option<Ownership>, Error> {
    match call.header("x-amz-object-ownership")? {
        None => Ok(None),
        Some("BucketOwnerEnforced") => Ok(Some(Ownership::BucketOwnerEnforced)),
        Some("BucketOwnerPreferred") => Ok(Some(Ownership::BucketOwnerPreferred)),
        Some("ObjectWriter") => Ok(Some(Ownership::ObjectWriter)),
        Some(other) => Err(refuse::argument("x-amz-object-ownership", other, "Invalid x-amz-object-ownership header")),
    }
}

/// A bucket cannot have lists and rule them out.
pub fn lists_are_off() -> Error {
    refuse::coded(
        "InvalidBucketAclWithObjectOwnership",
        400,
        "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
    )
}

/// Whether a list may take the place of another: never where lists are off, and none that lets in the public where that
/// is blocked.
pub fn check_acl(bucket: &Bucket, acl: &Acl) -> Result<(), Error> {
    if bucket.settings.ownership == Some(Ownership::BucketOwnerEnforced) {
        return Err(refuse::coded("AccessControlListNotSupported", 400, "The bucket does not allow ACLs"));
    }
    check_public(bucket, acl)
}

/// Whether what is put may come with this list. Where lists are off, it may say only what is so anyway, and by no other
/// words than those for it.
pub fn check_acl_of_new(call: &Call, bucket: &Bucket, acl: &Acl) -> Result<(), Error> {
    let harmless = match call.header("x-amz-acl")? {
        Some(canned) => canned == "bucket-owner-full-control",
        None => *acl == Acl::private(&bucket.owner),
    };
    if harmless { check_public(bucket, acl) } else { check_acl(bucket, acl) }
}

fn check_public(bucket: &Bucket, acl: &Acl) -> Result<(), Error> {
    if acl.is_public() && bucket.settings.block.is_some_and(|block| block.block_public_acls) {
        return Err(refuse::access_denied());
    }
    Ok(())
}

/// Who owns what `writer` puts with this list. What nobody puts is the bucket owner's.
pub fn owner_of_new(bucket: &Bucket, writer: Option<&str>, canned: Option<&str>) -> String {
    let writer = writer.unwrap_or(&bucket.owner);
    let given_away = canned == Some("bucket-owner-full-control");
    match bucket.settings.ownership.unwrap_or_default() {
        Ownership::BucketOwnerEnforced => bucket.owner.clone(),
        Ownership::BucketOwnerPreferred if given_away => bucket.owner.clone(),
        _ => writer.to_owned(),
    }
}
