//! UploadPart and UploadPartCopy.

use futures_util::StreamExt;
use http::{Response, StatusCode};
use mallee_service::Body;
use mallee_store::params;

use super::{Upload, drop_part, find_open, part_number, some_parts};
use crate::{
    Error, Walrus,
    access::Action,
    blob::{DataKey, Received, Source, outflow},
    call::{Call, Promised},
    checksum::{Algorithm, Checksum},
    error::refuse,
    s3::{
        bucket::{self, Bucket, Versioning},
        condition::Conditions,
        done,
        encryption::Keys,
        iso_time,
        object::{
            copy::{Copied, CopySource},
            get::{Reading, WithBytes, open},
            meta,
            put::{LARGEST, etag, receive, show_checksum},
            to_json, writable,
        },
        quoted,
        range::{self, Ranged, Span},
        set, xml,
    },
};

/// The bucket and the upload a part is for.
async fn opened(walrus: &Walrus, call: &Call) -> Result<(Bucket, Upload, u32), Error> {
    let number = part_number(call.query.get("partNumber").unwrap_or_default())?;
    let bucket = writable(walrus, call, Action::PutObject).await?;
    meta::refuse_unsupported(call)?;
    let id = call.query.get("uploadId").unwrap_or_default().to_owned();
    let (key, of) = (call.target.key.clone(), bucket.clone());
    let upload = walrus.store.look_up("find an upload", move |tx| find_open(tx, &of, &key, &id)).await?;
    Ok((bucket, upload, number))
}

pub async fn upload_part(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (bucket, upload, number) = opened(walrus, call).await?;
    call.payload.must_be_announced()?;
    let promised = Promised::of(call)?;
    if let (Some(asked), Some(sent)) = (upload.algorithm, promised.algorithm)
        && asked != sent
    {
        return Err(refuse::request(format!(
            "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
            asked.name().to_lowercase(),
            sent.name().to_lowercase()
        )));
    }
    // The upload's, for its object; and the one sent, to check what came.
    let wanted = upload.algorithm.unwrap_or(Algorithm::Crc64Nvme);
    let mut algorithms = vec![wanted];
    algorithms.extend(promised.algorithm.filter(|sent| *sent != wanted));
    let keys = Keys::of(walrus, call, "x-amz-")?;
    let key = keys.open(upload.seal.as_ref())?;
    let received = receive(walrus, &mut call.payload, &promised, &algorithms, key.clone()).await?;
    let shown = upload.algorithm.or(promised.algorithm).unwrap_or(Algorithm::Crc64Nvme);
    let shown = received.checksums.iter().find(|(a, _)| *a == shown).map(|(a, sum)| Checksum::full(*a, sum));
    let etag = commit(walrus, call, bucket, &upload, number, received, key).await?;
    let mut response = done(StatusCode::OK);
    set(&mut response, "etag", &quoted(&etag))?;
    keys.show(&mut response, upload.seal.as_ref())?;
    if let Some(checksum) = shown {
        show_checksum(&mut response, &checksum)?;
        response.headers_mut().remove("x-amz-checksum-type");
    }
    Ok(response)
}

/// Makes the part's row in place of an earlier one of its number.
async fn commit(
    walrus: &Walrus,
    call: &Call,
    bucket: Bucket,
    upload: &Upload,
    number: u32,
    received: Received,
    key: Option<DataKey>,
) -> Result<String, Error> {
    let etag = etag(&received, key.as_ref().zip(upload.seal.as_ref()))?;
    let checksum = received.checksums.first().map(|(a, sum)| Checksum::full(*a, sum));
    let (checksum, size, place, now) = (to_json(&checksum)?, received.size, received.content.place(), call.now);
    let (keeping, id, name, tag) =
        (received.content.keeping(), upload.id.clone(), call.target.key.clone(), etag.clone());
    walrus
        .store
        .write("put a part", move |tx| {
            let upload = find_open(tx, &bucket, &name, id.as_str())?;
            if let Some(before) = some_parts(tx, &upload.id, number - 1, 1)?.first().filter(|p| p.number == number) {
                drop_part(tx, &upload.id, before, now)?;
            }
            keeping.keep(tx)?;
            tx.execute(
                "INSERT INTO part (upload, number, content, place, size, etag, checksum, modified)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![upload.id, number, keeping.id, place.number(), size, tag, checksum, now],
            )?;
            Ok::<_, Error>(())
        })
        .await?;
    received.content.keep();
    Ok(etag)
}

pub async fn upload_part_copy(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let source = CopySource::of(call)?;
    let of_source = Conditions::of(call, "x-amz-copy-source-")?;
    let (bucket, upload, number) = opened(walrus, call).await?;
    let of_upload = Keys::of(walrus, call, "x-amz-")?;
    let key = of_upload.open(upload.seal.as_ref())?;
    let keys = Keys::of(walrus, call, "x-amz-copy-source-")?;
    let (from, object, reading) =
        open(walrus, &call.principal, Action::GetObject, source.clone(), keys, WithBytes::Yes).await?;
    let expected = call.header("x-amz-source-expected-bucket-owner")?;
    if expected.is_some_and(|account| account != from.account) {
        return Err(refuse::access_denied());
    }
    bucket::check_expected_owner(call, &bucket)?;
    of_source.check_source(&object.etag, object.modified_seconds())?;
    let span = match call.header("x-amz-copy-source-range")? {
        None => Span { begin: 0, length: object.size },
        Some(text) => match (range::parse(Some(text), object.size), last_of(text)) {
            // Here AWS cuts nothing off: the range must be whole and inside.
            (Ranged::Part(span), Some(last)) if last < object.size => span,
            (Ranged::Part(_) | Ranged::Unsatisfiable, Some(_)) => {
                return Err(refuse::coded(
                    "InvalidRange",
                    416,
                    format!("Range specified is not valid for source object of size: {}", object.size),
                ));
            }
            _ => {
                return Err(refuse::argument(
                    "x-amz-copy-source-range",
                    text,
                    "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
                ));
            }
        },
    };
    if span.length > LARGEST {
        return Err(refuse::request(
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120",
        ));
    }
    let Some(Reading { pieces, pin, .. }) = reading else { return Err(Error::Internal("nothing to read".into())) };
    let damage = walrus.damage(&format!("/{}/{}", source.bucket, source.key), &object.content);
    let cut = Source::cut(walrus.blobs.clone(), pieces, span.begin, span.length, Some(pin));
    let mut stream = std::pin::pin!(outflow(cut, damage).await?);
    let mut intake = walrus.intake(false, &[upload.algorithm.unwrap_or(Algorithm::Crc64Nvme)])?.sealed(key.clone());
    while let Some(block) = stream.next().await {
        intake.push(block?).await?;
    }
    let received = intake.finish().await?;
    if received.size != span.length {
        return Err(Error::Internal("a part's copy is shorter than its source".into()));
    }
    let shown = upload.algorithm.and_then(|_| received.checksums.first());
    let checksum =
        shown.map(|(a, sum)| (format!("Checksum{}", a.name()), crate::checksum::encode(sum))).into_iter().collect();
    let etag = commit(walrus, call, bucket, &upload, number, received, key).await?;
    let mut response =
        xml("CopyPartResult", &Copied { last_modified: iso_time(call.now), etag: quoted(&etag), checksum })?;
    of_upload.show(&mut response, upload.seal.as_ref())?;
    if from.versioning != Versioning::Never {
        set(&mut response, "x-amz-copy-source-version-id", object.version.as_str())?;
    }
    Ok(response)
}

/// The end of `bytes=first-last`, both given.
fn last_of(text: &str) -> Option<u64> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    last.parse().ok().filter(|last| *last >= first)
}
