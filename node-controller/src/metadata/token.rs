//! IMDSv2 tokens: when they end and whom they are for, under a key of this node. Nothing is kept of a token, and the key is
//! on disk, so tokens outlive a restart.

use std::{io, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

type HmacSha256 = Hmac<Sha256>;

/// The node's key. Never printed.
pub struct TokenKey([u8; 64]);

impl TokenKey {
    /// The key in that file, made if there is none.
    pub fn load(path: &Path) -> io::Result<Self> {
        if let Ok(bytes) = std::fs::read(path)
            && let Ok(key) = <[u8; 64]>::try_from(bytes)
        {
            return Ok(Self(key));
        }
        let mut key = [0u8; 64];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut key);
        mallee_service::pki::write_secret(path, &key).map_err(io::Error::other)?;
        Ok(Self(key))
    }

    /// A token of `instance` that ends at `end` (milliseconds of this node's clock).
    pub fn issue(&self, instance: &str, end: i64) -> String {
        let mut token = end.to_be_bytes().to_vec();
        token.extend_from_slice(&rand::random::<[u8; 8]>());
        let mac = self.mac(instance, &token).finalize().into_bytes();
        token.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(token)
    }

    /// How many seconds the token has left, if it is this instance's and has not ended.
    pub fn check(&self, instance: &str, token: &str, now: i64) -> Option<i64> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (said, mac) = bytes.split_at_checked(16)?;
        self.mac(instance, said).verify_slice(mac).ok()?;
        let end = i64::from_be_bytes(said[..8].try_into().ok()?);
        (now < end).then(|| (end - now + 999) / 1000)
    }

    fn mac(&self, instance: &str, said: &[u8]) -> HmacSha256 {
        let mut mac = <HmacSha256 as Mac>::new((&self.0).into());
        mac.update(said);
        mac.update(instance.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_instances_for_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let key = TokenKey::load(&dir.path().join("key")).unwrap();
        let token = key.issue("i-a", 10_000);
        assert_eq!(key.check("i-a", &token, 4_000), Some(6));
        assert_eq!(key.check("i-a", &token, 10_000), None);
        assert_eq!(key.check("i-b", &token, 4_000), None);
        assert_eq!(key.check("i-a", &format!("{token}A"), 4_000), None);
        assert_eq!(key.check("i-a", "", 4_000), None);
        let again = TokenKey::load(&dir.path().join("key")).unwrap();
        assert_eq!(again.check("i-a", &token, 4_000), Some(6), "tokens outlive a restart");
    }
}
