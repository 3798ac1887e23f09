//! Security groups: what may reach the interfaces in them and what those may reach. Each is a port group in OVN, each
//! rule an ACL of it.
//!
//! Unlike at AWS, taking a rule away also cuts the connections it had let through: OVN looks at every packet again.

pub mod authorize;
pub mod group;
pub mod permission;
pub mod reference;
pub mod rule;
pub mod rule_edit;

pub use group::{GroupRow, TABLES, all, for_launch, get, insert, names};
pub use permission::{Peer, Protocol, Traffic};
pub use rule::{Direction, RuleRow, TABLES as RULE_TABLES, all as all_rules, insert as insert_rule};

/// AWS' defaults.
pub const MAX_PER_INTERFACE: usize = 5;
pub const MAX_PER_VPC: i64 = 500;
pub const MAX_RULES: i64 = 60;

#[cfg(test)]
mod tests;
