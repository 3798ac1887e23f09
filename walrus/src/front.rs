//! The one door: who asks is settled here, before a byte of the body is read, and every answer is given its headers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::{Body as _, Incoming};
use mallee_aws::{
    AwsError, Protocol, document,
    signature::{self, Presented, Route, Rules, Verified},
};
use mallee_service::{Body, Connection, Handler, body};
use time::OffsetDateTime;

use crate::{
    Error, Walrus,
    arrival::Arrival,
    call::{Call, Payload, Query, Target, bucket_in_host},
    circumstances::{self, Wire},
    error::refuse,
    operation::{self, Does, Op},
    principal::Principal,
    s3::{
        bucket::{self, cors, logging, request_payment, website},
        done, http_time, multipart, object, set, xml_text,
    },
    tier,
};

pub struct Front {
    walrus: Arc<Walrus>,
    /// The first half of every request's id: this run of this walrus.
    boot: u32,
    count: AtomicU64,
}

impl Front {
    pub fn new(walrus: Arc<Walrus>) -> Self {
        Self { walrus, boot: rand::random(), count: AtomicU64::new(0) }
    }

    fn request_id(&self) -> String {
        format!("{:08X}{:08X}", self.boot, self.count.fetch_add(1, Ordering::Relaxed) as u32)
    }
}

impl Handler for Front {
    async fn handle(&self, request: Request<Incoming>, connection: Connection) -> Response<Body> {
        let begun = Instant::now();
        let request_id = self.request_id();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        if path.starts_with(mallee_tiers::CALL_PREFIX) {
            return tier::handle(&self.walrus, request, &connection).await;
        }
        let (mut response, operation) = self.s3(request, &connection, &request_id).await;
        if let Err(e) = sign_off(&mut response, &request_id, self.walrus.clock.now_ms()) {
            tracing::error!(error = %e, "an answer without its headers");
        }
        tracing::debug!(
            request.id = request_id,
            method = %method,
            path = path,
            operation,
            status = response.status().as_u16(),
            duration_ms = begun.elapsed().as_millis() as u64,
            "answered"
        );
        response
    }
}

/// The headers every answer has.
fn sign_off(response: &mut Response<Body>, request_id: &str, now: i64) -> Result<(), Error> {
    set(response, "x-amz-request-id", request_id)?;
    set(response, "x-amz-id-2", request_id)?;
    set(response, "date", &http_time(now))?;
    set(response, "server", "Mallee")
}

impl Front {
    /// What is asked for by browsers, which sign nothing: pages of websites, and leave to use the API from a page.
    async fn for_browsers(
        &self,
        request: &Request<Incoming>,
        connection: &Connection,
        request_id: &str,
        begun: Instant,
    ) -> Option<(Response<Body>, &'static str)> {
        let walrus = &*self.walrus;
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if let Some(bucket) = bucket_in_host(host, &walrus.website_suffixes) {
            let visit = website::Visit {
                bucket,
                method: request.method().clone(),
                path: request.uri().path(),
                headers: request.headers(),
                host,
                wire: wire(connection),
                request_id,
                now: walrus.clock.now_ms(),
            };
            let response = website::serve(walrus, &visit).await;
            let seen =
                Seen::of(walrus, request.method(), request.uri(), request.headers(), &walrus.website_suffixes, begun);
            if let Some(seen) = seen {
                let code = response.headers().get(website::ERROR_CODE).and_then(|code| code.to_str().ok());
                let line =
                    seen.line(website::OPERATION, request_id, &Principal::anonymous(), visit.wire, &response, code);
                seen.log(walrus, line).await;
            }
            return Some((response, website::OPERATION));
        }
        if request.method() != Method::OPTIONS {
            return None;
        }
        let target = Target::of(request.uri().path(), bucket_in_host(host, &walrus.host_suffixes));
        let answer = match &target {
            Ok(target) => cors::preflight(walrus, &target.bucket, &target.key, request.headers()).await,
            Err(_) => Err(refuse::coded("InvalidURI", 400, "Couldn't parse the specified URI.")),
        };
        let answer = answer.unwrap_or_else(|e| refusal(walrus, &e, request_id, request.uri().path(), false));
        Some((answer, "preflight"))
    }

    async fn s3(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
        request_id: &str,
    ) -> (Response<Body>, &'static str) {
        let walrus = &*self.walrus;
        let begun = Instant::now();
        if let Some(answered) = self.for_browsers(&request, connection, request_id, begun).await {
            return answered;
        }
        let (parts, incoming) = request.into_parts();
        let (head, resource) = (parts.method == Method::HEAD, parts.uri.path().to_owned());
        let seen = Seen::of(walrus, &parts.method, &parts.uri, &parts.headers, &walrus.host_suffixes, begun);
        let expects = parts.headers.contains_key(header::EXPECT);
        // hyper says "100 Continue" only where a body follows.
        let never_told = expects && incoming.is_end_stream();
        let page = Page::of(walrus, &parts);
        let mut call = match prepare(walrus, parts, incoming, connection, request_id) {
            Ok(call) => call,
            Err(e) => {
                let mut response = refusal(walrus, &e, request_id, &resource, head);
                if expects {
                    close(&mut response);
                }
                if let Some(page) = page {
                    page.tell(walrus, request_id, &mut response).await;
                }
                if let Some(seen) = seen {
                    let nobody = Principal::anonymous();
                    let told = e.told();
                    let line = seen.line("-", request_id, &nobody, wire(connection), &response, Some(&told.code));
                    seen.log(walrus, line).await;
                }
                return (response, "-");
            }
        };
        let (operation, outcome) = match operation::pick(&call) {
            Ok(row) => (row.name, perform(walrus, &mut call, row).await),
            Err(e) => ("-", Err(e)),
        };
        let told = outcome.as_ref().err().map(Error::told);
        let mut response = match outcome {
            Ok(response) => response,
            Err(e) => refusal(walrus, &e, request_id, &call.target.resource(), head),
        };
        if (expects && told.is_some()) || never_told {
            close(&mut response);
        }
        if operation == "HeadBucket" && told.is_some() {
            // There is one region, and clients that ask in the wrong one are told.
            let _ = set(&mut response, "x-amz-bucket-region", &walrus.region());
        }
        if let Some(page) = page {
            page.tell(walrus, request_id, &mut response).await;
        }
        if told.is_none()
            && let Err(e) = request_payment::tell(walrus, &call, &mut response).await
        {
            tracing::error!(request.id = request_id, error = %e, "an answer that does not say who paid");
        }
        if let Some(mut seen) = seen {
            // A form tells its key itself.
            seen.target.key = call.target.key;
            let code = told.as_ref().map(|told| told.code.as_ref());
            let line = seen.line(operation, request_id, &call.principal, call.wire, &response, code);
            seen.log(walrus, line).await;
        }
        (response, operation)
    }
}

/// A request to a bucket whose requests are logged, as it came.
struct Seen {
    /// The bucket's.
    owner: String,
    target: Target,
    method: Method,
    /// Path and query.
    asked: String,
    headers: HeaderMap,
    now: i64,
    begun: Instant,
}

impl Seen {
    fn of(
        walrus: &Walrus,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        suffixes: &[String],
        begun: Instant,
    ) -> Option<Self> {
        let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = named.or(uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
        let target = Target::of(uri.path(), bucket_in_host(host, suffixes)).ok()?;
        Some(Self {
            owner: walrus.access_logs.owner(&target.bucket)?,
            target,
            method: method.clone(),
            asked: uri.path_and_query().map(|asked| asked.as_str().to_owned()).unwrap_or_default(),
            headers: headers.clone(),
            now: walrus.clock.now_ms(),
            begun,
        })
    }

    fn line(
        &self,
        operation: &str,
        request_id: &str,
        principal: &Principal,
        wire: Wire,
        response: &Response<Body>,
        error: Option<&str>,
    ) -> String {
        let logged = logging::Logged {
            bucket: &self.target.bucket,
            key: &self.target.key,
            operation,
            method: &self.method,
            target: &self.asked,
            headers: &self.headers,
            principal,
            wire,
            request_id,
            response,
            error,
            now: self.now,
            begun: self.begun,
        };
        logging::line(&self.owner, &logged)
    }

    async fn log(self, walrus: &Walrus, line: String) {
        walrus.access_logs.take(&self.target.bucket, self.now, line).await;
    }
}

/// A request of a browser's page, whose script is shown no answer that does not let it see: no refusal either, whoever
/// refuses.
struct Page {
    bucket: String,
    method: Method,
    headers: HeaderMap,
}

impl Page {
    fn of(walrus: &Walrus, parts: &http::request::Parts) -> Option<Self> {
        let asked = [header::ORIGIN, header::ACCESS_CONTROL_REQUEST_METHOD];
        if !parts.headers.contains_key(header::ORIGIN) {
            return None;
        }
        let host = host(parts).ok()?;
        let target = Target::of(parts.uri.path(), bucket_in_host(&host, &walrus.host_suffixes)).ok()?;
        let headers = asked.into_iter().filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone())));
        Some(Self { bucket: target.bucket, method: parts.method.clone(), headers: headers.collect() })
    }

    async fn tell(&self, walrus: &Walrus, request_id: &str, response: &mut Response<Body>) {
        if let Err(e) = cors::tell(walrus, &self.bucket, &self.method, &self.headers, response).await {
            tracing::error!(request.id = request_id, error = %e, "an answer without its CORS headers");
        }
    }
}

/// Nobody knows whether a client that waited to be told to go on will still send its body, so nothing can come after it.
/// Nor after an answer it got instead of being told: botocore takes that answer's status for the next one's as well, and then
/// waits for the connection to end.
fn close(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

fn wire(connection: &Connection) -> Wire {
    Wire { remote: connection.remote.map(|remote| remote.ip()), tls: connection.tls }
}

/// Takes the request apart and settles who sends it. The body is not touched: hyper answers `Expect: 100-continue` when
/// it is first read.
fn prepare(
    walrus: &Walrus,
    parts: http::request::Parts,
    incoming: Incoming,
    connection: &Connection,
    request_id: &str,
) -> Result<Call, Error> {
    let now = walrus.clock.now_ms();
    let mut parts = parts;
    let arrival = Arrival::new(incoming, &parts.headers, walrus.pace);
    let Settled { target, query, principal, verified, host, region } = settle(walrus, &mut parts, now)?;
    let wire = wire(connection);
    let context = circumstances::of(&parts.headers, &query, wire, verified.as_ref(), &principal, now);
    let payload = Payload::new(arrival, verified, &parts.headers)?;
    Ok(Call {
        method: parts.method,
        target,
        query,
        headers: parts.headers,
        principal: principal.with_context(context),
        wire,
        payload,
        request_id: request_id.to_owned(),
        now,
        region,
        origin: format!("{}://{host}", if connection.tls { "https" } else { "http" }),
    })
}

struct Settled {
    target: Target,
    query: Query,
    principal: Principal,
    verified: Option<Verified>,
    host: String,
    region: Option<String>,
}

fn settle(walrus: &Walrus, parts: &mut http::request::Parts, now: i64) -> Result<Settled, Error> {
    let host = host(parts)?;
    let bucket = bucket_in_host(&host, &walrus.host_suffixes);
    let rules = Rules { route: Route::S3, sigv2: walrus.sigv2, bucket_in_host: bucket };
    let presented = Presented::from_request(parts, None, &rules)?;
    let region = presented.as_ref().and_then(|presented| presented.scope.as_ref()).map(|scope| scope.region.clone());
    let (principal, verified) = match presented {
        Some(presented) => {
            let (principal, verified) = verify(walrus, &presented, now)?;
            (principal, Some(verified))
        }
        None => (Principal::anonymous(), unsigned(parts)?),
    };
    let target = Target::of(parts.uri.path(), bucket)?;
    let query = Query::parse(parts.uri.query().unwrap_or_default())?;
    use signature::Method::{V2S3Presigned, V4Presigned};
    if verified.as_ref().is_some_and(|v| matches!(v.method, V4Presigned { .. } | V2S3Presigned)) {
        take_hoisted(&mut parts.headers, &query)?;
    }
    Ok(Settled { target, query, principal, verified, host, region })
}

/// Parameters of a presigned URL that are about the signature itself.
const OF_THE_SIGNATURE: [&str; 8] = [
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signedheaders",
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-content-sha256",
];

/// SDKs that presign move `x-amz-acl`, `x-amz-meta-*` and the like from the headers into the URL, where they are signed.
fn take_hoisted(headers: &mut HeaderMap, query: &Query) -> Result<(), Error> {
    for (name, value) in query.iter() {
        let name = name.to_ascii_lowercase();
        if !name.starts_with("x-amz-") || OF_THE_SIGNATURE.contains(&name.as_str()) {
            continue;
        }
        let value = value.unwrap_or_default();
        let wrong = || refuse::argument(&name, value, "The parameter cannot be a header.");
        let header = http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        if !headers.contains_key(&header) {
            headers.insert(header, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| wrong())?);
        }
    }
    Ok(())
}

fn host(parts: &http::request::Parts) -> Result<String, Error> {
    let wrong = || refuse::request("The request must have one Host header.");
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next(), parts.uri.authority()) {
        (Some(host), None, _) => host.to_str().map(str::to_owned).map_err(|_| wrong()),
        (None, _, Some(authority)) => Ok(authority.to_string()),
        _ => Err(wrong()),
    }
}

/// Whose credentials these are, and that they are good.
pub fn verify(walrus: &Walrus, presented: &Presented, now: i64) -> Result<(Principal, Verified), Error> {
    if presented.scope.as_ref().is_some_and(|scope| ["ec2", "iam", "sts"].contains(&scope.service.as_str())) {
        return Err(Error::Refused(presented.route.wrong_service()));
    }
    let holder = walrus.holders.holder(&presented.access_key).ok_or_else(|| {
        Error::Refused(presented.route.unknown_key().with_field("AWSAccessKeyId", presented.access_key.as_str()))
    })?;
    // walrus knows long-lived keys only: none of them has a session.
    if presented.session_token.is_some() {
        return Err(Error::Refused(presented.route.wrong_session_token()));
    }
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(now) * 1_000_000)
        .map_err(|e| Error::Internal(format!("the clock: {e}")))?;
    let verified = presented.verify(&holder.secret, None, at)?;
    Ok((Principal::of_account(holder.account.clone()), verified))
}

/// What nobody signed may still say how its body comes, and what it is: SDKs without credentials do.
fn unsigned(parts: &http::request::Parts) -> Result<Option<Verified>, Error> {
    let payload = signature::anonymous_payload(parts)?;
    let access_key = "anonymous".parse()?;
    Ok(Some(Verified { access_key, route: Route::S3, method: signature::Method::V4Header, payload, chunk_key: None }))
}

async fn perform(walrus: &Walrus, call: &mut Call, row: &operation::Operation) -> Result<Response<Body>, Error> {
    match row.does {
        Does::This(op) => run(walrus, call, op).await,
        Does::Refused => Err(refuse::not_implemented(row.name)),
        Does::Absent { code, status, message } => {
            let bucket = bucket::configuration(walrus, call, row.action()).await?;
            Err(Error::Refused(AwsError::new(code, status, message).with_field("BucketName", bucket.name)))
        }
        Does::Document { root, inner } => {
            bucket::configuration(walrus, call, row.action()).await?;
            let text = document::render_text(root, "");
            Ok(xml_text(text.replace("></", &format!(">{inner}</"))))
        }
        Does::NothingThere => {
            bucket::configuration(walrus, call, row.action()).await?;
            Ok(done(StatusCode::NO_CONTENT))
        }
    }
}

async fn run(walrus: &Walrus, call: &mut Call, op: Op) -> Result<Response<Body>, Error> {
    match op {
        Op::ListBuckets => bucket::list(walrus, call).await,
        Op::CreateBucket => bucket::create(walrus, call).await,
        Op::HeadBucket => bucket::head(walrus, call).await,
        Op::DeleteBucket => bucket::delete(walrus, call).await,
        Op::GetBucketVersioning => bucket::versioning::get(walrus, call).await,
        Op::PutBucketVersioning => bucket::versioning::put(walrus, call).await,
        Op::GetObjectLockConfiguration => bucket::object_lock::get(walrus, call).await,
        Op::PutObjectLockConfiguration => bucket::object_lock::put(walrus, call).await,
        Op::GetBucketLifecycle => bucket::lifecycle::get(walrus, call).await,
        Op::PutBucketLifecycle => bucket::lifecycle::put(walrus, call).await,
        Op::DeleteBucketLifecycle => bucket::lifecycle::delete(walrus, call).await,
        Op::GetObjectRetention => object::lock::get_retention(walrus, call).await,
        Op::PutObjectRetention => object::lock::put_retention(walrus, call).await,
        Op::GetObjectLegalHold => object::lock::get_hold(walrus, call).await,
        Op::PutObjectLegalHold => object::lock::put_hold(walrus, call).await,
        Op::GetBucketLocation => bucket::location(walrus, call).await,
        Op::GetBucketAcl => bucket::get_acl(walrus, call).await,
        Op::PutBucketAcl => bucket::put_acl(walrus, call).await,
        Op::GetBucketTagging => bucket::tagging::get(walrus, call).await,
        Op::PutBucketTagging => bucket::tagging::put(walrus, call).await,
        Op::DeleteBucketTagging => bucket::tagging::delete(walrus, call).await,
        Op::GetBucketCors => bucket::cors::get(walrus, call).await,
        Op::PutBucketCors => bucket::cors::put(walrus, call).await,
        Op::DeleteBucketCors => bucket::cors::delete(walrus, call).await,
        Op::GetBucketPolicy => bucket::policy::get(walrus, call).await,
        Op::GetBucketPolicyStatus => bucket::policy::status(walrus, call).await,
        Op::PutBucketPolicy => bucket::policy::put(walrus, call).await,
        Op::DeleteBucketPolicy => bucket::policy::delete(walrus, call).await,
        Op::GetPublicAccessBlock => bucket::public_access::get(walrus, call).await,
        Op::PutPublicAccessBlock => bucket::public_access::put(walrus, call).await,
        Op::DeletePublicAccessBlock => bucket::public_access::delete(walrus, call).await,
        Op::GetBucketOwnershipControls => bucket::ownership::get(walrus, call).await,
        Op::PutBucketOwnershipControls => bucket::ownership::put(walrus, call).await,
        Op::DeleteBucketOwnershipControls => bucket::ownership::delete(walrus, call).await,
        Op::GetBucketWebsite => bucket::website::get(walrus, call).await,
        Op::PutBucketWebsite => bucket::website::put(walrus, call).await,
        Op::DeleteBucketWebsite => bucket::website::delete(walrus, call).await,
        Op::GetBucketEncryption => bucket::encryption::get(walrus, call).await,
        Op::PutBucketEncryption => bucket::encryption::put(walrus, call).await,
        Op::DeleteBucketEncryption => bucket::encryption::delete(walrus, call).await,
        Op::GetBucketLogging => bucket::logging::get(walrus, call).await,
        Op::PutBucketLogging => bucket::logging::put(walrus, call).await,
        Op::GetBucketNotificationConfiguration => bucket::notification::get(walrus, call).await,
        Op::PutBucketNotificationConfiguration => bucket::notification::put(walrus, call).await,
        Op::GetBucketRequestPayment => bucket::request_payment::get(walrus, call).await,
        Op::PutBucketRequestPayment => bucket::request_payment::put(walrus, call).await,
        Op::ListObjects => object::list::v1(walrus, call).await,
        Op::ListObjectsV2 => object::list::v2(walrus, call).await,
        Op::ListObjectVersions => object::versions::list(walrus, call).await,
        Op::ListMultipartUploads => multipart::list_uploads(walrus, call).await,
        Op::DeleteObjects => object::delete::delete_many(walrus, call).await,
        Op::PostObject => object::post::post(walrus, call).await,
        Op::GetObject | Op::HeadObject => object::get::get(walrus, call).await,
        Op::PutObject => object::put::put(walrus, call).await,
        Op::CopyObject => object::copy::copy(walrus, call).await,
        Op::DeleteObject => object::delete::delete(walrus, call).await,
        Op::GetObjectAttributes => object::get::attributes(walrus, call).await,
        Op::GetObjectAcl => object::acl::get(walrus, call).await,
        Op::PutObjectAcl => object::acl::put(walrus, call).await,
        Op::GetObjectTagging => object::tagging::get(walrus, call).await,
        Op::PutObjectTagging => object::tagging::put(walrus, call).await,
        Op::DeleteObjectTagging => object::tagging::delete(walrus, call).await,
        Op::CreateMultipartUpload => multipart::create(walrus, call).await,
        Op::UploadPart => multipart::upload_part(walrus, call).await,
        Op::UploadPartCopy => multipart::upload_part_copy(walrus, call).await,
        Op::ListParts => multipart::list_parts(walrus, call).await,
        Op::AbortMultipartUpload => multipart::abort(walrus, call).await,
        Op::CompleteMultipartUpload => multipart::complete(walrus, call).await,
    }
}

/// The answer to what was not done, and the log's line about it when it was our fault.
fn refusal(walrus: &Walrus, e: &Error, request_id: &str, resource: &str, head: bool) -> Response<Body> {
    if e.is_ours() {
        tracing::error!(request.id = request_id, resource, error = %e, "request failed");
    }
    if let Error::Damaged(what) = e {
        let remedy = "restore it from a copy, and check the disk";
        walrus.faults.raise(&format!("damage.{resource}"), format!("{resource} is damaged: {what}"), remedy);
    }
    let told = e.told();
    let mut response = if head {
        Response::new(body::empty())
    } else {
        let rendered = told.render(&Protocol::S3, request_id, resource);
        let mut response = Response::new(body::full(rendered.body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(rendered.content_type));
        response
    };
    *response.status_mut() = StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Error::Hidden { version, modified, .. } = e {
        let shown = [("x-amz-delete-marker", "true".to_owned()), ("x-amz-version-id", version.clone())];
        // Whoever asked for the marker itself is told what can be done with it.
        let itself = modified.map(|at| [("last-modified", http_time(at)), ("allow", "DELETE".to_owned())]);
        for (name, value) in shown.into_iter().chain(itself.into_iter().flatten()) {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
    let size = told.fields.iter().find(|(name, _)| name == "ActualObjectSize").map(|(_, size)| size);
    if let (416, Some(size)) = (told.status, size)
        && let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}"))
    {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}
