//! A small S3 client for the tests: requests as they are, signed by the product's own signer.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mallee_aws::{
    AccessKeyId, SecretKey,
    signature::{Payload, Signer},
};
use mallee_walrus::Config;
use sha2::Digest;

pub const ALICE: (&str, &str) = ("AKIAALICE", "alice's secret");
pub const BOB: (&str, &str) = ("AKIABOB", "bob's secret");

/// A walrus that stands alone, with two accounts.
pub fn config(state: &std::path::Path, listen: &str) -> String {
    format!(
        "name = 'walrus'\nstate = '{}'\nlisten = ['{listen}']\nsweep_after_ms = 100\n
         [[identities]]\naccess_key = '{}'\nsecret = \"{}\"\naccount = '000000000001'\naccount_name = 'alice'\n
         [[identities]]\naccess_key = '{}'\nsecret = \"{}\"\naccount = '000000000002'\naccount_name = 'bob'\n",
        state.display(),
        ALICE.0,
        ALICE.1,
        BOB.0,
        BOB.1
    )
}

pub fn parsed(state: &std::path::Path) -> Config {
    toml::from_str(&config(state, "127.0.0.1:0")).unwrap()
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body broke off.
    pub cut: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    /// The error's code.
    pub fn code(&self) -> String {
        let text = self.text();
        between(&text, "<Code>", "</Code>").unwrap_or_default().to_owned()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

pub fn between<'t>(text: &'t str, begin: &str, end: &str) -> Option<&'t str> {
    text.split_once(begin)?.1.split_once(end).map(|(inner, _)| inner)
}

#[derive(Clone)]
pub struct S3 {
    pub address: SocketAddr,
    keys: (&'static str, &'static str),
    client: Client<HttpConnector, Full<Bytes>>,
}

impl S3 {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, keys: ALICE, client: Client::builder(TokioExecutor::new()).build_http() }
    }
    pub fn with(&self, keys: (&'static str, &'static str)) -> Self {
        Self { keys, ..self.clone() }
    }

    pub fn signed(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Bytes) -> Request<Full<Bytes>> {
        let payload = Payload::SignedHash(sha2::Sha256::digest(&body).into());
        self.signed_as(method, path, headers, body, payload)
    }

    pub fn signed_as(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        payload: Payload,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("http://{}{path}", self.address))
            .body(Full::new(body))
            .unwrap();
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        // Clients say so of an empty body too; hyper does not.
        if method == "PUT" {
            let length = request.body().size_hint().exact().unwrap().into();
            request.headers_mut().entry("content-length").or_insert(length);
        }
        let (key, secret): (AccessKeyId, _) = (self.keys.0.parse().unwrap(), SecretKey::new(self.keys.1));
        let signer =
            Signer { access_key: &key, secret: &secret, session_token: None, region: "mallee-1", service: "s3" };
        signer.sign(&mut request, payload, time::OffsetDateTime::now_utc()).unwrap();
        request
    }

    /// A URL that lets anybody do this for a minute.
    pub fn presigned(&self, method: &str, path: &str, now: time::OffsetDateTime) -> http::Uri {
        let (key, secret): (AccessKeyId, _) = (self.keys.0.parse().unwrap(), SecretKey::new(self.keys.1));
        let signer =
            Signer { access_key: &key, secret: &secret, session_token: None, region: "mallee-1", service: "s3" };
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        signer.presign(method, &uri, time::Duration::minutes(1), now).unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.try_send(request).await.unwrap()
    }

    /// `None`: no answer came.
    pub async fn try_send(&self, request: Request<Full<Bytes>>) -> Option<Answer> {
        let (parts, mut incoming) = self.client.request(request).await.ok()?.into_parts();
        let (mut body, mut cut) = (Vec::new(), false);
        while let Some(frame) = incoming.frame().await {
            match frame {
                Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => {
                    cut = true;
                    break;
                }
            }
        }
        Some(Answer { status: parts.status, headers: parts.headers, body: body.into(), cut })
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.send(self.signed(method, path, headers, body.into())).await
    }
    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "").await
    }
    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.call("PUT", path, &[], body).await
    }
}
