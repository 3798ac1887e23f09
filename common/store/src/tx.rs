//! A transaction as a closure sees it, the same on both engines.

use crate::store::Counters;
use crate::value::{FromValue, ToValue, Value};
use crate::{Error, postgres, sqlite};
use std::ops::ControlFlow;

/// An open transaction. Lent to the closure; it ends when the closure returns.
pub struct Tx<'a> {
    session: Session<'a>,
    what: &'static str,
    /// The first statement that failed. PostgreSQL refuses everything after it; SQLite is held to the same.
    failed: Option<Error>,
}

/// The connection under a transaction.
pub(crate) enum Session<'a> {
    Sqlite(&'a rusqlite::Connection, &'a Counters),
    Postgres(&'a mut postgres::Session),
}

/// A row, valid while its callback runs.
pub struct Row<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) what: &'static str,
}

pub(crate) enum Source<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a ::postgres::Row),
}

/// What a statement does with each row it gets.
pub(crate) type Visit<'v> = &'v mut dyn FnMut(&Row<'_>) -> Result<ControlFlow<()>, Error>;

impl<'a> Tx<'a> {
    pub(crate) fn new(session: Session<'a>, what: &'static str) -> Self {
        Tx { session, what, failed: None }
    }

    /// Runs a statement that returns no rows; the number of rows it changed.
    pub fn execute(&mut self, sql: &str, params: &[&dyn ToValue]) -> Result<u64, Error> {
        let values = self.prepare(params)?;
        let done = match &mut self.session {
            Session::Sqlite(connection, counters) => sqlite::execute(connection, counters, self.what, sql, &values),
            Session::Postgres(session) => session.execute(self.what, sql, &values),
        };
        self.note(done)
    }

    /// All rows, each turned into a `T`.
    pub fn query<T>(
        &mut self,
        sql: &str,
        params: &[&dyn ToValue],
        mut map: impl FnMut(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        self.each(sql, params, |row| {
            all.push(map(row)?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// The row, if there is one; more than one is an error.
    pub fn query_opt<T>(
        &mut self,
        sql: &str,
        params: &[&dyn ToValue],
        map: impl FnMut(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let mut all = self.query(sql, params, map)?;
        match all.len() {
            0 | 1 => Ok(all.pop()),
            many => Err(Error::other(self.what, format!("wanted at most one row, found {many}: {sql}"))),
        }
    }

    /// The row; none, or more than one, is an error.
    pub fn query_one<T>(
        &mut self,
        sql: &str,
        params: &[&dyn ToValue],
        map: impl FnMut(&Row<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.query_opt(sql, params, map)?
            .ok_or_else(|| Error::other(self.what, format!("wanted one row, found none: {sql}")))
    }

    /// Row by row, without keeping them, until the callback breaks.
    pub fn each(
        &mut self,
        sql: &str,
        params: &[&dyn ToValue],
        mut visit: impl FnMut(&Row<'_>) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let values = self.prepare(params)?;
        let done = match &mut self.session {
            Session::Sqlite(connection, counters) => {
                sqlite::each(connection, counters, self.what, sql, &values, &mut visit)
            }
            Session::Postgres(session) => session.each(self.what, sql, &values, &mut visit),
        };
        self.note(done)
    }

    /// The store's epoch as this transaction sees it: a leader that has been replaced finds it raised.
    pub fn epoch(&mut self) -> Result<i64, Error> {
        self.query_one("SELECT epoch FROM store_identity", &[], |row| row.get(0))
    }

    /// Several statements without parameters, for migrations.
    pub(crate) fn script(&mut self, sql: &str) -> Result<(), Error> {
        let done = match &mut self.session {
            Session::Sqlite(connection, _) => sqlite::script(connection, self.what, sql),
            Session::Postgres(session) => session.script(self.what, sql),
        };
        self.note(done)
    }

    pub(crate) fn into_failure(self) -> Option<Error> {
        self.failed
    }

    fn prepare<'v>(&mut self, params: &'v [&'v dyn ToValue]) -> Result<Vec<Value<'v>>, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let values: Vec<Value<'v>> = params.iter().map(|param| param.to_value()).collect();
        let checked = values.iter().enumerate().try_for_each(|(index, value)| {
            value.check().map_err(|why| Error::other(self.what, format!("parameter ?{}: {why}", index + 1)))
        });
        self.note(checked)?;
        Ok(values)
    }

    fn note<T>(&mut self, done: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &done {
            self.failed = Some(error.clone());
        }
        done
    }
}

impl Row<'_> {
    /// The column at `index`, counted from 0.
    pub fn get<T: FromValue>(&self, index: usize) -> Result<T, Error> {
        let value = match self.source {
            Source::Sqlite(row) => sqlite::column(row, index),
            Source::Postgres(row) => postgres::column(row, index),
        };
        value.and_then(T::from_value).map_err(|why| Error::other(self.what, format!("column {index}: {why}")))
    }
}
