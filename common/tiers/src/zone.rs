//! What a zone is made of: nodes, their capacity, and their place in the cluster-controller's book.

use serde::{Deserialize, Serialize};

use crate::{Millis, TierStatus};

/// What a machine can carry in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_gib: u64,
}

/// A node says where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRegistration {
    pub node: String,
    /// `host:port` of its node-controller.
    pub address: String,
    pub capacity: Capacity,
    /// `kvm`, `tcg`, `xen`, `simulated`: said everywhere.
    pub hypervisor: String,
    pub version: String,
    /// The node's clock, so that an offset can be shown.
    pub now: Millis,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRegistered {
    /// Register again within this time; a lease from receipt.
    pub lease_ms: u64,
    pub now: Millis,
}

/// What an operator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeWish {
    /// It keeps what it runs and is given nothing new.
    Drain,
    /// It is given new instances again.
    Serve,
    /// It leaves for good; refused while anything is on it.
    Remove,
    /// It is gone for good, with what was on it.
    RemoveLost,
    /// One that left may register again.
    Admit,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeAsked {
    pub node: String,
    pub wish: NodeWish,
}

/// A node as `mallee node list` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRow {
    pub node: String,
    pub address: String,
    pub hypervisor: String,
    pub capacity: Capacity,
    pub used: Capacity,
    pub instances: u32,
    /// `up`, `silent`, `draining`.
    pub state: String,
    pub reason: String,
    #[serde(default)]
    pub status: Option<NodeStatus>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ZoneStatus {
    pub tier: TierStatus,
    pub nodes: Vec<NodeRow>,
    /// Instances that are on a node and in no list: never killed, only shown.
    #[serde(default)]
    pub orphans: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    pub tier: TierStatus,
    pub hypervisor: String,
    /// Why that one: the verdict on KVM in words.
    pub hypervisor_reason: String,
    #[serde(default)]
    pub engines: Vec<EngineStatus>,
}

/// A process of its own that a tier relies on: libvirtd, ovs-vswitchd, ….
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineStatus {
    pub name: String,
    pub pid: Option<u32>,
    pub rss_kib: u64,
    pub restarts: u64,
    pub version: String,
}
