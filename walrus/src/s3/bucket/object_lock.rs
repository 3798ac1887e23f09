//! Object lock of a bucket: that its versions can be locked at all, and how a new one is unless it says otherwise.

use http::{Response, StatusCode};
use mallee_aws::{AwsError, document};
use mallee_service::Body;
use mallee_store::params;
use serde::{Deserialize, Serialize};

use super::{Versioning, opened};
use crate::{
    Error, Walrus,
    access::Action,
    call::Call,
    error::refuse,
    s3::{
        done,
        object::lock::{Mode, Retention},
        xml,
    },
};

pub const TABLES: &str = "
    ALTER TABLE bucket ADD COLUMN object_lock TEXT NOT NULL DEFAULT '';
";

const DAY_MS: i64 = 24 * 3600 * 1000;

/// What a version is locked by that came without a lock of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockDefault {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub mode: Mode,
    pub period: Period,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Period {
    Days(u32),
    Years(u32),
}

impl LockDefault {
    /// What it does to a version made now.
    pub fn retention(&self, now: i64) -> Option<Retention> {
        let rule = self.rule?;
        let days = match rule.period {
            Period::Days(days) => i64::from(days),
            Period::Years(years) => i64::from(years) * 365,
        };
        Some(Retention { mode: rule.mode, until: now + days * DAY_MS })
    }
}

pub fn to_text(lock: &LockDefault) -> Result<String, Error> {
    serde_json::to_string(lock).map_err(|e| Error::Internal(e.to_string()))
}

/// Empty where the bucket was made without object lock.
pub fn from_text(text: &str) -> Result<Option<LockDefault>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map(Some).map_err(|e| Error::Internal(format!("a bucket's object lock: {e}")))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    object_lock_enabled: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleIn>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RuleIn {
    default_retention: Option<DefaultRetention>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DefaultRetention {
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    years: Option<i64>,
}

fn rule(asked: DefaultRetention) -> Result<Rule, Error> {
    let mode = asked.mode.as_deref().and_then(Mode::by_name).ok_or_else(refuse::malformed_xml)?;
    let positive = |n: i64, what: &str, most: i64| match n {
        1.. if n <= most => Ok(u32::try_from(n).unwrap_or(u32::MAX)),
        1.. => Err(refuse::argument(
            what,
            &n.to_string(),
            &format!("Default retention period too large: {what} must be at most {most}."),
        )),
        _ => Err(Error::Refused(
            AwsError::bad_request(
                "InvalidRetentionPeriod",
                "Default retention period must be a positive integer value.",
            )
            .with_field("ArgumentName", what)
            .with_field("ArgumentValue", n.to_string()),
        )),
    };
    let period = match (asked.days, asked.years) {
        (Some(days), None) => Period::Days(positive(days, "Days", 36_500)?),
        (None, Some(years)) => Period::Years(positive(years, "Years", 100)?),
        _ => return Err(refuse::malformed_xml()),
    };
    Ok(Rule { mode, period })
}

pub async fn get(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::GetBucketObjectLockConfiguration).await?;
    let Some(lock) = bucket.lock else {
        return Err(Error::Refused(
            AwsError::new(
                "ObjectLockConfigurationNotFoundError",
                404,
                "Object Lock configuration does not exist for this bucket",
            )
            .with_field("BucketName", bucket.name),
        ));
    };
    let shown = |rule: Rule| {
        let (days, years) = match rule.period {
            Period::Days(days) => (Some(i64::from(days)), None),
            Period::Years(years) => (None, Some(i64::from(years))),
        };
        RuleIn { default_retention: Some(DefaultRetention { mode: Some(rule.mode.name().into()), days, years }) }
    };
    let document = Document { object_lock_enabled: Some("Enabled".into()), rule: lock.rule.map(shown) };
    xml("ObjectLockConfiguration", &document)
}

pub async fn put(walrus: &Walrus, call: &mut Call) -> Result<Response<Body>, Error> {
    let bucket = opened(walrus, call, Action::PutBucketObjectLockConfiguration).await?;
    let body = call.document(document::Limits::SMALL.bytes).await?;
    let asked: Document = document::parse(&body, "ObjectLockConfiguration", document::Limits::SMALL)?;
    if asked.object_lock_enabled.as_deref().is_some_and(|enabled| enabled != "Enabled") {
        return Err(refuse::malformed_xml());
    }
    let rule = match asked.rule {
        None => None,
        Some(RuleIn { default_retention: None }) => return Err(refuse::malformed_xml()),
        Some(RuleIn { default_retention: Some(retention) }) => Some(rule(retention)?),
    };
    let (id, text) = (bucket.id, to_text(&LockDefault { rule })?);
    let changed = walrus
        .store
        .write("change a bucket's object lock", move |tx| {
            // A lock is on a version: the bucket keeps them, or it can have no locks. AWS is the same since 2023.
            Ok::<_, Error>(tx.execute(
                "UPDATE bucket SET object_lock = ?2 WHERE id = ?1 AND versioning = ?3",
                params![id, text, Versioning::Enabled.number()],
            )?)
        })
        .await?;
    if changed == 0 {
        return Err(refuse::coded(
            "InvalidBucketState",
            409,
            "Versioning must be 'Enabled' on the bucket to apply a Object Lock configuration",
        ));
    }
    Ok(done(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_has_one_positive_period() {
        let try_rule = |mode: &str, days, years| {
            rule(DefaultRetention { mode: Some(mode.into()), days, years }).map_err(|e| e.told().code.into_owned())
        };
        assert_eq!(try_rule("GOVERNANCE", Some(2), None), Ok(Rule { mode: Mode::Governance, period: Period::Days(2) }));
        assert_eq!(
            try_rule("COMPLIANCE", None, Some(1)),
            Ok(Rule { mode: Mode::Compliance, period: Period::Years(1) })
        );
        assert_eq!(try_rule("governance", Some(1), None), Err("MalformedXML".into()));
        assert_eq!(try_rule("GOVERNANCE", Some(1), Some(1)), Err("MalformedXML".into()));
        assert_eq!(try_rule("GOVERNANCE", None, None), Err("MalformedXML".into()));
        assert_eq!(try_rule("GOVERNANCE", Some(0), None), Err("InvalidRetentionPeriod".into()));
        assert_eq!(try_rule("GOVERNANCE", None, Some(-1)), Err("InvalidRetentionPeriod".into()));
        assert_eq!(try_rule("GOVERNANCE", None, Some(101)), Err("InvalidArgument".into()));
    }
}
