//! How long until a change is effective on every chassis, beside so many ports, and whose time that is. `tests/bench/network`
//! asks for it; what is printed is Markdown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use mallee_cloud_controller::{
    Refusal,
    ec2::{
        interface::{self, InterfaceRow},
        security_group::{self, Direction, Peer, Protocol, Traffic},
        subnet,
    },
    network::{
        create_default_vpc,
        plan::{Known, plan},
        render::{Outside, render},
        wanted,
    },
};

use super::{Central, Cloud, packets::Machine, replica};

const ZONES: [&str; 2] = ["mallee-1a", "mallee-1b"];
/// An account has 5,000 interfaces at most.
const ACCOUNTS: [&str; 4] = ["333333333331", "333333333332", "333333333333", "333333333334"];
/// Ports made in one transaction.
const BATCH: usize = 500;
const KINDS: [&str; 3] = ["a rule", "a port", "an address"];

impl Cloud {
    /// Interfaces nobody wears, in all subnets there are: made by the code that makes every interface, many to a transaction.
    async fn crowd(&self, from: usize, to: usize) -> InterfaceRow {
        let mut last = None;
        for first in (from..to).step_by(BATCH) {
            let numbers = first..(first + BATCH).min(to);
            last = self
                .write(move |tx, config| {
                    let made = numbers.clone().map(|n| Self::create(tx, config, ACCOUNTS[n % 4], ZONES[(n / 4) % 2]));
                    Ok(made.collect::<Result<Vec<_>, _>>()?.pop())
                })
                .await;
        }
        last.unwrap()
    }

    /// A pass, and the wait for what it wrote.
    async fn effective(&self) -> Taken {
        let (begun, cpu) = (Instant::now(), cpu_of(std::process::id()));
        assert!(self.passes_cleanly().await > 0);
        let (written, own) = (begun.elapsed(), cpu_of(std::process::id()) - cpu);
        let mut compiled = None;
        loop {
            assert!(begun.elapsed() < Duration::from_secs(900));
            let progress = self.network.progress().await.unwrap();
            if progress.compiled >= progress.written {
                compiled.get_or_insert_with(|| begun.elapsed());
            }
            if progress.effective >= progress.written {
                let effective = begun.elapsed();
                return Taken { written, compiled: compiled.unwrap_or(effective), effective, own };
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// CPU time of what a pass does: reading, rendering, comparing with all of the database, comparing with what is known.
    async fn parts(&self, central: &Central) -> [f64; 4] {
        let read = |tx: &mut mallee_store::Tx<'_>| {
            let begun = thread_cpu();
            let rows = wanted::read(tx, None)?;
            Ok::<_, Refusal>((rows, thread_cpu() - begun))
        };
        let (rows, read) = self.store.read("read the network", read).await.unwrap();
        let outside = Outside::of(&self.config.network).unwrap();
        let begun = thread_cpu();
        let content = Arc::new(render(&rows, &outside));
        let rendered = thread_cpu() - begun;
        let (replica, _monitor) = replica(central).await;
        let begun = thread_cpu();
        assert!(plan(&content, &replica).is_empty());
        let whole = thread_cpu() - begun;
        let known = Known::new(content, &replica).unwrap();
        let again = Arc::new(render(&rows, &outside));
        let begun = thread_cpu();
        assert!(known.plan(&again, &replica, &BTreeSet::new()).is_some());
        [read, rendered, whole, thread_cpu() - begun]
    }

    /// What northd takes for a change when nobody asks how far it is.
    async fn northd_unasked(&self, central: &Central, number: &mut usize, row: &InterfaceRow, changes: usize) -> f64 {
        self.network.ask_at_most_every(Duration::from_secs(3600));
        let before = quiet(central).await;
        for kind in KINDS.iter().cycle().take(changes) {
            *number += 1;
            self.change(kind, *number, row).await;
            assert!(self.passes_cleanly().await > 0);
            quiet(central).await;
        }
        self.network.ask_at_most_every(Duration::ZERO);
        (quiet(central).await - before) / changes as f64
    }

    async fn change(&self, kind: &str, number: usize, row: &InterfaceRow) {
        match kind {
            "a rule" => {
                let (account, group) = (row.account.clone(), row.groups[0].group_id.clone());
                let port = 1000 + i64::try_from(number).unwrap();
                let traffic = Traffic { protocol: Protocol::Tcp, from: port, to: port, peer: Peer::anywhere() };
                let insert = move |tx: &mut mallee_store::Tx<'_>, _: &mallee_cloud_controller::Config| {
                    let group = security_group::get(tx, &account, &group)?;
                    security_group::insert_rule(tx, &group, Direction::Ingress, &traffic, None)
                };
                self.write(insert).await;
            }
            "a port" => {
                self.launch(ACCOUNTS[0], ZONES[0]).await;
            }
            _ => {
                let new = row.clone();
                let one = interface::Secondary { named: Vec::new(), count: 1 };
                self.write(move |tx, _| {
                    let subnet = subnet::get(tx, &new.account, &new.subnet)?;
                    interface::address::take(tx, &subnet, &one, &new.id)
                })
                .await;
            }
        }
    }
}

struct Taken {
    written: Duration,
    compiled: Duration,
    effective: Duration,
    own: f64,
}

/// User and system time of a process, in milliseconds; the kernel counts it in steps of 10.
fn cpu_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10.0
}

/// Of this thread, in milliseconds.
fn thread_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e6
}

fn cpu(central: &Central) -> BTreeMap<&'static str, f64> {
    central.pids().map(|(name, pid)| (name, cpu_of(pid))).collect()
}

/// Waits until northd has nothing to do; its CPU time.
async fn quiet(central: &Central) -> f64 {
    let (mut last, mut since) = (cpu(central)["northd"], Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = cpu(central)["northd"];
        if now > last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

fn median(took: &[Taken], of: fn(&Taken) -> Duration) -> u128 {
    let mut all: Vec<_> = took.iter().map(of).collect();
    all.sort();
    all[all.len() / 2].as_millis()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn how_long_a_change_takes_to_be_effective() {
    let asked = std::env::var("MALLEE_BENCH_PORTS").unwrap_or_else(|_| "100 1000".into());
    let machine = Machine::start().await;
    let central = &machine.central;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    cloud
        .write(|tx, config| {
            ACCOUNTS.iter().try_for_each(|account| create_default_vpc(tx, config, account, 1).map(drop))
        })
        .await;
    cloud.passes_cleanly().await;
    let (mut have, mut number) = (0, 0);
    let mut first: BTreeMap<&str, u128> = BTreeMap::new();
    let mut whose = Vec::new();
    println!("| ports | change | written | compiled | effective | slowest | × of the first |");
    println!("|---|---|---|---|---|---|---|");
    for ports in asked.split_whitespace().map(|n| n.parse::<usize>().unwrap()) {
        let row = cloud.crowd(have, ports).await;
        let all = cloud.effective().await;
        println!(
            "| {ports} | the {} ports that came, at once | {} ms | {} ms | {} ms | | |",
            ports - have,
            all.written.as_millis(),
            all.compiled.as_millis(),
            all.effective.as_millis()
        );
        let changes = if ports > 1000 { 4 } else { 10 };
        let before = cpu(central);
        let (mut own, mut whole) = (0.0, cloud.network.whole_passes());
        for kind in KINDS {
            let mut took = Vec::new();
            for _ in 0..changes {
                number += 1;
                cloud.change(kind, number, &row).await;
                took.push(cloud.effective().await);
            }
            own += took.iter().map(|t| t.own).sum::<f64>();
            let effective = median(&took, |t| t.effective);
            println!(
                "| {ports} | {kind} | {} ms | {} ms | **{effective} ms** | {} ms | {:.1} |",
                median(&took, |t| t.written),
                median(&took, |t| t.compiled),
                took.iter().map(|t| t.effective.as_millis()).max().unwrap(),
                effective as f64 / *first.entry(kind).or_insert(effective) as f64,
            );
        }
        whole = cloud.network.whole_passes() - whole;
        let count = (KINDS.len() * changes) as f64;
        let after = cpu(central);
        let each = |name: &str| (after[name] - before[name]) / count;
        let engines = ["northd", "nb", "sb", "ovn-controller", "ovs-vswitchd"].map(each);
        let own = own / count;
        let share = engines[0] / (engines.iter().sum::<f64>() + own) * 100.0;
        let cells = engines.map(|ms| format!("{ms:.0} ms")).join(" | ");
        let unasked = cloud.northd_unasked(central, &mut number, &row, 3).await;
        have = ports + changes + 1;
        let parts = cloud.parts(central).await.map(|ms| format!("{ms:.1} ms")).join(" | ");
        whose.push(format!("| {ports} | {own:.0} ms | {cells} | {share:.0} % | {unasked:.0} ms | {parts} | {whole} |"));
    }
    println!();
    println!(
        "| ports | a pass | ovn-northd | northbound | southbound | ovn-controller | ovs-vswitchd | northd's share \
         | northd, not asked | read | render | compare all | compare known | passes that compared all |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    whose.iter().for_each(|line| println!("{line}"));
}
