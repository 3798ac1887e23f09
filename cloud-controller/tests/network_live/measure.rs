//! How long until a change is effective on every chassis, beside so many ports. `tests/bench/network` asks for it.

use std::time::{Duration, Instant};

use mallee_cloud_controller::{
    ec2::{
        interface::{self, InterfaceRow},
        security_group::{self, Direction, Peer, Protocol, Traffic},
        subnet,
    },
    network::create_default_vpc,
};

use super::{Cloud, packets::Machine};

const CHANGES: u16 = 20;
const ZONES: [&str; 2] = ["mallee-1a", "mallee-1b"];
/// An account has 5,000 interfaces at most.
const ACCOUNTS: [&str; 4] = ["333333333331", "333333333332", "333333333333", "333333333334"];

impl Cloud {
    /// Interfaces nobody wears, in all subnets there are.
    async fn crowd(&self, from: usize, to: usize) -> InterfaceRow {
        let mut last = None;
        for n in from..to {
            last = Some(self.launch(ACCOUNTS[n % 4], ZONES[(n / 4) % 2]).await);
        }
        last.unwrap()
    }

    /// A pass, and the wait for what it wrote.
    async fn effective(&self) -> (Duration, Duration) {
        let begun = Instant::now();
        assert!(self.passes_cleanly().await > 0);
        let written = begun.elapsed();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(300));
            if self.network.progress().await.is_some_and(|p| p.effective >= p.written) {
                return (written, begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn told(name: &str, mut took: Vec<(Duration, Duration)>) -> String {
    let mut median = |of: fn(&(Duration, Duration)) -> Duration| {
        took.sort_by_key(of);
        of(&took[took.len() / 2]).as_millis()
    };
    let written = median(|t| t.0);
    let effective = median(|t| t.1);
    format!("{name} {effective} ms ({written} until written), slowest {}", took.last().unwrap().1.as_millis())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn how_long_a_change_takes_to_be_effective() {
    let asked = std::env::var("MALLEE_BENCH_PORTS").unwrap_or_else(|_| "100 1000".into());
    let machine = Machine::start().await;
    let cloud = Cloud::start(&machine.central.path("nb.sock")).await;
    cloud
        .write(|tx, config| {
            ACCOUNTS.iter().try_for_each(|account| create_default_vpc(tx, config, account, 1).map(drop))
        })
        .await;
    cloud.passes_cleanly().await;
    let mut have = 0;
    for ports in asked.split_whitespace().map(|n| n.parse::<usize>().unwrap()) {
        let row = cloud.crowd(have, ports).await;
        let (_, all) = cloud.effective().await;
        println!("{} more ports at once: {} ms", ports - have, all.as_millis());
        have = ports;
        let (mut rules, mut launches, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..CHANGES {
            let group = row.groups[0].group_id.clone();
            let account = row.account.clone();
            let port = i64::from(1000 + n) + 100 * i64::try_from(ports).unwrap() % 50_000;
            let traffic = Traffic { protocol: Protocol::Tcp, from: port, to: port, peer: Peer::anywhere() };
            cloud
                .write(move |tx, _| {
                    let group = security_group::get(tx, &account, &group)?;
                    security_group::insert_rule(tx, &group, Direction::Ingress, &traffic, None)
                })
                .await;
            rules.push(cloud.effective().await);
            let new = cloud.launch(ACCOUNTS[0], ZONES[0]).await;
            launches.push(cloud.effective().await);
            let one = interface::Secondary { named: Vec::new(), count: 1 };
            cloud
                .write(move |tx, _| {
                    let subnet = subnet::get(tx, &new.account, &new.subnet)?;
                    interface::address::take(tx, &subnet, &one, &new.id)
                })
                .await;
            addresses.push(cloud.effective().await);
        }
        have += usize::from(CHANGES);
        println!(
            "{ports:6} ports: {}; {}; {}",
            told("a rule", rules),
            told("a port", launches),
            told("an address", addresses)
        );
    }
}
