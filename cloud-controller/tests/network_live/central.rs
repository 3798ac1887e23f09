//! OVN's central half in a directory of its own.

use std::{
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use mallee_ovsdb::Client;

pub struct Central {
    directory: tempfile::TempDir,
    processes: Vec<(&'static str, Child)>,
}

impl Central {
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("mallee-net").tempdir_in("/tmp").unwrap();
        for (name, schema) in [("nb", "ovn-nb"), ("sb", "ovn-sb")] {
            let made = Command::new("ovsdb-tool")
                .arg("create")
                .arg(directory.path().join(format!("{name}.db")))
                .arg(format!("/usr/share/ovn/{schema}.ovsschema"))
                .status()
                .expect("ovsdb-tool is not installed");
            assert!(made.success());
        }
        let mut central = Self { directory, processes: Vec::new() };
        for name in ["nb", "sb"] {
            central.serve(name);
            central.connect(name).await;
        }
        let northd = Command::new("ovn-northd")
            .env("OVN_RUNDIR", central.path(""))
            .args(["-vconsole:off", "-vsyslog:off"])
            .arg(format!("--log-file={}", central.path("northd.log").display()))
            .arg(format!("--unixctl={}", central.path("northd.ctl").display()))
            .arg(format!("--ovnnb-db=unix:{}", central.path("nb.sock").display()))
            .arg(format!("--ovnsb-db=unix:{}", central.path("sb.sock").display()))
            .spawn()
            .expect("ovn-northd is not installed");
        central.processes.push(("northd", northd));
        central
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn serve(&mut self, name: &'static str) {
        let process = Command::new("ovsdb-server")
            .args(["-vconsole:off", "-vsyslog:off"])
            .arg(format!("--log-file={}", self.path(&format!("{name}.log")).display()))
            .arg(format!("--unixctl={}", self.path(&format!("{name}.ctl")).display()))
            .arg(format!("--remote=punix:{}", self.path(&format!("{name}.sock")).display()))
            .arg(self.path(&format!("{name}.db")))
            .spawn()
            .expect("ovsdb-server is not installed");
        self.processes.push((name, process));
    }

    pub fn kill(&mut self, name: &str) {
        let at = self.processes.iter().position(|(n, _)| *n == name).unwrap();
        let (_, mut process) = self.processes.remove(at);
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// One more daemon that ends with this.
    pub fn run(&mut self, name: &'static str, command: &mut Command) {
        let process = command.spawn().unwrap_or_else(|e| panic!("{name} is not installed: {e}"));
        self.processes.push((name, process));
    }

    pub fn pids(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.processes.iter().map(|(name, process)| (*name, process.id()))
    }

    pub async fn connect(&self, name: &str) -> Client {
        for _ in 0..3000 {
            if let Ok(client) = Client::connect_unix(self.path(&format!("{name}.sock"))).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the {name} database did not come up");
    }

    pub fn trace(&self, switch: &str, packet: &str) -> String {
        let out = Command::new("ovn-trace")
            .arg(format!("--db=unix:{}", self.path("sb.sock").display()))
            .args(["--ct=new", "--ct=new", "--ct=new", "--ct=new", switch, packet])
            .output()
            .expect("ovn-trace is not installed");
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && !text.contains("parsing"), "{text}");
        text
    }
}

impl Drop for Central {
    fn drop(&mut self) {
        for (_, process) in &mut self.processes {
            process.kill().ok();
            process.wait().ok();
        }
    }
}
