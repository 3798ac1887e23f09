//! Signed requests to the cloud's own EC2 and S3, as any client would make them: no way in that users do not have.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mallee_aws::signature::{Payload, Signer, percent_encode, percent_encode_path};
use mallee_aws::{AccessKeyId, SecretKey};
use mallee_tiers::{AccountAsked, AccountKeys, Role};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::admin;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::state::State;

const EC2_VERSION: &str = "2016-11-15";
const ANSWER_LIMIT: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
/// A tier that is being restarted is back well within these.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// An account of this cloud, ready to ask.
pub struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    access_key: AccessKeyId,
    secret: SecretKey,
    pub keys: AccountKeys,
    ec2: String,
    s3: String,
}

/// Error documents of both services; only what is common to them.
#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "Code")]
    code: String,
    #[serde(rename = "Message", default)]
    message: String,
}

#[derive(Deserialize)]
struct Ec2Refusal {
    #[serde(rename = "Errors")]
    errors: Ec2Errors,
}

#[derive(Deserialize)]
struct Ec2Errors {
    #[serde(rename = "Error")]
    error: Refusal,
}

impl Client {
    pub async fn of_account(state: &State, name: &str) -> Result<Client> {
        let machine = Machine::expect(state)?;
        let keys = admin::client(state).account_keys(&AccountAsked { name: name.to_owned() }).await?;
        let access_key =
            keys.access_key.parse().map_err(|_| Error::refused("the account's access key is malformed"))?;
        Ok(Client {
            http: Http::builder(TokioExecutor::new()).build_http(),
            access_key,
            secret: SecretKey::new(keys.secret.0.clone()),
            ec2: machine.url(Role::CloudController)?,
            s3: machine.url(Role::Walrus)?,
            keys,
        })
    }

    /// One action of EC2; the answer's document as `T`.
    pub async fn ec2<T: DeserializeOwned>(&self, action: &str, parameters: &[(&str, &str)]) -> Result<T> {
        let mut form = format!("Action={action}&Version={EC2_VERSION}");
        for (name, value) in parameters {
            form += &format!("&{}={}", percent_encode(name.as_bytes()), percent_encode(value.as_bytes()));
        }
        let headers = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        let uri = format!("{}/", self.ec2);
        let (status, answer) = self.send(action, "ec2", Method::POST, &uri, &headers, Bytes::from(form)).await?;
        let text = String::from_utf8_lossy(&answer);
        if !status.is_success() {
            let refusal = quick_xml::de::from_str::<Ec2Refusal>(&text).map(|refusal| refusal.errors.error);
            return Err(refused(action, status, refusal.ok()));
        }
        quick_xml::de::from_str(&text)
            .map_err(|error| Error::Unreachable(format!("{action}: the answer cannot be read: {error}")))
    }

    /// One request to S3. `path` is `/bucket/key`, not yet encoded.
    pub async fn s3(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<()> {
        let what = format!("{method} {path}");
        let uri = format!("{}{}", self.s3, percent_encode_path(path.as_bytes()));
        let (status, answer) = self.send(&what, "s3", method, &uri, headers, body).await?;
        if status.is_success() {
            return Ok(());
        }
        Err(refused(&what, status, quick_xml::de::from_str(&String::from_utf8_lossy(&answer)).ok()))
    }

    /// Repeated while nobody answers, or the answer is that something is wrong over there.
    async fn send(
        &self,
        what: &str,
        service: &str,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let mut pauses = PAUSES.iter();
        loop {
            let request = self.signed(service, method.clone(), uri, headers, body.clone())?;
            let outcome = match tokio::time::timeout(PATIENCE, self.once(request)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
            };
            let again = match &outcome {
                Ok((status, _)) => status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED,
                Err(_) => true,
            };
            match pauses.next() {
                Some(pause) if again => tokio::time::sleep(*pause).await,
                _ => return outcome.map_err(|detail| Error::Unreachable(format!("{what} at {uri}: {detail}"))),
            }
        }
    }

    async fn once(&self, request: Request<Full<Bytes>>) -> std::result::Result<(StatusCode, Bytes), String> {
        let response = self.http.request(request).await.map_err(|error| mallee_service::tiers::chain(&error))?;
        let status = response.status();
        let answer =
            Limited::new(response.into_body(), ANSWER_LIMIT).collect().await.map_err(|error| error.to_string())?;
        Ok((status, answer.to_bytes()))
    }

    fn signed(
        &self,
        service: &str,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>> {
        let malformed = |detail: &dyn std::fmt::Display| Error::refused(format!("{uri}: {detail}"));
        let payload = Payload::SignedHash(Sha256::digest(&body).into());
        let mut request =
            Request::builder().method(method).uri(uri).body(Full::new(body)).map_err(|error| malformed(&error))?;
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| malformed(&error))?;
            request.headers_mut().insert(name, HeaderValue::from_str(value).map_err(|error| malformed(&error))?);
        }
        let signer = Signer {
            access_key: &self.access_key,
            secret: &self.secret,
            session_token: None,
            region: &self.keys.region,
            service,
        };
        signer
            .sign(&mut request, payload, time::OffsetDateTime::now_utc())
            .map_err(|error| malformed(&error.message))?;
        Ok(request)
    }
}

fn refused(action: &str, status: StatusCode, refusal: Option<Refusal>) -> Error {
    let (code, message) = match refusal {
        Some(refusal) => (refusal.code, refusal.message),
        None => (status.as_str().to_owned(), "no reason was given".to_owned()),
    };
    Error::Aws { action: action.to_owned(), code, message }
}
