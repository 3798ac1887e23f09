//! What the operator may choose about the engines of a machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kvm::KvmChoice;
use crate::netns::Netns;
use crate::network::Ipv4Net;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnginesConfig {
    /// Sockets, databases, logs and pid records. Keep it short: a unix socket's path has at most 107 bytes.
    pub base: PathBuf,
    /// The network namespace of everything here. `None` is this machine's own (machines that do nothing else).
    #[serde(default)]
    pub namespace: Option<NamespaceConfig>,
    /// The name of a namespace without a link to the host, on a machine whose guests reach the outside over another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enclosed: Option<String>,
    /// OVN's databases and northd, beside the cloud-controller.
    #[serde(default)]
    pub central: Option<CentralConfig>,
    /// The local switch, ovn-controller and libvirt, on every machine that runs instances.
    #[serde(default)]
    pub node: Option<NodeConfig>,
}

/// One machine: a namespace, and one veth pair that joins it to the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamespaceConfig {
    pub name: String,
    /// The host's end.
    pub host_link: String,
    /// The namespace's end, a port of the bridge to the outside; it has no address.
    pub inner_link: String,
    /// The host's address on the link, which is the default route of every VPC.
    pub host_address: Ipv4Addr,
    pub prefix_length: u8,
    /// Elastic IPs; inside the link's network.
    pub pool: Ipv4Net,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CentralConfig {
    /// Where other machines reach the southbound database, over TLS and with no more rights than ovn-controller needs. `None`:
    /// it is there for this machine only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub southbound: Option<SocketAddr>,
    /// The folder of the certificate shown there (`cert.pem`, `key.pem`, `ca.pem`). It may come after the daemon has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The chassis' name in OVN.
    pub system_id: String,
    /// Where tunnels to this machine end. One machine never tunnels: 127.0.0.1. [`TunnelConfig`] wins.
    #[serde(default = "loopback")]
    pub encap_address: IpAddr,
    /// How packets reach other machines from inside the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelConfig>,
    /// The folder of the certificate shown to a southbound database that is reached over TLS; its common name must be
    /// `system_id`. It may come after ovn-controller has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<PathBuf>,
    /// OVN's southbound database; `None` is the one of this machine's own [`CentralConfig`].
    #[serde(default)]
    pub southbound: Option<String>,
    /// The link to the outside that becomes a port of `br-ext`; `None` is the namespace's inner link, if there is one.
    #[serde(default)]
    pub uplink: Option<String>,
    /// `None` finds out: the kernel's where the openvswitch module is, the userspace one where not.
    #[serde(default)]
    pub datapath: Option<Datapath>,
    #[serde(default)]
    pub kvm: KvmChoice,
}

/// An address of this machine that is the tunnels' alone: on a macvlan link beside the machine's own address, so that nothing
/// of the machine is touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelConfig {
    /// The machine's link to the others.
    pub parent: String,
    pub address: Ipv4Addr,
    pub prefix_length: u8,
    /// To machines that are not on the parent's network.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// The kernel's openvswitch module.
    System,
    /// vswitchd forwards by itself.
    Netdev,
}

fn loopback() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

impl Default for NamespaceConfig {
    fn default() -> NamespaceConfig {
        NamespaceConfig {
            name: "mallee".to_owned(),
            host_link: "mallee0".to_owned(),
            inner_link: "ext0".to_owned(),
            host_address: Ipv4Addr::new(172, 29, 0, 1),
            prefix_length: 24,
            pool: Ipv4Net::new(Ipv4Addr::new(172, 29, 0, 128), 25),
        }
    }
}

impl NamespaceConfig {
    pub fn network(&self) -> Ipv4Net {
        Ipv4Net::new(self.host_address, self.prefix_length)
    }
}

impl NodeConfig {
    pub fn new(system_id: &str) -> NodeConfig {
        NodeConfig {
            system_id: system_id.to_owned(),
            encap_address: loopback(),
            tunnel: None,
            tls: None,
            southbound: None,
            uplink: None,
            datapath: None,
            kvm: KvmChoice::default(),
        }
    }
}

impl Datapath {
    /// The `datapath_type` of a bridge.
    pub fn as_str(self) -> &'static str {
        match self {
            Datapath::System => "system",
            Datapath::Netdev => "netdev",
        }
    }
}

impl EnginesConfig {
    /// The shape of one machine: everything in one namespace.
    pub fn one_machine(base: impl Into<PathBuf>, system_id: &str) -> EnginesConfig {
        EnginesConfig {
            base: base.into(),
            namespace: Some(NamespaceConfig::default()),
            enclosed: None,
            central: Some(CentralConfig::default()),
            node: Some(NodeConfig::new(system_id)),
        }
    }

    /// The network namespace of the switch and of guests.
    pub fn netns(&self) -> Netns {
        let name = self.namespace.as_ref().map(|namespace| &namespace.name).or(self.enclosed.as_ref());
        name.map_or(Netns::Machine, |name| Netns::Named(name.clone()))
    }

    /// Checks what can be checked without looking at the machine.
    pub fn check(&self) -> Result<()> {
        if let Netns::Named(name) = self.netns()
            && (name.is_empty() || name.contains(['/', ' ', '.']))
        {
            return Err(Error::Config(format!("{name:?} is no name for a network namespace")));
        }
        let Some(namespace) = &self.namespace else {
            return self.check_node();
        };
        for link in [&namespace.host_link, &namespace.inner_link] {
            if link.is_empty() || link.len() > 15 || link.contains(['/', ' ']) {
                return Err(Error::Config(format!(
                    "{link:?} is no name for a link: 1 to 15 characters, no / and no blank"
                )));
            }
        }
        if !(1..=30).contains(&namespace.prefix_length) {
            return Err(Error::Config(format!("/{} leaves no room on the link", namespace.prefix_length)));
        }
        if !namespace.network().contains(&namespace.pool) {
            return Err(Error::Config(format!(
                "the pool of elastic IPs {} is not inside the link's network {}",
                namespace.pool,
                namespace.network()
            )));
        }
        self.check_node()
    }

    fn check_node(&self) -> Result<()> {
        if let Some(central) = &self.central
            && central.southbound.is_some() != central.tls.is_some()
        {
            return Err(Error::Config(
                "the southbound database serves other machines with a certificate only".to_owned(),
            ));
        }
        if let Some(node) = &self.node
            && node.southbound.as_ref().is_some_and(|remote| remote.starts_with("ssl:"))
            && node.tls.is_none()
        {
            return Err(Error::Config(
                "a southbound database over TLS is shown a certificate: say where it is".to_owned(),
            ));
        }
        if let Some(tunnel) = self.node.as_ref().and_then(|node| node.tunnel.as_ref())
            && (self.netns() == Netns::Machine || !(1..=31).contains(&tunnel.prefix_length))
        {
            return Err(Error::Config(
                "a tunnel link is for engines in a namespace, with a prefix of 1 to 31".to_owned(),
            ));
        }
        match &self.node {
            Some(node) if node.southbound.is_none() && self.central.is_none() => {
                Err(Error::Config("this node has no OVN: give the address of the southbound database".to_owned()))
            }
            _ => Ok(()),
        }
    }
}
