//! Configuration: one TOML file per daemon, `--config FILE`; unknown keys are refused by name.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
}

pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })
}

/// What every daemon is told. A daemon's own configuration flattens this in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    /// Name of this tier in the cloud: its zone for controllers of a zone, the machine for a node.
    pub name: String,
    #[serde(default)]
    pub zone: String,
    /// Where its store, its certificate and its sockets are.
    pub state: PathBuf,
    /// Addresses to serve on; the first is told to the other tiers unless `announce` says another.
    pub listen: Vec<SocketAddr>,
    #[serde(default)]
    pub announce: Option<String>,
    /// `host:port` of the cloud-controller; empty for itself.
    #[serde(default)]
    pub cloud_controller: String,
    /// A file with the one-time token for the first certificate.
    #[serde(default)]
    pub join_token: Option<PathBuf>,
    #[serde(default)]
    pub store: Store,
}

/// Which engine keeps the rows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "lowercase")]
pub enum Store {
    /// `STATE/store.db`.
    #[default]
    Sqlite,
    Postgres {
        url: String,
        schema: String,
    },
}

impl Daemon {
    pub fn announced(&self) -> String {
        self.announce.clone().unwrap_or_else(|| self.listen.first().map(ToString::to_string).unwrap_or_default())
    }
    pub fn admin_socket(&self) -> PathBuf {
        self.state.join("admin.sock")
    }
    pub fn tls_dir(&self) -> PathBuf {
        self.state.join("tls")
    }
    pub fn store_path(&self) -> PathBuf {
        self.state.join("store.db")
    }
    /// What the configuration says of the store, as the store wants it.
    pub fn store_config(&self) -> mallee_store::Config {
        match &self.store {
            Store::Sqlite => mallee_store::Config::Sqlite { path: self.store_path() },
            Store::Postgres { url, schema } => {
                mallee_store::Config::Postgres { url: url.clone(), schema: schema.clone() }
            }
        }
    }
}

/// The command line every daemon has.
#[derive(Debug, clap::Parser)]
pub struct Arguments {
    /// The daemon's configuration (TOML).
    #[arg(long, short)]
    pub config: PathBuf,
}
