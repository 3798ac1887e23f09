//! Makes OVN's northbound database match the rows, in one transaction per pass.
//!
//! A pass reads the rows, renders them, compares with a replica of the database and applies the difference. It is woken
//! when rows changed, by the clock, and by any change of the watched tables that it did not make itself, so what is changed
//! by hand is put right at once. The database may go away at any time: the next pass connects again.
//!
//! Reading and rendering are always whole, which keeps them simple; comparing is by what changed (see [`Known`]). What each
//! of them takes beside northd is in docs/bench/network.md.
//!
//! The database carries the incarnation of the store whose rows it shows. A cloud-controller with another store (an empty
//! one, one of another cloud) leaves it alone, because to it everything there would be superfluous, and running guests
//! would lose their network; until a person says `mallee zone adopt`. It also carries how far that store had come: one that
//! was put back from a copy does not know the guests started since, and is held off in the same way.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mallee_aws::id::NatGatewayId;
use mallee_ovsdb::{Client, Monitor, MonitorTable, Op, Replica, RowUpdate, value};
use mallee_service::{Clock, Faults, PassReport, Poke, Reconciler};
use mallee_store::{Store, Tx};
use mallee_tiers::Generation;
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use super::{
    database::Database,
    northbound::{Content, TAGS, Table},
    plan::{Known, Plan, plan},
    render::{Outside, render},
    wanted,
};
use crate::{
    Cloud, Config, Refusal, config,
    ec2::{
        nat_gateway,
        prefix_list::{self, PrefixListRow},
    },
    zone::generation,
};

const DATABASE: &str = "OVN_Northbound";
const GLOBAL: &str = "NB_Global";
/// Among NB_Global's external ids: the incarnation of the store that the database belongs to.
const OWNER: &str = "mallee-store";
/// How far the store had come when the database was last changed: `EPOCH.COUNTER`.
const REACHED: &str = "mallee-store-generation";
/// Set once the store was found behind that: catching up by new launches must not make it look right again.
const PUT_BACK: &str = "mallee-store-put-back";
/// How long one exchange with the database may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long northd may leave what was written alone.
const NORTHD_PATIENCE: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_secs(30);

const FAULT_UNREACHABLE: &str = "network.northbound";
const FAULT_NORTHD: &str = "network.northd";
const FAULT_OWNER: &str = "network.other-store";
const FAULT_CHASSIS: &str = "network.gateway-chassis";
const FAULT_DRIFT: &str = "network.drift";
/// How long it is told that somebody else changed the database.
const TOLD_FOR: Duration = Duration::from_secs(600);

/// The network's reconciler.
pub struct Network {
    config: config::Network,
    database: Option<Database>,
    s3: Option<PrefixListRow>,
    store: Store,
    faults: Faults,
    clock: Clock,
    poke: Poke,
    session: Mutex<Option<Session>>,
    drift: std::sync::Mutex<Drift>,
    /// A pass wants the session: whoever waits for updates lets it go.
    wanted: Notify,
    whole: AtomicU64,
    /// Milliseconds between two questions how far northd and the chassis are.
    pause: AtomicU64,
}

/// Whether the database was left alone by others. What was found changed when this process began is not told: it may be its
/// own unfinished work.
#[derive(Default)]
struct Drift {
    /// The content that the last pass left there.
    left: Option<Arc<Content>>,
    /// When somebody else's change was last put right.
    mended: Option<Instant>,
}

/// One connection with what is known through it.
struct Session {
    client: Client,
    replica: Replica,
    monitor: Monitor,
    /// Since when northd lags behind what was written.
    behind: Option<Instant>,
    /// When it was last asked how far they are, and whether something was written since.
    asked: Option<Instant>,
    written: bool,
    /// Rows that the database told something about since the last pass looked.
    touched: BTreeSet<(Table, Uuid)>,
    known: Option<Known>,
}

/// How far what was written has got: numbers that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Raised when it is asked how far they are.
    pub written: i64,
    /// What northd has compiled.
    pub compiled: i64,
    /// What every chassis has in its switch.
    pub effective: i64,
}

/// Starts the reconciler. Without a northbound database in the configuration there is nothing to drive.
pub fn drive(cloud: &Arc<Cloud>) -> Option<mallee_service::Driven> {
    cloud.config.network.northbound.as_ref()?;
    let network = Network::new(&cloud.config, &cloud.store, &cloud.faults, &cloud.clock, &cloud.pokes.network);
    Some(network.drive())
}

impl Network {
    pub fn new(config: &Config, store: &Store, faults: &Faults, clock: &Clock, poke: &Poke) -> Arc<Self> {
        Arc::new(Self {
            config: config.network.clone(),
            database: Database::of(config),
            s3: prefix_list::of_s3(config),
            store: store.clone(),
            faults: faults.clone(),
            clock: clock.clone(),
            poke: poke.clone(),
            session: Mutex::new(None),
            drift: std::sync::Mutex::default(),
            wanted: Notify::new(),
            whole: AtomicU64::new(0),
            pause: AtomicU64::new(NORTHD_PATIENCE.as_millis() as u64),
        })
    }

    /// Runs it until the runtime ends.
    pub fn drive(self: Arc<Self>) -> mallee_service::Driven {
        tokio::spawn(watch(self.clone()));
        let poke = self.poke.clone();
        mallee_service::drive(self, poke, EVERY)
    }

    /// One pass; the plan that was carried out.
    async fn reconcile(&self, database: &Database) -> Result<Plan, String> {
        let outside = Outside::of(&self.config).map_err(why)?;
        let s3 = self.s3.clone();
        let read = move |tx: &mut Tx<'_>| Ok::<_, Refusal>((wanted::read(tx, s3.as_ref())?, generation::total(tx)?));
        let (rows, reached) = self.store.read("read the network", read).await.map_err(why)?;
        let written = rows.nat_gateways.iter().map(|n| n.id.clone()).collect();
        let has_routers = !rows.vpcs.is_empty();
        let without_chassis = outside.chassis.is_empty();
        // Both take their time in a large cloud: not on the reactor.
        let content = aside(move || render(&rows, &outside)).await?;
        self.wanted.notify_one();
        let mut held = self.session.lock().await;
        // Taken out while it is used: a pass that is given up half-way leaves no session in an unknown state.
        let mut session = match held.take() {
            Some(session) => session,
            None => connect(database).await?,
        };
        session.catch_up()?;
        let own = self.store.incarnation().to_string();
        let owner = session.owner();
        if owner.as_ref().is_some_and(|owner| *owner != own) {
            *held = Some(session);
            self.faults.raise(
                FAULT_OWNER,
                "OVN's northbound database belongs to another store than this cloud-controller's: it is left as it is",
                "If this cloud-controller's store is the right one: mallee zone adopt ZONE",
            );
            return Ok(Plan::default());
        }
        if owner.is_some() && session.is_ahead_of(reached) {
            session.transact(vec![tag(PUT_BACK, "yes")]).await?;
            *held = Some(session);
            self.faults.raise(
                FAULT_OWNER,
                "OVN's northbound database is ahead of this cloud-controller's store, which was put back: it is left as it is",
                "If this store is the right one: mallee zone adopt ZONE",
            );
            return Ok(Plan::default());
        }
        self.faults.clear(FAULT_OWNER);
        if owner.is_none() && session.progress().is_some() {
            session.transact(vec![claim(&own, reached)]).await?;
        }
        let content = Arc::new(content);
        let wished = content.clone();
        let (mut session, plan) = aside(move || {
            let plan = session.plan(&wished);
            (session, plan)
        })
        .await?;
        let pause = Duration::from_millis(self.pause.load(Ordering::Relaxed));
        if !plan.is_empty() {
            session.apply(&plan, reached, pause).await?;
        } else if let Some(question) = session.question(pause) {
            session.transact(vec![question]).await?;
        }
        if session.known.is_none() {
            self.whole.fetch_add(1, Ordering::Relaxed);
            let left = content.clone();
            session = aside(move || {
                session.known = Known::new(left, &session.replica);
                session
            })
            .await?;
        }
        self.tell_drift(&plan, content);
        let behind = session.northd_is_behind();
        *held = Some(session);
        drop(held);
        self.settle(written).await?;
        if behind {
            self.faults.raise(
                FAULT_NORTHD,
                "ovn-northd does not take up what is written to the northbound database",
                "See whether ovn-northd runs, and its log",
            );
        } else {
            self.faults.clear(FAULT_NORTHD);
        }
        if without_chassis && has_routers {
            self.faults.raise(
                FAULT_CHASSIS,
                "No chassis carries the routers' outer ports: elastic IPs and the way out do not work",
                "Set network.gateway_chassis in the cloud-controller's configuration",
            );
        } else {
            self.faults.clear(FAULT_CHASSIS);
        }
        Ok(plan)
    }

    /// The rows say the same as when this process last made the database match, and it does not: somebody else was there.
    fn tell_drift(&self, plan: &Plan, content: Arc<Content>) {
        let mut drift = self.drift.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changed = !plan.is_empty() && drift.left.as_ref() == Some(&content);
        drift.left = Some(content);
        if changed {
            drift.mended = Some(Instant::now());
            self.faults.raise(
                FAULT_DRIFT,
                format!(
                    "OVN's northbound database was changed by somebody else, and was put right: {} rows added, {} changed, {} removed",
                    plan.inserted, plan.updated, plan.deleted
                ),
                "Networks are changed by EC2's actions only; what is changed by hand does not last",
            );
        } else if drift.mended.is_some_and(|at| at.elapsed() > TOLD_FOR) {
            drift.mended = None;
            self.faults.clear(FAULT_DRIFT);
        }
    }

    /// What waited for the network to be written goes on: it has these NAT gateways now, and no others.
    async fn settle(&self, written: BTreeSet<NatGatewayId>) -> Result<(), String> {
        let waits = self.store.read("look for NAT gateways that wait", nat_gateway::is_unsettled).await;
        if !waits.map_err(|e| e.to_string())? {
            return Ok(());
        }
        let now = self.clock.now_ms();
        let ended = self.store.write("settle NAT gateways", move |tx| nat_gateway::settle(tx, &written, now)).await;
        if ended.map_err(why)? {
            self.poke.poke();
        }
        Ok(())
    }

    /// How often northd and the chassis may be asked how far they are; zero is with every change. Each answer of a chassis
    /// makes northd 23.03 compile everything once more.
    pub fn ask_at_most_every(&self, pause: Duration) {
        self.pause.store(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many passes looked at all rows of the database, not only at those that changed.
    pub fn whole_passes(&self) -> u64 {
        self.whole.load(Ordering::Relaxed)
    }

    /// What northd and the chassis say they have done. None: not connected.
    pub async fn progress(&self) -> Option<Progress> {
        self.wanted.notify_one();
        let mut held = self.session.lock().await;
        let session = held.as_mut()?;
        session.catch_up().ok()?;
        session.progress()
    }
}

#[async_trait::async_trait]
impl Reconciler for Network {
    fn name(&self) -> &'static str {
        "network"
    }

    async fn pass(&self) -> PassReport {
        let Some(database) = &self.database else { return PassReport::default() };
        let done = match tokio::time::timeout(PATIENCE, self.reconcile(database)).await {
            Ok(done) => done,
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        match done {
            Ok(plan) => {
                self.faults.clear(FAULT_UNREACHABLE);
                if !plan.is_empty() {
                    tracing::info!(
                        network.inserted = plan.inserted,
                        network.updated = plan.updated,
                        network.deleted = plan.deleted,
                        "the northbound database was changed"
                    );
                }
                let mut report = PassReport::changed(plan.changes() as u64);
                // Then it can be told whether northd has taken it up.
                report.again = (!plan.is_empty()).then_some(NORTHD_PATIENCE + Duration::from_secs(1));
                report
            }
            Err(error) => {
                self.faults.raise(
                    FAULT_UNREACHABLE,
                    format!("OVN's northbound database at {} cannot be kept right: {error}", database.remotes),
                    "Running instances keep their network. See whether its ovsdb-server runs (`mallee status`)",
                );
                let mut report = PassReport::default();
                report.error(error);
                report
            }
        }
    }
}

/// From now on the database belongs to this store: the operator's word, or the first pass's.
fn claim(incarnation: &str, reached: Generation) -> Op {
    Op::mutate(GLOBAL, [], TAGS, "delete", value::set([OWNER, REACHED, PUT_BACK])).and_mutate(
        TAGS,
        "insert",
        value::map([(OWNER, incarnation), (REACHED, &written(reached))]),
    )
}

/// Sets one tag of the database itself.
fn tag(name: &str, text: &str) -> Op {
    Op::mutate(GLOBAL, [], TAGS, "delete", value::set([name])).and_mutate(TAGS, "insert", value::map([(name, text)]))
}

fn written(generation: Generation) -> String {
    format!("{}.{}", generation.epoch, generation.counter)
}

/// `mallee zone adopt`: makes the northbound database this store's, whosever it was.
pub async fn adopt(config: &Config, store: &Store) -> Result<(), String> {
    let Some(database) = Database::of(config) else { return Ok(()) };
    let client = database.connect().await?;
    let own = store.incarnation().to_string();
    let reached = store.read("read the generation", generation::total).await.map_err(|e| e.to_string())?;
    client.transact(DATABASE, vec![claim(&own, reached)]).await.map(drop).map_err(|e| e.to_string())
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())
}

fn why(refusal: Refusal) -> String {
    refusal.cause.unwrap_or(refusal.answer.message)
}

async fn connect(database: &Database) -> Result<Session, String> {
    let client = database.connect().await?;
    let mut tables: Vec<MonitorTable> =
        Table::ALL.iter().map(|table| MonitorTable::new(table.name()).columns(table.columns())).collect();
    tables.push(MonitorTable::new(GLOBAL).columns(&["nb_cfg", "sb_cfg", "hv_cfg", TAGS]));
    let (replica, monitor) = client.replicate(DATABASE, tables).await.map_err(|e| e.to_string())?;
    let touched = BTreeSet::new();
    Ok(Session { client, replica, monitor, behind: None, asked: None, written: false, touched, known: None })
}

impl Session {
    /// Takes the updates that have come, without waiting for any.
    fn catch_up(&mut self) -> Result<(), String> {
        use futures_util::FutureExt;
        while let Some(updates) = self.monitor.next().now_or_never() {
            self.take(updates.map_err(|e| e.to_string())?);
        }
        Ok(())
    }

    fn take(&mut self, updates: Vec<RowUpdate>) {
        self.touched.extend(updates.iter().filter_map(|update| Some((Table::named(&update.table)?, update.id))));
        self.replica.apply(updates);
    }

    /// Afterwards something is `known` unless all rows were looked at.
    fn plan(&mut self, content: &Arc<Content>) -> Plan {
        let touched = std::mem::take(&mut self.touched);
        match self.known.take().and_then(|known| known.plan(content, &self.replica, &touched)) {
            Some((known, plan)) => {
                self.known = Some(known);
                plan
            }
            None => plan(content, &self.replica),
        }
    }

    /// The whole plan in one transaction.
    async fn apply(&mut self, plan: &Plan, reached: Generation, pause: Duration) -> Result<(), String> {
        let mut ops = plan.ops.clone();
        self.written = true;
        // A database that nobody has touched has no such row yet; northd makes it.
        if self.progress().is_some() {
            ops.extend(self.question(pause));
            ops.push(tag(REACHED, &written(reached)));
        }
        ops.push(Op::comment("mallee cloud-controller"));
        self.transact(ops).await
    }

    /// A number that northd and the chassis pass on when they have done what was written before it.
    fn question(&mut self, pause: Duration) -> Option<Op> {
        let due = self.written && self.asked.is_none_or(|at| at.elapsed() >= pause) && self.progress().is_some();
        due.then(|| {
            (self.asked, self.written) = (Some(Instant::now()), false);
            Op::mutate(GLOBAL, [], "nb_cfg", "+=", 1)
        })
    }

    async fn transact(&mut self, ops: Vec<Op>) -> Result<(), String> {
        self.client.transact(DATABASE, ops).await.map_err(|e| e.to_string())?;
        // The updates of a transaction come before its answer.
        self.catch_up()
    }

    /// The incarnation of the store that the database belongs to.
    fn owner(&self) -> Option<String> {
        self.tag(OWNER)
    }

    /// Whether the store that last changed the database knew more than this one does.
    fn is_ahead_of(&self, reached: Generation) -> bool {
        let held = self.tag(REACHED).and_then(|text| {
            let (epoch, counter) = text.split_once('.')?;
            Some(Generation { epoch: epoch.parse().ok()?, counter: counter.parse().ok()? })
        });
        self.tag(PUT_BACK).is_some() || held.is_some_and(|held| reached < held)
    }

    fn tag(&self, name: &str) -> Option<String> {
        let (_, row) = self.replica.rows(GLOBAL).next()?;
        row.string_map(TAGS).remove(name)
    }

    fn progress(&self) -> Option<Progress> {
        let (_, row) = self.replica.rows(GLOBAL).next()?;
        Some(Progress {
            written: row.integer("nb_cfg").unwrap_or_default(),
            compiled: row.integer("sb_cfg").unwrap_or_default(),
            effective: row.integer("hv_cfg").unwrap_or_default(),
        })
    }

    fn northd_is_behind(&mut self) -> bool {
        let behind = self.progress().is_none_or(|p| p.compiled < p.written);
        let since = behind.then(|| *self.behind.get_or_insert_with(Instant::now));
        self.behind = since;
        since.is_some_and(|since| since.elapsed() > NORTHD_PATIENCE)
    }
}

/// Whether updates are about more than the counters northd and the chassis keep.
fn concerns_us(updates: &[RowUpdate]) -> bool {
    updates.iter().any(|update| update.table != GLOBAL)
}

/// Between passes: follows the database, and wakes the reconciler when somebody else changed it or it went away.
async fn watch(network: Arc<Network>) {
    loop {
        let mut held = network.session.lock().await;
        let Some(session) = held.as_mut() else {
            drop(held);
            // Nothing to follow until a pass has connected, and that pass says so when it wants the session.
            network.wanted.notified().await;
            tokio::task::yield_now().await;
            continue;
        };
        tokio::select! {
            biased;
            () = network.wanted.notified() => {}
            updates = session.monitor.next() => match updates {
                Ok(updates) => {
                    let ours = concerns_us(&updates);
                    session.take(updates);
                    if ours {
                        network.poke.poke();
                    }
                }
                Err(error) => {
                    tracing::warn!("the connection to the northbound database ended: {error}");
                    *held = None;
                    network.poke.poke();
                }
            },
        }
        drop(held);
        // The lock is fair, but a pass that is about to ask for it must get to run.
        tokio::task::yield_now().await;
    }
}
