//! CORS: which pages' scripts may use a bucket. Browsers enforce it; walrus tells them what the bucket's owner said.
//! Credentials are never mentioned: S3 knows no cookies, and a page that may send them is one more thing to go wrong.

use http::{HeaderMap, Method, Response, StatusCode, header};
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use serde::{Deserialize, Serialize};

use super::{find, opened, settings};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{done, set, xml},
};

const KIND: &str = "cors";
/// By AWS.
const MOST_RULES: usize = 100;
const LARGEST: usize = 64 << 10;
const METHODS: [&str; 5] = ["GET", "PUT", "HEAD", "POST", "DELETE"];

#[derive(Debug, Serialize, Deserialize)]
struct Configuration {
    #[serde(rename = "CORSRule", default)]
    rules: Vec<Rule>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Rule {
    #[serde(rename = "ID", default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "AllowedHeader", default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<String>,
    #[serde(rename = "AllowedMethod", default)]
    methods: Vec<String>,
    #[serde(rename = "AllowedOrigin", default)]
    origins: Vec<String>,
    #[serde(rename = "ExposeHeader", default, skip_serializing_if = "Vec::is_empty")]
    exposed: Vec<String>,
    #[serde(rename = "MaxAgeSeconds", default, skip_serializing_if = "Option::is_none")]
    max_age: Option<u32>,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketCORS).await?;
    let configuration: Option<Configuration> = settings::document(walrus, bucket.id, KIND).await?;
    let none = || {
        AwsError::new("NoSuchCORSConfiguration", 404, "The CORS configuration does not exist")
            .with_field("BucketName", &bucket.name)
    };
    xml("CORSConfiguration", &configuration.ok_or_else(none)?)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketCORS).await?;
    let body = call.document(LARGEST).await?;
    let configuration: Configuration = document::parse(&body, "CORSConfiguration", document::Limits::SMALL)?;
    configuration.check()?;
    let text = serde_json::to_string(&configuration).map_err(|e| Error::Internal(e.to_string()))?;
    walrus
        .store
        .write("set a bucket's CORS", move |tx| {
            settings::change(tx, &bucket, |settings| settings.cors = true)?;
            settings::keep(tx, &bucket, KIND, Some(&text))
        })
        .await?;
    Ok(done(StatusCode::OK))
}

pub async fn delete(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketCORS).await?;
    walrus
        .store
        .write("drop a bucket's CORS", move |tx| {
            settings::change(tx, &bucket, |settings| settings.cors = false)?;
            settings::keep(tx, &bucket, KIND, None)
        })
        .await?;
    Ok(done(StatusCode::NO_CONTENT))
}

impl Configuration {
    fn check(&self) -> Result<(), Error> {
        let invalid = |message: String| refuse::request(message);
        if self.rules.is_empty() || self.rules.len() > MOST_RULES {
            return Err(refuse::malformed_xml());
        }
        for rule in &self.rules {
            if rule.methods.is_empty() || rule.origins.is_empty() {
                return Err(refuse::malformed_xml());
            }
            if let Some(method) = rule.methods.iter().find(|method| !METHODS.contains(&method.as_str())) {
                return Err(invalid(format!(
                    "Found unsupported HTTP method in CORS config. Unsupported method is {method}"
                )));
            }
            // Whatever is kept here goes out as a header one day.
            let plain = |text: &String| text.bytes().all(|b| b.is_ascii_graphic());
            if let Some(origin) = rule.origins.iter().find(|o| o.matches('*').count() > 1 || !plain(o)) {
                return Err(invalid(format!("AllowedOrigin \"{origin}\" can not have more than one wildcard.")));
            }
            if let Some(name) = rule.headers.iter().find(|h| h.matches('*').count() > 1 || !plain(h)) {
                return Err(invalid(format!("AllowedHeader \"{name}\" can not have more than one wildcard.")));
            }
            if let Some(name) = rule
                .exposed
                .iter()
                .find(|name| http::HeaderName::from_bytes(name.as_bytes()).is_err() || name.contains('*'))
            {
                return Err(invalid(format!(
                    "ExposeHeader \"{name}\" contains wildcard. We currently do not support wildcard for ExposeHeader."
                )));
            }
        }
        Ok(())
    }

    /// The first rule that lets a page of `origin` do this.
    fn rule(&self, origin: &str, method: &str, headers: &[String]) -> Option<&Rule> {
        self.rules.iter().find(|rule| {
            rule.origins.iter().any(|pattern| fits(pattern, origin, exactly))
                && rule.methods.iter().any(|known| known == method)
                && headers.iter().all(|name| rule.headers.iter().any(|pattern| fits(pattern, name, whatever_case)))
        })
    }
}

impl Rule {
    fn headers(&self, origin: &str, asked: Option<&[String]>) -> Vec<(&'static str, String)> {
        let anybody = self.origins.iter().any(|pattern| pattern == "*");
        let mut headers = vec![
            ("access-control-allow-origin", if anybody { "*".to_owned() } else { origin.to_owned() }),
            ("access-control-allow-methods", self.methods.join(", ")),
        ];
        if let Some(asked) = asked.filter(|asked| !asked.is_empty()) {
            headers.push(("access-control-allow-headers", asked.join(", ")));
        }
        if !self.exposed.is_empty() {
            headers.push(("access-control-expose-headers", self.exposed.join(", ")));
        }
        if let Some(seconds) = self.max_age {
            headers.push(("access-control-max-age", seconds.to_string()));
        }
        headers
    }
}

fn exactly(a: &str, b: &str) -> bool {
    a == b
}

fn whatever_case(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// A pattern with at most one `*`.
fn fits(pattern: &str, text: &str, same: fn(&str, &str) -> bool) -> bool {
    let Some((begin, end)) = pattern.split_once('*') else { return same(pattern, text) };
    text.len() >= begin.len() + end.len()
        && text.get(..begin.len()).is_some_and(|text| same(begin, text))
        && text.get(text.len() - end.len()..).is_some_and(|text| same(end, text))
}

const VARY: &str = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method";

fn one(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).filter(|text| !text.is_empty())
}

/// The rules of a bucket, by its name; none where it has none, or is none.
async fn of_bucket(walrus: &Walrus, name: &str) -> Result<Option<Configuration>, Error> {
    let name = name.to_owned();
    let found = walrus.store.read("find CORS rules", move |tx| {
        let bucket = find(tx, &name)?;
        if bucket.settings.cors { settings::kept(tx, bucket.id, KIND) } else { Ok(None) }
    });
    match found.await {
        Err(Error::Refused(_)) => Ok(None),
        found => found,
    }
}

/// Answers a browser that asks before it does something. Nobody signs that, so nothing is told that a page of another
/// origin could not find out anyway.
pub async fn preflight(walrus: &Walrus, bucket: &str, key: &str, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let refused = |message: &str| refuse::coded("BadRequest", 400, message);
    let origin = one(headers, header::ORIGIN)
        .ok_or_else(|| refused("Insufficient information. Origin request header needed."))?;
    let method = one(headers, header::ACCESS_CONTROL_REQUEST_METHOD)
        .filter(|method| METHODS.contains(method))
        .ok_or_else(|| refused("Invalid Access-Control-Request-Method"))?;
    let asked: Vec<String> = headers
        .get_all(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    let forbidden = |message: &str| {
        Error::Refused(
            AwsError::new("AccessForbidden", 403, message)
                .with_field("Method", method)
                .with_field("ResourceType", if key.is_empty() { "BUCKET" } else { "OBJECT" }),
        )
    };
    let configuration = of_bucket(walrus, bucket)
        .await?
        .ok_or_else(|| forbidden("CORSResponse: CORS is not enabled for this bucket."))?;
    let rule = configuration.rule(origin, method, &asked).ok_or_else(|| {
        forbidden("CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, request method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted by the resource's CORS spec.")
    })?;
    let mut response = done(StatusCode::OK);
    for (name, value) in rule.headers(origin, Some(&asked)) {
        set(&mut response, name, &value)?;
    }
    set(&mut response, "vary", VARY)?;
    Ok(response)
}

/// Tells the browser about an answer it will show, or not show, to the page that asked.
pub async fn tell(
    walrus: &Walrus,
    bucket: &str,
    method: &Method,
    headers: &HeaderMap,
    response: &mut Response<Body>,
) -> Result<(), Error> {
    let Some(origin) = one(headers, header::ORIGIN).filter(|_| !bucket.is_empty()) else { return Ok(()) };
    let Some(configuration) = of_bucket(walrus, bucket).await? else { return Ok(()) };
    // What is in a cache for one page must not be shown to another.
    set(response, "vary", VARY)?;
    // Who names the method it asks about means that one, also when it does not ask by OPTIONS.
    let method = one(headers, header::ACCESS_CONTROL_REQUEST_METHOD).unwrap_or(method.as_str());
    if let Some(rule) = configuration.rule(origin, method, &[]) {
        for (name, value) in rule.headers(origin, None) {
            set(response, name, &value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(origin: &str, headers: &[&str]) -> Rule {
        Rule {
            origins: vec![origin.into()],
            methods: vec!["GET".into()],
            headers: headers.iter().map(|h| (*h).to_owned()).collect(),
            ..Rule::default()
        }
    }

    #[test]
    fn a_page_is_let_in_by_origin_method_and_headers() {
        let table = [
            ("https://a.example", "https://a.example", "GET", vec![], true),
            ("https://a.example", "https://A.example", "GET", vec![], false),
            ("https://a.example", "https://a.example.evil", "GET", vec![], false),
            ("https://*.example", "https://b.a.example", "GET", vec![], true),
            ("https://*.example", "https://.example", "GET", vec![], true),
            ("https://*.example", "https:/.example", "GET", vec![], false),
            ("*", "null", "GET", vec![], true),
            ("*", "https://evil", "PUT", vec![], false),
            ("*", "https://evil", "GET", vec!["x-amz-date"], true),
            ("*", "https://evil", "GET", vec!["x-amz-date", "range"], false),
        ];
        for (pattern, origin, method, headers, expected) in table {
            let configuration = Configuration { rules: vec![rule(pattern, &["X-Amz-*"])] };
            let headers: Vec<String> = headers.into_iter().map(str::to_owned).collect();
            assert_eq!(configuration.rule(origin, method, &headers).is_some(), expected, "{pattern} {origin}");
        }
    }

    #[test]
    fn what_would_break_an_answer_is_refused() {
        let refused = |change: fn(&mut Rule)| {
            let mut rule = rule("*", &[]);
            change(&mut rule);
            Configuration { rules: vec![rule] }.check().is_err()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|rule| rule.exposed.push("x\r\nSet-Cookie: a".into())));
        assert!(refused(|rule| rule.exposed.push("x-*".into())));
        assert!(refused(|rule| rule.origins.push("https://*.*.example".into())));
        assert!(refused(|rule| rule.origins.push("https://a\r\nb".into())));
        assert!(refused(|rule| rule.headers.push("*-*".into())));
        assert!(refused(|rule| rule.methods.push("PATCH".into())));
        assert!(refused(|rule| rule.methods.clear()));
    }
}
