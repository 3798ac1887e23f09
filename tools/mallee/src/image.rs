//! `mallee image`: guests made, bundled as the classic tools do it, uploaded to walrus, registered with EC2.

pub mod add;
pub mod build;
pub mod bundle;
mod encrypt;
mod manifest;
mod parts;
pub mod register;
pub mod upload;
