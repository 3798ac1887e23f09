//! What the node must not forget of an instance and cannot look up: the facts below, and the names it gave to taps.

use std::collections::BTreeMap;

use mallee_store::{Error as StoreError, Migration, Store, Tx, params};
use mallee_tiers::{Generation, Millis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub const MIGRATION: Migration = Migration {
    version: 2,
    name: "instances",
    sql: "
CREATE TABLE instance (id TEXT PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, facts TEXT NOT NULL);
CREATE TABLE tap (name TEXT PRIMARY KEY, instance TEXT NOT NULL, interface TEXT NOT NULL, UNIQUE (instance, interface));
CREATE TABLE happened (instance TEXT NOT NULL, at BIGINT NOT NULL, seq BIGINT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (instance, seq));
",
};

/// How much of an instance's history is kept for `mallee why`.
const HISTORY: i64 = 40;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// It was seen running and its end has not been accounted for yet.
    pub ran: bool,
    /// The node asked the guest to power off (or pulled its plug): that it is off is no surprise.
    pub asked_off: bool,
    /// The guest powered itself off under this generation of the wish; only a newer one starts it again.
    pub guest_off: Option<Generation>,
    /// It could not be brought up under this generation, and why; only a newer one tries again.
    pub failed: Option<Failure>,
    /// Reboots asked of the hypervisor, and reboots done.
    pub reboot_asked: u32,
    pub reboots_done: u32,
    /// When it was last seen to have started.
    pub started: Option<Millis>,
    /// The end of its console in base64, since it is off.
    pub console: Option<String>,
    /// Where the time of the last launch went.
    pub took_ms: BTreeMap<String, u64>,
    /// Nothing of it is left.
    pub gone: bool,
    /// It is off and has nothing on this node any more, and may be started anywhere.
    pub released: bool,
    /// The hold under which its guest stands still.
    pub held: Option<String>,
    /// A hold that lasted too long, and is not obeyed any more.
    pub lapsed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub generation: Generation,
    pub step: String,
    pub reason: String,
}

/// The uuid of an instance's domain: always the same for the same id, and `ec2` at its front, by which cloud-init knows
/// where it is.
pub fn uuid_of(instance: &str) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_bytes(*b"mallee-instances");
    let mut bytes = *Uuid::new_v5(&NAMESPACE, instance.as_bytes()).as_bytes();
    bytes[0] = 0xec;
    bytes[1] = 0x20 | (bytes[1] & 0x0f);
    Uuid::from_bytes(bytes)
}

#[derive(Clone)]
pub struct Rows {
    store: Store,
}

impl Rows {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    pub async fn all(&self) -> Result<BTreeMap<String, Facts>, StoreError> {
        let rows: Vec<(String, String)> = self
            .store
            .read("read the instances", |tx| {
                tx.query("SELECT id, facts FROM instance", params![], |row| Ok((row.get(0)?, row.get(1)?)))
            })
            .await?;
        rows.into_iter().map(|(id, facts)| Ok((id, parse(&facts)?))).collect()
    }

    /// The facts of an instance; those of one never heard of are the default.
    pub async fn get(&self, id: &str) -> Result<Facts, StoreError> {
        let id = id.to_owned();
        self.store.read("read an instance", move |tx| read(tx, &id)).await
    }

    /// Changes the facts of an instance durably, and notes in its history what `happened`.
    pub async fn update(
        &self,
        id: &str,
        now: Millis,
        happened: Option<String>,
        mut change: impl FnMut(&mut Facts) + Send + 'static,
    ) -> Result<Facts, StoreError> {
        let id = id.to_owned();
        self.store
            .write("change an instance", move |tx| {
                let mut facts = read(tx, &id)?;
                change(&mut facts);
                let text = serde_json::to_string(&facts).map_err(|e| other(e.to_string()))?;
                tx.execute(
                    "INSERT INTO instance (id, uuid, facts) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET facts = ?3",
                    params![id, uuid_of(&id), text],
                )?;
                if let Some(text) = &happened {
                    note(tx, &id, now, text)?;
                }
                Ok(facts)
            })
            .await
    }

    /// The tap of each interface, made up where there is none yet: 15 characters at most, and nobody else's.
    pub async fn taps(&self, id: &str, interfaces: Vec<String>) -> Result<BTreeMap<String, String>, StoreError> {
        let id = id.to_owned();
        self.store
            .write("name the taps of an instance", move |tx| {
                let mut taps = BTreeMap::new();
                for interface in &interfaces {
                    taps.insert(interface.clone(), tap(tx, &id, interface)?);
                }
                Ok(taps)
            })
            .await
    }

    pub async fn release_taps(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.store
            .write("release taps", move |tx| tx.execute("DELETE FROM tap WHERE instance = ?1", params![id]).map(drop))
            .await
    }

    pub async fn release_tap(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.store
            .write("release a tap", move |tx| tx.execute("DELETE FROM tap WHERE name = ?1", params![name]).map(drop))
            .await
    }

    pub async fn forget(&self, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.store
            .write("forget an instance", move |tx| {
                tx.execute("DELETE FROM tap WHERE instance = ?1", params![id])?;
                tx.execute("DELETE FROM happened WHERE instance = ?1", params![id])?;
                tx.execute("DELETE FROM instance WHERE id = ?1", params![id]).map(drop)
            })
            .await
    }

    pub async fn history(&self, id: &str) -> Result<Vec<(Millis, String)>, StoreError> {
        let id = id.to_owned();
        self.store
            .read("read an instance's history", move |tx| {
                tx.query("SELECT at, text FROM happened WHERE instance = ?1 ORDER BY seq", params![id], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
            })
            .await
    }
}

fn other(detail: String) -> StoreError {
    StoreError::Other { what: "instances", detail }
}

fn parse(text: &str) -> Result<Facts, StoreError> {
    serde_json::from_str(text).map_err(|e| other(format!("facts that are not readable: {e}")))
}

fn read(tx: &mut Tx<'_>, id: &str) -> Result<Facts, StoreError> {
    let text: Option<String> =
        tx.query_opt("SELECT facts FROM instance WHERE id = ?1", params![id], |row| row.get(0))?;
    text.map_or_else(|| Ok(Facts::default()), |text| parse(&text))
}

fn note(tx: &mut Tx<'_>, id: &str, now: Millis, text: &str) -> Result<(), StoreError> {
    let last: Option<i64> =
        tx.query_one("SELECT MAX(seq) FROM happened WHERE instance = ?1", params![id], |row| row.get(0))?;
    let seq = last.unwrap_or(0) + 1;
    tx.execute("INSERT INTO happened (instance, at, seq, text) VALUES (?1, ?2, ?3, ?4)", params![id, now, seq, text])?;
    tx.execute("DELETE FROM happened WHERE instance = ?1 AND seq <= ?2", params![id, seq - HISTORY]).map(drop)
}

fn tap(tx: &mut Tx<'_>, id: &str, interface: &str) -> Result<String, StoreError> {
    let held: Option<String> =
        tx.query_opt("SELECT name FROM tap WHERE instance = ?1 AND interface = ?2", params![id, interface], |row| {
            row.get(0)
        })?;
    if let Some(name) = held {
        return Ok(name);
    }
    // A network device's name has 15 characters: the interface's own last 12 digits, else counted on from there.
    let hex: String = interface.chars().filter(char::is_ascii_hexdigit).collect();
    let tail = hex.get(hex.len().saturating_sub(12)..).unwrap_or_default();
    let first = u64::from_str_radix(tail, 16).unwrap_or(0);
    for step in 0..1000u64 {
        let name = format!("tap{:012x}", first.wrapping_add(step) & 0xffff_ffff_ffff);
        let taken = tx.execute(
            "INSERT INTO tap (name, instance, interface) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![name, id, interface],
        )?;
        if taken == 1 {
            return Ok(name);
        }
    }
    Err(other(format!("no name is left for the tap of {interface}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_store::Config;

    fn rows() -> (tempfile::TempDir, Rows) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Config::Sqlite { path: dir.path().join("s.db") }, &[MIGRATION]).unwrap();
        (dir, Rows::new(store))
    }

    #[test]
    fn a_domains_uuid_begins_as_cloud_init_wants_it() {
        let uuid = uuid_of("i-0123456789abcdef0").to_string();
        assert!(uuid.starts_with("ec2"), "{uuid}");
        assert_eq!(uuid_of("i-0123456789abcdef0").to_string(), uuid);
        assert_ne!(uuid_of("i-0123456789abcdef1").to_string(), uuid);
    }

    #[tokio::test]
    async fn two_interfaces_never_share_a_tap() {
        let (_dir, rows) = rows();
        let one = rows.taps("i-a", vec!["eni-0123456789abcdef0".into()]).await.unwrap();
        let two = rows.taps("i-b", vec!["eni-9923456789abcdef0".into()]).await.unwrap();
        let (one, two) = (one.values().next().unwrap(), two.values().next().unwrap());
        assert!(one != two && one.len() == 15 && two.len() == 15, "{one} {two}");
        let again = rows.taps("i-a", vec!["eni-0123456789abcdef0".into()]).await.unwrap();
        assert_eq!(again.values().next().unwrap(), one);
    }

    #[tokio::test]
    async fn history_is_kept_short() {
        let (_dir, rows) = rows();
        for n in 0..60 {
            rows.update("i-a", n, Some(format!("event {n}")), |f| f.reboots_done += 1).await.unwrap();
        }
        let history = rows.history("i-a").await.unwrap();
        assert_eq!(history.len(), 40);
        assert_eq!(history[39].1, "event 59");
        assert_eq!(rows.get("i-a").await.unwrap().reboots_done, 60);
    }
}
