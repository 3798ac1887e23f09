//! ListObjects, both versions. A page costs its own rows, whatever the bucket holds: after a
//! common prefix the next row is looked up beyond it, so the keys inside are never visited.

use std::ops::ControlFlow;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Response;
use mallee_service::Body;
use mallee_store::{Tx, params};
use serde::Serialize;

use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    checksum::Checksum,
    error::refuse,
    s3::{
        Owner,
        bucket::{self, BucketId},
        iso_time, quoted, xml,
    },
};

/// Entries of one page, by AWS.
const MOST: usize = 1000;

/// What a page is to show.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub prefix: String,
    pub delimiter: String,
    /// Show what comes after this key, and after every key below it where it ends in the delimiter.
    pub after: String,
    pub most: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Entry<T> {
    Key(T),
    Prefix(String),
}

#[derive(Debug)]
pub struct Page<T> {
    pub entries: Vec<Entry<T>>,
    /// Where the next page goes on: the last thing shown.
    pub next: Option<String>,
}

/// Walks any table of keys: `rows(from, from_is_included, limit)` gives rows in the order of their keys, at least one
/// unless there is none, and `key` tells theirs. Uploads are listed by it as well.
pub fn walk<T>(
    asked: &Asked,
    mut rows: impl FnMut(&str, bool, usize) -> Result<Vec<T>, Error>,
    key: impl Fn(&T) -> &str,
) -> Result<Page<T>, Error> {
    let mut page = Page { entries: Vec::new(), next: None };
    let mut last_shown = None;
    if asked.most == 0 {
        return Ok(page);
    }
    // Everything before the prefix is passed over, and a page that ended with a common prefix goes on beyond it.
    let (mut from, mut included) = (asked.after.clone(), false);
    if let Some(common) = common_prefix(&asked.after, asked).filter(|common| *common == asked.after) {
        match successor(&common) {
            Some(beyond) => (from, included) = (beyond, true),
            None => return Ok(page),
        }
    }
    if from.as_str() < asked.prefix.as_str() {
        (from, included) = (asked.prefix.clone(), true);
    }
    // With a delimiter the next row may already be inside a common prefix, and those behind it are then for nothing.
    let mut batch = if asked.delimiter.is_empty() { MOST + 1 } else { 8 };
    'pages: loop {
        let limit = (asked.most - page.entries.len() + 1).min(batch);
        batch = (batch * 4).min(MOST + 1);
        let fetched = rows(&from, included, limit)?;
        let whole = fetched.len() < limit;
        for row in fetched {
            let name = key(&row);
            if !name.starts_with(&asked.prefix) {
                return Ok(page);
            }
            if page.entries.len() == asked.most {
                page.next = last_shown;
                return Ok(page);
            }
            if let Some(common) = common_prefix(name, asked) {
                let beyond = successor(&common);
                last_shown = Some(common.clone());
                page.entries.push(Entry::Prefix(common));
                match beyond {
                    Some(beyond) => (from, included) = (beyond, true),
                    None => return Ok(page),
                }
                batch = 2;
                continue 'pages;
            }
            (from, included) = (name.to_owned(), false);
            last_shown = Some(from.clone());
            page.entries.push(Entry::Key(row));
        }
        if whole {
            return Ok(page);
        }
    }
}

/// The key up to the first delimiter after the prefix, with it.
fn common_prefix(key: &str, asked: &Asked) -> Option<String> {
    if asked.delimiter.is_empty() {
        return None;
    }
    let rest = key.strip_prefix(asked.prefix.as_str())?;
    let at = rest.find(&asked.delimiter)?;
    key.get(..asked.prefix.len() + at + asked.delimiter.len()).map(str::to_owned)
}

/// The first text that comes after every text that begins with `prefix`; UTF-8 sorts as its characters do.
fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        let next = match u32::from(last) + 1 {
            0xd800 => Some('\u{e000}'),
            n => char::from_u32(n),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

/// What a listing shows of an object.
struct Shown {
    key: String,
    modified: i64,
    size: u64,
    etag: String,
    storage_class: String,
    owner: String,
    checksum: String,
}

fn page(tx: &mut Tx<'_>, bucket: BucketId, asked: &Asked) -> Result<Page<Shown>, Error> {
    const AFTER: &str = "SELECT key, modified, size, etag, storage_class, owner, checksum FROM object
        WHERE bucket = ?1 AND key > ?2 ORDER BY key LIMIT ?3";
    const FROM: &str = "SELECT key, modified, size, etag, storage_class, owner, checksum FROM object
        WHERE bucket = ?1 AND key >= ?2 ORDER BY key LIMIT ?3";
    walk(
        asked,
        |from, included, limit| {
            let mut found = Vec::new();
            tx.each(if included { FROM } else { AFTER }, params![bucket, from, limit], |row| {
                found.push(Shown {
                    key: row.get(0)?,
                    modified: row.get(1)?,
                    size: row.get(2)?,
                    etag: row.get(3)?,
                    storage_class: row.get(4)?,
                    owner: row.get(5)?,
                    checksum: row.get(6)?,
                });
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(found)
        },
        |shown| &shown.key,
    )
}

/// How keys are written in the answer.
#[derive(Clone, Copy)]
pub struct Encoding {
    url: bool,
}

impl Encoding {
    pub fn of(call: &Call) -> Result<Self, Error> {
        match call.query.get("encoding-type") {
            None | Some("") => Ok(Self { url: false }),
            Some("url") => Ok(Self { url: true }),
            Some(other) => {
                Err(refuse::argument("encoding-type", other, "Invalid Encoding Method specified in Request"))
            }
        }
    }
    pub fn name(self) -> Option<&'static str> {
        self.url.then_some("url")
    }
    pub fn write(self, text: &str) -> String {
        if !self.url {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len());
        for byte in text.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' | b'*' => {
                    out.push(byte.into())
                }
                byte => out.push_str(&format!("%{byte:02X}")),
            }
        }
        out
    }
}

/// A count in the query: refused when it is not one, cut down to 1,000.
pub fn most(call: &Call, name: &str) -> Result<usize, Error> {
    match call.query.get(name) {
        None | Some("") => Ok(MOST),
        Some(text) => match text.parse::<i64>() {
            Ok(n) if (0..=i64::from(i32::MAX)).contains(&n) => Ok((n as usize).min(MOST)),
            Ok(_) => Err(refuse::argument(
                name,
                text,
                &format!("Argument {name} must be an integer between 0 and 2147483647"),
            )),
            Err(_) => {
                Err(refuse::argument(name, text, &format!("Provided {name} not an integer or within integer range")))
            }
        },
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CommonPrefix {
    pub prefix: String,
}

#[derive(Serialize)]
struct Contents {
    #[serde(rename = "Key")]
    key: String,
    #[serde(rename = "LastModified")]
    last_modified: String,
    #[serde(rename = "ETag")]
    etag: String,
    #[serde(rename = "ChecksumAlgorithm", skip_serializing_if = "Option::is_none")]
    checksum_algorithm: Option<&'static str>,
    #[serde(rename = "ChecksumType", skip_serializing_if = "Option::is_none")]
    checksum_type: Option<&'static str>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "StorageClass")]
    storage_class: String,
    #[serde(rename = "Owner", skip_serializing_if = "Option::is_none")]
    owner: Option<Owner>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    name: String,
    prefix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    marker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_marker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    continuation_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_continuation_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_count: Option<usize>,
    max_keys: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    delimiter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_type: Option<&'static str>,
    is_truncated: bool,
    contents: Vec<Contents>,
    common_prefixes: Vec<CommonPrefix>,
}

/// What the two listings have in common.
async fn listed(
    walrus: &Walrus,
    call: &Call,
    after: String,
    with_owner: bool,
) -> Result<(Answer, Option<String>, usize), Error> {
    let bucket = bucket::opened(walrus, call, Action::ListBucket).await?;
    let encoding = Encoding::of(call)?;
    let text = |name: &str| call.query.get(name).unwrap_or_default().to_owned();
    let asked = Asked { prefix: text("prefix"), delimiter: text("delimiter"), after, most: most(call, "max-keys")? };
    let (id, for_page) = (bucket.id, asked.clone());
    let page = walrus.store.read("list objects", move |tx| page(tx, id, &for_page)).await?;
    let count = page.entries.len();
    let mut answer = Answer {
        name: bucket.name,
        prefix: encoding.write(&asked.prefix),
        max_keys: asked.most,
        delimiter: Some(asked.delimiter).filter(|d| !d.is_empty()).map(|d| encoding.write(&d)),
        encoding_type: encoding.name(),
        is_truncated: page.next.is_some(),
        ..Answer::default()
    };
    for entry in page.entries {
        match entry {
            Entry::Prefix(prefix) => answer.common_prefixes.push(CommonPrefix { prefix: encoding.write(&prefix) }),
            Entry::Key(shown) => {
                let checksum: Option<Checksum> = super::from_json(&shown.checksum)?;
                let contents = Contents {
                    key: encoding.write(&shown.key),
                    last_modified: iso_time(shown.modified),
                    etag: quoted(&shown.etag),
                    checksum_algorithm: checksum.as_ref().map(|c| c.algorithm.name()),
                    checksum_type: checksum.as_ref().map(|c| c.kind.name()),
                    size: shown.size,
                    storage_class: shown.storage_class,
                    owner: with_owner.then(|| Owner::of(walrus, &shown.owner)),
                };
                answer.contents.push(contents);
            }
        }
    }
    Ok((answer, page.next, count))
}

pub async fn v1(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let encoding = Encoding::of(call)?;
    let marker = call.query.get("marker").unwrap_or_default().to_owned();
    let (mut answer, next, _) = listed(walrus, call, marker.clone(), true).await?;
    answer.marker = Some(encoding.write(&marker));
    // Without a delimiter the last key says where to go on.
    answer.next_marker = next.filter(|_| answer.delimiter.is_some()).map(|next| encoding.write(&next));
    xml("ListBucketResult", &answer)
}

pub async fn v2(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let encoding = Encoding::of(call)?;
    let start_after = call.query.get("start-after").map(str::to_owned);
    let token = call.query.get("continuation-token").map(str::to_owned);
    // The token is the last thing shown, which the client has been told anyway: there is nothing to protect in it.
    let after = match &token {
        None => start_after.clone().unwrap_or_default(),
        Some(token) if token.is_empty() => start_after.clone().unwrap_or_default(),
        Some(token) => URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .filter(|text| !text.contains('\0'))
            .ok_or_else(|| {
                refuse::argument("continuation-token", token, "The continuation token provided is incorrect")
            })?,
    };
    let with_owner = call.query.get("fetch-owner") == Some("true");
    let (mut answer, next, count) = listed(walrus, call, after, with_owner).await?;
    answer.key_count = Some(count);
    answer.start_after = start_after.map(|text| encoding.write(&text));
    answer.continuation_token = token;
    answer.next_continuation_token = next.map(|next| URL_SAFE_NO_PAD.encode(next));
    xml("ListBucketResult", &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 9] = ["a", "b/", "b/1", "b/2", "b/c/3", "b0", "c/1", "d", "é/x"];

    /// All pages, one after the other, and how many rows were fetched for them.
    fn all(keys: &[String], prefix: &str, delimiter: &str, after: &str, most: usize) -> (Vec<String>, usize) {
        let mut asked = Asked { prefix: prefix.into(), delimiter: delimiter.into(), after: after.into(), most };
        let (mut seen, mut visited) = (Vec::new(), 0);
        loop {
            let rows = |from: &str, included: bool, limit: usize| {
                let wanted = |key: &&String| key.as_str() > from || (included && *key == from);
                let rows: Vec<String> = keys.iter().filter(wanted).take(limit).cloned().collect();
                visited += rows.len();
                Ok(rows)
            };
            let page = walk(&asked, rows, |key| key).unwrap();
            assert!(page.entries.len() <= most);
            seen.extend(page.entries.into_iter().map(|entry| match entry {
                Entry::Key(key) => key,
                Entry::Prefix(prefix) => format!("<{prefix}>"),
            }));
            match page.next {
                Some(next) => asked.after = next,
                None => return (seen, visited),
            }
        }
    }

    #[test]
    fn keys_inside_a_common_prefix_are_not_visited() {
        let keys: Vec<String> = (0..100_000).map(|n| format!("{:03}/{n:06}", n / 1000)).collect();
        let (seen, visited) = all(&keys, "", "/", "", 1000);
        assert_eq!(seen.len(), 100);
        assert!(visited < 300, "{visited} rows for 100 prefixes");
    }

    #[test]
    fn every_page_size_shows_the_same() {
        let table: [(&str, &str, &str, &[&str]); 9] = [
            ("", "", "", &KEYS),
            ("", "/", "", &["a", "<b/>", "b0", "<c/>", "d", "<é/>"]),
            ("b/", "/", "", &["b/", "b/1", "b/2", "<b/c/>"]),
            ("b", "/", "", &["<b/>", "b0"]),
            ("", "/", "b/1", &["<b/>", "b0", "<c/>", "d", "<é/>"]),
            ("", "/", "b/", &["b0", "<c/>", "d", "<é/>"]),
            ("b/", "", "b/1", &["b/2", "b/c/3"]),
            ("z", "/", "", &[]),
            ("", "0", "", &["a", "b/", "b/1", "b/2", "b/c/3", "<b0>", "c/1", "d", "é/x"]),
        ];
        let keys = KEYS.map(String::from);
        for (prefix, delimiter, after, expected) in table {
            for most in 1..=10 {
                assert_eq!(
                    all(&keys, prefix, delimiter, after, most).0,
                    expected,
                    "{prefix:?} {delimiter:?} {after:?} {most}"
                );
            }
        }
    }

    #[test]
    fn what_follows_a_prefix_is_found_at_the_edges_of_unicode() {
        assert_eq!(successor("a/").as_deref(), Some("a0"));
        assert_eq!(successor("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{10ffff}"), None);
    }

    #[test]
    fn keys_in_listings_are_encoded_so_that_every_client_decodes_them() {
        // Some take `+` for a space, and some for itself.
        let encoding = Encoding { url: true };
        assert_eq!(encoding.write("a b/ü+\r&"), "a%20b/%C3%BC%2B%0D%26");
    }
}
