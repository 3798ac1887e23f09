//! The real binary, started, killed and started again.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use crate::client::{S3, config};

pub struct Server {
    process: Option<Child>,
    dir: PathBuf,
    pub s3: S3,
}

impl Server {
    pub async fn start(dir: &Path, state: &Path, lines: &str) -> Self {
        let mut server = Self::new(dir, state, lines);
        server.start_again().await;
        server
    }

    /// Over `state`, with lines for its configuration; its own files are in `dir`. Not started.
    pub fn new(dir: &Path, state: &Path, lines: &str) -> Self {
        // A loopback address of its own: the port stays free while the server is down.
        static COUNT: AtomicU8 = AtomicU8::new(1);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = format!("127.{}.{low}.{}:9000", 64 + high % 128, COUNT.fetch_add(1, Ordering::Relaxed));
        std::fs::write(dir.join("walrus.toml"), format!("{lines}\n{}", config(state, &address))).unwrap();
        Self { process: None, dir: dir.into(), s3: S3::new(address.parse().unwrap()) }
    }

    /// Started; it may not be up yet.
    pub fn launch(&mut self) {
        self.kill();
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        // `MALLEE_BIN`: another build, in this folder.
        let other = std::env::var_os("MALLEE_BIN").map(|folder| PathBuf::from(folder).join("walrus"));
        let process = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_walrus").into()))
            .arg("--config")
            .arg(self.dir.join("walrus.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub async fn start_again(&mut self) {
        self.launch();
        // Without the connections to the one that is gone.
        self.s3 = S3::new(self.s3.address);
        for _ in 0..1200 {
            if tokio::net::TcpStream::connect(self.s3.address).await.is_ok() {
                return;
            }
            let ended = self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_some());
            assert!(!ended, "walrus ended:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("walrus did not come up:\n{}", self.log());
    }

    /// With -9; returns when it is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// The last it said.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("walrus said last:\n{}", self.log());
        }
    }
}

/// Random numbers for a test; `MALLEE_SEED` repeats a run.
pub fn seed() -> u64 {
    let seed = std::env::var("MALLEE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("MALLEE_SEED={seed}");
    seed
}

/// How many rounds: a few, or as many as a soak wants.
pub fn rounds(few: usize, soak: usize) -> usize {
    if std::env::var_os("MALLEE_SOAK").is_some() { soak } else { few }
}
