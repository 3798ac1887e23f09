//! Tests of the whole cloud, and what they need: the five tiers in one process (or as five) with simulated machines, a
//! client that signs well or badly, image bundles, and transcripts.
//!
//! `cargo test -p mallee-tests-cloud --test transcripts` runs what `tests/transcripts` tells; `--test cloud` the rest.

// Everything here runs inside tests, where a panic is how a failure is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod actions;
pub mod bundle;
pub mod client;
mod cloud;
pub mod pattern;
pub mod transcript;
pub mod xml;

pub use client::{Answer, Client, Signed, form};
pub use cloud::{Cloud, Options, Tier, eventually, image_settles, zone_name};
