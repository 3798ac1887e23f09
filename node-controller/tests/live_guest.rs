//! Real guests on a real libvirt, Open vSwitch and OVN, in a namespace of the test's own. As root. The mini image is built by
//! `tools/images/mini/build` when it is not there (`target/mini`, or where MINI says).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

use std::{
    collections::BTreeMap,
    io::Read,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use harness::{NodeProcess, PATIENCE, World, Zone, blob};
use mallee_engines::{Engines, EnginesConfig, NamespaceConfig, Supervisor, process};
use mallee_tiers::{
    Blob, Boot, ConsoleAsked, Desired, DiskFormat, Export, ExportAddress, Instance, InstanceReport, Interface,
    Metadata, Observed, Root, StatusAsked, VolumeAttachment, VpcLink,
};
use uuid::Uuid;

const BASE: &str = "/var/tmp/nctl-t";
const NET: &str = "172.29.20";
const MAC: &str = "0e:00:01:00:01:0a";

fn engines_config() -> EnginesConfig {
    let mut config = EnginesConfig::one_machine(BASE, "nctl-t");
    config.namespace = Some(NamespaceConfig {
        name: "nctl-t".into(),
        host_link: "nctlt0".into(),
        inner_link: "ext0".into(),
        host_address: format!("{NET}.1").parse().unwrap(),
        prefix_length: 24,
        pool: format!("{NET}.128/25").parse().unwrap(),
    });
    config
}

fn port() -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"eni-0123456789abcdef0")
}

/// One VPC with one subnet, a metadata port, and an elastic IP for the one guest: what the cloud-controller renders.
fn network(northbound: &Path) {
    let port = port();
    let run = |words: &[&str]| {
        let db = format!("--db=unix:{}", northbound.display());
        let done = Command::new("ovn-nbctl").args([&db, "--timeout=30"]).args(words).output().unwrap();
        assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    let script = format!(
        "ls-add ext -- lsp-add ext ext-ln -- lsp-set-type ext-ln localnet -- lsp-set-addresses ext-ln unknown \
         -- lsp-set-options ext-ln network_name=public -- lr-add vpc -- ls-add sub -- lrp-add vpc vpc-sub 0e:00:01:00:01:01 10.0.1.1/24 \
         -- lsp-add sub sub-r -- lsp-set-type sub-r router -- lsp-set-addresses sub-r router -- lsp-set-options sub-r router-port=vpc-sub \
         -- ls-add svc -- lrp-add vpc vpc-svc 0e:00:01:a9:fe:01 169.254.169.1/24 -- lsp-add svc svc-r -- lsp-set-type svc-r router \
         -- lsp-set-addresses svc-r router -- lsp-set-options svc-r router-port=vpc-svc -- lsp-add svc md-vpc \
         -- lsp-set-type md-vpc localport -- lrp-add vpc vpc-ext 0e:00:01:ff:00:01 {NET}.10/24 -- lsp-add ext ext-r \
         -- lsp-set-type ext-r router -- lsp-set-addresses ext-r router -- lsp-set-options ext-r router-port=vpc-ext nat-addresses=router \
         -- lrp-set-gateway-chassis vpc-ext nctl-t 20 -- lr-route-add vpc 0.0.0.0/0 {NET}.1 vpc-ext \
         -- lr-nat-add vpc snat {NET}.10 10.0.0.0/16 -- lr-nat-add vpc dnat_and_snat {NET}.130 10.0.1.10 -- lsp-add sub {port}"
    );
    run(&script.split_whitespace().collect::<Vec<_>>());
    run(&["lsp-set-addresses", "md-vpc", "0e:00:01:a9:fe:fe 169.254.169.254"]);
    let dhcp = run(&[
        "create",
        "dhcp_options",
        "cidr=10.0.1.0/24",
        "options=\"server_id\"=\"10.0.1.1\" \"server_mac\"=\"0e:00:01:00:01:01\" \"lease_time\"=\"3600\" \"router\"=\"10.0.1.1\" \"mtu\"=\"1442\"",
    ]);
    let port = port.to_string();
    run(&["lsp-set-addresses", &port, &format!("{MAC} 10.0.1.10")]);
    run(&["lsp-set-port-security", &port, &format!("{MAC} 10.0.1.10")]);
    run(&["--wait=hv", "lsp-set-dhcpv4-options", &port, &dhcp]);
}

fn guest(mini: &Path, whole_disk: bool, key: &str) -> impl FnOnce(&mut Instance) {
    let boot = if whole_disk {
        let root = Blob { format: DiskFormat::Qcow2, ..blob(&mini.join("mini-disk.qcow2")) };
        Boot { architecture: "x86_64".into(), root: Root::Image(root), kernel: None, ramdisk: None, command_line: None }
    } else {
        Boot {
            architecture: "x86_64".into(),
            root: Root::Image(blob(&mini.join("mini.root"))),
            kernel: Some(blob(&mini.join("mini.vmlinux"))),
            ramdisk: Some(blob(&mini.join("mini.initrd"))),
            command_line: None,
        }
    };
    let key = key.trim().to_owned();
    move |w| {
        w.boot = boot;
        w.interfaces = vec![Interface {
            id: "eni-0123456789abcdef0".into(),
            port: port(),
            device_index: 0,
            mac: MAC.into(),
            address: "10.0.1.10".parse().unwrap(),
            secondary: Vec::new(),
            vpc: VpcLink {
                id: "vpc-1".into(),
                metadata_port: "md-vpc".into(),
                metadata_mac: "0e:00:01:a9:fe:fe".into(),
            },
            flow: None,
        }];
        let tree = [
            ("meta-data/instance-id", w.id.clone()),
            ("meta-data/local-ipv4", "10.0.1.10".into()),
            ("meta-data/local-hostname", "ip-10-0-1-10.test".into()),
            ("meta-data/public-keys", "0=mine".into()),
            ("meta-data/public-keys/0/openssh-key", key),
        ];
        w.metadata = Metadata {
            tree: tree.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            user_data: Some(STANDARD.encode("#!/bin/sh\necho marked > /root/mark\n")),
            enabled: true,
            tokens_required: true,
            hop_limit: 1,
        };
    }
}

struct Stage {
    world: World,
    zone: Zone,
    node: Option<NodeProcess>,
    config: String,
    key: PathBuf,
}

impl Stage {
    fn node(&self) -> &NodeProcess {
        self.node.as_ref().unwrap()
    }
    fn restart(&mut self) {
        self.node.take().unwrap().end();
        self.node = Some(self.world.node(&self.config, None));
    }
    fn want(&mut self, id: &str, change: impl FnOnce(&mut Instance)) {
        self.zone.want(id, change);
        self.send();
    }
    fn send(&mut self) {
        let node = self.node.as_ref().unwrap();
        self.world.runtime.block_on(self.zone.send(node));
    }
    fn see(&self, id: &str, observed: Observed) -> InstanceReport {
        self.world.runtime.block_on(self.zone.until_observed(self.node(), id, observed))
    }
    fn until(&self, id: &str, what: &str, seen: impl Fn(&InstanceReport) -> bool) -> InstanceReport {
        self.world.runtime.block_on(self.zone.until(self.node(), id, what, seen))
    }
    fn ssh(&self, command: &str) -> Result<String, String> {
        let done = Command::new("ssh")
            .arg("-i")
            .arg(&self.key)
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "LogLevel=ERROR",
                "-o",
                "ConnectTimeout=3",
            ])
            .args(["-o", "BatchMode=yes", &format!("root@{NET}.130"), command])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
    }
    fn wait_ssh(&self) {
        let deadline = Instant::now() + PATIENCE;
        let address = format!("{NET}.130:22").parse().unwrap();
        loop {
            if let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let mut banner = [0u8; 4];
                if stream.read_exact(&mut banner).is_ok() {
                    return;
                }
            }
            if Instant::now() > deadline {
                panic!("no SSH; the console says:\n{}", self.console("i-0123456789abcdef0"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    fn console(&self, id: &str) -> String {
        let asked = ConsoleAsked { instance: id.into(), bytes: 65_536 };
        let console = self.world.runtime.block_on(self.zone.client(self.node()).console(&asked)).unwrap();
        String::from_utf8_lossy(&STANDARD.decode(console.data).unwrap()).into_owned()
    }
}

/// CPU seconds and pid of the guest's QEMU.
fn find_qemu(id: &str) -> Option<(u32, f64)> {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.starts_with("/usr/bin/qemu") && line.contains(&format!("guest={id},")) {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<f64> =
                stat.rsplit(") ").next().unwrap().split(' ').filter_map(|f| f.parse().ok()).collect();
            return Some((pid, (fields[10] + fields[11]) / 100.0));
        }
    }
    None
}

fn qemu(id: &str) -> (u32, f64) {
    find_qemu(id).unwrap()
}

fn step(begun: &mut Instant, what: &str) {
    println!("{:8.2} s  {what}", begun.elapsed().as_secs_f64());
    *begun = Instant::now();
}

/// Where the mini guest's files are; they are made if they are not there yet.
fn mini_image() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mini = std::env::var("MINI").map_or_else(|_| root.join("target/mini"), PathBuf::from);
    if !mini.join("mini.json").exists() {
        let built = Command::new(root.join("tools/images/mini/build")).arg(&mini).status().unwrap();
        assert!(built.success(), "tools/images/mini/build could not make the mini image: see above");
    }
    mini.canonicalize().unwrap()
}

#[test]
fn a_real_guest_lives_its_life() {
    let mini = mini_image();
    let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_env("MALLEE_LOG")).try_init();
    let dir = tempfile::Builder::new().prefix("nctl").tempdir_in("/var/tmp").unwrap();
    let world = World::new(dir.path());
    let mut begun = Instant::now();
    world.runtime.block_on(Engines::teardown(engines_config())).unwrap();
    let (engines, supervisor) = world.runtime.block_on(async {
        let engines = Engines::prepare(engines_config()).await.unwrap();
        let supervisor = engines.supervise(Vec::new()).unwrap();
        engines.configure(PATIENCE).await.unwrap();
        supervisor.ready(PATIENCE).await.unwrap();
        (engines, supervisor)
    });
    step(&mut begun, "engines up");
    network(&engines.layout().northbound_socket());

    // Links beside a converted copy, so that a qcow2 base is tried as well.
    let from = mini;
    let mini = dir.path().to_owned();
    for name in ["mini.root", "mini.vmlinux", "mini.initrd"] {
        std::os::unix::fs::symlink(from.join(name), mini.join(name)).unwrap();
    }
    let (raw, qcow2) = (from.join("mini-disk.raw"), mini.join("mini-disk.qcow2"));
    assert!(
        Command::new("qemu-img")
            .args(["convert", "-c", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &qcow2])
            .status()
            .unwrap()
            .success()
    );
    let names = ["mini-disk.qcow2", "mini.root", "mini.vmlinux", "mini.initrd"];
    let blobs: BTreeMap<String, PathBuf> = names.iter().map(|n| (blob(&mini.join(n)).digest, mini.join(n))).collect();
    let walrus = world.walrus(blobs);
    let key = dir.path().join("key");
    assert!(
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap().success()
    );
    let config = format!(
        "patience_s = 20\nwalrus = {{ address = '{walrus}', name = 'walrus' }}\n[engines]\n{}",
        toml::to_string(&engines_config())
            .unwrap()
            .replace("[namespace]", "[engines.namespace]")
            .replace("[central]", "[engines.central]")
            .replace("[node]", "[engines.node]")
    );
    let node = world.node(&config, None);
    let zone = world.zone();
    let stage = Stage { world, zone, node: Some(node), config, key };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(stage, &mini, &engines, &supervisor)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        supervisor.stop().await.unwrap();
        println!("{:?}", Engines::teardown(engines_config()).await.unwrap());
    });
    outcome.unwrap();
}

fn life(mut s: Stage, mini: &Path, engines: &Engines, _supervisor: &Supervisor) {
    let id = "i-0123456789abcdef0";
    let public = std::fs::read_to_string(s.key.with_extension("pub")).unwrap();
    let mut begun = Instant::now();
    for whole_disk in [true, false] {
        let id = if whole_disk { "i-00000000000000001" } else { id };
        s.want(id, guest(mini, whole_disk, &public));
        let up = s.see(id, Observed::Running);
        step(&mut begun, &format!("running (whole disk: {whole_disk}), {:?}", up.took_ms));
        s.wait_ssh();
        step(&mut begun, &format!("SSH answers, {:.2} CPU s", qemu(id).1));
        // The user data runs beside sshd.
        let deadline = Instant::now() + PATIENCE;
        while s.ssh("cat /root/mark") != Ok("marked".into()) {
            assert!(Instant::now() < deadline, "{}", s.console(id));
        }
        assert_eq!(s.ssh("imds meta-data/instance-id").as_deref(), Ok(id));
        if whole_disk {
            s.want(id, |w| w.desired = Desired::Terminated);
            let gone = s.see(id, Observed::Gone);
            let console = String::from_utf8_lossy(&STANDARD.decode(gone.last_console.unwrap()).unwrap()).into_owned();
            assert!(console.contains(id), "{console}");
            assert!(!s.world.dir.join("node/instances").join(id).exists());
            s.zone.rows.clear();
            s.send();
            s.world.runtime.block_on(s.zone.until_forgotten(s.node(), id));
            step(&mut begun, "terminated and forgotten");
        }
    }
    assert!(s.console(id).contains("Linux version") || s.console(id).contains("public keys"), "{}", s.console(id));

    // A volume, hot-plugged, survives its daemon's death; then it is taken away.
    let dir = s.world.dir.clone();
    let socket = dir.join("vol.sock");
    let disk = dir.join("vol.raw");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let serve = || {
        let nbd = format!("addr.type=unix,addr.path={},max-connections=0", socket.display());
        let file = format!("driver=file,node-name=f,filename={}", disk.display());
        Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file, "--blockdev", "driver=raw,node-name=v,file=f", "--nbd-server", &nbd])
            .args(["--export", "type=nbd,id=e,node-name=v,name=x1,writable=on"])
            .spawn()
            .unwrap()
    };
    let mut daemon = serve();
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let export = Export {
        attachment: "a".into(),
        name: "x1".into(),
        address: ExportAddress::Unix(socket.display().to_string()),
        server: None,
    };
    let wanted = VolumeAttachment {
        volume: "vol-0123456789abcdef0".into(),
        device: "/dev/sdf".into(),
        export,
        size_gib: 1,
        limits: mallee_tiers::DiskLimits::default(),
    };
    begun = Instant::now();
    s.want(id, |w| w.volumes = vec![wanted.clone()]);
    s.until(id, "attached", |r| r.attachments.iter().any(|a| a.attached));
    step(&mut begun, "volume attached");
    let find =
        "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = vol0123456789abcdef0 ] && echo ${d##*/}; done; true";
    let deadline = Instant::now() + PATIENCE;
    let name = loop {
        let name = s.ssh(find).unwrap();
        if !name.is_empty() {
            break name;
        }
        assert!(Instant::now() < deadline, "the guest sees no disk");
    };
    step(&mut begun, &format!("the guest sees it as {name}"));
    s.ssh(&format!("mke2fs -q /dev/{name} && mount -t ext2 /dev/{name} /mnt && echo kept > /mnt/file && sync"))
        .unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let _ = std::fs::remove_file(&socket);
    let mut daemon = serve();
    s.ssh("echo 3 > /proc/sys/vm/drop_caches; grep kept /mnt/file && umount /mnt").unwrap();
    step(&mut begun, "its daemon was killed and started again: the guest read on");

    // The node and libvirtd die; the guest does not notice, and what happens meanwhile is found out.
    let before = qemu(id).0;
    s.ssh("echo 1 > /root/since-boot; sync").unwrap();
    s.restart();
    s.see(id, Observed::Running);
    step(&mut begun, "the node was restarted");
    let libvirtd = engines.plans().iter().find(|p| p.name == "libvirtd").unwrap();
    process::find(libvirtd).unwrap().kill();
    s.want(id, |w| w.volumes = vec![]);
    s.until(id, "detached", |r| r.attachments.is_empty());
    assert_eq!(qemu(id).0, before);
    step(&mut begun, "libvirtd was killed; the volume is detached after it came back");
    assert_eq!(s.ssh(find).unwrap(), "");
    s.want(id, |w| w.volumes = vec![wanted.clone()]);
    s.until(id, "attached", |r| r.attachments.iter().any(|a| a.attached));
    step(&mut begun, "and attached again");

    // Reboot, stop and start: the same disk, and the volume from the start.
    s.want(id, |w| w.reboots = 1);
    s.until(id, "rebooted", |r| r.reboots_done == 1);
    step(&mut begun, "rebooted");
    s.wait_ssh();
    assert_eq!(qemu(id).0, before, "a reboot is no new QEMU");
    let uptime: f64 = s.ssh("cut -d' ' -f1 /proc/uptime").unwrap().parse().unwrap();
    assert!(uptime < 30.0, "up for {uptime} s");
    s.ssh("cat /root/since-boot").unwrap();
    step(&mut begun, "SSH again");
    s.want(id, |w| w.desired = Desired::Stopped);
    let off = s.see(id, Observed::Stopped);
    assert!(off.last_console.is_some() && !off.guest_off);
    step(&mut begun, "stopped by ACPI");
    s.want(id, |w| w.desired = Desired::Running);
    s.see(id, Observed::Running);
    s.wait_ssh();
    assert_eq!(s.ssh("cat /root/since-boot").unwrap(), "1");
    assert_ne!(s.ssh(find).unwrap(), "");
    step(&mut begun, "started again with its disk and its volume, SSH answers");

    // QEMU dies: it comes back. The guest powers off: it stays off.
    s.ssh("echo written > /root/durable; sync").unwrap();
    let killed = qemu(id).0;
    Command::new("kill").args(["-9", &killed.to_string()]).status().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while find_qemu(id).is_none_or(|(pid, _)| pid == killed) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    s.see(id, Observed::Running);
    s.wait_ssh();
    assert_eq!(s.ssh("cat /root/durable").unwrap(), "written");
    step(&mut begun, "QEMU was killed: the guest is back with what it had synced");

    // libvirtd and QEMU die together, as in a loss of power but for the files.
    let killed = qemu(id).0;
    process::find(libvirtd).unwrap().kill();
    Command::new("kill").args(["-9", &killed.to_string()]).status().unwrap();
    while find_qemu(id).is_none_or(|(pid, _)| pid == killed) {
        assert!(Instant::now() < begun + PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
    s.wait_ssh();
    step(&mut begun, "libvirtd and QEMU were killed together: the guest is back");

    // The guest powers off while nobody looks.
    s.node.take().unwrap().end();
    let _ = s.ssh("poweroff");
    while find_qemu(id).is_some() {
        assert!(Instant::now() < begun + PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
    s.node = Some(s.world.node(&s.config, None));
    s.until(id, "off by itself", |r| r.observed == Observed::Stopped && r.guest_off);
    assert!(find_qemu(id).is_none());
    step(&mut begun, "the guest powered off while the node was away, and stays off");
    s.want(id, |w| w.desired = Desired::Terminated);
    s.see(id, Observed::Gone);
    s.zone.rows.clear();
    s.send();
    s.world.runtime.block_on(s.zone.until_forgotten(s.node(), id));
    let links = Command::new("ip").args(["-n", "nctl-t", "-br", "link"]).output().unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    assert!(!links.contains("tap"), "{links}");
    step(&mut begun, "terminated; no tap is left");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    s.node.take().unwrap().end();
    killed_at_any_moment(s, mini, &public);
}

/// The daemon itself, killed with -9 again and again on the way up and on the way down: one guest, then none.
fn killed_at_any_moment(mut s: Stage, mini: &Path, public: &str) {
    let id = "i-00000000000000003";
    let mut begun = Instant::now();
    s.node = Some(s.world.daemon(&s.config));
    s.want(id, guest(mini, false, public));
    for ms in [0, 3, 6, 9, 12, 20, 40, 100, 200, 300] {
        std::thread::sleep(Duration::from_millis(ms));
        s.node.take().unwrap().end();
        s.node = Some(s.world.daemon(&s.config));
    }
    s.see(id, Observed::Running);
    s.wait_ssh();
    assert_eq!(s.ssh("imds meta-data/instance-id").as_deref(), Ok(id), "{}", s.console(id));
    let status = s.world.runtime.block_on(s.zone.client(s.node()).status(&StatusAsked {})).unwrap();
    step(
        &mut begun,
        &format!("killed ten times on the way up: SSH answers; {} on {}", status.hypervisor, status.hypervisor_reason),
    );
    println!(
        "            node-controller: {} KiB; engines: {:?}",
        status.tier.rss_kib,
        status.engines.iter().map(|e| (&e.name, e.rss_kib, &e.version)).collect::<Vec<_>>()
    );
    s.want(id, |w| w.desired = Desired::Terminated);
    for ms in [0, 5, 20, 300, 1000, 5] {
        std::thread::sleep(Duration::from_millis(ms));
        s.node.take().unwrap().end();
        s.node = Some(s.world.daemon(&s.config));
    }
    s.see(id, Observed::Gone);
    assert!(find_qemu(id).is_none());
    assert!(!s.world.dir.join("node/instances").join(id).exists());
    step(&mut begun, "killed six times on the way down: nothing is left");

    // Several at once.
    let ids: Vec<String> = (0..6).map(|n| format!("i-0000000000000001{n}")).collect();
    for id in &ids {
        s.zone.want(id, guest(mini, false, public));
        s.zone.rows.get_mut(id).unwrap().interfaces.clear();
    }
    s.send();
    for id in &ids {
        s.see(id, Observed::Running);
    }
    step(&mut begun, "six at once run");
    for id in &ids {
        s.zone.want(id, |w| w.desired = Desired::Terminated);
    }
    s.send();
    for id in &ids {
        s.see(id, Observed::Gone);
    }
    step(&mut begun, "six at once are gone");
    s.node.take().unwrap().end();
}
