//! The rules of a lifecycle: what a document may say, and what it says about an object. Pure.

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{Error, error::refuse, s3::object::Object};

const DAY_MS: i64 = 24 * 3600 * 1000;
const MOST_RULES: usize = 1000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    #[serde(rename = "Rule", default)]
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Rule {
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Where the prefix stood before there were filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<Filter>,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<Expiration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noncurrent_version_expiration: Option<Noncurrent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    abort_incomplete_multipart_upload: Option<Abort>,
    #[serde(rename = "Transition", default, skip_serializing)]
    transitions: Vec<Transition>,
    #[serde(rename = "NoncurrentVersionTransition", default, skip_serializing)]
    noncurrent_transitions: Vec<Transition>,
}

/// It is refused, and more plainly where it makes no sense either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Transition {
    date: Option<String>,
    storage_class: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_size_greater_than: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_size_less_than: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    and: Option<And>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct And {
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(rename = "Tag", default)]
    tags: Vec<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_size_greater_than: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_size_less_than: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    key: String,
    value: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Expiration {
    #[serde(skip_serializing_if = "Option::is_none")]
    date: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expired_object_delete_marker: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Noncurrent {
    #[serde(skip_serializing_if = "Option::is_none")]
    noncurrent_days: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    newer_noncurrent_versions: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Abort {
    #[serde(skip_serializing_if = "Option::is_none")]
    days_after_initiation: Option<i64>,
}

/// AWS counts whole days and acts at the midnight after them.
fn after_days(begin: i64, days: i64) -> i64 {
    let at = begin.saturating_add(days.saturating_mul(DAY_MS));
    at.div_euclid(DAY_MS).saturating_add(i64::from(at.rem_euclid(DAY_MS) > 0)).saturating_mul(DAY_MS)
}

fn date(text: &str) -> Option<i64> {
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    OffsetDateTime::parse(&full, &Rfc3339).ok().map(|at| at.unix_timestamp().saturating_mul(1000))
}

fn positive(days: Option<i64>, name: &str) -> Result<(), Error> {
    match days {
        Some(1..=2_147_483_647) => Ok(()),
        Some(n) => Err(refuse::argument(name, &n.to_string(), &format!("'{name}' must be a positive integer"))),
        None => Err(refuse::malformed_xml()),
    }
}

/// What a filter asks for, wherever it says so.
struct Parts<'a> {
    prefix: Option<&'a str>,
    tags: Vec<&'a Tag>,
    greater: Option<u64>,
    less: Option<u64>,
}

impl Filter {
    /// Prefix, tags and sizes, wherever they stand; `None` when it says several things without `And`.
    fn parts(&self) -> Option<Parts<'_>> {
        let said = usize::from(self.prefix.is_some())
            + usize::from(self.tag.is_some())
            + usize::from(self.object_size_greater_than.is_some())
            + usize::from(self.object_size_less_than.is_some())
            + usize::from(self.and.is_some());
        if said > 1 {
            return None;
        }
        Some(match &self.and {
            Some(and) => Parts {
                prefix: and.prefix.as_deref(),
                tags: and.tags.iter().collect(),
                greater: and.object_size_greater_than,
                less: and.object_size_less_than,
            },
            None => Parts {
                prefix: self.prefix.as_deref(),
                tags: self.tag.iter().collect(),
                greater: self.object_size_greater_than,
                less: self.object_size_less_than,
            },
        })
    }
}

impl Rule {
    fn check(&self) -> Result<(), Error> {
        if !["Enabled", "Disabled"].contains(&self.status.as_str()) || self.prefix.is_some() == self.filter.is_some() {
            return Err(refuse::malformed_xml());
        }
        if self.id.as_ref().is_some_and(|id| id.len() > 255) {
            return Err(refuse::argument("ID", "", "ID length should not exceed allowed limit of 255"));
        }
        let mut transitions = self.transitions.iter().chain(&self.noncurrent_transitions).peekable();
        if transitions.peek().is_some() {
            if transitions.any(|transition| transition.date.as_deref().is_some_and(|text| date(text).is_none())) {
                return Err(refuse::malformed_xml());
            }
            return Err(refuse::not_implemented("Transition to another storage class"));
        }
        let tagged = match &self.filter {
            None => false,
            Some(filter) => {
                let parts = filter.parts().ok_or_else(refuse::malformed_xml)?;
                if parts.greater.zip(parts.less).is_some_and(|(greater, less)| greater >= less) {
                    return Err(refuse::request(
                        "'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'",
                    ));
                }
                !parts.tags.is_empty()
            }
        };
        if let Some(expiration) = &self.expiration {
            match (&expiration.date, expiration.days, expiration.expired_object_delete_marker) {
                (None, Some(days), None) => positive(Some(days), "Days")?,
                (Some(text), None, None) => {
                    let at = date(text).ok_or_else(refuse::malformed_xml)?;
                    if at.rem_euclid(DAY_MS) != 0 {
                        return Err(refuse::argument("Date", text, "'Date' must be at midnight GMT"));
                    }
                }
                (None, None, Some(_)) if tagged => {
                    return Err(refuse::request("ExpiredObjectDeleteMarker cannot be specified with Tags."));
                }
                (None, None, Some(_)) => {}
                _ => return Err(refuse::malformed_xml()),
            }
        }
        if let Some(noncurrent) = &self.noncurrent_version_expiration {
            positive(noncurrent.noncurrent_days, "NoncurrentDays")?;
            if let Some(n) = noncurrent.newer_noncurrent_versions
                && !(1..=100).contains(&n)
            {
                return Err(refuse::argument(
                    "NewerNoncurrentVersions",
                    &n.to_string(),
                    "'NewerNoncurrentVersions' must be between 1 and 100",
                ));
            }
        }
        if let Some(abort) = &self.abort_incomplete_multipart_upload {
            positive(abort.days_after_initiation, "DaysAfterInitiation")?;
            if tagged {
                return Err(refuse::request("AbortIncompleteMultipartUpload cannot be specified with Tags."));
            }
        }
        if self.expiration.is_none()
            && self.noncurrent_version_expiration.is_none()
            && self.abort_incomplete_multipart_upload.is_none()
        {
            return Err(refuse::request("At least one action needs to be specified in a rule."));
        }
        Ok(())
    }

    fn is_on(&self) -> bool {
        self.status == "Enabled"
    }

    fn fits_key(&self, key: &str) -> bool {
        let of_filter = self.filter.as_ref().and_then(Filter::parts).and_then(|parts| parts.prefix);
        self.is_on() && key.starts_with(self.prefix.as_deref().or(of_filter).unwrap_or_default())
    }

    fn fits(&self, object: &Object) -> bool {
        let Some(filter) = &self.filter else { return self.fits_key(&object.key) };
        let Some(Parts { tags, greater, less, .. }) = filter.parts() else { return false };
        self.fits_key(&object.key)
            && tags.iter().all(|tag| object.tags.iter().any(|(key, value)| *key == tag.key && *value == tag.value))
            && greater.is_none_or(|least| object.size > least)
            && less.is_none_or(|most| object.size < most)
    }

    /// When it takes away what the key shows.
    fn expires(&self, object: &Object) -> Option<i64> {
        let expiration = self.expiration.as_ref()?;
        match (&expiration.date, expiration.days) {
            (Some(text), _) => date(text),
            (None, Some(days)) => Some(after_days(object.modified, days)),
            _ => None,
        }
    }
}

impl Configuration {
    /// What AWS would take, with an id for every rule.
    pub fn checked(mut self) -> Result<Self, Error> {
        if self.rules.is_empty() || self.rules.len() > MOST_RULES {
            return Err(refuse::malformed_xml());
        }
        let mut ids = std::collections::HashSet::new();
        for rule in &mut self.rules {
            rule.check()?;
            let id = rule
                .id
                .take()
                .filter(|id| !id.is_empty())
                .unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
            if !ids.insert(id.clone()) {
                return Err(refuse::argument(
                    "ID",
                    &id,
                    "Rule ID must be unique. Found same ID for more than one rule",
                ));
            }
            rule.id = Some(id);
        }
        Ok(self)
    }

    /// When a rule takes away what the key shows, and which.
    pub fn expiration(&self, object: &Object) -> Option<(i64, &str)> {
        let due = self.rules.iter().filter(|rule| rule.fits(object));
        due.filter_map(|rule| Some((rule.expires(object)?, rule.id.as_deref().unwrap_or_default()))).min()
    }

    /// Whether a version something came after at `since` goes now; `newer` is how many such versions are newer than it.
    pub fn ends_version(&self, old: &Object, since: i64, newer: u64, now: i64) -> bool {
        self.rules.iter().any(|rule| {
            let Some(noncurrent) = &rule.noncurrent_version_expiration else { return false };
            let kept = noncurrent.newer_noncurrent_versions.unwrap_or(0);
            rule.fits(old)
                && newer >= u64::try_from(kept).unwrap_or(0)
                && after_days(since, noncurrent.noncurrent_days.unwrap_or(0)) <= now
        })
    }

    /// Whether a marker that hides nothing any more goes now.
    pub fn ends_marker(&self, marker: &Object, now: i64) -> bool {
        self.rules.iter().filter(|rule| rule.fits(marker)).any(|rule| {
            let explicit = rule.expiration.as_ref().and_then(|expiration| expiration.expired_object_delete_marker);
            explicit == Some(true) || rule.expires(marker).is_some_and(|at| at <= now)
        })
    }

    /// Whether an upload that was begun then is given up now.
    pub fn ends_upload(&self, key: &str, created: i64, now: i64) -> bool {
        self.rules.iter().filter(|rule| rule.fits_key(key)).any(|rule| {
            let days = rule.abort_incomplete_multipart_upload.as_ref().and_then(|abort| abort.days_after_initiation);
            days.is_some_and(|days| after_days(created, days) <= now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mallee_aws::document;

    fn parse(rules: &str) -> Result<Configuration, String> {
        let text = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
        let parsed: Result<Configuration, _> =
            document::parse(text.as_bytes(), "LifecycleConfiguration", document::Limits::SMALL);
        parsed.map_err(Error::from).and_then(Configuration::checked).map_err(|e| e.told().code.into_owned())
    }

    fn object(key: &str, modified: i64, size: u64, tags: &[(&str, &str)]) -> Object {
        let tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Object { size, tags, ..Object::marker(key, "o", modified) }
    }

    #[test]
    fn days_end_at_midnight() {
        assert_eq!(after_days(0, 1), DAY_MS);
        assert_eq!(after_days(1, 1), 2 * DAY_MS);
        assert_eq!(after_days(DAY_MS - 1, 3), 4 * DAY_MS);
    }

    #[test]
    fn a_rule_acts_on_what_its_filter_names() {
        let rule = |filter: &str| {
            parse(&format!(
                "<Rule><ID>r</ID>{filter}<Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>"
            ))
            .unwrap()
        };
        let (plain, tagged) = (object("logs/a", 5, 10, &[]), object("logs/a", 5, 100, &[("k", "v"), ("l", "w")]));
        let table = [
            ("<Filter/>", true, true),
            ("<Prefix>logs/</Prefix>", true, true),
            ("<Prefix/>", true, true),
            ("<Filter><Prefix>x</Prefix></Filter>", false, false),
            ("<Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>", false, true),
            ("<Filter><ObjectSizeGreaterThan>10</ObjectSizeGreaterThan></Filter>", false, true),
            ("<Filter><ObjectSizeLessThan>11</ObjectSizeLessThan></Filter>", true, false),
            (
                "<Filter><And><Prefix>logs</Prefix><Tag><Key>k</Key><Value>v</Value></Tag><Tag><Key>l</Key><Value>w</Value></Tag></And></Filter>",
                false,
                true,
            ),
            ("<Filter><And><Prefix>logs</Prefix><Tag><Key>k</Key><Value>x</Value></Tag></And></Filter>", false, false),
        ];
        for (filter, for_plain, for_tagged) in table {
            let rules = rule(filter);
            assert_eq!(rules.expiration(&plain), for_plain.then_some((2 * DAY_MS, "r")), "{filter}");
            assert_eq!(rules.expiration(&tagged).is_some(), for_tagged, "{filter}");
        }
    }

    #[test]
    fn versions_are_kept_by_number_and_by_age() {
        let rules = parse("<Rule><Filter/><Status>Enabled</Status><NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays><NewerNoncurrentVersions>1</NewerNoncurrentVersions></NoncurrentVersionExpiration><AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>").unwrap();
        let old = object("k", 0, 1, &[]);
        assert!(!rules.ends_version(&old, 0, 0, 10 * DAY_MS));
        assert!(!rules.ends_version(&old, 0, 1, 2 * DAY_MS - 1));
        assert!(rules.ends_version(&old, 0, 1, 2 * DAY_MS));
        assert!(rules.ends_upload("k", 0, DAY_MS) && !rules.ends_upload("k", 1, DAY_MS));
        assert!(!rules.ends_marker(&old, 10 * DAY_MS));
        let rules = parse("<Rule><Filter/><Status>Enabled</Status><Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration></Rule>").unwrap();
        assert!(rules.ends_marker(&old, 0));
        let rules =
            parse("<Rule><Filter/><Status>Disabled</Status><Expiration><Days>1</Days></Expiration></Rule>").unwrap();
        assert_eq!(rules.expiration(&old), None);
    }

    #[test]
    fn what_aws_refuses_is_refused() {
        let table = [
            ("", "MalformedXML"),
            ("<Rule><Filter/><Status>Enabled</Status></Rule>", "InvalidRequest"),
            ("<Rule><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>", "MalformedXML"),
            ("<Rule><Filter/><Status>enabled</Status><Expiration><Days>1</Days></Expiration></Rule>", "MalformedXML"),
            (
                "<Rule><Filter/><Status>Enabled</Status><Expiration><Days>0</Days></Expiration></Rule>",
                "InvalidArgument",
            ),
            (
                "<Rule><Filter/><Status>Enabled</Status><Expiration><Date>2026-01-01T01:00:00Z</Date></Expiration></Rule>",
                "InvalidArgument",
            ),
            (
                "<Rule><Filter/><Status>Enabled</Status><Expiration><Days>1</Days><Date>2026-01-01</Date></Expiration></Rule>",
                "MalformedXML",
            ),
            (
                "<Rule><Filter/><Status>Enabled</Status><Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition></Rule>",
                "NotImplemented",
            ),
            (
                "<Rule><Filter/><Status>Enabled</Status><Transition><Date>20220927</Date><StorageClass>GLACIER</StorageClass></Transition></Rule>",
                "MalformedXML",
            ),
            ("<Rule><Filter/><Status>Enabled</Status><Transition><Days>1</Days></Transition></Rule>", "MalformedXML"),
            (
                "<Rule><Filter><And><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>5</ObjectSizeLessThan></And></Filter><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>",
                "InvalidRequest",
            ),
            (
                "<Rule><ID>a</ID><Filter/><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule><Rule><ID>a</ID><Filter/><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>",
                "InvalidArgument",
            ),
        ];
        for (rules, code) in table {
            assert_eq!(parse(rules).unwrap_err(), code, "{rules}");
        }
        let kept = parse("<Rule><Filter><Prefix>a</Prefix></Filter><Status>Enabled</Status><Expiration><Date>2026-01-01T00:00:00Z</Date></Expiration></Rule>").unwrap();
        let again: Configuration = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
        assert_eq!(again, kept);
    }
}
