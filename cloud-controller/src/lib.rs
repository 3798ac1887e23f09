//! The cloud-controller: the front of EC2, IAM and STS, and the owner of what is *wanted* — accounts, keys, policies,
//! instances, images, volumes, addresses, networks.
//!
//! A request writes what is wanted in one transaction and answers; reconcilers do the rest: `zone` sends each zone its
//! whole list and takes its reports, `network` makes OVN's northbound database match, `ec2::image` imports bundles.

pub mod account;
pub mod config;
pub mod ec2;
pub mod principal;
pub mod refusal;
pub mod schema;
pub mod service;

mod cloud;

pub use cloud::{Cloud, Pokes};
pub use config::Config;
pub use principal::Principal;
pub use refusal::Refusal;

/// What every rule returns.
pub type Outcome<T> = Result<T, Refusal>;
