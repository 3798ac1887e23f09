//! Logs: one line readable alone on standard error, `MALLEE_LOG` chooses what (`info` by default).

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. A second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env("MALLEE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}
