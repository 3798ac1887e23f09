//! Every table of the cloud-controller, in the order they are made. Each belongs to the file that says its SQL.

use mallee_store::Migration;

use crate::{account, disk_key, ec2, join, network, zone};

/// Only ever added to: a release that went out has made its tables already.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "accounts", sql: account::TABLES },
    Migration { version: 2, name: "tags", sql: ec2::tag::TABLES },
    Migration { version: 3, name: "client tokens", sql: ec2::client_token::TABLES },
    Migration { version: 4, name: "key pairs", sql: ec2::key_pair::TABLES },
    Migration { version: 5, name: "join tokens", sql: join::TABLES },
    Migration { version: 20, name: "MACs", sql: network::mac::TABLES },
    Migration { version: 21, name: "outside addresses", sql: network::outside::TABLES },
    Migration { version: 22, name: "DHCP options", sql: ec2::dhcp_options::TABLES },
    Migration { version: 23, name: "VPCs", sql: ec2::vpc::TABLES },
    Migration { version: 24, name: "subnets", sql: ec2::subnet::TABLES },
    Migration { version: 25, name: "internet gateways", sql: ec2::internet_gateway::TABLES },
    Migration { version: 26, name: "route tables", sql: ec2::route_table::TABLES },
    Migration { version: 27, name: "network ACLs", sql: ec2::network_acl::TABLES },
    Migration { version: 28, name: "security groups", sql: ec2::security_group::TABLES },
    Migration { version: 29, name: "security group rules", sql: ec2::security_group::RULE_TABLES },
    Migration { version: 30, name: "network interfaces", sql: ec2::interface::TABLES },
    Migration { version: 31, name: "elastic IPs", sql: ec2::address::TABLES },
    Migration { version: 40, name: "instances", sql: ec2::instance::TABLES },
    Migration { version: 41, name: "images", sql: ec2::image::TABLES },
    Migration { version: 42, name: "volumes", sql: ec2::volume::TABLES },
    Migration { version: 43, name: "tiers", sql: zone::registry::TABLES },
    Migration { version: 44, name: "generations", sql: zone::generation::TABLES },
    Migration { version: 45, name: "events", sql: zone::event::TABLES },
    Migration { version: 46, name: "orphans", sql: zone::orphan::TABLES },
    Migration { version: 60, name: "secondary CIDR blocks of VPCs", sql: ec2::vpc::block::TABLES },
    Migration { version: 61, name: "ports of network ACL entries", sql: ec2::network_acl::PORT_COLUMNS },
    Migration { version: 62, name: "kinds of network interfaces", sql: ec2::interface::KIND_COLUMN },
    Migration { version: 63, name: "elastic IPs of secondary addresses", sql: ec2::address::PRIVATE_ADDRESS_COLUMN },
    Migration { version: 64, name: "NAT gateways", sql: ec2::nat_gateway::TABLES },
    Migration { version: 65, name: "VPC peering connections", sql: ec2::peering::TABLES },
    Migration { version: 90, name: "snapshots", sql: ec2::snapshot::TABLES },
    Migration { version: 91, name: "blobs of snapshots", sql: ec2::snapshot::BLOB_TABLES },
    Migration { version: 92, name: "modifications of volumes", sql: ec2::volume::modify::TABLES },
    Migration { version: 93, name: "keys of disks", sql: disk_key::TABLES },
    Migration { version: 94, name: "sources of volumes", sql: ec2::volume::SOURCE_COLUMN },
    Migration { version: 100, name: "images on snapshots", sql: ec2::image::SNAPSHOT_TABLES },
    Migration { version: 101, name: "snapshots together", sql: ec2::snapshot::together::TABLES },
    Migration { version: 102, name: "encryption of volumes", sql: ec2::encryption::TABLES },
    Migration { version: 103, name: "attributes of volumes", sql: ec2::volume::attribute::COLUMN },
    Migration { version: 104, name: "imports of disks", sql: ec2::import::TABLES },
];
