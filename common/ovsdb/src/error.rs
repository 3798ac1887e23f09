//! What can go wrong between a caller and a database.

use std::sync::Arc;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The connection is gone. A call in flight may or may not have been applied; read before writing again.
    #[error("the database connection is closed: {0}")]
    Closed(Arc<str>),
    #[error("cannot connect to the database at {address}: {source}")]
    Connect { address: String, source: Arc<std::io::Error> },
    /// The transaction was refused and nothing of it was applied.
    #[error("the database refused {operation}: {error}: {details}")]
    Refused {
        /// Index into the operations given, or `None` when the transaction failed as a whole (at commit: a broken
        /// constraint or a missing reference).
        index: Option<usize>,
        /// The operation in words, for a log line.
        operation: String,
        /// The database's error word, such as `constraint violation`.
        error: String,
        details: String,
    },
    /// The whole request was refused (unknown database, malformed parameters).
    #[error("the database refused the request {method}: {error}")]
    Request { method: String, error: String },
    #[error("the database answered something unexpected: {0}")]
    Protocol(String),
    /// The reader of a monitor was too slow; its copy is stale, so it must start a new monitor.
    #[error("the monitor fell behind and was ended")]
    Lagged,
}

impl Error {
    /// True when a `wait` with timeout zero did not hold: the world is not what the caller had read, so read again.
    pub fn is_failed_wait(&self) -> bool {
        matches!(self, Error::Refused { error, .. } if error == "timed out")
    }

    pub fn is_closed(&self) -> bool {
        matches!(self, Error::Closed(_))
    }
}
