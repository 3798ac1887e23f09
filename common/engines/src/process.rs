//! A daemon's process: started so that it outlives us, found again, watched, ended.
//!
//! A pid alone means nothing, since it may have been given to another process. Here a process is a pid *and* its start time
//! and boot, checked after a pidfd was opened; from then on the pidfd is what is watched and signalled, and it can never mean
//! somebody else.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::made::replace_file;
use crate::plan::Plan;
use crate::ready::control;

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which process, of all that ever had this pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    pid: i32,
    /// In clock ticks since the boot.
    started: u64,
    boot: String,
}

/// A running daemon.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    pidfd: OwnedFd,
    /// Set when it is our own child, which has to be reaped.
    child: Option<Child>,
    /// Where its output began in the file, when we started it.
    output_began: Option<u64>,
}

impl Process {
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Returns when the process has ended, with the reason where it is known (our own children).
    pub async fn exited(&mut self) -> Result<String> {
        until_readable(self.pidfd.as_fd())
            .await
            .map_err(|error| Error::System(format!("watching pid {}: {error}", self.identity.pid)))?;
        Ok(match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => error.to_string(),
            None => "it ended".to_owned(),
        })
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        // The only failure is that it has ended already.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Ends it: asked through its control socket where the plan has one, then SIGTERM, then SIGKILL.
    pub async fn stop(mut self, plan: &Plan) -> Result<()> {
        let patience = plan.stop.patience;
        if let Some((socket, method, arguments)) = &plan.stop.control {
            // No answer is usual: it ends while it answers. Whether it ended is what counts.
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let _ = tokio::time::timeout(patience, control(socket, method, &arguments)).await;
            if tokio::time::timeout(patience, self.exited()).await.is_ok() {
                return forget(plan);
            }
        }
        self.terminate();
        if tokio::time::timeout(patience, self.exited()).await.is_err() {
            tracing::warn!(engine.name = %plan.name, pid = self.pid(), "did not end when asked; killed");
            self.kill();
            self.exited().await?;
        }
        forget(plan)
    }
}

/// A pidfd becomes readable when its process has ended, and stays so.
#[allow(unsafe_code)]
async fn until_readable(pidfd: BorrowedFd<'_>) -> std::io::Result<()> {
    // SAFETY: the borrow keeps the descriptor open and the same for as long as the registration lives, which is this call.
    let watch = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    watch.readable().await.map(drop)
}

fn forget(plan: &Plan) -> Result<()> {
    match fs::remove_file(&plan.record) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("removing", &plan.record)(error)),
        _ => Ok(()),
    }
}

/// Starts the daemon. It has a session of its own, an environment of its own and none of our files.
pub fn start(plan: &Plan) -> Result<Process> {
    for log in plan.logs.iter().chain([&plan.output]) {
        rotate(log)?;
    }
    let output = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&plan.output)
        .map_err(Error::file("opening", &plan.output))?;
    let errors = output.try_clone().map_err(Error::file("opening", &plan.output))?;
    let output_began = output.metadata().ok().map(|metadata| metadata.len());
    let line = plan.launch();
    keep_files_to_ourselves();
    let child = Command::new(&line[0])
        .args(&line[1..])
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|error| Error::engine(&plan.name, format!("cannot start {}: {error}", line.join(" "))))?;
    let pid = i32::try_from(child.id()).map_err(|error| Error::engine(&plan.name, error))?;
    // Our child keeps its pid until it is reaped, so this is surely it, even if it is dead already.
    let pidfd = open(pid).map_err(|error| Error::engine(&plan.name, error))?;
    let stat = Stat::of(pid).ok_or_else(|| Error::engine(&plan.name, "it is not in /proc"))?;
    let identity = Identity { pid, started: stat.started, boot: boot_id() };
    let record = serde_json::to_vec(&identity).map_err(|error| Error::System(error.to_string()))?;
    replace_file(&plan.record, &record)?;
    if let Some(score) = plan.oom_score {
        let path = format!("/proc/{pid}/oom_score_adj");
        if let Err(error) = fs::write(&path, score.to_string()) {
            tracing::warn!(engine.name = %plan.name, %error, "cannot be protected from the kernel's memory killer");
        }
    }
    Ok(Process { identity, pidfd, child: Some(child), output_began })
}

/// The daemon, if it runs: by its record, or (the record being lost, or a start having been interrupted before it was written)
/// by its command line, which is like no other.
pub fn find(plan: &Plan) -> Option<Process> {
    if let Some(process) = read_record(&plan.record).and_then(attach) {
        return Some(process);
    }
    let candidate = all_pids()
        .filter(|pid| is_command(*pid, &plan.command))
        .filter_map(|pid| Some((pid, Stat::of(pid)?)))
        // A daemon's helpers have its command line until they execute something else; the daemon is the oldest.
        .min_by_key(|(pid, stat)| (stat.started, *pid));
    let (pid, stat) = candidate?;
    let process = attach(Identity { pid, started: stat.started, boot: boot_id() })?;
    if let Ok(record) = serde_json::to_vec(&process.identity) {
        // Only a quicker way to find it next time.
        let _ = replace_file(&plan.record, &record);
    }
    Some(process)
}

/// Runs, but as an earlier configuration had it.
pub fn is_outdated(plan: &Plan) -> bool {
    let runs = find(plan).and_then(|process| command_of(process.pid()));
    // Only the program's place may differ: it is looked up in PATH.
    runs.is_some_and(|command| command.get(1..) != plan.command.get(1..))
}

/// Ends the daemon if it runs; true when it did.
pub async fn stop(plan: &Plan) -> Result<bool> {
    match find(plan) {
        Some(process) => process.stop(plan).await.map(|()| true),
        None => forget(plan).map(|()| false),
    }
}

/// The last lines the daemon wrote in this life, for the message that says why it ended.
pub fn last_words(plan: &Plan, process: &Process) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(&plan.output)?;
        let length = file.metadata()?.len();
        let born = process.output_began.unwrap_or(length);
        file.seek(SeekFrom::Start(length.saturating_sub(400).max(born)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read().unwrap_or_default()
}

/// Any process by pid, if it satisfies `check` (given its command line).
pub(crate) fn attach_if(pid: i32, check: impl Fn(&[String]) -> bool) -> Option<Process> {
    let stat = Stat::of(pid)?;
    let process = attach(Identity { pid, started: stat.started, boot: boot_id() })?;
    check(&command_of(pid)?).then_some(process)
}

/// Every process that has a record in `directory` and still runs, with its record's name.
pub(crate) fn recorded(directory: &Path) -> Vec<(String, Process)> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
        .filter_map(|path| {
            let name = path.file_stem()?.to_str()?.to_owned();
            Some((name, attach(read_record(&path)?)?))
        })
        .collect()
}

/// The processes whose network namespace this is, ourselves excluded.
pub(crate) fn inside_netns(path: &Path) -> Vec<i32> {
    use std::os::unix::fs::MetadataExt;
    let Ok(wanted) = fs::metadata(path) else {
        return Vec::new();
    };
    let own = std::process::id();
    all_pids()
        .filter(|pid| u32::try_from(*pid) != Ok(own))
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
        })
        .collect()
}

/// True when some process, in whatever mount namespace, has something mounted there.
pub(crate) fn is_mount_point_anywhere(path: &Path) -> bool {
    let wanted = path.to_string_lossy();
    all_pids().any(|pid| {
        fs::read_to_string(format!("/proc/{pid}/mountinfo"))
            .is_ok_and(|mounts| mounts.lines().any(|line| line.split(' ').nth(4) == Some(&*wanted)))
    })
}

/// Ends processes that have no plan: SIGTERM, then after `patience` SIGKILL.
pub(crate) async fn end_all(processes: Vec<Process>, patience: Duration) -> Result<()> {
    for process in &processes {
        process.terminate();
    }
    let deadline = tokio::time::Instant::now() + patience;
    for mut process in processes {
        if tokio::time::timeout_at(deadline, process.exited()).await.is_err() {
            process.kill();
            process.exited().await?;
        }
    }
    Ok(())
}

fn read_record(path: &Path) -> Option<Identity> {
    let identity: Identity = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (identity.boot == boot_id()).then_some(identity)
}

fn attach(identity: Identity) -> Option<Process> {
    let pidfd = open(identity.pid).ok()?;
    // Looked at after the pidfd is held: if it is the right process now, the pidfd is its.
    let stat = Stat::of(identity.pid)?;
    let same = stat.started == identity.started && !stat.dead;
    same.then_some(Process { identity, pidfd, child: None, output_began: None })
}

fn open(pid: i32) -> std::io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// The part of /proc/PID/stat that matters here.
struct Stat {
    dead: bool,
    started: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name in parentheses may hold anything, also blanks and parentheses.
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X");
        let started = fields.nth(18)?.parse().ok()?;
        Some(Stat { dead, started })
    }
}

pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn all_pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn command_of(pid: i32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    Some(text.trim_end_matches('\0').split('\0').map(str::to_owned).collect())
}

fn is_command(pid: i32, command: &[String]) -> bool {
    command_of(pid).is_some_and(|found| found == command)
}

fn rotate(log: &Path) -> Result<()> {
    if !fs::metadata(log).is_ok_and(|metadata| metadata.len() > Plan::LOG_MAX) {
        return Ok(());
    }
    let mut old = log.as_os_str().to_owned();
    old.push(".1");
    fs::rename(log, old).map_err(Error::file("rotating", log))
}

/// Files that we ourselves inherited (a lock of whoever called `mallee up`, an ssh session's pipe) must not be held open by a
/// daemon for years.
#[allow(unsafe_code)]
fn keep_files_to_ourselves() {
    let (first, last) = (3, libc::c_uint::MAX);
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed here; the call only sets a flag on descriptors, and none of ours
    // is meant to be inherited.
    let result = unsafe { libc::close_range(first, last, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    if result != 0 {
        tracing::debug!("close_range is not available; Rust's own files are closed on exec anyway");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_parentheses_does_not_confuse_the_start_time() {
        let tail = (4..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("77 (a) Z (b)) S {tail}")).unwrap();
        assert_eq!((stat.dead, stat.started), (false, 22));
        assert!(Stat::parse(&format!("77 (x) Z {tail}")).unwrap().dead);
    }

    #[test]
    fn a_pid_with_another_start_time_is_somebody_else() {
        let own = i32::try_from(std::process::id()).unwrap();
        let started = Stat::of(own).unwrap().started;
        let identity = |started| Identity { pid: own, started, boot: boot_id() };
        assert!(attach(identity(started)).is_some());
        assert!(attach(identity(started + 1)).is_none());
    }
}
