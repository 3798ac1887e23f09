//! `cloud-controller --config FILE`: see the library.

use clap::Parser;
use mallee_cloud_controller::{Config, start};
use mallee_service::{Clock, config, log, process};

/// The front of EC2, IAM and STS, and the owner of what is wanted.
///
/// Example: cloud-controller --config /var/lib/mallee/cloud-controller.toml
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    arguments: config::Arguments,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    log::start();
    let config: Config = match config::load(&cli.arguments.config) {
        Ok(config) => config,
        Err(e) => {
            eprintln!("cloud-controller: {e}");
            return std::process::ExitCode::from(2);
        }
    };
    match start(config, Clock::System).await {
        Ok(running) => {
            tracing::info!(addresses = ?running.addresses, "serving");
            process::asked_to_end().await;
            std::process::ExitCode::SUCCESS
        }
        Err(e) => {
            tracing::error!(error = %e, "cannot start");
            eprintln!("cloud-controller: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
