//! The layers of a volume: a raw file at the bottom, qcow2 files above it.
//!
//! ```text
//! vol-…/volume.raw ◀── 1.qcow2 ◀── 2.qcow2        the highest number is what a guest writes to
//! ```
//! A layer with a number is made whole (under another name, synced, renamed) before anything writes to it, and empty. So it is
//! always right to open the highest one, whatever was interrupted: if a daemon still writes to the layer below it, the
//! empty one shows exactly that. What a layer stands on is in its header only.

use std::{
    fs::File,
    io::Result,
    path::{Path, PathBuf},
};

use super::qcow2::{Qcow2, read_or_zero};

/// 0 is the raw file.
pub type Number = u32;

pub const BASE: &str = "volume.raw";

/// The file of a layer.
pub fn file_name(number: Number) -> String {
    if number == 0 { BASE.to_owned() } else { format!("{number}.qcow2") }
}

pub fn number(file_name: &str) -> Option<Number> {
    if file_name == BASE {
        return Some(0);
    }
    file_name.strip_suffix(".qcow2")?.parse().ok().filter(|n| *n > 0)
}

/// The open layers of a volume up to one of them, the bottom first.
pub struct Chain {
    base: File,
    base_size: u64,
    layers: Vec<(Number, Qcow2)>,
}

/// The numbers of the layers below `top` and itself, the top first, as the headers say.
pub fn below(folder: &Path, top: Number) -> Result<Vec<Number>> {
    let mut numbers = vec![top];
    let mut at = top;
    while at > 0 {
        let layer = Qcow2::open(&folder.join(file_name(at)))?;
        let next = layer.backing.as_deref().and_then(|name| number(Path::new(name).file_name()?.to_str()?));
        at = next.filter(|n| *n < at).ok_or_else(|| {
            std::io::Error::other(format!(
                "{} stands on {:?}, which is no layer below it",
                file_name(at),
                layer.backing
            ))
        })?;
        numbers.push(at);
    }
    Ok(numbers)
}

impl Chain {
    pub fn open(folder: &Path, top: Number) -> Result<Self> {
        let base = File::open(folder.join(BASE))?;
        let base_size = base.metadata()?.len();
        let mut layers = Vec::new();
        for number in below(folder, top)?.into_iter().filter(|n| *n > 0).rev() {
            layers.push((number, Qcow2::open(&folder.join(file_name(number)))?));
        }
        Ok(Self { base, base_size, layers })
    }

    /// Bytes the guest sees.
    pub fn size(&self) -> u64 {
        self.layers.last().map_or(self.base_size, |(_, layer)| layer.size)
    }

    /// Reads as the guest would; beyond the end there are zeros.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        read_layers(&self.base, &self.layers, offset, buffer)
    }

    /// The blocks of `size` bytes in which something lies that came after layer `after`; None: after nothing, so all that
    /// was ever written.
    pub fn blocks(&self, after: Option<Number>, size: u64) -> Result<Vec<u64>> {
        let mut blocks = Vec::new();
        if after.is_none() {
            data_blocks(&self.base, self.base_size, size, &mut blocks)?;
        }
        for (number, layer) in &self.layers {
            if after.is_none_or(|after| *number > after) {
                layer.own_clusters(|at| blocks.extend(at / size..=(at + layer.cluster - 1) / size))?;
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        blocks.retain(|b| b * size < self.size());
        Ok(blocks)
    }
}

fn read_layers(base: &File, layers: &[(Number, Qcow2)], offset: u64, buffer: &mut [u8]) -> Result<()> {
    match layers.split_last() {
        None => read_or_zero(base, buffer, offset),
        Some(((_, top), rest)) => top.read(offset, buffer, |at, part| read_layers(base, rest, at, part)),
    }
}

/// The blocks of a sparse file that are not holes.
fn data_blocks(file: &File, length: u64, size: u64, blocks: &mut Vec<u64>) -> Result<()> {
    use nix::{
        errno::Errno,
        unistd::{Whence, lseek},
    };
    let mut at = 0u64;
    while at < length {
        let data = match lseek(file, at.try_into().unwrap_or(i64::MAX), Whence::SeekData) {
            Ok(data) => data.unsigned_abs(),
            Err(Errno::ENXIO) => break,
            // A file system without holes: everything may be data.
            Err(Errno::EINVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let hole = match lseek(file, data.try_into().unwrap_or(i64::MAX), Whence::SeekHole) {
            Ok(hole) => hole.unsigned_abs(),
            Err(Errno::EINVAL) => length,
            Err(e) => return Err(e.into()),
        };
        blocks.extend(data / size..hole.div_ceil(size));
        at = hole.max(data + 1);
    }
    Ok(())
}

/// Every layer in a folder, whole or not part of the chain any more, the highest first.
pub fn all(folder: &Path) -> Result<Vec<(Number, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(number) = path.file_name().and_then(|n| number(n.to_str()?)) {
            found.push((number, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}
