use super::{cluster, ids, insert, open};
use mallee_store::{Config, Error, Migration, Store, params};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;

fn config(schema: &str) -> Config {
    Config::Postgres { url: format!("{} application_name={schema}", cluster::url()), schema: schema.to_owned() }
}

#[test]
fn the_loser_of_a_conflict_is_run_again() {
    let store = open(&config("conflict"));
    store.write_blocking("insert", |tx| insert(tx, "counter")).unwrap();
    // Both have read before either writes, so one of them must lose its first run.
    let both_have_read = Arc::new(Barrier::new(2));
    thread::scope(|scope| {
        for _ in 0..2 {
            let (store, barrier) = (store.clone(), both_have_read.clone());
            scope.spawn(move || {
                let mut first_run = true;
                store
                    .write_blocking("increment", move |tx| {
                        let number: i64 = tx.query_one("SELECT number FROM thing", params![], |row| row.get(0))?;
                        if std::mem::take(&mut first_run) {
                            barrier.wait();
                        }
                        tx.execute("UPDATE thing SET number = ?1", params![number + 1])
                    })
                    .unwrap();
            });
        }
    });
    let number = store
        .read_blocking("number", |tx| tx.query_one("SELECT number FROM thing", params![], |row| row.get::<i64>(0)));
    assert_eq!(number, Ok(2));
    assert!(store.figures().reruns >= 1);
    assert_eq!(store.figures().last_error, None);
}

/// Ends every connection of the tests that carry this name.
fn cut(name: &str) {
    let killer = Store::open(&Config::Postgres { url: cluster::url().into(), schema: "killer".into() }, &[]).unwrap();
    let name = name.to_owned();
    killer
        .write_blocking("cut", move |tx| {
            let sql = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = ?1";
            tx.query(sql, params![name], |_| Ok(()))
        })
        .unwrap();
}

#[test]
fn a_lost_connection_costs_a_run_and_no_error() {
    let store = open(&config("lost_connection"));
    store.write_blocking("insert", |tx| insert(tx, "before")).unwrap();
    cut("lost_connection");
    for number in 0..20 {
        store.write_blocking("insert", move |tx| insert(tx, &format!("idle-{number:02}"))).unwrap();
    }
    // In the middle of a closure, before COMMIT: certainly not written, so it is run again.
    let (running, wait_running) = mpsc::channel();
    let (go, wait_go) = mpsc::channel::<()>();
    let writer = thread::spawn({
        let store = store.clone();
        move || {
            store.write_blocking("insert", move |tx| {
                insert(tx, "within")?;
                running.send(()).unwrap();
                wait_go.recv().ok();
                insert(tx, "within-2")
            })
        }
    });
    wait_running.recv().unwrap();
    cut("lost_connection");
    drop(go);
    writer.join().unwrap().unwrap();
    assert_eq!(ids(&store).len(), 1 + 20 + 2);
    assert!(store.figures().reruns >= 2);
}

#[test]
fn a_server_that_is_not_there_is_said_so() {
    let url = "host=/nonexistent user=mallee dbname=postgres password=secret".to_owned();
    let config = Config::Postgres { url, schema: "nowhere".into() };
    assert!(!format!("{config:?}").contains("secret"));
    let Err(Error::Connection { detail, .. }) = Store::open(&config, &[]) else { panic!("opened") };
    assert!(detail.contains("No such file"), "{detail}");
}

#[test]
fn a_database_that_does_not_sort_as_bytes_is_refused() {
    let create = "CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de' LOCALE 'C'";
    let folder = cluster::url().split_once("host=").unwrap().1.split_once(' ').unwrap().0;
    let made = std::process::Command::new("psql")
        .args(["-h", folder, "-U", "mallee", "postgres", "-c", create])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let url = cluster::url().replace("dbname=postgres", "dbname=icu");
    let refused = Store::open(&Config::Postgres { url, schema: "icu".into() }, &[]).err().unwrap();
    assert!(refused.to_string().contains("does not sort as bytes"), "{refused}");
}

#[test]
fn two_processes_may_open_and_migrate_at_once() {
    let incarnations: Vec<_> = thread::scope(|scope| {
        let openers: Vec<_> = (0..4).map(|_| scope.spawn(|| open(&config("together")).incarnation())).collect();
        openers.into_iter().map(|opener| opener.join().unwrap()).collect()
    });
    assert!(incarnations.iter().all(|one| *one == incarnations[0]));
}

#[test]
fn opening_inside_an_async_runtime_works() {
    super::block_on(async {
        let store = open(&config("inside_async"));
        store.write("insert", |tx| insert(tx, "a")).await.unwrap();
    });
}

#[test]
fn a_connection_lost_at_commit_leaves_the_outcome_in_doubt() {
    const CUT_AT_COMMIT: &[Migration] = &[Migration {
        version: 1,
        name: "cut at commit",
        sql: "CREATE TABLE thing (id TEXT PRIMARY KEY);
              CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(30); RETURN NULL; END';
              CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON thing DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW WHEN (new.id = 'cut') EXECUTE FUNCTION cut();",
    }];
    let store = Store::open(&config("in_doubt"), CUT_AT_COMMIT).unwrap();
    let doubt = store.write_blocking("insert", |tx| insert(tx, "cut"));
    assert!(matches!(doubt, Err(Error::InDoubt { what: "insert", .. })), "{doubt:?}");
    assert!(store.figures().last_error.unwrap().contains("it is not known whether this was written"));
    store.write_blocking("insert", |tx| insert(tx, "next")).unwrap();
}
