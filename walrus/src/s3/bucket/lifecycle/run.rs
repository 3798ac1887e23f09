//! Does what lifecycles say. A pass walks the buckets that have one, page by page, and takes away what is due in small
//! transactions, each of which looks again whether it still is. It keeps nothing between passes: killed anywhere, the
//! next pass finds what is left.

use std::{sync::Arc, time::Duration};

use mallee_service::{Clock, Faults, PassReport, Reconciler};
use mallee_store::{Store, Tx, params};

use super::{KIND, rules::Configuration};
use crate::{
    Error,
    s3::{
        bucket::{
            Bucket, find_by_id,
            notification::{self, Cause},
            settings,
        },
        condition::Conditions,
        multipart,
        object::{
            Object, VersionId,
            lock::Bypass,
            version::{self, OldVersion},
        },
    },
};

/// Rows looked at in one view of the store.
const PAGE: usize = 500;
/// Rows taken away in one transaction: nobody waits long behind it.
const AT_ONCE: usize = 100;

pub struct Lifecycle {
    pub store: Store,
    pub clock: Clock,
    pub faults: Faults,
    pub every: Duration,
}

#[async_trait::async_trait]
impl Reconciler for Lifecycle {
    fn name(&self) -> &'static str {
        "lifecycle"
    }

    async fn pass(&self) -> PassReport {
        let mut report = PassReport { again: Some(self.every), ..PassReport::default() };
        match self.apply(self.clock.now_ms()).await {
            Ok(changed) => {
                self.faults.clear("lifecycle");
                report.changed = changed;
            }
            Err(e) => {
                self.faults.raise(
                    "lifecycle",
                    format!("objects that are due could not be taken away: {e}"),
                    "see the log, and is the disk writable?",
                );
                report.error(e);
            }
        }
        report
    }
}

/// One thing that is due.
#[derive(Clone)]
enum Due {
    /// What the key shows, as long as it is this one.
    Current(Object),
    Version(String, VersionId),
    /// A marker, as long as it is the key's only row.
    Marker(String, VersionId),
    Upload(multipart::Upload),
}

impl Lifecycle {
    /// Takes away everything that is due at `now`; how much that was.
    pub async fn apply(&self, now: i64) -> Result<u64, Error> {
        let buckets = self
            .store
            .read("find lifecycles", |tx| {
                let sql = "SELECT bucket FROM bucket_document WHERE kind = ?1 ORDER BY bucket";
                Ok::<_, Error>(tx.query(sql, params![KIND], |row| row.get(0))?)
            })
            .await?;
        let mut changed = 0;
        for id in buckets {
            let found = self
                .store
                .read("read a lifecycle", move |tx| {
                    let Some(bucket) = find_by_id(tx, id)? else { return Ok(None) };
                    Ok::<_, Error>(
                        settings::kept::<Configuration>(tx, id, KIND)?.map(|rules| (bucket, Arc::new(rules))),
                    )
                })
                .await?;
            if let Some((bucket, rules)) = found {
                changed += self.objects(&bucket, &rules, now).await?;
                changed += self.versions(&bucket, &rules, now).await?;
                changed += self.uploads(&bucket, &rules, now).await?;
            }
        }
        Ok(changed)
    }

    async fn objects(&self, bucket: &Bucket, rules: &Arc<Configuration>, now: i64) -> Result<u64, Error> {
        let (mut after, mut changed) = (String::new(), 0);
        loop {
            let (id, from, rules) = (bucket.id, after.clone(), rules.clone());
            let (last, due) = self
                .store
                .read("find objects that are due", move |tx| {
                    let page = version::current_page(tx, id, &from, PAGE)?;
                    let last = page.last().map(|object| object.key.clone());
                    let due = page.into_iter().filter(|o| rules.expiration(o).is_some_and(|(at, _)| at <= now));
                    Ok::<_, Error>((last, due.map(Due::Current).collect::<Vec<_>>()))
                })
                .await?;
            changed += self.end(bucket, due, now).await?;
            match last {
                Some(last) => after = last,
                None => return Ok(changed),
            }
        }
    }

    async fn versions(&self, bucket: &Bucket, rules: &Arc<Configuration>, now: i64) -> Result<u64, Error> {
        let (mut after, mut changed) = ((String::new(), i64::MIN), 0);
        // How many versions of the last key have been passed.
        let mut newer = 0;
        loop {
            let (id, from) = (bucket.id, after.clone());
            let page =
                self.store.read("find versions that are due", move |tx| version::old_page(tx, id, &from, PAGE)).await?;
            let Some(last) = page.last().map(|old| (old.object.key.clone(), old.object.rank)) else {
                return Ok(changed);
            };
            let mut due = Vec::new();
            for OldVersion { object, since } in page {
                if object.key != after.0 {
                    (after.0, newer) = (object.key.clone(), 0);
                }
                if since > 0 {
                    if rules.ends_version(&object, since, newer, now) {
                        due.push(Due::Version(object.key, object.version));
                    }
                    newer += 1;
                } else if rules.ends_marker(&object, now) {
                    due.push(Due::Marker(object.key, object.version));
                }
            }
            after = last;
            changed += self.end(bucket, due, now).await?;
        }
    }

    async fn uploads(&self, bucket: &Bucket, rules: &Arc<Configuration>, now: i64) -> Result<u64, Error> {
        let (mut after, mut changed) = ((String::new(), String::new()), 0);
        loop {
            let (id, from) = (bucket.id, after.clone());
            let page = self
                .store
                .read("find uploads that are due", move |tx| multipart::open_page(tx, id, &from, PAGE))
                .await?;
            let Some(last) = page.last().map(|upload| (upload.key.clone(), upload.id.as_str().to_owned())) else {
                return Ok(changed);
            };
            after = last;
            let due = page.into_iter().filter(|upload| rules.ends_upload(&upload.key, upload.created, now));
            changed += self.end(bucket, due.map(Due::Upload).collect(), now).await?;
        }
    }

    async fn end(&self, bucket: &Bucket, due: Vec<Due>, now: i64) -> Result<u64, Error> {
        let mut changed = 0;
        for some in due.chunks(AT_ONCE) {
            let (bucket, some) = (bucket.clone(), some.to_vec());
            let cause = Cause::own(&bucket.location, "s3:LifecycleExpiration:Delete", now);
            changed += self
                .store
                .write("end what is due", move |tx| {
                    let mut ended = 0;
                    for one in &some {
                        ended += u64::from(end_one(tx, &bucket, one, now, &cause)?);
                    }
                    Ok::<_, Error>(ended)
                })
                .await?;
        }
        Ok(changed)
    }
}

/// Whether it went: it may have become another one since, or be locked.
fn end_one(tx: &mut Tx<'_>, bucket: &Bucket, due: &Due, now: i64, cause: &Cause) -> Result<bool, Error> {
    let none = Conditions::default();
    let outcome = match due {
        Due::Current(object) => match version::there(tx, bucket.id, &object.key)? {
            Some(there) if there.rank == object.rank && there.content == object.content => {
                version::hide(tx, bucket, &object.key, &bucket.owner, &none, now).map(|r| (&object.key, true, r))
            }
            _ => return Ok(false),
        },
        Due::Version(key, id) => {
            // Something else may have been deleted, so that it is what the key shows again.
            if version::is_old(tx, bucket.id, key, id)? {
                version::destroy(tx, bucket.id, key, id, Bypass::No, &none, now).map(|r| (key, false, r))
            } else {
                return Ok(false);
            }
        }
        Due::Marker(key, id) => {
            if !version::is_alone(tx, bucket.id, key)? {
                return Ok(false);
            }
            version::destroy(tx, bucket.id, key, id, Bypass::No, &none, now).map(|r| (key, false, r))
        }
        Due::Upload(upload) => return multipart::give_up(tx, upload, now),
    };
    match outcome {
        Ok((key, hidden, removed)) => {
            notification::removed(tx, bucket, cause, key, hidden, &removed)?;
            Ok(true)
        }
        // Locked.
        Err(Error::Refused(_)) => Ok(false),
        Err(e) => Err(e),
    }
}
