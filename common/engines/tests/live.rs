//! The real engines, as root, in a namespace of the test's own. A machine that lacks something fails here, on purpose.
//! Times are printed, never asserted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mallee_engines::{Engines, EnginesConfig, NamespaceConfig, Phase, Supervisor, kvm, ovs};
use mallee_ovsdb::Client;

const BASE: &str = "/var/tmp/eng-t";
const PATIENCE: Duration = Duration::from_secs(60);
const GUEST: &str = r#"<domain type='qemu'><name>eng-t-guest</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
 <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
 <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
 <interface type='bridge'><mac address='0a:00:00:00:00:01'/><source bridge='br-int'/><virtualport type='openvswitch'>
 <parameters interfaceid='ec200000-0000-4000-8000-000000000001'/></virtualport><target dev='tap-eng-t'/><model type='virtio'/><rom enabled='no'/></interface>
 <serial type='pty'><log file='/var/tmp/eng-t/virt/guest.log' append='off'/></serial>
 <video><model type='none'/></video><memballoon model='none'/></devices></domain>"#;

fn config() -> EnginesConfig {
    let mut config = EnginesConfig::one_machine(BASE, "node-eng-t");
    config.namespace = Some(NamespaceConfig {
        name: "eng-t".to_owned(),
        host_link: "engt0".to_owned(),
        inner_link: "ext0".to_owned(),
        host_address: "172.29.9.1".parse().unwrap(),
        prefix_length: 24,
        pool: "172.29.9.128/25".parse().unwrap(),
    });
    config
}

/// What the machine looks like from outside: links, routes, rules, namespaces, mounts, and the daemons of our kinds.
fn traces() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    for command in [
        "ip -o link show | sed -E 's/ (state|qlen|mtu) .*//'",
        "ip route show table all",
        "ip rule show",
        "ip netns list",
        "nft list ruleset",
        "cut -d' ' -f5,9- /proc/self/mountinfo",
        "ls -d /run/libvirt /run/openvswitch /run/netns /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt /var/tmp/eng-t",
    ] {
        let output = Command::new("sh").args(["-c", command]).stderr(Stdio::null()).output().unwrap();
        traces.extend(String::from_utf8_lossy(&output.stdout).lines().map(|line| format!("{command}: {line}")));
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains("eng-t") && !command.contains("live-") {
            traces.insert(format!("process: {command}"));
        }
    }
    // Other builders' tests come and go on the same machine.
    traces.retain(|line| line.contains("eng") || line.contains("/run/") || line.contains("libvirt"));
    traces
}

fn virsh(arguments: &[&str]) -> String {
    let uri = format!("qemu+unix:///system?socket={BASE}/virt/run/libvirt-sock");
    let output = Command::new("virsh").args(["-q", "-c", &uri]).args(arguments).output().unwrap();
    assert!(output.status.success(), "virsh {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

async fn up(what: &str) -> (Engines, Supervisor) {
    let began = Instant::now();
    let engines = Engines::prepare(config()).await.unwrap();
    let prepared = began.elapsed();
    let supervisor = engines.supervise(Vec::new()).unwrap();
    engines.configure(PATIENCE).await.unwrap();
    let switch = began.elapsed();
    supervisor.ready(PATIENCE).await.unwrap();
    println!(
        "{what}: prepared {prepared:.0?}, switch and br-int {switch:.0?}, all engines ready {:.0?}",
        began.elapsed()
    );
    (engines, supervisor)
}

fn pid(supervisor: &Supervisor, name: &str) -> i32 {
    let status = supervisor.statuses().into_iter().find(|status| status.name == name).unwrap();
    match status.phase {
        Phase::Ready { pid } => pid,
        other => panic!("{name} is {other:?}"),
    }
}

fn pids(supervisor: &Supervisor) -> Vec<(String, Phase)> {
    supervisor.statuses().into_iter().map(|status| (status.name, status.phase)).collect()
}

async fn killed_is_back(supervisor: &Supervisor, name: &str) {
    let before = pid(supervisor, name);
    let began = Instant::now();
    assert!(Command::new("kill").args(["-9", &before.to_string()]).status().unwrap().success());
    let (mut running, mut ready) = (None, None);
    while ready.is_none() {
        let status = supervisor.statuses().into_iter().find(|status| status.name == name).unwrap();
        match status.phase {
            Phase::Starting { pid } if pid != before && running.is_none() => running = Some(began.elapsed()),
            Phase::Ready { pid } if pid != before => ready = Some(began.elapsed()),
            _ => {}
        }
        assert!(began.elapsed() < PATIENCE, "{name} did not come back");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    println!(
        "kill -9 {name}: a new process after {:.1?}, answering after {:.1?}",
        running.or(ready).unwrap(),
        ready.unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_comes_up_survives_every_kill_and_leaves_no_trace() {
    assert_eq!(nix::unistd::getuid().as_raw(), 0, "this test needs root");
    Engines::teardown(config()).await.unwrap();
    let before = traces();

    let (engines, supervisor) = up("from nothing").await;
    let verdict = engines.verdict().clone();
    println!("verdict: {:?}, {}", verdict.accelerator, verdict.reason);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    if !cpuinfo.contains(" vmx ") && !cpuinfo.contains(" svm ") {
        assert_eq!(verdict.accelerator, kvm::Accelerator::Tcg);
    }

    // A guest on the integration bridge: libvirt found our switch, and does not stumble over /dev/kvm.
    fs::write(format!("{BASE}/virt/guest.xml"), GUEST).unwrap();
    let began = Instant::now();
    virsh(&["create", &format!("{BASE}/virt/guest.xml")]);
    println!("virsh create, the first of this libvirtd: {:.2?}", began.elapsed());
    virsh(&["destroy", "eng-t-guest"]);
    let began = Instant::now();
    virsh(&["create", &format!("{BASE}/virt/guest.xml")]);
    println!("virsh create, the second: {:.2?}", began.elapsed());

    for name in [
        "ovsdb",
        "ovs-vswitchd",
        "ovsdb",
        "ovs-vswitchd",
        "ovn-nb",
        "ovn-sb",
        "ovn-northd",
        "ovn-controller",
        "virtlogd",
        "libvirtd",
    ] {
        killed_is_back(&supervisor, name).await;
    }
    assert_eq!(virsh(&["domstate", "eng-t-guest"]), "running", "libvirtd adopts the guest");
    engines.configure(PATIENCE).await.unwrap();

    // Asked to restart; refused a second supervisor; another supervisor finds the same processes.
    let old = pid(&supervisor, "ovn-northd");
    supervisor.restart("ovn-northd").unwrap();
    while supervisor
        .statuses()
        .iter()
        .all(|status| status.phase != Phase::Waiting && status.phase == Phase::Ready { pid: old })
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    supervisor.ready(PATIENCE).await.unwrap();
    assert_ne!(pid(&supervisor, "ovn-northd"), old);
    let refused = engines.supervise(Vec::new()).err().unwrap().to_string();
    assert!(refused.contains("another supervisor"), "{refused}");
    assert!(Engines::teardown(config()).await.is_err(), "a supervised machine is not torn down");
    let running = pids(&supervisor);
    supervisor.release().await;
    // A lost record, as after a crash between a start and its record.
    fs::remove_file(format!("{BASE}/run/ovs-vswitchd.pid")).unwrap();
    engines.wait_ready(PATIENCE).await.unwrap();
    let (_, supervisor) = up("all running already").await;
    assert_eq!(pids(&supervisor), running, "engines outlive their supervisor and are found again");
    let seen = mallee_engines::status(engines.plans()).await;
    assert!(seen.iter().all(|status| matches!(status.phase, Phase::Ready { .. })), "{seen:?}");

    supervisor.stop().await.unwrap();
    let (engines, supervisor) = up("stopped before, databases and capability cache kept").await;
    assert_eq!(virsh(&["domstate", "eng-t-guest"]), "running", "guests outlive all engines");

    let client = Client::connect_unix(engines.layout().ovs_socket()).await.unwrap();
    let again = ovs::ensure_port(&client, ovs::EXTERNAL_BRIDGE, "ext0", None).await;
    again.unwrap();
    supervisor.release().await;
    let began = Instant::now();
    let remains = Engines::teardown(config()).await.unwrap();
    println!("teardown: {:.0?}, {remains:?}", began.elapsed());
    assert_eq!(remains.guests, ["eng-t-guest"]);
    let after = traces();
    assert_eq!(
        (after.difference(&before).collect::<Vec<_>>(), before.difference(&after).collect::<Vec<_>>()),
        (vec![], vec![])
    );

    // A mount point that we made, and that a process of somebody else uses by now in its own mount namespace, stays.
    Engines::prepare(config()).await.unwrap();
    let mut other = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            "mount --bind /tmp /run/openvswitch && exec sleep 60",
        ])
        .spawn()
        .unwrap();
    let mounted = || {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", other.id())).unwrap();
        mounts.contains(" /run/openvswitch ")
    };
    while !mounted() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Engines::teardown(config()).await.unwrap();
    assert!(mounted(), "the teardown took away another process's mount");
    other.kill().unwrap();
    other.wait().unwrap();
    // Fails where the directory belongs to an Open vSwitch of the system's own, and then it should stay.
    let _ = fs::remove_dir("/run/openvswitch");
}
