//! What the operator's command asks of the cloud's network.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NetworkAsked {
    /// Only this VPC.
    pub vpc: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkTree {
    pub vpcs: Vec<NetworkThing>,
}

/// A part of the network, with what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkThing {
    pub id: String,
    /// In a few words.
    pub text: String,
    /// Ids of other things in the tree.
    #[serde(default)]
    pub leads_to: Vec<String>,
    #[serde(default)]
    pub inside: Vec<NetworkThing>,
}

/// Would this packet arrive?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TraceAsked {
    /// An instance or an interface.
    pub from: String,
    /// An instance, an interface or an address.
    pub to: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// None for `icmp`.
    pub port: Option<u16>,
    /// By IPv6, where `to` is no address that says so.
    #[serde(default)]
    pub ipv6: bool,
}

/// What `ovn-trace` is to be asked, and what its words mean.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracePlan {
    pub switch: String,
    pub packet: String,
    /// By logical port.
    pub ports: BTreeMap<String, String>,
    pub rules: Vec<TraceRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRule {
    /// As it is in OVN's northbound database.
    pub expression: String,
    pub told: String,
}
