//! Reading a user's objects from walrus, as that user may: manifests and parts of bundles.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, BodyStream};
use hyper::body::Incoming;
use mallee_service::{TierHttp, body};

/// A walrus that says nothing for this long is taken for gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why an object was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRead {
    /// There is no such object, or the account may not read it: the two look the same.
    Absent(String),
    /// walrus cannot be asked now.
    Later(String),
}

impl NotRead {
    pub fn text(&self) -> &str {
        match self {
            NotRead::Absent(text) | NotRead::Later(text) => text,
        }
    }
}

/// `bucket/some/key` taken apart.
pub fn split_location(location: &str) -> Option<(&str, &str)> {
    let location = location.trim_start_matches('/');
    location.split_once('/').filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
}

/// The location of another object beside `manifest`.
pub fn beside(manifest: &str, filename: &str) -> String {
    let folder = manifest.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{folder}/{filename}")
}

/// Percent-encoded, but for slashes.
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// An object that is being read.
pub struct Object {
    what: String,
    body: BodyStream<Incoming>,
}

/// Opens `location` as `account` may read it.
pub async fn open(walrus: &TierHttp, account: &str, location: &str) -> Result<Object, NotRead> {
    let (bucket, key) = split_location(location)
        .ok_or_else(|| NotRead::Absent(format!("{location:?} is not BUCKET/KEY of an object")))?;
    let path = format!("{}{}/{}?account={account}", mallee_tiers::OBJECTS_PREFIX, encoded(bucket), encoded(key));
    let request = Request::get("/").body(body::empty()).map_err(|e| NotRead::Later(e.to_string()))?;
    let response = tokio::time::timeout(PATIENCE, walrus.send(request, &path))
        .await
        .map_err(|_| NotRead::Later(format!("walrus does not answer for {location}")))?
        .map_err(|e| NotRead::Later(e.message))?;
    match response.status() {
        StatusCode::OK => Ok(Object { what: location.to_owned(), body: BodyStream::new(response.into_body()) }),
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => {
            Err(NotRead::Absent(format!("{location} is not there, or account {account} may not read it")))
        }
        status => Err(NotRead::Later(format!("walrus answered {status} for {location}"))),
    }
}

impl Object {
    /// The next bytes; None at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, NotRead> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.body.next())
                .await
                .map_err(|_| NotRead::Later(format!("walrus stopped sending {}", self.what)))?;
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(NotRead::Later(format!("{} was cut off: {e}", self.what))),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The whole object, which may have at most `limit` bytes.
    pub async fn whole(mut self, limit: usize) -> Result<Vec<u8>, NotRead> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > limit {
                return Err(NotRead::Absent(format!("{} is larger than {limit} bytes", self.what)));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

/// Whether walrus has a blob.
pub async fn has_blob(walrus: &TierHttp, digest: &str) -> Result<bool, NotRead> {
    let request = Request::head("/").body(body::empty()).map_err(|e| NotRead::Later(e.to_string()))?;
    match blob(walrus, request, digest).await? {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        status => Err(NotRead::Later(format!("walrus answered {status} for blob {digest}"))),
    }
}

/// Stores a file as a blob under its digest; walrus checks that it has it.
pub async fn put_blob(walrus: &TierHttp, digest: &str, size: u64, file: tokio::fs::File) -> Result<(), NotRead> {
    let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024);
    put(walrus, digest, size, body::stream(stream)).await
}

/// Stores bytes as a blob under their digest.
pub async fn put_bytes(walrus: &TierHttp, digest: &str, bytes: Vec<u8>) -> Result<(), NotRead> {
    let size = bytes.len() as u64;
    put(walrus, digest, size, body::full(bytes)).await
}

async fn put(walrus: &TierHttp, digest: &str, size: u64, body: mallee_service::Body) -> Result<(), NotRead> {
    let request = Request::put("/")
        .header(http::header::CONTENT_LENGTH, size)
        .body(body)
        .map_err(|e| NotRead::Later(e.to_string()))?;
    let response =
        walrus.send(request, &mallee_tiers::blob_path(digest)).await.map_err(|e| NotRead::Later(e.message))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let said = response
        .into_body()
        .collect()
        .await
        .map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned())
        .unwrap_or_default();
    Err(NotRead::Later(format!("walrus answered {status} when blob {digest} was stored: {said}")))
}

/// Gone afterwards, whether it was there or not.
pub async fn delete_blob(walrus: &TierHttp, digest: &str) -> Result<(), NotRead> {
    let request = Request::delete("/").body(body::empty()).map_err(|e| NotRead::Later(e.to_string()))?;
    match blob(walrus, request, digest).await? {
        status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
        status => Err(NotRead::Later(format!("walrus answered {status} when blob {digest} was deleted"))),
    }
}

async fn blob(walrus: &TierHttp, request: Request<mallee_service::Body>, digest: &str) -> Result<StatusCode, NotRead> {
    let answer = tokio::time::timeout(PATIENCE, walrus.send(request, &mallee_tiers::blob_path(digest)))
        .await
        .map_err(|_| NotRead::Later(format!("walrus does not answer for blob {digest}")))?
        .map_err(|e| NotRead::Later(e.message))?;
    Ok(answer.status())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_a_bucket_and_a_key() {
        assert_eq!(split_location("b/dir/x.manifest.xml"), Some(("b", "dir/x.manifest.xml")));
        assert_eq!(split_location("/b/x"), Some(("b", "x")));
        for bad in ["", "b", "b/", "/"] {
            assert_eq!(split_location(bad), None, "{bad}");
        }
        assert_eq!(beside("b/dir/x.manifest.xml", "x.part.0"), "b/dir/x.part.0");
        assert_eq!(beside("b/x.manifest.xml", "x.part.0"), "b/x.part.0");
        assert_eq!(encoded("a b/ü?&"), "a%20b/%C3%BC%3F%26");
    }
}
