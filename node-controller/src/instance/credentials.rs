//! What the disks of running guests show to the machines that serve them: this node's certificate, as it was when a disk was
//! attached. Whenever there is a newer one, every disk is given it; a file says which one they all have.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use mallee_service::{Identity, PassReport, Reconciler};
use mallee_tiers::{Export, ExportAddress};

use super::Machine;
use crate::{
    hypervisor::{Credentials, Power, Seen, SeenDisk},
    image::sync_dir,
    volume,
};

pub struct DiskCredentials {
    pub machine: Arc<Machine>,
    pub identity: Identity,
    /// As QEMU wants it; the certificate there is always the newest.
    pub folder: PathBuf,
    /// Of the node.
    pub state: PathBuf,
    /// (until, instance, export) of those that have it, while others could not be given it yet.
    pub given: Mutex<BTreeSet<(i64, String, String)>>,
}

/// In the node's folder: until when the certificate is good that every disk has.
const SHOWN: &str = "disk-certificate";

impl DiskCredentials {
    async fn show(&self, report: &mut PassReport) -> Result<(), String> {
        let until = self.identity.not_after().map_err(|e| e.to_string())?;
        let (file, new) = (self.state.join(SHOWN), self.state.join("disk-certificate.new"));
        if std::fs::read_to_string(&file).is_ok_and(|shown| shown == until.to_string()) {
            return Ok(());
        }
        let credentials = Credentials { folder: self.folder.clone(), until };
        let wishes = self.machine.wishes.all().await.map_err(|e| e.to_string())?;
        let given = || self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = None;
        for domain in self.machine.hypervisor.list().await.map_err(|e| e.to_string())? {
            let exports = wishes.iter().filter(|w| w.body.id == domain.name).flat_map(|w| &w.body.volumes);
            for (disk, export) in served_elsewhere(&domain, exports.map(|v| (v.volume.as_str(), &v.export))) {
                let this = (until, domain.name.clone(), export.name.clone());
                if given().contains(&this) {
                    continue;
                }
                // One that cannot be given it must not keep the others from it.
                if let Err(e) = self.machine.hypervisor.show(&domain.name, disk, export, &credentials).await {
                    failed.get_or_insert(format!("{} {}: {e}", domain.name, disk.serial));
                    continue;
                }
                given().insert(this);
                tracing::info!(instance.id = domain.name, disk = disk.serial, until, "it shows the new certificate");
                report.changed += 1;
            }
        }
        if let Some(why) = failed {
            return Err(why);
        }
        given().clear();
        let write = || {
            std::fs::write(&new, until.to_string())?;
            std::fs::rename(&new, &file)?;
            sync_dir(&self.state)
        };
        write().map_err(|e| format!("{}: {e}", file.display()))
    }
}

/// The disks of a running guest that come over the network.
fn served_elsewhere<'a>(
    domain: &'a Seen,
    exports: impl Iterator<Item = (&'a str, &'a Export)>,
) -> Vec<(&'a SeenDisk, &'a Export)> {
    if matches!(domain.power, Power::Off(_) | Power::Ending) {
        return Vec::new();
    }
    let far = exports.filter(|(_, export)| matches!(export.address, ExportAddress::Tcp(_)));
    let disk_of = |volume: &str, export: &Export| {
        let serial = volume::serial(volume);
        domain.disks.iter().find(|disk| disk.serial == serial && disk.export == export.name)
    };
    far.filter_map(|(volume, export)| Some((disk_of(volume, export)?, export))).collect()
}

#[async_trait::async_trait]
impl Reconciler for DiskCredentials {
    fn name(&self) -> &'static str {
        "certificates of disks"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let faults = &self.machine.faults;
        match self.show(&mut report).await {
            Ok(()) => faults.clear("certificates of disks"),
            Err(why) => {
                let what = format!("a disk cannot be given the node's new certificate: {why}");
                faults.raise(
                    "certificates of disks",
                    what,
                    "it is tried again; detach and attach the volume otherwise",
                );
                // The fault says it. It is not tried again at once: a guest stands still while QEMU connects.
                tracing::warn!(why, "certificates of disks");
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_that_come_over_the_network_need_a_certificate() {
        let disk = |serial: &str, export: &str| SeenDisk {
            serial: serial.into(),
            target: "vdf".into(),
            alias: "ua".into(),
            export: export.into(),
        };
        let export = |name: &str, address| Export { attachment: "a".into(), name: name.into(), address, server: None };
        let far = || ExportAddress::Tcp("10.0.0.1:10809".into());
        let disks = vec![disk("vol1", "e1"), disk("vol2", "e2"), disk("vol3", "old")];
        let mut domain = Seen { name: "i-1".into(), power: Power::Running, disks, nics: vec![] };
        let exports = [
            ("vol-1", export("e1", far())),
            ("vol-2", export("e2", ExportAddress::Unix("/s".into()))),
            ("vol-3", export("e3", far())),
            ("vol-4", export("e4", far())),
        ];
        let all = |domain: &Seen| -> Vec<String> {
            let exports = exports.iter().map(|(volume, export)| (*volume, export));
            served_elsewhere(domain, exports).into_iter().map(|(disk, _)| disk.serial.clone()).collect()
        };
        assert_eq!(all(&domain), ["vol1"], "not one of another attachment, nor one that is not there yet");
        domain.power = Power::Ending;
        assert_eq!(all(&domain), Vec::<String>::new());
    }
}
