//! Work that takes longer than a pass: at most one task of each name, and what it waits for.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mallee_service::Poke;
use tokio::task::JoinHandle;

/// A task that failed is begun again after this.
const PAUSE: Duration = Duration::from_secs(1);

/// Nothing of it outlives the process: what was under way is begun again from the rows.
pub struct Background {
    changed: Poke,
    tasks: Mutex<BTreeMap<String, JoinHandle<()>>>,
    trouble: Arc<Mutex<BTreeMap<String, String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Background {
    /// `changed` is poked whenever a task ended.
    pub fn new(changed: Poke) -> Self {
        Self { changed, tasks: Mutex::default(), trouble: Arc::default() }
    }

    /// Begins the work unless it is under way.
    pub fn begin<E: std::fmt::Display>(&self, name: &str, work: impl Future<Output = Result<(), E>> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|_, task| !task.is_finished());
        if tasks.contains_key(name) {
            return;
        }
        let (trouble, changed, key) = (self.trouble.clone(), self.changed.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            match work.await.map_err(|e| e.to_string()) {
                Ok(()) => drop(lock(&trouble).remove(&key)),
                Err(why) => {
                    tracing::warn!(work = key, why, "did not work; it is begun again");
                    lock(&trouble).insert(key, why);
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // After this the task is as good as finished; a pass that comes too early is followed by the next.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                changed.poke();
            });
        });
        tasks.insert(name.to_owned(), task);
    }

    /// What the last attempt failed of.
    pub fn trouble(&self, name: &str) -> Option<String> {
        lock(&self.trouble).get(name).cloned()
    }

    /// What keeps failing of the work on this thing, by the work's name.
    pub fn troubles(&self, of: &str) -> Vec<(String, String)> {
        let trouble = lock(&self.trouble);
        let its = trouble.iter().filter(|(name, _)| name.split_once(' ').is_some_and(|(_, thing)| thing == of));
        its.map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// Ends the work wherever it is; done when it is not running any more.
    pub async fn end(&self, name: &str) {
        let task = lock(&self.tasks).remove(name);
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
        lock(&self.trouble).remove(name);
    }
}
