//! Instances on this machine: the wish is written above and kept in the node's book, what is seen is asked of the
//! hypervisor, and the reconciler steps from one to the other.

mod credentials;
mod plan;
mod reconcile;
mod report;
mod row;
mod steps;

pub use credentials::DiskCredentials;
pub use reconcile::{Instances, Wishes, keep_metadata};
pub use row::{MIGRATION, Rows, uuid_of};
pub use steps::Machine;
