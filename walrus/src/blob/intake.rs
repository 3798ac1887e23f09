//! Bytes on their way in: gathered into blocks, which are hashed and written while the next one fills, never more than two
//! of them in memory. What turns out to be small stays in memory and becomes a row.

use std::sync::Arc;

use bytes::Bytes;
use mallee_store::{Tx, params};
use sha2::Digest;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    BLOCK, BlobId, BlobIds, BlobWriter, Blobs, Block, BlockKey, DataKey, SEALED_BLOCK, Young,
    file::checksum,
    id,
    md5::{Lanes, Md5, md5},
};
use crate::{
    Error,
    checksum::{Algorithm, Running},
};

/// Contents up to this size are rows: one transaction, and no file to sync.
pub const INLINE: usize = 16 * 1024;

/// A client that sends crumbs has them swept together: each holds a larger piece of memory.
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

/// What is computed over the bytes of one request, beside their MD5.
struct Digests {
    sha256: Option<sha2::Sha256>,
    checksums: Vec<(Algorithm, Running)>,
}

impl Digests {
    fn update(&mut self, bytes: &[u8]) {
        if let Some(digest) = &mut self.sha256 {
            digest.update(bytes);
        }
        for (_, running) in &mut self.checksums {
            running.update(bytes);
        }
    }
}

/// The pieces in one piece.
fn joined(pieces: Vec<Bytes>) -> Bytes {
    match <[Bytes; 1]>::try_from(pieces) {
        Ok([one]) => one,
        Err(pieces) => pieces.concat().into(),
    }
}

/// The receiving end of one content.
pub struct Intake {
    blobs: Arc<dyn Blobs>,
    ids: BlobIds,
    lanes: Lanes,
    size: u64,
    /// What the bytes are encrypted under, if they are.
    key: Option<DataKey>,
    state: State,
}

enum State {
    /// All there is, as it came: it may become a row.
    Small(Vec<Bytes>, Box<Digests>),
    Large(Box<Large>),
    /// A step failed; the reason has been told.
    Over,
}

/// A content on its way into a blob: one block is filled while the one before is hashed and written.
struct Large {
    young: Young,
    filling: Block,
    /// Which block that is.
    number: u64,
    behind: Behind,
}

enum Behind {
    Idle(Work),
    Busy(JoinHandle<Result<Work, Error>>),
    Gone,
}

/// What a worker needs; it goes from one block to the next.
struct Work {
    md5: Md5,
    digests: Box<Digests>,
    blobs: Arc<dyn Blobs>,
    id: BlobId,
    /// Made with the first block.
    writer: Option<Box<dyn BlobWriter>>,
    key: Option<BlockKey>,
    blocks: u64,
}

impl Work {
    fn take(mut self, block: Block) -> Result<Self, Error> {
        let (mut writer, block) = self.prepare(block)?;
        writer.write(block)?;
        self.writer = Some(writer);
        Ok(self)
    }

    fn finish(mut self, last: Block) -> Result<([u8; 16], Box<Digests>), Error> {
        let (writer, last) = self.prepare(last)?;
        writer.finish(last)?;
        Ok((self.md5.finish()?, self.digests))
    }

    /// Hashes and encrypts it.
    fn prepare(&mut self, block: Block) -> Result<(Box<dyn BlobWriter>, Block), Error> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.blobs.create(&self.id)?,
        };
        let mut block = self.md5.update(block)?;
        self.digests.update(block.bytes());
        if let Some(key) = &self.key {
            let sealed = key.seal(self.blocks, block.bytes())?;
            block.replace(&sealed);
        }
        self.blocks += 1;
        Ok((writer, block))
    }
}

impl Intake {
    /// `sha256`: whether the request's signature covers the body's hash.
    pub fn new(
        blobs: Arc<dyn Blobs>,
        ids: BlobIds,
        lanes: Lanes,
        sha256: bool,
        checksums: &[Algorithm],
    ) -> Result<Self, Error> {
        blobs.room()?;
        let digests = Digests {
            sha256: sha256.then(sha2::Sha256::new),
            checksums: checksums.iter().map(|a| (*a, Running::new(*a))).collect(),
        };
        Ok(Self { blobs, ids, lanes, size: 0, key: None, state: State::Small(Vec::new(), Box::new(digests)) })
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
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.size += bytes.len() as u64;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Small(mut pieces, digests) => {
                pieces.push(bytes);
                if self.size <= INLINE as u64 {
                    if pieces.len() == MOST_PIECES {
                        pieces = vec![joined(pieces)];
                    }
                    self.state = State::Small(pieces, digests);
                    return Ok(());
                }
                let mut large = self.large(digests).await?;
                for piece in pieces {
                    self.fill(&mut large, &piece).await?;
                }
                self.state = State::Large(large);
            }
            State::Large(mut large) => {
                self.fill(&mut large, &bytes).await?;
                self.state = State::Large(large);
            }
            State::Over => return Err(Error::Internal("an intake went on after it failed".into())),
        }
        Ok(())
    }

    async fn large(&self, digests: Box<Digests>) -> Result<Box<Large>, Error> {
        let young = self.ids.take().await?;
        let key = self.key.as_ref().map(|key| key.of_blob(young.id())).transpose()?;
        let (blobs, id) = (self.blobs.clone(), young.id().clone());
        // Of encrypted contents a block holds an odd number of bytes.
        let md5 = self.lanes.md5(self.key.is_none())?;
        let behind = Behind::Idle(Work { md5, digests, blobs, id, writer: None, key, blocks: 0 });
        Ok(Box::new(Large { young, filling: self.blobs.block(0), number: 0, behind }))
    }

    /// Fills blocks. A full one is given to a worker when there is more: the last one is written and synced in one go.
    async fn fill(&self, large: &mut Large, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let taken = large.filling.push(bytes, self.block());
            bytes = bytes.get(taken..).unwrap_or_default();
            if taken == 0 {
                let work = self.rested(large).await?;
                large.number += 1;
                let full = std::mem::replace(&mut large.filling, self.blobs.block(large.number));
                large.behind = Behind::Busy(spawn_blocking(move || work.take(full)));
            }
        }
        Ok(())
    }

    /// The worker's things, once it is done with the block before. When that failed (a full disk, mostly) its bytes go at
    /// once: nothing was ever told of them, and the sweep may lack the room to write down that they may go.
    async fn rested(&self, large: &mut Large) -> Result<Work, Error> {
        let busy = match std::mem::replace(&mut large.behind, Behind::Gone) {
            Behind::Idle(work) => return Ok(work),
            Behind::Busy(busy) => busy,
            Behind::Gone => return Err(Error::Internal("a worker is gone".into())),
        };
        let outcome = busy.await.map_err(Error::from).and_then(|outcome| outcome);
        if outcome.is_err() {
            self.remove(&large.young).await;
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
        let (content, (md5, digests)) = match std::mem::replace(&mut self.state, State::Over) {
            State::Small(pieces, mut digests) => {
                let bytes = joined(pieces);
                digests.update(&bytes);
                let digests = (md5(&bytes)?, digests);
                let id = BlobId::new(self.ids.now());
                let bytes = match &self.key {
                    None => bytes,
                    Some(key) => key.of_blob(&id)?.seal(0, &bytes)?,
                };
                (Content::Small { id, bytes }, digests)
            }
            State::Large(mut large) => {
                let work = self.rested(&mut large).await?;
                let Large { young, filling, .. } = *large;
                let finished = spawn_blocking(move || work.finish(filling)).await;
                match finished.map_err(Error::from).and_then(|outcome| outcome) {
                    Ok(digests) => (Content::Blob(young), digests),
                    Err(e) => {
                        self.remove(&young).await;
                        return Err(e);
                    }
                }
            }
            State::Over => return Err(Error::Internal("an intake ended after it failed".into())),
        };
        Ok(Received {
            content,
            size: self.size,
            md5,
            sha256: digests.sha256.map(|digest| digest.finalize().into()),
            checksums: digests.checksums.into_iter().map(|(a, running)| (a, running.finish())).collect(),
        })
    }
}
