//! The supervisor and the processes with small daemons of the test's own; needs no root and no engine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use mallee_engines::{Phase, Plan, Ready, Supervisor, process};

const PATIENCE: Duration = Duration::from_secs(30);

/// A shell that is ready as soon as it runs, because the port it is asked about is ours.
fn shell(directory: &Path, name: &str, script: &str, listener: &TcpListener) -> Plan {
    let address = listener.local_addr().unwrap();
    let unique = format!("{}/{name}", directory.display());
    let command = ["sh", "-c", script, &unique].map(str::to_owned).to_vec();
    Plan::new(name, directory, directory, command, Ready::Tcp { address })
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn ready_pid(supervisor: &Supervisor) -> i32 {
    match supervisor.statuses().remove(0).phase {
        Phase::Ready { pid } => pid,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_start_is_named_with_its_last_words() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listener();
    let mut plan = shell(directory.path(), "broken", "echo no such database; exit 3", &listener);
    plan.ready = Ready::Unix { socket: directory.path().join("never") };
    let supervisor = Supervisor::start(&directory.path().join("lock"), vec![plan]).unwrap();
    let error = supervisor.ready(Duration::from_secs(2)).await.unwrap_err().to_string();
    assert!(
        error.contains("broken") && error.contains("no such database") && error.contains("exit status: 3"),
        "{error}"
    );
    assert!(supervisor.statuses()[0].restarts >= 4);
    supervisor.stop().await.unwrap();
}

#[tokio::test]
async fn a_daemon_has_its_own_session_and_none_of_our_files() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listener();
    let inherited = fs::File::create(directory.path().join("inherited")).unwrap();
    // As if whoever started us had left it open.
    rustix::io::fcntl_setfd(inherited.as_fd(), rustix::io::FdFlags::empty()).unwrap();
    let plan = shell(directory.path(), "clean", "while :; do sleep 1; done", &listener);
    let process = process::start(&plan).unwrap();
    let pid = process.pid();
    while !fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().starts_with("sh") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let files: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!files.contains(&directory.path().join("inherited")), "{files:?}");
    let session = rustix::process::getsid(rustix::process::Pid::from_raw(pid)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), pid);
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.starts_with(b"PATH=") && environment.iter().filter(|byte| **byte == 0).count() == 1);
    process.stop(&plan).await.unwrap();
    assert!(process::find(&plan).is_none());
}

#[tokio::test]
async fn a_record_of_a_recycled_pid_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listener();
    let plan = shell(directory.path(), "mine", "while :; do sleep 1; done", &listener);
    let stranger = shell(directory.path(), "stranger", "while :; do sleep 1; done", &listener);
    let stranger_process = process::start(&stranger).unwrap();
    let record = fs::read_to_string(&stranger.record).unwrap();
    let started = record.split("\"started\":").nth(1).unwrap().split(',').next().unwrap();
    let older = record.replace(started, &(started.parse::<u64>().unwrap() - 1).to_string());
    fs::write(&plan.record, older).unwrap();
    assert!(process::find(&plan).is_none());
    assert!(!process::stop(&plan).await.unwrap());
    assert!(process::find(&stranger).is_some(), "it still runs");
    stranger_process.stop(&stranger).await.unwrap();
}

#[tokio::test]
async fn a_daemon_outlives_its_supervisor_and_the_next_one_stops_it_even_if_it_will_not() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listener();
    let mut plan = shell(directory.path(), "stubborn", "trap '' TERM; while :; do sleep 1; done", &listener);
    plan.stop.patience = Duration::from_millis(300);
    let lock = directory.path().join("lock");
    let first = Supervisor::start(&lock, vec![plan.clone()]).unwrap();
    first.ready(PATIENCE).await.unwrap();
    let pid = ready_pid(&first);
    first.release().await;
    fs::remove_file(&plan.record).unwrap();
    // It is found by its command line only once the shell is executed.
    while process::find(&plan).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = Supervisor::start(&lock, vec![plan.clone()]).unwrap();
    second.ready(PATIENCE).await.unwrap();
    assert_eq!(ready_pid(&second), pid);
    second.stop().await.unwrap();
    assert!(process::find(&plan).is_none() && !plan.record.exists());
}
