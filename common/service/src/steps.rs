//! Steps by name, so that a test can stop a daemon at each of them.
//!
//! Whatever changes something outside the process is told at trace level under the target `step`, before and after: a
//! store's transaction, a call to another tier, a command to an engine, a file that gets its name. With
//! `MALLEE_STOP_AT=FILE` in its environment a daemon stops itself (SIGSTOP) at the step that FILE names, after removing
//! FILE. Whoever wrote it then kills whom it likes, and lets the rest go on. `MALLEE_LOG=step=trace` lists the steps.

use std::{fmt, path::PathBuf, sync::Mutex};

use nix::sys::signal::{Signal, raise};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Under which target steps are told.
pub const TARGET: &str = "step";

pub(crate) struct StopAt {
    file: PathBuf,
    /// One step at a time: what is stopped in one thread must not be told in another.
    turn: Mutex<()>,
}

impl StopAt {
    pub fn from_environment() -> Option<Self> {
        std::env::var_os("MALLEE_STOP_AT").map(|file| Self { file: file.into(), turn: Mutex::default() })
    }

    fn is_asked_for(&self, step: &str) -> bool {
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::fs::read_to_string(&self.file).is_ok_and(|asked| asked == step) && std::fs::remove_file(&self.file).is_ok()
    }
}

impl<S: Subscriber> Layer<S> for StopAt {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        if self.is_asked_for(&said.0) {
            // Returns when somebody lets it go on.
            let _ = raise(Signal::SIGSTOP);
        }
    }
}

/// The message of a record.
#[derive(Default)]
struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_is_asked_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let stop = StopAt { file: dir.path().join("stop"), turn: Mutex::default() };
        assert!(!stop.is_asked_for("before a"), "there is no file");
        std::fs::write(&stop.file, "before a").unwrap();
        assert!(!stop.is_asked_for("after a"));
        assert!(stop.is_asked_for("before a"));
        assert!(!stop.is_asked_for("before a"), "it has happened");
    }
}
