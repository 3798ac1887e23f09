//! The sockets of the metadata service on a real node: a [`MetadataLink`] per VPC, whose names are rows of the node's store.

use mallee_engines::Netns;
use mallee_ovsdb::Client;
use mallee_store::{Error as StoreError, Migration, Store, params};
use mallee_tiers::VpcLink;
use std::path::PathBuf;
use tokio::sync::Mutex;

use super::{MetadataSockets, Sockets};
use crate::host::{Linked, MetadataLink};

pub const MIGRATION: Migration = Migration {
    version: 3,
    name: "metadata links",
    sql: "
CREATE TABLE metadata_link (number BIGINT PRIMARY KEY, vpc TEXT NOT NULL UNIQUE, port TEXT NOT NULL, mac TEXT NOT NULL);
",
};

/// Numbers a link can have: they are routing tables as well (256 to 32,000), clear of the few that tools use.
const FIRST: i64 = 1_000;
const LAST: i64 = 31_999;

pub struct Links {
    store: Store,
    netns: Netns,
    /// The local switch's database.
    switch: PathBuf,
    client: Mutex<Option<std::sync::Arc<Client>>>,
}

impl Links {
    pub fn new(store: Store, netns: Netns, switch: PathBuf) -> Self {
        Self { store, netns, switch, client: Mutex::default() }
    }

    /// A connection to the switch's database; asked for anew after a failure, because that process may have been replaced.
    async fn client(&self) -> Result<std::sync::Arc<Client>, String> {
        let mut held = self.client.lock().await;
        if let Some(client) = held.as_ref() {
            return Ok(client.clone());
        }
        let client = Client::connect_unix(&self.switch).await.map_err(|e| format!("{}: {e}", self.switch.display()))?;
        Ok(held.insert(std::sync::Arc::new(client)).clone())
    }

    async fn row(&self, vpc: &VpcLink) -> Result<MetadataLink, StoreError> {
        let vpc = vpc.clone();
        self.store
            .write("name the metadata link of a VPC", move |tx| {
                let used: Vec<i64> =
                    tx.query("SELECT number FROM metadata_link ORDER BY number", params![], |row| row.get(0))?;
                let free =
                    (FIRST..=LAST).zip(used.iter().copied().chain(std::iter::repeat(0))).find(|(n, used)| n != used);
                let number = free
                    .map(|(n, _)| n)
                    .ok_or(StoreError::Other { what: "metadata link", detail: "every number is taken".into() })?;
                tx.execute(
                    "INSERT INTO metadata_link (number, vpc, port, mac) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (vpc) DO UPDATE SET port = ?3, mac = ?4",
                    params![number, vpc.id, vpc.metadata_port, vpc.metadata_mac],
                )?;
                tx.query_one("SELECT number, port, mac FROM metadata_link WHERE vpc = ?1", params![vpc.id], |row| {
                    Ok(link(row.get(0)?, row.get(1)?, row.get(2)?))
                })
            })
            .await
    }
}

fn link(number: i64, iface_id: String, mac: String) -> MetadataLink {
    MetadataLink {
        inner: format!("imds{number}"),
        outer: format!("imds{number}-o"),
        mac: mac.to_ascii_lowercase(),
        iface_id,
        table: number as u32,
    }
}

#[async_trait::async_trait]
impl MetadataSockets for Links {
    async fn open(&self, vpc: &VpcLink, listening: bool) -> Result<Option<Sockets>, String> {
        let link = self.row(vpc).await.map_err(|e| e.to_string())?;
        let client = self.client().await?;
        let linked = match link.ensure(&self.netns, &client).await {
            Ok(linked) => linked,
            Err(e) => {
                *self.client.lock().await = None;
                return Err(e.to_string());
            }
        };
        if listening && linked == Linked::Kept {
            return Ok(None);
        }
        let metadata = link.listen(&self.netns).map_err(|e| e.to_string())?;
        let names = link.listen_for_names(&self.netns).map_err(|e| e.to_string())?;
        Ok(Some(Sockets { metadata, names }))
    }

    async fn close(&self, vpc: &str) -> Result<(), String> {
        let name = vpc.to_owned();
        let held = self
            .store
            .read("find the metadata link of a VPC", move |tx| {
                tx.query_opt("SELECT number, port, mac FROM metadata_link WHERE vpc = ?1", params![name], |row| {
                    Ok(link(row.get(0)?, row.get(1)?, row.get(2)?))
                })
            })
            .await
            .map_err(|e: StoreError| e.to_string())?;
        let Some(link) = held else { return Ok(()) };
        let client = self.client().await?;
        if let Err(e) = link.remove(&self.netns, &client).await {
            *self.client.lock().await = None;
            return Err(e.to_string());
        }
        let vpc = vpc.to_owned();
        self.store
            .write("forget the metadata link of a VPC", move |tx| {
                tx.execute("DELETE FROM metadata_link WHERE vpc = ?1", params![vpc]).map(drop)
            })
            .await
            .map_err(|e: StoreError| e.to_string())
    }

    async fn held(&self) -> Result<Vec<String>, String> {
        let all = self
            .store
            .read("list metadata links", |tx| tx.query("SELECT vpc FROM metadata_link", params![], |row| row.get(0)))
            .await;
        all.map_err(|e: StoreError| e.to_string())
    }
}
