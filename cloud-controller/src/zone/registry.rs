//! Where the other tiers are, as they registered, and clients to call them with.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use mallee_service::{Identity, TierHttp};
use mallee_store::{Error as StoreError, Store, Tx, params};
use mallee_tiers::{
    ClusterClient, Located, Millis, Peer, Role, StorageClient, TierError, TierRegistration, WalrusClient,
};

pub const TABLES: &str = "
CREATE TABLE tier (
    role TEXT NOT NULL,
    zone TEXT NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    version TEXT NOT NULL,
    registered BIGINT NOT NULL,
    clock_offset BIGINT NOT NULL,
    PRIMARY KEY (role, zone, name)
);
";

/// A tier registers again within this time.
pub const LEASE_MS: u64 = 10_000;

/// A tier that registered once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    pub role: Role,
    pub zone: String,
    pub name: String,
    pub address: String,
    pub version: String,
    pub registered: Millis,
    /// Its clock minus ours when it registered; only ever shown.
    pub clock_offset: i64,
}

const COLUMNS: &str = "role, zone, name, address, version, registered, clock_offset";

fn read(row: &mallee_store::Row<'_>) -> Result<Registered, StoreError> {
    let role: String = row.get(0)?;
    Ok(Registered {
        role: role.parse().map_err(|detail| StoreError::Other { what: "read a tier", detail })?,
        zone: row.get(1)?,
        name: row.get(2)?,
        address: row.get(3)?,
        version: row.get(4)?,
        registered: row.get(5)?,
        clock_offset: row.get(6)?,
    })
}

/// Keeps where a tier says it is. True when that is news: whoever waits for it should be poked.
pub fn register(tx: &mut Tx<'_>, peer: &Peer, said: &TierRegistration, now: Millis) -> Result<bool, StoreError> {
    let known = tx.query_opt(
        "SELECT address FROM tier WHERE role = ?1 AND zone = ?2 AND name = ?3",
        params![peer.role.as_str(), peer.zone, peer.name],
        |row| row.get::<String>(0),
    )?;
    tx.execute(
        "INSERT INTO tier (role, zone, name, address, version, registered, clock_offset) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (role, zone, name) DO UPDATE SET address = ?4, version = ?5, registered = ?6, clock_offset = ?7",
        params![peer.role.as_str(), peer.zone, peer.name, said.address, said.version, now, said.now - now],
    )?;
    Ok(known.as_deref() != Some(said.address.as_str()))
}

/// The tier with this role in this zone that registered last.
pub fn locate(tx: &mut Tx<'_>, role: Role, zone: &str) -> Result<Option<Located>, StoreError> {
    let found = tx.query(
        "SELECT address, name FROM tier WHERE role = ?1 AND zone = ?2 ORDER BY registered DESC LIMIT 1",
        params![role.as_str(), zone],
        |row| Ok(Located { address: row.get(0)?, name: row.get(1)? }),
    )?;
    Ok(found.into_iter().next())
}

/// Every tier that ever registered.
pub fn all(tx: &mut Tx<'_>) -> Result<Vec<Registered>, StoreError> {
    tx.query(&format!("SELECT {COLUMNS} FROM tier ORDER BY role, zone, name"), params![], read)
}

/// Clients to the other tiers. They keep their connections; one is made anew when its tier moved.
#[derive(Default)]
pub struct Tiers {
    /// None in a cloud-controller that has no certificate (a test of rules): every call then says so.
    identity: Option<Identity>,
    clients: Mutex<BTreeMap<(Role, String), (String, TierHttp)>>,
}

impl Tiers {
    pub fn new(identity: Identity) -> Self {
        Self { identity: Some(identity), clients: Mutex::default() }
    }

    /// A client to the tier with this role in this zone (empty for walrus).
    pub async fn http(&self, store: &Store, role: Role, zone: &str) -> Result<TierHttp, TierError> {
        let wanted = zone.to_owned();
        let at = store
            .read("locate a tier", move |tx| locate(tx, role, &wanted))
            .await
            .map_err(|e| TierError::internal(e.to_string()))?
            .ok_or_else(|| TierError::unreachable(format!("no {role} has registered{}", in_zone(zone))))?;
        let key = (role, zone.to_owned());
        if let Some((_, client)) =
            self.lock().get(&key).filter(|(name, c)| *name == at.name && c.address() == at.address)
        {
            return Ok(client.clone());
        }
        let identity = self
            .identity
            .as_ref()
            .ok_or_else(|| TierError::unreachable("this cloud-controller has no certificate yet"))?;
        let client = TierHttp::new(identity, &at.address, role, &at.name)?;
        self.lock().insert(key, (at.name, client.clone()));
        Ok(client)
    }

    pub async fn cluster(&self, store: &Store, zone: &str) -> Result<ClusterClient, TierError> {
        Ok(ClusterClient::new(Arc::new(self.http(store, Role::ClusterController, zone).await?)))
    }

    pub async fn storage(&self, store: &Store, zone: &str) -> Result<StorageClient, TierError> {
        Ok(StorageClient::new(Arc::new(self.http(store, Role::StorageController, zone).await?)))
    }

    pub async fn walrus(&self, store: &Store) -> Result<WalrusClient, TierError> {
        Ok(WalrusClient::new(Arc::new(self.walrus_http(store).await?)))
    }

    /// For walrus' streams.
    pub async fn walrus_http(&self, store: &Store) -> Result<TierHttp, TierError> {
        self.http(store, Role::Walrus, "").await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Role, String), (String, TierHttp)>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_zone(zone: &str) -> String {
    if zone.is_empty() { String::new() } else { format!(" for zone {zone}") }
}
