//! Exports by NBD: one `qemu-storage-daemon` per exported volume, on a unix socket or, for another machine, by TLS.
//!
//! The daemon is a process of its own: it outlives the storage-controller and is found again by it. One that is killed is
//! started again at once with the same socket and the same export name, because the guest's QEMU waits for exactly these
//! (libvirt's `<reconnect>`). The export's name is random per attachment, so an instance that had the volume before
//! cannot come back to it. The daemon's command line names the attachment, so that a new store can tell whose it is.
//!
//! The passphrase of an encrypted volume is on no command line and on no disk: a daemon reads it from a named pipe when it
//! starts, and whoever keeps the daemon writes it there.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mallee_engines::{Plan, Ready, Stop, process};
use mallee_service::{Poke, steps::TARGET};
use mallee_tiers::{ExportAddress, Secret};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    Beyond, Place, PlaceError, Qmp, QmpError,
    daemon::{self, At},
    place::SERVER_CERTIFICATE,
};
use crate::{backend::BackendError, volume::VolumeId};

/// A daemon that lived so long did not die of its own start.
const HEALTHY_LIFE: Duration = Duration::from_secs(1);
const SLOWEST_RESTART: Duration = Duration::from_secs(10);
/// It flushes when it is asked to end; then it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// One export, as its row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub volume: VolumeId,
    pub attachment: String,
    /// Random per attachment.
    pub name: String,
    pub place: Place,
}

/// How an export's daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Ready {
        pid: i32,
    },
    /// It ended, why, and it is being started again.
    Down(String),
}

/// How QEMU is to open a volume.
#[derive(Debug, Clone)]
pub struct Opened {
    pub blockdev: Value,
    /// Of an encrypted one.
    pub passphrase: Option<Secret>,
}

/// Found out anew for every start: a snapshot changes it. Blocks.
pub type Describe = Arc<dyn Fn() -> Result<Opened, BackendError> + Send + Sync>;

/// The daemons of all exports.
pub struct Exports {
    sockets: PathBuf,
    /// None: no other machine is served.
    beyond: Option<Beyond>,
    /// What daemons show to other machines.
    credentials: PathBuf,
    /// Who each daemon is.
    records: PathBuf,
    logs: PathBuf,
    /// Poked when a daemon came up or went down.
    changed: Poke,
    kept: Mutex<BTreeMap<VolumeId, Kept>>,
}

/// What the one who keeps a daemon is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    KeepIt,
    /// End it and start it again.
    Anew,
    EndIt,
}

struct Kept {
    served: Served,
    phase: watch::Receiver<Phase>,
    tell: watch::Sender<Told>,
    task: JoinHandle<Result<(), mallee_engines::Error>>,
}

/// A daemon on one of our sockets that is running, whoever started it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub served: Served,
    command: Vec<String>,
}

impl Exports {
    pub fn open(sockets: PathBuf, state: &Path, beyond: Option<Beyond>, changed: Poke) -> std::io::Result<Self> {
        let (records, logs, credentials) = (state.join("exports"), state.join("log"), state.join("nbd-tls"));
        for dir in [&sockets, &records, &logs] {
            fs::create_dir_all(dir)?;
        }
        // Whoever may connect to a socket may read and write the volume, if it knows the name.
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o700))?;
        Ok(Self { sockets, beyond, credentials, records, logs, changed, kept: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tier's certificate is what daemons show.
    pub fn show_certificate(&self, tls: &Path) -> Result<(), PlaceError> {
        super::place::credentials(tls, &self.credentials)
    }

    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    pub fn socket(&self, volume: &VolumeId) -> PathBuf {
        self.sockets.join(format!("{volume}.sock"))
    }

    fn monitor(&self, volume: &VolumeId) -> PathBuf {
        self.sockets.join(format!("{volume}.qmp"))
    }

    /// Where a daemon reads the volume's passphrase.
    fn pipe(&self, volume: &VolumeId) -> PathBuf {
        self.sockets.join(format!("{volume}.key"))
    }

    /// Talks to the daemon of a volume.
    pub async fn tell(&self, volume: &VolumeId) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.monitor(volume)).await
    }

    fn plan(&self, served: &Served, command: Vec<String>) -> Plan {
        let name = format!("{}-{}", served.volume, served.name);
        let ready = match self.tcp(served) {
            Some(tcp) => Ready::Tcp { address: tcp },
            None => Ready::Unix { socket: self.socket(&served.volume) },
        };
        let mut plan = Plan::new(&name, &self.records, &self.logs, command, ready);
        plan.stop = Stop { control: None, patience: PATIENCE };
        // Guests wait for it: the kernel should end something else.
        plan.oom_score = Some(-900);
        plan
    }

    fn tcp(&self, served: &Served) -> Option<SocketAddr> {
        match (&served.place, &self.beyond) {
            (Place::Tls { port, .. }, Some(beyond)) => Some(beyond.at(*port)),
            _ => None,
        }
    }

    /// Where an export is reached; none when it is served for another machine, and this one has no address any more.
    pub fn address(&self, served: &Served) -> Option<ExportAddress> {
        match &served.place {
            Place::Unix => Some(ExportAddress::Unix(self.socket(&served.volume).display().to_string())),
            Place::Tls { .. } => Some(ExportAddress::Tcp(self.tcp(served)?.to_string())),
        }
    }

    /// Whether a node is on this machine, as far as it is known.
    pub fn is_beside(&self, node: Option<&str>) -> bool {
        self.beyond.as_ref().is_none_or(|beyond| node.is_some() && node == beyond.local_node.as_deref())
    }

    /// A place for an export to this node; None: it is not known yet. `taken`: the ports of other exports.
    pub fn place(&self, node: Option<&str>, taken: &[u16]) -> Result<Place, PlaceError> {
        match &self.beyond {
            Some(beyond) if !self.is_beside(node) => {
                Ok(Place::Tls { port: beyond.free_port(taken)?, node: node.map(str::to_owned) })
            }
            _ => Ok(Place::Unix),
        }
    }

    fn command(&self, served: &Served, opened: &Opened) -> Vec<String> {
        let volume = &served.volume;
        let (socket, monitor, pipe) = (self.socket(volume), self.monitor(volume), self.pipe(volume));
        let credentials = &self.credentials;
        let at = At { socket: &socket, monitor: &monitor, pipe: &pipe, credentials, tcp: self.tcp(served) };
        daemon::command(served, opened, &at)
    }

    fn make_pipe(&self, volume: &VolumeId, opened: &Opened) -> Result<(), String> {
        let pipe = self.pipe(volume);
        let _ = fs::remove_file(&pipe);
        if opened.passphrase.is_none() {
            return Ok(());
        }
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| format!("making {}: {e}", pipe.display()))
    }

    /// Writes the passphrase, if somebody reads just now. The pipe holds it whole, so nobody is waited for.
    fn feed(&self, volume: &VolumeId, passphrase: &Secret) {
        let pipe = OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(self.pipe(volume));
        if let Ok(mut pipe) = pipe {
            let _ = pipe.write_all(passphrase.0.as_bytes());
        }
    }

    /// Sees to it that the export is served from now on, and says how it is.
    pub fn serve(self: &Arc<Self>, served: &Served, describe: Describe) -> Phase {
        let mut kept = self.lock();
        if let Some(k) = kept.get(&served.volume).filter(|k| k.served == *served && !k.task.is_finished()) {
            return k.phase.borrow().clone();
        }
        let (tell, phase) = watch::channel(Phase::Starting);
        let (order, told) = watch::channel(Told::KeepIt);
        let task = tokio::spawn(keep(self.clone(), served.clone(), describe, tell, told));
        kept.insert(served.volume.clone(), Kept { served: served.clone(), phase, tell: order, task });
        Phase::Starting
    }

    /// Ends whatever serves this volume, known or not, and removes its socket. Done when nothing of it is left.
    pub async fn end(&self, volume: &VolumeId) -> Result<(), mallee_engines::Error> {
        let kept = self.lock().remove(volume);
        if let Some(kept) = kept {
            kept.tell.send_replace(Told::EndIt);
            // A task that panicked stopped nothing; what it kept is found below.
            if let Ok(outcome) = kept.task.await {
                outcome?;
            }
        }
        for running in self.running().into_iter().filter(|r| r.served.volume == *volume) {
            process::stop(&self.plan(&running.served, running.command.clone())).await?;
        }
        let _ = fs::remove_file(self.socket(volume));
        let _ = fs::remove_file(self.monitor(volume));
        let _ = fs::remove_file(self.pipe(volume));
        let prefix = format!("{volume}-");
        for dir in [&self.records, &self.logs] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Starts the daemon of an export again that shows an older certificate than there is: it read it when it was started, and
    /// when that one ends nobody comes back to it. Its guest waits a moment for its disk, as when a daemon dies.
    pub fn show_newest_certificate(&self, served: &Served) {
        let written = |path: PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
        let certificate = written(self.credentials.join(SERVER_CERTIFICATE));
        // It is written when a daemon is started.
        let started = written(self.plan(served, Vec::new()).record);
        if matches!(served.place, Place::Unix) || certificate.zip(started).is_none_or(|(c, s)| c <= s) {
            return;
        }
        if let Some(kept) = self.lock().get(&served.volume).filter(|k| k.served == *served) {
            kept.tell.send_replace(Told::Anew);
        }
    }

    /// Ends every daemon on one of our sockets, for a machine that is cleared; how many there were.
    pub async fn end_all(&self) -> Result<usize, mallee_engines::Error> {
        let all = self.running();
        for running in &all {
            self.end(&running.served.volume).await?;
        }
        Ok(all.len())
    }

    /// Gives the volume more bytes while it is served. QEMU's export keeps the size it was made with, so it is made again
    /// under the same name; the guest's QEMU comes back to it. Interrupted in between, the daemon has no export, and this
    /// is done again.
    pub async fn grow(&self, volume: &VolumeId, name: &str, attachment: &str, size: u64) -> Result<(), QmpError> {
        let mut daemon = self.tell(volume).await?;
        daemon.let_merge_end().await?;
        let node = daemon.top_node().await?;
        if daemon.active_node().await.is_ok() {
            daemon.execute("block-export-del", json!({ "id": "volume", "mode": "hard" })).await?;
        }
        while daemon.active_node().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let export = json!({
            "type": "nbd", "id": "volume", "node-name": node, "name": name, "description": attachment, "writable": true,
        });
        // While it is exported QEMU does not let its size change; and whether it changed or not, it is served again.
        let resized = daemon.execute("block_resize", json!({ "node-name": node, "size": size })).await;
        daemon.execute("block-export-add", export).await?;
        resized.map(drop)
    }

    /// The daemon of this very export, if it runs, by the command line it was started with: what it would be started with
    /// now may differ.
    fn find(&self, served: &Served) -> Option<(Plan, process::Process)> {
        let running = self.running().into_iter().find(|r| r.served == *served)?;
        let plan = self.plan(served, running.command);
        let process = process::find(&plan)?;
        Some((plan, process))
    }

    /// Every daemon on one of our sockets, from /proc.
    pub fn running(&self) -> Vec<Running> {
        let pids = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let read = |pid| {
            let (served, command) = daemon::read(&fs::read(format!("/proc/{pid}/cmdline")).ok()?, &self.sockets)?;
            Some(Running { served, command })
        };
        pids.filter_map(read).collect()
    }
}

/// Nobody who could tell is nobody who told: a controller that ends leaves its daemons running.
async fn told_to_stop(told: &mut watch::Receiver<Told>) -> Told {
    while told.changed().await.is_ok() {
        let now = *told.borrow_and_update();
        if now != Told::KeepIt {
            return now;
        }
    }
    std::future::pending().await
}

/// Keeps one daemon running until it is told to end it.
async fn keep(
    exports: Arc<Exports>,
    served: Served,
    describe: Describe,
    tell: watch::Sender<Phase>,
    mut told: watch::Receiver<Told>,
) -> Result<(), mallee_engines::Error> {
    let mut early_deaths: u32 = 0;
    loop {
        let began = Instant::now();
        let found = exports.find(&served);
        let adopted = found.is_some();
        // Asked now, not when the export was made: the volume may have another layer on top since.
        let describe = describe.clone();
        let described = tokio::task::spawn_blocking(move || describe()).await;
        let described = described.map_err(|e| e.to_string()).and_then(|d| d.map_err(|e| e.to_string()));
        let passphrase = described.as_ref().ok().and_then(|opened| opened.passphrase.clone());
        let outcome = match (found, described) {
            (Some((plan, process)), _) => Ok((plan, Ok(process))),
            (None, Err(why)) => Err(why),
            (None, Ok(opened)) => exports.make_pipe(&served.volume, &opened).map(|()| {
                let plan = exports.plan(&served, exports.command(&served, &opened));
                tracing::trace!(target: TARGET, "before start: export daemon");
                let started = process::start(&plan);
                tracing::trace!(target: TARGET, "after start: export daemon");
                (plan, started)
            }),
        };
        let plan = match &outcome {
            Ok((plan, _)) => plan.clone(),
            Err(_) => exports.plan(&served, Vec::new()),
        };
        let changed = &exports.changed;
        let why = match outcome {
            Err(why) => why,
            Ok((_, Err(e))) => e.to_string(),
            Ok((_, Ok(mut process))) => {
                let pid = process.pid();
                tracing::info!(export = plan.name, pid, adopted, "export daemon");
                let becoming_ready = async {
                    while plan.ready.probe(pid).await.is_err() {
                        if let Some(passphrase) = &passphrase {
                            exports.feed(&served.volume, passphrase);
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    tell.send_replace(Phase::Ready { pid });
                    changed.poke();
                    std::future::pending::<()>().await
                };
                let ended = tokio::select! {
                    ended = process.exited() => Ok(ended),
                    () = becoming_ready => Err(Told::KeepIt),
                    order = told_to_stop(&mut told) => Err(order),
                };
                let ended = match ended {
                    Ok(ended) => ended,
                    Err(order) => {
                        tracing::trace!(target: TARGET, "before end: export daemon");
                        let stopped = process.stop(&plan).await;
                        tracing::trace!(target: TARGET, "after end: export daemon");
                        if order == Told::EndIt || stopped.is_err() {
                            return stopped;
                        }
                        // Who asked for the same meanwhile has it; who asked for its end is heard.
                        if *told.borrow_and_update() == Told::EndIt {
                            return stopped;
                        }
                        tracing::info!(export = plan.name, "starting the daemon again, with the newest certificate");
                        tell.send_replace(Phase::Starting);
                        continue;
                    }
                };
                let words = process::last_words(&plan, &process);
                let ended = ended.unwrap_or_else(|e| e.to_string());
                if words.is_empty() { ended } else { format!("{ended}; it last said: {words}") }
            }
        };
        early_deaths = if began.elapsed() >= HEALTHY_LIFE { 0 } else { early_deaths + 1 };
        tracing::error!(export = plan.name, why, "an export daemon ended; starting it again");
        tell.send_replace(Phase::Down(why));
        changed.poke();
        // The first time at once: a guest's disk stands still.
        let pause = if early_deaths <= 1 {
            Duration::ZERO
        } else {
            SLOWEST_RESTART.min(Duration::from_millis(50) * 2u32.saturating_pow(early_deaths.min(16)))
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            order = told_to_stop(&mut told) => if order == Told::EndIt { return Ok(()) },
        }
    }
}
