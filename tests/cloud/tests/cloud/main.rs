//! What the cloud promises, tried on all five tiers with simulated machines. Each test's name is the promise.

mod accounts;
mod attack;
mod crash;
mod documentation;
mod image;
mod launch;
mod orphan;
mod placement;
mod snapshot;
mod stranger;
mod token;
mod volume;
