//! The front of users and tiers: one port, told apart by path, and every unmatched request answered in the protocol it used.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use mallee_aws::{
    AwsError, Protocol,
    params::Params,
    signature::{Payload, Presented, Route as SignatureRoute, Rules, SigV2},
};
use mallee_service::{Body, Connection, Handler, body, call_front, tiers};
use mallee_tiers::{CloudServer, JOIN_PATH, TierError};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::{
    Cloud, Outcome, Principal, Refusal, ebs, join,
    route::{self, Route},
    service::{self, Call, Dialect},
    tier::Tier,
};

/// AWS' own bound on a Query request is near this.
const FORM_LIMIT: usize = 1024 * 1024;
/// Anyone may connect: whoever has not sent a whole request by then is cut off, or a few thousand of them would hold every
/// descriptor we have.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Front {
    cloud: Arc<Cloud>,
    tiers: Arc<CloudServer<Tier>>,
}

impl Front {
    pub fn new(cloud: Arc<Cloud>) -> Self {
        let tiers = Arc::new(CloudServer(Arc::new(Tier::new(cloud.clone()))));
        Self { cloud, tiers }
    }
}

impl Handler for Front {
    async fn handle(&self, request: Request<hyper::body::Incoming>, connection: Connection) -> Response<Body> {
        let request = match call_front(&self.tiers, request, &connection).await {
            Ok(response) => return response,
            Err(request) => request,
        };
        let (parts, incoming) = request.into_parts();
        if parts.uri.path() == JOIN_PATH {
            return self.join(incoming).await;
        }
        let begun = std::time::Instant::now();
        let request_id = uuid::Uuid::new_v4().to_string();
        let form = match body::collect_within(PATIENCE, incoming, FORM_LIMIT).await {
            Ok(Some(form)) => form,
            Ok(None) => {
                let refused =
                    AwsError::new("RequestEntityTooLarge", 413, format!("A request may have {FORM_LIMIT} bytes"));
                return error(&refused, &Protocol::Ec2, &request_id, parts.uri.path());
            }
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                let refused = AwsError::new("RequestTimeout", 408, "The request's body did not come in time");
                return closing(error(&refused, &Protocol::Ec2, &request_id, parts.uri.path()));
            }
            // The client went away while it sent.
            Err(e) => {
                return error(&AwsError::bad_request("IncompleteBody", e.to_string()), &Protocol::Ec2, &request_id, "");
            }
        };
        let answered = self.answer(&parts, &form, &request_id).await;
        let took = begun.elapsed().as_millis() as u64;
        match answered {
            Answered::Done { action, reply } => {
                tracing::info!(request.id = request_id, action, duration_ms = took, "answered");
                match reply {
                    Reply::Xml(answer) => xml(StatusCode::OK, answer, &request_id),
                    Reply::Direct(answer) => direct(answer, &request_id),
                }
            }
            Answered::Refused { action, refusal, protocol } => {
                if let Some(cause) = &refusal.cause {
                    tracing::error!(request.id = request_id, action, cause, duration_ms = took, "failed");
                } else {
                    tracing::info!(
                        request.id = request_id,
                        action,
                        code = refusal.code(),
                        duration_ms = took,
                        "refused"
                    );
                }
                error(&refusal.answer, &protocol, &request_id, parts.uri.path())
            }
        }
    }
}

enum Answered {
    Done { action: String, reply: Reply },
    Refused { action: String, refusal: Refusal, protocol: Protocol },
}

/// What was asked for.
enum Reply {
    Xml(String),
    Direct(ebs::Answer),
}

impl Front {
    async fn join(&self, incoming: hyper::body::Incoming) -> Response<Body> {
        let outcome = match body::collect_within(PATIENCE, incoming, 64 * 1024).await {
            Ok(Some(message)) => match serde_json::from_slice(&message) {
                Ok(asked) => join::redeem(&self.cloud, &asked).await,
                Err(e) => Err(TierError::new(mallee_tiers::TierErrorKind::Malformed, e.to_string())),
            },
            _ => Err(TierError::new(mallee_tiers::TierErrorKind::Malformed, "no readable body")),
        };
        match outcome.and_then(|signed| serde_json::to_vec(&signed).map_err(|e| TierError::internal(e.to_string()))) {
            Ok(answer) => tiers::json_response(StatusCode::OK, Bytes::from(answer)),
            Err(e) => {
                tracing::warn!(error = %e, "a machine was not let in");
                tiers::refusal(&e)
            }
        }
    }

    async fn answer(&self, parts: &Parts, form: &Bytes, request_id: &str) -> Answered {
        let scope = scope_service(parts);
        if ebs::is_for(parts, scope.as_deref()) {
            let action = ebs::asked(parts).map(|action| action.name).unwrap_or_default().to_owned();
            return match self.serve_direct(parts, form, scope, request_id).await {
                Ok(answer) => Answered::Done { action, reply: Reply::Direct(answer) },
                Err(refusal) => Answered::Refused { action, refusal, protocol: Protocol::RestJson },
            };
        }
        if let Some((refused, protocol)) = not_query(parts, &self.cloud) {
            return Answered::Refused { action: String::new(), refusal: refused.into(), protocol };
        }
        let params = match read_params(parts, form) {
            Ok(params) => params,
            Err(e) => return Answered::Refused { action: String::new(), refusal: e.into(), protocol: Protocol::Ec2 },
        };
        let action = params.action().unwrap_or_default().to_owned();
        let route = route::query(parts.uri.path(), scope.as_deref(), &params);
        let protocol = match &route {
            Route::Served(s) => match s.dialect {
                Dialect::Ec2 => Protocol::Ec2,
                Dialect::Query { xmlns } => Protocol::Query { xmlns: xmlns.into() },
            },
            Route::NotServed { xmlns, .. } => Protocol::Query { xmlns: (*xmlns).into() },
        };
        match self.serve(parts, form, params, route, scope, request_id).await {
            Ok(body) => Answered::Done { action, reply: Reply::Xml(body) },
            Err(refusal) => Answered::Refused { action, refusal, protocol },
        }
    }

    async fn serve(
        &self,
        parts: &Parts,
        form: &Bytes,
        params: Params,
        route: Route,
        scope: Option<String>,
        request_id: &str,
    ) -> Outcome<String> {
        let (principal, _) = self.authenticate(parts, form, signature_route(&route)).await?;
        let served = match route {
            Route::Served(service) => service,
            Route::NotServed { name, .. } => {
                let action = params.action().unwrap_or_default();
                return Err(AwsError::bad_request(
                    "InvalidAction",
                    format!("Mallee does not have {name} yet, so no {action}"),
                )
                .into());
            }
        };
        if route::scope_contradicts(served.name, scope.as_deref()) {
            return Err(signature_route(&Route::Served(served)).wrong_service().into());
        }
        let call = Call {
            cloud: self.cloud.clone(),
            principal,
            params,
            request_id: request_id.to_owned(),
            now: self.cloud.now(),
        };
        service::run(served, &call).await
    }

    /// The EBS direct APIs.
    async fn serve_direct(
        &self,
        parts: &Parts,
        body: &Bytes,
        scope: Option<String>,
        request_id: &str,
    ) -> Outcome<ebs::Answer> {
        let (principal, signed) = self.authenticate(parts, body, SignatureRoute::RestJson).await?;
        if route::scope_contradicts(ebs::NAME, scope.as_deref()) {
            return Err(SignatureRoute::RestJson.wrong_service().into());
        }
        let call = Call {
            cloud: self.cloud.clone(),
            principal,
            params: Params::default(),
            request_id: request_id.to_owned(),
            now: self.cloud.now(),
        };
        ebs::run(&call, parts, body, signed).await
    }

    /// Who signed the request, and what of its body. Anonymous requests are refused: no action here is for strangers.
    async fn authenticate(&self, parts: &Parts, form: &Bytes, route: SignatureRoute) -> Outcome<(Principal, Payload)> {
        let mut rules = Rules::new(route);
        if !self.cloud.config.signature_v2 || route == SignatureRoute::RestJson {
            rules.sigv2 = SigV2::Refused;
        }
        // A signature in the URL and one in the form are two.
        let has_form = parts.method == Method::POST && route != SignatureRoute::RestJson;
        let in_form = if has_form { Some(Params::parse(form)?) } else { None };
        let presented =
            Presented::from_request(parts, in_form.as_ref(), &rules)?.ok_or_else(|| route.missing_credentials())?;
        let signer = self
            .cloud
            .keyring
            .find(&self.cloud.store, &self.cloud.sealing, presented.access_key.as_str())
            .await?
            .ok_or_else(|| presented.route.unknown_key())?;
        let now = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.cloud.now()) * 1_000_000)
            .map_err(|e| Refusal::internal(e.to_string()))?;
        let verified = presented.verify(&signer.secret, Some(Sha256::digest(form).into()), now)?;
        if presented.session_token.is_some() {
            // Long-lived keys have no session; a token beside one was never made by us.
            return Err(route.wrong_session_token().into());
        }
        Ok((signer.principal.clone(), verified.payload))
    }
}

/// Whose error codes a wrong signature gets.
fn signature_route(route: &Route) -> SignatureRoute {
    match route {
        Route::Served(service) if service.dialect == Dialect::Ec2 => SignatureRoute::Ec2,
        _ => SignatureRoute::Query,
    }
}

/// What is not a Query request, refused in its own protocol.
fn not_query(parts: &Parts, cloud: &Cloud) -> Option<(AwsError, Protocol)> {
    if let Some(target) = parts.headers.get("x-amz-target") {
        let target = String::from_utf8_lossy(target.as_bytes()).into_owned();
        return Some((
            AwsError::new("UnknownOperationException", 404, format!("Mallee does not have {target}")),
            Protocol::Json,
        ));
    }
    let content_type = parts
        .headers
        .get(header::CONTENT_TYPE)
        .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        .unwrap_or_default();
    if parts.headers.contains_key("smithy-protocol")
        || content_type.starts_with("application/cbor")
        || content_type.starts_with("application/json")
    {
        let refused =
            AwsError::new("UnknownOperationException", 404, format!("Mallee has nothing at {}", parts.uri.path()));
        return Some((refused, Protocol::Json));
    }
    if parts.headers.contains_key("soapaction") || content_type.starts_with("application/soap+xml") {
        let refused = AwsError::new("Client.Unsupported", 400, "SOAP is not served (yet); use the Query API");
        return Some((refused, Protocol::Ec2));
    }
    let is_query = parts.uri.query().is_some_and(|q| q.split('&').any(|p| p.starts_with("Action=")));
    let is_form = parts.method == Method::POST && !content_type.starts_with("multipart/");
    if is_query
        || is_form
        || (parts.uri.path() == "/" && parts.method == Method::GET && scope_service(parts).as_deref() != Some("s3"))
    {
        return None;
    }
    let place =
        if cloud.config.s3_url.is_empty() { "walrus, on port 8777".to_owned() } else { cloud.config.s3_url.clone() };
    let refused =
        AwsError::new("NotImplemented", 501, format!("S3 is not served here but at {place}: set AWS_ENDPOINT_URL_S3"));
    Some((refused, Protocol::S3))
}

fn read_params(parts: &Parts, form: &Bytes) -> Result<Params, AwsError> {
    let mut params = Params::parse(parts.uri.query().unwrap_or_default().as_bytes())?;
    if parts.method == Method::POST {
        params.extend(form)?;
    }
    Ok(params)
}

/// The service in a SigV4 scope, from the header or the query string, before anything is verified.
fn scope_service(parts: &Parts) -> Option<String> {
    let credential = match parts.headers.get(header::AUTHORIZATION) {
        Some(value) => value.to_str().ok()?.split("Credential=").nth(1)?.split([',', ' ']).next()?.to_owned(),
        None => {
            let query = parts.uri.query()?;
            let raw = query.split('&').find_map(|p| p.strip_prefix("X-Amz-Credential="))?;
            raw.replace("%2F", "/").replace("%2f", "/")
        }
    };
    credential.split('/').nth(3).map(str::to_owned)
}

fn xml(status: StatusCode, text: String, request_id: &str) -> Response<Body> {
    finish(status, "text/xml;charset=UTF-8", text, request_id)
}

fn error(refused: &AwsError, protocol: &Protocol, request_id: &str, resource: &str) -> Response<Body> {
    let rendered = refused.render(protocol, request_id, resource);
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = finish(status, rendered.content_type, rendered.body, request_id);
    if *protocol == Protocol::RestJson
        && let Ok(code) = header::HeaderValue::from_str(&refused.code)
    {
        response.headers_mut().insert("x-amzn-errortype", code);
    }
    response
}

fn direct(answer: ebs::Answer, request_id: &str) -> Response<Body> {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = finish(status, answer.content_type, answer.body, request_id);
    for (name, value) in answer.headers {
        if let Ok(value) = header::HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The rest of what the client was sending is not waited for.
fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

fn finish(
    status: StatusCode,
    content_type: &'static str,
    content: impl Into<Bytes>,
    request_id: &str,
) -> Response<Body> {
    let mut response = Response::new(body::full(content));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::SERVER, header::HeaderValue::from_static("Mallee"));
    if let Ok(id) = header::HeaderValue::from_str(request_id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}
