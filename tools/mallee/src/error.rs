//! What can go wrong, in words the person at the machine can act on.

use std::path::PathBuf;

use mallee_tiers::{TierError, TierErrorKind};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Asked for something that cannot be; the text says what to do instead.
    #[error("{0}")]
    Refused(String),
    #[error("{doing} {}: {source}", path.display())]
    File { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Engines(#[from] mallee_engines::Error),
    #[error("{}", tier_words(.0))]
    Tier(#[from] TierError),
    /// EC2 or S3 said no.
    #[error("{action}: {code}: {message}")]
    Aws { action: String, code: String, message: String },
    /// EC2 or S3 could not be reached.
    #[error("{0}")]
    Unreachable(String),
    #[error("cryptography: {0}")]
    OpenSsl(#[from] openssl::error::ErrorStack),
    #[error("{0}")]
    Pki(#[from] mallee_service::pki::PkiError),
}

fn tier_words(error: &TierError) -> String {
    match error.kind {
        TierErrorKind::Unreachable => format!("{}; `mallee status` shows what answers", error.message),
        _ => error.message.clone(),
    }
}

impl Error {
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { doing, path, source }
    }

    pub fn refused(text: impl Into<String>) -> Error {
        Error::Refused(text.into())
    }
}
