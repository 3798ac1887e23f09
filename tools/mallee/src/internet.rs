//! Guests reach beyond this machine, if the operator wants it: the host forwards for the cloud's link and hides it behind its
//! own address. Off unless asked for, because it changes how the host treats packets; undone by `mallee down --all`.
//!
//! One nftables table of our own; a firewall of the host that drops forwarded packets still has the last word.

use std::process::Stdio;

use mallee_engines::NamespaceConfig;
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

/// Said again, it replaces itself.
fn rules(link: &NamespaceConfig) -> String {
    let (table, network, name) = (table(link), link.network(), &link.host_link);
    format!(
        "table ip {table} {{}}\ndelete table ip {table}\ntable ip {table} {{\n chain out {{\n  \
         type nat hook postrouting priority srcnat; policy accept;\n  \
         ip saddr {network} oifname != \"{name}\" masquerade\n }}\n}}\n"
    )
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
