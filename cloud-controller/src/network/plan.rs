//! The difference between wanted and actual northbound content, as operations of one transaction. Pure.
//!
//! A row is found by its tag; where names are unique, an untagged row of a wanted name is taken over (somebody removed the
//! tag, or made what stands in the way). Sets of references are changed by their difference, so that one more port among
//! thousands is a small message.
//!
//! [`plan`] looks at every row. What it found can be [`Known`], and then the next plan looks only at what is wanted
//! otherwise than before, as long as every row that was touched since is as it was wanted.

use std::collections::{BTreeMap, BTreeSet};

use mallee_ovsdb::{Condition, Op, Replica, Row, value};
use serde_json::Value;
use uuid::Uuid;

use super::northbound::{Column, Columns, Content, TAG, TAGS, Table};

mod known;

pub use known::Known;

/// What a transaction does.
#[derive(Debug, Default)]
pub struct Plan {
    pub ops: Vec<Op>,
    pub inserted: usize,
    pub updated: usize,
    pub deleted: usize,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
    pub fn changes(&self) -> usize {
        self.inserted + self.updated + self.deleted
    }
}

/// Rows of the database that are Mallee's.
struct Actual<'a> {
    rows: BTreeMap<(Table, String), (Uuid, &'a Row)>,
    /// What nothing wants.
    superfluous: Vec<(Table, Uuid)>,
}

fn actual<'a>(content: &Content, replica: &'a Replica) -> Actual<'a> {
    let mut found = Actual { rows: BTreeMap::new(), superfluous: Vec::new() };
    for table in Table::ALL {
        // Tagged rows first: a row that is taken over by its name must not displace one.
        let (mut tagged, mut named) = (Vec::new(), Vec::new());
        for (id, row) in replica.rows(table.name()) {
            match row.string_map(TAGS).remove(TAG) {
                Some(key) => tagged.push((key, id, row)),
                None if table.unique_name() => {
                    named.extend(row.string("name").map(|name| (name.to_owned(), id, row)));
                }
                None => {}
            }
        }
        for (key, id, row) in tagged {
            let right_name = !table.unique_name() || row.string("name") == Some(key.as_str());
            let wanted = content.get(table, &key).is_some() && right_name;
            if wanted && !found.rows.contains_key(&(table, key.clone())) {
                found.rows.insert((table, key), (id, row));
            } else {
                found.superfluous.push((table, id));
            }
        }
        for (name, id, row) in named {
            if content.get(table, &name).is_some() {
                found.rows.entry((table, name)).or_insert((id, row));
            }
        }
    }
    found
}

/// What makes the database as `content` says.
pub fn plan(content: &Content, replica: &Replica) -> Plan {
    let actual = actual(content, replica);
    let all: Vec<Wish<'_>> = Table::ALL
        .into_iter()
        .flat_map(|table| content.rows(table).map(move |(key, columns)| (table, key, columns)))
        .collect();
    let mut plan = wished(&all, |table, key| actual.rows.get(&(table, key.to_owned())).copied());
    drop_superfluous(&mut plan, &actual.superfluous);
    plan
}

/// One row that is wanted.
type Wish<'a> = (Table, &'a str, &'a Columns);

/// Makes these rows as they are wanted, wherever they are `found`.
fn wished<'a>(wishes: &[Wish<'_>], found: impl Fn(Table, &str) -> Option<(Uuid, &'a Row)>) -> Plan {
    let mut names: BTreeMap<(Table, &str), String> = BTreeMap::new();
    for (table, key, _) in wishes {
        if found(*table, key).is_none() {
            names.insert((*table, key), format!("new{}", names.len()));
        }
    }
    let refer = |table: Table, key: &str| match found(table, key) {
        Some((id, _)) => Some(value::uuid(id)),
        None => names.get(&(table, key)).map(|name| value::named(name)),
    };
    let mut plan = Plan::default();
    for (table, key, columns) in wishes {
        match found(*table, key) {
            None => {
                let name = names.get(&(*table, *key)).map(String::as_str).unwrap_or_default();
                plan.ops.push(Op::insert(table.name(), row(columns, &refer)).named(name));
                plan.inserted += 1;
            }
            Some((id, there)) => {
                let before = plan.ops.len();
                update(&mut plan.ops, *table, id, columns, there, &refer);
                plan.updated += usize::from(plan.ops.len() > before);
            }
        }
    }
    plan
}

fn drop_superfluous(plan: &mut Plan, rows: &[(Table, Uuid)]) {
    for (table, id) in rows {
        // The others go with the last reference to them, which is one of the changes.
        if table.is_root() {
            plan.ops.push(Op::delete(table.name(), [Condition::row(*id)]));
        }
    }
    plan.deleted = if plan.ops.is_empty() { 0 } else { rows.len() };
}

type Refer<'a> = dyn Fn(Table, &str) -> Option<Value> + 'a;

fn row(columns: &Columns, refer: &Refer<'_>) -> Row {
    columns.iter().fold(Row::new(), |row, (name, column)| row.with(name, written(column, refer)))
}

fn written(column: &Column, refer: &Refer<'_>) -> Value {
    match column {
        Column::Text(text) => text.as_str().into(),
        Column::Number(number) => (*number).into(),
        Column::Flag(flag) => (*flag).into(),
        Column::Set(elements) => value::set(elements.iter().map(String::as_str)),
        Column::Map(pairs) => value::map(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))),
        Column::Rows(table, keys) => value::set(keys.iter().filter_map(|key| refer(*table, key))),
    }
}

fn update(ops: &mut Vec<Op>, table: Table, id: Uuid, columns: &Columns, there: &Row, refer: &Refer<'_>) {
    let mut changed = Row::new();
    let mut mutation: Option<Op> = None;
    let mut mutate = |column: &str, mutator: &str, elements: Vec<Value>| {
        if elements.is_empty() {
            return;
        }
        let elements = value::set(elements);
        mutation = Some(match mutation.take() {
            None => Op::mutate(table.name(), [Condition::row(id)], column, mutator, elements),
            Some(op) => op.and_mutate(column, mutator, elements),
        });
    };
    for (name, column) in columns {
        match column {
            Column::Rows(to, keys) if is_many(name) => {
                let wanted: Vec<Value> = keys.iter().filter_map(|key| refer(*to, key)).collect();
                let wanted_ids: BTreeSet<Uuid> = wanted.iter().filter_map(value::as_uuid).collect();
                let there: BTreeSet<Uuid> = there.uuids(name).into_iter().collect();
                mutate(name, "delete", there.difference(&wanted_ids).map(|gone| value::uuid(*gone)).collect());
                let is_new = |v: &Value| value::as_uuid(v).is_none_or(|id| !there.contains(&id));
                mutate(name, "insert", wanted.into_iter().filter(is_new).collect());
            }
            column => {
                let wanted = written(column, refer);
                if !same(column, &wanted, name, there) {
                    changed = changed.with(name, wanted);
                }
            }
        }
    }
    if !changed.is_empty() {
        ops.push(Op::update(table.name(), [Condition::row(id)], changed));
    }
    ops.extend(mutation);
}

/// Columns of references that hold any number of them.
fn is_many(column: &str) -> bool {
    !matches!(column, "dhcpv4_options" | "dhcpv6_options" | "allowed_ext_ips")
}

fn same(column: &Column, wanted: &Value, name: &str, there: &Row) -> bool {
    match column {
        Column::Text(text) => there.string(name).unwrap_or_default() == text,
        Column::Number(number) => there.integer(name).unwrap_or_default() == *number,
        Column::Flag(flag) => there.boolean(name) == Some(*flag),
        Column::Set(elements) => {
            let found = there.set(name);
            found.len() == elements.len() && found.iter().all(|e| e.as_str().is_some_and(|e| elements.contains(e)))
        }
        Column::Map(pairs) => there.string_map(name) == *pairs,
        Column::Rows(_, _) => {
            let wanted = Row::new().with(name, wanted.clone());
            // A row that is only now inserted has no id yet.
            let ids: BTreeSet<Uuid> = wanted.uuids(name).into_iter().collect();
            ids.len() == wanted.set(name).len() && there.uuids(name).into_iter().collect::<BTreeSet<_>>() == ids
        }
    }
}

#[cfg(test)]
mod tests;
