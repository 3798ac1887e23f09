//! The metadata service's foot in each VPC.
//!
//! A VPC has one OVN localport with the addresses 169.254.169.254 and .253 (names), on a service switch that only the VPC's router is attached to.
//! On the node it is one end of a veth pair; the other end is a port of `br-int`. A veth and not an internal port of the switch,
//! because an internal port vanishes with its address when vswitchd dies, and sockets bound to it go dead.
//!
//! VPCs overlap, so every link has the same address. What keeps them apart: a socket bound to its link (SO_BINDTODEVICE), and a
//! routing table per link, chosen by that binding. So a listening socket's VPC is certain, and with port security the source
//! address is as well.
//!
//! The names and the table's number are the caller's: rows with UNIQUE, never hashes. Everything here may be repeated.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use mallee_engines::{Error, Netns, Result, ethtool_offloads_off, ip, ip_json, ovs};
use mallee_ovsdb::Client;
use socket2::{Domain, Socket, Type};

const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_CIDR: &str = "169.254.169.254/24";
/// The VPC's router on the service switch.
const ROUTER_ADDRESS: &str = "169.254.169.1";
const METADATA_PORT: u16 = 80;
const NAMES_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
const NAMES_PORT: u16 = 53;
const BACKLOG: i32 = 1024;
/// vswitchd takes a port in milliseconds; this long only if it is gone.
const SWITCH_PATIENCE: Duration = Duration::from_secs(15);

/// One VPC's link. Link names have at most 15 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataLink {
    /// The end with the address, where sockets are bound.
    pub inner: String,
    /// The end that is a port of the integration bridge.
    pub outer: String,
    /// The localport's MAC as OVN knows it, in lower case.
    pub mac: String,
    /// The localport's name in OVN's northbound database.
    pub iface_id: String,
    /// The routing table, and the priority of the rule that chooses it. 256 to 32000.
    pub table: u32,
}

/// What [`MetadataLink::ensure`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// The link was there. Sockets bound to it are good.
    Kept,
    /// The link is new. Sockets bound to an earlier one of this name are dead: listen again.
    New,
}

impl MetadataLink {
    /// Makes the link, or completes what is there.
    pub async fn ensure(&self, netns: &Netns, switch: &Client) -> Result<Linked> {
        self.check()?;
        let linked = self.ensure_veth(netns, switch).await?;
        // Also for a link that was there: whoever made it may have been killed before this, and TCP through it would hang.
        ethtool_offloads_off(netns, &self.inner).await?;
        ethtool_offloads_off(netns, &self.outer).await?;
        ip(netns, &["addr", "replace", METADATA_CIDR, "dev", &self.inner]).await?;
        ip(netns, &["addr", "replace", &format!("{NAMES_ADDRESS}/32"), "dev", &self.inner]).await?;
        ip(netns, &["link", "set", &self.inner, "up"]).await?;
        ip(netns, &["link", "set", &self.outer, "up"]).await?;
        let table = self.table.to_string();
        let route = ["route", "replace", "default", "via", ROUTER_ADDRESS, "dev", &self.inner, "table", &table];
        ip(netns, &route).await?;
        self.ensure_rule(netns).await?;
        let port = ovs::ensure_port(switch, ovs::INTEGRATION_BRIDGE, &self.outer, Some(&self.iface_id));
        with_patience(port).await?;
        Ok(linked)
    }

    /// Removes the port, the rule and the pair; what is gone already is no error.
    pub async fn remove(&self, netns: &Netns, switch: &Client) -> Result<()> {
        with_patience(ovs::remove_port(switch, &self.outer)).await?;
        for priority in self.rules(netns).await? {
            ip(netns, &["rule", "del", "pref", &priority.to_string(), "oif", &self.inner]).await?;
        }
        if link_mac(netns, &self.inner).await?.is_some() {
            // The other end and the routes go with it.
            ip(netns, &["link", "del", &self.inner]).await?;
        }
        Ok(())
    }

    /// The socket that hears only this VPC. It stays in the namespace whatever thread uses it; it dies with the link.
    ///
    /// Answers pass the VPC's router, which takes one off their TTL: a hop limit of n is a TTL of n + 1 on the accepted stream.
    pub fn listen(&self, netns: &Netns) -> Result<tokio::net::TcpListener> {
        let failed = |error: std::io::Error| Error::Engine {
            engine: "metadata".to_owned(),
            detail: format!("listening on {METADATA_ADDRESS} through {}: {error}", self.inner),
        };
        let socket = netns.run(|| self.bound_socket())?.map_err(failed)?;
        tokio::net::TcpListener::from_std(socket.into()).map_err(failed)
    }

    /// The socket that hears only this VPC's questions about names.
    pub fn listen_for_names(&self, netns: &Netns) -> Result<tokio::net::UdpSocket> {
        let failed = |error: std::io::Error| Error::Engine {
            engine: "names".to_owned(),
            detail: format!("listening on {NAMES_ADDRESS} through {}: {error}", self.inner),
        };
        let bound = || self.bound(Type::DGRAM, SocketAddrV4::new(NAMES_ADDRESS, NAMES_PORT));
        let socket = netns.run(bound)?.map_err(failed)?;
        tokio::net::UdpSocket::from_std(socket.into()).map_err(failed)
    }

    fn bound_socket(&self) -> std::io::Result<Socket> {
        let socket = self.bound(Type::STREAM, SocketAddrV4::new(METADATA_ADDRESS, METADATA_PORT))?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    }

    fn bound(&self, kind: Type, address: SocketAddrV4) -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, kind, None)?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(self.inner.as_bytes()))?;
        socket.bind(&SocketAddr::V4(address).into())?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn check(&self) -> Result<()> {
        let fits = |name: &String| (1..=15).contains(&name.len()) && !name.contains(['/', ' ']);
        if !fits(&self.inner) || !fits(&self.outer) || self.inner == self.outer {
            return Err(Error::Config(format!(
                "{:?} and {:?} are no names for the two ends of a link",
                self.inner, self.outer
            )));
        }
        if !(256..=32_000).contains(&self.table) {
            return Err(Error::Config(format!("{} is no routing table for a metadata link", self.table)));
        }
        Ok(())
    }

    async fn ensure_veth(&self, netns: &Netns, switch: &Client) -> Result<Linked> {
        let inner = link_mac(netns, &self.inner).await?;
        let outer = link_mac(netns, &self.outer).await?;
        if inner.as_deref() == Some(&self.mac) && outer.is_some() {
            return Ok(Linked::Kept);
        }
        // A port that outlives its link is deaf for the next link of that name.
        with_patience(ovs::remove_port(switch, &self.outer)).await?;
        for (name, found) in [(&self.inner, inner), (&self.outer, outer)] {
            // Deleting one end took the other with it, usually.
            if found.is_some() && link_mac(netns, name).await?.is_some() {
                ip(netns, &["link", "del", name]).await?;
            }
        }
        let pair = ["link", "add", &self.inner, "address", &self.mac, "type", "veth", "peer", "name", &self.outer];
        ip(netns, &pair).await?;
        Ok(Linked::New)
    }

    async fn ensure_rule(&self, netns: &Netns) -> Result<()> {
        let rules = self.rules(netns).await?;
        if rules.contains(&u64::from(self.table)) {
            return Ok(());
        }
        let table = self.table.to_string();
        ip(netns, &["rule", "add", "oif", &self.inner, "lookup", &table, "pref", &table]).await?;
        Ok(())
    }

    /// The priorities of the rules that name this link.
    async fn rules(&self, netns: &Netns) -> Result<Vec<u64>> {
        let rules = ip_json(netns, &["rule", "show"]).await?;
        Ok(rules
            .iter()
            .filter(|rule| rule["oif"] == self.inner.as_str())
            .filter_map(|rule| rule["priority"].as_u64())
            .collect())
    }
}

async fn link_mac(netns: &Netns, link: &str) -> Result<Option<String>> {
    let links = ip_json(netns, &["link", "show"]).await?;
    let found = links.iter().find(|found| found["ifname"] == link);
    Ok(found.map(|link| link["address"].as_str().unwrap_or_default().to_owned()))
}

async fn with_patience(work: impl Future<Output = Result<()>>) -> Result<()> {
    match tokio::time::timeout(SWITCH_PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::Engine {
            engine: "ovs-vswitchd".to_owned(),
            detail: format!("did not take a port within {} s", SWITCH_PATIENCE.as_secs()),
        }),
    }
}
