//! PutObject.

use http::{Response, StatusCode};
use mallee_service::Body;

use super::{
    Object, VersionId, encryption,
    lock::{self, Lock},
    meta, show_new_version,
    version::{self, replace},
    writable,
};
use crate::{
    Error, Walrus,
    access::{Action, allow},
    blob::{DataKey, Intake, Received},
    call::{Call, Payload, Promised},
    checksum::{Algorithm, Checksum, Kind},
    error::refuse,
    principal::{Acl, Principal},
    s3::{
        acl,
        bucket::{
            Bucket, Versioning, lifecycle,
            notification::{self, Cause},
            ownership,
        },
        condition::Conditions,
        done,
        encryption::{self as sse, Seal, Wish},
        quoted, set,
    },
};

/// The largest object one request can bring, and the largest part.
pub const LARGEST: u64 = 5 << 30;

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = writable(walrus, call, Action::PutObject).await?;
    meta::refuse_unsupported(call)?;
    if let Some(number) = call.query.get("partNumber") {
        return Err(refuse::argument(
            "partNumber",
            number,
            "This operation does not accept partNumber without uploadId",
        ));
    }
    call.payload.must_be_announced()?;
    let conditions = Conditions::of(call, "")?;
    let owner = owner_of_new(&call.principal, &bucket);
    let tags = meta::tags(call)?;
    let draft = Draft::of(walrus, call, &bucket, owner, tags)?;
    check_early(walrus, &bucket, &call.target.key, &conditions).await?;
    let promised = Promised::of(call)?;
    let algorithm = promised.algorithm.unwrap_or(Algorithm::Crc64Nvme);
    let received = receive(walrus, &mut call.payload, &promised, &[algorithm], draft.data_key()).await?;
    let wish = draft.wish.clone();
    let cause = Cause::of(walrus, call, "s3:ObjectCreated:Put");
    let object = draft.object(&call.target.key, call.now, &received)?;
    let (object, versioning) = commit(walrus, bucket.clone(), object, received, conditions, cause).await?;
    let mut response = stored(&object)?;
    wish.show(&mut response)?;
    show_new_version(&mut response, versioning, &object.version)?;
    lifecycle::show_expiration(walrus, &mut response, &bucket, &object).await?;
    Ok(response)
}

/// Who owns what this principal puts. What nobody puts is the bucket owner's.
pub fn owner_of_new(principal: &Principal, bucket: &Bucket) -> String {
    let writer = principal.account().map(|account| account.canonical_id.as_str());
    let canned = principal.context.values("s3:x-amz-acl").first();
    ownership::owner_of_new(bucket, writer, canned.map(String::as_str))
}

/// The list what is put gets: the one that was asked for, if it may be, or its owner's alone.
pub fn acl_of_new(walrus: &Walrus, call: &Call, bucket: &Bucket, owner: &str) -> Result<Acl, Error> {
    let Some(acl) = acl::asked(walrus, call, owner, &bucket.owner)? else { return Ok(Acl::private(owner)) };
    ownership::check_acl_of_new(call, bucket, &acl)?;
    check_also(call, bucket, Action::PutObjectAcl)?;
    Ok(acl)
}

/// Who may put an object may not thereby say who else has it, or what policies take it for.
pub fn check_also(call: &Call, bucket: &Bucket, action: Action) -> Result<(), Error> {
    if allow(&call.principal, action, bucket.key(&call.target.key, None)) {
        Ok(())
    } else {
        Err(refuse::access_denied())
    }
}

/// What the request says about the object before its bytes have come.
pub struct Draft {
    pub headers: Vec<(String, String)>,
    pub tags: Vec<(String, String)>,
    pub storage_class: String,
    pub owner: String,
    pub acl: Acl,
    pub lock: Lock,
    pub wish: Wish,
    sealed: Option<(DataKey, Seal)>,
}

impl Draft {
    pub fn of(
        walrus: &Walrus,
        call: &Call,
        bucket: &Bucket,
        owner: String,
        tags: Vec<(String, String)>,
    ) -> Result<Self, Error> {
        let wish = encryption(call, bucket)?;
        if !tags.is_empty() {
            check_also(call, bucket, Action::PutObjectTagging)?;
        }
        Ok(Self {
            headers: meta::headers(call)?,
            tags,
            storage_class: meta::storage_class(call)?.unwrap_or_else(|| meta::STANDARD.into()),
            acl: acl_of_new(walrus, call, bucket, &owner)?,
            lock: lock::asked(call, bucket)?,
            sealed: wish.key(walrus)?,
            wish,
            owner,
        })
    }

    pub fn data_key(&self) -> Option<DataKey> {
        self.sealed.as_ref().map(|(key, _)| key.clone())
    }

    pub fn object(self, key: &str, now: i64, received: &Received) -> Result<Object, Error> {
        Ok(Object {
            key: key.into(),
            modified: now,
            size: received.size,
            etag: etag(received, self.sealed.as_ref().map(|(key, seal)| (key, seal)))?,
            storage_class: self.storage_class,
            owner: self.owner,
            checksum: received.checksums.first().map(|(a, sum)| Checksum::full(*a, sum)),
            content: received.content.id().clone(),
            place: received.content.place(),
            headers: self.headers,
            tags: self.tags,
            acl: self.acl,
            version: VersionId::null(),
            rank: 0,
            lock: self.lock,
            seal: self.sealed.map(|(_, seal)| seal),
        })
    }
}

/// The MD5, but for what is under a customer's key: there it would tell what the bytes are.
pub fn etag(received: &Received, sealed: Option<(&DataKey, &Seal)>) -> Result<String, Error> {
    match sealed {
        Some((key, seal)) if seal.kind == sse::Kind::Customer => Ok(hex::encode(key.mark(&received.md5)?)),
        _ => Ok(hex::encode(received.md5)),
    }
}

/// A condition that already fails spares the client its upload. What counts is the check when the row is written.
async fn check_early(walrus: &Walrus, bucket: &Bucket, key: &str, conditions: &Conditions) -> Result<(), Error> {
    if conditions.if_match.is_none() && conditions.if_none_match.is_none() {
        return Ok(());
    }
    let (id, key, conditions) = (bucket.id, key.to_owned(), conditions.clone());
    walrus
        .store
        .look_up("check a condition", move |tx| {
            let there = version::there(tx, id, &key)?;
            conditions.check_write(&key, there.as_ref().map(|there| there.etag.as_str()))
        })
        .await
}

/// Takes the body in and checks everything that was promised about it. What is refused leaves nothing.
pub async fn receive(
    walrus: &Walrus,
    payload: &mut Payload,
    promised: &Promised,
    checksums: &[Algorithm],
    key: Option<DataKey>,
) -> Result<Received, Error> {
    let too_large = |size: u64| {
        Error::Refused(
            mallee_aws::AwsError::bad_request(
                "EntityTooLarge",
                "Your proposed upload exceeds the maximum allowed object size.",
            )
            .with_field("ProposedSize", size.to_string())
            .with_field("MaxSizeAllowed", LARGEST.to_string()),
        )
    };
    if let Some(size) = payload.length.filter(|size| *size > LARGEST) {
        return Err(too_large(size));
    }
    let mut intake = walrus.intake(payload.hash_is_signed(), checksums)?.sealed(key);
    while let Some(bytes) = payload.next().await? {
        intake.push(bytes).await?;
        if intake.size() > LARGEST {
            return Err(too_large(intake.size()));
        }
    }
    verify(intake, payload, promised).await
}

async fn verify(intake: Intake, payload: &Payload, promised: &Promised) -> Result<Received, Error> {
    let received = intake.finish().await?;
    if payload.length.is_some_and(|length| length != received.size) {
        return Err(Error::Cut("fewer bytes than announced".into()));
    }
    payload.check_sha256(received.sha256)?;
    promised.check(&received.md5, &received.checksums, &payload.trailers)?;
    Ok(received)
}

/// Makes the row; from here on the object is there, and has its version.
pub async fn commit(
    walrus: &Walrus,
    bucket: Bucket,
    object: Object,
    received: Received,
    conditions: Conditions,
    cause: Cause,
) -> Result<(Object, Versioning), Error> {
    let keeping = received.content.keeping();
    let told = bucket.clone();
    let kept = walrus
        .store
        .write("put an object", move |tx| {
            let mut object = object.clone();
            keeping.keep(tx)?;
            let versioning = replace(tx, &bucket, &mut object, &conditions)?;
            notification::created(tx, &bucket, &cause, &object)?;
            Ok((object, versioning))
        })
        .await
        .map_err(conflict)?;
    received.content.keep();
    notification::wake(&walrus.courier, &told);
    Ok(kept)
}

/// Two writers under a condition that could not be told apart: the client asks again.
pub fn conflict(e: Error) -> Error {
    match e {
        Error::Store(mallee_store::Error::Busy { .. }) => refuse::coded(
            "ConditionalRequestConflict",
            409,
            "The conditional request cannot succeed due to a conflicting operation against this resource.",
        ),
        e => e,
    }
}

/// The answer to whatever stored an object.
fn stored(object: &Object) -> Result<Response<Body>, Error> {
    let mut response = done(StatusCode::OK);
    set(&mut response, "etag", &quoted(&object.etag))?;
    if let Some(checksum) = &object.checksum {
        show_checksum(&mut response, checksum)?;
    }
    Ok(response)
}

pub fn show_checksum(response: &mut Response<Body>, checksum: &Checksum) -> Result<(), Error> {
    set(response, checksum.algorithm.header(), &checksum.value)?;
    let kind: Kind = checksum.kind;
    set(response, "x-amz-checksum-type", kind.name())
}
