//! What a cloud-controller is told.

use std::net::Ipv4Addr;

use mallee_ovsdb::Remotes;
use serde::{Deserialize, Serialize};

use crate::{Refusal, network::Cidr6};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    #[serde(flatten)]
    pub daemon: mallee_service::config::Daemon,
    /// A name that AWS does not have: SDKs presign with SigV2 in names they know.
    #[serde(default = "default_region")]
    pub region: String,
    /// Zones of the region, in order; each gets a subnet in the default VPC.
    #[serde(default = "default_zones")]
    pub zones: Vec<String>,
    /// Names and addresses users reach the cloud by, for the public certificate and for links.
    #[serde(default)]
    pub public_names: Vec<String>,
    /// The URL of S3 that users are told, such as `http://127.0.0.1:8777`.
    #[serde(default)]
    pub s3_url: String,
    /// SigV2 is on by default: the tools that still speak it are our users.
    #[serde(default = "yes")]
    pub signature_v2: bool,
    #[serde(default)]
    pub network: Network,
    /// Accept bundles whose manifest is not signed (they are shown as such).
    #[serde(default = "yes")]
    pub unsigned_bundles: bool,
    /// Instances of images that do not say `ImdsSupport=v2.0` answer IMDSv1 as well, unless their launch says otherwise.
    #[serde(default)]
    pub imds_v1: bool,
    /// Most instances an account may have.
    #[serde(default = "default_instances")]
    pub max_instances: u64,
    /// Most elastic IPs an account may have.
    #[serde(default = "default_addresses")]
    pub max_addresses: u64,
    /// Most VPCs an account may have, the default one included.
    #[serde(default = "default_vpcs")]
    pub max_vpcs: u64,
}

/// The outside of the cloud's network.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// OVN's northbound database: a socket's path, or `ssl:HOST:PORT` of its servers on other machines, separated by commas.
    /// None: no network is rendered, and guests have none (simulated ones need none).
    pub northbound: Option<Remotes>,
    /// Whom those servers' certificates, which are of the cloud's CA, must be for. None: the host they are reached by.
    pub northbound_name: Option<String>,
    /// OVN's southbound database as other machines reach it, such as `ssl:10.0.0.1:8778`; it is told in join tokens.
    pub southbound: Option<String>,
    /// The network elastic IPs and routers' outer addresses are on.
    pub outside: String,
    /// The next hop of every router on it: the host's end of the link.
    pub gateway: Ipv4Addr,
    /// First and last of the routers' own outer addresses.
    pub routers: (Ipv4Addr, Ipv4Addr),
    /// The elastic IPs.
    pub elastic: String,
    /// VPCs get their IPv6 blocks (a /56 each) from this network. None: there is no IPv6.
    pub ipv6: Option<String>,
    /// The outside network's own IPv6 addresses, a /64: its first is the gateway, its second the cloud's, by which
    /// all of `ipv6` is reached, and each router's ends in its IPv4 address.
    pub outside_ipv6: String,
    /// What OVN's chassis map to the outside bridge (`ovn-bridge-mappings`).
    pub physical: String,
    /// Chassis that carry the routers' outer ports, most wanted first. One machine: its only chassis.
    pub gateway_chassis: Vec<String>,
    /// The resolver instances are told of where DHCP options say AmazonProvidedDNS. None: 169.254.169.253, which is the node's.
    pub dns: Option<Ipv4Addr>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            northbound: None,
            northbound_name: None,
            southbound: None,
            outside: "172.29.0.0/24".into(),
            gateway: Ipv4Addr::new(172, 29, 0, 1),
            routers: (Ipv4Addr::new(172, 29, 0, 10), Ipv4Addr::new(172, 29, 0, 127)),
            elastic: "172.29.0.128/25".into(),
            ipv6: Some("fd6d:616c:6c00::/40".into()),
            outside_ipv6: "fd6d:616c:6e65:74::/64".into(),
            physical: "public".into(),
            gateway_chassis: Vec::new(),
            dns: None,
        }
    }
}

impl Network {
    pub fn ipv6_pool(&self) -> Result<Option<Cidr6>, Refusal> {
        let read = |text: &String| {
            text.parse().map_err(|()| Refusal::internal(format!("network.ipv6 = {text:?} is no IPv6 network")))
        };
        self.ipv6.as_ref().map(read).transpose()
    }
}

impl Config {
    /// Where instances reach S3. None: it is told as a name, or as an address only this machine has.
    pub fn s3_address(&self) -> Option<Ipv4Addr> {
        let authority = self.s3_url.split_once("://")?.1.split('/').next()?;
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        host.parse::<Ipv4Addr>().ok().filter(|address| !address.is_loopback() && !address.is_unspecified())
    }
}

fn default_region() -> String {
    "mallee-1".into()
}
fn default_zones() -> Vec<String> {
    vec!["mallee-1a".into()]
}
fn default_instances() -> u64 {
    1000
}
fn default_addresses() -> u64 {
    50
}
fn default_vpcs() -> u64 {
    50
}
fn yes() -> bool {
    true
}
