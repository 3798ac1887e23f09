//! GetObject, HeadObject and GetObjectAttributes.

use std::sync::Arc;

use http::{Method, Response, StatusCode, header};
use mallee_aws::AwsError;
use mallee_service::{Body, body};
use mallee_store::Tx;
use serde::Serialize;

use super::{Object, Wanted, lock, opened, put::show_checksum, show_version};
use crate::{
    Error, Walrus,
    access::Action,
    blob::{BlobId, Piece, Pin, Pins, Place, Source, outflow},
    call::Call,
    error::refuse,
    principal::Principal,
    s3::{
        bucket::{self, Bucket, lifecycle},
        condition::{Conditions, Verdict},
        done,
        encryption::{self, Keys},
        http_time,
        multipart::{self, Part},
        quoted,
        range::{self, Ranged, Span},
        set, xml,
    },
};

/// An object that is about to be read, with its bytes at hand.
pub struct Reading {
    /// The whole content, in order.
    pub pieces: Vec<Piece>,
    pub parts: Vec<Part>,
    pub pin: Pin,
}

/// Everything that a read of the content needs, from one view of the store.
fn reading(tx: &mut Tx<'_>, pins: &Pins, object: &Object, keys: &Keys) -> Result<Reading, Error> {
    let key = keys.open(object.seal.as_ref())?;
    // Before this view of the store is given up: the sweep waits longer than it takes to come here.
    let pin = pins.pin(&object.content);
    let parts = if object.place == Place::Parts { multipart::parts(tx, &object.content)? } else { Vec::new() };
    let pieces = match object.place {
        Place::Nowhere => Vec::new(),
        Place::Row => vec![Piece::small(tx, &object.content, key.as_ref())?],
        Place::Blob => vec![Piece::blob(&object.content, object.size, key.as_ref())?],
        Place::Parts => parts.iter().map(|part| part.piece(tx, key.as_ref())).collect::<Result<_, _>>()?,
    };
    Ok(Reading { pieces, parts, pin })
}

/// Opens an object for this principal.
pub async fn open(
    walrus: &Walrus,
    principal: &Principal,
    action: Action,
    wanted: Wanted,
    keys: Keys,
    with_bytes: WithBytes,
) -> Result<(Bucket, Object, Option<Reading>), Error> {
    let (principal, pins, known) = (principal.clone(), walrus.pins.clone(), walrus.known_policies.clone());
    let opening = Arc::new((principal, pins, known, wanted, keys));
    let open = |parts| {
        let opening = opening.clone();
        move |tx: &mut Tx<'_>| {
            let (principal, pins, known, wanted, keys) = &*opening;
            let bucket = bucket::find_known(tx, known, &wanted.bucket)?;
            let object = opened(tx, principal, action, &bucket, wanted)?;
            let reading = match with_bytes {
                WithBytes::Yes if object.place == Place::Parts && parts == Parts::Elsewhere => return Ok(None),
                WithBytes::Yes => Some(reading(tx, pins, &object, keys)?),
                WithBytes::No => keys.open(object.seal.as_ref()).map(|_| None)?,
            };
            Ok::<_, Error>(Some((bucket, object, reading)))
        }
    };
    // There may be ten thousand parts, which is more than a look-up.
    let opened = match walrus.store.look_up("open an object", open(Parts::Elsewhere)).await? {
        None => walrus.store.read("open an object of parts", open(Parts::Here)).await?,
        opened => opened,
    };
    opened.ok_or_else(|| Error::Internal("an object was not opened".into()))
}

/// Whether a transaction may visit all parts of an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parts {
    Here,
    Elsewhere,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum WithBytes {
    Yes,
    No,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    refuse_reading(call)?;
    // The bytes were swept between the row and the opening only if this machine stood still for the sweep's patience.
    for attempt in 0.. {
        match answer(walrus, call).await {
            Err(Error::Blob(e)) if e.kind() == std::io::ErrorKind::NotFound && attempt < 3 => continue,
            answer => return answer,
        }
    }
    Err(Error::Internal("unreachable".into()))
}

fn refuse_reading(call: &Call) -> Result<(), Error> {
    encryption::refuse_on_read(call)?;
    let overrides = call.query.iter().any(|(name, _)| OVERRIDES.iter().any(|(known, _)| *known == name));
    if overrides && call.principal.is_anonymous() {
        return Err(refuse::request("Request specific response headers cannot be used for anonymous GET requests."));
    }
    Ok(())
}

const OVERRIDES: [(&str, &str); 6] = [
    ("response-content-type", "content-type"),
    ("response-content-language", "content-language"),
    ("response-expires", "expires"),
    ("response-cache-control", "cache-control"),
    ("response-content-disposition", "content-disposition"),
    ("response-content-encoding", "content-encoding"),
];

async fn answer(walrus: &Walrus, call: &Call) -> Result<Response<Body>, Error> {
    let head = call.method == Method::HEAD;
    let part_number = part_number(call)?;
    let with_bytes = if head && part_number.is_none() { WithBytes::No } else { WithBytes::Yes };
    let keys = Keys::of(walrus, call, "x-amz-")?;
    let (bucket, object, reading) =
        open(walrus, &call.principal, Action::GetObject, Wanted::of(call)?, keys.clone(), with_bytes).await?;
    bucket::check_expected_owner(call, &bucket)?;

    match Conditions::of(call, "")?.judge(&object.etag, object.modified_seconds()) {
        Verdict::Go => {}
        Verdict::NotModified => {
            let mut response = done(StatusCode::NOT_MODIFIED);
            set(&mut response, "etag", &quoted(&object.etag))?;
            set(&mut response, "last-modified", &http_time(object.modified))?;
            show_version(&mut response, bucket.versioning, &object.version)?;
            return Ok(response);
        }
        Verdict::Failed(condition) => return Err(refuse::precondition(condition)),
    }
    let range = call.header("range")?;
    let (span, status) = match (part_number, range) {
        (Some(_), Some(_)) => {
            return Err(refuse::request("Cannot specify both Range header and partNumber query parameter."));
        }
        (Some(number), None) => (span_of_part(number, &object, reading.as_ref())?, StatusCode::PARTIAL_CONTENT),
        (None, range) => match range::parse(range, object.size) {
            Ranged::Whole => (Span { begin: 0, length: object.size }, StatusCode::OK),
            Ranged::Part(span) => (span, StatusCode::PARTIAL_CONTENT),
            Ranged::Unsatisfiable => {
                return Err(Error::Refused(
                    AwsError::new("InvalidRange", 416, "The requested range is not satisfiable")
                        .with_field("RangeRequested", range.unwrap_or_default())
                        .with_field("ActualObjectSize", object.size.to_string()),
                ));
            }
        },
    };

    let mut response = match reading {
        Some(reading) if !head => {
            let name = (call.target.resource(), object.content.clone());
            Response::new(content(walrus, reading, span, &name).await?)
        }
        _ => Response::new(body::empty()),
    };
    *response.status_mut() = status;
    describe(&mut response, call, &object)?;
    show_version(&mut response, bucket.versioning, &object.version)?;
    keys.show(&mut response, object.seal.as_ref())?;
    lock::show(&mut response, &object.lock)?;
    lifecycle::show_expiration(walrus, &mut response, &bucket, &object).await?;
    set(&mut response, "content-length", &span.length.to_string())?;
    if status == StatusCode::PARTIAL_CONTENT && span.length > 0 {
        let last = span.begin + span.length - 1;
        set(&mut response, "content-range", &format!("bytes {}-{last}/{}", span.begin, object.size))?;
    }
    if part_number.is_some()
        && let Some(parts) = object.parts()
    {
        set(&mut response, "x-amz-mp-parts-count", &parts.to_string())?;
    }
    if let Some(checksum) = &object.checksum
        && call.header("x-amz-checksum-mode")?.is_some_and(|mode| mode.eq_ignore_ascii_case("ENABLED"))
        && span.length == object.size
    {
        show_checksum(&mut response, checksum)?;
    }
    Ok(response)
}

/// The headers every read of an object has.
fn describe(response: &mut Response<Body>, call: &Call, object: &Object) -> Result<(), Error> {
    set(response, "last-modified", &http_time(object.modified))?;
    set(response, "etag", &quoted(&object.etag))?;
    set(response, "accept-ranges", "bytes")?;
    if !object.headers.iter().any(|(name, _)| name == "content-type") {
        set(response, "content-type", "binary/octet-stream")?;
    }
    for (name, value) in &object.headers {
        set(response, name, value)?;
    }
    if object.storage_class != super::meta::STANDARD {
        set(response, "x-amz-storage-class", &object.storage_class)?;
    }
    if !object.tags.is_empty() {
        set(response, "x-amz-tagging-count", &object.tags.len().to_string())?;
    }
    for (parameter, name) in OVERRIDES {
        if let Some(value) = call.query.get(parameter) {
            set(response, name, value)?;
        }
    }
    Ok(())
}

/// The bytes of a span, the first of them already verified.
async fn content(
    walrus: &Walrus,
    reading: Reading,
    span: Span,
    (resource, id): &(String, BlobId),
) -> Result<Body, Error> {
    // What came out of a row is at hand and verified: no worker and no stream for it.
    if let [Piece::Bytes(bytes)] = &reading.pieces[..] {
        let end = span.begin.saturating_add(span.length).min(bytes.len() as u64);
        let begin = span.begin.min(end);
        return Ok(body::full(bytes.slice(begin as usize..end as usize)));
    }
    let source = Source::cut(walrus.blobs.clone(), reading.pieces, span.begin, span.length, Some(reading.pin));
    let stream = outflow(source, walrus.damage(resource, id)).await?;
    Ok(body::stream(stream))
}

fn part_number(call: &Call) -> Result<Option<u32>, Error> {
    let Some(text) = call.query.get("partNumber") else { return Ok(None) };
    multipart::part_number(text).map(Some)
}

fn span_of_part(number: u32, object: &Object, reading: Option<&Reading>) -> Result<Span, Error> {
    let invalid = || refuse::coded("InvalidPartNumber", 416, "The requested partnumber is not satisfiable");
    let parts = reading.map(|reading| reading.parts.as_slice()).unwrap_or_default();
    if object.place != Place::Parts {
        return if number == 1 { Ok(Span { begin: 0, length: object.size }) } else { Err(invalid()) };
    }
    // The Nth part that was listed, whatever number it had.
    let at = number as usize - 1;
    let part = parts.get(at).ok_or_else(invalid)?;
    let begin = parts[..at].iter().map(|part| part.size).sum();
    Ok(Span { begin, length: part.size })
}

pub async fn attributes(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(rename = "ETag", skip_serializing_if = "Option::is_none")]
        etag: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        checksum: Option<Checksums>,
        #[serde(skip_serializing_if = "Option::is_none")]
        object_parts: Option<ObjectParts>,
        #[serde(skip_serializing_if = "Option::is_none")]
        storage_class: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        object_size: Option<u64>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct ObjectParts {
        parts_count: usize,
        part_number_marker: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_part_number_marker: Option<u32>,
        max_parts: usize,
        is_truncated: bool,
        part: Vec<PartOut>,
    }
    /// `ChecksumCRC32` and its like, by name.
    #[derive(Serialize, Default)]
    struct Checksums {
        #[serde(flatten)]
        by_name: std::collections::BTreeMap<String, String>,
    }
    #[derive(Serialize)]
    struct PartOut {
        #[serde(flatten)]
        checksum: Checksums,
        #[serde(rename = "PartNumber")]
        part_number: u32,
        #[serde(rename = "Size")]
        size: u64,
    }

    refuse_reading(call)?;
    let wanted: Vec<String> = call
        .headers
        .get_all("x-amz-object-attributes")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .collect();
    let known = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"];
    if wanted.iter().all(String::is_empty) {
        return Err(refuse::request(
            "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty",
        ));
    }
    if wanted.iter().any(|name| !known.contains(&name.as_str())) {
        return Err(refuse::argument(
            "x-amz-object-attributes",
            &wanted.join(","),
            "Invalid attribute name specified.",
        ));
    }
    let wants = |name: &str| wanted.iter().any(|wanted| wanted == name);
    let number = |name: &str, otherwise: usize| -> Result<usize, Error> {
        call.header(name)?.map_or(Ok(otherwise), |text| {
            text.parse().map_err(|_| refuse::argument(name, text, "The value is not a number."))
        })
    };
    let (most, marker) = (number("x-amz-max-parts", 1000)?.min(1000), number("x-amz-part-number-marker", 0)?);
    let (wanted, keys) = (Wanted::of(call)?, Keys::of(walrus, call, "x-amz-")?);
    let (bucket, object, reading) =
        open(walrus, &call.principal, Action::GetObjectAttributes, wanted, keys, WithBytes::Yes).await?;
    bucket::check_expected_owner(call, &bucket)?;
    let parts = reading.map(|reading| reading.parts).unwrap_or_default();
    let one_checksum = |algorithm: &str, value: &str| Checksums {
        by_name: [(format!("Checksum{algorithm}"), value.to_owned())].into(),
    };
    let object_parts = (wants("ObjectParts") && !parts.is_empty()).then(|| {
        let shown: Vec<PartOut> = parts
            .iter()
            .enumerate()
            .map(|(at, part)| (at as u32 + 1, part))
            .filter(|(number, _)| *number as usize > marker)
            .take(most)
            .map(|(part_number, part)| PartOut {
                checksum: part
                    .checksum
                    .as_ref()
                    .map(|c| one_checksum(c.algorithm.name(), &c.value))
                    .unwrap_or_default(),
                part_number,
                size: part.size,
            })
            .collect();
        let last = shown.last().map_or(marker as u32, |part| part.part_number);
        ObjectParts {
            parts_count: parts.len(),
            part_number_marker: marker as u32,
            is_truncated: (last as usize) < parts.len(),
            next_part_number_marker: Some(last),
            max_parts: most,
            part: shown,
        }
    });
    let checksum = object.checksum.as_ref().filter(|_| wants("Checksum")).map(|checksum| {
        let mut shown = one_checksum(checksum.algorithm.name(), &checksum.value);
        shown.by_name.insert("ChecksumType".into(), checksum.kind.name().into());
        shown
    });
    let mut response = xml(
        "GetObjectAttributesResponse",
        &Answer {
            etag: wants("ETag").then(|| object.etag.clone()),
            checksum,
            object_parts,
            storage_class: wants("StorageClass").then(|| object.storage_class.clone()),
            object_size: wants("ObjectSize").then_some(object.size),
        },
    )?;
    set(&mut response, header::LAST_MODIFIED.as_str(), &http_time(object.modified))?;
    show_version(&mut response, bucket.versioning, &object.version)?;
    Ok(response)
}
