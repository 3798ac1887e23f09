//! One request, taken apart once: what is authorised is the very string that is acted on.

use std::collections::VecDeque;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use mallee_aws::{
    chunked::{Decoder, Trailers},
    signature::{self, Verified},
};
use openssl::hash::{MessageDigest, hash};

use crate::{
    Error,
    arrival::Arrival,
    checksum::{Algorithm, Running},
    circumstances::Wire,
    error::refuse,
    principal::Principal,
};

/// The longest key AWS takes, in bytes of UTF-8.
const LONGEST_KEY: usize = 1024;

/// The decoded query, in order. A parameter without `=` has no value, which is not the empty one.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, Option<String>)>);

impl Query {
    pub fn parse(raw: &str) -> Result<Self, Error> {
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (pair, None),
            };
            let value = value.map(|value| decode(value, Plus::IsSpace)).transpose()?;
            pairs.push((decode(name, Plus::IsSpace)?, value));
        }
        Ok(Self(pairs))
    }
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }
    /// The value; without `=` it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_deref().unwrap_or_default())
    }
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plus {
    IsSpace,
    IsPlus,
}

/// Undoes percent-encoding. What is not UTF-8 then, or holds NUL, is no name S3 or the store could keep.
pub fn decode(text: &str, plus: Plus) -> Result<String, Error> {
    let bad = || refuse::coded("InvalidURI", 400, "Couldn't parse the specified URI.");
    let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => (digit(bytes.next())? << 4 | digit(bytes.next())?) as u8,
            b'+' if plus == Plus::IsSpace => b' ',
            0 => return Err(bad()),
            byte => byte,
        });
    }
    match String::from_utf8(out) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(bad()),
    }
}

/// Which bucket and key a request is about; both empty for the service, the key for a bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    pub bucket: String,
    pub key: String,
}

/// Paths under which Eucalyptus had its S3.
const SERVICE_PATHS: [&str; 2] = ["/services/objectstorage", "/services/Walrus"];

impl Target {
    /// From the raw path and the bucket the host names, if it does.
    pub fn of(path: &str, bucket_in_host: Option<&str>) -> Result<Self, Error> {
        let path = SERVICE_PATHS
            .iter()
            .find_map(|prefix| path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/')))
            .unwrap_or(path);
        let path = path.strip_prefix('/').unwrap_or(path);
        let (bucket, key) = match bucket_in_host {
            Some(bucket) => (bucket, path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        let target = Target { bucket: decode(bucket, Plus::IsPlus)?, key: decode(key, Plus::IsPlus)? };
        if target.key.len() > LONGEST_KEY {
            return Err(refuse::coded("KeyTooLongError", 400, "Your key is too long"));
        }
        Ok(target)
    }

    pub fn resource(&self) -> String {
        match (self.bucket.as_str(), self.key.as_str()) {
            ("", _) => "/".into(),
            (bucket, "") => format!("/{bucket}"),
            (bucket, key) => format!("/{bucket}/{key}"),
        }
    }
}

/// The bucket a `Host` header names, for one of the cloud's suffixes.
pub fn bucket_in_host<'h>(host: &'h str, suffixes: &[String]) -> Option<&'h str> {
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(n, _)| n);
    suffixes.iter().find_map(|suffix| {
        let cut = name.len().checked_sub(suffix.len() + 1)?;
        let (bucket, rest) = name.split_at_checked(cut)?;
        (!bucket.is_empty() && rest.starts_with('.') && rest[1..].eq_ignore_ascii_case(suffix)).then_some(bucket)
    })
}

/// One request.
pub struct Call {
    pub method: Method,
    pub target: Target,
    pub query: Query,
    pub headers: HeaderMap,
    pub principal: Principal,
    /// The region the signature is for, where it names one.
    pub region: Option<String>,
    pub wire: Wire,
    pub payload: Payload,
    pub request_id: String,
    /// When it came, in milliseconds.
    pub now: i64,
    /// `https://HOST` as the client called it, for documents that hold an address.
    pub origin: String,
}

impl Call {
    /// A header's text; refused when it is not UTF-8 or is there twice.
    pub fn header(&self, name: &str) -> Result<Option<&str>, Error> {
        let mut all = self.headers.get_all(name).iter();
        let Some(value) = all.next() else { return Ok(None) };
        if all.next().is_some() {
            return Err(refuse::argument(name, "", "The header is given more than once."));
        }
        std::str::from_utf8(value.as_bytes())
            .map(|text| Some(text.trim()))
            .map_err(|_| refuse::argument(name, "", "The header is not UTF-8."))
    }

    /// The whole body, at most `limit` bytes, with every promise about it checked.
    pub async fn document(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let promised = Promised::of(self)?;
        let mut bytes = Vec::new();
        while let Some(piece) = self.payload.next().await? {
            if bytes.len() + piece.len() > limit {
                return Err(refuse::coded("MaxMessageLengthExceeded", 400, "Your request was too big."));
            }
            bytes.extend_from_slice(&piece);
        }
        let md5 = hash(MessageDigest::md5(), &bytes).map_err(|e| Error::Internal(format!("MD5: {e}")))?;
        let sum = promised.algorithm.map(|algorithm| {
            let mut running = Running::new(algorithm);
            running.update(&bytes);
            (algorithm, running.finish())
        });
        let sha256: [u8; 32] =
            sha2::Digest::finalize(sha2::Digest::chain_update(sha2::Sha256::default(), &bytes)).into();
        self.payload.check_sha256(Some(sha256))?;
        promised.check(&md5, sum.as_slice(), &self.payload.trailers)?;
        Ok(bytes)
    }
}

/// The body, decoded while it streams.
pub struct Payload {
    /// None: somebody else has taken it.
    body: Option<Arrival>,
    /// None: nobody signed, so nothing about the body was.
    verified: Option<Verified>,
    decoder: Option<Decoder>,
    decoded: VecDeque<Bytes>,
    /// How long it will be, when the client said.
    pub length: Option<u64>,
    /// Whether the request says that it has a body, be it empty.
    announced: bool,
    pub trailers: Trailers,
    finished: bool,
}

impl Payload {
    pub fn new(body: Arrival, verified: Option<Verified>, headers: &HeaderMap) -> Result<Self, Error> {
        let number =
            |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse::<u64>().ok());
        let decoder = match &verified {
            Some(verified) => Decoder::for_request(verified, headers)?,
            None => None,
        };
        let length = number(if decoder.is_some() { "x-amz-decoded-content-length" } else { "content-length" });
        Ok(Self {
            body: Some(body),
            verified,
            decoder,
            decoded: VecDeque::new(),
            length,
            announced: headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING),
            trailers: Trailers::default(),
            finished: false,
        })
    }

    /// A body that somebody else has taken.
    pub fn spent() -> Self {
        Self {
            body: None,
            verified: None,
            decoder: None,
            decoded: VecDeque::new(),
            length: None,
            announced: false,
            trailers: Trailers::default(),
            finished: false,
        }
    }

    /// Refuses to take bytes to keep from a request that says nothing of any: it is as likely cut short as empty.
    pub fn must_be_announced(&self) -> Result<(), Error> {
        if self.announced {
            return Ok(());
        }
        Err(refuse::coded("MissingContentLength", 411, "You must provide the Content-Length HTTP header."))
    }

    /// Whether the signature covers the body's SHA-256.
    pub fn hash_is_signed(&self) -> bool {
        self.verified.as_ref().is_some_and(|v| matches!(v.payload, signature::Payload::SignedHash(_)))
    }

    /// The next bytes; `None` once the body has ended as it should. Nothing that came may take effect before.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(bytes) = self.decoded.pop_front() {
                return Ok(Some(bytes));
            }
            if self.finished {
                return Ok(None);
            }
            match self.frame().await? {
                None => {
                    self.finished = true;
                    if let Some(decoder) = self.decoder.take() {
                        self.trailers = decoder.finish()?;
                    }
                }
                Some(bytes) => match &mut self.decoder {
                    None => return Ok(Some(bytes)),
                    Some(decoder) => {
                        let mut data = Vec::new();
                        decoder.decode(bytes, &mut data)?;
                        self.decoded.extend(data.into_iter().filter(|piece| !piece.is_empty()));
                    }
                },
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.body {
            None => Ok(None),
            Some(body) => body.next().await,
        }
    }

    pub fn check_sha256(&self, sha256: Option<[u8; 32]>) -> Result<(), Error> {
        match (&self.verified, sha256) {
            (Some(verified), Some(sha256)) => Ok(verified.check_body(sha256)?),
            _ if self.hash_is_signed() => Err(Error::Internal("a signed hash was not computed".into())),
            _ => Ok(()),
        }
    }
}

/// What the client says its body will be.
#[derive(Debug, Default)]
pub struct Promised {
    md5: Option<Vec<u8>>,
    pub algorithm: Option<Algorithm>,
    /// The checksum, where it came in a header and not in the trailer.
    value: Option<Vec<u8>>,
    in_trailer: bool,
}

impl Promised {
    pub fn of(call: &Call) -> Result<Self, Error> {
        let mut promised = Promised::default();
        if let Some(text) = call.header("content-md5")? {
            let md5 = STANDARD.decode(text).ok().filter(|bytes| bytes.len() == 16);
            let invalid = || refuse::coded("InvalidDigest", 400, "The Content-MD5 you specified was invalid.");
            promised.md5 = Some(md5.ok_or_else(invalid)?);
        }
        for algorithm in Algorithm::ALL {
            if let Some(text) = call.header(algorithm.header())? {
                promised.set(algorithm)?;
                promised.value = Some(algorithm.parse(text).ok_or_else(|| refuse::wrong_checksum(algorithm.name()))?);
            }
        }
        if let Some(names) = call.header("x-amz-trailer")? {
            for name in names.split(',') {
                if let Some(algorithm) = Algorithm::by_header(name.trim()) {
                    promised.set(algorithm)?;
                    promised.in_trailer = true;
                }
            }
        }
        for name in ["x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm"] {
            if let Some(text) = call.header(name)? {
                let unknown = || {
                    refuse::request(
                        "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
                    )
                };
                let algorithm = Algorithm::by_name(text).ok_or_else(unknown)?;
                if promised.algorithm.is_some_and(|known| known != algorithm) {
                    return Err(refuse::request(format!("Value for {name} header is invalid.")));
                }
                promised.algorithm = Some(algorithm);
            }
        }
        Ok(promised)
    }

    fn set(&mut self, algorithm: Algorithm) -> Result<(), Error> {
        if self.algorithm.is_some() {
            return Err(refuse::several_checksums());
        }
        self.algorithm = Some(algorithm);
        Ok(())
    }

    /// Compares with what came.
    pub fn check(&self, md5: &[u8], sums: &[(Algorithm, Vec<u8>)], trailers: &Trailers) -> Result<(), Error> {
        if self.md5.as_deref().is_some_and(|promised| promised != md5) {
            return Err(refuse::bad_digest("The Content-MD5 you specified did not match what we received."));
        }
        let Some(algorithm) = self.algorithm else { return Ok(()) };
        let promised = match (&self.value, self.in_trailer) {
            (Some(value), _) => value.clone(),
            (None, true) => {
                trailers.get(algorithm.header()).and_then(|text| algorithm.parse(text)).ok_or_else(|| {
                    refuse::request(format!("Value for {} trailing header is invalid.", algorithm.header()))
                })?
            }
            (None, false) => return Ok(()),
        };
        let came = sums.iter().find(|(known, _)| *known == algorithm).map(|(_, sum)| sum);
        if came != Some(&promised) {
            return Err(refuse::wrong_checksum(algorithm.name()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart_once_and_never_normalised() {
        let of = |path, host| Target::of(path, host).map(|t| (t.bucket, t.key)).ok();
        let pair = |b: &str, k: &str| Some((b.to_owned(), k.to_owned()));
        let table = [
            ("/", None, pair("", "")),
            ("/b", None, pair("b", "")),
            ("/b/", None, pair("b", "")),
            ("/b//x/../y%2Fz+a%20b", None, pair("b", "/x/../y/z+a b")),
            ("/services/objectstorage/b/k", None, pair("b", "k")),
            ("/services/Walrus", None, pair("", "")),
            ("/services/Walrusx/k", None, pair("services", "Walrusx/k")),
            ("/k/l", Some("b"), pair("b", "k/l")),
            ("/b/%00", None, None),
            ("/b/%ff", None, None),
            ("/b/%2", None, None),
        ];
        for (path, host, expected) in table {
            assert_eq!(of(path, host), expected, "{path}");
        }
        assert!(Target::of(&format!("/b/{}", "k".repeat(1025)), None).is_err());
        assert!(Target::of(&format!("/b/{}", "k".repeat(1024)), None).is_ok());
    }

    #[test]
    fn a_bucket_in_the_host_needs_the_clouds_suffix() {
        let suffixes = ["s3.example".to_owned()];
        let table = [
            ("b.s3.example:8777", Some("b")),
            ("a.b.S3.example", Some("a.b")),
            ("s3.example", None),
            (".s3.example", None),
            ("bs3.example", None),
            ("127.0.0.1:8777", None),
            ("é.s3.example", Some("é")),
        ];
        for (host, bucket) in table {
            assert_eq!(bucket_in_host(host, &suffixes), bucket, "{host}");
        }
    }
}
