//! A PostgreSQL of the tests' own: one for the whole test binary, on a unix socket, gone when the binary is.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const BINARIES: &str = "/usr/lib/postgresql/15/bin";

/// The URL of the cluster, which is started by the first test that asks.
pub fn url() -> &'static str {
    static CLUSTER: OnceLock<(String, Child)> = OnceLock::new();
    &CLUSTER.get_or_init(start).0
}

fn start() -> (String, Child) {
    let binaries = Path::new(BINARIES);
    assert!(binaries.join("initdb").exists(), "{BINARIES}/initdb is missing: apt-get install postgresql-15");
    let folder = tempfile::Builder::new().prefix("mallee-store-pg-").tempdir().unwrap().keep();
    // PostgreSQL refuses to run as root.
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let become_user = if root {
        chown(&folder, Some(id("-u")), Some(id("-g"))).unwrap();
        "setpriv --reuid=postgres --regid=postgres --clear-groups"
    } else {
        ""
    };
    let data = folder.join("data");
    let run = |script: String| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).current_dir(&folder);
        command
    };
    let made = run(format!(
        "{become_user} {BINARIES}/initdb --pgdata={} --username=mallee --auth=trust --locale=C --encoding=UTF8 --no-sync",
        data.display()
    ))
    .output()
    .unwrap();
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));

    // The shell's standard input ends when this process does, however it does: then the cluster is stopped and removed.
    let server = run(format!(
        "{become_user} {BINARIES}/postgres -D {data} -k {folder} -c listen_addresses= -c max_connections=300 \
             -c shared_buffers=32MB </dev/null >{folder}/log 2>&1 & server=$!; \
         cat >/dev/null; kill -QUIT $server; wait $server; rm -rf {folder}",
        data = data.display(),
        folder = folder.display()
    ))
    .stdin(Stdio::piped())
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    wait_until_ready(&folder);
    (format!("host={} user=mallee dbname=postgres", folder.display()), server)
}

fn wait_until_ready(folder: &PathBuf) {
    let started = Instant::now();
    loop {
        let ready = Command::new(format!("{BINARIES}/pg_isready")).args(["-q", "-h"]).arg(folder).status().unwrap();
        if ready.success() {
            return;
        }
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(started.elapsed() < Duration::from_secs(30), "PostgreSQL does not start: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn id(which: &str) -> u32 {
    let output = Command::new("id").args([which, "postgres"]).output().unwrap();
    assert!(output.status.success(), "there is no user postgres: apt-get install postgresql-15");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
