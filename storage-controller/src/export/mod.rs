//! How the bytes of a volume are served to the machine its instance runs on.

mod nbd;
mod qmp;

pub use nbd::{Describe, Exports, Phase, Served};
pub use qmp::{MERGE_JOB, Qmp, QmpError};
