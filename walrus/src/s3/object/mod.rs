//! Objects: a row per key that says everything about the object but its bytes, and where those are.
//!
//! A write makes its bytes durable first and then changes the row, in one transaction with everything the row's old
//! content needs to be swept. So readers see the old object or the new one, whole, and a crash leaves one of the two.

pub mod acl;
pub mod copy;
pub mod delete;
pub mod get;
pub mod list;
pub mod meta;
pub mod post;
pub mod put;
pub mod tagging;

use mallee_store::{Row, Tx, params};

use super::{
    bucket::{self, Bucket, BucketId},
    condition::Conditions,
};
use crate::{
    Error, Walrus,
    blob::{self, BlobId, Place},
    call::Call,
    checksum::Checksum,
    error::refuse,
    principal::{Acl, Action, Principal, Resource, allow},
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
}

const COLUMNS: &str =
    "key, modified, size, etag, storage_class, owner, checksum, content, place, headers, tags, acl";

impl Object {
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
    };
    Ok(Raw {
        object,
        checksum: row.get(6)?,
        place: row.get(8)?,
        headers: row.get(9)?,
        tags: row.get(10)?,
        acl: row.get(11)?,
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

pub fn find(tx: &mut Tx<'_>, bucket: BucketId, key: &str) -> Result<Option<Object>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM object WHERE bucket = ?1 AND key = ?2");
    tx.query_opt(&sql, params![bucket, key], raw)?.map(Raw::read).transpose()
}

/// What is at the key, once the principal may do `action` to it. Who may not list the bucket is not told whether there
/// is anything.
pub fn opened(tx: &mut Tx<'_>, principal: &Principal, action: Action, bucket: &Bucket, key: &str) -> Result<Object, Error> {
    let object = find(tx, bucket.id, key)?;
    let resource = Resource::Key {
        bucket_owner: &bucket.owner,
        bucket_acl: &bucket.acl,
        object: object.as_ref().map(|object| (object.owner.as_str(), &object.acl)),
    };
    let allowed = allow(principal, action, resource);
    match object {
        Some(object) if allowed => Ok(object),
        Some(_) => Err(refuse::access_denied()),
        None if allow(principal, Action::ListBucket, Resource::Bucket { owner: &bucket.owner, acl: &bucket.acl }) => {
            Err(refuse::no_such_key(key))
        }
        None => Err(refuse::access_denied()),
    }
}

/// The bucket, once the principal may put an object into it or take one away.
pub async fn writable(walrus: &Walrus, call: &Call, action: Action) -> Result<Bucket, Error> {
    let name = call.target.bucket.clone();
    let bucket = walrus.store.read("find a bucket", move |tx| bucket::find(tx, &name)).await?;
    bucket::check_expected_owner(call, &bucket)?;
    let resource = Resource::Key { bucket_owner: &bucket.owner, bucket_acl: &bucket.acl, object: None };
    if !allow(&call.principal, action, resource) {
        return Err(refuse::access_denied());
    }
    Ok(bucket)
}

/// Puts a row in place of what is there, unless the conditions say no: the one way an object comes to be. Its content
/// must be kept in the same transaction.
pub fn replace(tx: &mut Tx<'_>, bucket: &Bucket, object: &Object, conditions: &Conditions) -> Result<(), Error> {
    let there = content_at(tx, bucket.id, &object.key)?;
    conditions.check_write(&object.key, there.as_ref().map(|there| there.etag.as_str()))?;
    let written = tx.execute(
        "INSERT INTO object
            (bucket, key, modified, size, etag, storage_class, owner, checksum, content, place, headers, tags, acl)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         ON CONFLICT (bucket, key) DO UPDATE SET
            modified = ?3, size = ?4, etag = ?5, storage_class = ?6, owner = ?7, checksum = ?8, content = ?9, place = ?10,
            headers = ?11, tags = ?12, acl = ?13",
        params![
            bucket.id,
            object.key,
            object.modified,
            object.size,
            object.etag,
            object.storage_class,
            object.owner,
            to_json(&object.checksum)?,
            object.content,
            object.place.number(),
            to_json(&object.headers)?,
            to_json(&object.tags)?,
            super::acl::to_text(&object.acl, &object.owner)?
        ],
    );
    match written {
        // The bucket was deleted since it was opened.
        Err(mallee_store::Error::Reference { .. }) => return Err(refuse::no_such_bucket(&bucket.name)),
        written => written?,
    };
    match there {
        Some(there) => let_go(tx, &there.content, there.place, object.modified),
        None => Ok(()),
    }
}

struct There {
    etag: String,
    content: BlobId,
    place: Place,
}

fn content_at(tx: &mut Tx<'_>, bucket: BucketId, key: &str) -> Result<Option<There>, Error> {
    let row = tx.query_opt(
        "SELECT etag, content, place FROM object WHERE bucket = ?1 AND key = ?2",
        params![bucket, key],
        |row| Ok((row.get::<String>(0)?, row.get::<BlobId>(1)?, row.get::<i64>(2)?)),
    )?;
    row.map(|(etag, content, place)| Ok(There { etag, content, place: Place::from_number(place)? })).transpose()
}

/// Takes the object away; whether there was one.
pub fn remove(tx: &mut Tx<'_>, bucket: BucketId, key: &str, now: i64) -> Result<bool, Error> {
    let Some(there) = content_at(tx, bucket, key)? else { return Ok(false) };
    tx.execute("DELETE FROM object WHERE bucket = ?1 AND key = ?2", params![bucket, key])?;
    let_go(tx, &there.content, there.place, now)?;
    Ok(true)
}

/// An object has stopped referring to this content; copies may go on.
fn let_go(tx: &mut Tx<'_>, content: &BlobId, place: Place, now: i64) -> Result<(), Error> {
    let elsewhere =
        tx.query("SELECT 1 FROM object WHERE content = ?1 LIMIT 1", params![content], |row| row.get::<i64>(0))?;
    if elsewhere.is_empty() { blob::forget(tx, content, place, now) } else { Ok(()) }
}

/// Refuses a version that cannot be: nothing here is versioned, so everything's version is `null`.
pub fn check_version(call: &Call) -> Result<(), Error> {
    match call.query.get("versionId") {
        None | Some("null") => Ok(()),
        Some(version) => Err(refuse::no_such_version(&call.target.key, version)),
    }
}
