//! PostObject: an upload by a browser's form, whose signed policy says what may be uploaded.

use std::ops::RangeInclusive;

use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use mallee_aws::{
    AwsError, document,
    signature::{Route, Rules, Verified, post::Form},
};
use mallee_service::Body;
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde::Serialize;
use time::OffsetDateTime;

use super::{
    meta,
    put::{Draft, LARGEST, commit, owner_of_new},
    show_new_version,
    tagging::Tagging,
    writable,
};
use crate::{
    Error, Walrus,
    access::Action,
    blob::{DataKey, Received},
    call::{Call, Promised, Target},
    checksum::Algorithm,
    circumstances,
    error::refuse,
    front,
    s3::{bucket::notification::Cause, condition::Conditions, done, quoted, set, xml_text},
};

/// One field but the file, by AWS.
const LARGEST_FIELD: u64 = 20_000;
const MOST_FIELDS: usize = 200;

pub async fn post(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let content_type = call.header("content-type")?.unwrap_or_default();
    let boundary = multer::parse_boundary(content_type).map_err(|_| malformed())?;
    let limits = Constraints::new().size_limit(SizeLimit::new().whole_stream(u64::MAX).per_field(u64::MAX));
    let mut parts = Multipart::with_constraints(call.payload.take_stream(), boundary, limits);
    let (form, file) = fields(&mut parts, &call.target.bucket).await?;
    let (length, verified) = admitted(walrus, call, &form)?;

    let key = form.get("key").filter(|key| !key.is_empty()).ok_or_else(|| {
        refuse::argument(
            "key",
            "",
            "Bucket POST must contain a field named 'key'.  If it is specified, please check the order of the fields.",
        )
    })?;
    // The same function that takes paths apart checks it.
    let path = format!("/{}", key.replace('%', "%25"));
    call.target = Target::of(&path, Some(&call.target.bucket))?;
    if call.target.key.is_empty() {
        return Err(refuse::argument("key", "", "The key is empty."));
    }
    call.headers = as_headers(&form, call)?;
    let tags = match form.get("tagging") {
        Some(document) => Tagging::parse(document.as_bytes())?,
        None => Vec::new(),
    };
    let mut context =
        circumstances::of(&call.headers, &call.query, call.wire, verified.as_ref(), &call.principal, call.now);
    circumstances::add_tags(&mut context, tags.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    call.principal = call.principal.clone().with_context(context);
    let bucket = writable(walrus, call, Action::PutObject).await?;
    meta::refuse_unsupported(call)?;
    let owner = owner_of_new(&call.principal, &bucket);
    let draft = Draft::of(walrus, call, &bucket, owner, tags)?;
    let promised = Promised::of(call)?;
    let received = receive(walrus, file, &promised, &length, draft.data_key()).await?;
    let wish = draft.wish.clone();
    let cause = Cause::of(walrus, call, "s3:ObjectCreated:Post");
    let object = draft.object(&call.target.key, call.now, &received)?;
    let (object, versioning) = commit(walrus, bucket, object, received, Conditions::default(), cause).await?;
    let mut response = answer(call, &form, &object.etag)?;
    wish.show(&mut response)?;
    show_new_version(&mut response, versioning, &object.version)?;
    Ok(response)
}

fn malformed() -> Error {
    refuse::coded("MalformedPOSTRequest", 400, "The body of your POST request is not well-formed multipart/form-data.")
}

/// Everything before the file, and the file's beginning.
async fn fields(parts: &mut Multipart<'static>, bucket: &str) -> Result<(Form, Field<'static>), Error> {
    let mut fields = Vec::new();
    loop {
        let Some(mut field) = parts.next_field().await.map_err(cut)? else {
            return Err(refuse::argument("file", "", "POST requires exactly one file upload per request."));
        };
        let name = field.name().map(str::to_owned).ok_or_else(malformed)?;
        if name.eq_ignore_ascii_case("file") {
            let filename = field.file_name().unwrap_or_default().to_owned();
            // Old browsers send the whole path.
            let filename = filename.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
            return Ok((Form::new(fields, bucket, &filename)?, field));
        }
        let mut value = Vec::new();
        while let Some(bytes) = field.chunk().await.map_err(cut)? {
            value.extend_from_slice(&bytes);
            if value.len() as u64 > LARGEST_FIELD {
                return Err(too_many());
            }
        }
        fields.push((name, String::from_utf8(value).map_err(|_| malformed())?));
        if fields.len() > MOST_FIELDS {
            return Err(too_many());
        }
    }
}

fn too_many() -> Error {
    refuse::coded(
        "MaxPostPreDataLengthExceeded",
        400,
        "Your POST request fields preceding the upload file were too large.",
    )
}

fn cut(e: multer::Error) -> Error {
    match e {
        multer::Error::StreamReadFailed(e) => Error::Cut(e.to_string()),
        _ => malformed(),
    }
}

/// Settles who sends the form, and how long its file may be.
fn admitted(walrus: &Walrus, call: &mut Call, form: &Form) -> Result<(RangeInclusive<u64>, Option<Verified>), Error> {
    let rules = Rules { route: Route::S3, sigv2: walrus.sigv2, bucket_in_host: None };
    let Some(presented) = form.presented(&rules)? else { return Ok((0..=LARGEST, None)) };
    let (principal, verified) = front::verify(walrus, &presented, call.now)?;
    let now = OffsetDateTime::from_unix_timestamp(call.now / 1000).map_err(|e| Error::Internal(e.to_string()))?;
    let length = form.policy(now)?;
    call.principal = principal;
    Ok((length, Some(verified)))
}

/// The fields that mean the same as headers of a PUT.
fn as_headers(form: &Form, call: &Call) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    // About the browser, not about the object: for policies and logs.
    for name in [header::HOST, header::USER_AGENT, header::REFERER, header::ORIGIN] {
        if let Some(value) = call.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    for (name, value) in form.iter() {
        let name = match name {
            "acl" => "x-amz-acl",
            "x-amz-signature" | "x-amz-credential" | "x-amz-date" | "x-amz-algorithm" | "x-amz-security-token" => {
                continue;
            }
            name if meta::is_kept(name) || name.starts_with("x-amz-") || name == "content-md5" => name,
            _ => continue,
        };
        let wrong = || refuse::argument(name, value, "The field cannot be a header.");
        let name_of = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        headers.insert(name_of, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| wrong())?);
    }
    Ok(headers)
}

async fn receive(
    walrus: &Walrus,
    mut file: Field<'static>,
    promised: &Promised,
    length: &RangeInclusive<u64>,
    key: Option<DataKey>,
) -> Result<Received, Error> {
    let most = *length.end().min(&LARGEST);
    let mut intake = walrus.intake(false, &[promised.algorithm.unwrap_or(Algorithm::Crc64Nvme)])?.sealed(key);
    while let Some(bytes) = file.chunk().await.map_err(cut)? {
        intake.push(bytes).await?;
        if intake.size() > most {
            return Err(size_refused(
                "EntityTooLarge",
                "Your proposed upload exceeds the maximum allowed size",
                intake.size(),
                most,
            ));
        }
    }
    if intake.size() < *length.start() {
        let (size, least) = (intake.size(), *length.start());
        return Err(size_refused(
            "EntityTooSmall",
            "Your proposed upload is smaller than the minimum allowed size",
            size,
            least,
        ));
    }
    let received = intake.finish().await?;
    promised.check(&received.md5, &received.checksums, &mallee_aws::chunked::Trailers::default())?;
    Ok(received)
}

fn size_refused(code: &'static str, message: &str, size: u64, bound: u64) -> Error {
    let bound_name = if code == "EntityTooLarge" { "MaxSizeAllowed" } else { "MinSizeAllowed" };
    Error::Refused(
        AwsError::bad_request(code, message)
            .with_field("ProposedSize", size.to_string())
            .with_field(bound_name, bound.to_string()),
    )
}

fn answer(call: &Call, form: &Form, etag: &str) -> Result<Response<Body>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct PostResponse {
        location: String,
        bucket: String,
        key: String,
        #[serde(rename = "ETag")]
        etag: String,
    }

    let (bucket, key) = (call.target.bucket.clone(), call.target.key.clone());
    let encoded = encoded(&key);
    let location = format!("{}/{bucket}/{encoded}", call.origin);
    let redirect = form
        .get("success_action_redirect")
        .or_else(|| form.get("redirect"))
        .filter(|url| url.parse::<http::Uri>().is_ok_and(|uri| uri.authority().is_some()));
    let mut response = match (redirect, form.get("success_action_status")) {
        (Some(url), _) => {
            let glue = if url.contains('?') { '&' } else { '?' };
            let url = format!("{url}{glue}bucket={bucket}&key={encoded}&etag=%22{etag}%22");
            let mut response = done(StatusCode::SEE_OTHER);
            set(&mut response, header::LOCATION.as_str(), &url)?;
            set(&mut response, "etag", &quoted(etag))?;
            return Ok(response);
        }
        (None, Some("200")) => done(StatusCode::OK),
        (None, Some("201")) => {
            let body = PostResponse { location: location.clone(), bucket, key, etag: quoted(etag) };
            // Alone among S3's documents it has no namespace, and is read by name.
            let namespace = format!(" xmlns=\"{}\"", document::NAMESPACE);
            let mut response = xml_text(document::render("PostResponse", &body)?.replacen(&namespace, "", 1));
            *response.status_mut() = StatusCode::CREATED;
            response
        }
        _ => done(StatusCode::NO_CONTENT),
    };
    set(&mut response, "etag", &quoted(etag))?;
    set(&mut response, header::LOCATION.as_str(), &location)?;
    Ok(response)
}

pub fn encoded(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The body as multer wants it.
impl crate::call::Payload {
    fn take_stream(&mut self) -> impl Stream<Item = std::io::Result<bytes::Bytes>> + Send + 'static {
        let payload = std::mem::replace(self, crate::call::Payload::spent());
        futures_util::stream::unfold(payload, |mut payload| async move {
            let next = payload.next().await.transpose()?;
            Some((next.map_err(std::io::Error::other), payload))
        })
        .boxed()
    }
}
