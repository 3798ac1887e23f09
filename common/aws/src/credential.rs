//! Access keys: the id anyone may see and the secret nobody may.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::error::AwsError;

/// `AKIA…`, `ASIA…` or an operator's own: 1 to 128 printable ASCII characters without `/ , : =` and spaces, which
/// separate it from its neighbours on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccessKeyId(String);

impl AccessKeyId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccessKeyId {
    type Err = AwsError;

    fn from_str(text: &str) -> Result<Self, AwsError> {
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"/,:=\"<>&".contains(&byte);
        if text.is_empty() || text.len() > 128 || !text.bytes().all(plain) {
            return Err(AwsError::new("InvalidClientTokenId", 403, "The access key id is malformed."));
        }
        Ok(AccessKeyId(text.to_string()))
    }
}

impl fmt::Display for AccessKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A secret access key. It prints as a placeholder, compares in no way, and is wiped when dropped.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<String>);

impl SecretKey {
    pub fn new(secret: impl Into<String>) -> Self {
        SecretKey(Zeroizing::new(secret.into()))
    }

    /// The secret itself: for signing, for sealing at rest, and for the one answer that hands it out.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hidden")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints() {
        let secret = SecretKey::new("wJalrXUtnFEMI");
        assert!(!format!("{secret:?} {secret} {:#?}", Some(&secret)).contains("wJalr"));
    }

    #[test]
    fn an_access_key_id_cannot_carry_separators() {
        assert!("AKIDEXAMPLE".parse::<AccessKeyId>().is_ok());
        for bad in ["", "a/b", "a,b", "a:b", "a b", "a\r\nb", "é"] {
            assert!(bad.parse::<AccessKeyId>().is_err(), "{bad:?}");
        }
    }
}
