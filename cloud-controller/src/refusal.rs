//! Why a request is not carried out: what the client is told, and what only the log is told.

use mallee_aws::AwsError;
use mallee_store::Error as StoreError;

/// The client sees `answer` only; `cause`, when there is one, goes to the log with the request's id.
#[derive(Debug)]
pub struct Refusal {
    pub answer: AwsError,
    pub cause: Option<String>,
}

impl Refusal {
    /// A 400 with this code.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        AwsError::bad_request(code, message).into()
    }
    /// A 500 for something that is our fault; `cause` is for the log.
    pub fn internal(cause: impl Into<String>) -> Self {
        Self { answer: AwsError::internal(), cause: Some(cause.into()) }
    }
    pub fn code(&self) -> &str {
        &self.answer.code
    }
}

impl From<AwsError> for Refusal {
    fn from(answer: AwsError) -> Self {
        Self { answer, cause: None }
    }
}

impl From<mallee_aws::id::MalformedId> for Refusal {
    fn from(e: mallee_aws::id::MalformedId) -> Self {
        AwsError::from(e).into()
    }
}

impl From<StoreError> for Refusal {
    fn from(e: StoreError) -> Self {
        let answer = match &e {
            StoreError::Busy { .. } | StoreError::Full { .. } | StoreError::Connection { .. } => {
                AwsError::unavailable("The cloud's store cannot take this now; try again")
            }
            _ => AwsError::internal(),
        };
        Self { answer, cause: Some(e.to_string()) }
    }
}
