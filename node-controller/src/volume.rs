//! Volumes at an instance: which disk stands for which volume, and what has to be attached and detached. Pure.
//!
//! The storage-controller owns the bytes and serves them; the cloud-controller says which volumes an instance shall have.
//! The guest knows a volume by its disk's serial, the volume id without its dash, as on EC2. The device's name is a hint:
//! `/dev/sdf`, `/dev/xvdf` and `/dev/vdf` all ask for the target `vdf`, and the guest's kernel may count otherwise.
//!
//! A volume that is the root is the first disk whatever its device is called. It is there from before the guest starts
//! until after it has ended, so nothing of it changes meanwhile.

use mallee_tiers::{DiskLimits, Export, Instance, VolumeAttachment};

use crate::hypervisor::{SeenDisk, VolumeDisk};

/// `vol-0123` → `vol0123`: 20 bytes is all a virtio disk keeps.
pub fn serial(volume: &str) -> String {
    volume.replacen('-', "", 1)
}

/// The disk a device name asks for, or why it cannot be had. An old partition number says nothing about the disk.
pub fn target(device: &str) -> Result<String, String> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let rest = ["xvd", "sd", "vd"].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or_default();
    let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    match letters.as_bytes() {
        [b'a'] => Err(format!("{device} is the root disk's")),
        [b'b'..=b'z'] | [b'a'..=b'z', b'a'..=b'z'] => Ok(format!("vd{letters}")),
        _ => Err(format!("{device} names no disk a volume can be: /dev/sdf to /dev/sdp are customary")),
    }
}

pub fn disk(wanted: &VolumeAttachment) -> Result<VolumeDisk, String> {
    let Export { name, address, .. } = &wanted.export;
    Ok(VolumeDisk {
        serial: serial(&wanted.volume),
        target: target(&wanted.device)?,
        export: name.clone(),
        address: address.clone(),
        server: wanted.export.server.clone(),
        limits: wanted.limits,
    })
}

/// The target of the first disk.
pub const ROOT_TARGET: &str = "vda";

/// The first disk, when it is a volume that is served.
pub fn root_disk(wish: &Instance) -> Option<VolumeDisk> {
    let root = wish.boot.root.volume()?;
    let wanted = wish.volumes.iter().find(|w| w.volume == root)?;
    let Export { name, address, server, .. } = &wanted.export;
    let (serial, target) = (serial(root), ROOT_TARGET.to_owned());
    Some(VolumeDisk {
        serial,
        target,
        export: name.clone(),
        address: address.clone(),
        server: server.clone(),
        limits: wanted.limits,
    })
}

/// The other disks a domain begins with. A wish that cannot be met is left out, and is reported when the instance runs.
pub fn disks(wish: &Instance) -> Vec<VolumeDisk> {
    let root = wish.boot.root.volume();
    let mut all: Vec<VolumeDisk> = Vec::new();
    for disk in wish.volumes.iter().filter(|w| Some(w.volume.as_str()) != root).filter_map(|w| disk(w).ok()) {
        if !all.iter().any(|other| other.target == disk.target || other.serial == disk.serial) {
            all.push(disk);
        }
    }
    all
}

/// One thing to do at a running instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Detach(SeenDisk),
    Attach(VolumeAttachment),
    /// The guest shall know another size, or be held to other limits.
    Fit(SeenDisk, Fit),
}

/// What a disk is to be besides being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    pub size_gib: u64,
    pub limits: DiskLimits,
}

impl Fit {
    pub fn of(wanted: &VolumeAttachment) -> Self {
        Self { size_gib: wanted.size_gib, limits: wanted.limits }
    }
}

/// The disks that are there and were not made to fit, by their serials; also the root.
pub fn misfits(wish: &Instance, seen: &[SeenDisk], fitted: &[(String, Fit)]) -> Vec<Change> {
    let mut all = Vec::new();
    for wanted in &wish.volumes {
        let (serial, fit) = (serial(&wanted.volume), Fit::of(wanted));
        let disk = seen.iter().find(|s| s.serial == serial && s.export == wanted.export.name);
        let done = fitted.iter().any(|(fitted, as_it_is)| *fitted == serial && *as_it_is == fit);
        all.extend(disk.filter(|_| !done).map(|disk| Change::Fit(disk.clone(), fit)));
    }
    all
}

/// What has to change, detaching first: a disk that shall go may hold the place of one that shall come.
pub fn changes(wish: &Instance, seen: &[SeenDisk]) -> Vec<Change> {
    let root = wish.boot.root.volume();
    let root_serial = root.map(serial);
    let wanted: Vec<&VolumeAttachment> = wish.volumes.iter().filter(|w| Some(w.volume.as_str()) != root).collect();
    let seen: Vec<&SeenDisk> = seen.iter().filter(|s| Some(&s.serial) != root_serial.as_ref()).collect();
    let same = |w: &VolumeAttachment, s: &SeenDisk| serial(&w.volume) == s.serial && w.export.name == s.export;
    let gone = seen.iter().filter(|s| !wanted.iter().any(|w| same(w, s))).map(|s| Change::Detach((*s).clone()));
    let new = wanted.iter().filter(|w| !seen.iter().any(|s| same(w, s))).map(|w| Change::Attach((*w).clone()));
    gone.chain(new).collect()
}

impl Change {
    /// The volume's serial.
    pub fn serial(&self) -> String {
        match self {
            Change::Detach(disk) | Change::Fit(disk, _) => disk.serial.clone(),
            Change::Attach(wanted) => serial(&wanted.volume),
        }
    }
}

/// `vol0123` → `vol-0123`.
pub fn volume_of(serial: &str) -> String {
    serial.strip_prefix("vol").map_or_else(|| serial.to_owned(), |rest| format!("vol-{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_tiers::{Boot, Desired, DiskLimits, ExportAddress, Generation, Metadata, Root};

    /// An instance with these volumes, whose root is the one named.
    fn wish(volumes: &[VolumeAttachment], root: Option<&str>) -> Instance {
        Instance {
            id: "i-1".into(),
            generation: Generation::default(),
            desired: Desired::Running,
            force: false,
            reboots: 0,
            vcpus: 1,
            memory_mib: 1,
            disk_gib: 1,
            boot: Boot {
                architecture: "x86_64".into(),
                root: Root::Volume { volume: root.map(Into::into) },
                kernel: None,
                ramdisk: None,
                command_line: None,
            },
            stores: vec![],
            awaits: None,
            hold: None,
            interfaces: vec![],
            volumes: volumes.to_vec(),
            metadata: Metadata::default(),
            node: None,
        }
    }

    fn changes(wanted: &[VolumeAttachment], seen: &[SeenDisk]) -> Vec<Change> {
        super::changes(&wish(wanted, None), seen)
    }

    #[test]
    fn the_root_is_the_first_disk_whatever_it_is_called_and_never_changes_while_the_guest_runs() {
        let mut root = wanted("vol-r", "r");
        root.device = "/dev/sda1".into();
        let both = wish(&[root, wanted("vol-a", "1")], Some("vol-r"));
        let first = root_disk(&both).unwrap();
        assert_eq!((first.target.as_str(), first.serial.as_str()), ("vda", "volr"));
        assert_eq!(disks(&both).iter().map(|d| d.serial.as_str()).collect::<Vec<_>>(), ["vola"]);
        assert_eq!(super::changes(&both, &[seen("vol-r", "r"), seen("vol-a", "1")]), []);
        assert_eq!(super::changes(&both, &[seen("vol-r", "old"), seen("vol-a", "1")]), []);
        assert_eq!(root_disk(&wish(&[], Some("vol-r"))), None, "it is not served yet");
    }

    fn wanted(volume: &str, export: &str) -> VolumeAttachment {
        let export = Export {
            attachment: "a".into(),
            name: export.into(),
            address: ExportAddress::Unix("/s".into()),
            server: None,
        };
        VolumeAttachment {
            volume: volume.into(),
            device: "/dev/sdf".into(),
            export,
            size_gib: 1,
            limits: DiskLimits::default(),
        }
    }
    fn seen(volume: &str, export: &str) -> SeenDisk {
        SeenDisk { serial: serial(volume), target: "vdf".into(), alias: "ua".into(), export: export.into() }
    }

    #[test]
    fn device_names_of_all_kinds_ask_for_one_disk() {
        for (device, want) in
            [("/dev/sdf", "vdf"), ("/dev/xvdf", "vdf"), ("vdg", "vdg"), ("/dev/sdf1", "vdf"), ("/dev/xvdba", "vdba")]
        {
            assert_eq!(target(device).as_deref(), Ok(want));
        }
        for device in ["/dev/sda", "/dev/xvda", "/dev/sda1", "/dev/nvme1n1", "", "/dev/sdfff", "/dev/sdé"] {
            assert!(target(device).is_err(), "{device}");
        }
    }

    #[test]
    fn a_serial_fits_a_virtio_disk() {
        assert_eq!(serial("vol-0123456789abcdef0").len(), 20);
        assert_eq!(volume_of(&serial("vol-0123456789abcdef0")), "vol-0123456789abcdef0");
    }

    #[test]
    fn a_disk_is_made_to_fit_once_and_again_when_something_else_is_wanted() {
        let mut wish = wish(&[wanted("vol-r", "r"), wanted("vol-a", "1")], Some("vol-r"));
        let there = [seen("vol-r", "r"), seen("vol-a", "1")];
        let fit = Fit::of(&wish.volumes[1]);
        let both = misfits(&wish, &there, &[]);
        assert_eq!(both.iter().map(Change::serial).collect::<Vec<_>>(), ["volr", "vola"]);
        let fitted = [("volr".to_owned(), fit), ("vola".to_owned(), fit)];
        assert_eq!(misfits(&wish, &there, &fitted), []);
        wish.volumes[1].size_gib = 2;
        let grown = Fit { size_gib: 2, ..fit };
        assert_eq!(misfits(&wish, &there, &fitted), [Change::Fit(there[1].clone(), grown)]);
        assert_eq!(misfits(&wish, &there[..1], &fitted), [], "one that is not there is attached first");
        assert_eq!(misfits(&wish, &[seen("vol-a", "old")], &fitted), [], "and so is one of another attachment");
    }

    #[test]
    fn what_is_not_wanted_goes_before_what_is_new_comes() {
        assert_eq!(changes(&[wanted("vol-a", "1")], &[seen("vol-a", "1")]), []);
        assert_eq!(changes(&[wanted("vol-a", "1")], &[]), [Change::Attach(wanted("vol-a", "1"))]);
        assert_eq!(
            changes(&[wanted("vol-b", "2")], &[seen("vol-a", "1")]),
            [Change::Detach(seen("vol-a", "1")), Change::Attach(wanted("vol-b", "2"))]
        );
    }

    #[test]
    fn a_volume_attached_anew_is_another_disk() {
        assert_eq!(
            changes(&[wanted("vol-a", "2")], &[seen("vol-a", "1")]),
            [Change::Detach(seen("vol-a", "1")), Change::Attach(wanted("vol-a", "2"))]
        );
    }
}
