//! Identities as walrus keeps them, so that it serves on while the cloud-controller is down.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A secret that never shows itself in logs; it does travel between tiers, inside mutual TLS.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One access key and whom it speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub access_key: String,
    pub secret: Secret,
    pub active: bool,
    /// 12 digits.
    pub account: String,
    pub account_name: String,
    /// S3's name of the account: 64 hex digits.
    pub canonical_id: String,
    /// `arn:aws:iam::ACCOUNT:root` or of a user.
    pub arn: String,
}

/// Asks for the identities when they are newer than `since`; hangs up to `wait_ms`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct IdentitiesAsked {
    pub since: Option<crate::Generation>,
    pub wait_ms: u64,
}

/// All identities of the cloud, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identities {
    pub generation: crate::Generation,
    /// None: nothing is newer than the caller's.
    pub identities: Option<Vec<Identity>>,
}
