//! Volumes as raw sparse files: `VOLUMES/vol-…/volume.raw`.
//!
//! A volume's file is made under another name, brought to its size, synced and renamed, so a file of the right name is
//! always whole. It is never truncated and never made again: a volume whose file is missing is a fault, not an empty volume.

use std::{
    fs::{self, File, OpenOptions},
    io::{Error as IoError, ErrorKind},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Backend, BackendError, Found, Space};
use crate::volume::VolumeId;

pub struct Files {
    dir: PathBuf,
}

const GIB: u64 = 1 << 30;

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
        self.folder(id).join("volume.raw")
    }
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
    fn create(&self, id: &VolumeId, size: u64) -> Result<(), BackendError> {
        let (folder, file) = (self.folder(id), self.file(id));
        if file.exists() {
            return Ok(());
        }
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
        fs::create_dir_all(&folder).map_err(failed("making", &folder))?;
        let new = folder.join("volume.raw.new");
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let made = made.map_err(failed("making", &new))?;
        made.set_len(size).and_then(|()| made.sync_all()).map_err(failed("sizing", &new))?;
        fs::rename(&new, &file).map_err(failed("renaming", &new))?;
        sync_dir(&folder)?;
        sync_dir(&self.dir)
    }

    fn remove(&self, id: &VolumeId) -> Result<(), BackendError> {
        let folder = self.folder(id);
        match fs::remove_dir_all(&folder) {
            Ok(()) => sync_dir(&self.dir),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("removing", &folder)(e)),
        }
    }

    fn find(&self, id: &VolumeId) -> Result<Option<Found>, BackendError> {
        let file = self.file(id);
        match fs::metadata(&file) {
            Ok(m) => Ok(Some(Found { size: m.len(), allocated: m.blocks() * 512 })),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("reading", &file)(e)),
        }
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

    fn blockdev(&self, id: &VolumeId, node_name: &str) -> Result<Value, BackendError> {
        let file = self.file(id);
        // Not every file system has O_DIRECT; where it is missing QEMU would not start at all.
        let direct = match OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(&file) {
            Ok(_) => true,
            Err(e) if e.kind() == ErrorKind::InvalidInput => false,
            Err(e) => return Err(failed("opening", &file)(e)),
        };
        Ok(json!({
            "driver": "file",
            "node-name": node_name,
            "filename": file,
            "cache": { "direct": direct, "no-flush": false },
            "discard": "unmap",
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn making_a_volume_again_keeps_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("v")).unwrap();
        let id = VolumeId::parse("vol-1").unwrap();
        files.create(&id, 1 << 20).unwrap();
        fs::write(files.file(&id), b"mine").unwrap();
        files.create(&id, 1 << 20).unwrap();
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
        fs::write(files.folder(&id).join("volume.raw.new"), b"half").unwrap();
        assert_eq!(files.find(&id).unwrap(), None);
        files.create(&id, 1 << 20).unwrap();
        let found = files.find(&id).unwrap().unwrap();
        assert_eq!((found.size, found.allocated), (1 << 20, 0));
        assert_eq!(fs::read_dir(files.folder(&id)).unwrap().count(), 1);
    }

    #[test]
    fn a_volume_that_can_never_be_filled_is_refused_with_the_figures() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().join("v")).unwrap();
        let id = VolumeId::parse("vol-1").unwrap();
        let refused = files.create(&id, 1 << 60).unwrap_err();
        assert!(matches!(&refused, BackendError::NoRoom(why) if why.contains("GiB are free in")), "{refused}");
        assert_eq!(files.list().unwrap(), Vec::<String>::new());
    }
}
