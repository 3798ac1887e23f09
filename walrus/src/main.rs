//! The walrus daemon: reads its configuration, serves until it is asked to end.

use std::process::ExitCode;

use clap::Parser;
use mallee_service::{config, log, process};

/// Mallee's S3: buckets and objects.
#[derive(Debug, Parser)]
#[command(name = "walrus", version)]
struct Command {
    #[command(flatten)]
    arguments: config::Arguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    log::start();
    let command = Command::parse();
    let config = match config::load::<mallee_walrus::Config>(&command.arguments.config) {
        Ok(config) => config,
        Err(e) => return ended(&e),
    };
    match mallee_walrus::start(config).await {
        Ok(_running) => {
            process::asked_to_end().await;
            ExitCode::SUCCESS
        }
        Err(e) => ended(&e),
    }
}

fn ended(e: &dyn std::fmt::Display) -> ExitCode {
    tracing::error!(error = %e, "walrus cannot start");
    ExitCode::FAILURE
}
