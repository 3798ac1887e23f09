//! The layers of a volume: a raw or qcow2 file at the bottom, qcow2 files above it.
//!
//! ```text
//! [source] ◀── vol-…/volume.raw or volume.qcow2 ◀── 1.qcow2 ◀── 2.qcow2    the highest number is what a guest writes to
//! ```
//! A layer with a number is made whole (under another name, synced, renamed) before anything writes to it, and empty. So it is
//! always right to open the highest one, whatever was interrupted: if a daemon still writes to the layer below it, the
//! empty one shows exactly that. What a layer stands on is in its header only.
//!
//! The bottom is qcow2 when the volume is encrypted, and when it began with a snapshot: then what it does not have of its own
//! is in its source ([`crate::source`]), until all of it was fetched.

use std::{
    fs::File,
    io::Result,
    path::{Path, PathBuf},
    sync::Arc,
};

use mallee_tiers::Secret;

use super::qcow2::{Qcow2, read_or_zero};

/// 0 is the bottom.
pub type Number = u32;

pub const RAW: &str = "volume.raw";
pub const QCOW2: &str = "volume.qcow2";

/// What lies below the bottom of a volume that was not fetched whole yet.
pub trait Below: Send + Sync {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// The blocks of `size` bytes that are not all zero.
    fn blocks(&self, size: u64) -> Result<Vec<u64>>;
}

/// What it takes to read a volume besides its files.
#[derive(Clone, Default)]
pub struct Opening {
    pub passphrase: Option<Secret>,
    pub source: Option<Arc<dyn Below>>,
}

/// The file of a layer.
pub fn file_name(folder: &Path, number: Number) -> String {
    match number {
        0 if folder.join(QCOW2).exists() => QCOW2.to_owned(),
        0 => RAW.to_owned(),
        number => format!("{number}.qcow2"),
    }
}

/// What QEMU calls the format of a layer.
pub fn format(file_name: &str) -> &'static str {
    if file_name == RAW { "raw" } else { "qcow2" }
}

pub fn number(file_name: &str) -> Option<Number> {
    if matches!(file_name, RAW | QCOW2) {
        return Some(0);
    }
    file_name.strip_suffix(".qcow2")?.parse().ok().filter(|n| *n > 0)
}

/// The open layers of a volume up to one of them, the bottom first.
pub struct Chain {
    bottom: Bottom,
    layers: Vec<(Number, Qcow2)>,
    source: Option<Arc<dyn Below>>,
}

enum Bottom {
    Raw(File, u64),
    Qcow2(Qcow2),
}

/// The numbers of the layers below `top` and itself, the top first, as the headers say.
pub fn below(folder: &Path, top: Number) -> Result<Vec<Number>> {
    let mut numbers = vec![top];
    let mut at = top;
    while at > 0 {
        let layer = Qcow2::open(&folder.join(file_name(folder, at)), None)?;
        let next = layer.backing.as_deref().and_then(|name| number(Path::new(name).file_name()?.to_str()?));
        at = next.filter(|n| *n < at).ok_or_else(|| {
            std::io::Error::other(format!(
                "{} stands on {:?}, which is no layer below it",
                file_name(folder, at),
                layer.backing
            ))
        })?;
        numbers.push(at);
    }
    Ok(numbers)
}

impl Chain {
    pub fn open(folder: &Path, top: Number, opening: &Opening) -> Result<Self> {
        let passphrase = opening.passphrase.as_ref();
        let name = file_name(folder, 0);
        let bottom = if format(&name) == "raw" {
            let file = File::open(folder.join(name))?;
            let size = file.metadata()?.len();
            Bottom::Raw(file, size)
        } else {
            Bottom::Qcow2(Qcow2::open(&folder.join(name), passphrase)?)
        };
        let mut layers = Vec::new();
        for number in below(folder, top)?.into_iter().filter(|n| *n > 0).rev() {
            layers.push((number, Qcow2::open(&folder.join(file_name(folder, number)), passphrase)?));
        }
        Ok(Self { bottom, layers, source: opening.source.clone() })
    }

    /// Bytes the guest sees.
    pub fn size(&self) -> u64 {
        self.layers.last().map_or(self.bottom.size(), |(_, layer)| layer.size)
    }

    /// Reads as the guest would; beyond the end there are zeros.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_layers(&self.layers, offset, buffer)
    }

    /// The blocks of `size` bytes in which something lies that came after layer `after`; None: after nothing, so all that
    /// was ever written.
    pub fn blocks(&self, after: Option<Number>, size: u64) -> Result<Vec<u64>> {
        let mut blocks = Vec::new();
        if after.is_none() {
            match &self.bottom {
                Bottom::Raw(file, length) => data_blocks(file, *length, size, &mut blocks)?,
                Bottom::Qcow2(layer) => own_blocks(layer, size, &mut blocks)?,
            }
            if let Some(source) = &self.source {
                blocks.extend(source.blocks(size)?);
            }
        }
        for (number, layer) in &self.layers {
            if after.is_none_or(|after| *number > after) {
                own_blocks(layer, size, &mut blocks)?;
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        blocks.retain(|b| b * size < self.size());
        Ok(blocks)
    }

    fn read_layers(&self, layers: &[(Number, Qcow2)], offset: u64, buffer: &mut [u8]) -> Result<()> {
        match (layers.split_last(), &self.bottom) {
            (Some(((_, top), rest)), _) => top.read(offset, buffer, |at, part| self.read_layers(rest, at, part)),
            (None, Bottom::Raw(file, _)) => read_or_zero(file, buffer, offset),
            (None, Bottom::Qcow2(layer)) => layer.read(offset, buffer, |at, part| match &self.source {
                Some(source) => source.read(at, part),
                None => {
                    part.fill(0);
                    Ok(())
                }
            }),
        }
    }
}

impl Bottom {
    fn size(&self) -> u64 {
        match self {
            Bottom::Raw(_, size) => *size,
            Bottom::Qcow2(layer) => layer.size,
        }
    }
}

fn own_blocks(layer: &Qcow2, size: u64, blocks: &mut Vec<u64>) -> Result<()> {
    layer.own_clusters(|at| blocks.extend(at / size..=(at + layer.cluster - 1) / size))
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
