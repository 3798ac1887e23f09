//! Locks on versions: a retention until a date, which nobody (compliance) or only who may bypass it (governance) ends
//! early, and a legal hold, which lasts until it is taken off. What is locked cannot be deleted; it can be hidden.

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use mallee_store::{Tx, params};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Object, VersionId, acl::found, put::check_also, to_json, version};
use crate::{
    Error, Walrus,
    access::{Action, allow},
    call::Call,
    error::refuse,
    s3::{bucket::Bucket, done, iso_time, set, xml},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    #[serde(rename = "GOVERNANCE")]
    Governance,
    #[serde(rename = "COMPLIANCE")]
    Compliance,
}

impl Mode {
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Governance => "GOVERNANCE",
            Mode::Compliance => "COMPLIANCE",
        }
    }
    pub fn by_name(name: &str) -> Option<Self> {
        [Mode::Governance, Mode::Compliance].into_iter().find(|mode| mode.name() == name)
    }
}

/// `until` in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    pub mode: Mode,
    pub until: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// A legal hold; `None`: nobody ever said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
}

/// Whether governance is set aside, by one who may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    Yes,
    No,
}

fn protected() -> Error {
    Error::Refused(AwsError::new("AccessDenied", 403, "Access Denied because object protected by object lock."))
}

impl Lock {
    pub fn check_removal(&self, now: i64, bypass: Bypass) -> Result<(), Error> {
        if self.hold == Some(true) {
            return Err(protected());
        }
        match self.retention {
            Some(Retention { until, .. }) if until <= now => Ok(()),
            Some(Retention { mode: Mode::Governance, .. }) if bypass == Bypass::Yes => Ok(()),
            Some(_) => Err(protected()),
            None => Ok(()),
        }
    }

    /// Whether this retention may come in place of the one there is.
    fn check_change(&self, new: Option<Retention>, now: i64, bypass: Bypass) -> Result<(), Error> {
        let Some(there) = self.retention.filter(|there| there.until > now) else { return Ok(()) };
        let longer = new.is_some_and(|new| new.until >= there.until);
        let same = new.is_some_and(|new| new.mode == there.mode);
        match there.mode {
            _ if longer && same => Ok(()),
            Mode::Governance if bypass == Bypass::Yes => Ok(()),
            _ => Err(protected()),
        }
    }
}

fn no_lock() -> Error {
    refuse::request("Bucket is missing Object Lock Configuration")
}

fn date(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

fn in_future(until: i64, now: i64, text: &str) -> Result<i64, Error> {
    if until <= now {
        return Err(refuse::argument("RetainUntilDate", text, "The retain until date must be in the future!"));
    }
    Ok(until)
}

/// What the request's headers say; the bucket's default where they say nothing.
pub fn asked(call: &Call, bucket: &Bucket) -> Result<Lock, Error> {
    let mode = call.header("x-amz-object-lock-mode")?;
    let until = call.header("x-amz-object-lock-retain-until-date")?;
    let hold = match call.header("x-amz-object-lock-legal-hold")? {
        None => None,
        Some("ON") => Some(true),
        Some("OFF") => Some(false),
        Some(other) => {
            return Err(refuse::argument(
                "x-amz-object-lock-legal-hold",
                other,
                "Legal Hold must be either of 'ON' or 'OFF'",
            ));
        }
    };
    let Some(default) = &bucket.lock else {
        // Being told that there is no lock is fine.
        return if mode.is_some() || until.is_some() || hold == Some(true) {
            Err(no_lock())
        } else {
            Ok(Lock::default())
        };
    };
    // Who may put an object may not thereby say how long it stays.
    if mode.is_some() || until.is_some() {
        check_also(call, bucket, Action::PutObjectRetention)?;
    }
    if hold.is_some() {
        check_also(call, bucket, Action::PutObjectLegalHold)?;
    }
    let retention = match (mode, until) {
        (None, None) => default.retention(call.now),
        (Some(mode), Some(until)) => {
            let wrong_mode = || refuse::argument("x-amz-object-lock-mode", mode, "Unknown wormMode directive.");
            let wrong_date = || {
                refuse::argument(
                    "x-amz-object-lock-retain-until-date",
                    until,
                    "The retain until date must be provided in ISO 8601 format",
                )
            };
            let at = in_future(date(until).ok_or_else(wrong_date)?, call.now, until)?;
            Some(Retention { mode: Mode::by_name(mode).ok_or_else(wrong_mode)?, until: at })
        }
        _ => {
            return Err(refuse::argument(
                "x-amz-object-lock-mode",
                mode.unwrap_or_default(),
                "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
            ));
        }
    };
    Ok(Lock { retention, hold })
}

/// Whether the request sets governance aside, and its sender may.
pub fn bypass(call: &Call, bucket: &Bucket, key: &str) -> Result<Bypass, Error> {
    let asked = call.header("x-amz-bypass-governance-retention")?.is_some_and(|text| text.eq_ignore_ascii_case("true"));
    if !asked {
        return Ok(Bypass::No);
    }
    match allow(&call.principal, Action::BypassGovernanceRetention, bucket.key(key, None)) {
        true => Ok(Bypass::Yes),
        false => Err(refuse::access_denied()),
    }
}

/// The headers of a read.
pub fn show(response: &mut Response<Body>, lock: &Lock) -> Result<(), Error> {
    if let Some(retention) = lock.retention {
        set(response, "x-amz-object-lock-mode", retention.mode.name())?;
        set(response, "x-amz-object-lock-retain-until-date", &iso_time(retention.until))?;
    }
    if let Some(hold) = lock.hold {
        set(response, "x-amz-object-lock-legal-hold", if hold { "ON" } else { "OFF" })?;
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RetentionDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retain_until_date: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HoldDocument {
    status: Option<String>,
}

async fn lockable(walrus: &Walrus, call: &Call, action: Action) -> Result<(Bucket, Object), Error> {
    let (bucket, object) = found(walrus, call, action).await?;
    if bucket.lock.is_none() {
        return Err(no_lock());
    }
    Ok((bucket, object))
}

fn nothing_set() -> Error {
    refuse::coded("NoSuchObjectLockConfiguration", 404, "The specified object does not have a ObjectLock configuration")
}

pub async fn get_retention(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (_, object) = lockable(walrus, call, Action::GetObjectRetention).await?;
    let retention = object.lock.retention.ok_or_else(nothing_set)?;
    let document = RetentionDocument {
        mode: Some(retention.mode.name().into()),
        retain_until_date: Some(iso_time(retention.until)),
    };
    xml("Retention", &document)
}

pub async fn put_retention(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (bucket, object) = lockable(walrus, call, Action::PutObjectRetention).await?;
    let bypass = bypass(call, &bucket, &call.target.key)?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: RetentionDocument = document::parse(&body, "Retention", document::Limits::SMALL)?;
    let new = match (asked.mode, asked.retain_until_date) {
        (None, None) => None,
        (Some(mode), Some(until)) => Some(Retention {
            mode: Mode::by_name(&mode).ok_or_else(refuse::malformed_xml)?,
            until: in_future(date(&until).ok_or_else(refuse::malformed_xml)?, call.now, &until)?,
        }),
        _ => return Err(refuse::malformed_xml()),
    };
    let now = call.now;
    change(walrus, bucket, object, move |lock| {
        lock.check_change(new, now, bypass)?;
        Ok(Lock { retention: new, hold: lock.hold })
    })
    .await
}

pub async fn get_hold(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (_, object) = lockable(walrus, call, Action::GetObjectLegalHold).await?;
    let hold = object.lock.hold.ok_or_else(nothing_set)?;
    xml("LegalHold", &HoldDocument { status: Some(if hold { "ON" } else { "OFF" }.into()) })
}

pub async fn put_hold(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let (bucket, object) = lockable(walrus, call, Action::PutObjectLegalHold).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: HoldDocument = document::parse(&body, "LegalHold", document::Limits::SMALL)?;
    let hold = match asked.status.as_deref() {
        Some("ON") => true,
        Some("OFF") => false,
        _ => return Err(refuse::malformed_xml()),
    };
    change(walrus, bucket, object, move |lock| Ok(Lock { retention: lock.retention, hold: Some(hold) })).await
}

/// Changes a version's lock, judged by what it is in the very transaction.
async fn change(
    walrus: &Walrus,
    bucket: Bucket,
    object: Object,
    new: impl Fn(&Lock) -> Result<Lock, Error> + Send + Sync + 'static,
) -> Result<Response<Body>, Error> {
    walrus
        .store
        .write("change an object's lock", move |tx| {
            let there = version::find(tx, bucket.id, &object.key, &object.version)?
                .ok_or_else(|| refuse::no_such_version(&object.key, object.version.as_str()))?;
            let lock = new(&there.lock)?;
            set_column(tx, &bucket, &object.key, &object.version, "lock", &to_json(&lock)?).map(drop)
        })
        .await?;
    Ok(done(StatusCode::OK))
}

/// Changes one column of one version, wherever its row is; how many rows that were.
pub fn set_column(
    tx: &mut Tx<'_>,
    bucket: &Bucket,
    key: &str,
    version: &VersionId,
    column: &'static str,
    text: &str,
) -> Result<u64, Error> {
    let mut changed = 0;
    for table in ["object", "old_version"] {
        let sql = format!("UPDATE {table} SET {column} = ?4 WHERE bucket = ?1 AND key = ?2 AND version = ?3");
        changed += tx.execute(&sql, params![bucket.id, key, version, text])?;
        if changed > 0 {
            break;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_gives_way_only_as_its_mode_allows() {
        use Bypass::{No, Yes};
        use Mode::{Compliance, Governance};
        let lock = |mode, until| Lock { retention: Some(Retention { mode, until }), hold: None };
        let held = Lock { retention: None, hold: Some(true) };
        // Lock, bypass, may it be removed at 10?
        let table = [
            (Lock::default(), No, true),
            (lock(Governance, 11), No, false),
            (lock(Governance, 11), Yes, true),
            (lock(Governance, 10), No, true),
            (lock(Compliance, 11), Yes, false),
            (lock(Compliance, 9), No, true),
            (held, Yes, false),
        ];
        for (lock, bypass, may) in table {
            assert_eq!(lock.check_removal(10, bypass).is_ok(), may, "{lock:?} {bypass:?}");
        }
        let new = |mode, until| Some(Retention { mode, until });
        let table = [
            (lock(Governance, 20), new(Governance, 30), No, true),
            (lock(Governance, 20), new(Governance, 15), No, false),
            (lock(Governance, 20), new(Governance, 15), Yes, true),
            (lock(Governance, 20), None, No, false),
            (lock(Governance, 20), None, Yes, true),
            (lock(Governance, 20), new(Compliance, 20), No, false),
            (lock(Governance, 20), new(Compliance, 20), Yes, true),
            (lock(Compliance, 20), new(Compliance, 30), No, true),
            (lock(Compliance, 20), new(Compliance, 19), Yes, false),
            (lock(Compliance, 20), new(Governance, 30), Yes, false),
            (lock(Compliance, 20), None, Yes, false),
            (lock(Compliance, 9), None, No, true),
        ];
        for (lock, new, bypass, may) in table {
            assert_eq!(lock.check_change(new, 10, bypass).is_ok(), may, "{lock:?} {new:?} {bypass:?}");
        }
    }
}
