//! Every table of the cloud-controller, in the order they are made. Each belongs to the file that says its SQL.

use mallee_store::Migration;

use crate::{account, ec2, join, zone};

/// Only ever added to: a release that went out has made its tables already.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "accounts", sql: account::TABLES },
    Migration { version: 2, name: "tags", sql: ec2::tag::TABLES },
    Migration { version: 3, name: "client tokens", sql: ec2::client_token::TABLES },
    Migration { version: 4, name: "key pairs", sql: ec2::key_pair::TABLES },
    Migration { version: 5, name: "join tokens", sql: join::TABLES },
    Migration { version: 40, name: "instances", sql: ec2::instance::TABLES },
    Migration { version: 41, name: "images", sql: ec2::image::TABLES },
    Migration { version: 42, name: "volumes", sql: ec2::volume::TABLES },
    Migration { version: 43, name: "tiers", sql: zone::registry::TABLES },
    Migration { version: 44, name: "generations", sql: zone::generation::TABLES },
    Migration { version: 45, name: "events", sql: zone::event::TABLES },
];
