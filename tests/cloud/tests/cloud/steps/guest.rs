//! A guest's disk without a guest: `qemu-io` on a volume's export, which waits for one that went away, as QEMU does.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mallee_tests_cloud::{Cloud, Tier, eventually};

const SLOT: u64 = 4 << 10;
const SLOTS: u64 = (1 << 30) / SLOT;

/// A daemon that serves a volume.
pub struct Export {
    pub volume: String,
    pub pid: i32,
    name: String,
    socket: PathBuf,
}

/// All that is served in the zone.
pub fn exports(cloud: &Cloud) -> Vec<Export> {
    let sockets = cloud.state_of(Tier::Storage(0)).join("sockets");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if !line.starts_with("qemu-storage-daemon") || !line.contains(&*sockets.to_string_lossy()) {
            continue;
        }
        let Some((before, _)) = line.split_once(".qmp") else { continue };
        let volume = before.rsplit('/').next().unwrap().to_owned();
        let name = line.split("\"name\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        let socket = sockets.join(format!("{volume}.sock"));
        found.push(Export { volume, pid, name, socket });
    }
    found
}

/// The volumes that are served, each as often as it is.
pub fn served(cloud: &Cloud) -> Vec<String> {
    let mut volumes: Vec<String> = exports(cloud).into_iter().map(|e| e.volume).collect();
    volumes.sort();
    volumes
}

pub fn kill_exports(cloud: &Cloud) {
    for export in exports(cloud) {
        // It may have ended by itself just now.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(export.pid), nix::sys::signal::Signal::SIGKILL);
    }
}

pub async fn export_of(cloud: &Cloud, volume: &str) -> Export {
    eventually(&format!("{volume} is served"), || async { exports(cloud).into_iter().find(|e| e.volume == volume) })
        .await
}

fn image(export: &Export) -> String {
    format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export={},file.reconnect-delay=60,file.open-timeout=30",
        export.socket.display(),
        export.name
    )
}

/// Runs commands of `qemu-io` on a volume, until they can be: its daemon may be on its way back.
pub async fn io(cloud: &Cloud, volume: &str, commands: &[String]) {
    eventually(&format!("{commands:?} on {volume}"), || async {
        let export = export_of(cloud, volume).await;
        let mut command = tokio::process::Command::new("qemu-io");
        command.args(["--image-opts", &image(&export)]).kill_on_drop(true);
        for one in commands {
            command.args(["-c", one]);
        }
        let out = tokio::time::timeout(Duration::from_secs(40), command.output()).await.ok()?.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!text.contains("verification failed"), "{volume}: {text}");
        (out.status.success() && !text.contains("failed")).then_some(())
    })
    .await;
}

/// Writes its slots one after the other, each synced, and counts those that were acknowledged.
pub struct Writer {
    acknowledged: Arc<AtomicU64>,
    child: Child,
}

impl Writer {
    pub fn on(export: &Export) -> Self {
        let mut child = Command::new("qemu-io")
            .args(["--image-opts", &image(export)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let acknowledged = Arc::new(AtomicU64::new(0));
        let counter = acknowledged.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(from).lines();
            for slot in 0..SLOTS {
                let command = format!("write -f -P {} {} {SLOT}\n", fill(slot), slot * SLOT);
                if to.write_all(command.as_bytes()).is_err() {
                    return;
                }
                loop {
                    match lines.next() {
                        Some(Ok(line)) if line.contains("wrote") => break,
                        Some(Ok(line)) if line.contains("failed") => return,
                        Some(Ok(_)) => {}
                        _ => return,
                    }
                }
                counter.store(slot + 1, Ordering::SeqCst);
                // What an hour of this writes must not be much to snapshot.
                std::thread::sleep(Duration::from_millis(60));
            }
        });
        Self { acknowledged, child }
    }

    pub fn count(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub async fn goes_on(&self) {
        let seen = self.count();
        eventually("the guest goes on writing", || async { (self.count() > seen + 3).then_some(()) }).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fill(slot: u64) -> u8 {
    (slot % 251 + 1) as u8
}

/// How many slots of a volume hold what a writer wrote, from the first: none may be there behind one that is not.
pub async fn whole_slots(cloud: &Cloud, volume: &str) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy");
    eventually(&format!("{volume} is copied"), || async {
        let export = export_of(cloud, volume).await;
        let mut command = tokio::process::Command::new("qemu-img");
        command.args(["convert", "--image-opts", "-O", "raw", &image(&export)]).arg(&path).kill_on_drop(true);
        let out = tokio::time::timeout(Duration::from_secs(60), command.output()).await.ok()?.unwrap();
        out.status.success().then_some(())
    })
    .await;
    count_slots(&path)
}

fn count_slots(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let mut slot = vec![0u8; SLOT as usize];
    let mut whole = 0;
    for n in 0..SLOTS {
        file.read_exact_at(&mut slot, n * SLOT).unwrap();
        if slot.iter().all(|b| *b == fill(n)) {
            assert_eq!(whole, n, "slot {n} is written, one before it is not");
            whole += 1;
        } else {
            // The one that was being written may be there in part.
            let strange: BTreeSet<u8> = slot.iter().copied().filter(|b| *b != 0 && *b != fill(n)).collect();
            assert!(strange.is_empty(), "slot {n} holds {strange:?}");
            // Far behind the last nothing was ever written.
            if n > whole + 64 {
                break;
            }
        }
    }
    whole
}
