//! Against a real ovsdb-server with OVN's northbound schema. A machine without them fails here, on purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mallee_ovsdb::{Client, Condition, Error, MonitorTable, Op, Row, value};
use serde_json::json;

const DB: &str = "OVN_Northbound";

struct Server {
    directory: tempfile::TempDir,
    process: Child,
}

impl Server {
    fn start() -> Server {
        let directory = tempfile::Builder::new().prefix("ovsdb").tempdir_in("/tmp").unwrap();
        let database = directory.path().join("nb.db");
        let made = Command::new("ovsdb-tool")
            .arg("create")
            .arg(&database)
            .arg("/usr/share/ovn/ovn-nb.ovsschema")
            .status()
            .expect("ovsdb-tool is not installed");
        assert!(made.success(), "the OVN northbound schema is missing");
        let process = serve(directory.path());
        Server { directory, process }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("nb.sock")
    }

    async fn connect(&self) -> Client {
        for _ in 0..500 {
            if let Ok(client) = Client::connect_unix(self.socket()).await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("ovsdb-server did not come up");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn serve(directory: &Path) -> Child {
    Command::new("ovsdb-server")
        .args(["-vconsole:off", "-vsyslog:off"])
        .arg(format!("--remote=punix:{}/nb.sock", directory.display()))
        .arg(format!("--unixctl={}/nb.ctl", directory.display()))
        .arg(directory.join("nb.db"))
        .stdin(Stdio::null())
        .spawn()
        .expect("ovsdb-server is not installed")
}

fn switch_with_port() -> Vec<Op> {
    let port = Row::new()
        .with("name", "eni-1")
        .with("addresses", "0a:00:00:00:00:01 10.0.0.4")
        .with("external_ids", value::map([("instance", "i-1")]));
    let switch = Row::new().with("name", "sub-1").with("ports", value::set([value::named("p1")]));
    vec![
        Op::insert("Logical_Switch_Port", port).named("p1"),
        Op::insert("Logical_Switch", switch).named("sw"),
        Op::comment("a test"),
    ]
}

#[tokio::test]
async fn one_transaction_writes_rows_that_refer_to_each_other() {
    let server = Server::start();
    let client = server.connect().await;
    assert!(client.databases().await.unwrap().contains(&DB.to_owned()));
    let results = client.transact(DB, switch_with_port()).await.unwrap();
    let selected = client
        .transact(DB, vec![Op::select("Logical_Switch", [Condition::equal("name", "sub-1")], &[])])
        .await
        .unwrap();
    let row = &selected[0].rows[0];
    assert_eq!(row.uuids("ports"), vec![results[0].uuid.unwrap()]);
    assert_eq!(row.id(), results[1].uuid);
    let changed = client
        .transact(
            DB,
            vec![
                Op::update(
                    "Logical_Switch_Port",
                    [Condition::row(results[0].uuid.unwrap())],
                    Row::new().with("enabled", false),
                ),
                Op::mutate(
                    "Logical_Switch",
                    [Condition::equal("name", "sub-1")],
                    "other_config",
                    "insert",
                    value::map([("mcast_snoop", "false")]),
                ),
                Op::delete("Logical_Switch", [Condition::equal("name", "sub-1")]),
            ],
        )
        .await
        .unwrap();
    assert_eq!(changed.iter().map(|result| result.count).collect::<Vec<_>>(), [1, 1, 1]);
}

#[tokio::test]
async fn a_refused_operation_is_named_and_nothing_is_applied() {
    let server = Server::start();
    let client = server.connect().await;
    let mut operations = switch_with_port();
    operations.push(Op::wait("Port_Group", [], &["name"], "==", [Row::new().with("name", "absent")]));
    let error = client.transact(DB, operations).await.unwrap_err();
    assert!(error.is_failed_wait(), "{error}");
    assert!(matches!(error, Error::Refused { index: Some(3), .. }), "{error:?}");
    // A reference to nothing is only found at the commit, which has an element of its own in the answer.
    let dangling = Row::new().with("name", "x").with("ports", value::uuid(uuid::Uuid::from_u128(7)));
    let error = client.transact(DB, vec![Op::insert("Logical_Switch", dangling)]).await.unwrap_err();
    assert!(matches!(error, Error::Refused { index: None, .. }), "{error:?}");
    let error = client.transact("Nowhere", vec![]).await.unwrap_err();
    assert!(matches!(error, Error::Request { ref method, .. } if method == "transact"), "{error:?}");
    let rows = client.transact(DB, vec![Op::select("Logical_Switch", [], &["name"])]).await.unwrap();
    assert!(rows[0].rows.is_empty());
}

#[tokio::test]
async fn a_replica_follows_sets_maps_and_optional_columns() {
    let server = Server::start();
    let client = server.connect().await;
    let results = client.transact(DB, switch_with_port()).await.unwrap();
    let (port, switch) = (results[0].uuid.unwrap(), results[1].uuid.unwrap());
    let tables = vec![
        MonitorTable::new("Logical_Switch_Port")
            .columns(&["name", "up", "external_ids"])
            .only(Condition::equal("type", "")),
        MonitorTable::new("Logical_Switch"),
    ];
    let (mut replica, mut monitor) = client.replicate(DB, tables).await.unwrap();
    assert_eq!(replica.row("Logical_Switch_Port", port).unwrap().boolean("up"), None);

    let operations = vec![
        Op::insert("Logical_Switch_Port", Row::new().with("name", "eni-2")).named("p2"),
        Op::mutate("Logical_Switch", [Condition::row(switch)], "ports", "insert", value::set([value::named("p2")])),
        Op::mutate("Logical_Switch_Port", [Condition::row(port)], "external_ids", "delete", value::set(["instance"]))
            .and_mutate("external_ids", "insert", value::map([("instance", "i-2"), ("vpc", "vpc-1")])),
        Op::update("Logical_Switch_Port", [Condition::row(port)], Row::new().with("up", true)),
    ];
    let second = client.transact(DB, operations).await.unwrap()[0].uuid.unwrap();
    replica.apply(monitor.next().await.unwrap());
    let mut ports = replica.row("Logical_Switch", switch).unwrap().uuids("ports");
    ports.sort();
    let mut wanted = vec![port, second];
    wanted.sort();
    assert_eq!(ports, wanted);
    let row = replica.row("Logical_Switch_Port", port).unwrap();
    assert_eq!(row.boolean("up"), Some(true));
    assert_eq!(json!(row.string_map("external_ids")), json!({"instance": "i-2", "vpc": "vpc-1"}));

    client
        .transact(
            DB,
            vec![Op::mutate("Logical_Switch", [Condition::row(switch)], "ports", "delete", value::uuid(port))],
        )
        .await
        .unwrap();
    replica.apply(monitor.next().await.unwrap());
    assert_eq!(replica.row("Logical_Switch", switch).unwrap().uuids("ports"), vec![second]);
    assert!(replica.row("Logical_Switch_Port", port).is_none(), "a port that nothing holds vanishes");
}

#[tokio::test]
async fn ten_thousand_rows_come_in_one_snapshot() {
    let server = Server::start();
    let client = server.connect().await;
    let names: Vec<String> = (0..10_000).map(|n| format!("p{n}")).collect();
    let mut operations: Vec<Op> = names
        .iter()
        .map(|name| Op::insert("Logical_Switch_Port", Row::new().with("name", name.as_str())).named(name))
        .collect();
    let ports = value::set(names.iter().map(|name| value::named(name)));
    operations.push(Op::insert("Logical_Switch", Row::new().with("name", "big").with("ports", ports)));
    client.transact(DB, operations).await.unwrap();
    let (replica, _monitor) = client.replicate(DB, vec![MonitorTable::new("Logical_Switch_Port")]).await.unwrap();
    assert_eq!(replica.rows("Logical_Switch_Port").count(), 10_000);
}

#[tokio::test]
async fn a_dead_server_closes_calls_and_monitors_clearly() {
    let mut server = Server::start();
    let client = server.connect().await;
    let (_, mut monitor) = client.monitor_cond(DB, vec![MonitorTable::new("NB_Global")]).await.unwrap();
    server.process.kill().unwrap();
    assert!(monitor.next().await.unwrap_err().is_closed());
    assert!(client.closed().await.is_closed());
    assert!(client.databases().await.unwrap_err().is_closed());
}

#[tokio::test]
async fn the_servers_keepalive_is_answered() {
    // A stand-in for the server's side of the wire: the real one asks only after five idle seconds.
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let _client = Client::new(ours);
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    theirs.write_all(br#"{"id":"echo","method":"echo","params":["hi"]}"#).await.unwrap();
    let mut bytes = [0; 128];
    let count = theirs.read(&mut bytes).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&bytes[..count]).unwrap();
    assert_eq!(answer, json!({"id": "echo", "result": ["hi"], "error": null}));
}
