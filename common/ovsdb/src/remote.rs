//! Where a database is, in Open vSwitch's own words, and how it is reached: by a socket of this machine, or over TLS.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UnixStream};

use crate::client::Client;
use crate::error::{Error, Result};

/// A machine that is gone answers nothing at all; the next remote shall have its turn.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// One server: `unix:/run/nb.sock` (or just the path), `ssl:10.0.0.1:6641`, `ssl:[fd00::1]:6641`, `ssl:host:6641`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    Unix(PathBuf),
    Tls { host: String, port: u16 },
}

/// The servers of one database, separated by commas; they are tried in this order. There is at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Remotes(Vec<Remote>);

/// What a client shows and believes.
#[derive(Clone)]
pub struct Tls {
    /// With the only CA that is trusted, and the client's own certificate.
    pub config: Arc<ClientConfig>,
    /// Whom the server's certificate must be for; without it the host in the remote.
    pub name: Option<String>,
}

impl Remotes {
    pub fn needs_tls(&self) -> bool {
        self.0.iter().any(|remote| matches!(remote, Remote::Tls { .. }))
    }
}

impl Client {
    /// The first of the servers that answers. The error is that of the last one. `tls` is needed when one of them is remote.
    pub async fn connect(remotes: &Remotes, tls: Option<&Tls>) -> Result<Client> {
        let mut last = None;
        for remote in &remotes.0 {
            let connecting = tokio::time::timeout(CONNECT_PATIENCE, remote.connect(tls));
            let late = || Err(remote.failed(std::io::Error::from(std::io::ErrorKind::TimedOut)));
            match connecting.await.unwrap_or_else(|_| late()) {
                Ok(client) => return Ok(client),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Closed("no remote is named".into())))
    }
}

impl Remote {
    async fn connect(&self, tls: Option<&Tls>) -> Result<Client> {
        match self {
            Remote::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|source| self.failed(source))?;
                Ok(Client::new(stream))
            }
            Remote::Tls { host, port } => {
                let refused = |why: String| self.failed(std::io::Error::other(why));
                let tls = tls.ok_or_else(|| refused("there is no certificate to show".to_owned()))?;
                let name = tls.name.as_deref().unwrap_or(host).to_owned();
                let name = ServerName::try_from(name).map_err(|e| refused(e.to_string()))?;
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|source| self.failed(source))?;
                // Requests are small and wait for their answers.
                stream.set_nodelay(true).map_err(|source| self.failed(source))?;
                let connector = tokio_rustls::TlsConnector::from(tls.config.clone());
                Ok(Client::new(connector.connect(name, stream).await.map_err(|source| self.failed(source))?))
            }
        }
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Connect { address: self.to_string(), source: Arc::new(source) }
    }
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
            return Ok(Remote::Unix(path.into()));
        }
        let malformed = || format!("{text:?} is no database: unix:/PATH or ssl:HOST:PORT");
        let (host, port) = text.strip_prefix("ssl:").and_then(|rest| rest.rsplit_once(':')).ok_or_else(malformed)?;
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| malformed())?;
        if host.is_empty() || (host.contains(':') && host.parse::<IpAddr>().is_err()) {
            return Err(malformed());
        }
        Ok(Remote::Tls { host: host.to_owned(), port })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::Unix(path) => write!(f, "unix:{}", path.display()),
            Remote::Tls { host, port } if host.contains(':') => write!(f, "ssl:[{host}]:{port}"),
            Remote::Tls { host, port } => write!(f, "ssl:{host}:{port}"),
        }
    }
}

impl FromStr for Remotes {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        text.split(',').map(|one| one.trim().parse()).collect::<std::result::Result<_, _>>().map(Remotes)
    }
}

impl TryFrom<String> for Remotes {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<Remotes> for String {
    fn from(remotes: Remotes) -> String {
        remotes.to_string()
    }
}

impl fmt::Display for Remotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(Remote::to_string).collect();
        f.write_str(&all.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_read_as_open_vswitch_writes_them() {
        for (text, shown) in [
            ("/run/nb.sock", "unix:/run/nb.sock"),
            ("unix:/run/nb.sock", "unix:/run/nb.sock"),
            ("ssl:10.0.0.1:6641", "ssl:10.0.0.1:6641"),
            ("ssl:[fd00::1]:6641", "ssl:[fd00::1]:6641"),
            ("ssl:db-1:6641, ssl:db-2:6641", "ssl:db-1:6641,ssl:db-2:6641"),
        ] {
            let remotes: Remotes = text.parse().unwrap();
            assert_eq!(remotes.to_string(), shown);
            assert_eq!(remotes.needs_tls(), text.contains("ssl"));
        }
        for wrong in
            ["", "tcp:10.0.0.1:6641", "ssl:10.0.0.1", "ssl::6641", "ssl:a:b:6641", "ssl:a:b", "run/nb.sock", "/a,"]
        {
            assert!(wrong.parse::<Remotes>().is_err(), "{wrong}");
        }
    }
}
