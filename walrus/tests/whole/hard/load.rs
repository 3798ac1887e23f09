//! Many clients at work, each on keys of its own, who remember what they were told: so that after a crash it can be asked
//! whether everything acknowledged is there and whole, and everything else whole or absent.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::StatusCode;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::server::Server;
use crate::client::{Answer, S3, between};

const ACTORS: usize = 8;
const SSE_C: &str = "an SSE-C key of thirty-two bytes";

/// What an object is, so that it can be made again.
#[derive(Debug, Clone, PartialEq)]
struct Thing {
    seed: u64,
    size: usize,
    cover: Cover,
    /// None: not known, for the answer did not come.
    etag: Option<String>,
    crc32: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cover {
    Plain,
    Server,
    Client,
}

impl Cover {
    fn headers(self) -> Vec<(&'static str, String)> {
        match self {
            Cover::Plain => Vec::new(),
            Cover::Server => vec![("x-amz-server-side-encryption", "AES256".into())],
            Cover::Client => {
                let md5 = openssl::hash::hash(openssl::hash::MessageDigest::md5(), SSE_C.as_bytes()).unwrap();
                vec![
                    ("x-amz-server-side-encryption-customer-algorithm", "AES256".into()),
                    ("x-amz-server-side-encryption-customer-key", STANDARD.encode(SSE_C)),
                    ("x-amz-server-side-encryption-customer-key-md5", STANDARD.encode(md5)),
                ]
            }
        }
    }
    /// What a reader has to say.
    fn to_read(self) -> Vec<(&'static str, String)> {
        if self == Cover::Client { self.headers() } else { Vec::new() }
    }
}

pub fn content(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

impl Thing {
    fn bytes(&self) -> Bytes {
        content(self.seed, self.size)
    }
    /// Whether these are one content, whatever is known of it.
    fn is(&self, answer: &Answer) -> bool {
        answer.status == StatusCode::OK
            && !answer.cut
            && answer.body == self.bytes()
            && self.etag.as_ref().is_none_or(|etag| etag == answer.header("etag"))
            && self.crc32.as_ref().is_none_or(|crc| crc == answer.header("x-amz-checksum-crc32"))
    }
}

type State = Option<Thing>;

#[derive(Debug, Clone)]
struct Key {
    path: String,
    versioned: bool,
    /// Its lifecycle takes it away at any time.
    fleeting: bool,
    now: State,
    /// What it is after the request that was not answered.
    pending: Option<State>,
    versions: Vec<(String, State)>,
    /// A version whose deletion was not answered.
    doomed: Option<String>,
}

/// A multipart upload under way.
#[derive(Debug, Clone)]
struct Upload {
    key: usize,
    id: String,
    parts: Vec<String>,
    /// The object it becomes; what it says may have been asked for already.
    thing: Thing,
}

struct Actor {
    s3: S3,
    name: usize,
    random: StdRng,
    keys: Vec<Key>,
    upload: Option<Upload>,
    done: usize,
}

/// No answer, or that of a server that could not.
struct Unanswered;

pub struct Load {
    actors: Vec<Actor>,
}

fn borrowed<'h>(headers: &'h [(&'static str, String)]) -> Vec<(&'static str, &'h str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

impl Actor {
    fn new(s3: &S3, name: usize, seed: u64) -> Self {
        let key = |n: usize| Key {
            path: match n {
                0..4 => format!("/plain/{name}/{n}"),
                4..6 => format!("/versioned/{name}/{n}"),
                _ => format!("/plain/gone/{name}"),
            },
            versioned: (4..6).contains(&n),
            fleeting: n == 6,
            now: None,
            pending: None,
            versions: Vec::new(),
            doomed: None,
        };
        let random = StdRng::seed_from_u64(seed.wrapping_add(name as u64));
        Self { s3: s3.clone(), name, random, keys: (0..7).map(key).collect(), upload: None, done: 0 }
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Answer, Unanswered> {
        let mut headers = borrowed(headers);
        if body.is_empty() {
            headers.push(("content-length", "0"));
        }
        let request = self.s3.signed(method, path, &headers, body);
        match self.s3.try_send(request).await {
            Some(answer) if answer.cut || answer.status.is_server_error() => Err(Unanswered),
            Some(answer) => {
                assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.text());
                Ok(answer)
            }
            None => Err(Unanswered),
        }
    }

    fn thing(&mut self) -> Thing {
        let random = &mut self.random;
        let size = match random.random_range(0..10) {
            0..4 => random.random_range(0..16_384),
            4..6 => random.random_range(16_384..70_000),
            6..9 => random.random_range(70_000..600_000),
            _ => random.random_range(600_000..1_500_000),
        };
        let cover = *[Cover::Plain, Cover::Plain, Cover::Server, Cover::Client].choose(random).unwrap();
        Thing { seed: random.random(), size, cover, etag: None, crc32: None }
    }

    /// The key is what its pending request made of it.
    fn acknowledged(&mut self, at: usize, answer: &Answer) {
        let key = &mut self.keys[at];
        key.now = key.pending.take().unwrap_or_default();
        if let Some(thing) = &mut key.now
            && thing.etag.is_none()
        {
            thing.etag = Some(answer.header("etag").to_owned()).filter(|etag| !etag.is_empty());
        }
        if key.versioned {
            let version = answer.header("x-amz-version-id").to_owned();
            assert!(!version.is_empty(), "{}: no version", key.path);
            key.versions.push((version, key.now.clone()));
        }
        self.done += 1;
    }

    async fn something(&mut self) -> Result<(), Unanswered> {
        let at = self.random.random_range(0..self.keys.len());
        match self.random.random_range(0..20) {
            0..9 => self.put(at).await,
            9..12 => self.multipart(at).await,
            12..14 => self.copy(at).await,
            14..16 => self.delete(at).await,
            16..18 => self.delete_many().await,
            _ => self.delete_version().await,
        }
    }

    async fn put(&mut self, at: usize) -> Result<(), Unanswered> {
        let mut thing = self.thing();
        let mut headers = thing.cover.headers();
        let body = thing.bytes();
        if self.random.random_bool(0.5) {
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &body) as u32;
            let crc = STANDARD.encode(crc.to_be_bytes());
            headers.push(("x-amz-checksum-crc32", crc.clone()));
            thing.crc32 = Some(crc);
        }
        self.keys[at].pending = Some(Some(thing));
        let answer = self.ask("PUT", &self.keys[at].path, &headers, body).await?;
        self.acknowledged(at, &answer);
        Ok(())
    }

    async fn multipart(&mut self, at: usize) -> Result<(), Unanswered> {
        let mut thing =
            Thing { cover: *[Cover::Plain, Cover::Server].choose(&mut self.random).unwrap(), ..self.thing() };
        // Seldom two parts: the first of two has 5 MiB.
        let first = if self.random.random_bool(0.1) { 5 << 20 } else { thing.size };
        if first > thing.size {
            thing.size += first;
        }
        let path = self.keys[at].path.clone();
        let answer = self.ask("POST", &format!("{path}?uploads"), &thing.cover.headers(), Bytes::new()).await?;
        let id = between(&answer.text(), "<UploadId>", "<").unwrap().to_owned();
        let mut upload = Upload { key: at, id, parts: Vec::new(), thing };
        let bytes = upload.thing.bytes();
        let pieces = if first < bytes.len() { vec![bytes.slice(..first), bytes.slice(first..)] } else { vec![bytes] };
        for (n, piece) in pieces.into_iter().enumerate() {
            let part = format!("{path}?partNumber={}&uploadId={}", n + 1, upload.id);
            let answer = self.ask("PUT", &part, &[], piece).await?;
            upload.parts.push(answer.header("etag").to_owned());
        }
        self.upload = Some(upload);
        self.complete().await
    }

    /// Completes the upload under way, perhaps for the second time.
    async fn complete(&mut self) -> Result<(), Unanswered> {
        let Some(upload) = self.upload.clone() else { return Ok(()) };
        self.keys[upload.key].pending = Some(Some(upload.thing.clone()));
        let parts = upload.parts.iter().enumerate();
        let parts: String = parts
            .map(|(n, etag)| format!("<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", n + 1))
            .collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let path = format!("{}?uploadId={}", self.keys[upload.key].path, upload.id);
        let answer = self.ask("POST", &path, &[], body.into()).await?;
        assert!(answer.text().contains("<ETag>"), "{}", answer.text());
        self.acknowledged(upload.key, &answer);
        self.upload = None;
        Ok(())
    }

    async fn copy(&mut self, at: usize) -> Result<(), Unanswered> {
        let sources: Vec<&Key> = self.keys.iter().filter(|key| !key.fleeting).collect();
        let plain = |key: &&&Key| key.now.as_ref().is_some_and(|thing| thing.cover != Cover::Client);
        let sources: Vec<&Key> = sources.iter().filter(plain).copied().collect();
        let Some(source) = sources.choose(&mut self.random) else { return Ok(()) };
        // Onto itself it would change nothing, which S3 refuses.
        if source.path == self.keys[at].path {
            return Ok(());
        }
        let (from, thing) = (source.path.clone(), source.now.clone().unwrap());
        self.keys[at].pending = Some(Some(Thing { etag: None, cover: Cover::Plain, crc32: None, ..thing }));
        let answer = self.ask("PUT", &self.keys[at].path, &[("x-amz-copy-source", from)], Bytes::new()).await?;
        assert!(answer.text().contains("<ETag>"), "{}", answer.text());
        self.acknowledged(at, &answer);
        Ok(())
    }

    async fn delete(&mut self, at: usize) -> Result<(), Unanswered> {
        self.keys[at].pending = Some(None);
        let answer = self.ask("DELETE", &self.keys[at].path, &[], Bytes::new()).await?;
        self.acknowledged(at, &answer);
        Ok(())
    }

    async fn delete_many(&mut self) -> Result<(), Unanswered> {
        let keys: BTreeSet<usize> = (0..3).map(|_| self.random.random_range(0..4)).collect();
        let objects: String = keys
            .iter()
            .map(|at| format!("<Object><Key>{}</Key></Object>", self.keys[*at].path.strip_prefix("/plain/").unwrap()))
            .collect();
        keys.iter().for_each(|at| self.keys[*at].pending = Some(None));
        let body = Bytes::from(format!("<Delete>{objects}</Delete>"));
        let md5 = openssl::hash::hash(openssl::hash::MessageDigest::md5(), &body).unwrap();
        let headers = [("content-md5", STANDARD.encode(md5))];
        let answer = self.ask("POST", "/plain?delete", &headers, body).await?;
        if answer.text().contains("<Error>") {
            return Err(Unanswered);
        }
        for at in keys {
            (self.keys[at].now, self.keys[at].pending) = (None, None);
            self.done += 1;
        }
        Ok(())
    }

    /// The oldest of a key that has many.
    async fn delete_version(&mut self) -> Result<(), Unanswered> {
        let Some(at) = (0..self.keys.len()).find(|at| self.keys[*at].versions.len() > 4) else { return Ok(()) };
        let version = self.keys[at].versions[0].0.clone();
        self.keys[at].doomed = Some(version.clone());
        self.ask("DELETE", &format!("{}?versionId={version}", self.keys[at].path), &[], Bytes::new()).await?;
        self.keys[at].versions.remove(0);
        self.keys[at].doomed = None;
        self.done += 1;
        Ok(())
    }

    async fn read(&self, path: &str, thing: Option<&Thing>) -> Answer {
        let mut headers = thing.map(|thing| thing.cover.to_read()).unwrap_or_default();
        headers.push(("x-amz-checksum-mode", "ENABLED".into()));
        self.s3.call("GET", path, &borrowed(&headers), "").await
    }

    /// Whether the object there is this.
    async fn finds(&self, path: &str, state: &State) -> bool {
        let answer = self.read(path, state.as_ref()).await;
        match state {
            None => answer.status == StatusCode::NOT_FOUND || answer.header("x-amz-delete-marker") == "true",
            Some(thing) => thing.is(&answer),
        }
    }

    /// Compares everything with what was told, and takes note of which unanswered requests were done all the same.
    async fn settle(&mut self) {
        for at in 0..self.keys.len() {
            let mut key = self.keys[at].clone();
            let pending = key.pending.take();
            let mut came = false;
            if !self.finds(&key.path, &key.now).await {
                let other = match &pending {
                    Some(state) if self.finds(&key.path, state).await => Some(state.clone()),
                    _ if key.fleeting && self.finds(&key.path, &None).await => Some(None),
                    _ => None,
                };
                came = other.is_some();
                key.now = match other {
                    Some(state) => state,
                    None => {
                        let found = self.read(&key.path, key.now.as_ref()).await;
                        panic!(
                            "{} is {} ({} bytes, {} {}), and neither {:?} nor {pending:?}",
                            key.path,
                            found.status,
                            found.body.len(),
                            found.header("etag"),
                            found.code(),
                            key.now
                        )
                    }
                };
            }
            if key.versioned {
                self.settle_versions(&mut key, pending.is_some(), came).await;
            }
            self.keys[at] = key;
        }
        // The parts were acknowledged, so the upload can be completed; if it was, it is told again.
        if let Some(upload) = self.upload.clone() {
            let versions = self.keys[upload.key].versions.len();
            let was = self.keys[upload.key].now.as_ref().is_some_and(|now| now.seed == upload.thing.seed);
            assert!(self.complete().await.is_ok(), "{}: cannot be completed", upload.id);
            let key = &mut self.keys[upload.key];
            if was && key.versioned {
                key.versions.truncate(versions);
            }
            let (path, now) = (key.path.clone(), key.now.clone());
            let fleeting = self.keys[upload.key].fleeting;
            assert!(self.finds(&path, &now).await || fleeting, "{path}: not what was completed");
        }
    }

    async fn settle_versions(&mut self, key: &mut Key, pending: bool, came: bool) {
        let listed = self.listed(&key.path).await;
        if let Some(doomed) = key.doomed.take()
            && !listed.contains(&doomed)
        {
            key.versions.retain(|(version, _)| *version != doomed);
        }
        for (version, state) in &key.versions {
            assert!(listed.contains(version), "{}: version {version} is lost", key.path);
            let path = format!("{}?versionId={version}", key.path);
            let answer = self.read(&path, state.as_ref()).await;
            match state {
                Some(thing) => assert!(thing.is(&answer), "{path}: {} instead of {thing:?}", answer.status),
                None => assert_eq!(answer.status.as_u16(), 405, "{path}: no delete marker"),
            }
        }
        let known: BTreeSet<String> = key.versions.iter().map(|(version, _)| version.clone()).collect();
        let more: Vec<String> = listed.difference(&known).cloned().collect();
        // A deletion of what is not there leaves nothing to see but its marker.
        assert!(more.len() <= usize::from(pending), "{}: unknown versions {more:?}", key.path);
        assert!(!came || more.len() == 1, "{}: a new object without a version", key.path);
        key.versions.extend(more.into_iter().map(|version| (version, key.now.clone())));
    }

    async fn listed(&self, path: &str) -> BTreeSet<String> {
        let key = path.strip_prefix("/versioned/").unwrap();
        let answer = self.s3.get(&format!("/versioned?versions&prefix={key}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let text = answer.text();
        text.split("<VersionId>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
    }
}

impl Load {
    /// Makes the buckets; every line of what follows is decided by `seed`, up to when a crash comes.
    pub async fn new(s3: &S3, seed: u64) -> Self {
        for bucket in ["/plain", "/versioned"] {
            assert_eq!(s3.put(bucket, "").await.status, StatusCode::OK);
        }
        let versioning = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        assert_eq!(s3.put("/versioned?versioning", versioning).await.status, StatusCode::OK);
        let lifecycle =
            "<LifecycleConfiguration><Rule><ID>g</ID><Filter><Prefix>gone/</Prefix></Filter><Status>Enabled</Status>
            <Expiration><Date>2020-01-01T00:00:00Z</Date></Expiration></Rule></LifecycleConfiguration>";
        let answer = s3.put("/plain?lifecycle", lifecycle).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        Self { actors: (0..ACTORS).map(|name| Actor::new(s3, name, seed)).collect() }
    }

    /// Works until `crash` has done its worst; each stops at its first request that is not answered.
    pub async fn until(&mut self, crash: impl Future<Output = ()>) {
        let stop = Arc::new(AtomicBool::new(false));
        let working: Vec<_> = std::mem::take(&mut self.actors)
            .into_iter()
            .map(|mut actor| {
                let stop = stop.clone();
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) && actor.something().await.is_ok() {}
                    actor
                })
            })
            .collect();
        crash.await;
        stop.store(true, Ordering::Relaxed);
        for actor in working {
            self.actors.push(actor.await.unwrap());
        }
    }

    /// Looks at everything.
    pub async fn settle(&mut self, s3: &S3) {
        let settling: Vec<_> = std::mem::take(&mut self.actors)
            .into_iter()
            .map(|mut actor| {
                actor.s3 = s3.clone();
                tokio::spawn(async move {
                    actor.settle().await;
                    actor
                })
            })
            .collect();
        for actor in settling {
            self.actors.push(actor.await.unwrap());
        }
    }

    /// Requests that were acknowledged.
    pub fn done(&self) -> usize {
        self.actors.iter().map(|actor| actor.done).sum()
    }

    /// Deletes all there is, so that nothing may be left of it.
    pub async fn delete_everything(&mut self, s3: &S3) {
        for actor in &self.actors {
            for key in &actor.keys {
                if !key.versioned {
                    s3.call("DELETE", &key.path, &[], "").await;
                }
                for (version, _) in &key.versions {
                    let path = format!("{}?versionId={version}", key.path);
                    assert_eq!(
                        s3.call("DELETE", &path, &[], "").await.status,
                        StatusCode::NO_CONTENT,
                        "{}",
                        actor.name
                    );
                }
            }
        }
        for bucket in ["plain", "versioned"] {
            abort_all(s3, bucket).await;
            let left = s3.get(&format!("/{bucket}?versions")).await.text();
            assert!(!left.contains("<Key>"), "{left}");
        }
    }
}

async fn abort_all(s3: &S3, bucket: &str) {
    loop {
        let text = s3.get(&format!("/{bucket}?uploads")).await.text();
        let uploads: Vec<&str> = text.split("<Upload>").skip(1).collect();
        if uploads.is_empty() {
            return;
        }
        for upload in uploads {
            let (key, id) = (between(upload, "<Key>", "<").unwrap(), between(upload, "<UploadId>", "<").unwrap());
            let answer = s3.call("DELETE", &format!("/{bucket}/{key}?uploadId={id}"), &[], "").await;
            assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text());
        }
    }
}

/// The files that should be there by the rows, and those that are.
fn files(state: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let store = rusqlite::Connection::open_with_flags(state.join("store.db"), flags).unwrap();
    store.busy_timeout(Duration::from_secs(10)).unwrap();
    let mut rows = store
        .prepare(
            "SELECT content FROM object WHERE place = 2 UNION SELECT content FROM old_version WHERE place = 2
             UNION SELECT content FROM digest_blob WHERE place = 2 UNION SELECT content FROM part WHERE place = 2",
        )
        .unwrap();
    let wanted = rows.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap).collect();
    let folders = std::fs::read_dir(state.join("blobs")).unwrap().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten());
    (wanted, files.map(|file| file.file_name().to_string_lossy().into_owned()).collect())
}

/// Waits until there are just the files that rows refer to.
pub async fn no_orphans(server: &Server, state: &Path) {
    for _ in 0..600 {
        let (wanted, there) = files(state);
        if wanted == there {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (wanted, there) = files(state);
    let orphans: Vec<_> = there.difference(&wanted).collect();
    let lost: Vec<_> = wanted.difference(&there).collect();
    panic!("after the sweep there are files of nobody {orphans:?} and rows without files {lost:?}\n{}", server.log());
}

/// Waits until nothing is left: no file, no small content, no part.
pub async fn nothing_left(server: &Server, state: &Path) {
    no_orphans(server, state).await;
    for _ in 0..600 {
        let store = rusqlite::Connection::open(state.join("store.db")).unwrap();
        store.busy_timeout(Duration::from_secs(10)).unwrap();
        let count =
            |table: &str| store.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0));
        let left: Vec<i64> = ["object", "old_version", "small", "part"].iter().map(|t| count(t).unwrap()).collect();
        if left == [0, 0, 0, 0] && files(state).1.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("bytes are left that nothing refers to: {:?}", files(state));
}
