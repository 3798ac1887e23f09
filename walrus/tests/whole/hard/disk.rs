//! A file system that a test can take the power from, fill up, and make fail: FUSE, in memory, in the test's process.
//!
//! Everything is there twice: as programs see it, and as it would be found after a power cut. `fsync` of a file brings its
//! bytes across, `fsync` of a folder its names; nothing else does. What was not synced when the power goes is lost, or,
//! as [`Loss::Some`] has it, some of it is: a disk writes pages when it likes and in the order it likes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, FileAttr, FileType, Filesystem, KernelConfig, MountOption, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use self::errno::{EEXIST, EIO, EISDIR, ENOENT, ENOSPC, ENOTEMPTY};

mod errno {
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EEXIST: i32 = 17;
    pub const EISDIR: i32 = 21;
    pub const ENOSPC: i32 = 28;
    pub const ENOTEMPTY: i32 = 39;
}

const PAGE: usize = 4096;
const ROOT: u64 = 1;
const RENAME_NOREPLACE: u32 = 1;
/// Nobody else changes this file system, so the kernel may remember.
const TTL: Duration = Duration::from_secs(3600);

/// What a power cut takes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    All,
    /// Each page and each name by itself.
    Some,
}

/// What goes wrong, for paths that contain a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Writes(&'static str),
    Syncs(&'static str),
}

type Page = Arc<[u8; PAGE]>;

#[derive(Clone, Default)]
struct Bytes {
    /// `None`: a hole.
    pages: Vec<Option<Page>>,
    size: u64,
}

impl Bytes {
    fn resize(&mut self, size: u64) {
        self.pages.resize(size.div_ceil(PAGE as u64) as usize, None);
        self.size = size;
        let within = (size % PAGE as u64) as usize;
        if let (Some(Some(last)), true) = (self.pages.last_mut(), within > 0) {
            Arc::make_mut(last)[within..].fill(0);
        }
    }
    fn pages(&self) -> u64 {
        self.pages.iter().flatten().count() as u64
    }
}

#[derive(Default)]
struct Node {
    path: String,
    folder: bool,
    mode: u16,
    bytes: Bytes,
    synced: Bytes,
    dirty: BTreeSet<usize>,
    names: BTreeMap<OsString, u64>,
    synced_names: BTreeMap<OsString, u64>,
    opens: u32,
    /// Whether a name leads here now.
    named: bool,
}

impl Node {
    fn sync(&mut self) {
        self.synced.pages.resize(self.bytes.pages.len(), None);
        self.synced.size = self.bytes.size;
        for page in std::mem::take(&mut self.dirty) {
            if let (Some(to), Some(from)) = (self.synced.pages.get_mut(page), self.bytes.pages.get(page)) {
                to.clone_from(from);
            }
        }
    }

    /// Cuts the power.
    fn lose(&mut self, loss: Loss, random: &mut StdRng) {
        let mut survives = || loss == Loss::Some && random.random_bool(0.5);
        if self.named {
            let mut found = std::mem::take(&mut self.synced);
            if survives() {
                found.resize(self.bytes.size);
            }
            for page in std::mem::take(&mut self.dirty) {
                if let (Some(to), Some(from), true) =
                    (found.pages.get_mut(page), self.bytes.pages.get(page), survives())
                {
                    to.clone_from(from);
                }
            }
            let size = found.size;
            found.resize(size);
            self.bytes = found;
        } else {
            self.bytes = std::mem::take(&mut self.synced);
        }
        let all: BTreeSet<OsString> = self.names.keys().chain(self.synced_names.keys()).cloned().collect();
        for name in all {
            let (now, then) = (self.names.get(&name).copied(), self.synced_names.get(&name).copied());
            let found = if now == then || !survives() { then } else { now };
            match found {
                Some(node) => self.names.insert(name, node),
                None => self.names.remove(&name),
            };
        }
        self.synced = self.bytes.clone();
        self.synced_names = self.names.clone();
        (self.opens, self.named) = (0, false);
    }
}

struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
    /// The power is off: nothing works, and nothing changes.
    off: bool,
    /// Pages there are, and pages in use.
    room: u64,
    used: u64,
    trouble: Option<Trouble>,
    /// How often something was made to fail.
    failed: u64,
    /// Syncs of files and of folders.
    syncs: (u64, u64),
}

type Outcome<T> = Result<T, i32>;

impl State {
    fn node(&mut self, at: u64) -> Outcome<&mut Node> {
        if self.off { Err(EIO) } else { self.nodes.get_mut(&at).ok_or(ENOENT) }
    }

    fn troubled(&mut self, at: u64, is: impl Fn(Trouble) -> Option<&'static str>) -> Outcome<()> {
        let Some(part) = self.trouble.and_then(is) else { return Ok(()) };
        if !self.node(at)?.path.contains(part) {
            return Ok(());
        }
        self.failed += 1;
        Err(EIO)
    }

    fn attributes(&mut self, at: u64) -> Outcome<FileAttr> {
        let node = self.node(at)?;
        Ok(FileAttr {
            ino: at,
            size: node.bytes.size,
            blocks: node.bytes.pages() * (PAGE as u64 / 512),
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if node.folder { FileType::Directory } else { FileType::RegularFile },
            perm: node.mode,
            nlink: if node.folder { 2 } else { u32::from(node.named) },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }

    fn child(&mut self, parent: u64, name: &OsStr) -> Outcome<u64> {
        self.node(parent)?.names.get(name).copied().ok_or(ENOENT)
    }

    fn make(&mut self, parent: u64, name: &OsStr, mode: u32, folder: bool) -> Outcome<u64> {
        if self.child(parent, name).is_ok() {
            return Err(EEXIST);
        }
        if self.used >= self.room {
            return Err(ENOSPC);
        }
        let at = self.next;
        self.next += 1;
        let above = self.node(parent)?;
        above.names.insert(name.into(), at);
        let path = format!("{}/{}", above.path, name.to_string_lossy());
        self.nodes.insert(at, Node { path, folder, mode: mode as u16 & 0o7777, named: true, ..Node::default() });
        Ok(at)
    }

    fn drop_name(&mut self, parent: u64, name: &OsStr) -> Outcome<()> {
        let at = self.child(parent, name)?;
        if !self.node(at)?.names.is_empty() {
            return Err(ENOTEMPTY);
        }
        self.node(parent)?.names.remove(name);
        self.node(at)?.named = false;
        self.let_go(at)
    }

    /// Frees what no name and no open file leads to. What a power cut would bring back stays.
    fn let_go(&mut self, at: u64) -> Outcome<()> {
        let node = self.node(at)?;
        if !node.named && node.opens == 0 {
            let pages = std::mem::take(&mut node.bytes).pages();
            self.used = self.used.saturating_sub(pages);
        }
        Ok(())
    }

    fn resize(&mut self, at: u64, size: u64) -> Outcome<()> {
        let node = self.node(at)?;
        let before = node.bytes.pages();
        node.dirty.extend((size / PAGE as u64) as usize..node.bytes.pages.len());
        node.bytes.resize(size);
        let after = node.bytes.pages();
        self.used = self.used + after - before;
        Ok(())
    }

    fn write(&mut self, at: u64, mut offset: u64, mut data: &[u8]) -> Outcome<u32> {
        self.troubled(at, |t| if let Trouble::Writes(part) = t { Some(part) } else { None })?;
        let mut left = self.room.saturating_sub(self.used);
        let before = left;
        let node = self.node(at)?;
        let mut written = 0;
        while !data.is_empty() {
            let (page, within) = ((offset / PAGE as u64) as usize, (offset % PAGE as u64) as usize);
            let (part, rest) = data.split_at(data.len().min(PAGE - within));
            if node.bytes.pages.len() <= page {
                node.bytes.pages.resize(page + 1, None);
            }
            let slot = &mut node.bytes.pages[page];
            if slot.is_none() {
                if left == 0 {
                    break;
                }
                left -= 1;
                *slot = Some(Arc::new([0; PAGE]));
            }
            if let Some(bytes) = slot {
                Arc::make_mut(bytes)[within..within + part.len()].copy_from_slice(part);
            }
            node.dirty.insert(page);
            offset += part.len() as u64;
            written += part.len() as u32;
            node.bytes.size = node.bytes.size.max(offset);
            data = rest;
        }
        self.used += before - left;
        if written == 0 && !data.is_empty() { Err(ENOSPC) } else { Ok(written) }
    }

    fn read(&mut self, at: u64, offset: u64, size: usize) -> Outcome<Vec<u8>> {
        let bytes = &self.node(at)?.bytes;
        let end = bytes.size.min(offset + size as u64);
        let mut out = Vec::with_capacity(size);
        let mut offset = offset;
        while offset < end {
            let (page, within) = ((offset / PAGE as u64) as usize, (offset % PAGE as u64) as usize);
            let length = (PAGE - within).min((end - offset) as usize);
            match bytes.pages.get(page).and_then(Option::as_ref) {
                Some(page) => out.extend_from_slice(&page[within..within + length]),
                None => out.resize(out.len() + length, 0),
            }
            offset += length as u64;
        }
        Ok(out)
    }

    fn sync(&mut self, at: u64) -> Outcome<()> {
        self.troubled(at, |t| if let Trouble::Syncs(part) = t { Some(part) } else { None })?;
        self.node(at)?.sync();
        self.syncs.0 += 1;
        Ok(())
    }

    fn sync_folder(&mut self, at: u64) -> Outcome<()> {
        self.troubled(at, |t| if let Trouble::Syncs(part) = t { Some(part) } else { None })?;
        let node = self.node(at)?;
        let before = std::mem::replace(&mut node.synced_names, node.names.clone());
        let gone: Vec<u64> =
            before.iter().filter(|(n, at)| node.names.get(*n) != Some(at)).map(|(_, at)| *at).collect();
        self.syncs.1 += 1;
        for at in gone {
            if self.nodes.get(&at).is_some_and(|node| !node.named && node.opens == 0) {
                self.nodes.remove(&at);
            }
        }
        Ok(())
    }

    fn rename(&mut self, parent: u64, name: &OsStr, to: u64, new: &OsStr, flags: u32) -> Outcome<()> {
        let at = self.child(parent, name)?;
        if self.child(to, new).is_ok() {
            if flags & RENAME_NOREPLACE != 0 {
                return Err(EEXIST);
            }
            self.drop_name(to, new)?;
        }
        self.node(parent)?.names.remove(name);
        let above = self.node(to)?;
        above.names.insert(new.into(), at);
        let path = format!("{}/{}", above.path, new.to_string_lossy());
        self.node(at)?.path = path;
        Ok(())
    }
}

/// The disk, beyond any mount of it.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<View>>);

/// The disk from one time that the power came to the next: what is still mounted from before (somebody's mount namespace
/// may have it) sees nothing of what comes after.
#[derive(Clone)]
struct View(Arc<Mutex<State>>);

impl View {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl Disk {
    pub fn new(room: u64) -> Self {
        let root = Node { folder: true, mode: 0o755, named: true, ..Node::default() };
        let state = State {
            nodes: HashMap::from([(ROOT, root)]),
            next: ROOT + 1,
            off: false,
            room: room / PAGE as u64,
            used: 0,
            trouble: None,
            failed: 0,
            syncs: (0, 0),
        };
        Self(Arc::new(Mutex::new(View(Arc::new(Mutex::new(state))))))
    }

    fn view(&self) -> View {
        self.0.lock().unwrap().clone()
    }

    pub fn mount(&self, at: &Path) -> Mounted {
        std::fs::create_dir_all(at).unwrap();
        if !Path::new("/dev/fuse").exists() {
            let _ = std::process::Command::new("modprobe").arg("fuse").status();
        }
        let options = [MountOption::FSName("mallee-test-disk".into()), MountOption::DefaultPermissions];
        let session = fuser::spawn_mount2(self.view(), at, &options).expect("root, and a kernel with FUSE");
        Mounted { at: at.into(), session: Some(session) }
    }

    /// From now on nothing works, and nothing that happens counts. [`Disk::power_on`] shows what is left.
    pub fn power_off(&self) {
        self.view().state().off = true;
    }

    pub fn power_on(&self, loss: Loss, seed: u64) {
        let before = self.view();
        let mut before = before.state();
        let mut state = State { nodes: std::mem::take(&mut before.nodes), ..*before };
        let mut random = StdRng::seed_from_u64(seed);
        let mut all: Vec<u64> = state.nodes.keys().copied().collect();
        all.sort_unstable();
        for at in all {
            state.nodes.get_mut(&at).unwrap().lose(loss, &mut random);
        }
        let (mut found, mut queue) = (BTreeSet::from([ROOT]), vec![ROOT]);
        while let Some(at) = queue.pop() {
            let names = std::mem::take(&mut state.nodes.get_mut(&at).unwrap().names);
            let names: BTreeMap<_, _> = names.into_iter().filter(|(_, at)| state.nodes.contains_key(at)).collect();
            queue.extend(names.values().filter(|at| found.insert(**at)));
            let node = state.nodes.get_mut(&at).unwrap();
            (node.synced_names, node.names, node.named) = (names.clone(), names, true);
        }
        state.nodes.retain(|at, _| found.contains(at));
        state.used = state.nodes.values().map(|node| node.bytes.pages()).sum();
        state.off = false;
        *self.0.lock().unwrap() = View(Arc::new(Mutex::new(state)));
    }

    /// How many bytes there are in all.
    pub fn set_room(&self, room: u64) {
        self.view().state().room = room / PAGE as u64;
    }
    pub fn used(&self) -> u64 {
        self.view().state().used * PAGE as u64
    }
    pub fn trouble(&self, trouble: Option<Trouble>) {
        self.view().state().trouble = trouble;
    }
    pub fn failed(&self) -> u64 {
        self.view().state().failed
    }
    /// How often files, and folders, were synced.
    pub fn syncs(&self) -> (u64, u64) {
        self.view().state().syncs
    }
}

/// A mounted disk; dropped, it is not mounted any more.
pub struct Mounted {
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there has been killed, and is about to let go. What serves it ends with
        // the last who has it mounted, which may be somebody's mount namespace, so nobody waits for that.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.at).status();
        std::mem::forget(self.session.take());
    }
}

macro_rules! answer {
    ($reply:ident, $outcome:expr, $value:pat => $told:expr) => {
        match $outcome {
            Ok($value) => $told,
            Err(code) => $reply.error(code),
        }
    };
}

impl Filesystem for View {
    fn init(&mut self, _: &Request<'_>, config: &mut KernelConfig) -> Result<(), i32> {
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.state();
        let found = state.child(parent, name).and_then(|at| state.attributes(at));
        answer!(reply, found, attributes => reply.entry(&TTL, &attributes, 0));
    }

    fn getattr(&mut self, _: &Request<'_>, at: u64, _: Option<u64>, reply: ReplyAttr) {
        answer!(reply, self.state().attributes(at), attributes => reply.attr(&TTL, &attributes));
    }

    fn setattr(
        &mut self,
        _: &Request<'_>,
        at: u64,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<u64>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<u32>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let mut set = || {
            if let Some(mode) = mode {
                state.node(at)?.mode = mode as u16 & 0o7777;
            }
            if let Some(size) = size {
                state.resize(at, size)?;
            }
            state.attributes(at)
        };
        answer!(reply, set(), attributes => reply.attr(&TTL, &attributes));
    }

    fn mkdir(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mut state = self.state();
        let made = state.make(parent, name, mode & !umask, true).and_then(|at| state.attributes(at));
        answer!(reply, made, attributes => reply.entry(&TTL, &attributes, 0));
    }

    fn create(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.state();
        let made = state.make(parent, name, mode & !umask, false).and_then(|at| {
            state.node(at)?.opens += 1;
            state.attributes(at)
        });
        answer!(reply, made, attributes => reply.created(&TTL, &attributes, 0, 0, 0));
    }

    fn unlink(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.state().drop_name(parent, name), () => reply.ok());
    }

    fn rmdir(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.state().drop_name(parent, name), () => reply.ok());
    }

    fn rename(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        to: u64,
        new: &OsStr,
        flags: u32,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.state().rename(parent, name, to, new, flags), () => reply.ok());
    }

    fn open(&mut self, _: &Request<'_>, at: u64, _: i32, reply: ReplyOpen) {
        let mut state = self.state();
        let opened = state.node(at).and_then(|node| {
            if node.folder {
                return Err(EISDIR);
            }
            node.opens += 1;
            Ok(())
        });
        answer!(reply, opened, () => reply.opened(0, 0));
    }

    fn release(&mut self, _: &Request<'_>, at: u64, _: u64, _: i32, _: Option<u64>, _: bool, reply: ReplyEmpty) {
        let mut state = self.state();
        if let Ok(node) = state.node(at) {
            node.opens = node.opens.saturating_sub(1);
            let _ = state.let_go(at);
        }
        reply.ok();
    }

    fn flush(&mut self, _: &Request<'_>, _: u64, _: u64, _: u64, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        at: u64,
        _: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        answer!(reply, self.state().read(at, offset as u64, size as usize), bytes => reply.data(&bytes));
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        at: u64,
        _: u64,
        offset: i64,
        data: &[u8],
        _: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.state().write(at, offset as u64, data), written => reply.written(written));
    }

    fn fsync(&mut self, _: &Request<'_>, at: u64, _: u64, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.state().sync(at), () => reply.ok());
    }

    fn fsyncdir(&mut self, _: &Request<'_>, at: u64, _: u64, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.state().sync_folder(at), () => reply.ok());
    }

    fn fallocate(&mut self, _: &Request<'_>, at: u64, _: u64, offset: i64, length: i64, mode: i32, reply: ReplyEmpty) {
        let end = (offset + length) as u64;
        let mut state = self.state();
        let mut grow = || {
            let size = state.node(at)?.bytes.size;
            if end.saturating_sub(size) / PAGE as u64 > state.room.saturating_sub(state.used) {
                return Err(ENOSPC);
            }
            if mode == 0 && end > size { state.resize(at, end) } else { Ok(()) }
        };
        answer!(reply, grow(), () => reply.ok());
    }

    fn readdir(&mut self, _: &Request<'_>, at: u64, _: u64, offset: i64, mut reply: ReplyDirectory) {
        let mut state = self.state();
        let names: Vec<(OsString, u64)> = match state.node(at) {
            Ok(node) => node.names.iter().map(|(name, at)| (name.clone(), *at)).collect(),
            Err(code) => return reply.error(code),
        };
        let dots = [(OsString::from("."), at), (OsString::from(".."), at)];
        for (n, (name, at)) in dots.into_iter().chain(names).enumerate().skip(offset as usize) {
            let folder = state.node(at).is_ok_and(|node| node.folder);
            let kind = if folder { FileType::Directory } else { FileType::RegularFile };
            if reply.add(at, n as i64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&mut self, _: &Request<'_>, _: u64, reply: ReplyStatfs) {
        let state = self.state();
        let free = state.room.saturating_sub(state.used);
        reply.statfs(state.room, free, free, 1 << 20, 1 << 20, PAGE as u32, 255, PAGE as u32);
    }
}

/// The disk itself must do what it says, or nothing that is proven on it is.
#[test]
fn what_was_not_synced_is_gone_after_the_power_was() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("disk");
    let disk = Disk::new(64 << 20);
    let mounted = disk.mount(&at);
    std::fs::write(at.join("never"), "x").unwrap();
    std::fs::write(at.join("named"), "synced").unwrap();
    std::fs::File::open(at.join("named")).unwrap().sync_all().unwrap();
    std::fs::File::open(&at).unwrap().sync_all().unwrap();
    std::fs::write(at.join("named"), "and written over").unwrap();
    std::fs::write(at.join("nameless"), "synced").unwrap();
    std::fs::File::open(at.join("nameless")).unwrap().sync_all().unwrap();
    disk.power_off();
    assert!(std::fs::write(at.join("late"), "x").is_err());
    drop(mounted);
    disk.power_on(Loss::All, 1);
    let _mounted = disk.mount(&at);
    let names: Vec<_> = std::fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    // `never` had its name synced with the folder, not its bytes.
    assert_eq!(names, ["named", "never"]);
    assert_eq!(std::fs::read(at.join("named")).unwrap(), b"synced");
    assert_eq!(std::fs::read(at.join("never")).unwrap(), b"");

    disk.set_room(disk.used() + (1 << 20));
    let full = std::fs::write(at.join("large"), vec![7; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    std::fs::remove_file(at.join("large")).unwrap();
    disk.trouble(Some(Trouble::Writes("bad")));
    assert!(std::fs::write(at.join("bad"), "x").is_err());
    assert!(std::fs::write(at.join("good"), "x").is_ok());
}
