//! ListObjectVersions. The versions of a key stand in two tables in the same order, so a page is two pages merged, and
//! costs its own rows.

use http::Response;
use mallee_service::Body;
use mallee_store::{Row, Tx, params};
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{
    VersionId,
    list::{Asked, CommonPrefix, Encoding, Entry, Page, most, walk},
    version,
};
use crate::{
    Error, Walrus,
    access::Action,
    blob::Place,
    call::Call,
    checksum::Checksum,
    s3::{
        Owner,
        bucket::{self, BucketId},
        iso_time, quoted, xml,
    },
};

struct Shown {
    key: String,
    rank: i64,
    version: VersionId,
    latest: bool,
    marker: bool,
    modified: i64,
    size: u64,
    etag: String,
    storage_class: String,
    owner: String,
    checksum: String,
}

fn shown(row: &Row<'_>) -> Result<Shown, mallee_store::Error> {
    Ok(Shown {
        key: row.get(0)?,
        rank: row.get(1)?,
        version: row.get(2)?,
        latest: row.get::<i64>(3)? == 0,
        marker: row.get::<i64>(4)? == Place::Nowhere.number(),
        modified: row.get(5)?,
        size: row.get(6)?,
        etag: row.get(7)?,
        storage_class: row.get(8)?,
        owner: row.get(9)?,
        checksum: row.get(10)?,
    })
}

const CURRENT: &str =
    "SELECT key, rank, version, 0, place, modified, size, etag, storage_class, owner, checksum FROM object
    WHERE bucket = ?1 AND (key, rank) > (?2, ?3) ORDER BY key, rank LIMIT ?4";
const OLD: &str =
    "SELECT key, rank, version, since, place, modified, size, etag, storage_class, owner, checksum FROM old_version
    WHERE bucket = ?1 AND (key, rank) > (?2, ?3) ORDER BY key, rank LIMIT ?4";

/// `after` is the version of the key `asked.after` that was shown last; without one the whole key was.
fn page(tx: &mut Tx<'_>, bucket: BucketId, asked: &Asked, after: Option<&VersionId>) -> Result<Page<Shown>, Error> {
    let after = match after {
        None => None,
        Some(version) => match version::find(tx, bucket, &asked.after, version)? {
            Some(there) => Some(there.rank),
            // It has been deleted since; its id still says where it was.
            None => version.rank(),
        },
    };
    // The last row fetched: rows of one key go on behind it, which a walk by keys alone would pass over.
    let mut last: Option<(String, i64)> = after.map(|rank| (asked.after.clone(), rank));
    walk(
        asked,
        |from, included, limit| {
            let rank = match &last {
                Some((key, rank)) if !included && key == from => *rank,
                _ if included => i64::MIN,
                _ => i64::MAX,
            };
            let current = tx.query(CURRENT, params![bucket, from, rank, limit], shown)?;
            let mut rows = tx.query(OLD, params![bucket, from, rank, limit], shown)?;
            rows.extend(current);
            rows.sort_by(|a, b| (&a.key, a.rank).cmp(&(&b.key, b.rank)));
            rows.truncate(limit);
            last = rows.last().map(|row| (row.key.clone(), row.rank));
            Ok(rows)
        },
        |row| &row.key,
    )
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    name: String,
    prefix: String,
    key_marker: String,
    version_id_marker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_key_marker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_version_id_marker: Option<String>,
    max_keys: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    delimiter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_type: Option<&'static str>,
    is_truncated: bool,
    #[serde(flatten)]
    listed: InOrder,
    common_prefixes: Vec<CommonPrefix>,
}

/// Versions and markers among each other, as they follow: what reads the document in order sees keys in order.
#[derive(Default)]
struct InOrder(Vec<Listed>);

enum Listed {
    Version(Version),
    Marker(Marker),
}

impl Serialize for InOrder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        for listed in &self.0 {
            match listed {
                Listed::Version(version) => members.serialize_entry("Version", version)?,
                Listed::Marker(marker) => members.serialize_entry("DeleteMarker", marker)?,
            }
        }
        members.end()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    key: String,
    version_id: String,
    is_latest: bool,
    last_modified: String,
    #[serde(rename = "ETag")]
    etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum_algorithm: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum_type: Option<&'static str>,
    size: u64,
    storage_class: String,
    owner: Owner,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Marker {
    key: String,
    version_id: String,
    is_latest: bool,
    last_modified: String,
    owner: Owner,
}

pub async fn list(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = bucket::opened(walrus, call, Action::ListBucketVersions).await?;
    let encoding = Encoding::of(call)?;
    let text = |name: &str| call.query.get(name).unwrap_or_default().to_owned();
    let (key_marker, version_marker) = (text("key-marker"), text("version-id-marker"));
    if key_marker.is_empty() && !version_marker.is_empty() {
        return Err(crate::error::refuse::argument(
            "version-id-marker",
            &version_marker,
            "A version-id marker cannot be specified without a key marker.",
        ));
    }
    let after = match version_marker.as_str() {
        "" => None,
        text => Some(VersionId::parse(text)?),
    };
    let asked = Asked {
        prefix: text("prefix"),
        delimiter: text("delimiter"),
        after: key_marker.clone(),
        most: most(call, "max-keys")?,
    };
    let (id, for_page) = (bucket.id, asked.clone());
    let page = walrus.store.read("list versions", move |tx| page(tx, id, &for_page, after.as_ref())).await?;
    let last = page.entries.last().and_then(|entry| match entry {
        Entry::Key(shown) => Some(shown.version.as_str().to_owned()),
        Entry::Prefix(_) => None,
    });
    let mut answer = Answer {
        name: bucket.name,
        prefix: encoding.write(&asked.prefix),
        key_marker: encoding.write(&key_marker),
        version_id_marker: version_marker,
        is_truncated: page.next.is_some(),
        next_version_id_marker: page.next.as_ref().and(last),
        next_key_marker: page.next.as_ref().map(|next| encoding.write(next)),
        max_keys: asked.most,
        delimiter: Some(asked.delimiter).filter(|d| !d.is_empty()).map(|d| encoding.write(&d)),
        encoding_type: encoding.name(),
        listed: InOrder::default(),
        common_prefixes: Vec::new(),
    };
    for entry in page.entries {
        match entry {
            Entry::Prefix(prefix) => answer.common_prefixes.push(CommonPrefix { prefix: encoding.write(&prefix) }),
            Entry::Key(row) if row.marker => answer.listed.0.push(Listed::Marker(Marker {
                key: encoding.write(&row.key),
                version_id: row.version.as_str().into(),
                is_latest: row.latest,
                last_modified: iso_time(row.modified),
                owner: Owner::of(walrus, &row.owner),
            })),
            Entry::Key(row) => {
                let checksum: Option<Checksum> = super::from_json(&row.checksum)?;
                answer.listed.0.push(Listed::Version(Version {
                    key: encoding.write(&row.key),
                    version_id: row.version.as_str().into(),
                    is_latest: row.latest,
                    last_modified: iso_time(row.modified),
                    etag: quoted(&row.etag),
                    checksum_algorithm: checksum.as_ref().map(|c| c.algorithm.name()),
                    checksum_type: checksum.as_ref().map(|c| c.kind.name()),
                    size: row.size,
                    storage_class: row.storage_class,
                    owner: Owner::of(walrus, &row.owner),
                }));
            }
        }
    }
    xml("ListVersionsResult", &answer)
}
