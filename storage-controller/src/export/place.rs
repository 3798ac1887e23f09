//! Where an export is served: on a unix socket for the machine's own node, by TLS for every other.
//!
//! A machine's name is in its certificate, which a daemon asks for: only the node an export was made for can open it, even
//! one that learned its name.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use mallee_tiers::{Role, server_name};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where one export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Unix,
    /// On this port, for this node; None: for any node of the cloud.
    Tls {
        port: u16,
        node: Option<String>,
    },
}

/// How machines beside this one reach exports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beyond {
    /// This machine's address, as the zone's other machines reach it.
    pub address: IpAddr,
    /// The node on this machine, by name; it is given unix sockets.
    #[serde(default)]
    pub local_node: Option<String>,
    /// Each export takes one of these.
    #[serde(default = "first_port")]
    pub first_port: u16,
    #[serde(default = "last_port")]
    pub last_port: u16,
}

/// NBD's, and a thousand.
fn first_port() -> u16 {
    10_809
}
fn last_port() -> u16 {
    11_808
}

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("every port from {0} to {1} is taken: {2} volumes are exported to other machines")]
    NoPort(u16, u16, usize),
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
}

impl Beyond {
    /// A port that no row has and nobody listens on.
    pub fn free_port(&self, taken: &[u16]) -> Result<u16, PlaceError> {
        let is_free = |port: &u16| !taken.contains(port) && TcpListener::bind((self.address, *port)).is_ok();
        let found = (self.first_port..=self.last_port).find(is_free);
        found.ok_or(PlaceError::NoPort(self.first_port, self.last_port, taken.len()))
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }
}

/// What QEMU calls a server's certificate.
pub(super) const SERVER_CERTIFICATE: &str = "server-cert.pem";

/// The tier's certificate under the names QEMU looks for.
pub fn credentials(tls: &Path, folder: &Path) -> Result<(), PlaceError> {
    std::fs::create_dir_all(folder).map_err(|e| PlaceError::File(folder.into(), e))?;
    for (ours, name) in [("ca.pem", "ca-cert.pem"), ("cert.pem", SERVER_CERTIFICATE), ("key.pem", "server-key.pem")] {
        let link = folder.join(name);
        let _ = std::fs::remove_file(&link);
        symlink(tls.join(ours), &link).map_err(|e| PlaceError::File(link.clone(), e))?;
    }
    Ok(())
}

/// What a daemon needs to speak TLS with this node and nobody else.
pub fn objects(credentials: &Path, node: Option<&str>) -> [Value; 2] {
    let (pattern, format) = match node {
        Some(node) => (server_name(Role::NodeController, node), "exact"),
        None => (server_name(Role::NodeController, "*"), "glob"),
    };
    let rule = json!({ "match": format!("CN={pattern}"), "policy": "allow", "format": format });
    [
        json!({ "qom-type": "tls-creds-x509", "id": "tls", "dir": credentials, "endpoint": "server", "verify-peer": true }),
        json!({ "qom-type": "authz-list", "id": "nodes", "policy": "deny", "rules": [rule] }),
    ]
}
