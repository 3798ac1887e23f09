//! The rows of import tasks. Their SQL is here and nowhere else.

use mallee_aws::id::SnapshotId;
use mallee_store::{Error as StoreError, Row, Tx, params};
use serde::{Deserialize, Serialize};

use super::disk::Format;
use crate::ec2::{
    Id,
    instance::{unword, word},
};

pub const TABLES: &str = "
CREATE TABLE import_task (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    description TEXT NOT NULL,
    format TEXT NOT NULL,
    location TEXT NOT NULL,
    architecture TEXT NOT NULL,
    created BIGINT NOT NULL,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    progress BIGINT NOT NULL,
    size BIGINT NOT NULL,
    snapshot TEXT NOT NULL,
    image TEXT
);
CREATE INDEX import_task_of ON import_task (account, id);
CREATE INDEX import_task_state ON import_task (state);
";

pub const KEY_COLUMN: &str = "ALTER TABLE import_task ADD COLUMN disk_key TEXT;";

pub const SNAPSHOT_PREFIX: &str = "import-snap-";
pub const IMAGE_PREFIX: &str = "import-ami-";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Active,
    Completed,
    /// Cancelled, or failed: the message says which.
    Deleted,
}

/// A task as its row is.
#[derive(Debug, Clone)]
pub struct Task {
    /// `import-snap-…`, `import-ami-…`.
    pub id: String,
    pub account: String,
    pub description: String,
    pub format: Format,
    /// `bucket/key`.
    pub location: String,
    pub architecture: String,
    pub created: i64,
    pub state: State,
    pub message: String,
    pub progress: u32,
    /// Bytes of the object.
    pub size: u64,
    /// The one it makes.
    pub snapshot: SnapshotId,
    pub image: Option<String>,
    /// Id of the key its blocks are encrypted with.
    pub disk_key: Option<String>,
}

impl Task {
    pub fn is_of_image(&self) -> bool {
        self.id.starts_with(IMAGE_PREFIX)
    }
}

const COLUMNS: &str = "id, account, description, format, location, architecture, created, state, message, progress, size, \
     snapshot, image, disk_key";

fn read(row: &Row<'_>) -> Result<Task, StoreError> {
    Ok(Task {
        id: row.get(0)?,
        account: row.get(1)?,
        description: row.get(2)?,
        format: unword(row.get(3)?)?,
        location: row.get(4)?,
        architecture: row.get(5)?,
        created: row.get(6)?,
        state: unword(row.get(7)?)?,
        message: row.get(8)?,
        progress: row.get(9)?,
        size: row.get(10)?,
        snapshot: row.get::<Id<_>>(11)?.0,
        image: row.get(12)?,
        disk_key: row.get(13)?,
    })
}

pub fn insert(tx: &mut Tx<'_>, t: &Task) -> Result<(), StoreError> {
    tx.execute(
        &format!(
            "INSERT INTO import_task ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
        ),
        params![
            t.id,
            t.account,
            t.description,
            word(t.format),
            t.location,
            t.architecture,
            t.created,
            word(t.state),
            t.message,
            t.progress,
            t.size,
            t.snapshot.as_str(),
            t.image,
            t.disk_key,
        ],
    )
    .map(|_| ())
}

pub fn active(tx: &mut Tx<'_>) -> Result<Vec<Task>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM import_task WHERE state = 'active' ORDER BY created, id");
    tx.query(&sql, params![], read)
}

pub fn any(tx: &mut Tx<'_>, id: &str) -> Result<Option<Task>, StoreError> {
    tx.query_opt(&format!("SELECT {COLUMNS} FROM import_task WHERE id = ?1"), params![id], read)
}

pub fn of_account(tx: &mut Tx<'_>, account: &str, prefix: &str) -> Result<Vec<Task>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM import_task WHERE account = ?1 ORDER BY id");
    Ok(tx.query(&sql, params![account], read)?.into_iter().filter(|t| t.id.starts_with(prefix)).collect())
}

/// How far it is; False: nobody wants it any more.
pub fn set_progress(tx: &mut Tx<'_>, id: &str, progress: u32, size: u64, message: &str) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE import_task SET progress = ?2, size = CASE WHEN ?3 = 0 THEN size ELSE ?3 END, message = ?4
         WHERE id = ?1 AND state = 'active'",
        params![id, progress, size, message],
    )?;
    Ok(changed > 0)
}

pub fn set_ended(tx: &mut Tx<'_>, id: &str, state: State, message: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE import_task SET state = ?2, message = ?3 WHERE id = ?1 AND state = 'active'",
        params![id, word(state), message],
    )
    .map(|_| ())
}

pub fn set_image(tx: &mut Tx<'_>, id: &str, image: &str) -> Result<(), StoreError> {
    tx.execute("UPDATE import_task SET image = ?2 WHERE id = ?1", params![id, image]).map(|_| ())
}
