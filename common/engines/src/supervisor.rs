//! Keeps daemons running.
//!
//! One task per daemon: find it (it may have outlived the last supervisor) or start it, wait until it answers, then sleep on
//! its pidfd. The kernel wakes the task the moment the process ends, so there is no polling and no delay; only a daemon that
//! keeps dying is restarted more and more slowly. Dropping the supervisor, or killing it, ends no daemon.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::process::{self, Process};

/// A daemon that lived as long as this did not die of its own start.
const HEALTHY_LIFE: Duration = Duration::from_secs(5);
const IMMEDIATE_RESTARTS: u32 = 3;
const SLOWEST_RESTART: Duration = Duration::from_secs(10);
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// For a daemon that should have answered long ago.
const LATE_PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Where a daemon is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Daemons it needs are not ready yet.
    Waiting,
    /// It runs and does not answer yet.
    Starting {
        pid: i32,
    },
    Ready {
        pid: i32,
    },
    /// It ended and will be started again after `delay_ms`.
    Down {
        why: String,
        delay_ms: u64,
    },
    /// It does not run and nobody will start it.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub name: String,
    #[serde(flatten)]
    pub phase: Phase,
    /// How often this supervisor had to start it again.
    pub restarts: u32,
    /// Why it ended last.
    pub last_end: Option<String>,
}

/// The one supervisor of a list of daemons.
pub struct Supervisor {
    watched: Vec<Watched>,
    going: watch::Sender<bool>,
    _lock: Flock<File>,
}

struct Watched {
    plan: Plan,
    status: watch::Receiver<Status>,
    restart: watch::Sender<u32>,
    task: JoinHandle<Option<Process>>,
}

impl Supervisor {
    /// Begins at once and returns; [`Supervisor::ready`] waits. `lock` is a file that only one supervisor can hold.
    pub fn start(lock: &Path, plans: Vec<Plan>) -> Result<Supervisor> {
        let lock = take_lock(lock)?;
        let (going, _) = watch::channel(true);
        let channels: Vec<_> = plans.iter().map(|plan| watch::channel(Status::new(&plan.name))).collect();
        let receivers: Vec<_> = channels.iter().map(|(_, receiver)| receiver.clone()).collect();
        let watched = plans
            .into_iter()
            .zip(channels)
            .map(|(plan, (sender, status))| {
                let needs =
                    receivers.iter().filter(|other| plan.after.contains(&other.borrow().name)).cloned().collect();
                let (restart, restarts) = watch::channel(0);
                let keeper = Keeper { plan: plan.clone(), status: sender, needs, restart: restarts };
                let task = tokio::spawn(keeper.keep(going.subscribe()));
                Watched { plan, status, restart, task }
            })
            .collect();
        Ok(Supervisor { watched, going, _lock: lock })
    }

    pub fn statuses(&self) -> Vec<Status> {
        self.watched.iter().map(|watched| watched.status.borrow().clone()).collect()
    }

    /// What one daemon is at, from now on.
    pub fn watch(&self, name: &str) -> Option<watch::Receiver<Status>> {
        self.watched.iter().find(|watched| watched.plan.name == name).map(|watched| watched.status.clone())
    }

    /// Waits until every daemon has answered. The error names those that have not, and why.
    pub async fn ready(&self, patience: Duration) -> Result<()> {
        let everything = async {
            for watched in &self.watched {
                let mut status = watched.status.clone();
                // The sender lives as long as the task, and the task as long as we do.
                let _ = status.wait_for(|status| matches!(status.phase, Phase::Ready { .. })).await;
            }
        };
        if tokio::time::timeout(patience, everything).await.is_ok() {
            return Ok(());
        }
        let missing: Vec<String> = self
            .statuses()
            .into_iter()
            .filter(|status| !matches!(status.phase, Phase::Ready { .. }))
            .map(|status| match status.last_end {
                Some(why) => format!("{} ({why})", status.name),
                None => status.name,
            })
            .collect();
        Err(Error::engine(&missing.join(", "), format!("not ready after {} s", patience.as_secs())))
    }

    /// Asks one daemon to end; its task starts it again at once. For a new version of a program.
    pub fn restart(&self, name: &str) -> Result<()> {
        let watched = self
            .watched
            .iter()
            .find(|watched| watched.plan.name == name)
            .ok_or_else(|| Error::Config(format!("there is no daemon called {name}")))?;
        watched.restart.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Stops watching. The daemons run on; whoever supervises next finds them.
    pub async fn release(self) {
        self.let_go().await;
    }

    /// Stops the daemons, the last of the list first.
    pub async fn stop(self) -> Result<()> {
        let processes = self.let_go().await;
        let mut outcome = Ok(());
        for (plan, process) in processes.into_iter().rev() {
            let stopped = match process {
                Some(process) => process.stop(&plan).await,
                None => process::stop(&plan).await.map(drop),
            };
            outcome = outcome.and(stopped);
        }
        outcome
    }

    async fn let_go(self) -> Vec<(Plan, Option<Process>)> {
        self.going.send_replace(false);
        let mut processes = Vec::new();
        for watched in self.watched {
            processes.push((watched.plan, watched.task.await.unwrap_or_default()));
        }
        processes
    }
}

/// What can be seen of the daemons without being their supervisor.
pub async fn status(plans: &[Plan]) -> Vec<Status> {
    let mut statuses = Vec::new();
    for plan in plans {
        let mut status = Status::new(&plan.name);
        status.phase = Phase::Stopped;
        if let Some(process) = process::find(plan) {
            let pid = process.pid();
            status.phase = match plan.ready.probe(pid).await {
                Ok(()) => Phase::Ready { pid },
                Err(_) => Phase::Starting { pid },
            };
        }
        statuses.push(status);
    }
    statuses
}

impl Status {
    fn new(name: &str) -> Status {
        Status { name: name.to_owned(), phase: Phase::Waiting, restarts: 0, last_end: None }
    }
}

/// The task of one daemon.
struct Keeper {
    plan: Plan,
    status: watch::Sender<Status>,
    needs: Vec<watch::Receiver<Status>>,
    restart: watch::Receiver<u32>,
}

impl Keeper {
    /// Gives back the process when it is told to let go.
    async fn keep(mut self, mut going: watch::Receiver<bool>) -> Option<Process> {
        let mut current = None;
        tokio::select! {
            // Only `false` is ever sent; a sender that is gone means the same.
            _ = going.wait_for(|going| !going) => {}
            () = self.run(&mut current) => {}
        }
        current
    }

    async fn run(&mut self, current: &mut Option<Process>) {
        for need in &mut self.needs {
            // A need whose task is gone is being stopped, and so are we.
            let _ = need.wait_for(|status| matches!(status.phase, Phase::Ready { .. })).await;
        }
        let mut early_deaths = 0;
        loop {
            let began = Instant::now();
            let why = match self.once(current).await {
                Ok(why) | Err(why) => why,
            };
            *current = None;
            early_deaths = if began.elapsed() >= HEALTHY_LIFE { 0 } else { early_deaths + 1 };
            let delay = restart_delay(early_deaths);
            tracing::error!(engine.name = %self.plan.name, why, delay_ms = delay.as_millis() as u64, "an engine ended; starting it again");
            self.status.send_modify(|status| {
                status.phase = Phase::Down { why: why.clone(), delay_ms: delay.as_millis() as u64 };
                status.restarts += 1;
                status.last_end = Some(why);
            });
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
        }
    }

    /// One life of the daemon; the answer is why it ended.
    async fn once(&mut self, current: &mut Option<Process>) -> std::result::Result<String, String> {
        let found = process::find(&self.plan);
        let adopted = found.is_some();
        let process = match found {
            Some(process) => process,
            None => process::start(&self.plan).map_err(|error| error.to_string())?,
        };
        let pid = process.pid();
        let process = current.insert(process);
        self.phase(Phase::Starting { pid });
        tracing::info!(engine.name = %self.plan.name, pid, adopted, "engine");
        let (plan, status) = (&self.plan, &self.status);
        let becoming_ready = async {
            let began = Instant::now();
            while plan.ready.probe(pid).await.is_err() {
                let late = began.elapsed() > SLOWEST_RESTART;
                tokio::time::sleep(if late { LATE_PROBE_INTERVAL } else { PROBE_INTERVAL }).await;
            }
            status.send_modify(|status| status.phase = Phase::Ready { pid });
            std::future::pending::<()>().await
        };
        let mut restart = self.restart.clone();
        restart.mark_unchanged();
        let asked = async {
            // Without a sender nobody can ask any more.
            if restart.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = process.exited() => {
                let why = ended.map_err(|error| error.to_string())?;
                let words = process::last_words(plan, process);
                return Ok(if words.is_empty() { why } else { format!("{why}; it last said: {words}") });
            }
            () = becoming_ready => {}
            () = asked => {}
        }
        process.terminate();
        if tokio::time::timeout(self.plan.stop.patience, process.exited()).await.is_err() {
            process.kill();
            process.exited().await.map_err(|error| error.to_string())?;
        }
        Ok("it was asked to restart".to_owned())
    }

    fn phase(&self, phase: Phase) {
        self.status.send_modify(|status| status.phase = phase);
    }
}

/// The first restarts are immediate (packets wait for them); a daemon that goes on dying young waits 0.1 s, 0.2 s, and so on.
fn restart_delay(early_deaths: u32) -> Duration {
    match early_deaths.checked_sub(IMMEDIATE_RESTARTS) {
        None | Some(0) => Duration::ZERO,
        Some(more) => SLOWEST_RESTART.min(Duration::from_millis(50) * 2u32.saturating_pow(more)),
    }
}

pub(crate) fn take_lock(path: &Path) -> Result<Flock<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(Error::file("opening", path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let write = |lock: &mut Flock<File>| {
                lock.set_len(0)?;
                write!(&mut **lock, "{}", std::process::id())
            };
            write(&mut lock).map_err(Error::file("writing", path))?;
            Ok(lock)
        }
        Err((mut file, _)) => {
            let mut holder = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut holder);
            Err(Error::Refused(format!("another supervisor (pid {holder}) holds {}", PathBuf::from(path).display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restarts_are_immediate_and_the_later_ones_slow_down_to_a_limit() {
        let delays: Vec<u128> = [0, 1, 3, 4, 5, 6, 40].map(|deaths| restart_delay(deaths).as_millis()).to_vec();
        assert_eq!(delays, [0, 0, 0, 100, 200, 400, 10_000]);
    }
}
