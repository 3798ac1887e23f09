//! The operator's command: see the library.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    mallee_tools::run().await
}
