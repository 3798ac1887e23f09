//! Objects on their way to walrus: files on the node's disk until walrus has them, so that a node-controller that is killed,
//! or a walrus that is down, loses none.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{Request, StatusCode};
use mallee_service::{TierHttp, body};
use mallee_tiers::{FLOW_LOGS_PREFIX, FlowLogFailureKind, FlowPlace, Millis, Role, TierError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::cluster::Cloud;

/// What may wait in all; then the oldest go.
const MOST_BYTES: u64 = 256 << 20;
/// A walrus that says nothing for so long is taken for gone.
const PATIENCE: Duration = Duration::from_secs(60);
const SUFFIX: &str = "log";

/// What a file says of itself in its first line; the object's bytes follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// `fl-…`.
    pub log: String,
    pub account: String,
    pub bucket: String,
    pub key: String,
}

/// The key of an object with what was seen until `end`:
/// `FOLDER2026/11/20/NAME_20261120T1405Z_0123abcd.log.gz`. Twice the same bytes is once the same key.
pub fn key(place: &FlowPlace, node: &str, end: Millis, text: &str) -> String {
    let at = OffsetDateTime::from_unix_timestamp(end.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let day = at.format(time::macros::format_description!("[year]/[month]/[day]")).unwrap_or_default();
    let minute = time::macros::format_description!("[year][month][day]T[hour][minute]Z");
    let minute = at.format(minute).unwrap_or_default();
    let mut hash = Sha256::new_with_prefix(node);
    hash.update(end.to_be_bytes());
    hash.update(text);
    let hash = hex::encode(hash.finalize().first_chunk::<4>().copied().unwrap_or_default());
    format!("{}{day}/{}_{minute}_{hash}.log.gz", place.folder, place.name)
}

fn compressed(text: &str) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}

pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        for file in std::fs::read_dir(&dir)?.flatten().map(|entry| entry.path()) {
            // Half written when the process was killed.
            if file.extension().is_none_or(|extension| extension != SUFFIX) {
                std::fs::remove_file(&file)?;
            }
        }
        Ok(Self { dir })
    }

    /// Keeps an object durably. Its name sorts by `end`.
    pub fn keep(&self, label: &Label, end: Millis, text: &str) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(label)?;
        bytes.push(b'\n');
        bytes.extend(compressed(text)?);
        let unique = hex::encode(Sha256::digest(&bytes).first_chunk::<8>().copied().unwrap_or_default());
        let named = self.dir.join(format!("{end:016}-{unique}.{SUFFIX}"));
        let writing = named.with_extension("part");
        let mut file = std::fs::File::create(&writing)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&writing, &named)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }

    /// What waits, the oldest first.
    pub fn waiting(&self) -> io::Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.dir)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|file| file.extension().is_some_and(|extension| extension == SUFFIX))
            .collect();
        files.sort();
        Ok(files)
    }

    /// Makes room for what comes. How many objects were given up.
    pub fn bound(&self) -> io::Result<usize> {
        let files = self.waiting()?;
        let sizes: Vec<u64> = files.iter().map(|file| file.metadata().map_or(0, |m| m.len())).collect();
        let mut total: u64 = sizes.iter().sum();
        let mut given_up = 0;
        for (file, size) in files.iter().zip(sizes) {
            if total <= MOST_BYTES {
                break;
            }
            std::fs::remove_file(file)?;
            total -= size;
            given_up += 1;
        }
        Ok(given_up)
    }
}

/// A file's label and bytes. None: it says nothing that this release can read.
pub fn read(file: &Path) -> io::Result<Option<(Label, Bytes)>> {
    let bytes = Bytes::from(std::fs::read(file)?);
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let label = bytes.get(..end).and_then(|line| serde_json::from_slice(line).ok());
    Ok(label.map(|label| (label, bytes.slice(end + 1..))))
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Brought {
    There,
    /// It will not be let in, however often it is tried.
    Refused(FlowLogFailureKind, String),
    Later(String),
}

/// The way to walrus.
pub struct Carrier {
    cloud: Arc<Cloud>,
    /// Where it answered last.
    place: tokio::sync::Mutex<Option<TierHttp>>,
}

impl Carrier {
    pub fn new(cloud: Arc<Cloud>) -> Self {
        Self { cloud, place: tokio::sync::Mutex::default() }
    }

    pub async fn bring(&self, label: &Label, bytes: Bytes) -> Brought {
        let sent = tokio::time::timeout(PATIENCE, self.send(label, bytes)).await;
        let sent = sent.unwrap_or_else(|_| Err(TierError::unreachable("walrus does not answer")));
        match sent {
            Ok((StatusCode::OK, _)) => Brought::There,
            Ok((StatusCode::FORBIDDEN | StatusCode::NOT_FOUND, why)) => {
                Brought::Refused(FlowLogFailureKind::Access, why)
            }
            Ok((status, why)) if status.is_client_error() && status != StatusCode::CONFLICT => {
                Brought::Refused(FlowLogFailureKind::Unknown, why)
            }
            Ok((status, why)) => Brought::Later(format!("walrus answered {status}: {why}")),
            Err(e) => {
                // It may have moved: ask again where it is.
                *self.place.lock().await = None;
                Brought::Later(e.to_string())
            }
        }
    }

    async fn send(&self, label: &Label, bytes: Bytes) -> Result<(StatusCode, String), TierError> {
        let walrus = {
            let mut place = self.place.lock().await;
            match place.as_ref() {
                Some(known) => known.clone(),
                None => place.insert(self.cloud.find(Role::Walrus).await?).clone(),
            }
        };
        let malformed = |e: http::Error| TierError::internal(e.to_string());
        let length = bytes.len();
        let request = Request::put("/").header(http::header::CONTENT_LENGTH, length).body(body::full(bytes));
        let response = walrus.send(request.map_err(malformed)?, &path(label)).await?;
        let status = response.status();
        let answer = body::collect(response.into_body(), 1 << 16).await.ok().flatten().unwrap_or_default();
        let why = serde_json::from_slice::<TierError>(&answer).map(|e| e.message).unwrap_or_default();
        Ok((status, why))
    }
}

fn path(label: &Label) -> String {
    let encoded = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect()
    };
    format!("{FLOW_LOGS_PREFIX}{}/{}?account={}", encoded(&label.bucket), encoded(&label.key), encoded(&label.account))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn label(log: &str) -> Label {
        Label { log: log.into(), account: "000000000001".into(), bucket: "logs".into(), key: "a b/ü.log.gz".into() }
    }

    #[test]
    fn an_objects_key_is_as_aws_names_it() {
        let place = FlowPlace {
            account: "000000000001".into(),
            bucket: "logs".into(),
            folder: "p/AWSLogs/000000000001/vpcflowlogs/mallee-1/".into(),
            name: "000000000001_vpcflowlogs_mallee-1_fl-1".into(),
        };
        let at = 1_795_183_500_000;
        let made = key(&place, "n1", at, "text");
        let front = "p/AWSLogs/000000000001/vpcflowlogs/mallee-1/2026/11/20/000000000001_vpcflowlogs_mallee-1_fl-1_20261120T1405Z_";
        let hash = made.strip_prefix(front).and_then(|rest| rest.strip_suffix(".log.gz")).unwrap_or(&made);
        assert_eq!(hash.len(), 8, "{made}");
        assert_eq!(key(&place, "n1", at, "text"), made);
        assert_ne!(key(&place, "n2", at, "text"), made);
        assert_eq!(path(&label("fl-1")), "/-/tiers/flow-logs/logs/a%20b/%C3%BC.log.gz?account=000000000001");
    }

    #[test]
    fn what_is_kept_is_read_again_in_its_order_and_what_was_half_written_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().join("flow-logs")).unwrap();
        spool.keep(&label("fl-2"), 120_000, "second\n").unwrap();
        spool.keep(&label("fl-1"), 60_000, "first\n").unwrap();
        spool.keep(&label("fl-1"), 60_000, "first\n").unwrap();
        std::fs::write(dir.path().join("flow-logs/0-half.part"), "{").unwrap();
        let spool = Spool::open(dir.path().join("flow-logs")).unwrap();
        let waiting = spool.waiting().unwrap();
        assert_eq!(waiting.len(), 2);
        let (told, bytes) = read(&waiting[0]).unwrap().unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        assert_eq!((told, text.as_str()), (label("fl-1"), "first\n"));
        assert_eq!(spool.bound().unwrap(), 0);
        assert!(!dir.path().join("flow-logs/0-half.part").exists());
    }
}
