//! What is wrong now, kept by name so that it goes away when it is mended, and shown by `mallee status`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use mallee_tiers::Fault;

use crate::Clock;

#[derive(Clone, Default)]
pub struct Faults {
    clock: Clock,
    open: Arc<Mutex<BTreeMap<String, Fault>>>,
}

impl Faults {
    pub fn new(clock: Clock) -> Self {
        Self { clock, open: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Fault>> {
        self.open.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// `key` names the thing, `what` says what is wrong with it, `remedy` what a person can do. Logged when it is new.
    pub fn raise(&self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let (what, remedy) = (what.into(), remedy.into());
        let mut open = self.lock();
        let since = match open.get(key) {
            Some(old) if old.what == what => return,
            Some(old) => old.since,
            None => self.clock.now_ms(),
        };
        tracing::error!(fault.key = key, fault.remedy = remedy, "{what}");
        open.insert(key.to_owned(), Fault { what, since, remedy });
    }

    pub fn clear(&self, key: &str) {
        if let Some(fault) = self.lock().remove(key) {
            tracing::info!(fault.key = key, "mended: {}", fault.what);
        }
    }

    pub fn all(&self) -> Vec<Fault> {
        self.lock().values().cloned().collect()
    }
}
