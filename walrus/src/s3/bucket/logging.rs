//! Server access logging: who asked what of a bucket, delivered as objects into a bucket of the same owner.
//!
//! A line is made when a request is answered, and kept as a row soon after, many at a time: what was answered in the
//! last moments before a crash may be missing, as AWS warns of its own logs. From the row on it is delivered once: the
//! object and the end of its rows are one transaction ([`Delivery`]).

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Response, StatusCode, header};
use mallee_aws::{AwsError, document};
use mallee_service::{Body, PassReport, Poke, Reconciler};
use mallee_store::{Store, Tx, params};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::{Bucket, BucketId, find, find_by_id, opened, settings::update};
use crate::{
    Error, Walrus,
    access::{Action, allow},
    call::{Call, Payload, Query, Target},
    circumstances::Wire,
    error::refuse,
    principal::{Account, Principal},
    s3::{
        condition::Conditions,
        done,
        object::{put::Draft, version::replace},
        xml,
    },
};

pub const TABLES: &str = "
    CREATE TABLE access_log (
        id TEXT PRIMARY KEY,
        bucket BIGINT NOT NULL REFERENCES bucket (id) ON DELETE CASCADE,
        at BIGINT NOT NULL,
        line TEXT NOT NULL
    );
    CREATE INDEX access_log_by_bucket ON access_log (bucket, at);
";

/// Where a bucket's log goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logging {
    pub bucket: String,
    pub prefix: String,
    /// Keys by day and source, instead of one after the other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partitioned: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logging_enabled: Option<Enabled>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Enabled {
    target_bucket: String,
    target_prefix: String,
    #[serde(default, skip_serializing)]
    target_grants: Option<Nothing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_object_key_format: Option<KeyFormat>,
}

#[derive(Serialize, Deserialize)]
struct Nothing {}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct KeyFormat {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    simple_prefix: Option<Nothing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partitioned_prefix: Option<Partitioned>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Partitioned {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    partition_date_source: Option<String>,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketLogging).await?;
    let logging_enabled = bucket.settings.logging.map(|logging| Enabled {
        target_bucket: logging.bucket,
        target_prefix: logging.prefix,
        target_grants: None,
        target_object_key_format: logging.partitioned.then(|| KeyFormat {
            simple_prefix: None,
            partitioned_prefix: Some(Partitioned { partition_date_source: Some("DeliveryTime".into()) }),
        }),
    });
    xml("BucketLoggingStatus", &Status { logging_enabled })
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketLogging).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Status = document::parse(&body, "BucketLoggingStatus", document::Limits::SMALL)?;
    let logging = match asked.logging_enabled {
        None => None,
        Some(enabled) => Some(checked(walrus, &bucket, enabled).await?),
    };
    let (name, owner) = (bucket.name.clone(), logging.is_some().then(|| bucket.owner.clone()));
    update(walrus, bucket, move |settings| settings.logging = logging.clone()).await?;
    walrus.access_logs.know(&name, owner);
    Ok(done(StatusCode::OK))
}

async fn checked(walrus: &Walrus, source: &Bucket, enabled: Enabled) -> Result<Logging, Error> {
    if enabled.target_grants.is_some() {
        return Err(refuse::not_implemented("Granting access to delivered logs (TargetGrants)"));
    }
    let format = enabled.target_object_key_format;
    let partition = format.as_ref().and_then(|format| format.partitioned_prefix.as_ref());
    if partition.and_then(|p| p.partition_date_source.as_deref()).is_some_and(|date| date != "DeliveryTime") {
        return Err(refuse::not_implemented("Partitioning logs by the time of events"));
    }
    let logging =
        Logging { bucket: enabled.target_bucket, prefix: enabled.target_prefix, partitioned: partition.is_some() };
    let invalid = |message: &str, target: &str| {
        Error::Refused(
            AwsError::bad_request("InvalidTargetBucketForLogging", message).with_field("TargetBucket", target),
        )
    };
    let name = logging.bucket.clone();
    let target = match walrus.store.read("find a bucket", move |tx| find(tx, &name)).await {
        Err(Error::Refused(_)) => {
            return Err(invalid("The target bucket for logging does not exist", &logging.bucket));
        }
        target => target?,
    };
    if target.owner != source.owner {
        return Err(invalid(
            "The owner for the bucket to be logged and the target bucket must be the same.",
            &target.name,
        ));
    }
    if !deliverable(walrus, &target, &logging.prefix) {
        return Err(invalid(
            "You must give the log-delivery group WRITE and READ_ACP permissions to the target bucket",
            &target.name,
        ));
    }
    Ok(logging)
}

fn deliverer(walrus: &Walrus, target: &Bucket) -> Option<Principal> {
    let account: Account = walrus.holders.by_canonical_id(&target.owner)?;
    Some(Principal::log_delivery(account))
}

/// Whether the target's owner lets logs in: by the log delivery group in its list, or by its policy.
fn deliverable(walrus: &Walrus, target: &Bucket, key: &str) -> bool {
    deliverer(walrus, target).is_some_and(|who| allow(&who, Action::PutObject, target.key(key, None)))
}

/// Which buckets are logged, and the way of their lines to the store.
pub struct AccessLogs {
    /// By name, with the canonical id of the owner.
    logged: RwLock<HashMap<String, String>>,
    lines: mpsc::Sender<(String, i64, String)>,
}

/// Lines that wait to become rows; beyond, they are lost, which is better than requests that wait for them.
const WAITING: usize = 10_000;

impl AccessLogs {
    /// Also starts what turns lines into rows, until the runtime ends.
    pub fn start(store: Store, poke: Poke) -> Self {
        let (lines, mut waiting) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let mut batch: Vec<(String, i64, String)> = Vec::new();
            while waiting.recv_many(&mut batch, 500).await > 0 {
                let lines = std::mem::take(&mut batch);
                let kept = store.write("keep access log lines", move |tx| keep(tx, &lines)).await;
                match kept {
                    Ok(()) => poke.poke(),
                    Err(e) => tracing::error!(error = %e, "access log lines were lost"),
                }
            }
        });
        Self { logged: RwLock::default(), lines }
    }

    fn know(&self, bucket: &str, owner: Option<String>) {
        let mut logged = self.logged.write().unwrap_or_else(PoisonError::into_inner);
        match owner {
            Some(owner) => logged.insert(bucket.to_owned(), owner),
            None => logged.remove(bucket),
        };
    }

    fn learn(&self, buckets: HashMap<String, String>) {
        *self.logged.write().unwrap_or_else(PoisonError::into_inner) = buckets;
    }

    /// The owner of a bucket whose requests are logged.
    pub fn owner(&self, bucket: &str) -> Option<String> {
        self.logged.read().unwrap_or_else(PoisonError::into_inner).get(bucket).cloned()
    }

    pub fn take(&self, bucket: &str, at: i64, line: String) {
        if self.lines.try_send((bucket.to_owned(), at, line)).is_err() {
            tracing::warn!(bucket, "an access log line was lost: the store is behind");
        }
    }
}

fn keep(tx: &mut Tx<'_>, lines: &[(String, i64, String)]) -> Result<(), Error> {
    for (at_line, (bucket, at, line)) in lines.iter().enumerate() {
        // A request has one id, and a line of it one place in the batch.
        let id = format!("{at:016X}{at_line:04X}{}", line.split(' ').nth(6).unwrap_or_default());
        tx.execute(
            "INSERT INTO access_log (id, bucket, at, line) SELECT ?1, id, ?3, ?4 FROM bucket WHERE name = ?2
             ON CONFLICT DO NOTHING",
            params![id, bucket, at, line],
        )?;
    }
    Ok(())
}

/// What a line tells of.
pub struct Logged<'l> {
    pub bucket: &'l str,
    pub key: &'l str,
    pub operation: &'l str,
    pub method: &'l Method,
    /// The raw path and query.
    pub target: &'l str,
    pub headers: &'l HeaderMap,
    pub principal: &'l Principal,
    pub wire: Wire,
    pub request_id: &'l str,
    pub response: &'l Response<Body>,
    pub error: Option<&'l str>,
    pub now: i64,
    pub begun: Instant,
}

/// One line of S3's format ("Amazon S3 server access log format"). The owner is put in at the front.
pub fn line(owner: &str, logged: &Logged<'_>) -> String {
    let absent = || "-".to_owned();
    let clean = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_control() || c == '"' { format!("%{:02X}", u32::from(c)) } else { c.to_string() })
            .collect()
    };
    let quoted = |text: Option<&str>| text.map_or_else(absent, |text| format!("\"{}\"", clean(text)));
    let header = |name: header::HeaderName| logged.headers.get(name).and_then(|value| value.to_str().ok());
    let answered = |name: &str| logged.response.headers().get(name).and_then(|value| value.to_str().ok());
    let requester = logged.principal.account().map_or_else(absent, |account| account.canonical_id.clone());
    let remote = logged.wire.remote.map_or_else(absent, |ip| ip.to_canonical().to_string());
    let key = if logged.key.is_empty() { absent() } else { crate::s3::object::post::encoded(logged.key) };
    let status = logged.response.status();
    let length = answered("content-length").map(str::to_owned);
    let read = status.is_success() && *logged.method == Method::GET;
    let sent = length.clone().filter(|_| read).unwrap_or_else(absent);
    let size = answered("content-range")
        .and_then(|range| range.rsplit_once('/').map(|(_, size)| size.to_owned()))
        .or(length.filter(|_| read && !logged.key.is_empty()))
        .unwrap_or_else(absent);
    let context = |key: &str| logged.principal.context.values(key).first().cloned();
    let version_of_signature = match context("s3:signatureversion").as_deref() {
        Some("AWS") => "SigV2",
        Some(_) => "SigV4",
        None => "-",
    };
    let auth = match context("s3:authType").as_deref() {
        Some("REST-HEADER") => "AuthHeader",
        Some("REST-QUERY-STRING") => "QueryString",
        Some("POST") => "POST",
        _ => "-",
    };
    let took = logged.begun.elapsed().as_millis();
    [
        owner.to_owned(),
        logged.bucket.to_owned(),
        format!("[{}]", log_time(logged.now)),
        remote,
        requester,
        logged.request_id.to_owned(),
        operation_name(logged),
        key,
        format!("\"{} {} HTTP/1.1\"", logged.method, clean(logged.target)),
        status.as_u16().to_string(),
        logged.error.map_or_else(absent, str::to_owned),
        sent,
        size,
        took.to_string(),
        took.to_string(),
        quoted(header(header::REFERER)),
        quoted(header(header::USER_AGENT)),
        answered("x-amz-version-id").map_or_else(absent, str::to_owned),
        logged.request_id.to_owned(),
        version_of_signature.to_owned(),
        absent(),
        auth.to_owned(),
        header(header::HOST).map_or_else(absent, clean),
        if logged.wire.tls { "TLSv1.2".to_owned() } else { absent() },
        absent(),
        absent(),
    ]
    .join(" ")
}

/// `REST.GET.OBJECT`. The words are S3's, which are not those of its API.
fn operation_name(logged: &Logged<'_>) -> String {
    const WORDS: [(&str, &str); 24] = [
        ("Acl", "ACL"),
        ("Tagging", "TAGGING"),
        ("Location", "LOCATION"),
        ("Versions", "BUCKETVERSIONS"),
        ("Versioning", "VERSIONING"),
        ("Cors", "CORS"),
        ("Policy", "BUCKETPOLICY"),
        ("PolicyStatus", "POLICY_STATUS"),
        ("PublicAccessBlock", "PUBLIC_ACCESS_BLOCK"),
        ("OwnershipControls", "OWNERSHIP_CONTROLS"),
        ("Website", "WEBSITE"),
        ("Encryption", "ENCRYPTION"),
        ("Logging", "LOGGING_STATUS"),
        ("NotificationConfiguration", "NOTIFICATION"),
        ("RequestPayment", "REQUEST_PAYMENT"),
        ("LifecycleConfiguration", "LIFECYCLE"),
        ("LockConfiguration", "OBJECT_LOCK_CONFIGURATION"),
        ("Retention", "RETENTION"),
        ("LegalHold", "LEGAL_HOLD"),
        ("DeleteObjects", "MULTI_OBJECT_DELETE"),
        ("CreateMultipartUpload", "UPLOADS"),
        ("MultipartUploads", "UPLOADS"),
        ("MultipartUpload", "UPLOAD"),
        ("Parts", "UPLOAD"),
    ];
    let word = WORDS.iter().find(|(end, _)| logged.operation.ends_with(end)).map(|(_, word)| *word);
    let what = match word {
        Some(word) => word,
        None if logged.operation.starts_with("UploadPart") => "PART",
        None if logged.key.is_empty() => "BUCKET",
        None => "OBJECT",
    };
    let verb = if logged.operation == "CopyObject" { "COPY" } else { logged.method.as_str() };
    format!("REST.{verb}.{what}")
}

fn log_time(now: i64) -> String {
    let format = time::macros::format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");
    OffsetDateTime::from_unix_timestamp(now.div_euclid(1000))
        .ok()
        .and_then(|at| at.format(format).ok())
        .unwrap_or_default()
}

/// Lines of one log object.
const MOST_LINES: usize = 5_000;

/// Turns rows into objects.
pub struct Delivery {
    pub walrus: Arc<Walrus>,
    /// How long lines wait for others to fill an object with.
    pub after_ms: i64,
}

#[async_trait::async_trait]
impl Reconciler for Delivery {
    fn name(&self) -> &'static str {
        "log delivery"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport::default();
        match self.once().await {
            Ok(count) => {
                report.changed = count as u64;
                report.again = Some(Duration::from_millis(self.after_ms.clamp(50, 60_000) as u64));
            }
            Err(e) => report.error(e),
        }
        report
    }
}

impl Delivery {
    async fn once(&self) -> Result<usize, Error> {
        let due = self.walrus.clock.now_ms() - self.after_ms;
        let (logged, buckets) = self
            .walrus
            .store
            .read("find access logs", move |tx| {
                // Also what another walrus of the same store has changed.
                let logged =
                    tx.query("SELECT name, owner FROM bucket WHERE settings LIKE '%\"logging\"%'", params![], |row| {
                        Ok((row.get::<String>(0)?, row.get::<String>(1)?))
                    })?;
                let buckets =
                    tx.query("SELECT DISTINCT bucket FROM access_log WHERE at <= ?1", params![due], |row| {
                        row.get::<BucketId>(0)
                    })?;
                Ok::<_, Error>((logged, buckets))
            })
            .await?;
        self.walrus.access_logs.learn(logged.into_iter().collect());
        let mut delivered = 0;
        for bucket in buckets {
            delivered += self.deliver(bucket).await?;
        }
        Ok(delivered)
    }

    async fn deliver(&self, source: BucketId) -> Result<usize, Error> {
        let walrus = &*self.walrus;
        let (source, target, rows) = walrus
            .store
            .read("read an access log", move |tx| {
                let source = find_by_id(tx, source)?;
                let logging = source.as_ref().and_then(|source| source.settings.logging.as_ref());
                let target = match logging.map(|logging| find(tx, &logging.bucket)) {
                    None | Some(Err(Error::Refused(_))) => None,
                    Some(target) => Some(target?),
                };
                let rows = match &source {
                    None => Vec::new(),
                    Some(source) => tx.query(
                        "SELECT id, line FROM access_log WHERE bucket = ?1 ORDER BY at, id LIMIT ?2",
                        params![source.id, MOST_LINES],
                        |row| Ok((row.get::<String>(0)?, row.get::<String>(1)?)),
                    )?,
                };
                Ok::<_, Error>((source, target, rows))
            })
            .await?;
        let Some(source) = source.filter(|_| !rows.is_empty()) else { return Ok(0) };
        let ids: Vec<String> = rows.iter().map(|(id, _)| id.clone()).collect();
        let fault = format!("logging.{}", source.name);
        let Some((logging, target)) = source.settings.logging.clone().zip(target) else {
            // Logging is off, or its bucket is gone: nobody wants these lines any more.
            walrus.store.write("drop an access log", move |tx| strike(tx, &ids)).await?;
            return Ok(0);
        };
        if target.owner != source.owner || !deliverable(walrus, &target, &logging.prefix) {
            walrus.faults.raise(
                &fault,
                format!("the access log of {} cannot be delivered: {} does not let it in", source.name, target.name),
                "give the log delivery group WRITE in the target bucket's ACL, or let logging.s3.amazonaws.com in by its policy",
            );
            walrus.store.write("drop an access log", move |tx| strike(tx, &ids)).await?;
            return Ok(0);
        }
        walrus.faults.clear(&fault);
        let mut text = String::new();
        for (_, line) in &rows {
            text.push_str(line);
            text.push('\n');
        }
        let now = walrus.clock.now_ms();
        self.store_log(&source, target, key(walrus, &logging, &source, now), text, ids, now).await?;
        Ok(rows.len())
    }

    /// The object, and the end of its rows.
    async fn store_log(
        &self,
        source: &Bucket,
        target: Bucket,
        key: String,
        text: String,
        ids: Vec<String>,
        now: i64,
    ) -> Result<(), Error> {
        let walrus = &*self.walrus;
        let Some(principal) = deliverer(walrus, &target) else { return Ok(()) };
        let call = Call {
            method: Method::PUT,
            target: Target { bucket: target.name.clone(), key: key.clone() },
            query: Query::default(),
            headers: HeaderMap::from_iter([(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"))]),
            principal,
            region: None,
            wire: Wire::default(),
            payload: Payload::spent(),
            request_id: String::new(),
            now,
            origin: String::new(),
        };
        let draft = Draft::of(walrus, &call, &target, target.owner.clone(), Vec::new())?;
        let mut intake = walrus.intake(false, &[crate::checksum::Algorithm::Crc64Nvme])?.sealed(draft.data_key());
        intake.push(text.into()).await?;
        let received = intake.finish().await?;
        let object = draft.object(&key, now, &received)?;
        let keeping = received.content.keeping();
        let source = source.id;
        walrus
            .store
            .write("deliver an access log", move |tx| {
                let mut object = object.clone();
                // Another walrus of the same store may have been faster.
                let left = tx.query(
                    "SELECT id FROM access_log WHERE bucket = ?1 ORDER BY at, id LIMIT 1",
                    params![source],
                    |row| row.get::<String>(0),
                )?;
                if left.first() != ids.first() {
                    return Err(refuse::coded("OperationAborted", 409, "The log has been delivered meanwhile."));
                }
                keeping.keep(tx)?;
                replace(tx, &target, &mut object, &Conditions::default())?;
                strike(tx, &ids)
            })
            .await?;
        received.content.keep();
        Ok(())
    }
}

fn strike(tx: &mut Tx<'_>, ids: &[String]) -> Result<(), Error> {
    for id in ids {
        tx.execute("DELETE FROM access_log WHERE id = ?1", params![id])?;
    }
    Ok(())
}

/// `PREFIX2026-01-31-23-59-59-0123456789ABCDEF`
fn key(walrus: &Walrus, logging: &Logging, source: &Bucket, now: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(now.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let second = time::macros::format_description!("[year]-[month]-[day]-[hour]-[minute]-[second]");
    let day = time::macros::format_description!("[year]/[month]/[day]");
    let (second, day) = (at.format(second).unwrap_or_default(), at.format(day).unwrap_or_default());
    let unique = rand::random::<u64>();
    if logging.partitioned {
        let (account, region) = (&source.account, walrus.region());
        return format!("{}{account}/{region}/{}/{day}/{second}-{unique:016X}", logging.prefix, source.name);
    }
    format!("{}{second}-{unique:016X}", logging.prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_cannot_be_broken_out_of() {
        let headers = HeaderMap::from_iter([(header::USER_AGENT, "a\"b c".parse().unwrap())]);
        let response = done(StatusCode::OK);
        let principal = Principal::anonymous();
        let logged = Logged {
            bucket: "b",
            key: "k \"\n",
            operation: "GetObject",
            method: &Method::GET,
            target: "/b/k%20\"",
            headers: &headers,
            principal: &principal,
            wire: Wire { remote: Some("::ffff:192.0.2.1".parse().unwrap()), tls: false },
            request_id: "R1",
            response: &response,
            error: None,
            now: 1_700_000_000_000,
            begun: Instant::now(),
        };
        let line = line("owner", &logged);
        assert!(
            line.starts_with("owner b [14/Nov/2023:22:13:20 +0000] 192.0.2.1 - R1 REST.GET.OBJECT k%20%22%0A \"GET /b/k%20%22 HTTP/1.1\" 200 - - - "),
            "{line}"
        );
        assert!(line.contains("\"a%22b c\"") && !line.contains('\n'));
    }
}
