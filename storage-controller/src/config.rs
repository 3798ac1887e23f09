//! What a storage-controller is told.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, blobs::Place, export::Beyond};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    pub daemon: mallee_service::config::Daemon,
    /// Where the sockets of exports are; the same path must lead to them where QEMU runs. `STATE/sockets` by default.
    /// A socket's path has at most 107 bytes, so this one must be short.
    #[serde(default)]
    pub sockets: Option<PathBuf>,
    /// Where the bytes of volumes are. `STATE/volumes` by default.
    #[serde(default)]
    pub volumes: Option<PathBuf>,
    /// How other machines reach volumes. Without it only this machine's node does, by unix sockets.
    #[serde(default)]
    pub nbd: Option<Beyond>,
    /// Where walrus is; the cloud-controller is asked by default.
    #[serde(default)]
    pub walrus: Option<Place>,
}

/// What the kernel's `sockaddr_un` holds, without the ending zero.
const SOCKET_PATH_MAX: usize = 107;
/// `/vol-0123456789abcdef0.sock`
const SOCKET_NAME: usize = 27;

impl Config {
    pub fn volumes(&self) -> PathBuf {
        self.volumes.clone().unwrap_or_else(|| self.daemon.state.join("volumes"))
    }

    /// The folder of sockets, if they can be made there.
    pub fn sockets(&self) -> Result<PathBuf, Error> {
        let dir = self.sockets.clone().unwrap_or_else(|| self.daemon.state.join("sockets"));
        let longest = SOCKET_PATH_MAX - SOCKET_NAME;
        if !dir.is_absolute() || dir.as_os_str().len() > longest {
            return Err(Error::Config(format!(
                "sockets: {} must be an absolute path of at most {longest} bytes, because a socket's path has at most {SOCKET_PATH_MAX}",
                dir.display()
            )));
        }
        Ok(dir)
    }
}
