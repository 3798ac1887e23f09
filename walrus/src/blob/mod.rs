//! Bytes: where they are, how they come in, how they go out, and how the ones nobody refers to are found again.
//!
//! A blob is written once, under an id that is never used again, and is never changed. Which object it belongs to is said
//! by that object's row alone, so a blob becomes visible, and stops being, in one transaction with its row. Several
//! objects may refer to one blob: a copy costs a row.
//!
//! **No bytes are ever lost sight of.** An id is a row in `loose` before the first byte of it is written. The transaction that
//! makes an object of it takes that row away; the one that overwrites or deletes the object puts it back. So the rows of
//! `loose` are all the bytes that may have to go ([`crate::sweep`]), and no folder is ever walked.

mod block;
mod cipher;
mod file;
mod id;
mod intake;
mod md5;
mod outflow;
mod pin;

pub use block::Block;
pub use cipher::{BlockKey, DataKey, SEALED_BLOCK, stored_size};
pub use file::FileBlobs;
pub use id::{BlobId, BlobIds, DEAD_FILE, DEAD_PARTS, YOUNG, Young};
pub use intake::{Content, Intake, Keeping, Place, Received};
pub use md5::Lanes;
pub use outflow::{Damage, Piece, Source, fetch, outflow};
pub use pin::{Pin, Pins};

use std::io;

use bytes::Bytes;
use mallee_store::{Tx, params};

use crate::Error;

/// Bytes are checked and moved in blocks of this size.
pub const BLOCK: usize = 256 * 1024;

/// A place for bytes. Calls block, so they are made off the reactor. Kept narrow: a second backend is to come.
pub trait Blobs: Send + Sync + 'static {
    /// An empty block, to become the block `n` of a blob.
    fn block(&self, n: u64) -> Block;
    /// A new, empty blob.
    fn create(&self, id: &BlobId) -> io::Result<Box<dyn BlobWriter>>;
    /// A blob of `size` bytes, which stays readable until the reader is dropped, whatever is removed meanwhile.
    fn open(&self, id: &BlobId, size: u64) -> io::Result<Box<dyn BlobReader>>;
    /// Removes them, so that no power cut brings one back: their rows go next. Succeeds where one is not there.
    fn remove(&self, ids: &[BlobId]) -> io::Result<()>;
    /// `StorageFull` when so little is left that the store could not write the rows that make room again.
    fn room(&self) -> io::Result<()>;
}

pub trait BlobWriter: Send + Sync {
    /// Appends a block of [`BLOCK`] bytes.
    fn write(&mut self, block: Block) -> io::Result<()>;
    /// Appends the last block, which may be shorter, and makes everything durable, name and all.
    fn finish(self: Box<Self>, last: Block) -> io::Result<()>;
}

pub trait BlobReader: Send + Sync {
    /// The block `n`, verified; `InvalidData` when it is not what was written.
    fn block(&self, n: u64) -> io::Result<Bytes>;
    /// The same, where it is had without waiting: this one may be called on the reactor.
    fn at_hand(&self, n: u64) -> Option<io::Result<Bytes>>;
}

/// The tables of this module: ids nobody refers to yet or any more, and contents small enough to be rows.
pub const TABLES: &str = "
    CREATE TABLE loose (
        blob TEXT PRIMARY KEY,
        kind BIGINT NOT NULL,
        boot TEXT NOT NULL,
        since BIGINT NOT NULL
    );
    CREATE INDEX loose_by_kind ON loose (kind, since);
    CREATE TABLE small (
        blob TEXT PRIMARY KEY,
        crc TEXT NOT NULL,
        bytes BLOB NOT NULL
    );
";

/// Nothing refers to the content from this transaction on.
pub fn forget(tx: &mut Tx<'_>, content: &BlobId, place: Place, now: i64) -> Result<(), Error> {
    match place {
        Place::Row => tx.execute("DELETE FROM small WHERE blob = ?1", params![content]).map(drop).map_err(Error::from),
        Place::Nowhere => Ok(()),
        Place::Blob => id::let_go(tx, content, DEAD_FILE, now),
        Place::Parts => id::let_go(tx, content, DEAD_PARTS, now),
    }
}
