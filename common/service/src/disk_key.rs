//! Keys of encrypted disks. The cloud-controller makes them; a storage-controller asks for one and keeps it sealed.
//!
//! From one key follow the passphrase of a volume's LUKS headers and the seal of a snapshot's blocks in walrus.
//!
//! A sealed block is its tag and its ciphertext. The tag is an HMAC over what the block holds, and the nonce of its cipher,
//! so equal blocks under one key are equal blobs and are kept once (synthetic IV: whoever reads walrus' disk learns which
//! blocks are equal, and which are all zero, because those are no blobs at all). It also proves the block.

use mallee_tiers::Secret;
use openssl::{
    hash::MessageDigest,
    memcmp,
    pkey::PKey,
    sign::Signer,
    symm::{Cipher, Crypter, Mode},
};

use crate::pki::PkiError;

/// What a sealed block has more than the block.
pub const BLOCK_OVERHEAD: usize = 16;

/// 32 random bytes that never leave memory unsealed.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskKey([u8; 32]);

impl std::fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskKey(…)")
    }
}

fn hmac(key: &[u8], data: &[u8]) -> Result<[u8; 32], PkiError> {
    let key = PKey::hmac(key)?;
    let mut out = [0; 32];
    let length = Signer::new(MessageDigest::sha256(), &key)?.sign_oneshot(&mut out, data)?;
    if length == out.len() { Ok(out) } else { Err(PkiError::Refused("an HMAC of another length".into())) }
}

impl DiskKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From what the cloud-controller says.
    pub fn from_secret(secret: &Secret) -> Result<Self, PkiError> {
        let mut key = [0; 32];
        hex::decode_to_slice(secret.0.trim(), &mut key)
            .map_err(|_| PkiError::Refused("a disk's key is 64 hex digits, and this is something else".into()))?;
        Ok(Self(key))
    }

    pub fn to_secret(&self) -> Secret {
        Secret(hex::encode(self.0))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn derive(&self, purpose: &str) -> Result<[u8; 32], PkiError> {
        hmac(&self.0, purpose.as_bytes())
    }

    /// Opens the LUKS headers of volumes.
    pub fn passphrase(&self) -> Result<Secret, PkiError> {
        Ok(Secret(hex::encode(self.derive("volume: passphrase")?)))
    }

    pub fn seal_block(&self, block: &[u8]) -> Result<Vec<u8>, PkiError> {
        let tag = self.tag(block)?;
        let mut sealed = tag.to_vec();
        sealed.extend(self.crypt(Mode::Encrypt, &tag, block)?);
        Ok(sealed)
    }

    pub fn open_block(&self, sealed: &[u8]) -> Result<Vec<u8>, PkiError> {
        let wrong = || PkiError::Refused("a block of a snapshot does not open with its key".into());
        let (tag, ciphertext) = sealed.split_first_chunk::<BLOCK_OVERHEAD>().ok_or_else(wrong)?;
        let block = self.crypt(Mode::Decrypt, tag, ciphertext)?;
        if memcmp::eq(&self.tag(&block)?, tag) { Ok(block) } else { Err(wrong()) }
    }

    fn tag(&self, block: &[u8]) -> Result<[u8; BLOCK_OVERHEAD], PkiError> {
        let whole = hmac(&self.derive("block: tag")?, block)?;
        let mut tag = [0; BLOCK_OVERHEAD];
        tag.copy_from_slice(&whole[..BLOCK_OVERHEAD]);
        Ok(tag)
    }

    fn crypt(&self, mode: Mode, nonce: &[u8; BLOCK_OVERHEAD], data: &[u8]) -> Result<Vec<u8>, PkiError> {
        let key = self.derive("block: cipher")?;
        let mut crypter = Crypter::new(Cipher::aes_256_ctr(), mode, &key, Some(nonce))?;
        let mut out = vec![0; data.len() + Cipher::aes_256_ctr().block_size()];
        let mut length = crypter.update(data, &mut out)?;
        length += crypter.finalize(&mut out[length..])?;
        out.truncate(length);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_opens_with_its_key_only_and_equal_blocks_are_equal_when_sealed() {
        let (key, other) = (DiskKey::new([7; 32]), DiskKey::new([8; 32]));
        let block = vec![b'm'; 4096];
        let mut sealed = key.seal_block(&block).unwrap();
        assert_eq!(sealed, key.seal_block(&block).unwrap());
        assert_ne!(sealed, other.seal_block(&block).unwrap());
        assert_eq!(sealed.len(), block.len() + BLOCK_OVERHEAD);
        assert_eq!(key.open_block(&sealed).unwrap(), block);
        assert!(!sealed.windows(8).any(|w| w == b"mmmmmmmm"));
        assert!(other.open_block(&sealed).is_err());
        sealed[100] ^= 1;
        assert!(key.open_block(&sealed).is_err());
        assert!(key.open_block(b"short").is_err());
    }

    #[test]
    fn neither_a_log_nor_a_passphrase_shows_the_key() {
        let key = DiskKey::new([0x5a; 32]);
        assert_eq!(format!("{key:?} {:?}", key.to_secret()), "DiskKey(…) Secret(…)");
        assert_ne!(key.passphrase().unwrap(), key.to_secret());
        assert_eq!(DiskKey::from_secret(&key.to_secret()).unwrap(), key);
        assert!(DiskKey::from_secret(&Secret("short".into())).is_err());
    }
}
