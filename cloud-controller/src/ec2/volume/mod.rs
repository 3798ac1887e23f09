//! Volumes: disks that live on without an instance, in one zone.

mod row;

pub use row::TABLES;
