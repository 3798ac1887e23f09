//! `mallee net`: the cloud's network as a tree, and what would become of a packet.

mod show;
mod trace;

pub use show::{As, run as show};
pub use trace::{Choices as Packet, run as trace};
