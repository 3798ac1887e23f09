//! What can go wrong with an engine, in words an operator can act on.

use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work; the text says what to change.
    #[error("{0}")]
    Config(String),
    /// Something of the host is in the way and is not ours to remove.
    #[error("{0}")]
    Refused(String),
    #[error("{doing} {path}: {source}", path = path.display())]
    File { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{command}` failed: {detail}")]
    Command { command: String, detail: String },
    #[error("{engine}: {detail}")]
    Engine { engine: String, detail: String },
    #[error("{0}")]
    System(String),
    #[error("the local switch's database: {0}")]
    Database(#[from] mallee_ovsdb::Error),
}

impl Error {
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { doing, path, source }
    }

    pub(crate) fn engine(engine: &str, detail: impl std::fmt::Display) -> Error {
        Error::Engine { engine: engine.to_owned(), detail: detail.to_string() }
    }
}
