//! Instances: virtual machines as users ask for them.
//!
//! What is wanted of one and what was seen of it are in its row (`row`); `state` is the one place where the two become
//! EC2's state; `wanted` renders what the zone is sent. Every change of that must end in [`touch`].

mod row;

pub use row::{Instance, TABLES, count, touch, unword, word};
