//! The metadata service at 169.254.169.254: what a guest may know of itself, IMDSv1 and v2. Beside it, at 169.254.169.253,
//! names ([`resolver`]).
//!
//! Who asks is (VPC, source address), which port security makes trustworthy; never a header. There is one listening socket
//! per VPC, all in this process. What is served is rendered by the cloud-controller and kept with the wishes in the node's
//! store, so it is in memory before the sockets open and answers while every other tier is down.

mod answer;
mod book;
mod links;
mod resolver;
mod server;
mod token;

pub use book::{Book, Guest};
pub use links::{Links, MIGRATION};
pub use server::Service;
pub use token::TokenKey;

use mallee_tiers::VpcLink;

/// The sockets of one VPC.
pub struct Sockets {
    /// 169.254.169.254:80.
    pub metadata: tokio::net::TcpListener,
    /// 169.254.169.253:53.
    pub names: tokio::net::UdpSocket,
}

/// Where the service listens: in each VPC.
#[async_trait::async_trait]
pub trait MetadataSockets: Send + Sync + 'static {
    /// Makes sure of the VPC's link, and returns new sockets if there are none yet (`listening` is false), or if those
    /// before died with their link.
    async fn open(&self, vpc: &VpcLink, listening: bool) -> Result<Option<Sockets>, String>;
    /// No instance of the VPC is here any more.
    async fn close(&self, vpc: &str) -> Result<(), String>;
    /// VPCs that have a link, also those of an earlier life of this process.
    async fn held(&self) -> Result<Vec<String>, String>;
}

/// For simulated nodes: no guest can ask.
pub struct NoSockets;

#[async_trait::async_trait]
impl MetadataSockets for NoSockets {
    async fn open(&self, _: &VpcLink, _: bool) -> Result<Option<Sockets>, String> {
        Ok(None)
    }
    async fn close(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
    async fn held(&self) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }
}
