//! SQLite: one writer thread that commits what is queued as one transaction, and a few readers.
//!
//! A durable commit costs an fsync, however much is in it; so closures that wait for the disk anyway share one, each in a
//! savepoint of its own.

use crate::migrate::{self, Migration, WHAT};
use crate::store::{Counters, Engine, Here, Job, Verdict};
use crate::tx::{Row, Session, Source, Tx, Visit};
use crate::value::Value;
use crate::{Error, durable_folder};
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, Statement, ffi, params_from_iter};
use std::borrow::Cow;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A batch ends at this many closures or at this age, whichever comes first, so nobody waits long for strangers.
const LARGEST_BATCH: usize = 512;
const LONGEST_BATCH: Duration = Duration::from_millis(20);
const READERS: usize = 3;
/// More threads than this do not look up at the same time.
const MOST_HERE: usize = 8;

pub(crate) fn open(path: &Path, migrations: &[Migration], counters: &Arc<Counters>) -> Result<Engine, Error> {
    let unusable = |error: std::io::Error| Error::other(WHAT, format!("{}: {error}", path.display()));
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    durable_folder(folder).map_err(unusable)?;
    let lock = lock(path)?;
    // Made here for its mode; SQLite gives the WAL the same one.
    private_file(path).map_err(unusable)?;

    let writer = connect(path)?;
    writer.execute_batch("BEGIN IMMEDIATE").map_err(|error| failure(WHAT, error))?;
    let identity = migrate::apply(&mut Tx::new(Session::Sqlite(&writer, counters), WHAT), migrations)?;
    writer.execute_batch("COMMIT").map_err(|error| failure(WHAT, error))?;
    // A new file is durable only when its folder is.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(unusable)?;

    let mut threads = Vec::with_capacity(READERS + 1);
    let (reads, queue) = channel::<Box<dyn Job>>();
    let queue = Arc::new(Mutex::new(queue));
    let reader = || {
        let connection = connect(path)?;
        connection.pragma_update(None, "query_only", true).map_err(|error| failure(WHAT, error))?;
        Ok::<_, Error>(connection)
    };
    for _ in 0..READERS {
        let connection = reader()?;
        let (queue, counters) = (queue.clone(), counters.clone());
        threads.push(spawn("store-read", move || read_loop(&connection, &queue, &counters))?);
    }
    let (writes, queue) = channel::<Box<dyn Job>>();
    let cores = thread::available_parallelism().map_or(1, usize::from).min(MOST_HERE);
    let idle = (0..cores).map(|_| reader().map(Mutex::new)).collect::<Result<_, _>>()?;
    let here: Box<dyn Here> = Box::new(Idle { connections: idle, counters: counters.clone() });
    let counters = counters.clone();
    threads.push(spawn("store-write", move || {
        write_loop(&writer, &queue, &counters);
        drop(lock);
    })?);
    Ok(Engine { writes, reads, here: Some(here), threads, identity })
}

/// Connections for look-ups on the threads of those who ask.
struct Idle {
    connections: Vec<Mutex<Connection>>,
    counters: Arc<Counters>,
}

impl Here for Idle {
    fn run(&self, job: Box<dyn Job>) -> Option<Box<dyn Job>> {
        match self.connections.iter().find_map(|connection| connection.try_lock().ok()) {
            None => Some(job),
            Some(connection) => {
                run_read(&connection, job, &self.counters);
                None
            }
        }
    }
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, Error> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(|error| Error::other(WHAT, error))
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Takes `<path>.lock`, which says who has it. The kernel lets go of it when that process ends, however it ends.
fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let unusable = |error: std::io::Error| Error::other(WHAT, format!("{}: {error}", name.display()));
    let mut file = private_file(&name).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            drop(file.read_to_string(&mut holder));
            let holder = if holder.is_empty() { "another process".to_owned() } else { holder };
            return Err(Error::Locked { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    let program = std::env::current_exe().unwrap_or_default();
    file.set_len(0).and_then(|()| file.rewind()).map_err(unusable)?;
    write!(file, "process {} ({})", std::process::id(), program.display()).map_err(unusable)?;
    Ok(file)
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let made = Connection::open(path).and_then(|connection| {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(256);
        // A misspelt column in double quotes is an error, as on PostgreSQL, and not a string.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA case_sensitive_like = ON;
             PRAGMA wal_autocheckpoint = 4000;
             PRAGMA journal_size_limit = 67108864;
             PRAGMA cache_size = -4096;",
        )?;
        Ok(connection)
    });
    made.map_err(|error| failure(WHAT, error).about(WHAT))
}

fn write_loop(connection: &Connection, queue: &Receiver<Box<dyn Job>>, counters: &Counters) {
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        let end = run_batch(connection, queue, &mut batch, counters);
        match &end {
            Ok(()) => counters.batch(batch.len()),
            Err(error) => {
                counters.error(error);
                roll_back(connection);
            }
        }
        for job in batch {
            job.release(end.clone());
        }
    }
}

/// One transaction of the first job and of those that queue up behind it. If it fails, it fails for all of them.
fn run_batch(
    connection: &Connection,
    queue: &Receiver<Box<dyn Job>>,
    batch: &mut Vec<Box<dyn Job>>,
    counters: &Counters,
) -> Result<(), Error> {
    let what = batch.first().map_or("write", |job| job.what());
    let step = |sql| {
        connection.prepare_cached(sql).and_then(|mut done| done.execute([])).map_err(|error| failure(what, error))
    };
    roll_back(connection);
    step("BEGIN IMMEDIATE")?;
    let started = Instant::now();
    let mut next = 0;
    while let Some(job) = batch.get_mut(next) {
        tracing::trace!(target: "step", "before store: {}", job.what());
        step("SAVEPOINT closure")?;
        let verdict = job.run(Session::Sqlite(connection, counters));
        if let Verdict::Failed(error) = &verdict {
            counters.error(error);
            // A full disk or a read error can end the whole transaction, and with it what others did in it.
            if connection.is_autocommit() {
                return Err(error.clone());
            }
        }
        if !matches!(verdict, Verdict::Keep) {
            step("ROLLBACK TO closure")?;
        }
        step("RELEASE closure")?;
        next += 1;
        if batch.len() < LARGEST_BATCH && started.elapsed() < LONGEST_BATCH {
            batch.extend(queue.try_recv());
        }
    }
    match connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])) {
        Ok(_) => {
            batch.iter().for_each(|job| tracing::trace!(target: "step", "after store: {}", job.what()));
            Ok(())
        }
        // The frames may have reached the file although the sync failed.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) => {
            Err(Error::InDoubt { what, detail: error.to_string() })
        }
        Err(error) => Err(failure(what, error)),
    }
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.prepare_cached("ROLLBACK").and_then(|mut done| done.execute([]))
    {
        tracing::error!("the store cannot roll back: {error}");
    }
}

fn read_loop(connection: &Connection, queue: &Mutex<Receiver<Box<dyn Job>>>, counters: &Counters) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        run_read(connection, job, counters);
    }
}

fn run_read(connection: &Connection, mut job: Box<dyn Job>, counters: &Counters) {
    let what = job.what();
    let step = |sql| {
        connection.prepare_cached(sql).and_then(|mut done| done.execute([])).map_err(|error| failure(what, error))
    };
    let end = step("BEGIN").map(|_| {
        if let Verdict::Failed(error) = job.run(Session::Sqlite(connection, counters)) {
            counters.error(&error);
        }
        roll_back(connection);
    });
    if let Err(error) = &end {
        counters.error(error);
    }
    job.release(end);
}

pub(crate) fn execute(
    connection: &Connection,
    counters: &Counters,
    what: &'static str,
    sql: &str,
    values: &[Value<'_>],
) -> Result<u64, Error> {
    let mut statement = connection.prepare_cached(sql).map_err(|error| failure(what, error))?;
    let changed = statement.execute(params_from_iter(values));
    counters.stepped(&statement);
    changed.map(|changed| changed as u64).map_err(|error| failure(what, error))
}

pub(crate) fn each(
    connection: &Connection,
    counters: &Counters,
    what: &'static str,
    sql: &str,
    values: &[Value<'_>],
    visit: Visit<'_>,
) -> Result<(), Error> {
    let mut statement = connection.prepare_cached(sql).map_err(|error| failure(what, error))?;
    let visited = visit_rows(&mut statement, what, values, visit);
    counters.stepped(&statement);
    visited
}

fn visit_rows(
    statement: &mut Statement<'_>,
    what: &'static str,
    values: &[Value<'_>],
    visit: Visit<'_>,
) -> Result<(), Error> {
    let mut rows = statement.query(params_from_iter(values)).map_err(|error| failure(what, error))?;
    while let Some(row) = rows.next().map_err(|error| failure(what, error))? {
        if visit(&Row { source: Source::Sqlite(row), what })? == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

pub(crate) fn script(connection: &Connection, what: &'static str, sql: &str) -> Result<(), Error> {
    connection.execute_batch(sql).map_err(|error| failure(what, error))
}

pub(crate) fn column<'r>(row: &'r rusqlite::Row<'_>, index: usize) -> Result<Value<'r>, String> {
    match row.get_ref(index).map_err(|error| error.to_string())? {
        ValueRef::Null => Ok(Value::Null),
        ValueRef::Integer(number) => Ok(Value::Integer(number)),
        ValueRef::Text(text) => {
            std::str::from_utf8(text).map(|text| Value::Text(Cow::Borrowed(text))).map_err(|error| error.to_string())
        }
        ValueRef::Blob(blob) => Ok(Value::Blob(Cow::Borrowed(blob))),
        ValueRef::Real(number) => Err(format!("found {number}, which is no whole number")),
    }
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
            Value::Unstorable(why) => {
                return Err(rusqlite::Error::ToSqlConversionFailure(why.as_str().into()));
            }
        }))
    }
}

fn failure(what: &'static str, error: rusqlite::Error) -> Error {
    let detail = error.to_string();
    let rusqlite::Error::SqliteFailure(code, message) = &error else {
        return Error::Other { what, detail };
    };
    match (code.code, code.extended_code) {
        (_, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID) => {
            // "UNIQUE constraint failed: volume.id, volume.zone"
            let columns = message.as_deref().and_then(|text| text.split_once(": ")).map_or("", |(_, columns)| columns);
            let table = columns.split_once('.').map_or(columns, |(table, _)| table).to_owned();
            Error::Unique { what, table, detail }
        }
        (_, ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => Error::Reference { what, detail },
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Error::Busy { what, detail },
        (ErrorCode::DiskFull, _) => Error::Full { what, detail },
        _ => Error::Other { what, detail },
    }
}
