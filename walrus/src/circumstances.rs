//! What policies may ask about a request beside who, what and to which: their condition keys. Everything here is what
//! the server saw: the address is the socket's, whatever a header says.

use std::net::IpAddr;

use http::HeaderMap;
use mallee_aws::{
    params::Params,
    signature::{Method, Verified},
};
use mallee_policy::{Context, Who};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    call::{Plus, Query, decode},
    principal::Principal,
};

/// How a request came in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wire {
    pub remote: Option<IpAddr>,
    pub tls: bool,
}

/// Headers whose condition key is `s3:` and their name.
const BY_NAME: [&str; 18] = [
    "x-amz-acl",
    "x-amz-grant-full-control",
    "x-amz-grant-read",
    "x-amz-grant-write",
    "x-amz-grant-read-acp",
    "x-amz-grant-write-acp",
    "x-amz-content-sha256",
    "x-amz-metadata-directive",
    "x-amz-object-ownership",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-storage-class",
    "x-amz-website-redirect-location",
    "if-match",
    "if-none-match",
    "x-amz-bypass-governance-retention",
    "x-amz-request-payer",
];
/// Those of another name, and what they come from.
const RENAMED: [(&str, &str); 5] = [
    ("user-agent", "aws:UserAgent"),
    ("referer", "aws:Referer"),
    ("x-amz-object-lock-mode", "s3:object-lock-mode"),
    ("x-amz-object-lock-retain-until-date", "s3:object-lock-retain-until-date"),
    ("x-amz-object-lock-legal-hold", "s3:object-lock-legal-hold"),
];
const OF_QUERY: [(&str, &str); 4] = [
    ("prefix", "s3:prefix"),
    ("delimiter", "s3:delimiter"),
    ("max-keys", "s3:max-keys"),
    ("versionId", "s3:VersionId"),
];

/// The context of a request.
pub fn of(
    headers: &HeaderMap,
    query: &Query,
    wire: Wire,
    verified: Option<&Verified>,
    principal: &Principal,
    now: i64,
) -> Context {
    let mut context = Context::default();
    if let Some(ip) = wire.remote {
        context.add("aws:SourceIp", ip.to_canonical().to_string());
    }
    context.add("aws:SecureTransport", wire.tls.to_string());
    if wire.tls {
        // The least this server speaks.
        context.add("s3:TlsVersion", "1.2");
    }
    if let Ok(at) = OffsetDateTime::from_unix_timestamp(now.div_euclid(1000)) {
        context.add("aws:CurrentTime", at.format(&Rfc3339).unwrap_or_default());
        context.add("aws:EpochTime", at.unix_timestamp().to_string());
    }
    match principal.who() {
        Who::Account { account, arn, .. } => {
            context.add("aws:PrincipalType", "Account");
            context.add("aws:PrincipalAccount", account);
            context.add("aws:PrincipalArn", arn);
            context.add("aws:userid", account);
        }
        Who::Anonymous => {
            context.add("aws:PrincipalType", "Anonymous");
            context.add("aws:userid", "anonymous");
        }
        Who::Service(name) => context.add("aws:PrincipalServiceName", name),
    }
    if let Some(verified) = verified.filter(|_| !principal.is_anonymous()) {
        let (how, version) = match verified.method {
            Method::V4Header => ("REST-HEADER", "AWS4-HMAC-SHA256"),
            Method::V4Presigned { .. } => ("REST-QUERY-STRING", "AWS4-HMAC-SHA256"),
            Method::V2S3Presigned => ("REST-QUERY-STRING", "AWS"),
            Method::PostForm => ("POST", "AWS4-HMAC-SHA256"),
            _ => ("REST-HEADER", "AWS"),
        };
        if let Some(age) = query.get("X-Amz-Date").and_then(signed_at).map(|at| now - at) {
            context.add("s3:signatureAge", age.max(0).to_string());
        }
        context.add("s3:authType", how);
        context.add("s3:signatureversion", version);
    }
    let text = |name: &str| headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    for name in BY_NAME {
        if let Some(value) = text(name) {
            context.add(&format!("s3:{name}"), value);
        }
    }
    // Clients write a source in several ways; policies in one.
    if let Some(source) = text("x-amz-copy-source") {
        let path = source.split_once('?').map_or(source, |(path, _)| path);
        let path = decode(path, Plus::IsPlus).unwrap_or_else(|_| path.to_owned());
        context.add("s3:x-amz-copy-source", path.strip_prefix('/').unwrap_or(&path));
    }
    for (name, key) in RENAMED {
        if let Some(value) = text(name) {
            context.add(key, value);
        }
    }
    for (name, key) in OF_QUERY {
        if let Some(value) = query.get(name) {
            context.add(key, value);
        }
    }
    if let Some(tags) = text("x-amz-tagging").and_then(|text| Params::parse(text.as_bytes()).ok()) {
        add_tags(&mut context, tags.iter());
    }
    context
}

/// `20260131T235959Z`, in milliseconds.
fn signed_at(text: &str) -> Option<i64> {
    let format = time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = time::PrimitiveDateTime::parse(text, format).ok()?;
    Some(at.assume_utc().unix_timestamp() * 1000)
}

/// The tags a request is about to give an object.
pub fn add_tags<'t>(context: &mut Context, tags: impl Iterator<Item = (&'t str, &'t str)>) {
    for (key, value) in tags {
        context.add(&format!("s3:RequestObjectTag/{key}"), value);
        context.add("s3:RequestObjectTagKeys", key);
    }
}
