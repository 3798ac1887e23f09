//! The end of the bundling pipeline: a stream cut into files of 10 MiB.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use sha1::{Digest, Sha1};

use super::manifest::Part;

pub const PART_SIZE: u64 = 10 << 20;

pub struct Parts {
    directory: PathBuf,
    prefix: String,
    current: Option<Current>,
    done: Vec<Part>,
    total: u64,
}

struct Current {
    file: File,
    name: String,
    digest: Sha1,
    length: u64,
}

impl Parts {
    pub fn new(directory: PathBuf, prefix: String) -> Parts {
        Parts { directory, prefix, current: None, done: Vec::new(), total: 0 }
    }

    /// The parts, and the bytes in all of them.
    pub fn finish(mut self) -> io::Result<(Vec<Part>, u64)> {
        self.close()?;
        Ok((self.done, self.total))
    }

    fn open(&mut self) -> io::Result<&mut Current> {
        if self.current.as_ref().is_some_and(|current| current.length == PART_SIZE) {
            self.close()?;
        }
        match &mut self.current {
            Some(current) => Ok(current),
            vacant => {
                let name = format!("{}.part.{:02}", self.prefix, self.done.len());
                let file = File::create(self.directory.join(&name))?;
                Ok(vacant.insert(Current { file, name, digest: Sha1::new(), length: 0 }))
            }
        }
    }

    fn close(&mut self) -> io::Result<()> {
        if let Some(current) = self.current.take() {
            current.file.sync_all()?;
            self.done.push(Part { file: current.name, digest: hex::encode(current.digest.finalize()) });
        }
        Ok(())
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let current = self.open()?;
        let room = usize::try_from(PART_SIZE - current.length).unwrap_or(usize::MAX);
        let written = current.file.write(&bytes[..bytes.len().min(room)])?;
        current.digest.update(&bytes[..written]);
        current.length += written as u64;
        self.total += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.current {
            Some(current) => current.file.flush(),
            None => Ok(()),
        }
    }
}
