//! A disk whose export was cut, because its volume was taken by force.
//!
//! QEMU asks a disk that goes to write out what it holds, and waits for one that is not served as long as it would wait for a
//! daemon to come back; the guest stands still all the while. So QEMU is told that this one will not be back. Only then: of a
//! disk that is served, the guest may still have something to write.

use std::{
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use virt::{domain::Domain, error::Error};

use super::{super::SeenDisk, monitor};

/// A daemon that died is started again at once: one that is not there at all these looks was ended.
const LOOKS: usize = 6;
const BETWEEN: Duration = Duration::from_millis(150);
const CONNECT: Duration = Duration::from_secs(1);

/// QEMU's node for a disk, and where its export is.
#[derive(Debug, PartialEq, Eq)]
struct Client {
    node: String,
    place: Place,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Unix(String),
    Tcp(String),
}

/// Has QEMU give up what nobody serves any more.
pub fn give_up(domain: &Domain, disk: &SeenDisk) -> Result<(), Error> {
    let nodes = ask(domain, json!({ "execute": "query-named-block-nodes", "arguments": { "flat": true } }))?;
    let Some(client) = client(&nodes, &disk.export) else { return Ok(()) };
    for look in 0..LOOKS {
        if look > 0 {
            thread::sleep(BETWEEN);
        }
        if client.place.answers() {
            return Ok(());
        }
    }
    tracing::info!(disk = disk.serial, "its export was cut; QEMU is told not to wait for it");
    let instance = json!({ "type": "block-node", "node-name": client.node });
    ask(domain, json!({ "execute": "yank", "arguments": { "instances": [instance] } })).map(drop)
}

fn ask(domain: &Domain, command: Value) -> Result<Value, Error> {
    Ok(serde_json::from_str(&monitor::tell(domain, &command.to_string(), monitor::QMP)?).unwrap_or_default())
}

/// Reads QEMU's names for what it is connected to: `nbd+unix:///EXPORT?socket=PATH` and `nbd://HOST:PORT/EXPORT`.
fn client(nodes: &Value, export: &str) -> Option<Client> {
    let find = |node: &Value| {
        let file = node["file"].as_str().filter(|_| node["drv"] == "nbd" && !export.is_empty())?;
        let place = match file.strip_prefix("nbd+unix:///") {
            Some(unix) => Place::Unix(unix.strip_prefix(export)?.strip_prefix("?socket=")?.to_owned()),
            None => Place::Tcp(file.strip_prefix("nbd://")?.strip_suffix(export)?.strip_suffix('/')?.to_owned()),
        };
        Some(Client { node: node["node-name"].as_str()?.to_owned(), place })
    };
    nodes["return"].as_array()?.iter().find_map(find)
}

impl Place {
    fn answers(&self) -> bool {
        match self {
            Place::Unix(path) => UnixStream::connect(path).is_ok(),
            Place::Tcp(place) => {
                let mut all = place.to_socket_addrs().into_iter().flatten();
                all.any(|address| TcpStream::connect_timeout(&address, CONNECT).is_ok())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_of_an_export_is_found_among_all_nodes() {
        let nodes = json!({ "return": [
            { "node-name": "libvirt-3-storage", "drv": "nbd", "file": "nbd+unix:///e1?socket=/s/vol-1.sock" },
            { "node-name": "libvirt-3-format", "drv": "raw", "file": "nbd+unix:///e1?socket=/s/vol-1.sock" },
            { "node-name": "libvirt-2-storage", "drv": "nbd", "file": "nbd://10.0.0.1:10809/e2" },
            { "node-name": "libvirt-1-storage", "drv": "file", "file": "/root.qcow2" },
        ] });
        let found = |export| client(&nodes, export).map(|c| (c.node, c.place));
        assert_eq!(found("e1"), Some(("libvirt-3-storage".into(), Place::Unix("/s/vol-1.sock".into()))));
        assert_eq!(found("e2"), Some(("libvirt-2-storage".into(), Place::Tcp("10.0.0.1:10809".into()))));
        for none in ["e3", "", "2"] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
