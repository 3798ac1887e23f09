//! What a plan left in the database, and where, so that the next one need not look at all of it again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use mallee_ovsdb::Replica;
use uuid::Uuid;

use super::{Plan, Wish, drop_superfluous, update, wished};
use crate::network::northbound::{Columns, Content, TAG, TAGS, Table};

/// All of the database is looked at so often, whatever is known of it.
const FOR: Duration = Duration::from_secs(300);

/// What the database holds of Mallee's. It is never more than a short cut: without it, or when any touched row is not as it
/// was left, all rows are looked at.
pub struct Known {
    content: Arc<Content>,
    ids: BTreeMap<Table, HashMap<String, Uuid>>,
    keys: HashMap<Uuid, (Table, String)>,
    since: Instant,
}

impl Known {
    /// From a database that was just made as `content` says. None: something is there that should not be.
    pub fn new(content: Arc<Content>, replica: &Replica) -> Option<Self> {
        let mut known = Self { content, ids: BTreeMap::new(), keys: HashMap::new(), since: Instant::now() };
        for table in Table::ALL {
            for (id, row) in replica.rows(table.name()) {
                let Some(key) = row.string_map(TAGS).remove(TAG) else { continue };
                if known.content.get(table, &key).is_none() || !known.find(table, key, id) {
                    return None;
                }
            }
        }
        Some(known)
    }

    /// The plan for other content, from what was touched since the last one. None: somebody else was there, or it is time
    /// to see whether, and all has to be looked at.
    pub fn plan(
        mut self,
        content: &Arc<Content>,
        replica: &Replica,
        touched: &BTreeSet<(Table, Uuid)>,
    ) -> Option<(Self, Plan)> {
        if self.since.elapsed() > FOR || !self.is_as_it_was_left(replica, touched) {
            return None;
        }
        let mut wishes: Vec<Wish<'_>> = Vec::new();
        let mut superfluous = Vec::new();
        for (table, key, columns) in content.differences(&self.content) {
            match columns {
                Some(columns) => wishes.push((table, key, columns)),
                None => superfluous.extend(self.id(table, key).map(|id| (table, id))),
            }
        }
        if self.stands_in_the_way(&wishes, replica) {
            return None;
        }
        let found = |table: Table, key: &str| {
            let id = self.id(table, key)?;
            Some((id, replica.row(table.name(), id)?))
        };
        let mut plan = wished(&wishes, found);
        drop_superfluous(&mut plan, &superfluous);
        self.content = content.clone();
        Some((self, plan))
    }

    fn id(&self, table: Table, key: &str) -> Option<Uuid> {
        self.ids.get(&table)?.get(key).copied()
    }

    /// False: another row has this key.
    fn find(&mut self, table: Table, key: String, id: Uuid) -> bool {
        self.keys.insert(id, (table, key.clone()));
        *self.ids.entry(table).or_default().entry(key).or_insert(id) == id
    }

    fn lose(&mut self, id: Uuid) {
        let Some((table, key)) = self.keys.remove(&id) else { return };
        if let Some(ids) = self.ids.get_mut(&table).filter(|ids| ids.get(&key) == Some(&id)) {
            ids.remove(&key);
        }
    }

    fn is_as_it_was_left(&mut self, replica: &Replica, touched: &BTreeSet<(Table, Uuid)>) -> bool {
        let (there, gone): (Vec<_>, Vec<_>) = touched
            .iter()
            .map(|(table, id)| (*table, *id, replica.row(table.name(), *id)))
            .partition(|t| t.2.is_some());
        gone.into_iter().for_each(|(_, id, _)| self.lose(id));
        // All are found before any is compared: they refer to each other.
        let mut wanted: Vec<(Table, Uuid, &Columns)> = Vec::new();
        let content = self.content.clone();
        for (table, id, row) in there {
            let Some(row) = row else { continue };
            match row.string_map(TAGS).remove(TAG) {
                Some(key) => {
                    let Some(columns) = content.get(table, &key) else { return false };
                    wanted.push((table, id, columns));
                    if !self.find(table, key, id) {
                        return false;
                    }
                }
                None if self.keys.contains_key(&id) => return false,
                None => {}
            }
        }
        let refer = |table: Table, key: &str| self.id(table, key).map(mallee_ovsdb::value::uuid);
        let mut mended = Vec::new();
        for (table, id, columns) in wanted {
            let Some(row) = replica.row(table.name(), id) else { return false };
            update(&mut mended, table, id, columns, row, &refer);
        }
        // A row that is wanted and was not made, or is gone, is missing here.
        mended.is_empty() && self.keys.len() == self.content.len()
    }

    /// Whether a row that is not Mallee's has the name of a new one.
    fn stands_in_the_way(&self, wishes: &[Wish<'_>], replica: &Replica) -> bool {
        Table::ALL.into_iter().filter(|table| table.unique_name()).any(|table| {
            let new: BTreeSet<&str> = wishes
                .iter()
                .filter(|(of, key, _)| *of == table && self.id(table, key).is_none())
                .map(|(_, key, _)| *key)
                .collect();
            !new.is_empty()
                && replica.rows(table.name()).any(|(_, row)| row.string("name").is_some_and(|name| new.contains(name)))
        })
    }
}
