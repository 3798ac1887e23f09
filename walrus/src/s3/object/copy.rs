//! CopyObject. A copy costs a row: both objects refer to the same bytes, which are never changed.

use futures_util::StreamExt;
use http::Response;
use mallee_service::Body;
use serde::Serialize;

use super::{
    Object, check_version,
    get::{Reading, WithBytes, open},
    meta, opened,
    put::{LARGEST, conflict, owner_of_new},
    replace, writable,
};
use crate::{
    Error, Walrus,
    blob::{Source, outflow},
    call::{Call, Plus, decode},
    checksum::{Algorithm, Checksum, Running},
    error::refuse,
    principal::{Acl, Action},
    s3::{
        acl,
        bucket::{self, Bucket},
        condition::Conditions,
        iso_time, quoted, xml,
    },
};

/// What `x-amz-copy-source` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    pub bucket: String,
    pub key: String,
}

impl CopySource {
    pub fn of(call: &Call) -> Result<Self, Error> {
        Self::parse(call.header("x-amz-copy-source")?.unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || {
            refuse::argument(
                "x-amz-copy-source",
                text,
                "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
            )
        };
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        // The slash between bucket and key may be encoded as well.
        let path = decode(path, Plus::IsPlus).map_err(|_| wrong())?;
        let (bucket, key) = path.strip_prefix('/').unwrap_or(&path).split_once('/').ok_or_else(wrong)?;
        if bucket.is_empty() || key.is_empty() {
            return Err(wrong());
        }
        match query.map(|query| query.strip_prefix("versionId=")) {
            None | Some(Some("null")) => {}
            Some(Some(version)) => return Err(refuse::no_such_version(key, version)),
            Some(None) => return Err(wrong()),
        }
        Ok(Self { bucket: bucket.into(), key: key.into() })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Directive {
    Copy,
    Replace,
}

fn directive(call: &Call, header: &str) -> Result<Directive, Error> {
    match call.header(header)? {
        None | Some("COPY") => Ok(Directive::Copy),
        Some("REPLACE") => Ok(Directive::Replace),
        Some(other) => Err(refuse::argument(header, other, "Unknown directive.")),
    }
}

/// What the copy has of its own.
#[derive(Clone)]
struct Draft {
    /// None: the source's.
    headers: Option<Vec<(String, String)>>,
    tags: Option<Vec<(String, String)>>,
    storage_class: String,
    owner: String,
    acl: Acl,
}

/// How the document of a copied object or part says what came of it.
#[derive(Serialize)]
pub struct Copied {
    #[serde(rename = "LastModified")]
    pub last_modified: String,
    #[serde(rename = "ETag")]
    pub etag: String,
    #[serde(flatten)]
    pub checksum: std::collections::BTreeMap<String, String>,
}

pub async fn copy(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let source = CopySource::of(call)?;
    check_version(call)?;
    meta::refuse_unsupported(call)?;
    let bucket = writable(walrus, call, Action::PutObject).await?;
    let conditions = Conditions::of(call, "")?;
    let of_source = Conditions::of(call, "x-amz-copy-source-")?;
    let owner = owner_of_new(&call.principal, &bucket);
    let storage_class = meta::storage_class(call)?;
    let (headers, tagging) = (directive(call, "x-amz-metadata-directive")?, directive(call, "x-amz-tagging-directive")?);
    let itself = source.bucket == call.target.bucket && source.key == call.target.key;
    if itself && headers == Directive::Copy && storage_class.is_none() && !call.headers.contains_key("x-amz-checksum-algorithm") {
        return Err(refuse::request(
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    let draft = Draft {
        headers: (headers == Directive::Replace).then(|| meta::headers(call)).transpose()?,
        tags: (tagging == Directive::Replace).then(|| meta::tags(call)).transpose()?,
        storage_class: storage_class.unwrap_or_else(|| meta::STANDARD.into()),
        acl: acl::asked(walrus, call, &owner, &bucket.owner)?.unwrap_or_else(|| Acl::private(&owner)),
        owner,
    };
    let algorithm = match call.header("x-amz-checksum-algorithm")? {
        None => None,
        Some(name) => Some(Algorithm::by_name(name).ok_or_else(|| refuse::request("Checksum algorithm provided is unsupported."))?),
    };
    let computed = match algorithm {
        None => None,
        Some(algorithm) => computed(walrus, call, &source, algorithm).await?,
    };
    let expected = call.header("x-amz-source-expected-bucket-owner")?.map(str::to_owned);
    let object = commit(walrus, call, bucket, source, draft, conditions, of_source, expected, computed).await?;
    let checksum = object.checksum.iter().map(|c| (format!("Checksum{}", c.algorithm.name()), c.value.clone())).collect();
    xml(
        "CopyObjectResult",
        &Copied { last_modified: iso_time(object.modified), etag: quoted(&object.etag), checksum },
    )
}

/// One transaction sees the source, judges it, and makes the copy.
#[expect(clippy::too_many_arguments, reason = "each is moved into the one transaction")]
async fn commit(
    walrus: &Walrus,
    call: &Call,
    bucket: Bucket,
    source: CopySource,
    draft: Draft,
    conditions: Conditions,
    of_source: Conditions,
    expected_owner: Option<String>,
    computed: Option<(Object, Checksum)>,
) -> Result<Object, Error> {
    let (principal, key, now) = (call.principal.clone(), call.target.key.clone(), call.now);
    let copied = walrus
        .store
        .write("copy an object", move |tx| {
            let from = bucket::find(tx, &source.bucket)?;
            if expected_owner.as_ref().is_some_and(|account| *account != from.account) {
                return Err(refuse::access_denied());
            }
            let object = opened(tx, &principal, Action::GetObject, &from, &source.key)?;
            of_source.check_source(&object.etag, object.modified_seconds())?;
            if object.size > LARGEST {
                return Err(refuse::request(
                    "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120",
                ));
            }
            let checksum = match &computed {
                None => object.checksum.clone(),
                Some((of, checksum)) if of.content == object.content => Some(checksum.clone()),
                Some(_) => {
                    return Err(refuse::coded(
                        "OperationAborted",
                        409,
                        "The source changed while it was being copied. Please try again.",
                    ));
                }
            };
            let draft = draft.clone();
            let copy = Object {
                key: key.clone(),
                modified: now,
                storage_class: draft.storage_class,
                owner: draft.owner,
                checksum,
                headers: draft.headers.unwrap_or(object.headers),
                tags: draft.tags.unwrap_or(object.tags),
                acl: draft.acl,
                size: object.size,
                etag: object.etag,
                content: object.content,
                place: object.place,
            };
            replace(tx, &bucket, &copy, &conditions)?;
            Ok(copy)
        })
        .await
        .map_err(conflict)?;
    Ok(copied)
}

/// A checksum the source does not have, from its bytes; `None` when it has it.
async fn computed(
    walrus: &Walrus,
    call: &Call,
    source: &CopySource,
    algorithm: Algorithm,
) -> Result<Option<(Object, Checksum)>, Error> {
    let (_, object, reading) = open(walrus, &call.principal, &source.bucket, &source.key, WithBytes::Yes).await?;
    let Some(Reading { pieces, pin, .. }) = reading else { return Ok(None) };
    if object.checksum.as_ref().is_some_and(|checksum| checksum.algorithm == algorithm) {
        return Ok(None);
    }
    let damage = walrus.damage(&format!("/{}/{}", source.bucket, source.key), &object.content);
    let whole = Source::cut(walrus.blobs.clone(), pieces, 0, object.size, Some(pin));
    let mut stream = std::pin::pin!(outflow(whole, damage).await?);
    let mut running = Running::new(algorithm);
    while let Some(block) = stream.next().await {
        let block = block?;
        running = tokio::task::spawn_blocking(move || {
            running.update(&block);
            running
        })
        .await?;
    }
    let checksum = Checksum::full(algorithm, &running.finish());
    Ok(Some((object, checksum)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_source_names_a_bucket_and_a_key() {
        let parse = |text| CopySource::parse(text).map(|s| (s.bucket, s.key)).map_err(|e| e.told().code.into_owned());
        let ok = |b: &str, k: &str| Ok((b.to_owned(), k.to_owned()));
        let table = [
            ("b/k", ok("b", "k")),
            ("/b/k/l", ok("b", "k/l")),
            ("b%2Fk%20x+y", ok("b", "k x+y")),
            ("/b/k?versionId=null", ok("b", "k")),
            ("/b/../c/k", ok("b", "../c/k")),
            ("/b/k?versionId=3", Err("NoSuchVersion".into())),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
        for bad in ["", "/", "b", "b/", "/b", "//k", "b/%zz", "b/k?x=1"] {
            assert_eq!(parse(bad), Err("InvalidArgument".into()), "{bad:?}");
        }
    }
}
