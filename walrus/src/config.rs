//! What walrus is told, in one TOML file.
//!
//! Beside what every daemon has (`name`, `state`, `listen`, `announce`, `cloud_controller`, `join_token`, `store`):
//! `region`, `host_suffixes`, `sigv2`, `sweep_after_ms`, `blobs`, `reserve_mib`,
//! `upload_patience_ms`, `upload_bytes_per_second`, `master_key`, `lifecycle_every_ms`, `scrub_mib_per_second`, and `[[identities]]` for a walrus that stands alone.
//! For what buckets can be set to do: `website_suffixes`, `[webhooks]`, `log_delivery_ms`.

use std::{path::PathBuf, time::Duration};

use mallee_service::config::Daemon;
use mallee_tiers::Secret;
use serde::Deserialize;

use crate::arrival::Pace;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(flatten)]
    pub daemon: Daemon,
    /// The cloud's region, until the cloud-controller has said it.
    #[serde(default = "region")]
    pub region: String,
    /// `BUCKET.SUFFIX` as the host names a bucket, for each of these suffixes.
    #[serde(default)]
    pub host_suffixes: Vec<String>,
    /// Whether version 2 signatures are accepted; s3cmd, boto 2 and euca2ools are why they are.
    #[serde(default = "yes")]
    pub sigv2: bool,
    /// Bytes that nothing refers to any more are kept this long, for requests that just read the row.
    #[serde(default = "ten_seconds")]
    pub sweep_after_ms: i64,
    /// Where the bytes are; `STATE/blobs` unless said.
    #[serde(default)]
    pub blobs: Option<PathBuf>,
    /// MiB of the blobs' file system that no object may take: the store needs room to write down what may go.
    #[serde(default = "reserve_mib")]
    pub reserve_mib: u64,
    /// Who sends nothing of a request's body for so long is answered `RequestTimeout`.
    #[serde(default = "a_minute")]
    pub upload_patience_ms: u64,
    /// And so is who sends fewer bytes a second than this, after as long; 0: however few. A trickle would keep its
    /// connection, its memory and its unfinished file for ever.
    #[serde(default = "a_kibibyte")]
    pub upload_bytes_per_second: u64,
    /// `BUCKET.SUFFIX` as the host names a bucket's website, for each of these suffixes.
    #[serde(default)]
    pub website_suffixes: Vec<String>,
    /// Where buckets may send events, by the name their owners know it under.
    #[serde(default)]
    pub webhooks: std::collections::BTreeMap<String, String>,
    /// How long lines of access logs wait for others before they become an object.
    #[serde(default = "five_minutes")]
    pub log_delivery_ms: i64,
    /// The key that the keys of encrypted objects are under; `STATE/master.key` unless said. Made when there is none. Walruses
    /// of one store need the same.
    #[serde(default)]
    pub master_key: Option<PathBuf>,
    /// How often lifecycles are looked through.
    #[serde(default = "an_hour")]
    pub lifecycle_every_ms: u64,
    /// How many MiB a second are read to find damage; 0: none are.
    #[serde(default = "scrub_mib")]
    pub scrub_mib_per_second: u64,
    /// Accounts and keys of a walrus without a cloud: it then asks no cloud-controller for anything.
    #[serde(default)]
    pub identities: Vec<StaticIdentity>,
}

/// An access key in the configuration file, for tests, benchmarks, and a walrus used as just an S3 server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticIdentity {
    pub access_key: String,
    pub secret: Secret,
    /// 12 digits.
    pub account: String,
    #[serde(default)]
    pub account_name: String,
}

impl Config {
    pub fn master_key(&self) -> PathBuf {
        self.master_key.clone().unwrap_or_else(|| self.daemon.state.join("master.key"))
    }
    pub(crate) fn pace(&self) -> Pace {
        Pace { patience: Duration::from_millis(self.upload_patience_ms), least: self.upload_bytes_per_second }
    }
    /// The webhooks' addresses; one that is none is a mistake in the file.
    pub fn webhooks(&self) -> Result<crate::s3::bucket::notification::Webhooks, String> {
        let read = |(name, url): (&String, &String)| {
            let wrong = || format!("webhooks.{name}: {url:?} is no http or https address");
            let uri: http::Uri = url.parse().map_err(|_| wrong())?;
            let good = uri.authority().is_some() && matches!(uri.scheme_str(), Some("http" | "https"));
            if good { Ok((name.clone(), uri)) } else { Err(wrong()) }
        };
        self.webhooks.iter().map(read).collect()
    }
    pub fn blobs_dir(&self) -> PathBuf {
        self.blobs.clone().unwrap_or_else(|| self.daemon.state.join("blobs"))
    }
    pub fn store(&self) -> mallee_store::Config {
        match &self.daemon.store {
            mallee_service::config::Store::Sqlite => mallee_store::Config::Sqlite { path: self.daemon.store_path() },
            mallee_service::config::Store::Postgres { url, schema } => {
                mallee_store::Config::Postgres { url: url.clone(), schema: schema.clone() }
            }
        }
    }
    /// Whether this walrus stands alone.
    pub fn stands_alone(&self) -> bool {
        !self.identities.is_empty()
    }
}

fn a_minute() -> u64 {
    60_000
}

fn a_kibibyte() -> u64 {
    1024
}

fn an_hour() -> u64 {
    3_600_000
}

fn scrub_mib() -> u64 {
    4
}

fn region() -> String {
    "mallee-1".into()
}

fn reserve_mib() -> u64 {
    64
}

fn yes() -> bool {
    true
}

fn five_minutes() -> i64 {
    300_000
}

fn ten_seconds() -> i64 {
    10_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "name = 'walrus'\nstate = '/tmp/w'\nlisten = ['127.0.0.1:0']\n";

    #[test]
    fn a_short_file_is_enough() {
        let config: Config = toml::from_str(BARE).unwrap();
        assert!(config.sigv2 && !config.stands_alone());
        assert_eq!(config.blobs_dir(), PathBuf::from("/tmp/w/blobs"));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = toml::from_str::<Config>(&format!("{BARE}regoin = 'x'\n")).unwrap_err();
        assert!(error.to_string().contains("regoin"), "{error}");
    }

    #[test]
    fn a_secret_in_the_file_is_not_shown() {
        let text = format!("{BARE}[[identities]]\naccess_key = 'AK'\nsecret = 'hush'\naccount = '000000000001'\n");
        let config: Config = toml::from_str(&text).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }
}
