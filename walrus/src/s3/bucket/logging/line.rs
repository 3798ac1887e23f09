//! One line of a log, in S3's format ("Amazon S3 server access log format").

use std::time::Instant;

use http::{HeaderMap, Method, Response, header};
use mallee_service::Body;
use time::OffsetDateTime;

use crate::{circumstances::Wire, principal::Principal, s3::bucket::website};

/// What a line tells of.
pub struct Logged<'l> {
    pub bucket: &'l str,
    pub key: &'l str,
    pub operation: &'l str,
    pub method: &'l Method,
    /// The raw path and query.
    pub target: &'l str,
    pub headers: &'l HeaderMap,
    pub principal: &'l Principal,
    pub wire: Wire,
    pub request_id: &'l str,
    pub response: &'l Response<Body>,
    pub error: Option<&'l str>,
    pub now: i64,
    pub begun: Instant,
}

/// The owner, who is the bucket's, stands at the front.
pub fn line(owner: &str, logged: &Logged<'_>) -> String {
    let absent = || "-".to_owned();
    let clean = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_control() || c == '"' { format!("%{:02X}", u32::from(c)) } else { c.to_string() })
            .collect()
    };
    let quoted = |text: Option<&str>| text.map_or_else(absent, |text| format!("\"{}\"", clean(text)));
    let header = |name: header::HeaderName| logged.headers.get(name).and_then(|value| value.to_str().ok());
    let answered = |name: &str| logged.response.headers().get(name).and_then(|value| value.to_str().ok());
    let requester = logged.principal.account().map_or_else(absent, |account| account.canonical_id.clone());
    let remote = logged.wire.remote.map_or_else(absent, |ip| ip.to_canonical().to_string());
    let key = if logged.key.is_empty() { absent() } else { crate::s3::object::post::encoded(logged.key) };
    let status = logged.response.status();
    let length = answered("content-length").map(str::to_owned);
    let read = status.is_success() && *logged.method == Method::GET;
    let sent = length.clone().filter(|_| read).unwrap_or_else(absent);
    let size = answered("content-range")
        .and_then(|range| range.rsplit_once('/').map(|(_, size)| size.to_owned()))
        .or(length.filter(|_| read && !logged.key.is_empty()))
        .unwrap_or_else(absent);
    let context = |key: &str| logged.principal.context.values(key).first().cloned();
    let version_of_signature = match context("s3:signatureversion").as_deref() {
        Some("AWS") => "SigV2",
        Some(_) => "SigV4",
        None => "-",
    };
    let auth = match context("s3:authType").as_deref() {
        Some("REST-HEADER") => "AuthHeader",
        Some("REST-QUERY-STRING") => "QueryString",
        Some("POST") => "POST",
        _ => "-",
    };
    let took = logged.begun.elapsed().as_millis();
    [
        owner.to_owned(),
        logged.bucket.to_owned(),
        format!("[{}]", log_time(logged.now)),
        remote,
        requester,
        logged.request_id.to_owned(),
        operation_name(logged),
        key,
        format!("\"{} {} HTTP/1.1\"", logged.method, clean(logged.target)),
        status.as_u16().to_string(),
        logged.error.map_or_else(absent, str::to_owned),
        sent,
        size,
        took.to_string(),
        took.to_string(),
        quoted(header(header::REFERER)),
        quoted(header(header::USER_AGENT)),
        answered("x-amz-version-id").map_or_else(absent, str::to_owned),
        logged.request_id.to_owned(),
        version_of_signature.to_owned(),
        absent(),
        auth.to_owned(),
        header(header::HOST).map_or_else(absent, clean),
        if logged.wire.tls { "TLSv1.2".to_owned() } else { absent() },
        absent(),
        absent(),
    ]
    .join(" ")
}

/// `REST.GET.OBJECT`. The words are S3's, which are not those of its API.
fn operation_name(logged: &Logged<'_>) -> String {
    const WORDS: [(&str, &str); 24] = [
        ("Acl", "ACL"),
        ("Tagging", "TAGGING"),
        ("Location", "LOCATION"),
        ("Versions", "BUCKETVERSIONS"),
        ("Versioning", "VERSIONING"),
        ("Cors", "CORS"),
        ("Policy", "BUCKETPOLICY"),
        ("PolicyStatus", "POLICY_STATUS"),
        ("PublicAccessBlock", "PUBLIC_ACCESS_BLOCK"),
        ("OwnershipControls", "OWNERSHIP_CONTROLS"),
        ("Website", "WEBSITE"),
        ("Encryption", "ENCRYPTION"),
        ("Logging", "LOGGING_STATUS"),
        ("NotificationConfiguration", "NOTIFICATION"),
        ("RequestPayment", "REQUEST_PAYMENT"),
        ("LifecycleConfiguration", "LIFECYCLE"),
        ("LockConfiguration", "OBJECT_LOCK_CONFIGURATION"),
        ("Retention", "RETENTION"),
        ("LegalHold", "LEGAL_HOLD"),
        ("DeleteObjects", "MULTI_OBJECT_DELETE"),
        ("CreateMultipartUpload", "UPLOADS"),
        ("MultipartUploads", "UPLOADS"),
        ("MultipartUpload", "UPLOAD"),
        ("Parts", "UPLOAD"),
    ];
    let word = WORDS.iter().find(|(end, _)| logged.operation.ends_with(end)).map(|(_, word)| *word);
    let what = match word {
        Some(word) => word,
        None if logged.operation.starts_with("UploadPart") => "PART",
        None if logged.key.is_empty() => "BUCKET",
        None => "OBJECT",
    };
    let verb = if logged.operation == "CopyObject" { "COPY" } else { logged.method.as_str() };
    let at = if logged.operation == website::OPERATION { "WEBSITE" } else { "REST" };
    format!("{at}.{verb}.{what}")
}

fn log_time(now: i64) -> String {
    let format = time::macros::format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
    OffsetDateTime::from_unix_timestamp(now.div_euclid(1000))
        .ok()
        .and_then(|at| at.format(format).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::s3::done;

    #[test]
    fn a_line_cannot_be_broken_out_of() {
        let headers = HeaderMap::from_iter([(header::USER_AGENT, "a\"b c".parse().unwrap())]);
        let response = done(StatusCode::OK);
        let principal = Principal::anonymous();
        let logged = Logged {
            bucket: "b",
            key: "k \"\n",
            operation: "GetObject",
            method: &Method::GET,
            target: "/b/k%20\"",
            headers: &headers,
            principal: &principal,
            wire: Wire { remote: Some("::ffff:192.0.2.1".parse().unwrap()), tls: false },
            request_id: "R1",
            response: &response,
            error: None,
            now: 1_700_000_000_000,
            begun: Instant::now(),
        };
        let line = line("owner", &logged);
        assert!(
            line.starts_with("owner b [14/Nov/2023:22:13:20 +0000] 192.0.2.1 - R1 REST.GET.OBJECT k%20%22%0A \"GET /b/k%20%22 HTTP/1.1\" 200 - - - "),
            "{line}"
        );
        assert!(line.contains("\"a%22b c\"") && !line.contains('\n'));
    }
}
