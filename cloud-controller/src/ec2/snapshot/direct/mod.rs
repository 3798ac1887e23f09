//! Snapshots that a client writes itself, block by block, through the EBS direct APIs ([`crate::ebs`]).
//!
//! ```text
//!            every block in its time            as many as told           pages are made, and found in walrus
//! Start ─► open ─────────────────────► Complete ─────────────► sealed ─────────────────────────────► ended (completed)
//!            └──timeout (error), or deleted──► ended ◄──deleted──┘
//! ```
//! Until it has ended, rows name every block that was written: they keep the block's blob in walrus and what the client was
//! told of it. The pages and the manifest that name the blocks afterwards are made by `finish`, on those of the parent, and
//! counted by [`super::keep`] as those of any other snapshot. A parent that is deleted stays until its child has ended.

mod finish;
pub mod lineage;
mod row;

pub use finish::drive;
pub use row::{
    Begun, Direct, OPEN, SEALED, TABLES, begin_block, checksums, find, insert, seal, set_written, uses_blob,
};

#[cfg(test)]
mod tests;
