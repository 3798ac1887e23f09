//! ListParts and ListMultipartUploads.

use http::Response;
use mallee_service::Body;
use mallee_store::params;
use serde::Serialize;

use super::{UPLOAD, Upload, find_open, some_parts, upload_row};
use crate::{
    Error, Walrus,
    access::Action,
    blob::BlobId,
    call::Call,
    error::refuse,
    s3::{
        Owner, bucket, iso_time,
        object::{
            list::{Asked, CommonPrefix, Encoding, Entry, most, walk},
            writable,
        },
        quoted, xml,
    },
};

pub async fn list_parts(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        bucket: String,
        key: String,
        upload_id: String,
        initiator: Owner,
        owner: Owner,
        storage_class: String,
        part_number_marker: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_part_number_marker: Option<u32>,
        max_parts: usize,
        is_truncated: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding_type: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        checksum_algorithm: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        checksum_type: Option<&'static str>,
        part: Vec<PartOut>,
    }
    #[derive(Serialize)]
    struct PartOut {
        #[serde(rename = "PartNumber")]
        number: u32,
        #[serde(rename = "LastModified")]
        last_modified: String,
        #[serde(rename = "ETag")]
        etag: String,
        #[serde(rename = "Size")]
        size: u64,
        #[serde(flatten)]
        checksum: std::collections::BTreeMap<String, String>,
    }

    let bucket = writable(walrus, call, Action::ListMultipartUploadParts).await?;
    let encoding = Encoding::of(call)?;
    let most = most(call, "max-parts")?;
    let marker = match call.query.get("part-number-marker") {
        None | Some("") => 0,
        Some(text) => text.parse::<u32>().map_err(|_| {
            refuse::argument(
                "part-number-marker",
                text,
                "Provided part-number-marker not an integer or within integer range",
            )
        })?,
    };
    let id = call.query.get("uploadId").unwrap_or_default().to_owned();
    let (key, of) = (call.target.key.clone(), bucket.clone());
    let (upload, mut parts) = walrus
        .store
        .read("list parts", move |tx| {
            let upload = find_open(tx, &of, &key, &id)?;
            let parts = some_parts(tx, &upload.id, marker, most + 1)?;
            Ok::<_, Error>((upload, parts))
        })
        .await?;
    let more = parts.len() > most;
    parts.truncate(most);
    let answer = Answer {
        bucket: bucket.name,
        key: encoding.write(&upload.key),
        upload_id: upload.id.as_str().into(),
        initiator: Owner::of(walrus, &upload.initiator),
        owner: Owner::of(walrus, &upload.owner),
        storage_class: upload.storage_class.clone(),
        part_number_marker: marker,
        next_part_number_marker: parts.last().map(|part| part.number),
        max_parts: most,
        is_truncated: more && most > 0,
        encoding_type: encoding.name(),
        checksum_algorithm: upload.algorithm.map(|a| a.name()),
        checksum_type: upload.algorithm.map(|_| upload.kind.name()),
        part: parts
            .into_iter()
            .map(|part| PartOut {
                number: part.number,
                last_modified: iso_time(part.modified),
                etag: quoted(&part.etag),
                size: part.size,
                checksum: part
                    .checksum
                    .filter(|_| upload.algorithm.is_some())
                    .map(|c| (format!("Checksum{}", c.algorithm.name()), c.value))
                    .into_iter()
                    .collect(),
            })
            .collect(),
    };
    xml("ListPartsResult", &answer)
}

pub async fn list_uploads(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        bucket: String,
        key_marker: String,
        upload_id_marker: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_key_marker: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_upload_id_marker: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        delimiter: Option<String>,
        prefix: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        encoding_type: Option<&'static str>,
        max_uploads: usize,
        is_truncated: bool,
        upload: Vec<UploadOut>,
        common_prefixes: Vec<CommonPrefix>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct UploadOut {
        key: String,
        upload_id: String,
        initiator: Owner,
        owner: Owner,
        storage_class: String,
        initiated: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        checksum_algorithm: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        checksum_type: Option<&'static str>,
    }

    let bucket = bucket::opened(walrus, call, Action::ListBucketMultipartUploads).await?;
    let encoding = Encoding::of(call)?;
    let text = |name: &str| call.query.get(name).unwrap_or_default().to_owned();
    let (key_marker, id_marker) = (text("key-marker"), text("upload-id-marker"));
    // A marker without a key means nothing, by the manual.
    let after_upload = if key_marker.is_empty() { None } else { BlobId::parse(&id_marker) };
    let asked = Asked {
        prefix: text("prefix"),
        delimiter: text("delimiter"),
        after: key_marker.clone(),
        most: most(call, "max-uploads")?,
    };
    let (id, for_page) = (bucket.id, asked.clone());
    let page = walrus.store.read("list uploads", move |tx| uploads(tx, id, &for_page, after_upload.as_ref())).await?;
    let last = page.entries.iter().rev().find_map(|entry| match entry {
        Entry::Key(upload) if Some(&upload.key) == page.next.as_ref() => Some(upload.id.as_str().to_owned()),
        _ => None,
    });
    let mut answer = Answer {
        bucket: bucket.name,
        key_marker: encoding.write(&key_marker),
        upload_id_marker: id_marker,
        is_truncated: page.next.is_some(),
        next_upload_id_marker: page.next.as_ref().map(|_| last.unwrap_or_default()),
        next_key_marker: page.next.as_ref().map(|next| encoding.write(next)),
        delimiter: Some(asked.delimiter).filter(|d| !d.is_empty()).map(|d| encoding.write(&d)),
        prefix: encoding.write(&asked.prefix),
        encoding_type: encoding.name(),
        max_uploads: asked.most,
        upload: Vec::new(),
        common_prefixes: Vec::new(),
    };
    for entry in page.entries {
        match entry {
            Entry::Prefix(prefix) => answer.common_prefixes.push(CommonPrefix { prefix: encoding.write(&prefix) }),
            Entry::Key(upload) => answer.upload.push(UploadOut {
                key: encoding.write(&upload.key),
                upload_id: upload.id.as_str().into(),
                initiator: Owner::of(walrus, &upload.initiator),
                owner: Owner::of(walrus, &upload.owner),
                storage_class: upload.storage_class,
                initiated: iso_time(upload.created),
                checksum_algorithm: upload.algorithm.map(|a| a.name()),
                checksum_type: upload.algorithm.map(|_| upload.kind.name()),
            }),
        }
    }
    xml("ListMultipartUploadsResult", &answer)
}

/// A key may have many uploads, so the place in the list is a key and an id.
fn uploads(
    tx: &mut mallee_store::Tx<'_>,
    bucket: bucket::BucketId,
    asked: &Asked,
    after_upload: Option<&BlobId>,
) -> Result<crate::s3::object::list::Page<Upload>, Error> {
    // Set to the last row fetched: rows of one key go on behind it, which a walk by keys alone would pass over.
    let mut last: Option<(String, String)> = after_upload.map(|id| (asked.after.clone(), id.as_str().to_owned()));
    walk(
        asked,
        |from, included, limit| {
            let id = match &last {
                Some((key, id)) if !included && key == from => id.as_str(),
                // Behind every id, or before.
                _ if included => "",
                _ => "~",
            };
            let sql = format!(
                "SELECT {UPLOAD} FROM upload
                 WHERE bucket = ?1 AND completed IS NULL AND (key, id) > (?2, ?3)
                 ORDER BY key, id LIMIT ?4"
            );
            let rows = tx.query(&sql, params![bucket, from, id, limit], upload_row)?;
            last = rows.last().map(|row| (row.key.clone(), row.id.as_str().to_owned()));
            Ok(rows)
        },
        |upload| &upload.key,
    )
}
