//! Signing, for our own tools and tests. What it makes, [`super::Presented`] accepts; AWS does too.

use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use time::{Duration, OffsetDateTime};

use super::canonical::{Query, encode, join_sorted};
use super::v4::{ALGORITHM, ChunkKey, Scope, SigningKey, basic_date, canonical_head, string_to_sign};
use super::{MAX_EXPIRES, Payload, Route};
use crate::credential::{AccessKeyId, SecretKey};
use crate::error::AwsError;

/// A key and where it signs. The service `s3` gets S3's canonical form.
#[derive(Debug, Clone, Copy)]
pub struct Signer<'a> {
    pub access_key: &'a AccessKeyId,
    pub secret: &'a SecretKey,
    pub session_token: Option<&'a str>,
    pub region: &'a str,
    pub service: &'a str,
}

impl Signer<'_> {
    fn route(&self) -> Route {
        if self.service == "s3" { Route::S3 } else { Route::Query }
    }

    fn scope(&self, timestamp: &str) -> Scope {
        Scope { date: timestamp[..8].to_string(), region: self.region.to_string(), service: self.service.to_string() }
    }

    /// Adds `Host` (from the URI, if missing), `x-amz-date`, `x-amz-content-sha256`, `x-amz-security-token` and
    /// `Authorization`. Signed are host, content-type, content-md5 and every `x-amz-*`. The path must be percent-encoded.
    ///
    /// `payload` is what will be sent; [`Payload::HashOfBody`] makes no sense here and is refused. The key returned signs
    /// the chunks of a chunked body.
    pub fn sign<B>(
        &self,
        request: &mut http::Request<B>,
        payload: Payload,
        now: OffsetDateTime,
    ) -> Result<ChunkKey, AwsError> {
        let timestamp = basic_date(now);
        let payload_line = payload_line(payload)?;
        if !request.headers().contains_key(HOST) {
            let authority = request.uri().authority().map(|authority| authority.as_str().to_string());
            let host = authority.ok_or_else(|| invalid("The request has neither Host nor an absolute URI"))?;
            request.headers_mut().insert(HOST, value(&host)?);
        }
        let headers = request.headers_mut();
        headers.remove(AUTHORIZATION);
        headers.insert(HeaderName::from_static("x-amz-date"), value(&timestamp)?);
        headers.insert(HeaderName::from_static("x-amz-content-sha256"), value(&payload_line)?);
        if let Some(token) = self.session_token {
            headers.insert(HeaderName::from_static("x-amz-security-token"), value(token)?);
        }
        let mut signed: Vec<String> = headers
            .keys()
            .map(|name| name.as_str())
            .filter(|name| matches!(*name, "host" | "content-type" | "content-md5") || name.starts_with("x-amz-"))
            .map(str::to_string)
            .collect();
        signed.sort_unstable();
        let query = Query::parse(request.uri().query().unwrap_or_default())
            .ok_or_else(|| invalid("The query string is not properly encoded"))?;
        let mut canonical = canonical_head(&parts_of(request), &query.canonical(""), &signed, self.route())?;
        canonical.extend_from_slice(payload_line.as_bytes());
        let scope = self.scope(&timestamp);
        let key = SigningKey::derive(self.secret, &scope);
        let signature = key.sign(string_to_sign(&timestamp, &scope, &canonical).as_bytes());
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={}",
            self.access_key,
            signed.join(";"),
            hex::encode(signature)
        );
        let mut authorization = value(&authorization)?;
        authorization.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, authorization);
        Ok(ChunkKey::new(key, timestamp, &scope, signature))
    }

    /// The URL that lets anybody do this one request until it expires (at most seven days). Of the headers only `Host`
    /// is signed.
    pub fn presign(
        &self,
        method: http::Method,
        uri: &http::Uri,
        expires: Duration,
        now: OffsetDateTime,
    ) -> Result<http::Uri, AwsError> {
        if expires < Duration::seconds(1) || expires > MAX_EXPIRES {
            return Err(invalid("A presigned URL lives between one second and seven days"));
        }
        let timestamp = basic_date(now);
        let scope = self.scope(&timestamp);
        let authority = uri.authority().ok_or_else(|| invalid("The URI is not absolute"))?.as_str().to_string();
        let credential = format!("{}/{scope}", self.access_key);
        let expires = expires.whole_seconds().to_string();
        let query = Query::parse(uri.query().unwrap_or_default())
            .ok_or_else(|| invalid("The query string is not properly encoded"))?;
        let mut pairs: Vec<(&[u8], &[u8])> = query.pairs().collect();
        let mut add = |name: &'static str, value| pairs.push((name.as_bytes(), value));
        add("X-Amz-Algorithm", ALGORITHM.as_bytes());
        add("X-Amz-Credential", credential.as_bytes());
        add("X-Amz-Date", timestamp.as_bytes());
        add("X-Amz-Expires", expires.as_bytes());
        add("X-Amz-SignedHeaders", b"host");
        if let Some(token) = self.session_token {
            add("X-Amz-Security-Token", token.as_bytes());
        }
        let canonical_query = join_sorted(pairs.into_iter());
        let request = http::Request::builder()
            .method(method)
            .uri(uri.clone())
            .header(HOST, authority)
            .body(())
            .map_err(|_| invalid("The request cannot be built"))?;
        let route = self.route();
        let mut canonical = canonical_head(&request.into_parts().0, &canonical_query, &["host".to_string()], route)?;
        let payload = if route == Route::S3 { "UNSIGNED-PAYLOAD".to_string() } else { hex::encode(super::sha256(b"")) };
        canonical.extend_from_slice(payload.as_bytes());
        let key = SigningKey::derive(self.secret, &scope);
        let signature = key.sign(string_to_sign(&timestamp, &scope, &canonical).as_bytes());
        let target =
            format!("{}?{canonical_query}&X-Amz-Signature={}", uri.path(), encode(hex::encode(signature).as_bytes()));
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(target.parse().map_err(|_| invalid("The URL cannot be built"))?);
        http::Uri::from_parts(parts).map_err(|_| invalid("The URL cannot be built"))
    }
}

/// The head of the request without its body, which `canonical_head` reads.
fn parts_of<B>(request: &http::Request<B>) -> http::request::Parts {
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.headers = request.headers().clone();
    parts
}

fn payload_line(payload: Payload) -> Result<String, AwsError> {
    Ok(match payload {
        Payload::SignedHash(hash) => hex::encode(hash),
        Payload::HashOfBody => return Err(invalid("The body's hash is needed to sign")),
        Payload::Unsigned => "UNSIGNED-PAYLOAD".to_string(),
        Payload::UnsignedTrailer => "STREAMING-UNSIGNED-PAYLOAD-TRAILER".to_string(),
        Payload::SignedChunks => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD".to_string(),
        Payload::SignedChunksTrailer => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER".to_string(),
    })
}

fn value(text: &str) -> Result<HeaderValue, AwsError> {
    HeaderValue::from_str(text).map_err(|_| invalid("A header value has characters no header may have"))
}

fn invalid(message: &str) -> AwsError {
    AwsError::bad_request("InvalidRequest", message)
}
