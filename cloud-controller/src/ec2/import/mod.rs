//! ImportSnapshot and ImportImage: a disk file in walrus becomes a snapshot, and an image on it.
//!
//! ```text
//! asked ─► active ── the object is read as the caller may read it, taken apart into blocks ─► a snapshot's row
//!            │                                                                        (counted and found by `snapshot::keep`)
//!            ├── CancelImportTask, or what is wrong with it ─► deleted                             │
//!            └─────────────────────────────────────────────────────────────► completed ◄───────────┘
//! ```
//! `disk` reads formats and trusts nothing; `task` is the row and EC2's pages; `work` carries it out, from the start after
//! every crash.

mod disk;
pub mod task;
mod work;

pub use task::TABLES;
pub use work::drive;
