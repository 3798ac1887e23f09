//! Packets: the whole path through a userspace Open vSwitch in a namespace, with namespaces for instances. Needs root.

use std::{
    net::Ipv4Addr,
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
};

use mallee_cloud_controller::ec2::{
    interface::InterfaceRow,
    security_group::{self, Direction, Peer, Protocol, Traffic},
};

use super::{ACCOUNTS, Central, Cloud, until};

/// A machine of namespaces: `switch` holds Open vSwitch, `outside` is the other end of the link.
pub struct Machine {
    pub central: Central,
    prefix: String,
    namespaces: Vec<String>,
}

pub fn run(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).output().unwrap()
}

pub fn must(command: &str) {
    let out = run(command);
    assert!(out.status.success(), "{command}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Machine {
    pub async fn start() -> Self {
        let central = Central::start().await;
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("mnl{}{}", std::process::id(), ["a", "b", "c"][STARTED.fetch_add(1, Ordering::SeqCst)]);
        let mut machine = Self { central, prefix, namespaces: Vec::new() };
        machine.namespace("switch");
        machine.namespace("outside");
        let (switch, outside) = (machine.name("switch"), machine.name("outside"));
        machine.pair("outside", "link0", "ext0");
        must(&format!("ip -n {outside} addr add 172.29.0.1/24 dev link0"));
        must(&format!(
            "ip netns exec {switch} sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
        ));
        let dir = machine.central.path("");
        let dir = dir.to_str().unwrap().trim_end_matches('/').to_owned();
        must(&format!("ovsdb-tool create {dir}/conf.db /usr/share/openvswitch/vswitch.ovsschema"));
        let quiet = ["-vconsole:off", "-vsyslog:off"];
        let inside = |program: &str, arguments: &[String]| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &switch, program]).args(quiet).args(arguments);
            command.env("OVS_RUNDIR", &dir).env("OVN_RUNDIR", &dir);
            command
        };
        let log = |name: &str| vec![format!("--log-file={dir}/{name}.log"), format!("--unixctl={dir}/{name}.ctl")];
        let database = [log("conf"), vec![format!("--remote=punix:{dir}/db.sock"), format!("{dir}/conf.db")]].concat();
        machine.central.run("ovsdb-server", &mut inside("ovsdb-server", &database));
        until("the switch's database is up", async || run(&machine.vsctl("--no-wait init")).status.success()).await;
        let switchd = [log("vswitchd"), vec![format!("unix:{dir}/db.sock")]].concat();
        machine.central.run("ovs-vswitchd", &mut inside("ovs-vswitchd", &switchd));
        must(&machine.vsctl(
            "add-br br-ext -- set bridge br-ext datapath_type=netdev -- add-port br-ext ext0 -- set open . \
             external_ids:system-id=node1 external_ids:ovn-encap-type=geneve external_ids:ovn-encap-ip=127.0.0.1 \
             external_ids:ovn-bridge-datapath-type=netdev external_ids:ovn-bridge-mappings=public:br-ext \
             external_ids:ovn-monitor-all=true",
        ));
        must(&machine.vsctl(&format!("set open . external_ids:ovn-remote=unix:{dir}/sb.sock")));
        let controller = [format!("--log-file={dir}/ovn-controller.log"), format!("unix:{dir}/db.sock")];
        machine.central.run("ovn-controller", &mut inside("ovn-controller", &controller));
        machine
    }

    pub fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    fn namespace(&mut self, short: &str) {
        let name = self.name(short);
        must(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        self.namespaces.push(name);
    }

    fn vsctl(&self, arguments: &str) -> String {
        format!("ovs-vsctl --timeout=10 --db=unix:{} {arguments}", self.central.path("db.sock").display())
    }

    /// A veth pair between a namespace and the switch's. Its checksums are computed: the userspace datapath fills none in.
    fn pair(&self, short: &str, inner: &str, outer: &str) {
        let (there, switch) = (self.name(short), self.name("switch"));
        must(&format!("ip link add {inner} netns {there} type veth peer name {outer} netns {switch}"));
        for (namespace, link) in [(&there, inner), (&switch, outer)] {
            must(&format!(
                "ip -n {namespace} link set dev {link} up && ip netns exec {namespace} ethtool -K {link} tx off"
            ));
        }
    }

    fn bind(&self, link: &str, port: &str) {
        must(&self.vsctl(&format!("add-port br-int {link} -- set interface {link} external_ids:iface-id={port}")));
    }

    /// A namespace that wears the interface in a default subnet, with a web server on port 8080.
    pub fn instance(&mut self, short: &'static str, row: &InterfaceRow) {
        self.wear(short, row, 20, [172, 31, 0, 1].into());
    }

    pub fn wear(&mut self, short: &'static str, row: &InterfaceRow, length: u8, router: Ipv4Addr) {
        self.namespace(short);
        let name = self.name(short);
        let link = format!("tap-{short}");
        self.pair(short, "eth0", &link);
        must(&format!("ip -n {name} link set eth0 address {}", row.mac));
        must(&format!(
            "ip -n {name} addr add {}/{length} dev eth0 && ip -n {name} route add default via {router}",
            row.address
        ));
        self.bind(&link, &row.port.to_string());
        self.serve(short, 8080);
    }

    pub fn serve(&mut self, short: &'static str, port: u16) {
        let page = self.central.path("index.html");
        std::fs::write(&page, "here").unwrap();
        let name = self.name(short);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &name, "busybox", "httpd", "-f", "-p", &port.to_string(), "-h"]);
        self.central.run(short, command.arg(self.central.path("")));
    }

    /// Whether a new connection gets an answer.
    pub fn answers(&self, from: &str, to: &str) -> bool {
        run(&format!("ip netns exec {} timeout 1 busybox wget -q -O - http://{to}/", self.name(from))).stdout == b"here"
    }

    pub async fn opens(&self, from: &str, to: &str) {
        until(&format!("{from} reaches {to}"), async || self.answers(from, to)).await;
    }

    pub async fn closes(&self, from: &str, to: &str) {
        until(&format!("{from} does not reach {to}"), async || !self.answers(from, to)).await;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for name in &self.namespaces {
            run(&format!("ip netns del {name}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_go_where_rules_and_routes_let_them() {
    let mut machine = Machine::start().await;
    let cloud = Cloud::start(&machine.central.path("nb.sock")).await;
    let a = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    let b = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    let stranger = cloud.launch(ACCOUNTS[1], "mallee-1a").await;
    let instance = b.instance.clone().unwrap();
    cloud.write(move |tx, _| mallee_cloud_controller::ec2::interface::return_public(tx, &instance)).await;
    cloud.passes_cleanly().await;
    for (short, row) in [("a", &a), ("b", &b), ("s", &stranger)] {
        machine.instance(short, row);
    }
    machine.serve("outside", 8000);
    let (private, public) = (format!("{}:8080", a.address), format!("{}:8080", a.public_ip().unwrap()));

    machine.opens("b", &private).await;
    assert!(!machine.answers("s", &private), "VPCs know nothing of each other");
    // a by its public address, b by the router's.
    machine.opens("a", "172.29.0.1:8000").await;
    machine.opens("b", "172.29.0.1:8000").await;

    assert!(!machine.answers("outside", &public), "no rule opens it");
    let group = a.groups[0].group_id.clone();
    let opening = Traffic { protocol: Protocol::Tcp, from: 8080, to: 8080, peer: Peer::anywhere() };
    let rule = cloud
        .write(move |tx, _| {
            let group = security_group::get(tx, ACCOUNTS[0], &group)?;
            security_group::insert_rule(tx, &group, Direction::Ingress, &opening, None)
        })
        .await;
    cloud.passes_cleanly().await;
    machine.opens("outside", &public).await;
    machine.opens("s", &public).await;
    machine.opens("b", &public).await;
    cloud.write(move |tx, _| Ok(security_group::rule::delete(tx, &rule.id)?)).await;
    cloud.passes_cleanly().await;
    machine.closes("outside", &public).await;

    // Metadata, as the node serves it: one port for the VPC, replies by its router.
    let switch = machine.name("switch");
    machine.pair("switch", "imds", "imds-o");
    must(&format!("ip -n {switch} link set imds address {}", a.link.metadata_mac));
    must(&format!(
        "ip -n {switch} addr add 169.254.169.254/24 dev imds && ip -n {switch} route add 172.31.0.0/16 via 169.254.169.1"
    ));
    machine.bind("imds-o", &a.link.metadata_port);
    machine.serve("switch", 80);
    machine.opens("a", "169.254.169.254:80").await;

    // DHCP tells a its own address.
    let lease = run(&format!("ip netns exec {} busybox udhcpc -i eth0 -n -q -f -s /bin/true 2>&1", machine.name("a")));
    let lease = String::from_utf8_lossy(&lease.stdout).into_owned();
    assert!(lease.contains(&format!("lease of {} obtained", a.address)), "{lease}");

    // Without a way out in the route table there is none, not even to the link the router is on.
    cloud
        .write(|tx, _| {
            tx.execute("DELETE FROM route", &[])?;
            Ok(())
        })
        .await;
    cloud.passes_cleanly().await;
    machine.closes("a", "172.29.0.1:8000").await;
    assert!(machine.answers("b", &private) && machine.answers("a", "169.254.169.254:80"));

    let log = std::fs::read_to_string(machine.central.path("ovn-controller.log")).unwrap();
    let bad: Vec<&str> = log.lines().filter(|l| l.contains("error parsing") || l.contains("|ERR|")).collect();
    assert_eq!(bad, Vec::<&str>::new());
}
