//! Writes empty qcow2 files. `qemu-img create` could, but takes a process each time, and seconds for an encrypted one
//! ([`super::luks`]), while a guest's snapshot waits for its layer.
//!
//! The first table has room for the largest volume there is, so that growing is a write of one number. What is empty of it
//! is a hole. The format is in QEMU's `docs/interop/qcow2.rst`.

use std::{
    fs::{File, OpenOptions},
    io::Result,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use mallee_tiers::Secret;

use super::luks::{self, SectorCipher};

const MAGIC: &[u8; 4] = b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const HEADER: u32 = 104;
/// What one entry of the first table stands for.
const REACH: u64 = CLUSTER * CLUSTER / 8;
/// EC2's largest volume.
const LARGEST: u64 = 64 << 40;
const BACKING_FORMAT: u32 = 0xe279_2aca;
pub const ENCRYPTION: u32 = 0x0537_be77;
pub const LUKS: u32 = 2;

/// Where an existing file says how large it is.
pub const SIZE_AT: u64 = 24;

/// An empty qcow2 file of `size` bytes at `path`, above the file `below` of the given name and format. With a passphrase
/// it is encrypted. It is complete when this returns, and not synced.
pub fn write(path: &Path, size: u64, below: Option<(&str, &str)>, passphrase: Option<&Secret>) -> Result<File> {
    let entries = size.max(LARGEST).div_ceil(REACH);
    let l1_clusters = (entries * 8).div_ceil(CLUSTER);
    let (table, block, l1) = (CLUSTER, 2 * CLUSTER, 3 * CLUSTER);
    let luks_at = l1 + l1_clusters * CLUSTER;
    let luks_header = match passphrase {
        Some(passphrase) => SectorCipher::create(passphrase)?.0,
        None => Vec::new(),
    };
    let end = (luks_at + luks_header.len() as u64).next_multiple_of(CLUSTER);

    let mut header = Vec::with_capacity(512);
    header.extend(MAGIC);
    header.extend(3u32.to_be_bytes());
    // Of the name below, put in at the end.
    header.extend([0; 12]);
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend(if passphrase.is_some() { LUKS } else { 0 }.to_be_bytes());
    header.extend((entries as u32).to_be_bytes());
    header.extend(l1.to_be_bytes());
    header.extend(table.to_be_bytes());
    header.extend(1u32.to_be_bytes());
    // No snapshots of qcow2's own; no features.
    header.extend([0; 4 + 8 + 3 * 8]);
    // Reference counts have 16 bits.
    header.extend(4u32.to_be_bytes());
    header.extend(HEADER.to_be_bytes());
    if let Some((_, format)) = below {
        extension(&mut header, BACKING_FORMAT, format.as_bytes());
    }
    if passphrase.is_some() {
        let place = [luks_at.to_be_bytes(), (luks::HEADER as u64).to_be_bytes()].concat();
        extension(&mut header, ENCRYPTION, &place);
    }
    extension(&mut header, 0, &[]);
    if let Some((name, _)) = below {
        let at = header.len() as u64;
        header[8..16].copy_from_slice(&at.to_be_bytes());
        header[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        header.extend(name.as_bytes());
    }

    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_len(end)?;
    file.write_all_at(&header, 0)?;
    file.write_all_at(&block.to_be_bytes(), table)?;
    let counts: Vec<u8> = (0..end / CLUSTER).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.write_all_at(&counts, block)?;
    file.write_all_at(&luks_header, luks_at)?;
    Ok(file)
}

fn extension(header: &mut Vec<u8>, kind: u32, data: &[u8]) {
    header.extend(kind.to_be_bytes());
    header.extend((data.len() as u32).to_be_bytes());
    header.extend(data);
    header.resize(header.len().next_multiple_of(8), 0);
}

/// Gives a file that nothing has open more bytes; false: its first table is too small for that.
pub fn grow(path: &Path, entries: u64, size: u64) -> Result<bool> {
    if entries < size.div_ceil(REACH) {
        return Ok(false);
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&size.to_be_bytes(), SIZE_AT)?;
    file.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{super::qcow2::Qcow2, *};

    fn run(program: &str, arguments: &[&str]) -> String {
        let out = Command::new(program).args(arguments).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && !text.contains("failed"), "{program} {arguments:?}: {text}");
        text
    }

    #[test]
    fn qemu_reads_writes_and_checks_what_is_written_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        write(path("0").as_ref(), 5 << 30, None, None).unwrap();
        write(path("1").as_ref(), 5 << 30, Some(("0", "qcow2")), None).unwrap();
        run("qemu-io", &["-f", "qcow2", "-c", "write -P 1 4G 1M", &path("0")]);
        run("qemu-io", &["-f", "qcow2", "-c", "read -P 1 4G 1M", "-c", "write -P 2 1G 70k", &path("1")]);
        for name in ["0", "1"] {
            assert!(run("qemu-img", &["check", &path(name)]).contains("No errors"));
        }
        let layer = Qcow2::open(path("1").as_ref(), None).unwrap();
        assert_eq!((layer.size, layer.backing.as_deref()), (5 << 30, Some("0")));
        assert!(grow(path("1").as_ref(), layer.entries(), 16 << 40).unwrap());
        assert!(run("qemu-img", &["info", &path("1")]).contains("16 TiB"));
        assert!(run("qemu-img", &["check", &path("1")]).contains("No errors"));
        run("qemu-io", &["-f", "qcow2", "-c", "write -P 3 15T 64k", "-c", "read -P 2 1G 70k", &path("1")]);
    }

    #[test]
    fn what_qemu_encrypts_is_read_here_and_the_file_shows_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0");
        let passphrase = Secret("ab".repeat(32));
        write(&path, 1 << 30, None, Some(&passphrase)).unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, &passphrase.0).unwrap();
        std::fs::write(dir.path().join("text"), "a marker in the clear; ".repeat(10_000)).unwrap();
        let object = format!("secret,id=disk,file={}", key.display());
        let image = format!("driver=qcow2,encrypt.key-secret=disk,file.filename={}", path.display());
        let text = dir.path().join("text").display().to_string();
        let write = format!("write -s {text} 512M 128k");
        let commands = ["--object", &object, "-c", &write, "-c", "read -P 0 0 1M", "--image-opts", &image];
        run("qemu-io", &commands);
        assert!(run("qemu-img", &["check", "--object", &object, "--image-opts", &image]).contains("No errors"));
        let raw = std::fs::read(&path).unwrap();
        assert!(!raw.windows(20).any(|w| w == b"a marker in the clea"));
        assert!(Qcow2::open(&path, Some(&Secret("cd".repeat(32)))).is_err());
        let layer = Qcow2::open(&path, Some(&passphrase)).unwrap();
        let mut read = vec![0; 100_000];
        layer.read((512 << 20) + 7, &mut read, |_, _| unreachable!()).unwrap();
        let expected = "a marker in the clear; ".repeat(10_000);
        assert_eq!(read, expected.as_bytes()[7..100_007]);
    }
}
