//! Who is at the other end of a connection between tiers, as its certificate says.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a certificate of the cloud's CA was made for. Each endpoint accepts only the roles it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    CloudController,
    Walrus,
    ClusterController,
    StorageController,
    NodeController,
    /// The person at the machine, over the root-only admin socket; never in a certificate.
    Operator,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::CloudController => "cloud-controller",
            Role::Walrus => "walrus",
            Role::ClusterController => "cluster-controller",
            Role::StorageController => "storage-controller",
            Role::NodeController => "node-controller",
            Role::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        [Role::CloudController, Role::Walrus, Role::ClusterController, Role::StorageController, Role::NodeController]
            .into_iter()
            .find(|r| r.as_str() == s)
            .ok_or_else(|| format!("no such role: {s}"))
    }
}

/// The identity in a tier's certificate: SAN URI `mallee://ROLE/ZONE/NAME`. `zone` is empty for tiers of the whole cloud.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    pub role: Role,
    pub zone: String,
    pub name: String,
}

impl Peer {
    pub fn new(role: Role, zone: impl Into<String>, name: impl Into<String>) -> Self {
        Self { role, zone: zone.into(), name: name.into() }
    }
    /// The person at the machine.
    pub fn operator() -> Self {
        Self::new(Role::Operator, "", "operator")
    }
    pub fn uri(&self) -> String {
        format!("mallee://{}/{}/{}", self.role, self.zone, self.name)
    }
    pub fn from_uri(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("mallee://")?.split('/');
        let peer = Self { role: parts.next()?.parse().ok()?, zone: parts.next()?.into(), name: parts.next()?.into() };
        (parts.next().is_none() && !peer.name.is_empty()).then_some(peer)
    }
    /// The name a client asks for (SNI) and finds in the server's certificate.
    pub fn server_name(&self) -> String {
        server_name(self.role, &self.name)
    }
}

/// The DNS name in the certificate of the tier `name` with `role`. It is never looked up.
pub fn server_name(role: Role, name: &str) -> String {
    format!("{name}.{role}.mallee.internal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_survives_its_uri() {
        for peer in [Peer::new(Role::NodeController, "mallee-1a", "n1"), Peer::new(Role::Walrus, "", "walrus")] {
            assert_eq!(Peer::from_uri(&peer.uri()), Some(peer));
        }
    }

    #[test]
    fn nobody_can_claim_to_be_the_operator_in_a_certificate() {
        assert_eq!(Peer::from_uri("mallee://operator//root"), None);
        assert_eq!(Peer::from_uri("mallee://walrus//"), None);
        assert_eq!(Peer::from_uri("mallee://walrus/a/b/c"), None);
    }
}
