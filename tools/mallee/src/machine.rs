//! What was chosen for this machine: written by `mallee up` and `mallee join`, read by everything else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use mallee_engines::{EnginesConfig, NamespaceConfig};
use mallee_tiers::Role;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::internet::Internet;
use crate::state::State;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tier {
    pub role: Role,
    /// Empty for tiers of the whole cloud.
    pub zone: String,
    /// As its certificate says.
    pub name: String,
    /// The first is what the other tiers are told.
    pub listen: Vec<SocketAddr>,
}

/// What the supervisor keeps running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// Engines and tiers.
    Everything,
    /// After `mallee down` with guests running: what their disks and packets need.
    Engines,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Empty on a machine that joined.
    pub region: String,
    pub zones: Vec<String>,
    /// This machine's name among the nodes.
    pub node: String,
    /// `host:port` of the cloud-controller.
    pub cloud_controller: String,
    /// Where the tiers' programs are.
    pub programs: PathBuf,
    #[serde(default)]
    pub engines: Option<EnginesConfig>,
    /// Guests reach beyond this machine; and what the host was like before.
    #[serde(default)]
    pub internet: Option<Internet>,
    pub tiers: Vec<Tier>,
    pub wanted: Wanted,
}

impl Machine {
    /// `None` when there is no cloud in this state directory.
    pub fn load(state: &State) -> Result<Option<Machine>> {
        let path = state.machine();
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::refused(format!("{} is unreadable: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("reading", path)(error)),
        }
    }

    /// Refuses when there is none.
    pub fn expect(state: &State) -> Result<Machine> {
        Machine::load(state)?.ok_or_else(|| {
            Error::refused(format!(
                "there is no cloud in {}: `mallee up` makes one (--state or MALLEE_STATE says where)",
                state.root().display()
            ))
        })
    }

    pub fn save(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::refused(error.to_string()))?;
        Ok(mallee_service::pki::write_secret(&state.machine(), &text)?)
    }

    pub fn tier(&self, role: Role) -> Option<&Tier> {
        self.tiers.iter().find(|tier| tier.role == role)
    }

    /// The link that joins the cloud's network to this machine.
    pub fn link(&self) -> Option<&NamespaceConfig> {
        self.engines.as_ref().and_then(|engines| engines.namespace.as_ref())
    }

    /// The URL users on this machine reach EC2 (or S3) by.
    pub fn url(&self, role: Role) -> Result<String> {
        let listen = self.tier(role).and_then(|tier| tier.listen.first());
        listen.map(|address| format!("http://{address}")).ok_or_else(|| {
            Error::refused(format!("no {role} runs on this machine: use the one where `mallee up` was run"))
        })
    }
}

/// Addresses of the cloud's routers and where they end, beside the elastic IPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    pub network: String,
    pub gateway: Ipv4Addr,
    pub routers: (Ipv4Addr, Ipv4Addr),
    pub elastic: String,
}

impl Outside {
    /// The routers get the larger part of the link's network that is left beside the pool and the host's own address.
    pub fn of(link: &NamespaceConfig) -> Result<Outside> {
        let network = link.network();
        let (first, last) = (u32::from(network.first()) + 1, u32::from(network.last()) - 1);
        let (pool_first, pool_last) = (u32::from(link.pool.first()), u32::from(link.pool.last()));
        let host = u32::from(link.host_address);
        if (pool_first..=pool_last).contains(&host) {
            return Err(Error::refused(format!(
                "the host's own address {} is inside the pool of elastic IPs {}",
                link.host_address, link.pool
            )));
        }
        let mut free = vec![(first, pool_first.saturating_sub(1)), (pool_last.saturating_add(1), last)];
        free = free
            .into_iter()
            .flat_map(|(from, to)| match (from..=to).contains(&host) {
                true => vec![(from, host - 1), (host + 1, to)],
                false => vec![(from, to)],
            })
            .filter(|(from, to)| from <= to)
            .collect();
        let largest = free.into_iter().max_by_key(|(from, to)| to - from).ok_or_else(|| {
            Error::refused(format!("the pool {} fills the network {network}: nothing is left for routers", link.pool))
        })?;
        Ok(Outside {
            network: network.to_string(),
            gateway: link.host_address,
            routers: (Ipv4Addr::from(largest.0), Ipv4Addr::from(largest.1)),
            elastic: link.pool.to_string(),
        })
    }
}

/// A machine's name as certificates can carry it.
pub fn node_name(hostname: &str) -> String {
    let name: String = hostname
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(48)
        .collect();
    let name = name.trim_matches('-').to_owned();
    if name.is_empty() { "node".to_owned() } else { name }
}

/// Where one tier serves: loopback, and beyond it the addresses users come by.
pub fn listen(port: u16, beyond: &[IpAddr]) -> Vec<SocketAddr> {
    let mut addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
    addresses.extend(beyond.iter().map(|address| SocketAddr::new(*address, port)));
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_and_elastic_ips_share_the_link_without_meeting() {
        let cases = [
            ("172.29.0.1", 24, "172.29.0.128/25", Some(("172.29.0.2", "172.29.0.127"))),
            ("172.29.0.1", 24, "172.29.0.0/25", None),
            ("172.29.0.254", 24, "172.29.0.0/25", Some(("172.29.0.128", "172.29.0.253"))),
            ("10.0.0.1", 29, "10.0.0.4/30", Some(("10.0.0.2", "10.0.0.3"))),
        ];
        for (host, prefix_length, pool, routers) in cases {
            let link = NamespaceConfig {
                host_address: host.parse().unwrap(),
                prefix_length,
                pool: pool.parse().unwrap(),
                ..NamespaceConfig::default()
            };
            let found = Outside::of(&link).ok().map(|outside| outside.routers);
            let expected = routers.map(|(a, b): (&str, &str)| (a.parse().unwrap(), b.parse().unwrap()));
            assert_eq!(found, expected, "{host}/{prefix_length} {pool}");
        }
    }

    #[test]
    fn any_hostname_becomes_a_name_that_a_certificate_can_carry() {
        assert_eq!(node_name("Rack_7.example.org"), "rack-7");
        assert_eq!(node_name("..."), "node");
    }
}
