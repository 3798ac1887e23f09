//! A cluster-controller's side of a node, and a walrus with a few blobs, both with certificates of a CA of the test's own.
#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use mallee_node_controller::{Config, Parts, Running, hypervisor::Simulated, start};
use mallee_service::{Body, Connection, Handler, Identity, IntentSender, Server, TierHttp, body, pki};
use mallee_tiers::{
    Blob, Boot, Desired, DiskFormat, Generation, Instance, InstanceReport, Metadata, NodeClient, Observe, Observed,
    Peer, Role, Root, TierErrorKind,
};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use uuid::Uuid;

pub const ZONE: &str = "test-1a";
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub dir: PathBuf,
    ca: pki::Ca,
    /// Of the test itself: the cluster-controller's.
    pub runtime: Runtime,
}

impl World {
    pub fn new(dir: &Path) -> Self {
        let ca = pki::Ca::open_or_create(&dir.join("ca"), "test").unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { dir: dir.into(), ca, runtime }
    }

    pub fn identity(&self, role: Role, name: &str) -> Identity {
        let dir = self.dir.join(format!("tls-{name}"));
        std::fs::create_dir_all(&dir).unwrap();
        if !dir.join("cert.pem").exists() {
            let key = pki::new_key_pem().unwrap();
            let peer = Peer::new(role, ZONE, name);
            let cert = self.ca.sign(&peer, &pki::signing_request(&key).unwrap()).unwrap();
            std::fs::write(dir.join("key.pem"), key).unwrap();
            std::fs::write(dir.join("cert.pem"), cert).unwrap();
            std::fs::write(dir.join("ca.pem"), &self.ca.certificate_pem).unwrap();
        }
        Identity::load(&dir).unwrap()
    }

    /// A walrus that has these blobs; where it is.
    pub fn walrus(&self, blobs: BTreeMap<String, PathBuf>) -> String {
        let identity = self.identity(Role::Walrus, "walrus");
        let handler = Arc::new(Blobs(blobs));
        self.runtime.block_on(async {
            let server = Server::bind(&["127.0.0.1:0".parse().unwrap()], Some(&identity)).await.unwrap();
            let address = server.addresses()[0].to_string();
            server.serve(handler);
            address
        })
    }

    /// A node in a runtime of its own, which can be ended like a process.
    pub fn node(&self, config: &str, simulated: Option<Simulated>) -> NodeProcess {
        let config: Config = toml::from_str(&self.config("127.0.0.1:0", config)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let parts = Parts { identity: Some(self.identity(Role::NodeController, "n1")), simulated, ..Parts::default() };
        let running = runtime.block_on(start(config, parts)).unwrap();
        let address = running.addresses[0].to_string();
        NodeProcess { address, life: Life::Here(runtime, Box::new(running)) }
    }

    fn config(&self, listen: &str, more: &str) -> String {
        let state = self.dir.join("node");
        format!(
            "name = 'n1'\nzone = '{ZONE}'\nstate = '{}'\nlisten = ['{listen}']\ncloud_controller = '127.0.0.1:1'\n{more}",
            state.display()
        )
    }

    /// The daemon itself, which can be killed.
    pub fn daemon(&self, config: &str) -> NodeProcess {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let file = self.dir.join("node.toml");
        std::fs::write(&file, self.config(&address, config)).unwrap();
        self.identity(Role::NodeController, "n1");
        let (from, to) = (self.dir.join("tls-n1"), self.dir.join("node/tls"));
        std::fs::create_dir_all(&to).unwrap();
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
        let child = Command::new(env!("CARGO_BIN_EXE_node-controller")).arg("--config").arg(&file).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        NodeProcess { address, life: Life::Daemon(child) }
    }

    pub fn zone(&self) -> Zone {
        Zone {
            identity: self.identity(Role::ClusterController, ZONE),
            incarnation: Uuid::new_v4(),
            counter: 0,
            rows: BTreeMap::new(),
        }
    }
}

pub struct NodeProcess {
    address: String,
    life: Life,
}

enum Life {
    Here(Runtime, Box<Running>),
    Daemon(Child),
}

impl NodeProcess {
    pub fn end(self) {
        match self.life {
            Life::Here(runtime, running) => {
                drop(running);
                runtime.shutdown_timeout(Duration::from_secs(5));
            }
            // SIGKILL.
            Life::Daemon(mut child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    pub fn running(&self) -> &Running {
        match &self.life {
            Life::Here(_, running) => running,
            Life::Daemon(_) => panic!("a process of its own"),
        }
    }
}

struct Blobs(BTreeMap<String, PathBuf>);

impl Handler for Blobs {
    async fn handle(&self, request: Request<Incoming>, connection: Connection) -> Response<Body> {
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::NOT_FOUND;
        if connection.peer.is_none_or(|p| p.role != Role::NodeController) {
            *response.status_mut() = StatusCode::FORBIDDEN;
            return response;
        }
        if let Some(path) = request.uri().path().strip_prefix("/-/tiers/blobs/").and_then(|digest| self.0.get(digest)) {
            return Response::new(body::full(std::fs::read(path).unwrap()));
        }
        response
    }
}

/// What a cluster-controller does with one node.
pub struct Zone {
    identity: Identity,
    incarnation: Uuid,
    counter: i64,
    pub rows: BTreeMap<String, Instance>,
}

impl Zone {
    pub fn client(&self, node: &NodeProcess) -> NodeClient {
        NodeClient::new(Arc::new(TierHttp::new(&self.identity, &node.address, Role::NodeController, "n1").unwrap()))
    }

    /// Changes one wish, as a newer generation.
    pub fn want(&mut self, id: &str, change: impl FnOnce(&mut Instance)) {
        self.counter += 1;
        let generation = Generation { epoch: 1, counter: self.counter };
        let row = self.rows.entry(id.into()).or_insert_with(|| instance(id));
        row.generation = generation;
        change(row);
    }

    pub async fn send(&mut self, node: &NodeProcess) {
        self.counter += 1;
        let client = self.client(node);
        let rows: Vec<Instance> = self.rows.values().cloned().collect();
        let generation = Generation { epoch: 1, counter: self.counter };
        let (sender, client) = (IntentSender::default(), &client);
        sender
            .deliver(self.incarnation, generation, &rows, |intent| async move { client.intend(&intent).await })
            .await
            .unwrap();
    }

    /// Waits until the node reports what is wanted to be seen, by the call a cluster-controller makes.
    pub async fn until(
        &self,
        node: &NodeProcess,
        id: &str,
        what: &str,
        seen: impl Fn(&InstanceReport) -> bool,
    ) -> InstanceReport {
        let (client, deadline, mut since, mut last) = (self.client(node), Instant::now() + PATIENCE, None, None);
        loop {
            let observation = match client.observe(&Observe { since, wait_ms: 1_000 }).await {
                Ok(observation) => observation,
                Err(e) if e.kind == TierErrorKind::Unreachable && Instant::now() < deadline => continue,
                Err(e) => panic!("{id}: {e}"),
            };
            since = Some(observation.seen);
            for report in observation.changed {
                if report.id == id {
                    last = Some(report);
                }
            }
            if let Some(report) = &last
                && seen(report)
            {
                return report.clone();
            }
            assert!(Instant::now() < deadline, "{id} is never {what}; last seen: {last:#?}");
        }
    }

    pub async fn until_observed(&self, node: &NodeProcess, id: &str, observed: Observed) -> InstanceReport {
        let generation = self.rows.get(id).map(|r| r.generation).unwrap_or_default();
        self.until(node, id, &format!("{observed:?}"), |r| r.observed == observed && r.generation == generation).await
    }

    pub async fn until_forgotten(&self, node: &NodeProcess, id: &str) {
        let (client, deadline) = (self.client(node), Instant::now() + PATIENCE);
        while client.observe(&Observe::default()).await.unwrap().present.iter().any(|present| present == id) {
            assert!(Instant::now() < deadline, "{id} is never forgotten");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn blob(path: &Path) -> Blob {
    let bytes = std::fs::read(path).unwrap();
    Blob { digest: hex::encode(Sha256::digest(&bytes)), size: bytes.len() as u64, format: DiskFormat::Raw }
}

pub fn instance(id: &str) -> Instance {
    Instance {
        id: id.into(),
        generation: Generation::default(),
        desired: Desired::Running,
        force: false,
        reboots: 0,
        vcpus: 1,
        memory_mib: 128,
        disk_gib: 1,
        boot: Boot {
            architecture: "x86_64".into(),
            root: Root::Image(Blob { digest: "0".repeat(64), size: 1, format: DiskFormat::Raw }),
            kernel: None,
            ramdisk: None,
            command_line: None,
        },
        stores: vec![],
        awaits: None,
        hold: None,
        interfaces: vec![],
        volumes: vec![],
        metadata: Metadata { enabled: true, hop_limit: 1, ..Metadata::default() },
        node: None,
    }
}
