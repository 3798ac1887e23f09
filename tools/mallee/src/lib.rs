//! `mallee`, the operator's command: brings a cloud up on this machine, joins machines to it, shows how it is, and builds
//! and bundles images. It owns no fact of the cloud: everything is asked of the cloud-controller over its admin socket, or,
//! for images, of EC2 and S3 as any user would.
//!
//! One file per command. What they share: [`state`] (where things are on this machine), [`machine`] (what was chosen for
//! it), [`tier`] (which tiers run here, and how they are started), [`supervise`] (the process that keeps them running),
//! [`aws`] (signed requests to the cloud's own fronts), [`progress`] (what a person sees meanwhile).

mod account;
mod admin;
mod aws;
mod certificate;
mod cli;
mod config_files;
mod down;
mod env;
mod error;
mod guard;
mod image;
mod internet;
mod join;
mod logs;
mod machine;
mod needs;
mod net;
mod node;
mod output;
mod progress;
mod state;
mod status;
mod supervise;
mod table;
mod tier;
mod tunnel;
mod up;
mod why;
mod zone;

pub use cli::run;
pub use error::{Error, Result};
