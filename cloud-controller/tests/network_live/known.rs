//! Passes that look only at what changed leave the database as passes that look at everything would.

use std::time::Duration;

use mallee_aws::id::SecurityGroupRuleId;
use mallee_cloud_controller::{
    ec2::{
        interface::{self, InterfaceRow},
        security_group::{self, Direction, Peer, Protocol, Traffic},
    },
    network::{
        plan::plan,
        render::{Outside, render},
        wanted,
    },
};
use mallee_ovsdb::{Condition, Op, Row, value};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{ACCOUNTS, Central, Cloud, NB, replica, until};

/// What makes the same of every run that names it.
fn seed() -> u64 {
    std::env::var("MALLEE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_120)
}

/// How long a run is: `tools/test soak` asks for more.
fn steps() -> usize {
    std::env::var("MALLEE_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(40)
}

#[derive(Default)]
struct There {
    interfaces: Vec<InterfaceRow>,
    rules: Vec<SecurityGroupRuleId>,
}

impl Cloud {
    async fn does_something(&self, there: &mut There, random: &mut StdRng, step: usize) -> &'static str {
        let some = |random: &mut StdRng, of: usize| random.random_range(0..of);
        match random.random_range(0..6) {
            0 if !there.interfaces.is_empty() => {
                let gone = there.interfaces.swap_remove(some(random, there.interfaces.len()));
                let instance = gone.instance.clone().unwrap();
                self.write(move |tx, _| {
                    interface::release(tx, &instance)?;
                    interface::remove(tx, &instance)
                })
                .await;
                "an instance ends"
            }
            1 if !there.interfaces.is_empty() => {
                let row = there.interfaces[some(random, there.interfaces.len())].clone();
                let port = i64::try_from(step).unwrap();
                let traffic = Traffic { protocol: Protocol::Udp, from: port, to: port, peer: Peer::anywhere() };
                let rule = self
                    .write(move |tx, _| {
                        let group = security_group::get(tx, &row.account, &row.groups[0].group_id)?;
                        security_group::insert_rule(tx, &group, Direction::Ingress, &traffic, None)
                    })
                    .await;
                there.rules.push(rule.id);
                "a rule comes"
            }
            2 if !there.rules.is_empty() => {
                let rule = there.rules.swap_remove(some(random, there.rules.len()));
                self.write(move |tx, _| Ok(security_group::rule::delete(tx, &rule)?)).await;
                "a rule goes"
            }
            3 if !there.interfaces.is_empty() => {
                let instance = there.interfaces[some(random, there.interfaces.len())].instance.clone().unwrap();
                self.write(move |tx, _| interface::return_public(tx, &instance)).await;
                "an address is given back"
            }
            _ => {
                let zone = ["mallee-1a", "mallee-1b"][some(random, 2)];
                there.interfaces.push(self.launch(ACCOUNTS[some(random, 2)], zone).await);
                "an instance starts"
            }
        }
    }

    /// A pass, after which one that looks at everything finds nothing to do.
    async fn is_right_after_a_pass(&self, central: &Central, what: &str) {
        self.passes_cleanly().await;
        let rows = self.store.read("read the network", |tx| wanted::read(tx, None)).await.unwrap();
        let content = render(&rows, &Outside::of(&self.config.network).unwrap());
        let (replica, _monitor) = replica(central).await;
        let plan = plan(&content, &replica);
        assert!(plan.is_empty(), "after {what}, seed {}: {:?}", seed(), plan.ops);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_that_look_at_what_changed_leave_nothing_for_one_that_looks_at_everything() {
    let central = Central::start().await;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    let (mut there, mut random) = (There::default(), StdRng::seed_from_u64(seed()));
    cloud.is_right_after_a_pass(&central, "the first pass").await;
    let whole = cloud.network.whole_passes();
    for step in 1..=steps() {
        let what = cloud.does_something(&mut there, &mut random, step).await;
        cloud.is_right_after_a_pass(&central, what).await;
    }
    assert_eq!(cloud.network.whole_passes(), whole, "what it does itself does not make it look at everything");

    let row = cloud.launch(ACCOUNTS[0], "mallee-1a").await;
    cloud.passes_cleanly().await;
    let nb = central.connect("nb").await;
    let name = |name: String| vec![Condition::equal("name", name)];
    let by_hand = [
        vec![Op::update(
            "Logical_Switch_Port",
            name(row.port.to_string()),
            Row::new().with("port_security", value::set([""; 0])),
        )],
        vec![Op::delete("Port_Group", name("mallee_drop".into()))],
        vec![Op::insert(
            "Logical_Switch",
            Row::new().with("name", "stale").with("external_ids", value::map([("mallee", "stale")])),
        )],
    ];
    for ops in by_hand {
        let (whole, what) = (cloud.network.whole_passes(), format!("{ops:?}"));
        nb.transact(NB, ops).await.unwrap();
        // With a change of ours beside it, in the same pass.
        cloud.does_something(&mut there, &mut random, steps() + 1).await;
        cloud.is_right_after_a_pass(&central, &what).await;
        assert!(cloud.network.whole_passes() > whole, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_northd_is_is_asked_now_and_then_and_not_forgotten() {
    let central = Central::start().await;
    let cloud = Cloud::start(&central.path("nb.sock")).await;
    until("northd has made its row", async || {
        cloud.passes_cleanly().await;
        cloud.network.progress().await.is_some()
    })
    .await;
    let written = async || cloud.network.progress().await.unwrap().written;
    let changed = async || {
        cloud.launch(ACCOUNTS[0], "mallee-1a").await;
        cloud.passes_cleanly().await;
    };
    changed().await;
    let asked = written().await;
    cloud.network.ask_at_most_every(Duration::from_secs(3600));
    changed().await;
    changed().await;
    assert_eq!(written().await, asked);
    cloud.network.ask_at_most_every(Duration::ZERO);
    assert_eq!(cloud.passes_cleanly().await, 0);
    assert_eq!(written().await, asked + 1, "what was written is asked about, also when nothing more comes");
    cloud.passes_cleanly().await;
    assert_eq!(written().await, asked + 1);
    until("northd has compiled it", async || cloud.network.progress().await.unwrap().compiled > asked).await;
}
