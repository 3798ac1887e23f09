//! The node-controller: what really runs on one machine.

pub mod host;
