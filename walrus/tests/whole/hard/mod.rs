//! What must hold when it is hard: with many at once on one key, killed, without power, without room, without end.

mod contention;
pub mod disk;
mod full;
mod kill;
pub mod load;
mod many;
mod nonsense;
mod power;
pub mod server;
