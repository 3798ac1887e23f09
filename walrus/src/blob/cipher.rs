//! Encryption of contents: AES-256-GCM, block by block, so that a range costs its blocks and a changed, moved or missing
//! block does not open.
//!
//! An object has one random data key ([`DataKey`]), which rows keep only wrapped. Each blob has its own key derived from
//! that and the blob's id; a blob is written once, so a block's number is a nonce that is used once. Parts of an upload
//! share its data key, and copies of an object share its blobs with it.

use std::{fmt, io};

use bytes::Bytes;
use openssl::{
    hash::MessageDigest,
    pkey::PKey,
    sign::Signer,
    symm::{Cipher, Crypter, Mode, decrypt_aead},
};

use super::{BLOCK, BlobId};
use crate::Error;

const TAG: usize = 16;
/// How much of a content fits a block beside its tag.
pub const SEALED_BLOCK: usize = BLOCK - TAG;

/// What an object's bytes are encrypted under.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey([u8; 32]);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

fn failed(e: openssl::error::ErrorStack) -> Error {
    Error::Internal(format!("encryption: {e}"))
}

impl DataKey {
    pub fn random() -> Self {
        Self(rand::random())
    }
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Sixteen bytes about `text` that say nothing without the key.
    pub fn mark(&self, text: &[u8]) -> Result<[u8; 16], Error> {
        let mac = self.mac(&[b"mark ", text])?;
        mac.get(..16).and_then(|half| half.try_into().ok()).ok_or_else(|| Error::Internal("a short MAC".into()))
    }

    fn mac(&self, pieces: &[&[u8]]) -> Result<Vec<u8>, Error> {
        let key = PKey::hmac(&self.0).map_err(failed)?;
        let mut signer = Signer::new(MessageDigest::sha256(), &key).map_err(failed)?;
        for piece in pieces {
            signer.update(piece).map_err(failed)?;
        }
        signer.sign_to_vec().map_err(failed)
    }

    pub fn of_blob(&self, id: &BlobId) -> Result<BlockKey, Error> {
        let mac = self.mac(&[b"blob ", id.as_str().as_bytes()])?;
        mac.try_into().map(BlockKey).map_err(|_| Error::Internal("a MAC of another length".into()))
    }
}

/// The key of one blob.
#[derive(Clone)]
pub struct BlockKey([u8; 32]);

fn nonce(n: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&n.to_be_bytes());
    nonce
}

impl BlockKey {
    /// The block `n` as it is stored: a tag longer.
    pub fn seal(&self, n: u64, bytes: &[u8]) -> Result<Bytes, Error> {
        let cipher = Cipher::aes_256_gcm();
        let mut crypter = Crypter::new(cipher, Mode::Encrypt, &self.0, Some(&nonce(n))).map_err(failed)?;
        let mut out = vec![0; bytes.len() + TAG];
        let mut at = crypter.update(bytes, &mut out).map_err(failed)?;
        at += crypter.finalize(&mut out[at..]).map_err(failed)?;
        crypter.get_tag(&mut out[at..at + TAG]).map_err(failed)?;
        out.truncate(at + TAG);
        Ok(out.into())
    }

    /// What [`BlockKey::seal`] was given; `InvalidData` when it is not what was stored.
    pub fn open(&self, n: u64, stored: &[u8]) -> io::Result<Bytes> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("the encrypted block {n} does not open"));
        let (sealed, tag) = stored.split_at_checked(stored.len().saturating_sub(TAG)).ok_or_else(wrong)?;
        decrypt_aead(Cipher::aes_256_gcm(), &self.0, Some(&nonce(n)), &[], sealed, tag)
            .map(Bytes::from)
            .map_err(|_| wrong())
    }
}

/// How many bytes a blob has that holds `size` bytes of a content.
pub fn stored_size(size: u64) -> u64 {
    size + size.div_ceil(SEALED_BLOCK as u64) * TAG as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_opens_only_where_it_was_sealed() {
        let (data, id) = (DataKey::random(), BlobId::new(1));
        let key = data.of_blob(&id).unwrap();
        let sealed = key.seal(3, b"some bytes").unwrap();
        assert_eq!(sealed.len() as u64, stored_size(10));
        assert_eq!(key.open(3, &sealed).unwrap(), &b"some bytes"[..]);
        assert!(key.open(2, &sealed).is_err());
        assert!(data.of_blob(&BlobId::new(1)).unwrap().open(3, &sealed).is_err());
        let mut changed = sealed.to_vec();
        changed[0] ^= 1;
        assert!(key.open(3, &changed).is_err());
        assert!(key.open(3, b"short").is_err());
        assert_eq!(key.open(0, &key.seal(0, b"").unwrap()).unwrap().len(), 0);
    }
}
