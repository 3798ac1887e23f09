//! A zone in one process: a real cluster-controller, nodes that only remember, and the cloud-controller's side of the calls.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mallee_cluster_controller::{Config, start};
use mallee_service::{Identity, IntentSender, Server, TierHttp, pki, tiers::TierOnly};
use mallee_tiers::*;
use uuid::Uuid;

pub const ZONE: &str = "mallee-1a";

/// The CA of a test, and certificates of it.
pub struct Pki {
    dir: tempfile::TempDir,
    ca: pki::Ca,
    key: String,
}

impl Pki {
    pub fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let ca = pki::Ca::open_or_create(&dir.path().join("ca"), "test").unwrap();
        Arc::new(Self { dir, ca, key: pki::new_key_pem().unwrap() })
    }

    /// Writes the identity of `peer` to `dir`.
    pub fn issue(&self, peer: &Peer, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("ca.pem"), &self.ca.certificate_pem).unwrap();
        std::fs::write(dir.join("key.pem"), &self.key).unwrap();
        std::fs::write(dir.join("cert.pem"), self.ca.sign(peer, &pki::signing_request(&self.key).unwrap()).unwrap())
            .unwrap();
    }

    pub fn identity(&self, peer: &Peer) -> Identity {
        let dir = self.dir.path().join(format!("{}-{}", peer.role, peer.name));
        if !dir.exists() {
            self.issue(peer, &dir);
        }
        Identity::load(&dir).unwrap()
    }
}

/// A cluster-controller on a runtime of its own, so that it can be killed: everything it was doing stops where it is.
pub struct Controller {
    runtime: Option<tokio::runtime::Runtime>,
    state: PathBuf,
    pub address: String,
    config: Config,
}

impl Controller {
    pub fn new(pki: &Pki, state: &Path, lease_ms: u64) -> Self {
        pki.issue(&Peer::new(Role::ClusterController, ZONE, ZONE), &state.join("tls"));
        let text = format!(
            "name = {ZONE:?}\nzone = {ZONE:?}\nstate = {:?}\nlisten = [\"127.0.0.1:0\"]\nlease_ms = {lease_ms}\nplacement = \"spread\"\n",
            state.display().to_string()
        );
        let path = state.join("cluster.toml");
        std::fs::write(&path, text).unwrap();
        let config = mallee_service::config::load(&path).unwrap();
        let mut controller = Self { runtime: None, state: state.into(), address: String::new(), config };
        controller.choose_store();
        controller.start();
        controller
    }

    pub fn restart_with(&mut self, change: impl FnOnce(&mut Config)) {
        self.kill();
        change(&mut self.config);
        self.start();
    }

    /// `MALLEE_TEST_POSTGRES` (a URL) has the zone keep its rows there, in a schema of its own; else SQLite does.
    fn choose_store(&mut self) {
        if let Ok(url) = std::env::var("MALLEE_TEST_POSTGRES") {
            let schema = format!("zone_{}", Uuid::new_v4().simple());
            self.config.daemon.store = mallee_service::config::Store::Postgres { url, schema };
        }
    }

    /// The store as it is on the disk; only while the controller is dead.
    pub fn store(&self) -> mallee_store::Config {
        self.config.daemon.store_config()
    }

    pub fn lose_store(&mut self) {
        for file in ["store.db", "store.db-wal", "store.db-shm"] {
            let _ = std::fs::remove_file(self.state.join(file));
        }
        self.choose_store();
    }

    pub fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = self.config.clone();
        let handle = runtime.handle().clone();
        let running = std::thread::spawn(move || handle.block_on(start(config))).join().unwrap().unwrap();
        self.address = running.address;
        // The same port after a restart, as a real one has.
        self.config.daemon.listen = vec![self.address.parse().unwrap()];
        self.runtime = Some(runtime);
    }

    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The cloud-controller's side.
pub struct Cloud {
    pub client: ClusterClient,
    pub store: Uuid,
    sender: IntentSender,
    counter: Mutex<i64>,
    pub rows: Mutex<BTreeMap<String, Instance>>,
}

impl Cloud {
    pub fn new(pki: &Pki, controller: &Controller) -> Self {
        let identity = pki.identity(&Peer::new(Role::CloudController, "", "cloud-controller"));
        let http = TierHttp::new(&identity, &controller.address, Role::ClusterController, ZONE).unwrap();
        Self {
            client: ClusterClient::new(Arc::new(http)),
            store: Uuid::new_v4(),
            sender: IntentSender::default(),
            counter: Mutex::new(0),
            rows: Mutex::default(),
        }
    }

    fn next(&self) -> Generation {
        let mut counter = self.counter.lock().unwrap();
        *counter += 1;
        Generation { epoch: 1, counter: *counter }
    }

    pub fn want(&self, id: &str, desired: Desired, memory_mib: u64) {
        let generation = self.next();
        self.rows.lock().unwrap().insert(id.into(), instance(id, generation, desired, memory_mib));
    }

    pub async fn send(&self) -> Result<(), TierError> {
        let generation = self.next();
        let rows: Vec<Instance> = self.rows.lock().unwrap().values().cloned().collect();
        loop {
            match self
                .sender
                .deliver(self.store, generation, &rows, |i| async move { self.client.intend(&i).await })
                .await
            {
                // The connection of before a restart, mostly: the real one comes again, too.
                Err(e) if e.kind == TierErrorKind::Unreachable => tokio::time::sleep(Duration::from_millis(10)).await,
                outcome => return outcome,
            }
        }
    }

    pub async fn reports(&self) -> BTreeMap<String, InstanceReport> {
        let all = self.client.observe(&Observe::default()).await.unwrap();
        all.changed.into_iter().map(|r| (r.id.clone(), r)).collect()
    }

    /// Waits until the report of `id` is as `wanted` says.
    pub async fn until(&self, id: &str, what: &str, wanted: impl Fn(&InstanceReport) -> bool) -> InstanceReport {
        let begun = Instant::now();
        loop {
            let last = match self.client.observe(&Observe::default()).await {
                Ok(all) => all.changed.into_iter().find(|r| r.id == id),
                Err(_) => None,
            };
            if let Some(report) = last.clone().filter(&wanted) {
                return report;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{id} was not {what} in 30 s: {last:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_observed(&self, id: &str, observed: Observed) -> InstanceReport {
        self.until(id, &format!("{observed:?}"), |r| r.observed == observed).await
    }
}

fn instance(id: &str, generation: Generation, desired: Desired, memory_mib: u64) -> Instance {
    let root = Root::Image(Blob { digest: "0".repeat(64), size: 1, format: DiskFormat::Raw });
    Instance {
        id: id.into(),
        generation,
        desired,
        force: false,
        reboots: 0,
        vcpus: 1,
        memory_mib,
        disk_gib: 1,
        boot: Boot { architecture: "x86_64".into(), root, kernel: None, ramdisk: None, command_line: None },
        stores: vec![],
        awaits: None,
        hold: None,
        interfaces: vec![],
        volumes: vec![],
        metadata: Metadata::default(),
        node: None,
    }
}

/// What a node of the test remembers: it does at once whatever it is told.
#[derive(Default)]
pub struct Memory {
    sender: Option<Uuid>,
    held: Generation,
    pub bodies: BTreeMap<String, Instance>,
    /// Ids in the order in which they were first started here.
    pub started: Vec<String>,
}

pub struct SimNode {
    pub name: String,
    pub memory: Mutex<Memory>,
    reports: Reports<InstanceReport>,
}

#[async_trait::async_trait]
impl NodeController for SimNode {
    async fn intend(&self, _: &Peer, intent: Intent<Instance>) -> Result<IntentAnswer, TierError> {
        let mut memory = self.memory.lock().unwrap();
        if memory.sender.is_some_and(|s| s != intent.sender) {
            return Err(TierError::new(TierErrorKind::OtherIncarnation, "this node belongs to another store"));
        }
        if intent.generation < memory.held {
            return Err(TierError::new(TierErrorKind::Stale, "an old list"));
        }
        for body in &intent.bodies {
            memory.bodies.insert(body.id.clone(), body.clone());
        }
        let missing: Vec<String> = intent
            .entries
            .iter()
            .filter(|e| memory.bodies.get(&e.id).is_none_or(|b| b.hash() != e.hash))
            .map(|e| e.id.clone())
            .collect();
        if !missing.is_empty() {
            return Ok(IntentAnswer { missing });
        }
        memory.sender = Some(intent.sender);
        memory.held = intent.generation;
        for entry in &intent.entries {
            let body = memory.bodies[&entry.id].clone();
            let observed = match body.desired {
                Desired::Running => Observed::Running,
                Desired::Stopped => Observed::Stopped,
                _ => Observed::Gone,
            };
            if observed == Observed::Running && !memory.started.contains(&entry.id) {
                memory.started.push(entry.id.clone());
            }
            let mut report = InstanceReport::new(&entry.id, observed);
            (report.generation, report.released) =
                (body.generation, observed == Observed::Stopped && body.boot.root.is_elsewhere());
            self.reports.put(report);
        }
        for report in self.reports.all() {
            let unlisted = !intent.entries.iter().any(|e| e.id == report.id);
            if unlisted && (report.observed == Observed::Gone || report.released) {
                memory.bodies.remove(&report.id);
                self.reports.forget(&report.id);
            }
        }
        Ok(IntentAnswer::default())
    }
    async fn observe(&self, _: &Peer, ask: Observe) -> Result<Observation<InstanceReport>, TierError> {
        Ok(self.reports.observe(&ask).await)
    }
    async fn console(&self, _: &Peer, ask: ConsoleAsked) -> Result<Console, TierError> {
        Ok(Console { data: format!("console of {}", ask.instance), at: 1 })
    }
    async fn why(&self, _: &Peer, _: WhyAsked) -> Result<WhyAnswer, TierError> {
        Ok(WhyAnswer {
            lines: vec![WhyLine {
                by: format!("node {}", self.name),
                kind: "observed".into(),
                at: 1,
                text: "all well".into(),
            }],
        })
    }
    async fn status(&self, _: &Peer, _: StatusAsked) -> Result<NodeStatus, TierError> {
        Err(TierError::not_found("a node of a test has no status"))
    }
}

impl SimNode {
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.into(), memory: Mutex::default(), reports: Reports::default() })
    }
    pub fn report(&self, id: &str, observed: Observed) {
        self.reports.put(InstanceReport::new(id, observed));
    }
    pub fn has(&self, id: &str) -> bool {
        self.memory.lock().unwrap().started.iter().any(|i| i == id)
    }
}

/// A node that serves and registers, on a runtime of its own.
pub struct Machine {
    runtime: Option<tokio::runtime::Runtime>,
    pub node: Arc<SimNode>,
    port: u16,
}

impl Machine {
    pub fn start(pki: &Pki, controller: &Controller, node: &Arc<SimNode>, memory_mib: u64) -> Self {
        Self::start_at(pki, controller, node, memory_mib, 0)
    }

    fn start_at(pki: &Pki, controller: &Controller, node: &Arc<SimNode>, memory_mib: u64, port: u16) -> Self {
        let identity = pki.identity(&Peer::new(Role::NodeController, ZONE, &node.name));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (node, cluster) = (node.clone(), controller.address.clone());
        let serving = node.clone();
        let serve = async move {
            let server = Server::bind(&[([127, 0, 0, 1], port).into()], Some(&identity)).await.unwrap();
            let address = server.addresses()[0];
            let name = serving.name.clone();
            server.serve(Arc::new(TierOnly(Arc::new(NodeServer(serving)))));
            let http = TierHttp::new(&identity, &cluster, Role::ClusterController, ZONE).unwrap();
            let client = ClusterClient::new(Arc::new(http));
            tokio::spawn(async move {
                loop {
                    let now =
                        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
                    let registration = NodeRegistration {
                        node: name.clone(),
                        address: address.to_string(),
                        capacity: Capacity { vcpus: 4096, memory_mib, disk_gib: 100_000 },
                        hypervisor: "simulated".into(),
                        version: "test".into(),
                        now,
                    };
                    let pause = match client.register_node(&registration).await {
                        Ok(answer) => Duration::from_millis(answer.lease_ms / 3),
                        Err(_) => Duration::from_millis(20),
                    };
                    tokio::time::sleep(pause).await;
                }
            });
            address.port()
        };
        let handle = runtime.handle().clone();
        let port = std::thread::spawn(move || handle.block_on(serve)).join().unwrap();
        Self { runtime: Some(runtime), node, port }
    }

    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        }
    }

    pub fn restart(&mut self, pki: &Pki, controller: &Controller, memory_mib: u64) {
        self.kill();
        *self = Self::start_at(pki, controller, &self.node.clone(), memory_mib, self.port);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The cloud-controller as tiers find it: it notes who registers.
#[derive(Default)]
pub struct Registry(pub Mutex<Vec<(Peer, TierRegistration)>>);

#[async_trait::async_trait]
impl CloudController for Registry {
    async fn register_tier(&self, from: &Peer, registration: TierRegistration) -> Result<TierRegistered, TierError> {
        let now = registration.now;
        self.0.lock().unwrap().push((from.clone(), registration));
        Ok(TierRegistered { lease_ms: 400, now, region: "test".into() })
    }
    async fn identities(&self, _: &Peer, _: IdentitiesAsked) -> Result<Identities, TierError> {
        Err(TierError::not_found("none here"))
    }
    async fn renew(&self, _: &Peer, _: SigningRequest) -> Result<SignedCertificate, TierError> {
        Err(TierError::refused("not here"))
    }
    async fn disk_key(&self, _: &Peer, _: DiskKeyAsked) -> Result<DiskKey, TierError> {
        Err(TierError::not_found("none here"))
    }
    async fn locate(&self, _: &Peer, _: Locate) -> Result<Located, TierError> {
        Err(TierError::not_found("nothing here"))
    }
}

impl Registry {
    pub async fn serve(self: Arc<Self>, pki: &Pki) -> String {
        let identity = pki.identity(&Peer::new(Role::CloudController, "", "cloud-controller"));
        let server = Server::bind(&[([127, 0, 0, 1], 0).into()], Some(&identity)).await.unwrap();
        let address = server.addresses()[0].to_string();
        server.serve(Arc::new(TierOnly(Arc::new(CloudServer(self)))));
        address
    }
}
