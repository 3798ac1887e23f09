//! The cloud-controller: the front of EC2, IAM and STS, and the owner of what is *wanted* — accounts, keys, policies,
//! instances, images, volumes, addresses, networks.
//!
//! A request writes what is wanted in one transaction and answers; reconcilers do the rest: `zone` sends each zone its
//! whole list and takes its reports, `network` makes OVN's northbound database match, `ec2::image` imports bundles.

pub mod account;
pub mod admin;
pub mod allowance;
pub mod bootstrap;
pub mod bundling;
pub mod config;
pub mod disk_key;
pub mod ebs;
pub mod ec2;
pub mod front;
pub mod identity_document;
pub mod join;
pub mod keyring;
pub mod network;
pub mod principal;
pub mod refusal;
pub mod route;
pub mod schema;
pub mod service;
pub mod start;
pub mod sts;
pub mod tier;
pub mod zone;

mod cloud;

pub use cloud::{Cloud, Pokes};
pub use config::Config;
pub use principal::Principal;
pub use refusal::Refusal;
pub use start::{Running, start};

/// What every rule returns.
pub type Outcome<T> = Result<T, Refusal>;
