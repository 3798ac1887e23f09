//! Event notifications, to webhooks. S3 knows topics, queues and functions of other services, which are not here: they
//! are refused by name. A webhook is one of those the operator has named in walrus' configuration, and clients write it
//! as the ARN `arn:mallee:webhook:::NAME` where they would write a topic's or a queue's. So no user can make walrus send
//! anything to an address of their choosing.
//!
//! An event is a row of the outbox, written in the transaction that makes what it tells of. [`Courier`] delivers it, as
//! often as it takes: at least once, in no certain order.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mallee_aws::{answer::timestamp, document};
use mallee_service::{Body, Clock, Faults, PassReport, Poke, Reconciler};
use mallee_store::{Store, Tx, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Bucket, opened, settings::change};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{
        done,
        object::{Object, post::encoded, version::Removed},
        xml,
    },
};

pub const TABLES: &str = "
    CREATE TABLE notice (
        id TEXT NOT NULL,
        key TEXT NOT NULL,
        configuration TEXT NOT NULL,
        webhook TEXT NOT NULL,
        body TEXT NOT NULL,
        created BIGINT NOT NULL,
        due BIGINT NOT NULL,
        attempts BIGINT NOT NULL,
        PRIMARY KEY (id, key, configuration)
    );
    CREATE INDEX notice_by_due ON notice (due);
";

const ARN: &str = "arn:mallee:webhook:::";
/// By AWS.
const MOST: usize = 100;
/// What walrus tells of.
const EVENTS: [&str; 16] = [
    "s3:ObjectCreated:*",
    "s3:ObjectCreated:Put",
    "s3:ObjectCreated:Post",
    "s3:ObjectCreated:Copy",
    "s3:ObjectCreated:CompleteMultipartUpload",
    "s3:ObjectRemoved:*",
    "s3:ObjectRemoved:Delete",
    "s3:ObjectRemoved:DeleteMarkerCreated",
    "s3:ObjectTagging:*",
    "s3:ObjectTagging:Put",
    "s3:ObjectTagging:Delete",
    "s3:ObjectAcl:Put",
    "s3:LifecycleExpiration:*",
    "s3:LifecycleExpiration:Delete",
    "s3:LifecycleExpiration:DeleteMarkerCreated",
    "s3:TestEvent",
];

/// One of a bucket's notifications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    id: String,
    /// The element it came in, and goes out in.
    #[serde(default)]
    kind: Kind,
    webhook: String,
    events: Vec<String>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    suffix: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    #[default]
    Topic,
    Queue,
}

impl Notification {
    fn wants(&self, event: &str, key: &str) -> bool {
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(begin) => event.starts_with(begin),
            None => pattern == event,
        };
        self.events.iter().any(named) && key.starts_with(&self.prefix) && key.ends_with(&self.suffix)
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Configuration {
    #[serde(rename = "TopicConfiguration", default)]
    topics: Vec<Target>,
    #[serde(rename = "QueueConfiguration", default)]
    queues: Vec<Target>,
    #[serde(rename = "CloudFunctionConfiguration", default, skip_serializing)]
    functions: Vec<Function>,
    #[serde(rename = "EventBridgeConfiguration", default, skip_serializing)]
    bridge: Option<Function>,
}

#[derive(Deserialize)]
struct Function {}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Target {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(default)]
    event: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<Filter>,
}

#[derive(Serialize, Deserialize)]
struct Filter {
    #[serde(rename = "S3Key")]
    key: Option<KeyFilter>,
}

#[derive(Serialize, Deserialize)]
struct KeyFilter {
    #[serde(rename = "FilterRule", default)]
    rules: Vec<FilterRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FilterRule {
    name: String,
    value: String,
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketNotification).await?;
    let mut shown = Configuration::default();
    for notification in &bucket.settings.notifications {
        let rule = |name: &str, value: &String| {
            (!value.is_empty()).then(|| FilterRule { name: name.into(), value: value.clone() })
        };
        let rules: Vec<FilterRule> =
            rule("Prefix", &notification.prefix).into_iter().chain(rule("Suffix", &notification.suffix)).collect();
        let arn = Some(format!("{ARN}{}", notification.webhook));
        let (topic, queue, list) = match notification.kind {
            Kind::Topic => (arn, None, &mut shown.topics),
            Kind::Queue => (None, arn, &mut shown.queues),
        };
        let filter = (!rules.is_empty()).then_some(Filter { key: Some(KeyFilter { rules }) });
        let id = Some(notification.id.clone());
        list.push(Target { id, topic, queue, event: notification.events.clone(), filter });
    }
    xml("NotificationConfiguration", &shown)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketNotification).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Configuration = document::parse(&body, "NotificationConfiguration", document::Limits::SMALL)?;
    let notifications = read(asked, &walrus.webhooks)?;
    let cause = Cause::of(walrus, call, "s3:TestEvent");
    walrus
        .store
        .write("set a bucket's notifications", move |tx| {
            for notification in &notifications {
                let body = json!({
                    "Service": "Amazon S3", "Event": "s3:TestEvent", "Time": timestamp(cause.now),
                    "Bucket": bucket.name, "RequestId": cause.request_id, "HostId": cause.request_id,
                });
                queue(tx, &cause, "", notification, &body.to_string())?;
            }
            change(tx, &bucket, |settings| settings.notifications = notifications.clone())
        })
        .await?;
    walrus.courier.poke();
    Ok(done(StatusCode::OK))
}

fn read(asked: Configuration, webhooks: &Webhooks) -> Result<Vec<Notification>, Error> {
    if !asked.functions.is_empty() {
        return Err(refuse::not_implemented("Notifying a Lambda function"));
    }
    if asked.bridge.is_some() {
        return Err(refuse::not_implemented("Notifying EventBridge"));
    }
    let topics = asked.topics.into_iter().map(|target| (Kind::Topic, target));
    let queues = asked.queues.into_iter().map(|target| (Kind::Queue, target));
    let mut notifications: Vec<Notification> = Vec::new();
    for (kind, target) in topics.chain(queues) {
        let (arn, what) = match kind {
            Kind::Topic => (target.topic, "Notifying an SNS topic"),
            Kind::Queue => (target.queue, "Notifying an SQS queue"),
        };
        let arn = arn.ok_or_else(refuse::malformed_xml)?;
        let Some(webhook) = arn.strip_prefix(ARN) else {
            return Err(refuse::not_implemented(&format!("{what} ({arn}); webhooks are written {ARN}NAME: it")));
        };
        if !webhooks.contains_key(webhook) {
            return Err(refuse::argument(
                &arn,
                "The operator has named no such webhook",
                "Unable to validate the following destination configurations",
            ));
        }
        if target.event.is_empty() {
            return Err(refuse::malformed_xml());
        }
        if let Some(event) = target.event.iter().find(|event| !EVENTS.contains(&event.as_str())) {
            return Err(refuse::argument("Event", event, "The event is not supported for notifications"));
        }
        let (mut prefix, mut suffix) = (String::new(), String::new());
        for rule in target.filter.and_then(|filter| filter.key).map(|key| key.rules).unwrap_or_default() {
            let place = match rule.name.to_ascii_lowercase().as_str() {
                "prefix" => &mut prefix,
                "suffix" => &mut suffix,
                _ => {
                    return Err(refuse::argument(
                        "FilterRule.Name",
                        &rule.name,
                        "filter rule name must be either prefix or suffix",
                    ));
                }
            };
            if !place.is_empty() {
                return Err(refuse::argument(
                    "FilterRule.Name",
                    &rule.name,
                    "Cannot specify more than one prefix or suffix rule in a filter.",
                ));
            }
            *place = rule.value;
        }
        let id = target.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        if id.len() > 255 || notifications.iter().any(|other| other.id == id) {
            return Err(refuse::argument("Id", &id, "Same ID used for multiple configurations. IDs must be unique"));
        }
        notifications.push(Notification { id, kind, webhook: webhook.into(), events: target.event, prefix, suffix });
    }
    if notifications.len() > MOST {
        return Err(refuse::request("A bucket has at most 100 notifications."));
    }
    Ok(notifications)
}

/// Who and what made something happen.
#[derive(Debug, Clone)]
pub struct Cause {
    /// `s3:ObjectCreated:Put`
    event: &'static str,
    id: String,
    region: String,
    principal: String,
    remote: String,
    request_id: String,
    now: i64,
}

impl Cause {
    pub fn of(walrus: &Walrus, call: &Call, event: &'static str) -> Self {
        Self {
            event,
            // Later events of a key have greater ones, as readers of `sequencer` expect.
            id: format!("{:016X}{:08X}", call.now, rand::random::<u32>()),
            region: walrus.region(),
            principal: call
                .principal
                .account()
                .map(|account| account.account.clone())
                .unwrap_or_else(|| "Anonymous".into()),
            remote: call.wire.remote.map(|ip| ip.to_canonical().to_string()).unwrap_or_default(),
            request_id: call.request_id.clone(),
            now: call.now,
        }
    }

    /// What walrus does by itself.
    pub fn own(region: &str, event: &'static str, now: i64) -> Self {
        Self {
            event,
            id: format!("{now:016X}{:08X}", rand::random::<u32>()),
            region: region.to_owned(),
            principal: "s3.amazonaws.com".into(),
            remote: String::new(),
            request_id: String::new(),
            now,
        }
    }

    #[must_use]
    pub fn as_event(&self, event: &'static str) -> Self {
        Self { event, ..self.clone() }
    }
}

/// What it happened to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Happened<'h> {
    pub key: &'h str,
    pub size: Option<u64>,
    pub etag: Option<&'h str>,
    pub version: Option<&'h str>,
}

/// Puts the event into the outbox, for each notification that wants it: in the transaction that makes it happen.
pub fn record(tx: &mut Tx<'_>, bucket: &Bucket, cause: &Cause, happened: Happened<'_>) -> Result<(), Error> {
    for notification in bucket.settings.notifications.iter().filter(|n| n.wants(cause.event, happened.key)) {
        let mut object = json!({ "key": encoded(happened.key).replace("%20", "+"), "sequencer": cause.id });
        if let Some(size) = happened.size {
            object["size"] = size.into();
        }
        if let Some(etag) = happened.etag {
            object["eTag"] = etag.into();
        }
        if let Some(version) = happened.version.filter(|version| *version != "null") {
            object["versionId"] = version.into();
        }
        let record = json!({
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": cause.region,
            "eventTime": timestamp(cause.now),
            "eventName": cause.event.strip_prefix("s3:").unwrap_or(cause.event),
            "userIdentity": { "principalId": cause.principal },
            "requestParameters": { "sourceIPAddress": cause.remote },
            "responseElements": { "x-amz-request-id": cause.request_id, "x-amz-id-2": cause.request_id },
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": notification.id,
                "bucket": {
                    "name": bucket.name,
                    "ownerIdentity": { "principalId": bucket.account },
                    "arn": format!("arn:aws:s3:::{}", bucket.name),
                },
                "object": object,
            },
        });
        queue(tx, cause, happened.key, notification, &json!({ "Records": [record] }).to_string())?;
    }
    Ok(())
}

/// [`record`], of an object that has come to be.
pub fn created(tx: &mut Tx<'_>, bucket: &Bucket, cause: &Cause, object: &Object) -> Result<(), Error> {
    let happened = Happened {
        key: &object.key,
        size: Some(object.size),
        etag: Some(&object.etag),
        version: Some(object.version.as_str()),
    };
    record(tx, bucket, cause, happened)
}

/// [`record`], of a deletion: `cause` says whether somebody asked for it or it was due.
pub fn removed(
    tx: &mut Tx<'_>,
    bucket: &Bucket,
    cause: &Cause,
    key: &str,
    hidden: bool,
    removed: &Removed,
) -> Result<(), Error> {
    let due = cause.event.starts_with("s3:LifecycleExpiration");
    let event = match (due, hidden && removed.marker) {
        (false, false) => "s3:ObjectRemoved:Delete",
        (false, true) => "s3:ObjectRemoved:DeleteMarkerCreated",
        (true, false) => "s3:LifecycleExpiration:Delete",
        (true, true) => "s3:LifecycleExpiration:DeleteMarkerCreated",
    };
    let version = removed.version.as_ref().map(|version| version.as_str());
    record(tx, bucket, &cause.as_event(event), Happened { key, version, ..Happened::default() })
}

fn queue(tx: &mut Tx<'_>, cause: &Cause, key: &str, notification: &Notification, body: &str) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO notice (id, key, configuration, webhook, body, created, due, attempts)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, 0) ON CONFLICT DO NOTHING",
        params![cause.id, key, notification.id, notification.webhook, body, cause.now],
    )?;
    Ok(())
}

/// The operator's webhooks, by name.
pub type Webhooks = BTreeMap<String, http::Uri>;

/// Events per pass, and at a time.
const AT_ONCE: usize = 100;
const SIDE_BY_SIDE: usize = 8;
/// A webhook that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause between two attempts.
const LONGEST_PAUSE_MS: i64 = 5 * 60 * 1000;
/// An event nobody took for so long is given up, and the operator told.
const KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

/// Empties the outbox.
pub struct Courier {
    store: Store,
    webhooks: Arc<Webhooks>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    clock: Clock,
    faults: Faults,
}

struct Notice {
    id: String,
    key: String,
    configuration: String,
    webhook: String,
    body: String,
    created: i64,
    attempts: i64,
}

impl Courier {
    pub fn new(store: Store, webhooks: Arc<Webhooks>, clock: Clock, faults: Faults) -> Result<Self, Error> {
        let connector = HttpsConnectorBuilder::new();
        // A machine without certificates of public authorities is none the worse for it until it needs them.
        let connector = if webhooks.values().any(|uri| uri.scheme_str() == Some("https")) {
            connector
                .with_native_roots()
                .map_err(|e| Error::Internal(format!("certificates to trust webhooks by: {e}")))?
        } else {
            let nobody = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
            connector.with_tls_config(nobody.with_no_client_auth())
        };
        let connector = connector.https_or_http().enable_http1().build();
        // Redirects are answers like any other: nothing is ever sent to an address the operator did not name.
        Ok(Self { store, webhooks, client: Client::builder(TokioExecutor::new()).build(connector), clock, faults })
    }

    async fn once(&self) -> Result<usize, Error> {
        let now = self.clock.now_ms();
        let due = self
            .store
            .read("find notices", move |tx| {
                Ok::<_, Error>(tx.query(
                    "SELECT id, key, configuration, webhook, body, created, attempts FROM notice
                     WHERE due <= ?1 ORDER BY due LIMIT ?2",
                    params![now, AT_ONCE],
                    |row| {
                        Ok(Notice {
                            id: row.get(0)?,
                            key: row.get(1)?,
                            configuration: row.get(2)?,
                            webhook: row.get(3)?,
                            body: row.get(4)?,
                            created: row.get(5)?,
                            attempts: row.get(6)?,
                        })
                    },
                )?)
            })
            .await?;
        if due.is_empty() {
            return Ok(0);
        }
        let count = due.len();
        let outcomes: Vec<(Notice, Result<(), String>)> = stream::iter(due)
            .map(|notice| async {
                let outcome = self.deliver(&notice).await;
                (notice, outcome)
            })
            .buffer_unordered(SIDE_BY_SIDE)
            .collect()
            .await;
        for (notice, outcome) in &outcomes {
            let fault = format!("webhook.{}", notice.webhook);
            match outcome {
                Ok(()) => self.faults.clear(&fault),
                Err(why) => self.faults.raise(
                    &fault,
                    format!("the webhook {} does not take events: {why}", notice.webhook),
                    "mend the receiver, or the webhook's address in walrus' configuration",
                ),
            }
        }
        let now = self.clock.now_ms();
        self.store
            .write("settle notices", move |tx| {
                for (notice, outcome) in &outcomes {
                    if outcome.is_ok() || now - notice.created > KEPT_MS {
                        tx.execute(
                            "DELETE FROM notice WHERE id = ?1 AND key = ?2 AND configuration = ?3",
                            params![notice.id, notice.key, notice.configuration],
                        )?;
                        continue;
                    }
                    let pause = (500_i64 << notice.attempts.clamp(0, 16)).min(LONGEST_PAUSE_MS);
                    tx.execute(
                        "UPDATE notice SET due = ?4, attempts = ?5 WHERE id = ?1 AND key = ?2 AND configuration = ?3",
                        params![notice.id, notice.key, notice.configuration, now + pause, notice.attempts + 1],
                    )?;
                }
                Ok::<_, Error>(())
            })
            .await?;
        Ok(count)
    }

    async fn deliver(&self, notice: &Notice) -> Result<(), String> {
        let uri = self.webhooks.get(&notice.webhook).ok_or("it is no longer in walrus' configuration")?;
        let request = Request::post(uri.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "Mallee")
            .body(Full::new(Bytes::from(notice.body.clone())))
            .map_err(|e| e.to_string())?;
        let response = tokio::time::timeout(PATIENCE, self.client.request(request))
            .await
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|e| e.to_string())?;
        if response.status().is_success() { Ok(()) } else { Err(format!("it answers {}", response.status())) }
    }
}

#[async_trait::async_trait]
impl Reconciler for Courier {
    fn name(&self) -> &'static str {
        "courier"
    }

    async fn pass(&self) -> PassReport {
        match self.once().await {
            // More may be waiting, or become due.
            Ok(count) => PassReport {
                changed: count as u64,
                again: (count > 0).then_some(Duration::from_millis(if count == AT_ONCE { 0 } else { 200 })),
                ..PassReport::default()
            },
            Err(e) => {
                let mut report = PassReport::default();
                report.error(e);
                report
            }
        }
    }
}

/// What wakes the courier when something has happened that is to be told.
pub fn wake(courier: &Poke, bucket: &Bucket) {
    if !bucket.settings.notifications.is_empty() {
        courier.poke();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(xml: &str) -> Result<usize, String> {
        let text = format!("<NotificationConfiguration>{xml}</NotificationConfiguration>");
        let asked = document::parse(text.as_bytes(), "NotificationConfiguration", document::Limits::SMALL).unwrap();
        let webhooks = Webhooks::from([("audit".into(), http::Uri::from_static("http://127.0.0.1:1/"))]);
        read(asked, &webhooks).map(|n| n.len()).map_err(|e| e.told().code.into_owned())
    }

    #[test]
    fn only_the_operators_webhooks_are_notified() {
        let topic = |arn: &str, event: &str| {
            code(&format!("<TopicConfiguration><Topic>{arn}</Topic><Event>{event}</Event></TopicConfiguration>"))
        };
        assert_eq!(topic("arn:mallee:webhook:::audit", "s3:ObjectCreated:*"), Ok(1));
        assert_eq!(topic("arn:mallee:webhook:::other", "s3:ObjectCreated:*"), Err("InvalidArgument".into()));
        assert_eq!(topic("http://169.254.169.254/", "s3:ObjectCreated:*"), Err("NotImplemented".into()));
        assert_eq!(topic("arn:aws:sns:us-east-1:123456789012:t", "s3:ObjectCreated:*"), Err("NotImplemented".into()));
        assert_eq!(topic("arn:mallee:webhook:::audit", "s3:Replication:*"), Err("InvalidArgument".into()));
        assert_eq!(
            code("<CloudFunctionConfiguration><CloudFunction>x</CloudFunction></CloudFunctionConfiguration>"),
            Err("NotImplemented".into())
        );
        assert_eq!(code("<EventBridgeConfiguration/>"), Err("NotImplemented".into()));
        assert_eq!(code(""), Ok(0));
    }

    #[test]
    fn events_are_chosen_by_name_prefix_and_suffix() {
        let notification = Notification {
            id: "1".into(),
            kind: Kind::Topic,
            webhook: "audit".into(),
            events: vec!["s3:ObjectCreated:*".into(), "s3:ObjectRemoved:Delete".into()],
            prefix: "in/".into(),
            suffix: ".png".into(),
        };
        for (event, key, expected) in [
            ("s3:ObjectCreated:Put", "in/a.png", true),
            ("s3:ObjectCreated:Copy", "out/a.png", false),
            ("s3:ObjectCreated:Copy", "in/a.jpg", false),
            ("s3:ObjectRemoved:Delete", "in/a.png", true),
            ("s3:ObjectRemoved:DeleteMarkerCreated", "in/a.png", false),
        ] {
            assert_eq!(notification.wants(event, key), expected, "{event} {key}");
        }
    }
}
