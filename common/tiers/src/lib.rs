//! What the tiers say to each other: ids, messages, one trait per tier, and the binding of those traits to any transport.
//!
//! **Intent goes down whole, reports come up whole.** A tier sends the complete list of what it asks of the tier below
//! ([`Intent`]); the receiver names the bodies it lacks and gets them in a second call. Reports are read by a hanging
//! [`Observe`] call that is answered at once when something changed. Nothing is a delta, so nothing can be lost as one,
//! and any tier may be killed at any moment: when it is back, the same calls heal the cloud.
//!
//! **Absence never destroys.** Only an explicit [`Desired::Terminated`] (or [`VolumeDesired::Deleted`]) row does. What
//! a tier holds and the list does not name is an orphan: reported, never killed.
//!
//! Messages ignore unknown fields and every enum has an arm for values of a later release, so that a tier can talk to
//! the release before and after its own.
//!
//! This crate knows no AWS, no store and no sockets: `mallee-service` carries the calls over HTTP with mutual TLS.

mod binding;
mod cloud;
mod flow_log;
mod identity;
mod instance;
mod intent;
mod network;
mod peer;
mod snapshot;
mod status;
mod volume;
mod walrus;
mod zone;

pub use binding::{Dispatch, TierError, TierErrorKind, Transport};
pub use cloud::*;
pub use flow_log::*;
pub use identity::*;
pub use instance::*;
pub use intent::*;
pub use network::*;
pub use peer::{Peer, Role, server_name};
pub use snapshot::*;
pub use status::*;
pub use volume::*;
pub use walrus::*;
pub use zone::*;

/// The path below which tiers call each other: `POST /-/tiers/<method>` with a JSON body.
pub const CALL_PREFIX: &str = "/-/tiers/";
/// The path at which a machine without a certificate asks for its first one: `POST /-/join`.
pub const JOIN_PATH: &str = "/-/join";
/// Protocol release; a receiver may use it to word a fault, never to refuse.
pub const PROTOCOL: u32 = 1;

/// Milliseconds since the Unix epoch. Never compared between two hosts to decide anything.
pub type Millis = i64;
