//! CompleteMultipartUpload: exactly once, and as often asked as the client needs to hear it.

use http::Response;
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use mallee_store::{Tx, params};
use openssl::hash::{Hasher, MessageDigest};
use serde::{Deserialize, Serialize};

use super::{MOST_PARTS, Part, Upload, drop_part, find, parts};
use crate::{
    Error, Walrus,
    access::Action,
    blob::Place,
    call::Call,
    checksum::{Algorithm, Checksum, Kind, encode},
    error::refuse,
    s3::{
        acl,
        bucket::{
            Bucket, Versioning,
            notification::{self, Cause},
        },
        condition::Conditions,
        encryption,
        object::{Object, VersionId, from_json, put::conflict, show_new_version, version::replace, writable},
        quoted, set, xml,
    },
};

/// The least size of every part but the last.
const LEAST: u64 = 5 << 20;
/// The largest object, by AWS (50 TB since 2025).
const LARGEST: u64 = 50_000_000_000_000;

#[derive(Deserialize)]
struct Complete {
    #[serde(rename = "Part", default)]
    parts: Vec<Listed>,
}

/// A part as the client lists it.
#[derive(Deserialize, Clone, Default)]
struct Listed {
    #[serde(rename = "PartNumber")]
    number: u32,
    #[serde(rename = "ETag")]
    etag: String,
    #[serde(rename = "ChecksumCRC32")]
    crc32: Option<String>,
    #[serde(rename = "ChecksumCRC32C")]
    crc32c: Option<String>,
    #[serde(rename = "ChecksumCRC64NVME")]
    crc64nvme: Option<String>,
    #[serde(rename = "ChecksumSHA1")]
    sha1: Option<String>,
    #[serde(rename = "ChecksumSHA256")]
    sha256: Option<String>,
}

impl Listed {
    fn checksum(&self, algorithm: Algorithm) -> Option<&str> {
        match algorithm {
            Algorithm::Crc32 => self.crc32.as_deref(),
            Algorithm::Crc32c => self.crc32c.as_deref(),
            Algorithm::Crc64Nvme => self.crc64nvme.as_deref(),
            Algorithm::Sha1 => self.sha1.as_deref(),
            Algorithm::Sha256 => self.sha256.as_deref(),
        }
    }

    fn names(&self, part: &Part) -> bool {
        let etag = self.etag.trim().trim_matches('"');
        let checksum = part.checksum.as_ref();
        etag.eq_ignore_ascii_case(&part.etag)
            && checksum.is_none_or(|c| self.checksum(c.algorithm).is_none_or(|given| given == c.value))
    }

    /// What the client says of the part's checksum must fit the upload: of its algorithm, one, and where the object's is
    /// made of those of the parts, never missing.
    fn check(&self, upload: &Upload) -> Result<(), Error> {
        let mut given = Algorithm::ALL.into_iter().filter_map(|algorithm| Some((algorithm, self.checksum(algorithm)?)));
        let (first, second) = (given.next(), given.next());
        if second.is_some() || first.is_some_and(|(algorithm, text)| algorithm.parse(text).is_none()) {
            return Err(refuse::argument("Checksum", "", "Invalid Base64 or multiple checksums present in request"));
        }
        let name = |algorithm: Algorithm| algorithm.name().to_lowercase();
        match (upload.algorithm, first) {
            (Some(wanted), Some((sent, _))) if wanted != sent => Err(refuse::bad_digest(format!(
                "The {} you specified for part {} did not match what we received.",
                name(sent),
                self.number
            ))),
            (Some(wanted), None) if upload.kind == Kind::Composite => Err(refuse::request(format!(
                "The upload was created using a {} checksum. The complete request must include the checksum for each part. It was missing for part {} in the request.",
                name(wanted),
                self.number
            ))),
            _ => Ok(()),
        }
    }
}

/// What the client expects of the whole.
#[derive(Clone)]
struct Expected {
    size: Option<u64>,
    checksum: Option<(Algorithm, String)>,
    kind: Option<String>,
    conditions: Conditions,
}

impl Expected {
    fn of(call: &Call) -> Result<Self, Error> {
        let mut checksum = None;
        for algorithm in Algorithm::ALL {
            let Some(text) = call.header(algorithm.header())? else { continue };
            if checksum.is_some() {
                return Err(refuse::several_checksums());
            }
            if algorithm.parse(bare(text)).is_none() {
                return Err(refuse::wrong_checksum(algorithm.name()));
            }
            checksum = Some((algorithm, text.to_owned()));
        }
        let size = match call.header("x-amz-mp-object-size")? {
            None => None,
            Some(text) if text.starts_with('-') => {
                return Err(refuse::request(format!(
                    "Value for x-amz-mp-object-size header is less than zero: '{text}'"
                )));
            }
            Some(text) => {
                Some(text.parse().map_err(|_| refuse::request("Value for x-amz-mp-object-size header is invalid."))?)
            }
        };
        let kind = call.header("x-amz-checksum-type")?.map(str::to_owned);
        Ok(Self { size, checksum, kind, conditions: Conditions::of(call, "")? })
    }
}

/// The checksum without `-N`, which not every client sends.
fn bare(text: &str) -> &str {
    text.rsplit_once('-').filter(|(_, n)| n.parse::<u32>().is_ok()).map_or(text, |(bare, _)| bare)
}

pub async fn complete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    struct Answer {
        #[serde(rename = "Location")]
        location: String,
        #[serde(rename = "Bucket")]
        bucket: String,
        #[serde(rename = "Key")]
        key: String,
        #[serde(rename = "ETag")]
        etag: String,
        #[serde(flatten)]
        checksum: std::collections::BTreeMap<String, String>,
    }

    let bucket = writable(walrus, call, Action::PutObject).await?;
    let expected = Expected::of(call)?;
    // The header's checksum is the object's, not this document's.
    for algorithm in Algorithm::ALL {
        call.headers.remove(algorithm.header());
    }
    let body = call.document(document::Limits::LARGE.bytes).await?;
    let asked: Complete = document::parse(&body, "CompleteMultipartUpload", document::Limits::LARGE)?;
    if asked.parts.is_empty() {
        return Err(refuse::request("You must specify at least one part"));
    }
    if asked.parts.len() > MOST_PARTS as usize {
        return Err(refuse::malformed_xml());
    }
    if asked.parts.iter().any(|part| part.number < 1) {
        return Err(refuse::argument("PartNumber", "0", "PartNumber must be >= 1"));
    }
    if asked.parts.windows(2).any(|two| two[0].number >= two[1].number) {
        return Err(refuse::coded(
            "InvalidPartOrder",
            400,
            "The list of parts was not in ascending order. The parts list must be specified in order by part number.",
        ));
    }
    let id = call.query.get("uploadId").unwrap_or_default().to_owned();
    let (key, now, of) = (call.target.key.clone(), call.now, bucket.clone());
    let cause = Cause::of(walrus, call, "s3:ObjectCreated:CompleteMultipartUpload");
    let (Outcome { etag, checksum, version, sealed }, versioning) = walrus
        .store
        .write("complete an upload", move |tx| once(tx, &of, &key, &id, &asked.parts, &expected, now, &cause))
        .await
        .map_err(conflict)?;
    notification::wake(&walrus.courier, &bucket);
    let mut shown = std::collections::BTreeMap::new();
    if let Some(checksum) = &checksum {
        shown.insert(format!("Checksum{}", checksum.algorithm.name()), checksum.value.clone());
        shown.insert("ChecksumType".into(), checksum.kind.name().into());
    }
    let answer = Answer {
        location: format!("{}/{}/{}", call.origin, call.target.bucket, call.target.key),
        bucket: bucket.name,
        key: call.target.key.clone(),
        etag: quoted(&etag),
        checksum: shown,
    };
    let mut response = xml("CompleteMultipartUploadResult", &answer)?;
    set(&mut response, "cache-control", "no-cache")?;
    show_new_version(&mut response, versioning, &VersionId::parse(&version)?)?;
    if sealed {
        set(&mut response, "x-amz-server-side-encryption", "AES256")?;
    }
    Ok(response)
}

/// In one transaction: the parts are the object, and the upload is over.
#[expect(clippy::too_many_arguments, reason = "each is moved into the one transaction")]
fn once(
    tx: &mut Tx<'_>,
    bucket: &Bucket,
    key: &str,
    id: &str,
    listed: &[Listed],
    expected: &Expected,
    now: i64,
    cause: &Cause,
) -> Result<(Outcome, Versioning), Error> {
    let upload = find(tx, bucket.id, key, id)?;
    if upload.completed.is_some() {
        return Ok((replayed(&upload, listed)?, bucket.versioning));
    }
    listed.iter().try_for_each(|part| part.check(&upload))?;
    let uploaded = parts(tx, &upload.id)?;
    let chosen = choose(&uploaded, listed)?;
    let size: u64 = chosen.iter().map(|part| part.size).sum();
    if size > LARGEST {
        return Err(refuse::coded(
            "EntityTooLarge",
            400,
            "Your proposed upload exceeds the maximum allowed object size.",
        ));
    }
    if let Some(expected) = expected.size.filter(|expected| *expected != size) {
        return Err(refuse::request(format!(
            "The provided 'x-amz-mp-object-size' header value {expected} does not match what was computed: {size}"
        )));
    }
    if expected.kind.as_ref().is_some_and(|kind| kind != upload.kind.name()) {
        return Err(refuse::request(format!(
            "The upload was created using the {} checksum mode. The complete request must use the same checksum mode.",
            upload.kind.name()
        )));
    }
    let (etag, checksum) = (etag(&chosen)?, checksum(&upload, &chosen));
    if let Some((algorithm, text)) = &expected.checksum {
        let fits = |c: &Checksum| c.algorithm == *algorithm && (c.value == *text || bare(&c.value) == text);
        if !checksum.as_ref().is_some_and(fits) {
            return Err(refuse::wrong_checksum(algorithm.name()));
        }
    }
    let mut object = Object {
        key: key.into(),
        modified: now,
        size,
        etag: etag.clone(),
        storage_class: upload.storage_class.clone(),
        owner: upload.owner.clone(),
        checksum: checksum.clone(),
        content: upload.id.clone(),
        place: Place::Parts,
        headers: from_json(&upload.headers)?,
        tags: from_json(&upload.tags)?,
        acl: acl::from_text(&upload.acl, &upload.owner)?,
        version: VersionId::null(),
        rank: 0,
        lock: from_json(&upload.lock)?,
        seal: upload.seal.clone(),
    };
    for unused in
        uploaded.iter().filter(|part| chosen.binary_search_by_key(&part.number, |chosen| chosen.number).is_err())
    {
        drop_part(tx, &upload.id, unused, now)?;
    }
    let versioning = replace(tx, bucket, &mut object, &expected.conditions)?;
    notification::created(tx, bucket, cause, &object)?;
    let outcome = Outcome {
        etag,
        checksum,
        version: object.version.as_str().to_owned(),
        sealed: upload.seal.is_some_and(|seal| seal.kind == encryption::Kind::S3),
    };
    tx.execute(
        "UPDATE upload SET completed = ?2, result = ?3 WHERE id = ?1",
        params![upload.id, now, result(&outcome)?],
    )?;
    Ok((outcome, versioning))
}

/// What came of an upload, as its row says it once it is completed.
#[derive(Serialize, Deserialize)]
struct Outcome {
    etag: String,
    checksum: Option<Checksum>,
    version: String,
    sealed: bool,
}

fn result(outcome: &Outcome) -> Result<String, Error> {
    serde_json::to_string(outcome).map_err(|e| Error::Internal(e.to_string()))
}

/// Before there were versions it was two things.
fn outcome(text: &str) -> Result<Outcome, serde_json::Error> {
    let older = |(etag, checksum)| Outcome { etag, checksum, version: "null".into(), sealed: false };
    serde_json::from_str(text).or_else(|_| serde_json::from_str(text).map(older))
}

/// The same answer to the same question; another one is about an upload that is no more.
fn replayed(upload: &Upload, listed: &[Listed]) -> Result<Outcome, Error> {
    let outcome = outcome(&upload.result).map_err(|e| Error::Internal(format!("a completed upload: {e}")))?;
    let sums = listed.iter().map(|part| hex::decode(part.etag.trim().trim_matches('"')).unwrap_or_default());
    if etag_of(sums, listed.len())? != outcome.etag {
        return Err(refuse::no_such_upload(upload.id.as_str()));
    }
    Ok(outcome)
}

/// The uploaded parts the client lists, in its order, which is theirs.
fn choose<'p>(uploaded: &'p [Part], listed: &[Listed]) -> Result<Vec<&'p Part>, Error> {
    let mut chosen = Vec::with_capacity(listed.len());
    for wanted in listed {
        let part = uploaded
            .binary_search_by_key(&wanted.number, |part| part.number)
            .ok()
            .and_then(|at| uploaded.get(at))
            .filter(|part| wanted.names(part));
        let Some(part) = part else {
            return Err(Error::Refused(
                AwsError::bad_request(
                    "InvalidPart",
                    "One or more of the specified parts could not be found.  The part may not have been uploaded, or the specified entity tag may not match the part's entity tag.",
                )
                .with_field("PartNumber", wanted.number.to_string())
                .with_field("ETag", &wanted.etag),
            ));
        };
        chosen.push(part);
    }
    let but_the_last = chosen.split_last().map_or(&[][..], |(_, rest)| rest);
    match but_the_last.iter().find(|part| part.size < LEAST) {
        None => Ok(chosen),
        Some(part) => Err(Error::Refused(
            AwsError::bad_request("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
                .with_field("ProposedSize", part.size.to_string())
                .with_field("MinSizeAllowed", LEAST.to_string())
                .with_field("PartNumber", part.number.to_string())
                .with_field("ETag", &part.etag),
        )),
    }
}

fn etag(parts: &[&Part]) -> Result<String, Error> {
    etag_of(parts.iter().map(|part| hex::decode(&part.etag).unwrap_or_default()), parts.len())
}

/// The MD5 of the parts' MD5s, and how many they are.
fn etag_of(sums: impl Iterator<Item = Vec<u8>>, count: usize) -> Result<String, Error> {
    let failed = |e: openssl::error::ErrorStack| Error::Internal(format!("MD5: {e}"));
    let mut md5 = Hasher::new(MessageDigest::md5()).map_err(failed)?;
    for sum in sums {
        md5.update(&sum).map_err(failed)?;
    }
    Ok(format!("{}-{count}", hex::encode(md5.finish().map_err(failed)?)))
}

fn checksum(upload: &Upload, parts: &[&Part]) -> Option<Checksum> {
    let algorithm = upload.algorithm.unwrap_or(Algorithm::Crc64Nvme);
    let sums = parts.iter().map(|part| {
        let checksum = part.checksum.as_ref().filter(|checksum| checksum.algorithm == algorithm)?;
        Some((algorithm.parse(&checksum.value)?, part.size))
    });
    let sums: Vec<(Vec<u8>, u64)> = sums.collect::<Option<_>>()?;
    Some(match upload.kind {
        Kind::FullObject => Checksum::full(algorithm, &algorithm.join(&sums)?),
        Kind::Composite => Checksum {
            algorithm,
            value: format!("{}-{}", encode(&algorithm.compose(&sums)), sums.len()),
            kind: Kind::Composite,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::BlobId;

    #[test]
    fn a_listed_part_must_bring_the_checksum_its_upload_is_made_of() {
        let upload = |algorithm, kind| Upload {
            id: BlobId::new(1),
            bucket: crate::s3::bucket::BucketId(1),
            key: String::new(),
            created: 0,
            initiator: String::new(),
            owner: String::new(),
            storage_class: String::new(),
            algorithm,
            kind,
            headers: String::new(),
            tags: String::new(),
            acl: String::new(),
            completed: None,
            result: String::new(),
            lock: String::new(),
            seal: None,
        };
        let (crc, sha) = (Some("AAAAAA==".to_owned()), Some("2jmj7l5rSw0yVb/vlWAYkK/YBwk=".to_owned()));
        let part = |crc32: &Option<String>, sha1: &Option<String>| Listed {
            number: 1,
            crc32: crc32.clone(),
            sha1: sha1.clone(),
            ..Listed::default()
        };
        let broken = Some("AAA".to_owned());
        let (composite, full) = (Kind::Composite, Kind::FullObject);
        let table = [
            (Some(Algorithm::Crc32), composite, part(&crc, &None), None),
            (Some(Algorithm::Crc32), composite, part(&None, &None), Some("InvalidRequest")),
            (Some(Algorithm::Crc32), full, part(&None, &None), None),
            (Some(Algorithm::Crc32), full, part(&None, &sha), Some("BadDigest")),
            (Some(Algorithm::Crc32), composite, part(&crc, &sha), Some("InvalidArgument")),
            (Some(Algorithm::Crc32), composite, part(&broken, &None), Some("InvalidArgument")),
            (None, full, part(&None, &None), None),
            (None, full, part(&crc, &None), None),
        ];
        for (at, (algorithm, kind, listed, expected)) in table.into_iter().enumerate() {
            let code = listed.check(&upload(algorithm, kind)).err().map(|e| e.told().code.into_owned());
            assert_eq!(code.as_deref(), expected, "row {at}");
        }
        assert_eq!((bare("AAAAAA==-12"), bare("AAAAAA=="), bare("A-B")), ("AAAAAA==", "AAAAAA==", "A-B"));
    }

    #[test]
    fn the_etag_is_that_of_the_manual() {
        let sums = [openssl::hash::hash(MessageDigest::md5(), b"a").unwrap().to_vec()];
        // md5(md5("a")), as `printf a | openssl md5 -binary | openssl md5` says it.
        assert_eq!(etag_of(sums.into_iter(), 1).unwrap(), "b6ff9a06b7e20bcb2858c5b8ff744aea-1");
    }
}
