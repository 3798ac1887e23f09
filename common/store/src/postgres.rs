//! PostgreSQL: a few connections, each on a thread of its own; every transaction SERIALIZABLE, run again after a conflict.

use crate::Error;
use crate::migrate::{self, Identity, Migration, WHAT};
use crate::sqlite::spawn;
use crate::store::{Counters, Engine, Job, Verdict};
use crate::tx::{Row, Session as AnySession, Source, Tx, Visit};
use crate::value::Value;
use ::postgres::config::TargetSessionAttrs;
use ::postgres::error::SqlState;
use ::postgres::fallible_iterator::FallibleIterator;
use ::postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use ::postgres::{Client, Config, NoTls, Statement};
use bytes::{BufMut, BytesMut};
use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error as StdError;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const WRITERS: usize = 6;
const READERS: usize = 3;
/// Conflicts are settled in a few runs; whoever loses this often is told that the store is busy.
const MOST_RUNS: u32 = 40;
/// Prepared statements kept per connection.
const MOST_STATEMENTS: usize = 256;

type Jobs = Arc<Mutex<Receiver<Box<dyn Job>>>>;

/// A connection and what was prepared on it. Never touched by an async thread: the client blocks.
pub(crate) struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
}

/// Where to connect.
#[derive(Clone)]
struct Target {
    config: Config,
    schema: String,
}

pub(crate) fn open(
    url: &str,
    schema: &str,
    migrations: &[Migration],
    counters: &Arc<Counters>,
) -> Result<Engine, Error> {
    let mut config: Config = url.parse().map_err(|error| Error::other(WHAT, format!("the PostgreSQL URL: {error}")))?;
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(Duration::from_secs(5));
    }
    // Of several hosts, the primary: a replica would refuse every write.
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    // A server whose machine died sends nothing: without these a call would wait for hours.
    config.tcp_user_timeout(Duration::from_secs(10)).keepalives_idle(Duration::from_secs(10));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if schema.is_empty() || !schema.chars().all(plain) {
        return Err(Error::other(WHAT, format!("the schema name {schema:?} is not of a-z, 0-9 and _")));
    }
    let target = Target { config, schema: schema.to_owned() };
    // On a thread, because the caller may be inside an async runtime, where the client cannot block.
    let identity = thread::scope(|scope| scope.spawn(|| prepare(&target, migrations)).join())
        .map_err(|_| Error::other(WHAT, "panicked while connecting"))??;

    let mut threads = Vec::with_capacity(WRITERS + READERS);
    let writes = workers("store-write", WRITERS, "", &target, counters, &mut threads)?;
    let reads = workers("store-read", READERS, " READ ONLY", &target, counters, &mut threads)?;
    Ok(Engine { writes, reads, here: None, threads, identity })
}

fn workers(
    name: &str,
    count: usize,
    mode: &'static str,
    target: &Target,
    counters: &Arc<Counters>,
    threads: &mut Vec<thread::JoinHandle<()>>,
) -> Result<Sender<Box<dyn Job>>, Error> {
    let (sender, queue) = channel();
    let queue: Jobs = Arc::new(Mutex::new(queue));
    for number in 0..count {
        let mut worker = Worker { number, target: target.clone(), mode, session: None, counters: counters.clone() };
        let queue = queue.clone();
        threads.push(spawn(name, move || worker.serve(&queue))?);
    }
    Ok(sender)
}

/// Checks the server, makes the schema and migrates it, one process at a time.
fn prepare(target: &Target, migrations: &[Migration]) -> Result<Identity, Error> {
    let mut session = target.connect()?;
    let row = session
        .client
        .query_one(
            "SELECT pg_encoding_to_char(encoding)::text, 'Z' < 'a' AND 'z' < 'ä' AND 'a-c' < 'ab',
                    current_setting('fsync')
             FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .map_err(|error| failure(WHAT, &error))?;
    let (encoding, by_bytes, fsync): (String, bool, String) = (row.get(0), row.get(1), row.get(2));
    if encoding != "UTF8" || !by_bytes {
        return Err(Error::other(
            WHAT,
            "in this database text does not sort as bytes of UTF-8, as keys must: \
             make it with createdb --template=template0 --encoding=UTF8 --locale=C",
        ));
    }
    if fsync != "on" {
        tracing::warn!("this PostgreSQL runs with fsync={fsync}: what is acknowledged can be lost");
    }
    let schema = &target.schema;
    // Taken before the transaction, whose view begins with its first statement.
    session.script(WHAT, &format!("SELECT pg_advisory_lock(hashtext('mallee-store {schema}')::bigint)"))?;
    session.script(WHAT, &format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""))?;
    session.script(WHAT, "BEGIN ISOLATION LEVEL SERIALIZABLE")?;
    let identity = migrate::apply(&mut Tx::new(AnySession::Postgres(&mut session), WHAT), migrations)?;
    session.script(WHAT, "COMMIT")?;
    Ok(identity)
}

impl Target {
    fn connect(&self) -> Result<Session, Error> {
        let mut client =
            self.config.connect(NoTls).map_err(|error| Error::Connection { what: WHAT, detail: chain(&error) })?;
        client
            .batch_execute(&format!(
                "SET search_path TO \"{}\";
                 SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
                self.schema
            ))
            .map_err(|error| failure(WHAT, &error))?;
        Ok(Session { client, statements: HashMap::new() })
    }
}

struct Worker {
    number: usize,
    target: Target,
    /// Appended to BEGIN.
    mode: &'static str,
    session: Option<Session>,
    counters: Arc<Counters>,
}

impl Worker {
    fn serve(&mut self, queue: &Jobs) {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(mut job) = next else { return };
            let end = self.settle(job.as_mut());
            match &end {
                Ok(()) if self.mode.is_empty() => self.counters.batch(1),
                Ok(()) => {}
                Err(error) => self.counters.error(error),
            }
            job.release(end);
        }
    }

    /// Runs the job until it is decided. Only what certainly was not committed is run again.
    fn settle(&mut self, job: &mut dyn Job) -> Result<(), Error> {
        let mut runs = 0;
        loop {
            runs += 1;
            // The server may have been restarted since the last job: that costs one more run and no error. A server
            // that cannot be reached now is an error at once, so that a queue does not wait behind it.
            let connected = self.session.is_some();
            match self.attempt(job) {
                Err(Error::Busy { .. }) if runs < MOST_RUNS => {
                    // Uneven between the workers, so that the same two do not meet again.
                    let pause = 1 + u64::from(runs.min(10)) * (self.number as u64 + 1);
                    thread::sleep(Duration::from_millis(pause));
                }
                Err(Error::Connection { .. }) if connected && runs < MOST_RUNS => {}
                end => return end,
            }
            self.counters.rerun();
        }
    }

    fn attempt(&mut self, job: &mut dyn Job) -> Result<(), Error> {
        let what = job.what();
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.target.connect()?,
        };
        let end = session.transact(job, self.mode);
        if !session.client.is_closed() && !matches!(end, Err(Error::Connection { .. } | Error::InDoubt { .. })) {
            self.session = Some(session);
        }
        end.map_err(|error| error.about(what))
    }
}

impl Session {
    /// One run of a job, up to and including COMMIT. A refusal commits too, with what it wrote undone: only the commit
    /// shows that what it was computed from was one consistent view.
    fn transact(&mut self, job: &mut dyn Job, mode: &str) -> Result<(), Error> {
        let what = job.what();
        self.script(what, &format!("BEGIN ISOLATION LEVEL SERIALIZABLE{mode}; SAVEPOINT closure"))?;
        let verdict = job.run(AnySession::Postgres(self));
        if let Verdict::Failed(error @ (Error::Busy { .. } | Error::Connection { .. })) = verdict {
            // When this fails too, the connection is closed, and a new one has no transaction open.
            drop(self.client.batch_execute("ROLLBACK"));
            return Err(error);
        }
        let keep = matches!(verdict, Verdict::Keep);
        if !keep && let Err(error) = self.script(what, "ROLLBACK TO closure") {
            drop(self.client.batch_execute("ROLLBACK"));
            return Err(error);
        }
        match self.script(what, "COMMIT") {
            // The answer to COMMIT is lost, not necessarily the commit. Where there was nothing to keep it is no matter.
            Err(Error::Connection { detail, .. }) if keep && mode.is_empty() => Err(Error::InDoubt { what, detail }),
            end => end,
        }
    }

    pub fn execute(&mut self, what: &'static str, sql: &str, values: &[Value<'_>]) -> Result<u64, Error> {
        let statement = self.statement(what, sql)?;
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        self.client.execute(&statement, &values).map_err(|error| failure(what, &error))
    }

    pub fn each(&mut self, what: &'static str, sql: &str, values: &[Value<'_>], visit: Visit<'_>) -> Result<(), Error> {
        let statement = self.statement(what, sql)?;
        let values = values.iter().map(|value| value as &(dyn ToSql + Sync));
        let mut rows = self.client.query_raw(&statement, values).map_err(|error| failure(what, &error))?;
        while let Some(row) = rows.next().map_err(|error| failure(what, &error))? {
            if visit(&Row { source: Source::Postgres(&row), what })? == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    pub fn script(&mut self, what: &'static str, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(&translate(sql)).map_err(|error| failure(what, &error))
    }

    fn statement(&mut self, what: &'static str, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&translate(sql)).map_err(|error| failure(what, &error))?;
        if self.statements.len() >= MOST_STATEMENTS {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// The store's SQL as PostgreSQL wants it: `?1` becomes `$1`, `BLOB` becomes `BYTEA`, but not in strings, quoted names
/// and comments.
fn translate(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 8);
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let closing = match first {
            '\'' => Some("'"),
            '"' => Some("\""),
            '-' if rest.starts_with("--") => Some("\n"),
            '/' if rest.starts_with("/*") => Some("*/"),
            _ => None,
        };
        let length = match closing {
            // A doubled quote closes a string and opens the next one, which comes to the same.
            Some(closing) => {
                let opening = if closing == "*/" { 2 } else { 1 };
                rest[opening..].find(closing).map_or(rest.len(), |at| opening + at + closing.len())
            }
            None if first.is_alphanumeric() || first == '_' => {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            None => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        match token {
            "?" if after.starts_with(|c: char| c.is_ascii_digit()) => out.push('$'),
            word if word.eq_ignore_ascii_case("blob") => out.push_str("BYTEA"),
            other => out.push_str(other),
        }
        rest = after;
    }
    out
}

pub(crate) fn column(row: &::postgres::Row, index: usize) -> Result<Value<'_>, String> {
    row.try_get(index).map_err(|error| chain(&error))
}

impl ToSql for Value<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Value::Null => return Ok(IsNull::Yes),
            Value::Integer(number) => match *kind {
                Type::INT8 => out.put_i64(*number),
                // Where nothing says otherwise (`?1 + 1`) PostgreSQL takes a parameter for a small number.
                Type::INT4 => out.put_i32(i32::try_from(*number)?),
                Type::INT2 => out.put_i16(i16::try_from(*number)?),
                Type::BOOL => out.put_u8(u8::from(*number != 0)),
                _ => return Err(mismatch(self, kind)),
            },
            Value::Text(text) => match *kind {
                Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN => {
                    out.put_slice(text.as_bytes())
                }
                _ => return Err(mismatch(self, kind)),
            },
            Value::Blob(blob) => match *kind {
                Type::BYTEA => out.put_slice(blob),
                _ => return Err(mismatch(self, kind)),
            },
            Value::Unstorable(why) => return Err(why.as_str().into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn mismatch(value: &Value<'_>, kind: &Type) -> Box<dyn StdError + Sync + Send> {
    format!("{} was given where {kind} is wanted", value.kind()).into()
}

impl<'a> FromSql<'a> for Value<'a> {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        match *kind {
            Type::INT8 => i64::from_sql(kind, raw).map(Value::Integer),
            Type::INT4 => i32::from_sql(kind, raw).map(|number| Value::Integer(number.into())),
            Type::INT2 => i16::from_sql(kind, raw).map(|number| Value::Integer(number.into())),
            Type::BOOL => bool::from_sql(kind, raw).map(|yes| Value::Integer(yes.into())),
            Type::NUMERIC => whole_number(raw).map(Value::Integer),
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN => {
                <&str>::from_sql(kind, raw).map(|text| Value::Text(Cow::Borrowed(text)))
            }
            Type::BYTEA => Ok(Value::Blob(Cow::Borrowed(raw))),
            _ => Err(format!("found {kind}, which the store does not know").into()),
        }
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Value::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// PostgreSQL's `sum` of BIGINT is NUMERIC: digits to the base of 10,000, the first one counting 10,000 to the `weight`.
fn whole_number(raw: &[u8]) -> Result<i64, Box<dyn StdError + Sync + Send>> {
    let words: Vec<u16> = raw.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    let [_, weight, sign, _, digits @ ..] = words.as_slice() else {
        return Err("found a damaged number".into());
    };
    let places = usize::try_from((*weight).cast_signed() + 1).unwrap_or(0);
    if digits.len() > places || !matches!(sign, 0 | 0x4000) {
        return Err("found a number that is not whole".into());
    }
    let mut number: i128 = 0;
    for place in 0..places.min(9) {
        number = number * 10_000 + i128::from(digits.get(place).copied().unwrap_or(0));
    }
    let number = if *sign == 0 { number } else { -number };
    if places > 9 { Err("found a number too large".into()) } else { Ok(i64::try_from(number)?) }
}

fn failure(what: &'static str, error: &::postgres::Error) -> Error {
    let detail = chain(error);
    let Some(said) = error.as_db_error() else {
        // Nothing the server said: either the connection, or a value that does not fit its column.
        let io = error.source().is_some_and(|source| source.is::<std::io::Error>());
        return if io || error.is_closed() {
            Error::Connection { what, detail }
        } else {
            Error::Other { what, detail }
        };
    };
    let code = said.code();
    match code {
        &SqlState::UNIQUE_VIOLATION => {
            Error::Unique { what, table: said.table().unwrap_or_default().to_owned(), detail }
        }
        &SqlState::FOREIGN_KEY_VIOLATION => Error::Reference { what, detail },
        &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED | &SqlState::LOCK_NOT_AVAILABLE => {
            Error::Busy { what, detail }
        }
        &SqlState::DISK_FULL => Error::Full { what, detail },
        &SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN | &SqlState::CANNOT_CONNECT_NOW => {
            Error::Connection { what, detail }
        }
        code if code.code().starts_with("08") => Error::Connection { what, detail },
        _ => Error::Other { what, detail },
    }
}

/// The error with its causes: the crate's own message for a refusal is just "db error".
fn chain(error: &::postgres::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_said = cause.to_string();
        if !said.contains(&cause_said) {
            said = format!("{said}: {cause_said}");
        }
        source = cause.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_is_translated_outside_of_strings_names_and_comments() {
        for (given, wanted) in [
            ("SELECT ?1, ?12", "SELECT $1, $12"),
            ("a BLOB, blob_part blob", "a BYTEA, blob_part BYTEA"),
            ("'?1 BLOB it''s ?2' || ?3", "'?1 BLOB it''s ?2' || $3"),
            ("\"?1 blob\" = ?1", "\"?1 blob\" = $1"),
            ("-- ?1 BLOB\n?1 /* ?2 BLOB */ ?2", "-- ?1 BLOB\n$1 /* ?2 BLOB */ $2"),
            ("'é' = ?1 -- ?", "'é' = $1 -- ?"),
            ("'open ?1", "'open ?1"),
        ] {
            assert_eq!(translate(given), wanted);
        }
    }

    #[test]
    fn numeric_is_read_when_it_is_whole_and_fits() {
        let raw = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        assert_eq!(whole_number(&raw(&[0, 0, 0, 0])).unwrap(), 0);
        assert_eq!(whole_number(&raw(&[1, 1, 0, 0, 7])).unwrap(), 70_000);
        assert_eq!(whole_number(&raw(&[2, 1, 0x4000, 0, 1, 2])).unwrap(), -10_002);
        assert!(whole_number(&raw(&[1, 0xffff, 0, 1, 5000])).is_err());
        assert!(whole_number(&raw(&[1, 5, 0, 0, 1])).is_err());
    }
}
