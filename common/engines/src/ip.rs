//! The commands `ip` and `ethtool`. Every failure carries the whole command line.

use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::error::{Error, Result};
use crate::netns::Netns;

/// Runs a command to its end and gives what it wrote.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let failed = |detail: String| Error::Command { command: format!("{program} {}", arguments.join(" ")), detail };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
}

/// `ip ARGUMENTS` in a namespace.
pub async fn ip(netns: &Netns, arguments: &[&str]) -> Result<Vec<u8>> {
    match netns {
        Netns::Machine => run("ip", arguments).await,
        Netns::Named(name) => run("ip", &[&["-n", name], arguments].concat()).await,
    }
}

/// `ip -j ARGUMENTS`: a list, empty when ip wrote nothing.
pub async fn ip_json(netns: &Netns, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = ip(netns, &[&["-j"], arguments].concat()).await?;
    if output.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&output).map_err(|error| Error::Command {
        command: format!("ip -j {}", arguments.join(" ")),
        detail: format!("unreadable answer: {error}"),
    })
}

pub(crate) async fn link_exists(netns: &Netns, link: &str) -> Result<bool> {
    let links = ip_json(netns, &["link", "show"]).await?;
    Ok(links.iter().any(|found| found["ifname"] == link))
}

/// A veth hands over packets whose checksum is "to be filled in by hardware", and the userspace datapath never fills it:
/// ping works and TCP hangs. So it is switched off on both ends of every pair.
pub async fn ethtool_offloads_off(netns: &Netns, link: &str) -> Result<()> {
    let ethtool = ["-K", link, "tx", "off"];
    match netns {
        Netns::Machine => run("ethtool", &ethtool).await?,
        Netns::Named(name) => {
            let enter = format!("--net={}", Netns::path_of(name).display());
            run("nsenter", &[&[enter.as_str(), "ethtool"], &ethtool[..]].concat()).await?
        }
    };
    Ok(())
}
