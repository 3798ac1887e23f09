//! Tags of a bucket.

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{opened, settings};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{done, xml},
};

const KIND: &str = "tagging";
/// By AWS.
const MOST: usize = 50;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tagging {
    tag_set: TagSet,
}

#[derive(Serialize, Deserialize)]
struct TagSet {
    #[serde(rename = "Tag", default)]
    tags: Vec<Tag>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    key: String,
    value: String,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketTagging).await?;
    let tagging: Option<Tagging> = settings::document(walrus, bucket.id, KIND).await?;
    let none =
        || AwsError::new("NoSuchTagSet", 404, "The TagSet does not exist").with_field("BucketName", &bucket.name);
    xml("Tagging", &tagging.ok_or_else(none)?)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketTagging).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let tagging: Tagging = document::parse(&body, "Tagging", document::Limits::SMALL)?;
    check(&tagging.tag_set.tags)?;
    settings::keep_document(walrus, bucket, KIND, &tagging).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketTagging).await?;
    settings::drop_document(walrus, bucket, KIND).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

fn check(tags: &[Tag]) -> Result<(), Error> {
    let invalid = |what: &str| refuse::coded("InvalidTag", 400, what);
    if tags.len() > MOST {
        return Err(refuse::coded("BadRequest", 400, "Bucket tag count cannot be greater than 50"));
    }
    let plain = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " +-=._:/@".contains(c));
    for (at, tag) in tags.iter().enumerate() {
        if tag.key.is_empty() || tag.key.chars().count() > 128 || !plain(&tag.key) {
            return Err(invalid("The TagKey you have provided is invalid"));
        }
        if tag.key.starts_with("aws:") {
            return Err(invalid("System tags cannot be added/updated by requester"));
        }
        if tag.value.chars().count() > 256 || !plain(&tag.value) {
            return Err(invalid("The TagValue you have provided is invalid"));
        }
        if tags[..at].iter().any(|other| other.key == tag.key) {
            return Err(invalid("Cannot provide multiple Tags with the same key"));
        }
    }
    Ok(())
}
