//! An OVSDB client: RFC 7047 with the `monitor_cond` extension of ovsdb-server(7).
//!
//! Open vSwitch and OVN are programmed only through their databases. This crate speaks to them over any byte stream (a unix
//! socket, TLS between machines: [`Remotes`]), because the command line tools cannot say what Mallee needs: one transaction that
//! both checks and writes, and a stream of what changed.
//!
//! - [`Client`] owns one connection. It does not reconnect: when the connection ends every call and every monitor answers
//!   [`Error::Closed`], and the owner starts again from a fresh [`Client::connect`] and a fresh monitor.
//! - [`Op`], [`Row`], [`Condition`] and the functions of [`value`] build transactions.
//! - [`Replica`] is a copy of the monitored tables that follows the updates. Use it: an update of a set or map column
//!   carries a *difference*, which is easily taken for the new value.

mod client;
mod error;
mod frame;
mod op;
mod remote;
mod replica;
mod row;
pub mod value;

pub use client::{Client, Monitor, MonitorTable};
pub use error::{Error, Result};
pub use frame::Framer;
pub use op::{Condition, Op, OpResult};
pub use remote::{Remote, Remotes, Tls};
pub use replica::{Change, Replica, RowUpdate, Schema};
pub use row::Row;
