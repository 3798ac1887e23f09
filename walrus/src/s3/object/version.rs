//! Versions of a key, and how they take each other's place.
//!
//! What a key shows now is its row in `object`. Everything else of the key is in `old_version`: versions something came
//! after, and delete markers, also one that is what the key shows now (nothing). So a listing of keys visits what it
//! shows, however many versions and markers there are.
//!
//! Rows of a key are ordered by `rank`, which counts down: the newest has the smallest. It is taken from the clock, but
//! is always smaller than that of the row before, so a clock that is set back changes no order. A version's id begins
//! with the rank. `since` is when a row of `old_version` stopped being what the key shows; 0: it has not, so it is a
//! marker.

use mallee_store::{FromValue, ToValue, Tx, Value, params};

use super::{
    COLUMNS, Object, let_go,
    lock::{Bypass, Lock},
    raw, to_json,
};
use crate::{
    Error,
    blob::{BlobId, Place},
    call::Call,
    error::refuse,
    s3::{
        acl,
        bucket::{Bucket, BucketId, Versioning, versioning},
        condition::{Conditions, Facts},
    },
};

pub const TABLES: &str = "
    ALTER TABLE object ADD COLUMN version TEXT NOT NULL DEFAULT '';
    ALTER TABLE object ADD COLUMN rank BIGINT NOT NULL DEFAULT 0;
    ALTER TABLE object ADD COLUMN lock TEXT NOT NULL DEFAULT '';
    ALTER TABLE object ADD COLUMN seal TEXT NOT NULL DEFAULT '';
    UPDATE object SET rank = 9223372036854775807 - modified * 1000;
    CREATE TABLE old_version (
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
        version TEXT NOT NULL,
        rank BIGINT NOT NULL,
        lock TEXT NOT NULL,
        seal TEXT NOT NULL,
        since BIGINT NOT NULL,
        PRIMARY KEY (bucket, key, rank)
    );
    CREATE UNIQUE INDEX old_version_by_id ON old_version (bucket, key, version);
    CREATE INDEX old_version_by_content ON old_version (content);
";

/// A version's name; the empty one is shown as `null`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionId(String);

impl VersionId {
    pub const fn null() -> Self {
        Self(String::new())
    }

    /// `salt` is anything of the version's own that nobody can guess.
    fn new(rank: i64, salt: &BlobId) -> Self {
        let salt = salt.as_str();
        Self(format!("{rank:016x}{}", salt.get(salt.len().saturating_sub(16)..).unwrap_or(salt)))
    }

    /// One that came over the wire.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text == "null" {
            return Ok(Self::null());
        }
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 32 && text.bytes().all(hex) {
            return Ok(Self(text.into()));
        }
        Err(refuse::argument("versionId", text, "Invalid version id specified"))
    }

    /// The one a request names.
    pub fn asked(call: &Call) -> Result<Option<Self>, Error> {
        match call.query.get("versionId") {
            None => Ok(None),
            Some("") => Err(refuse::argument("versionId", "", "Version id cannot be the empty string")),
            Some(text) => Self::parse(text).map(Some),
        }
    }

    pub fn is_null(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_str(&self) -> &str {
        if self.0.is_empty() { "null" } else { &self.0 }
    }

    /// The rank it was made with.
    pub fn rank(&self) -> Option<i64> {
        i64::from_str_radix(self.0.get(..16)?, 16).ok()
    }
}

impl ToValue for VersionId {
    fn to_value(&self) -> Value<'_> {
        self.0.to_value()
    }
}

impl FromValue for VersionId {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        String::from_value(value).map(Self)
    }
}

/// What the key shows now.
pub fn current(tx: &mut Tx<'_>, bucket: BucketId, key: &str) -> Result<Option<Object>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM object WHERE bucket = ?1 AND key = ?2");
    tx.query_opt(&sql, params![bucket, key], raw)?.map(super::Raw::read).transpose()
}

/// One version, or marker.
pub fn find(tx: &mut Tx<'_>, bucket: BucketId, key: &str, version: &VersionId) -> Result<Option<Object>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM object WHERE bucket = ?1 AND key = ?2 AND version = ?3");
    if let Some(row) = tx.query_opt(&sql, params![bucket, key, version], raw)? {
        return row.read().map(Some);
    }
    let sql = format!("SELECT {COLUMNS} FROM old_version WHERE bucket = ?1 AND key = ?2 AND version = ?3");
    tx.query_opt(&sql, params![bucket, key, version], raw)?.map(super::Raw::read).transpose()
}

/// The newest row of the key that is no object: the marker that hides it, where `object` has no row.
pub fn newest_old(tx: &mut Tx<'_>, bucket: BucketId, key: &str) -> Result<Option<Object>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM old_version WHERE bucket = ?1 AND key = ?2 ORDER BY rank LIMIT 1");
    tx.query_opt(&sql, params![bucket, key], raw)?.map(super::Raw::read).transpose()
}

/// What a write needs to know of the row it replaces.
pub struct There {
    pub etag: String,
    pub content: BlobId,
    pub place: Place,
    pub version: VersionId,
    pub rank: i64,
    pub modified: i64,
    pub size: u64,
    pub lock: Lock,
}

impl There {
    pub fn facts(&self) -> Facts<'_> {
        Facts { etag: &self.etag, modified: self.modified.div_euclid(1000), size: self.size }
    }
}

/// A content that a row stopped referring to. It is let go once all rows of the transaction are written: the new one may
/// refer to it too.
type Loosened = Vec<(BlobId, Place)>;

fn let_all_go(tx: &mut Tx<'_>, loosened: &Loosened, now: i64) -> Result<(), Error> {
    loosened.iter().try_for_each(|(content, place)| let_go(tx, content, *place, now))
}

/// The row a write would replace.
pub fn there(tx: &mut Tx<'_>, bucket: BucketId, key: &str) -> Result<Option<There>, Error> {
    let row = tx.query_opt(
        "SELECT etag, content, place, version, rank, modified, size, lock FROM object WHERE bucket = ?1 AND key = ?2",
        params![bucket, key],
        |row| {
            let there = There {
                etag: row.get(0)?,
                content: row.get(1)?,
                place: Place::Row,
                version: row.get(3)?,
                rank: row.get(4)?,
                modified: row.get(5)?,
                size: row.get(6)?,
                lock: Lock::default(),
            };
            Ok((there, row.get::<i64>(2)?, row.get::<String>(7)?))
        },
    )?;
    row.map(|(there, place, lock)| {
        Ok(There { place: Place::from_number(place)?, lock: super::from_json(&lock)?, ..there })
    })
    .transpose()
}

/// Puts a version in place of what the key shows, unless the conditions say no: the one way an object comes to be. Its
/// content must be kept in the same transaction. The object gets its version; it is none where the bucket never had any.
pub fn replace(
    tx: &mut Tx<'_>,
    bucket: &Bucket,
    object: &mut Object,
    conditions: &Conditions,
) -> Result<Versioning, Error> {
    let versioning = versioning::now(tx, bucket)?;
    let there = there(tx, bucket.id, &object.key)?;
    conditions.check_write(&object.key, there.as_ref().map(|there| there.etag.as_str()))?;
    let loosened = make_room(tx, bucket.id, versioning, object, there.as_ref())?;
    write_current(tx, bucket, object)?;
    let_all_go(tx, &loosened, object.modified)?;
    Ok(versioning)
}

/// Settles the new row's version and moves what it comes after out of its way.
fn make_room(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    versioning: Versioning,
    new: &mut Object,
    there: Option<&There>,
) -> Result<Loosened, Error> {
    let mut loosened = Loosened::new();
    let (key, now) = (new.key.clone(), new.modified);
    let mut newest = there.map(|there| there.rank);
    if versioning != Versioning::Never && there.is_none() {
        newest = newest_old(tx, bucket, &key)?.map(|old| old.rank);
    }
    new.rank = (i64::MAX - now.saturating_mul(1000)).min(newest.map_or(i64::MAX, |rank| rank - 1));
    new.version = match versioning {
        Versioning::Enabled if new.is_marker() => VersionId::new(new.rank, &BlobId::new(now)),
        Versioning::Enabled => VersionId::new(new.rank, &new.content),
        _ => VersionId::null(),
    };
    match there {
        // A null version is one of its kind: the new one is in its place.
        Some(there) if new.version.is_null() && there.version.is_null() => {
            there.lock.check_removal(now, Bypass::No)?;
            if new.is_marker() {
                tx.execute("DELETE FROM object WHERE bucket = ?1 AND key = ?2", params![bucket, key])?;
            }
            loosened.push((there.content.clone(), there.place));
        }
        Some(_) => {
            retire(tx, bucket, &key, now)?;
            if new.version.is_null() {
                loosened.extend(remove_old(tx, bucket, &key, &VersionId::null())?);
            }
        }
        None if versioning != Versioning::Never => {
            tx.execute(
                "UPDATE old_version SET since = ?3 WHERE bucket = ?1 AND key = ?2 AND rank = ?4 AND since = 0",
                params![bucket, key, now, newest.unwrap_or(0)],
            )?;
            if new.version.is_null() {
                loosened.extend(remove_old(tx, bucket, &key, &VersionId::null())?);
            }
        }
        None => {}
    }
    Ok(loosened)
}

/// What the key shows becomes one of its old versions.
fn retire(tx: &mut Tx<'_>, bucket: BucketId, key: &str, now: i64) -> Result<(), Error> {
    let sql = format!(
        "INSERT INTO old_version (bucket, {COLUMNS}, since)
         SELECT bucket, {COLUMNS}, ?3 FROM object WHERE bucket = ?1 AND key = ?2"
    );
    tx.execute(&sql, params![bucket, key, now])?;
    tx.execute("DELETE FROM object WHERE bucket = ?1 AND key = ?2", params![bucket, key])?;
    Ok(())
}

/// The newest of the old versions is what the key shows again.
fn promote(tx: &mut Tx<'_>, bucket: BucketId, key: &str) -> Result<(), Error> {
    let Some(newest) = newest_old(tx, bucket, key)? else { return Ok(()) };
    if newest.is_marker() {
        tx.execute(
            "UPDATE old_version SET since = 0 WHERE bucket = ?1 AND key = ?2 AND rank = ?3",
            params![bucket, key, newest.rank],
        )?;
        return Ok(());
    }
    let sql = format!(
        "INSERT INTO object (bucket, {COLUMNS})
         SELECT bucket, {COLUMNS} FROM old_version WHERE bucket = ?1 AND key = ?2 AND rank = ?3"
    );
    tx.execute(&sql, params![bucket, key, newest.rank])?;
    tx.execute(
        "DELETE FROM old_version WHERE bucket = ?1 AND key = ?2 AND rank = ?3",
        params![bucket, key, newest.rank],
    )?;
    Ok(())
}

/// Takes an old version or marker away; its content is to be let go.
fn remove_old(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    key: &str,
    version: &VersionId,
) -> Result<Option<(BlobId, Place)>, Error> {
    let row = tx.query_opt(
        "SELECT content, place FROM old_version WHERE bucket = ?1 AND key = ?2 AND version = ?3",
        params![bucket, key, version],
        |row| Ok((row.get::<BlobId>(0)?, row.get::<i64>(1)?)),
    )?;
    let Some((content, place)) = row else { return Ok(None) };
    tx.execute(
        "DELETE FROM old_version WHERE bucket = ?1 AND key = ?2 AND version = ?3",
        params![bucket, key, version],
    )?;
    Ok(Some((content, Place::from_number(place)?)))
}

fn write_current(tx: &mut Tx<'_>, bucket: &Bucket, object: &Object) -> Result<(), Error> {
    let written = tx.execute(
        "INSERT INTO object
            (bucket, key, modified, size, etag, storage_class, owner, checksum, content, place, headers, tags, acl,
             version, rank, lock, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
         ON CONFLICT (bucket, key) DO UPDATE SET
            modified = ?3, size = ?4, etag = ?5, storage_class = ?6, owner = ?7, checksum = ?8, content = ?9, place = ?10,
            headers = ?11, tags = ?12, acl = ?13, version = ?14, rank = ?15, lock = ?16, seal = ?17",
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
            acl::to_text(&object.acl, &object.owner)?,
            object.version,
            object.rank,
            to_json(&object.lock)?,
            to_json(&object.seal)?
        ],
    );
    match written {
        // The bucket was deleted since it was opened.
        Err(mallee_store::Error::Reference { .. }) => Err(refuse::no_such_bucket(&bucket.name)),
        written => Ok(written.map(drop)?),
    }
}

/// What a deletion did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The version that is gone, or the marker that was made.
    pub version: Option<VersionId>,
    /// A marker was made, or was what is gone.
    pub marker: bool,
}

/// Deletes what the key shows: for good where no versions are kept, and by a marker where they are.
pub fn hide(
    tx: &mut Tx<'_>,
    bucket: &Bucket,
    key: &str,
    owner: &str,
    conditions: &Conditions,
    now: i64,
) -> Result<Removed, Error> {
    let versioning = versioning::now(tx, bucket)?;
    let there = there(tx, bucket.id, key)?;
    conditions.check_delete(key, there.as_ref().map(There::facts))?;
    if versioning == Versioning::Never {
        if let Some(there) = there {
            there.lock.check_removal(now, Bypass::No)?;
            tx.execute("DELETE FROM object WHERE bucket = ?1 AND key = ?2", params![bucket.id, key])?;
            let_go(tx, &there.content, there.place, now)?;
        }
        return Ok(Removed::default());
    }
    let mut marker = Object::marker(key, owner, now);
    let loosened = make_room(tx, bucket.id, versioning, &mut marker, there.as_ref())?;
    tx.execute(
        "INSERT INTO old_version
            (bucket, key, modified, size, etag, storage_class, owner, checksum, content, place, headers, tags, acl,
             version, rank, lock, seal, since)
         VALUES (?1, ?2, ?3, 0, '', '', ?4, '', ?5, ?6, '', '', '', ?7, ?8, '', '', 0)",
        params![bucket.id, key, now, owner, marker.content, marker.place.number(), marker.version, marker.rank],
    )?;
    let_all_go(tx, &loosened, now)?;
    Ok(Removed { version: Some(marker.version), marker: true })
}

/// Takes one version away for good, unless it is locked.
pub fn destroy(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    key: &str,
    version: &VersionId,
    bypass: Bypass,
    conditions: &Conditions,
    now: i64,
) -> Result<Removed, Error> {
    if let Some(there) = there(tx, bucket, key)?.filter(|there| there.version == *version) {
        conditions.check_delete(key, Some(there.facts()))?;
        there.lock.check_removal(now, bypass)?;
        tx.execute("DELETE FROM object WHERE bucket = ?1 AND key = ?2", params![bucket, key])?;
        let_go(tx, &there.content, there.place, now)?;
        promote(tx, bucket, key)?;
        return Ok(Removed { version: Some(version.clone()), marker: false });
    }
    let Some(old) = find(tx, bucket, key, version)? else {
        conditions.check_delete(key, None)?;
        return Ok(Removed { version: Some(version.clone()), marker: false });
    };
    conditions.check_delete(key, Some(old.facts()))?;
    old.lock.check_removal(now, bypass)?;
    let newest = newest_old(tx, bucket, key)?.is_some_and(|newest| newest.version == *version);
    let loosened = remove_old(tx, bucket, key, version)?;
    let_all_go(tx, &loosened.into_iter().collect(), now)?;
    if newest && there(tx, bucket, key)?.is_none() {
        promote(tx, bucket, key)?;
    }
    Ok(Removed { version: Some(version.clone()), marker: old.is_marker() })
}

/// The next of what keys show, in order.
pub fn current_page(tx: &mut Tx<'_>, bucket: BucketId, after: &str, most: usize) -> Result<Vec<Object>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM object WHERE bucket = ?1 AND key > ?2 ORDER BY key LIMIT ?3");
    tx.query(&sql, params![bucket, after, most], raw)?.into_iter().map(super::Raw::read).collect()
}

pub struct OldVersion {
    pub object: Object,
    pub since: i64,
}

/// The next of the old versions and markers, newest of a key first.
pub fn old_page(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    (key, rank): &(String, i64),
    most: usize,
) -> Result<Vec<OldVersion>, Error> {
    let sql = format!(
        "SELECT {COLUMNS}, since FROM old_version WHERE bucket = ?1 AND (key, rank) > (?2, ?3) ORDER BY key, rank LIMIT ?4"
    );
    let rows = tx.query(&sql, params![bucket, key, *rank, most], |row| Ok((raw(row)?, row.get::<i64>(16)?)))?;
    rows.into_iter().map(|(raw, since)| Ok(OldVersion { object: raw.read()?, since })).collect()
}

/// Whether the version is one that something came after.
pub fn is_old(tx: &mut Tx<'_>, bucket: BucketId, key: &str, version: &VersionId) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM old_version WHERE bucket = ?1 AND key = ?2 AND version = ?3 AND since > 0";
    Ok(tx.query_opt(sql, params![bucket, key, version], |row| row.get::<i64>(0))?.is_some())
}

/// Whether all there is of the key is one old row.
pub fn is_alone(tx: &mut Tx<'_>, bucket: BucketId, key: &str) -> Result<bool, Error> {
    let sql = "SELECT rank FROM old_version WHERE bucket = ?1 AND key = ?2 LIMIT 2";
    let old = tx.query(sql, params![bucket, key], |row| row.get::<i64>(0))?;
    Ok(old.len() == 1 && there(tx, bucket, key)?.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_have_smaller_ids() {
        let id = BlobId::new(5);
        let (old, new) = (VersionId::new(i64::MAX - 1000, &id), VersionId::new(i64::MAX - 2000, &id));
        assert!(new.as_str() < old.as_str());
        assert_eq!(VersionId::parse(new.as_str()).unwrap(), new);
        assert_eq!(new.rank(), Some(i64::MAX - 2000));
    }

    #[test]
    fn what_is_no_version_id_is_refused() {
        assert!(VersionId::parse("null").unwrap().is_null());
        for bad in ["", "7", "../x", "NULL", &"g".repeat(32), &"A".repeat(32)] {
            assert!(VersionId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
