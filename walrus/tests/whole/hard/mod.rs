//! What must hold when it is hard: with many at once on one key, killed, without power, without room, without end.

mod disk;
mod kill;
mod load;
mod power;
mod server;
