//! Flow logs of VPCs: objects that nodes bring for an account, put as AWS' delivery service puts them.
//!
//! For policies it is `delivery.logs.amazonaws.com`, about that account's logs. A bucket of the account's own lets it in,
//! unless its policy denies it; another's has to allow it. The key must be one of the account's flow logs, so that a node can
//! touch nothing else that a bucket holds.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use mallee_policy::Context;
use mallee_service::{Body, tiers::json_response};
use mallee_tiers::{FLOW_LOGS_PREFIX, Peer, Role, TierError, TierErrorKind, flow_log_folder};

use crate::{
    Walrus,
    access::Action,
    arrival::Arrival,
    call::{Call, Payload, Plus, Query, Target, decode},
    circumstances::Wire,
    principal::Principal,
    s3::object::{put, writable},
    tier::{only, told},
};

const ACL: &str = "bucket-owner-full-control";

/// `PUT` brings an object, `HEAD` says whether it would be let in.
pub async fn handle(
    walrus: &Arc<Walrus>,
    request: Request<Incoming>,
    peer: &Peer,
) -> Result<Response<Body>, TierError> {
    let (parts, incoming) = request.into_parts();
    // The body is read to its end also when it is refused, or the connection could not go on.
    let arrival = Arrival::new(incoming, &parts.headers, walrus.pace);
    let payload = Payload::new(arrival, None, &parts.headers).map_err(told)?;
    let path = parts.uri.path().strip_prefix(FLOW_LOGS_PREFIX).unwrap_or_default();
    let (bucket, key) = path.split_once('/').ok_or_else(|| TierError::refused("the path is BUCKET/KEY"))?;
    let target =
        Target { bucket: decode(bucket, Plus::IsPlus).map_err(told)?, key: decode(key, Plus::IsPlus).map_err(told)? };
    let query = Query::parse(parts.uri.query().unwrap_or_default()).map_err(told)?;
    let account = query.get("account").unwrap_or_default();
    let folder = flow_log_folder(account);
    if account.is_empty() || !(target.key.starts_with(&folder) || target.key.contains(&format!("/{folder}"))) {
        return Err(TierError::refused(format!("{} is not in {folder:?}", target.key)));
    }
    let mut call = call(walrus, account, target, payload)?;
    match parts.method {
        Method::HEAD => {
            only(peer, &[Role::CloudController])?;
            writable(walrus, &call, Action::PutObject).await.map_err(told)?;
        }
        Method::PUT => {
            only(peer, &[Role::NodeController])?;
            put::put(walrus, &mut call).await.map_err(told)?;
        }
        _ => return Err(TierError::new(TierErrorKind::Unsupported, "flow logs are only brought")),
    }
    Ok(json_response(StatusCode::OK, "{}".into()))
}

/// What AWS' service would ask.
fn call(walrus: &Walrus, account: &str, target: Target, payload: Payload) -> Result<Call, TierError> {
    let holder =
        walrus.holders.by_account(account).ok_or_else(|| TierError::not_found(format!("no account {account:?}")))?;
    let mut context = Context::default();
    context.add("aws:SourceAccount", account);
    context.add("aws:SourceArn", format!("arn:aws:logs:{}:{account}:*", walrus.region()));
    context.add("aws:SecureTransport", "true");
    context.add("s3:x-amz-acl", ACL);
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::HeaderName::from_static("x-amz-acl"), HeaderValue::from_static(ACL)),
    ]);
    Ok(Call {
        method: Method::PUT,
        target,
        query: Query::default(),
        headers,
        principal: Principal::flow_log_delivery(holder).with_context(context),
        region: None,
        wire: Wire::default(),
        payload,
        request_id: String::new(),
        now: walrus.clock.now_ms(),
        origin: String::new(),
    })
}
