//! One connection: a task that reads, a task that writes, and the callers that wait for their answers.
//!
//! The reader never waits for anybody (ovsdb-server stops reading from a client that does not take its answers, so waiting
//! would dead-lock): answers go to one-shot channels, updates to a bounded queue whose overflow ends that monitor, and
//! what is to be written goes to an unbounded queue whose length is limited by the number of calls in flight.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::error::{Error, Result};
use crate::frame::Framer;
use crate::op::{Condition, Op, OpResult, read_results};
use crate::replica::{Replica, RowUpdate, Schema, read_updates};

/// A northbound database of 50,000 ports is about 30 MB in its first snapshot.
const MESSAGE_LIMIT: usize = 256 << 20;
const CALLS_IN_FLIGHT: usize = 256;
const UPDATES_QUEUED: usize = 16_384;

/// A connection to one database server. Cheap to clone; the connection ends when the last clone and monitor are gone.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
}

/// One monitored table: its columns (all when empty) and which rows (all when there is no condition).
#[derive(Debug, Clone)]
pub struct MonitorTable {
    table: String,
    columns: Vec<String>,
    conditions: Vec<Condition>,
}

/// The updates that follow a monitor's first snapshot.
pub struct Monitor {
    updates: mpsc::Receiver<Vec<RowUpdate>>,
    shared: Arc<Shared>,
    // Keeps the connection open while anybody reads from it.
    connection: Arc<Connection>,
    id: String,
}

struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    next: AtomicU64,
    in_flight: Semaphore,
    closed: watch::Receiver<Option<Arc<str>>>,
    tasks: [AbortHandle; 2],
}

struct Shared {
    calls: Mutex<Calls>,
    closed: watch::Sender<Option<Arc<str>>>,
}

#[derive(Default)]
struct Calls {
    waiting: HashMap<u64, oneshot::Sender<Result<Value>>>,
    monitors: HashMap<String, mpsc::Sender<Vec<RowUpdate>>>,
}

impl MonitorTable {
    pub fn new(table: &str) -> MonitorTable {
        MonitorTable { table: table.to_owned(), columns: Vec::new(), conditions: Vec::new() }
    }

    pub fn columns(mut self, columns: &[&str]) -> MonitorTable {
        self.columns = columns.iter().map(|&column| column.to_owned()).collect();
        self
    }

    /// Only rows for which *any* of the conditions given holds (`monitor_cond` joins them with "or").
    pub fn only(mut self, condition: Condition) -> MonitorTable {
        self.conditions.push(condition);
        self
    }
}

impl Client {
    pub async fn connect_unix(path: impl AsRef<Path>) -> Result<Client> {
        let path = path.as_ref();
        let stream = tokio::net::UnixStream::connect(path)
            .await
            .map_err(|source| Error::Connect { address: path.display().to_string(), source: Arc::new(source) })?;
        Ok(Client::new(stream))
    }

    /// Speaks over a stream that is already connected.
    pub fn new<S>(stream: S) -> Client
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(stream);
        let (outgoing, queue) = mpsc::unbounded_channel();
        let (closing, closed) = watch::channel(None);
        let shared = Arc::new(Shared { calls: Mutex::default(), closed: closing });
        let reader = tokio::spawn(read_all(read, shared.clone(), outgoing.clone()));
        let writer = tokio::spawn(write_all(write, shared.clone(), queue));
        Client {
            connection: Arc::new(Connection {
                shared,
                outgoing,
                next: AtomicU64::new(1),
                in_flight: Semaphore::new(CALLS_IN_FLIGHT),
                closed,
                tasks: [reader.abort_handle(), writer.abort_handle()],
            }),
        }
    }

    /// Applies all operations or none. An error names the operation that was refused.
    pub async fn transact(&self, database: &str, operations: Vec<Op>) -> Result<Vec<OpResult>> {
        let mut params = vec![Value::from(database)];
        params.extend(operations.iter().cloned().map(Op::into_value));
        let answer = self.request("transact", Value::Array(params)).await?;
        read_results(&operations, answer)
    }

    /// The rows there are now, and a stream of what changes from then on.
    pub async fn monitor_cond(&self, database: &str, tables: Vec<MonitorTable>) -> Result<(Vec<RowUpdate>, Monitor)> {
        let id = format!("m{}", self.connection.next.fetch_add(1, Ordering::Relaxed));
        let (sender, updates) = mpsc::channel(UPDATES_QUEUED);
        self.connection.shared.calls().monitors.insert(id.clone(), sender);
        let monitor = Monitor {
            updates,
            shared: self.connection.shared.clone(),
            connection: self.connection.clone(),
            id: id.clone(),
        };
        let params = json!([database, id, monitor_requests(tables)]);
        let initial = read_updates(self.request("monitor_cond", params).await?)?;
        Ok((initial, monitor))
    }

    /// [`Client::monitor_cond`] with the snapshot already in a [`Replica`].
    pub async fn replicate(&self, database: &str, tables: Vec<MonitorTable>) -> Result<(Replica, Monitor)> {
        let mut replica = Replica::new(self.schema(database).await?);
        let (initial, monitor) = self.monitor_cond(database, tables).await?;
        replica.apply(initial);
        Ok((replica, monitor))
    }

    pub async fn schema(&self, database: &str) -> Result<Schema> {
        Schema::parse(&self.request("get_schema", json!([database])).await?)
    }

    pub async fn databases(&self) -> Result<Vec<String>> {
        let answer = self.request("list_dbs", json!([])).await?;
        serde_json::from_value(answer).map_err(|error| Error::Protocol(error.to_string()))
    }

    /// One JSON-RPC call. The daemons' control sockets (`ovs-appctl`) speak the same protocol.
    pub async fn request(&self, method: &str, params: Value) -> Result<Value> {
        let connection = &self.connection;
        let Ok(_permit) = connection.in_flight.acquire().await else {
            return Err(connection.shared.reason());
        };
        let id = connection.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        connection.shared.calls().waiting.insert(id, sender);
        let message = json!({"id": id, "method": method, "params": params});
        // Checked after the entry is made: whoever closes first marks and then empties the map, so no caller is forgotten.
        if connection.closed.borrow().is_some() || connection.outgoing.send(message.to_string().into_bytes()).is_err() {
            return Err(connection.shared.reason());
        }
        match answer.await {
            Ok(Err(Error::Request { error, .. })) => Err(Error::Request { method: method.to_owned(), error }),
            Ok(answer) => answer,
            Err(_) => Err(connection.shared.reason()),
        }
    }

    /// Returns when the connection has ended, with the reason.
    pub async fn closed(&self) -> Error {
        let mut closed = self.connection.closed.clone();
        // An error means the sender is gone, which is closed as well.
        let _ = closed.wait_for(Option::is_some).await;
        self.connection.shared.reason()
    }
}

impl Monitor {
    /// The next batch: everything one transaction changed.
    pub async fn next(&mut self) -> Result<Vec<RowUpdate>> {
        match self.updates.recv().await {
            Some(updates) => Ok(updates),
            None if self.shared.closed.borrow().is_some() => Err(self.shared.reason()),
            None => Err(Error::Lagged),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.calls().monitors.remove(&self.id);
        let cancel = json!({"id": null, "method": "monitor_cancel", "params": [self.id]});
        // A closed connection has no monitors left to cancel.
        let _ = self.connection.outgoing.send(cancel.to_string().into_bytes());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reason(&self) -> Error {
        Error::Closed(self.closed.borrow().clone().unwrap_or_else(|| "shut down".into()))
    }

    fn close(&self, why: &str) {
        self.closed.send_modify(|closed| {
            closed.get_or_insert_with(|| why.into());
        });
        let mut calls = self.calls();
        calls.monitors.clear();
        for (_, waiting) in calls.waiting.drain() {
            // The caller may have gone away.
            let _ = waiting.send(Err(self.reason()));
        }
    }

    fn take(&self, message: Value, outgoing: &mpsc::UnboundedSender<Vec<u8>>) -> Result<()> {
        let Value::Object(mut message) = message else {
            return Err(Error::Protocol("a message is not an object".to_owned()));
        };
        match message.get("method").and_then(Value::as_str) {
            None => self.answer(&mut message),
            Some("echo") => {
                let answer = json!({"id": message.remove("id"), "result": message.remove("params"), "error": null});
                // The writer has stopped only when the connection is closing.
                let _ = outgoing.send(answer.to_string().into_bytes());
            }
            Some("update2") => self.update(&mut message)?,
            Some(other) => tracing::debug!(method = other, "the database sent something that was not asked for"),
        }
        Ok(())
    }

    fn answer(&self, message: &mut Map<String, Value>) {
        let waiting = message.get("id").and_then(Value::as_u64).and_then(|id| self.calls().waiting.remove(&id));
        let Some(waiting) = waiting else { return };
        let answer = match message.remove("error") {
            None | Some(Value::Null) => Ok(message.remove("result").unwrap_or(Value::Null)),
            Some(error) => Err(Error::Request {
                method: String::new(),
                error: error.as_str().map_or_else(|| error.to_string(), str::to_owned),
            }),
        };
        let _ = waiting.send(answer);
    }

    fn update(&self, message: &mut Map<String, Value>) -> Result<()> {
        let Some(Value::Array(params)) = message.remove("params") else {
            return Err(Error::Protocol("an update without parameters".to_owned()));
        };
        let mut params = params.into_iter();
        let (Some(Value::String(id)), Some(updates)) = (params.next(), params.next()) else {
            return Err(Error::Protocol("a malformed update".to_owned()));
        };
        let updates = read_updates(updates)?;
        let mut calls = self.calls();
        let overflow = calls.monitors.get(&id).is_some_and(|monitor| monitor.try_send(updates).is_err());
        if overflow {
            calls.monitors.remove(&id);
        }
        Ok(())
    }
}

async fn read_all(mut stream: impl AsyncRead + Unpin, shared: Arc<Shared>, outgoing: mpsc::UnboundedSender<Vec<u8>>) {
    let mut framer = Framer::new(MESSAGE_LIMIT);
    let mut bytes = vec![0; 64 << 10];
    let why = 'connection: loop {
        match stream.read(&mut bytes).await {
            Ok(0) => break "the server hung up".to_owned(),
            Ok(count) => framer.push(&bytes[..count]),
            Err(error) => break error.to_string(),
        }
        loop {
            let message = match framer.next_message() {
                Ok(None) => break,
                Ok(Some(message)) => message,
                Err(error) => break 'connection error.to_string(),
            };
            let taken = serde_json::from_slice(&message)
                .map_err(|error| Error::Protocol(error.to_string()))
                .and_then(|message| shared.take(message, &outgoing));
            if let Err(error) = taken {
                break 'connection error.to_string();
            }
        }
    };
    shared.close(&why);
}

async fn write_all(
    mut stream: impl AsyncWrite + Unpin,
    shared: Arc<Shared>,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    while let Some(message) = queue.recv().await {
        // A TLS stream may have taken bytes that it has not sent.
        let written = async {
            stream.write_all(&message).await?;
            stream.flush().await
        };
        if let Err(error) = written.await {
            shared.close(&error.to_string());
            return;
        }
    }
}

fn monitor_requests(tables: Vec<MonitorTable>) -> Value {
    let mut requests = Map::new();
    for MonitorTable { table, columns, conditions } in tables {
        let mut request = Map::new();
        if !columns.is_empty() {
            request.insert("columns".to_owned(), json!(columns));
        }
        if !conditions.is_empty() {
            let clauses: Vec<Value> = conditions.into_iter().map(Condition::into_value).collect();
            request.insert("where".to_owned(), clauses.into());
        }
        requests.insert(table, json!([request]));
    }
    Value::Object(requests)
}
