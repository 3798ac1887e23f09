//! Volumes at each step of everything that is done to them: a process is stopped there, and it, or the daemons that serve
//! volumes, or everything is killed with `kill -9`; all the while a guest writes.
//!
//! What the steps are is not written down but listened to: an operation is carried out once, and every step that any tier
//! tells meanwhile is one to be killed at. `Operation::surely` says which must be among them. CI tries a sample, another
//! one each time (`MALLEE_SEED` repeats it); `tools/test soak volumes` tries all, and says so in docs/soak.md.

mod guest;
mod operation;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use guest::{Writer, export_of, kill_exports, served, whole_slots};
use mallee_tests_cloud::{Client, Cloud, Options, Tier, eventually};
use operation::Operation;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// How long CI takes samples for.
const SAMPLED: Duration = Duration::from_secs(25);

/// A cloud with a guest that writes to a volume.
struct World {
    cloud: Cloud,
    user: Client,
    instance: String,
    /// The volume the guest writes to.
    steady: String,
    writer: Writer,
    /// A snapshot of this many blocks.
    snapshot: String,
    blocks: u64,
    tokens: Cell<u32>,
}

/// Who dies when a process has come to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Itself,
    /// The daemons that serve volumes; the process goes on.
    Exports,
    /// Every tier, and those daemons.
    Everything,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Death {
    operation: Operation,
    at: Tier,
    step: String,
    victim: Victim,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, at, step, victim } = self;
        write!(f, "{operation:?}: {} {step:?}, killed: {victim:?}", at.program())
    }
}

/// Steps that tell how somebody is, and change nothing.
fn is_a_question(step: &str) -> bool {
    ["observe", "register", "identit", "status", "query-", "qmp_capabilities", "heartbeat", "locate", "lease"]
        .iter()
        .any(|word| step.contains(word))
}

impl World {
    async fn new() -> Self {
        let cloud = Cloud::start_with(Options { processes: true, steps: true, ..Options::default() }).await;
        let user = cloud.user().await.clone();
        let instance = cloud.launch("").await;
        cloud.instance_is(&instance, "running").await;
        let steady = cloud.ec2("Action=CreateVolume&AvailabilityZone=mallee-1a&Size=1").await.value("volumeId");
        crate::volume::volume_is(&cloud, &steady, "available").await;
        let attach = format!("Action=AttachVolume&VolumeId={steady}&InstanceId={instance}&Device=/dev/sdf");
        cloud.ec2(&attach).await.ok();
        let writer = Writer::on(&export_of(&cloud, &steady).await);
        let (snapshot, blocks) = (String::new(), 24);
        let mut world = Self { cloud, user, instance, steady, writer, snapshot, blocks, tokens: Cell::new(0) };
        world.attachment_is(&world.steady, "attached").await;
        world.snapshot = world.fill(blocks).await;
        world
    }

    fn token(&self) -> String {
        self.tokens.set(self.tokens.get() + 1);
        format!("t{}", self.tokens.get())
    }

    /// Every step of an operation, by whoever takes it.
    async fn listen(&self, operation: Operation) -> Vec<(Tier, String)> {
        let mut subject = self.prepare(operation, self.token()).await;
        let tiers = self.cloud.tiers();
        let before: Vec<usize> = tiers.iter().map(|tier| self.cloud.log(*tier).len()).collect();
        self.carry_out(operation, &mut subject).await;
        let mut steps = Vec::new();
        for (tier, before) in tiers.into_iter().zip(before) {
            let log = self.cloud.log(tier);
            let told =
                log[before..].lines().filter_map(|line| line.split_once(" step: ").map(|(_, step)| step.to_owned()));
            let mut seen = BTreeSet::new();
            steps.extend(told.filter(|s| !is_a_question(s) && seen.insert(s.clone())).map(|step| (tier, step)));
        }
        for (tier, step) in operation.surely() {
            let there = steps.iter().any(|(at, told)| at == tier && told == step);
            assert!(there, "{operation:?} has no {step:?} of {}: {steps:#?}", tier.program());
        }
        self.check_and_tidy(operation, &subject).await;
        steps
    }

    /// Whether the step was met.
    async fn dies(&self, death: &Death) -> bool {
        let operation = death.operation;
        let mut subject = self.prepare(operation, self.token()).await;
        let stop = self.cloud.stop_file(death.at);
        let whole = stop.with_extension("new");
        std::fs::write(&whole, &death.step).unwrap();
        std::fs::rename(&whole, &stop).unwrap();
        let done = Cell::new(false);
        let met = Cell::new(false);
        let work = async {
            self.carry_out(operation, &mut subject).await;
            done.set(true);
        };
        let killer = async {
            while !self.has_stopped(death.at) {
                if done.get() && std::fs::remove_file(&stop).is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            met.set(true);
            self.kill(death).await;
        };
        tokio::join!(work, killer);
        self.cloud.wait_for_everybody().await;
        self.cloud.instance_is(&self.instance, "running").await;
        self.is_as_it_should_be(operation, &subject).await;
        self.check_and_tidy(operation, &subject).await;
        met.get()
    }

    fn has_stopped(&self, tier: Tier) -> bool {
        let Some(pid) = self.cloud.pid_of(tier) else { return false };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    async fn kill(&self, death: &Death) {
        match death.victim {
            Victim::Itself => self.cloud.restart(&[death.at]).await,
            Victim::Exports => {
                kill_exports(&self.cloud);
                let pid = self.cloud.pid_of(death.at).unwrap();
                let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
            }
            Victim::Everything => {
                self.cloud.kill(&self.cloud.tiers()).await;
                kill_exports(&self.cloud);
                for tier in self.cloud.tiers() {
                    self.cloud.bring_up(tier).await;
                }
            }
        }
    }

    /// The guest writes on; each volume is served to whom it is attached to, once, and nothing else is served.
    async fn is_as_it_should_be(&self, operation: Operation, subject: &operation::Subject) {
        self.writer.goes_on().await;
        self.attachment_is(&self.steady, "attached").await;
        let mut expected = vec![self.steady.clone()];
        if matches!(operation, Operation::Attach | Operation::Restore | Operation::Grow) {
            self.attachment_is(&subject.volume, "attached").await;
            expected.push(subject.volume.clone());
        }
        expected.sort();
        let mut last = Vec::new();
        eventually("what is attached is served, and nothing else", || {
            last = served(&self.cloud);
            let so = last == expected;
            async move { so.then_some(()) }
        })
        .await;
        self.cloud.assert_nobody_crashed();
        eventually("nothing is left over", || async { self.cloud.status().await.orphans.is_empty().then_some(()) })
            .await;
    }

    /// Everything that was acknowledged since the beginning.
    async fn nothing_is_lost(self) {
        let acknowledged = self.writer.count();
        let there = whole_slots(&self.cloud, &self.steady).await;
        assert!(there >= acknowledged, "{acknowledged} writes were acknowledged, {there} are there");
    }
}

/// Everybody's death at each of these steps.
fn deaths(operation: Operation, steps: Vec<(Tier, String)>) -> Vec<Death> {
    let mut all = Vec::new();
    for (at, step) in steps {
        let by = |victim| Death { operation, at, step: step.clone(), victim };
        all.push(by(Victim::Itself));
        // What others find is the same before one step as after the one before it.
        if matches!(at, Tier::Storage(_)) && step.starts_with("after") {
            all.extend([by(Victim::Exports), by(Victim::Everything)]);
        }
    }
    all
}

fn seed() -> u64 {
    let seed = std::env::var("MALLEE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("MALLEE_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_killed_at_whatever_step_a_volume_keeps_its_writes_and_has_one_place() {
    if std::env::var_os("MALLEE_SOAK").is_some() {
        return all_of_them().await;
    }
    let mut random = StdRng::seed_from_u64(seed());
    let world = World::new().await;
    let mut operations = Operation::ALL;
    operations.shuffle(&mut random);
    let begun = Instant::now();
    let (mut tried, mut met) = (0, 0);
    // A few of each operation, until the time is over; at least of two.
    for (n, operation) in operations.into_iter().enumerate() {
        if n >= 2 && begun.elapsed() > SAMPLED {
            break;
        }
        let mut sample = deaths(operation, world.listen(operation).await);
        sample.shuffle(&mut random);
        for death in sample.into_iter().take(3) {
            println!("{death}");
            (tried, met) = (tried + 1, met + usize::from(world.dies(&death).await));
        }
    }
    assert!(met > 0, "of {tried} steps not one was come to");
    world.nothing_is_lost().await;
}

/// Of `tools/test soak volumes`.
async fn all_of_them() {
    let mut table: BTreeMap<(Operation, &str), [usize; 3]> = BTreeMap::new();
    let only = std::env::var("MALLEE_OPERATION").unwrap_or_default();
    for operation in Operation::ALL {
        if !only.is_empty() && format!("{operation:?}") != only {
            continue;
        }
        let world = World::new().await;
        let deaths = deaths(operation, world.listen(operation).await);
        let count = deaths.len();
        for (n, death) in deaths.into_iter().enumerate() {
            let begun = Instant::now();
            print!("{}/{count} {death}", n + 1);
            let met = world.dies(&death).await;
            println!(": {} after {:?}", if met { "survived" } else { "not come to" }, begun.elapsed());
            let row = table.entry((operation, death.at.program())).or_default();
            let column = match death.victim {
                Victim::Itself => 0,
                Victim::Exports => 1,
                Victim::Everything => 2,
            };
            row[column] += usize::from(met);
        }
        world.nothing_is_lost().await;
    }
    println!("SOAK | operation | stopped at its steps | it was killed | exports were | everything was |");
    for ((operation, at), [itself, exports, everything]) in table {
        println!("SOAK | {operation:?} | {at} | {itself} | {exports} | {everything} |");
    }
}
