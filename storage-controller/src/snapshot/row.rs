//! The rows of snapshots. Their SQL is here and nowhere else.

use mallee_store::{Error as StoreError, FromValue, Row as Read, Tx, Value, params};
use mallee_tiers::Snapshot;

use crate::{
    Storage,
    backend::Number,
    volume::{Trouble, VolumeId},
};

pub(crate) const TABLES: &str = "
CREATE TABLE snapshot (
    id TEXT PRIMARY KEY, volume TEXT NOT NULL, state TEXT NOT NULL, layer BIGINT NOT NULL, attempt BIGINT NOT NULL,
    accepted BIGINT NOT NULL, manifest TEXT, size BIGINT NOT NULL, sent BIGINT NOT NULL, reason TEXT NOT NULL,
    changed BIGINT NOT NULL
);
CREATE INDEX snapshot_of ON snapshot (volume, layer);
CREATE TABLE merged (volume TEXT PRIMARY KEY, upto BIGINT NOT NULL);
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Freezing,
    Frozen,
    Uploaded,
    Failed,
    Gone,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Freezing => "freezing",
            State::Frozen => "frozen",
            State::Uploaded => "uploaded",
            State::Failed => "failed",
            State::Gone => "gone",
        }
    }
}

impl FromValue for State {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        let all = [State::Freezing, State::Frozen, State::Uploaded, State::Failed, State::Gone];
        all.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("{text:?} is no state of a snapshot"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub state: State,
    /// The highest layer that belongs to it.
    pub layer: Number,
    pub attempt: u32,
    pub accepted: bool,
    pub manifest: Option<String>,
    /// Bytes of the volume when it was frozen.
    pub size: u64,
    pub sent: u64,
    pub reason: String,
    pub changed: i64,
}

impl Row {
    pub fn new(state: State) -> Self {
        let (manifest, reason) = (None, String::new());
        Self { state, layer: 0, attempt: 0, accepted: false, manifest, size: 0, sent: 0, reason, changed: 0 }
    }
    pub fn failed(reason: &str) -> Self {
        Self { reason: reason.into(), ..Self::new(State::Failed) }
    }
    /// The volume must keep its layer apart from those above.
    pub fn pending(&self) -> bool {
        match self.state {
            State::Freezing | State::Frozen => true,
            State::Uploaded => !self.accepted,
            State::Failed | State::Gone => false,
        }
    }
}

const COLUMNS: &str = "state, layer, attempt, accepted, manifest, size, sent, reason, changed";

fn read(row: &Read<'_>) -> Result<Row, StoreError> {
    Ok(Row {
        state: row.get(0)?,
        layer: row.get(1)?,
        attempt: row.get(2)?,
        accepted: row.get(3)?,
        manifest: row.get(4)?,
        size: row.get(5)?,
        sent: row.get(6)?,
        reason: row.get(7)?,
        changed: row.get(8)?,
    })
}

/// Everything a volume's layers are kept for.
#[derive(Debug, Clone, Default)]
pub(crate) struct OfVolume {
    /// (id, row), the lowest layer first.
    pub snapshots: Vec<(String, Row)>,
    /// The bottom layer holds, or is about to hold, what the layers up to this one held.
    pub merged: Number,
}

pub(crate) fn of_volume(tx: &mut Tx<'_>, volume: &str) -> Result<OfVolume, StoreError> {
    let sql = format!("SELECT {COLUMNS}, id FROM snapshot WHERE volume = ?1 ORDER BY layer, id");
    let snapshots = tx.query(&sql, params![volume], |row| Ok((row.get(9)?, read(row)?)))?;
    let merged = tx.query_opt("SELECT upto FROM merged WHERE volume = ?1", params![volume], |row| row.get(0))?;
    Ok(OfVolume { snapshots, merged: merged.unwrap_or(0) })
}

impl Storage {
    pub(crate) async fn snapshot_row(&self, id: &str) -> Result<Option<Row>, StoreError> {
        let (id, sql) = (id.to_owned(), format!("SELECT {COLUMNS} FROM snapshot WHERE id = ?1"));
        self.store.read("read a snapshot", move |tx| tx.query_opt(&sql, params![id], read)).await
    }

    pub(crate) async fn snapshots_of(&self, volume: &VolumeId) -> Result<OfVolume, StoreError> {
        let volume = volume.clone();
        self.store.read("read a volume's snapshots", move |tx| of_volume(tx, volume.as_str())).await
    }

    pub(super) async fn insert_snapshot(&self, wish: &Snapshot, row: Row) -> Result<(), Trouble> {
        let (id, volume, attempt, now) = (wish.id.clone(), wish.volume.clone(), wish.attempt, self.clock.now_ms());
        self.store
            .write("begin a snapshot", move |tx| {
                tx.execute(
                    "INSERT INTO snapshot (id, volume, state, layer, attempt, accepted, manifest, size, sent, reason, changed)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL, 0, 0, ?7, ?8) ON CONFLICT DO NOTHING",
                    params![id, volume, row.state.as_str(), row.layer, attempt, row.accepted, row.reason, now],
                )
                .map(|_| ())
            })
            .await
            .map_err(Trouble::from)
    }

    pub(super) async fn set_frozen(&self, id: &str, size: u64) -> Result<(), Trouble> {
        let (id, now) = (id.to_owned(), self.clock.now_ms());
        let sql = "UPDATE snapshot SET state = 'frozen', size = ?2, changed = ?3 WHERE id = ?1 AND state = 'freezing'";
        let write =
            self.store.write("freeze a snapshot", move |tx| tx.execute(sql, params![id, size, now]).map(|_| ()));
        write.await.map_err(Trouble::from)
    }

    /// Of a copy, which was never frozen.
    pub(super) async fn set_size(&self, id: &str, size: u64) -> Result<(), Trouble> {
        let (id, sql) = (id.to_owned(), "UPDATE snapshot SET size = ?2 WHERE id = ?1");
        let write = self.store.write("size of a copy", move |tx| tx.execute(sql, params![id, size]).map(|_| ()));
        write.await.map_err(Trouble::from)
    }

    pub(super) async fn set_uploaded(&self, id: &str, manifest: String, sent: u64) -> Result<(), Trouble> {
        let (id, now) = (id.to_owned(), self.clock.now_ms());
        let sql = "UPDATE snapshot SET state = 'uploaded', manifest = ?2, sent = sent + ?3, changed = ?4
             WHERE id = ?1 AND state = 'frozen'";
        let write = self
            .store
            .write("a snapshot is uploaded", move |tx| tx.execute(sql, params![id, manifest, sent, now]).map(|_| ()));
        write.await.map_err(Trouble::from)
    }

    pub(super) async fn fail_snapshot(&self, id: &str, reason: &str) -> Result<(), Trouble> {
        let (id, reason, now) = (id.to_owned(), reason.to_owned(), self.clock.now_ms());
        let sql = "UPDATE snapshot SET state = 'failed', reason = ?2, changed = ?3 WHERE id = ?1";
        let write =
            self.store.write("fail a snapshot", move |tx| tx.execute(sql, params![id, reason, now]).map(|_| ()));
        write.await.map_err(Trouble::from)
    }

    pub(super) async fn upload_again(&self, wish: &Snapshot) -> Result<(), Trouble> {
        let (id, attempt, now) = (wish.id.clone(), wish.attempt, self.clock.now_ms());
        let sql = "UPDATE snapshot SET state = 'frozen', attempt = ?2, manifest = NULL, changed = ?3 WHERE id = ?1";
        let write = self.store.write("upload again", move |tx| tx.execute(sql, params![id, attempt, now]).map(|_| ()));
        write.await.map_err(Trouble::from)
    }

    pub(super) async fn accept_snapshot(&self, id: &str) -> Result<(), Trouble> {
        let id = id.to_owned();
        let sql = "UPDATE snapshot SET accepted = 1 WHERE id = ?1";
        let write = self.store.write("a snapshot is accepted", move |tx| tx.execute(sql, params![id]).map(|_| ()));
        write.await.map_err(Trouble::from)
    }

    pub(super) async fn drop_snapshot(&self, wish: &Snapshot) -> Result<(), Trouble> {
        self.insert_snapshot(wish, Row::new(State::Gone)).await?;
        let (id, now) = (wish.id.clone(), self.clock.now_ms());
        let sql = "UPDATE snapshot SET state = 'gone', manifest = NULL, changed = ?2 WHERE id = ?1";
        let write = self.store.write("drop a snapshot", move |tx| tx.execute(sql, params![id, now]).map(|_| ()));
        write.await.map_err(Trouble::from)
    }

    pub(super) async fn remove_snapshot_row(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        let sql = "DELETE FROM snapshot WHERE id = ?1";
        self.store.write("forget a snapshot", move |tx| tx.execute(sql, params![id]).map(|_| ())).await
    }

    /// Written before layers are merged: what lay in them cannot be told apart from then on.
    pub(super) async fn set_merged(&self, volume: &VolumeId, upto: Number) -> Result<(), StoreError> {
        let volume = volume.clone();
        let sql = "INSERT INTO merged (volume, upto) VALUES (?1, ?2) ON CONFLICT (volume) DO UPDATE SET upto = ?2";
        let write =
            self.store.write("merge layers", move |tx| tx.execute(sql, params![volume.as_str(), upto]).map(|_| ()));
        write.await
    }
}
