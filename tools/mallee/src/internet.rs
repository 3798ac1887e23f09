//! Guests reach beyond this machine, if the operator wants it: the host forwards for the cloud's link and hides it behind its
//! own address. Off unless asked for, because it changes how the host treats packets; undone by `mallee down --all`.
//!
//! One nftables table of our own; a firewall of the host that drops forwarded packets still has the last word. What is beyond
//! this machine for a guest is not the machines of the cloud: they are a set in that table, which the supervisor keeps.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;

use mallee_engines::NamespaceConfig;
use mallee_tiers::CloudStatus;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::error::{Error, Result};

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What the host was like before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Internet {
    /// `net.ipv4.ip_forward`.
    pub forwarded: bool,
}

impl Internet {
    /// Looks at the host; changes nothing.
    pub fn look() -> Result<Internet> {
        let text = std::fs::read_to_string(FORWARD).map_err(Error::file("reading", FORWARD))?;
        Ok(Internet { forwarded: text.trim() == "1" })
    }
}

pub async fn open(link: &NamespaceConfig) -> Result<()> {
    nft(&rules(link)).await?;
    std::fs::write(FORWARD, "1").map_err(Error::file("writing", FORWARD))
}

/// What is gone already is no error.
pub async fn close(link: &NamespaceConfig, before: &Internet) -> Result<()> {
    let table = table(link);
    nft(&format!("table ip {table} {{}}\ndelete table ip {table}\n")).await?;
    if !before.forwarded {
        std::fs::write(FORWARD, "0").map_err(Error::file("writing", FORWARD))?;
    }
    Ok(())
}

fn table(link: &NamespaceConfig) -> String {
    format!("mallee-{}", link.host_link)
}

/// Said again, it replaces itself, but for the set of machines.
fn rules(link: &NamespaceConfig) -> String {
    let (table, network, name) = (table(link), link.network(), &link.host_link);
    format!(
        "table ip {table} {{\n set machines {{ type ipv4_addr; }}\n \
         chain out {{ type nat hook postrouting priority srcnat; policy accept; }}\n \
         chain beyond {{ type filter hook forward priority filter; policy accept; }}\n}}\n\
         flush table ip {table}\ntable ip {table} {{\n \
         chain out {{\n  ip saddr {network} oifname != \"{name}\" masquerade\n }}\n \
         chain beyond {{\n  iifname \"{name}\" ip daddr @machines drop\n  iifname \"{name}\" udp dport {TUNNELS} drop\n }}\n}}\n"
    )
}

/// Where every machine takes what comes by tunnel.
const TUNNELS: u16 = 6081;

/// The addresses by which the machines of the cloud reach each other. Those of this machine are no forwarding's business.
pub fn machines(link: &NamespaceConfig, cloud: &CloudStatus) -> BTreeSet<Ipv4Addr> {
    let tiers = cloud.tiers.iter().map(|tier| tier.address.as_str());
    let nodes = cloud.nodes.iter().map(|node| node.node.address.as_str());
    let addresses = tiers.chain(nodes).filter_map(|address| match address.parse::<SocketAddr>().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    addresses.filter(|address| !address.is_loopback() && *address != link.host_address).collect()
}

/// Guests reach these by no way that leads through this machine.
pub async fn shut(link: &NamespaceConfig, machines: &BTreeSet<Ipv4Addr>) -> Result<()> {
    nft(&elements(link, machines)).await
}

fn elements(link: &NamespaceConfig, machines: &BTreeSet<Ipv4Addr>) -> String {
    let table = table(link);
    let all: Vec<String> = machines.iter().map(ToString::to_string).collect();
    let add = match all.as_slice() {
        [] => String::new(),
        all => format!("add element ip {table} machines {{ {} }}\n", all.join(", ")),
    };
    format!("flush set ip {table} machines\n{add}")
}

/// Runs a script of nftables.
pub async fn nft(script: &str) -> Result<()> {
    let failed = |detail: &dyn std::fmt::Display| Error::refused(format!("nft: {detail}"));
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&format!("{error} (package nftables)")))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).await.map_err(|error| failed(&error))?;
    }
    let output = child.wait_with_output().await.map_err(|error| failed(&error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(&String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use mallee_tiers::{Role, TierRow};

    use super::*;

    #[test]
    fn the_machines_of_the_cloud_are_shut_but_not_what_is_beyond_them() {
        let link = NamespaceConfig::default();
        let tier = |address: &str| TierRow {
            role: Role::ClusterController,
            zone: String::new(),
            name: String::new(),
            address: address.into(),
            status: None,
            trouble: String::new(),
        };
        let own = format!("{}:8773", link.host_address);
        let tiers = ["10.0.0.3:8774", "10.0.0.3:8776", "10.0.0.4:8777", "127.0.0.1:8774", "[fd00::1]:8774", "", &own];
        let cloud = CloudStatus {
            region: String::new(),
            tiers: tiers.map(tier).into(),
            nodes: Vec::new(),
            orphans: Vec::new(),
            instances_by_state: Vec::new(),
        };
        let found = machines(&link, &cloud);
        assert_eq!(
            elements(&link, &found),
            "flush set ip mallee-mallee0 machines\nadd element ip mallee-mallee0 machines { 10.0.0.3, 10.0.0.4 }\n"
        );
        assert_eq!(elements(&link, &BTreeSet::new()), "flush set ip mallee-mallee0 machines\n");
    }
}
