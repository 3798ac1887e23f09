//! The one front door for signed requests: SigV4 in a header or a URL, SigV2 for Query and for S3.
//!
//! Pure, in this order, because each step missed once let somebody in: take apart exactly one set of credentials
//! ([`Presented::from_request`]), the caller looks up the key, then [`Presented::verify`] checks the clock, recomputes
//! from the raw bytes and compares in constant time. The body comes last, and only by its hash.
//!
//! ```
//! use mallee_aws::signature::{Payload, Presented, Route, Rules, Signer};
//! use mallee_aws::{AccessKeyId, SecretKey};
//! let now = time::macros::datetime!(2026-11-20 01:02:03 UTC);
//! let (key, secret): (AccessKeyId, _) = ("AKIDEXAMPLE".parse().unwrap(), SecretKey::new("secret"));
//! let signer = Signer { access_key: &key, secret: &secret, session_token: None, region: "mallee-1", service: "s3" };
//! let mut request = http::Request::get("http://127.0.0.1:8777/bucket/a%20key").body(()).unwrap();
//! signer.sign(&mut request, Payload::Unsigned, now).unwrap();
//!
//! let (parts, ()) = request.into_parts();
//! let presented = Presented::from_request(&parts, None, &Rules::new(Route::S3)).unwrap().expect("not anonymous");
//! assert_eq!(presented.access_key, key); // look its secret up; unknown: presented.route.unknown_key()
//! let verified = presented.verify(&secret, None, now).unwrap();
//! assert!(matches!(verified.payload, Payload::Unsigned));
//! ```

use subtle::ConstantTimeEq as _;
use time::{Duration, OffsetDateTime};

use crate::credential::{AccessKeyId, SecretKey};
use crate::error::AwsError;
use crate::mac::{hmac_sha1, hmac_sha256, sha256};
use crate::params::Params;

pub(crate) mod canonical;
pub mod post;
mod refusal;
mod sign;
mod v2;
mod v4;

pub use canonical::{encode as percent_encode, encode_path as percent_encode_path};
pub use refusal::Route;
pub use sign::Signer;
pub use v4::{ChunkKey, Scope, SigningKey};

/// How far a client's clock may be off.
pub const MAX_SKEW: Duration = Duration::minutes(15);
/// The longest life of a SigV4 presigned URL.
pub const MAX_EXPIRES: Duration = Duration::days(7);

/// Whether requests signed by the old scheme are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigV2 {
    Allowed,
    Refused,
}

/// What the route knows before the credentials are read.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    pub route: Route,
    pub sigv2: SigV2,
    /// The bucket of a virtual-host request (`bucket.s3.example`): SigV2 signs it as the head of the path.
    pub bucket_in_host: Option<&'a str>,
}

impl Rules<'_> {
    pub fn new(route: Route) -> Self {
        Rules { route, sigv2: SigV2::Allowed, bucket_in_host: None }
    }
}

/// How the credentials came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    V4Header,
    V4Presigned {
        expires: Duration,
    },
    V2Query,
    V2S3Header,
    V2S3Presigned,
    /// A browser's form upload; what it allows stands in its policy.
    PostForm,
}

/// What the signature says about the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// The body must have this SHA-256; [`Verified::check_body`] once it is read.
    SignedHash([u8; 32]),
    /// The signature itself covers the body's hash, so `verify` needs it (SigV4 outside S3).
    HashOfBody,
    /// Nothing.
    Unsigned,
    /// aws-chunked, plain chunks with trailers.
    UnsignedTrailer,
    /// aws-chunked, each chunk signed.
    SignedChunks,
    /// aws-chunked, each chunk and the trailers signed.
    SignedChunksTrailer,
}

impl Payload {
    pub fn is_chunked(self) -> bool {
        matches!(self, Payload::UnsignedTrailer | Payload::SignedChunks | Payload::SignedChunksTrailer)
    }
}

/// What an anonymous S3 request says about its body. Signed chunks without a signature are refused.
pub fn anonymous_payload(parts: &http::request::Parts) -> Result<Payload, AwsError> {
    let line = v4::single(parts, "x-amz-content-sha256")
        .map_err(|()| Route::S3.malformed_header("x-amz-content-sha256 is given twice."))?;
    match line.map(|line| v4::parse_payload(line, Route::S3)).transpose()? {
        Some(Payload::SignedChunks | Payload::SignedChunksTrailer) => Err(AwsError::access_denied()),
        Some(payload) => Ok(payload),
        None => Ok(Payload::Unsigned),
    }
}

/// Credentials as they were presented: taken apart and well-formed, but nothing about them is believed yet.
#[derive(Clone)]
pub struct Presented {
    pub access_key: AccessKeyId,
    pub route: Route,
    pub method: Method,
    /// SigV4's scope, as the client chose it: the key is derived from it whatever it says. A *known* service's scope on
    /// another service's route is for the caller to refuse.
    pub scope: Option<Scope>,
    /// Lower-case, in the order signed; empty for SigV2.
    pub signed_headers: Vec<String>,
    /// Must belong to the access key; the caller's store knows.
    pub session_token: Option<String>,
    pub payload: Payload,
    /// When the client says it signed; for SigV2 URLs with `Expires`, when they end.
    pub signed_at: OffsetDateTime,
    clock: Clock,
    proof: Proof,
}

#[derive(Debug, Clone, Copy)]
enum Clock {
    /// Good for the skew either way.
    Skew,
    /// Good for a span from `signed_at`.
    For(Duration),
    /// Good until `signed_at`.
    Until,
}

#[derive(Clone)]
enum Proof {
    V4 {
        /// The canonical request up to, not including, the payload hash.
        head: Vec<u8>,
        /// The last line as the client declared it; `None` is the body's own hash.
        payload_line: Option<String>,
        timestamp: String,
        signature: [u8; 32],
    },
    V2 {
        string_to_sign: Vec<u8>,
        /// What some clients sign instead.
        or_else: Option<Vec<u8>>,
        algorithm: v2::Algorithm,
        signature: Vec<u8>,
    },
    /// SigV4 over a form's policy, which is the string to sign itself.
    V4Policy { policy: Vec<u8>, signature: [u8; 32] },
}

impl std::fmt::Debug for Presented {
    /// Neither the signature nor the session token: a presigned signature is a credential.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presented")
            .field("access_key", &self.access_key)
            .field("method", &self.method)
            .field("scope", &self.scope)
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

/// The signature was right and in time.
#[derive(Debug, Clone)]
pub struct Verified {
    pub access_key: AccessKeyId,
    pub route: Route,
    pub method: Method,
    pub payload: Payload,
    /// For signed chunks: what the first chunk's signature chains to.
    pub chunk_key: Option<ChunkKey>,
}

impl Verified {
    /// Compares the body that came with the hash that was signed. Nothing of the body may take effect before.
    pub fn check_body(&self, body_sha256: [u8; 32]) -> Result<(), AwsError> {
        match self.payload {
            Payload::SignedHash(signed) if !bool::from(signed.ct_eq(&body_sha256)) => {
                Err(self.route.body_mismatch(&signed, &body_sha256))
            }
            _ => Ok(()),
        }
    }
}

impl Presented {
    /// Takes the credentials out of a request; `None` if it carries none. `form` is a Query request's decoded body.
    ///
    /// Refuses more than one set of credentials, doubled `X-Amz-*` parameters, an unsigned `host` or `x-amz-*` header,
    /// dates that do not parse, and whatever else cannot be made sense of. The headers must be as the client sent them.
    pub fn from_request(
        parts: &http::request::Parts,
        form: Option<&Params>,
        rules: &Rules<'_>,
    ) -> Result<Option<Presented>, AwsError> {
        let route = rules.route;
        let query = canonical::Query::parse(parts.uri.query().unwrap_or_default())
            .ok_or_else(|| route.malformed_query("The query string is not properly encoded."))?;
        let mut headers = parts.headers.get_all(http::header::AUTHORIZATION).iter();
        let header = headers.next();
        let in_url_v4 = ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"].iter().any(|name| query.has(name));
        // Some clients leave AWSAccessKeyId among the parameters of a SigV4 Query request; only a signature is a claim.
        let in_url_v2 = query.has_exactly("Signature") || (route == Route::S3 && query.has_exactly("AWSAccessKeyId"));
        let in_form_v2 = route != Route::S3 && form.is_some_and(|form| form.get("Signature").is_some());
        let sets = [header.is_some(), headers.next().is_some(), in_url_v4, in_url_v2, in_form_v2];
        match sets.iter().filter(|present| **present).count() {
            0 => return Ok(None),
            1 => {}
            _ => return Err(route.two_credentials()),
        }
        if query.has_doubled_amz_parameter() {
            return Err(route.malformed_query("An X-Amz- parameter is given more than once."));
        }
        let presented = match header {
            Some(value) => {
                let value = value.to_str().map_err(|_| route.malformed_header("It is not ASCII."))?;
                if value.starts_with("AWS4-") {
                    v4::from_header(parts, &query, value, route)?
                } else if let (Some(pair), Route::S3) = (value.strip_prefix("AWS "), route) {
                    v2::from_s3_header(parts, &query, pair, rules)?
                } else {
                    return Err(route.unsupported_authorization());
                }
            }
            None if in_url_v4 => v4::from_url(parts, &query, route)?,
            None if route == Route::S3 => v2::from_s3_url(parts, &query, rules)?,
            None => v2::from_query(parts, &query, form, rules)?,
        };
        Ok(Some(presented))
    }

    /// Checks the clock and the signature. `body_sha256` is needed for [`Payload::HashOfBody`], and is compared at once
    /// where given; for a body still to be streamed pass `None` and call [`Verified::check_body`] later.
    pub fn verify(
        &self,
        secret: &SecretKey,
        body_sha256: Option<[u8; 32]>,
        now: OffsetDateTime,
    ) -> Result<Verified, AwsError> {
        self.check_clock(now)?;
        let chunk_key = match &self.proof {
            Proof::V4 { head, payload_line, timestamp, signature } => {
                let Some(scope) = &self.scope else { return Err(AwsError::internal()) };
                let payload_line = match (payload_line, body_sha256) {
                    (Some(line), _) => line.clone(),
                    (None, Some(hash)) => hex::encode(hash),
                    (None, None) => return Err(AwsError::internal()),
                };
                let mut canonical = head.clone();
                canonical.extend_from_slice(payload_line.as_bytes());
                let string_to_sign = v4::string_to_sign(timestamp, scope, &canonical);
                let key = SigningKey::derive(secret, scope);
                let expected = key.sign(string_to_sign.as_bytes());
                if !bool::from(expected.ct_eq(signature)) {
                    return Err(self.mismatch(string_to_sign.as_bytes(), Some(&canonical)));
                }
                matches!(self.payload, Payload::SignedChunks | Payload::SignedChunksTrailer)
                    .then(|| ChunkKey::new(key, timestamp.clone(), scope, *signature))
            }
            Proof::V4Policy { policy, signature } => {
                let Some(scope) = &self.scope else { return Err(AwsError::internal()) };
                let expected = SigningKey::derive(secret, scope).sign(policy);
                if !bool::from(expected.ct_eq(signature)) {
                    return Err(self.mismatch(policy, None));
                }
                None
            }
            Proof::V2 { string_to_sign, or_else, algorithm, signature } => {
                let secret = secret.expose().as_bytes();
                let matches = |text: &[u8]| match algorithm {
                    v2::Algorithm::HmacSha256 => signature.ct_eq(&hmac_sha256(secret, &[text])[..]),
                    v2::Algorithm::HmacSha1 => signature.ct_eq(&hmac_sha1(secret, &[text])[..]),
                };
                if !bool::from(matches(string_to_sign)) && !or_else.iter().any(|text| matches(text).into()) {
                    return Err(self.mismatch(string_to_sign, None));
                }
                None
            }
        };
        let verified = Verified {
            access_key: self.access_key.clone(),
            route: self.route,
            method: self.method,
            payload: self.payload,
            chunk_key,
        };
        if let Some(hash) = body_sha256 {
            verified.check_body(hash)?;
        }
        Ok(verified)
    }

    fn check_clock(&self, now: OffsetDateTime) -> Result<(), AwsError> {
        let age = now - self.signed_at;
        match self.clock {
            Clock::Skew if age.abs() > MAX_SKEW => Err(self.route.skewed(self.signed_at, now)),
            Clock::For(_) if age < -MAX_SKEW => Err(self.route.not_yet_valid(self.signed_at, now)),
            Clock::For(span) if age > span => Err(self.route.expired(self.signed_at.saturating_add(span), now)),
            Clock::Until if age > Duration::ZERO => Err(self.route.expired(self.signed_at, now)),
            _ => Ok(()),
        }
    }

    /// The refusal of a wrong signature. It shows what was signed, never what the signature should have been.
    fn mismatch(&self, string_to_sign: &[u8], canonical: Option<&[u8]>) -> AwsError {
        let mut error = self.route.signature_mismatch();
        if self.route == Route::S3 {
            error = error
                .with_field("AWSAccessKeyId", self.access_key.as_str())
                .with_field("StringToSign", String::from_utf8_lossy(string_to_sign));
            if let Some(canonical) = canonical {
                error = error.with_field("CanonicalRequest", String::from_utf8_lossy(canonical));
            }
        }
        error
    }
}

/// The value of the `Host` header exactly as sent, or HTTP/2's authority.
fn host(parts: &http::request::Parts) -> Option<&[u8]> {
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host.as_bytes()),
        (None, _) => parts.uri.authority().map(|authority| authority.as_str().as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
