//! The HTTP + mutual-TLS binding of calls between tiers.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use mallee_tiers::{CALL_PREFIX, Dispatch, Peer, TierError, TierErrorKind, Transport, server_name};
use rustls_pki_types::ServerName;

use crate::{Body, Connection, Identity, body, steps::TARGET};

/// A message between tiers is never larger than this.
const MESSAGE_LIMIT: usize = 64 * 1024 * 1024;
/// Longer than any `wait_ms` a caller asks for; a peer that vanished is noticed after this time.
const CALL_PATIENCE: Duration = Duration::from_secs(40);

/// Calls one other tier at one address; keeps its connections.
#[derive(Clone)]
pub struct TierHttp {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    address: String,
    what: String,
}

impl TierHttp {
    /// `address` is `host:port`; the certificate shown there must be that of `role` and `name`.
    pub fn new(identity: &Identity, address: &str, role: mallee_tiers::Role, name: &str) -> Result<Self, TierError> {
        let expected = server_name(role, name);
        let sni = ServerName::try_from(expected.clone()).map_err(|_| {
            TierError::refused(format!("{expected:?} cannot be the name of a tier: letters, digits and dashes only"))
        })?;
        let config = identity.client_config().map_err(|e| TierError::internal(e.to_string()))?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(3)));
        http.set_keepalive(Some(Duration::from_secs(15)));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(sni))
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(20)).build(https);
        Ok(Self { client, address: address.to_owned(), what: format!("{role} {name} at {address}") })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends any request (for streams); `path` starts with a slash and is already percent-encoded.
    pub async fn send(&self, mut request: Request<Body>, path: &str) -> Result<Response<Incoming>, TierError> {
        let uri: Uri = format!("https://{}{path}", self.address)
            .parse()
            .map_err(|e| TierError::internal(format!("{path}: {e}")))?;
        *request.uri_mut() = uri;
        self.client.request(request).await.map_err(|e| TierError::unreachable(format!("{}: {}", self.what, chain(&e))))
    }
}

/// An error with its causes on one line.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

impl Transport for TierHttp {
    fn call(&self, method: &'static str, message: Bytes) -> BoxFuture<'_, Result<Bytes, TierError>> {
        Box::pin(async move {
            let request = call_request(message)?;
            let path = format!("{CALL_PREFIX}{method}");
            tracing::trace!(target: TARGET, "before call: {method}");
            let whole = async { read_answer(&self.what, self.send(request, &path).await?).await };
            let answer = tokio::time::timeout(CALL_PATIENCE, whole).await.unwrap_or_else(|_| {
                Err(TierError::unreachable(format!("{}: no answer to {method} in {CALL_PATIENCE:?}", self.what)))
            });
            tracing::trace!(target: TARGET, "after call: {method}");
            answer
        })
    }
}

fn call_request(message: Bytes) -> Result<Request<Body>, TierError> {
    Request::post("/")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body::full(message))
        .map_err(|e| TierError::internal(e.to_string()))
}

async fn read_answer(what: &str, response: Response<Incoming>) -> Result<Bytes, TierError> {
    let status = response.status();
    let answer = body::collect(response.into_body(), MESSAGE_LIMIT)
        .await
        .map_err(|e| TierError::unreachable(format!("{what}: {e}")))?
        .ok_or_else(|| TierError::internal(format!("{what}: answer over {MESSAGE_LIMIT} bytes")))?;
    if status == StatusCode::OK {
        return Ok(answer);
    }
    Err(serde_json::from_slice(&answer).unwrap_or_else(|_| TierError::internal(format!("{what}: HTTP {status}"))))
}

/// Calls a daemon on this machine over its admin socket.
#[derive(Clone)]
pub struct AdminSocket(pub PathBuf);

impl Transport for AdminSocket {
    fn call(&self, method: &'static str, message: Bytes) -> BoxFuture<'_, Result<Bytes, TierError>> {
        Box::pin(async move {
            let what = self.0.display().to_string();
            let late = || TierError::unreachable(format!("{what}: no answer to {method} in {CALL_PATIENCE:?}"));
            tokio::time::timeout(CALL_PATIENCE, self.ask(method, message)).await.unwrap_or_else(|_| Err(late()))
        })
    }
}

impl AdminSocket {
    async fn ask(&self, method: &str, message: Bytes) -> Result<Bytes, TierError> {
        let what = self.0.display().to_string();
        let gone = |e: &dyn std::fmt::Display| TierError::unreachable(format!("{what}: {e}"));
        let stream = tokio::net::UnixStream::connect(&self.0).await.map_err(|e| gone(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| gone(&e))?;
        tokio::spawn(connection);
        let mut request = call_request(message)?;
        *request.uri_mut() = format!("{CALL_PREFIX}{method}").parse().map_err(|e| gone(&e))?;
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
        read_answer(&what, sender.send_request(request).await.map_err(|e| gone(&e))?).await
    }
}

/// Answers a request below [`CALL_PREFIX`] by dispatching it, or `None` when its path is another.
/// Without a certificate of the cloud's CA the answer is 403.
pub async fn call_front<D: Dispatch>(
    dispatch: &Arc<D>,
    request: Request<Incoming>,
    connection: &Connection,
) -> Result<Response<Body>, Request<Incoming>> {
    let Some(method) = request.uri().path().strip_prefix(CALL_PREFIX).map(str::to_owned) else {
        return Err(request);
    };
    let outcome = match &connection.peer {
        None => Err(TierError::new(TierErrorKind::Forbidden, "tiers talk to each other over mutual TLS only")),
        Some(peer) => match body::collect(request.into_body(), MESSAGE_LIMIT).await {
            Ok(Some(message)) => dispatch.dispatch(&method, peer, message).await,
            Ok(None) => Err(TierError::new(TierErrorKind::Malformed, format!("message over {MESSAGE_LIMIT} bytes"))),
            Err(e) => Err(TierError::new(TierErrorKind::Malformed, e.to_string())),
        },
    };
    Ok(match outcome {
        Ok(answer) => json_response(StatusCode::OK, answer),
        Err(e) => refusal(&e),
    })
}

/// A [`TierError`] as an HTTP answer.
pub fn refusal(e: &TierError) -> Response<Body> {
    let status = match e.kind {
        TierErrorKind::Forbidden => StatusCode::FORBIDDEN,
        TierErrorKind::NotFound | TierErrorKind::Unsupported => StatusCode::NOT_FOUND,
        TierErrorKind::OtherIncarnation | TierErrorKind::Stale => StatusCode::CONFLICT,
        TierErrorKind::Malformed | TierErrorKind::Refused => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    json_response(status, serde_json::to_vec(e).unwrap_or_default().into())
}

pub fn json_response(status: StatusCode, answer: Bytes) -> Response<Body> {
    let mut response = Response::new(body::full(answer));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A tier without a face for users: everything but calls of other tiers is refused.
pub struct TierOnly<D: Dispatch>(pub Arc<D>);

impl<D: Dispatch> crate::Handler for TierOnly<D> {
    async fn handle(&self, request: Request<Incoming>, connection: Connection) -> Response<Body> {
        match call_front(&self.0, request, &connection).await {
            Ok(response) => response,
            Err(request) => refusal(&TierError::not_found(format!(
                "{} is nothing this tier serves: users talk to the cloud-controller and to walrus",
                request.uri().path()
            ))),
        }
    }
}

/// The peer, for messages about it.
pub fn said_by(peer: &Peer) -> String {
    format!("{} {}", peer.role, peer.name)
}
