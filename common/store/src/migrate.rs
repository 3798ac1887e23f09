//! The store's own tables, and the migrations that make the tier's. Forward only, all of them in one transaction.

use crate::{Error, Tx, params};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// One step of a tier's schema. Never changed once released; a correction is a new step.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Counts up; gaps are allowed.
    pub version: i64,
    pub name: &'static str,
    /// May hold several statements.
    pub sql: &'static str,
}

/// Who the store is: read once when it is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub incarnation: Uuid,
    pub epoch: i64,
}

pub(crate) const WHAT: &str = "open the store";

const OWN_TABLES: &str = "
    CREATE TABLE IF NOT EXISTS store_identity (
        one BIGINT PRIMARY KEY CHECK (one = 1),
        incarnation TEXT NOT NULL,
        epoch BIGINT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS store_migration (
        version BIGINT PRIMARY KEY,
        name TEXT NOT NULL,
        applied_ms BIGINT NOT NULL
    );";

/// Brings the store to the newest of `migrations`. The caller holds the engine's lock against a second one doing so.
pub(crate) fn apply(tx: &mut Tx<'_>, migrations: &[Migration]) -> Result<Identity, Error> {
    if let Some(pair) = migrations.windows(2).find(|pair| pair[0].version >= pair[1].version) {
        return Err(Error::other(WHAT, format!("migration {} does not count up", pair[1].name)));
    }
    tx.script(OWN_TABLES)?;
    let applied: BTreeMap<i64, String> = tx
        .query("SELECT version, name FROM store_migration", params![], |row| Ok((row.get(0)?, row.get(1)?)))?
        .into_iter()
        .collect();
    check(&applied, migrations)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    for migration in migrations.iter().filter(|migration| !applied.contains_key(&migration.version)) {
        tx.script(migration.sql).map_err(|error| {
            Error::other(WHAT, format!("migration {} ({}): {error}", migration.version, migration.name))
        })?;
        tx.execute(
            "INSERT INTO store_migration (version, name, applied_ms) VALUES (?1, ?2, ?3)",
            params![migration.version, migration.name, now],
        )?;
    }
    tx.execute(
        "INSERT INTO store_identity (one, incarnation, epoch) VALUES (1, ?1, 1) ON CONFLICT DO NOTHING",
        params![Uuid::new_v4()],
    )?;
    tx.query_one("SELECT incarnation, epoch FROM store_identity", params![], |row| {
        Ok(Identity { incarnation: row.get(0)?, epoch: row.get(1)? })
    })
}

/// Refuses a store whose history is not a beginning of this binary's.
fn check(applied: &BTreeMap<i64, String>, migrations: &[Migration]) -> Result<(), Error> {
    let Some((&newest, newest_name)) = applied.last_key_value() else {
        return Ok(());
    };
    let binary = migrations.last().map_or(0, |migration| migration.version);
    if newest > binary {
        return Err(Error::Newer { store: newest, name: newest_name.clone(), binary });
    }
    for (version, name) in applied {
        let ours = migrations.iter().find(|migration| migration.version == *version).map(|migration| migration.name);
        if ours != Some(name.as_str()) {
            let ours = ours.unwrap_or("nothing");
            return Err(Error::other(
                WHAT,
                format!("migration {version} was {name} in this store, and is {ours} here"),
            ));
        }
    }
    match migrations.iter().find(|m| m.version < newest && !applied.contains_key(&m.version)) {
        Some(late) => Err(Error::other(
            WHAT,
            format!("migration {} ({}) comes below {newest}, which is applied", late.version, late.name),
        )),
        None => Ok(()),
    }
}
