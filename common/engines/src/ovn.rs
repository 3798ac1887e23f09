//! OVN's databases and northd, beside the cloud-controller.

use std::path::Path;

use crate::layout::Layout;
use crate::netns::Netns;
use crate::plan::{Plan, Ready};

pub(crate) const NORTHBOUND_SCHEMA: &str = "/usr/share/ovn/ovn-nb.ovsschema";
pub(crate) const SOUTHBOUND_SCHEMA: &str = "/usr/share/ovn/ovn-sb.ovsschema";

/// What every daemon of Open vSwitch and OVN is told about its log.
pub(crate) fn logging(log: &Path) -> Vec<String> {
    vec!["-vconsole:off".to_owned(), "-vsyslog:off".to_owned(), format!("--log-file={}", log.display())]
}

/// An ovsdb-server with one database file. `--pidfile` locks that file, so that a second one cannot start.
pub(crate) fn database(layout: &Layout, netns: &Netns, server: &DatabaseServer) -> Plan {
    let log = layout.log().join(format!("{}.log", server.name));
    let in_directory = |name: String| server.directory.join(name).display().to_string();
    let mut command = vec!["ovsdb-server".to_owned()];
    command.extend(logging(&log));
    command.push(format!("--pidfile={}", in_directory(format!("{}.pid", server.name))));
    command.push(format!("--unixctl={}", in_directory(format!("{}.ctl", server.name))));
    command.push(format!("--remote=punix:{}", server.socket.display()));
    command.push(in_directory(server.file.to_owned()));
    let ready = Ready::Database { socket: server.socket.to_owned(), name: server.database.to_owned() };
    Plan {
        netns: netns.clone(),
        logs: vec![log],
        ..Plan::new(server.name, &layout.run(), &layout.log(), command, ready)
    }
}

pub(crate) struct DatabaseServer<'a> {
    pub name: &'a str,
    pub directory: &'a Path,
    pub file: &'a str,
    pub socket: &'a Path,
    pub database: &'a str,
}

pub(crate) fn plans(layout: &Layout, netns: &Netns) -> Vec<Plan> {
    let directory = layout.ovn();
    let northbound = database(
        layout,
        netns,
        &DatabaseServer {
            name: "ovn-nb",
            directory: &directory,
            file: "nb.db",
            socket: &layout.northbound_socket(),
            database: "OVN_Northbound",
        },
    );
    let southbound = database(
        layout,
        netns,
        &DatabaseServer {
            name: "ovn-sb",
            directory: &directory,
            file: "sb.db",
            socket: &layout.southbound_socket(),
            database: "OVN_Southbound",
        },
    );
    vec![northbound, southbound, northd(layout, netns)]
}

fn northd(layout: &Layout, netns: &Netns) -> Plan {
    let directory = layout.ovn();
    let log = layout.log().join("ovn-northd.log");
    let control = directory.join("northd.ctl").display().to_string();
    let mut command = vec!["ovn-northd".to_owned()];
    command.extend(logging(&log));
    command.push(format!("--pidfile={}", directory.join("northd.pid").display()));
    command.push(format!("--unixctl={control}"));
    command.push(format!("--ovnnb-db=unix:{}", layout.northbound_socket().display()));
    command.push(format!("--ovnsb-db=unix:{}", layout.southbound_socket().display()));
    let ready = Ready::Control { socket: control, method: "status".to_owned(), expect: "active".to_owned() };
    Plan {
        netns: netns.clone(),
        environment: vec![("OVN_RUNDIR".to_owned(), directory.display().to_string())],
        logs: vec![log],
        after: vec!["ovn-nb".to_owned(), "ovn-sb".to_owned()],
        ..Plan::new("ovn-northd", &layout.run(), &layout.log(), command, ready)
    }
}
