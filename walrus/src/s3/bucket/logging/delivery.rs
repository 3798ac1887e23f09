//! Lines that are rows become objects: an object and the end of its rows are one transaction, so a line is delivered once.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, header};
use mallee_service::{PassReport, Reconciler};
use mallee_store::{Tx, params};
use time::OffsetDateTime;

use super::{DateSource, KeyFormat, Logging, deliverable, deliverer};
use crate::{
    Error, Walrus,
    call::{Call, Payload, Query, Target},
    circumstances::Wire,
    error::refuse,
    s3::{
        bucket::{Bucket, BucketId, find, find_by_id},
        condition::Conditions,
        object::{put::Draft, version::replace},
    },
};

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
                        "SELECT id, line, at FROM access_log WHERE bucket = ?1 ORDER BY at, id LIMIT ?2",
                        params![source.id, MOST_LINES],
                        |row| Ok((row.get::<String>(0)?, row.get::<String>(1)?, row.get::<i64>(2)?)),
                    )?,
                };
                Ok::<_, Error>((source, target, rows))
            })
            .await?;
        let (Some(source), Some((_, _, first))) = (source, rows.first().cloned()) else { return Ok(0) };
        let fault = format!("logging.{}", source.name);
        let ids = |rows: &[(String, String, i64)]| rows.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>();
        let Some((logging, target)) = source.settings.logging.clone().zip(target) else {
            // Logging is off, or its bucket is gone: nobody wants these lines any more.
            let ids = ids(&rows);
            walrus.store.write("drop an access log", move |tx| strike(tx, &ids)).await?;
            return Ok(0);
        };
        if target.owner != source.owner || !deliverable(walrus, &source, &target, &logging.prefix) {
            walrus.faults.raise(
                &fault,
                format!("the access log of {} cannot be delivered: {} does not let it in", source.name, target.name),
                "give the log delivery group WRITE in the target bucket's ACL, or let logging.s3.amazonaws.com in by its policy",
            );
            let ids = ids(&rows);
            walrus.store.write("drop an access log", move |tx| strike(tx, &ids)).await?;
            return Ok(0);
        }
        walrus.faults.clear(&fault);
        let now = walrus.clock.now_ms();
        let mut rows = rows;
        let dated = match logging.format {
            Some(KeyFormat::Partitioned(DateSource::EventTime)) => {
                // An object that is filed under a day has the lines of that day.
                rows.retain(|(_, _, at)| day(*at) == day(first));
                first.div_euclid(DAY_MS) * DAY_MS
            }
            _ => now,
        };
        let text: String = rows.iter().flat_map(|(_, line, _)| [line, "\n"]).collect();
        let key = key(walrus, &logging, &source, dated);
        self.store_log(&source, target, &logging, key, text, ids(&rows), now).await?;
        Ok(rows.len())
    }

    /// The object, and the end of its rows.
    #[expect(clippy::too_many_arguments, reason = "each is part of the one object")]
    async fn store_log(
        &self,
        source: &Bucket,
        target: Bucket,
        logging: &Logging,
        key: String,
        text: String,
        ids: Vec<String>,
        now: i64,
    ) -> Result<(), Error> {
        let walrus = &*self.walrus;
        let Some(principal) = deliverer(walrus, source, &target) else { return Ok(()) };
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
        let mut draft = Draft::of(walrus, &call, &target, target.owner.clone(), Vec::new())?;
        draft.acl.0.extend(logging.grants.iter().cloned());
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

const DAY_MS: i64 = 24 * 3600 * 1000;

fn day(at: i64) -> i64 {
    at.div_euclid(DAY_MS)
}

/// `PREFIX2026-01-31-23-59-59-0123456789ABCDEF`, or the same under the account, the region, the bucket and the day.
fn key(walrus: &Walrus, logging: &Logging, source: &Bucket, at: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(at.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let second = time::macros::format_description!("[year]-[month]-[day]-[hour]-[minute]-[second]");
    let day = time::macros::format_description!("[year]/[month]/[day]");
    let (second, day) = (at.format(second).unwrap_or_default(), at.format(day).unwrap_or_default());
    let unique = rand::random::<u64>();
    match logging.format {
        Some(KeyFormat::Partitioned(_)) => {
            let (account, region) = (&source.account, walrus.region());
            format!("{}{account}/{region}/{}/{day}/{second}-{unique:016X}", logging.prefix, source.name)
        }
        None | Some(KeyFormat::Simple) => format!("{}{second}-{unique:016X}", logging.prefix),
    }
}
