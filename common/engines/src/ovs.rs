//! The local switch: its daemons, and what is written into its database (what `ovs-vsctl` would write).

use std::net::IpAddr;
use std::path::Path;

use mallee_ovsdb::{Client, Condition, MonitorTable, Op, Row, value};
use uuid::Uuid;

use crate::config::{Datapath, NodeConfig};
use crate::error::{Error, Result};
use crate::ip::run;
use crate::layout::Layout;
use crate::netns::Netns;
use crate::network::TUNNEL_LINK;
use crate::ovn::{DatabaseServer, PROBE_MS, certificate, database, logging};
use crate::plan::{Plan, Ready, Stop};

pub(crate) const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const DB: &str = "Open_vSwitch";
/// The bridge to the outside. OVN connects it to the integration bridge by the physical network's name.
pub const EXTERNAL_BRIDGE: &str = "br-ext";
/// Made by ovn-controller; instances' ports go here.
pub const INTEGRATION_BRIDGE: &str = "br-int";
/// With the userspace datapath, tunnels leave by a bridge of their own, which bears their address: that datapath sends them
/// only where its own port leads.
pub const TUNNEL_BRIDGE: &str = "br-tun";
/// The `network_name` of a localnet port that leads outside.
pub const PHYSICAL_NETWORK: &str = "public";

/// What ovn-controller and the bridges need to know about this machine.
#[derive(Debug, Clone)]
pub struct Chassis {
    pub system_id: String,
    /// OVN's southbound database, such as `unix:/…/sb.sock`.
    pub southbound: String,
    pub encap_address: IpAddr,
    /// The hardware address of the tunnels' link, which must be that of the bridge it is a port of.
    pub tunnel: Option<String>,
    pub datapath: Datapath,
    /// A link that becomes a port of [`EXTERNAL_BRIDGE`].
    pub uplink: Option<String>,
}

/// The kernel's datapath where the module is there or can be loaded, else the userspace one.
pub async fn find_datapath() -> Datapath {
    let loaded = Path::new("/sys/module/openvswitch").exists();
    if loaded || run("modprobe", &["openvswitch"]).await.is_ok() { Datapath::System } else { Datapath::Netdev }
}

pub(crate) fn plans(layout: &Layout, netns: &Netns, node: &NodeConfig) -> Vec<Plan> {
    let directory = layout.ovs();
    let mut server = database(
        layout,
        netns,
        &DatabaseServer {
            name: "ovsdb",
            directory: &directory,
            file: "conf.db",
            socket: &layout.ovs_socket(),
            database: DB,
        },
    );
    // Packets stop while vswitchd or its database is away, so the kernel should look elsewhere for memory.
    server.oom_score = Some(-900);
    vec![server, vswitchd(layout, netns), controller(layout, netns, node)]
}

fn vswitchd(layout: &Layout, netns: &Netns) -> Plan {
    let directory = layout.ovs();
    let log = layout.log().join("ovs-vswitchd.log");
    let control = directory.join("vswitchd.ctl");
    let mut command = vec!["ovs-vswitchd".to_owned()];
    command.extend(logging(&log));
    command.push(format!("--pidfile={}", directory.join("vswitchd.pid").display()));
    command.push(format!("--unixctl={}", control.display()));
    command.push(format!("unix:{}", layout.ovs_socket().display()));
    let ready =
        Ready::Control { socket: control.display().to_string(), method: "version".to_owned(), expect: String::new() };
    Plan {
        netns: netns.clone(),
        environment: vec![("OVS_RUNDIR".to_owned(), directory.display().to_string())],
        logs: vec![log],
        after: vec!["ovsdb".to_owned()],
        // A kernel datapath and its links outlive a vswitchd that is merely killed.
        stop: Stop { control: Some((control, "exit".to_owned(), vec!["--cleanup".to_owned()])), ..Stop::default() },
        oom_score: Some(-900),
        ..Plan::new("ovs-vswitchd", &layout.run(), &layout.log(), command, ready)
    }
}

fn controller(layout: &Layout, netns: &Netns, node: &NodeConfig) -> Plan {
    // It reaches the switch over unix sockets wherever it is, and another machine from the machine's own addresses.
    let netns = if node.southbound.is_some() { &Netns::Machine } else { netns };
    let (ovs, ovn) = (layout.ovs(), layout.ovn());
    let log = layout.log().join("ovn-controller.log");
    let mut command = vec!["ovn-controller".to_owned()];
    command.extend(logging(&log));
    // A line for each packet that a flow log's rules refuse would fill the disk; the node hears of them from the switch.
    command.push("-vacl_log:file:warn".to_owned());
    command.push(format!("--pidfile={}", ovn.join("ovn-controller.pid").display()));
    if let Some(folder) = &node.tls {
        command.extend(certificate(folder));
    }
    command.push(format!("unix:{}", layout.ovs_socket().display()));
    let ready = Ready::Control {
        socket: ovn.join("ovn-controller.{pid}.ctl").display().to_string(),
        method: "connection-status".to_owned(),
        expect: "connected".to_owned(),
    };
    Plan {
        netns: netns.clone(),
        // It finds the bridge's management socket under OVS_RUNDIR, and makes its own under OVN_RUNDIR.
        environment: vec![
            ("OVS_RUNDIR".to_owned(), ovs.display().to_string()),
            ("OVN_RUNDIR".to_owned(), ovn.display().to_string()),
        ],
        logs: vec![log],
        after: vec!["ovs-vswitchd".to_owned()],
        ..Plan::new("ovn-controller", &layout.run(), &layout.log(), command, ready)
    }
}

/// Makes the database say what `chassis` says, in one transaction, and waits until vswitchd has done it. Writing the same
/// again changes nothing.
pub async fn configure(client: &Client, chassis: &Chassis) -> Result<()> {
    let found = client
        .transact(
            DB,
            vec![
                Op::select("Open_vSwitch", [], &["_uuid"]),
                Op::select("Bridge", [Condition::equal("name", EXTERNAL_BRIDGE)], &["_uuid", "ports"]),
                Op::select("Bridge", [Condition::equal("name", TUNNEL_BRIDGE)], &["_uuid"]),
            ],
        )
        .await?;
    let mut ops = Vec::new();
    if found[0].rows.is_empty() {
        // `wait` keeps two programs that start at once from making two roots.
        ops.push(Op::wait("Open_vSwitch", [], &["_uuid"], "==", []));
        ops.push(Op::insert("Open_vSwitch", Row::new()));
    }
    match found[1].rows.first() {
        None => ops.extend(new_bridge(EXTERNAL_BRIDGE, chassis.datapath, None)),
        Some(_) => ops.push(Op::update(
            "Bridge",
            [Condition::equal("name", EXTERNAL_BRIDGE)],
            Row::new().with("datapath_type", chassis.datapath.as_str()),
        )),
    }
    let tunnel = chassis.tunnel.as_ref().filter(|_| chassis.datapath == Datapath::Netdev);
    if let (Some(hardware), true) = (tunnel, found[2].rows.is_empty()) {
        ops.extend(new_bridge(TUNNEL_BRIDGE, chassis.datapath, Some(hardware)));
    }
    let ids = external_ids(chassis);
    let names = value::set(ids.iter().map(|(name, _)| *name));
    ops.push(Op::mutate("Open_vSwitch", [], "external_ids", "delete", names).and_mutate(
        "external_ids",
        "insert",
        value::map(ids),
    ));
    apply(client, ops).await?;
    if let Some(hardware) = tunnel {
        let row = Row::new().with("other_config", value::map([("hwaddr", hardware.as_str())]));
        apply(client, vec![Op::update("Bridge", [Condition::equal("name", TUNNEL_BRIDGE)], row)]).await?;
        ensure_port(client, TUNNEL_BRIDGE, TUNNEL_LINK, None).await?;
    }
    match &chassis.uplink {
        Some(uplink) => ensure_port(client, EXTERNAL_BRIDGE, uplink, None).await,
        None => Ok(()),
    }
}

fn external_ids(chassis: &Chassis) -> Vec<(&'static str, String)> {
    let mut ids = vec![
        ("system-id", chassis.system_id.clone()),
        ("ovn-remote", chassis.southbound.clone()),
        ("ovn-encap-type", "geneve".to_owned()),
        ("ovn-encap-ip", chassis.encap_address.to_string()),
        ("ovn-bridge-datapath-type", chassis.datapath.as_str().to_owned()),
        ("ovn-openflow-probe-interval", "0".to_owned()),
        ("ovn-monitor-all", "true".to_owned()),
    ];
    // A unix socket breaks by itself when the other side dies; over a network silence has to be noticed.
    let probe = if chassis.southbound.starts_with("unix:") { 0 } else { PROBE_MS };
    ids.push(("ovn-remote-probe-interval", probe.to_string()));
    if chassis.uplink.is_some() {
        ids.push(("ovn-bridge-mappings", format!("{PHYSICAL_NETWORK}:{EXTERNAL_BRIDGE}")));
    }
    ids
}

fn new_bridge(name: &str, datapath: Datapath, hardware: Option<&str>) -> Vec<Op> {
    // Names of rows of this transaction: several bridges may be made in one.
    let row = |what: &str| format!("{what}_{}", name.replace('-', "_"));
    let interface = Row::new().with("name", name).with("type", "internal");
    let port = Row::new().with("name", name).with("interfaces", value::set([value::named(&row("interface"))]));
    let bridge = Row::new()
        .with("name", name)
        .with("datapath_type", datapath.as_str())
        .with("other_config", value::map(hardware.map(|address| ("hwaddr", address))))
        .with("ports", value::set([value::named(&row("port"))]));
    vec![
        Op::insert("Interface", interface).named(&row("interface")),
        Op::insert("Port", port).named(&row("port")),
        Op::insert("Bridge", bridge).named(&row("bridge")),
        Op::mutate("Open_vSwitch", [], "bridges", "insert", value::set([value::named(&row("bridge"))])),
    ]
}

/// Makes a link a port of a bridge, bound to the logical port `iface_id` if one is given. The bridge must exist (see
/// [`wait_for_bridge`]).
pub async fn ensure_port(client: &Client, bridge: &str, link: &str, iface_id: Option<&str>) -> Result<()> {
    let found = client
        .transact(
            DB,
            vec![
                Op::select("Port", [Condition::equal("name", link)], &["_uuid"]),
                Op::select("Bridge", [Condition::equal("name", bridge)], &["_uuid", "ports"]),
                Op::select("Interface", [Condition::equal("name", link)], &["external_ids"]),
            ],
        )
        .await?;
    let Some(on) = found[1].rows.first() else {
        return Err(Error::engine("ovs-vswitchd", format!("there is no bridge {bridge}")));
    };
    let ids = iface_id.map(|id| ("iface-id", id));
    if let Some(port) = found[0].rows.first().and_then(Row::id) {
        if on.uuids("ports").contains(&port) {
            let known = found[2].rows.first().map(|row| row.string_map("external_ids")).unwrap_or_default();
            if known.get("iface-id").map(String::as_str) == iface_id {
                return Ok(());
            }
            let row = Row::new().with("external_ids", value::map(ids));
            return apply(client, vec![Op::update("Interface", [Condition::equal("name", link)], row)]).await;
        }
        remove_port(client, link).await?;
    }
    let interface = Row::new().with("name", link).with("external_ids", value::map(ids));
    let port = Row::new().with("name", link).with("interfaces", value::set([value::named("interface")]));
    let ops = vec![
        Op::insert("Interface", interface).named("interface"),
        Op::insert("Port", port).named("port"),
        Op::mutate("Bridge", [Condition::equal("name", bridge)], "ports", "insert", value::set([value::named("port")])),
    ];
    apply(client, ops).await
}

/// Takes a link off whatever bridge it is on; done when vswitchd has closed it. **Before a link of the same name is made
/// again this has to be called**: a port that stays keeps its socket on the old link and is deaf for ever, with no error anywhere.
pub async fn remove_port(client: &Client, link: &str) -> Result<()> {
    let found = client.transact(DB, vec![Op::select("Port", [Condition::equal("name", link)], &["_uuid"])]).await?;
    let ids: Vec<Uuid> = found[0].rows.iter().filter_map(Row::id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let ops = ids
        .into_iter()
        .map(|id| {
            let port = value::set([value::uuid(id)]);
            Op::mutate("Bridge", [Condition::includes("ports", port.clone())], "ports", "delete", port)
        })
        .collect();
    apply(client, ops).await
}

/// Waits until a bridge is in the database ([`INTEGRATION_BRIDGE`] is made by ovn-controller).
pub async fn wait_for_bridge(client: &Client, bridge: &str) -> Result<()> {
    let table = MonitorTable::new("Bridge").columns(&["name"]).only(Condition::equal("name", bridge));
    let (mut replica, mut monitor) = client.replicate(DB, vec![table]).await?;
    while replica.rows("Bridge").next().is_none() {
        replica.apply(monitor.next().await?);
    }
    Ok(())
}

/// Commits, and waits until vswitchd has done it: it copies `next_cfg` to `cur_cfg` when it has. Drop the future to stop waiting;
/// the transaction stands.
async fn apply(client: &Client, mut ops: Vec<Op>) -> Result<()> {
    ops.push(Op::mutate("Open_vSwitch", [], "next_cfg", "+=", 1));
    ops.push(Op::select("Open_vSwitch", [], &["next_cfg"]));
    let results = client.transact(DB, ops).await?;
    let wanted = results
        .last()
        .and_then(|result| result.rows.first()?.integer("next_cfg"))
        .ok_or_else(|| Error::engine("ovsdb", "the database has no root row"))?;
    let table = MonitorTable::new("Open_vSwitch").columns(&["cur_cfg"]);
    let (mut replica, mut monitor) = client.replicate(DB, vec![table]).await?;
    while !replica.rows("Open_vSwitch").any(|(_, row)| row.integer("cur_cfg").is_some_and(|done| done >= wanted)) {
        replica.apply(monitor.next().await?);
    }
    Ok(())
}
