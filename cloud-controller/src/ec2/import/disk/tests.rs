//! Files as QEMU writes them, and files as somebody writes them who wants ours.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

const SIZE: u64 = 3 << 20;

fn qemu_img(words: &[&str]) {
    let done = Command::new("qemu-img").args(words).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A disk with text, noise and holes in it.
fn plain(dir: &Path) -> (PathBuf, Vec<u8>) {
    let mut bytes = vec![0u8; SIZE as usize];
    let mut seed = 1u32;
    for (n, chunk) in bytes.chunks_mut(64 << 10).enumerate() {
        match n % 5 {
            0 | 3 => {}
            1 => chunk.fill(b'a' + (n % 20) as u8),
            _ => chunk.iter_mut().for_each(|b| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *b = (seed >> 24) as u8;
            }),
        }
    }
    let path = dir.join("plain.raw");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn read_all(path: &Path, format: Format) -> io::Result<Vec<u8>> {
    let mut disk = Disk::open(File::open(path)?, format)?;
    let mut all = Vec::new();
    for block in 0..disk.size.div_ceil(SNAPSHOT_BLOCK) {
        all.extend(disk.block(block)?.unwrap_or_else(|| vec![0; SNAPSHOT_BLOCK as usize]));
    }
    all.truncate(disk.size as usize);
    Ok(all)
}

#[test]
fn what_qemu_wrote_is_read_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, bytes) = plain(dir.path());
    assert!(read_all(&raw, Format::Raw).unwrap() == bytes);
    let raw = raw.to_str().unwrap();
    for (n, (format, words)) in [
        (Format::Qcow2, &["-O", "qcow2"][..]),
        (Format::Qcow2, &["-O", "qcow2", "-c"]),
        (Format::Qcow2, &["-O", "qcow2", "-o", "compat=0.10,cluster_size=4k"]),
        (Format::Qcow2, &["-O", "qcow2", "-c", "-o", "cluster_size=2M"]),
        (Format::Vmdk, &["-O", "vmdk"]),
        (Format::Vmdk, &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(format!("disk-{n}"));
        let to = path.to_str().unwrap().to_owned();
        qemu_img(&[&["convert", "-f", "raw"], words, &[raw, &to]].concat());
        assert!(read_all(&path, format).unwrap() == bytes, "{words:?}");
        // Whatever is damaged in it, it is an error or other bytes, and never the end of this process.
        let whole = std::fs::read(&path).unwrap();
        for step in 0..80usize {
            let mut damaged = whole.clone();
            let at = if step < 50 { step * 4 } else { step * 7919 } % damaged.len();
            damaged[at] ^= 0xff;
            if step % 7 == 0 {
                damaged.truncate(at + 1);
            }
            std::fs::write(dir.path().join("damaged"), &damaged).unwrap();
            let opened = Disk::open(File::open(dir.path().join("damaged")).unwrap(), format);
            if let Ok(mut disk) = opened {
                let last = disk.size.div_ceil(SNAPSHOT_BLOCK).saturating_sub(1);
                for block in [0, 1, 5, last] {
                    let _ = disk.block(block);
                }
            }
        }
    }
}

#[test]
fn a_file_that_refers_to_others_or_claims_too_much_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, _) = plain(dir.path());
    let (raw, path) = (raw.to_str().unwrap(), |name: &str| dir.path().join(name).to_str().unwrap().to_owned());
    let refused = |name: &str, format: Format| {
        let error = read_all(&dir.path().join(name), format).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{name}: {error}");
        error.to_string()
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, &path("backed")]);
    assert!(refused("backed", Format::Qcow2).contains("backing file"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &format!("data_file={}", path("data")), &path("outside"), "1M"]);
    assert!(refused("outside", Format::Qcow2).contains("data file"));
    qemu_img(&["create", "-q", "-f", "qcow2", &path("huge"), "1P"]);
    assert!(refused("huge", Format::Qcow2).contains("claims to be"));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, &path("zstd")]);
    assert!(refused("zstd", Format::Qcow2).contains("another way"));
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, &path("flat")]);
    assert!(refused("flat", Format::Vmdk).contains("descriptor only"));
    std::fs::write(
        dir.path().join("shadow"),
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/shadow\" 0\n",
    )
    .unwrap();
    // One sector at least, as real ones are padded.
    std::fs::OpenOptions::new().append(true).open(dir.path().join("shadow")).unwrap().write_all(&[b'\n'; 600]).unwrap();
    assert!(refused("shadow", Format::Vmdk).contains("other files"));
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", raw, &path("base")]);
    qemu_img(&["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", &path("base"), &path("child")]);
    assert!(refused("child", Format::Vmdk).contains("parent"));
    // The format is what is said, never what the bytes look like.
    for (name, format) in [("base", Format::Qcow2), ("plain.raw", Format::Qcow2), ("plain.raw", Format::Vmdk)] {
        assert!(refused(name, format).contains("first bytes"));
    }
    let as_raw = read_all(&dir.path().join("backed"), Format::Raw).unwrap();
    assert!(as_raw.starts_with(b"QFI\xfb"), "its own bytes, and nothing of what they name");
    std::fs::write(dir.path().join("empty"), b"").unwrap();
    assert!(refused("empty", Format::Raw).contains("cannot be a volume"));
}
