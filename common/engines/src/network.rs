//! The namespace of one machine and the veth pair that joins it to the host.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{NamespaceConfig, TunnelConfig};
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
    let routes = ip_json(&Netns::Machine, &["-4", "route", "show", "table", "all"]).await?;
    if let Some(route) = collision(config.network(), &config.host_link, &routes) {
        return Err(Error::Refused(format!(
            "the network {} is in use on this machine (route {route}); choose another for the link and its elastic IPs",
            config.network()
        )));
    }
    let exists = link_exists(&Netns::Machine, &config.host_link).await?;
    claim(exists, &config.host_link, &mut made.links, "link")?;
    let netns = enclose(&config.name, layout, made).await?;
    ensure_link(config, &netns).await
}

/// Makes a namespace with nothing in it, or takes the one that this cloud made.
pub(crate) async fn enclose(name: &str, layout: &Layout, made: &mut Made) -> Result<Netns> {
    let netns = Netns::Named(name.to_owned());
    claim(netns.exists(), name, &mut made.namespaces, "network namespace")?;
    made.netns_directory |= !Path::new(Netns::DIRECTORY).exists();
    made.save(layout)?;
    if !netns.exists() {
        ip(&Netns::Machine, &["netns", "add", name]).await?;
    }
    ip(&netns, &["link", "set", "lo", "up"]).await?;
    netns.run(set_sysctls)??;
    Ok(netns)
}

/// Notes that a name is ours before anything of that name is made; one that somebody else has is refused.
fn claim(exists: bool, name: &str, ours: &mut Vec<String>, what: &str) -> Result<()> {
    if ours.iter().any(|known| known == name) {
        return Ok(());
    }
    if exists {
        return Err(Error::Refused(format!(
            "there is a {what} {name} already that this cloud did not make; remove it or choose another name"
        )));
    }
    ours.push(name.to_owned());
    Ok(())
}

/// The link that tunnels leave the namespace by; it vanishes with the namespace.
pub const TUNNEL_LINK: &str = "tun0";

/// The hardware address of the tunnels' link: always the same for the same address. The userspace datapath of every other machine
/// remembers it for a quarter of an hour, also when this machine was started anew meanwhile.
fn tunnel_hardware(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    // A locally administered one.
    format!("0a:6d:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Makes the tunnels' link in the namespace. It has no address yet: see [`address_tunnel`].
pub(crate) async fn ensure_tunnel(tunnel: &TunnelConfig, netns: &Netns) -> Result<()> {
    let Netns::Named(name) = netns else { return Ok(()) };
    if !link_exists(netns, TUNNEL_LINK).await? {
        let hardware = tunnel_hardware(tunnel.address);
        let named = ["name", TUNNEL_LINK, "address", &hardware, "netns", name];
        let link =
            [&["link", "add", "link", &tunnel.parent][..], &named, &["type", "macvlan", "mode", "bridge"]].concat();
        ip(&Netns::Machine, &link).await?;
    }
    ethtool_offloads_off(netns, TUNNEL_LINK).await?;
    ip(netns, &["link", "set", TUNNEL_LINK, "up"]).await.map(drop)
}

/// Gives a link in the namespace the tunnels' address, and the way to machines that are elsewhere.
pub(crate) async fn address_tunnel(tunnel: &TunnelConfig, netns: &Netns, link: &str) -> Result<()> {
    let address = format!("{}/{}", tunnel.address, tunnel.prefix_length);
    ip(netns, &["addr", "replace", &address, "dev", link]).await?;
    ip(netns, &["link", "set", link, "up"]).await?;
    if let Some(gateway) = tunnel.gateway {
        ip(netns, &["route", "replace", "default", "via", &gateway.to_string(), "dev", link]).await?;
    }
    Ok(())
}

/// The hardware address of a link.
pub(crate) async fn hardware_address(netns: &Netns, link: &str) -> Result<String> {
    let links = ip_json(netns, &["link", "show", "dev", link]).await?;
    let address = links.first().and_then(|found| found["address"].as_str()).map(str::to_owned);
    address.ok_or_else(|| Error::System(format!("{link} in {netns} has no hardware address")))
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
    fn a_tunnels_hardware_address_is_its_addresss() {
        assert_eq!(tunnel_hardware(Ipv4Addr::new(10, 0, 0, 107)), "0a:6d:0a:00:00:6b");
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
