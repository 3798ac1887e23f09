//! One daemon, as data: how it is started, how it is known to be ready, how it is told to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::netns::Netns;

/// A daemon that runs in the foreground of a session of its own. Its environment is empty but for `PATH` and `environment`.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: String,
    /// Program and arguments. They must be unlike those of any other daemon on the machine (a path under the base
    /// directory makes them so): a daemon whose record was lost is found again by them.
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub netns: Netns,
    /// Made in a mount namespace of the daemon's own; none means it has the machine's.
    pub mounts: Vec<Mount>,
    /// Who it is: pid, start time and boot.
    pub record: PathBuf,
    /// Standard output and error, appended.
    pub output: PathBuf,
    /// Logs it writes itself. Any log above [`Plan::LOG_MAX`] is renamed to `….1` when the daemon starts.
    pub logs: Vec<PathBuf>,
    pub ready: Ready,
    /// Daemons that must be ready before this one is started the first time.
    pub after: Vec<String>,
    pub stop: Stop,
    /// Written to `oom_score_adj`. Not for libvirtd: guests would inherit it.
    pub oom_score: Option<i16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// `target` shows `source`.
    Bind { source: PathBuf, target: PathBuf },
    /// `target`, if it exists, cannot be opened: an empty read-only file is over it.
    Deny { empty: PathBuf, target: PathBuf },
}

/// How a daemon is known to work: it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// An OVSDB server that has this database.
    Database { socket: PathBuf, name: String },
    /// A control socket (`{pid}` in the path is the daemon's) that answers `method`, with `expect` in the answer.
    Control { socket: String, method: String, expect: String },
    /// libvirtd has initialised its drivers and answers calls.
    Libvirt { socket: PathBuf },
    /// A unix socket that accepts connections.
    Unix { socket: PathBuf },
    /// A TCP port that accepts connections.
    Tcp { address: SocketAddr },
}

/// How a daemon ends: asked, then SIGTERM, then SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// A method of its control socket that ends it better than a signal does.
    pub control: Option<(PathBuf, String, Vec<String>)>,
    /// How long each way may take.
    pub patience: Duration,
}

impl Default for Stop {
    fn default() -> Stop {
        Stop { control: None, patience: Duration::from_secs(10) }
    }
}

impl Plan {
    pub const LOG_MAX: u64 = 16 << 20;

    /// A daemon with its record in `run` and its output in `log`, in the machine's own namespaces.
    pub fn new(name: &str, run: &Path, log: &Path, command: Vec<String>, ready: Ready) -> Plan {
        Plan {
            name: name.to_owned(),
            command,
            environment: Vec::new(),
            netns: Netns::Machine,
            mounts: Vec::new(),
            record: run.join(format!("{name}.pid")),
            output: log.join(format!("{name}.out")),
            logs: Vec::new(),
            ready,
            after: Vec::new(),
            stop: Stop::default(),
            oom_score: None,
        }
    }

    /// The command line that is really spawned. Each word before the daemon's own replaces itself by the next one, so
    /// the pid stays the same throughout.
    pub fn launch(&self) -> Vec<String> {
        let mut line = vec!["setsid".to_owned()];
        if let Netns::Named(name) = &self.netns {
            line.push("nsenter".to_owned());
            line.push(format!("--net={}", Netns::path_of(name).display()));
        }
        if !self.mounts.is_empty() {
            let unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
            line.extend(unshare.map(str::to_owned));
            line.push(mount_script(&self.mounts));
            line.push(self.name.clone());
        }
        line.extend(self.command.iter().cloned());
        line
    }
}

fn mount_script(mounts: &[Mount]) -> String {
    let mut script = "set -e\n".to_owned();
    for mount in mounts {
        script += &match mount {
            Mount::Bind { source, target } => {
                let (source, target) = (quoted(source), quoted(target));
                format!("mkdir -p {target}\nmount --bind {source} {target}\n")
            }
            // A writable empty file would count as accessible; a read-only one does not, not even for root.
            Mount::Deny { empty, target } => {
                let (empty, target) = (quoted(empty), quoted(target));
                format!(
                    "if [ -e {target} ]; then mount --bind {empty} {target}; mount -o remount,bind,ro {target}; fi\n"
                )
            }
        };
    }
    script + "exec \"$@\"\n"
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let command = ["libvirtd", "-p", "/b/x.pid"].map(str::to_owned).to_vec();
        let socket = PathBuf::from("/b/s");
        Plan::new("libvirtd", Path::new("/b/run"), Path::new("/b/log"), command, Ready::Unix { socket })
    }

    #[test]
    fn a_plain_daemon_only_gets_a_session_of_its_own() {
        assert_eq!(plan().launch(), ["setsid", "libvirtd", "-p", "/b/x.pid"]);
    }

    #[test]
    fn a_daemon_in_namespaces_keeps_its_pid_through_every_exec() {
        let mut plan = plan();
        plan.netns = Netns::Named("m".to_owned());
        plan.mounts = vec![
            Mount::Bind { source: "/b/it's".into(), target: "/run/x".into() },
            Mount::Deny { empty: "/b/no".into(), target: "/dev/kvm".into() },
        ];
        let line = plan.launch();
        assert_eq!(&line[..3], ["setsid", "nsenter", "--net=/run/netns/m"]);
        assert_eq!(&line[3..9], ["unshare", "--mount", "--propagation", "private", "sh", "-c"]);
        assert!(line[9].contains(r"mount --bind '/b/it'\''s' '/run/x'"), "{}", line[9]);
        assert!(line[9].contains("remount,bind,ro '/dev/kvm'") && line[9].ends_with("exec \"$@\"\n"));
        assert_eq!(&line[10..], ["libvirtd", "libvirtd", "-p", "/b/x.pid"]);
    }
}
