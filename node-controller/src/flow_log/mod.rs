//! Flow logs: the packets of watched interfaces become lines, and lines objects in walrus. The node's own; what is to be
//! watched comes with the wish of an instance ([`mallee_tiers::FlowWatch`]).
//!
//! ```text
//! tap of a watched interface ──[tap]── packets that pass ─┐
//! rules of the switch that log ─[refusal]─ packets refused ┴─[window]─ flows ─[record]─ lines ─[spool]─ walrus
//! ```
//!
//! Links and rules of other interfaces are not touched: they pay nothing. What is told of an interface is true or is said to
//! be missing (`SKIPDATA`): while refusals are not heard, while a queue was full, and what a process that was killed had
//! not written down yet.

mod packet;
mod record;
mod refusal;
mod spool;
mod tap;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mallee_engines::Netns;
use mallee_service::{Clock, Faults, PassReport, Poke, Reconciler};
use mallee_store::{Error as StoreError, Migration, Store, params};
use mallee_tiers::{FlowLog, FlowLogFailure, FlowLogFailureKind, FlowTraffic, Instance, Interface, Millis};
use tokio::task::AbortHandle;

use packet::Mac;
use refusal::{Listener, Said};
use spool::{Brought, Label, Spool};
use tap::{Frame, Tap};
use window::{Direction, Settled, Windows};

pub use spool::Carrier;

/// Until when each log has been written down for each interface: what is missing after that, a killed process took along.
pub const MIGRATION: Migration = Migration {
    version: 4,
    name: "flow logs",
    sql: "
CREATE TABLE flow_log_written (
    log TEXT NOT NULL,
    interface TEXT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (log, interface)
);
",
};

/// How often windows are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long refusals may be unheard before somebody should look.
const DEAF_SHOWN: Duration = Duration::from_secs(10);
const FRAMES_AT_ONCE: usize = 256;
const SWITCH_FAULT: &str = "flow-logs.switch";
const DELIVERY_FAULT: &str = "flow-logs.delivery";

/// Where packets are seen.
pub struct Ground {
    pub netns: Netns,
    /// The integration bridge's management socket.
    pub management: PathBuf,
}

/// What the machine is.
pub struct Parts {
    pub node: String,
    /// None: there are no packets.
    pub ground: Option<Ground>,
    pub store: Store,
    /// For objects on their way.
    pub dir: PathBuf,
    pub carrier: Carrier,
    /// No window is longer than this.
    pub longest_window: Option<Duration>,
    pub clock: Clock,
    pub faults: Faults,
    /// Instances are to be reported anew.
    pub changed: Poke,
}

pub struct FlowLogs {
    parts: Parts,
    spool: Spool,
    watched: Arc<Mutex<Watched>>,
    /// By log.
    failures: Mutex<BTreeMap<String, FlowLogFailure>>,
    /// Something is to be watched, or not any more.
    wanted: Poke,
    kept: Poke,
}

/// An interface that is watched.
struct Watch {
    interface: Interface,
    own: Vec<IpAddr>,
    link: String,
    tap: AbortHandle,
    /// By length in milliseconds.
    windows: BTreeMap<Millis, Windows>,
    /// Per log: since when nothing was written down, because an earlier process was killed.
    gaps: BTreeMap<String, (Millis, Millis)>,
}

struct Over {
    interface: Interface,
    gaps: BTreeMap<String, (Millis, Millis)>,
    /// By length.
    settled: BTreeMap<Millis, Vec<Settled>>,
}

#[derive(Default)]
struct Watched {
    by_mac: HashMap<Mac, Watch>,
    /// Watches that are over, with what they had seen.
    over: Vec<Over>,
    /// Whether refusals are being told.
    hearing: bool,
}

impl Watch {
    fn is_of(&self, direction: Direction, packet: &packet::Packet, mac: &Mac) -> bool {
        let forwards = self.interface.flow.as_ref().is_some_and(|flow| flow.forwards);
        match direction {
            Direction::In => packet.to == *mac,
            // What it claims to be is dropped before any rule is asked.
            Direction::Out => packet.from == *mac && (forwards || self.own.contains(&packet.tuple.source)),
        }
    }
}

impl Watched {
    fn frame(&mut self, mac: &Mac, frame: &Frame<'_>, now: Millis) {
        let Some(watch) = self.by_mac.get_mut(mac) else { return };
        if frame.after_loss {
            watch.windows.values_mut().for_each(|w| w.lost(now));
        }
        let Some(packet) = packet::parse(frame.front, frame.length) else { return };
        if watch.is_of(frame.direction, &packet, mac) {
            watch.windows.values_mut().for_each(|w| w.passed(frame.direction, &packet, now));
        }
    }

    fn said(&mut self, direction: Direction, frame: &[u8], length: usize, now: Millis) {
        let Some(packet) = packet::parse(frame, length) else { return };
        let mac = if direction == Direction::In { packet.to } else { packet.from };
        let Some(watch) = self.by_mac.get_mut(&mac) else { return };
        if watch.is_of(direction, &packet, &mac) {
            watch.windows.values_mut().for_each(|w| w.refused(direction, &packet, now));
        }
    }

    /// What was counted was not kept.
    fn lost(&mut self, now: Millis) {
        self.by_mac.values_mut().flat_map(|w| w.windows.values_mut()).for_each(|w| w.lost(now));
    }

    fn deafened(&mut self, now: Millis) {
        self.by_mac.values_mut().flat_map(|w| w.windows.values_mut()).for_each(|w| w.deafened(now));
    }

    /// Its windows as they are end with it.
    fn end(&mut self, mac: &Mac, now: Millis) {
        let Some(watch) = self.by_mac.remove(mac) else { return };
        watch.tap.abort();
        let settled = watch.windows.into_iter().map(|(length, windows)| (length, windows.finish(now))).collect();
        self.over.push(Over { interface: watch.interface, gaps: watch.gaps, settled });
    }
}

fn logs(interface: &Interface) -> &[FlowLog] {
    interface.flow.as_ref().map_or(&[], |flow| &flow.logs)
}

/// An object that is being put together.
struct Draft {
    /// As it is for one of its interfaces: the header and the place are the same for all.
    log: FlowLog,
    text: String,
}

/// By log and the end of the window.
type Drafts = BTreeMap<(String, Millis), Draft>;

impl FlowLogs {
    pub fn new(parts: Parts) -> std::io::Result<Arc<Self>> {
        let spool = Spool::open(parts.dir.clone())?;
        Ok(Arc::new(Self {
            parts,
            spool,
            watched: Arc::default(),
            failures: Mutex::default(),
            wanted: Poke::default(),
            kept: Poke::default(),
        }))
    }

    /// What has to be driven beside this.
    pub fn run(self: &Arc<Self>) {
        let me = self.clone();
        tokio::spawn(async move { me.listen().await });
        mallee_service::drive(Arc::new(Writing(self.clone())), Poke::default(), TICK);
        mallee_service::drive(Arc::new(Delivery(self.clone())), self.kept.clone(), Duration::from_secs(30));
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Millis {
        self.parts.clock.now_ms()
    }

    /// What there is to say of the logs an instance is in.
    pub fn failures(&self, instance: &Instance) -> Vec<FlowLogFailure> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let its: BTreeSet<&str> = instance.interfaces.iter().flat_map(logs).map(|log| log.id.as_str()).collect();
        let nowhere = |log: &&str| FlowLogFailure {
            log: (*log).to_owned(),
            kind: FlowLogFailureKind::Unknown,
            reason: "the machines of this node are simulated, and send no packets".into(),
        };
        match self.parts.ground {
            None => its.iter().map(nowhere).collect(),
            Some(_) => its.iter().filter_map(|log| failures.get(*log)).cloned().collect(),
        }
    }

    fn failed(&self, log: &str, failure: Option<(FlowLogFailureKind, String)>) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let before = failures.get(log).cloned();
        let now = failure.map(|(kind, reason)| FlowLogFailure { log: log.to_owned(), kind, reason });
        if before == now {
            return;
        }
        match now {
            Some(failure) => {
                tracing::warn!(flow_log.id = log, reason = failure.reason, "a flow log cannot be delivered");
                failures.insert(log.to_owned(), failure)
            }
            None => failures.remove(log),
        };
        drop(failures);
        self.parts.changed.poke();
    }

    fn window_of(&self, log: &FlowLog) -> Millis {
        let asked = Duration::from_secs(log.window_s.max(1));
        let length = self.parts.longest_window.map_or(asked, |longest| longest.max(TICK).min(asked));
        Millis::try_from(length.as_millis()).unwrap_or(60_000)
    }

    /// The interfaces of running guests, each with its link. Those of them that have a flow log are watched from now on.
    pub async fn want(&self, here: Vec<(Interface, String)>) -> Result<(), StoreError> {
        let Some(ground) = &self.parts.ground else { return Ok(()) };
        let wanted = here.into_iter().filter(|(interface, _)| !logs(interface).is_empty());
        let wanted: HashMap<Mac, (Interface, String)> =
            wanted.filter_map(|one| Some((packet::mac(&one.0.mac)?, one))).collect();
        let now = self.now();
        let mut new = Vec::new();
        {
            let mut watched = self.lock();
            let gone = |(mac, watch): (&Mac, &Watch)| {
                wanted.get(mac).is_none_or(|(_, link)| *link != watch.link) || watch.tap.is_finished()
            };
            let gone: Vec<Mac> = watched.by_mac.iter().filter(|one| gone(*one)).map(|(mac, _)| *mac).collect();
            for mac in gone {
                watched.end(&mac, now);
            }
            for (mac, (interface, link)) in wanted {
                match watched.by_mac.get_mut(&mac) {
                    Some(watch) if watch.interface == interface => {}
                    Some(watch) => {
                        let left = self.change(watch, interface, now);
                        watched.over.push(left);
                    }
                    None => new.push((mac, interface, link)),
                }
            }
        }
        for (mac, interface, link) in new {
            self.begin(ground, mac, interface, link, now).await?;
        }
        self.wanted.poke();
        Ok(())
    }

    /// What it leaves are the logs that it is in no more.
    fn change(&self, watch: &mut Watch, interface: Interface, now: Millis) -> Over {
        let lengths: BTreeSet<Millis> = logs(&interface).iter().map(|log| self.window_of(log)).collect();
        watch.windows.retain(|length, _| lengths.contains(length));
        for length in lengths {
            watch.windows.entry(length).or_insert_with(|| Windows::new(length, now));
        }
        watch.own = own(&interface);
        let mut before = std::mem::replace(&mut watch.interface, interface);
        let stays: BTreeSet<&str> = logs(&watch.interface).iter().map(|log| log.id.as_str()).collect();
        if let Some(flow) = &mut before.flow {
            flow.logs.retain(|log| !stays.contains(log.id.as_str()));
        }
        Over { interface: before, gaps: BTreeMap::new(), settled: BTreeMap::new() }
    }

    async fn begin(
        &self,
        ground: &Ground,
        mac: Mac,
        interface: Interface,
        link: String,
        now: Millis,
    ) -> Result<(), StoreError> {
        let tap = match Tap::open(&ground.netns, &link) {
            Ok(tap) => tap,
            Err(e) => {
                let reason = format!("the packets of {} cannot be read at {link}: {e}", interface.id);
                for log in logs(&interface) {
                    self.failed(&log.id, Some((FlowLogFailureKind::Unknown, reason.clone())));
                }
                return Ok(());
            }
        };
        let (id, its) = (interface.id.clone(), logs(&interface).iter().map(|l| l.id.clone()).collect::<Vec<_>>());
        let written = self.parts.store.write("begin a flow log", move |tx| {
            let mut gaps = BTreeMap::new();
            for log in &its {
                let sql = "SELECT until FROM flow_log_written WHERE log = ?1 AND interface = ?2";
                if let Some(until) = tx.query_opt(sql, params![log, id], |row| row.get::<i64>(0))? {
                    gaps.insert(log.clone(), (until, now));
                }
                mark(tx, log, &id, now)?;
            }
            Ok::<_, StoreError>(gaps)
        });
        let gaps = written.await?;
        let lengths: BTreeSet<Millis> = logs(&interface).iter().map(|log| self.window_of(log)).collect();
        tracing::info!(interface.id = interface.id, link, "its packets are written down");
        let mut watched = self.lock();
        let reading = tokio::spawn(read_tap(tap, mac, self.watched.clone(), self.parts.clock.clone()));
        let watch = Watch {
            own: own(&interface),
            interface,
            link,
            tap: reading.abort_handle(),
            windows: lengths.into_iter().map(|length| (length, Windows::new(length, now))).collect(),
            gaps,
        };
        watched.by_mac.insert(mac, watch);
        if !watched.hearing {
            watched.deafened(now);
        }
        Ok(())
    }

    /// Hears what the switch refuses, for as long as anything is watched.
    async fn listen(&self) {
        let Some(ground) = &self.parts.ground else { return };
        let mut deaf_since = None;
        loop {
            if self.lock().by_mac.is_empty() {
                self.parts.faults.clear(SWITCH_FAULT);
                deaf_since = None;
                self.wanted.poked().await;
                continue;
            }
            let e = match Listener::open(&ground.management).await {
                Ok(listener) => {
                    self.parts.faults.clear(SWITCH_FAULT);
                    deaf_since = None;
                    self.hear(listener).await
                }
                Err(e) => Some(e),
            };
            let now = self.now();
            {
                let mut watched = self.lock();
                watched.hearing = false;
                watched.deafened(now);
            }
            let Some(e) = e else { continue };
            if deaf_since.get_or_insert_with(std::time::Instant::now).elapsed() > DEAF_SHOWN {
                self.parts.faults.raise(
                    SWITCH_FAULT,
                    format!("the switch does not tell what it refuses ({e}): flow logs lack it"),
                    "is ovs-vswitchd up? (`mallee status`)",
                );
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Until nothing is watched any more (None), or the switch is gone.
    async fn hear(&self, mut listener: Listener) -> Option<std::io::Error> {
        {
            let mut watched = self.lock();
            watched.deafened(self.now());
            watched.hearing = true;
        }
        let mut ticks = tokio::time::interval(TICK);
        let mut held_back = None;
        loop {
            let said = tokio::select! {
                said = listener.next() => said,
                _ = ticks.tick() => {
                    if self.lock().by_mac.is_empty() {
                        return None;
                    }
                    match listener.ask_meters().await {
                        Ok(()) => continue,
                        Err(e) => Err(e),
                    }
                }
            };
            let now = self.now();
            match said {
                Ok(Said::Refused { direction, frame, length }) => self.lock().said(direction, &frame, length, now),
                Ok(Said::HeldBack(total)) => {
                    if held_back.replace(total).is_some_and(|before| before != total) {
                        self.lock().deafened(now);
                    }
                }
                Err(e) => return Some(e),
            }
        }
    }

    /// Turns what is over into objects on the disk.
    async fn write_down(&self) -> Result<u64, String> {
        let now = self.now();
        let (drafts, written) = self.drafts(now);
        let count = drafts.len() as u64;
        let mut failed = None;
        for ((log, end), draft) in drafts {
            let text = record::header(&draft.log) + &draft.text;
            let place = &draft.log.place;
            let label = Label {
                log,
                account: place.account.clone(),
                bucket: place.bucket.clone(),
                key: spool::key(place, &self.parts.node, end, &text),
            };
            if let Err(e) = self.spool.keep(&label, end, &text) {
                failed = Some(format!("{}: {e}", self.parts.dir.display()));
            }
        }
        if let Some(failed) = failed {
            self.lock().lost(now);
            return Err(failed);
        }
        if count > 0 {
            let given_up = self.spool.bound().map_err(|e| e.to_string())?;
            if given_up > 0 {
                self.lock().lost(now);
                tracing::warn!(objects = given_up, "flow logs were given up: walrus has not taken any for too long");
            }
            self.kept.poke();
        }
        if !written.is_empty() {
            let noted = self.parts.store.write("write down flow logs", move |tx| {
                for (log, interface, until) in &written {
                    match until {
                        Some(until) => mark(tx, log, interface, *until)?,
                        None => {
                            let sql = "DELETE FROM flow_log_written WHERE log = ?1 AND interface = ?2";
                            tx.execute(sql, params![log, interface])?;
                        }
                    }
                }
                Ok::<_, StoreError>(())
            });
            noted.await.map_err(|e| e.to_string())?;
        }
        Ok(count)
    }

    /// The objects of what is over, and until when that was for which (log, interface); None: for good.
    fn drafts(&self, now: Millis) -> (Drafts, Vec<(String, String, Option<Millis>)>) {
        let mut watched = self.lock();
        let (mut drafts, mut written) = (Drafts::new(), Vec::new());
        for Over { interface, mut gaps, settled } in std::mem::take(&mut watched.over) {
            for log in logs(&interface) {
                for one in settled.get(&self.window_of(log)).into_iter().flatten() {
                    draft(&mut drafts, &interface, log, one, &mut gaps);
                }
                // One that is watched again goes on, under the mark it was begun with.
                let is_it =
                    |w: &Watch| w.interface.id == interface.id && logs(&w.interface).iter().any(|l| l.id == log.id);
                if !watched.by_mac.values().any(is_it) {
                    written.push((log.id.clone(), interface.id.clone(), None));
                }
            }
        }
        for watch in watched.by_mac.values_mut() {
            let settled: BTreeMap<Millis, Vec<Settled>> =
                watch.windows.iter_mut().map(|(length, windows)| (*length, windows.take(now))).collect();
            for log in logs(&watch.interface) {
                for one in settled.get(&self.window_of(log)).into_iter().flatten() {
                    draft(&mut drafts, &watch.interface, log, one, &mut watch.gaps);
                    written.push((log.id.clone(), watch.interface.id.clone(), Some(one.end)));
                }
            }
        }
        (drafts, written)
    }

    /// Brings what waits to walrus, the oldest first. Whether all of it is gone.
    async fn bring(&self) -> Result<u64, String> {
        let mut brought = 0;
        let mut waits = BTreeMap::new();
        for file in self.spool.waiting().map_err(|e| e.to_string())? {
            let Some((label, bytes)) = spool::read(&file).map_err(|e| format!("{}: {e}", file.display()))? else {
                tracing::warn!(file = %file.display(), "this is no object of a flow log, and goes");
                std::fs::remove_file(&file).map_err(|e| e.to_string())?;
                continue;
            };
            if waits.contains_key(&label.log) {
                continue;
            }
            match self.parts.carrier.bring(&label, bytes).await {
                Brought::There => {
                    std::fs::remove_file(&file).map_err(|e| e.to_string())?;
                    self.failed(&label.log, None);
                    brought += 1;
                }
                Brought::Refused(kind, why) => {
                    std::fs::remove_file(&file).map_err(|e| e.to_string())?;
                    self.failed(&label.log, Some((kind, format!("bucket {}: {why}", label.bucket))));
                }
                Brought::Later(why) => {
                    self.failed(&label.log, Some((FlowLogFailureKind::Unknown, why.clone())));
                    waits.insert(label.log, why);
                }
            }
        }
        match waits.into_values().next() {
            None => Ok(brought),
            Some(why) => Err(why),
        }
    }
}

fn own(interface: &Interface) -> Vec<IpAddr> {
    let ipv4 = std::iter::once(interface.address).chain(interface.secondary.iter().copied()).map(IpAddr::from);
    ipv4.chain(interface.flow.iter().flat_map(|flow| flow.ipv6.iter().copied()).map(IpAddr::from)).collect()
}

fn mark(tx: &mut mallee_store::Tx<'_>, log: &str, interface: &str, until: Millis) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO flow_log_written (log, interface, until) VALUES (?1, ?2, ?3)
         ON CONFLICT (log, interface) DO UPDATE SET until = ?3",
        params![log, interface, until],
    )
    .map(|_| ())
}

/// Adds to the object of a log and window what one interface has to say in it.
fn draft(
    drafts: &mut Drafts,
    interface: &Interface,
    log: &FlowLog,
    settled: &Settled,
    gaps: &mut BTreeMap<String, (Millis, Millis)>,
) {
    if log.traffic == FlowTraffic::Unknown {
        return;
    }
    let its =
        drafts.entry((log.id.clone(), settled.end)).or_insert_with(|| Draft { log: log.clone(), text: String::new() });
    if let Some((begin, end)) = gaps.remove(&log.id) {
        record::skipped(&mut its.text, log, begin, end);
    }
    its.text.push_str(&record::lines(log, interface, settled));
}

async fn read_tap(mut tap: Tap, mac: Mac, watched: Arc<Mutex<Watched>>, clock: Clock) {
    let take = |frame: Frame<'_>| {
        watched.lock().unwrap_or_else(PoisonError::into_inner).frame(&mac, &frame, clock.now_ms());
    };
    // It ends with its link; the next look at the guest finds the new one.
    while tap.read(FRAMES_AT_ONCE, take).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

struct Writing(Arc<FlowLogs>);

#[async_trait::async_trait]
impl Reconciler for Writing {
    fn name(&self) -> &'static str {
        "flow log windows"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        match self.0.write_down().await {
            Ok(count) => report.changed = count,
            Err(e) => report.error(e),
        }
        report
    }
}

struct Delivery(Arc<FlowLogs>);

#[async_trait::async_trait]
impl Reconciler for Delivery {
    fn name(&self) -> &'static str {
        "flow log delivery"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let faults = &self.0.parts.faults;
        match self.0.bring().await {
            Ok(count) => {
                faults.clear(DELIVERY_FAULT);
                report.changed = count;
            }
            Err(e) => {
                faults.raise(
                    DELIVERY_FAULT,
                    format!("flow logs wait on this node's disk: {e}"),
                    "is walrus up? (`mallee status`)",
                );
                report.error(e);
            }
        }
        report
    }
}
