//! How the bytes of a volume are served to the machine its instance runs on.

mod nbd;

pub use nbd::{Exports, Phase, Served};
