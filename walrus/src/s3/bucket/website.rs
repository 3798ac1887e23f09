//! A bucket as a website: read by browsers under a host name of its own, without signatures, with pages instead of XML.
//!
//! What a browser may see is what the public may read: a website gives no rights. See "Hosting a static website" in S3's
//! manual for the order in which redirects, index and error documents count.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use mallee_aws::{AwsError, document};
use mallee_service::{Body, body};
use serde::{Deserialize, Serialize};

use super::{find, opened, settings};
use crate::{
    Error, Walrus,
    access::Action,
    call::{Call, Payload, Query, Target},
    circumstances::{self, Wire},
    error::refuse,
    principal::Principal,
    s3::{done, object, set, xml},
};

const KIND: &str = "website";
/// By AWS.
const MOST_RULES: usize = 50;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redirect_all_requests_to: Option<Elsewhere>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index_document: Option<Index>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error_document: Option<ErrorDocument>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    routing_rules: Option<Rules>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Elsewhere {
    host_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Index {
    suffix: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorDocument {
    key: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Rules {
    #[serde(rename = "RoutingRule", default)]
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    condition: Option<When>,
    redirect: Redirect,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct When {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_error_code_returned_equals: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_prefix_equals: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Redirect {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replace_key_prefix_with: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replace_key_with: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_redirect_code: Option<u16>,
}

fn none(bucket: &str) -> Error {
    Error::Refused(
        AwsError::new("NoSuchWebsiteConfiguration", 404, "The specified bucket does not have a website configuration")
            .with_field("BucketName", bucket),
    )
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketWebsite).await?;
    let configuration: Option<Configuration> = settings::document(walrus, bucket.id, KIND).await?;
    xml("WebsiteConfiguration", &configuration.ok_or_else(|| none(&bucket.name))?)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketWebsite).await?;
    let body = call.document(128 << 10).await?;
    let configuration: Configuration = document::parse(&body, "WebsiteConfiguration", document::Limits::SMALL)?;
    configuration.check()?;
    settings::keep_document(walrus, bucket, KIND, &configuration).await?;
    Ok(done(StatusCode::OK))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::DeleteBucketWebsite).await?;
    settings::drop_document(walrus, bucket, KIND).await?;
    Ok(done(StatusCode::NO_CONTENT))
}

impl Configuration {
    fn rules(&self) -> &[Rule] {
        self.routing_rules.as_ref().map(|rules| rules.rules.as_slice()).unwrap_or_default()
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |name: &str, value: &str, message: &str| Err(refuse::argument(name, value, message));
        let protocol = |protocol: &Option<String>| protocol.as_deref().is_none_or(|p| ["http", "https"].contains(&p));
        let host =
            |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
        if let Some(elsewhere) = &self.redirect_all_requests_to {
            if self.index_document.is_some() || self.error_document.is_some() || self.routing_rules.is_some() {
                return wrong(
                    "RedirectAllRequestsTo",
                    "",
                    "RedirectAllRequestsTo cannot be provided in conjunction with other Routing Rules.",
                );
            }
            if !protocol(&elsewhere.protocol) {
                return wrong(
                    "Protocol",
                    "",
                    "Invalid protocol, protocol can be http or https. If not defined the protocol will be selected automatically.",
                );
            }
            if !host(&elsewhere.host_name) {
                return wrong("HostName", &elsewhere.host_name, "The HostName is not valid.");
            }
            return Ok(());
        }
        match &self.index_document {
            None => {
                return wrong(
                    "IndexDocument",
                    "null",
                    "A value for IndexDocument Suffix must be provided if RedirectAllRequestsTo is empty",
                );
            }
            Some(index) if index.suffix.is_empty() || index.suffix.contains('/') => {
                return wrong("IndexDocument", &index.suffix, "The IndexDocument Suffix is not well formed");
            }
            Some(_) => {}
        }
        if self.error_document.as_ref().is_some_and(|document| document.key.is_empty() || document.key.len() > 1024) {
            return wrong("ErrorDocument", "", "The ErrorDocument Key is not well formed");
        }
        if self.rules().len() > MOST_RULES {
            return Err(refuse::malformed_xml());
        }
        for rule in self.rules() {
            let redirect = &rule.redirect;
            if redirect.replace_key_prefix_with.is_some() && redirect.replace_key_with.is_some() {
                return Err(refuse::request("You can only define ReplaceKeyPrefix or ReplaceKey but not both."));
            }
            if !protocol(&redirect.protocol) || redirect.host_name.as_deref().is_some_and(|name| !host(name)) {
                return Err(refuse::request(
                    "Invalid protocol, protocol can be http or https. If not defined the protocol will be selected automatically.",
                ));
            }
            if redirect
                .http_redirect_code
                .is_some_and(|code| !(301..=308).contains(&code) || [304, 305, 306].contains(&code))
            {
                return Err(refuse::request(
                    "The provided HTTP redirect code is not valid. Valid codes are 3XX except 300.",
                ));
            }
            let code = rule.condition.as_ref().and_then(|when| when.http_error_code_returned_equals);
            if code.is_some_and(|code| !(400..=599).contains(&code)) {
                return Err(refuse::request("The provided HTTP error code is not valid. Valid codes are 4XX or 5XX."));
            }
        }
        Ok(())
    }

    /// Where a request for `key` is sent: at once (`error` is none), or because it failed.
    fn elsewhere(&self, key: &str, error: Option<u16>) -> Option<(&Redirect, String)> {
        let rule = self.rules().iter().find(|rule| {
            let when = rule.condition.clone().unwrap_or_default();
            when.http_error_code_returned_equals == error
                && when.key_prefix_equals.as_deref().is_none_or(|prefix| key.starts_with(prefix))
        })?;
        let prefix = rule.condition.as_ref().and_then(|when| when.key_prefix_equals.as_deref()).unwrap_or_default();
        let redirect = &rule.redirect;
        let key = match (&redirect.replace_key_with, &redirect.replace_key_prefix_with) {
            (Some(key), _) => key.clone(),
            (None, Some(with)) => format!("{with}{}", key.strip_prefix(prefix).unwrap_or(key)),
            (None, None) => key.to_owned(),
        };
        Some((redirect, key))
    }
}

/// A browser's request to a website.
pub struct Visit<'v> {
    pub bucket: &'v str,
    pub method: Method,
    pub path: &'v str,
    pub headers: &'v HeaderMap,
    pub host: &'v str,
    pub wire: Wire,
    pub request_id: &'v str,
    pub now: i64,
}

/// Answers it; there is always a page.
pub async fn serve(walrus: &Walrus, visit: &Visit<'_>) -> Response<Body> {
    match answer(walrus, visit).await {
        Ok(response) => response,
        Err(e) => page(visit, &e),
    }
}

async fn answer(walrus: &Walrus, visit: &Visit<'_>) -> Result<Response<Body>, Error> {
    if ![Method::GET, Method::HEAD].contains(&visit.method) {
        return Err(Error::Refused(
            AwsError::new("MethodNotAllowed", 405, "The specified method is not allowed against this resource.")
                .with_field("Method", visit.method.as_str()),
        ));
    }
    let name = visit.bucket.to_owned();
    let configuration: Option<Configuration> = walrus
        .store
        .read("find a website", move |tx| {
            let bucket = find(tx, &name)?;
            settings::kept(tx, bucket.id, KIND)
        })
        .await?;
    let site = configuration.ok_or_else(|| none(visit.bucket))?;
    let key = Target::of(visit.path, Some(visit.bucket))?.key;
    if let Some(all) = &site.redirect_all_requests_to {
        let redirect =
            Redirect { host_name: Some(all.host_name.clone()), protocol: all.protocol.clone(), ..Redirect::default() };
        return redirected(visit, &redirect, &key, StatusCode::MOVED_PERMANENTLY);
    }
    if let Some((redirect, key)) = site.elsewhere(&key, None) {
        return redirected(visit, redirect, &key, StatusCode::MOVED_PERMANENTLY);
    }
    let suffix = site.index_document.as_ref().map(|index| index.suffix.as_str()).unwrap_or_default();
    let wanted = if key.is_empty() || key.ends_with('/') { format!("{key}{suffix}") } else { key.clone() };
    let refused = match object(walrus, visit, &wanted).await {
        Ok(found) => return Ok(found),
        Err(e) if e.is_ours() => return Err(e),
        Err(e) => e.told(),
    };
    // A folder without its slash: the page's own links would lead astray from there.
    if [403, 404].contains(&refused.status)
        && wanted == key
        && is_there(walrus, visit, &format!("{key}/{suffix}")).await
    {
        let mut response = done(StatusCode::FOUND);
        set(&mut response, "location", &format!("/{}/", object::post::encoded(&key)))?;
        return Ok(response);
    }
    if let Some((redirect, key)) = site.elsewhere(&key, Some(refused.status)) {
        return redirected(visit, redirect, &key, StatusCode::MOVED_PERMANENTLY);
    }
    if let Some(document) = &site.error_document
        && (400..500).contains(&refused.status)
        && let Ok(mut found) = object(walrus, visit, &document.key).await
        && found.status() == StatusCode::OK
    {
        *found.status_mut() = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::NOT_FOUND);
        return Ok(found);
    }
    Err(Error::Refused(refused))
}

/// What the public may read at this key.
async fn object(walrus: &Walrus, visit: &Visit<'_>, key: &str) -> Result<Response<Body>, Error> {
    let mut call = asking(visit, visit.method.clone(), key);
    let mut response = object::get::get(walrus, &mut call).await?;
    if let Some(to) = response.headers_mut().remove("x-amz-website-redirect-location") {
        let mut response = done(StatusCode::MOVED_PERMANENTLY);
        response.headers_mut().insert(header::LOCATION, to);
        return Ok(response);
    }
    Ok(response)
}

async fn is_there(walrus: &Walrus, visit: &Visit<'_>, key: &str) -> bool {
    let mut call = asking(visit, Method::HEAD, key);
    call.headers.clear();
    object::get::get(walrus, &mut call).await.is_ok_and(|response| response.status() == StatusCode::OK)
}

fn asking(visit: &Visit<'_>, method: Method, key: &str) -> Call {
    // What browsers send and pages need: conditions and ranges. The rest is of the API.
    let mut headers = HeaderMap::new();
    const PASSED: [header::HeaderName; 6] = [
        header::RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::REFERER,
    ];
    for name in PASSED.into_iter().chain([header::USER_AGENT]) {
        if let Some(value) = visit.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let (principal, query) = (Principal::anonymous(), Query::default());
    let context = circumstances::of(&headers, &query, visit.wire, None, &principal, visit.now);
    Call {
        method,
        target: Target { bucket: visit.bucket.into(), key: key.into() },
        query,
        headers,
        principal: principal.with_context(context),
        region: None,
        wire: visit.wire,
        payload: Payload::spent(),
        request_id: visit.request_id.into(),
        now: visit.now,
        origin: String::new(),
    }
}

fn redirected(visit: &Visit<'_>, redirect: &Redirect, key: &str, code: StatusCode) -> Result<Response<Body>, Error> {
    let code = redirect.http_redirect_code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(code);
    let same = if visit.wire.tls { "https" } else { "http" };
    let protocol = redirect.protocol.as_deref().unwrap_or(same);
    let host = redirect.host_name.as_deref().unwrap_or(visit.host);
    let mut response = done(code);
    set(&mut response, "location", &format!("{protocol}://{host}/{}", object::post::encoded(key)))?;
    Ok(response)
}

/// As access logs call a visit.
pub const OPERATION: &str = "website";
/// Says in a page of an error which one it is.
pub const ERROR_CODE: &str = "x-amz-error-code";

/// A refusal as a page.
fn page(visit: &Visit<'_>, e: &Error) -> Response<Body> {
    if e.is_ours() {
        tracing::error!(request.id = visit.request_id, bucket = visit.bucket, error = %e, "request failed");
    }
    let told = e.told();
    let status = StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut items = vec![("Code", told.code.clone().into_owned()), ("Message", told.message.clone())];
    items.extend(told.fields.iter().map(|(name, value)| (name.as_ref(), value.clone())));
    items.extend([("RequestId", visit.request_id.to_owned()), ("HostId", visit.request_id.to_owned())]);
    let items: String =
        items.iter().map(|(name, value)| format!("<li>{}: {}</li>\n", escaped(name), escaped(value))).collect();
    let text = format!(
        "<html>\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n<ul>\n{items}</ul>\n<hr/>\n</body>\n</html>\n"
    );
    let mut response = Response::new(if visit.method == Method::HEAD { body::empty() } else { body::full(text) });
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if let Ok(code) = HeaderValue::from_str(&told.code) {
        response.headers_mut().insert(ERROR_CODE, code);
    }
    if let Ok(message) = HeaderValue::from_str(&told.message) {
        response.headers_mut().insert("x-amz-error-message", message);
    }
    response
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(rules: &str) -> Configuration {
        let text = format!(
            "<WebsiteConfiguration><IndexDocument><Suffix>index.html</Suffix></IndexDocument><RoutingRules>{rules}</RoutingRules></WebsiteConfiguration>"
        );
        document::parse(text.as_bytes(), "WebsiteConfiguration", document::Limits::SMALL).unwrap()
    }

    #[test]
    fn requests_are_sent_on_by_prefix_and_by_error() {
        let site = site(
            "<RoutingRule><Condition><KeyPrefixEquals>docs/</KeyPrefixEquals></Condition><Redirect><ReplaceKeyPrefixWith>documents/</ReplaceKeyPrefixWith></Redirect></RoutingRule>
             <RoutingRule><Condition><HttpErrorCodeReturnedEquals>404</HttpErrorCodeReturnedEquals></Condition><Redirect><HostName>other.example</HostName><ReplaceKeyWith>lost</ReplaceKeyWith></Redirect></RoutingRule>",
        );
        assert!(site.check().is_ok());
        let to = |key, error| site.elsewhere(key, error).map(|(_, key)| key);
        assert_eq!(to("docs/a", None).as_deref(), Some("documents/a"));
        assert_eq!(to("other", None), None);
        assert_eq!(to("other", Some(404)).as_deref(), Some("lost"));
        assert_eq!(to("other", Some(403)), None);
    }

    #[test]
    fn a_site_that_cannot_work_is_refused() {
        let refused = |rules| site(rules).check().is_err();
        assert!(refused("<RoutingRule><Redirect><HttpRedirectCode>200</HttpRedirectCode></Redirect></RoutingRule>"));
        assert!(refused("<RoutingRule><Redirect><HostName>a/b</HostName></Redirect></RoutingRule>"));
        assert!(refused("<RoutingRule><Redirect><Protocol>javascript</Protocol></Redirect></RoutingRule>"));
        assert!(refused(
            "<RoutingRule><Redirect><ReplaceKeyWith>a</ReplaceKeyWith><ReplaceKeyPrefixWith>b</ReplaceKeyPrefixWith></Redirect></RoutingRule>"
        ));
        assert!(Configuration::default().check().is_err());
    }
}
