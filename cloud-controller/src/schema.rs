//! Every table of the cloud-controller, in the order they are made. Each belongs to the file that says its SQL.

use mallee_store::Migration;

use crate::{account, ec2, join};

/// Only ever added to: a release that went out has made its tables already.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "accounts", sql: account::TABLES },
    Migration { version: 2, name: "tags", sql: ec2::tag::TABLES },
    Migration { version: 3, name: "client tokens", sql: ec2::client_token::TABLES },
    Migration { version: 4, name: "key pairs", sql: ec2::key_pair::TABLES },
    Migration { version: 5, name: "join tokens", sql: join::TABLES },
];
