//! `mallee logs`: what the tiers, the supervisor and the engines wrote.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::needs;
use crate::state::State;

const LOOK_AGAIN: Duration = Duration::from_millis(200);

struct Source {
    name: String,
    path: PathBuf,
    /// How far it was shown, and of which file.
    shown: (u64, u64),
}

pub async fn run(state: &State, names: &[String], lines: usize, follow: bool) -> Result<()> {
    needs::root()?;
    let mut sources = sources(state, names)?;
    let several = sources.len() > 1;
    for source in &mut sources {
        show_end(source, lines, several)?;
    }
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        for source in &mut sources {
            show_new(source, several)?;
        }
    }
}

fn sources(state: &State, names: &[String]) -> Result<Vec<Source>> {
    let mut all: Vec<Source> = [state.log(), state.engines().join("log")]
        .iter()
        .flat_map(|directory| std::fs::read_dir(directory).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let name = name.strip_suffix(".out").or_else(|| name.strip_suffix(".log"))?.to_owned();
            Some(Source { name, path, shown: (0, 0) })
        })
        .collect();
    all.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    if names.is_empty() {
        // The engines' logs are for whoever asks for them.
        all.retain(|source| source.path.starts_with(state.log()));
        return Ok(all);
    }
    let mut known: Vec<String> = all.iter().map(|source| source.name.clone()).collect();
    known.dedup();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        return Err(Error::refused(format!("no log of {name:?}; there are: {}", known.join(", "))));
    }
    all.retain(|source| names.contains(&source.name));
    Ok(all)
}

fn show_end(source: &mut Source, lines: usize, several: bool) -> Result<()> {
    let file = open(&source.path)?;
    source.shown.1 = inode(&file);
    let mut last = VecDeque::with_capacity(lines.min(10_000) + 1);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(Error::file("reading", &source.path))? > 0 {
        source.shown.0 += line.len() as u64;
        last.push_back(std::mem::take(&mut line));
        if last.len() > lines {
            last.pop_front();
        }
    }
    for line in last {
        print(source, &line, several);
    }
    Ok(())
}

fn show_new(source: &mut Source, several: bool) -> Result<()> {
    let mut file = open(&source.path)?;
    let length = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    if inode(&file) != source.shown.1 || length < source.shown.0 {
        // Rotated.
        source.shown = (0, inode(&file));
    }
    if length == source.shown.0 {
        return Ok(());
    }
    file.seek(SeekFrom::Start(source.shown.0)).map_err(Error::file("reading", &source.path))?;
    let mut new = Vec::new();
    file.read_to_end(&mut new).map_err(Error::file("reading", &source.path))?;
    source.shown.0 += new.len() as u64;
    for line in new.split_inclusive(|byte| *byte == b'\n') {
        print(source, line, several);
    }
    Ok(())
}

fn print(source: &Source, line: &[u8], several: bool) {
    let mut out = std::io::stdout().lock();
    // A pipe that was closed (`| head`) ends the command, not the cloud.
    let prefix = if several { format!("{:<18} ", source.name) } else { String::new() };
    if out.write_all(prefix.as_bytes()).and_then(|()| out.write_all(line)).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::file("opening", path))
}

fn inode(file: &File) -> u64 {
    file.metadata().map(|metadata| metadata.ino()).unwrap_or_default()
}
