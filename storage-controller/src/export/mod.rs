//! How the bytes of a volume are served to the machine its instance runs on.

mod daemon;
mod nbd;
mod place;
mod qmp;

pub use nbd::{Describe, Exports, Opened, Phase, Served};
pub use place::{Beyond, Place, PlaceError};
pub use qmp::{FILL_JOB, Job, MERGE_JOB, Qmp, QmpError};
