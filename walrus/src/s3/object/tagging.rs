//! Tags of objects: get, put, delete.

use http::{Response, StatusCode};
use mallee_aws::document;
use mallee_service::Body;
use mallee_store::params;
use serde::{Deserialize, Serialize};

use super::{acl::found, meta, to_json};
use crate::{Error, Walrus, call::Call, error::refuse, principal::Action, s3::done, s3::xml};

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
    let (_, object) = found(walrus, call, Action::GetObjectTagging).await?;
    let tags = object.tags.into_iter().map(|(key, value)| Tag { key, value }).collect();
    xml("Tagging", &Tagging { tag_set: TagSet { tags } })
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    // Before the document is read: a stranger's is not looked at.
    found(walrus, call, Action::PutObjectTagging).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let tags = Tagging::parse(&body)?;
    change(walrus, call, tags).await?;
    Ok(done(StatusCode::OK))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    change(walrus, call, Vec::new()).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

async fn change(walrus: &Walrus, call: &Call, tags: Vec<(String, String)>) -> Result<(), Error> {
    let (bucket, object) = found(walrus, call, Action::PutObjectTagging).await?;
    let text = to_json(&tags)?;
    let key = object.key.clone();
    let changed = walrus
        .store
        .write("change an object's tags", move |tx| {
            Ok::<_, Error>(tx.execute(
                "UPDATE object SET tags = ?4 WHERE bucket = ?1 AND key = ?2 AND content = ?3",
                params![bucket.id, object.key, object.content, text],
            )?)
        })
        .await?;
    if changed == 0 { Err(refuse::no_such_key(&key)) } else { Ok(()) }
}
