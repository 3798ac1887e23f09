//! What the headers of a PUT, a copy or an upload say about the object, beside its bytes.

use mallee_aws::params::Params;

use crate::{Error, call::Call, error::refuse};

/// Kept and sent back as they came.
const KEPT: [&str; 7] = [
    "content-type",
    "content-encoding",
    "content-disposition",
    "content-language",
    "cache-control",
    "expires",
    "x-amz-website-redirect-location",
];
pub const META: &str = "x-amz-meta-";
/// AWS' limit on all user metadata together.
const MOST_META: usize = 2048;
const STORAGE_CLASSES: [&str; 10] = [
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "GLACIER_IR",
    "OUTPOSTS",
    "EXPRESS_ONEZONE",
];
/// What would be a lie to accept.
const REFUSED: [(&str, &str); 1] = [("x-amz-write-offset-bytes", "Appending to an object")];

/// Refuses by name what is not done.
pub fn refuse_unsupported(call: &Call) -> Result<(), Error> {
    for (header, what) in REFUSED {
        if call.header(header)?.is_some() {
            return Err(refuse::not_implemented(what));
        }
    }
    Ok(())
}

/// The headers to keep, by lower-case name.
pub fn headers(call: &Call) -> Result<Vec<(String, String)>, Error> {
    let mut kept = Vec::new();
    for name in KEPT {
        if let Some(value) = call.header(name)? {
            kept.push((name.to_owned(), value.to_owned()));
        }
    }
    for name in call.headers.keys().filter(|name| name.as_str().starts_with(META)) {
        // Metadata given twice is one value, joined as HTTP joins headers.
        let values = call.headers.get_all(name).iter().map(|value| std::str::from_utf8(value.as_bytes()));
        let values = values.collect::<Result<Vec<_>, _>>();
        let values = values.map_err(|_| refuse::argument(name.as_str(), "", "User metadata must be UTF-8."))?;
        kept.push((name.as_str().to_owned(), values.join(",").trim().to_owned()));
    }
    tidied(kept)
}

/// Checks sizes, and takes `aws-chunked` out of the encoding: it was the transport's.
pub fn tidied(mut kept: Vec<(String, String)>) -> Result<Vec<(String, String)>, Error> {
    for (name, value) in &mut kept {
        if name == "content-encoding" {
            let is_the_transports = |encoding: &str| encoding.eq_ignore_ascii_case("aws-chunked");
            let listed: Vec<&str> = value.split(',').map(str::trim).filter(|e| !e.is_empty()).collect();
            // What has nothing of the transport is left as it was written.
            if listed.iter().any(|encoding| is_the_transports(encoding)) {
                let left: Vec<&str> = listed.into_iter().filter(|encoding| !is_the_transports(encoding)).collect();
                *value = left.join(",");
            }
        }
        if http::HeaderValue::from_bytes(value.as_bytes()).is_err() {
            return Err(refuse::argument(name, "", "The value cannot be a header's."));
        }
    }
    kept.retain(|(name, value)| !value.is_empty() || name.starts_with(META));
    let meta: usize = kept.iter().filter_map(|(n, v)| Some(n.strip_prefix(META)?.len() + v.len())).sum();
    if meta > MOST_META {
        return Err(refuse::coded(
            "MetadataTooLarge",
            400,
            "Your metadata headers exceed the maximum allowed metadata size",
        ));
    }
    Ok(kept)
}

pub fn is_kept(name: &str) -> bool {
    KEPT.contains(&name) || name.starts_with(META)
}

pub fn storage_class(call: &Call) -> Result<Option<String>, Error> {
    call.header("x-amz-storage-class")?.map(known_storage_class).transpose()
}

pub fn known_storage_class(name: &str) -> Result<String, Error> {
    if STORAGE_CLASSES.contains(&name) {
        return Ok(name.into());
    }
    Err(refuse::coded("InvalidStorageClass", 400, "The storage class you specified is not valid"))
}

pub const STANDARD: &str = "STANDARD";

/// `x-amz-tagging`: a query string.
pub fn tags(call: &Call) -> Result<Vec<(String, String)>, Error> {
    let Some(text) = call.header("x-amz-tagging")? else { return Ok(Vec::new()) };
    let wrong = || {
        refuse::argument(
            "x-amz-tagging",
            text,
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.",
        )
    };
    let params = Params::parse(text.as_bytes()).map_err(|_| wrong())?;
    checked_tags(params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// AWS' rules for tags of objects. They are kept and shown in the order of their keys.
pub fn checked_tags(mut tags: Vec<(String, String)>) -> Result<Vec<(String, String)>, Error> {
    if tags.len() > 10 {
        return Err(refuse::coded("InvalidTag", 400, "Object tags cannot be greater than 10"));
    }
    for (at, (key, value)) in tags.iter().enumerate() {
        let plain = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " +-=._:/@".contains(c));
        if key.is_empty() || key.chars().count() > 128 || !plain(key) || key.starts_with("aws:") {
            return Err(refuse::coded("InvalidTag", 400, "The TagKey you have provided is invalid"));
        }
        if value.chars().count() > 256 || !plain(value) {
            return Err(refuse::coded("InvalidTag", 400, "The TagValue you have provided is invalid"));
        }
        if tags[..at].iter().any(|(other, _)| other == key) {
            return Err(refuse::coded("InvalidTag", 400, "Cannot provide multiple Tags with the same key"));
        }
    }
    tags.sort_unstable();
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transports_encoding_is_not_kept() {
        let tidy = |value: &str| {
            let kept = tidied(vec![("content-encoding".into(), value.into())]).unwrap();
            kept.into_iter().next().map(|(_, value)| value)
        };
        assert_eq!(tidy("aws-chunked"), None);
        assert_eq!(tidy("aws-chunked,gzip"), Some("gzip".into()));
        assert_eq!(tidy("gzip, AWS-chunked"), Some("gzip".into()));
        assert_eq!(tidy("gzip"), Some("gzip".into()));
        assert_eq!(tidy("deflate, gzip"), Some("deflate, gzip".into()));
        assert_eq!(tidy("aws-chunked, aws-chunked"), None);
    }

    #[test]
    fn a_value_that_would_break_an_answer_is_refused() {
        assert!(tidied(vec![("x-amz-meta-a".into(), "x\r\nSet-Cookie: y".into())]).is_err());
        assert!(tidied(vec![("x-amz-meta-a".into(), "v".repeat(2048))]).is_err());
    }

    #[test]
    fn tags_are_checked() {
        let tag = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert!(checked_tags(vec![tag("a", "1"), tag("b", "")]).is_ok());
        for bad in
            [vec![tag("", "1")], vec![tag("a", "1"), tag("a", "2")], vec![tag("aws:x", "1")], vec![tag("a", "{")]]
        {
            assert!(checked_tags(bad).is_err());
        }
        assert!(checked_tags((0..11).map(|n| tag(&n.to_string(), "")).collect()).is_err());
    }
}
