//! Folders that are still there when the power was not.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes a folder and those above it that are missing, only for their owner, and makes them durable: the name of a
/// folder is in the one above, which has to be synced for it. A start before this one may have died in between, so
/// folders that are there are not taken for durable.
pub fn durable_folder(path: &Path) -> io::Result<()> {
    let there = path.is_dir();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for above in path.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match File::open(above).and_then(|folder| folder.sync_all()) {
            // What somebody else made for us is theirs to sync.
            Err(e) if there && e.kind() == ErrorKind::PermissionDenied => break,
            Err(e) => return Err(e),
            Ok(()) => {}
        }
    }
    Ok(())
}
