//! A client that puts on the wire what it is told, signed well or badly: one connection per request, nothing retried.

use std::net::SocketAddr;

use bytes::Bytes;
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use mallee_aws::{
    AccessKeyId, SecretKey,
    signature::{Payload, Signer, percent_encode},
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::xml::{self, Element};

/// An account's key.
#[derive(Clone)]
pub struct Key {
    pub account: String,
    pub access_key: AccessKeyId,
    pub secret: SecretKey,
}

/// How a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Signed {
    #[default]
    Properly,
    /// With the right key id and another secret.
    WrongSecret,
    /// With a key id nobody has.
    UnknownKey,
    /// Twenty minutes ago.
    LongAgo,
    /// The body sent is not the body signed.
    OtherBody,
    /// By version 2: in the form for Query, in the header for S3.
    Version2,
    /// Not at all.
    Not,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn xml(&self) -> Element {
        xml::parse(&self.text()).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
    /// Text of the first element of this name.
    pub fn get(&self, name: &str) -> Option<String> {
        xml::parse(&self.text()).ok()?.first(name).map(Element::text)
    }
    /// Like [`Answer::get`], of an answer that must be a good one and have it.
    pub fn value(&self, name: &str) -> String {
        assert!(self.status == 200, "{}: {}", self.status, self.text());
        self.get(name).unwrap_or_else(|| panic!("no {name} in {}", self.text()))
    }
    /// Texts of all elements of this name.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.xml().walk().into_iter().filter(|e| e.name == name).map(Element::text).collect()
    }
    /// The error's code, or what came instead.
    pub fn code(&self) -> String {
        self.get("Code").unwrap_or_else(|| format!("no error but {}", self.status))
    }
    #[track_caller]
    pub fn refused_with(&self, code: &str) {
        assert_eq!(self.code(), code, "{}", self.text());
    }
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.text());
        self
    }
}

/// One account at the two fronts.
#[derive(Clone)]
pub struct Client {
    pub key: Key,
    pub region: String,
    /// The cloud-controller's front.
    pub query: SocketAddr,
    /// walrus' front.
    pub objects: SocketAddr,
    /// What is added to the time of day when signing, for clouds whose clock a test moved.
    pub ahead: Duration,
}

impl Client {
    /// An EC2 request: `Action=...&Name=value`, already encoded.
    pub async fn ec2(&self, form: &str) -> Answer {
        self.query("ec2", form, Signed::Properly).await
    }

    /// A request of a Query service. `Version` is added where it is missing.
    pub async fn query(&self, service: &str, form: &str, signed: Signed) -> Answer {
        self.try_query(service, form, signed).await.unwrap_or_else(|e| panic!("{form}: {e}"))
    }

    /// Like [`Client::query`], for a front that may be down.
    pub async fn try_query(&self, service: &str, form: &str, signed: Signed) -> Result<Answer, String> {
        let version = if service == "sts" { "2011-06-15" } else { "2016-11-15" };
        let versioned = if format!("&{form}").contains("&Version=") {
            form.to_owned()
        } else {
            format!("{form}&Version={version}")
        };
        let mut headers = HeaderMap::new();
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, form_type);
        self.send(self.query, service, Method::POST, "/", headers, versioned.into(), signed).await
    }

    /// An S3 request; `target` is path and query as they shall be sent.
    pub async fn s3(&self, method: Method, target: &str, body: impl Into<Bytes>) -> Answer {
        let sent = self.send(self.objects, "s3", method, target, HeaderMap::new(), body.into(), Signed::Properly);
        sent.await.unwrap_or_else(|e| panic!("{target}: {e}"))
    }

    /// Any request to any front.
    #[allow(clippy::too_many_arguments, reason = "they are the parts of a request")]
    pub async fn send(
        &self,
        to: SocketAddr,
        service: &str,
        method: Method,
        target: &str,
        headers: HeaderMap,
        body: Bytes,
        signed: Signed,
    ) -> Result<Answer, String> {
        let mut body = body;
        if signed == Signed::Version2 && service != "s3" {
            body = self.query_v2(to, method.as_str(), target, &body).into();
        }
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{to}{target}"))
            .body(())
            .map_err(|e| format!("{target}: {e}"))?;
        *request.headers_mut() = headers;
        // Buckets are websites under names of their own.
        if !request.headers().contains_key(header::HOST) {
            let host = HeaderValue::from_str(&to.to_string()).map_err(|e| e.to_string())?;
            request.headers_mut().insert(header::HOST, host);
        }
        self.sign(&mut request, service, &body, signed)?;
        if signed == Signed::OtherBody {
            body = [&body[..], b" "].concat().into();
        }
        let (mut parts, ()) = request.into_parts();
        // Real clients say how long an empty body is; hyper does not.
        if parts.method == Method::PUT {
            parts.headers.insert(header::CONTENT_LENGTH, body.len().into());
        }
        // A server is asked by path; the address is in Host.
        parts.uri = target.parse().map_err(|e| format!("{target}: {e}"))?;
        exchange(to, Request::from_parts(parts, Full::new(body))).await
    }

    fn sign(&self, request: &mut Request<()>, service: &str, body: &Bytes, signed: Signed) -> Result<(), String> {
        let mut key = self.key.clone();
        let mut now = OffsetDateTime::now_utc() + self.ahead;
        match signed {
            Signed::Not => return Ok(()),
            Signed::Version2 => {
                if service == "s3" {
                    self.header_v2(request)?;
                }
                return Ok(());
            }
            Signed::WrongSecret => key.secret = SecretKey::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            Signed::UnknownKey => key.access_key = "AKIAIOSFODNN7EXAMPLE".parse().map_err(|e| format!("{e:?}"))?,
            Signed::LongAgo => now -= Duration::minutes(20),
            Signed::Properly | Signed::OtherBody => {}
        }
        let signer = Signer {
            access_key: &key.access_key,
            secret: &key.secret,
            session_token: None,
            region: &self.region,
            service,
        };
        let payload = Payload::SignedHash(Sha256::digest(body).into());
        signer.sign(request, payload, now).map(drop).map_err(|e| format!("{e:?}"))
    }

    /// A form with its version 2 signature: HMAC-SHA256 over method, host, path and the sorted parameters.
    fn query_v2(&self, to: SocketAddr, method: &str, target: &str, form: &[u8]) -> String {
        let now = (OffsetDateTime::now_utc() + self.ahead).replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let timestamp = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        let mut pairs: Vec<String> = String::from_utf8_lossy(form).split('&').map(str::to_owned).collect();
        pairs.extend([
            format!("AWSAccessKeyId={}", self.key.access_key),
            "SignatureMethod=HmacSHA256".into(),
            "SignatureVersion=2".into(),
            format!("Timestamp={}", percent_encode(timestamp.as_bytes())),
        ]);
        pairs.sort();
        let canonical = pairs.join("&");
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.key.secret.expose().as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        mac.update(format!("{method}\n{to}\n{target}\n{canonical}").as_bytes());
        format!("{canonical}&Signature={}", percent_encode(base64(&mac.finalize().into_bytes()).as_bytes()))
    }

    /// S3's `Authorization: AWS KEY:SIGNATURE` for a request without sub-resources and `x-amz-*` headers.
    fn header_v2(&self, request: &mut Request<()>) -> Result<(), String> {
        let date = httpdate::fmt_http_date(std::time::SystemTime::now());
        let to_sign = format!("{}\n\n\n{date}\n{}", request.method(), request.uri().path());
        let mut mac =
            Hmac::<sha1::Sha1>::new_from_slice(self.key.secret.expose().as_bytes()).map_err(|e| e.to_string())?;
        mac.update(to_sign.as_bytes());
        let authorization = format!("AWS {}:{}", self.key.access_key, base64(&mac.finalize().into_bytes()));
        let headers = request.headers_mut();
        headers.insert(header::DATE, HeaderValue::from_str(&date).map_err(|e| e.to_string())?);
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&authorization).map_err(|e| e.to_string())?);
        Ok(())
    }
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// `Name=value` pairs as a form.
pub fn form(pairs: &[(&str, &str)]) -> String {
    let encoded: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name}={}", percent_encode(value.as_bytes()))).collect();
    encoded.join("&")
}

/// Headers of `name: value` lines.
pub fn headers(lines: &[&str]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("{line:?} is no header"))?;
        let name: HeaderName = name.trim().parse().map_err(|e| format!("{line:?}: {e}"))?;
        headers.append(name, HeaderValue::from_str(value.trim()).map_err(|e| format!("{line:?}: {e}"))?);
    }
    Ok(headers)
}

async fn exchange(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, String> {
    let stream = tokio::net::TcpStream::connect(to).await.map_err(|e| format!("{to}: {e}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("{to}: {e}"))?;
    let connection = tokio::spawn(connection);
    let exchanged = async {
        let response = sender.send_request(request).await.map_err(|e| format!("{to}: {e}"))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|e| format!("{to}: {e}"))?.to_bytes();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    };
    let answer = tokio::time::timeout(std::time::Duration::from_secs(60), exchanged)
        .await
        .unwrap_or_else(|_| Err(format!("{to}: no answer within 60 s")));
    connection.abort();
    answer
}
