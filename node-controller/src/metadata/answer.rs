//! What the metadata service answers: a pure function of who asks, what, and when.
//!
//! After "Instance metadata and user data" of the EC2 user guide: a directory is listed with a slash behind its directories,
//! a path is found with and without its last slash, `public-keys/` lists `0=name`, a token is a PUT with a TTL of 1 to 21,600
//! seconds and is refused when the request was forwarded. Errors have EC2's small HTML page, which no client reads.

use std::collections::BTreeSet;

use http::{Method, StatusCode};

use super::{Guest, TokenKey};

/// Every version clients are known to ask for; all are answered with the same tree.
const VERSIONS: [&str; 21] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-09-24",
    "2021-03-23",
    "latest",
];
const TOKEN_PATH: &str = "latest/api/token";
const LONGEST_TTL_S: i64 = 21_600;

/// A request, as far as the answer depends on it.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub token: Option<&'a str>,
    pub ttl: Option<&'a str>,
    /// It came through a proxy, which says so in `X-Forwarded-For`.
    pub forwarded: bool,
    /// Milliseconds.
    pub now: i64,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    /// Seconds the token has left.
    pub token_ttl: Option<i64>,
    /// The answer may travel this far only.
    pub hop_limit: Option<u8>,
}

impl Answer {
    fn refused(status: StatusCode) -> Self {
        let title = format!("{} - {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\t\
             \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n<html xmlns=\"http://www.w3.org/1999/xhtml\" \
             xml:lang=\"en\" lang=\"en\">\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
        );
        Self { status, body: body.into_bytes(), token_ttl: None, hop_limit: None }
    }
    fn found(body: impl Into<Vec<u8>>) -> Self {
        Self { status: StatusCode::OK, body: body.into(), token_ttl: None, hop_limit: None }
    }
}

/// `guest` is whoever has the source address in the VPC of the socket.
pub fn answer(guest: Option<&Guest>, asked: &Asked<'_>, key: &TokenKey) -> Answer {
    let Some(guest) = guest else { return Answer::refused(StatusCode::NOT_FOUND) };
    if !guest.enabled {
        return Answer::refused(StatusCode::FORBIDDEN);
    }
    let path = asked.path.trim_start_matches('/').trim_end_matches('/');
    if *asked.method == Method::PUT {
        return if path == TOKEN_PATH {
            token(guest, asked, key)
        } else {
            Answer::refused(StatusCode::METHOD_NOT_ALLOWED)
        };
    }
    if !matches!(*asked.method, Method::GET | Method::HEAD) || path == TOKEN_PATH {
        return Answer::refused(StatusCode::METHOD_NOT_ALLOWED);
    }
    let left = match asked.token {
        None if guest.tokens_required => return Answer::refused(StatusCode::UNAUTHORIZED),
        None => None,
        Some(token) => match key.check(&guest.instance, token, asked.now) {
            None => return Answer::refused(StatusCode::UNAUTHORIZED),
            left => left,
        },
    };
    match read(guest, path) {
        Some(body) => Answer { token_ttl: left, ..Answer::found(body) },
        None => Answer::refused(StatusCode::NOT_FOUND),
    }
}

fn token(guest: &Guest, asked: &Asked<'_>, key: &TokenKey) -> Answer {
    if asked.forwarded {
        return Answer::refused(StatusCode::FORBIDDEN);
    }
    let ttl =
        asked.ttl.and_then(|text| text.trim().parse::<i64>().ok()).filter(|ttl| (1..=LONGEST_TTL_S).contains(ttl));
    let Some(ttl) = ttl else { return Answer::refused(StatusCode::BAD_REQUEST) };
    Answer {
        token_ttl: Some(ttl),
        hop_limit: Some(guest.hop_limit.clamp(1, 64)),
        ..Answer::found(key.issue(&guest.instance, asked.now + ttl * 1000))
    }
}

fn read(guest: &Guest, path: &str) -> Option<Vec<u8>> {
    if path.is_empty() {
        return Some(VERSIONS.join("\n").into_bytes());
    }
    let (version, path) = path.split_once('/').unwrap_or((path, ""));
    if !VERSIONS.contains(&version) {
        return None;
    }
    if path == "user-data" {
        return guest.user_data.clone();
    }
    if let Some(value) = guest.tree.get(path) {
        return Some(value.clone().into_bytes());
    }
    let mut entries = list(guest, path);
    if path.is_empty() && guest.user_data.is_some() {
        entries.insert("user-data".into());
    }
    (!entries.is_empty()).then(|| entries.into_iter().collect::<Vec<_>>().join("\n").into_bytes())
}

/// What is in a directory. Keys are listed by number and name: `0=my-key`. The name is the tree's word, where it has one.
fn list(guest: &Guest, path: &str) -> BTreeSet<String> {
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let below = guest.tree.range(prefix.clone()..).map(|(key, _)| key).take_while(|key| key.starts_with(&prefix));
    let mut directories = BTreeSet::new();
    let mut values = BTreeSet::new();
    for key in below {
        let rest = &key[prefix.len()..];
        match rest.split_once('/') {
            Some((directory, _)) => directories.insert(directory.to_owned()),
            None => values.insert(rest.to_owned()),
        };
    }
    if path.is_empty() || path.ends_with("public-keys") {
        // The top and the list of keys name their entries without a slash.
        let named = |d: String| if path.is_empty() { d } else { format!("{d}=key-{d}") };
        return directories.into_iter().map(named).chain(values).collect();
    }
    // A value that is also a directory (iam/info, public-keys) is listed as the directory.
    values.retain(|v| !directories.contains(v));
    directories.into_iter().map(|d| format!("{d}/")).chain(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        let tree = [
            ("meta-data/instance-id", "i-a"),
            ("meta-data/placement/availability-zone", "mallee-1a"),
            ("meta-data/public-keys", "0=mine"),
            ("meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA mine"),
            ("meta-data/local-ipv4", "10.0.0.4"),
            ("dynamic/instance-identity/document", "{}"),
        ];
        Guest {
            instance: "i-a".into(),
            tree: tree.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            user_data: Some(b"#!/bin/sh\n\xff".to_vec()),
            enabled: true,
            tokens_required: false,
            hop_limit: 1,
        }
    }
    fn key() -> TokenKey {
        TokenKey::load(&tempfile::tempdir().unwrap().path().join("k")).unwrap()
    }
    fn get<'a>(path: &'a str, token: Option<&'a str>) -> Asked<'a> {
        Asked { method: &Method::GET, path, token, ttl: None, forwarded: false, now: 1_000 }
    }
    fn put<'a>(path: &'a str, ttl: Option<&'a str>) -> Asked<'a> {
        Asked { method: &Method::PUT, path, token: None, ttl, forwarded: false, now: 1_000 }
    }
    fn text(path: &str) -> (u16, String) {
        let answer = answer(Some(&guest()), &get(path, None), &key());
        (answer.status.as_u16(), String::from_utf8_lossy(&answer.body).into_owned())
    }

    #[test]
    fn directories_are_listed_as_ec2_lists_them() {
        assert!(text("/").1.ends_with("2021-03-23\nlatest"));
        assert_eq!(text("/latest/").1, "dynamic\nmeta-data\nuser-data");
        let meta_data = "instance-id\nlocal-ipv4\nplacement/\npublic-keys/";
        for path in ["/latest/meta-data", "/latest/meta-data/", "/2009-04-04/meta-data/"] {
            assert_eq!(text(path).1, meta_data, "{path}");
        }
        assert_eq!(text("/latest/meta-data/public-keys/").1, "0=mine");
        assert_eq!(text("/latest/meta-data/public-keys/0/").1, "openssh-key");
        assert_eq!(text("/latest/meta-data/public-keys/0/openssh-key").1, "ssh-ed25519 AAAA mine");
        assert_eq!(text("/1.0/meta-data/placement/availability-zone").1, "mallee-1a");
        assert_eq!(text("/2021-03-23/dynamic/instance-identity/document"), (200, "{}".into()));
    }

    #[test]
    fn user_data_is_bytes() {
        assert_eq!(answer(Some(&guest()), &get("/latest/user-data", None), &key()).body, b"#!/bin/sh\n\xff");
        let none = Guest { user_data: None, ..guest() };
        assert_eq!(answer(Some(&none), &get("/latest/user-data", None), &key()).status, 404);
        assert_eq!(answer(Some(&none), &get("/latest", None), &key()).body, b"dynamic\nmeta-data");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for path in [
            "/2099-01-01/meta-data/",
            "/latest/meta-data/tags/",
            "/latest/nothing",
            "/latest/meta-data/instance",
            "/latest/../x",
        ] {
            let (status, body) = text(path);
            assert_eq!(status, 404, "{path}");
            assert!(body.contains("<title>404 - Not Found</title>"));
        }
        assert_eq!(answer(None, &get("/latest/", None), &key()).status, 404, "a stranger");
        let disabled = Guest { enabled: false, ..guest() };
        assert_eq!(answer(Some(&disabled), &get("/latest/", None), &key()).status, 403);
    }

    #[test]
    fn version_2_needs_a_token_of_its_own() {
        let (key, strict) = (key(), Guest { tokens_required: true, ..guest() });
        let issued = answer(Some(&strict), &put("/latest/api/token", Some("60")), &key);
        assert_eq!((issued.status.as_u16(), issued.token_ttl, issued.hop_limit), (200, Some(60), Some(1)));
        let token = String::from_utf8(issued.body).unwrap();
        let read = answer(Some(&strict), &get("/latest/meta-data/instance-id", Some(&token)), &key);
        assert_eq!(
            (read.status.as_u16(), read.body.as_slice(), read.token_ttl, read.hop_limit),
            (200, &b"i-a"[..], Some(60), None)
        );
        let other = Guest { instance: "i-b".into(), ..strict.clone() };
        assert_eq!(answer(Some(&other), &get("/latest/", Some(&token)), &key).status, 401);
        let late = Asked { now: 61_001, ..get("/latest/", Some(&token)) };
        assert_eq!(answer(Some(&strict), &late, &key).status, 401);
        assert_eq!(answer(Some(&strict), &get("/latest/", None), &key).status, 401);
        assert_eq!(
            answer(Some(&guest()), &get("/latest/", Some("nonsense")), &key).status,
            401,
            "a wrong token is worse than none"
        );
    }

    #[test]
    fn a_token_is_refused_to_proxies_and_to_bad_lifetimes() {
        let key = key();
        for (ttl, status) in [
            (None, 400),
            (Some("0"), 400),
            (Some("21601"), 400),
            (Some("x"), 400),
            (Some("21600"), 200),
            (Some("1"), 200),
        ] {
            assert_eq!(answer(Some(&guest()), &put("/latest/api/token", ttl), &key).status.as_u16(), status, "{ttl:?}");
        }
        let forwarded = Asked { forwarded: true, ..put("/latest/api/token", Some("60")) };
        assert_eq!(answer(Some(&guest()), &forwarded, &key).status, 403);
        assert_eq!(answer(Some(&guest()), &put("/latest/meta-data/", Some("60")), &key).status, 405);
        assert_eq!(answer(Some(&guest()), &get("/latest/api/token", None), &key).status, 405);
        let post = Asked { method: &Method::POST, ..get("/latest/", None) };
        assert_eq!(answer(Some(&guest()), &post, &key).status, 405);
    }
}
