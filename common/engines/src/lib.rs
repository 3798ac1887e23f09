//! The engines of a machine: the daemons of others that Mallee stands on (Open vSwitch, OVN, libvirt), how they are
//! started, found again, watched and stopped.
//!
//! Who owns what: an engine is a process of its own, in its own session. It outlives every tier and the supervisor that
//! started it; guests and their packets depend on engines only. Everything an engine keeps is under one base directory
//! ([`Layout`]), so a system's own Open vSwitch, libvirt or Docker is never touched.
//!
//! - [`EnginesConfig`] says what this machine has; [`Engines`] brings it up and takes it down.
//! - [`Plan`] is one daemon: pure data, also good for the tiers themselves. [`Supervisor`] keeps a list of plans running
//!   and restarts at once what dies; [`process`] finds and stops processes without ever touching a recycled pid.
//! - [`Netns`] is the network namespace things live in, [`ovs`] what is written into the local switch's database.
//! - [`kvm`] finds out by trial whether KVM works.

mod config;
mod engines;
mod error;
mod ip;
pub mod kvm;
mod layout;
mod libvirt;
mod made;
mod netns;
pub mod network;
pub mod ovn;
pub mod ovs;
mod plan;
pub mod process;
mod ready;
mod supervisor;

pub use config::{CentralConfig, Datapath, EnginesConfig, NamespaceConfig, NodeConfig, TunnelConfig};
pub use engines::{Engines, Remains};
pub use error::{Error, Result};
pub use ip::{ethtool_offloads_off, ip, ip_json};
pub use layout::Layout;
pub use netns::Netns;
pub use plan::{Mount, Plan, Ready, Stop};
pub use supervisor::{Phase, Status, Supervisor, status};
