//! Blobs as files: `DIR/xx/ID`, where `xx` are the last two digits of the id, which are random.
//!
//! A file is its blocks, each followed by its CRC-64/NVME (8 bytes, big-endian), so a block and its checksum are one read.
//! A file is written under its final name: until it is whole and durable no row refers to it, so there is nothing a
//! temporary name would protect, and a rename would only be one more thing to sync.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, IoSlice, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use crc_fast::CrcAlgorithm;
use mallee_store::durable_folder;

use super::{BLOCK, BlobId, BlobReader, BlobWriter, Blobs};

const SUM: usize = 8;

/// How many blocks are written between two looks at what is left.
const BLOCKS_BETWEEN_LOOKS: u32 = 64;

pub struct FileBlobs {
    dir: PathBuf,
    /// Bytes that no blob may take.
    reserve: u64,
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
        Ok(Self { dir: dir.into(), reserve })
    }

    fn folder(&self, id: &BlobId) -> PathBuf {
        self.dir.join(id.shard())
    }
}

impl Blobs for FileBlobs {
    fn create(&self, id: &BlobId) -> io::Result<Box<dyn BlobWriter>> {
        let folder = self.folder(id);
        let path = folder.join(id.as_str());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(Writer { file, folder, last: false, blocks: 0, reserve: self.reserve }))
    }

    fn open(&self, id: &BlobId, size: u64) -> io::Result<Box<dyn BlobReader>> {
        let file = File::open(self.folder(id).join(id.as_str()))?;
        Ok(Box::new(Reader { file, size, id: id.clone() }))
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

struct Writer {
    file: File,
    folder: PathBuf,
    last: bool,
    blocks: u32,
    reserve: u64,
}

impl BlobWriter for Writer {
    fn write(&mut self, block: &[Bytes]) -> io::Result<()> {
        let length: usize = block.iter().map(Bytes::len).sum();
        if self.last || length > BLOCK {
            return Err(io::Error::other("only the last block may be short"));
        }
        self.last = length < BLOCK;
        self.blocks = self.blocks.wrapping_add(1);
        if self.blocks.is_multiple_of(BLOCKS_BETWEEN_LOOKS) {
            room(&self.folder, self.reserve)?;
        }
        let mut sum = crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme);
        block.iter().for_each(|piece| sum.update(piece));
        let sum = sum.finalize().to_be_bytes();
        let mut slices: Vec<IoSlice<'_>> = block.iter().map(|piece| IoSlice::new(piece)).collect();
        slices.push(IoSlice::new(&sum));
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.file.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }
}

struct Reader {
    file: File,
    size: u64,
    id: BlobId,
}

impl BlobReader for Reader {
    fn block(&self, n: u64) -> io::Result<Bytes> {
        let begin = n * BLOCK as u64;
        let length = self.size.saturating_sub(begin).min(BLOCK as u64) as usize;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("blob {} has no block {n}", self.id)));
        }
        let mut bytes = BytesMut::zeroed(length + SUM);
        let damaged =
            |how: &str| io::Error::new(io::ErrorKind::InvalidData, format!("blob {}, block {n}: {how}", self.id));
        self.file.read_exact_at(&mut bytes, n * (BLOCK + SUM) as u64).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => damaged("the file is too short"),
            _ => e,
        })?;
        let sum = bytes.split_off(length);
        if checksum(&bytes)[..] != sum[..] {
            return Err(damaged("its checksum is wrong"));
        }
        Ok(bytes.freeze())
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
        for block in bytes.chunks(BLOCK) {
            writer
                .write(&[
                    Bytes::copy_from_slice(&block[..block.len() / 2]),
                    Bytes::copy_from_slice(&block[block.len() / 2..]),
                ])
                .unwrap();
        }
        writer.finish().unwrap();
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
