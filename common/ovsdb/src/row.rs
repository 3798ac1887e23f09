//! One row's columns, written or read.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::value;

/// Columns by name. Readers answer `None` (or nothing) for a column that is missing or of another type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row(pub(crate) Map<String, Value>);

impl Row {
    pub fn new() -> Row {
        Row::default()
    }

    pub fn with(mut self, column: &str, value: impl Into<Value>) -> Row {
        self.0.insert(column.to_owned(), value.into());
        self
    }

    pub fn get(&self, column: &str) -> Option<&Value> {
        self.0.get(column)
    }

    pub fn columns(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The row's own id, in rows that were selected with `_uuid`.
    pub fn id(&self) -> Option<Uuid> {
        self.uuid("_uuid")
    }

    pub fn string(&self, column: &str) -> Option<&str> {
        self.get(column)?.as_str()
    }

    pub fn integer(&self, column: &str) -> Option<i64> {
        self.get(column)?.as_i64()
    }

    /// A boolean, or an optional boolean that is set (`up` of a logical port is absent until it was ever bound).
    pub fn boolean(&self, column: &str) -> Option<bool> {
        self.get(column)?.as_bool()
    }

    pub fn uuid(&self, column: &str) -> Option<Uuid> {
        value::as_uuid(self.get(column)?)
    }

    /// The elements of a set column, one or many.
    pub fn set(&self, column: &str) -> Vec<Value> {
        self.get(column).map(value::elements).unwrap_or_default()
    }

    pub fn uuids(&self, column: &str) -> Vec<Uuid> {
        self.set(column).iter().filter_map(value::as_uuid).collect()
    }

    pub fn strings(&self, column: &str) -> Vec<String> {
        self.set(column).iter().filter_map(|element| element.as_str().map(str::to_owned)).collect()
    }

    /// A map from text to text, such as `external_ids` or `options`.
    pub fn string_map(&self, column: &str) -> BTreeMap<String, String> {
        self.get(column)
            .map(value::pairs)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value.as_str()?.to_owned())))
            .collect()
    }
}

impl From<Map<String, Value>> for Row {
    fn from(columns: Map<String, Value>) -> Row {
        Row(columns)
    }
}
