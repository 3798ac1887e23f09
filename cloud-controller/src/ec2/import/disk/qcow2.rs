//! qcow2, versions 2 and 3, of its own clusters only.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};

use super::{Bytes, MOST, pieces, wrong};

pub struct Qcow2 {
    bytes: Bytes,
    pub size: u64,
    cluster_bits: u32,
    l1: Vec<u64>,
    /// The L2 table that was read last.
    l2: Option<(u64, Vec<u8>)>,
    /// The compressed cluster that was read last: neighbours ask for the rest of it.
    opened: Option<(u64, Vec<u8>)>,
}

const DIRTY: u64 = 1;
const COMPRESSION: u64 = 1 << 3;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| b.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| b.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
}

impl Qcow2 {
    pub fn open(bytes: Bytes) -> io::Result<Self> {
        let mut header = bytes.vec(0, 72).map_err(|_| wrong("it is too short to be a qcow2"))?;
        if header.get(..4) != Some(b"QFI\xfb") {
            return Err(wrong("its first bytes are not a qcow2's"));
        }
        let version = u32_at(&header, 4);
        if !matches!(version, 2 | 3) {
            return Err(wrong(format!("its version is {version}, not 2 or 3")));
        }
        if version == 3 {
            header = bytes.vec(0, 112.min(bytes.length))?;
        }
        if u64_at(&header, 8) != 0 || u32_at(&header, 16) != 0 {
            return Err(wrong("it names a backing file"));
        }
        if u32_at(&header, 32) != 0 {
            return Err(wrong("it is encrypted"));
        }
        if version == 3 {
            let features = u64_at(&header, 72);
            if features & 1 << 2 != 0 {
                return Err(wrong("it names a data file"));
            }
            if features & !(DIRTY | COMPRESSION) != 0 {
                return Err(wrong(format!("it has features ({features:#x}) that this cloud does not read")));
            }
            if features & COMPRESSION != 0 && header.get(104) != Some(&0) {
                return Err(wrong("its clusters are compressed in another way than zlib"));
            }
        }
        let (cluster_bits, size) = (u32_at(&header, 20), u64_at(&header, 24));
        if !(9..=21).contains(&cluster_bits) {
            return Err(wrong(format!("its clusters have 2^{cluster_bits} bytes")));
        }
        if size > MOST {
            return Err(wrong(format!("it claims to be a disk of {size} bytes")));
        }
        let needed = size.div_ceil(1 << (2 * cluster_bits - 3));
        let (entries, offset) = (u64::from(u32_at(&header, 36)), u64_at(&header, 40));
        if entries < needed {
            return Err(wrong("its first table is too small for its size"));
        }
        let table = bytes.vec(offset, needed * 8)?;
        let l1 = table.chunks_exact(8).map(|entry| u64_at(entry, 0) & OFFSET).collect();
        Ok(Self { bytes, size, cluster_bits, l1, l2: None, opened: None })
    }

    /// False: there is nothing but zeros, and `out` is left as it is.
    pub fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<bool> {
        let mut any = false;
        for (cluster, offset, range) in pieces(at, out.len(), 1 << self.cluster_bits) {
            let Some(piece) = out.get_mut(range) else { continue };
            any |= self.read_cluster(cluster, offset, piece)?;
        }
        Ok(any)
    }

    fn read_cluster(&mut self, cluster: u64, offset: usize, out: &mut [u8]) -> io::Result<bool> {
        let per_table = self.cluster_bits - 3;
        let table = self.l1.get((cluster >> per_table) as usize).copied().unwrap_or(0);
        if table == 0 {
            return Ok(false);
        }
        if self.l2.as_ref().is_none_or(|(at, _)| *at != table) {
            self.l2 = Some((table, self.bytes.vec(table, 1 << self.cluster_bits)?));
        }
        let within = (cluster & ((1 << per_table) - 1)) as usize * 8;
        let entry = self.l2.as_ref().map_or(0, |(_, table)| u64_at(table, within));
        if entry & COMPRESSED != 0 {
            self.open_compressed(entry)?;
            let opened = self.opened.as_ref().and_then(|(_, all)| all.get(offset..offset + out.len()));
            out.copy_from_slice(opened.ok_or_else(|| wrong("a compressed cluster is too short"))?);
            return Ok(true);
        }
        let host = entry & OFFSET;
        if host == 0 || entry & ZERO != 0 {
            return Ok(false);
        }
        // The last cluster of a file may be cut short where it was never written.
        let at = host + offset as u64;
        let there = self.bytes.length.saturating_sub(at).min(out.len() as u64) as usize;
        if there == 0 {
            return Err(wrong(format!("it refers to bytes beyond its end, at {at}")));
        }
        out.get_mut(..there).map_or(Ok(()), |out| self.bytes.read(at, out))?;
        Ok(true)
    }

    fn open_compressed(&mut self, entry: u64) -> io::Result<()> {
        if self.opened.as_ref().is_some_and(|(of, _)| *of == entry) {
            return Ok(());
        }
        let bits = 62 - (self.cluster_bits - 8);
        let at = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let length = ((sectors + 1) * 512 - at % 512).min(self.bytes.length.saturating_sub(at));
        let packed = self.bytes.vec(at, length)?;
        let mut all = vec![0; 1 << self.cluster_bits];
        let mut inflate = Decompress::new(false);
        let status = inflate.decompress(&packed, &mut all, FlushDecompress::Finish);
        // Behind the end of the stream there is padding; an output that is full is all of it.
        let whole = matches!(status, Ok(Status::StreamEnd | Status::Ok | Status::BufError));
        if !whole || inflate.total_out() != all.len() as u64 {
            return Err(wrong("a compressed cluster does not unpack to a cluster"));
        }
        self.opened = Some((entry, all));
        Ok(())
    }
}
