//! The front: a handle that gives closures to the engine's threads and waits for their outcome.

use crate::migrate::{Identity, Migration};
use crate::tx::{Session, Tx};
use crate::{Error, postgres, sqlite};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Which engine, and where.
#[derive(Clone, PartialEq, Eq)]
pub enum Config {
    /// A file, made when it is not there. One process at a time.
    Sqlite { path: PathBuf },
    /// A database with C collation and UTF-8; the schema is made when it is not there. Several processes may share it.
    Postgres { url: String, schema: String },
}

impl fmt::Debug for Config {
    /// Without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Config::Sqlite { path } => f.debug_struct("Sqlite").field("path", path).finish(),
            Config::Postgres { schema, .. } => {
                f.debug_struct("Postgres").field("schema", schema).finish_non_exhaustive()
            }
        }
    }
}

/// A tier's store. Clones share it; the last one to go closes it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Option<Engine>,
    identity: Identity,
    epoch: AtomicI64,
    counters: Arc<Counters>,
}

/// What an opened engine is: two queues, and the threads that serve them until the queues are dropped.
pub(crate) struct Engine {
    pub writes: Sender<Box<dyn Job>>,
    pub reads: Sender<Box<dyn Job>>,
    /// Reads on the thread of who asks, where the engine can.
    pub here: Option<Box<dyn Here>>,
    pub threads: Vec<JoinHandle<()>>,
    pub identity: Identity,
}

/// What the store has done since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Write closures whose outcome was released, refusals included.
    pub transactions: u64,
    /// Commits they took.
    pub batches: u64,
    pub largest_batch: u64,
    /// Closures run again after a conflict or a lost connection.
    pub reruns: u64,
    /// Instructions that SQLite's statements took: what they cost, whatever the machine does beside. 0 on PostgreSQL.
    pub steps: u64,
    /// The last failure of the store itself, not of a caller's rows.
    pub last_error: Option<String>,
}

#[derive(Default)]
pub(crate) struct Counters {
    transactions: AtomicU64,
    batches: AtomicU64,
    largest_batch: AtomicU64,
    reruns: AtomicU64,
    steps: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Store {
    /// Opens the store, making it if need be, and applies `migrations`. Blocks, so it is for start-up.
    pub fn open(config: &Config, migrations: &[Migration]) -> Result<Store, Error> {
        let counters = Arc::new(Counters::default());
        let engine = match config {
            Config::Sqlite { path } => sqlite::open(path, migrations, &counters)?,
            Config::Postgres { url, schema } => postgres::open(url, schema, migrations, &counters)?,
        };
        let identity = engine.identity;
        let epoch = AtomicI64::new(identity.epoch);
        Ok(Store { inner: Arc::new(Inner { engine: Some(engine), identity, epoch, counters }) })
    }

    /// Runs `f` in a transaction. `Ok` is kept, `Err` undone, and either is returned only once it is durable. Dropping
    /// the future does not stop what is already queued.
    pub async fn write<T, E>(
        &self,
        what: &'static str,
        f: impl FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.ask(self.inner.engine.as_ref().map(|engine| &engine.writes), what, f).await
    }

    /// Runs `f` on one consistent view, which has all writes that were answered before. Writing in it is an error.
    pub async fn read<T, E>(
        &self,
        what: &'static str,
        f: impl FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.ask(self.inner.engine.as_ref().map(|engine| &engine.reads), what, f).await
    }

    /// As [`read`](Store::read), for a few look-ups by key. Where the rows are in a local file they are nearly always in
    /// memory, and found in less time than another thread takes to wake up: they are looked up on this thread, unless
    /// others are at it. For nothing that visits many rows: this thread does nothing else meanwhile.
    pub async fn look_up<T, E>(
        &self,
        what: &'static str,
        f: impl FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let reply = move |outcome| drop(sender.send(outcome));
        let engine = self.inner.engine.as_ref();
        let job: Box<dyn Job> = Box::new(Request { what, f, outcome: None, reply });
        let left = match engine.and_then(|engine| engine.here.as_ref()) {
            Some(here) => here.run(job),
            None => Some(job),
        };
        if let Some(job) = left {
            send(engine.map(|engine| &engine.reads), job);
        }
        receiver.await.unwrap_or_else(|_| Err(E::from(Error::closed(what))))
    }

    /// [`write`](Store::write) for start-up and tools: blocks the thread.
    pub fn write_blocking<T, E>(
        &self,
        what: &'static str,
        f: impl FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.ask_blocking(self.inner.engine.as_ref().map(|engine| &engine.writes), what, f)
    }

    /// [`read`](Store::read) for start-up and tools: blocks the thread.
    pub fn read_blocking<T, E>(
        &self,
        what: &'static str,
        f: impl FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.ask_blocking(self.inner.engine.as_ref().map(|engine| &engine.reads), what, f)
    }

    /// Made when the store was created: another store, even of the same tier, has another one.
    pub fn incarnation(&self) -> Uuid {
        self.inner.identity.incarnation
    }

    /// The epoch as this handle last saw it: the higher half of every generation. See also [`Tx::epoch`].
    pub fn epoch(&self) -> i64 {
        self.inner.epoch.load(Relaxed)
    }

    /// Raises the epoch durably: after a restore, a fail-over or an election.
    pub async fn raise_epoch(&self) -> Result<i64, Error> {
        let epoch = self.write("raise the epoch", raise).await?;
        self.inner.epoch.fetch_max(epoch, Relaxed);
        Ok(epoch)
    }

    /// [`raise_epoch`](Store::raise_epoch) for start-up and tools.
    pub fn raise_epoch_blocking(&self) -> Result<i64, Error> {
        let epoch = self.write_blocking("raise the epoch", raise)?;
        self.inner.epoch.fetch_max(epoch, Relaxed);
        Ok(epoch)
    }

    pub fn figures(&self) -> Figures {
        let counters = &self.inner.counters;
        Figures {
            transactions: counters.transactions.load(Relaxed),
            batches: counters.batches.load(Relaxed),
            largest_batch: counters.largest_batch.load(Relaxed),
            reruns: counters.reruns.load(Relaxed),
            steps: counters.steps.load(Relaxed),
            last_error: counters.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    async fn ask<T, E, F>(&self, queue: Option<&Sender<Box<dyn Job>>>, what: &'static str, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        // Whoever asked may have gone away: then nobody wants the outcome.
        let reply = move |outcome| drop(sender.send(outcome));
        send(queue, Box::new(Request { what, f, outcome: None, reply }));
        receiver.await.unwrap_or_else(|_| Err(E::from(Error::closed(what))))
    }

    fn ask_blocking<T, E, F>(&self, queue: Option<&Sender<Box<dyn Job>>>, what: &'static str, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (sender, receiver) = sync_channel(1);
        let reply = move |outcome| drop(sender.send(outcome));
        send(queue, Box::new(Request { what, f, outcome: None, reply }));
        receiver.recv().unwrap_or_else(|_| Err(E::from(Error::closed(what))))
    }
}

fn raise(tx: &mut Tx<'_>) -> Result<i64, Error> {
    tx.query_one("UPDATE store_identity SET epoch = epoch + 1 RETURNING epoch", &[], |row| row.get(0))
}

/// A job that cannot be queued is dropped, and its reply with it, which its asker sees as a closed store.
fn send(queue: Option<&Sender<Box<dyn Job>>>, job: Box<dyn Job>) {
    if let Some(queue) = queue {
        drop(queue.send(job));
    }
}

impl Drop for Inner {
    /// Closes the queues and waits for the threads, so that the store can be opened again at once.
    fn drop(&mut self) {
        let Some(Engine { writes, reads, here, threads, .. }) = self.engine.take() else {
            return;
        };
        drop((writes, reads, here));
        for thread in threads {
            // A closure may own the last handle; a thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                drop(thread.join());
            }
        }
    }
}

/// One closure on its way through an engine: run, perhaps again, then released once.
pub(crate) trait Job: Send {
    fn what(&self) -> &'static str;
    /// Runs the closure and keeps its outcome back.
    fn run(&mut self, session: Session<'_>) -> Verdict;
    /// Hands out the outcome of the last run, or `end`'s error in its place.
    fn release(self: Box<Self>, end: Result<(), Error>);
}

/// What runs a read on the thread of who asks, or gives it back when all connections for that are in use.
pub(crate) trait Here: Send + Sync {
    fn run(&self, job: Box<dyn Job>) -> Option<Box<dyn Job>>;
}

/// What a run asks of the engine.
pub(crate) enum Verdict {
    Keep,
    /// Undo what the closure did; its outcome stands.
    Undo,
    /// As `Undo`, and it was a statement that failed: the engine may know that running again helps.
    Failed(Error),
}

struct Request<T, E, F, R> {
    what: &'static str,
    f: F,
    outcome: Option<Result<T, E>>,
    reply: R,
}

impl<T, E, F, R> Job for Request<T, E, F, R>
where
    T: Send,
    E: From<Error> + Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, E> + Send,
    R: FnOnce(Result<T, E>) + Send,
{
    fn what(&self) -> &'static str {
        self.what
    }

    fn run(&mut self, session: Session<'_>) -> Verdict {
        let mut tx = Tx::new(session, self.what);
        // The closure's captured state may be half changed after a panic, but it is never run again then.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.f)(&mut tx)));
        let (outcome, verdict) = match (outcome, tx.into_failure()) {
            (Err(panic), _) => {
                let error = Error::Panicked { what: self.what, detail: panic_message(panic.as_ref()) };
                tracing::error!(store.what = self.what, "{error}");
                (Err(E::from(error)), Verdict::Undo)
            }
            (Ok(Ok(_)), Some(error)) => (Err(E::from(error.clone())), Verdict::Failed(error)),
            (Ok(Err(refusal)), Some(error)) => (Err(refusal), Verdict::Failed(error)),
            (Ok(Err(refusal)), None) => (Err(refusal), Verdict::Undo),
            (Ok(Ok(done)), None) => (Ok(done), Verdict::Keep),
        };
        self.outcome = Some(outcome);
        verdict
    }

    fn release(self: Box<Self>, end: Result<(), Error>) {
        let Request { what, outcome, reply, .. } = *self;
        match (end, outcome) {
            (Ok(()), Some(outcome)) => reply(outcome),
            (Ok(()), None) => reply(Err(E::from(Error::closed(what)))),
            (Err(error), _) => reply(Err(E::from(error.about(what)))),
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "without a message".to_owned(),
    }
}

impl Counters {
    pub fn batch(&self, size: usize) {
        self.transactions.fetch_add(size as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        self.largest_batch.fetch_max(size as u64, Relaxed);
    }

    pub fn rerun(&self) {
        self.reruns.fetch_add(1, Relaxed);
    }

    /// Counts what the statement did since it was last counted.
    pub fn stepped(&self, statement: &rusqlite::Statement<'_>) {
        let steps = statement.reset_status(rusqlite::StatementStatus::VmStep);
        self.steps.fetch_add(u64::try_from(steps).unwrap_or_default(), Relaxed);
    }

    pub fn error(&self, error: &Error) {
        if error.is_fault() {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
    }
}
