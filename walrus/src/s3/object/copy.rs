//! CopyObject. A copy costs a row: both objects refer to the same bytes, which are never changed.

use futures_util::StreamExt;
use http::Response;
use mallee_service::Body;
use serde::Serialize;

use super::{
    Object, VersionId, Wanted, encryption,
    get::{Reading, WithBytes, open},
    lock::{self, Lock},
    meta, opened,
    put::{LARGEST, acl_of_new, check_also, conflict, etag, owner_of_new},
    show_new_version,
    version::replace,
    writable,
};
use crate::{
    Error, Walrus,
    access::{Action, allow},
    blob::{BlobId, DataKey, Keeping, Place, Received, Source, outflow},
    call::{Call, Plus, decode},
    checksum::{Algorithm, Checksum, Running},
    error::refuse,
    principal::Acl,
    s3::{
        bucket::{
            self, Bucket, Versioning,
            notification::{self, Cause},
        },
        condition::Conditions,
        encryption::{Keys, Kind, Seal, Wish},
        iso_time, quoted, set, xml,
    },
};

/// What `x-amz-copy-source` names.
pub struct CopySource;

impl CopySource {
    pub fn of(call: &Call) -> Result<Wanted, Error> {
        Self::parse(call.header("x-amz-copy-source")?.unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Wanted, Error> {
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
        let version = match query.map(|query| query.strip_prefix("versionId=")) {
            None => None,
            Some(Some(version)) => Some(VersionId::parse(version)?),
            Some(None) => return Err(wrong()),
        };
        Ok(Wanted { bucket: bucket.into(), key: key.into(), version })
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
    lock: Lock,
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
    meta::refuse_unsupported(call)?;
    let bucket = writable(walrus, call, Action::PutObject).await?;
    let conditions = Conditions::of(call, "")?;
    let of_source = Conditions::of(call, "x-amz-copy-source-")?;
    let owner = owner_of_new(&call.principal, &bucket);
    let storage_class = meta::storage_class(call)?;
    let (headers, tagging) =
        (directive(call, "x-amz-metadata-directive")?, directive(call, "x-amz-tagging-directive")?);
    let wish = encryption(call, &bucket)?;
    let itself = source.bucket == call.target.bucket && source.key == call.target.key && source.version.is_none();
    let encrypts = call.headers.contains_key("x-amz-server-side-encryption") || wish.kind() == Some(Kind::Customer);
    if itself
        && !encrypts
        && headers == Directive::Copy
        && storage_class.is_none()
        && !call.headers.contains_key("x-amz-checksum-algorithm")
    {
        return Err(refuse::request(
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    let draft = Draft {
        headers: (headers == Directive::Replace).then(|| meta::headers(call)).transpose()?,
        tags: (tagging == Directive::Replace).then(|| meta::tags(call)).transpose()?,
        storage_class: storage_class.unwrap_or_else(|| meta::STANDARD.into()),
        acl: acl_of_new(walrus, call, &bucket, &owner)?,
        lock: lock::asked(call, &bucket)?,
        owner,
    };
    if draft.tags.as_ref().is_some_and(|tags| !tags.is_empty()) {
        check_also(call, &bucket, Action::PutObjectTagging)?;
    }
    let keys = Keys::of(walrus, call, "x-amz-copy-source-")?;
    let algorithm = match call.header("x-amz-checksum-algorithm")? {
        None => None,
        Some(name) => Some(
            Algorithm::by_name(name).ok_or_else(|| refuse::request("Checksum algorithm provided is unsupported."))?,
        ),
    };
    let (from, object, reading) =
        open(walrus, &call.principal, Action::GetObject, source.clone(), keys, WithBytes::Yes).await?;
    let Some(reading) = reading else { return Err(Error::Internal("nothing to read".into())) };
    if call.header("x-amz-source-expected-bucket-owner")?.is_some_and(|account| account != from.account) {
        return Err(refuse::access_denied());
    }
    let seen = Seen { content: object.content.clone(), version: object.version.clone(), versioning: from.versioning };
    check_source(&object, &of_source)?;
    if draft.tags.is_none() && !object.tags.is_empty() {
        // They would be read and set by the way.
        let reading = if source.version.is_some() { Action::GetObjectVersionTagging } else { Action::GetObjectTagging };
        if !allow(&call.principal, reading, from.key(&source.key, Some(object.access()))) {
            return Err(refuse::access_denied());
        }
        check_also(call, &bucket, Action::PutObjectTagging)?;
    }
    let prepared = prepare(walrus, (&object, reading), &source, &wish, algorithm).await?;
    let (object, versioning) =
        commit(walrus, call, bucket, source, seen.clone(), draft, conditions, of_source, prepared).await?;
    let checksum =
        object.checksum.iter().map(|c| (format!("Checksum{}", c.algorithm.name()), c.value.clone())).collect();
    let mut response = xml(
        "CopyObjectResult",
        &Copied { last_modified: iso_time(object.modified), etag: quoted(&object.etag), checksum },
    )?;
    wish.show(&mut response)?;
    show_new_version(&mut response, versioning, &object.version)?;
    if seen.versioning != Versioning::Never || !seen.version.is_null() {
        set(&mut response, "x-amz-copy-source-version-id", seen.version.as_str())?;
    }
    Ok(response)
}

/// The source, as it was first looked at.
#[derive(Clone)]
struct Seen {
    content: BlobId,
    version: VersionId,
    versioning: Versioning,
}

fn check_source(object: &Object, conditions: &Conditions) -> Result<(), Error> {
    conditions.check_source(&object.etag, object.modified_seconds())?;
    if object.size > LARGEST {
        return Err(refuse::request(
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120",
        ));
    }
    Ok(())
}

/// What had to be done with the source's bytes before the copy's row can be made.
enum Prepared {
    /// Nothing: the copy refers to them too.
    Shared,
    /// A checksum the source does not have was computed.
    Summed(Checksum),
    /// They were written again, under another key or none.
    Rewritten { received: Received, etag: String, checksum: Option<Checksum>, seal: Option<Seal> },
}

async fn prepare(
    walrus: &Walrus,
    (object, reading): (&Object, Reading),
    source: &Wanted,
    wish: &Wish,
    algorithm: Option<Algorithm>,
) -> Result<Prepared, Error> {
    let Reading { pieces, pin, .. } = reading;
    let kind = object.seal.as_ref().map(|seal| seal.kind);
    let shares = kind == wish.kind() && kind != Some(Kind::Customer);
    let known = object.checksum.as_ref().map(|checksum| checksum.algorithm);
    if shares && algorithm.is_none_or(|algorithm| known == Some(algorithm)) {
        return Ok(Prepared::Shared);
    }
    let damage = walrus.damage(&format!("/{}/{}", source.bucket, source.key), &object.content);
    let whole = Source::cut(walrus.blobs.clone(), pieces, 0, object.size, Some(pin));
    let mut stream = std::pin::pin!(outflow(whole, damage).await?);
    match algorithm {
        Some(algorithm) if shares => {
            let mut running = Running::new(algorithm);
            while let Some(block) = stream.next().await {
                let block = block?;
                running = tokio::task::spawn_blocking(move || {
                    running.update(&block);
                    running
                })
                .await?;
            }
            Ok(Prepared::Summed(Checksum::full(algorithm, &running.finish())))
        }
        algorithm => {
            let sealed: Option<(DataKey, Seal)> = wish.key(walrus)?;
            let algorithm = algorithm.or(known).unwrap_or(Algorithm::Crc64Nvme);
            let mut intake = walrus.intake(false, &[algorithm])?.sealed(sealed.as_ref().map(|(key, _)| key.clone()));
            while let Some(block) = stream.next().await {
                intake.push(block?).await?;
            }
            let received = intake.finish().await?;
            if received.size != object.size {
                return Err(Error::Internal("a copy is shorter than its source".into()));
            }
            Ok(Prepared::Rewritten {
                etag: etag(&received, sealed.as_ref().map(|(key, seal)| (key, seal)))?,
                checksum: received.checksums.first().map(|(a, sum)| Checksum::full(*a, sum)),
                seal: sealed.map(|(_, seal)| seal),
                received,
            })
        }
    }
}

/// One transaction sees the source again, judges it, and makes the copy.
#[expect(clippy::too_many_arguments, reason = "each is moved into the one transaction")]
async fn commit(
    walrus: &Walrus,
    call: &Call,
    bucket: Bucket,
    source: Wanted,
    seen: Seen,
    draft: Draft,
    conditions: Conditions,
    of_source: Conditions,
    prepared: Prepared,
) -> Result<(Object, Versioning), Error> {
    let (principal, key, now) = (call.principal.clone(), call.target.key.clone(), call.now);
    let (content, made) = match prepared {
        Prepared::Shared => (None, Made::Same),
        Prepared::Summed(checksum) => (None, Made::Summed(checksum)),
        Prepared::Rewritten { received, etag, checksum, seal } => {
            let made = Made::Rewritten {
                keeping: received.content.keeping(),
                place: received.content.place(),
                etag,
                checksum,
                seal,
            };
            (Some(received.content), made)
        }
    };
    let (cause, told) = (Cause::of(walrus, call, "s3:ObjectCreated:Copy"), bucket.clone());
    let copied = walrus
        .store
        .write("copy an object", move |tx| {
            let from = bucket::find(tx, &source.bucket)?;
            let object = opened(tx, &principal, Action::GetObject, &from, &source)?;
            check_source(&object, &of_source)?;
            if object.content != seen.content {
                return Err(refuse::coded(
                    "OperationAborted",
                    409,
                    "The source changed while it was being copied. Please try again.",
                ));
            }
            let draft = draft.clone();
            let mut copy = Object {
                key: key.clone(),
                modified: now,
                storage_class: draft.storage_class,
                owner: draft.owner,
                headers: draft.headers.unwrap_or(object.headers),
                tags: draft.tags.unwrap_or(object.tags),
                acl: draft.acl,
                lock: draft.lock,
                version: VersionId::null(),
                ..object
            };
            match &made {
                Made::Same => {}
                Made::Summed(checksum) => copy.checksum = Some(checksum.clone()),
                Made::Rewritten { keeping, place, etag, checksum, seal } => {
                    keeping.keep(tx)?;
                    copy.content = keeping.id.clone();
                    copy.place = *place;
                    copy.etag = etag.clone();
                    copy.checksum = checksum.clone();
                    copy.seal = seal.clone();
                }
            }
            let versioning = replace(tx, &bucket, &mut copy, &conditions)?;
            notification::created(tx, &bucket, &cause, &copy)?;
            Ok((copy, versioning))
        })
        .await
        .map_err(conflict)?;
    if let Some(content) = content {
        content.keep();
    }
    notification::wake(&walrus.courier, &told);
    Ok(copied)
}

/// What the transaction needs of [`Prepared`].
enum Made {
    Same,
    Summed(Checksum),
    Rewritten { keeping: Keeping, place: Place, etag: String, checksum: Option<Checksum>, seal: Option<Seal> },
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
            ("/b/k?versionId=3", Err("InvalidArgument".into())),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
        for bad in ["", "/", "b", "b/", "/b", "//k", "b/%zz", "b/k?x=1"] {
            assert_eq!(parse(bad), Err("InvalidArgument".into()), "{bad:?}");
        }
    }
}
