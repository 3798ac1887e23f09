//! Flow logs: what a node is to write down of the packets of an interface, and where it brings that.
//!
//! The cloud-controller decides which interfaces are watched and renders whatever of a line and of an object's key is known
//! to it alone; the node fills in what it saw.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

/// An interface whose packets are written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowWatch {
    #[serde(default)]
    pub ipv6: Vec<Ipv6Addr>,
    /// It may send from, and is sent, addresses that are not its own.
    #[serde(default)]
    pub forwards: bool,
    pub logs: Vec<FlowLog>,
}

/// One log it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowLog {
    /// `fl-…`.
    pub id: String,
    pub traffic: FlowTraffic,
    /// How many seconds one record covers at most.
    pub window_s: u64,
    pub place: FlowPlace,
    /// The fields of a line, in order.
    pub fields: Vec<FlowField>,
}

/// Where the objects of a log go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FlowPlace {
    /// The account whose log it is, which need not be the bucket's.
    pub account: String,
    pub bucket: String,
    /// Keys begin with it; the day follows. It ends with a slash.
    pub folder: String,
    /// The names of objects begin with it; the time follows.
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowTraffic {
    Accept,
    Reject,
    All,
    /// Of a later release: nothing that this one could write would be it.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowField {
    /// As the log's format has it: `srcaddr`.
    pub name: String,
    /// What stands there in every line. None: what was seen.
    #[serde(default)]
    pub fixed: Option<String>,
}

/// Why a node could not bring a log where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowLogFailure {
    /// `fl-…`.
    pub log: String,
    pub kind: FlowLogFailureKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowLogFailureKind {
    /// The bucket is gone, or does not let the log in.
    Access,
    /// Anything else.
    #[serde(other)]
    Unknown,
}
