//! Machines that exist in memory only: for tests of thousands of instances, and for trying the cloud where no guest can run.
//! It says so everywhere: `hypervisor = "simulated"`, and the console of an instance is one line that says it.
//!
//! A handle can be cloned and outlives a node-controller, as real guests do. A test can move its time, power guests off,
//! crash them, and make the next start fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mallee_tiers::{DiskLimits, Export};
use serde::{Deserialize, Serialize};

use super::{
    Credentials, DomainSpec, Event, Events, Hypervisor, HypervisorError, Nic, Off, Power, Result, RootDisk, Seen,
    SeenDisk, SeenNic, VolumeDisk,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct SimulatedConfig {
    /// How long starting a domain takes.
    pub start_ms: u64,
    /// How long a guest takes to power off when the button is pressed; none never does.
    pub power_off_ms: Option<u64>,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        Self { start_ms: 0, power_off_ms: Some(10) }
    }
}

/// The simulated machine.
#[derive(Clone)]
pub struct Simulated {
    config: SimulatedConfig,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    begun: Instant,
    /// What tests added to the time.
    moved: Duration,
    domains: BTreeMap<String, Machine>,
    listeners: Vec<Events>,
    refusals: Vec<String>,
    /// It does not answer; its machines go on.
    silent: bool,
}

struct Machine {
    power: Power,
    disks: Vec<SeenDisk>,
    nics: Vec<SeenNic>,
    /// When a pressed power button takes effect, and whether the guest comes up again.
    pressed: Option<(Duration, bool)>,
    boots: u32,
}

impl Simulated {
    pub fn new(config: SimulatedConfig) -> Self {
        let inner = Inner {
            begun: Instant::now(),
            moved: Duration::ZERO,
            domains: BTreeMap::new(),
            listeners: Vec::new(),
            refusals: Vec::new(),
            silent: false,
        };
        Self { config, inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.settle();
        inner
    }

    /// Tells this listener from now on.
    pub fn listen(&self, events: Events) {
        let mut inner = self.lock();
        inner.listeners.retain(|l| !l.is_closed());
        inner.listeners.push(events);
    }

    /// Moves the machine's time forward; what was to happen in it has happened when this returns.
    pub fn advance(&self, by: Duration) {
        self.lock().moved += by;
        drop(self.lock());
    }

    /// The guest powers itself off.
    pub fn guest_powers_off(&self, name: &str) {
        self.lock().end(name, Off::Guest);
    }

    /// The guest's process ends.
    pub fn crash(&self, name: &str) {
        self.lock().end(name, Off::Crashed);
    }

    /// The machine loses power: everything is off, and nobody remembers why.
    pub fn lose_power(&self) {
        let mut inner = self.lock();
        let names: Vec<String> = inner.domains.keys().cloned().collect();
        for name in names {
            inner.end(&name, Off::Unknown);
        }
    }

    /// The next start is refused with these words.
    pub fn refuse_next_start(&self, why: &str) {
        self.lock().refusals.push(why.into());
    }

    /// It does not answer any more, though its machines go on.
    pub fn fall_silent(&self) {
        self.lock().silent = true;
    }

    /// It answers again.
    pub fn speak(&self) {
        let mut inner = self.lock();
        inner.silent = false;
        inner.tell(Event::Back);
    }

    fn asked(&self) -> Result<MutexGuard<'_, Inner>> {
        let inner = self.lock();
        if inner.silent {
            Err(HypervisorError::Unreachable("the simulated machine is silent".into()))
        } else {
            Ok(inner)
        }
    }

    /// How often a domain was started or went through a reset.
    pub fn boots(&self, name: &str) -> u32 {
        self.lock().domains.get(name).map_or(0, |m| m.boots)
    }

    pub fn running(&self) -> usize {
        self.lock().domains.values().filter(|m| m.power == Power::Running).count()
    }
}

impl Inner {
    fn now(&self) -> Duration {
        self.begun.elapsed() + self.moved
    }

    /// Lets everything happen that was due.
    fn settle(&mut self) {
        let now = self.now();
        let due: Vec<(String, bool)> = self
            .domains
            .iter_mut()
            .filter_map(|(name, m)| {
                let (at, again) = m.pressed?;
                (at <= now).then(|| {
                    m.pressed = None;
                    (name.clone(), again)
                })
            })
            .collect();
        for (name, again) in due {
            if again {
                if let Some(machine) = self.domains.get_mut(&name) {
                    machine.boots += 1;
                }
                self.tell(Event::Rebooted(name));
            } else {
                self.end(&name, Off::Guest);
            }
        }
    }

    fn end(&mut self, name: &str, why: Off) {
        let Some(machine) = self.domains.get_mut(name) else { return };
        if matches!(machine.power, Power::Off(_)) {
            return;
        }
        (machine.power, machine.pressed) = (Power::Off(why), None);
        machine.disks.clear();
        machine.nics.clear();
        self.tell(Event::Changed(name.into()));
    }

    fn tell(&self, event: Event) {
        for listener in &self.listeners {
            let _ = listener.send(event.clone());
        }
    }

    fn machine(&mut self, name: &str) -> Result<&mut Machine> {
        self.domains.get_mut(name).ok_or_else(|| HypervisorError::Refused(format!("no simulated domain {name}")))
    }
}

fn seen(name: &str, machine: &Machine) -> Seen {
    Seen { name: name.into(), power: machine.power.clone(), disks: machine.disks.clone(), nics: machine.nics.clone() }
}

impl Simulated {
    fn turn(&self, name: &str, from: Power, to: Power) -> Result<()> {
        let mut inner = self.asked()?;
        let machine = inner.machine(name)?;
        if machine.power == from {
            machine.power = to;
            inner.tell(Event::Changed(name.into()));
        }
        Ok(())
    }

    fn press(&self, name: &str, again: bool) -> Result<()> {
        let mut inner = self.asked()?;
        let now = inner.now();
        let machine = inner.machine(name)?;
        if machine.power != Power::Running {
            return if again { Err(HypervisorError::Refused("it does not run".into())) } else { Ok(()) };
        }
        let Some(after) = self.config.power_off_ms.map(Duration::from_millis) else { return Ok(()) };
        machine.pressed.get_or_insert((now + after, again));
        drop(inner);
        let me = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            drop(me.lock());
        });
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for Simulated {
    fn kind(&self) -> &str {
        "simulated"
    }
    fn why(&self) -> &str {
        "the configuration says so: no instance here is a real machine"
    }
    fn simulated(&self) -> bool {
        true
    }
    async fn list(&self) -> Result<Vec<Seen>> {
        Ok(self.asked()?.domains.iter().map(|(name, m)| seen(name, m)).collect())
    }
    async fn look(&self, name: &str) -> Result<Option<Seen>> {
        Ok(self.asked()?.domains.get(name).map(|m| seen(name, m)))
    }
    async fn define(&self, spec: &DomainSpec) -> Result<()> {
        let root = match &spec.root {
            RootDisk::Volume(disk) => Some(disk),
            RootDisk::Overlay(_) => None,
        };
        let disks = root.into_iter().chain(&spec.volumes).map(given).collect();
        let nics = spec.nics.iter().map(plugged).collect();
        let mut inner = self.asked()?;
        let boots = inner.domains.get(&spec.name).map_or(0, |m| m.boots);
        inner
            .domains
            .insert(spec.name.clone(), Machine { power: Power::Off(Off::Unknown), disks, nics, pressed: None, boots });
        Ok(())
    }
    async fn start(&self, name: &str) -> Result<()> {
        if self.config.start_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.config.start_ms)).await;
        }
        let mut inner = self.asked()?;
        if let Some(why) = inner.refusals.pop() {
            return Err(HypervisorError::Refused(why));
        }
        let machine = inner.machine(name)?;
        if machine.power != Power::Running {
            machine.power = Power::Running;
            machine.boots += 1;
            inner.tell(Event::Changed(name.into()));
        }
        Ok(())
    }
    async fn press_power(&self, name: &str) -> Result<()> {
        self.press(name, false)
    }
    async fn reboot(&self, name: &str) -> Result<()> {
        self.press(name, true)
    }
    async fn reset(&self, name: &str) -> Result<()> {
        let mut inner = self.asked()?;
        let machine = inner.machine(name)?;
        machine.boots += 1;
        machine.pressed = None;
        inner.tell(Event::Rebooted(name.into()));
        Ok(())
    }
    async fn suspend(&self, name: &str) -> Result<()> {
        self.turn(name, Power::Running, Power::Suspended)
    }
    async fn resume(&self, name: &str) -> Result<()> {
        self.turn(name, Power::Suspended, Power::Running)
    }
    async fn destroy(&self, name: &str) -> Result<()> {
        self.asked()?.end(name, Off::Destroyed);
        Ok(())
    }
    async fn undefine(&self, name: &str) -> Result<()> {
        self.asked()?.domains.remove(name);
        Ok(())
    }
    async fn attach(&self, name: &str, disk: &VolumeDisk) -> Result<()> {
        let mut inner = self.asked()?;
        inner.machine(name)?.disks.push(given(disk));
        Ok(())
    }
    async fn fit(&self, name: &str, disk: &SeenDisk, _: u64, _: DiskLimits) -> Result<()> {
        let mut inner = self.asked()?;
        let there = inner.machine(name)?.disks.iter().any(|d| d.alias == disk.alias);
        if there { Ok(()) } else { Err(HypervisorError::Refused(format!("{} is not there", disk.serial))) }
    }
    async fn show(&self, _: &str, _: &SeenDisk, _: &Export, _: &Credentials) -> Result<()> {
        Ok(())
    }
    async fn detach(&self, name: &str, disk: &SeenDisk) -> Result<()> {
        let mut inner = self.asked()?;
        inner.machine(name)?.disks.retain(|d| d.alias != disk.alias);
        Ok(())
    }
    async fn attach_nic(&self, name: &str, nic: &Nic) -> Result<()> {
        let mut inner = self.asked()?;
        inner.machine(name)?.nics.push(plugged(nic));
        Ok(())
    }
    async fn detach_nic(&self, name: &str, nic: &SeenNic) -> Result<()> {
        let mut inner = self.asked()?;
        inner.machine(name)?.nics.retain(|n| n.port != nic.port);
        Ok(())
    }
}

fn plugged(nic: &Nic) -> SeenNic {
    SeenNic { port: nic.port, tap: nic.tap.clone(), alias: nic.tap.clone() }
}

fn given(disk: &VolumeDisk) -> SeenDisk {
    SeenDisk {
        serial: disk.serial.clone(),
        target: disk.target.clone(),
        alias: disk.alias(),
        export: disk.export.clone(),
    }
}
