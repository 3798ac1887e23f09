//! Bytes on their way in: hashed, cut into blocks and written while the next ones arrive, never more than two blocks in
//! memory. What turns out to be small stays in memory and becomes a row.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use mallee_store::{Tx, params};
use openssl::hash::{Hasher, MessageDigest};
use sha2::Digest;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{BLOCK, BlobId, BlobIds, BlobWriter, Blobs, BlockKey, DataKey, SEALED_BLOCK, Young, file::checksum, id};
use crate::{
    Error,
    checksum::{Algorithm, Running},
};

/// Contents up to this size are rows: one transaction, and no file to sync.
pub const INLINE: usize = 16 * 1024;

/// A client that sends crumbs has them swept together, so that a block is not written as thousands of pieces.
const MOST_PIECES: usize = 512;

/// Where a content is, as rows of objects and of parts say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There is none: a delete marker.
    Nowhere,
    /// In the table `small`.
    Row,
    /// A blob of its own.
    Blob,
    /// The parts of the upload with the content's id.
    Parts,
}

impl Place {
    pub const fn number(self) -> i64 {
        match self {
            Place::Nowhere => 0,
            Place::Row => 1,
            Place::Blob => 2,
            Place::Parts => 3,
        }
    }
    pub fn from_number(n: i64) -> Result<Self, Error> {
        [Place::Nowhere, Place::Row, Place::Blob, Place::Parts]
            .into_iter()
            .find(|place| place.number() == n)
            .ok_or_else(|| Error::Internal(format!("a content cannot be at place {n}")))
    }
}

/// Bytes that are safe (or small), and what was computed over them.
pub struct Received {
    pub content: Content,
    pub size: u64,
    pub md5: [u8; 16],
    pub sha256: Option<[u8; 32]>,
    /// In the order they were asked for.
    pub checksums: Vec<(Algorithm, Vec<u8>)>,
}

pub enum Content {
    Small {
        id: BlobId,
        bytes: Bytes,
    },
    /// On disk.
    Blob(Young),
}

impl Content {
    pub fn id(&self) -> &BlobId {
        match self {
            Content::Small { id, .. } => id,
            Content::Blob(young) => young.id(),
        }
    }
    pub fn place(&self) -> Place {
        match self {
            Content::Small { .. } => Place::Row,
            Content::Blob(_) => Place::Blob,
        }
    }
    /// What a transaction needs to keep it. After the commit, [`Content::keep`].
    pub fn keeping(&self) -> Keeping {
        match self {
            Content::Small { id, bytes } => Keeping { id: id.clone(), small: Some(bytes.clone()) },
            Content::Blob(young) => Keeping { id: young.id().clone(), small: None },
        }
    }
    pub fn keep(self) {
        if let Content::Blob(young) = self {
            young.keep();
        }
    }
}

/// The half of a content that goes into the transaction, which may be run more than once.
pub struct Keeping {
    pub id: BlobId,
    small: Option<Bytes>,
}

impl Keeping {
    /// From this transaction on the content is there.
    pub fn keep(&self, tx: &mut Tx<'_>) -> Result<(), Error> {
        match &self.small {
            None => id::adopt(tx, &self.id),
            Some(bytes) => {
                tx.execute(
                    "INSERT INTO small (blob, crc, bytes) VALUES (?1, ?2, ?3)",
                    params![self.id, hex::encode(checksum(bytes)), &bytes[..]],
                )?;
                Ok(())
            }
        }
    }
}

/// Everything that is computed over the bytes of one request.
struct Digests {
    md5: Hasher,
    sha256: Option<sha2::Sha256>,
    checksums: Vec<(Algorithm, Running)>,
    broken: Option<String>,
}

impl Digests {
    fn update(&mut self, bytes: &[u8]) {
        if let Err(e) = self.md5.update(bytes) {
            self.broken = Some(e.to_string());
        }
        if let Some(digest) = &mut self.sha256 {
            digest.update(bytes);
        }
        for (_, running) in &mut self.checksums {
            running.update(bytes);
        }
    }
}

/// The receiving end of one content.
pub struct Intake {
    blobs: Arc<dyn Blobs>,
    ids: BlobIds,
    /// What is not yet given to a worker, in the pieces it came in: nothing is copied on its way to the disk.
    buffer: Vec<Bytes>,
    buffered: usize,
    size: u64,
    /// What the bytes are encrypted under, if they are.
    key: Option<DataKey>,
    state: State,
}

enum State {
    /// Everything is still in the buffer.
    Small(Box<Digests>),
    /// A block is being hashed and written.
    Busy(Young, JoinHandle<Result<Work, Error>>),
    /// A step failed; the reason has been told.
    Over,
}

struct Work {
    digests: Box<Digests>,
    writer: Box<dyn BlobWriter>,
    key: Option<BlockKey>,
    blocks: u64,
}

impl Work {
    fn take(&mut self, block: &[Bytes]) -> Result<(), Error> {
        block.iter().for_each(|piece| self.digests.update(piece));
        match &self.key {
            None => self.writer.write(block)?,
            Some(key) => self.writer.write(&[key.seal(self.blocks, block)?])?,
        }
        self.blocks += 1;
        Ok(())
    }
}

impl Intake {
    /// `sha256`: whether the request's signature covers the body's hash.
    pub fn new(blobs: Arc<dyn Blobs>, ids: BlobIds, sha256: bool, checksums: &[Algorithm]) -> Result<Self, Error> {
        blobs.room()?;
        let md5 = Hasher::new(MessageDigest::md5()).map_err(|e| Error::Internal(format!("MD5: {e}")))?;
        let digests = Digests {
            md5,
            sha256: sha256.then(sha2::Sha256::new),
            checksums: checksums.iter().map(|a| (*a, Running::new(*a))).collect(),
            broken: None,
        };
        Ok(Self {
            blobs,
            ids,
            buffer: Vec::new(),
            buffered: 0,
            size: 0,
            key: None,
            state: State::Small(Box::new(digests)),
        })
    }

    /// Encrypts everything under this key.
    pub fn sealed(self, key: Option<DataKey>) -> Self {
        Self { key, ..self }
    }

    /// How much of the content goes into a block.
    fn block(&self) -> usize {
        if self.key.is_some() { SEALED_BLOCK } else { BLOCK }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes bytes in; waits while the disk is behind by a block.
    pub async fn push(&mut self, mut bytes: Bytes) -> Result<(), Error> {
        self.size += bytes.len() as u64;
        while bytes.has_remaining() {
            let piece = bytes.split_to((self.block() - self.buffered).min(bytes.len()));
            self.buffered += piece.len();
            self.buffer.push(piece);
            if self.buffer.len() == MOST_PIECES {
                self.buffer = vec![self.joined()];
            }
            if self.buffered == self.block() {
                self.write_block().await?;
            }
        }
        Ok(())
    }

    /// What is in the buffer, in one piece.
    fn joined(&mut self) -> Bytes {
        let pieces = std::mem::take(&mut self.buffer);
        match <[Bytes; 1]>::try_from(pieces) {
            Ok([one]) => one,
            Err(pieces) => pieces.concat().into(),
        }
    }

    /// Gives the buffer to a worker, once that is done with the block before.
    async fn write_block(&mut self) -> Result<(), Error> {
        let block = std::mem::take(&mut self.buffer);
        self.buffered = 0;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Small(digests) => {
                let young = self.ids.take().await?;
                let (blobs, id) = (self.blobs.clone(), young.id().clone());
                let key = self.key.as_ref().map(|key| key.of_blob(&id)).transpose()?;
                let task = spawn_blocking(move || {
                    let mut work = Work { digests, writer: blobs.create(&id)?, key, blocks: 0 };
                    work.take(&block)?;
                    Ok(work)
                });
                self.state = State::Busy(young, task);
            }
            State::Busy(young, task) => {
                let mut work = self.landed(&young, task).await?;
                let task = spawn_blocking(move || {
                    work.take(&block)?;
                    Ok(work)
                });
                self.state = State::Busy(young, task);
            }
            State::Over => return Err(Error::Internal("an intake went on after it failed".into())),
        }
        Ok(())
    }

    /// The work given out before. When it failed (a full disk, mostly) its bytes go at once: nothing was ever told of
    /// them, and the sweep may lack the room to write down that they may go.
    async fn landed(&self, young: &Young, task: JoinHandle<Result<Work, Error>>) -> Result<Work, Error> {
        let outcome = task.await.map_err(Error::from).and_then(|outcome| outcome);
        if outcome.is_err() {
            self.remove(young).await;
        }
        outcome
    }

    async fn remove(&self, young: &Young) {
        let (blobs, id) = (self.blobs.clone(), young.id().clone());
        // Best effort: its row stands in `loose`, so the sweep comes by as well.
        let _ = spawn_blocking(move || blobs.remove(&[id])).await;
    }

    /// The end of the bytes: whatever is not small is durable when this returns.
    pub async fn finish(mut self) -> Result<Received, Error> {
        if self.buffered > 0 && (self.buffered > INLINE || matches!(self.state, State::Busy(..))) {
            self.write_block().await?;
        }
        let (content, digests) = match std::mem::replace(&mut self.state, State::Over) {
            State::Small(mut digests) => {
                let bytes = self.joined();
                digests.update(&bytes);
                let id = BlobId::new(self.ids.now());
                let bytes = match &self.key {
                    None => bytes,
                    Some(key) => key.of_blob(&id)?.seal(0, &[bytes])?,
                };
                (Content::Small { id, bytes }, digests)
            }
            State::Busy(young, task) => {
                let Work { digests, writer, .. } = self.landed(&young, task).await?;
                let finished = spawn_blocking(move || writer.finish()).await;
                if let Err(e) = finished.map_err(Error::from).and_then(|outcome| outcome.map_err(Error::from)) {
                    self.remove(&young).await;
                    return Err(e);
                }
                (Content::Blob(young), digests)
            }
            State::Over => return Err(Error::Internal("an intake ended after it failed".into())),
        };
        let mut digests = *digests;
        if let Some(why) = digests.broken {
            return Err(Error::Internal(format!("MD5: {why}")));
        }
        let md5 = digests.md5.finish().map_err(|e| Error::Internal(format!("MD5: {e}")))?;
        let md5 = <[u8; 16]>::try_from(&md5[..]).map_err(|_| Error::Internal("an MD5 of another length".into()))?;
        Ok(Received {
            content,
            size: self.size,
            md5,
            sha256: digests.sha256.map(|digest| digest.finalize().into()),
            checksums: digests.checksums.into_iter().map(|(a, running)| (a, running.finish())).collect(),
        })
    }
}
