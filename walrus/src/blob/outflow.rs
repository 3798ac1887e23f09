//! Bytes on their way out: a range of a content, block by verified block, read ahead by one.

use std::{collections::VecDeque, io, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use mallee_store::{Row, Tx, params};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{BLOCK, BlobId, BlobReader, Blobs, BlockKey, DataKey, Pin, SEALED_BLOCK, file::checksum, stored_size};
use crate::Error;

/// Consecutive bytes of a content.
pub enum Piece {
    Bytes(Bytes),
    /// `size` is the content's; the blob is larger when it is encrypted.
    Blob {
        id: BlobId,
        size: u64,
        key: Option<BlockKey>,
    },
}

impl Piece {
    pub fn blob(id: &BlobId, size: u64, key: Option<&DataKey>) -> Result<Self, Error> {
        let key = key.map(|key| key.of_blob(id)).transpose()?;
        Ok(Piece::Blob { id: id.clone(), size, key })
    }

    /// A small content out of its row, verified and decrypted.
    pub fn small(tx: &mut Tx<'_>, id: &BlobId, key: Option<&DataKey>) -> Result<Self, Error> {
        let stored = fetch(tx, id)?;
        Ok(Piece::Bytes(match key {
            None => stored,
            Some(key) => key.of_blob(id)?.open(0, &stored)?,
        }))
    }

    fn size(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Blob { size, .. } => *size,
        }
    }
}

/// A small content as its row has it, verified.
pub fn fetch(tx: &mut Tx<'_>, id: &BlobId) -> Result<Bytes, Error> {
    let read = |row: &Row<'_>| Ok((row.get::<String>(0)?, row.get::<Vec<u8>>(1)?));
    let found = tx.query_opt("SELECT crc, bytes FROM small WHERE blob = ?1", params![id], read)?;
    let (crc, bytes) = found.ok_or_else(|| Error::Damaged(format!("small content {id}: its row is gone")))?;
    if hex::encode(checksum(&bytes)) != crc {
        return Err(Error::Damaged(format!("small content {id}: its checksum is wrong")));
    }
    Ok(bytes.into())
}

/// What there is to read of a content.
pub struct Source {
    pub blobs: Arc<dyn Blobs>,
    /// In order; every piece of them holds a part of the range.
    pub pieces: VecDeque<Piece>,
    /// Where in the first piece the range begins.
    pub skip: u64,
    pub length: u64,
    /// Keeps the sweep away.
    pub pin: Option<Pin>,
}

/// Told of bytes that are not what was written.
pub type Damage = Box<dyn Fn(&io::Error) + Send + Sync>;

/// A block that was read, and the blob it came from when there is more of it.
type Outcome = io::Result<(Bytes, Option<Open>)>;

enum Ahead {
    /// It was in memory: another thread would take longer to wake up than it takes to copy.
    Here(Outcome),
    Elsewhere(JoinHandle<Outcome>),
}

impl Ahead {
    async fn outcome(self) -> Outcome {
        match self {
            Ahead::Here(outcome) => outcome,
            Ahead::Elsewhere(task) => task.await.map_err(io::Error::other)?,
        }
    }
}

struct Flow {
    source: Source,
    damage: Damage,
    open: Option<Open>,
    ahead: Option<Ahead>,
}

/// The blob being read.
struct Open {
    reader: Arc<dyn BlobReader>,
    size: u64,
    at: u64,
    key: Option<BlockKey>,
}

/// Reads the first block before it returns, so that damage and missing bytes at the start are still an error answer. The
/// stream ends with an error where a later block is damaged: the connection breaks, and the answer never looks whole.
pub async fn outflow(
    source: Source,
    damage: Damage,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, Error> {
    let mut flow = Flow { source, damage, open: None, ahead: None };
    let first = match flow.next_block() {
        Some(ahead) => Some(flow.landed(ahead.outcome().await)?),
        None => None,
    };
    flow.ahead = flow.next_block();
    Ok(futures_util::stream::unfold((first, flow), |(first, mut flow)| async move {
        if let Some(bytes) = first {
            return Some((Ok(bytes), (None, flow)));
        }
        let outcome = flow.ahead.take()?.outcome().await;
        let outcome = flow.landed(outcome);
        if outcome.is_ok() {
            flow.ahead = flow.next_block();
        }
        Some((outcome, (None, flow)))
    }))
}

impl Flow {
    fn landed(&mut self, outcome: Outcome) -> io::Result<Bytes> {
        if let Err(e) = &outcome
            && e.kind() == io::ErrorKind::InvalidData
        {
            (self.damage)(e);
        }
        let (bytes, open) = outcome?;
        self.open = open;
        self.source.length -= (bytes.len() as u64).min(self.source.length);
        Ok(bytes)
    }

    /// Starts reading what comes next; `None` at the end of the range.
    fn next_block(&mut self) -> Option<Ahead> {
        let left = self.source.length;
        if left == 0 {
            return None;
        }
        let blobs = self.source.blobs.clone();
        if let Some(open) = self.open.take() {
            return Some(match open.at_hand() {
                Some(stored) => Ahead::Here(stored.and_then(|stored| open.cut(stored, left))),
                None => Ahead::Elsewhere(spawn_blocking(move || open.read(left))),
            });
        }
        let skip = std::mem::take(&mut self.source.skip);
        let piece = self.source.pieces.pop_front();
        Some(Ahead::Elsewhere(spawn_blocking(move || match piece {
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "the content is shorter than its row says")),
            Some(Piece::Bytes(bytes)) => {
                let end = (bytes.len() as u64).min(skip.saturating_add(left));
                Ok((bytes.slice(skip.min(end) as usize..end as usize), None))
            }
            Some(Piece::Blob { id, size, key }) => {
                let stored = if key.is_some() { stored_size(size) } else { size };
                let reader: Arc<dyn BlobReader> = Arc::from(blobs.open(&id, stored)?);
                Open { reader, size, at: skip, key }.read(left)
            }
        })))
    }
}

impl Open {
    /// How much of the content a block holds.
    fn block(&self) -> u64 {
        if self.key.is_some() { SEALED_BLOCK as u64 } else { BLOCK as u64 }
    }

    /// The stored block it has come to, where that is in memory and need not be decrypted.
    fn at_hand(&self) -> Option<io::Result<Bytes>> {
        if self.key.is_some() { None } else { self.reader.at_hand(self.at / self.block()) }
    }

    fn read(self, left: u64) -> Outcome {
        let stored = self.reader.block(self.at / self.block())?;
        self.cut(stored, left)
    }

    /// The rest of the block it has come to, at most `left` bytes.
    fn cut(mut self, stored: Bytes, left: u64) -> Outcome {
        let block = match &self.key {
            None => stored,
            Some(key) => key.open(self.at / self.block(), &stored)?,
        };
        let from = (self.at % self.block()) as usize;
        let to = block.len().min(from.saturating_add(usize::try_from(left).unwrap_or(usize::MAX)));
        let bytes = block.slice(from.min(to)..to);
        self.at += bytes.len() as u64;
        let more = self.at < self.size;
        Ok((bytes, more.then_some(self)))
    }
}

impl Source {
    /// Cuts `pieces`, which are the whole content, down to `length` bytes from `begin`.
    pub fn cut(
        blobs: Arc<dyn Blobs>,
        pieces: impl IntoIterator<Item = Piece>,
        begin: u64,
        length: u64,
        pin: Option<Pin>,
    ) -> Self {
        let (mut kept, mut at, mut skip) = (VecDeque::new(), 0_u64, 0);
        for piece in pieces {
            let end = at + piece.size();
            if end > begin && at < begin.saturating_add(length) {
                if kept.is_empty() {
                    skip = begin - at.min(begin);
                }
                kept.push_back(piece);
            }
            at = end;
        }
        Source { blobs, pieces: kept, skip, length, pin }
    }
}
