//! The sending half of `tests/bench/s3`: one kind of request, again and again over a fixed number of connections, and what
//! it cost both sides, as one line of JSON. Requests are signed by the product's own signer; a body's SHA-256 is part of
//! the signature, as most clients send it.
//!
//! A bench target, so that `cargo clippy` reads it and no test builds it.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use mallee_aws::{
    AccessKeyId, SecretKey,
    signature::{Payload, Signer},
};
use openssl::hash::{MessageDigest, hash};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::net::TcpStream;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// DeleteObjects takes no more.
const DELETED_AT_ONCE: u64 = 1000;
const PART: usize = 16 << 20;
/// Parts of one upload that are sent at the same time.
const PARTS_AT_ONCE: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Makes the bucket.
    Bucket,
    Put,
    Get,
    Head,
    /// Pages of the whole bucket.
    List,
    /// A thousand keys in each request.
    Delete,
    /// Whole uploads of `size` bytes.
    Multipart,
}

impl Kind {
    /// The method of requests that can be sent again as they are.
    fn repeated(self) -> Option<Method> {
        match self {
            Kind::Get => Some(Method::GET),
            Kind::Head => Some(Method::HEAD),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Parser)]
struct Asked {
    kind: Kind,
    #[arg(long)]
    url: Uri,
    #[arg(long)]
    access_key: String,
    #[arg(long)]
    secret: String,
    #[arg(long)]
    region: String,
    #[arg(long)]
    bucket: String,
    #[arg(long, default_value = "")]
    prefix: String,
    #[arg(long, default_value_t = 0)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// New requests begin for so long.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// No more requests than this.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// Keys are PREFIX0 to PREFIX(N-1), in turn.
    #[arg(long, default_value_t = u64::MAX)]
    keys: u64,
    /// Processes of the server.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What all connections share.
struct Load {
    asked: Asked,
    authority: String,
    body: Bytes,
    body_sha256: [u8; 32],
    next: AtomicU64,
    /// Signed before the clock runs, where the same keys are asked for again and again.
    ready: Vec<Request<Full<Bytes>>>,
    until: Instant,
}

fn main() -> Outcome<()> {
    let asked = Asked::parse();
    let body: Bytes = match asked.kind {
        Kind::Put => random(asked.size),
        Kind::Multipart => random(asked.size.min(PART)),
        _ => Bytes::new(),
    };
    let threads = std::thread::available_parallelism()?.get().min(asked.clients);
    let pids = asked.pids.clone();
    let mut load = Load {
        authority: asked.url.authority().ok_or("no authority in the URL")?.to_string(),
        body_sha256: Sha256::digest(&body).into(),
        body,
        next: AtomicU64::new(0),
        ready: Vec::new(),
        until: Instant::now(),
        asked,
    };
    if let Some(method) = load.asked.kind.repeated() {
        let sign = |n| load.request(method.clone(), &load.key(n), &[], Bytes::new());
        load.ready = (0..load.asked.keys).map(sign).collect::<Outcome<_>>()?;
    }
    let begun = Instant::now();
    load.until = begun + Duration::from_secs_f64(load.asked.seconds);
    let load = Arc::new(load);
    let before = cpu_ticks(&pids)?;
    // A runtime for each core, with its own connections: nothing moves between threads.
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let load = load.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let mine = (thread..load.asked.clients).step_by(threads).count();
                runtime.block_on(async {
                    let clients: Vec<_> = (0..mine).map(|_| tokio::spawn(client(load.clone()))).collect();
                    let mut all = Vec::new();
                    for client in clients {
                        all.extend(client.await??);
                    }
                    Ok::<_, Box<dyn Error + Send + Sync>>(all)
                })
            })
        })
        .collect();
    let mut micros = Vec::new();
    for worker in workers {
        micros.extend(worker.join().map_err(|_| "a thread panicked")??);
    }
    let (elapsed, after) = (begun.elapsed().as_secs_f64(), cpu_ticks(&pids)?);
    micros.sort_unstable();
    let at = |share: f64| micros.get(((micros.len() as f64 * share) as usize).min(micros.len().saturating_sub(1)));
    let millis = |share| at(share).map_or(0.0, |micros| f64::from(*micros) / 1000.0);
    let report = serde_json::json!({
        "operations": micros.len(),
        "seconds": elapsed,
        "p50": millis(0.5),
        "p99": millis(0.99),
        "cpu_ticks": after - before,
    });
    #[allow(clippy::print_stdout)]
    {
        println!("{report}");
    }
    Ok(())
}

fn random(size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes.into()
}

/// User and system time of the processes, with that of threads that have ended.
fn cpu_ticks(pids: &[u32]) -> Outcome<u64> {
    let mut sum = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("an odd stat")?.1.split(' ').collect();
        for at in [11, 12] {
            sum += fields.get(at).ok_or("a short stat")?.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// One connection; how long each request took, in microseconds.
async fn client(load: Arc<Load>) -> Outcome<Vec<u32>> {
    let mut connection = Connection::open(load.clone()).await?;
    let (mut micros, mut token) = (Vec::new(), None::<String>);
    while Instant::now() < load.until {
        let n = load.next.fetch_add(1, Ordering::Relaxed);
        if n >= load.asked.count {
            break;
        }
        let key = n % load.asked.keys;
        let begun = match load.asked.kind {
            Kind::Bucket => {
                let request = load.request(Method::PUT, "", &[], Bytes::new())?;
                timed(&mut connection, request).await?.0
            }
            Kind::Put => {
                let request = load.signed(Method::PUT, &load.key(key), &[], load.body.clone(), load.body_sha256)?;
                timed(&mut connection, request).await?.0
            }
            Kind::Get | Kind::Head => {
                let request = load.ready.get(usize::try_from(key)?).ok_or("more keys than were signed")?.clone();
                let (begun, answer) = timed(&mut connection, request).await?;
                if load.asked.kind == Kind::Get && answer.length != load.asked.size {
                    return Err(format!("{} bytes came instead of {}", answer.length, load.asked.size).into());
                }
                begun
            }
            Kind::List => {
                let page = match &token {
                    None => "?list-type=2".to_owned(),
                    Some(token) => {
                        let token = mallee_aws::signature::percent_encode(token.as_bytes());
                        format!("?continuation-token={token}&list-type=2")
                    }
                };
                let request = load.request(Method::GET, &page, &[], Bytes::new())?;
                connection.keep = true;
                let (begun, answer) = timed(&mut connection, request).await?;
                let text = String::from_utf8_lossy(&answer.kept).into_owned();
                token = between(&text, "<NextContinuationToken>", "</NextContinuationToken>");
                begun
            }
            Kind::Delete => {
                let keys = (n * DELETED_AT_ONCE..).take(DELETED_AT_ONCE as usize);
                let keys: String =
                    keys.map(|n| format!("<Object><Key>{}{n}</Key></Object>", load.asked.prefix)).collect();
                let body = format!("<Delete><Quiet>true</Quiet>{keys}</Delete>");
                let md5 = STANDARD.encode(hash(MessageDigest::md5(), body.as_bytes())?);
                let request = load.request(Method::POST, "?delete=", &[("content-md5", &md5)], body.into())?;
                timed(&mut connection, request).await?.0
            }
            Kind::Multipart => {
                let begun = Instant::now();
                upload(&load, &mut connection, &load.key(key)).await?;
                begun
            }
        };
        micros.push(u32::try_from(begun.elapsed().as_micros())?);
    }
    Ok(micros)
}

async fn timed(connection: &mut Connection, request: Request<Full<Bytes>>) -> Outcome<(Instant, Answer)> {
    let begun = Instant::now();
    Ok((begun, connection.send(request).await?))
}

/// A multipart upload, its parts over a few connections at a time.
async fn upload(load: &Arc<Load>, connection: &mut Connection, key: &str) -> Outcome<()> {
    connection.keep = true;
    let answer = connection.send(load.request(Method::POST, &format!("{key}?uploads="), &[], Bytes::new())?).await?;
    let text = String::from_utf8_lossy(&answer.kept).into_owned();
    let id = between(&text, "<UploadId>", "</UploadId>").ok_or("no upload id")?;
    let (parts, next) = (load.asked.size.div_ceil(PART) as u64, Arc::new(AtomicU64::new(1)));
    let senders: Vec<_> = (0..PARTS_AT_ONCE)
        .map(|_| {
            let (load, next) = (load.clone(), next.clone());
            let target =
                format!("{key}?partNumber={{}}&uploadId={}", mallee_aws::signature::percent_encode(id.as_bytes()));
            tokio::spawn(async move {
                let mut connection = Connection::open(load.clone()).await?;
                let mut done = Vec::new();
                loop {
                    let part = next.fetch_add(1, Ordering::Relaxed);
                    if part > parts {
                        return Ok::<_, Box<dyn Error + Send + Sync>>(done);
                    }
                    let target = target.replace("{}", &part.to_string());
                    let request = load.signed(Method::PUT, &target, &[], load.body.clone(), load.body_sha256)?;
                    let answer = connection.send(request).await?;
                    done.push((part, answer.etag.ok_or("a part without an ETag")?));
                }
            })
        })
        .collect();
    let mut done = Vec::new();
    for sender in senders {
        done.extend(sender.await??);
    }
    done.sort_unstable();
    let listed: String = done
        .iter()
        .map(|(part, etag)| format!("<Part><PartNumber>{part}</PartNumber><ETag>{etag}</ETag></Part>"))
        .collect();
    let body = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
    let target = format!("{key}?uploadId={}", mallee_aws::signature::percent_encode(id.as_bytes()));
    let answer = connection.send(load.request(Method::POST, &target, &[], body.into())?).await?;
    // S3 may say "200" first and fail then.
    if String::from_utf8_lossy(&answer.kept).contains("<Error>") {
        return Err(String::from_utf8_lossy(&answer.kept).into());
    }
    Ok(())
}

fn between(text: &str, begin: &str, end: &str) -> Option<String> {
    text.split_once(begin)?.1.split_once(end).map(|(inner, _)| inner.to_owned())
}

impl Load {
    /// As a target within the bucket.
    fn key(&self, n: u64) -> String {
        format!("{}{n}", self.asked.prefix)
    }

    fn request(
        &self,
        method: Method,
        target: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> Outcome<Request<Full<Bytes>>> {
        let sha256 = Sha256::digest(&body).into();
        self.signed(method, target, headers, body, sha256)
    }

    fn signed(
        &self,
        method: Method,
        target: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
        sha256: [u8; 32],
    ) -> Outcome<Request<Full<Bytes>>> {
        let slash = if target.is_empty() || target.starts_with('?') { "" } else { "/" };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/{}{slash}{target}", self.asked.bucket))
            .header("host", &self.authority)
            .body(Full::new(body))?;
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        }
        let (key, secret): (AccessKeyId, _) = (self.asked.access_key.parse()?, SecretKey::new(&self.asked.secret));
        let signer = Signer {
            access_key: &key,
            secret: &secret,
            session_token: None,
            region: &self.asked.region,
            service: "s3",
        };
        signer.sign(&mut request, Payload::SignedHash(sha256), OffsetDateTime::now_utc()).map_err(|e| e.to_string())?;
        Ok(request)
    }
}

struct Connection {
    load: Arc<Load>,
    sender: SendRequest<Full<Bytes>>,
    /// Whether bodies are wanted, and not just their lengths.
    keep: bool,
}

struct Answer {
    length: usize,
    kept: Vec<u8>,
    etag: Option<String>,
}

impl Connection {
    async fn open(load: Arc<Load>) -> Outcome<Self> {
        Ok(Self { sender: Self::dial(&load).await?, load, keep: false })
    }

    async fn dial(load: &Load) -> Outcome<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&load.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Outcome<Answer> {
        // Some servers close connections after so many requests.
        if self.sender.ready().await.is_err() {
            self.sender = Self::dial(&self.load).await?;
        }
        let (head, mut body) = self.sender.send_request(request).await?.into_parts();
        let etag = head.headers.get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        let mut answer = Answer { length: 0, kept: Vec::new(), etag };
        let keep = self.keep || !head.status.is_success();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame?.data_ref() {
                answer.length += data.len();
                if keep {
                    answer.kept.extend_from_slice(data);
                }
            }
        }
        if !head.status.is_success() {
            return Err(format!("{}: {}", head.status, String::from_utf8_lossy(&answer.kept)).into());
        }
        Ok(answer)
    }
}
