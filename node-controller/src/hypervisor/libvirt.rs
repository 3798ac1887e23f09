//! libvirt, and the only file that speaks to it.
//!
//! - Every libvirt call blocks, so each runs on an OS thread of its own: *quick* ones for looking, and *slow* ones for what
//!   takes seconds (start, destroy), on a second connection, so that looking never waits for a start.
//! - One thread runs libvirt's event loop for the whole process. Lifecycle, reset and device-removed events come through it,
//!   and it keeps the connections alive: a libvirtd that vanished is noticed by its closed socket, one that hangs in 15 s.
//! - A watcher opens a lost connection again. libvirtd finds its running guests by itself; they are not touched.

mod cut;
mod fit;
mod monitor;
mod show;

use std::{
    collections::BTreeMap,
    ffi::CStr,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError, Weak,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use async_trait::async_trait;
use mallee_tiers::{DiskLimits, Export};
use quick_xml::events::{BytesStart, Event as Xml};
use tokio::sync::oneshot;
use uuid::Uuid;
use virt::{
    connect::Connect,
    domain::Domain,
    error::{Error, ErrorNumber},
    sys,
};

use super::domain::tunables;
use super::{
    Credentials, DomainSpec, EMULATOR, Event, Events, Hypervisor, HypervisorError, Nic, Off, Power, Result, Seen,
    SeenDisk, SeenNic, VolumeDisk, domain::Place,
};

/// Looking at a domain that is just ending waits for its end; others need not.
const QUICK_THREADS: usize = 4;
/// libvirtd works on five requests of a client at a time; more would only wait there.
const SLOW_THREADS: usize = 4;
/// How long a guest may take to let go of a device before it is said that it does not.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

pub struct Libvirt {
    quick: Pool,
    slow: Pool,
    kind: String,
    why: String,
    removed: Removed,
}

impl Libvirt {
    /// Connects in the background; calls answer [`HypervisorError::Unreachable`] until libvirtd is there.
    pub fn new(uri: &str, kind: &str, why: &str, events: Events) -> Result<Self> {
        start_event_loop()?;
        let removed = Removed::default();
        let target = EventTarget { events, removed: removed.clone() };
        let quick = Arc::new(Link::new(uri, Some(target)));
        watch(Arc::downgrade(&quick), if kind == "kvm" { "kvm" } else { "qemu" });
        let slow = Pool::new(Arc::new(Link::new(uri, None)), SLOW_THREADS, "libvirt-slow")?;
        let quick = Pool::new(quick, QUICK_THREADS, "libvirt-quick")?;
        Ok(Self { quick, slow, kind: kind.into(), why: why.into(), removed })
    }

    /// Runs `work` on the domain of that name; one that is not there is [`HypervisorError::Refused`].
    async fn on<T: Send + 'static>(
        pool: &Pool,
        name: &str,
        work: impl FnOnce(&Domain) -> std::result::Result<T, Error> + Send + 'static,
    ) -> Result<T> {
        let name = name.to_owned();
        pool.call(move |connection| work(&Domain::lookup_by_name(connection, &name)?)).await
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    fn kind(&self) -> &str {
        &self.kind
    }
    fn why(&self) -> &str {
        &self.why
    }

    async fn list(&self) -> Result<Vec<Seen>> {
        self.quick
            .call(|connection| {
                let mut all = Vec::new();
                for domain in connection.list_all_domains(0)? {
                    let name = domain.get_name()?;
                    if !name.starts_with("i-") {
                        continue;
                    }
                    match see(&domain, name) {
                        // It went away between the list and the look.
                        Err(e) if e.code() == ErrorNumber::NoDomain => {}
                        seen => all.push(seen?),
                    }
                }
                Ok(all)
            })
            .await
    }

    async fn look(&self, name: &str) -> Result<Option<Seen>> {
        let name = name.to_owned();
        self.quick
            .call(move |connection| {
                let seen = Domain::lookup_by_name(connection, &name).and_then(|domain| see(&domain, name.clone()));
                match seen {
                    Err(e) if e.code() == ErrorNumber::NoDomain => Ok(None),
                    seen => seen.map(Some),
                }
            })
            .await
    }

    async fn define(&self, spec: &DomainSpec) -> Result<()> {
        let xml = spec.to_xml();
        self.slow.call(move |connection| Domain::define_xml(connection, &xml).map(drop)).await
    }

    async fn start(&self, name: &str) -> Result<()> {
        Self::on(&self.slow, name, |domain| {
            if domain.is_active()? {
                return Ok(());
            }
            domain.create().map(drop)
        })
        .await
    }

    async fn press_power(&self, name: &str) -> Result<()> {
        Self::on(&self.quick, name, |domain| {
            unless_off(domain, domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN).map(drop))
        })
        .await
    }

    async fn reboot(&self, name: &str) -> Result<()> {
        Self::on(&self.quick, name, |domain| domain.reboot(sys::VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)).await
    }

    async fn reset(&self, name: &str) -> Result<()> {
        Self::on(&self.quick, name, |domain| domain.reset().map(drop)).await
    }

    async fn suspend(&self, name: &str) -> Result<()> {
        Self::on(&self.slow, name, |domain| domain.suspend().map(drop)).await
    }

    async fn resume(&self, name: &str) -> Result<()> {
        Self::on(&self.slow, name, |domain| match domain.resume() {
            // It runs already.
            Err(e) if e.code() == ErrorNumber::OperationInvalid && is_running(domain)? => Ok(()),
            done => done.map(drop),
        })
        .await
    }

    async fn destroy(&self, name: &str) -> Result<()> {
        Self::on(&self.slow, name, |domain| unless_off(domain, domain.destroy())).await
    }

    async fn undefine(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.slow
            .call(move |connection| {
                match Domain::lookup_by_name(connection, &name).and_then(|domain| domain.undefine()) {
                    Err(e) if e.code() == ErrorNumber::NoDomain => Ok(()),
                    done => done,
                }
            })
            .await
    }

    async fn attach(&self, name: &str, disk: &VolumeDisk) -> Result<()> {
        let xml = disk.to_xml();
        Self::on(&self.slow, name, move |domain| {
            domain.attach_device_flags(&xml, sys::VIR_DOMAIN_AFFECT_LIVE).map(drop)
        })
        .await
    }

    async fn fit(&self, name: &str, disk: &SeenDisk, size_gib: u64, limits: DiskLimits) -> Result<()> {
        let (disk, tunables) = (disk.clone(), tunables(&limits));
        Self::on(&self.slow, name, move |domain| fit::fit(domain, &disk, size_gib << 30, &tunables)).await
    }

    async fn show(&self, name: &str, disk: &SeenDisk, export: &Export, credentials: &Credentials) -> Result<()> {
        let (disk, export, credentials) = (disk.clone(), export.clone(), credentials.clone());
        Self::on(&self.slow, name, move |domain| Ok(show::show(domain, &disk, &export, &credentials)))
            .await?
            .map_err(HypervisorError::Refused)
    }

    async fn detach(&self, name: &str, disk: &SeenDisk) -> Result<()> {
        let known = disk.clone();
        Self::on(&self.slow, name, move |domain| cut::give_up(domain, &known)).await?;
        self.pull(name, disk.alias.clone(), &disk.serial).await
    }

    async fn attach_nic(&self, name: &str, nic: &Nic) -> Result<()> {
        let xml = nic.to_xml(Place::RootPort);
        Self::on(&self.slow, name, move |domain| {
            domain.attach_device_flags(&xml, sys::VIR_DOMAIN_AFFECT_LIVE).map(drop)
        })
        .await
    }

    async fn detach_nic(&self, name: &str, nic: &SeenNic) -> Result<()> {
        self.pull(name, nic.alias.clone(), &nic.tap).await
    }
}

impl Libvirt {
    /// Asks the guest to let go of a device, and waits for it.
    async fn pull(&self, name: &str, alias: String, what: &str) -> Result<()> {
        // Listen first: the event may come before the call returns.
        let gone = self.removed.listen(name, &alias);
        let asked = Self::on(&self.slow, name, move |domain| detach_by_alias(domain, &alias)).await;
        if let Err(HypervisorError::Refused(why)) = &asked {
            // libvirt refuses to ask twice while the guest thinks about the first time.
            if !why.contains("already in the process of unplug") {
                return asked;
            }
        } else {
            asked?;
        }
        match tokio::time::timeout(DETACH_PATIENCE, gone).await {
            Ok(Ok(())) => Ok(()),
            _ => {
                Err(HypervisorError::GuestHolds(format!("the guest has not let go of {what} for {DETACH_PATIENCE:?}")))
            }
        }
    }
}

fn is_running(domain: &Domain) -> std::result::Result<bool, Error> {
    Ok(domain.get_state()?.0 == sys::VIR_DOMAIN_RUNNING)
}

/// A refusal because the domain is off already is what was wanted.
fn unless_off(domain: &Domain, done: std::result::Result<(), Error>) -> std::result::Result<(), Error> {
    match done {
        Err(e) if e.code() == ErrorNumber::OperationInvalid && !domain.is_active()? => Ok(()),
        done => done,
    }
}

fn see(domain: &Domain, name: String) -> std::result::Result<Seen, Error> {
    let (state, reason) = domain.get_state()?;
    let power = match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => Power::Running,
        sys::VIR_DOMAIN_PAUSED if reason as u32 == sys::VIR_DOMAIN_PAUSED_STARTING_UP => Power::Ending,
        sys::VIR_DOMAIN_PAUSED if reason as u32 == sys::VIR_DOMAIN_PAUSED_IOERROR => Power::NoRoom,
        // When it was let go on and paused again at once, libvirt has forgotten why.
        sys::VIR_DOMAIN_PAUSED if reason as u32 == sys::VIR_DOMAIN_PAUSED_UNKNOWN && fit::has_failed(domain)? => {
            Power::NoRoom
        }
        sys::VIR_DOMAIN_PAUSED if reason as u32 == sys::VIR_DOMAIN_PAUSED_USER => Power::Suspended,
        sys::VIR_DOMAIN_PAUSED => Power::Paused(format!("paused (libvirt's reason {reason})")),
        sys::VIR_DOMAIN_PMSUSPENDED => Power::Paused("the guest put itself to sleep".into()),
        sys::VIR_DOMAIN_SHUTDOWN => Power::Ending,
        sys::VIR_DOMAIN_CRASHED => Power::Off(Off::Crashed),
        sys::VIR_DOMAIN_SHUTOFF => Power::Off(match reason as u32 {
            sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => Off::Guest,
            sys::VIR_DOMAIN_SHUTOFF_DESTROYED => Off::Destroyed,
            sys::VIR_DOMAIN_SHUTOFF_CRASHED => Off::Crashed,
            sys::VIR_DOMAIN_SHUTOFF_FAILED => Off::Failed,
            _ => Off::Unknown,
        }),
        other => Power::Paused(format!("in a state libvirt calls {other}")),
    };
    let (disks, nics) = match power {
        Power::Off(_) => Default::default(),
        _ => {
            let xml = domain.get_xml_desc(0)?;
            (disks(&xml), nics(&xml))
        }
    };
    Ok(Seen { name, power, disks, nics })
}

fn attribute(element: &BytesStart<'_>, name: &str) -> String {
    element
        .try_get_attribute(name)
        .ok()
        .flatten()
        .and_then(|a| a.unescape_value().ok().map(|v| v.into_owned()))
        .unwrap_or_default()
}

/// The interfaces in a running domain's XML that bind a logical port.
fn nics(xml: &str) -> Vec<SeenNic> {
    let mut reader = quick_xml::Reader::from_str(xml);
    let (mut all, mut nic) = (Vec::new(), None::<SeenNic>);
    loop {
        match reader.read_event() {
            Ok(Xml::Start(e)) if e.name().as_ref() == b"interface" => {
                nic = Some(SeenNic { port: Uuid::nil(), tap: String::new(), alias: String::new() });
            }
            Ok(Xml::End(e)) if e.name().as_ref() == b"interface" => {
                all.extend(nic.take().filter(|nic| !nic.port.is_nil()));
            }
            Ok(Xml::Start(e) | Xml::Empty(e)) => {
                let Some(nic) = nic.as_mut() else { continue };
                match e.name().as_ref() {
                    b"parameters" => nic.port = attribute(&e, "interfaceid").parse().unwrap_or_default(),
                    b"target" => nic.tap = attribute(&e, "dev"),
                    b"alias" => nic.alias = attribute(&e, "name"),
                    _ => {}
                }
            }
            Ok(Xml::Eof) | Err(_) => return all,
            Ok(_) => {}
        }
    }
}

/// The volumes in a running domain's XML: its network disks.
fn disks(xml: &str) -> Vec<SeenDisk> {
    let mut reader = quick_xml::Reader::from_str(xml);
    let (mut all, mut disk, mut in_serial) = (Vec::new(), None::<SeenDisk>, false);
    loop {
        match reader.read_event() {
            Ok(Xml::Start(e)) if e.name().as_ref() == b"disk" => {
                disk = (attribute(&e, "type") == "network").then(|| SeenDisk {
                    serial: String::new(),
                    target: String::new(),
                    alias: String::new(),
                    export: String::new(),
                });
            }
            Ok(Xml::End(e)) if e.name().as_ref() == b"disk" => all.extend(disk.take()),
            Ok(Xml::Start(e) | Xml::Empty(e)) => {
                let Some(disk) = disk.as_mut() else { continue };
                match e.name().as_ref() {
                    b"source" if disk.export.is_empty() => disk.export = attribute(&e, "name"),
                    b"target" => disk.target = attribute(&e, "dev"),
                    b"alias" => disk.alias = attribute(&e, "name"),
                    b"serial" => in_serial = true,
                    _ => {}
                }
            }
            Ok(Xml::Text(text)) if in_serial => {
                if let (Some(disk), Ok(text)) = (disk.as_mut(), text.decode()) {
                    disk.serial = text.trim().to_owned();
                }
                in_serial = false;
            }
            Ok(Xml::Eof) | Err(_) => return all,
            Ok(_) => {}
        }
    }
}

#[allow(unsafe_code)]
fn detach_by_alias(domain: &Domain, alias: &str) -> std::result::Result<(), Error> {
    let alias: Vec<u8> = alias.bytes().filter(|b| *b != 0).chain([0]).collect();
    // SAFETY: the domain is live for the call, and `alias` is a zero-terminated string that outlives it.
    let done =
        unsafe { sys::virDomainDetachDeviceAlias(domain.as_ptr(), alias.as_ptr().cast(), sys::VIR_DOMAIN_AFFECT_LIVE) };
    if done < 0 { Err(Error::last_error()) } else { Ok(()) }
}

// ------------------------------------------------------------------------------------------------ connections and threads

type Job = Box<dyn FnOnce() + Send>;

/// Threads that make calls on one connection.
struct Pool {
    link: Arc<Link>,
    jobs: Sender<Job>,
}

impl Pool {
    fn new(link: Arc<Link>, threads: usize, name: &str) -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue: Arc<Mutex<Receiver<Job>>> = Arc::new(Mutex::new(queue));
        for n in 0..threads {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("{name}-{n}"))
                .spawn(move || {
                    loop {
                        // The lock is held while waiting only, never while a job runs.
                        let job = lock(&queue).recv();
                        match job {
                            Ok(job) => job(),
                            Err(_) => return,
                        }
                    }
                })
                .map_err(|e| HypervisorError::Unreachable(format!("cannot start a thread: {e}")))?;
        }
        Ok(Self { link, jobs })
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connect) -> std::result::Result<T, Error> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let link = self.link.clone();
        let job = Box::new(move || {
            let done = link.get().and_then(|open| work(&open.0).map_err(|e| link.judge(&open, &e)));
            // Whoever asked may have gone away.
            let _ = answer.send(done);
        });
        let closed = || HypervisorError::Unreachable("its threads have ended".into());
        self.jobs.send(job).map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

/// One connection to libvirtd, opened when it is needed and again when it is lost.
struct Link {
    uri: String,
    events: Option<EventTarget>,
    open: Mutex<Option<Arc<Open>>>,
}

/// A connection that is closed when nobody uses it any more.
struct Open(Connect);

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.0.close();
    }
}

impl Link {
    fn new(uri: &str, events: Option<EventTarget>) -> Self {
        Self { uri: uri.into(), events, open: Mutex::new(None) }
    }

    fn get(&self) -> Result<Arc<Open>> {
        let mut slot = lock(&self.open);
        if let Some(open) = slot.as_ref() {
            if open.0.is_alive().unwrap_or(false) {
                return Ok(open.clone());
            }
            *slot = None;
        }
        let unreachable = |e: Error| HypervisorError::Unreachable(format!("libvirt at {}: {}", self.uri, e.message()));
        let open = Arc::new(Open(Connect::open(Some(&self.uri)).map_err(unreachable)?));
        open.0.set_keep_alive(5, 3).map_err(unreachable)?;
        if let Some(target) = &self.events {
            target.register(&open.0).map_err(unreachable)?;
            let _ = target.events.send(Event::Back);
        }
        *slot = Some(open.clone());
        tracing::info!(libvirt.uri = self.uri, "connected to libvirt");
        Ok(open)
    }

    /// Whether an error says that libvirtd is gone, or is libvirtd's answer.
    fn judge(&self, open: &Arc<Open>, e: &Error) -> HypervisorError {
        if open.0.is_alive().unwrap_or(false) {
            return HypervisorError::Refused(e.message().to_owned());
        }
        HypervisorError::Unreachable(format!("libvirt at {}: {}", self.uri, e.message()))
    }
}

/// Opens the quick connection again when it is lost, for as long as anybody holds it: events come through it. A new libvirtd
/// asks QEMU for two seconds what it can do before it defines its first domain, so it is made to ask at once.
fn watch(link: Weak<Link>, virt: &'static str) {
    std::thread::spawn(move || {
        let mut warmed = std::ptr::null();
        while let Some(link) = link.upgrade() {
            if let Ok(open) = link.get()
                && warmed != Arc::as_ptr(&open)
            {
                warmed = Arc::as_ptr(&open);
                if let Err(e) =
                    open.0.get_domain_capabilities(Some(EMULATOR), Some("x86_64"), Some("q35"), Some(virt), 0)
                {
                    tracing::warn!(error = e.message(), "libvirt cannot say what QEMU can do");
                }
            }
            drop(link);
            std::thread::sleep(Duration::from_millis(500));
        }
    });
}

fn start_event_loop() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut failed = None;
    ONCE.call_once(|| {
        // libvirt prints every error on standard error otherwise.
        virt::error::clear_error_callback();
        if let Err(e) = virt::event::event_register_default_impl() {
            failed = Some(e.message().to_owned());
            return;
        }
        std::thread::spawn(|| {
            loop {
                if let Err(e) = virt::event::event_run_default_impl() {
                    tracing::warn!(error = e.message(), "libvirt's event loop");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        });
    });
    failed.map_or(Ok(()), |why| Err(HypervisorError::Unreachable(why)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ------------------------------------------------------------------------------------------------ events

/// Who waits for which device (domain, alias) to be gone.
type Waiting = BTreeMap<(String, String), Vec<oneshot::Sender<()>>>;

#[derive(Clone, Default)]
struct Removed(Arc<Mutex<Waiting>>);

impl Removed {
    fn listen(&self, domain: &str, alias: &str) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let mut waiting = lock(&self.0);
        waiting.retain(|_, tellers| {
            tellers.retain(|t| !t.is_closed());
            !tellers.is_empty()
        });
        waiting.entry((domain.into(), alias.into())).or_default().push(tell);
        told
    }
    fn tell(&self, domain: &str, alias: &str) {
        for teller in lock(&self.0).remove(&(domain.into(), alias.into())).unwrap_or_default() {
            let _ = teller.send(());
        }
    }
}

#[derive(Clone)]
struct EventTarget {
    events: Events,
    removed: Removed,
}

impl EventTarget {
    /// Subscribes to the events of all domains. Each subscription owns a copy of the target, which libvirt gives back.
    #[allow(unsafe_code)]
    fn register(&self, connection: &Connect) -> std::result::Result<(), Error> {
        // SAFETY: libvirt declares one callback type for all events and calls each by the signature its event id documents;
        // these functions have exactly those signatures. `opaque` is a box that `free_target` takes back, once.
        unsafe {
            let lifecycle = std::mem::transmute::<
                unsafe extern "C" fn(
                    sys::virConnectPtr,
                    sys::virDomainPtr,
                    libc::c_int,
                    libc::c_int,
                    *mut libc::c_void,
                ) -> libc::c_int,
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut libc::c_void),
            >(on_lifecycle);
            let device_removed = std::mem::transmute::<
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const libc::c_char, *mut libc::c_void),
                unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut libc::c_void),
            >(on_device_removed);
            for (id, callback) in [
                (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
                (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, device_removed),
                (sys::VIR_DOMAIN_EVENT_ID_REBOOT, on_reboot),
            ] {
                let target = Box::into_raw(Box::new(self.clone()));
                let done = sys::virConnectDomainEventRegisterAny(
                    connection.as_ptr(),
                    std::ptr::null_mut(),
                    id as libc::c_int,
                    Some(callback),
                    target.cast(),
                    Some(free_target),
                );
                if done < 0 {
                    drop(Box::from_raw(target));
                    return Err(Error::last_error());
                }
            }
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
unsafe extern "C" fn free_target(opaque: *mut libc::c_void) {
    // SAFETY: `opaque` came from `Box::into_raw` in `register`, and libvirt calls this once per subscription.
    drop(unsafe { Box::from_raw(opaque.cast::<EventTarget>()) });
}

/// The target and the domain's name, in a callback.
///
/// # Safety
/// Both pointers must be those libvirt passed to a callback registered by [`EventTarget::register`].
#[allow(unsafe_code)]
unsafe fn arrived<'a>(domain: sys::virDomainPtr, opaque: *mut libc::c_void) -> Option<(&'a EventTarget, String)> {
    // SAFETY: by the contract above the target lives until `free_target`, and the name as long as the domain.
    unsafe {
        let target = opaque.cast::<EventTarget>().as_ref()?;
        let name = sys::virDomainGetName(domain);
        let name = (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())?;
        Some((target, name))
    }
}

#[allow(unsafe_code)]
unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _: libc::c_int,
    _: libc::c_int,
    opaque: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: called by libvirt with what `register` gave it.
    if let Some((target, name)) = unsafe { arrived(domain, opaque) } {
        let _ = target.events.send(Event::Changed(name));
    }
    0
}

#[allow(unsafe_code)]
unsafe extern "C" fn on_reboot(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut libc::c_void) {
    // SAFETY: called by libvirt with what `register` gave it.
    if let Some((target, name)) = unsafe { arrived(domain, opaque) } {
        let _ = target.events.send(Event::Rebooted(name));
    }
}

#[allow(unsafe_code)]
unsafe extern "C" fn on_device_removed(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    alias: *const libc::c_char,
    opaque: *mut libc::c_void,
) {
    // SAFETY: called by libvirt with what `register` gave it; the alias is a string that lives for the call.
    unsafe {
        if let Some((target, name)) = arrived(domain, opaque)
            && !alias.is_null()
        {
            target.removed.tell(&name, &CStr::from_ptr(alias).to_string_lossy());
            let _ = target.events.send(Event::Changed(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_known_by_the_port_it_binds() {
        let xml = "<domain><devices><interface type='bridge'><mac address='0e:00:00:00:00:01'/><source bridge='br-int'/>
            <virtualport type='openvswitch'><parameters interfaceid='00000000-0000-0000-0000-000000000001'/></virtualport>
            <target dev='tap1'/><alias name='net0'/><address type='pci'/></interface>
            <interface type='user'><target dev='other'/><alias name='net1'/></interface></devices></domain>";
        assert_eq!(nics(xml), [SeenNic { port: Uuid::from_u128(1), tap: "tap1".into(), alias: "net0".into() }]);
    }

    #[test]
    fn only_volumes_are_seen_and_each_with_its_export() {
        let xml = "<domain><devices><disk type='file'><serial>root</serial><target dev='vda'/></disk>
            <disk type='network' device='disk'><driver name='qemu'/><source protocol='nbd' name='x1' index='2'><host transport='unix' socket='/s'/>
            <reconnect delay='120'/></source><target dev='vdf' bus='virtio'/><serial>vol01</serial><alias name='ua-vol01'/></disk></devices></domain>";
        let all = disks(xml);
        assert_eq!(
            all,
            [SeenDisk { serial: "vol01".into(), target: "vdf".into(), alias: "ua-vol01".into(), export: "x1".into() }]
        );
    }
}
