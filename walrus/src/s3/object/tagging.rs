//! Tags of objects: get, put, delete.

use http::{Response, StatusCode};
use mallee_aws::document;
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{acl::found, lock::set_column, meta, show_version, to_json, version};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    circumstances,
    error::refuse,
    s3::{
        bucket::notification::{self, Cause, Happened},
        done, xml,
    },
};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tagging {
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

impl Tagging {
    /// From a document, as PutObjectTagging and POST forms bring it.
    pub fn parse(body: &[u8]) -> Result<Vec<(String, String)>, Error> {
        let tagging: Tagging = document::parse(body, "Tagging", document::Limits::SMALL)?;
        meta::checked_tags(tagging.tag_set.tags.into_iter().map(|tag| (tag.key, tag.value)).collect())
    }
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (bucket, object) = found(walrus, call, Action::GetObjectTagging).await?;
    let tags = object.tags.into_iter().map(|(key, value)| Tag { key, value }).collect();
    let mut response = xml("Tagging", &Tagging { tag_set: TagSet { tags } })?;
    show_version(&mut response, bucket.versioning, &object.version)?;
    Ok(response)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    // Before the document is read: a stranger's is not looked at.
    found(walrus, call, Action::PutObjectTagging).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let tags = Tagging::parse(&body)?;
    let mut context = (*call.principal.context).clone();
    circumstances::add_tags(&mut context, tags.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    call.principal = call.principal.clone().with_context(context);
    change(walrus, call, Action::PutObjectTagging, tags, StatusCode::OK).await
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    change(walrus, call, Action::DeleteObjectTagging, Vec::new(), StatusCode::NO_CONTENT).await
}

async fn change(
    walrus: &Walrus,
    call: &Call,
    action: Action,
    tags: Vec<(String, String)>,
    status: StatusCode,
) -> Result<Response<Body>, Error> {
    let (bucket, object) = found(walrus, call, action).await?;
    let text = to_json(&tags)?;
    let event = if tags.is_empty() { "s3:ObjectTagging:Delete" } else { "s3:ObjectTagging:Put" };
    let (cause, told) = (Cause::of(walrus, call, event), bucket.clone());
    let (key, versioning, id) = (object.key.clone(), bucket.versioning, object.version.clone());
    let changed = walrus
        .store
        .write("change an object's tags", move |tx| {
            let there = version::find(tx, bucket.id, &object.key, &object.version)?;
            if there.is_none_or(|there| there.content != object.content) {
                return Ok(0);
            }
            let happened = Happened {
                key: &object.key,
                etag: Some(&object.etag),
                version: Some(object.version.as_str()),
                size: None,
            };
            notification::record(tx, &bucket, &cause, happened)?;
            set_column(tx, &bucket, &object.key, &object.version, "tags", &text)
        })
        .await?;
    if changed == 0 {
        return Err(refuse::no_such_key(&key));
    }
    notification::wake(&walrus.courier, &told);
    let mut response = done(status);
    show_version(&mut response, versioning, &id)?;
    Ok(response)
}
