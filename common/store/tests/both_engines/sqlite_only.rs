use super::{Refusal, block_on, insert, open};
use mallee_store::{Config, Error, Migration, Store, params};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Waker};

#[test]
fn a_second_opener_is_told_who_holds_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/store.db");
    let config = Config::Sqlite { path: path.clone() };
    let store = open(&config);
    let Err(Error::Locked { path: locked, holder }) = Store::open(&config, &[]) else { panic!("opened twice") };
    assert_eq!(locked, path);
    assert!(holder.starts_with(&format!("process {} (", std::process::id())), "{holder}");
    drop(store);
    drop(open(&config));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_refusal_is_not_released_when_its_batch_cannot_be_committed() {
    // A deferred constraint, which tiers must not have, makes a COMMIT fail on purpose.
    const DEFERRED: &[Migration] = &[Migration {
        version: 1,
        name: "deferred",
        sql: "CREATE TABLE thing (id TEXT PRIMARY KEY);
              CREATE TABLE part (thing TEXT REFERENCES thing (id) DEFERRABLE INITIALLY DEFERRED);",
    }];
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Config::Sqlite { path: folder.path().join("store.db") }, DEFERRED).unwrap();
    let mut context = Context::from_waker(Waker::noop());
    // Whether two closures share a batch depends on the clock, so it may take more than one attempt.
    let shared = (0..100).any(|_| {
        let (go, wait) = mpsc::channel::<()>();
        let mut first = pin!(store.write("hold the writer", move |_| {
            wait.recv().ok();
            Ok::<(), Error>(())
        }));
        let mut poison =
            pin!(store.write("poison", |tx| { tx.execute("INSERT INTO part VALUES (?1)", params!["nothing"]) }));
        let mut refused = pin!(store.write("refuse", |tx| {
            insert(tx, "seen only by this batch")?;
            Err::<(), Refusal>(Refusal::No)
        }));
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(poison.as_mut().poll(&mut context).is_pending());
        assert!(refused.as_mut().poll(&mut context).is_pending());
        drop(go);
        assert!(matches!(block_on(poison), Err(Error::Reference { what: "poison", .. })));
        matches!(block_on(refused), Err(Refusal::Store(Error::Reference { what: "refuse", .. })))
    });
    assert!(shared);
    // The writer goes on.
    store.write_blocking("insert", |tx| insert(tx, "a")).unwrap();
    assert_eq!(
        store.read_blocking("count", |tx| {
            tx.query_one("SELECT count(*) FROM part", params![], |row| row.get::<u64>(0))
        }),
        Ok(0)
    );
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::Sqlite { path: folder.path().join("store.db") };
    let store = open(&config);
    store
        .write_blocking("limit", |tx| tx.query("PRAGMA max_page_count = 40", params![], |row| row.get::<i64>(0)))
        .unwrap();
    let full = store.write_blocking("fill", |tx| {
        tx.execute("INSERT INTO thing (id, body) VALUES ('a', ?1)", params![vec![0u8; 1 << 20]])
    });
    assert!(matches!(full, Err(Error::Full { what: "fill", .. })), "{full:?}");
    assert!(store.figures().last_error.unwrap().starts_with("fill: "));
    store.write_blocking("insert", |tx| insert(tx, "small")).unwrap();
    assert_eq!(super::ids(&store), ["small"]);
}
