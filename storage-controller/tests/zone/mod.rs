//! A storage-controller and those around it: a cloud-controller played by the test, and the real walrus.

#![allow(dead_code)]

mod cloud;

#[allow(unused_imports)]
pub use cloud::key as key_of;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mallee_service::{Identity, IntentSender, Server, TierHttp, pki, tiers::TierOnly};
use mallee_storage_controller::{Config, Place, start};
use mallee_tiers::*;
use uuid::Uuid;

pub const ZONE: &str = "mallee-1a";

pub struct Zone {
    pub runtime: Option<tokio::runtime::Runtime>,
    pub dir: tempfile::TempDir,
    pub ca: pki::Ca,
    pub config: Config,
    pub client: StorageClient,
    pub store: Uuid,
    pub sender: IntentSender,
    pub counter: Mutex<i64>,
    pub rows: Mutex<BTreeMap<String, Volume>>,
    pub snapshots: Mutex<BTreeMap<String, Snapshot>>,
    pub snapshot_sender: IntentSender,
    pub walrus: Option<tokio::runtime::Runtime>,
    pub cloud: Option<tokio::runtime::Runtime>,
    pub walrus_address: String,
    /// The real binary instead of a runtime in this process, at this address.
    pub process: Option<(std::process::Child, String)>,
}

pub fn issue(ca: &pki::Ca, key: &str, peer: &Peer, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("ca.pem"), &ca.certificate_pem).unwrap();
    std::fs::write(dir.join("key.pem"), key).unwrap();
    std::fs::write(dir.join("cert.pem"), ca.sign(peer, &pki::signing_request(key).unwrap()).unwrap()).unwrap();
}

pub fn client(dir: &Path, address: &str) -> StorageClient {
    let identity = Identity::load(&dir.join("cloud")).unwrap();
    StorageClient::new(Arc::new(TierHttp::new(&identity, address, Role::StorageController, ZONE).unwrap()))
}

impl Zone {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = pki::Ca::open_or_create(&dir.path().join("ca"), "test").unwrap();
        let key = pki::new_key_pem().unwrap();
        let state = dir.path().join("s");
        issue(&ca, &key, &Peer::new(Role::StorageController, ZONE, ZONE), &state.join("tls"));
        issue(&ca, &key, &Peer::new(Role::CloudController, "", "cloud-controller"), &dir.path().join("cloud"));
        let text = format!(
            "name = {ZONE:?}\nzone = {ZONE:?}\nstate = {:?}\nlisten = [\"127.0.0.1:0\"]\n",
            state.display().to_string()
        );
        std::fs::write(state.join("storage.toml"), text).unwrap();
        let config: Config = mallee_service::config::load(&state.join("storage.toml")).unwrap();
        let client = client(dir.path(), "127.0.0.1:1");
        issue(&ca, &key, &Peer::new(Role::Walrus, "", "walrus"), &dir.path().join("walrus/tls"));
        let mut zone = Self {
            runtime: None,
            dir,
            ca,
            config,
            client,
            store: Uuid::new_v4(),
            sender: IntentSender::default(),
            counter: Mutex::new(0),
            rows: Mutex::default(),
            snapshots: Mutex::default(),
            snapshot_sender: IntentSender::default(),
            walrus: None,
            cloud: None,
            walrus_address: "127.0.0.1:0".into(),
            process: None,
        };
        zone.start_cloud();
        zone.start_walrus();
        zone.choose_store();
        zone.start();
        zone
    }

    /// `MALLEE_TEST_POSTGRES` (a URL) has the zone keep its rows there, in a schema of its own; else SQLite does.
    pub fn choose_store(&mut self) {
        if let Ok(url) = std::env::var("MALLEE_TEST_POSTGRES") {
            let schema = format!("storage_{}", Uuid::new_v4().simple());
            self.config.daemon.store = mallee_service::config::Store::Postgres { url, schema };
        }
    }

    pub fn start(&mut self) {
        if let Some((_, address)) = self.process.take() {
            self.process = Some((self.spawn(), address));
            return;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let begun = Instant::now();
        let running = loop {
            let (config, handle) = (self.config.clone(), runtime.handle().clone());
            match std::thread::spawn(move || handle.block_on(start(config))).join().unwrap() {
                // The thread that writes the store of the life before lets go of it a moment after that.
                Err(mallee_storage_controller::Error::Store(mallee_store::Error::Locked { .. }))
                    if begun.elapsed() < Duration::from_secs(10) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                outcome => break outcome.unwrap(),
            }
        };
        self.client = client(self.dir.path(), &running.address);
        self.runtime = Some(runtime);
    }

    /// From here on it is the real binary, and [`Zone::kill`] is `kill -9`.
    pub fn become_a_process(&mut self) {
        self.kill();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let path = self.config.daemon.state.join("storage.toml");
        let text = std::fs::read_to_string(&path).unwrap().replace("127.0.0.1:0", &address);
        let cloud = format!("cloud_controller = {:?}\n", self.config.daemon.cloud_controller);
        let walrus = format!("[walrus]\naddress = {:?}\nname = \"walrus\"\n", self.walrus_address);
        std::fs::write(&path, text + &cloud + &walrus).unwrap();
        self.process = Some((self.spawn(), address.clone()));
        self.client = client(self.dir.path(), &address);
    }

    fn spawn(&self) -> std::process::Child {
        Command::new(env!("CARGO_BIN_EXE_storage-controller"))
            .arg("--config")
            .arg(self.config.daemon.state.join("storage.toml"))
            .env("MALLEE_LOG", "off")
            .spawn()
            .unwrap()
    }

    /// The test, as a cloud-controller that is asked something.
    pub fn start_cloud(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let identity = Identity::load(&self.dir.path().join("cloud")).unwrap();
        let address = self.config.daemon.cloud_controller.parse().unwrap_or(([127, 0, 0, 1], 0).into());
        let handle = runtime.handle().clone();
        let run = move || {
            handle.block_on(async move {
                let server = Server::bind(&[address], Some(&identity)).await.unwrap();
                let bound = server.addresses()[0].to_string();
                server.serve(Arc::new(TierOnly(Arc::new(CloudServer(Arc::new(cloud::Played))))));
                bound
            })
        };
        self.config.daemon.cloud_controller = std::thread::spawn(run).join().unwrap();
        self.cloud = Some(runtime);
    }

    pub fn kill_cloud(&mut self) {
        if let Some(runtime) = self.cloud.take() {
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        }
    }

    /// walrus runs beside it, at the same address every time.
    pub fn start_walrus(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = self.dir.path().join("walrus").display().to_string();
        let text =
            format!("name = \"walrus\"\nstate = {state:?}\nlisten = [{:?}]\nreserve_mib = 0\n", self.walrus_address);
        let handle = runtime.handle().clone();
        let run = move || handle.block_on(mallee_walrus::start(toml::from_str(&text).unwrap()));
        let running = std::thread::spawn(run).join().unwrap().unwrap();
        self.walrus_address = running.addresses[0].to_string();
        self.config.walrus = Some(Place { address: self.walrus_address.clone(), name: "walrus".into() });
        self.walrus = Some(runtime);
    }

    pub fn kill_walrus(&mut self) {
        if let Some(runtime) = self.walrus.take() {
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        }
    }

    /// Everything it was doing stops where it is.
    pub fn kill(&mut self) {
        if let Some((process, _)) = &mut self.process {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        if let Some(runtime) = self.runtime.take() {
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10))).join().unwrap();
        }
    }

    pub fn lose_store(&mut self) {
        for file in ["store.db", "store.db-wal", "store.db-shm"] {
            let _ = std::fs::remove_file(self.config.daemon.state.join(file));
        }
        self.choose_store();
    }

    pub fn next(&self) -> Generation {
        let mut counter = self.counter.lock().unwrap();
        *counter += 1;
        Generation { epoch: 1, counter: *counter }
    }

    /// Writes a wish and sends the whole list.
    pub async fn want(&self, id: &str, desired: VolumeDesired, size_gib: u64, export_for: Option<&str>) {
        self.want_volume(id, size_gib, export_for, |v| v.desired = desired).await;
    }

    /// Writes a wish that is like the one before, but for what is said; and sends the whole list.
    pub async fn want_volume(
        &self,
        id: &str,
        size_gib: u64,
        export_for: Option<&str>,
        change: impl FnOnce(&mut Volume),
    ) {
        self.wish(id, size_gib, export_for, change);
        self.send().await.unwrap();
    }

    pub fn wish(&self, id: &str, size_gib: u64, export_for: Option<&str>, change: impl FnOnce(&mut Volume)) {
        let generation = self.next();
        let mut rows = self.rows.lock().unwrap();
        let volume = rows.entry(id.into()).or_insert_with(|| Volume::new(id, generation, size_gib));
        (volume.generation, volume.size_gib, volume.export_for) = (generation, size_gib, export_for.map(Into::into));
        change(volume);
    }

    /// Sends the list until it is taken: a process needs a moment to answer.
    pub async fn send_until_taken(&self) {
        let begun = Instant::now();
        while let Err(e) = self.send().await {
            assert!(begun.elapsed() < Duration::from_secs(30), "{e}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn send(&self) -> Result<(), TierError> {
        let (generation, rows): (_, Vec<Volume>) = (self.next(), self.rows.lock().unwrap().values().cloned().collect());
        self.sender.deliver(self.store, generation, &rows, |i| async move { self.client.intend(&i).await }).await
    }

    /// Writes a wish for a snapshot and sends the whole list.
    pub async fn want_snapshot(&self, id: &str, volume: &str, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = Snapshot::new(id, self.next(), volume);
        change(&mut snapshot);
        self.snapshots.lock().unwrap().insert(id.into(), snapshot);
        // The tier may be down just now: the cloud-controller sends it again too.
        let begun = Instant::now();
        while let Err(e) = self.send_snapshots().await {
            assert!(begun.elapsed() < Duration::from_secs(30), "{e}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn send_snapshots(&self) -> Result<(), TierError> {
        let rows: Vec<Snapshot> = self.snapshots.lock().unwrap().values().cloned().collect();
        let send = |i| async move { self.client.intend_snapshots(&i).await };
        self.snapshot_sender.deliver(self.store, self.next(), &rows, send).await
    }

    pub async fn until_snapshot(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&SnapshotReport) -> bool,
    ) -> SnapshotReport {
        let begun = Instant::now();
        loop {
            let all = self.client.observe_snapshots(&Observe::default()).await.map(|o| o.changed).unwrap_or_default();
            let last = all.into_iter().find(|r| r.id == id);
            if let Some(report) = last.clone().filter(&wanted) {
                return report;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{id} was not {what} in 30 s: {last:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn uploaded(&self, id: &str) -> SnapshotReport {
        self.until_snapshot(id, "uploaded", |r| r.observed == SnapshotObserved::Uploaded).await
    }

    /// As the cloud-controller does when it has found all of it in walrus.
    pub async fn accept(&self, id: &str, volume: &str) {
        self.want_snapshot(id, volume, |s| s.accepted = true).await;
    }

    /// A volume of a snapshot; the path of a copy of its bytes, as they are read through its export.
    pub async fn restored(&self, id: &str, size_gib: u64, manifest: &str) -> PathBuf {
        self.restored_with(id, size_gib, manifest, |_| {}).await
    }

    pub async fn restored_with(
        &self,
        id: &str,
        size_gib: u64,
        manifest: &str,
        change: impl FnOnce(&mut Volume),
    ) -> PathBuf {
        let source = Some(VolumeSource { snapshot: "snap".into(), manifest: manifest.into() });
        self.want_volume(id, size_gib, Some("vattach-read"), |v| {
            v.source = source;
            change(v);
        })
        .await;
        let export = self.until_served(id, "vattach-read").await;
        let path = self.copied(&export);
        self.until(id, "fetched whole", |r| !r.needs_source).await;
        path
    }

    /// A file with what an export holds.
    pub fn copied(&self, export: &Export) -> PathBuf {
        let path = self.dir.path().join(&export.name);
        let arguments = ["convert", "-f", "raw", "-O", "raw", &url(export)];
        let out = Command::new("qemu-img").args(arguments).arg(&path).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        path
    }

    /// The same, beginning again when the export went away meanwhile.
    pub async fn copied_when_it_can(&self, export: &Export) -> PathBuf {
        let path = self.dir.path().join(&export.name);
        let image = format!(
            "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export={},file.reconnect-delay=60,file.open-timeout=60",
            url(export).split_once("socket=").unwrap().1,
            export.name
        );
        let arguments = ["convert", "--image-opts", "-O", "raw", &image];
        let mut child = Command::new("qemu-img").args(arguments).arg(&path).spawn().unwrap();
        let begun = Instant::now();
        loop {
            match child.try_wait().unwrap() {
                Some(status) => {
                    assert!(status.success());
                    return path;
                }
                None if begun.elapsed() > Duration::from_secs(60) => {
                    child.kill().unwrap();
                    panic!("{} cannot be read", export.name);
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// The layers a volume has as files.
    pub fn layers(&self, id: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder(id)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub async fn until_layers(&self, id: &str, expected: &[&str]) {
        let begun = Instant::now();
        while self.layers(id) != expected {
            if begun.elapsed() > Duration::from_secs(30) {
                let why = self.client.why(&WhyAsked { id: id.into() }).await.unwrap();
                panic!("{:?}, {:?}, {why:?}", self.layers(id), self.faults().await);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until(&self, id: &str, what: &str, wanted: impl Fn(&VolumeReport) -> bool) -> VolumeReport {
        let begun = Instant::now();
        loop {
            let all = self.client.observe(&Observe::default()).await.map(|o| o.changed).unwrap_or_default();
            let last = all.into_iter().find(|r| r.id == id);
            if let Some(report) = last.clone().filter(&wanted) {
                return report;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{id} was not {what} in 30 s: {last:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_served(&self, id: &str, attachment: &str) -> Export {
        let served = self
            .until(id, "served", |r| {
                r.export.as_ref().is_some_and(|e| e.attachment == attachment) && r.reason.is_empty()
            })
            .await;
        served.export.unwrap()
    }

    pub async fn faults(&self) -> Vec<String> {
        self.client.status(&StatusAsked {}).await.unwrap().faults.into_iter().map(|f| f.what).collect()
    }

    pub fn folder(&self, id: &str) -> PathBuf {
        self.config.volumes().join(id)
    }

    /// Those of one volume are killed.
    pub fn kill_daemons(&self, id: &str) {
        for pid in self.daemons() {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&format!("/{id}.sock")) {
                // It may have ended by itself just now.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }

    /// Pids of the daemons on this zone's sockets.
    pub fn daemons(&self) -> Vec<i32> {
        let sockets = self.config.sockets().unwrap().display().to_string();
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.starts_with("qemu-storage-daemon") && line.contains(&sockets) {
                pids.push(pid);
            }
        }
        pids
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        self.kill();
        self.kill_walrus();
        self.kill_cloud();
        for pid in self.daemons() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

pub fn url(export: &Export) -> String {
    let ExportAddress::Unix(socket) = &export.address else { panic!("{export:?}") };
    format!("nbd+unix:///{}?socket={socket}", export.name)
}

/// Runs a command of `qemu-io` through the export.
pub fn io(export: &Export, command: &str) -> Result<String, String> {
    let out = Command::new("qemu-io").args(["-f", "raw", "-c", command, &url(export)]).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() && !text.contains("failed") { Ok(text) } else { Err(text) }
}

/// [`io`] of an export that was served when it was last told of, and whose daemon may have been killed since.
pub async fn io_when_it_can(export: &Export, command: &str) {
    let begun = Instant::now();
    while let Err(why) = io(export, command) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
