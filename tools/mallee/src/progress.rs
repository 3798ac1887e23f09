//! What a person sees while something takes its time: one line per step with how long it took.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::error::Result;

/// A step that runs.
pub struct Step {
    bar: ProgressBar,
    name: String,
    began: Instant,
}

pub fn step(name: &str) -> Step {
    let bar = ProgressBar::new_spinner().with_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    Step { bar, name: name.to_owned(), began: Instant::now() }
}

impl Step {
    /// What it is at.
    pub fn at(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.name));
    }

    pub fn done(self, result: &str) {
        self.bar.finish_and_clear();
        eprintln!("{:>8}  {}{}", elapsed(self.began.elapsed()), self.name, after(result));
    }

    /// Ends the step whether it succeeded or not.
    pub fn outcome<T>(self, outcome: Result<T>, result: impl FnOnce(&T) -> String) -> Result<T> {
        match &outcome {
            Ok(value) => self.done(&result(value)),
            Err(_) => {
                self.bar.finish_and_clear();
                eprintln!("{:>8}  {}: failed", elapsed(self.began.elapsed()), self.name);
            }
        }
        outcome
    }
}

/// `in 1 part`, `in 7 parts`.
pub fn parts(count: usize) -> String {
    format!("in {count} part{}", if count == 1 { "" } else { "s" })
}

fn after(result: &str) -> String {
    if result.is_empty() { String::new() } else { format!(": {result}") }
}

fn elapsed(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        1..100 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} s", duration.as_secs()),
    }
}

/// A bar that counts bytes.
pub struct Bytes {
    bar: ProgressBar,
    name: String,
    began: Instant,
}

pub fn bytes(name: &str, total: u64) -> Bytes {
    let bar = ProgressBar::new(total).with_message(name.to_owned());
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    Bytes { bar, name: name.to_owned(), began: Instant::now() }
}

impl Bytes {
    pub fn add(&self, count: u64) {
        self.bar.inc(count);
    }

    pub fn done(self, result: &str) {
        let position = self.bar.position();
        self.bar.finish_and_clear();
        eprintln!("{:>8}  {} {}{}", elapsed(self.began.elapsed()), self.name, HumanBytes(position), after(result));
    }
}
