//! What a volume began with, while some of it is still only in walrus: served to the volume's daemon block by block.
//!
//! A volume of a snapshot is an empty qcow2 file whose backing file is an NBD export of this process ([`nbd`]). What a guest
//! reads there is fetched from walrus, checked and deciphered ([`Source`]); a job of the daemon brings over the rest (`fill`).
//! While walrus is away, what was not fetched waits; nothing else does.

mod blocks;
mod fill;
mod nbd;

pub use blocks::Source;
pub(crate) use blocks::{Blocking, Sources};
pub(crate) use fill::name as fill_name;
pub(crate) use nbd::listen;

use std::path::Path;

use serde_json::{Value, json};

/// How long a daemon's reads wait for a storage-controller that went away, in seconds.
const RECONNECT_S: u32 = 24 * 3600;
/// How long a daemon that starts waits for it.
const OPEN_S: u32 = 30;
const SOCKET: &str = "source.sock";

/// QEMU's description of a volume's source.
pub(crate) fn blockdev(sockets: &Path, volume: &str) -> Value {
    json!({
        "driver": "nbd", "node-name": "source", "server": { "type": "unix", "path": sockets.join(SOCKET) },
        "export": volume, "reconnect-delay": RECONNECT_S, "open-timeout": OPEN_S, "read-only": true,
    })
}
