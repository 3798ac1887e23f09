//! The command line of an export's daemon: written, and read again from /proc.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};

use super::{Opened, Place, Served, place};
use crate::{backend::SECRET, volume::VolumeId};

pub const PROGRAM: &str = "qemu-storage-daemon";

/// The files and addresses of one daemon.
pub struct At<'a> {
    pub socket: &'a Path,
    pub monitor: &'a Path,
    pub pipe: &'a Path,
    pub credentials: &'a Path,
    pub tcp: Option<SocketAddr>,
}

pub fn command(served: &Served, opened: &Opened, at: &At<'_>) -> Vec<String> {
    let mut words = vec![PROGRAM.to_owned()];
    let mut say = |option: &str, value: String| words.extend([option.to_owned(), value]);
    if opened.passphrase.is_some() {
        let secret = json!({ "qom-type": "secret", "id": SECRET, "file": at.pipe });
        say("--object", secret.to_string());
    }
    // No limit to connections: QEMU comes back while its old connection is still half open.
    let mut server = json!({ "addr": { "type": "unix", "path": at.socket }, "max-connections": 0 });
    if let (Place::Tls { node, .. }, Some(tcp)) = (&served.place, at.tcp) {
        for object in place::objects(at.credentials, node.as_deref()) {
            say("--object", object.to_string());
        }
        server["addr"] = json!({ "type": "inet", "host": tcp.ip().to_string(), "port": tcp.port().to_string() });
        server["tls-creds"] = "tls".into();
        server["tls-authz"] = "nodes".into();
    }
    let export = json!({
        "type": "nbd", "id": "volume", "node-name": opened.blockdev["node-name"], "name": served.name,
        "description": served.attachment, "writable": true,
    });
    say("--chardev", format!("socket,id=qmp,server=on,wait=off,path={}", at.monitor.display()));
    say("--monitor", "chardev=qmp".into());
    say("--blockdev", opened.blockdev.to_string());
    say("--nbd-server", server.to_string());
    say("--export", export.to_string());
    words
}

/// What the daemon of this command line serves, if it is one of those whose sockets are in this folder.
pub fn read(cmdline: &[u8], sockets: &Path) -> Option<(Served, Vec<String>)> {
    let text = std::str::from_utf8(cmdline).ok()?;
    let words: Vec<String> = text.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
    if words.first().is_none_or(|w| w != PROGRAM) {
        return None;
    }
    let after = |option: &str| words.get(words.iter().position(|w| w == option)? + 1);
    let value = |option: &str| -> Option<Value> { serde_json::from_str(after(option)?).ok() };
    let monitor = Path::new(after("--chardev")?.split_once("path=")?.1);
    let name = monitor.file_name()?.to_str()?.strip_suffix(".qmp")?;
    if monitor.parent()? != sockets {
        return None;
    }
    let (server, export) = (value("--nbd-server")?, value("--export")?);
    let place = match server["addr"]["port"].as_str() {
        None => Place::Unix,
        Some(port) => Place::Tls { port: port.parse().ok()?, node: node_of(&words) },
    };
    let text = |key: &str| export[key].as_str().map(str::to_owned);
    let (attachment, name_of_export) = (text("description")?, text("name")?);
    Some((Served { volume: VolumeId::parse(name)?, attachment, name: name_of_export, place }, words))
}

/// Whom the daemon lets in.
fn node_of(words: &[String]) -> Option<String> {
    let objects = words.iter().filter_map(|w| serde_json::from_str::<Value>(w).ok());
    let rule = objects.filter(|o| o["qom-type"] == "authz-list").find_map(|o| o["rules"].get(0).cloned())?;
    let name = rule["match"].as_str()?.strip_prefix("CN=")?.split('.').next()?;
    (name != "*").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_known_by_its_own_command_line_and_another_is_not() {
        let place = Place::Tls { port: 10_809, node: Some("n1".into()) };
        for place in [Place::Unix, place, Place::Tls { port: 10_809, node: None }] {
            let volume = VolumeId::parse("vol-1a").unwrap();
            let served = Served { volume, attachment: "vattach-7".into(), name: "n".into(), place };
            let at = At {
                socket: Path::new("/s/vol-1a.sock"),
                monitor: Path::new("/s/vol-1a.qmp"),
                pipe: Path::new("/s/vol-1a.key"),
                credentials: Path::new("/c"),
                tcp: Some(([10, 0, 0, 1], 10_809).into()),
            };
            let passphrase = Some(mallee_tiers::Secret("never shown".into()));
            let opened = Opened { blockdev: json!({ "driver": "null-co", "node-name": "layer-0" }), passphrase };
            let line = command(&served, &opened, &at).join("\0") + "\0";
            assert!(!line.contains("never shown"));
            assert_eq!(read(line.as_bytes(), Path::new("/s")).unwrap().0, served);
            assert_eq!(read(line.as_bytes(), Path::new("/t")), None);
            assert_eq!(read(line.replace(PROGRAM, "qemu-nbd").as_bytes(), Path::new("/s")), None);
        }
    }
}
