//! Multipart uploads: an object that arrives in pieces. The upload's id becomes the object's content, and the parts that
//! were listed stay what they are: completing an upload moves no bytes.

mod complete;
mod create;
mod list;
mod part;

pub use complete::complete;
pub use create::{abort, create};
pub use list::{list_parts, list_uploads};
pub use part::{upload_part, upload_part_copy};

use mallee_store::{Row, Tx, params};

use super::{
    bucket::{Bucket, BucketId},
    object::from_json,
};
use crate::{
    Error,
    blob::{self, BlobId, DEAD_PARTS, DataKey, Piece, Place},
    call::Call,
    checksum::{Algorithm, Checksum, Kind},
    error::refuse,
    s3::encryption::Seal,
};

pub const MOST_PARTS: u32 = 10_000;

/// `completed` is when, and then `result` is the ETag, so that a completion whose answer was lost can be asked again.
pub const TABLES: &str = "
    CREATE TABLE upload (
        id TEXT PRIMARY KEY,
        bucket BIGINT NOT NULL REFERENCES bucket (id),
        key TEXT NOT NULL,
        created BIGINT NOT NULL,
        initiator TEXT NOT NULL,
        owner TEXT NOT NULL,
        storage_class TEXT NOT NULL,
        algorithm TEXT NOT NULL,
        kind TEXT NOT NULL,
        headers TEXT NOT NULL,
        tags TEXT NOT NULL,
        acl TEXT NOT NULL,
        completed BIGINT,
        result TEXT NOT NULL
    );
    CREATE INDEX upload_by_key ON upload (bucket, key, id);
    CREATE INDEX upload_by_completion ON upload (completed);
    CREATE TABLE part (
        upload TEXT NOT NULL,
        number BIGINT NOT NULL,
        content TEXT NOT NULL,
        place BIGINT NOT NULL,
        size BIGINT NOT NULL,
        etag TEXT NOT NULL,
        checksum TEXT NOT NULL,
        modified BIGINT NOT NULL,
        PRIMARY KEY (upload, number)
    );
";

pub const LOCKS_AND_SEALS: &str = "
    ALTER TABLE upload ADD COLUMN lock TEXT NOT NULL DEFAULT '';
    ALTER TABLE upload ADD COLUMN seal TEXT NOT NULL DEFAULT '';
";

#[derive(Debug, Clone)]
pub struct Upload {
    pub id: BlobId,
    pub bucket: BucketId,
    pub key: String,
    pub created: i64,
    /// Canonical ids.
    pub initiator: String,
    pub owner: String,
    pub storage_class: String,
    /// None: the client asked for no checksum, and gets AWS' default.
    pub algorithm: Option<Algorithm>,
    pub kind: Kind,
    pub headers: String,
    pub tags: String,
    pub acl: String,
    pub completed: Option<i64>,
    pub result: String,
    pub lock: String,
    /// How the data key of its parts is kept.
    pub seal: Option<Seal>,
}

const UPLOAD: &str = "id, bucket, key, created, initiator, owner, storage_class, algorithm, kind, headers, tags, acl, completed, result, lock, seal";

fn upload_row(row: &Row<'_>) -> Result<Upload, mallee_store::Error> {
    Ok(Upload {
        id: row.get(0)?,
        bucket: row.get(1)?,
        key: row.get(2)?,
        created: row.get(3)?,
        initiator: row.get(4)?,
        owner: row.get(5)?,
        storage_class: row.get(6)?,
        algorithm: Algorithm::by_name(&row.get::<String>(7)?),
        kind: if row.get::<String>(8)? == Kind::Composite.name() { Kind::Composite } else { Kind::FullObject },
        headers: row.get(9)?,
        tags: row.get(10)?,
        acl: row.get(11)?,
        completed: row.get(12)?,
        result: row.get(13)?,
        lock: row.get(14)?,
        seal: serde_json::from_str(&row.get::<String>(15)?).ok(),
    })
}

/// The upload of this id for this key, completed or not.
fn find(tx: &mut Tx<'_>, bucket: BucketId, key: &str, id: &str) -> Result<Upload, Error> {
    let Some(known) = BlobId::parse(id) else { return Err(refuse::no_such_upload(id)) };
    let sql = format!("SELECT {UPLOAD} FROM upload WHERE id = ?1");
    tx.query_opt(&sql, params![known], upload_row)?
        .filter(|upload| upload.bucket == bucket && upload.key == key)
        .ok_or_else(|| refuse::no_such_upload(id))
}

/// The same, while parts may still come.
fn find_open(tx: &mut Tx<'_>, bucket: &Bucket, key: &str, id: &str) -> Result<Upload, Error> {
    find(tx, bucket.id, key, id).and_then(|upload| match upload.completed {
        None => Ok(upload),
        Some(_) => Err(refuse::no_such_upload(id)),
    })
}

#[derive(Debug, Clone)]
pub struct Part {
    pub number: u32,
    pub content: BlobId,
    pub place: Place,
    pub size: u64,
    pub etag: String,
    pub checksum: Option<Checksum>,
    pub modified: i64,
}

impl Part {
    pub fn piece(&self, tx: &mut Tx<'_>, key: Option<&DataKey>) -> Result<Piece, Error> {
        match self.place {
            Place::Row => Piece::small(tx, &self.content, key),
            Place::Blob => Piece::blob(&self.content, self.size, key),
            Place::Nowhere | Place::Parts => Err(Error::Internal("a part cannot have parts".into())),
        }
    }
}

/// All parts of an upload by their numbers; those of a completed one are its object's content.
pub fn parts(tx: &mut Tx<'_>, upload: &BlobId) -> Result<Vec<Part>, Error> {
    some_parts(tx, upload, 0, MOST_PARTS as usize)
}

fn some_parts(tx: &mut Tx<'_>, upload: &BlobId, after: u32, most: usize) -> Result<Vec<Part>, Error> {
    let rows = tx.query(
        "SELECT number, content, place, size, etag, checksum, modified FROM part
         WHERE upload = ?1 AND number > ?2 ORDER BY number LIMIT ?3",
        params![upload, after, most],
        |row| {
            let part = Part {
                number: row.get(0)?,
                content: row.get(1)?,
                place: Place::Row,
                size: row.get(3)?,
                etag: row.get(4)?,
                checksum: None,
                modified: row.get(6)?,
            };
            Ok((part, row.get::<i64>(2)?, row.get::<String>(5)?))
        },
    )?;
    rows.into_iter()
        .map(|(part, place, checksum)| {
            Ok(Part { place: Place::from_number(place)?, checksum: from_json(&checksum)?, ..part })
        })
        .collect()
}

fn drop_part(tx: &mut Tx<'_>, upload: &BlobId, part: &Part, now: i64) -> Result<(), Error> {
    tx.execute("DELETE FROM part WHERE upload = ?1 AND number = ?2", params![upload, part.number])?;
    blob::forget(tx, &part.content, part.place, now)
}

/// The sweep's share of an upload nothing refers to: up to `most` of its parts, for it to remove the blobs of.
pub fn parts_to_sweep(tx: &mut Tx<'_>, upload: &BlobId, most: usize) -> Result<Vec<Part>, Error> {
    some_parts(tx, upload, 0, most)
}

/// Their blobs are gone.
pub fn parts_swept(tx: &mut Tx<'_>, upload: &BlobId, swept: &[Part]) -> Result<(), Error> {
    for part in swept {
        tx.execute("DELETE FROM part WHERE upload = ?1 AND number = ?2", params![upload, part.number])?;
        if part.place == Place::Row {
            tx.execute("DELETE FROM small WHERE blob = ?1", params![part.content])?;
        }
    }
    Ok(())
}

pub fn any_completed(tx: &mut Tx<'_>, before: i64) -> Result<bool, Error> {
    let sql = "SELECT 1 FROM upload WHERE completed < ?1 LIMIT 1";
    Ok(!tx.query(sql, params![before], |row| row.get::<i64>(0))?.is_empty())
}

/// Completed uploads whose answer nobody will ask again. Their parts are their objects' and stay.
pub fn forget_completed(tx: &mut Tx<'_>, before: i64) -> Result<u64, Error> {
    let old =
        tx.query("SELECT id FROM upload WHERE completed < ?1 ORDER BY completed LIMIT 200", params![before], |row| {
            row.get::<BlobId>(0)
        })?;
    for id in &old {
        tx.execute("DELETE FROM upload WHERE id = ?1", params![id])?;
    }
    Ok(old.len() as u64)
}

/// The next uploads parts may still come for.
pub fn open_page(
    tx: &mut Tx<'_>,
    bucket: BucketId,
    (key, id): &(String, String),
    most: usize,
) -> Result<Vec<Upload>, Error> {
    let sql = format!(
        "SELECT {UPLOAD} FROM upload WHERE bucket = ?1 AND completed IS NULL AND (key, id) > (?2, ?3)
         ORDER BY key, id LIMIT ?4"
    );
    Ok(tx.query(&sql, params![bucket, key, id, most], upload_row)?)
}

/// Ends an upload nobody completed; whether it still was there.
pub fn give_up(tx: &mut Tx<'_>, upload: &Upload, now: i64) -> Result<bool, Error> {
    if tx.execute("DELETE FROM upload WHERE id = ?1 AND completed IS NULL", params![upload.id])? == 0 {
        return Ok(false);
    }
    blob::forget(tx, &upload.id, Place::Parts, now)?;
    Ok(true)
}

/// The bucket is going: its uploads go with it.
pub fn abandon_all(tx: &mut Tx<'_>, bucket: BucketId, now: i64) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO loose (blob, kind, boot, since)
         SELECT id, ?2, '', ?3 FROM upload WHERE bucket = ?1 AND completed IS NULL",
        params![bucket, DEAD_PARTS, now],
    )?;
    tx.execute("DELETE FROM upload WHERE bucket = ?1", params![bucket])?;
    Ok(())
}

pub fn part_number(text: &str) -> Result<u32, Error> {
    text.parse::<u32>().ok().filter(|n| (1..=MOST_PARTS).contains(n)).ok_or_else(|| {
        refuse::argument("partNumber", text, "Part number must be an integer between 1 and 10000, inclusive")
    })
}

/// The checksum an upload is to have, from the request that creates it.
fn checksum_asked(call: &Call) -> Result<(Option<Algorithm>, Kind), Error> {
    let algorithm = match call.header("x-amz-checksum-algorithm")? {
        None => None,
        Some(name) => Some(Algorithm::by_name(name).ok_or_else(|| {
            refuse::request("Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
        })?),
    };
    let joinable = |a: Algorithm| !matches!(a, Algorithm::Sha1 | Algorithm::Sha256);
    let kind = match (call.header("x-amz-checksum-type")?, algorithm) {
        (None, None | Some(Algorithm::Crc64Nvme)) => Kind::FullObject,
        (None, Some(_)) => Kind::Composite,
        (Some("FULL_OBJECT"), Some(algorithm)) if joinable(algorithm) => Kind::FullObject,
        (Some("COMPOSITE"), Some(algorithm)) if algorithm != Algorithm::Crc64Nvme => Kind::Composite,
        (Some("FULL_OBJECT" | "COMPOSITE"), None) => {
            return Err(refuse::request(
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            ));
        }
        (Some(kind @ ("FULL_OBJECT" | "COMPOSITE")), Some(algorithm)) => {
            let algorithm = algorithm.name().to_lowercase();
            return Err(refuse::request(format!(
                "The {kind} checksum type cannot be used with the {algorithm} checksum algorithm."
            )));
        }
        (Some(_), _) => return Err(refuse::request("Value for x-amz-checksum-type header is invalid.")),
    };
    Ok((algorithm, kind))
}
