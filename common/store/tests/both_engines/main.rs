//! What a store promises, claimed once and tried on both engines. PostgreSQL must be installed.

// The exemption of clippy.toml covers test functions, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cluster;
mod postgres_only;
mod sqlite_only;

use mallee_store::{Config, Error, Migration, Store, Tx, Value, params};
use std::collections::HashSet;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::thread;

/// Each claim is a function of where the store is.
macro_rules! on_both_engines {
    ($($claim:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $claim() {
                let folder = tempfile::tempdir().unwrap();
                super::$claim(mallee_store::Config::Sqlite { path: folder.path().join("store.db") });
            })*
        }
        mod postgres {
            $(#[test] fn $claim() {
                let url = super::cluster::url().to_owned();
                super::$claim(mallee_store::Config::Postgres { url, schema: stringify!($claim).to_owned() });
            })*
        }
    };
}
on_both_engines![
    acknowledged_writes_survive_kill_9,
    a_failing_closure_leaves_its_neighbours_alone,
    a_name_is_taken_once_by_64_threads,
    no_increment_is_lost,
    a_read_sees_what_was_answered_before,
    a_read_cannot_write,
    a_failed_statement_dooms_its_transaction,
    values_come_back_as_they_went_in,
    text_sorts_and_matches_as_bytes,
    unstorable_values_are_refused,
    a_foreign_key_is_recognised,
    streaming_stops_when_told,
    a_newer_store_is_refused_by_name,
    a_changed_history_is_refused,
    a_failing_migration_leaves_nothing,
    incarnation_stays_and_epoch_rises,
    the_last_handle_may_go_inside_a_closure,
];

const SCHEMA: &[Migration] = &[Migration {
    version: 1,
    name: "things",
    sql: "CREATE TABLE thing (id TEXT PRIMARY KEY, number BIGINT NOT NULL DEFAULT 0, flag BIGINT, body BLOB);
          CREATE TABLE part (id TEXT PRIMARY KEY, thing TEXT NOT NULL REFERENCES thing (id)); -- BLOB?",
}];

fn open(config: &Config) -> Store {
    Store::open(config, SCHEMA).unwrap()
}

fn insert(tx: &mut Tx, id: &str) -> Result<(), Error> {
    tx.execute("INSERT INTO thing (id) VALUES (?1)", params![id]).map(drop)
}

fn ids(store: &Store) -> Vec<String> {
    store.read_blocking("ids", |tx| tx.query("SELECT id FROM thing ORDER BY id", params![], |row| row.get(0))).unwrap()
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// What a closure of a tier returns: its own refusals beside the store's errors.
#[derive(Debug, PartialEq)]
enum Refusal {
    No,
    Store(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Store(error)
    }
}

const CHILD: &str = "MALLEE_STORE_TEST_CHILD";

fn acknowledged_writes_survive_kill_9(config: Config) {
    drop(open(&config));
    let place = match &config {
        Config::Sqlite { path } => path.display().to_string(),
        Config::Postgres { url, schema } => format!("{schema}|{url}"),
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env(CHILD, place)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut acknowledged = HashSet::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Some(id) = line.unwrap().strip_prefix("acknowledged ").map(str::to_owned) else {
            continue;
        };
        acknowledged.insert(id);
        if acknowledged.len() == 300 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(acknowledged.len() >= 300, "the child ended by itself");
    let kept: HashSet<String> = ids(&open(&config)).into_iter().collect();
    assert_eq!(acknowledged.difference(&kept).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// The other side of the claim above; on its own it does nothing.
#[test]
fn child_that_is_killed() {
    let Ok(place) = std::env::var(CHILD) else {
        return;
    };
    let store = open(&match place.split_once('|') {
        Some((schema, url)) => Config::Postgres { url: url.to_owned(), schema: schema.to_owned() },
        None => Config::Sqlite { path: place.into() },
    });
    thread::scope(|scope| {
        for writer in 0..8 {
            let store = store.clone();
            scope.spawn(move || {
                for number in 0.. {
                    let id = format!("{writer}-{number}");
                    let written = id.clone();
                    store.write_blocking("insert", move |tx| insert(tx, &written)).unwrap();
                    // One write call per line, or the lines of two threads mix.
                    std::io::stdout().write_all(format!("\nacknowledged {id}\n").as_bytes()).unwrap();
                }
            });
        }
    });
}

fn a_failing_closure_leaves_its_neighbours_alone(config: Config) {
    let store = open(&config);
    store.write_blocking("insert", |tx| insert(tx, "taken")).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let mut first = pin!(store.write("hold the writer", move |tx| {
        wait.recv().ok();
        insert(tx, "first")
    }));
    // Polled once: queued, and behind the first one on the single writer of SQLite.
    let mut context = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut context).is_pending());
    let mut others: Vec<_> = (0..60)
        .map(|number| {
            Box::pin(store.write("one of many", move |tx| {
                let id = format!("other-{number:02}");
                insert(tx, &id)?;
                match number {
                    10 => Err(Refusal::No),
                    20 => panic!("on purpose"),
                    30 => Ok(insert(tx, "taken")?),
                    _ => Ok(()),
                }
            }))
        })
        .collect();
    for other in &mut others {
        assert!(other.as_mut().poll(&mut context).is_pending());
    }
    drop(go);
    block_on(first).unwrap();
    for (number, other) in others.into_iter().enumerate() {
        match (number, block_on(other)) {
            (10, Err(Refusal::No)) => {}
            (20, Err(Refusal::Store(Error::Panicked { what: "one of many", detail }))) => {
                assert_eq!(detail, "on purpose")
            }
            (30, Err(Refusal::Store(Error::Unique { what: "one of many", table, .. }))) => {
                assert_eq!(table, "thing")
            }
            (_, outcome) => assert_eq!(outcome, Ok(()), "{number}"),
        }
    }
    assert_eq!(ids(&store).len(), 2 + 60 - 3);
    assert_eq!(store.figures().transactions, 62);
    assert_eq!(store.figures().last_error, None);
    match config {
        Config::Sqlite { .. } => assert!(store.figures().largest_batch > 1),
        Config::Postgres { .. } => assert_eq!(store.figures().largest_batch, 1),
    }
}

fn a_name_is_taken_once_by_64_threads(config: Config) {
    let store = open(&config);
    let won = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                for number in 0..10 {
                    let id = format!("name-{number}");
                    match store.write_blocking("take a name", move |tx| insert(tx, &id)) {
                        Ok(()) => drop(won.fetch_add(1, Ordering::SeqCst)),
                        Err(Error::Unique { table, .. }) => assert_eq!(table, "thing"),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 10);
    assert_eq!(ids(&store).len(), 10);
}

fn no_increment_is_lost(config: Config) {
    let store = open(&config);
    store.write_blocking("insert", |tx| insert(tx, "counter")).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    store
                        .write_blocking("increment", |tx| {
                            let number: i64 = tx.query_one("SELECT number FROM thing", params![], |row| row.get(0))?;
                            tx.execute("UPDATE thing SET number = ?1 WHERE id = ?2", params![number + 1, "counter"])
                        })
                        .unwrap();
                }
            });
        }
    });
    let number: i64 = store
        .read_blocking("sum", |tx| tx.query_one("SELECT sum(number) FROM thing", params![], |row| row.get(0)))
        .unwrap();
    assert_eq!(number, 160);
}

fn a_read_sees_what_was_answered_before(config: Config) {
    let store = open(&config);
    thread::scope(|scope| {
        for writer in 0..4 {
            let store = store.clone();
            scope.spawn(move || {
                block_on(async {
                    for number in 0..25 {
                        let id = format!("{writer}-{number}");
                        let written = id.clone();
                        store.write("insert", move |tx| insert(tx, &written)).await.unwrap();
                        let find = || {
                            let sought = id.clone();
                            move |tx: &mut Tx<'_>| {
                                let sql = "SELECT id FROM thing WHERE id = ?1";
                                tx.query_opt(sql, params![sought], |row| row.get::<String>(0))
                            }
                        };
                        assert!(store.read("find", find()).await.unwrap().is_some());
                        assert!(store.look_up("find", find()).await.unwrap().is_some());
                    }
                })
            });
        }
    });
}

fn a_read_cannot_write(config: Config) {
    let store = open(&config);
    let refused = store.read_blocking("peek", |tx| insert(tx, "sneaked in"));
    assert!(matches!(&refused, Err(Error::Other { what: "peek", .. })), "{refused:?}");
    let refused = block_on(store.look_up("glance", |tx| insert(tx, "sneaked in")));
    assert!(matches!(&refused, Err(Error::Other { what: "glance", .. })), "{refused:?}");
    assert_eq!(ids(&store).len(), 0);
}

fn a_failed_statement_dooms_its_transaction(config: Config) {
    let store = open(&config);
    store.write_blocking("insert", |tx| insert(tx, "a")).unwrap();
    let outcome = store.write_blocking("carry on regardless", |tx| {
        insert(tx, "b")?;
        assert!(matches!(insert(tx, "a"), Err(Error::Unique { .. })));
        assert!(matches!(insert(tx, "c"), Err(Error::Unique { .. })));
        Ok::<(), Error>(())
    });
    assert!(matches!(outcome, Err(Error::Unique { what: "carry on regardless", .. })));
    assert_eq!(ids(&store), ["a"]);
    store
        .write_blocking("insert if absent", |tx| {
            let sql = "INSERT INTO thing (id) VALUES (?1) ON CONFLICT DO NOTHING";
            assert_eq!(tx.execute(sql, params!["a"])?, 0);
            assert_eq!(tx.execute(sql, params!["d"])?, 1);
            Ok::<(), Error>(())
        })
        .unwrap();
    assert_eq!(ids(&store), ["a", "d"]);
}

type Thing = (String, i64, Option<bool>, Option<Vec<u8>>);

fn values_come_back_as_they_went_in(config: Config) {
    let store = open(&config);
    let things: Vec<Thing> = vec![
        (String::new(), i64::MIN, None, None),
        ("BLOB ?1 'quoted'".into(), i64::MAX, Some(true), Some(vec![])),
        ("tschüß 🦘".into(), -1, Some(false), Some((0..=255).collect())),
    ];
    let given = things.clone();
    let returned: Vec<Thing> = store
        .write_blocking("insert", move |tx| {
            given
                .iter()
                .map(|(id, number, flag, body)| {
                    tx.query_one(
                        "INSERT INTO thing (id, number, flag, body) VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT (id) DO UPDATE SET number = excluded.number RETURNING id, number, flag, body",
                        params![id, number, flag, body],
                        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
                    )
                })
                .collect::<Result<_, Error>>()
        })
        .unwrap();
    assert_eq!(returned, things);
    store
        .read_blocking("read", |tx| {
            // A parameter twice, an optional filter, a literal, a count, a comparison, arithmetic, a page.
            let sql = "SELECT count(*), 1, count(*) = 1, '?1 BLOB', max(number + ?3) FROM thing
                       WHERE number = ?1 OR number = ?1 + 0 AND (?2 IS NULL OR id = ?2) LIMIT ?4";
            let row = tx.query_one(sql, params![-1, Value::Null, 5, 10], |row| {
                Ok((row.get::<u64>(0)?, row.get::<u8>(1)?, row.get::<bool>(2)?, row.get::<String>(3)?, row.get(4)?))
            })?;
            assert_eq!(row, (1, 1, true, "?1 BLOB".to_owned(), Some(4)));
            let wrong = tx.query("SELECT id FROM thing", params![], |row| row.get::<i64>(0)).unwrap_err();
            assert_eq!(wrong.to_string(), "read: column 0: wanted an integer, found text");
            Err::<(), Refusal>(Refusal::No)
        })
        .unwrap_err();
}

fn text_sorts_and_matches_as_bytes(config: Config) {
    let store = open(&config);
    store
        .write_blocking("insert", |tx| ["b", "a/2", "A", "ä", "a-1", "a"].iter().try_for_each(|id| insert(tx, id)))
        .unwrap();
    assert_eq!(ids(&store), ["A", "a", "a-1", "a/2", "b", "ä"]);
    let matching: Vec<String> = store
        .read_blocking("like", |tx| {
            tx.query("SELECT id FROM thing WHERE id LIKE ?1 ORDER BY id", params!["a%"], |row| row.get(0))
        })
        .unwrap();
    assert_eq!(matching, ["a", "a-1", "a/2"]);
}

fn unstorable_values_are_refused(config: Config) {
    let store = open(&config);
    let nul = store.write_blocking("insert", |tx| insert(tx, "a\0b")).unwrap_err();
    assert_eq!(nul.to_string(), "insert: parameter ?1: text holds a NUL character");
    let large = store
        .write_blocking("insert", |tx| tx.execute("INSERT INTO thing VALUES ('a', ?1)", params![u64::MAX]))
        .unwrap_err();
    assert!(large.to_string().contains("18446744073709551615 does not fit a BIGINT"), "{large}");
    let few =
        store.write_blocking("insert", |tx| tx.execute("INSERT INTO thing (id, number) VALUES (?1, ?2)", params!["a"]));
    assert!(matches!(few, Err(Error::Other { .. })), "{few:?}");
    assert_eq!(ids(&store).len(), 0);
}

fn a_foreign_key_is_recognised(config: Config) {
    let store = open(&config);
    let orphan = store.write_blocking("insert", |tx| {
        tx.execute("INSERT INTO part (id, thing) VALUES (?1, ?2)", params!["p", "nothing"])
    });
    assert!(matches!(orphan, Err(Error::Reference { .. })), "{orphan:?}");
}

fn streaming_stops_when_told(config: Config) {
    let store = open(&config);
    store.write_blocking("insert", |tx| (0..1000).try_for_each(|number| insert(tx, &format!("{number:04}")))).unwrap();
    let seen = store
        .read_blocking("stream", |tx| {
            let mut seen = 0;
            tx.each("SELECT id FROM thing ORDER BY id", params![], |row| {
                assert_eq!(row.get::<String>(0)?, format!("{seen:04}"));
                seen += 1;
                Ok(if seen == 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            // The transaction goes on.
            let all: u64 = tx.query_one("SELECT count(*) FROM thing", params![], |row| row.get(0))?;
            assert_eq!(all, 1000);
            Ok::<_, Error>(seen)
        })
        .unwrap();
    assert_eq!(seen, 10);
}

fn a_newer_store_is_refused_by_name(config: Config) {
    let newer = [SCHEMA[0], Migration { version: 7, name: "more", sql: "CREATE TABLE more (id TEXT);" }];
    drop(Store::open(&config, &newer).unwrap());
    let refused = Store::open(&config, SCHEMA).err().unwrap();
    assert_eq!(refused, Error::Newer { store: 7, name: "more".into(), binary: 1 });
    Store::open(&config, &newer).unwrap();
}

fn a_changed_history_is_refused(config: Config) {
    let third = Migration { version: 3, name: "third", sql: "CREATE TABLE third (id TEXT);" };
    drop(Store::open(&config, &[SCHEMA[0], third]).unwrap());
    let second = Migration { version: 2, name: "second", sql: "CREATE TABLE second (id TEXT);" };
    let late = Store::open(&config, &[SCHEMA[0], second, third]).err().unwrap();
    assert!(late.to_string().contains("migration 2 (second) comes below 3"), "{late}");
    let renamed = Store::open(&config, &[SCHEMA[0], Migration { name: "renamed", ..third }]).err().unwrap();
    assert!(renamed.to_string().contains("was third in this store, and is renamed here"), "{renamed}");
    assert!(Store::open(&config, &[third, SCHEMA[0]]).is_err());
}

fn a_failing_migration_leaves_nothing(config: Config) {
    let bad = Migration { version: 2, name: "bad", sql: "CREATE TABLE fine (id TEXT); CREATE TABLE ();" };
    let failed = Store::open(&config, &[SCHEMA[0], bad]).err().unwrap();
    assert!(failed.to_string().contains("migration 2 (bad)"), "{failed}");
    // Had anything been kept, the tables would be there already.
    let good = Migration { sql: "CREATE TABLE fine (id TEXT);", ..bad };
    Store::open(&config, &[SCHEMA[0], good]).unwrap();
}

fn incarnation_stays_and_epoch_rises(config: Config) {
    let store = open(&config);
    let incarnation = store.incarnation();
    assert_eq!(store.epoch(), 1);
    assert_eq!(block_on(store.raise_epoch()).unwrap(), 2);
    assert_eq!(store.epoch(), 2);
    drop(store);
    let store = open(&config);
    assert_eq!((store.incarnation(), store.epoch()), (incarnation, 2));
    assert_eq!(store.raise_epoch_blocking().unwrap(), 3);
    assert_eq!(store.read_blocking("epoch", |tx| tx.epoch()).unwrap(), 3);
}

fn the_last_handle_may_go_inside_a_closure(config: Config) {
    let store = open(&config);
    let (done, wait) = mpsc::channel();
    let mut handle = Some(Arc::new(store.clone()));
    let mut queued = Box::pin(store.write("drop the store", move |tx| {
        insert(tx, "last words")?;
        thread::sleep(std::time::Duration::from_millis(50));
        drop(handle.take());
        done.send(()).unwrap();
        Ok::<(), Error>(())
    }));
    assert!(queued.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(queued);
    drop(store);
    wait.recv().unwrap();
}
