//! A whole cloud for a test: the five tiers with simulated machines, in this process or as the real binaries.
//!
//! Each cloud has a loopback address of its own, so that ports are fixed, a tier that comes back is where it was, and
//! clouds of tests that run at the same time never meet.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use mallee_node_controller::hypervisor::{Simulated, SimulatedConfig};
use mallee_service::{Clock, tiers::AdminSocket};
use mallee_tiers::{AccountCreate, AdminClient, CloudStatus, Role, StatusAsked, TokenAsked, WhyAsked};
use tokio::{runtime::Runtime, sync::OnceCell};

use crate::{
    bundle::{self, Wrapping},
    client::{Answer, Client, Key, form},
};

/// One tier of a cloud. Zones and nodes count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    CloudController,
    Walrus,
    Cluster(usize),
    Storage(usize),
    Node(usize, usize),
}

impl Tier {
    /// Of the binary.
    pub fn program(self) -> &'static str {
        self.role().as_str()
    }

    fn role(self) -> Role {
        match self {
            Tier::CloudController => Role::CloudController,
            Tier::Walrus => Role::Walrus,
            Tier::Cluster(_) => Role::ClusterController,
            Tier::Storage(_) => Role::StorageController,
            Tier::Node(..) => Role::NodeController,
        }
    }

    fn zone(self) -> Option<usize> {
        match self {
            Tier::CloudController | Tier::Walrus => None,
            Tier::Cluster(zone) | Tier::Storage(zone) | Tier::Node(zone, _) => Some(zone),
        }
    }

    /// In the cloud: what its certificate says.
    pub fn name(self) -> String {
        match self {
            Tier::CloudController => "cloud-controller".into(),
            Tier::Walrus => "walrus".into(),
            Tier::Cluster(zone) | Tier::Storage(zone) => zone_name(zone),
            Tier::Node(zone, node) => format!("{}-n{}", zone_name(zone), node + 1),
        }
    }

    /// Of its files.
    fn folder(self) -> String {
        match self {
            Tier::CloudController | Tier::Walrus => self.program().into(),
            _ => format!("{}-{}", self.program(), self.name()),
        }
    }

    fn port(self) -> u16 {
        match self {
            Tier::CloudController => 73,
            Tier::Walrus => 77,
            Tier::Cluster(zone) => 1 + zone as u16,
            Tier::Storage(zone) => 11 + zone as u16,
            Tier::Node(zone, node) => 21 + (zone * 10 + node) as u16,
        }
    }
}

/// `mallee-1a`, `mallee-1b`, ….
pub fn zone_name(zone: usize) -> String {
    format!("mallee-1{}", char::from(b'a' + zone as u8))
}

/// How a test wants its cloud.
#[derive(Clone)]
pub struct Options {
    pub zones: usize,
    pub nodes: usize,
    /// Of each node.
    pub memory_mib: u64,
    /// Of the cloud-controller.
    pub clock: Clock,
    /// After how long a node is called silent.
    pub lease_ms: u64,
    /// The real binaries, each a process.
    pub processes: bool,
    /// Processes that tell their steps, and stop at one that is asked for (`mallee_service::steps`).
    pub steps: bool,
    /// What users are told of S3; endpoints are made only where it is an address that instances could reach.
    pub s3_url: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            zones: 1,
            nodes: 1,
            memory_mib: 64 << 10,
            clock: Clock::System,
            lease_ms: 3_000,
            processes: false,
            steps: false,
            s3_url: String::new(),
        }
    }
}

/// Runs until it is dropped.
pub struct Cloud {
    options: Options,
    address: String,
    base_port: u16,
    dir: tempfile::TempDir,
    running: Mutex<BTreeMap<Tier, Running>>,
    machines: Mutex<BTreeMap<Tier, Simulated>>,
    user: OnceCell<Client>,
    image: OnceCell<String>,
}

enum Running {
    Here(Runtime),
    Process(Child),
}

static CLOUDS: AtomicU16 = AtomicU16::new(0);

impl Cloud {
    /// Two zones would be more; most tests need one machine.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// Every tier as a process of its own.
    pub async fn of_processes() -> Self {
        Self::start_with(Options { processes: true, ..Options::default() }).await
    }

    /// Up, joined, and every node registered when this returns.
    pub async fn start_with(options: Options) -> Self {
        if options.processes {
            let program = binary(Tier::CloudController);
            assert!(
                program.exists(),
                "{} is not built: `cargo build --bins` first, as tools/test does",
                program.display()
            );
        }
        let pid = std::process::id();
        // Process ids have 22 bits here, as has what is below 127.64.
        let address = format!("127.{}.{}.{}", 64 + ((pid >> 16) & 63), (pid >> 8) & 255, pid & 255);
        let base_port = 10_000 + 100 * CLOUDS.fetch_add(1, Ordering::SeqCst);
        let dir = tempfile::Builder::new()
            .prefix("mallee-test-")
            .tempdir()
            .unwrap_or_else(|e| panic!("a folder for the cloud: {e}"));
        let cloud = Self {
            options,
            address,
            base_port,
            dir,
            running: Mutex::default(),
            machines: Mutex::default(),
            user: OnceCell::new(),
            image: OnceCell::new(),
        };
        cloud.bring_up(Tier::CloudController).await;
        for tier in cloud.tiers().into_iter().skip(1) {
            cloud.invite(tier).await;
        }
        futures_util::future::join_all(cloud.tiers().into_iter().skip(1).map(|tier| cloud.bring_up(tier))).await;
        cloud.wait_for_everybody().await;
        cloud
    }

    /// All of them, the cloud-controller first.
    pub fn tiers(&self) -> Vec<Tier> {
        let mut tiers = vec![Tier::CloudController, Tier::Walrus];
        for zone in 0..self.options.zones {
            tiers.extend([Tier::Cluster(zone), Tier::Storage(zone)]);
            tiers.extend((0..self.options.nodes).map(|node| Tier::Node(zone, node)));
        }
        tiers
    }

    pub fn address_of(&self, tier: Tier) -> SocketAddr {
        let text = format!("{}:{}", self.address, self.base_port + tier.port());
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// Where a tier keeps what it must not forget.
    pub fn state_of(&self, tier: Tier) -> PathBuf {
        self.dir.path().join(tier.folder())
    }

    fn config_of(&self, tier: Tier) -> String {
        let mut text = format!(
            "name = '{}'\nstate = '{}'\nlisten = ['{}']\n",
            tier.name(),
            self.state_of(tier).display(),
            self.address_of(tier),
        );
        if let Some(zone) = tier.zone() {
            text += &format!("zone = '{}'\n", zone_name(zone));
        }
        if tier == Tier::CloudController {
            let zones: Vec<String> = (0..self.options.zones).map(|zone| format!("'{}'", zone_name(zone))).collect();
            let s3 = &self.options.s3_url;
            return text + &format!("region = 'mallee-1'\nzones = [{}]\ns3_url = '{s3}'\n", zones.join(", "));
        }
        let token = self.token_of(tier);
        text += &format!(
            "cloud_controller = '{}'\njoin_token = '{}'\n",
            self.address_of(Tier::CloudController),
            token.display()
        );
        match tier {
            Tier::Cluster(_) => text + &format!("lease_ms = {}\n", self.options.lease_ms),
            Tier::Node(..) => {
                text + &format!(
                    "hypervisor = 'simulated'\ndisk_floor_gib = 0\npatience_s = 5\n\
                     [capacity]\nvcpus = 16\nmemory_mib = {}\ndisk_gib = 10000\n",
                    self.options.memory_mib
                )
            }
            Tier::Walrus => text + "website_suffixes = ['site.test']\n",
            _ => text,
        }
    }

    fn token_of(&self, tier: Tier) -> PathBuf {
        self.dir.path().join(format!("{}.token", tier.folder()))
    }

    /// A one-time token in the file its configuration names.
    async fn invite(&self, tier: Tier) {
        let zone = tier.zone().map(zone_name).unwrap_or_default();
        let asked = TokenAsked { role: tier.role(), zone, name: tier.name(), seconds: 0 };
        let token = self.admin().join_token(&asked).await.unwrap_or_else(|e| panic!("a token for {tier:?}: {e}"));
        std::fs::write(self.token_of(tier), token.token.0).unwrap_or_else(|e| panic!("{tier:?}: {e}"));
    }

    /// Starts a tier that does not run and waits until it serves.
    pub async fn bring_up(&self, tier: Tier) {
        let config = self.config_of(tier);
        let running = if self.options.processes {
            Running::Process(self.spawn(tier, &config))
        } else {
            let machine = matches!(tier, Tier::Node(..)).then(|| self.machine(tier));
            Running::Here(start_here(tier, config, self.options.clock.clone(), machine).await)
        };
        self.lock().insert(tier, running);
        let address = self.address_of(tier);
        eventually(&format!("{tier:?} serves on {address}"), || async {
            tokio::net::TcpStream::connect(address).await.is_ok().then_some(())
        })
        .await;
        // The port is taken before the store is open; a killed one's socket file refuses until the new one replaces it.
        if tier == Tier::CloudController {
            let socket = self.admin_socket();
            eventually(&format!("{tier:?} serves on {}", socket.display()), || async {
                tokio::net::UnixStream::connect(&socket).await.is_ok().then_some(())
            })
            .await;
        }
    }

    fn spawn(&self, tier: Tier, config: &str) -> Child {
        let path = self.dir.path().join(format!("{}.toml", tier.folder()));
        std::fs::write(&path, config).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_of(tier));
        let log = log.unwrap_or_else(|e| panic!("{}: {e}", self.log_of(tier).display()));
        let mut command = std::process::Command::new(binary(tier));
        if self.options.steps {
            command.env("MALLEE_STOP_AT", self.stop_file(tier)).env("MALLEE_LOG", "info,step=trace");
        }
        command
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", tier.program()))
    }

    fn log_of(&self, tier: Tier) -> PathBuf {
        self.dir.path().join(format!("{}.log", tier.folder()))
    }

    /// The process of a tier stops at the step that is written here.
    pub fn stop_file(&self, tier: Tier) -> PathBuf {
        self.dir.path().join(format!("{}.stop", tier.folder()))
    }

    /// Of a tier that runs as a process.
    pub fn pid_of(&self, tier: Tier) -> Option<u32> {
        match self.lock().get(&tier) {
            Some(Running::Process(child)) => Some(child.id()),
            _ => None,
        }
    }

    /// What the process of a tier logged so far.
    pub fn log(&self, tier: Tier) -> String {
        std::fs::read_to_string(self.log_of(tier)).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Tier, Running>> {
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends tiers without warning: `kill -9` for a process; here, every task is dropped where it waits.
    pub async fn kill(&self, tiers: &[Tier]) {
        let ended: Vec<Running> = tiers.iter().filter_map(|tier| self.lock().remove(tier)).collect();
        assert_eq!(ended.len(), tiers.len(), "all of {tiers:?} should have been running");
        let locks: Vec<PathBuf> = tiers.iter().map(|tier| self.state_of(*tier).join("store.db.lock")).collect();
        let ending = tokio::task::spawn_blocking(move || {
            let mut processes = Vec::new();
            for running in ended {
                match running {
                    Running::Here(runtime) => runtime.shutdown_timeout(Duration::from_secs(10)),
                    Running::Process(mut child) => {
                        // All at once: nobody is waited for before everybody was hit.
                        let _ = child.kill();
                        processes.push(child);
                    }
                }
            }
            processes.into_iter().for_each(|mut child| drop(child.wait()));
            locks.iter().for_each(|lock| wait_until_free(lock));
        });
        ending.await.unwrap_or_else(|e| panic!("ending {tiers:?}: {e}"));
    }

    /// The simulated machine under a node: its guests outlive the node-controller, as real ones do. Not of processes: there
    /// the machine is in the node-controller's memory, and killing that is a power cut.
    pub fn machine(&self, node: Tier) -> Simulated {
        let mut machines = self.machines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        machines.entry(node).or_insert_with(|| Simulated::new(SimulatedConfig::default())).clone()
    }

    /// How often an instance was started, on all nodes together.
    pub fn boots(&self, id: &str) -> u32 {
        let machines = self.machines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        machines.values().map(|machine| machine.boots(id)).sum()
    }

    /// How many guests run, on all nodes together.
    pub fn guests(&self) -> usize {
        let machines = self.machines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        machines.values().map(Simulated::running).sum()
    }

    /// Kills and starts again.
    pub async fn restart(&self, tiers: &[Tier]) {
        self.kill(tiers).await;
        futures_util::future::join_all(tiers.iter().map(|tier| self.bring_up(*tier))).await;
    }

    /// A tier that ended by itself crashed.
    pub fn assert_nobody_crashed(&self) {
        for (tier, running) in self.lock().iter_mut() {
            if let Running::Process(child) = running {
                let ended = child.try_wait().unwrap_or_else(|e| panic!("{tier:?}: {e}"));
                assert!(ended.is_none(), "{tier:?} ended with {ended:?}:\n{}", self.log(*tier));
            }
        }
    }

    fn admin_socket(&self) -> PathBuf {
        self.state_of(Tier::CloudController).join("admin.sock")
    }

    /// The operator's socket.
    pub fn admin(&self) -> AdminClient {
        AdminClient::new(Arc::new(AdminSocket(self.admin_socket())))
    }

    pub async fn status(&self) -> CloudStatus {
        self.admin().status(&StatusAsked::default()).await.unwrap_or_else(|e| panic!("status: {e}"))
    }

    /// What `mallee why` prints.
    pub async fn why(&self, id: &str) -> String {
        let answer = self.admin().why(&WhyAsked { id: id.into() }).await.unwrap_or_else(|e| panic!("why {id}: {e}"));
        answer.lines.iter().map(|line| format!("{} {}: {}\n", line.by, line.kind, line.text)).collect()
    }

    /// Until every tier registered and answers, and every node is up.
    pub async fn wait_for_everybody(&self) {
        let (tiers, nodes) =
            (self.tiers().len() - self.options.zones * self.options.nodes, self.options.zones * self.options.nodes);
        eventually("every tier is registered and every node is up", || async {
            let status = self.admin().status(&StatusAsked::default()).await.ok()?;
            let answering = status.tiers.iter().filter(|tier| tier.status.is_some()).count();
            let up = status.nodes.iter().filter(|row| row.node.state == "up").count();
            (answering == tiers && up == nodes).then_some(())
        })
        .await;
    }

    /// A client of the account of this name, which is made where there is none.
    pub async fn account(&self, name: &str) -> Client {
        let asked = AccountCreate { name: name.into(), ensure: true };
        let keys = self.admin().account_create(&asked).await.unwrap_or_else(|e| panic!("account {name}: {e}"));
        let client = Client {
            key: Key {
                account: keys.account,
                access_key: keys.access_key.parse().unwrap_or_else(|e| panic!("{e:?}")),
                secret: mallee_aws::SecretKey::new(keys.secret.0),
            },
            region: keys.region,
            query: self.address_of(Tier::CloudController),
            objects: self.address_of(Tier::Walrus),
            ahead: time::Duration::ZERO,
        };
        // walrus hears of a new key a moment later.
        eventually("walrus knows the account", || async {
            (client.s3(http::Method::GET, "/", "").await.status == 200).then_some(())
        })
        .await;
        client
    }

    /// The account most tests use.
    pub async fn user(&self) -> &Client {
        self.user.get_or_init(|| self.account("alice")).await
    }

    pub async fn ec2(&self, form: &str) -> Answer {
        self.user().await.ec2(form).await
    }

    /// An image of the user's that can be launched.
    pub async fn image(&self) -> &str {
        self.image
            .get_or_init(|| async {
                let user = self.user().await;
                let image = self.register(user, "test-image").await;
                image_settles(user, &image, "available").await;
                image
            })
            .await
    }

    /// The certificate bundles are made for.
    pub async fn bundling_certificate(&self) -> String {
        let asked = AccountCreate { name: "alice".into(), ensure: true };
        let keys = self.admin().account_create(&asked).await.unwrap_or_else(|e| panic!("keys of alice: {e}"));
        keys.cloud_certificate_pem
    }

    /// Bundles, uploads and registers an image in the account of `client`.
    pub async fn register(&self, client: &Client, name: &str) -> String {
        let certificate = self.bundling_certificate().await;
        let wrapping = Wrapping { name, account: &client.key.account, certificate: &certificate, signed_by: None };
        let bundle = bundle::wrap(&bundle::disk(name), &wrapping).unwrap_or_else(|e| panic!("a bundle: {e}"));
        let location = bundle.upload(client, &format!("images-{}-{name}", client.key.account)).await;
        let asked = form(&[("Action", "RegisterImage"), ("Name", name), ("ImageLocation", &location)]);
        client.ec2(&asked).await.value("imageId")
    }

    /// Launches one instance of the user's with these further parameters; answers its id.
    pub async fn launch(&self, more: &str) -> String {
        let image = self.image().await;
        let asked = format!("Action=RunInstances&ImageId={image}&InstanceType=mini.nano&MinCount=1&MaxCount=1{more}");
        self.ec2(&asked).await.value("instanceId")
    }

    /// Waits for an instance of the user's to be in a state.
    pub async fn instance_is(&self, id: &str, state: &str) {
        let mut seen = String::new();
        for _ in 0..600 {
            seen = self.state(id).await;
            if seen == state {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{id} is {seen} instead of {state}:\n{}", self.why(id).await);
    }

    /// The state of an instance of the user's, or the error's code.
    pub async fn state(&self, id: &str) -> String {
        let answer = self.ec2(&format!("Action=DescribeInstances&InstanceId.1={id}")).await;
        if answer.status != 200 {
            return answer.code();
        }
        let tree = answer.xml();
        let state = tree.first("instanceState").and_then(|state| state.first("name")).map(|name| name.text());
        state.unwrap_or_else(|| answer.text())
    }
}

/// Waits for an image to be in a state.
pub async fn image_settles(client: &Client, image: &str, state: &str) {
    let mut seen = String::new();
    for _ in 0..600 {
        let answer = client.ec2(&format!("Action=DescribeImages&ImageId.1={image}")).await;
        seen = answer.text();
        if answer.get("imageState").as_deref() == Some(state) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{image} is not {state}: {seen}");
}

/// Asks until there is an answer; a minute is for machines that are very busy.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        for (tier, running) in std::mem::take(&mut *self.lock()) {
            match running {
                Running::Here(runtime) => runtime.shutdown_background(),
                Running::Process(mut child) => {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
            if failing && self.options.processes {
                let log = self.log(tier);
                let last: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!("--- the last of {tier:?}'s log");
                last.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        end_engines(self.dir.path());
    }
}

/// Ends what the tiers of a cloud started and what outlives them by design, such as the daemons that serve volumes: every
/// process with the cloud's own folder in its command line.
fn end_engines(folder: &Path) {
    let Some(folder) = folder.to_str() else { return };
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(folder) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Where cargo puts the binaries, seen from the test that runs: `target/debug/deps/cloud-…`.
fn binary(tier: Tier) -> PathBuf {
    let here = std::env::current_exe().unwrap_or_else(|e| panic!("where am I: {e}"));
    let target = here.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    target.join(tier.program())
}

/// A process's lock goes with it. Here the last that holds a store may be a closure in the store's own thread, which ends a moment
/// after the runtime.
fn wait_until_free(lock: &Path) {
    let begun = std::time::Instant::now();
    while let Ok(file) = std::fs::File::open(lock)
        && file.try_lock().is_err()
    {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}: still held after its tier's end", lock.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// On a runtime of its own, so that it can be ended like a process.
async fn start_here(tier: Tier, config: String, clock: Clock, simulated: Option<Simulated>) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(tier.program())
        .enable_all()
        .build()
        .unwrap_or_else(|e| panic!("a runtime: {e}"));
    let started = runtime.spawn(async move {
        match tier {
            Tier::CloudController => {
                mallee_cloud_controller::start(read(&config)?, clock).await.map(drop).map_err(|e| e.to_string())
            }
            Tier::Walrus => mallee_walrus::start(read(&config)?).await.map(drop).map_err(|e| e.to_string()),
            Tier::Cluster(_) => {
                mallee_cluster_controller::start(read(&config)?).await.map(drop).map_err(|e| e.to_string())
            }
            Tier::Storage(_) => {
                mallee_storage_controller::start(read(&config)?).await.map(drop).map_err(|e| e.to_string())
            }
            Tier::Node(..) => {
                let parts = mallee_node_controller::Parts { simulated, ..Default::default() };
                mallee_node_controller::start(read(&config)?, parts).await.map(drop).map_err(|e| e.to_string())
            }
        }
    });
    match started.await {
        Ok(Ok(())) => runtime,
        Ok(Err(e)) => {
            runtime.shutdown_background();
            panic!("{tier:?} does not start: {e}")
        }
        Err(e) => {
            runtime.shutdown_background();
            panic!("{tier:?} does not start: {e}")
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(config: &str) -> Result<T, String> {
    toml::from_str(config).map_err(|e| e.to_string())
}
