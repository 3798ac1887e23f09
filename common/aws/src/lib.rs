//! The AWS wire, pure: what comes in and goes out over EC2 Query, Query and S3 REST, with no tokio, store or file system.

pub mod answer;
pub mod chunked;
pub mod credential;
pub mod document;
pub mod error;
pub mod filter;
pub mod id;
mod mac;
pub mod paging;
pub mod params;
pub mod signature;
pub mod xml;

pub use credential::{AccessKeyId, SecretKey};
pub use error::{AwsError, Protocol};
