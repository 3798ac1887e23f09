//! Secrets at rest: AES-256-GCM under a key file that only root may read, kept beside the store and never in it.

use std::path::Path;

use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};

use crate::pki::{PkiError, write_secret};

/// The key of one tier's store.
#[derive(Clone)]
pub struct SealingKey([u8; 32]);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

const NONCE: usize = 12;
const TAG: usize = 16;

impl SealingKey {
    /// The key in `path`; made when there is none.
    pub fn open_or_create(path: &Path) -> Result<Self, PkiError> {
        if !path.exists() {
            write_secret(path, hex::encode(rand::random::<[u8; 32]>()).as_bytes())?;
        }
        let text = std::fs::read_to_string(path).map_err(|e| PkiError::File(path.display().to_string(), e))?;
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key)
            .map_err(|_| PkiError::Refused(format!("{} holds no sealing key", path.display())))?;
        Ok(Self(key))
    }

    /// A key for another use than sealing, bound to that use.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::new().chain_update(self.0).chain_update(purpose.as_bytes()).finalize().into()
    }

    /// `about` is bound into the seal: a sealed secret moved to another row does not open.
    pub fn seal(&self, about: &str, secret: &[u8]) -> Result<Vec<u8>, PkiError> {
        let nonce: [u8; NONCE] = rand::random();
        let mut tag = [0; TAG];
        let sealed = encrypt_aead(Cipher::aes_256_gcm(), &self.0, Some(&nonce), about.as_bytes(), secret, &mut tag)?;
        Ok([&nonce[..], &tag, &sealed].concat())
    }

    pub fn open(&self, about: &str, sealed: &[u8]) -> Result<Vec<u8>, PkiError> {
        let wrong = || PkiError::Refused(format!("the sealed secret of {about} does not open with this key file"));
        let (nonce, rest) = sealed.split_at_checked(NONCE).ok_or_else(wrong)?;
        let (tag, sealed) = rest.split_at_checked(TAG).ok_or_else(wrong)?;
        decrypt_aead(Cipher::aes_256_gcm(), &self.0, Some(nonce), about.as_bytes(), sealed, tag).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_where_it_was_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let key = SealingKey::open_or_create(&dir.path().join("key")).unwrap();
        let again = SealingKey::open_or_create(&dir.path().join("key")).unwrap();
        let mut sealed = key.seal("AKIA1", b"secret").unwrap();
        assert_eq!(again.open("AKIA1", &sealed).unwrap(), b"secret");
        assert!(again.open("AKIA2", &sealed).is_err());
        sealed[30] ^= 1;
        assert!(again.open("AKIA1", &sealed).is_err());
        assert!(!String::from_utf8_lossy(&sealed).contains("secret"));
    }
}
