//! A network namespace, and how to do something inside one.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where links, addresses and sockets are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Netns {
    /// The namespace this process was started in.
    Machine,
    /// One under /run/netns.
    Named(String),
}

impl Netns {
    pub(crate) const DIRECTORY: &'static str = "/run/netns";

    pub fn path_of(name: &str) -> PathBuf {
        Path::new(Netns::DIRECTORY).join(name)
    }

    pub fn exists(&self) -> bool {
        match self {
            Netns::Machine => true,
            Netns::Named(name) => Netns::path_of(name).exists(),
        }
    }

    /// Runs `work` inside, on a thread of its own that ends with it. A socket made there stays in the namespace for good,
    /// whatever thread uses it afterwards. Blocks: give only short work.
    pub fn run<T, F>(&self, work: F) -> Result<T>
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        let Netns::Named(name) = self else {
            return Ok(work());
        };
        let path = Netns::path_of(name);
        let namespace = std::fs::File::open(&path).map_err(Error::file("opening", &path))?;
        let inside = || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::System(format!("entering the network namespace {name}: {errno}")))?;
            Ok(work())
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .map_err(|_| Error::System(format!("the thread in the network namespace {name} panicked")))?
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Netns::Machine => f.write_str("the machine's own network namespace"),
            Netns::Named(name) => write!(f, "the network namespace {name}"),
        }
    }
}
