//! How a tier tells what it is, how it is, and why something is as it is.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Millis, Role};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StatusAsked {}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Done {}

/// Accept lists of this incarnation of the sender's store from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Adopt {
    pub sender: Uuid,
}

/// One running tier.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TierStatus {
    pub role: Role,
    pub zone: String,
    pub name: String,
    pub version: String,
    pub address: String,
    pub pid: u32,
    pub started: Millis,
    pub now: Millis,
    /// Resident memory.
    pub rss_kib: u64,
    /// What a person should look at.
    #[serde(default)]
    pub faults: Vec<Fault>,
}

/// Something that is wrong, since when, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub what: String,
    pub since: Millis,
    #[serde(default)]
    pub remedy: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WhyAsked {
    pub id: String,
}

/// What is known of an id, from the top tier to the bottom one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct WhyAnswer {
    pub lines: Vec<WhyLine>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WhyLine {
    /// Which tier says it: `cloud-controller`, `mallee-1a`, `node n1`.
    pub by: String,
    /// `asked`, `decided`, `observed`, `happened`.
    pub kind: String,
    pub at: Millis,
    pub text: String,
}
