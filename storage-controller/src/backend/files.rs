//! Volumes as files: `VOLUMES/vol-…/volume.raw` (or `volume.qcow2`), sparse, and above it the layers of [`super::chain`].
//! `source.json` beside them says what the volume began with, while some of that was not fetched.
//!
//! A volume's file is made under another name, brought to its size, synced and renamed, so a file of the right name is
//! always whole. It is never truncated and never made again: a volume whose file is missing is a fault, not an empty volume.

use std::{
    fs::{self, File, OpenOptions},
    io::{Error as IoError, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use mallee_service::steps::TARGET;
use mallee_tiers::Secret;
use serde_json::{Value, json};

use super::{
    Backend, BackendError, Beginning, Found, New, SECRET, Space,
    chain::{self, Chain, Number, Opening},
    new_layer, node_name,
    qcow2::Qcow2,
};
use crate::volume::VolumeId;

pub struct Files {
    dir: PathBuf,
}

const GIB: u64 = 1 << 30;
/// What is being made and is no volume yet.
const NEW: &str = "volume.new";
const SOURCE: &str = "source.json";

impl Files {
    /// Keeps volumes in `dir`, which only root may look into.
    pub fn open(dir: PathBuf) -> std::io::Result<Self> {
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        Ok(Self { dir })
    }

    fn folder(&self, id: &VolumeId) -> PathBuf {
        self.dir.join(id.as_str())
    }
    fn file(&self, id: &VolumeId) -> PathBuf {
        self.layer(id, 0)
    }
    fn layer(&self, id: &VolumeId, number: Number) -> PathBuf {
        let folder = self.folder(id);
        let name = chain::file_name(&folder, number);
        folder.join(name)
    }

    fn has_room(&self, size: u64) -> Result<(), BackendError> {
        let space = self.space()?;
        if size > space.free {
            let dir = self.dir.display();
            return Err(BackendError::NoRoom(format!(
                "{} GiB do not fit: {} GiB of {} GiB are free in {dir}",
                size.div_ceil(GIB),
                space.free / GIB,
                space.total / GIB
            )));
        }
        Ok(())
    }

    /// Makes a file whole under another name, and then names it.
    fn make(
        &self,
        folder: &Path,
        name: &str,
        write: impl FnOnce(&Path) -> std::io::Result<File>,
    ) -> Result<(), BackendError> {
        let (new, path) = (folder.join(NEW), folder.join(name));
        let file = write(&new).map_err(failed("writing", &new))?;
        file.sync_all().map_err(failed("syncing", &new))?;
        tracing::trace!(target: TARGET, "before file: {name}");
        fs::rename(&new, &path).map_err(failed("renaming", &new))?;
        tracing::trace!(target: TARGET, "after file: {name}");
        sync_dir(folder)
    }

    /// One layer as QEMU opens it, without the one below it.
    fn open_options(&self, id: &VolumeId, number: Number) -> Result<Value, BackendError> {
        let file = self.layer(id, number);
        // Not every file system has O_DIRECT; where it is missing QEMU would not start at all.
        let direct = match OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(&file) {
            Ok(_) => true,
            Err(e) if e.kind() == ErrorKind::InvalidInput => false,
            Err(e) => return Err(failed("opening", &file)(e)),
        };
        let cache = json!({ "direct": direct, "no-flush": false });
        let name = node_name(number);
        // A pool of threads costs QEMU 50 µs of CPU for a random read of 4 KiB, io_uring 19; where the kernel has none, QEMU takes
        // the pool. (`native` costs the same, and waits in place for a file that grows.)
        let protocol =
            json!({ "driver": "file", "filename": file, "cache": cache, "discard": "unmap", "aio": "io_uring" });
        // The format of the bottom one is said too: QEMU takes it from the header above it, and "file" is none.
        let format = format_of(&file);
        let mut layer =
            json!({ "driver": format, "file": protocol, "cache": cache, "discard": "unmap", "node-name": name });
        if format == "qcow2" {
            layer["backing"] = Value::Null;
            if self.qcow2(&file)?.encrypted {
                layer["encrypt"] = json!({ "format": "luks", "key-secret": SECRET });
            }
        }
        Ok(layer)
    }

    fn qcow2(&self, file: &Path) -> Result<Qcow2, BackendError> {
        Qcow2::open(file, None).map_err(failed("reading", file))
    }
}

fn format_of(file: &Path) -> &'static str {
    chain::format(file.file_name().and_then(|n| n.to_str()).unwrap_or_default())
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(IoError) -> BackendError {
    let path = path.display().to_string();
    move |e| {
        let text = format!("{doing} {path}: {e}");
        match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => BackendError::NoRoom(text),
            _ => BackendError::Io(text),
        }
    }
}

fn sync_dir(dir: &Path) -> Result<(), BackendError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("syncing", dir))
}

impl Backend for Files {
    fn create(&self, id: &VolumeId, size: u64, new: &New) -> Result<(), BackendError> {
        if self.file(id).exists() {
            return Ok(());
        }
        self.has_room(size)?;
        let folder = self.folder(id);
        fs::create_dir_all(&folder).map_err(failed("making", &folder))?;
        let passphrase = new.passphrase.as_ref();
        if let Some(beginning) = &new.beginning {
            let text = serde_json::to_vec(beginning).map_err(|e| BackendError::Io(e.to_string()))?;
            self.make(&folder, SOURCE, |path| {
                let file = File::create(path)?;
                file.write_all_at(&text, 0).map(|()| file)
            })?;
            // The guest writes above it from the beginning: so what it changes is known, and what is fetched is not that.
            let name = chain::file_name(&folder, 1);
            let below = (chain::QCOW2, "qcow2");
            self.make(&folder, &name, |path| new_layer::write(path, size, Some(below), passphrase))?;
        }
        if new.beginning.is_some() || passphrase.is_some() {
            self.make(&folder, chain::QCOW2, |path| new_layer::write(path, size, None, passphrase))?;
        } else {
            self.make(&folder, chain::RAW, |path| {
                let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
                file.set_len(size).map(|()| file)
            })?;
        }
        sync_dir(&self.dir)
    }

    fn beginning(&self, id: &VolumeId) -> Result<Option<Beginning>, BackendError> {
        let path = self.folder(id).join(SOURCE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("reading", &path)(e)),
        };
        serde_json::from_slice(&text).map(Some).map_err(|e| BackendError::Io(format!("{}: {e}", path.display())))
    }

    fn set_filled(&self, id: &VolumeId) -> Result<(), BackendError> {
        let folder = self.folder(id);
        match fs::remove_file(folder.join(SOURCE)) {
            Ok(()) => sync_dir(&folder),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("removing", &folder.join(SOURCE))(e)),
        }
    }

    fn is_encrypted(&self, id: &VolumeId) -> Result<bool, BackendError> {
        let file = self.file(id);
        Ok(format_of(&file) == "qcow2" && self.qcow2(&file)?.encrypted)
    }

    fn bottom(&self, id: &VolumeId) -> String {
        chain::file_name(&self.folder(id), 0)
    }

    fn remove(&self, id: &VolumeId) -> Result<(), BackendError> {
        let folder = self.folder(id);
        tracing::trace!(target: TARGET, "before file: remove all");
        match fs::remove_dir_all(&folder) {
            Ok(()) => sync_dir(&self.dir),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("removing", &folder)(e)),
        }
    }

    fn find(&self, id: &VolumeId) -> Result<Option<Found>, BackendError> {
        if !self.file(id).exists() {
            return Ok(None);
        }
        let folder = self.folder(id);
        let layers = chain::all(&folder).map_err(failed("reading", &folder))?;
        let mut allocated = 0;
        for (_, path) in &layers {
            match fs::metadata(path) {
                Ok(m) => allocated += m.blocks() * 512,
                // It was merged meanwhile.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(failed("reading", path)(e)),
            }
        }
        let top = layers.first().map_or(0, |(number, _)| *number);
        Ok(Some(Found { size: self.size(id, top)?, allocated }))
    }

    fn list(&self) -> Result<Vec<String>, BackendError> {
        let entries = fs::read_dir(&self.dir).map_err(failed("reading", &self.dir))?;
        Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
    }

    fn space(&self) -> Result<Space, BackendError> {
        let s = nix::sys::statvfs::statvfs(&self.dir).map_err(|e| failed("measuring", &self.dir)(e.into()))?;
        let unit = s.fragment_size();
        Ok(Space { total: s.blocks() * unit, free: s.blocks_available() * unit })
    }

    fn top(&self, id: &VolumeId) -> Result<Number, BackendError> {
        let folder = self.folder(id);
        let layers = chain::all(&folder).map_err(failed("reading", &folder))?;
        Ok(layers.first().map_or(0, |(number, _)| *number))
    }

    fn put_layer_above(
        &self,
        id: &VolumeId,
        under: Number,
        passphrase: Option<&Secret>,
    ) -> Result<Number, BackendError> {
        let (number, size) = (under + 1, self.size(id, under)?);
        let (folder, path) = (self.folder(id), self.layer(id, number));
        if path.exists() {
            // An attempt that was interrupted made it, and the volume may have grown since.
            if self.size(id, number)? != size {
                self.grow_layer(&path, size)?;
            }
            return Ok(number);
        }
        if passphrase.is_none() && self.is_encrypted(id)? {
            return Err(BackendError::Io(format!("{id} is encrypted, and its key is not known")));
        }
        let below = chain::file_name(&folder, under);
        let below = (below.as_str(), chain::format(&below));
        self.make(&folder, &chain::file_name(&folder, number), |path| {
            new_layer::write(path, size, Some(below), passphrase)
        })?;
        Ok(number)
    }

    fn chain(&self, id: &VolumeId, top: Number, opening: &Opening) -> Result<Chain, BackendError> {
        let folder = self.folder(id);
        Chain::open(&folder, top, opening).map_err(failed("reading", &folder))
    }

    fn numbers(&self, id: &VolumeId) -> Result<Vec<Number>, BackendError> {
        let folder = self.folder(id);
        chain::below(&folder, self.top(id)?).map_err(failed("reading", &folder))
    }

    fn merge(&self, id: &VolumeId, upper: Number) -> Result<(), BackendError> {
        let numbers = self.numbers(id)?;
        let (base, from) = (self.file(id).display().to_string(), self.layer(id, upper).display().to_string());
        if !numbers.contains(&upper) || upper == 0 {
            return Ok(());
        }
        // Both may be done again: while the layer is there, what it holds is what counts.
        qemu_img(&["commit", "-q", "-d", "-f", "qcow2", "-b", &base, &from])?;
        if let Some(above) = numbers.iter().rev().find(|n| **n > upper) {
            let above = self.layer(id, *above);
            qemu_img(&[
                "rebase",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-b",
                &self.bottom(id),
                "-F",
                format_of(&self.file(id)),
                &above.display().to_string(),
            ])?;
            File::open(&above).and_then(|f| f.sync_all()).map_err(failed("syncing", &above))?;
        }
        let file = self.file(id);
        File::open(&file).and_then(|f| f.sync_all()).map_err(failed("syncing", &file))
    }

    fn has_merged(&self, id: &VolumeId) -> Result<bool, BackendError> {
        let folder = self.folder(id);
        Ok(chain::all(&folder).map_err(failed("reading", &folder))?.len() > self.numbers(id)?.len())
    }

    fn remove_merged(&self, id: &VolumeId) -> Result<(), BackendError> {
        let folder = self.folder(id);
        let needed = self.numbers(id)?;
        for (number, path) in chain::all(&folder).map_err(failed("reading", &folder))? {
            if !needed.contains(&number) {
                tracing::trace!(target: TARGET, "before file: remove a layer");
                fs::remove_file(&path).map_err(failed("removing", &path))?;
            }
        }
        sync_dir(&folder)
    }

    fn grow(&self, id: &VolumeId, size: u64) -> Result<(), BackendError> {
        let top = self.top(id)?;
        let path = self.layer(id, top);
        if self.size(id, top)? >= size {
            return Ok(());
        }
        self.grow_layer(&path, size)
    }

    fn blockdev(&self, id: &VolumeId, source: Option<Value>) -> Result<Value, BackendError> {
        let mut described = source;
        for number in self.numbers(id)?.into_iter().rev() {
            let mut layer = self.open_options(id, number)?;
            if let Some(below) = described.take() {
                layer["backing"] = below;
            }
            described = Some(layer);
        }
        described.ok_or_else(|| BackendError::Io(format!("{id} has no layer")))
    }

    fn layer_blockdev(&self, id: &VolumeId, number: Number) -> Result<Value, BackendError> {
        self.open_options(id, number)
    }
}

impl Files {
    /// Bytes a guest sees of a layer.
    fn size(&self, id: &VolumeId, number: Number) -> Result<u64, BackendError> {
        let path = self.layer(id, number);
        if format_of(&path) == "raw" {
            return fs::metadata(&path).map(|m| m.len()).map_err(failed("reading", &path));
        }
        self.qcow2(&path).map(|layer| layer.size)
    }

    fn grow_layer(&self, path: &Path, size: u64) -> Result<(), BackendError> {
        if format_of(path) == "raw" {
            let file = OpenOptions::new().write(true).open(path).map_err(failed("opening", path))?;
            return file.set_len(size).and_then(|()| file.sync_all()).map_err(failed("growing", path));
        }
        let entries = self.qcow2(path)?.entries();
        if new_layer::grow(path, entries, size).map_err(failed("growing", path))? {
            return Ok(());
        }
        // Of an earlier release.
        qemu_img(&["resize", "-q", "-f", "qcow2", &path.display().to_string(), &size.to_string()])
    }
}

/// Runs `qemu-img`; its complaint is in the error, with the command line.
fn qemu_img(arguments: &[&str]) -> Result<(), BackendError> {
    let line = || format!("qemu-img {}", arguments.join(" "));
    let out = Command::new("qemu-img")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| BackendError::Io(format!("{}: {e}", line())))?;
    tracing::trace!(target: TARGET, "after tool: qemu-img {}", arguments.first().unwrap_or(&""));
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let text = format!("{}: {}", line(), said.trim());
    Err(if said.contains("No space left") { BackendError::NoRoom(text) } else { BackendError::Io(text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn making_a_volume_again_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("v")).unwrap();
        let id = VolumeId::parse("vol-1").unwrap();
        files.create(&id, 1 << 20, &New::default()).unwrap();
        fs::write(files.file(&id), b"mine").unwrap();
        files.create(&id, 1 << 20, &New::default()).unwrap();
        assert_eq!(fs::read(files.file(&id)).unwrap(), b"mine");
        files.remove(&id).unwrap();
        files.remove(&id).unwrap();
        assert_eq!(files.find(&id).unwrap(), None);
    }

    #[test]
    fn what_a_crash_left_of_a_creation_is_no_volume() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("v")).unwrap();
        let id = VolumeId::parse("vol-1").unwrap();
        fs::create_dir_all(files.folder(&id)).unwrap();
        fs::write(files.folder(&id).join("volume.new"), b"half").unwrap();
        assert_eq!(files.find(&id).unwrap(), None);
        files.create(&id, 1 << 20, &New::default()).unwrap();
        let found = files.find(&id).unwrap().unwrap();
        assert_eq!((found.size, found.allocated), (1 << 20, 0));
        assert_eq!(fs::read_dir(files.folder(&id)).unwrap().count(), 1);
    }

    #[test]
    fn a_volume_that_can_never_be_filled_is_refused_with_the_figures() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("v")).unwrap();
        let id = VolumeId::parse("vol-1").unwrap();
        let refused = files.create(&id, 1 << 60, &New::default()).unwrap_err();
        assert!(matches!(&refused, BackendError::NoRoom(why) if why.contains("GiB are free in")), "{refused}");
        assert_eq!(files.list().unwrap(), Vec::<String>::new());
    }

    fn io(path: &Path, command: &str) {
        let done = Command::new("qemu-io").args(["-c", command]).arg(path).stdout(Stdio::null()).status().unwrap();
        assert!(done.success(), "{command}");
    }

    #[test]
    fn layers_freeze_what_is_below_them_and_merge_into_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("v")).unwrap();
        let id = VolumeId::parse("vol-1").unwrap();
        files.create(&id, 1 << 30, &New::default()).unwrap();
        let base = files.file(&id);
        Command::new("qemu-io").args(["-f", "raw", "-c", "write -P 1 0 1M"]).arg(&base).output().unwrap();
        assert_eq!(
            (files.put_layer_above(&id, 0, None).unwrap(), files.put_layer_above(&id, 0, None).unwrap()),
            (1, 1)
        );
        io(&files.layer(&id, 1), "write -P 2 512k 512k");
        assert_eq!(files.put_layer_above(&id, 1, None).unwrap(), 2);
        io(&files.layer(&id, 2), "write -P 3 10M 4k");
        let first = |chain: &Chain, at: u64| {
            let mut byte = [0u8];
            chain.read(at, &mut byte).unwrap();
            byte[0]
        };
        let block = 512 << 10;
        let one = files.chain(&id, 1, &Opening::default()).unwrap();
        assert_eq!((first(&one, 0), first(&one, block), first(&one, 10 << 20)), (1, 2, 0));
        assert_eq!(one.blocks(Some(0), block).unwrap(), [1]);
        assert_eq!(one.blocks(None, block).unwrap(), [0, 1]);
        assert_eq!(files.chain(&id, 2, &Opening::default()).unwrap().blocks(Some(1), block).unwrap(), [20]);
        files.merge(&id, 1).unwrap();
        files.merge(&id, 1).unwrap();
        files.remove_merged(&id).unwrap();
        assert_eq!(files.numbers(&id).unwrap(), [2, 0]);
        assert!(!files.layer(&id, 1).exists());
        let now = files.chain(&id, 2, &Opening::default()).unwrap();
        assert_eq!((first(&now, 0), first(&now, block), first(&now, 10 << 20)), (1, 2, 3));
        assert_eq!(now.blocks(Some(1), block).unwrap(), [20], "what changed since layer 1 is still known");
        files.grow(&id, 2 << 30).unwrap();
        assert_eq!(files.find(&id).unwrap().unwrap().size, 2 << 30);
        assert_eq!(files.put_layer_above(&id, 2, None).unwrap(), 3);
        files.merge(&id, 2).unwrap();
        assert_eq!(files.chain(&id, 3, &Opening::default()).unwrap().size(), 2 << 30);
    }
}
