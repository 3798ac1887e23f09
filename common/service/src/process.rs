//! What this process is.

use mallee_tiers::{Peer, TierStatus};

use crate::{Clock, Faults};

/// Resident memory of a process in KiB, from /proc; 0 when it is gone.
pub fn rss_kib(pid: u32) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(|s| {
            let line = s.lines().find(|l| l.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .unwrap_or(0)
}

/// Answers `status` for any tier.
#[derive(Clone)]
pub struct About {
    pub peer: Peer,
    pub version: &'static str,
    pub address: String,
    pub started: i64,
    pub clock: Clock,
    pub faults: Faults,
}

impl About {
    pub fn new(peer: Peer, version: &'static str, address: String, clock: Clock, faults: Faults) -> Self {
        Self { peer, version, address, started: clock.now_ms(), clock, faults }
    }

    pub fn status(&self) -> TierStatus {
        TierStatus {
            role: self.peer.role,
            zone: self.peer.zone.clone(),
            name: self.peer.name.clone(),
            version: self.version.into(),
            address: self.address.clone(),
            pid: std::process::id(),
            started: self.started,
            now: self.clock.now_ms(),
            rss_kib: rss_kib(std::process::id()),
            faults: self.faults.all(),
        }
    }
}

/// Completes when the process is asked to end (SIGTERM or SIGINT).
pub async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}
