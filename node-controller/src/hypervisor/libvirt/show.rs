//! Other credentials for a disk that a guest has.
//!
//! QEMU reads a certificate when a disk is attached and never again; a certificate lives 30 days, and a disk may stay for
//! years. While its connection lasts nobody asks. When it breaks, an old certificate is refused, and the guest has lost its
//! disk. So the disk is connected anew, beside the old connection, and the guest's device is put upon that. libvirt knows
//! QEMU's node by a name, so this is done twice: through a node of ours to a new one of the old name.

use std::fmt::Display;

use mallee_tiers::{Export, ExportAddress};
use serde_json::{Value, json};
use virt::domain::Domain;

use super::{
    super::{Credentials, SeenDisk, domain::RECONNECT_S},
    monitor,
};

/// What libvirt calls its nodes.
const THEIRS: &str = "libvirt-";
/// And we the ones in between, and objects of credentials.
const OURS: &str = "mallee-";

/// One command to QEMU.
type Tell<'a> = &'a dyn Fn(&str, Value) -> Result<Value, String>;

pub fn show(domain: &Domain, disk: &SeenDisk, export: &Export, credentials: &Credentials) -> Result<(), String> {
    let tell = |command: &str, arguments: Value| {
        let said = |e: &dyn Display| format!("{command}: {e}");
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        let answer = monitor::tell(domain, &line, monitor::QMP).map_err(|e| said(&e))?;
        let mut answer: Value = serde_json::from_str(&answer).map_err(|e| said(&e))?;
        match answer["error"]["desc"].as_str() {
            Some(why) => Err(said(&why)),
            None => Ok(answer["return"].take()),
        }
    };
    change(&tell, disk, export, credentials)
}

fn change(tell: Tell<'_>, disk: &SeenDisk, export: &Export, credentials: &Credentials) -> Result<(), String> {
    let ExportAddress::Tcp(place) = &export.address else { return Ok(()) };
    let (host, port) = place.rsplit_once(':').ok_or_else(|| format!("{place} is no address"))?;
    let object = credentials_object(tell, credentials)?;
    let node = |name: &str| {
        json!({
            "driver": "nbd", "node-name": name, "export": export.name, "tls-creds": object, "tls-hostname": export.server,
            "server": { "type": "inet", "host": host.trim_matches(['[', ']']), "port": port },
            "reconnect-delay": RECONNECT_S, "read-only": false, "discard": "unmap",
            "cache": { "direct": true, "no-flush": false },
        })
    };
    let device = format!("/machine/peripheral/{}/virtio-backend", disk.alias);
    let there = |name: &str| -> Result<bool, String> {
        let nodes = tell("query-named-block-nodes", json!({ "flat": true }))?;
        Ok(nodes.as_array().is_some_and(|all| all.iter().any(|n| n["node-name"] == name)))
    };
    // A node is made anew, the device is put upon it, and the one it was on goes.
    let step = |from: &str, to: &str| -> Result<(), String> {
        if there(to)? {
            tell("blockdev-del", json!({ "node-name": to }))?;
        }
        tell("blockdev-add", node(to))?;
        tell("qom-set", json!({ "path": device, "property": "drive", "value": to }))?;
        tell("blockdev-del", json!({ "node-name": from })).map(drop)
    };
    let now = tell("qom-get", json!({ "path": device, "property": "drive" }))?;
    let now = now.as_str().unwrap_or_default();
    // One that was interrupted in between is on a node of ours.
    let (theirs, ours) = match (now.strip_prefix(THEIRS), now.strip_prefix(OURS)) {
        (Some(rest), _) | (_, Some(rest)) => (format!("{THEIRS}{rest}"), format!("{OURS}{rest}")),
        _ => return Err(format!("{} is on {now:?}, which nobody here has made", disk.serial)),
    };
    if now == theirs {
        step(&theirs, &ours)?;
    }
    step(&ours, &theirs)
}

/// QEMU's name for these credentials, which it is given if it has none of that name. Those before them go: who is connected
/// has its own.
fn credentials_object(tell: Tell<'_>, credentials: &Credentials) -> Result<String, String> {
    let prefix = format!("{OURS}tls-");
    let object = format!("{prefix}{}", credentials.until);
    let all = tell("qom-list", json!({ "path": "/objects" }))?;
    let names = all.as_array().into_iter().flatten().filter_map(|o| o["name"].as_str());
    let (same, before): (Vec<&str>, Vec<&str>) =
        names.filter(|name| name.starts_with(&prefix)).partition(|name| **name == object);
    for old in before {
        tell("object-del", json!({ "id": old }))?;
    }
    if same.is_empty() {
        let folder = &credentials.folder;
        let new = json!({ "qom-type": "tls-creds-x509", "id": object, "dir": folder, "endpoint": "client", "verify-peer": true });
        tell("object-add", new)?;
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, path::PathBuf};

    use super::*;

    /// As much of QEMU as is asked here: nodes, objects, and what the device is on. It refuses what QEMU refuses.
    struct Qemu {
        nodes: Vec<String>,
        objects: Vec<String>,
        drive: String,
        log: Vec<String>,
        /// Dies after so many commands.
        left: usize,
    }

    fn run(qemu: &RefCell<Qemu>) -> Result<(), String> {
        let tell = |command: &str, a: Value| {
            let mut qemu = qemu.borrow_mut();
            let text = |key: &str| a[key].as_str().unwrap_or_default().to_owned();
            if !command.starts_with("q") || command == "qom-set" {
                qemu.left = qemu.left.checked_sub(1).ok_or("died")?;
                qemu.log.push(command.to_owned());
            }
            match command {
                "query-named-block-nodes" => {
                    return Ok(json!(qemu.nodes.iter().map(|n| json!({ "node-name": n })).collect::<Vec<_>>()));
                }
                "qom-list" => return Ok(json!(qemu.objects.iter().map(|n| json!({ "name": n })).collect::<Vec<_>>())),
                "qom-get" => return Ok(json!(qemu.drive)),
                "qom-set" if qemu.nodes.contains(&text("value")) => qemu.drive = text("value"),
                "blockdev-add"
                    if !qemu.nodes.contains(&text("node-name")) && qemu.objects.contains(&text("tls-creds")) =>
                {
                    qemu.nodes.push(text("node-name"));
                }
                "blockdev-del" if qemu.nodes.contains(&text("node-name")) && qemu.drive != text("node-name") => {
                    qemu.nodes.retain(|n| *n != text("node-name"));
                }
                "object-add" if !qemu.objects.contains(&text("id")) => qemu.objects.push(text("id")),
                "object-del" if qemu.objects.contains(&text("id")) => qemu.objects.retain(|o| *o != text("id")),
                _ => return Err(format!("{command} {a} is refused")),
            }
            Ok(Value::Null)
        };
        let disk =
            SeenDisk { serial: "vol1".into(), target: "vdf".into(), alias: "ua-vol1".into(), export: "e".into() };
        let address = ExportAddress::Tcp("10.0.0.1:10809".into());
        let export = Export { attachment: "a".into(), name: "e".into(), address, server: Some("s".into()) };
        change(&tell, &disk, &export, &Credentials { folder: PathBuf::from("/tls"), until: 9 })
    }

    #[test]
    fn interrupted_anywhere_it_is_brought_to_its_end() {
        let objects = vec!["objlibvirt-3-storage_tls0".to_owned(), "mallee-tls-5".to_owned()];
        for left in 0..9 {
            let (drive, nodes) =
                ("libvirt-3-storage".to_owned(), vec!["libvirt-3-storage".to_owned(), "libvirt-1-format".to_owned()]);
            let qemu = RefCell::new(Qemu { nodes, objects: objects.clone(), drive, log: Vec::new(), left });
            assert_eq!(run(&qemu).is_err(), left < 8, "{left}: {:?}", qemu.borrow().log);
            qemu.borrow_mut().left = 100;
            run(&qemu).unwrap_or_else(|e| panic!("after {left}: {e}"));
            let qemu = qemu.into_inner();
            assert_eq!(qemu.drive, "libvirt-3-storage", "libvirt finds what it knows");
            assert_eq!(qemu.nodes.len(), 2, "{:?}", qemu.nodes);
            assert_eq!(qemu.objects, ["objlibvirt-3-storage_tls0", "mallee-tls-9"]);
        }
    }
}
