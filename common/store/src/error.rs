//! What can go wrong in the store. Every message begins with what was being done.

use std::path::PathBuf;

/// `what` is the name the caller gave its transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A UNIQUE or PRIMARY KEY constraint of `table` said no.
    #[error("{what}: already in {table}: {detail}")]
    Unique { what: &'static str, table: String, detail: String },
    /// A FOREIGN KEY said no: the row referred to is not there, or is still referred to.
    #[error("{what}: {detail}")]
    Reference { what: &'static str, detail: String },
    /// Others were in the way for so long that re-running was given up. Nothing was written; asking again may succeed.
    #[error("{what}: the store is busy: {detail}")]
    Busy { what: &'static str, detail: String },
    /// No space. Nothing was written.
    #[error("{what}: the store's disk is full: {detail}")]
    Full { what: &'static str, detail: String },
    /// The store cannot be reached. Nothing was written.
    #[error("{what}: the store cannot be reached: {detail}")]
    Connection { what: &'static str, detail: String },
    /// The connection or the disk failed while committing: the transaction may be durable or gone.
    #[error("{what}: it is not known whether this was written: {detail}")]
    InDoubt { what: &'static str, detail: String },
    /// The closure panicked. Nothing was written.
    #[error("{what}: panicked: {detail}")]
    Panicked { what: &'static str, detail: String },
    /// The store was written by a newer release.
    #[error(
        "the store is at migration {store} ({name}), newer than this binary, which knows up to {binary}; run the newer release"
    )]
    Newer { store: i64, name: String, binary: i64 },
    /// Another process has this SQLite store open.
    #[error("the store {path} is held by {holder}", path = .path.display())]
    Locked { path: PathBuf, holder: String },
    /// A mistake in a statement, a value of another type than asked for, a damaged file, ...
    #[error("{what}: {detail}")]
    Other { what: &'static str, detail: String },
}

impl Error {
    /// The same error, told to another transaction that shared its fate.
    pub(crate) fn about(mut self, about: &'static str) -> Error {
        match &mut self {
            Error::Unique { what, .. }
            | Error::Reference { what, .. }
            | Error::Busy { what, .. }
            | Error::Full { what, .. }
            | Error::Connection { what, .. }
            | Error::InDoubt { what, .. }
            | Error::Panicked { what, .. }
            | Error::Other { what, .. } => *what = about,
            Error::Newer { .. } | Error::Locked { .. } => {}
        }
        self
    }

    pub(crate) fn other(what: &'static str, detail: impl ToString) -> Error {
        Error::Other { what, detail: detail.to_string() }
    }

    pub(crate) fn closed(what: &'static str) -> Error {
        Error::Connection { what, detail: "it has been closed".into() }
    }

    /// Whether this says something about the store's health, rather than about the caller's rows.
    pub(crate) fn is_fault(&self) -> bool {
        !matches!(self, Error::Unique { .. } | Error::Reference { .. })
    }
}
