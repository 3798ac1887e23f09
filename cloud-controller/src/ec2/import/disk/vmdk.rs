//! VMDK in one file: `monolithicSparse`, and `streamOptimized` with its compressed grains.

use std::io::{self, Read};

use flate2::read::ZlibDecoder;

use super::{Bytes, MOST, pieces, wrong};

pub struct Vmdk {
    bytes: Bytes,
    pub size: u64,
    grain: u64,
    compressed: bool,
    directory: Vec<u32>,
    /// The grain table that was read last.
    table: Option<(u32, Vec<u8>)>,
    /// The compressed grain that was read last.
    opened: Option<(u32, Vec<u8>)>,
}

const SECTOR: u64 = 512;
const ENTRIES: u64 = 512;
const COMPRESSED_GRAINS: u32 = 1 << 16;
/// The directory is behind the grains; a copy of the header at the end says where.
const AT_END: u64 = u64::MAX;
/// A larger grain has never been seen, and each is held in memory.
const LARGEST_GRAIN: u64 = 2 << 20;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

impl Vmdk {
    pub fn open(bytes: Bytes) -> io::Result<Self> {
        let mut header = bytes.vec(0, SECTOR).map_err(|_| wrong("it is too short to be a VMDK"))?;
        if header.starts_with(b"# Disk Des") {
            return Err(wrong("it is a descriptor only, and refers to other files"));
        }
        check(&header)?;
        check_descriptor(&bytes, &header)?;
        if u64_at(&header, 56) == AT_END {
            header = bytes.vec(bytes.length.saturating_sub(2 * SECTOR), SECTOR)?;
            check(&header)?;
        }
        let (sectors, grain_sectors) = (u64_at(&header, 12), u64_at(&header, 20));
        let (size, grain) = (sectors.saturating_mul(SECTOR), grain_sectors.saturating_mul(SECTOR));
        if size > MOST {
            return Err(wrong(format!("it claims to be a disk of {size} bytes")));
        }
        if !grain.is_power_of_two() || !(8 * SECTOR..=LARGEST_GRAIN).contains(&grain) {
            return Err(wrong(format!("its grains have {grain} bytes")));
        }
        if u64::from(u32_at(&header, 44)) != ENTRIES {
            return Err(wrong("its grain tables are not of the usual size"));
        }
        let tables = size.div_ceil(grain * ENTRIES);
        let directory = bytes.vec(u64_at(&header, 56).saturating_mul(SECTOR), tables * 4)?;
        let directory = directory.chunks_exact(4).map(|entry| u32_at(entry, 0)).collect();
        let compressed = u32_at(&header, 8) & COMPRESSED_GRAINS != 0;
        Ok(Self { bytes, size, grain, compressed, directory, table: None, opened: None })
    }

    /// False: there is nothing but zeros, and `out` is left as it is.
    pub fn read(&mut self, at: u64, out: &mut [u8]) -> io::Result<bool> {
        let mut any = false;
        for (grain, offset, range) in pieces(at, out.len(), self.grain) {
            let Some(piece) = out.get_mut(range) else { continue };
            any |= self.read_grain(grain, offset, piece)?;
        }
        Ok(any)
    }

    fn read_grain(&mut self, grain: u64, offset: usize, out: &mut [u8]) -> io::Result<bool> {
        let table = self.directory.get((grain / ENTRIES) as usize).copied().unwrap_or(0);
        if table == 0 {
            return Ok(false);
        }
        if self.table.as_ref().is_none_or(|(at, _)| *at != table) {
            self.table = Some((table, self.bytes.vec(u64::from(table) * SECTOR, ENTRIES * 4)?));
        }
        let within = (grain % ENTRIES) as usize * 4;
        let sector = self.table.as_ref().map_or(0, |(_, table)| u32_at(table, within));
        // 1 says that it is zeros, where zeroed grains are marked.
        if sector <= 1 {
            return Ok(false);
        }
        let at = u64::from(sector) * SECTOR;
        if !self.compressed {
            self.bytes.read(at + offset as u64, out)?;
            return Ok(true);
        }
        if self.opened.as_ref().is_none_or(|(of, _)| *of != sector) {
            let marker = self.bytes.vec(at, 12)?;
            let length = u64::from(u32_at(&marker, 8));
            if length > 2 * self.grain {
                return Err(wrong("a compressed grain is larger than it can be"));
            }
            let packed = self.bytes.vec(at + 12, length)?;
            let mut all = Vec::new();
            let unpacked = ZlibDecoder::new(packed.as_slice()).take(self.grain).read_to_end(&mut all);
            unpacked.map_err(|e| wrong(format!("a compressed grain does not unpack: {e}")))?;
            // The last grain may be shorter than the others.
            all.resize(self.grain as usize, 0);
            self.opened = Some((sector, all));
        }
        let opened = self.opened.as_ref().and_then(|(_, all)| all.get(offset..offset + out.len()));
        out.copy_from_slice(opened.ok_or_else(|| wrong("a grain is too short"))?);
        Ok(true)
    }
}

fn check(header: &[u8]) -> io::Result<()> {
    if header.get(..4) != Some(b"KDMV") {
        return Err(wrong("its first bytes are not a VMDK's"));
    }
    if !(1..=3).contains(&u32_at(header, 4)) {
        return Err(wrong(format!("its version is {}", u32_at(header, 4))));
    }
    Ok(())
}

/// The text inside says whether it stands alone.
fn check_descriptor(bytes: &Bytes, header: &[u8]) -> io::Result<()> {
    const LONGEST: u64 = 64 << 10;
    let (at, length) = (u64_at(header, 28).saturating_mul(SECTOR), u64_at(header, 36).saturating_mul(SECTOR));
    if at == 0 || length == 0 {
        return Err(wrong("it has no descriptor"));
    }
    let text = bytes.vec(at, length.min(LONGEST))?;
    let text = String::from_utf8_lossy(&text);
    let value = |key: &str| {
        let line = text.lines().filter_map(|l| l.split_once('=')).find(|(k, _)| k.trim().eq_ignore_ascii_case(key));
        line.map(|(_, v)| v.trim().trim_matches('"').to_ascii_lowercase())
    };
    if value("parentCID").is_some_and(|parent| parent != "ffffffff") || value("parentFileNameHint").is_some() {
        return Err(wrong("it names a parent"));
    }
    match value("createType").as_deref() {
        Some("monolithicsparse" | "streamoptimized") => {}
        other => {
            let kind = other.unwrap_or("no type").to_owned();
            return Err(wrong(format!("it is of {kind}, and can be monolithicSparse or streamOptimized")));
        }
    }
    let extents =
        text.lines().filter(|l| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|mode| l.starts_with(mode))).count();
    if extents != 1 {
        return Err(wrong(format!("it consists of {extents} files")));
    }
    Ok(())
}
