//! Disk files of strangers, read without QEMU: raw, qcow2 and VMDK, as the request says and never as the bytes look.
//!
//! A file may not refer to anything outside of itself (backing files, data files, parents, extents), nor claim to be larger
//! than a volume can be. What it claims of its own tables is held against its length before anything is read or allocated, so
//! memory is bounded by a table and a cluster, whatever it says. Layouts: QEMU's docs/interop/qcow2.rst, and VMware's Virtual
//! Disk Format 5.0.

mod qcow2;
mod vmdk;

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

use mallee_tiers::SNAPSHOT_BLOCK;

/// As large as a volume can be.
const MOST: u64 = 16_384 << 30;

/// What a disk file is, as the request says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    Raw,
    Qcow2,
    Vmdk,
}

impl Format {
    pub fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
            _ => None,
        }
    }

    pub fn shown(self) -> &'static str {
        match self {
            Self::Raw => "RAW",
            Self::Qcow2 => "QCOW2",
            Self::Vmdk => "VMDK",
        }
    }
}

/// A disk as its guest would see it.
pub struct Disk {
    pub size: u64,
    layout: Layout,
}

enum Layout {
    Raw(Bytes),
    Qcow2(Box<qcow2::Qcow2>),
    Vmdk(Box<vmdk::Vmdk>),
}

impl Disk {
    /// An error of kind `InvalidData` says what is wrong with the file; any other, that it could not be read now.
    pub fn open(file: File, format: Format) -> io::Result<Self> {
        let bytes = Bytes::of(file)?;
        let (size, layout) = match format {
            Format::Raw => (bytes.length, Layout::Raw(bytes)),
            Format::Qcow2 => {
                let disk = qcow2::Qcow2::open(bytes)?;
                (disk.size, Layout::Qcow2(Box::new(disk)))
            }
            Format::Vmdk => {
                let disk = vmdk::Vmdk::open(bytes)?;
                (disk.size, Layout::Vmdk(Box::new(disk)))
            }
        };
        if size == 0 || size > MOST {
            return Err(wrong(format!(
                "a disk of {size} bytes cannot be a volume: it can have up to {} GiB",
                MOST >> 30
            )));
        }
        Ok(Self { size, layout })
    }

    /// A block of a snapshot, with zeros beyond the end. None: nothing but zeros.
    pub fn block(&mut self, index: u64) -> io::Result<Option<Vec<u8>>> {
        let mut block = vec![0; SNAPSHOT_BLOCK as usize];
        let at = index.saturating_mul(SNAPSHOT_BLOCK);
        let length = SNAPSHOT_BLOCK.min(self.size.saturating_sub(at)) as usize;
        let Some(within) = block.get_mut(..length) else { return Ok(None) };
        let any = match &mut self.layout {
            Layout::Raw(bytes) => bytes.read(at, within).map(|()| true)?,
            Layout::Qcow2(disk) => disk.read(at, within)?,
            Layout::Vmdk(disk) => disk.read(at, within)?,
        };
        Ok((any && block.iter().any(|b| *b != 0)).then_some(block))
    }
}

fn wrong(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

/// A file whose length is known.
struct Bytes {
    file: File,
    length: u64,
}

impl Bytes {
    fn of(file: File) -> io::Result<Self> {
        Ok(Self { length: file.metadata()?.len(), file })
    }

    /// Bytes that must be there.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        if at.checked_add(out.len() as u64).is_none_or(|end| end > self.length) {
            return Err(wrong(format!("it refers to bytes beyond its end, at {at}")));
        }
        self.file.read_exact_at(out, at)
    }

    fn vec(&self, at: u64, length: u64) -> io::Result<Vec<u8>> {
        if at.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(wrong(format!("it refers to bytes beyond its end, at {at}")));
        }
        let mut out = vec![0; usize::try_from(length).map_err(|_| wrong("a table is too large"))?];
        self.read(at, &mut out)?;
        Ok(out)
    }
}

/// Copies what of a `unit` of the disk lies within a read: (unit, offset in it, range of the output).
fn pieces(at: u64, length: usize, unit: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        let here = at + done as u64;
        let offset = here % unit;
        let piece = ((unit - offset) as usize).min(length - done);
        let range = done..done + piece;
        done += piece;
        (piece > 0).then_some((here / unit, offset as usize, range))
    })
}

#[cfg(test)]
mod tests;
