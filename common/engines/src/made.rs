//! What Mallee made outside its base directory, written down *before* it is made, so that a teardown after any crash knows
//! what is ours. What is not in this list is never removed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout::Layout;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Made {
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
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::System(format!("{} is unreadable: {error}", path.display()))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Made::default()),
            Err(error) => Err(Error::file("reading", path)(error)),
        }
    }

    pub fn save(&self, layout: &Layout) -> Result<()> {
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| Error::System(error.to_string()))?;
        replace_file(&layout.made(), &text)
    }
}

/// Writes a small file so that a reader sees the old or the new one.
pub(crate) fn replace_file(path: &std::path::Path, contents: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, contents).map_err(Error::file("writing", &new))?;
    std::fs::rename(&new, path).map_err(Error::file("writing", path))
}
