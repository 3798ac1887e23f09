//! Drives every instance of this node from what is seen to what is wanted.
//!
//! A pass reads everything (wishes, facts, domains) and reports; where there is something to do it leaves it to a *worker*
//! of that instance, which looks, plans and steps until there is nothing more to do, so a launch does not wait for the
//! next pass and a slow instance holds up no other. Whatever a worker was doing when the process died is found by looking.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use mallee_service::{Listed, PassReport, Poke, Reconciler, steps::TARGET};
use mallee_tiers::{Blob, Desired, Generation, HoldKind, Instance, InstanceReport, Interface, Reports, VpcLink};
use tokio::sync::{Notify, mpsc::UnboundedReceiver, watch};

use super::{
    plan::{self, BringUp, Memory, Next, Scene, Step},
    report::{self, Trouble},
    row::{Facts, Failure},
    steps::{Done, Machine, StepError},
};
use crate::{
    hypervisor::{Event, HypervisorError, Power, Seen},
    nic,
    volume::{self, Change, Fit},
};

/// A domain the hypervisor refused this often in a row will not be tried again.
const REFUSALS: u32 = 8;
/// One that ended by itself sooner than this after its start is brought up again with growing pauses.
const SHORT_LIFE_MS: i64 = 60_000;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const HYPERVISOR_FAULT: &str = "hypervisor";

pub struct Instances {
    machine: Arc<Machine>,
    reports: Arc<Reports<InstanceReport>>,
    poke: Poke,
    /// Of [`Wishes`].
    wished: Poke,
    patience: Duration,
    begun: Instant,
    /// Workers share the thing itself.
    me: Weak<Instances>,
    looked: watch::Sender<bool>,
    live: Mutex<BTreeMap<String, Live>>,
}

/// What this process is doing with an instance. All of it may be lost at any time.
#[derive(Default)]
struct Live {
    working: bool,
    /// The wish that was last planned with, and whether it was listed.
    planned: Option<(Generation, bool)>,
    /// How many workers have ended: tells a pass that what it read is old.
    ended: u64,
    memory: Memory,
    trouble: Trouble,
    took_ms: BTreeMap<String, u64>,
    failures: u32,
    refusals: u32,
    /// Ends a long step that is not wanted any more.
    overtaken: Arc<Notify>,
    /// Lives in a row that were short.
    short_lives: u32,
    not_before: Duration,
    /// The wish whose step went wrong: another one is tried at once. None: whatever is wished.
    paused_wish: Option<Generation>,
}

/// An instance as one look found it.
struct Look {
    wish: Option<Listed<Instance>>,
    facts: Facts,
    domain: Option<Seen>,
}

impl Live {
    /// How long a wish is left alone because its last step went wrong.
    fn pauses(&self, wish: Option<Generation>, now: Duration) -> Option<Duration> {
        let its = self.paused_wish.is_none() || self.paused_wish == wish;
        self.not_before.checked_sub(now).filter(|left| its && !left.is_zero())
    }
}

impl Look {
    fn generation(&self) -> Option<Generation> {
        self.wish.as_ref().map(|w| w.body.generation)
    }
}

impl Instances {
    pub fn new(
        machine: Arc<Machine>,
        reports: Arc<Reports<InstanceReport>>,
        poke: Poke,
        wished: Poke,
        patience: Duration,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            machine,
            reports,
            poke,
            wished,
            patience,
            begun: Instant::now(),
            me: me.clone(),
            looked: watch::Sender::new(false),
            live: Mutex::default(),
        })
    }

    /// Hears what the hypervisor says, for as long as it says anything.
    pub fn listen(self: &Arc<Self>, mut events: UnboundedReceiver<Event>) {
        let me = self.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let Event::Rebooted(id) = &event
                    && let Some(live) = me.lock().get_mut(id)
                    && let Some((_, came_through)) = &mut live.memory.rebooting
                {
                    *came_through = true;
                }
                me.poke.poke();
            }
        });
    }

    /// Becomes true when the first pass has seen everything: before that, reports are not whole.
    pub fn looked(&self) -> watch::Receiver<bool> {
        self.looked.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn scene<'a>(&self, look: &'a Look, memory: &'a Memory) -> Scene<'a> {
        Scene {
            wish: look.wish.as_ref().map(|w| &w.body),
            listed: look.wish.as_ref().is_some_and(|w| w.listed),
            facts: &look.facts,
            domain: look.domain.as_ref(),
            memory,
            now: self.now(),
            patience: self.patience,
        }
    }

    /// What is next for an instance; the report of it is put where it will be read.
    fn plan(&self, id: &str, look: &Look, live: &mut Live) -> Next {
        live.planned = look.wish.as_ref().map(|w| (w.body.generation, w.listed));
        let scene = self.scene(look, &live.memory);
        let next = plan::next(&scene);
        // Something is always told: an instance that is in no report would seem to be gone from this node.
        if report::is_worth_telling(&next) || self.reports.get(id).is_none() {
            let mut told = report::report(id, &self.machine.node, &scene, &next, &live.trouble, &live.took_ms);
            told.flow_logs = scene.wish.map(|wish| self.machine.flow_logs.failures(wish)).unwrap_or_default();
            self.reports.put(told);
        }
        next
    }

    async fn look(&self, id: &str) -> Result<Look, StepError> {
        let machine = &self.machine;
        Ok(Look {
            wish: machine.wishes.get(id).await?,
            facts: machine.rows.get(id).await?,
            domain: machine.hypervisor.look(id).await?,
        })
    }

    async fn work(self: Arc<Self>, id: String) {
        loop {
            let look = match self.look(&id).await {
                Ok(look) => look,
                Err(e) => {
                    self.failed(&id, "look", None, &e);
                    break;
                }
            };
            if look.wish.is_none() && look.domain.is_none() {
                // Forgotten by a worker before this one.
                break;
            }
            let next = match self.lock().get_mut(&id) {
                Some(live) => self.plan(&id, &look, live),
                None => break,
            };
            let Next::Do(step) = next else { break };
            let begun = Instant::now();
            tracing::trace!(target: TARGET, "before machine: {}", step.name());
            let done = self.perform(&id, &step, &look).await;
            tracing::trace!(target: TARGET, "after machine: {}", step.name());
            tracing::debug!(
                instance.id = id,
                step = step.name(),
                ok = done.is_ok(),
                duration_ms = begun.elapsed().as_millis() as u64,
                "{step:?}"
            );
            if !self.account(&id, &step, &look, begun.elapsed(), done).await {
                break;
            }
        }
        if let Some(live) = self.lock().get_mut(&id) {
            live.working = false;
            live.ended += 1;
        }
        self.poke.poke();
        // It may have been overtaken by another wish just now.
        self.wished.poke();
    }

    fn begin(&self, id: &str, live: &mut Live) {
        if let Some(me) = self.me.upgrade() {
            live.working = true;
            tokio::spawn(me.work(id.to_owned()));
        }
    }

    /// Does one step.
    async fn perform(&self, id: &str, step: &Step, look: &Look) -> Done {
        let (machine, hypervisor) = (&self.machine, &self.machine.hypervisor);
        let now_ms = machine.clock.now_ms();
        let Some(wish) = look.wish.as_ref().map(|w| &w.body) else { return Ok(()) };
        match step {
            Step::BringUp(step) => {
                if look.facts.released {
                    machine.rows.update(id, now_ms, None, |facts| facts.released = false).await?;
                }
                let overtaken = self.lock().get(id).map(|l| l.overtaken.clone()).unwrap_or_default();
                tokio::select! {
                    done = machine.bring_up(*step, wish) => done,
                    // Fetching a large image may take minutes; every other step is short.
                    () = overtaken.notified(), if *step == BringUp::Image => Err(StepError::Overtaken),
                }
            }
            Step::NoteRunning => {
                let took: BTreeMap<String, u64> = self.lock().get(id).map(|l| l.took_ms.clone()).unwrap_or_default();
                let (reboots, total) = (wish.reboots, took.values().sum::<u64>());
                let what = format!("started (bring-up took {total} ms)");
                machine
                    .rows
                    .update(id, now_ms, Some(what), move |facts| {
                        *facts = Facts {
                            ran: true,
                            started: Some(now_ms),
                            took_ms: took.clone(),
                            // A start is as good as every reboot that was asked for before it.
                            reboot_asked: reboots,
                            reboots_done: reboots,
                            lapsed: facts.lapsed.take(),
                            ..Facts::default()
                        }
                    })
                    .await?;
                Ok(())
            }
            Step::NoteGuestOff => {
                let generation = wish.generation;
                let what = "the guest powered itself off".to_owned();
                machine
                    .rows
                    .update(id, now_ms, Some(what), move |facts| {
                        (facts.ran, facts.guest_off, facts.console) = (false, Some(generation), None)
                    })
                    .await?;
                Ok(())
            }
            Step::NoteLost => {
                let why = look.domain.as_ref().map_or("its domain is gone".to_owned(), |d| format!("{:?}", d.power));
                let what = if look.facts.asked_off {
                    "off, and wanted again".into()
                } else {
                    format!("it ended without its guest's doing ({why}): bringing it up again")
                };
                machine
                    .rows
                    .update(id, now_ms, Some(what), |facts| (facts.ran, facts.asked_off) = (false, false))
                    .await?;
                Ok(())
            }
            Step::Change(change) => self.change(id, change).await,
            Step::ChangeNic(change) => self.change_nic(wish, change).await,
            Step::Reboot => {
                self.remember(id, |live, now| live.memory.rebooting = Some((now, false)));
                match hypervisor.reboot(id).await {
                    Ok(()) => {}
                    // A guest that cannot be asked is reset.
                    Err(HypervisorError::Refused(_)) => hypervisor.reset(id).await?,
                    Err(e) => return Err(e.into()),
                }
                let asked = wish.reboots;
                machine
                    .rows
                    .update(id, now_ms, Some("asked to reboot".into()), move |facts| facts.reboot_asked = asked)
                    .await?;
                Ok(())
            }
            Step::TryAgain => {
                self.remember(id, |live, now| live.memory.tried = Some(now));
                Ok(hypervisor.resume(id).await?)
            }
            Step::Reset => {
                hypervisor.reset(id).await?;
                self.remember(id, |live, now| live.memory.rebooting = Some((now, true)));
                Ok(())
            }
            Step::NoteRebooted => {
                machine
                    .rows
                    .update(id, now_ms, Some("rebooted".into()), |facts| facts.reboots_done = facts.reboot_asked)
                    .await?;
                self.remember(id, |live, _| live.memory.rebooting = None);
                Ok(())
            }
            Step::PressPower => {
                if !look.facts.asked_off {
                    machine
                        .rows
                        .update(id, now_ms, Some("asked to power off".into()), |facts| facts.asked_off = true)
                        .await?;
                }
                self.remember(id, |live, now| {
                    live.memory.pressed = Some((live.memory.pressed.map_or(now, |(first, _)| first), now))
                });
                Ok(hypervisor.press_power(id).await?)
            }
            Step::PullPlug => {
                let what = (!look.facts.asked_off || wish.desired != Desired::Terminated)
                    .then(|| "its plug is pulled".to_owned());
                machine.rows.update(id, now_ms, what, |facts| facts.asked_off = true).await?;
                Ok(hypervisor.destroy(id).await?)
            }
            Step::KeepConsole => {
                let console = machine.encoded_console(id)?;
                machine
                    .rows
                    .update(id, now_ms, None, move |facts| {
                        (facts.console, facts.ran, facts.asked_off) = (Some(console.clone()), false, false)
                    })
                    .await?;
                self.remember(id, |live, _| live.memory = Memory::default());
                Ok(())
            }
            Step::Hold(hold) => {
                let (its, what) = (hold.id.clone(), format!("held ({:?})", hold.kind).to_lowercase());
                machine.rows.update(id, now_ms, Some(what), move |facts| facts.held = Some(its.clone())).await?;
                if hold.kind == HoldKind::Paused {
                    hypervisor.suspend(id).await?;
                }
                self.remember(id, |live, now| live.memory.held = Some(now));
                Ok(())
            }
            Step::LetGo => {
                let still_wished = wish.hold.as_ref().map(|h| h.id.clone());
                // Before the guest goes on: what is fixed after that is of another instant.
                machine
                    .rows
                    .update(id, now_ms, Some("not held any more".into()), move |facts| {
                        if facts.held.is_some() && facts.held == still_wished {
                            facts.lapsed.clone_from(&facts.held);
                        }
                    })
                    .await?;
                self.remember(id, |live, _| live.memory.held = None);
                if look.domain.as_ref().is_some_and(|d| d.power == Power::Suspended) {
                    hypervisor.resume(id).await?;
                }
                machine.rows.update(id, now_ms, None, |facts| facts.held = None).await?;
                Ok(())
            }
            Step::Undefine => Ok(hypervisor.undefine(id).await?),
            Step::Release => {
                machine.erase(id).await?;
                machine
                    .rows
                    .update(id, now_ms, Some("off, and nothing of it is left here".into()), |facts| {
                        facts.released = true
                    })
                    .await?;
                Ok(())
            }
            Step::Erase => {
                machine.erase(id).await?;
                machine.rows.update(id, now_ms, Some("gone".into()), |facts| facts.gone = true).await?;
                Ok(())
            }
            Step::Forget => {
                machine.rows.forget(id).await?;
                machine.wishes.forget(id).await?;
                self.reports.forget(id);
                Ok(())
            }
        }
    }

    async fn change(&self, id: &str, change: &Change) -> Done {
        let (machine, hypervisor) = (&self.machine, &self.machine.hypervisor);
        let what = match change {
            Change::Attach(wanted) => {
                let disk = volume::disk(wanted).map_err(StepError::Permanent)?;
                hypervisor.attach(id, &disk).await?;
                format!("{} attached as {}", wanted.volume, disk.target)
            }
            Change::Detach(disk) => {
                hypervisor.detach(id, disk).await?;
                format!("{} detached", volume::volume_of(&disk.serial))
            }
            Change::Fit(disk, fit) => {
                return Ok(hypervisor.fit(id, disk, fit.size_gib, fit.limits).await?);
            }
        };
        machine.rows.update(id, machine.clock.now_ms(), Some(what), |_| {}).await?;
        Ok(())
    }

    async fn change_nic(&self, wish: &Instance, change: &nic::Change) -> Done {
        let (machine, id) = (&self.machine, &wish.id);
        let what = match change {
            nic::Change::Attach(wanted) => {
                // What the guest may ask over it is known before it can ask.
                machine.bring_up(BringUp::Network, wish).await?;
                let taps = machine.taps(wish).await?;
                machine.hypervisor.attach_nic(id, &machine.nic(wanted, &taps)).await?;
                format!("{} attached", wanted.id)
            }
            nic::Change::Detach(seen) => {
                machine.hypervisor.detach_nic(id, seen).await?;
                machine.rows.release_tap(&seen.tap).await?;
                format!("the interface at {} is detached", seen.tap)
            }
        };
        machine.rows.update(id, machine.clock.now_ms(), Some(what), |_| {}).await?;
        Ok(())
    }

    fn remember(&self, id: &str, what: impl FnOnce(&mut Live, Duration)) {
        let now = self.now();
        if let Some(live) = self.lock().get_mut(id) {
            what(live, now);
        }
    }

    /// Takes note of how a step went; whether the worker goes on at once.
    async fn account(&self, id: &str, step: &Step, look: &Look, took: Duration, done: Done) -> bool {
        if let Some(device) = step.device() {
            self.account_change(id, step, device, done);
            return true;
        }
        match done {
            Ok(()) => self.succeeded(id, step, look, took),
            Err(StepError::Overtaken) => true,
            Err(e) => {
                let refusals = self.failed(id, step.name(), look.generation(), &e);
                if let (Step::BringUp(begun), Some(wish)) = (step, look.wish.as_ref()) {
                    let hopeless = matches!(e, StepError::Permanent(_))
                        || (matches!(e, StepError::Refused(_)) && refusals >= REFUSALS);
                    if hopeless {
                        return self.give_up(id, *begun, &wish.body, &e).await;
                    }
                }
                false
            }
        }
    }

    fn succeeded(&self, id: &str, step: &Step, look: &Look, took: Duration) -> bool {
        let now = self.now();
        let mut all = self.lock();
        if *step == Step::Forget {
            all.remove(id);
            return false;
        }
        let Some(live) = all.get_mut(id) else { return false };
        (live.failures, live.trouble.step, live.trouble.reason) = (0, String::new(), String::new());
        match step {
            Step::BringUp(step) => {
                if *step == BringUp::Image {
                    live.took_ms.clear();
                }
                live.took_ms.insert(step.name().into(), took.as_millis() as u64);
                live.memory.done = Some(*step);
            }
            Step::NoteRunning => {
                live.memory = Memory::default();
                live.refusals = 0;
            }
            Step::NoteLost => {
                live.memory = Memory::default();
                let life = self.machine.clock.now_ms() - look.facts.started.unwrap_or(0);
                if look.facts.asked_off || life > SHORT_LIFE_MS {
                    live.short_lives = 0;
                    return true;
                }
                live.short_lives += 1;
                (live.not_before, live.paused_wish) = (now + pause(live.short_lives + 1), look.generation());
                live.trouble.reason =
                    format!("it ended by itself {} s after it was started; trying again", life / 1000);
                return false;
            }
            _ => {}
        }
        true
    }

    fn account_change(&self, id: &str, step: &Step, device: String, done: Done) {
        let now = self.now();
        let mut all = self.lock();
        let Some(live) = all.get_mut(id) else { return };
        match done {
            Ok(()) => {
                live.failures = 0;
                if let Step::Change(change) = step {
                    live.memory.fitted.retain(|(fitted, _)| *fitted != device);
                    match change {
                        // It came with its size and its limits.
                        Change::Attach(wanted) => live.memory.fitted.push((device.clone(), Fit::of(wanted))),
                        Change::Fit(_, fit) => live.memory.fitted.push((device.clone(), *fit)),
                        Change::Detach(_) => {}
                    }
                }
                report::settle(&mut live.memory, &mut live.trouble, &device);
            }
            Err(e) => {
                tracing::warn!(instance.id = id, device, error = %e, "a device could not be changed");
                live.failures += 1;
                let until = now + pause(live.failures + 2);
                live.memory.device_pauses.retain(|(paused, _)| *paused != device);
                live.memory.device_pauses.push((device.clone(), until));
                live.trouble.devices.insert(device, e.to_string());
            }
        }
    }

    /// A step went wrong: it is tried again after a while. How often the hypervisor has refused by now.
    fn failed(&self, id: &str, step: &str, wish: Option<Generation>, e: &StepError) -> u32 {
        let now = self.now();
        let mut all = self.lock();
        let Some(live) = all.get_mut(id) else { return 0 };
        live.failures += 1;
        live.refusals += u32::from(matches!(e, StepError::Refused(_)));
        (live.not_before, live.paused_wish) = (now + pause(live.failures), wish);
        live.memory.done = None;
        if live.trouble.reason != e.to_string() {
            tracing::warn!(instance.id = id, step, error = %e, "a step failed; it is tried again");
        }
        (live.trouble.step, live.trouble.reason) = (step.into(), e.to_string());
        live.refusals
    }

    async fn give_up(&self, id: &str, step: BringUp, wish: &Instance, e: &StepError) -> bool {
        let failure = Failure { generation: wish.generation, step: step.name().into(), reason: e.to_string() };
        let what = format!("cannot be brought up: {e}");
        let noted = self
            .machine
            .rows
            .update(id, self.machine.clock.now_ms(), Some(what), move |facts| facts.failed = Some(failure.clone()))
            .await;
        self.remember(id, |live, _| {
            live.refusals = 0;
            live.trouble = Trouble::default();
        });
        noted.is_ok()
    }

    /// Everything there is to know, by id.
    async fn world(&self) -> Result<BTreeMap<String, Look>, StepError> {
        let machine = &self.machine;
        let mut facts = machine.rows.all().await?;
        let mut wishes: BTreeMap<String, Listed<Instance>> =
            machine.wishes.all().await?.into_iter().map(|listed| (listed.body.id.clone(), listed)).collect();
        let mut domains: BTreeMap<String, Seen> =
            machine.hypervisor.list().await?.into_iter().map(|seen| (seen.name.clone(), seen)).collect();
        let ids: BTreeSet<String> = wishes.keys().chain(domains.keys()).cloned().collect();
        let look = |id: String| {
            let look = Look {
                wish: wishes.remove(&id),
                facts: facts.remove(&id).unwrap_or_default(),
                domain: domains.remove(&id),
            };
            (id, look)
        };
        Ok(ids.into_iter().map(look).collect())
    }

    /// What depends on all instances together: who may ask for metadata, which images are in use.
    fn publish(&self, world: &BTreeMap<String, Look>) {
        let here = || world.values().filter(|l| !l.facts.gone).filter_map(|l| l.wish.as_ref().map(|w| &w.body));
        self.machine.book.replace(here());
        let used = here().flat_map(blobs).map(|b| b.digest.clone()).collect();
        *self.machine.used.lock().unwrap_or_else(PoisonError::into_inner) = used;
    }

    /// Begins work where there is some; how long until there may be more.
    fn dispatch(&self, world: &BTreeMap<String, Look>, idle: &BTreeMap<String, u64>) -> (u64, Option<Duration>) {
        let (now, mut begun, mut again) = (self.now(), 0, None::<Duration>);
        let mut all = self.lock();
        // What came after this world was read is in nobody's way.
        all.retain(|id, live| live.working || world.contains_key(id) || !idle.contains_key(id));
        for report in self.reports.all() {
            // An orphan that a person removed.
            if !world.contains_key(&report.id) && !all.contains_key(&report.id) {
                self.reports.forget(&report.id);
            }
        }
        for (id, look) in world {
            let live = all.entry(id.clone()).or_default();
            if live.working || idle.get(id).is_some_and(|ended| *ended != live.ended) {
                continue;
            }
            let wait = match self.plan(id, look, live) {
                Next::Rest => continue,
                Next::Wait(wait) => wait,
                Next::Do(_) if live.pauses(look.generation(), now).is_some() => live.not_before - now,
                Next::Do(_) => {
                    self.begin(id, live);
                    begun += 1;
                    continue;
                }
            };
            again = Some(again.unwrap_or(Duration::MAX).min(wait.max(Duration::from_millis(10))));
        }
        (begun, again)
    }
}

/// The interfaces of running guests, each with the link that stands for it.
fn linked(world: &BTreeMap<String, Look>) -> Vec<(Interface, String)> {
    let on = |look: &&Look| look.domain.as_ref().is_some_and(|d| !matches!(d.power, Power::Off(_)));
    let of = |look: &Look| {
        let (wish, domain) = (look.wish.as_ref()?, look.domain.as_ref()?);
        let link = |i: &Interface| domain.nics.iter().find(|nic| nic.port == i.port).map(|nic| nic.tap.clone());
        let watched = wish.body.interfaces.iter().filter(|i| i.flow.is_some());
        Some(watched.filter_map(|i| Some((i.clone(), link(i)?))).collect::<Vec<_>>())
    };
    world.values().filter(on).filter_map(of).flatten().collect()
}

/// 100 ms, doubled each time.
fn pause(failures: u32) -> Duration {
    Duration::from_millis(100)
        .saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)))
        .min(LONGEST_PAUSE)
}

#[async_trait::async_trait]
impl Reconciler for Instances {
    fn name(&self) -> &'static str {
        "instances"
    }

    async fn pass(&self) -> PassReport {
        let idle: BTreeMap<String, u64> = self.lock().iter().map(|(id, live)| (id.clone(), live.ended)).collect();
        let world = match self.world().await {
            Ok(world) => world,
            Err(e) => {
                // Nothing is reported: what was seen last stands until the hypervisor answers again.
                self.machine.faults.raise(
                    HYPERVISOR_FAULT,
                    e.to_string(),
                    "is libvirtd up? Guests run on without it (`mallee status`)",
                );
                let mut report = PassReport::default();
                report.error(e);
                return report;
            }
        };
        self.machine.faults.clear(HYPERVISOR_FAULT);
        self.publish(&world);
        if let Err(e) = self.machine.flow_logs.want(linked(&world)).await {
            tracing::warn!(error = %e, "flow logs");
        }
        let (begun, again) = self.dispatch(&world, &idle);
        self.looked.send_replace(true);
        PassReport { again, ..PassReport::changed(begun) }
    }
}

/// Begins work on new and changed wishes at once. It reads the node's own store only, so it never waits for the hypervisor:
/// libvirt holds a domain for the second that QEMU takes to end, and whoever lists domains waits for that.
pub struct Wishes(pub Arc<Instances>);

#[async_trait::async_trait]
impl Reconciler for Wishes {
    fn name(&self) -> &'static str {
        "wishes"
    }

    async fn pass(&self) -> PassReport {
        let (me, machine) = (&self.0, &self.0.machine);
        let wishes = match machine.wishes.all().await {
            Ok(wishes) => wishes,
            Err(e) => {
                let mut report = PassReport::default();
                report.error(e);
                return report;
            }
        };
        let blobs = wishes.iter().flat_map(|w| blobs(&w.body)).map(|b| b.digest.clone());
        machine.used.lock().unwrap_or_else(PoisonError::into_inner).extend(blobs);
        let (now, mut report) = (me.now(), PassReport::default());
        let mut all = me.lock();
        for wish in &wishes {
            let live = all.entry(wish.body.id.clone()).or_default();
            if live.planned == Some((wish.body.generation, wish.listed)) {
                continue;
            }
            if live.working {
                if wish.body.desired != Desired::Running {
                    live.overtaken.notify_waiters();
                }
                continue;
            }
            match live.pauses(Some(wish.body.generation), now) {
                Some(left) => report.again = Some(report.again.unwrap_or(Duration::MAX).min(left)),
                None => {
                    me.begin(&wish.body.id, live);
                    report.changed += 1;
                }
            }
        }
        report
    }
}

fn blobs(instance: &Instance) -> impl Iterator<Item = &Blob> {
    [instance.boot.root.image(), instance.boot.kernel.as_ref(), instance.boot.ramdisk.as_ref()].into_iter().flatten()
}

/// Keeps the metadata service heard in every VPC that has an instance here, and in no other.
pub struct MetadataKeeper(Arc<Machine>);

pub fn keep_metadata(machine: Arc<Machine>) -> Arc<MetadataKeeper> {
    Arc::new(MetadataKeeper(machine))
}

#[async_trait::async_trait]
impl Reconciler for MetadataKeeper {
    fn name(&self) -> &'static str {
        "metadata"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let (wishes, facts) = match (self.0.wishes.all().await, self.0.rows.all().await) {
            (Ok(wishes), Ok(facts)) => (wishes, facts),
            (Err(e), _) | (_, Err(e)) => {
                report.error(e);
                return report;
            }
        };
        let here: Vec<&Instance> =
            wishes.iter().map(|l| &l.body).filter(|i| !facts.get(&i.id).is_some_and(|f| f.gone)).collect();
        let vpcs: BTreeMap<&str, &VpcLink> =
            here.iter().flat_map(|i| &i.interfaces).map(|i| (i.vpc.id.as_str(), &i.vpc)).collect();
        for vpc in vpcs.values() {
            if let Err(e) = self.0.metadata.ensure(vpc).await {
                report.error(format!("{}: {e}", vpc.id));
            }
        }
        for e in self.0.metadata.close_unused().await {
            report.error(e);
        }
        report
    }
}
