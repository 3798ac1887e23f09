//! An instance as a libvirt domain: a pure renderer.
//!
//! - Fixed devices sit on the root bus at fixed slots, so that the root disk and the first interface are always the first and
//!   a disk's place never depends on what was attached when; every volume and every other interface gets one of the root
//!   ports, which exist for that from the start: only what sits there can be pulled while the guest runs.
//! - SMBIOS says Amazon EC2 with a uuid and serial that begin with `ec2`: cloud-init looks for nothing else (plumbing.md §2).
//! - The console goes to a file through virtlogd and is appended to, so a reboot keeps what was said before.
//! - What a guest flushed to its root disk survives a loss of power: see [`ROOT_CACHE`].

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use mallee_tiers::{DiskLimits, ExportAddress, INTERFACES_AT_AN_INSTANCE, VOLUMES_AT_AN_INSTANCE};
use uuid::Uuid;

use super::VolumeDisk;
use crate::volume::ROOT_TARGET;

/// Cache mode of the root disk: the host's page cache, and the guest's flushes are honoured. `unsafe` ignores them, so what a
/// guest synced is lost with the machine's power, and it buys nothing: CPU seconds of QEMU until SSH answers, median of 6
/// boots of the mini guest under TCG (load 1 to 5), were 2.8 with `writeback` and 2.8 with `unsafe` by direct kernel boot,
/// 3.5 and 3.2 from a whole disk, where two runs of the same kind differ by more. 4 root ports instead of 12: 2.7 and 3.2.
pub const ROOT_CACHE: &str = "writeback";
pub(crate) const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";
/// How long a guest's requests wait for a storage daemon that went away, in seconds.
pub(super) const RECONNECT_S: u32 = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Tcg,
}

#[derive(Debug, Clone)]
pub struct DomainSpec {
    /// The instance's id.
    pub name: String,
    pub uuid: Uuid,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub accelerator: Accelerator,
    /// None: the root is a whole disk with a boot loader.
    pub kernel: Option<Kernel>,
    pub root: RootDisk,
    /// Instance stores beside it.
    pub stores: Vec<StoreDisk>,
    /// By device index.
    pub nics: Vec<Nic>,
    pub volumes: Vec<VolumeDisk>,
    pub console: PathBuf,
}

/// The first disk.
#[derive(Debug, Clone)]
pub enum RootDisk {
    /// The instance's own qcow2 overlay.
    Overlay(PathBuf),
    Volume(VolumeDisk),
}

/// A disk of the node's own, beside the root.
#[derive(Debug, Clone)]
pub struct StoreDisk {
    /// A qcow2 file.
    pub file: PathBuf,
    /// `vdb`.
    pub target: String,
}

#[derive(Debug, Clone)]
pub struct Kernel {
    /// A bzImage or a PVH vmlinux.
    pub image: PathBuf,
    pub ramdisk: Option<PathBuf>,
    pub command_line: String,
}

#[derive(Debug, Clone)]
pub struct Nic {
    pub mac: String,
    /// The logical port it is bound to.
    pub port: Uuid,
    /// At most 15 characters.
    pub tap: String,
    pub bridge: String,
}

/// Text as XML content or attribute; characters XML cannot hold at all are left out.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            c if c < ' ' && !matches!(c, '\t' | '\n') => {}
            c => out.push(c),
        }
    }
    out
}

impl DomainSpec {
    pub fn to_xml(&self) -> String {
        let (kind, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host-passthrough"),
            Accelerator::Tcg => ("qemu", "maximum"),
        };
        let mut xml = format!(
            "<domain type='{kind}'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  <memory unit='MiB'>{memory}</memory>\n  \
             <vcpu>{vcpus}</vcpu>\n  <sysinfo type='smbios'>\n    <bios><entry name='vendor'>Amazon EC2</entry></bios>\n    \
             <system><entry name='manufacturer'>Amazon EC2</entry><entry name='serial'>{uuid}</entry>\
             <entry name='uuid'>{uuid}</entry></system>\n    <baseBoard><entry name='manufacturer'>Amazon EC2</entry>\
             <entry name='asset'>{name}</entry></baseBoard>\n    <chassis><entry name='asset'>Amazon EC2</entry></chassis>\n  \
             </sysinfo>\n  <os>\n    <type arch='x86_64' machine='q35'>hvm</type>\n{boot}    <smbios mode='sysinfo'/>\n  </os>\n  \
             <features><acpi/><apic/></features>\n  <cpu mode='{cpu}'/>\n  <on_poweroff>destroy</on_poweroff>\n  \
             <on_reboot>restart</on_reboot>\n  <on_crash>destroy</on_crash>\n  <devices>\n    \
             <emulator>{EMULATOR}</emulator>\n    <controller type='pci' index='0' model='pcie-root'/>\n",
            name = escape(&self.name),
            uuid = self.uuid,
            memory = self.memory_mib,
            vcpus = self.vcpus,
            boot = self.boot(),
        );
        for _ in 0..VOLUMES_AT_AN_INSTANCE + INTERFACES_AT_AN_INSTANCE - 1 {
            xml.push_str("    <controller type='pci' model='pcie-root-port'/>\n");
        }
        xml.push_str("    <controller type='usb' model='none'/>\n");
        match &self.root {
            RootDisk::Overlay(file) => xml.push_str(&file_disk(file, ROOT_TARGET, ROOT_SLOT)),
            RootDisk::Volume(disk) => xml.push_str(&disk.xml_at(&format!("      {}\n", root_bus(ROOT_SLOT)))),
        }
        for (slot, store) in (FIRST_STORE_SLOT..).zip(&self.stores) {
            xml.push_str(&file_disk(&store.file, &store.target, slot));
        }
        for volume in &self.volumes {
            xml.push_str(&volume.to_xml());
        }
        for (place, nic) in self.nics.iter().enumerate() {
            xml.push_str(&nic.to_xml(if place == 0 { Place::RootBus(0x11) } else { Place::RootPort }));
        }
        let _ = write!(
            xml,
            "    <serial type='pty'><log file='{console}' append='on'/><target type='isa-serial' port='0'/></serial>\n    \
             <video><model type='none'/></video>\n    <memballoon model='virtio'><stats period='10'/>{balloon}</memballoon>\n  \
             </devices>\n</domain>\n",
            console = escape(&self.console.to_string_lossy()),
            balloon = root_bus(0x1e),
        );
        xml
    }

    fn boot(&self) -> String {
        let Some(kernel) = &self.kernel else {
            return "    <boot dev='hd'/>\n".into();
        };
        let mut xml = format!("    <kernel>{}</kernel>\n", escape(&kernel.image.to_string_lossy()));
        if let Some(ramdisk) = &kernel.ramdisk {
            let _ = writeln!(xml, "    <initrd>{}</initrd>", escape(&ramdisk.to_string_lossy()));
        }
        let _ = writeln!(xml, "    <cmdline>{}</cmdline>", escape(&kernel.command_line));
        xml
    }
}

/// Where a card sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this slot of the root bus, for as long as the domain runs.
    RootBus(u8),
    /// At the next free root port, from which it can be pulled.
    RootPort,
}

impl Nic {
    /// The userspace datapath never fills in a checksum that was left to the hardware, so nothing is left to it
    /// (engines.md §5).
    pub fn to_xml(&self, place: Place) -> String {
        let address = match place {
            Place::RootBus(slot) => format!("\n      {}", root_bus(slot)),
            Place::RootPort => String::new(),
        };
        format!(
            "    <interface type='bridge'>\n      <mac address='{mac}'/>\n      <source bridge='{bridge}'/>\n      \
             <virtualport type='openvswitch'><parameters interfaceid='{port}'/></virtualport>\n      <target dev='{tap}'/>\n      \
             <model type='virtio'/>\n      <driver name='qemu'>\
             <host csum='off' gso='off' tso4='off' tso6='off' ecn='off' ufo='off'/>\
             <guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/></driver>\n      <rom enabled='no'/>{address}\n    \
             </interface>\n",
            mac = escape(&self.mac),
            bridge = escape(&self.bridge),
            port = self.port,
            tap = escape(&self.tap),
        )
    }
}

/// Fixed places on the root bus. Guests count disks by their slots, so the root is before the others; network cards are between.
const ROOT_SLOT: u8 = 0x10;
const FIRST_STORE_SLOT: u8 = 0x19;

fn file_disk(file: &Path, target: &str, slot: u8) -> String {
    format!(
        "    <disk type='file' device='disk'>\n      \
         <driver name='qemu' type='qcow2' cache='{ROOT_CACHE}' discard='unmap'/>\n      <source file='{file}'/>\n      \
         <target dev='{target}' bus='virtio'/>\n      {address}\n    </disk>\n",
        file = escape(&file.to_string_lossy()),
        target = escape(target),
        address = root_bus(slot),
    )
}

fn root_bus(slot: u8) -> String {
    format!("<address type='pci' domain='0x0000' bus='0x00' slot='{slot:#04x}' function='0x0'/>")
}

/// The limits of a disk as libvirt names them.
pub fn tunables(limits: &DiskLimits) -> Vec<(&'static str, u64)> {
    let mut all = vec![
        ("total_bytes_sec", limits.throughput_mib.map_or(0, |mib| u64::from(mib) << 20)),
        ("total_iops_sec", limits.iops.map_or(0, u64::from)),
    ];
    if let Some(iops) = limits.iops {
        all.push(("size_iops_sec", DiskLimits::REQUEST));
        if let Some(burst) = limits.burst_iops.filter(|burst| *burst > iops) {
            all.extend([("total_iops_sec_max", burst.into()), ("total_iops_sec_max_length", DiskLimits::BURST_S)]);
        }
    }
    all
}

fn limits_xml(limits: &DiskLimits) -> String {
    if !limits.any() {
        return String::new();
    }
    let each = tunables(limits).into_iter().filter(|(_, value)| *value > 0);
    let each: String = each.map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
    format!("      <iotune>{each}</iotune>\n")
}

impl VolumeDisk {
    /// As it is plugged in: libvirt finds it a free port.
    pub fn to_xml(&self) -> String {
        self.xml_at("")
    }

    fn xml_at(&self, address: &str) -> String {
        let (tls, host) = match &self.address {
            ExportAddress::Unix(path) => (String::new(), format!("<host transport='unix' socket='{}'/>", escape(path))),
            ExportAddress::Tcp(place) => {
                let (name, port) = place.rsplit_once(':').unwrap_or((place.as_str(), "10809"));
                let server = self.server.as_deref().map(|name| format!(" tlsHostname='{}'", escape(name)));
                (
                    format!(" tls='yes'{}", server.unwrap_or_default()),
                    format!("<host name='{}' port='{}'/>", escape(name.trim_matches(['[', ']'])), escape(port)),
                )
            }
        };
        format!(
            "    <disk type='network' device='disk'>\n      <driver name='qemu' type='raw' cache='none' discard='unmap'/>\n      \
             <source protocol='nbd' name='{export}'{tls}>{host}<reconnect delay='{RECONNECT_S}'/></source>\n      \
             <target dev='{target}' bus='virtio'/>\n{limits}      <serial>{serial}</serial>\n      <alias name='{alias}'/>\n{address}    </disk>\n",
            export = escape(&self.export),
            target = escape(&self.target),
            limits = limits_xml(&self.limits),
            serial = escape(&self.serial),
            alias = escape(&self.alias()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(number: u8, tap: &str) -> Nic {
        Nic {
            mac: format!("0e:00:00:00:00:{number:02x}"),
            port: Uuid::from_u128(number.into()),
            tap: tap.into(),
            bridge: "br-int".into(),
        }
    }

    fn spec() -> DomainSpec {
        DomainSpec {
            name: "i-0123456789abcdef0".into(),
            uuid: "ec2f0000-0000-5000-8000-000000000001".parse().unwrap(),
            vcpus: 2,
            memory_mib: 512,
            accelerator: Accelerator::Tcg,
            kernel: Some(Kernel {
                image: "/img/k".into(),
                ramdisk: Some("/img/r".into()),
                command_line: "root=/dev/vda a<b&'c'".into(),
            }),
            root: RootDisk::Overlay("/inst/i-0123456789abcdef0/root.qcow2".into()),
            stores: vec![],
            nics: vec![nic(1, "tap0123456789ab"), nic(2, "tap0123456789ac")],
            volumes: vec![VolumeDisk {
                serial: "vol0123".into(),
                target: "vdf".into(),
                export: "x1".into(),
                address: ExportAddress::Unix("/run/v.sock".into()),
                server: None,
                limits: DiskLimits::default(),
            }],
            console: "/inst/i-0123456789abcdef0/console.log".into(),
        }
    }

    #[test]
    fn a_domain_is_rendered_as_it_was_proven() {
        let golden = include_str!("domain.golden.xml");
        let xml = spec().to_xml();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/hypervisor/domain.golden.xml"), &xml).unwrap();
        } else {
            assert_eq!(xml, golden, "UPDATE_GOLDEN=1 writes it anew");
        }
    }

    #[test]
    fn a_whole_disk_boots_by_itself_and_kvm_passes_the_cpu_through() {
        let xml = DomainSpec { kernel: None, accelerator: Accelerator::Kvm, ..spec() }.to_xml();
        assert!(xml.contains("<boot dev='hd'/>") && !xml.contains("<kernel>"));
        assert!(xml.contains("<domain type='kvm'>") && xml.contains("host-passthrough"));
    }

    #[test]
    fn volumes_of_other_machines_are_spoken_to_over_tls() {
        let disk = VolumeDisk {
            serial: "vol1".into(),
            target: "vdg".into(),
            export: "x".into(),
            address: ExportAddress::Tcp("10.0.0.7:10809".into()),
            server: Some("z.storage-controller.mallee.internal".into()),
            limits: DiskLimits::default(),
        };
        assert!(disk.to_xml().contains(
            "name='x' tls='yes' tlsHostname='z.storage-controller.mallee.internal'><host name='10.0.0.7' port='10809'/>"
        ));
    }

    #[test]
    fn a_root_on_a_volume_is_the_first_disk_at_the_place_of_every_root() {
        let disk = VolumeDisk {
            serial: "vol1".into(),
            target: "vda".into(),
            export: "x".into(),
            address: ExportAddress::Unix("/s".into()),
            server: None,
            limits: DiskLimits::default(),
        };
        let stores = vec![StoreDisk { file: "/inst/ephemeral0.qcow2".into(), target: "vdb".into() }];
        let xml = DomainSpec { root: RootDisk::Volume(disk), stores, ..spec() }.to_xml();
        assert!(!xml.contains("root.qcow2"));
        let (root, store) = (xml.find("<target dev='vda'").unwrap(), xml.find("<target dev='vdb'").unwrap());
        assert!(root < store && store < xml.find("<target dev='vdf'").unwrap(), "BIOS boots the first");
        assert!(xml[root..store].contains("slot='0x10'") && xml[store..].contains("slot='0x19'"));
    }

    #[test]
    fn a_disk_is_held_to_its_limits_from_the_beginning() {
        let limits = DiskLimits { iops: Some(100), burst_iops: Some(3000), throughput_mib: Some(125) };
        let disk = VolumeDisk { limits, ..spec().volumes.remove(0) };
        let tune = "<iotune><total_bytes_sec>131072000</total_bytes_sec><total_iops_sec>100</total_iops_sec>\
             <size_iops_sec>262144</size_iops_sec><total_iops_sec_max>3000</total_iops_sec_max>\
             <total_iops_sec_max_length>1800</total_iops_sec_max_length></iotune>";
        assert!(disk.to_xml().contains(tune), "{}", disk.to_xml());
        // Taking limits away is saying so.
        assert_eq!(tunables(&DiskLimits::default()), [("total_bytes_sec", 0), ("total_iops_sec", 0)]);
    }

    #[test]
    fn what_a_user_wrote_cannot_leave_its_element() {
        assert_eq!(escape("a<b>&'\"\u{0}\u{1b}c"), "a&lt;b&gt;&amp;&apos;&quot;c");
    }
}
