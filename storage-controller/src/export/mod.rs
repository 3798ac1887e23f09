//! How the bytes of a volume are served to the machine its instance runs on.

mod nbd;
mod qmp;

pub use nbd::{Describe, Exports, Opened, Phase, Served};
pub use qmp::{FILL_JOB, Job, MERGE_JOB, Qmp, QmpError};
