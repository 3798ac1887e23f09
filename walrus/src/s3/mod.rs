//! S3's nouns, a file each.

pub mod acl;
pub mod bucket;
pub mod condition;
pub mod encryption;
pub mod multipart;
pub mod object;
pub mod range;

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use mallee_aws::{answer::timestamp, document};
use mallee_service::{Body, body};
use serde::Serialize;

use crate::{Error, Walrus, principal::Account};

/// `Owner` and `Initiator` in documents.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Owner {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
}

impl Owner {
    pub fn of(walrus: &Walrus, canonical_id: &str) -> Self {
        let display_name = walrus.holders.by_canonical_id(canonical_id).map(|account| account.name);
        Self { id: canonical_id.into(), display_name }
    }
}

impl From<&Account> for Owner {
    fn from(account: &Account) -> Self {
        Self { id: account.canonical_id.clone(), display_name: Some(account.name.clone()) }
    }
}

/// An answer with a document.
pub fn xml(root: &str, value: &impl Serialize) -> Result<Response<Body>, Error> {
    Ok(xml_text(document::render(root, value)?))
}

pub fn xml_text(text: String) -> Response<Body> {
    let mut response = Response::new(body::full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(document::CONTENT_TYPE));
    response
}

/// An answer without a body.
pub fn done(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    response
}

/// Adds a header; a value no header can hold is the caller's mistake.
pub fn set(response: &mut Response<Body>, name: &str, value: &str) -> Result<(), Error> {
    let wrong = || crate::error::refuse::argument(name, "", "The value cannot be a header's.");
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| wrong())?;
    response.headers_mut().insert(name, value);
    Ok(())
}

/// S3's clock ticks in seconds, in documents as in headers, so that the two agree.
pub fn iso_time(millis: i64) -> String {
    timestamp(millis.div_euclid(1000) * 1000)
}

pub fn http_time(millis: i64) -> String {
    let seconds = u64::try_from(millis.div_euclid(1000)).unwrap_or(0);
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

pub fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}
