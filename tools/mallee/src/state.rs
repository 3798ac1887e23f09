//! Where everything of Mallee is on this machine. Names only; nothing here touches the disk but
//! [`State::create`] and [`State::lock`].
//!
//! ```text
//! lock                    held by the command that changes things
//! machine.json            what was chosen for this machine
//! etc/TIER.toml           what each tier is told
//! etc/TIER.own.toml       what the operator tells it beside that
//! TIER/                   what each tier keeps
//! tokens/TIER             one-time join tokens
//! ca.pem                  the cloud's CA, the one file here that every user may read
//! engines/                Open vSwitch, OVN, libvirt: sockets, databases, logs
//! run/                    pid records, the supervisor's socket and lock
//! log/TIER.out            logs
//! accounts/NAME/          cert.pem and pk.pem of an account, with which its bundles are signed
//! ```

use std::fs::{File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::tier::ROLES;

pub const DEFAULT: &str = "/var/lib/mallee";

/// The state directory.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
}

impl State {
    pub fn new(root: &Path) -> Result<State> {
        let root = std::path::absolute(root).map_err(Error::file("resolving", root))?;
        Ok(State { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn machine(&self) -> PathBuf {
        self.root.join("machine.json")
    }
    pub fn engines(&self) -> PathBuf {
        self.root.join("engines")
    }
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run().join("supervisor.sock")
    }
    pub fn config(&self, tier: &str) -> PathBuf {
        self.root.join("etc").join(format!("{tier}.toml"))
    }
    pub fn own_config(&self, tier: &str) -> PathBuf {
        self.root.join("etc").join(format!("{tier}.own.toml"))
    }
    pub fn tier(&self, tier: &str) -> PathBuf {
        self.root.join(tier)
    }
    /// The folder of a tier's certificate.
    pub fn tls(&self, tier: &str) -> PathBuf {
        self.tier(tier).join("tls")
    }
    pub fn certificate(&self, tier: &str) -> PathBuf {
        self.tls(tier).join("cert.pem")
    }
    pub fn token(&self, tier: &str) -> PathBuf {
        self.root.join("tokens").join(tier)
    }
    pub fn output(&self, tier: &str) -> PathBuf {
        self.log().join(format!("{tier}.out"))
    }
    pub fn admin_socket(&self) -> PathBuf {
        self.tier("cloud-controller").join("admin.sock")
    }
    pub fn account(&self, name: &str) -> PathBuf {
        self.root.join("accounts").join(name)
    }

    /// The cloud's CA, for HTTPS clients.
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca.pem")
    }

    /// Users may pass through to `ca.pem` and see nothing else.
    pub fn create(&self) -> Result<()> {
        make_private(&self.root)?;
        set_mode(&self.root, 0o711)?;
        let own = ["etc", "tokens", "accounts", "run", "log", "engines"].map(|name| self.root.join(name));
        let tiers = ROLES.map(|role| self.tier(role.as_str()));
        for directory in own.iter().chain(&tiers) {
            make_private(directory)?;
            set_mode(directory, 0o700)?;
        }
        Ok(())
    }

    /// One command at a time changes what is here; it is let go when the answer is dropped.
    pub fn lock(&self) -> Result<Flock<File>> {
        make_private(&self.root)?;
        let path = self.root.join("lock");
        let file = File::create(&path).map_err(Error::file("opening", &path))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            Error::refused(format!("another `mallee` command is changing the cloud in {}", self.root.display()))
        })
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::file("closing", path))
}

/// A directory that only root may look into.
pub fn make_private(directory: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(Error::file("creating", directory))
}
