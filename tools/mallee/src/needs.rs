//! What must be there before anything can run: root, the programs of Debian packages, the tiers' own programs.

use std::path::{Path, PathBuf};

use mallee_tiers::Role;

use crate::error::{Error, Result};
use crate::tier::{ROLES, own_program};

/// Program, and the Debian package it comes with.
const NODE: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-system-common"),
    ("libvirtd", "libvirt-daemon"),
    ("virtlogd", "libvirt-daemon"),
    ("ovsdb-server", "openvswitch-common"),
    ("ovsdb-tool", "openvswitch-common"),
    ("ovs-vsctl", "openvswitch-switch"),
    ("ovs-vswitchd", "openvswitch-switch"),
    ("ovn-controller", "ovn-host"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nsenter", "util-linux"),
    ("nft", "nftables"),
];
const CENTRAL: &[(&str, &str)] = &[("ovn-northd", "ovn-central"), ("ovsdb-server", "openvswitch-common")];

/// Whether this process may make namespaces and links.
pub fn root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::refused("this needs root (network namespaces, mounts, the admin socket): run it with sudo"))
}

/// Names every program that is missing with the package that has it.
pub fn packages(node: bool, central: bool) -> Result<()> {
    let mut missing: Vec<(&str, &str)> = Vec::new();
    let wanted = [(node, NODE), (central, CENTRAL)];
    for (program, package) in wanted.iter().filter(|(asked, _)| *asked).flat_map(|(_, list)| list.iter()) {
        if !in_path(program) && !missing.iter().any(|(known, _)| known == program) {
            missing.push((program, package));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<String> =
        missing.iter().map(|(program, package)| format!("{program} (package {package})")).collect();
    Err(Error::refused(format!(
        "missing on this machine: {}; `tools/setup` installs what Mallee needs",
        programs.join(", ")
    )))
}

fn in_path(program: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|directory| Path::new(directory).join(program).exists())
}

/// Where the tiers' programs are: `MALLEE_BIN`, or beside this command.
pub fn programs() -> Result<PathBuf> {
    match std::env::var_os("MALLEE_BIN") {
        Some(directory) => std::path::absolute(&directory).map_err(Error::file("resolving", directory)),
        None => Ok(own_program()?.parent().map(Path::to_owned).unwrap_or_default()),
    }
}

/// All of these tiers have their program.
pub fn tiers(programs: &Path, roles: &[Role]) -> Result<()> {
    let missing: Vec<&str> = ROLES
        .iter()
        .filter(|role| roles.contains(role))
        .map(|role| role.as_str())
        .filter(|name| !programs.join(name).exists())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!(
        "not in {}: {}; build them with `cargo build --release`, or say with MALLEE_BIN where they are",
        programs.display(),
        missing.join(", ")
    )))
}
