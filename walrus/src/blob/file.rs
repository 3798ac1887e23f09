//! Blobs as files: `DIR/xx/ID`, where `xx` are the last two digits of the id, which are random.
//!
//! A file is its blocks, each followed by its CRC-64/NVME (8 bytes, big-endian), so a block and its checksum are one read.
//! A file is written under its final name: until it is whole and durable no row refers to it, so there is nothing a
//! temporary name would protect, and a rename would only be one more thing to sync.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, IoSliceMut},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use mallee_store::durable_folder;

use rustix::{fs::OFlags, io::ReadWriteFlags};

use super::{
    BLOCK, BlobId, BlobReader, BlobWriter, Blobs,
    block::{ALIGNMENT, Block, Pool},
};

const SUM: usize = 8;

/// How many blocks are written between two looks at what is left.
const BLOCKS_BETWEEN_LOOKS: u32 = 64;

pub struct FileBlobs {
    dir: PathBuf,
    /// Bytes that no blob may take.
    reserve: u64,
    pool: Pool,
}

impl FileBlobs {
    /// Makes the folders, durably, so that no request ever has to.
    pub fn open(dir: &Path, reserve: u64) -> io::Result<Self> {
        durable_folder(dir)?;
        for n in 0..=255_u8 {
            let folder = dir.join(format!("{n:02x}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        File::open(dir)?.sync_all()?;
        Ok(Self { dir: dir.into(), reserve, pool: Pool::default() })
    }

    fn folder(&self, id: &BlobId) -> PathBuf {
        self.dir.join(id.shard())
    }
}

impl Blobs for FileBlobs {
    fn block(&self, n: u64) -> Block {
        // Every block before it put its bytes out of step by a checksum.
        self.pool.block((n % ALIGNMENT as u64) as usize * SUM % ALIGNMENT)
    }

    fn create(&self, id: &BlobId) -> io::Result<Box<dyn BlobWriter>> {
        let folder = self.folder(id);
        let path = folder.join(id.as_str());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(Writer::new(file, folder, self.reserve)))
    }

    fn open(&self, id: &BlobId, size: u64) -> io::Result<Box<dyn BlobReader>> {
        let file = File::open(self.folder(id).join(id.as_str()))?;
        Ok(Box::new(Reader { file, size, id: id.clone(), pool: self.pool.clone() }))
    }

    fn remove(&self, ids: &[BlobId]) -> io::Result<()> {
        let mut folders = BTreeSet::new();
        for id in ids {
            let folder = self.folder(id);
            match std::fs::remove_file(folder.join(id.as_str())) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                // Also where it was gone: whoever removed it may not have come to this.
                _ => folders.insert(folder),
            };
        }
        folders.iter().try_for_each(|folder| File::open(folder)?.sync_all())
    }

    fn room(&self) -> io::Result<()> {
        room(&self.dir, self.reserve)
    }
}

fn room(dir: &Path, reserve: u64) -> io::Result<()> {
    let there = rustix::fs::statvfs(dir)?;
    if there.f_bavail.saturating_mul(there.f_frsize) < reserve {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "what is left is kept for the store"));
    }
    Ok(())
}

/// Writes past the page cache where the file system can: what is written is synced at once anyway, and the copy and its
/// pages cost more than the writing.
struct Writer {
    file: File,
    folder: PathBuf,
    direct: bool,
    blocks: u32,
    reserve: u64,
    /// How much of the file is written, a multiple of [`ALIGNMENT`].
    written: u64,
    /// What comes next, too short to be written.
    rest: Vec<u8>,
}

impl Writer {
    fn new(file: File, folder: PathBuf, reserve: u64) -> Self {
        // Not when it is opened: a file system that cannot has made the file by the time it says so.
        let direct = rustix::fs::fcntl_setfl(&file, OFlags::DIRECT).is_ok();
        Self { file, folder, direct, blocks: 0, reserve, written: 0, rest: Vec::new() }
    }

    /// Writes the block and its checksum, up to the last multiple of [`ALIGNMENT`], or beyond it to the next one.
    fn append(&mut self, mut block: Block, last: bool) -> io::Result<()> {
        self.blocks = self.blocks.wrapping_add(1);
        if self.blocks.is_multiple_of(BLOCKS_BETWEEN_LOOKS) {
            room(&self.folder, self.reserve)?;
        }
        let sum = checksum(block.bytes());
        let odd = || io::Error::other("a block of another number");
        let (memory, end) = block.framed(&self.rest, &sum).ok_or_else(odd)?;
        let whole = if last { end.next_multiple_of(ALIGNMENT) } else { end - end % ALIGNMENT };
        if last {
            // Not what was there before: it may be somebody else's.
            memory.get_mut(end..whole).ok_or_else(odd)?.fill(0);
        }
        let bytes = memory.get(..whole).ok_or_else(odd)?;
        match self.file.write_all_at(bytes, self.written) {
            // Some disks and file systems want more to be aligned than can be known.
            Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                rustix::fs::fcntl_setfl(&self.file, OFlags::empty())?;
                self.direct = false;
                self.file.write_all_at(bytes, self.written)?;
            }
            written => written?,
        }
        if last {
            self.file.set_len(self.written + end as u64)?;
        }
        self.written += whole as u64;
        self.rest.clear();
        self.rest.extend_from_slice(memory.get(whole..end).unwrap_or_default());
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn write(&mut self, block: Block) -> io::Result<()> {
        if block.len() != BLOCK {
            return Err(io::Error::other("only the last block may be short"));
        }
        self.append(block, false)
    }

    fn finish(mut self: Box<Self>, last: Block) -> io::Result<()> {
        self.append(last, true)?;
        self.file.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }
}

struct Reader {
    file: File,
    size: u64,
    id: BlobId,
    pool: Pool,
}

impl Reader {
    /// How long the block is.
    fn length(&self, n: u64) -> io::Result<usize> {
        match self.size.saturating_sub(n * BLOCK as u64).min(BLOCK as u64) {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("blob {} has no block {n}", self.id))),
            length => Ok(length as usize),
        }
    }

    fn damaged(&self, n: u64, how: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("blob {}, block {n}: {how}", self.id))
    }

    /// The block, once `read` has filled the memory with it and its checksum from there in the file on.
    fn verified(&self, n: u64, read: impl FnOnce(&mut [u8], u64) -> io::Result<()>) -> io::Result<Bytes> {
        let length = self.length(n)?;
        let mut block = self.pool.block(0);
        let memory = block.room(length, SUM).ok_or_else(|| io::Error::other("a block without room"))?;
        read(memory, n * (BLOCK + SUM) as u64)?;
        let right = memory.split_at_checked(length).is_some_and(|(bytes, sum)| checksum(bytes)[..] == *sum);
        if right { Ok(Bytes::from_owner(block)) } else { Err(self.damaged(n, "its checksum is wrong")) }
    }
}

impl BlobReader for Reader {
    fn block(&self, n: u64) -> io::Result<Bytes> {
        self.verified(n, |memory, at| {
            self.file.read_exact_at(memory, at).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => self.damaged(n, "the file is too short"),
                _ => e,
            })
        })
    }

    fn at_hand(&self, n: u64) -> Option<io::Result<Bytes>> {
        let missing = || io::Error::from(io::ErrorKind::WouldBlock);
        let read = self.verified(n, |memory, at| {
            let length = memory.len();
            match rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(memory)], at, ReadWriteFlags::NOWAIT) {
                Ok(read) if read == length => Ok(()),
                _ => Err(missing()),
            }
        });
        match read {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            read => Some(read),
        }
    }
}

/// CRC-64/NVME, as it stands after a block and in rows of small contents.
pub fn checksum(block: &[u8]) -> [u8; SUM] {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, block).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path, bytes: &[u8]) -> (FileBlobs, BlobId) {
        let (blobs, id) = (FileBlobs::open(dir, 0).unwrap(), BlobId::new(1));
        let mut writer = blobs.create(&id).unwrap();
        let mut blocks: Vec<Block> = (0..)
            .zip(bytes.chunks(BLOCK))
            .map(|(n, bytes)| {
                let mut block = blobs.block(n);
                assert_eq!(block.push(&bytes[..bytes.len() / 2], BLOCK), bytes.len() / 2);
                block.push(&bytes[bytes.len() / 2..], BLOCK);
                block
            })
            .collect();
        let last = blocks.pop().unwrap();
        blocks.into_iter().for_each(|block| writer.write(block).unwrap());
        writer.finish(last).unwrap();
        (blobs, id)
    }

    #[test]
    fn blocks_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..BLOCK * 2 + 5).map(|n| (n % 251) as u8).collect();
        let (blobs, id) = written(dir.path(), &bytes);
        let reader = blobs.open(&id, bytes.len() as u64).unwrap();
        assert_eq!(reader.block(1).unwrap(), bytes[BLOCK..2 * BLOCK]);
        assert_eq!(reader.block(2).unwrap(), bytes[2 * BLOCK..]);
        assert!(reader.block(3).is_err());
        // What has just been read is in memory; a file system may be unable to say so.
        for (n, expected) in (0..).zip(bytes.chunks(BLOCK)) {
            assert!(reader.at_hand(n).is_none_or(|block| block.unwrap() == expected));
        }
    }

    #[test]
    fn every_length_is_kept_to_the_byte() {
        let dir = tempfile::tempdir().unwrap();
        // Beyond 512 blocks the checksums add up to whole pages.
        let large = BLOCK * 513;
        for length in
            [1, ALIGNMENT - SUM, ALIGNMENT - SUM + 1, ALIGNMENT, BLOCK - 1, BLOCK, 4 * BLOCK, large, large + 77]
        {
            let bytes: Vec<u8> = (0..length).map(|n| (n / 7 % 253) as u8).collect();
            let (blobs, id) = written(dir.path(), &bytes);
            let blocks = length.div_ceil(BLOCK);
            let file = blobs.folder(&id).join(id.as_str());
            assert_eq!(file.metadata().unwrap().len() as usize, length + blocks * SUM, "{length}");
            let reader = blobs.open(&id, length as u64).unwrap();
            for (n, expected) in (0..).zip(bytes.chunks(BLOCK)) {
                assert!(reader.block(n).unwrap() == expected, "{length}: block {n}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_and_a_lost_tail_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![7_u8; BLOCK + 100];
        let (blobs, id) = written(dir.path(), &bytes);
        let path = blobs.folder(&id).join(id.as_str());
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[8], 1000).unwrap();
        let reader = blobs.open(&id, bytes.len() as u64).unwrap();
        assert_eq!(reader.block(0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(reader.at_hand(0).is_none_or(|block| block.is_err()));
        assert!(reader.block(1).is_ok());
        file.set_len((BLOCK + SUM + 50) as u64).unwrap();
        assert_eq!(reader.block(1).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_reserve_is_not_written_into() {
        let dir = tempfile::tempdir().unwrap();
        assert!(FileBlobs::open(dir.path(), 0).unwrap().room().is_ok());
        let refused = FileBlobs::open(dir.path(), u64::MAX).unwrap().room().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn an_open_reader_outlives_the_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (blobs, id) = written(dir.path(), b"here");
        let reader = blobs.open(&id, 4).unwrap();
        blobs.remove(std::slice::from_ref(&id)).unwrap();
        blobs.remove(std::slice::from_ref(&id)).unwrap();
        assert_eq!(reader.block(0).unwrap(), &b"here"[..]);
        assert_eq!(blobs.open(&id, 4).err().unwrap().kind(), io::ErrorKind::NotFound);
    }
}
