//! The encryption of a layer: a LUKS 1 header with one key slot, as QEMU reads it, and the cipher of its sectors.
//!
//! Headers are made here and not by `qemu-img`, which measures for seconds how often it can hash a passphrase; ours has 256
//! random bits, so hashing it often protects nothing. Every layer has a key of its own in its header.
//!
//! The format is in cryptsetup's "LUKS On-Disk Format Specification 1.2.3"; AES-256 in XTS mode, sectors of 512 bytes counted
//! from the beginning of the file.

use std::io::{Error, ErrorKind, Result};

use mallee_tiers::Secret;
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    memcmp, pkcs5,
    sha::sha256,
    symm::{Cipher, Crypter, Mode},
};

/// Bytes of a header, with room for eight key slots, where QEMU would put the end of it, too.
pub const HEADER: usize = 4040 * SECTOR;

const SECTOR: usize = 512;
const MAGIC: &[u8] = b"LUKS\xba\xbe\x00\x01";
/// Of AES-256-XTS.
const KEY: usize = 64;
const STRIPES: usize = 4000;
const SLOTS: usize = 8;
/// The split key, rounded up to 4 KiB.
const SLOT_SECTORS: usize = (KEY * STRIPES).div_ceil(4096) * 4096 / SECTOR;
const FIRST_SLOT: usize = 8;
/// The least that QEMU and cryptsetup take.
const ITERATIONS: u32 = 1000;
/// No file that was made by something else may keep us at its passphrase for hours.
const ITERATIONS_MAX: u32 = 50_000_000;
const ACTIVE: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
const DIGEST: usize = 20;
const SALT: usize = 32;

// Where things are in the header.
const CIPHER_NAME: usize = 8;
const CIPHER_MODE: usize = 40;
const HASH: usize = 72;
const PAYLOAD: usize = 104;
const KEY_BYTES: usize = 108;
const MK_DIGEST: usize = 112;
const MK_SALT: usize = 132;
const MK_ITERATIONS: usize = 164;
const UUID: usize = 168;
const SLOT_TABLE: usize = 208;
const SLOT_ENTRY: usize = 48;

/// Deciphers and enciphers the sectors of one file.
pub struct SectorCipher {
    key: [u8; KEY],
}

impl std::fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SectorCipher(…)")
    }
}

fn crypto(e: ErrorStack) -> Error {
    Error::other(format!("cipher: {e}"))
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("LUKS: {what}"))
}

fn pbkdf2<const N: usize>(secret: &[u8], salt: &[u8], iterations: u32) -> Result<[u8; N]> {
    let mut out = [0; N];
    pkcs5::pbkdf2_hmac(secret, salt, iterations as usize, MessageDigest::sha256(), &mut out).map_err(crypto)?;
    Ok(out)
}

fn put_u32(header: &mut [u8], at: usize, value: u32) {
    header[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn be32(header: &[u8], at: usize) -> u32 {
    header.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// Spreads the bytes of a block over all of it.
fn diffuse(block: &mut [u8; KEY]) {
    for (n, part) in (0u32..).zip(block.chunks_exact_mut(32)) {
        let hashed = sha256(&[&n.to_be_bytes()[..], part].concat());
        part.copy_from_slice(&hashed);
    }
}

fn xor(into: &mut [u8; KEY], other: &[u8]) {
    into.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

/// Of the anti-forensic stripes, what the last one is xored with.
fn gather(stripes: &[u8]) -> [u8; KEY] {
    let mut all = [0; KEY];
    for stripe in stripes.chunks_exact(KEY).take(STRIPES - 1) {
        xor(&mut all, stripe);
        diffuse(&mut all);
    }
    all
}

impl SectorCipher {
    /// A header for a new file, and its cipher.
    pub fn create(passphrase: &Secret) -> Result<(Vec<u8>, Self)> {
        let mut random = vec![0; KEY + 2 * SALT + KEY * (STRIPES - 1)];
        openssl::rand::rand_bytes(&mut random).map_err(crypto)?;
        let (key, rest) = random.split_at(KEY);
        let (mk_salt, rest) = rest.split_at(SALT);
        let (salt, stripes) = rest.split_at(SALT);
        let mut cipher = Self { key: [0; KEY] };
        cipher.key.copy_from_slice(key);

        let mut header = vec![0; HEADER];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        for (at, text) in [(CIPHER_NAME, "aes"), (CIPHER_MODE, "xts-plain64"), (HASH, "sha256")] {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        put_u32(&mut header, PAYLOAD, (HEADER / SECTOR) as u32);
        put_u32(&mut header, KEY_BYTES, KEY as u32);
        header[MK_DIGEST..MK_DIGEST + DIGEST].copy_from_slice(&pbkdf2::<DIGEST>(key, mk_salt, ITERATIONS)?);
        header[MK_SALT..MK_SALT + SALT].copy_from_slice(mk_salt);
        put_u32(&mut header, MK_ITERATIONS, ITERATIONS);
        let uuid = format!("{:08x}-0000-4000-8000-{}", rand::random::<u32>(), hex::encode(rand::random::<[u8; 6]>()));
        header[UUID..UUID + uuid.len()].copy_from_slice(uuid.as_bytes());
        for slot in 0..SLOTS {
            let entry = SLOT_TABLE + slot * SLOT_ENTRY;
            put_u32(&mut header, entry, if slot == 0 { ACTIVE } else { DISABLED });
            put_u32(&mut header, entry + 40, (FIRST_SLOT + slot * SLOT_SECTORS) as u32);
            put_u32(&mut header, entry + 44, STRIPES as u32);
        }
        put_u32(&mut header, SLOT_TABLE + 4, ITERATIONS);
        header[SLOT_TABLE + 8..SLOT_TABLE + 8 + SALT].copy_from_slice(salt);

        let mut last = gather(stripes);
        xor(&mut last, key);
        let mut split = stripes.to_vec();
        split.extend(last);
        let slot_key = Self { key: pbkdf2(passphrase.0.as_bytes(), salt, ITERATIONS)? };
        slot_key.crypt(Mode::Encrypt, 0, &mut split)?;
        let at = FIRST_SLOT * SECTOR;
        header[at..at + split.len()].copy_from_slice(&split);
        Ok((header, cipher))
    }

    /// Opens a header that is in a file.
    pub fn open(header: &[u8], passphrase: &Secret) -> Result<Self> {
        let is = |at: usize, text: &str| {
            header.get(at..at + 32).is_some_and(|b| b.split(|c| *c == 0).next() == Some(text.as_bytes()))
        };
        let ours = header.starts_with(MAGIC) && is(CIPHER_NAME, "aes") && is(CIPHER_MODE, "xts-plain64");
        if !ours || !is(HASH, "sha256") || be32(header, KEY_BYTES) as usize != KEY {
            return Err(wrong("it is not AES-256-XTS with SHA-256, which is what is read here"));
        }
        let (mk_iterations, mk_salt) = (be32(header, MK_ITERATIONS), &header[MK_SALT..MK_SALT + SALT]);
        for slot in 0..SLOTS {
            let entry = SLOT_TABLE + slot * SLOT_ENTRY;
            let (iterations, at) = (be32(header, entry + 4), be32(header, entry + 40) as usize * SECTOR);
            if be32(header, entry) != ACTIVE || be32(header, entry + 44) as usize != STRIPES {
                continue;
            }
            if iterations.max(mk_iterations) > ITERATIONS_MAX {
                return Err(wrong("its passphrase is hashed more often than is done here"));
            }
            let salt = &header[entry + 8..entry + 8 + SALT];
            let Some(split) = header.get(at..at + KEY * STRIPES) else { return Err(wrong("it is cut off")) };
            let mut split = split.to_vec();
            let slot_key = Self { key: pbkdf2(passphrase.0.as_bytes(), salt, iterations)? };
            slot_key.crypt(Mode::Decrypt, 0, &mut split)?;
            let mut key = gather(&split);
            xor(&mut key, &split[KEY * (STRIPES - 1)..]);
            let digest = pbkdf2::<DIGEST>(&key, mk_salt, mk_iterations)?;
            if memcmp::eq(&digest, &header[MK_DIGEST..MK_DIGEST + DIGEST]) {
                return Ok(Self { key });
            }
        }
        Err(wrong("the passphrase is not that of this file"))
    }

    /// Deciphers whole sectors that lie at `offset` in the file.
    pub fn decrypt(&self, offset: u64, sectors: &mut [u8]) -> Result<()> {
        self.crypt(Mode::Decrypt, offset, sectors)
    }

    fn crypt(&self, mode: Mode, offset: u64, sectors: &mut [u8]) -> Result<()> {
        let cipher = Cipher::aes_256_xts();
        let mut out = [0; SECTOR + 32];
        for (number, sector) in (offset / SECTOR as u64..).zip(sectors.chunks_mut(SECTOR)) {
            let mut tweak = [0; 16];
            tweak[..8].copy_from_slice(&number.to_le_bytes());
            let mut crypter = Crypter::new(cipher, mode, &self.key, Some(&tweak)).map_err(crypto)?;
            crypter.pad(false);
            let mut length = crypter.update(sector, &mut out).map_err(crypto)?;
            length += crypter.finalize(&mut out[length..]).map_err(crypto)?;
            if length != sector.len() {
                return Err(wrong("a sector that is not whole"));
            }
            sector.copy_from_slice(&out[..length]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_opens_with_its_passphrase_and_no_other() {
        let (mine, other) = (Secret("a".repeat(64)), Secret("b".repeat(64)));
        let (header, cipher) = SectorCipher::create(&mine).unwrap();
        assert_eq!(SectorCipher::open(&header, &mine).unwrap().key, cipher.key);
        assert!(SectorCipher::open(&header, &other).is_err());
        assert!(SectorCipher::open(&header[..4096], &mine).is_err());
        assert!(!header.windows(KEY).any(|w| w == cipher.key));
        assert_eq!(format!("{cipher:?}"), "SectorCipher(…)");
    }

    #[test]
    fn a_sector_is_deciphered_where_it_lies_and_nowhere_else() {
        let (_, cipher) = SectorCipher::create(&Secret("a".into())).unwrap();
        let mut sectors = vec![7; 4096];
        cipher.crypt(Mode::Encrypt, 8192, &mut sectors).unwrap();
        assert!(!sectors.contains(&7) || sectors.iter().filter(|b| **b == 7).count() < 100);
        let mut elsewhere = sectors.clone();
        cipher.decrypt(12288, &mut elsewhere).unwrap();
        assert_ne!(elsewhere, [7; 4096]);
        cipher.decrypt(8192, &mut sectors).unwrap();
        assert_eq!(sectors, [7; 4096]);
    }
}
