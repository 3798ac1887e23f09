//! The node's place in the cloud: where other tiers are, and the lease it keeps at its cluster-controller.

use std::{path::Path, sync::Arc, time::Duration};

use mallee_service::{Clock, Faults, Identity, TierHttp};
use mallee_tiers::{Capacity, CloudClient, ClusterClient, Locate, NodeRegistration, Role, TierError};

use crate::config::Place;

/// How a node finds other tiers.
pub struct Cloud {
    pub identity: Identity,
    pub controller: TierHttp,
    pub zone: String,
    /// Written down in the configuration, so not asked for.
    pub walrus: Option<Place>,
    pub cluster: Option<Place>,
}

impl Cloud {
    /// A client of the walrus, or of this zone's cluster-controller, at the place it has now.
    pub async fn find(&self, role: Role) -> Result<TierHttp, TierError> {
        let (known, zone) = match role {
            Role::ClusterController => (&self.cluster, self.zone.clone()),
            Role::Walrus => (&self.walrus, String::new()),
            other => return Err(TierError::internal(format!("a node has no business with a {other}"))),
        };
        if let Some(place) = known {
            return TierHttp::new(&self.identity, &place.address, role, &place.name);
        }
        let found = CloudClient::new(Arc::new(self.controller.clone())).locate(&Locate { role, zone }).await?;
        TierHttp::new(&self.identity, &found.address, role, &found.name)
    }
}

/// What the registration says besides the node's place.
pub struct Standing {
    pub node: String,
    pub address: String,
    pub capacity: Capacity,
    pub hypervisor: String,
    pub clock: Clock,
    pub faults: Faults,
}

/// An offset of the two clocks that is shown.
const OFFSET_SHOWN_MS: i64 = 5_000;
const FAULT: &str = "cluster-controller";

/// Keeps the node registered for as long as the runtime lives: again after a third of the lease.
pub fn keep_registered(cloud: Arc<Cloud>, standing: Standing) {
    tokio::spawn(async move {
        let mut place: Option<TierHttp> = None;
        let mut pause = Duration::from_millis(100);
        loop {
            match register(&cloud, &standing, &mut place).await {
                Ok(lease) => {
                    standing.faults.clear(FAULT);
                    pause = Duration::from_millis(100);
                    tokio::time::sleep((lease / 3).clamp(Duration::from_millis(100), Duration::from_secs(60))).await;
                }
                Err(e) => {
                    // It may have moved.
                    place = None;
                    // Tiers come up in any order: what lasts is a fault, what passes is not.
                    if pause >= Duration::from_secs(1) {
                        let what =
                            format!("this node cannot register at the cluster-controller of {}: {e}", cloud.zone);
                        standing.faults.raise(
                            FAULT,
                            what,
                            "is that cluster-controller up and registered? (`mallee status`)",
                        );
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    });
}

async fn register(cloud: &Cloud, standing: &Standing, place: &mut Option<TierHttp>) -> Result<Duration, TierError> {
    let cluster = match place {
        Some(cluster) => cluster.clone(),
        None => place.insert(cloud.find(Role::ClusterController).await?).clone(),
    };
    let registration = NodeRegistration {
        node: standing.node.clone(),
        address: standing.address.clone(),
        capacity: standing.capacity,
        hypervisor: standing.hypervisor.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        now: standing.clock.now_ms(),
    };
    let answer = ClusterClient::new(Arc::new(cluster)).register_node(&registration).await?;
    let offset = (answer.now - standing.clock.now_ms()).abs();
    if offset > OFFSET_SHOWN_MS {
        let what = format!("this node's clock and the cluster-controller's differ by {} s", offset / 1000);
        standing.faults.raise("clock", what, "let both keep time by NTP");
    } else {
        standing.faults.clear("clock");
    }
    Ok(Duration::from_millis(answer.lease_ms))
}

/// What this machine can carry in all: every core, the memory but a reserve, and the disk space that is free or is taken by
/// instances and images already, so that it says the same after a restart.
pub fn capacity(instances: &Path, images: &Path, reserve_mib: u64) -> Capacity {
    let memory_mib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_mib(&text)).unwrap_or(0);
    let free = nix::sys::statvfs::statvfs(instances).map_or(0, |s| s.blocks_available() * s.fragment_size());
    let vcpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let disk_gib = (free + allocated(instances) + allocated(images)) >> 30;
    Capacity { vcpus, memory_mib: memory_mib.saturating_sub(reserve_mib), disk_gib }
}

/// Bytes that the files in a folder, and in its folders, take on the disk.
fn allocated(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => allocated(&entry.path()),
            Ok(m) => m.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mebibytes() {
        assert_eq!(total_mib("MemTotal:       24689772 kB\nMemFree: 1 kB\n"), Some(24111));
        assert_eq!(total_mib("nonsense"), None);
    }
}
