//! Canonical paths, queries and header values, from the raw bytes of the request.

use crate::params::hex_digit;

/// `A-Za-z0-9-_.~`
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~')
}

fn push_encoded(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if is_unreserved(byte) {
        out.push(char::from(byte));
    } else {
        out.push('%');
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Encodes everything but `A-Za-z0-9-_.~`, as signatures and presigned URLs want it.
pub fn encode(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for &byte in text {
        push_encoded(&mut out, byte);
    }
    out
}

/// As [`encode`], but `/` stays: a key in a path, and keys in listings with `encoding-type=url`.
pub fn encode_path(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for &byte in text {
        if byte == b'/' { out.push('/') } else { push_encoded(&mut out, byte) }
    }
    out
}

/// S3's: as sent, with each character encoded once. A `%2F` stays apart from `/`, and nothing is normalised.
pub(crate) fn s3_path(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'/' => out.push('/'),
            b'%' => match hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)? {
                b'/' => out.push_str("%2F"),
                decoded => push_encoded(&mut out, decoded),
            },
            byte => push_encoded(&mut out, byte),
        }
    }
    Some(if out.is_empty() { "/".to_string() } else { out })
}

/// Everybody else's: dot and empty segments resolved, then encoded once more on top of the encoding sent.
pub(crate) fn normalised_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        for byte in segment.bytes() {
            push_encoded(&mut out, byte);
        }
    }
    if out.is_empty() || path.ends_with('/') {
        out.push('/');
    }
    out
}

/// The query string's pairs, decoded; `+` is a space.
pub(crate) struct Query {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Query {
    pub(crate) fn parse(raw: &str) -> Option<Query> {
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Some(Query { pairs })
    }

    /// The value of a name in any case. Doubled ones were refused before anybody asks.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.pairs.iter().find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(value).ok()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.pairs.iter().any(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
    }

    pub(crate) fn has_exactly(&self, name: &str) -> bool {
        self.pairs.iter().any(|(known, _)| known == name.as_bytes())
    }

    /// The value of a name spelled just so, if it is there once.
    pub(crate) fn get_exactly(&self, name: &str) -> Option<&str> {
        let mut hits = self.pairs.iter().filter(|(known, _)| known == name.as_bytes());
        match (hits.next(), hits.next()) {
            (Some((_, value)), None) => std::str::from_utf8(value).ok(),
            _ => None,
        }
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pairs.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    pub(crate) fn has_doubled_amz_parameter(&self) -> bool {
        let mut seen = std::collections::BTreeSet::new();
        self.pairs.iter().any(|(name, _)| {
            let name = name.to_ascii_lowercase();
            name.starts_with(b"x-amz-") && !seen.insert(name)
        })
    }

    /// Encoded and sorted, without `except`.
    pub(crate) fn canonical(&self, except: &str) -> String {
        join_sorted(self.pairs().filter(|(name, _)| !name.eq_ignore_ascii_case(except.as_bytes())))
    }
}

pub(crate) fn join_sorted<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> String {
    let mut encoded: Vec<(String, String)> = pairs.map(|(name, value)| (encode(name), encode(value))).collect();
    encoded.sort();
    let mut out = String::new();
    for (name, value) in &encoded {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        out.push_str(value);
    }
    out
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            byte => byte,
        });
    }
    Some(out)
}

/// Appends a header value without outer whitespace and with inner runs of spaces made one.
pub(crate) fn push_header_value(out: &mut Vec<u8>, value: &[u8]) {
    let mut after_space = false;
    for &byte in value.trim_ascii() {
        if byte == b' ' && after_space {
            continue;
        }
        after_space = byte == b' ';
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_paths_stay_as_they_were_sent() {
        let table = [
            ("", Some("/")),
            ("/b/x//y/../z", Some("/b/x//y/../z")),
            ("/b/a%20b%c3%bc+(~*", Some("/b/a%20b%C3%BC%2B%28~%2A")),
            ("/b/%7E%2Fx", Some("/b/~%2Fx")),
            ("/b/%", None),
            ("/b/%g0", None),
        ];
        for (path, expected) in table {
            assert_eq!(s3_path(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn other_paths_are_normalised_and_encoded_twice() {
        let table = [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/./a/../b//c/", "/b/c/"),
            ("/../..", "/"),
            ("/a%20b", "/a%2520b"),
            ("/services/compute/", "/services/compute/"),
        ];
        for (path, expected) in table {
            assert_eq!(normalised_path(path), expected, "{path}");
        }
    }

    #[test]
    fn queries_sort_by_encoded_name_then_value() {
        let query = Query::parse("b=2&a=%2f&acl&a=+1&é=x&&B=").unwrap();
        assert_eq!(query.canonical("none"), "%C3%A9=x&B=&a=%201&a=%2F&acl=&b=2");
        assert!(Query::parse("X-Amz-Date=1&x-amz-dat%65=2").unwrap().has_doubled_amz_parameter());
        assert!(Query::parse("a=%f").is_none());
    }
}
