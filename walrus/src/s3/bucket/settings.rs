//! What every request to a bucket must know of its configuration, kept in the bucket's own row. Configurations that few
//! requests ask for are documents of their own (`bucket_document`).

use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Bucket, BucketId, find, logging::Logging, notification::Notification};
use crate::{Error, Walrus, error::refuse};

pub const TABLES: &str = "
    ALTER TABLE bucket ADD COLUMN settings TEXT NOT NULL DEFAULT '';
    CREATE TABLE bucket_document (
        bucket BIGINT NOT NULL REFERENCES bucket (id) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        document TEXT NOT NULL,
        PRIMARY KEY (bucket, kind)
    );
";

/// Who owns what is put into a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ownership {
    /// The bucket's owner, always; access control lists are off.
    BucketOwnerEnforced,
    /// The bucket's owner, when the writer says `bucket-owner-full-control`.
    BucketOwnerPreferred,
    /// The writer. So it was from the beginning, and is here where nothing was set.
    #[default]
    ObjectWriter,
}

/// The public access block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Block {
    pub block_public_acls: bool,
    pub ignore_public_acls: bool,
    pub block_public_policy: bool,
    pub restrict_public_buckets: bool,
}

/// How objects are encrypted when the request does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    /// SSE-S3: AES-256 with keys of walrus' own.
    #[serde(rename = "AES256")]
    Aes256,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ownership: Option<Ownership>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<Block>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notifications: Vec<Notification>,
    /// Whether those who are not the owner must say that they know they would pay.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub requester_pays: bool,
    /// Whether this bucket has a document of CORS rules: without, no request looks for one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cors: bool,
    /// Whether it has a lifecycle: without, no answer looks for one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lifecycle: bool,
}

impl Settings {
    pub fn from_text(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text).map_err(|e| Error::Internal(format!("a bucket's settings: {e}")))
    }

    pub(super) fn to_text(&self) -> Result<String, Error> {
        if *self == Self::default() {
            return Ok(String::new());
        }
        serde_json::to_string(self).map_err(|e| Error::Internal(e.to_string()))
    }
}

/// Changes the settings of the bucket that was opened: in one transaction, so that two changes are both there.
pub fn change(tx: &mut Tx<'_>, bucket: &Bucket, change: impl FnOnce(&mut Settings)) -> Result<(), Error> {
    let mut there = find(tx, &bucket.name)?;
    if there.id != bucket.id {
        return Err(refuse::no_such_bucket(&bucket.name));
    }
    change(&mut there.settings);
    tx.execute("UPDATE bucket SET settings = ?2 WHERE id = ?1", params![bucket.id, there.settings.to_text()?])?;
    Ok(())
}

/// Keeps a document in place of what was there; `None` takes it away.
pub fn keep(tx: &mut Tx<'_>, bucket: &Bucket, kind: &str, document: Option<&str>) -> Result<(), Error> {
    let Some(document) = document else {
        tx.execute("DELETE FROM bucket_document WHERE bucket = ?1 AND kind = ?2", params![bucket.id, kind])?;
        return Ok(());
    };
    let kept = tx.execute(
        "INSERT INTO bucket_document (bucket, kind, document) VALUES (?1, ?2, ?3)
         ON CONFLICT (bucket, kind) DO UPDATE SET document = ?3",
        params![bucket.id, kind, document],
    );
    match kept {
        Err(mallee_store::Error::Reference { .. }) => Err(refuse::no_such_bucket(&bucket.name)),
        kept => Ok(kept.map(drop)?),
    }
}

/// A document that was kept.
pub fn kept<T: DeserializeOwned>(tx: &mut Tx<'_>, bucket: BucketId, kind: &str) -> Result<Option<T>, Error> {
    let sql = "SELECT document FROM bucket_document WHERE bucket = ?1 AND kind = ?2";
    let text: Option<String> = tx.query_opt(sql, params![bucket, kind], |row| row.get(0))?;
    text.map(|text| serde_json::from_str(&text).map_err(|e| Error::Internal(format!("a bucket's {kind}: {e}"))))
        .transpose()
}

/// [`change`], as a transaction of its own.
pub async fn update(
    walrus: &Walrus,
    bucket: Bucket,
    what: impl Fn(&mut Settings) + Send + 'static,
) -> Result<(), Error> {
    walrus.store.write("change a bucket's settings", move |tx| change(tx, &bucket, &what)).await
}

/// [`keep`], as a transaction of its own.
pub async fn keep_document(
    walrus: &Walrus,
    bucket: Bucket,
    kind: &'static str,
    document: &impl Serialize,
) -> Result<(), Error> {
    let text = serde_json::to_string(document).map_err(|e| Error::Internal(e.to_string()))?;
    walrus.store.write("keep a bucket's document", move |tx| keep(tx, &bucket, kind, Some(&text))).await
}

pub async fn drop_document(walrus: &Walrus, bucket: Bucket, kind: &'static str) -> Result<(), Error> {
    walrus.store.write("drop a bucket's document", move |tx| keep(tx, &bucket, kind, None)).await
}

/// [`kept`], as a view of its own.
pub async fn document<T: DeserializeOwned + Send + 'static>(
    walrus: &Walrus,
    bucket: BucketId,
    kind: &'static str,
) -> Result<Option<T>, Error> {
    walrus.store.read("read a bucket's document", move |tx| kept(tx, bucket, kind)).await
}
