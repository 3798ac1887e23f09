//! What a cluster-controller is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::placement::Policy;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    pub daemon: mallee_service::config::Daemon,
    /// `spread` over the nodes by free memory, or `pack` as few nodes as will do.
    #[serde(default)]
    pub placement: Policy,
    /// Virtual CPUs given out per CPU of a node. Memory and disk are never given out twice.
    #[serde(default = "default_vcpu_factor")]
    pub vcpu_factor: u32,
    /// A node that is not heard of for this time is silent.
    #[serde(default = "default_lease_ms")]
    pub lease_ms: u64,
}

impl Config {
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
}

fn default_vcpu_factor() -> u32 {
    4
}
fn default_lease_ms() -> u64 {
    15_000
}
