//! Volumes: what is wanted of each, how far it is, and to whom it is served.
//!
//! ```text
//! (no row) ──create──▶ creating ──made──▶ ready ──deleted──▶ gone ──unlisted──▶ (no row)
//!                          └──no room──▶ failed ──deleted────▲
//! ```
//! An export is a row of its own, written before its daemon is started, so that a daemon started by a process that was killed
//! is known. A volume has one export at most: that of its row, for one attachment.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use mallee_service::{PassReport, Reconciler, intent::Listed};
use mallee_store::{Error as StoreError, FromValue, Tx, Value, params};
use mallee_tiers::{Export, ExportAddress, Manifest, TierError, Volume, VolumeDesired, VolumeObserved, VolumeReport};

use crate::{
    Storage,
    backend::{BackendError, Beginning, New, Space},
    export::{Opened, Phase, Place, QmpError, Served},
    snapshot::DOCUMENT_MAX,
    source,
};

pub(crate) const TABLES: &str = "
CREATE TABLE volume (id TEXT PRIMARY KEY, size_gib BIGINT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, changed BIGINT NOT NULL);
CREATE TABLE export (volume TEXT PRIMARY KEY, attachment TEXT NOT NULL, name TEXT NOT NULL UNIQUE, served BIGINT NOT NULL, made BIGINT NOT NULL);
";

/// `port` 0: a unix socket. `allowed`: the node that is let in; none is any. `node`: the one that has it, once that is known.
pub(crate) const PLACE_COLUMNS: &str = "
ALTER TABLE export ADD COLUMN port BIGINT NOT NULL DEFAULT 0;
ALTER TABLE export ADD COLUMN allowed TEXT;
ALTER TABLE export ADD COLUMN node TEXT;
";

pub(crate) const GIB: u64 = 1 << 30;
/// With less than this the next write may find no room.
const NO_ROOM: u64 = 32 << 20;
/// Volumes that are worked on at the same time.
const AT_ONCE: usize = 8;
/// A volume that somebody else is at is looked at again after this.
const BUSY: Duration = Duration::from_millis(200);
/// Disk space and leftovers are looked at so often.
const SURVEY: Duration = Duration::from_secs(60);

/// `vol-…`: letters, digits and dashes, so that it can be the name of a folder, a socket and a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeId(String);

impl VolumeId {
    pub fn parse(text: &str) -> Option<Self> {
        let tail = text.strip_prefix("vol-")?;
        let fine = !tail.is_empty() && tail.len() <= 17 && tail.bytes().all(|b| b.is_ascii_alphanumeric());
        fine.then(|| Self(text.to_owned()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Creating,
    Ready,
    Failed,
    Gone,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Creating => "creating",
            State::Ready => "ready",
            State::Failed => "failed",
            State::Gone => "gone",
        }
    }
}

impl FromValue for State {
    fn from_value(value: Value<'_>) -> Result<Self, String> {
        let text = String::from_value(value)?;
        let all = [State::Creating, State::Ready, State::Failed, State::Gone];
        all.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("{text:?} is no state of a volume"))
    }
}

/// A volume's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub state: State,
    pub size_gib: u64,
    pub reason: String,
    pub changed: i64,
    /// Id of the key it is encrypted with.
    pub key: Option<String>,
}

/// An export's row. `served` says that it once answered: from then on it is reported, whatever happens to its daemon,
/// because a guest may be waiting for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExportRow {
    pub attachment: String,
    pub name: String,
    pub served: bool,
    pub made: i64,
    pub place: Place,
    /// The node that has it, as far as it was told.
    pub node: Option<String>,
}

impl ExportRow {
    fn is_for(&self, wish: &Volume) -> bool {
        let moved = wish.export_node.is_some() && self.node.is_some() && self.node != wish.export_node;
        wish.export_for.as_ref() == Some(&self.attachment) && !moved
    }

    fn served(&self, volume: &VolumeId) -> Served {
        let (attachment, name, place) = (self.attachment.clone(), self.name.clone(), self.place.clone());
        Served { volume: volume.clone(), attachment, name, place }
    }
}

/// What is next for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    EndExport,
    /// Write the row of an export for this attachment.
    MakeExport(String),
    /// Write down which node has it.
    BindExport,
    Serve,
    RemoveBytes,
    /// More bytes, whether it is served or not.
    Grow,
    /// Nobody lists it and nothing of it is left.
    Forget,
}

/// The next step towards what is wanted; none when it is so. One at a time: each changes a row and is looked at again.
pub(crate) fn next(row: Option<&Row>, export: Option<&ExportRow>, wish: &Listed<Volume>) -> Option<Step> {
    let state = row.map(|r| r.state);
    match wish.body.desired {
        VolumeDesired::Deleted if export.is_some() => Some(Step::EndExport),
        // Also without a row: a store that was lost does not mean that the bytes are.
        VolumeDesired::Deleted if state != Some(State::Gone) => Some(Step::RemoveBytes),
        VolumeDesired::Deleted if !wish.listed => Some(Step::Forget),
        VolumeDesired::Deleted => None,
        // What no list names is kept as it is, and so is a wish of a later release.
        _ if !wish.listed => export.map(|_| Step::Serve),
        VolumeDesired::Unknown => export.map(|_| Step::Serve),
        VolumeDesired::Present => match (state, export, &wish.body.export_for) {
            (None | Some(State::Creating), ..) => Some(Step::Create),
            (Some(State::Failed | State::Gone), ..) => None,
            _ if row.is_some_and(|r| r.size_gib < wish.body.size_gib) => Some(Step::Grow),
            // A machine that had it may not be cut off yet: whoever has it next gets another name, and a daemon that lets in
            // nobody else.
            (_, Some(e), Some(_)) if e.is_for(&wish.body) && e.node.is_none() && wish.body.export_node.is_some() => {
                Some(Step::BindExport)
            }
            (_, Some(e), Some(_)) if e.is_for(&wish.body) => Some(Step::Serve),
            (_, Some(_), _) => Some(Step::EndExport),
            (_, None, Some(a)) => Some(Step::MakeExport(a.clone())),
            (_, None, None) => None,
        },
    }
}

fn read_volume(tx: &mut Tx<'_>, id: &str) -> Result<Option<Row>, StoreError> {
    tx.query_opt("SELECT state, size_gib, reason, changed, disk_key FROM volume WHERE id = ?1", params![id], |row| {
        let (state, size_gib, reason, changed) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        Ok(Row { state, size_gib, reason, changed, key: row.get(4)? })
    })
}

fn read_export(tx: &mut Tx<'_>, id: &str) -> Result<Option<ExportRow>, StoreError> {
    let sql = "SELECT attachment, name, served, made, port, allowed, node FROM export WHERE volume = ?1";
    tx.query_opt(sql, params![id], |row| {
        let (attachment, name, served, made) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
        let port: i64 = row.get(4)?;
        let place = match u16::try_from(port) {
            Ok(0) | Err(_) => Place::Unix,
            Ok(port) => Place::Tls { port, node: row.get(5)? },
        };
        Ok(ExportRow { attachment, name, served, made, place, node: row.get(6)? })
    })
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("export: {0}")]
    Engine(#[from] mallee_engines::Error),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("{0}")]
    Tier(#[from] TierError),
    /// Somebody else is at the volume: look again soon.
    #[error("it is being worked on")]
    Busy,
    #[error("{0}")]
    Other(String),
}

pub(crate) struct Volumes {
    pub storage: Arc<Storage>,
    pub surveyed: Mutex<Option<Instant>>,
}

#[async_trait::async_trait]
impl Reconciler for Volumes {
    fn name(&self) -> &'static str {
        "volumes"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        let storage = &self.storage;
        let wishes = match storage.book.all().await {
            Ok(wishes) => wishes,
            Err(e) => {
                report.error(e);
                return report;
            }
        };
        let work: Vec<_> = wishes.iter().map(|wish| storage.bring(wish)).collect();
        let outcomes: Vec<_> = stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
        for outcome in outcomes {
            match outcome {
                Ok(steps) => report.changed += steps,
                Err(Trouble::Busy) => report.again = Some(BUSY),
                Err(e) => report.error(e),
            }
        }
        storage.ready.send_replace(true);
        let due = {
            let mut at = self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
            let due = at.is_none_or(|at| at.elapsed() > SURVEY) || report.changed > 0;
            if due {
                *at = Some(Instant::now());
            }
            due
        };
        if due && let Err(e) = storage.survey(&wishes).await {
            report.error(e);
        }
        report
    }
}

impl Storage {
    pub(crate) async fn rows(&self, id: &str) -> Result<(Option<Row>, Option<ExportRow>), StoreError> {
        let id = id.to_owned();
        self.store.read("read a volume", move |tx| Ok((read_volume(tx, &id)?, read_export(tx, &id)?))).await
    }

    pub(crate) fn lock_of(&self, id: &VolumeId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(id.clone()).or_default().clone()
    }

    /// To change a volume; not waited for, because a merge may take long.
    pub(crate) fn alone(&self, id: &VolumeId) -> Result<tokio::sync::OwnedMutexGuard<()>, Trouble> {
        self.lock_of(id).try_lock_owned().map_err(|_| Trouble::Busy)
    }

    /// Takes one volume to where it is wanted, and reports it; how many steps that took.
    async fn bring(self: &Arc<Self>, wish: &Listed<Volume>) -> Result<u64, Trouble> {
        let Some(id) = VolumeId::parse(&wish.body.id) else {
            self.reports.put(report_of(&wish.body, VolumeObserved::Failed, "this is no id of a volume"));
            return Ok(0);
        };
        let _alone = self.alone(&id)?;
        let mut steps = 0;
        loop {
            let (row, export) = self.rows(id.as_str()).await?;
            let step = next(row.as_ref(), export.as_ref(), wish);
            let outcome = match &step {
                None | Some(Step::Serve) => {
                    self.report(&id, wish, row.as_ref(), export).await?;
                    return Ok(steps);
                }
                Some(Step::Forget) => {
                    self.forget(&id).await?;
                    return Ok(steps + 1);
                }
                Some(Step::Create) => self.create(&id, &wish.body).await,
                // A controller that died with the daemon in the middle of this finds none to tell.
                Some(Step::Grow) if !self.answers_if_exported(&id, row.as_ref(), export.as_ref()).await? => {
                    self.report(&id, wish, row.as_ref(), export).await?;
                    return Err(Trouble::Busy);
                }
                Some(Step::Grow) => self.grow(&id, &wish.body).await,
                Some(Step::EndExport) => self.end_export(&id).await,
                Some(Step::MakeExport(attachment)) => self.make_export(&id, attachment, &wish.body).await,
                Some(Step::BindExport) => self.bind_export(&id, export.as_ref(), wish.body.export_node.clone()).await,
                Some(Step::RemoveBytes) => self.remove_bytes(&id, &wish.body).await,
            };
            if let Err(Trouble::Busy) = outcome {
                return Err(Trouble::Busy);
            }
            if let Err(e) = outcome {
                // It will be tried again; meanwhile the tier above should know what it waits for.
                let observed = if row.is_some_and(|r| r.state == State::Ready) {
                    VolumeObserved::Ready
                } else {
                    VolumeObserved::Creating
                };
                self.reports.put(report_of(&wish.body, observed, e.to_string()));
                return Err(Trouble::Other(format!("{id}: {e}")));
            }
            steps += 1;
        }
    }

    /// Runs a blocking call of the backend on a thread for such.
    pub(crate) async fn backend<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn crate::backend::Backend) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, Trouble> {
        let backend = self.backend.clone();
        let done = tokio::task::spawn_blocking(move || call(backend.as_ref())).await;
        done.map_err(|e| Trouble::Other(e.to_string()))?.map_err(Trouble::from)
    }

    pub(crate) async fn write_state(
        &self,
        id: &VolumeId,
        size_gib: u64,
        state: State,
        reason: String,
    ) -> Result<(), StoreError> {
        let (id, now) = (id.clone(), self.clock.now_ms());
        self.store
            .write("write a volume", move |tx| {
                tx.execute(
                    "INSERT INTO volume (id, size_gib, state, reason, changed) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (id) DO UPDATE SET size_gib = ?2, state = ?3, reason = ?4, changed = ?5",
                    params![id.as_str(), size_gib, state.as_str(), reason, now],
                )
                .map(|_| ())
            })
            .await
    }

    /// Makes it, and copies nothing: what it begins with is fetched when it is used.
    async fn create(&self, id: &VolumeId, wish: &Volume) -> Result<(), Trouble> {
        let size_gib = wish.size_gib;
        self.write_state(id, size_gib, State::Creating, String::new()).await?;
        self.write_key(id, wish.encrypted.clone()).await?;
        let (made, new) = (id.clone(), self.new_volume(wish).await);
        let created = match new {
            Ok(new) => self.backend(move |b| b.create(&made, size_gib.saturating_mul(GIB), &new)).await,
            Err(e) => Err(e),
        };
        match created {
            Ok(()) => self.write_state(id, size_gib, State::Ready, String::new()).await?,
            Err(Trouble::Backend(BackendError::NoRoom(why))) => {
                let half = id.clone();
                self.backend(move |b| b.remove(&half)).await?;
                self.write_state(id, size_gib, State::Failed, why).await?;
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    async fn new_volume(&self, wish: &Volume) -> Result<New, Trouble> {
        let passphrase = self.keys.passphrase(wish.encrypted.as_deref()).await?;
        let Some(source) = wish.source.clone() else { return Ok(New { passphrase, beginning: None }) };
        let document = self.blobs.get(&source.manifest, DOCUMENT_MAX).await?;
        let manifest = Manifest::read(&document).map_err(Trouble::Other)?;
        if manifest.size > wish.size_gib.saturating_mul(GIB) {
            let (snapshot, needs) = (&source.snapshot, manifest.size.div_ceil(GIB));
            let why = format!("{snapshot} has {needs} GiB, the volume only {}", wish.size_gib);
            return Err(BackendError::NoRoom(why).into());
        }
        if manifest.encrypted.is_some() && wish.encrypted.is_none() {
            let why = format!("{} is encrypted, and the volume is not to be", source.snapshot);
            return Err(BackendError::NoRoom(why).into());
        }
        Ok(New { passphrase, beginning: Some(Beginning { source, manifest }) })
    }

    async fn write_key(&self, id: &VolumeId, key: Option<String>) -> Result<(), StoreError> {
        let (id, sql) = (id.clone(), "UPDATE volume SET disk_key = ?2 WHERE id = ?1");
        self.store.write("a volume's key", move |tx| tx.execute(sql, params![id.as_str(), key]).map(|_| ())).await
    }

    /// The row goes last: while it is there, the daemon it speaks of is looked for.
    async fn end_export(&self, id: &VolumeId) -> Result<(), Trouble> {
        self.exports.end(id).await?;
        let id = id.clone();
        self.store
            .write("end an export", move |tx| {
                tx.execute("DELETE FROM export WHERE volume = ?1", params![id.as_str()]).map(|_| ())
            })
            .await?;
        Ok(())
    }

    /// An export that was made before anybody knew for which node may be in the wrong place: this machine's own cannot reach
    /// it over the network, so nobody is on it yet.
    async fn bind_export(
        &self,
        id: &VolumeId,
        export: Option<&ExportRow>,
        node: Option<String>,
    ) -> Result<(), Trouble> {
        if self.exports.is_beside(node.as_deref()) && export.is_some_and(|e| e.place != Place::Unix) {
            return self.end_export(id).await;
        }
        let (id, sql) = (id.clone(), "UPDATE export SET node = ?2 WHERE volume = ?1");
        let write =
            self.store.write("a node has an export", move |tx| tx.execute(sql, params![id.as_str(), node]).map(|_| ()));
        write.await.map_err(|e: StoreError| e.into())
    }

    async fn make_export(&self, id: &VolumeId, attachment: &str, wish: &Volume) -> Result<(), Trouble> {
        // A store that was lost may have left the daemon of this very attachment, with a guest on it.
        let left =
            self.exports.running().into_iter().find(|r| r.served.volume == *id && r.served.attachment == attachment);
        let (name, place) = match left {
            Some(running) => (running.served.name, running.served.place),
            None => {
                self.exports.end(id).await?;
                let read = self.store.read("read the ports", |tx| {
                    tx.query("SELECT port FROM export", params![], |row| row.get::<u16>(0))
                });
                let taken: Vec<u16> = read.await.map_err(|e: StoreError| Trouble::from(e))?;
                let place = self.exports.place(wish.export_node.as_deref(), &taken);
                (hex::encode(rand::random::<[u8; 16]>()), place.map_err(|e| Trouble::Other(e.to_string()))?)
            }
        };
        let (port, allowed) = match place {
            Place::Unix => (0, None),
            Place::Tls { port, node } => (port, node),
        };
        let node = wish.export_node.clone();
        let (id, attachment, now) = (id.clone(), attachment.to_owned(), self.clock.now_ms());
        self.store
            .write("make an export", move |tx| {
                tx.execute(
                    "INSERT INTO export (volume, attachment, name, served, made, port, allowed, node)
                     VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6, ?7)",
                    params![id.as_str(), attachment, name, now, port, allowed, node],
                )
                .map(|_| ())
            })
            .await?;
        Ok(())
    }

    async fn remove_bytes(&self, id: &VolumeId, wish: &Volume) -> Result<(), Trouble> {
        // What was frozen of it is not in walrus yet.
        if self.snapshots_of(id).await?.snapshots.iter().any(|(_, row)| row.pending()) {
            return Err(Trouble::Busy);
        }
        self.background.end(&source::fill_name(id)).await;
        self.sources.forget(id);
        // Whatever serves it still, of which no row is left.
        self.exports.end(id).await?;
        let removed = id.clone();
        self.backend(move |b| b.remove(&removed)).await?;
        self.write_state(id, wish.size_gib, State::Gone, String::new()).await?;
        Ok(())
    }

    async fn forget(&self, id: &VolumeId) -> Result<(), Trouble> {
        let row = id.clone();
        self.store
            .write("forget a volume", move |tx| {
                tx.execute("DELETE FROM merged WHERE volume = ?1", params![row.as_str()])?;
                tx.execute("DELETE FROM volume WHERE id = ?1", params![row.as_str()]).map(|_| ())
            })
            .await?;
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.book.forget(id.as_str()).await?;
        self.reports.forget(id.as_str());
        Ok(())
    }

    /// Reports a volume that needs no more steps; its export is kept up on the way.
    async fn report(
        self: &Arc<Self>,
        id: &VolumeId,
        wish: &Listed<Volume>,
        row: Option<&Row>,
        export: Option<ExportRow>,
    ) -> Result<(), Trouble> {
        let body = &wish.body;
        let Some(row) = row else {
            if wish.listed {
                self.reports.put(report_of(
                    body,
                    VolumeObserved::Creating,
                    "what is wanted of it is of a later release",
                ));
            }
            return Ok(());
        };
        match row.state {
            State::Gone => {
                self.reports.put(report_of(body, VolumeObserved::Gone, ""));
                return Ok(());
            }
            State::Failed => {
                self.reports.put(report_of(body, VolumeObserved::Failed, row.reason.as_str()));
                return Ok(());
            }
            State::Creating | State::Ready => {}
        }
        let looked = id.clone();
        let looked = self.backend(move |b| Ok((b.find(&looked)?, b.beginning(&looked)?.is_some(), b.space()?))).await?;
        let (Some(found), needs_source, space) = looked else {
            self.reports.put(report_of(body, VolumeObserved::Failed, "its bytes are gone from the disk"));
            self.about.faults.raise(
                &format!("bytes {id}"),
                format!("the bytes of {id} are gone from the disk"),
                "put its file back; an empty one is never made in its place",
            );
            return Ok(());
        };
        self.about.faults.clear(&format!("bytes {id}"));
        let mut report = report_of(body, VolumeObserved::Ready, "");
        // To the MiB: what the guest writes should not make a report of every block.
        report.allocated = found.allocated.next_multiple_of(1 << 20);
        report.size_gib = found.size / GIB;
        report.needs_source = needs_source;
        if let Some(export) = export {
            let served = export.served(id);
            let phase = self.serve(id, row, &export).await?;
            match &phase {
                Phase::Ready { .. } => {}
                Phase::Starting => report.reason = "its export is being started".into(),
                Phase::Down(why) => report.reason = format!("its export ended and is started again: {why}"),
            }
            let up = matches!(phase, Phase::Ready { .. });
            if up {
                self.exports.show_newest_certificate(&served);
            }
            if up && needs_source {
                self.begin_fill(id);
                report.reason = self.sources.trouble(id).map_or_else(String::new, |why| {
                    format!("what it began with is not all fetched, and a part of it cannot be had now: {why}")
                });
            }
            if up && !export.served {
                let id = id.clone();
                self.store
                    .write("an export answers", move |tx| {
                        tx.execute("UPDATE export SET served = 1 WHERE volume = ?1", params![id.as_str()]).map(|_| ())
                    })
                    .await?;
            }
            if up || export.served {
                match self.exports.address(&served) {
                    Some(address) => {
                        let by_tls = matches!(address, ExportAddress::Tcp(_));
                        let server = by_tls.then(|| self.about.peer.server_name());
                        let (attachment, name) = (export.attachment, export.name);
                        report.export = Some(Export { attachment, name, address, server });
                    }
                    None => {
                        report.reason = "it is served to another machine, and this one has no address for that".into()
                    }
                }
            }
        }
        if report.export.is_some() && report.reason.is_empty() && space.free < NO_ROOM {
            let free = space.free >> 20;
            report.reason =
                format!("the disk of volumes is full ({free} MiB are free): what is written may have to wait");
        }
        self.reports.put(report);
        Ok(())
    }

    /// Whether a volume's daemon can be told something, if it has an export. It is started on the way.
    async fn answers_if_exported(
        &self,
        id: &VolumeId,
        row: Option<&Row>,
        export: Option<&ExportRow>,
    ) -> Result<bool, Trouble> {
        match row.zip(export) {
            Some((row, export)) => Ok(matches!(self.serve(id, row, export).await?, Phase::Ready { .. })),
            None => Ok(true),
        }
    }

    /// Sees to it that an export has its daemon.
    async fn serve(&self, id: &VolumeId, row: &Row, export: &ExportRow) -> Result<Phase, Trouble> {
        let passphrase = self.keys.passphrase(row.key.as_deref()).await?;
        let (described, backend, sockets) = (id.clone(), self.backend.clone(), self.exports.sockets().to_owned());
        let describe = move || {
            let source = backend.beginning(&described)?.map(|_| source::blockdev(&sockets, described.as_str()));
            Ok(Opened { blockdev: backend.blockdev(&described, source)?, passphrase: passphrase.clone() })
        };
        Ok(self.exports.serve(&export.served(id), Arc::new(describe)))
    }

    /// Looks for what is there and belongs to nothing, and for a disk that fills. Shows it; removes nothing.
    async fn survey(&self, wishes: &[Listed<Volume>]) -> Result<(), Trouble> {
        let (names, space) = self.backend(|b| Ok((b.list()?, b.space()?))).await?;
        let (rows, exports): (Vec<(String, u64)>, Vec<String>) = self
            .store
            .read("survey the volumes", |tx| {
                let rows = tx.query(
                    "SELECT id, size_gib FROM volume WHERE state NOT IN ('gone', 'failed')",
                    params![],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )?;
                let exports = tx.query("SELECT name FROM export", params![], |row| row.get(0))?;
                Ok::<_, StoreError>((rows, exports))
            })
            .await?;
        let known: BTreeSet<&str> = rows.iter().map(|(id, _)| id.as_str()).collect();
        let mut orphans: Vec<String> =
            names.into_iter().filter(|n| !known.contains(n.as_str())).map(|n| format!("the folder {n}")).collect();
        let unlisted = wishes
            .iter()
            .filter(|w| !w.listed && w.body.desired != VolumeDesired::Deleted && known.contains(w.body.id.as_str()));
        orphans.extend(unlisted.map(|w| w.body.id.clone()));
        let strays = self.exports.running().into_iter().filter(|r| !exports.contains(&r.served.name));
        orphans.extend(strays.map(|r| format!("an export of {} for {}", r.served.volume, r.served.attachment)));
        if orphans.is_empty() {
            self.about.faults.clear("orphans");
        } else {
            let what = format!("here and in no list of the cloud-controller: {}", orphans.join(", "));
            self.about.faults.raise("orphans", what, "they are kept; remove them by hand if they are not needed");
        }
        self.show_space(space, rows.iter().fold(0, |sum, (_, gib)| sum.saturating_add(gib.saturating_mul(GIB))));
        Ok(())
    }

    fn show_space(&self, space: Space, promised: u64) {
        let faults = &self.about.faults;
        if space.free < space.total / 20 {
            faults.raise(
                "disk",
                format!("less than 5 % of the disk of volumes is free: {} MiB", space.free >> 20),
                "delete volumes or add disk",
            );
        } else {
            faults.clear("disk");
        }
        if promised > space.total {
            let what = format!(
                "volumes of {} GiB in all are promised, the disk has {} GiB",
                promised / GIB,
                space.total / GIB
            );
            faults.raise("promised", what, "add disk before they are written full");
        } else {
            faults.clear("promised");
        }
    }
}

pub(crate) fn report_of(wish: &Volume, observed: VolumeObserved, reason: impl Into<String>) -> VolumeReport {
    VolumeReport {
        id: wish.id.clone(),
        generation: wish.generation,
        observed,
        reason: reason.into(),
        export: None,
        allocated: 0,
        size_gib: 0,
        needs_source: false,
    }
}

#[cfg(test)]
mod tests {
    use mallee_tiers::Generation;

    use super::*;

    fn wish(desired: VolumeDesired, export_for: Option<&str>, listed: bool) -> Listed<Volume> {
        let export_for = export_for.map(Into::into);
        let body = Volume { desired, export_for, ..Volume::new("vol-1", Generation::default(), 1) };
        Listed { body, listed }
    }

    #[test]
    fn the_next_step_follows_from_the_rows_and_the_wish_alone() {
        use State::*;
        use VolumeDesired::*;
        let make = |a: &str| Some(Step::MakeExport(a.into()));
        type Line = (VolumeDesired, Option<&'static str>, bool, Option<State>, Option<&'static str>, Option<Step>);
        #[rustfmt::skip]
        let table: &[Line] = &[
            // desired, export for,  listed, state,      export of,  next
            (Present,   None,        true,   None,           None,       Some(Step::Create)),
            (Present,   Some("a"),   true,   Some(Creating), None,       Some(Step::Create)),
            (Present,   None,        true,   Some(Ready),    None,       None),
            (Present,   Some("a"),   true,   Some(Ready),    None,       make("a")),
            (Present,   Some("a"),   true,   Some(Ready),    Some("a"),  Some(Step::Serve)),
            (Present,   Some("b"),   true,   Some(Ready),    Some("a"),  Some(Step::EndExport)),
            (Present,   None,        true,   Some(Ready),    Some("a"),  Some(Step::EndExport)),
            (Present,   Some("a"),   true,   Some(Failed),   None,       None),
            (Present,   None,        true,   Some(Gone),     None,       None),
            (Present,   None,        false,  None,           None,       None),
            (Present,   None,        false,  Some(Ready),    Some("a"),  Some(Step::Serve)),
            (Unknown,   None,        true,   Some(Ready),    Some("a"),  Some(Step::Serve)),
            (Unknown,   Some("a"),   true,   None,           None,       None),
            (Deleted,   None,        true,   Some(Ready),    Some("a"),  Some(Step::EndExport)),
            (Deleted,   None,        true,   Some(Ready),    None,       Some(Step::RemoveBytes)),
            (Deleted,   None,        true,   None,           None,       Some(Step::RemoveBytes)),
            (Deleted,   None,        true,   Some(Failed),   None,       Some(Step::RemoveBytes)),
            (Deleted,   None,        true,   Some(Gone),     None,       None),
            (Deleted,   None,        false,  Some(Ready),    None,       Some(Step::RemoveBytes)),
            (Deleted,   None,        false,  Some(Gone),     None,       Some(Step::Forget)),
        ];
        for (desired, export_for, listed, state, export, expected) in table {
            let row = state.map(|state| Row { state, size_gib: 1, reason: String::new(), changed: 0, key: None });
            let export = export.map(|a| ExportRow {
                attachment: a.into(),
                name: "n".into(),
                served: true,
                made: 0,
                place: Place::Unix,
                node: None,
            });
            let got = next(row.as_ref(), export.as_ref(), &wish(*desired, *export_for, *listed));
            assert_eq!(got, *expected, "{desired:?} for {export_for:?}, listed {listed}, {state:?}, {export:?}");
        }
    }

    #[test]
    fn an_export_follows_its_attachment_to_one_node_and_is_made_anew_for_the_next() {
        let mut wish = wish(VolumeDesired::Present, Some("a"), true);
        let row = Row { state: State::Ready, size_gib: 1, reason: String::new(), changed: 0, key: None };
        for (has, wanted, expected) in [
            (None, None, Step::Serve),
            (None, Some("n1"), Step::BindExport),
            (Some("n1"), Some("n1"), Step::Serve),
            // Off for a while.
            (Some("n1"), None, Step::Serve),
            (Some("n1"), Some("n2"), Step::EndExport),
        ] {
            let place = Place::Tls { port: 10_809, node: None };
            let (attachment, name, node) = ("a".into(), "n".into(), has.map(str::to_owned));
            let export = ExportRow { attachment, name, served: true, made: 0, place, node };
            wish.body.export_node = wanted.map(str::to_owned);
            assert_eq!(next(Some(&row), Some(&export), &wish), Some(expected), "{has:?} {wanted:?}");
        }
    }

    #[test]
    fn a_volume_smaller_than_wanted_grows_before_anything_else() {
        let mut wish = wish(VolumeDesired::Present, Some("a"), true);
        wish.body.size_gib = 2;
        let row = Row { state: State::Ready, size_gib: 1, reason: String::new(), changed: 0, key: None };
        assert_eq!(next(Some(&row), None, &wish), Some(Step::Grow));
    }

    #[test]
    fn an_id_that_would_lead_out_of_its_folder_is_none() {
        for bad in ["vol-", "vol-../x", "vol-a/b", "snap-1", "vol-a b", "vol-0123456789abcdef01", ""] {
            assert_eq!(VolumeId::parse(bad), None, "{bad}");
        }
        assert!(VolumeId::parse("vol-0123456789abcdef0").is_some());
    }
}
