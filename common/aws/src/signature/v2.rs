//! Signature version 2, for tools older than 2014: in Query parameters, in S3's `Authorization: AWS`, in S3 URLs.
//!
//! It covers far less than version 4: for S3 neither host nor most headers, and no body but by `Content-MD5`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::{OffsetDateTime, macros::datetime};

use super::canonical::{Query, join_sorted};
use super::v4::{parse_basic_date, parse_mail_date, single};
use super::{Clock, Method, Payload, Presented, Proof, Route, Rules, SigV2, host};
use crate::error::AwsError;
use crate::params::Params;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    HmacSha256,
    HmacSha1,
}

/// The query parameters that name a sub-resource or change the answer, and so are signed.
const SUB_RESOURCES: [&str; 35] = [
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "defaultObjectAcl",
    "delete",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "partNumber",
    "policy",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "select",
    "select-type",
    "storageClass",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// The last second there is.
const THE_END: OffsetDateTime = datetime!(9999-12-31 23:59:59 UTC);

/// Sub-resources younger than the scheme, which it does not sign: whoever holds a URL could add one to it.
const UNSIGNED_SUB_RESOURCES: [&str; 8] = [
    "attributes",
    "encryption",
    "intelligent-tiering",
    "legal-hold",
    "ownershipControls",
    "policyStatus",
    "publicAccessBlock",
    "retention",
];

/// `AWSAccessKeyId`, `Signature`, ... among the parameters of a Query request, in the URL or in the form.
pub(super) fn from_query(
    parts: &http::request::Parts,
    query: &Query,
    form: Option<&Params>,
    rules: &Rules<'_>,
) -> Result<Presented, AwsError> {
    let route = rules.route;
    if rules.sigv2 == SigV2::Refused {
        return Err(route.sigv2_refused());
    }
    // Both places are signed as one set, so nobody can slip a parameter into the other one.
    let mut pairs: Vec<(&[u8], &[u8])> = query.pairs().collect();
    pairs.extend(form.into_iter().flat_map(Params::iter).map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    pairs.sort_unstable();
    if pairs.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(route.malformed_query("A parameter is given more than once."));
    }
    let get = |name: &str| {
        let (_, value) = pairs.iter().find(|(known, _)| *known == name.as_bytes())?;
        std::str::from_utf8(value).ok()
    };
    let needed = |name: &str| {
        get(name).ok_or_else(|| route.malformed_query(&format!("Request must contain the parameter {name}.")))
    };
    if needed("SignatureVersion")? != "2" {
        return Err(route.malformed_query("Only signature versions 2 and 4 are supported."));
    }
    let algorithm = match needed("SignatureMethod")? {
        "HmacSHA256" => Algorithm::HmacSha256,
        "HmacSHA1" => Algorithm::HmacSha1,
        _ => return Err(route.malformed_query("SignatureMethod must be HmacSHA256 or HmacSHA1.")),
    };
    let access_key = needed("AWSAccessKeyId")?.parse().map_err(|_| route.unknown_key())?;
    let signature = STANDARD.decode(needed("Signature")?).map_err(|_| route.signature_mismatch())?;
    let (when, clock) = match (get("Timestamp"), get("Expires")) {
        (Some(timestamp), None) => (timestamp, Clock::Skew),
        (None, Some(expires)) => (expires, Clock::Until),
        (Some(_), Some(_)) => return Err(route.malformed_query("Timestamp and Expires exclude each other.")),
        (None, None) => return Err(route.bad_date()),
    };
    let signed_at = parse_iso_date(when).ok_or_else(|| route.bad_date())?;
    let host = host(parts).ok_or_else(|| route.malformed_query("There is no Host header."))?;
    let path = if parts.uri.path().is_empty() { "/" } else { parts.uri.path() };
    let mut string_to_sign = Vec::with_capacity(1024);
    string_to_sign.extend_from_slice(parts.method.as_str().as_bytes());
    string_to_sign.push(b'\n');
    string_to_sign.extend_from_slice(&host.trim_ascii().to_ascii_lowercase());
    string_to_sign.push(b'\n');
    string_to_sign.extend_from_slice(path.as_bytes());
    string_to_sign.push(b'\n');
    let signed = pairs.iter().copied().filter(|(name, _)| *name != b"Signature");
    string_to_sign.extend_from_slice(join_sorted(signed).as_bytes());
    Ok(Presented {
        access_key,
        route,
        method: Method::V2Query,
        scope: None,
        signed_headers: Vec::new(),
        session_token: get("SecurityToken").map(str::to_string),
        payload: Payload::Unsigned,
        signed_at,
        clock,
        proof: Proof::V2 { string_to_sign, or_else: None, algorithm, signature },
    })
}

/// `Authorization: AWS KEY:SIGNATURE`.
pub(super) fn from_s3_header(
    parts: &http::request::Parts,
    query: &Query,
    pair: &str,
    rules: &Rules<'_>,
) -> Result<Presented, AwsError> {
    let route = rules.route;
    let (access_key, signature) = pair.trim().rsplit_once(':').ok_or_else(|| {
        AwsError::bad_request(
            "InvalidArgument",
            "AWS authorization header is invalid. Expected AwsAccessKeyId:signature",
        )
    })?;
    let amz_date = single(parts, "x-amz-date").map_err(|()| route.bad_date())?;
    let date = single(parts, "date").map_err(|()| route.bad_date())?;
    let when = amz_date.or(date).ok_or_else(|| route.bad_date())?;
    let signed_at = parse_mail_date(when)
        .or_else(|| parse_basic_date(when))
        .or_else(|| parse_iso_date(when))
        .filter(|signed_at| *signed_at >= OffsetDateTime::UNIX_EPOCH)
        .ok_or_else(|| route.bad_date())?;
    // With x-amz-date the line is empty: the date is signed among the x-amz- headers.
    let date_line = if amz_date.is_some() { "" } else { date.unwrap_or_default() };
    let token = single(parts, "x-amz-security-token").map_err(|()| route.unknown_key())?;
    s3(
        parts,
        query,
        rules,
        S3Credentials {
            access_key,
            signature,
            method: Method::V2S3Header,
            date_line,
            signed_at,
            clock: Clock::Skew,
            session_token: token,
        },
    )
}

/// `?AWSAccessKeyId=..&Expires=..&Signature=..`.
pub(super) fn from_s3_url(
    parts: &http::request::Parts,
    query: &Query,
    rules: &Rules<'_>,
) -> Result<Presented, AwsError> {
    let get = |name: &str| {
        query.get_exactly(name).ok_or_else(|| {
            AwsError::new(
                "AccessDenied",
                403,
                "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters",
            )
        })
    };
    let (access_key, signature, expires) = (get("AWSAccessKeyId")?, get("Signature")?, get("Expires")?);
    let digits = !expires.is_empty() && expires.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = digits.then(|| expires.parse().unwrap_or(i64::MAX));
    // Clients that mean "for ever" count farther than there are years.
    let signed_at = seconds
        .map(|seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(THE_END))
        .ok_or_else(|| AwsError::new("AccessDenied", 403, "Invalid date (should be seconds since epoch)"))?;
    s3(
        parts,
        query,
        rules,
        S3Credentials {
            access_key,
            signature,
            method: Method::V2S3Presigned,
            date_line: expires,
            signed_at,
            clock: Clock::Until,
            session_token: query.get("x-amz-security-token"),
        },
    )
}

struct S3Credentials<'a> {
    access_key: &'a str,
    signature: &'a str,
    method: Method,
    date_line: &'a str,
    signed_at: OffsetDateTime,
    clock: Clock,
    session_token: Option<&'a str>,
}

fn s3(
    parts: &http::request::Parts,
    query: &Query,
    rules: &Rules<'_>,
    credentials: S3Credentials<'_>,
) -> Result<Presented, AwsError> {
    let route = rules.route;
    if rules.sigv2 == SigV2::Refused {
        return Err(route.sigv2_refused());
    }
    let access_key = credentials.access_key.parse().map_err(|_| route.unknown_key())?;
    let signature = STANDARD.decode(credentials.signature).map_err(|_| route.signature_mismatch())?;
    // boto hoists these headers into the URL when it presigns, and signs them as headers all the same.
    let presigned = credentials.method == Method::V2S3Presigned;
    if presigned && UNSIGNED_SUB_RESOURCES.iter().any(|name| query.has_exactly(name)) {
        return Err(AwsError::access_denied());
    }
    let header_or_query = |name: &str| -> Result<&[u8], AwsError> {
        let mut values = parts.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Ok(value.as_bytes().trim_ascii()),
            (None, _) if presigned => Ok(query.get(name).unwrap_or_default().as_bytes()),
            (None, _) => Ok(b""),
            _ => Err(route.malformed_header("A signed header is given twice.")),
        }
    };
    let mut text = Vec::with_capacity(512);
    for line in [
        parts.method.as_str().as_bytes(),
        header_or_query("content-md5")?,
        header_or_query("content-type")?,
        credentials.date_line.as_bytes(),
    ] {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    push_amz_headers(&mut text, parts, query, presigned);
    let (path, raw_query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    // boto3 asks for `/bucket?acl` and signs `/bucket/?acl`, which is the same.
    let or_else = if rules.bucket_in_host.is_none() && path.rfind('/') == Some(0) && path.len() > 1 {
        let mut text = text.clone();
        push_resource(&mut text, &format!("{path}/"), raw_query, None, route)?;
        Some(text)
    } else {
        None
    };
    push_resource(&mut text, path, raw_query, rules.bucket_in_host, route)?;
    let payload = match single(parts, "x-amz-content-sha256") {
        Err(()) => return Err(route.malformed_header("x-amz-content-sha256 is given twice.")),
        Ok(None | Some("UNSIGNED-PAYLOAD")) => Payload::Unsigned,
        Ok(Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER")) if !presigned => Payload::UnsignedTrailer,
        Ok(Some(line)) => {
            let mut hash = [0; 32];
            // Signed chunks chain to a version 4 signature; there is none here.
            hex::decode_to_slice(line, &mut hash).map_err(|_| AwsError::access_denied())?;
            Payload::SignedHash(hash)
        }
    };
    Ok(Presented {
        access_key,
        route,
        method: credentials.method,
        scope: None,
        signed_headers: Vec::new(),
        session_token: credentials.session_token.map(str::to_string),
        payload,
        signed_at: credentials.signed_at,
        clock: credentials.clock,
        proof: Proof::V2 { string_to_sign: text, or_else, algorithm: Algorithm::HmacSha1, signature },
    })
}

/// `x-amz-name:value` lines by name; several values of one name are joined by commas.
fn push_amz_headers(text: &mut Vec<u8>, parts: &http::request::Parts, query: &Query, presigned: bool) {
    let mut headers: std::collections::BTreeMap<Vec<u8>, Vec<Vec<u8>>> = std::collections::BTreeMap::new();
    for (name, value) in &parts.headers {
        if name.as_str().starts_with("x-amz-") {
            headers.entry(name.as_str().as_bytes().to_vec()).or_default().push(value.as_bytes().trim_ascii().to_vec());
        }
    }
    if presigned {
        for (name, value) in query.pairs() {
            let name = name.to_ascii_lowercase();
            if name.starts_with(b"x-amz-") {
                headers.entry(name).or_default().push(value.to_vec());
            }
        }
    }
    for (name, values) in headers {
        text.extend_from_slice(&name);
        text.push(b':');
        text.extend_from_slice(&values.join(&b','));
        text.push(b'\n');
    }
}

/// `/bucket/path?subresources`: the path as it was sent, the sub-resources sorted by name with their values decoded.
fn push_resource(
    text: &mut Vec<u8>,
    path: &str,
    raw_query: &str,
    bucket_in_host: Option<&str>,
    route: Route,
) -> Result<(), AwsError> {
    if let Some(bucket) = bucket_in_host {
        text.push(b'/');
        text.extend_from_slice(bucket.as_bytes());
    }
    text.extend_from_slice(if path.is_empty() { b"/" } else { path.as_bytes() });
    let mut signed = Vec::new();
    for pair in raw_query.split('&') {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (pair, None),
        };
        // Whoever reads the request decodes names, so an encoded sub-resource must not slip past the signature.
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        if SUB_RESOURCES.contains(&name.as_ref()) {
            let value = value.map(|value| percent_encoding::percent_decode_str(value).collect::<Vec<u8>>());
            signed.push((name.into_owned(), value));
        }
    }
    signed.sort();
    if signed.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(route.malformed_query("A sub-resource is given more than once."));
    }
    for (at, (name, value)) in signed.iter().enumerate() {
        text.push(if at == 0 { b'?' } else { b'&' });
        text.extend_from_slice(name.as_bytes());
        // `?uploads=` is signed as `?uploads`: rclone sends the one and signs the other, and they ask for the same.
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            text.push(b'=');
            text.extend_from_slice(value);
        }
    }
    Ok(())
}

/// `2026-11-20T01:02:03`, with or without fraction, with `Z`, an offset or nothing (which is UTC).
pub(super) fn parse_iso_date(text: &str) -> Option<OffsetDateTime> {
    use time::format_description::well_known::Rfc3339;
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339))
        .ok()
        .map(|at| at.to_offset(time::UtcOffset::UTC))
}
