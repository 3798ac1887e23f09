//! What a node-controller is told.

use std::path::PathBuf;

use mallee_engines::EnginesConfig;
use mallee_service::config::Daemon;
use mallee_tiers::Capacity;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    pub daemon: Daemon,
    /// `libvirt`, or `simulated`: machines that exist in memory only, and say so everywhere.
    #[serde(default)]
    pub hypervisor: HypervisorChoice,
    /// The engines of this machine, as their supervisor has them: where libvirt listens, whether KVM works, the network
    /// namespace and the integration bridge follow from it.
    #[serde(default)]
    pub engines: Option<EnginesConfig>,
    /// A libvirt that is not one of Mallee's engines; wins over what follows from `engines`.
    #[serde(default)]
    pub libvirt_uri: Option<String>,
    /// `kvm` or `tcg`, whatever the engines found out.
    #[serde(default)]
    pub accelerator: Option<AcceleratorChoice>,
    /// The bridge taps become ports of. Open vSwitch's, with OVN behind it.
    #[serde(default = "integration_bridge")]
    pub bridge: String,
    /// What this machine can carry, instead of what /proc and the file system say.
    #[serde(default)]
    pub capacity: Option<Capacity>,
    /// Memory kept for the machine itself.
    #[serde(default = "reserve")]
    pub reserve_mib: u64,
    /// Where walrus is; asked of the cloud-controller when it is not said.
    #[serde(default)]
    pub walrus: Option<Place>,
    /// Where the cluster-controller of this zone is; asked of the cloud-controller when it is not said.
    #[serde(default)]
    pub cluster: Option<Place>,
    /// Instances and images are kept here; `STATE/instances` and `STATE/images` when it is not said.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// How long a guest may take to power off (or to begin a reboot) before it is made to.
    #[serde(default = "patience")]
    pub patience_s: u64,
    /// Unused images go when less than this is free.
    #[serde(default = "floor")]
    pub disk_floor_gib: u64,
    /// Flow logs of this node are written at least this often, whatever interval was asked for them.
    #[serde(default)]
    pub flow_log_window_s: Option<u64>,
    #[serde(default)]
    pub simulated: crate::hypervisor::SimulatedConfig,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorChoice {
    #[default]
    Libvirt,
    Simulated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    Kvm,
    Tcg,
}

/// Another tier, when its place is written down instead of asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// `host:port`.
    pub address: String,
    pub name: String,
}

fn integration_bridge() -> String {
    "br-int".into()
}
fn reserve() -> u64 {
    1536
}
fn patience() -> u64 {
    60
}
fn floor() -> u64 {
    2
}

impl Config {
    /// A node like most.
    pub fn new(daemon: Daemon, hypervisor: HypervisorChoice, engines: Option<EnginesConfig>) -> Self {
        Self {
            daemon,
            hypervisor,
            engines,
            libvirt_uri: None,
            accelerator: None,
            bridge: integration_bridge(),
            capacity: None,
            reserve_mib: reserve(),
            walrus: None,
            cluster: None,
            data: None,
            patience_s: patience(),
            disk_floor_gib: floor(),
            flow_log_window_s: None,
            simulated: crate::hypervisor::SimulatedConfig::default(),
        }
    }

    pub fn instances_dir(&self) -> PathBuf {
        self.data.as_ref().unwrap_or(&self.daemon.state).join("instances")
    }
    pub fn images_dir(&self) -> PathBuf {
        self.data.as_ref().unwrap_or(&self.daemon.state).join("images")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_needs_few_words() {
        let config: Config = toml::from_str(
            "name = 'n1'\nzone = 'mallee-1a'\nstate = '/var/lib/mallee/node'\nlisten = ['127.0.0.1:8775']\ncloud_controller = '127.0.0.1:8773'\n\
             [engines]\nbase = '/run/mallee'\n[engines.central]\n[engines.node]\nsystem_id = 'n1'\n",
        )
        .unwrap();
        assert_eq!(config.hypervisor, HypervisorChoice::Libvirt);
        assert_eq!(config.bridge, "br-int");
        assert_eq!(config.instances_dir(), PathBuf::from("/var/lib/mallee/node/instances"));
        let same = Config::new(config.daemon.clone(), HypervisorChoice::Libvirt, config.engines.clone());
        let text = toml::to_string(&same).unwrap();
        assert_eq!(toml::to_string(&config).unwrap(), text);
        assert_eq!(
            toml::to_string(&toml::from_str::<Config>(&text).unwrap()).unwrap(),
            text,
            "what is written can be read"
        );
    }
}
