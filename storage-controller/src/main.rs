//! The storage-controller's daemon.

use std::process::ExitCode;

use clap::Parser;
use mallee_storage_controller::{Config, start};

#[tokio::main]
async fn main() -> ExitCode {
    mallee_service::log::start();
    let arguments = mallee_service::config::Arguments::parse();
    let config: Config = match mallee_service::config::load(&arguments.config) {
        Ok(config) => config,
        Err(e) => {
            tracing::error!("{e}");
            return ExitCode::FAILURE;
        }
    };
    match start(config).await {
        Ok(running) => {
            tracing::info!(address = running.address, "storage-controller serves");
            mallee_service::process::asked_to_end().await;
            ExitCode::SUCCESS
        }
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}
