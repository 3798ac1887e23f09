//! A copy of the monitored tables that follows the updates.
//!
//! In a `modify`, a column that can hold one value carries the new value; a set carries the elements that came or went (a
//! symmetric difference); a map carries pairs that are new, changed, or (with their old value) gone: ovsdb-server(7), "Update2
//! Notification". Which columns are which is only in the schema, so the copy is made from it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::row::Row;
use crate::value;

/// What a database's schema says about the columns whose updates are differences.
#[derive(Debug, Clone, Default)]
pub struct Schema {
    many: BTreeMap<String, BTreeSet<String>>,
}

impl Schema {
    /// From the answer to `get_schema`.
    pub fn parse(schema: &Value) -> Result<Schema> {
        let tables = schema
            .get("tables")
            .and_then(Value::as_object)
            .ok_or_else(|| Error::Protocol("the schema has no tables".to_owned()))?;
        let many = tables.iter().map(|(table, body)| (table.clone(), many_valued_columns(body))).collect();
        Ok(Schema { many })
    }

    pub fn has_table(&self, table: &str) -> bool {
        self.many.contains_key(table)
    }

    fn is_many(&self, table: &str, column: &str) -> bool {
        self.many.get(table).is_some_and(|columns| columns.contains(column))
    }
}

fn many_valued_columns(table: &Value) -> BTreeSet<String> {
    let Some(columns) = table.get("columns").and_then(Value::as_object) else {
        return BTreeSet::new();
    };
    columns
        .iter()
        .filter(|(_, column)| match column.pointer("/type/max") {
            Some(Value::String(max)) => max == "unlimited",
            Some(max) => max.as_u64().is_some_and(|max| max > 1),
            None => false,
        })
        .map(|(name, _)| name.clone())
        .collect()
}

/// One row's change.
#[derive(Debug, Clone, PartialEq)]
pub struct RowUpdate {
    pub table: String,
    pub id: Uuid,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The row as it was when the monitor began.
    Initial(Row),
    /// Columns that have their default value may be absent.
    Insert(Row),
    /// The changed columns; sets and maps as differences (see the module).
    Modify(Row),
    Delete,
}

/// Reads `<table-updates2>`.
pub(crate) fn read_updates(updates: Value) -> Result<Vec<RowUpdate>> {
    let malformed = || Error::Protocol("malformed table updates".to_owned());
    let Value::Object(tables) = updates else {
        return Err(malformed());
    };
    let mut out = Vec::new();
    for (table, rows) in tables {
        let Value::Object(rows) = rows else {
            return Err(malformed());
        };
        for (id, change) in rows {
            let Value::Object(change) = change else {
                return Err(malformed());
            };
            let (kind, columns) = change.into_iter().next().ok_or_else(malformed)?;
            let row = match columns {
                Value::Object(columns) => Row(columns),
                _ => Row::new(),
            };
            let change = match kind.as_str() {
                "initial" => Change::Initial(row),
                "insert" => Change::Insert(row),
                "modify" => Change::Modify(row),
                "delete" => Change::Delete,
                other => return Err(Error::Protocol(format!("unknown update {other}"))),
            };
            out.push(RowUpdate { table: table.clone(), id: id.parse().map_err(|_| malformed())?, change });
        }
    }
    Ok(out)
}

/// The monitored rows, by table and id.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    schema: Schema,
    tables: BTreeMap<String, BTreeMap<Uuid, Row>>,
}

impl Replica {
    pub fn new(schema: Schema) -> Replica {
        Replica { schema, tables: BTreeMap::new() }
    }

    /// The rows of one table, in the order of their ids.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Row)> {
        self.tables.get(table).into_iter().flatten().map(|(id, row)| (*id, row))
    }

    pub fn row(&self, table: &str, id: Uuid) -> Option<&Row> {
        self.tables.get(table)?.get(&id)
    }

    pub fn apply(&mut self, updates: impl IntoIterator<Item = RowUpdate>) {
        for update in updates {
            self.apply_one(update);
        }
    }

    fn apply_one(&mut self, update: RowUpdate) {
        let RowUpdate { table, id, change } = update;
        let rows = self.tables.entry(table.clone()).or_default();
        match change {
            Change::Initial(row) | Change::Insert(row) => {
                rows.insert(id, row);
            }
            Change::Delete => {
                rows.remove(&id);
            }
            Change::Modify(difference) => {
                let row = rows.entry(id).or_default();
                for (column, change) in difference.0 {
                    let value = match row.0.get_mut(&column) {
                        Some(old) if self.schema.is_many(&table, &column) => patched(old.take(), &change),
                        _ => change,
                    };
                    row.0.insert(column, value);
                }
            }
        }
    }
}

/// A set or map column after a difference.
fn patched(old: Value, difference: &Value) -> Value {
    if value::is_map(&old) || value::is_map(difference) {
        let mut pairs = value::pairs(&old);
        for (key, new) in value::pairs(difference) {
            match pairs.iter().position(|(known, _)| *known == key) {
                Some(at) if pairs[at].1 == new => {
                    pairs.remove(at);
                }
                Some(at) => pairs[at].1 = new,
                None => pairs.push((key, new)),
            }
        }
        return value::map(pairs);
    }
    // Ten thousand ports may come to a port group at once: no search in one set for each element of the other.
    let named = value::elements(difference);
    let mut new: HashSet<&Value> = named.iter().collect();
    let mut elements = value::into_elements(old);
    elements.retain(|known| !new.remove(known));
    elements.extend(named.iter().filter(|element| new.contains(element)).cloned());
    value::set(elements)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_adds_what_is_new_and_takes_what_is_known() {
        let set = |elements: &[&str]| value::set(elements.iter().copied());
        assert_eq!(patched(set(&["a", "b"]), &set(&["b", "c"])), set(&["a", "c"]));
        assert_eq!(patched(json!("a"), &json!("a")), set(&[]));
        let map = |pairs: &[(&'static str, &'static str)]| value::map(pairs.iter().copied());
        assert_eq!(
            patched(
                map(&[("gone", "1"), ("changed", "2"), ("kept", "3")]),
                &map(&[("gone", "1"), ("changed", "4"), ("new", "5")])
            ),
            map(&[("changed", "4"), ("kept", "3"), ("new", "5")])
        );
    }
}
