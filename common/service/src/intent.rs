//! Both ends of "intent goes down whole": the book a tier keeps of what is wanted of it, and the sender above it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    marker::PhantomData,
};

use mallee_store::{Error as StoreError, Store, Tx, params};
use mallee_tiers::{Entry, Generation, Intent, IntentAnswer, TierError, TierErrorKind, Wanted};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::Poke;

/// The tables of an [`IntentBook`]; the tier that keeps one puts this into its migrations.
pub const INTENT_TABLES: &str = "
CREATE TABLE intent_list (one BIGINT PRIMARY KEY, sender TEXT NOT NULL, epoch BIGINT NOT NULL, counter BIGINT NOT NULL);
CREATE TABLE intent (id TEXT PRIMARY KEY, hash TEXT NOT NULL, body TEXT NOT NULL, listed BIGINT NOT NULL);
";

/// The tables of a second book in the same store: [`IntentBook::of_snapshots`].
pub const SNAPSHOT_INTENT_TABLES: &str = "
CREATE TABLE snapshot_intent_list (one BIGINT PRIMARY KEY, sender TEXT NOT NULL, epoch BIGINT NOT NULL, counter BIGINT NOT NULL);
CREATE TABLE snapshot_intent (id TEXT PRIMARY KEY, hash TEXT NOT NULL, body TEXT NOT NULL, listed BIGINT NOT NULL);
";

/// Where a book is kept.
#[derive(Debug, Clone, Copy)]
struct Tables {
    list: &'static str,
    rows: &'static str,
}

/// What is wanted of this tier, durably: the last complete list, and every body in it.
pub struct IntentBook<B: Wanted> {
    store: Store,
    tables: Tables,
    changed: Poke,
    of: PhantomData<fn() -> B>,
}

/// One wish, and whether the last list named it. One that it did not name is an orphan, or is gone and can be forgotten.
#[derive(Debug, Clone)]
pub struct Listed<B> {
    pub body: B,
    pub listed: bool,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Refused(#[from] TierError),
}

impl From<Trouble> for TierError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Store(e) => TierError::internal(e.to_string()),
            Trouble::Refused(e) => e,
        }
    }
}

impl<B: Wanted> IntentBook<B> {
    /// `changed` is poked whenever a list was taken over that differs from the one before.
    pub fn new(store: Store, changed: Poke) -> Self {
        Self { store, tables: Tables { list: "intent_list", rows: "intent" }, changed, of: PhantomData }
    }

    /// The book of snapshots, which is kept beside that of volumes.
    pub fn of_snapshots(store: Store, changed: Poke) -> Self {
        Self { tables: Tables { list: "snapshot_intent_list", rows: "snapshot_intent" }, ..Self::new(store, changed) }
    }

    /// Takes a list over, or names the bodies that are missing for that.
    pub async fn take(&self, intent: Intent<B>) -> Result<IntentAnswer, TierError> {
        let tables = self.tables;
        let (answer, changed) = self
            .store
            .write("take a list of intent", move |tx| take(tx, tables, &intent))
            .await
            .map_err(TierError::from)?;
        if changed {
            self.changed.poke();
        }
        Ok(answer)
    }

    /// Everything held, in the order of ids. A body that this release cannot read is an error: it is never skipped.
    pub async fn all(&self) -> Result<Vec<Listed<B>>, StoreError> {
        let table = self.tables.rows;
        self.store
            .read("read the intent", move |tx| {
                tx.query(&format!("SELECT body, listed FROM {table} ORDER BY id"), params![], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
            })
            .await
            .and_then(|rows: Vec<(String, i64)>| {
                rows.into_iter().map(|(body, listed)| read_row(&body, listed)).collect()
            })
    }

    /// (id, hash of the body, whether the last list named it) of everything held: what a reader that keeps the bodies in
    /// memory compares, instead of reading every body again.
    pub async fn index(&self) -> Result<Vec<(String, String, bool)>, StoreError> {
        let table = self.tables.rows;
        self.store
            .read("read the list of intent", move |tx| {
                tx.query(&format!("SELECT id, hash, listed FROM {table} ORDER BY id"), params![], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
            })
            .await
    }

    pub async fn get(&self, id: &str) -> Result<Option<Listed<B>>, StoreError> {
        let table = self.tables.rows;
        let id = id.to_owned();
        let row: Option<(String, i64)> = self
            .store
            .read("read an intent", move |tx| {
                tx.query_opt(&format!("SELECT body, listed FROM {table} WHERE id = ?1"), params![id], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
            })
            .await?;
        row.map(|(body, listed)| read_row(&body, listed)).transpose()
    }

    /// Drops a wish that is carried out to its end and that no list names any more.
    pub async fn forget(&self, id: &str) -> Result<(), StoreError> {
        let table = self.tables.rows;
        let id = id.to_owned();
        self.store
            .write("forget an intent", move |tx| {
                tx.execute(&format!("DELETE FROM {table} WHERE id = ?1 AND listed = 0"), params![id]).map(|_| ())
            })
            .await
    }

    /// Takes lists of `sender` from now on: its store is a new one, and a person said that this is right.
    pub async fn adopt(&self, sender: Uuid) -> Result<(), StoreError> {
        let list = self.tables.list;
        self.store
            .write("adopt a sender", move |tx| {
                tx.execute(
                    &format!(
                        "INSERT INTO {list} (one, sender, epoch, counter) VALUES (1, ?1, 0, 0)
                         ON CONFLICT (one) DO UPDATE SET sender = ?1, epoch = 0, counter = 0"
                    ),
                    params![sender.to_string()],
                )
                .map(|_| ())
            })
            .await
    }
}

fn read_row<B: Wanted>(body: &str, listed: i64) -> Result<Listed<B>, StoreError> {
    let body = serde_json::from_str(body)
        .map_err(|e| StoreError::Other { what: "read the intent", detail: format!("a body is not readable: {e}") })?;
    Ok(Listed { body, listed: listed != 0 })
}

fn take<B: Wanted>(tx: &mut Tx<'_>, tables: Tables, intent: &Intent<B>) -> Result<(IntentAnswer, bool), Trouble> {
    let Tables { list, rows: table } = tables;
    let held: Option<(String, i64, i64)> =
        tx.query_opt(&format!("SELECT sender, epoch, counter FROM {list} WHERE one = 1"), params![], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    if let Some((sender, epoch, counter)) = held {
        let held = Generation { epoch, counter };
        if sender != intent.sender.to_string() {
            return Err(TierError::new(
                TierErrorKind::OtherIncarnation,
                format!(
                    "this tier belongs to store {sender}; a list of store {} is refused until a person adopts it",
                    intent.sender
                ),
            )
            .into());
        }
        if intent.generation < held {
            return Err(TierError::new(
                TierErrorKind::Stale,
                format!(
                    "a list of generation {:?} is older than the one held, {held:?}: was the sender's store put back?",
                    intent.generation
                ),
            )
            .into());
        }
        if intent.generation == held {
            return Ok((IntentAnswer::default(), false));
        }
    }
    let hashes: BTreeMap<&str, &str> = intent.entries.iter().map(|e| (e.id.as_str(), e.hash.as_str())).collect();
    for body in &intent.bodies {
        let Some(hash) = hashes.get(body.id()) else { continue };
        let text = serde_json::to_string(body).map_err(|e| TierError::internal(e.to_string()))?;
        tx.execute(
            &format!(
                "INSERT INTO {table} (id, hash, body, listed) VALUES (?1, ?2, ?3, 0)
                 ON CONFLICT (id) DO UPDATE SET hash = ?2, body = ?3"
            ),
            params![body.id(), *hash, text],
        )?;
    }
    let rows: Vec<(String, String, i64)> =
        tx.query(&format!("SELECT id, hash, listed FROM {table}"), params![], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    let known: BTreeMap<&str, &str> = rows.iter().map(|(id, hash, _)| (id.as_str(), hash.as_str())).collect();
    let missing: Vec<String> = intent
        .entries
        .iter()
        .filter(|e| known.get(e.id.as_str()) != Some(&e.hash.as_str()))
        .map(|e| e.id.clone())
        .collect();
    if !missing.is_empty() {
        return Ok((IntentAnswer { missing }, false));
    }
    let named: BTreeSet<&str> = hashes.keys().copied().collect();
    for (id, _, listed) in &rows {
        let now = i64::from(named.contains(id.as_str()));
        if now != *listed {
            tx.execute(&format!("UPDATE {table} SET listed = ?2 WHERE id = ?1"), params![id, now])?;
        }
    }
    tx.execute(
        &format!(
            "INSERT INTO {list} (one, sender, epoch, counter) VALUES (1, ?1, ?2, ?3)
             ON CONFLICT (one) DO UPDATE SET epoch = ?2, counter = ?3"
        ),
        params![intent.sender.to_string(), intent.generation.epoch, intent.generation.counter],
    )?;
    Ok((IntentAnswer::default(), true))
}

/// Sends complete lists to one tier below, and only the bodies it lacks.
#[derive(Default)]
pub struct IntentSender {
    /// id → (generation, hash, whether the receiver is known to have it). Only saves work; an empty one is right too.
    known: Mutex<BTreeMap<String, (Generation, String, bool)>>,
}

impl IntentSender {
    /// Delivers `rows`, everything that is wanted of the receiver. Done when the receiver has taken the list over.
    pub async fn deliver<B, C, F>(
        &self,
        sender: Uuid,
        generation: Generation,
        rows: &[B],
        call: C,
    ) -> Result<(), TierError>
    where
        B: Wanted,
        C: Fn(Intent<B>) -> F,
        F: Future<Output = Result<IntentAnswer, TierError>>,
    {
        let mut known = self.known.lock().await;
        let mut entries = Vec::with_capacity(rows.len());
        let mut bodies = Vec::new();
        for row in rows {
            let (hash, has) = match known.get(row.id()) {
                Some((g, hash, has)) if *g == row.generation() => (hash.clone(), *has),
                _ => (row.hash(), false),
            };
            if !has {
                bodies.push(row.clone());
            }
            known.insert(row.id().to_owned(), (row.generation(), hash.clone(), has));
            entries.push(Entry { id: row.id().to_owned(), generation: row.generation(), hash });
        }
        // Twice is the normal case after a restart below; more means that it does not keep what it is sent.
        for _ in 0..3 {
            let intent = Intent { sender, generation, entries: entries.clone(), bodies: std::mem::take(&mut bodies) };
            let answer = call(intent).await?;
            if answer.missing.is_empty() {
                for entry in &entries {
                    known.insert(entry.id.clone(), (entry.generation, entry.hash.clone(), true));
                }
                let named: BTreeSet<&str> = entries.iter().map(|e| e.id.as_str()).collect();
                known.retain(|id, _| named.contains(id.as_str()));
                return Ok(());
            }
            let missing: BTreeSet<&str> = answer.missing.iter().map(String::as_str).collect();
            bodies = rows.iter().filter(|r| missing.contains(r.id())).cloned().collect();
        }
        Err(TierError::internal("the receiver asked three times for bodies it was sent"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use mallee_store::{Config, Migration};
    use mallee_tiers::Volume;

    fn volume(id: &str, counter: i64, size_gib: u64) -> Volume {
        Volume::new(id, Generation { epoch: 1, counter }, size_gib)
    }

    fn book(dir: &std::path::Path) -> Arc<IntentBook<Volume>> {
        let migrations = [Migration { version: 1, name: "intent", sql: INTENT_TABLES }];
        let store = Store::open(&Config::Sqlite { path: dir.join("s.db") }, &migrations).unwrap();
        Arc::new(IntentBook::new(store, Poke::default()))
    }

    async fn deliver(
        to: &Arc<IntentBook<Volume>>,
        from: &IntentSender,
        sender: Uuid,
        counter: i64,
        rows: &[Volume],
    ) -> Result<(), TierError> {
        from.deliver(sender, Generation { epoch: 1, counter }, rows, |i| to.take(i)).await
    }

    #[tokio::test]
    async fn what_the_list_does_not_name_is_kept_as_an_orphan() {
        let dir = tempfile::tempdir().unwrap();
        let (book, sender, me) = (book(dir.path()), IntentSender::default(), Uuid::new_v4());
        deliver(&book, &sender, me, 1, &[volume("vol-a", 1, 1), volume("vol-b", 1, 1)]).await.unwrap();
        deliver(&book, &sender, me, 2, &[volume("vol-b", 2, 9)]).await.unwrap();
        let all = book.all().await.unwrap();
        assert_eq!(
            all.iter().map(|l| (l.body.id.as_str(), l.listed)).collect::<Vec<_>>(),
            [("vol-a", false), ("vol-b", true)]
        );
        assert_eq!(all[1].body.size_gib, 9);
    }

    #[tokio::test]
    async fn a_receiver_that_lost_its_store_gets_every_body_again() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (sender, me) = (IntentSender::default(), Uuid::new_v4());
        deliver(&book(one.path()), &sender, me, 1, &[volume("vol-a", 1, 1)]).await.unwrap();
        let fresh = book(two.path());
        deliver(&fresh, &sender, me, 1, &[volume("vol-a", 1, 1)]).await.unwrap();
        assert_eq!(fresh.all().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn lists_of_another_store_or_of_the_past_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (book, me) = (book(dir.path()), Uuid::new_v4());
        deliver(&book, &IntentSender::default(), me, 5, &[volume("vol-a", 5, 1)]).await.unwrap();
        let other = deliver(&book, &IntentSender::default(), Uuid::new_v4(), 6, &[]).await.unwrap_err();
        assert_eq!(other.kind, TierErrorKind::OtherIncarnation);
        let old = deliver(&book, &IntentSender::default(), me, 4, &[]).await.unwrap_err();
        assert_eq!(old.kind, TierErrorKind::Stale);
        assert!(book.all().await.unwrap()[0].listed);
        let new = Uuid::new_v4();
        book.adopt(new).await.unwrap();
        deliver(&book, &IntentSender::default(), new, 1, &[]).await.unwrap();
        assert!(!book.all().await.unwrap()[0].listed, "an adopted empty list makes orphans");
    }
}
