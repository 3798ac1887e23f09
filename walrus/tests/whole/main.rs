//! walrus as a whole: over HTTP, over mutual TLS, and killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attacks;
mod buckets;
mod client;
mod conformance;
mod documentation;
mod hard;
mod objects;
mod tiers;
mod versions;
