//! walrus as a whole: over HTTP, over mutual TLS, and killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod crash;
mod objects;
mod tiers;
