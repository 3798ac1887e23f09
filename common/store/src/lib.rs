//! Where a tier keeps what it must not forget: one synchronous transaction API over SQLite (the default) and PostgreSQL.
//!
//! A [`Store`] belongs to one tier; tables are named only in the file that owns them. SQL is written once and runs on
//! both engines:
//! - parameters are `?1`, `?2`, ... without a gap; a parameter may be used more than once;
//! - columns are `BIGINT` (numbers, milliseconds, 0/1 for booleans), `TEXT` or `BLOB` (`BYTEA` on PostgreSQL, rewritten);
//! - insert-if-absent is `ON CONFLICT DO NOTHING` and a look at the number of rows; `ON CONFLICT (..) DO UPDATE` and
//!   `RETURNING` (with a `query`, not `execute`) are there on both;
//! - text compares as bytes, `LIKE` minds case; say `ESCAPE '\'` where a pattern may hold one;
//! - every uniqueness is a UNIQUE constraint and shows as [`Error::Unique`]; never a read before a write;
//!   constraints are checked at once, so none is DEFERRABLE: it would fail the commit, and with it everybody's batch;
//! - after a statement failed, its transaction can only end: nothing it did is kept, whatever the closure returns.
//!
//! A closure may be run more than once, so it has no effect outside its transaction; ids and time are passed in. Its
//! outcome, also a refusal, is released only when everything it was computed from is on disk.
//!
//! ```
//! use mallee_store::{Config, Error, Migration, Store, params};
//!
//! const MIGRATIONS: &[Migration] = &[Migration {
//!     version: 1,
//!     name: "volumes",
//!     sql: "CREATE TABLE volume (id TEXT PRIMARY KEY, gib BIGINT NOT NULL);",
//! }];
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("zone.db");
//! let store = Store::open(&Config::Sqlite { path }, MIGRATIONS)?;
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let id = "vol-0123".to_owned();
//! store
//!     .write("create a volume", move |tx| {
//!         tx.execute("INSERT INTO volume (id, gib) VALUES (?1, ?2)", params![id, 8])
//!     })
//!     .await?;
//! let all: Vec<(String, i64)> = store
//!     .read("list volumes", |tx| {
//!         tx.query("SELECT id, gib FROM volume ORDER BY id", params![], |row| Ok((row.get(0)?, row.get(1)?)))
//!     })
//!     .await?;
//! assert_eq!(all, [("vol-0123".to_owned(), 8)]);
//! # Ok::<(), Error>(())
//! # })?;
//! # Ok::<(), Error>(())
//! ```

mod error;
mod folder;
mod migrate;
mod postgres;
mod sqlite;
mod store;
mod tx;
mod value;

pub use error::Error;
pub use folder::durable_folder;
pub use migrate::Migration;
pub use store::{Config, Figures, Store};
pub use tx::{Row, Tx};
pub use value::{FromValue, ToValue, Value};
