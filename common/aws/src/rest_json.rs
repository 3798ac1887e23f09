//! REST-JSON: the members of a request stand in its path, its query string, its headers and a JSON document, as a table says.
//!
//! ```
//! use http::{Method, Request};
//! use mallee_aws::rest_json::{Member, Shape};
//! const GET: Shape = Shape {
//!     method: Method::GET,
//!     path: "/snapshots/{SnapshotId}/blocks",
//!     members: &[Member::text_in_path("SnapshotId"), Member::number_in_query("MaxResults", "maxResults")],
//! };
//! #[derive(serde::Deserialize)]
//! #[serde(rename_all = "PascalCase")]
//! struct List {
//!     snapshot_id: String,
//!     max_results: Option<i64>,
//! }
//! let (parts, ()) = Request::get("/snapshots/snap-1/blocks?maxResults=100").body(()).unwrap().into_parts();
//! assert!(GET.is_asked_by(&parts));
//! let list: List = GET.read(&parts, b"").unwrap();
//! assert_eq!((list.snapshot_id.as_str(), list.max_results), ("snap-1", Some(100)));
//! ```

use http::{Method, request::Parts};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::params::Params;

/// Of documents and of errors.
pub const CONTENT_TYPE: &str = "application/json";

/// Where a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Path,
    /// Under this name.
    Query(&'static str),
    /// Under this name, lower-case.
    Header(&'static str),
    Document,
}

/// What its text is read as; a document says itself what is what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
}

#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Of the field that takes it.
    pub name: &'static str,
    pub place: Place,
    pub kind: Kind,
}

impl Member {
    pub const fn text_in_path(name: &'static str) -> Self {
        Member { name, place: Place::Path, kind: Kind::Text }
    }
    pub const fn number_in_path(name: &'static str) -> Self {
        Member { name, place: Place::Path, kind: Kind::Number }
    }
    pub const fn text_in_query(name: &'static str, under: &'static str) -> Self {
        Member { name, place: Place::Query(under), kind: Kind::Text }
    }
    pub const fn number_in_query(name: &'static str, under: &'static str) -> Self {
        Member { name, place: Place::Query(under), kind: Kind::Number }
    }
    pub const fn text_in_header(name: &'static str, under: &'static str) -> Self {
        Member { name, place: Place::Header(under), kind: Kind::Text }
    }
    pub const fn number_in_header(name: &'static str, under: &'static str) -> Self {
        Member { name, place: Place::Header(under), kind: Kind::Number }
    }
    pub const fn in_document(name: &'static str) -> Self {
        Member { name, place: Place::Document, kind: Kind::Text }
    }
}

/// How an operation is asked for.
#[derive(Debug)]
pub struct Shape {
    pub method: Method,
    /// `{Member}` stands for one segment.
    pub path: &'static str,
    pub members: &'static [Member],
}

/// Why a request cannot be read; each is a mistake of the caller, in words that echo no more than a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("{0} is not a parameter of this action")]
    Unknown(String),
    #[error("{0} is given twice, or is not text")]
    Doubled(&'static str),
    #[error("{0} must be a whole number")]
    NoNumber(&'static str),
    #[error("The document is not a JSON object")]
    NoObject,
    #[error("The query string is not properly encoded, or has a parameter twice")]
    Query,
    /// What is missing, or of another type, in serde's words.
    #[error("{0}")]
    Misfit(String),
}

/// The member a segment of the template stands for.
fn placeholder(segment: &'static str) -> Option<&'static str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

impl Shape {
    fn segments<'p>(&self, path: &'p str) -> Option<Vec<(&'static str, &'p str)>> {
        let (mut found, mut given) = (Vec::new(), path.split('/'));
        for wanted in self.path.split('/') {
            let segment = given.next()?;
            match placeholder(wanted) {
                Some(name) if !segment.is_empty() => found.push((name, segment)),
                None if segment == wanted => {}
                _ => return None,
            }
        }
        given.next().is_none().then_some(found)
    }

    pub fn is_asked_by(&self, parts: &Parts) -> bool {
        parts.method == self.method && self.segments(parts.uri.path()).is_some()
    }

    /// Whether its input is a document, which is then all of the body.
    pub fn has_document(&self) -> bool {
        self.members.iter().any(|member| member.place == Place::Document)
    }

    /// The input. `body` is looked at only where members stand in a document. What is no member is refused, but for headers
    /// and for the `X-Amz-` parameters of a signature.
    pub fn read<T: DeserializeOwned>(&self, parts: &Parts, body: &[u8]) -> Result<T, Unreadable> {
        let mut all = if self.has_document() { self.document(body)? } else { Map::new() };
        let path = self.segments(parts.uri.path()).unwrap_or_default();
        let query = Params::parse(parts.uri.query().unwrap_or_default().as_bytes()).map_err(|_| Unreadable::Query)?;
        let known = |name: &str| self.members.iter().any(|m| matches!(m.place, Place::Query(under) if under == name));
        if let Some((name, _)) = query.iter().find(|(name, _)| !name.starts_with("X-Amz-") && !known(name)) {
            return Err(Unreadable::Unknown(name.chars().take(64).collect()));
        }
        for member in self.members {
            let text = match member.place {
                Place::Document => None,
                Place::Query(under) => query.get(under).map(str::to_owned),
                Place::Header(under) => one_header(parts, under).map_err(|()| Unreadable::Doubled(member.name))?,
                Place::Path => {
                    let segment = path.iter().find(|(name, _)| *name == member.name).map(|(_, segment)| *segment);
                    let text = segment.map(|segment| percent_decode_str(segment).decode_utf8());
                    text.transpose().map_err(|_| Unreadable::Doubled(member.name))?.map(Into::into)
                }
            };
            if let Some(text) = text {
                all.insert(member.name.into(), member.value(text)?);
            }
        }
        serde_json::from_value(Value::Object(all)).map_err(|e| Unreadable::Misfit(e.to_string()))
    }

    fn document(&self, body: &[u8]) -> Result<Map<String, Value>, Unreadable> {
        if body.is_empty() {
            return Ok(Map::new());
        }
        let Ok(Value::Object(mut document)) = serde_json::from_slice(body) else { return Err(Unreadable::NoObject) };
        let known = |name: &str| self.members.iter().any(|m| m.place == Place::Document && m.name == name);
        if let Some(name) = document.keys().find(|name| !known(name)) {
            return Err(Unreadable::Unknown(name.chars().take(64).collect()));
        }
        document.retain(|_, value| !value.is_null());
        Ok(document)
    }
}

impl Member {
    fn value(&self, text: String) -> Result<Value, Unreadable> {
        match self.kind {
            Kind::Text => Ok(Value::String(text)),
            Kind::Number => {
                let digits = text.strip_prefix('-').unwrap_or(&text);
                let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                let number = text.parse::<i64>().ok().filter(|_| plain);
                number.map(Value::from).ok_or(Unreadable::NoNumber(self.name))
            }
        }
    }
}

fn one_header(parts: &Parts, name: &str) -> Result<Option<String>, ()> {
    let mut values = parts.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(|text| Some(text.trim().to_owned())).map_err(|_| ()),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde::Deserialize;

    use super::*;

    const PUT: Shape = Shape {
        method: Method::PUT,
        path: "/snapshots/{SnapshotId}/blocks/{BlockIndex}",
        members: &[
            Member::text_in_path("SnapshotId"),
            Member::number_in_path("BlockIndex"),
            Member::number_in_query("MaxResults", "maxResults"),
            Member::text_in_header("Checksum", "x-amz-checksum"),
        ],
    };
    const START: Shape =
        Shape { method: Method::POST, path: "/snapshots", members: &[Member::in_document("VolumeSize")] };

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Put {
        snapshot_id: String,
        block_index: u32,
        max_results: Option<i64>,
        checksum: Option<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Start {
        volume_size: u64,
    }

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn members_come_from_where_the_table_says() {
        let asked = parts(
            Request::put("/snapshots/snap%2D1/blocks/7?maxResults=5&X-Amz-Date=x").header("x-amz-checksum", " abc "),
        );
        assert!(PUT.is_asked_by(&asked));
        let read: Put = PUT.read(&asked, b"not looked at").unwrap();
        let checksum = Some("abc".to_owned());
        assert_eq!(read, Put { snapshot_id: "snap-1".into(), block_index: 7, max_results: Some(5), checksum });
        let start: Start = START.read(&parts(Request::post("/snapshots")), br#"{"VolumeSize": 3}"#).unwrap();
        assert_eq!(start, Start { volume_size: 3 });
    }

    #[test]
    fn an_operation_is_told_by_its_method_and_every_segment() {
        for (method, path) in [
            (Method::GET, "/snapshots/s/blocks/7"),
            (Method::PUT, "/snapshots/s/blocks"),
            (Method::PUT, "/snapshots/s/blocks/"),
            (Method::PUT, "/snapshots//blocks/7"),
            (Method::PUT, "/snapshots/s/blocks/7/"),
            (Method::PUT, "/snapshots/s/changedblocks/7"),
        ] {
            let asked = parts(Request::builder().method(&method).uri(path));
            assert!(!PUT.is_asked_by(&asked), "{method} {path}");
        }
    }

    #[test]
    fn what_is_no_member_or_of_another_type_is_refused_by_name() {
        let put = |uri: &str| PUT.read::<Put>(&parts(Request::put(uri)), b"").unwrap_err();
        assert_eq!(put("/snapshots/s/blocks/7?more=1"), Unreadable::Unknown("more".into()));
        assert_eq!(put("/snapshots/s/blocks/7?maxResults=1&maxResults=2"), Unreadable::Query);
        for bad in ["x", "+7", "1e3", "99999999999999999999", "-", "7%20"] {
            assert_eq!(put(&format!("/snapshots/s/blocks/{bad}")), Unreadable::NoNumber("BlockIndex"), "{bad}");
        }
        assert!(matches!(put("/snapshots/s/blocks/-7"), Unreadable::Misfit(_)));
        assert_eq!(put("/snapshots/%ff/blocks/7"), Unreadable::Doubled("SnapshotId"));
        let doubled =
            parts(Request::put("/snapshots/s/blocks/7").header("x-amz-checksum", "a").header("x-amz-checksum", "b"));
        assert_eq!(PUT.read::<Put>(&doubled, b"").unwrap_err(), Unreadable::Doubled("Checksum"));

        let start = |body: &[u8]| START.read::<Start>(&parts(Request::post("/snapshots")), body).unwrap_err();
        assert_eq!(start(br#"{"VolumeSize":1,"Encrypt":true}"#), Unreadable::Unknown("Encrypt".into()));
        for bad in [&b"[]"[..], b"{", b"\xff", b"3"] {
            assert_eq!(start(bad), Unreadable::NoObject, "{bad:?}");
        }
        for bad in [&b""[..], b"{}", br#"{"VolumeSize":null}"#, br#"{"VolumeSize":"3"}"#, br#"{"VolumeSize":1.5}"#] {
            assert!(matches!(start(bad), Unreadable::Misfit(_)), "{bad:?}");
        }
    }
}
