//! The header of a qcow2 file, as far as one must look before giving a stranger's file to QEMU.

use std::{io::Read, path::Path};

use super::ImageError;

/// The size a guest sees, if the file is a qcow2 that refers to no other file.
pub fn virtual_size(path: &Path) -> Result<u64, ImageError> {
    let mut header = [0u8; 104];
    let mut file = std::fs::File::open(path).map_err(ImageError::io("opening", path))?;
    let mut have = 0;
    while have < header.len() {
        match file.read(&mut header[have..]).map_err(ImageError::io("reading", path))? {
            0 => break,
            n => have += n,
        }
    }
    check(&header).map_err(|why| ImageError::Refused(format!("the image is not usable as qcow2: {why}")))
}

/// Layout: QEMU's docs/interop/qcow2.rst.
fn check(header: &[u8; 104]) -> Result<u64, &'static str> {
    let u32_at = |at: usize| header[at..at + 4].iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
    let u64_at = |at: usize| header[at..at + 8].iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
    if &header[..4] != b"QFI\xfb" {
        return Err("its first bytes are not a qcow2's");
    }
    if !matches!(u32_at(4), 2 | 3) {
        return Err("its version is not 2 or 3");
    }
    if u64_at(8) != 0 {
        return Err("it names a backing file");
    }
    if u32_at(32) != 0 {
        return Err("it is encrypted");
    }
    const DATA_FILE: u64 = 1 << 2;
    if u32_at(4) == 3 && u64_at(72) & DATA_FILE != 0 {
        return Err("it names a data file");
    }
    Ok(u64_at(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u8, backing: u8, features: u8) -> [u8; 104] {
        let mut h = [0u8; 104];
        h[..4].copy_from_slice(b"QFI\xfb");
        (h[7], h[15], h[79]) = (version, backing, features);
        h[24..32].copy_from_slice(&(5u64 << 30).to_be_bytes());
        h
    }

    #[test]
    fn an_image_that_refers_to_another_file_is_refused() {
        assert_eq!(check(&header(3, 0, 0)), Ok(5 << 30));
        assert_eq!(check(&header(2, 0, 4)), Ok(5 << 30), "version 2 has no feature bits");
        assert!(check(&header(3, 104, 0)).is_err());
        assert!(check(&header(3, 0, 4)).is_err());
        assert!(check(&[0; 104]).is_err());
    }
}
