//! What happened to an instance in this zone, for `mallee why`: a bounded diary per instance.

use mallee_store::{Error, Store, Tx, params};
use mallee_tiers::Millis;

pub(crate) const TABLES: &str = "
CREATE TABLE event (seq BIGINT PRIMARY KEY, instance TEXT NOT NULL, at BIGINT NOT NULL, text TEXT NOT NULL);
CREATE INDEX event_of ON event (instance, seq);
";

/// So many are kept of one instance.
const KEPT: i64 = 20;
/// So many are kept in all: those of instances that are long gone make room.
const KEPT_IN_ALL: i64 = 200_000;

/// The highest number given out.
pub(crate) fn last_seq(tx: &mut Tx<'_>) -> Result<i64, Error> {
    tx.query_one("SELECT COALESCE(MAX(seq), 0) FROM event", params![], |row| row.get(0))
}

pub(crate) fn write(tx: &mut Tx<'_>, seq: i64, instance: &str, at: Millis, text: &str) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO event (seq, instance, at, text) VALUES (?1, ?2, ?3, ?4)",
        params![seq, instance, at, text],
    )?;
    tx.execute(
        "DELETE FROM event WHERE instance = ?1 AND seq <=
         (SELECT seq FROM event WHERE instance = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
        params![instance, KEPT],
    )?;
    tx.execute("DELETE FROM event WHERE seq = ?1", params![seq - KEPT_IN_ALL]).map(|_| ())
}

pub(crate) async fn of(store: &Store, instance: &str) -> Result<Vec<(Millis, String)>, Error> {
    let instance = instance.to_owned();
    store
        .read("read what happened", move |tx| {
            tx.query("SELECT at, text FROM event WHERE instance = ?1 ORDER BY seq", params![instance], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_newest_events_of_an_instance_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let migrations = [mallee_store::Migration { version: 1, name: "event", sql: TABLES }];
        let store = Store::open(&mallee_store::Config::Sqlite { path: dir.path().join("s.db") }, &migrations).unwrap();
        store
            .write("test", |tx| {
                write(tx, 1, "i-other", 1, "other")?;
                (2..60).try_for_each(|n| write(tx, n, "i-a", n, &format!("event {n}")))
            })
            .await
            .unwrap();
        let kept = of(&store, "i-a").await.unwrap();
        assert_eq!((kept.len(), kept[19].1.as_str()), (20, "event 59"));
        assert_eq!(of(&store, "i-other").await.unwrap().len(), 1);
    }
}
