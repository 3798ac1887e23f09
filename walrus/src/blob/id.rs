//! Names of blobs, and the rows in `loose` they have before and after they belong to something.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use mallee_service::{Clock, Poke};
use mallee_store::{FromValue, Store, ToValue, Tx, Value, params};

use crate::Error;

/// 12 hex digits of the time it was made (so that indexes grow at one end) and 20 random ones. Also the id of a multipart
/// upload, whose parts are the content of its object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BlobId(String);

impl BlobId {
    pub fn new(now: i64) -> Self {
        let random: u128 = rand::random();
        Self(format!("{:012x}{:020x}", now & 0xffff_ffff_ffff, random & 0xffff_ffff_ffff_ffff_ffff))
    }
    /// That of no blob: what a delete marker refers to.
    pub fn none() -> Self {
        Self("0".repeat(32))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    pub fn shard(&self) -> &str {
        self.0.get(self.0.len().saturating_sub(2)..).unwrap_or("00")
    }
    /// An id that came over the wire; `None` when no id looks like that.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 32 && text.bytes().all(hex)).then(|| Self(text.into()))
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ToValue for BlobId {
    fn to_value(&self) -> Value<'_> {
        self.0.to_value()
    }
}

impl FromValue for BlobId {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no id of a blob"))
    }
}

/// `loose.kind`: an id given out by the process `boot`, perhaps with bytes.
pub const YOUNG: i64 = 0;
/// A file to remove.
pub const DEAD_FILE: i64 = 1;
/// An upload whose parts are to be removed.
pub const DEAD_PARTS: i64 = 2;

/// How many ids one transaction gives out: a durable commit costs a sync, however many rows it has.
const BATCH: usize = 64;

/// Gives out ids that are already rows.
#[derive(Clone)]
pub struct BlobIds(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    boot: String,
    free: tokio::sync::Mutex<Vec<BlobId>>,
    abandoned: Mutex<HashSet<BlobId>>,
    sweep: Poke,
}

impl BlobIds {
    pub fn new(store: Store, clock: Clock, sweep: Poke) -> Self {
        let boot = BlobId::new(clock.now_ms()).0;
        Self(Arc::new(Inner { store, clock, boot, free: Default::default(), abandoned: Default::default(), sweep }))
    }

    pub fn now(&self) -> i64 {
        self.0.clock.now_ms()
    }

    /// This process, as its young rows say it.
    pub fn boot(&self) -> &str {
        &self.0.boot
    }

    /// A fresh id whose row is durable.
    pub async fn take(&self) -> Result<Young, Error> {
        let mut free = self.0.free.lock().await;
        if free.is_empty() {
            let now = self.0.clock.now_ms();
            let fresh: Vec<BlobId> = (0..BATCH).map(|_| BlobId::new(now)).collect();
            let (rows, boot) = (fresh.clone(), self.0.boot.clone());
            self.0
                .store
                .write("give out blob ids", move |tx| {
                    for id in &rows {
                        tx.execute(
                            "INSERT INTO loose (blob, kind, boot, since) VALUES (?1, ?2, ?3, ?4)",
                            params![id, YOUNG, boot, now],
                        )?;
                    }
                    Ok::<_, Error>(())
                })
                .await?;
            *free = fresh;
        }
        let id = free.pop().ok_or_else(|| Error::Internal("no blob id".into()))?;
        Ok(Young { id, ids: self.clone(), kept: false })
    }

    /// Gives out none of the ids that are ready.
    pub async fn drop_free(&self) {
        self.0.free.lock().await.clear();
    }

    /// Ids whose requests came to nothing, for the sweep to take.
    pub fn abandoned(&self) -> HashSet<BlobId> {
        self.0.abandoned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Their rows say it now.
    pub fn forget_abandoned(&self, buried: &HashSet<BlobId>) {
        self.0.abandoned.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| !buried.contains(id));
    }
}

/// An id on its way to becoming an object. Dropped before [`Young::keep`], its bytes are swept.
pub struct Young {
    id: BlobId,
    ids: BlobIds,
    kept: bool,
}

impl Young {
    pub fn id(&self) -> &BlobId {
        &self.id
    }
    /// The transaction that calls [`adopt`] for it has been committed.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Young {
    fn drop(&mut self) {
        if !self.kept {
            self.ids.0.abandoned.lock().unwrap_or_else(PoisonError::into_inner).insert(self.id.clone());
            self.ids.0.sweep.poke();
        }
    }
}

/// From this transaction on something refers to the blob. Fails when the sweep was quicker: its request was given up, and
/// what is left of it must not become an object.
pub fn adopt(tx: &mut Tx<'_>, id: &BlobId) -> Result<(), Error> {
    match tx.execute("DELETE FROM loose WHERE blob = ?1 AND kind = ?2", params![id, YOUNG])? {
        1 => Ok(()),
        _ => Err(Error::Internal(format!("blob {id} was swept before it was kept"))),
    }
}

/// Nothing refers to it from this transaction on.
pub fn let_go(tx: &mut Tx<'_>, id: &BlobId, kind: i64, now: i64) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO loose (blob, kind, boot, since) VALUES (?1, ?2, '', ?3) ON CONFLICT DO NOTHING",
        params![id, kind, now],
    )?;
    Ok(())
}
