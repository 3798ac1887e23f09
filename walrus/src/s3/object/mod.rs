//! Objects: a row per version that says everything about it but its bytes, and where those are.
//!
//! A write makes its bytes durable first and then changes the row, in one transaction with everything the row's old
//! content needs to be swept. So readers see the old object or the new one, whole, and a crash leaves one of the two.

pub mod acl;
pub mod copy;
pub mod delete;
pub mod get;
pub mod list;
pub mod lock;
pub mod meta;
pub mod post;
pub mod put;
pub mod tagging;
pub mod version;
pub mod versions;

use http::Response;
use mallee_aws::AwsError;
use mallee_service::Body;
use mallee_store::{Row, Tx, params};

pub use version::VersionId;

use lock::Lock;

use super::{
    bucket::{self, Bucket, Versioning, settings::Encryption},
    condition::Facts,
    encryption::{Seal, Wish},
    set,
};
use crate::{
    Error, Walrus,
    access::{Action, ObjectAccess, allow},
    blob::{self, BlobId, Place},
    call::Call,
    checksum::Checksum,
    error::refuse,
    principal::{Acl, Principal},
};

/// Rows of objects refer to their bucket, so the store itself refuses to forget a bucket that has objects.
pub const TABLES: &str = "
    CREATE TABLE object (
        bucket BIGINT NOT NULL REFERENCES bucket (id),
        key TEXT NOT NULL,
        modified BIGINT NOT NULL,
        size BIGINT NOT NULL,
        etag TEXT NOT NULL,
        storage_class TEXT NOT NULL,
        owner TEXT NOT NULL,
        checksum TEXT NOT NULL,
        content TEXT NOT NULL,
        place BIGINT NOT NULL,
        headers TEXT NOT NULL,
        tags TEXT NOT NULL,
        acl TEXT NOT NULL,
        PRIMARY KEY (bucket, key)
    );
    CREATE INDEX object_by_content ON object (content);
";

#[derive(Debug, Clone)]
pub struct Object {
    pub key: String,
    pub modified: i64,
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    pub storage_class: String,
    /// Canonical id.
    pub owner: String,
    pub checksum: Option<Checksum>,
    pub content: BlobId,
    pub place: Place,
    /// What came as headers and goes out as such: `content-type`, `x-amz-meta-*` and the like.
    pub headers: Vec<(String, String)>,
    pub tags: Vec<(String, String)>,
    pub acl: Acl,
    pub version: VersionId,
    /// Its place among the versions of its key; see [`version`].
    pub rank: i64,
    pub lock: Lock,
    /// How its data key is kept, where it is encrypted.
    pub seal: Option<Seal>,
}

const COLUMNS: &str = "key, modified, size, etag, storage_class, owner, checksum, content, place, headers, tags, acl, version, rank, lock, seal";

impl Object {
    /// A row that says that there is nothing at the key.
    pub fn marker(key: &str, owner: &str, now: i64) -> Self {
        Self {
            key: key.into(),
            modified: now,
            size: 0,
            etag: String::new(),
            storage_class: String::new(),
            owner: owner.into(),
            checksum: None,
            content: BlobId::none(),
            place: Place::Nowhere,
            headers: Vec::new(),
            tags: Vec::new(),
            acl: Acl::private(owner),
            version: VersionId::null(),
            rank: 0,
            lock: Lock::default(),
            seal: None,
        }
    }

    pub fn is_marker(&self) -> bool {
        self.place == Place::Nowhere
    }

    /// What access to it depends on.
    pub fn access(&self) -> ObjectAccess<'_> {
        ObjectAccess { owner: &self.owner, acl: &self.acl, tags: &self.tags }
    }

    /// What its deletion is judged by.
    pub fn facts(&self) -> Facts<'_> {
        Facts { etag: &self.etag, modified: self.modified_seconds(), size: self.size }
    }

    /// In whole seconds, as conditions compare it.
    pub fn modified_seconds(&self) -> i64 {
        self.modified.div_euclid(1000)
    }

    /// N of an ETag that ends in `-N`.
    pub fn parts(&self) -> Option<u32> {
        self.etag.rsplit_once('-').and_then(|(_, n)| n.parse().ok()).filter(|_| self.place == Place::Parts)
    }
}

/// A row as the store has it.
struct Raw {
    object: Object,
    place: i64,
    checksum: String,
    headers: String,
    tags: String,
    acl: String,
    lock: String,
    seal: String,
}

fn raw(row: &Row<'_>) -> Result<Raw, mallee_store::Error> {
    let object = Object {
        key: row.get(0)?,
        modified: row.get(1)?,
        size: row.get(2)?,
        etag: row.get(3)?,
        storage_class: row.get(4)?,
        owner: row.get(5)?,
        checksum: None,
        content: row.get(7)?,
        place: Place::Row,
        headers: Vec::new(),
        tags: Vec::new(),
        acl: Acl::default(),
        version: row.get(12)?,
        rank: row.get(13)?,
        lock: Lock::default(),
        seal: None,
    };
    Ok(Raw {
        object,
        checksum: row.get(6)?,
        place: row.get(8)?,
        headers: row.get(9)?,
        tags: row.get(10)?,
        acl: row.get(11)?,
        lock: row.get(14)?,
        seal: row.get(15)?,
    })
}

impl Raw {
    fn read(self) -> Result<Object, Error> {
        let mut object = self.object;
        object.place = Place::from_number(self.place)?;
        object.checksum = from_json(&self.checksum)?;
        object.headers = from_json(&self.headers)?;
        object.tags = from_json(&self.tags)?;
        object.acl = super::acl::from_text(&self.acl, &object.owner)?;
        object.lock = from_json(&self.lock)?;
        object.seal = from_json(&self.seal)?;
        Ok(object)
    }
}

/// Empty columns are empty texts, which most are.
pub fn from_json<T: serde::de::DeserializeOwned + Default>(text: &str) -> Result<T, Error> {
    if text.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_str(text).map_err(|e| Error::Internal(format!("a column of an object: {e}")))
}

pub fn to_json<T: serde::Serialize + Default + PartialEq>(value: &T) -> Result<String, Error> {
    if *value == T::default() {
        return Ok(String::new());
    }
    serde_json::to_string(value).map_err(|e| Error::Internal(e.to_string()))
}

/// What a request is about.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub bucket: String,
    pub key: String,
    pub version: Option<VersionId>,
}

impl Wanted {
    pub fn of(call: &Call) -> Result<Self, Error> {
        let version = VersionId::asked(call)?;
        Ok(Self { bucket: call.target.bucket.clone(), key: call.target.key.clone(), version })
    }
}

/// The object that is wanted, once the principal may do `action` to it. Who may not list the bucket is not told whether
/// there is anything.
pub fn opened(
    tx: &mut Tx<'_>,
    principal: &Principal,
    action: Action,
    bucket: &Bucket,
    wanted: &Wanted,
) -> Result<Object, Error> {
    let (key, version) = (wanted.key.as_str(), wanted.version.as_ref());
    let (object, action) = match version {
        None => (version::current(tx, bucket.id, key)?, action),
        Some(version) => (version::find(tx, bucket.id, key, version)?, action.of_version()),
    };
    let allowed = allow(principal, action, bucket.key(key, object.as_ref().map(Object::access)));
    match (object, version) {
        (Some(_), _) if !allowed => Err(refuse::access_denied()),
        (Some(object), _) if object.is_marker() => {
            let refusal =
                AwsError::new("MethodNotAllowed", 405, "The specified method is not allowed against this resource.")
                    .with_field("Method", "GET")
                    .with_field("ResourceType", "DeleteMarker");
            Err(Error::Hidden { refusal, version: object.version.as_str().into(), modified: Some(object.modified) })
        }
        (Some(object), _) => Ok(object),
        (None, version) => {
            let listing = if version.is_some() { Action::ListBucketVersions } else { Action::ListBucket };
            if !allow(principal, listing, bucket.resource()) {
                return Err(refuse::access_denied());
            }
            match version {
                Some(version) => Err(refuse::no_such_version(key, version.as_str())),
                None => Err(hidden(tx, bucket, key)?),
            }
        }
    }
}

/// That there is no such key, and the marker that says so, where there is one.
fn hidden(tx: &mut Tx<'_>, bucket: &Bucket, key: &str) -> Result<Error, Error> {
    if bucket.versioning == Versioning::Never {
        return Ok(refuse::no_such_key(key));
    }
    Ok(match (version::newest_old(tx, bucket.id, key)?, refuse::no_such_key(key)) {
        (Some(marker), Error::Refused(refusal)) if marker.is_marker() => {
            Error::Hidden { refusal, version: marker.version.as_str().into(), modified: None }
        }
        (_, refusal) => refusal,
    })
}

/// The bucket, once the principal may put an object into it or take one away.
pub async fn writable(walrus: &Walrus, call: &Call, action: Action) -> Result<Bucket, Error> {
    let (name, known) = (call.target.bucket.clone(), walrus.known_policies.clone());
    let bucket = walrus.store.look_up("find a bucket", move |tx| bucket::find_known(tx, &known, &name)).await?;
    bucket::check_expected_owner(call, &bucket)?;
    if !allow(&call.principal, action, bucket.key(&call.target.key, None)) {
        return Err(refuse::access_denied());
    }
    Ok(bucket)
}

/// How what is put is encrypted: as the request says, or else the bucket.
pub fn encryption(call: &Call, bucket: &Bucket) -> Result<Wish, Error> {
    let by_default = match bucket.settings.encryption {
        Some(Encryption::Aes256) => Wish::S3,
        None => Wish::Plain,
    };
    Wish::of(call, by_default)
}

/// A row has stopped referring to this content; copies and other versions may go on.
fn let_go(tx: &mut Tx<'_>, content: &BlobId, place: Place, now: i64) -> Result<(), Error> {
    let elsewhere = tx.query(
        "SELECT 1 FROM object WHERE content = ?1 UNION ALL SELECT 1 FROM old_version WHERE content = ?1 LIMIT 1",
        params![content],
        |row| row.get::<i64>(0),
    )?;
    if elsewhere.is_empty() { blob::forget(tx, content, place, now) } else { Ok(()) }
}

/// Names the version a write has made, where it has made one: that is not so while versioning is suspended.
pub fn show_new_version(response: &mut Response<Body>, bucket: Versioning, version: &VersionId) -> Result<(), Error> {
    match bucket {
        Versioning::Enabled => set(response, "x-amz-version-id", version.as_str()),
        Versioning::Never | Versioning::Suspended => Ok(()),
    }
}

/// Names the version in the answer, where the bucket has any.
pub fn show_version(response: &mut Response<Body>, bucket: Versioning, version: &VersionId) -> Result<(), Error> {
    if bucket == Versioning::Never && version.is_null() {
        return Ok(());
    }
    set(response, "x-amz-version-id", version.as_str())
}
