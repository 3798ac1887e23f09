//! walrus as a whole: over HTTP, over mutual TLS, and killed.

mod client;
mod crash;
mod objects;
mod tiers;
