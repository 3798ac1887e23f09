//! Conditional requests: pure, with the precedence of RFC 9110 §13.2.2.

use crate::{Error, call::Call, error::refuse};

/// The conditions of one request. Dates that do not parse are as if they were not there, as the RFC wants.
#[derive(Debug, Default, Clone)]
pub struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub if_modified_since: Option<i64>,
    pub if_unmodified_since: Option<i64>,
    /// Of DELETE only: `x-amz-if-match-last-modified-time`, in seconds.
    pub if_match_modified: Option<i64>,
    /// Of DELETE only: `x-amz-if-match-size`.
    pub if_match_size: Option<u64>,
}

/// What a deletion is judged by; `modified` in whole seconds.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub etag: &'a str,
    pub modified: i64,
    pub size: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    NotModified,
    /// By the name of the header.
    Failed(&'static str),
}

impl Conditions {
    /// `prefix` is empty, or `x-amz-copy-source-` for those on the source of a copy.
    pub fn of(call: &Call, prefix: &str) -> Result<Self, Error> {
        let text = |name: &str| call.header(&format!("{prefix}{name}")).map(|text| text.map(str::to_owned));
        let date = |name: &str| {
            let seconds = |at: std::time::SystemTime| {
                at.duration_since(std::time::UNIX_EPOCH).map(|d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)).ok()
            };
            text(name).map(|text| text.and_then(|text| httpdate::parse_http_date(&text).ok()).and_then(seconds))
        };
        Ok(Self {
            if_match: text("if-match")?,
            if_none_match: text("if-none-match")?,
            if_modified_since: date("if-modified-since")?,
            if_unmodified_since: date("if-unmodified-since")?,
            ..Self::default()
        })
    }

    /// Those of a DELETE.
    pub fn of_delete(call: &Call) -> Result<Self, Error> {
        let size = match call.header("x-amz-if-match-size")? {
            None => None,
            Some(text) => Some(
                text.parse().map_err(|_| refuse::argument("x-amz-if-match-size", text, "The value is not a size."))?,
            ),
        };
        let modified = match call.header("x-amz-if-match-last-modified-time")? {
            None => None,
            Some(text) => Some(seconds_of(text).ok_or_else(|| {
                refuse::argument("x-amz-if-match-last-modified-time", text, "The value is not a date.")
            })?),
        };
        let if_match = call.header("if-match")?.map(str::to_owned);
        Ok(Self { if_match, if_match_modified: modified, if_match_size: size, ..Self::default() })
    }

    pub fn are_none(&self) -> bool {
        self.if_match.is_none()
            && self.if_none_match.is_none()
            && self.if_match_modified.is_none()
            && self.if_match_size.is_none()
    }

    /// For a deletion of what is there now. Of many that delete the same thing under `If-Match`, one must be told that it
    /// did: for the others nothing is there.
    pub fn check_delete(&self, key: &str, there: Option<Facts<'_>>) -> Result<(), Error> {
        let Some(there) = there else {
            return if self.if_match.is_some() { Err(refuse::no_such_key(key)) } else { Ok(()) };
        };
        if self.if_match.as_ref().is_some_and(|list| !names(list, there.etag)) {
            return Err(refuse::precondition("If-Match"));
        }
        if self.if_match_modified.is_some_and(|at| at != there.modified) {
            return Err(refuse::precondition("x-amz-if-match-last-modified-time"));
        }
        if self.if_match_size.is_some_and(|size| size != there.size) {
            return Err(refuse::precondition("x-amz-if-match-size"));
        }
        Ok(())
    }

    /// For a read; `modified` in whole seconds.
    pub fn judge(&self, etag: &str, modified: i64) -> Verdict {
        match (&self.if_match, self.if_unmodified_since) {
            (Some(list), _) if !names(list, etag) => return Verdict::Failed("If-Match"),
            (Some(_), _) => {}
            (None, Some(since)) if modified > since => return Verdict::Failed("If-Unmodified-Since"),
            _ => {}
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(list), _) if names(list, etag) => Verdict::NotModified,
            (None, Some(since)) if modified <= since => Verdict::NotModified,
            _ => Verdict::Go,
        }
    }

    /// For the source of a copy, which knows no "not modified".
    pub fn check_source(&self, etag: &str, modified: i64) -> Result<(), Error> {
        match self.judge(etag, modified) {
            Verdict::Go => Ok(()),
            Verdict::NotModified => Err(refuse::precondition("x-amz-copy-source-If-None-Match")),
            Verdict::Failed(_) => Err(refuse::precondition("x-amz-copy-source-If-Match")),
        }
    }

    /// For a write over what is there now (`None`: nothing). AWS knows `If-None-Match: *` only; a list of ETags means here
    /// what the RFC says.
    pub fn check_write(&self, key: &str, there: Option<&str>) -> Result<(), Error> {
        if let (Some(list), Some(etag)) = (&self.if_none_match, there)
            && names(list, etag)
        {
            return Err(refuse::precondition("If-None-Match"));
        }
        match (&self.if_match, there) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(refuse::no_such_key(key)),
            (Some(list), Some(etag)) if names(list, etag) => Ok(()),
            (Some(_), Some(_)) => Err(refuse::precondition("If-Match")),
        }
    }
}

/// A date in either of the ways SDKs write it.
pub fn seconds_of(text: &str) -> Option<i64> {
    if let Ok(at) = httpdate::parse_http_date(text) {
        return i64::try_from(at.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs()).ok();
    }
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok().map(|at| at.unix_timestamp())
}

/// Whether a list of entity tags has this one. Clients send it with and without quotes.
fn names(list: &str, etag: &str) -> bool {
    list.split(',').map(str::trim).any(|one| {
        let one = one.strip_prefix("W/").unwrap_or(one);
        one == "*" || one.trim_matches('"') == etag
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_go_before_dates() {
        let tag = |t: &str| Some(t.to_owned());
        let table = [
            (tag("\"e\""), None, None, Some(5), Verdict::Go),
            (tag("\"x\", W/\"e\""), None, None, None, Verdict::Go),
            (tag("x"), None, None, None, Verdict::Failed("If-Match")),
            (None, None, None, Some(5), Verdict::Failed("If-Unmodified-Since")),
            (None, None, None, Some(10), Verdict::Go),
            (None, tag("e"), Some(5), None, Verdict::NotModified),
            (None, tag("*"), None, None, Verdict::NotModified),
            (None, tag("x"), Some(10), None, Verdict::Go),
            (None, None, Some(10), None, Verdict::NotModified),
            (None, None, Some(9), None, Verdict::Go),
            (tag("x"), tag("e"), None, None, Verdict::Failed("If-Match")),
        ];
        for (if_match, if_none_match, if_modified_since, if_unmodified_since, verdict) in table {
            let conditions =
                Conditions { if_match, if_none_match, if_modified_since, if_unmodified_since, ..Conditions::default() };
            assert_eq!(conditions.judge("e", 10), verdict, "{conditions:?}");
        }
    }

    #[test]
    fn a_deletion_is_refused_unless_everything_fits() {
        let facts = Some(Facts { etag: "e", modified: 10, size: 5 });
        let code = |conditions: &Conditions, there| conditions.check_delete("k", there).err().map(|e| e.told().status);
        let tag = |t: &str| Conditions { if_match: Some(t.into()), ..Conditions::default() };
        assert_eq!(code(&Conditions::default(), None), None);
        assert_eq!(code(&tag("\"e\""), facts), None);
        assert_eq!(code(&tag("*"), facts), None);
        assert_eq!(code(&tag("x"), facts), Some(412));
        assert_eq!((code(&tag("*"), None), code(&tag("x"), None)), (Some(404), Some(404)));
        let marker = Some(Facts { etag: "", modified: 10, size: 0 });
        assert_eq!((code(&tag("*"), marker), code(&tag("x"), marker)), (None, Some(412)));
        let size = |n| Conditions { if_match_size: Some(n), ..Conditions::default() };
        assert_eq!((code(&size(5), facts), code(&size(6), facts), code(&size(6), None)), (None, Some(412), None));
        let at = |n| Conditions { if_match_modified: Some(n), ..Conditions::default() };
        assert_eq!((code(&at(10), facts), code(&at(11), facts)), (None, Some(412)));
        assert_eq!(seconds_of("Thu, 01 Jan 1970 00:00:10 GMT"), Some(10));
        assert_eq!(seconds_of("1970-01-01T00:00:10.000Z"), Some(10));
    }

    #[test]
    fn a_write_is_refused_by_what_is_there() {
        let code = |if_match: Option<&str>, if_none_match: Option<&str>, there| {
            let conditions = Conditions {
                if_match: if_match.map(Into::into),
                if_none_match: if_none_match.map(Into::into),
                ..Conditions::default()
            };
            conditions.check_write("k", there).err().map(|e| e.told().code.into_owned())
        };
        let failed = Some("PreconditionFailed".to_owned());
        assert_eq!(code(None, Some("*"), None), None);
        assert_eq!(code(None, Some("*"), Some("e")), failed);
        assert_eq!(code(Some("\"e\""), None, Some("e")), None);
        assert_eq!(code(Some("x"), None, Some("e")), failed);
        assert_eq!(code(Some("e"), None, None), Some("NoSuchKey".into()));
        assert_eq!(code(None, Some("\"e\""), None), None);
        assert_eq!(code(None, Some("\"x\", \"e\""), Some("e")), failed);
        assert_eq!(code(None, Some("x"), Some("e")), None);
    }
}
