//! Two VPCs with the same addresses ask for metadata on one machine: real OVN and switch, as root, in namespaces of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use mallee_engines::{Engines, EnginesConfig, NamespaceConfig, Netns, ip, ip_json, ovs};
use mallee_node_controller::host::{Linked, MetadataLink};
use mallee_ovsdb::{Client, Op, Row, value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(30);
const GUEST_ADDRESS: &str = "10.0.1.10";

fn config() -> EnginesConfig {
    let mut config = EnginesConfig::one_machine("/var/tmp/host-t", "node-host-t");
    config.namespace = Some(NamespaceConfig {
        name: "host-t".to_owned(),
        host_link: "hostt0".to_owned(),
        inner_link: "ext0".to_owned(),
        host_address: "172.29.10.1".parse().unwrap(),
        prefix_length: 24,
        pool: "172.29.10.128/25".parse().unwrap(),
    });
    config
}

struct Vpc {
    name: &'static str,
    number: u32,
    guest: Netns,
}

impl Vpc {
    fn new(name: &'static str, number: u32) -> Vpc {
        let guest = Netns::Named(format!("host-t-{name}"));
        Vpc { name, number, guest }
    }

    fn mac(&self, last: &str) -> String {
        format!("0e:00:{:02x}:{last}", self.number)
    }

    fn link(&self) -> MetadataLink {
        MetadataLink {
            inner: format!("imds-{}", self.name),
            outer: format!("imds-{}-o", self.name),
            mac: self.mac("a9:fe:fe"),
            iface_id: format!("imds-{}", self.name),
            table: 1000 + self.number,
        }
    }

    /// A router between the guest's subnet and the service switch with the localport.
    fn rows(&self) -> Vec<Op> {
        let v = self.name;
        let router_port = |of: &str, network: &str, mac: &str| {
            let row = Row::new().with("name", format!("{v}-{of}")).with("mac", self.mac(mac)).with("networks", network);
            Op::insert("Logical_Router_Port", row).named(&format!("rp_{of}"))
        };
        let port = |id: &str, row: Row| Op::insert("Logical_Switch_Port", row).named(id);
        let to_router = |of: &str| {
            Row::new()
                .with("name", format!("{v}-{of}-r"))
                .with("type", "router")
                .with("addresses", "router")
                .with("options", value::map([("router-port", format!("{v}-{of}"))]))
        };
        let set = |ids: [&str; 2]| value::set(ids.map(value::named));
        let router = Row::new().with("name", v).with("ports", set(["rp_sub", "rp_svc"]));
        let localport = Row::new()
            .with("name", format!("imds-{v}"))
            .with("type", "localport")
            .with("addresses", format!("{} 169.254.169.254 169.254.169.253", self.mac("a9:fe:fe")));
        let guest = format!("{} {GUEST_ADDRESS}", self.mac("00:01:0a"));
        let guest = Row::new()
            .with("name", format!("eni-{v}"))
            .with("addresses", guest.as_str())
            .with("port_security", guest.as_str());
        vec![
            router_port("sub", "10.0.1.1/24", "00:01:01"),
            router_port("svc", "169.254.169.1/24", "a9:fe:01"),
            Op::insert("Logical_Router", router),
            port("sub_r", to_router("sub")),
            port("svc_r", to_router("svc")),
            port("eni", guest),
            port("imds", localport),
            Op::insert(
                "Logical_Switch",
                Row::new().with("name", format!("sub-{v}")).with("ports", set(["sub_r", "eni"])),
            ),
            Op::insert(
                "Logical_Switch",
                Row::new().with("name", format!("svc-{v}")).with("ports", set(["svc_r", "imds"])),
            ),
        ]
    }

    /// A namespace that stands for a guest.
    async fn make_guest(&self, netns: &Netns, switch: &Client) {
        let Netns::Named(name) = &self.guest else { unreachable!() };
        let outer = format!("g-{}", self.name);
        ip(&Netns::Machine, &["netns", "add", name]).await.unwrap();
        let mac = self.mac("00:01:0a");
        let pair = ["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "address", &mac, "netns", name];
        ip(netns, &pair).await.unwrap();
        mallee_engines::ethtool_offloads_off(netns, &outer).await.unwrap();
        mallee_engines::ethtool_offloads_off(&self.guest, "eth0").await.unwrap();
        ip(netns, &["link", "set", &outer, "up"]).await.unwrap();
        ip(&self.guest, &["addr", "add", &format!("{GUEST_ADDRESS}/24"), "dev", "eth0"]).await.unwrap();
        ip(&self.guest, &["link", "set", "eth0", "up"]).await.unwrap();
        ip(&self.guest, &["route", "add", "default", "via", "10.0.1.1"]).await.unwrap();
        let id = format!("eni-{}", self.name);
        ovs::ensure_port(switch, ovs::INTEGRATION_BRIDGE, &outer, Some(&id)).await.unwrap();
    }

    /// What the guest reads from 169.254.169.254:80.
    async fn ask(&self) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let address = "169.254.169.254:80".parse().unwrap();
            let connect = move || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50));
            let guest = self.guest.clone();
            if let Ok(stream) = tokio::task::spawn_blocking(move || guest.run(connect)).await.unwrap().unwrap() {
                stream.set_nonblocking(true).unwrap();
                let mut answer = String::new();
                let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
                stream.read_to_string(&mut answer).await.unwrap();
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{} gets no metadata", self.name);
        }
    }
}

/// What the guest is told at 169.254.169.253:53.
async fn ask_for_names(vpc: &Vpc) -> String {
    let socket = vpc.guest.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut answer = [0; 64];
    loop {
        socket.send_to(b"?", "169.254.169.253:53").await.unwrap();
        let received = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut answer)).await;
        if let Ok(Ok(length)) = received {
            return String::from_utf8_lossy(&answer[..length]).into_owned();
        }
        assert!(tokio::time::Instant::now() < deadline, "{} gets no names", vpc.name);
    }
}

/// Tells whoever connects which VPC this socket belongs to, and who they are.
fn serve(link: &MetadataLink, netns: &Netns, name: &'static str) -> tokio::task::JoinHandle<()> {
    let (listener, names) = (link.listen(netns).unwrap(), link.listen_for_names(netns).unwrap());
    tokio::spawn(async move {
        let mut question = [0; 64];
        loop {
            let (_, from) = names.recv_from(&mut question).await.unwrap();
            names.send_to(name.as_bytes(), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, from) = listener.accept().await.unwrap();
            stream.write_all(format!("{name} {}", from.ip()).as_bytes()).await.unwrap();
        }
    })
}

async fn remove_guests(vpcs: &[Vpc]) {
    for vpc in vpcs {
        if let (Netns::Named(name), true) = (&vpc.guest, vpc.guest.exists()) {
            ip(&Netns::Machine, &["netns", "del", name]).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_vpcs_with_the_same_addresses_are_told_apart_by_their_links() {
    let vpcs = [Vpc::new("a", 1), Vpc::new("b", 2)];
    remove_guests(&vpcs).await;
    Engines::teardown(config()).await.unwrap();
    let engines = Engines::prepare(config()).await.unwrap();
    let supervisor = engines.supervise(Vec::new()).unwrap();
    engines.configure(PATIENCE).await.unwrap();
    supervisor.ready(PATIENCE).await.unwrap();
    let netns = engines.netns();
    let switch = engines.switch().await;
    let northbound = Client::connect_unix(engines.layout().northbound_socket()).await.unwrap();

    let mut servers = Vec::new();
    for vpc in &vpcs {
        northbound.transact("OVN_Northbound", vpc.rows()).await.unwrap();
        vpc.make_guest(netns, &switch).await;
        let link = vpc.link();
        assert_eq!(link.ensure(netns, &switch).await.unwrap(), Linked::New);
        assert_eq!(link.ensure(netns, &switch).await.unwrap(), Linked::Kept);
        servers.push(serve(&link, netns, vpc.name));
    }
    for vpc in &vpcs {
        assert_eq!(vpc.ask().await, format!("{} {GUEST_ADDRESS}", vpc.name));
        assert_eq!(ask_for_names(vpc).await, vpc.name);
    }

    // The switch dies under them; sockets and links stay good.
    for name in ["ovs-vswitchd", "ovsdb"] {
        let plan = engines.plans().iter().find(|plan| plan.name == name).unwrap();
        let process = mallee_engines::process::find(plan).unwrap();
        process.kill();
        let began = std::time::Instant::now();
        while mallee_engines::process::find(plan).is_none_or(|new| new.pid() == process.pid()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for vpc in &vpcs {
            assert_eq!(vpc.ask().await, format!("{} {GUEST_ADDRESS}", vpc.name));
        }
        println!("kill -9 {name}: a new connection through the switch after {:.0?}", began.elapsed());
    }
    let switch = engines.switch().await;

    // A link that was made anew under the same name hears as the first did.
    let link = vpcs[0].link();
    servers[0].abort();
    ip(netns, &["link", "del", &link.inner]).await.unwrap();
    assert_eq!(link.ensure(netns, &switch).await.unwrap(), Linked::New);
    servers[0] = serve(&link, netns, "again");
    assert_eq!(vpcs[0].ask().await, format!("again {GUEST_ADDRESS}"));
    assert_eq!(ask_for_names(&vpcs[0]).await, "again");

    for vpc in &vpcs {
        vpc.link().remove(netns, &switch).await.unwrap();
        vpc.link().remove(netns, &switch).await.unwrap();
    }
    let rules = ip_json(netns, &["rule", "show"]).await.unwrap();
    assert_eq!(rules.len(), 3, "only the kernel's own rules are left: {rules:?}");
    drop(servers);
    supervisor.stop().await.unwrap();
    remove_guests(&vpcs).await;
    Engines::teardown(config()).await.unwrap();
}
