//! Signature version 4. The AWS General Reference's pages "Create a signed AWS API request" and S3's "Authenticating
//! requests (AWS Signature Version 4)" are the source.

use time::{Date, Duration, Month, OffsetDateTime, Time};
use zeroize::Zeroizing;

use super::canonical::{Query, normalised_path, push_header_value, s3_path};
use super::{Clock, MAX_EXPIRES, Method, Payload, Presented, Proof, Route, host};
use crate::credential::SecretKey;
use crate::error::AwsError;
use crate::mac::{hmac_sha256, sha256};

pub(super) const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const MAX_SIGNED_HEADERS: usize = 128;

/// `DATE/REGION/SERVICE/aws4_request`, as the client chose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// `YYYYMMDD`
    pub date: String,
    pub region: String,
    pub service: String,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }
}

/// The key of one scope, derived from a secret. It never prints and is wiped when dropped.
#[derive(Clone)]
pub struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    pub fn derive(secret: &SecretKey, scope: &Scope) -> SigningKey {
        let seed = Zeroizing::new(format!("AWS4{}", secret.expose()));
        let date = Zeroizing::new(hmac_sha256(seed.as_bytes(), &[scope.date.as_bytes()]));
        let region = Zeroizing::new(hmac_sha256(&*date, &[scope.region.as_bytes()]));
        let service = Zeroizing::new(hmac_sha256(&*region, &[scope.service.as_bytes()]));
        SigningKey(Zeroizing::new(hmac_sha256(&*service, &[b"aws4_request"])))
    }

    pub(crate) fn sign(&self, string_to_sign: &[u8]) -> [u8; 32] {
        hmac_sha256(&*self.0, &[string_to_sign])
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(hidden)")
    }
}

/// What a chain of chunk signatures hangs on. Each signature covers the one before it.
#[derive(Debug, Clone)]
pub struct ChunkKey {
    key: SigningKey,
    timestamp: String,
    scope: String,
    previous: [u8; 32],
}

impl ChunkKey {
    pub(super) fn new(key: SigningKey, timestamp: String, scope: &Scope, seed: [u8; 32]) -> Self {
        ChunkKey { key, timestamp, scope: scope.to_string(), previous: seed }
    }

    /// The signature of the next chunk, given the SHA-256 of its data; the chain moves on.
    pub fn sign_chunk(&mut self, data_sha256: [u8; 32]) -> [u8; 32] {
        let string_to_sign = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{}\n{}\n{}",
            self.timestamp,
            self.scope,
            hex::encode(self.previous),
            hex::encode(sha256(b"")),
            hex::encode(data_sha256)
        );
        self.previous = self.key.sign(string_to_sign.as_bytes());
        self.previous
    }

    /// The signature of the trailers, given the SHA-256 of their lines, each `name:value\n`.
    pub fn sign_trailer(&mut self, trailers_sha256: [u8; 32]) -> [u8; 32] {
        let string_to_sign = format!(
            "AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{}\n{}",
            self.timestamp,
            self.scope,
            hex::encode(self.previous),
            hex::encode(trailers_sha256)
        );
        self.previous = self.key.sign(string_to_sign.as_bytes());
        self.previous
    }
}

pub(super) fn string_to_sign(timestamp: &str, scope: &Scope, canonical: &[u8]) -> String {
    format!("{ALGORITHM}\n{timestamp}\n{scope}\n{}", hex::encode(sha256(canonical)))
}

pub(super) fn from_header(
    parts: &http::request::Parts,
    query: &Query,
    value: &str,
    route: Route,
) -> Result<Presented, AwsError> {
    let Some(rest) = value.strip_prefix(ALGORITHM).and_then(|rest| rest.strip_prefix([' ', '\t'])) else {
        return Err(route.unsupported_authorization());
    };
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for field in rest.split(',') {
        let Some((name, value)) = field.trim().split_once('=') else {
            return Err(route.malformed_header("A field has no value."));
        };
        let slot = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed_headers,
            "Signature" => &mut signature,
            _ => return Err(route.malformed_header("A field is not known.")),
        };
        if slot.replace(value).is_some() {
            return Err(route.malformed_header("A field is given twice."));
        }
    }
    let (Some(credential), Some(signed_headers), Some(signature)) = (credential, signed_headers, signature) else {
        return Err(route.malformed_header("Credential, SignedHeaders and Signature are needed."));
    };
    let malformed = |detail: &str| route.malformed_header(detail);
    let (access_key, scope) = parse_credential(credential)
        .ok_or_else(|| malformed("The Credential must be KEY/YYYYMMDD/REGION/SERVICE/aws4_request."))?;
    let signature = parse_signature(signature).ok_or_else(|| route.signature_mismatch())?;
    let (signed_at, timestamp) = header_date(parts).ok_or_else(|| route.bad_date())?;
    if scope.date != timestamp[..8] {
        return Err(malformed("The date of the Credential is not that of the request."));
    }
    let signed_headers = check_signed_headers(parts, signed_headers, route)?;
    let (payload, payload_line) = match (single(parts, "x-amz-content-sha256"), route) {
        (Err(()), _) => return Err(malformed("x-amz-content-sha256 is given twice.")),
        (Ok(None), Route::S3) => {
            return Err(AwsError::bad_request(
                "InvalidRequest",
                "Missing required header for this request: x-amz-content-sha256",
            ));
        }
        (Ok(None), _) => (Payload::HashOfBody, None),
        (Ok(Some(line)), _) => (parse_payload(line, route)?, Some(line.to_string())),
    };
    let session_token = single(parts, "x-amz-security-token")
        .map_err(|()| malformed("x-amz-security-token is given twice."))?
        .map(str::to_string);
    let head = canonical_head(parts, &query.canonical(""), &signed_headers, route)?;
    Ok(Presented {
        access_key,
        route,
        method: Method::V4Header,
        scope: Some(scope),
        signed_headers,
        session_token,
        payload,
        signed_at,
        clock: Clock::Skew,
        proof: Proof::V4 { head, payload_line, timestamp, signature },
    })
}

pub(super) fn from_url(parts: &http::request::Parts, query: &Query, route: Route) -> Result<Presented, AwsError> {
    let needed = |name: &str| {
        query.get(name).ok_or_else(|| route.malformed_query(&format!("The query parameter {name} is needed.")))
    };
    if needed("X-Amz-Algorithm")? != ALGORITHM {
        return Err(route.malformed_query("X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\"."));
    }
    let (access_key, scope) = parse_credential(needed("X-Amz-Credential")?)
        .ok_or_else(|| route.malformed_query("The Credential must be KEY/YYYYMMDD/REGION/SERVICE/aws4_request."))?;
    let signature = parse_signature(needed("X-Amz-Signature")?).ok_or_else(|| route.signature_mismatch())?;
    let timestamp = needed("X-Amz-Date")?.to_string();
    let signed_at = parse_basic_date(&timestamp).ok_or_else(|| match route {
        Route::S3 => route.malformed_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\""),
        Route::Ec2 | Route::Query | Route::RestJson => route.bad_date(),
    })?;
    if scope.date != timestamp[..8] {
        return Err(route.malformed_query("The date of the Credential is not that of X-Amz-Date."));
    }
    let expires = match (query.get("X-Amz-Expires"), route) {
        // GET requests to Query services need not say how long they live: they get the usual quarter of an hour.
        (None, Route::Ec2 | Route::Query | Route::RestJson) => super::MAX_SKEW,
        (None, Route::S3) => return Err(route.malformed_query("The query parameter X-Amz-Expires is needed.")),
        (Some(text), _) => text
            .parse::<u32>()
            .map(|seconds| Duration::seconds(i64::from(seconds)))
            .ok()
            .filter(|expires| *expires >= Duration::seconds(1) && *expires <= MAX_EXPIRES)
            .ok_or_else(|| route.bad_lifetime())?,
    };
    let signed_headers = check_signed_headers(parts, needed("X-Amz-SignedHeaders")?, route)?;
    let in_header = single(parts, "x-amz-content-sha256")
        .map_err(|()| route.malformed_query("x-amz-content-sha256 is given twice."))?;
    let (payload, payload_line) = match (in_header.or_else(|| query.get("X-Amz-Content-Sha256")), route) {
        (Some(line), _) => (parse_payload(line, route)?, Some(line.to_string())),
        (None, Route::S3) => (Payload::Unsigned, Some("UNSIGNED-PAYLOAD".to_string())),
        (None, _) => (Payload::HashOfBody, None),
    };
    // A URL is handed to others; its holder cannot sign chunks, and unsigned framing adds nothing to an unsigned body.
    if payload.is_chunked() {
        return Err(AwsError::access_denied());
    }
    if query.has("X-Amz-Security-Token") && parts.headers.contains_key("x-amz-security-token") {
        return Err(route.two_credentials());
    }
    let session_token = query.get("X-Amz-Security-Token").map(str::to_string);
    let head = canonical_head(parts, &query.canonical("X-Amz-Signature"), &signed_headers, route)?;
    Ok(Presented {
        access_key,
        route,
        method: Method::V4Presigned { expires },
        scope: Some(scope),
        signed_headers,
        session_token,
        payload,
        signed_at,
        clock: Clock::For(expires),
        proof: Proof::V4 { head, payload_line, timestamp, signature },
    })
}

/// The canonical request up to the payload hash.
pub(super) fn canonical_head(
    parts: &http::request::Parts,
    query: &str,
    signed_headers: &[String],
    route: Route,
) -> Result<Vec<u8>, AwsError> {
    let path = match route {
        Route::S3 => s3_path(parts.uri.path())
            .ok_or_else(|| AwsError::bad_request("InvalidURI", "Couldn't parse the specified URI."))?,
        Route::Ec2 | Route::Query | Route::RestJson => normalised_path(parts.uri.path()),
    };
    let mut head = Vec::with_capacity(1024);
    for line in [parts.method.as_str(), &path, query] {
        head.extend_from_slice(line.as_bytes());
        head.push(b'\n');
    }
    for name in signed_headers {
        head.extend_from_slice(name.as_bytes());
        head.push(b':');
        if name == "host" {
            push_header_value(&mut head, host(parts).unwrap_or_default());
        } else {
            for (at, value) in parts.headers.get_all(name.as_str()).iter().enumerate() {
                if at > 0 {
                    head.push(b',');
                }
                push_header_value(&mut head, value.as_bytes());
            }
        }
        head.push(b'\n');
    }
    head.push(b'\n');
    head.extend_from_slice(signed_headers.join(";").as_bytes());
    head.push(b'\n');
    Ok(head)
}

/// `host` and every `x-amz-*` header must be among them, and each must be in the request.
fn check_signed_headers(parts: &http::request::Parts, list: &str, route: Route) -> Result<Vec<String>, AwsError> {
    let names: Vec<String> = list.split(';').map(str::to_string).collect();
    let mut unique = std::collections::BTreeSet::new();
    for name in &names {
        let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase());
        if name.is_empty() || !plain || !unique.insert(name.as_str()) || unique.len() > MAX_SIGNED_HEADERS {
            return Err(route.malformed_header("SignedHeaders must be lower-case names, each once."));
        }
        let present = if name == "host" { host(parts).is_some() } else { parts.headers.contains_key(name.as_str()) };
        if !present {
            return Err(route.signature_mismatch());
        }
    }
    if !unique.contains("host") {
        return Err(route.unsigned_header("host"));
    }
    for name in parts.headers.keys() {
        if name.as_str().starts_with("x-amz-") && !unique.contains(name.as_str()) {
            return Err(route.unsigned_header(name.as_str()));
        }
    }
    Ok(names)
}

pub(super) fn parse_credential(text: &str) -> Option<(crate::AccessKeyId, Scope)> {
    let mut fields = text.split('/');
    let access_key = fields.next()?.parse().ok()?;
    let (date, region, service) = (fields.next()?, fields.next()?, fields.next()?);
    let terminator = fields.next()?;
    let dated = date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit());
    if !dated || service.is_empty() || terminator != "aws4_request" || fields.next().is_some() {
        return None;
    }
    Some((access_key, Scope { date: date.to_string(), region: region.to_string(), service: service.to_string() }))
}

pub(super) fn parse_signature(text: &str) -> Option<[u8; 32]> {
    let mut signature = [0; 32];
    hex::decode_to_slice(text, &mut signature).ok()?;
    Some(signature)
}

pub(super) fn parse_payload(line: &str, route: Route) -> Result<Payload, AwsError> {
    let hash = || parse_signature(line).filter(|_| !line.bytes().any(|byte| byte.is_ascii_uppercase()));
    match (line, route) {
        ("UNSIGNED-PAYLOAD", Route::S3 | Route::RestJson) => Ok(Payload::Unsigned),
        ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", Route::S3) => Ok(Payload::UnsignedTrailer),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", Route::S3) => Ok(Payload::SignedChunks),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", Route::S3) => Ok(Payload::SignedChunksTrailer),
        _ => match (hash(), route) {
            (Some(hash), _) => Ok(Payload::SignedHash(hash)),
            (None, Route::S3) => Err(AwsError::bad_request(
                "InvalidArgument",
                "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, \
                 STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
            )),
            // Where the body says what to do, an unsigned one would be an unsigned request.
            (None, Route::Ec2 | Route::Query | Route::RestJson) => Err(route.signature_mismatch()),
        },
    }
}

/// A header that may come at most once.
pub(super) fn single<'p>(parts: &'p http::request::Parts, name: &str) -> Result<Option<&'p str>, ()> {
    let mut values = parts.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(|text| Some(text.trim())).map_err(|_| ()),
        _ => Err(()),
    }
}

/// `x-amz-date`, else `Date`, and SigV4's spelling of it.
fn header_date(parts: &http::request::Parts) -> Option<(OffsetDateTime, String)> {
    if let Some(text) = single(parts, "x-amz-date").ok()? {
        return Some((parse_basic_date(text)?, text.to_string()));
    }
    let text = single(parts, "date").ok()??;
    let at = parse_basic_date(text).or_else(|| parse_mail_date(text))?;
    Some((at, basic_date(at)))
}

/// `20261120T010203Z`, and nothing else.
pub(super) fn parse_basic_date(text: &str) -> Option<OffsetDateTime> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<u16> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let two = |at: usize| number(at..at + 2).and_then(|n| u8::try_from(n).ok());
    let date = Date::from_calendar_date(i32::from(number(0..4)?), Month::try_from(two(4)?).ok()?, two(6)?).ok()?;
    Some(date.with_time(Time::from_hms(two(9)?, two(11)?, two(13)?).ok()?).assume_utc())
}

/// RFC 822's and its successors', with `GMT`, Go's `UTC` (rclone under SigV2) or a numeric zone.
pub(super) fn parse_mail_date(text: &str) -> Option<OffsetDateTime> {
    let in_gmt = text.strip_suffix(" UTC").map(|rest| format!("{rest} GMT"));
    let text = in_gmt.as_deref().unwrap_or(text);
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc2822)
        .ok()
        .or_else(|| httpdate::parse_http_date(text).ok().map(OffsetDateTime::from))
        .map(|at| at.to_offset(time::UtcOffset::UTC))
}

pub(super) fn basic_date(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}
