//! ImportSnapshot and ImportImage: a disk file in walrus becomes a snapshot, and an image on it.
//!
//! ```text
//! asked ─► active ── the object is read as the caller may read it, taken apart into blocks ─► a snapshot's row
//!            │                                                                        (counted and found by `snapshot::keep`)
//!            ├── CancelImportTask, or what is wrong with it ─► deleted                             │
//!            └─────────────────────────────────────────────────────────────► completed ◄───────────┘
//! ```
//! `disk` reads formats and trusts nothing; `task` is the row, `begin` and `show` are EC2's pages; `work` carries it out, from
//! the start after every crash. What it sends to walrus is held for the task before it is sent, and let go when the task is over.

pub mod begin;
mod disk;
pub mod show;
mod task;
mod work;

pub use task::{KEY_COLUMN, TABLES};
pub use work::drive;
