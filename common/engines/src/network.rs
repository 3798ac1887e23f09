//! The namespace of one machine and the veth pair that joins it to the host.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::NamespaceConfig;
use crate::error::{Error, Result};
use crate::ip::{ethtool_offloads_off, ip, ip_json, link_exists, run};
use crate::layout::Layout;
use crate::made::Made;
use crate::netns::Netns;

/// An IPv4 network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    first: u32,
    length: u8,
}

impl Ipv4Net {
    /// The network of `length` (at most 32) that `address` is in.
    pub fn new(address: Ipv4Addr, length: u8) -> Ipv4Net {
        let length = length.min(32);
        Ipv4Net { first: u32::from(address) & Ipv4Net::mask(length), length }
    }

    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first)
    }

    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.first | !Ipv4Net::mask(self.length))
    }

    pub fn prefix_length(&self) -> u8 {
        self.length
    }

    pub fn contains(&self, other: &Ipv4Net) -> bool {
        self.length <= other.length && other.first & Ipv4Net::mask(self.length) == self.first
    }

    pub fn overlaps(&self, other: &Ipv4Net) -> bool {
        self.contains(other) || other.contains(self)
    }

    fn mask(length: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.length)
    }
}

impl FromStr for Ipv4Net {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Ipv4Net, String> {
        let malformed = || format!("{text} is not an IPv4 network such as 172.29.0.128/25");
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let address = address.parse().map_err(|_| malformed())?;
        let length = length.parse().map_err(|_| malformed())?;
        if length > 32 {
            return Err(malformed());
        }
        Ok(Ipv4Net::new(address, length))
    }
}

impl TryFrom<String> for Ipv4Net {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Ipv4Net, String> {
        text.parse()
    }
}

impl From<Ipv4Net> for String {
    fn from(network: Ipv4Net) -> String {
        network.to_string()
    }
}

/// The route of the host that the link's network would hide or be hidden by. `routes` is what `ip -j -4 route show table all`
/// says. A default route (also one in two halves, as VPN clients set it) hides nothing.
pub fn collision(wanted: Ipv4Net, own_link: &str, routes: &[Value]) -> Option<String> {
    routes
        .iter()
        .filter(|route| route["dev"] != own_link)
        .filter_map(|route| Some((route, route["dst"].as_str()?.parse::<Ipv4Net>().ok()?)))
        .find(|(_, network)| network.length > 1 && network.overlaps(&wanted))
        .map(|(route, network)| match route["dev"].as_str() {
            Some(link) => format!("{network} on {link}"),
            None => network.to_string(),
        })
}

/// Makes the namespace and the link, or completes what is there. What others made under the same names is refused.
pub(crate) async fn ensure(config: &NamespaceConfig, layout: &Layout, made: &mut Made) -> Result<()> {
    let netns = Netns::Named(config.name.clone());
    let routes = ip_json(&Netns::Machine, &["-4", "route", "show", "table", "all"]).await?;
    if let Some(route) = collision(config.network(), &config.host_link, &routes) {
        return Err(Error::Refused(format!(
            "the network {} is in use on this machine (route {route}); choose another for the link and its elastic IPs",
            config.network()
        )));
    }
    let claims = [
        (netns.exists(), &config.name, &mut made.namespaces, "network namespace"),
        (link_exists(&Netns::Machine, &config.host_link).await?, &config.host_link, &mut made.links, "link"),
    ];
    for (exists, name, ours, what) in claims {
        if ours.contains(name) {
            continue;
        }
        if exists {
            return Err(Error::Refused(format!(
                "there is a {what} {name} already that this cloud did not make; remove it or choose another name"
            )));
        }
        ours.push(name.clone());
    }
    made.netns_directory |= !Path::new(Netns::DIRECTORY).exists();
    made.save(layout)?;
    if !netns.exists() {
        ip(&Netns::Machine, &["netns", "add", &config.name]).await?;
    }
    ip(&netns, &["link", "set", "lo", "up"]).await?;
    netns.run(set_sysctls)??;
    ensure_link(config, &netns).await
}

async fn ensure_link(config: &NamespaceConfig, netns: &Netns) -> Result<()> {
    let (outer, inner) = (config.host_link.as_str(), config.inner_link.as_str());
    let have_outer = link_exists(&Netns::Machine, outer).await?;
    if !(have_outer && link_exists(netns, inner).await?) {
        if have_outer {
            ip(&Netns::Machine, &["link", "del", outer]).await?;
        }
        let pair = ["link", "add", outer, "type", "veth", "peer", "name", inner, "netns", &config.name];
        ip(&Netns::Machine, &pair).await?;
    }
    ethtool_offloads_off(&Netns::Machine, outer).await?;
    ethtool_offloads_off(netns, inner).await?;
    let address = format!("{}/{}", config.host_address, config.prefix_length);
    ip(&Netns::Machine, &["addr", "replace", &address, "dev", outer]).await?;
    ip(&Netns::Machine, &["link", "set", outer, "up"]).await?;
    ip(netns, &["link", "set", inner, "up"]).await?;
    Ok(())
}

/// Metadata sockets answer on one address in many networks, so reverse path checks are off and ARP is strict. The namespace
/// forwards nothing itself: the switch does. Runs inside the namespace.
fn set_sysctls() -> Result<()> {
    let settings = [
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/arp_ignore", "1"),
        ("ipv4/ip_forward", "0"),
    ];
    for (name, value) in settings {
        let path = Path::new("/proc/sys/net").join(name);
        // A kernel without IPv6 has nothing to switch off.
        if path.exists() {
            std::fs::write(&path, value).map_err(Error::file("setting", &path))?;
        }
    }
    Ok(())
}

/// Removes what [`ensure`] made; what is gone already is no error.
pub(crate) async fn remove(made: &Made) -> Result<()> {
    for link in &made.links {
        if link_exists(&Netns::Machine, link).await? {
            ip(&Netns::Machine, &["link", "del", link]).await?;
        }
    }
    for name in &made.namespaces {
        if Netns::path_of(name).exists() {
            ip(&Netns::Machine, &["netns", "del", name]).await?;
        }
    }
    let directory = Path::new(Netns::DIRECTORY);
    let empty = std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    if made.netns_directory && empty {
        // `ip netns add` mounts the directory on itself so that namespaces reach other mount namespaces.
        run("umount", &[Netns::DIRECTORY]).await.ok();
        std::fs::remove_dir(directory).map_err(Error::file("removing", directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn networks_overlap_when_one_contains_the_other() {
        assert!(net("10.0.0.0/8").overlaps(&net("10.1.2.0/24")));
        assert!(net("10.1.2.0/24").overlaps(&net("10.0.0.0/8")));
        assert!(!net("172.29.0.0/25").overlaps(&net("172.29.0.128/25")));
        assert!(net("0.0.0.0/0").contains(&net("1.2.3.4")));
        assert!("10.0.0.0/33".parse::<Ipv4Net>().is_err());
        assert_eq!(net("172.29.0.200/25").to_string(), "172.29.0.128/25");
        assert_eq!(net("172.29.0.128/25").last(), Ipv4Addr::new(172, 29, 0, 255));
    }

    #[test]
    fn a_route_of_the_host_that_collides_is_named() {
        let routes = [
            json!({"dst": "default", "dev": "eth0"}),
            json!({"dst": "0.0.0.0/1", "dev": "tun0"}),
            json!({"dst": "172.16.0.0/12", "dev": "corp0"}),
            json!({"dst": "192.168.0.0/24", "dev": "eth0"}),
        ];
        assert_eq!(collision(net("172.29.0.0/24"), "mallee0", &routes), Some("172.16.0.0/12 on corp0".to_owned()));
        assert_eq!(collision(net("172.29.0.0/24"), "corp0", &routes), None);
        assert_eq!(collision(net("10.0.0.0/24"), "mallee0", &routes), None);
    }
}
