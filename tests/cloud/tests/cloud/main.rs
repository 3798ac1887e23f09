//! What the cloud promises, tried on all five tiers with simulated machines. Each test's name is the promise.

// The exemption of clippy.toml covers test functions, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod accounts;
mod attack;
mod boot_volume;
mod crash;
mod documentation;
mod ebs;
mod image;
mod import;
mod launch;
mod orphan;
mod placement;
mod snapshot;
mod steps;
mod stranger;
mod token;
mod volume;
