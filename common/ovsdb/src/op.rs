//! The operations of a transaction (RFC 7047 §5.2), their conditions and their results.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::row::Row;
use crate::value;

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Op(Map<String, Value>);

/// A clause of a `where`; all clauses of an operation must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Value);

impl Condition {
    pub fn equal(column: &str, value: impl Into<Value>) -> Condition {
        Condition::new(column, "==", value)
    }

    pub fn includes(column: &str, value: impl Into<Value>) -> Condition {
        Condition::new(column, "includes", value)
    }

    pub fn row(id: Uuid) -> Condition {
        Condition::new("_uuid", "==", value::uuid(id))
    }

    /// Any function of RFC 7047 §5.1: `<`, `<=`, `==`, `!=`, `>=`, `>`, `includes`, `excludes`.
    pub fn new(column: &str, function: &str, value: impl Into<Value>) -> Condition {
        Condition(json!([column, function, value.into()]))
    }

    pub(crate) fn into_value(self) -> Value {
        self.0
    }
}

impl Op {
    pub fn insert(table: &str, row: Row) -> Op {
        Op::start("insert", table).field("row", Value::Object(row.0))
    }

    /// Names an inserted row, so that others of the same transaction can refer to it with [`value::named`]. The name must
    /// be a C identifier.
    pub fn named(self, name: &str) -> Op {
        self.field("uuid-name", name)
    }

    pub fn update(table: &str, conditions: impl IntoIterator<Item = Condition>, row: Row) -> Op {
        Op::start("update", table).conditions(conditions).field("row", Value::Object(row.0))
    }

    /// One mutation; more are added with [`Op::and_mutate`]. Mutators: `+=`, `-=`, `*=`, `/=`, `%=`, `insert`, `delete`.
    pub fn mutate(
        table: &str,
        conditions: impl IntoIterator<Item = Condition>,
        column: &str,
        mutator: &str,
        value: impl Into<Value>,
    ) -> Op {
        Op::start("mutate", table)
            .conditions(conditions)
            .field("mutations", json!([]))
            .and_mutate(column, mutator, value)
    }

    pub fn and_mutate(mut self, column: &str, mutator: &str, value: impl Into<Value>) -> Op {
        if let Some(Value::Array(mutations)) = self.0.get_mut("mutations") {
            mutations.push(json!([column, mutator, value.into()]));
        }
        self
    }

    pub fn delete(table: &str, conditions: impl IntoIterator<Item = Condition>) -> Op {
        Op::start("delete", table).conditions(conditions)
    }

    pub fn select(table: &str, conditions: impl IntoIterator<Item = Condition>, columns: &[&str]) -> Op {
        let op = Op::start("select", table).conditions(conditions);
        if columns.is_empty() {
            return op;
        }
        op.field("columns", json!(columns))
    }

    /// A precondition: the transaction is refused ([`Error::is_failed_wait`]) unless the matched rows' columns are (`==`)
    /// or are not (`!=`) exactly `rows`. It does not wait: the timeout is zero.
    pub fn wait(
        table: &str,
        conditions: impl IntoIterator<Item = Condition>,
        columns: &[&str],
        until: &str,
        rows: impl IntoIterator<Item = Row>,
    ) -> Op {
        let rows: Vec<Value> = rows.into_iter().map(|row| Value::Object(row.0)).collect();
        Op::start("wait", table)
            .conditions(conditions)
            .field("columns", json!(columns))
            .field("until", until)
            .field("rows", rows)
            .field("timeout", 0)
    }

    /// A note in the database's log, which is how an operator finds who wrote what.
    pub fn comment(text: &str) -> Op {
        let mut fields = Map::new();
        fields.insert("op".to_owned(), "comment".into());
        fields.insert("comment".to_owned(), text.into());
        Op(fields)
    }

    pub(crate) fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    fn start(op: &str, table: &str) -> Op {
        let mut fields = Map::new();
        fields.insert("op".to_owned(), op.into());
        fields.insert("table".to_owned(), table.into());
        Op(fields)
    }

    fn conditions(self, conditions: impl IntoIterator<Item = Condition>) -> Op {
        let clauses: Vec<Value> = conditions.into_iter().map(Condition::into_value).collect();
        self.field("where", clauses)
    }

    fn field(mut self, name: &str, value: impl Into<Value>) -> Op {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// `insert into Logical_Switch`, short enough for a log line (a row can hold a hundred kilobytes).
    fn describe(&self) -> String {
        let word = |name| self.0.get(name).and_then(Value::as_str).unwrap_or("");
        let target = self
            .0
            .get("where")
            .map(|clauses| format!(" where {clauses}"))
            .or_else(|| Some(format!(" {}", self.0.get("row")?)))
            .unwrap_or_default();
        let target: String = target.chars().take(200).collect();
        format!("{} {}{target}", word("op"), word("table"))
    }
}

/// What one operation answered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OpResult {
    /// The new row of an `insert`.
    pub uuid: Option<Uuid>,
    /// The rows of a `select`.
    pub rows: Vec<Row>,
    /// The rows an `update`, `mutate` or `delete` matched.
    pub count: u64,
}

/// Reads the answer to a transaction: one element per operation, or an error at the one that failed, or one element more
/// when the commit itself failed.
pub(crate) fn read_results(operations: &[Op], answer: Value) -> Result<Vec<OpResult>> {
    let Value::Array(elements) = answer else {
        return Err(Error::Protocol("the answer to a transaction is not a list".to_owned()));
    };
    for (index, element) in elements.iter().enumerate() {
        let Some(error) = element.get("error").and_then(Value::as_str) else {
            continue;
        };
        let operation = operations.get(index);
        return Err(Error::Refused {
            index: operation.map(|_| index),
            operation: operation.map_or_else(|| "the commit".to_owned(), Op::describe),
            error: error.to_owned(),
            details: element.get("details").and_then(Value::as_str).unwrap_or_default().to_owned(),
        });
    }
    if elements.len() != operations.len() || elements.iter().any(Value::is_null) {
        return Err(Error::Protocol(format!("{} operations got {} answers", operations.len(), elements.len())));
    }
    Ok(elements.into_iter().map(read_result).collect())
}

fn read_result(element: Value) -> OpResult {
    let Value::Object(mut fields) = element else {
        return OpResult::default();
    };
    let rows = match fields.remove("rows") {
        Some(Value::Array(rows)) => rows
            .into_iter()
            .filter_map(|row| match row {
                Value::Object(columns) => Some(Row(columns)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    OpResult {
        uuid: fields.get("uuid").and_then(value::as_uuid),
        rows,
        count: fields.get("count").and_then(Value::as_u64).unwrap_or(0),
    }
}
