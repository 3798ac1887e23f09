//! Rows of OVN's northbound database as they are wanted: what `render` makes and `plan` compares with what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// The tables Mallee writes. Declared in the order they are shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Switch,
    SwitchPort,
    Router,
    RouterPort,
    GatewayChassis,
    StaticRoute,
    Policy,
    Nat,
    PortGroup,
    Acl,
    AddressSet,
    DhcpOptions,
    Meter,
    MeterBand,
}

impl Table {
    pub const ALL: [Table; 14] = [
        Table::Switch,
        Table::SwitchPort,
        Table::Router,
        Table::RouterPort,
        Table::GatewayChassis,
        Table::StaticRoute,
        Table::Policy,
        Table::Nat,
        Table::PortGroup,
        Table::Acl,
        Table::AddressSet,
        Table::DhcpOptions,
        Table::Meter,
        Table::MeterBand,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Table::Switch => "Logical_Switch",
            Table::SwitchPort => "Logical_Switch_Port",
            Table::Router => "Logical_Router",
            Table::RouterPort => "Logical_Router_Port",
            Table::GatewayChassis => "Gateway_Chassis",
            Table::StaticRoute => "Logical_Router_Static_Route",
            Table::Policy => "Logical_Router_Policy",
            Table::Nat => "NAT",
            Table::PortGroup => "Port_Group",
            Table::Acl => "ACL",
            Table::AddressSet => "Address_Set",
            Table::DhcpOptions => "DHCP_Options",
            Table::Meter => "Meter",
            Table::MeterBand => "Meter_Band",
        }
    }

    /// The table the database calls so.
    pub fn named(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Rows that stay without anything referring to them. The others vanish with their last reference.
    pub fn is_root(self) -> bool {
        matches!(
            self,
            Table::Switch | Table::Router | Table::PortGroup | Table::AddressSet | Table::DhcpOptions | Table::Meter
        )
    }

    /// Tables where the database lets a name be there once; their keys are their names.
    pub fn unique_name(self) -> bool {
        matches!(
            self,
            Table::SwitchPort
                | Table::RouterPort
                | Table::GatewayChassis
                | Table::PortGroup
                | Table::AddressSet
                | Table::Meter
        )
    }

    /// The columns Mallee decides, which are those it watches.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Table::Switch => &["name", "ports", "acls", "other_config", TAGS],
            Table::SwitchPort => &[
                "name",
                "type",
                "addresses",
                "port_security",
                "enabled",
                "options",
                "dhcpv4_options",
                "dhcpv6_options",
                TAGS,
            ],
            Table::Router => &["name", "ports", "static_routes", "policies", "nat", "options", TAGS],
            Table::RouterPort => &["name", "mac", "networks", "gateway_chassis", "options", "ipv6_ra_configs", TAGS],
            Table::GatewayChassis => &["name", "chassis_name", "priority", TAGS],
            Table::StaticRoute => &["ip_prefix", "nexthop", "output_port", "route_table", TAGS],
            Table::Policy => &["priority", "match", "action", TAGS],
            Table::Nat => &["type", "external_ip", "logical_ip", "allowed_ext_ips", TAGS],
            Table::PortGroup => &["name", "ports", "acls", TAGS],
            // Most rules say nothing of logging: an operator may switch it on.
            Table::Acl => &["priority", "direction", "match", "action", "name", "log", "severity", "meter", TAGS],
            Table::AddressSet => &["name", "addresses", TAGS],
            Table::DhcpOptions => &["cidr", "options", TAGS],
            Table::Meter => &["name", "unit", "bands", TAGS],
            Table::MeterBand => &["action", "rate", "burst_size", TAGS],
        }
    }
}

/// The column every table has for what belongs to others than OVN.
pub const TAGS: &str = "external_ids";
/// The tag that makes a row Mallee's; its value is the row's key. Rows without it are nobody's business here.
pub const TAG: &str = "mallee";

/// What a column shall hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Column {
    Text(String),
    Number(i64),
    /// An optional boolean that is set.
    Flag(bool),
    /// A set of text; also an optional text, of one element or none.
    Set(BTreeSet<String>),
    Map(BTreeMap<String, String>),
    /// Rows of another table, by key.
    Rows(Table, BTreeSet<String>),
}

impl Column {
    pub fn text(text: impl Into<String>) -> Self {
        Column::Text(text.into())
    }
    pub fn set<T: Into<String>>(elements: impl IntoIterator<Item = T>) -> Self {
        Column::Set(elements.into_iter().map(Into::into).collect())
    }
    pub fn map<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Column::Map(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
    pub fn rows<T: Into<String>>(table: Table, keys: impl IntoIterator<Item = T>) -> Self {
        Column::Rows(table, keys.into_iter().map(Into::into).collect())
    }
}

/// The columns of one row, but its tags.
pub type Columns = BTreeMap<&'static str, Column>;

/// All rows that shall be there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Content {
    rows: BTreeMap<Table, BTreeMap<String, Columns>>,
}

impl Content {
    /// Adds a row. `tags` are told beside the key, for whoever looks into the database.
    pub fn add<const N: usize>(
        &mut self,
        table: Table,
        key: impl Into<String>,
        tags: &[(&str, &str)],
        columns: [(&'static str, Column); N],
    ) {
        let key = key.into();
        let mut columns = Columns::from(columns);
        let tags = tags.iter().copied().filter(|(_, v)| !v.is_empty()).chain([(TAG, key.as_str())]);
        columns.insert(TAGS, Column::map(tags));
        self.rows.entry(table).or_default().insert(key, columns);
    }

    /// Adds keys to a column of references that is there.
    pub fn refer(&mut self, table: Table, key: &str, column: &'static str, to: impl Into<String>) {
        if let Some(Column::Rows(_, keys)) =
            self.rows.get_mut(&table).and_then(|rows| rows.get_mut(key)).and_then(|c| c.get_mut(column))
        {
            keys.insert(to.into());
        }
    }

    pub fn rows(&self, table: Table) -> impl Iterator<Item = (&str, &Columns)> {
        self.rows.get(&table).into_iter().flatten().map(|(key, columns)| (key.as_str(), columns))
    }

    pub fn get(&self, table: Table, key: &str) -> Option<&Columns> {
        self.rows.get(&table)?.get(key)
    }

    pub fn len(&self) -> usize {
        self.rows.values().map(BTreeMap::len).sum()
    }

    /// Rows that are not as they were in `before`: their columns now, None for those that are no more. In the order of
    /// tables and keys.
    pub fn differences<'a>(&'a self, before: &'a Content) -> Vec<(Table, &'a str, Option<&'a Columns>)> {
        let mut found = Vec::new();
        for table in Table::ALL {
            let (mut now, mut then) = (self.rows(table).peekable(), before.rows(table).peekable());
            loop {
                // What is only there then comes before the next one of now, or after the last.
                let gone = match (now.peek(), then.peek()) {
                    (None, None) => break,
                    (Some((key, _)), Some((old, _))) => old < key,
                    (now, _) => now.is_none(),
                };
                if gone {
                    found.extend(then.next().map(|(key, _)| (table, key, None)));
                    continue;
                }
                let Some((key, columns)) = now.next() else { break };
                let old = then.next_if(|(old, _)| *old == key);
                if old.is_none_or(|(_, old)| old != columns) {
                    found.push((table, key, Some(columns)));
                }
            }
        }
        found
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One line for each row, for people and for golden tests. Tags are left out.
impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(", ");
        for (table, rows) in &self.rows {
            for (key, columns) in rows {
                write!(f, "{} {key}:", table.name())?;
                for (name, column) in columns.iter().filter(|(name, _)| **name != TAGS) {
                    match column {
                        Column::Text(text) => write!(f, " {name}={text:?}")?,
                        Column::Number(n) => write!(f, " {name}={n}")?,
                        Column::Flag(flag) => write!(f, " {name}={flag}")?,
                        Column::Set(set) if set.is_empty() => {}
                        Column::Set(set) => write!(f, " {name}=[{}]", joined(set))?,
                        Column::Map(map) if map.is_empty() => {}
                        Column::Map(map) => {
                            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
                            write!(f, " {name}={{{}}}", pairs.join(", "))?;
                        }
                        Column::Rows(_, keys) if keys.is_empty() => {}
                        Column::Rows(_, keys) => write!(f, " {name}=<{}>", joined(keys))?,
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}
