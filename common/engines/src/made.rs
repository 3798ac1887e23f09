//! What Mallee made outside its base directory, written down *before* it is made, so that a teardown after any crash knows
//! what is ours. What is not in this list is never removed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::process::boot_id;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Made {
    /// The boot in which namespaces and links were made; none of them survives it.
    pub boot: String,
    /// The network namespace and the veth pair.
    pub namespaces: Vec<String>,
    pub links: Vec<String>,
    /// /run/netns itself was not there before.
    pub netns_directory: bool,
    /// Empty directories that serve as mount points, deepest last.
    pub directories: Vec<PathBuf>,
}

impl Made {
    pub fn load(layout: &Layout) -> Result<Made> {
        let path = layout.made();
        let mut made: Made = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::System(format!("{} is unreadable: {error}", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Made::default(),
            Err(error) => return Err(Error::file("reading", path)(error)),
        };
        let boot = boot_id();
        if made.boot != boot {
            // What has these names now was made by somebody else after the machine started.
            made = Made { boot, directories: made.directories, ..Made::default() };
        }
        Ok(made)
    }

    pub fn save(&self, layout: &Layout) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::System(error.to_string()))?;
        replace_file(&layout.made(), &text)
    }
}

/// Writes a small file so that a reader sees the old or the new one.
pub(crate) fn replace_file(path: &std::path::Path, contents: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, contents).map_err(Error::file("writing", &new))?;
    std::fs::rename(&new, path).map_err(Error::file("writing", path))
}
