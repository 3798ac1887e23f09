//! What every daemon of Mallee has: configuration, logging, its certificate, one HTTP front for people and tiers,
//! clients to the other tiers, reconcilers, and the faults it shows.

pub mod body;
pub mod clock;
pub mod config;
pub mod disk_key;
pub mod faults;
pub mod intent;
pub mod join;
mod lengths;
pub mod log;
pub mod pki;
pub mod process;
pub mod reconcile;
pub mod register;
pub mod seal;
pub mod server;
pub mod steps;
pub mod tiers;
pub mod tls;

pub use body::Body;
pub use clock::Clock;
pub use disk_key::DiskKey;
pub use faults::Faults;
pub use intent::{IntentBook, IntentSender, Listed};
pub use reconcile::{Driven, PassReport, Poke, Reconciler, drive};
pub use server::{Connection, Handler, Server};
pub use tiers::{TierHttp, call_front};
pub use tls::Identity;
