//! Reads the qcow2 files of a chain: which clusters a layer has of its own, and what is in them.
//!
//! Only what is made here is read: no compression, no encryption but LUKS, no data file of its own, no extended entries. Anything else is refused by name. The format is in QEMU's `docs/interop/qcow2.rst`.
//!
//! A layer is read only while nothing writes to it: it is frozen, and QEMU wrote its tables out when it froze it.

use std::{
    fs::File,
    io::{Error, ErrorKind, Result},
    os::unix::fs::FileExt,
    path::Path,
};

use mallee_tiers::Secret;

use super::{
    luks::SectorCipher,
    new_layer::{ENCRYPTION, LUKS, SIZE_AT},
};

const MAGIC: u32 = 0x5146_49fb;
/// Of an entry of either table: where the thing it names begins in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ALL_ZERO: u64 = 1;
/// Incompatible features that change nothing for a reader: the dirty bit (reference counts may be wrong).
const HARMLESS: u64 = 1;
/// A longer name is none of ours.
const BACKING_MAX: u32 = 1023;
/// The header and what extends it lie in the first cluster, which has at least so much.
const HEADER_MAX: usize = 512;
const SECTOR: u64 = 512;

/// One open qcow2 file.
#[derive(Debug)]
pub struct Qcow2 {
    file: File,
    /// Bytes the guest sees.
    pub size: u64,
    pub cluster: u64,
    /// The file below it, as the header names it.
    pub backing: Option<String>,
    pub encrypted: bool,
    /// None: nothing that is encrypted can be read.
    cipher: Option<SectorCipher>,
    l1: Vec<u64>,
}

/// Where the bytes of a cluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cluster {
    /// In the layer below.
    Below,
    Zero,
    At(u64),
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

impl Qcow2 {
    /// Without the passphrase of an encrypted one, its tables can be read and its contents cannot.
    pub fn open(path: &Path, passphrase: Option<&Secret>) -> Result<Self> {
        let file = File::open(path)?;
        let mut header = [0u8; HEADER_MAX];
        file.read_exact_at(&mut header, 0)?;
        if be32(&header, 0) != MAGIC || be32(&header, 4) != 3 {
            return Err(wrong(path, "not a qcow2 file of version 3"));
        }
        let encrypted = be32(&header, 32) == LUKS;
        if (be32(&header, 32) != 0 && !encrypted) || be64(&header, 72) & !HARMLESS != 0 {
            return Err(wrong(path, "it is corrupt, or uses features that are not read here"));
        }
        let cipher = match passphrase.filter(|_| encrypted) {
            Some(passphrase) => Some(open_cipher(&file, &header, passphrase).map_err(|e| wrong(path, &e.to_string()))?),
            None => None,
        };
        let bits = be32(&header, 20);
        if !(9..=21).contains(&bits) {
            return Err(wrong(path, "its cluster size is out of range"));
        }
        let (cluster, size) = (1u64 << bits, be64(&header, SIZE_AT as usize));
        let entries = u64::from(be32(&header, 36));
        if entries < size.div_ceil(cluster * cluster / 8) || entries > 32 << 20 {
            return Err(wrong(path, "its first table does not fit its size"));
        }
        let (name_at, name_length) = (be64(&header, 8), be32(&header, 16));
        let backing = match name_length {
            0 => None,
            1..=BACKING_MAX => {
                let mut name = vec![0; name_length as usize];
                file.read_exact_at(&mut name, name_at)?;
                Some(String::from_utf8(name).map_err(|_| wrong(path, "the name of the file below is no text"))?)
            }
            _ => return Err(wrong(path, "the name of the file below is too long")),
        };
        let mut table = vec![0; entries as usize * 8];
        file.read_exact_at(&mut table, be64(&header, 40))?;
        let l1 = table.chunks_exact(8).map(|entry| be64(entry, 0)).collect();
        Ok(Self { file, size, cluster, backing, encrypted, cipher, l1 })
    }

    /// Of its first table.
    pub fn entries(&self) -> u64 {
        self.l1.len() as u64
    }

    /// The clusters of this layer from the one that holds `offset` on, to the end of their table: at most the clusters of
    /// one table. Empty: `offset` is beyond the end.
    fn table(&self, offset: u64) -> Result<(u64, Option<Vec<u8>>)> {
        let reach = self.cluster * self.cluster / 8;
        let index = offset / reach;
        let entry = self.l1.get(usize::try_from(index).unwrap_or(usize::MAX)).copied().unwrap_or_default();
        if entry & OFFSET == 0 {
            return Ok((index * reach, None));
        }
        let mut table = vec![0; self.cluster as usize];
        self.file.read_exact_at(&mut table, entry & OFFSET)?;
        Ok((index * reach, Some(table)))
    }

    fn cluster_of(&self, entry: u64) -> Result<Cluster> {
        if entry & COMPRESSED != 0 {
            return Err(Error::new(ErrorKind::InvalidData, "a compressed cluster is not read here"));
        }
        Ok(match (entry & ALL_ZERO, entry & OFFSET) {
            (ALL_ZERO, _) => Cluster::Zero,
            (_, 0) => Cluster::Below,
            (_, at) => Cluster::At(at),
        })
    }

    /// Calls `each` with the offset of every cluster this layer has of its own, in order.
    pub fn own_clusters(&self, mut each: impl FnMut(u64)) -> Result<()> {
        let reach = self.cluster * self.cluster / 8;
        let mut at = 0;
        while at < self.size {
            let (begin, table) = self.table(at)?;
            for (n, entry) in table.iter().flat_map(|t| t.chunks_exact(8)).enumerate() {
                let offset = begin + n as u64 * self.cluster;
                if offset < self.size && self.cluster_of(be64(entry, 0))? != Cluster::Below {
                    each(offset);
                }
            }
            at = begin + reach;
        }
        Ok(())
    }

    /// Reads what this layer has of `[offset, offset + buffer.len())`, and calls `below` for every part it does not have,
    /// with its place in the buffer. Parts lie within one cluster.
    pub fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        mut below: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        // The table read last, and the offset it begins at.
        let mut held: Option<(u64, Option<Vec<u8>>)> = None;
        let reach = self.cluster * self.cluster / 8;
        while done < buffer.len() {
            let at = offset + done as u64;
            let within = at % self.cluster;
            let length = usize::try_from(self.cluster - within).unwrap_or(usize::MAX).min(buffer.len() - done);
            let part = &mut buffer[done..done + length];
            done += length;
            if at >= self.size {
                part.fill(0);
                continue;
            }
            if held.as_ref().is_none_or(|(begin, _)| at / reach * reach != *begin) {
                held = Some(self.table(at)?);
            }
            let entry = match &held {
                Some((begin, Some(table))) => be64(table, ((at - begin) / self.cluster * 8) as usize),
                _ => 0,
            };
            match self.cluster_of(entry)? {
                Cluster::Below => below(at, part)?,
                Cluster::Zero => part.fill(0),
                Cluster::At(host) => self.read_host(part, host + within)?,
            }
        }
        Ok(())
    }

    /// Reads what lies at `offset` of the file, deciphered.
    fn read_host(&self, part: &mut [u8], offset: u64) -> Result<()> {
        if !self.encrypted {
            return read_or_zero(&self.file, part, offset);
        }
        let cipher =
            self.cipher.as_ref().ok_or_else(|| Error::other("a layer is encrypted, and its key is not known"))?;
        let before = offset % SECTOR;
        let begin = offset - before;
        let length = (before + part.len() as u64).next_multiple_of(SECTOR);
        let mut sectors = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        read_or_zero(&self.file, &mut sectors, begin)?;
        cipher.decrypt(begin, &mut sectors)?;
        let before = before as usize;
        part.copy_from_slice(&sectors[before..before + part.len()]);
        Ok(())
    }
}

/// Finds the LUKS header that the file's header speaks of, and opens it.
fn open_cipher(file: &File, header: &[u8], passphrase: &Secret) -> Result<SectorCipher> {
    let mut at = be32(header, 100) as usize;
    while at + 8 <= header.len() && be32(header, at) != 0 {
        let (kind, length) = (be32(header, at), be32(header, at + 4) as usize);
        if kind == ENCRYPTION && length >= 16 {
            let (place, length) = (be64(header, at + 8), be64(header, at + 16));
            let mut luks = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(super::luks::HEADER)];
            file.read_exact_at(&mut luks, place)?;
            return SectorCipher::open(&luks, passphrase);
        }
        at = at.saturating_add(8).saturating_add(length.next_multiple_of(8));
    }
    Err(Error::new(ErrorKind::InvalidData, "it is encrypted and does not say how"))
}

/// Reads; what lies beyond the end of the file is zero.
pub fn read_or_zero(file: &File, mut buffer: &mut [u8], mut offset: u64) -> Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_layer_says_what_it_has_of_its_own_as_qemu_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.qcow2");
        let run = |c: &mut Command| assert!(c.status().unwrap().success());
        let create = ["create", "-q", "-u", "-f", "qcow2", "-b", "volume.raw", "-F", "raw"];
        run(Command::new("qemu-img").args(create).arg(&path).arg("1G"));
        std::fs::write(dir.path().join("volume.raw"), [7u8; 4096]).unwrap();
        run(Command::new("qemu-io")
            .args(["-c", "write -P 1 512M 64k", "-c", "write -P 2 1000M 4k", "-c", "write -z 64k 64k"])
            .arg(&path)
            .stdout(std::process::Stdio::null()));
        let layer = Qcow2::open(&path, None).unwrap();
        assert_eq!((layer.size, layer.cluster, layer.backing.as_deref()), (1 << 30, 65_536, Some("volume.raw")));
        let mut own = Vec::new();
        layer.own_clusters(|at| own.push(at)).unwrap();
        assert_eq!(own, [64 << 10, 512 << 20, 1000 << 20]);
        let mut buffer = vec![9; 192 << 10];
        let mut asked = Vec::new();
        layer
            .read(0, &mut buffer, |at, part| {
                asked.push((at, part.len()));
                part.fill(5);
                Ok(())
            })
            .unwrap();
        assert_eq!(asked, [(0, 65_536), (131_072, 65_536)]);
        assert!(buffer[65_536..131_072].iter().all(|b| *b == 0) && buffer[0] == 5 && buffer[131_072] == 5);
        layer.read(512 << 20, &mut buffer[..8192], |_, _| unreachable!()).unwrap();
        assert!(buffer[..8192].iter().all(|b| *b == 1));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [0u8; 4096]).unwrap();
        assert!(Qcow2::open(&path, None).unwrap_err().to_string().contains("not a qcow2 file"));
    }
}
