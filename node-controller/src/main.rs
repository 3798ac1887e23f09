//! `node-controller --config FILE`

use std::process::ExitCode;

use clap::Parser;
use mallee_node_controller::{Config, Parts, start};
use mallee_service::{config, log, process::asked_to_end};

/// Runs instances on this machine for the zone's cluster-controller.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    arguments: config::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    log::start();
    let command = Command::parse();
    let config: Config = match config::load(&command.arguments.config) {
        Ok(config) => config,
        Err(e) => {
            tracing::error!("{e}");
            return ExitCode::FAILURE;
        }
    };
    match start(config, Parts::default()).await {
        Ok(_running) => {
            asked_to_end().await;
            ExitCode::SUCCESS
        }
        Err(e) => {
            tracing::error!("node-controller does not start: {e}");
            ExitCode::FAILURE
        }
    }
}
