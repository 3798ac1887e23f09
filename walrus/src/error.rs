//! What can go wrong in walrus, and how little of it a client sees.

use std::io;

use mallee_aws::AwsError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A refusal, as the client is told it.
    #[error("{0}")]
    Refused(#[from] AwsError),
    /// A refusal about a delete marker, which the answer's headers name. `modified` is shown when it was asked for itself.
    #[error("{refusal}")]
    Hidden { refusal: AwsError, version: String, modified: Option<i64> },
    #[error("store: {0}")]
    Store(#[from] mallee_store::Error),
    #[error("blobs: {0}")]
    Blob(io::Error),
    /// A block whose checksum is not the one it was written with.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The client went away or sent something that is no HTTP body.
    #[error("the request's body ended early: {0}")]
    Cut(String),
    #[error("{0}")]
    Internal(String),
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::InvalidData { Error::Damaged(e.to_string()) } else { Error::Blob(e) }
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(e: tokio::task::JoinError) -> Self {
        Error::Internal(format!("a worker thread failed: {e}"))
    }
}

impl Error {
    /// What the client is told. The rest is for the log, under the request's id.
    pub fn told(&self) -> AwsError {
        use mallee_store::Error as Store;
        let full =
            || AwsError::new("InsufficientStorage", 507, "There is no space left to store this; nothing was kept.");
        match self {
            Error::Refused(refusal) | Error::Hidden { refusal, .. } => refusal.clone(),
            Error::Store(Store::Full { .. }) => full(),
            Error::Store(Store::Busy { .. }) => AwsError::new("SlowDown", 503, "Please reduce your request rate."),
            Error::Store(Store::Connection { .. }) => AwsError::new("ServiceUnavailable", 503, "Please try again."),
            Error::Blob(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => full(),
            Error::Cut(_) => AwsError::bad_request(
                "IncompleteBody",
                "You did not provide the number of bytes specified by the Content-Length HTTP header.",
            ),
            _ => AwsError::internal(),
        }
    }

    /// Whether a person should look at it.
    pub fn is_ours(&self) -> bool {
        !matches!(self, Error::Refused(_) | Error::Hidden { .. } | Error::Cut(_))
    }
}

/// The refusals more than one operation makes, worded as AWS words them.
pub mod refuse {
    use super::Error;
    use mallee_aws::AwsError;

    fn error(code: &'static str, status: u16, message: impl Into<String>) -> Error {
        Error::Refused(AwsError::new(code, status, message))
    }
    pub fn access_denied() -> Error {
        Error::Refused(AwsError::access_denied())
    }
    pub fn no_such_bucket(name: &str) -> Error {
        Error::Refused(
            AwsError::new("NoSuchBucket", 404, "The specified bucket does not exist").with_field("BucketName", name),
        )
    }
    pub fn no_such_key(key: &str) -> Error {
        Error::Refused(AwsError::new("NoSuchKey", 404, "The specified key does not exist.").with_field("Key", key))
    }
    pub fn no_such_version(key: &str, version: &str) -> Error {
        Error::Refused(
            AwsError::new("NoSuchVersion", 404, "The specified version does not exist.")
                .with_field("Key", key)
                .with_field("VersionId", version),
        )
    }
    pub fn no_such_upload(id: &str) -> Error {
        Error::Refused(
            AwsError::new(
                "NoSuchUpload",
                404,
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.",
            )
            .with_field("UploadId", id),
        )
    }
    pub fn argument(name: &str, value: &str, message: &str) -> Error {
        Error::Refused(
            AwsError::bad_request("InvalidArgument", message)
                .with_field("ArgumentName", name)
                .with_field("ArgumentValue", value),
        )
    }
    pub fn request(message: impl Into<String>) -> Error {
        error("InvalidRequest", 400, message)
    }
    pub fn precondition(condition: &'static str) -> Error {
        Error::Refused(
            AwsError::new("PreconditionFailed", 412, "At least one of the pre-conditions you specified did not hold")
                .with_field("Condition", condition),
        )
    }
    pub fn not_implemented(what: &str) -> Error {
        error("NotImplemented", 501, format!("{what} is not implemented by this server."))
    }
    pub fn malformed_xml() -> Error {
        Error::Refused(AwsError::malformed_xml())
    }
    pub fn bad_digest(message: impl Into<String>) -> Error {
        error("BadDigest", 400, message)
    }
    pub fn several_checksums() -> Error {
        request("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
    }
    pub fn wrong_checksum(algorithm: &str) -> Error {
        bad_digest(format!("The {algorithm} you specified did not match the calculated checksum."))
    }
    pub fn coded(code: &'static str, status: u16, message: impl Into<String>) -> Error {
        error(code, status, message)
    }
}
