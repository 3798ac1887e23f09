//! Logs: one line readable alone on standard error, `MALLEE_LOG` chooses what (`info` by default).

use tracing_subscriber::{EnvFilter, Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::steps::{StopAt, TARGET};

/// Starts logging for this process. A second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env("MALLEE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_filter(filter);
    let lines = tracing_subscriber::registry().with(lines);
    let _ = match StopAt::from_environment() {
        // A layer that may be missing would have every record of every level made, to be dropped.
        None => lines.try_init(),
        Some(stop) => {
            let steps = Targets::new().with_target(TARGET, tracing::Level::TRACE);
            lines.with(stop.with_filter(steps)).try_init()
        }
    };
}
