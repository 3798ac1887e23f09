//! OVSDB's notation of values (RFC 7047 §5.1): `["uuid", …]`, `["named-uuid", …]`, `["set", […]]`, `["map", […]]`.

use serde_json::{Value, json};
use uuid::Uuid;

/// A row that exists.
pub fn uuid(id: Uuid) -> Value {
    json!(["uuid", id.to_string()])
}

/// A row inserted in the same transaction, by the name given to [`crate::Op::named`].
pub fn named(name: &str) -> Value {
    json!(["named-uuid", name])
}

pub fn set<V: Into<Value>>(elements: impl IntoIterator<Item = V>) -> Value {
    let elements: Vec<Value> = elements.into_iter().map(Into::into).collect();
    json!(["set", elements])
}

pub fn map<K: Into<Value>, V: Into<Value>>(pairs: impl IntoIterator<Item = (K, V)>) -> Value {
    let pairs: Vec<Value> = pairs.into_iter().map(|(key, value)| json!([key.into(), value.into()])).collect();
    json!(["map", pairs])
}

/// The elements of a set column. A set of exactly one element is written as that element alone.
pub(crate) fn elements(value: &Value) -> Vec<Value> {
    match tagged(value, "set") {
        Some(inner) => inner.to_vec(),
        None => vec![value.clone()],
    }
}

/// [`elements`] of a column that is no longer needed.
pub(crate) fn into_elements(value: Value) -> Vec<Value> {
    match value {
        Value::Array(mut both) if tagged_array(&both, "set").is_some() => match both.pop() {
            Some(Value::Array(inner)) => inner,
            _ => Vec::new(),
        },
        single => vec![single],
    }
}

/// The pairs of a map column; empty when the value is no map.
pub(crate) fn pairs(value: &Value) -> Vec<(Value, Value)> {
    tagged(value, "map")
        .unwrap_or_default()
        .iter()
        .filter_map(|pair| match pair.as_array()?.as_slice() {
            [key, value] => Some((key.clone(), value.clone())),
            _ => None,
        })
        .collect()
}

pub(crate) fn is_map(value: &Value) -> bool {
    tagged(value, "map").is_some()
}

/// The id in `["uuid", "…"]`.
pub fn as_uuid(value: &Value) -> Option<Uuid> {
    match value.as_array()?.as_slice() {
        [Value::String(tag), Value::String(id)] if tag == "uuid" => id.parse().ok(),
        _ => None,
    }
}

fn tagged<'v>(value: &'v Value, tag: &str) -> Option<&'v [Value]> {
    tagged_array(value.as_array()?, tag)
}

fn tagged_array<'v>(array: &'v [Value], tag: &str) -> Option<&'v [Value]> {
    match array {
        [Value::String(found), Value::Array(inner)] if found == tag => Some(inner),
        _ => None,
    }
}
