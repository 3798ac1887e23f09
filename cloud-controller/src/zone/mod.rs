//! Zones: where their controllers are, what is sent down to them, and what their reports change up here.
//!
//! `registry` knows the addresses, `generation` numbers the lists, `cluster` and `storage` each send one kind of list and
//! take its reports, `event` keeps what happened, `why` tells the story of an id.

pub mod event;
pub mod generation;
pub mod registry;

pub use registry::Tiers;
