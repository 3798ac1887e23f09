//! Where everything of the engines is, under one base directory. Names and pure checks; only [`Layout::create`] touches the disk.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// `sun_path` has 108 bytes, the last of which is zero.
const SOCKET_PATH_MAX: usize = 107;

/// Every path the engines use.
#[derive(Debug, Clone)]
pub struct Layout {
    base: PathBuf,
}

impl Layout {
    /// Refuses a base under which a unix socket's path would be too long.
    pub fn new(base: impl Into<PathBuf>) -> Result<Layout> {
        let base: PathBuf = base.into();
        let text = base.to_str().unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
        if !base.is_absolute() || base.components().count() < 2 || !text.bytes().all(plain) {
            return Err(Error::Config(format!(
                "the base directory {} must be an absolute path of letters, digits, '.', '_' and '-'",
                base.display()
            )));
        }
        let layout = Layout { base };
        let longest = layout.sockets().into_iter().max_by_key(|socket| socket.as_os_str().len()).unwrap_or_default();
        let length = longest.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(Error::Config(format!(
                "the base directory {} is too long: the socket {} would have {length} bytes and {SOCKET_PATH_MAX} is the limit; choose one that is {} bytes shorter",
                layout.base.display(),
                longest.display(),
                length - SOCKET_PATH_MAX
            )));
        }
        Ok(layout)
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The local switch's run directory (`OVS_RUNDIR`), where ovs-vsctl and ovs-appctl look.
    pub fn ovs(&self) -> PathBuf {
        self.base.join("ovs")
    }

    pub fn ovn(&self) -> PathBuf {
        self.base.join("ovn")
    }

    pub fn virt(&self) -> PathBuf {
        self.base.join("virt")
    }

    /// Pid records and the supervisor's lock.
    pub fn run(&self) -> PathBuf {
        self.base.join("run")
    }

    pub fn log(&self) -> PathBuf {
        self.base.join("log")
    }

    /// The local switch's database.
    pub fn ovs_socket(&self) -> PathBuf {
        self.ovs().join("db.sock")
    }

    pub fn northbound_socket(&self) -> PathBuf {
        self.ovn().join("nb.sock")
    }

    pub fn southbound_socket(&self) -> PathBuf {
        self.ovn().join("sb.sock")
    }

    /// Where guests' QEMU finds the node's certificate, for volumes of other machines.
    pub fn nbd_tls(&self) -> PathBuf {
        self.virt().join("nbd-tls")
    }

    pub fn libvirt_socket(&self) -> PathBuf {
        self.virt().join("run/libvirt-sock")
    }

    /// What to give `virConnectOpen`.
    pub fn libvirt_uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.libvirt_socket().display())
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.run().join("supervisor.lock")
    }

    pub(crate) fn made(&self) -> PathBuf {
        self.run().join("made.json")
    }

    pub(crate) fn kvm_verdict(&self) -> PathBuf {
        self.run().join("kvm.json")
    }

    pub(crate) fn own_directories(&self) -> [PathBuf; 5] {
        [self.run(), self.log(), self.ovs(), self.ovn(), self.virt()]
    }

    fn sockets(&self) -> Vec<PathBuf> {
        vec![
            self.libvirt_socket(),
            self.virt().join("run/libvirt-admin-sock"),
            self.ovs().join("vswitchd.ctl"),
            // A bridge's name has at most 15 characters.
            self.ovs().join("br-345678901234.snoop"),
            // ovn-controller names its control socket by its pid and takes no other name.
            self.ovn().join("ovn-controller.4194304.ctl"),
        ]
    }

    pub(crate) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.base).map_err(Error::file("creating", &self.base))?;
        let mut directories = self.own_directories().to_vec();
        directories.extend(["run", "lib", "etc", "cache", "log"].map(|name| self.virt().join(name)));
        for directory in directories {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(Error::file("creating", &directory))?;
        }
        // The guests' own disks and sockets are elsewhere; nobody but root has business among the engines' sockets.
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(self.virt(), private).map_err(Error::file("closing", self.virt()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_too_long_for_unix_sockets_is_refused_with_the_number_to_cut() {
        let error = Layout::new(format!("/{}", "b".repeat(80))).unwrap_err().to_string();
        assert!(error.contains("107 is the limit") && error.contains("5 bytes shorter"), "{error}");
        assert!(Layout::new(format!("/{}", "b".repeat(75))).is_ok());
    }

    #[test]
    fn a_base_that_would_need_quoting_is_refused() {
        for base in ["relative", "/with blank", "/with'quote", "/"] {
            assert!(Layout::new(base).is_err(), "{base}");
        }
    }
}
