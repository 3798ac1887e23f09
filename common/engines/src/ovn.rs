//! OVN's databases and northd, beside the cloud-controller.
//!
//! Other machines' ovn-controllers reach the southbound database over TLS, and there ovsdb-server lets each change only what
//! is its own chassis': the connection's role says so, and the certificate's common name says whose it is. The northbound
//! database, where everything may be changed, has no port at all.

use std::net::SocketAddr;
use std::path::Path;

use mallee_ovsdb::{Client, Condition, Op, Row, value};

use crate::config::CentralConfig;
use crate::error::Result;
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

/// What a daemon of Open vSwitch or OVN is told about the certificate it shows. It is read again when it and the key changed:
/// `mallee_service::pki::show_to_switches` sees to that.
pub(crate) fn certificate(folder: &Path) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--private-key={}", file("key.pem")),
        format!("--certificate={}", file("cert.pem")),
        format!("--ca-cert={}", file("ca.pem")),
    ]
}

pub(crate) fn plans(layout: &Layout, netns: &Netns, central: &CentralConfig) -> Vec<Plan> {
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
    // The machine's own addresses are where other machines come to.
    let reached = if central.southbound.is_some() { &Netns::Machine } else { netns };
    let mut southbound = database(
        layout,
        reached,
        &DatabaseServer {
            name: "ovn-sb",
            directory: &directory,
            file: "sb.db",
            socket: &layout.southbound_socket(),
            database: "OVN_Southbound",
        },
    );
    if let Some(folder) = &central.tls {
        // The last word is the database's file.
        let at = southbound.command.len() - 1;
        let remote = format!("--remote=db:{SOUTHBOUND},SB_Global,connections");
        // ovn-controller aborts when it is told this; it takes what is offered.
        let protocols = "--ssl-protocols=TLSv1.2".to_owned();
        southbound.command.splice(at..at, [remote, protocols].into_iter().chain(certificate(folder)));
    }
    vec![northbound, southbound, northd(layout, netns)]
}

const SOUTHBOUND: &str = "OVN_Southbound";
/// The rights of a chassis, as northd writes them into the database (ovn-sb(5), "RBAC").
const CHASSIS_ROLE: &str = "ovn-controller";
/// A busy machine may be silent for a while; what it has in its switch goes on meanwhile.
pub(crate) const PROBE_MS: i64 = 30_000;

/// Makes the southbound database listen at `address` for other machines' chassis, and nowhere else. The root row is northd's:
/// false while it is not there.
pub(crate) async fn serve_chassis(client: &Client, address: SocketAddr) -> Result<bool> {
    let target = match address {
        SocketAddr::V4(address) => format!("pssl:{}:{}", address.port(), address.ip()),
        SocketAddr::V6(address) => format!("pssl:{}:[{}]", address.port(), address.ip()),
    };
    let found = client
        .transact(
            SOUTHBOUND,
            vec![
                Op::select("SB_Global", [], &["connections"]),
                Op::select("Connection", [], &["_uuid", "target", "role", "inactivity_probe"]),
            ],
        )
        .await?;
    let Some(root) = found[0].rows.first() else { return Ok(false) };
    let connection = Row::new()
        .with("target", target.as_str())
        .with("role", CHASSIS_ROLE)
        .with("inactivity_probe", value::set([PROBE_MS]));
    let is_right = found[1].rows.len() == 1
        && root.uuids("connections").len() == 1
        && found[1]
            .rows
            .iter()
            .all(|row| row.string("target") == Some(target.as_str()) && row.string("role") == Some(CHASSIS_ROLE));
    if is_right {
        return Ok(true);
    }
    let ops = vec![
        Op::insert("Connection", connection).named("connection"),
        // What nothing refers to any more goes by itself.
        Op::update("SB_Global", [], Row::new().with("connections", value::set([value::named("connection")]))),
    ];
    client.transact(SOUTHBOUND, ops).await?;
    Ok(true)
}

/// Takes a machine that is gone for good out of the southbound database. True: it was there.
pub async fn forget_chassis(layout: &Layout, name: &str) -> Result<bool> {
    let client = Client::connect_unix(layout.southbound_socket()).await?;
    let ours = || [Condition::equal("name", name)];
    let ops = vec![Op::delete("Chassis_Private", ours()), Op::delete("Chassis", ours())];
    let done = client.transact(SOUTHBOUND, ops).await?;
    Ok(done.iter().any(|result| result.count > 0))
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
