//! The network's reconciler against a real northbound database and a real northd. A machine without OVN fails here, on
//! purpose.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod central;
mod ipv6;
mod known;
mod measure;
mod packets;
mod vpc;

use std::{path::Path, sync::Arc, time::Duration};

use central::Central;

use mallee_aws::id::{InstanceId, NetworkInterfaceId};
use mallee_cloud_controller::{
    Config, Refusal,
    ec2::{
        address, interface,
        interface::InterfaceRow,
        security_group::{self, Direction, Peer, Protocol, Traffic},
        subnet::{self, Place},
    },
    network::{Cidr, Network, create_default_vpc, northbound::Table},
    schema::MIGRATIONS,
    zone::generation,
};
use mallee_ovsdb::{Client, Condition, Monitor, MonitorTable, Op, Replica, Row, value};
use mallee_service::{Clock, Faults, Poke, Reconciler};
use mallee_store::Store;

const NB: &str = "OVN_Northbound";
const SB: &str = "OVN_Southbound";

struct Cloud {
    config: Config,
    store: Store,
    faults: Faults,
    poke: Poke,
    network: Arc<Network>,
    _state: tempfile::TempDir,
}

const ACCOUNTS: [&str; 2] = ["111111111111", "222222222222"];

impl Cloud {
    async fn start(northbound: &Path) -> Self {
        Self::start_with(northbound, "").await
    }

    /// `more`: other settings.
    async fn start_with(northbound: &Path, more: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let text = format!(
            "name = \"cloud\"\nstate = {:?}\nlisten = [\"127.0.0.1:0\"]\nzones = [\"mallee-1a\", \"mallee-1b\"]\n{more}\
             [network]\nnorthbound = {northbound:?}\ngateway_chassis = [\"node1\"]\n",
            state.path()
        );
        let config: Config = toml::from_str(&text).unwrap();
        let path = state.path().join("store.db");
        let store = Store::open(&mallee_store::Config::Sqlite { path }, MIGRATIONS).unwrap();
        let made = config.clone();
        store
            .write("accounts", move |tx| {
                for account in ACCOUNTS {
                    create_default_vpc(tx, &made, account, 1)?;
                }
                Ok::<_, Refusal>(())
            })
            .await
            .unwrap();
        let (faults, poke) = (Faults::new(Clock::default()), Poke::default());
        let network = Network::new(&config, &store, &faults, &Clock::default(), &poke);
        network.ask_at_most_every(Duration::ZERO);
        Self { config, store, faults, poke, network, _state: state }
    }

    async fn write<T: Send + 'static>(
        &self,
        mut f: impl FnMut(&mut mallee_store::Tx<'_>, &Config) -> Result<T, Refusal> + Send + 'static,
    ) -> T {
        let config = self.config.clone();
        let done: Result<T, Refusal> = self.store.write("test", move |tx| f(tx, &config)).await;
        self.poke.poke();
        done.unwrap()
    }

    /// The interface of a new instance, in the default group.
    async fn launch(&self, account: &'static str, zone: &'static str) -> InterfaceRow {
        self.write(move |tx, config| Self::create(tx, config, account, zone)).await
    }

    fn create(
        tx: &mut mallee_store::Tx<'_>,
        config: &Config,
        account: &str,
        zone: &str,
    ) -> Result<InterfaceRow, Refusal> {
        let subnet = subnet::for_launch(tx, account, &Place::Zone(zone.into()))?;
        let groups = security_group::for_launch(tx, account, &subnet.vpc, &[], &[])?;
        let instance = InstanceId::from_random(rand::random());
        let new = interface::New {
            account,
            subnet: &subnet,
            attached: Some((&instance, 0)),
            address: None,
            secondary: interface::Secondary::none(),
            ipv6: interface::ipv6::Wanted::default(),
            groups: &groups,
            description: "",
            delete_on_termination: true,
            source_dest_check: true,
            public: None,
            kind: interface::Kind::Interface,
            now: 1,
        };
        interface::create(tx, &config.network, new)
    }

    /// Adds rules of every kind to the interface's group.
    async fn authorize_everything(&self, of: &InterfaceRow) {
        let of = of.clone();
        let traffic = |protocol, from, to, peer| Traffic { protocol, from, to, peer };
        self.write(move |tx, _| {
            let group = security_group::get(tx, &of.account, &of.groups[0].group_id)?;
            let net = Peer::Ipv4("10.0.0.0/8".parse::<Cidr>().unwrap());
            for traffic in [
                traffic(Protocol::Tcp, 22, 22, Peer::anywhere()),
                traffic(Protocol::Tcp, 0, 65535, net.clone()),
                traffic(Protocol::Udp, 53, 54, net.clone()),
                traffic(Protocol::Icmp, 8, -1, Peer::anywhere()),
                traffic(Protocol::Icmp, 3, 4, net.clone()),
                traffic(Protocol::Tcp, 443, 443, Peer::Group(group.id.clone())),
                traffic(Protocol::Tcp, 443, 443, Peer::anywhere6()),
                traffic(Protocol::Number(50), -1, -1, net),
            ] {
                security_group::insert_rule(tx, &group, Direction::Ingress, &traffic, None)?;
                security_group::insert_rule(tx, &group, Direction::Egress, &traffic, None)?;
            }
            Ok(())
        })
        .await;
    }

    async fn passes_cleanly(&self) -> u64 {
        let report = self.network.pass().await;
        assert_eq!(report.errors, Vec::<String>::new());
        report.changed
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..1500 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 30 s: {what}");
}

async fn select(client: &Client, database: &str, table: &str, conditions: Vec<Condition>) -> Vec<Row> {
    let mut results = client.transact(database, vec![Op::select(table, conditions, &[])]).await.unwrap();
    results.remove(0).rows
}

/// All that Mallee watches, by a connection of its own.
async fn replica(central: &Central) -> (Replica, Monitor) {
    let tables = Table::ALL.iter().map(|table| MonitorTable::new(table.name()).columns(table.columns())).collect();
    central.connect("nb").await.replicate(NB, tables).await.unwrap()
}

async fn nats(client: &Client, router: &str) -> Vec<(String, String)> {
    let router = select(client, NB, "Logical_Router", vec![Condition::equal("name", router)]).await;
    let mut found = Vec::new();
    for id in router[0].uuids("nat") {
        let row = select(client, NB, "NAT", vec![Condition::row(id)]).await.remove(0);
        found.push((row.string("external_ip").unwrap().to_owned(), row.string("logical_ip").unwrap().to_owned()));
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_made_as_the_rows_say_and_northd_compiles_it() {
    let central = Central::start().await;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    let a = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    let b = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    let stranger = cloud.launch(ACCOUNTS[1], "mallee-1b").await;
    cloud.authorize_everything(&a).await;

    assert!(cloud.passes_cleanly().await > 50);
    assert_eq!(cloud.passes_cleanly().await, 0, "a second pass finds nothing to do");
    until("northd has compiled it", async || cloud.network.progress().await.is_some_and(|p| p.compiled >= p.written))
        .await;

    let nb = central.connect("nb").await;
    let port =
        select(&nb, NB, "Logical_Switch_Port", vec![Condition::equal("name", a.port.to_string())]).await.remove(0);
    assert_eq!(port.strings("addresses"), [format!("{} {}", a.mac, a.address)]);
    assert_eq!(port.strings("port_security"), [format!("{} {}", a.mac, a.address)]);
    assert_eq!(port.boolean("enabled"), Some(true));
    assert_eq!(port.string_map("external_ids")["instance"], a.instance.as_ref().unwrap().as_str());
    let dhcp = select(&nb, NB, "DHCP_Options", vec![Condition::row(port.uuids("dhcpv4_options")[0])]).await.remove(0);
    assert_eq!(dhcp.string("cidr"), Some("172.31.0.0/20"));
    let public = a.public_ip().unwrap().to_string();
    assert!(nats(&nb, a.vpc.as_str()).await.contains(&(public, a.address.to_string())));

    // A packet from a to b, who are in one group; from the outside; and one no rule allows.
    let packet = |to: &InterfaceRow, from: &InterfaceRow, rest: &str| {
        format!(
            "inport == \"{}\" && eth.src == {} && eth.dst == {} && ip4.src == {} && ip4.dst == {} && ip.ttl == 64 && {rest}",
            from.port, from.mac, to.mac, from.address, to.address
        )
    };
    // ovn-trace cuts names that are UUIDs.
    let arrives =
        |trace: &str, to: &InterfaceRow| trace.contains(&format!("output to \"{}", &to.port.to_string()[..6]));
    let trace = central.trace(a.subnet.as_str(), &packet(&b, &a, "tcp.dst == 443"));
    assert!(arrives(&trace, &b), "{trace}");
    let spoofed = packet(&b, &a, "tcp.dst == 443").replace(&a.address.to_string(), "172.31.9.9");
    assert!(!arrives(&central.trace(a.subnet.as_str(), &spoofed), &b));
    let group = a.groups[0].group_id.clone();
    cloud
        .write(move |tx, _| {
            for rule in security_group::rule::of_group(tx, &group, Direction::Ingress)? {
                if rule.traffic.protocol == Protocol::All {
                    security_group::rule::delete(tx, &rule.id)?;
                }
            }
            Ok(())
        })
        .await;
    assert_eq!(cloud.passes_cleanly().await, 2, "a port group loses an ACL");
    until("it is compiled", async || cloud.network.progress().await.is_some_and(|p| p.compiled >= p.written)).await;
    assert!(arrives(&central.trace(a.subnet.as_str(), &packet(&b, &a, "tcp.dst == 443")), &b));
    assert!(!arrives(&central.trace(a.subnet.as_str(), &packet(&b, &a, "tcp.dst == 444")), &b));
    let outer =
        select(&nb, NB, "Logical_Router_Port", vec![Condition::equal("name", format!("outer-{}", a.vpc))]).await;
    let from_outside = |port: u16| {
        format!(
            "inport == \"mallee-ext-localnet\" && eth.src == 00:00:00:00:00:99 && eth.dst == {} && ip4.src == 172.29.0.1 \
             && ip4.dst == {} && ip.ttl == 64 && tcp.dst == {port}",
            outer[0].string("mac").unwrap(),
            a.public_ip().unwrap()
        )
    };
    // Without a chassis ovn-trace cannot follow the gateway port; that ACLs are understood is what it is asked for.
    central.trace("mallee-ext", &from_outside(22));
    assert_ne!(a.vpc, stranger.vpc);

    let log = std::fs::read_to_string(central.path("northd.log")).unwrap();
    let bad: Vec<&str> =
        log.lines().filter(|l| l.contains("|ERR|") || l.contains("|WARN|") || l.contains("syntax")).collect();
    assert_eq!(bad, Vec::<&str>::new());
    let sb = central.connect("sb").await;
    assert!(select(&sb, SB, "Logical_DP_Group", vec![]).await.len() < 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_elastic_ip_moves_in_one_transaction_and_nothing_is_left_of_what_ended() {
    let central = Central::start().await;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    let a = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    let b = cloud.launch(ACCOUNTS[0], "mallee-1b").await;
    let nb = central.connect("nb").await;
    let point = |at: NetworkInterfaceId| {
        move |tx: &mut mallee_store::Tx<'_>, config: &Config| {
            let row = interface::get(tx, ACCOUNTS[0], &at)?;
            let taken = address::all(tx, ACCOUNTS[0])?.pop();
            let address = match taken {
                Some(address) => address,
                None => address::associate::take(tx, config, ACCOUNTS[0], 1)?,
            };
            address::associate::point(tx, &address, &row, row.address, true)?;
            Ok(address.public_ip.to_string())
        }
    };
    let elastic = cloud.write(point(a.id.clone())).await;
    cloud.passes_cleanly().await;
    let of_a = (elastic.clone(), a.address.to_string());
    assert!(nats(&nb, a.vpc.as_str()).await.contains(&of_a));
    assert_eq!(nats(&nb, a.vpc.as_str()).await.len(), 3, "the automatic address went when the elastic one came");
    cloud.write(point(b.id.clone())).await;
    assert_eq!(cloud.passes_cleanly().await, 3, "one NAT changes in place, b's automatic one goes");
    assert!(nats(&nb, a.vpc.as_str()).await.contains(&(elastic, b.address.to_string())));

    let ended = b.instance.clone().unwrap();
    cloud.write(move |tx, _| interface::release(tx, &ended)).await;
    cloud.passes_cleanly().await;
    assert_eq!(nats(&nb, a.vpc.as_str()).await.len(), 1);
    let named = |row: &InterfaceRow| vec![Condition::equal("name", row.port.to_string())];
    assert_eq!(select(&nb, NB, "Logical_Switch_Port", named(&b)).await[0].boolean("enabled"), Some(false));
    let ended = b.instance.clone().unwrap();
    cloud.write(move |tx, _| interface::remove(tx, &ended)).await;
    cloud.passes_cleanly().await;
    assert!(select(&nb, NB, "Logical_Switch_Port", named(&b)).await.is_empty());
    assert_eq!(cloud.passes_cleanly().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_store_leaves_the_database_as_it_is_until_it_is_adopted() {
    let central = Central::start().await;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    let nb = central.connect("nb").await;
    let guest = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    let port = vec![Condition::equal("name", guest.port.to_string())];
    until("the database is claimed", async || {
        cloud.passes_cleanly().await;
        select(&nb, NB, "NB_Global", vec![])
            .await
            .iter()
            .any(|row| row.string_map("external_ids").contains_key("mallee-store"))
    })
    .await;

    let forgetful = Cloud::start(&central.path("nb.sock")).await;
    assert_eq!(forgetful.passes_cleanly().await, 0);
    assert_eq!(select(&nb, NB, "Logical_Switch_Port", port.clone()).await.len(), 1);
    assert!(forgetful.faults.all().iter().any(|fault| fault.remedy.contains("mallee zone adopt")));
    assert_eq!(cloud.passes_cleanly().await, 0, "its owner goes on");

    mallee_cloud_controller::network::adopt(&forgetful.config, &forgetful.store).await.unwrap();
    assert!(forgetful.passes_cleanly().await > 0);
    assert!(forgetful.faults.all().iter().all(|fault| !fault.remedy.contains("mallee zone adopt")));
    assert_eq!(select(&nb, NB, "Logical_Switch_Port", port).await.len(), 0);
    assert_eq!(cloud.passes_cleanly().await, 0, "now it is the other one that keeps its hands off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_put_back_does_not_take_the_network_from_guests_it_does_not_know() {
    let central = Central::start().await;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    let nb = central.connect("nb").await;
    until("the database is claimed", async || {
        cloud.passes_cleanly().await;
        select(&nb, NB, "NB_Global", vec![])
            .await
            .iter()
            .any(|row| row.string_map("external_ids").contains_key("mallee-store"))
    })
    .await;
    let next = |tx: &mut mallee_store::Tx<'_>| generation::next(tx, "mallee-1a", generation::List::Instances);
    let guest = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    cloud.write(move |tx, _| Ok(next(tx)?)).await;
    assert!(cloud.passes_cleanly().await > 0);
    let port = vec![Condition::equal("name", guest.port.to_string())];
    assert_eq!(select(&nb, NB, "Logical_Switch_Port", port.clone()).await.len(), 1);

    // As the store was before the launch.
    let forgotten = guest.instance.clone().unwrap();
    cloud
        .write(move |tx, _| {
            interface::release(tx, &forgotten)?;
            interface::remove(tx, &forgotten)?;
            Ok(tx.execute("UPDATE zone_generation SET counter = counter - 1", mallee_store::params![])?)
        })
        .await;
    assert_eq!(cloud.passes_cleanly().await, 0);
    assert_eq!(select(&nb, NB, "Logical_Switch_Port", port.clone()).await.len(), 1, "the guest keeps its port");
    assert!(cloud.faults.all().iter().any(|fault| fault.what.contains("put back")));
    // New launches catch up with the count, and nothing is believed for that.
    for _ in 0..3 {
        cloud.write(move |tx, _| Ok(next(tx)?)).await;
    }
    assert_eq!(cloud.passes_cleanly().await, 0);

    mallee_cloud_controller::network::adopt(&cloud.config, &cloud.store).await.unwrap();
    assert!(cloud.passes_cleanly().await > 0);
    assert_eq!(select(&nb, NB, "Logical_Switch_Port", port).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_by_hand_is_put_right_and_what_is_not_mallees_stays() {
    let mut central = Central::start().await;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    let a = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    cloud.authorize_everything(&a).await;
    let nb = central.connect("nb").await;
    let foreign = Row::new().with("name", "somebody-elses").with("external_ids", value::map([("owner", "neutron")]));
    nb.transact(NB, vec![Op::insert("Logical_Switch", foreign)]).await.unwrap();
    let driven = cloud.network.clone().drive();
    let name = |name: &str| vec![Condition::equal("name", name)];
    let port_group = a.groups[0].group_id.as_str().replace('-', "_");
    let counted = async |nb: &Client| {
        let mut all = Vec::new();
        for table in
            ["Logical_Switch", "Logical_Switch_Port", "Logical_Router", "ACL", "NAT", "Port_Group", "DHCP_Options"]
        {
            all.push(select(nb, NB, table, vec![]).await.len());
        }
        all
    };
    until("it is written", async || !select(&nb, NB, "Port_Group", name(&port_group)).await.is_empty()).await;
    let before = counted(&nb).await;
    let acls = select(&nb, NB, "Port_Group", name(&port_group)).await[0].uuids("acls").len();

    let empty = || value::set([""; 0]);
    let by_hand: Vec<Vec<Op>> = vec![
        vec![Op::update("Port_Group", name(&port_group), Row::new().with("acls", empty()))],
        vec![Op::update("Logical_Switch_Port", name(&a.port.to_string()), Row::new().with("port_security", empty()))],
        vec![Op::update(
            "Logical_Switch_Port",
            name(&a.port.to_string()),
            Row::new().with("external_ids", value::map([("", ""); 0])),
        )],
        vec![Op::delete("Logical_Router", name(a.vpc.as_str()))],
        vec![Op::delete("Port_Group", name("mallee_drop"))],
        vec![
            Op::insert("Logical_Switch_Port", Row::new().with("name", "intruder")).named("intruder"),
            Op::mutate(
                "Logical_Switch",
                name(a.subnet.as_str()),
                "ports",
                "insert",
                value::set([value::named("intruder")]),
            ),
        ],
        vec![Op::insert(
            "Logical_Switch",
            Row::new().with("name", "stale").with("external_ids", value::map([("mallee", "stale")])),
        )],
    ];
    for ops in by_hand {
        let what = format!("{ops:?}");
        nb.transact(NB, ops).await.unwrap();
        until(&what, async || {
            counted(&nb).await == before
                && select(&nb, NB, "Port_Group", name(&port_group)).await[0].uuids("acls").len() == acls
                && select(&nb, NB, "Logical_Switch_Port", name(&a.port.to_string())).await[0]
                    .strings("port_security")
                    .len()
                    == 1
                && select(&nb, NB, "Logical_Switch_Port", name(&a.port.to_string())).await[0]
                    .string_map("external_ids")
                    .contains_key("mallee")
        })
        .await;
    }
    assert_eq!(select(&nb, NB, "Logical_Switch", name("somebody-elses")).await.len(), 1);

    central.kill("nb");
    let b = cloud.launch(ACCOUNTS[1], "mallee-1a").await;
    until("it is shown", async || cloud.faults.all().iter().any(|f| f.what.contains("northbound"))).await;
    std::fs::remove_file(central.path("nb.sock")).ok();
    central.serve("nb");
    let nb = central.connect("nb").await;
    let port = b.port.to_string();
    until("it goes on by itself", async || !select(&nb, NB, "Logical_Switch_Port", name(&port)).await.is_empty()).await;
    // What was changed by hand stays told for a while.
    let lost = |f: &mallee_tiers::Fault| !f.what.contains("changed by somebody else");
    until("the fault is gone", async || !cloud.faults.all().iter().any(lost)).await;
    until("the last pass says so", async || driven.last.borrow().errors.is_empty()).await;
}
