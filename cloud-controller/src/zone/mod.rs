//! Zones: where their controllers are, what is sent down to them, and what their reports change up here.
//!
//! `registry` knows the addresses, `generation` numbers the lists, `cluster` and `storage` each send one kind of list and
//! take its reports, `event` keeps what happened, `orphan` what nobody asked for, `why` tells the story of an id.

mod cluster;
pub mod event;
pub mod generation;
pub mod orphan;
pub mod registry;
mod snapshot;
mod storage;
mod why;

use std::{
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mallee_service::{Faults, IntentSender, PassReport, Poke, Reconciler, drive as drive_one};
use mallee_tiers::{Observation, Reported, Seen, TierError, TierErrorKind};

pub use orphan::all as orphans;
pub use registry::Tiers;
pub use why::why;

use crate::Cloud;

/// How long an observation hangs when nothing changes.
const HANG_MS: u64 = 20_000;
/// Lists are sent again this often even when nobody poked: what got lost is mended by then.
const EVERY: Duration = Duration::from_secs(10);

/// Starts everything that talks to zones: per zone two senders and two observers, and one sweep.
pub fn drive(cloud: &Arc<Cloud>) {
    let (mut instances, mut volumes, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
    for zone in &cloud.config.zones {
        let sender = cluster::Sender {
            cloud: cloud.clone(),
            zone: zone.clone(),
            intent: IntentSender::default(),
            rendered: Default::default(),
            trouble: Trouble::default(),
        };
        instances.push(drive_one(Arc::new(sender), Poke::default(), EVERY).poke);
        let sender = storage::Sender {
            cloud: cloud.clone(),
            zone: zone.clone(),
            intent: IntentSender::default(),
            trouble: Trouble::default(),
        };
        volumes.push(drive_one(Arc::new(sender), Poke::default(), EVERY).poke);
        let sender = snapshot::Sender {
            cloud: cloud.clone(),
            zone: zone.clone(),
            intent: IntentSender::default(),
            trouble: Trouble::default(),
        };
        snapshots.push(drive_one(Arc::new(sender), Poke::default(), EVERY).poke);
        tokio::spawn(snapshot::observe(cloud.clone(), zone.clone()));
        tokio::spawn(cluster::observe(cloud.clone(), zone.clone()));
        tokio::spawn(storage::observe(cloud.clone(), zone.clone()));
    }
    tokio::spawn(pass_on(cloud.pokes.instances.clone(), instances));
    tokio::spawn(pass_on(cloud.pokes.volumes.clone(), volumes));
    tokio::spawn(pass_on(cloud.pokes.snapshots.clone(), snapshots));
    drive_one(Arc::new(sweep(cloud)), Poke::default(), Duration::from_secs(60));
}

/// Takes away what ended long enough ago.
pub fn sweep(cloud: &Arc<Cloud>) -> impl Reconciler + use<> {
    cluster::Sweep { cloud: cloud.clone() }
}

/// A poke wakes one waiter; every zone has its own.
async fn pass_on(from: Poke, to: Vec<Poke>) {
    loop {
        from.poked().await;
        to.iter().for_each(Poke::poke);
    }
}

/// What keeps a list from being taken, as the operator is shown it.
#[derive(Default)]
struct Trouble {
    /// Since when the receiver did not answer.
    silent: Mutex<Option<Instant>>,
}

impl Trouble {
    /// A tier that is just being started is no fault yet.
    const GRACE: Duration = Duration::from_secs(5);

    fn show(&self, faults: &Faults, tier: &str, zone: &str, delivered: Result<(), TierError>, report: &mut PassReport) {
        let key = format!("{tier} of {zone}");
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(e) = delivered else {
            *silent = None;
            return faults.clear(&key);
        };
        let remedy = match e.kind {
            TierErrorKind::OtherIncarnation | TierErrorKind::Stale => {
                format!(
                    "nothing is ended meanwhile; if this cloud-controller's store is the right one: mallee zone adopt {zone}"
                )
            }
            TierErrorKind::Unreachable => {
                if silent.get_or_insert_with(Instant::now).elapsed() < Self::GRACE {
                    // Not an error of the pass either: those are logged as warnings. Try again soon.
                    report.again = Some(Duration::from_millis(200));
                    return;
                }
                "start it, or see its log; what is wanted is sent as soon as it answers".into()
            }
            _ => "see the logs of both tiers".into(),
        };
        faults.raise(&key, format!("{tier} of zone {zone} does not take its list: {}", e.message), remedy);
        report.error(format!("{zone}: {}", e.message));
    }
}

/// Asks a tier of `zone` for its reports and takes them, again and again. Reports that were not taken are asked for again.
async fn follow<R: Reported, E: Display, A, T>(
    zone: &str,
    tier: &str,
    ask: impl Fn(Option<Seen>) -> A,
    take: impl Fn(Observation<R>) -> T,
) where
    A: Future<Output = Result<Observation<R>, TierError>>,
    T: Future<Output = Result<(), E>>,
{
    let mut since: Option<Seen> = None;
    let mut pause = Pause::default();
    loop {
        let observation = match ask(since).await {
            Ok(observation) => observation,
            Err(e) => {
                tracing::debug!(zone, error = %e, "the {tier} cannot be asked for reports");
                pause.wait().await;
                continue;
            }
        };
        let seen = observation.seen;
        match take(observation).await {
            Ok(()) => {
                since = Some(seen);
                pause.reset();
            }
            Err(e) => {
                tracing::warn!(zone, error = %e, "reports were not taken; they are asked for again");
                pause.wait().await;
            }
        }
    }
}

/// Grows from 50 ms to 2 s while something does not work.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(50);

    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(2));
    }

    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }
}
