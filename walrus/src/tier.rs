//! What the other tiers see: blobs by their own digest (images, snapshots), and users' objects read as a user would.

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use mallee_service::{
    Body, Connection, body, call_front,
    tiers::{json_response, refusal},
};
use mallee_store::{Row, Tx, params};
use mallee_tiers::{
    CALL_PREFIX, Digests, FLOW_LOGS_PREFIX, OBJECTS_PREFIX, Peer, Role, StatusAsked, TierError, TierErrorKind,
    TierStatus, WalrusServer,
};

use crate::{
    Error, Walrus,
    access::Action,
    arrival::Arrival,
    blob::{self, BlobId, Content, Piece, Place, Source, fetch, outflow},
    call::{Payload, Plus, decode},
    flow_log,
    principal::Principal,
    s3::{
        encryption::Keys,
        object::{
            Wanted,
            get::{Reading, WithBytes, open},
        },
        quoted,
        range::{self, Ranged, Span},
    },
};

pub const TABLES: &str = "
    CREATE TABLE digest_blob (
        digest TEXT PRIMARY KEY,
        content TEXT NOT NULL,
        place BIGINT NOT NULL,
        size BIGINT NOT NULL,
        created BIGINT NOT NULL
    );
";

struct DigestBlob {
    content: BlobId,
    place: Place,
    size: u64,
}

fn find(tx: &mut Tx<'_>, digest: &str) -> Result<Option<DigestBlob>, Error> {
    let read = |row: &Row<'_>| Ok((row.get::<BlobId>(0)?, row.get::<i64>(1)?, row.get::<u64>(2)?));
    let row = tx.query_opt("SELECT content, place, size FROM digest_blob WHERE digest = ?1", params![digest], read)?;
    row.map(|(content, place, size)| Ok(DigestBlob { content, place: Place::from_number(place)?, size })).transpose()
}

#[async_trait::async_trait]
impl mallee_tiers::Walrus for Walrus {
    async fn status(&self, _: &Peer, _: StatusAsked) -> Result<TierStatus, TierError> {
        Ok(self.about.status())
    }

    async fn blobs_present(&self, _: &Peer, asked: Digests) -> Result<Digests, TierError> {
        let found = self.store.read("find blobs", move |tx| {
            let mut present = Vec::new();
            for digest in &asked.digests {
                if find(tx, digest)?.is_some() {
                    present.push(digest.clone());
                }
            }
            Ok::<_, Error>(present)
        });
        found.await.map(|digests| Digests { digests }).map_err(|e| TierError::internal(e.to_string()))
    }
}

/// Answers whatever comes below the tiers' prefix.
pub async fn handle(walrus: &Arc<Walrus>, request: Request<Incoming>, connection: &Connection) -> Response<Body> {
    let path = request.uri().path();
    let digest = path.strip_prefix(CALL_PREFIX).and_then(|rest| rest.strip_prefix("blobs/")).map(str::to_owned);
    let flow_log = path.starts_with(FLOW_LOGS_PREFIX);
    if digest.is_none() && !flow_log && !path.starts_with(OBJECTS_PREFIX) {
        let server = Arc::new(WalrusServer(walrus.clone()));
        return match call_front(&server, request, connection).await {
            Ok(response) => response,
            Err(_) => refusal(&TierError::not_found("no such call")),
        };
    }
    let outcome = match &connection.peer {
        None => Err(TierError::new(TierErrorKind::Forbidden, "tiers talk to each other over mutual TLS only")),
        Some(peer) => match digest {
            Some(digest) => of_digest(walrus, request, peer, &digest).await,
            None if flow_log => flow_log::handle(walrus, request, peer).await,
            None => of_object(walrus, request, peer).await,
        },
    };
    outcome.unwrap_or_else(|e| refusal(&e))
}

pub(crate) fn only(peer: &Peer, roles: &[Role]) -> Result<(), TierError> {
    if roles.contains(&peer.role) {
        return Ok(());
    }
    Err(TierError::new(TierErrorKind::Forbidden, format!("a {} may not do this", peer.role)))
}

/// A refusal of S3's, as tiers say it.
pub(crate) fn told(e: Error) -> TierError {
    match e {
        Error::Refused(refusal) | Error::Hidden { refusal, .. } => {
            let kind = match refusal.status {
                403 => TierErrorKind::Forbidden,
                404 => TierErrorKind::NotFound,
                _ => TierErrorKind::Refused,
            };
            TierError::new(kind, refusal.to_string())
        }
        e => {
            tracing::error!(error = %e, "a tier's request failed");
            TierError::internal(e.to_string())
        }
    }
}

async fn of_digest(
    walrus: &Arc<Walrus>,
    request: Request<Incoming>,
    peer: &Peer,
    digest: &str,
) -> Result<Response<Body>, TierError> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digest.len() != 64 || !digest.bytes().all(hex) {
        return Err(TierError::refused("a blob's name is its SHA-256 in lower-case hex"));
    }
    match *request.method() {
        Method::PUT => {
            if let Err(e) = only(peer, &[Role::CloudController, Role::StorageController]) {
                let (parts, incoming) = request.into_parts();
                drop(Arrival::new(incoming, &parts.headers, walrus.pace));
                return Err(e);
            }
            store(walrus, request, digest).await
        }
        Method::GET | Method::HEAD => {
            only(peer, &[Role::NodeController, Role::CloudController, Role::StorageController])?;
            read(walrus, &request, digest).await
        }
        Method::DELETE => {
            only(peer, &[Role::CloudController])?;
            remove(walrus, digest).await
        }
        _ => Err(TierError::new(TierErrorKind::Unsupported, "blobs are put, got, and deleted")),
    }
}

/// Keeps the body when it has the digest; twice is once.
async fn store(walrus: &Walrus, request: Request<Incoming>, digest: &str) -> Result<Response<Body>, TierError> {
    let (parts, incoming) = request.into_parts();
    let stored = async {
        let mut payload = Payload::new(Arrival::new(incoming, &parts.headers, walrus.pace), None, &parts.headers)?;
        let mut intake = walrus.intake(true, &[])?;
        while let Some(bytes) = payload.next().await? {
            intake.push(bytes).await?;
        }
        if payload.length.is_some_and(|length| length != intake.size()) {
            return Err(Error::Cut("fewer bytes than announced".into()));
        }
        let received = intake.finish().await?;
        if received.sha256.map(hex::encode).as_deref() != Some(digest) {
            return Err(crate::error::refuse::bad_digest("the bytes do not have the digest they are named by"));
        }
        let (keeping, digest, size) = (received.content.keeping(), digest.to_owned(), received.size);
        let (place, now) = (received.content.place(), walrus.clock.now_ms());
        let made = walrus.store.write("keep a blob", move |tx| {
            if find(tx, &digest)?.is_some() {
                return Ok(false);
            }
            keeping.keep(tx)?;
            tx.execute(
                "INSERT INTO digest_blob (digest, content, place, size, created) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![digest, keeping.id, place.number(), size, now],
            )?;
            Ok::<_, Error>(true)
        });
        if made.await? {
            Content::keep(received.content);
        }
        Ok(())
    };
    stored.await.map_err(told)?;
    Ok(json_response(StatusCode::OK, "{}".into()))
}

async fn read(walrus: &Walrus, request: &Request<Incoming>, digest: &str) -> Result<Response<Body>, TierError> {
    let (wanted, pins) = (digest.to_owned(), walrus.pins.clone());
    let found = walrus
        .store
        .read("open a blob", move |tx| {
            let Some(blob) = find(tx, &wanted)? else { return Ok(None) };
            let pin = pins.pin(&blob.content);
            let piece = match blob.place {
                Place::Row => Piece::Bytes(fetch(tx, &blob.content)?),
                _ => Piece::blob(&blob.content, blob.size, None)?,
            };
            Ok::<_, Error>(Some((blob, piece, pin)))
        })
        .await
        .map_err(told)?;
    let Some((blob, piece, pin)) = found else {
        return Err(TierError::not_found(format!("no blob {digest}")));
    };
    let span = spanned(request, blob.size)?;
    let source = Source::cut(walrus.blobs.clone(), [piece], span.begin, span.length, Some(pin));
    answer(walrus, request, source, span, blob.size, (&format!("blob {digest}"), &blob.content), digest).await
}

async fn remove(walrus: &Walrus, digest: &str) -> Result<Response<Body>, TierError> {
    let (digest, now) = (digest.to_owned(), walrus.clock.now_ms());
    let removed = walrus.store.write("forget a blob", move |tx| {
        if let Some(there) = find(tx, &digest)? {
            tx.execute("DELETE FROM digest_blob WHERE digest = ?1", params![digest])?;
            blob::forget(tx, &there.content, there.place, now)?;
        }
        Ok::<_, Error>(())
    });
    removed.await.map_err(told)?;
    Ok(json_response(StatusCode::OK, "{}".into()))
}

/// `BUCKET/KEY?account=ACCOUNT`, with that account's rights and those of `aws-exec-read`.
async fn of_object(walrus: &Walrus, request: Request<Incoming>, peer: &Peer) -> Result<Response<Body>, TierError> {
    only(peer, &[Role::CloudController])?;
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Err(TierError::new(TierErrorKind::Unsupported, "objects are only read by tiers"));
    }
    let path = request.uri().path().strip_prefix(OBJECTS_PREFIX).unwrap_or_default();
    let (bucket, key) = path.split_once('/').ok_or_else(|| TierError::refused("the path is BUCKET/KEY"))?;
    let (bucket, key) = (decode(bucket, Plus::IsPlus).map_err(told)?, decode(key, Plus::IsPlus).map_err(told)?);
    let query = request.uri().query().unwrap_or_default();
    let account = query.split('&').find_map(|pair| pair.strip_prefix("account=")).unwrap_or_default();
    let account =
        walrus.holders.by_account(account).ok_or_else(|| TierError::not_found(format!("no account {account:?}")))?;
    let principal = Principal::importer(account);
    let wanted = Wanted { bucket: bucket.clone(), key: key.clone(), version: None };
    let opened = open(walrus, &principal, Action::GetObject, wanted, Keys::own(walrus), WithBytes::Yes).await;
    let (_, object, reading) = opened.map_err(told)?;
    let Some(Reading { pieces, pin, .. }) = reading else { return Err(TierError::internal("nothing to read")) };
    let span = spanned(&request, object.size)?;
    let source = Source::cut(walrus.blobs.clone(), pieces, span.begin, span.length, Some(pin));
    let name = format!("/{bucket}/{key}");
    answer(walrus, &request, source, span, object.size, (&name, &object.content), &object.etag).await
}

fn spanned(request: &Request<Incoming>, size: u64) -> Result<Span, TierError> {
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    match range::parse(range, size) {
        Ranged::Whole => Ok(Span { begin: 0, length: size }),
        Ranged::Part(span) => Ok(span),
        Ranged::Unsatisfiable => Err(TierError::refused(format!("the range is beyond the {size} bytes there are"))),
    }
}

async fn answer(
    walrus: &Walrus,
    request: &Request<Incoming>,
    source: Source,
    span: Span,
    size: u64,
    (name, content): (&str, &BlobId),
    etag: &str,
) -> Result<Response<Body>, TierError> {
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, span.length)
        .header(header::ETAG, quoted(etag));
    if request.headers().contains_key(header::RANGE) && span.length < size {
        let last = (span.begin + span.length).saturating_sub(1);
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{last}/{size}", span.begin));
    }
    let body = if request.method() == Method::HEAD {
        body::empty()
    } else {
        body::stream(outflow(source, walrus.damage(name, content)).await.map_err(told)?)
    };
    response.body(body).map_err(|e| TierError::internal(e.to_string()))
}
