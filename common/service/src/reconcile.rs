//! Drives reconcilers: woken by a poke and by a clock, a pass reads the world and acts. It takes no input, so restart,
//! retry and normal running are one code path.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

/// Wakes a reconciler. Pokes while a pass runs make exactly one more pass.
#[derive(Clone, Default)]
pub struct Poke(Arc<Notify>);

impl Poke {
    pub fn poke(&self) {
        self.0.notify_one();
    }
    /// Waits for the next poke; for loops that are not reconcilers but are woken the same way.
    pub async fn poked(&self) {
        self.0.notified().await;
    }
}

/// What a pass did; kept, and shown to the operator.
#[derive(Debug, Clone, Default)]
pub struct PassReport {
    pub changed: u64,
    pub errors: Vec<String>,
    pub took: Duration,
    /// Run again after this time instead of at the next poke or tick: something is in progress.
    pub again: Option<Duration>,
}

impl PassReport {
    pub fn changed(n: u64) -> Self {
        Self { changed: n, ..Self::default() }
    }
    pub fn error(&mut self, e: impl ToString) {
        self.errors.push(e.to_string());
    }
}

#[async_trait::async_trait]
pub trait Reconciler: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    async fn pass(&self) -> PassReport;
}

/// A running reconciler.
#[derive(Clone)]
pub struct Driven {
    pub name: &'static str,
    pub poke: Poke,
    pub last: watch::Receiver<PassReport>,
}

/// A pass that panics is a failed pass: the reconciler goes on, and the operator sees it.
async fn guarded(reconciler: &impl Reconciler) -> PassReport {
    use futures_util::FutureExt;
    match std::panic::AssertUnwindSafe(reconciler.pass()).catch_unwind().await {
        Ok(report) => report,
        Err(panic) => {
            let said = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(reconciler = reconciler.name(), "panicked: {said}");
            PassReport { errors: vec![format!("panicked: {said}")], ..PassReport::default() }
        }
    }
}

/// Runs `reconciler` until the runtime ends: at once, at every poke, and at least `every` so often. Failing passes are
/// repeated with a growing pause (50 ms to 5 s) without waiting for the clock.
pub fn drive(reconciler: Arc<impl Reconciler>, poke: Poke, every: Duration) -> Driven {
    let (tell, last) = watch::channel(PassReport::default());
    let name = reconciler.name();
    let woken = poke.clone();
    tokio::spawn(async move {
        let mut pause = Duration::from_millis(50);
        loop {
            let begun = Instant::now();
            let mut report = guarded(reconciler.as_ref()).await;
            report.took = begun.elapsed();
            let wait = if report.errors.is_empty() {
                pause = Duration::from_millis(50);
                report.again.unwrap_or(every)
            } else {
                tracing::warn!(reconciler = name, errors = ?report.errors, "pass failed");
                pause = (pause * 2).min(Duration::from_secs(5));
                report.again.unwrap_or(every).min(pause)
            };
            if report.changed > 0 {
                tracing::debug!(
                    reconciler = name,
                    changed = report.changed,
                    duration_ms = report.took.as_millis() as u64,
                    "pass"
                );
            }
            tell.send_replace(report);
            let _ = tokio::time::timeout(wait, woken.poked()).await;
        }
    });
    Driven { name, poke, last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Clumsy(AtomicU32);
    #[async_trait::async_trait]
    impl Reconciler for Clumsy {
        fn name(&self) -> &'static str {
            "clumsy"
        }
        async fn pass(&self) -> PassReport {
            let n = self.0.fetch_add(1, Ordering::SeqCst);
            assert!(n > 0, "the first pass panics");
            PassReport::changed(1)
        }
    }

    #[tokio::test]
    async fn a_pass_that_panics_is_repeated() {
        let mut driven = drive(Arc::new(Clumsy(AtomicU32::new(0))), Poke::default(), Duration::from_secs(600));
        let report = driven.last.wait_for(|r| r.changed == 1).await.unwrap();
        assert!(report.errors.is_empty());
    }
}
