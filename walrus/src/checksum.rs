//! The five checksums of S3, as they come in headers, in trailers and in documents.

use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::CrcAlgorithm;
use serde::{Deserialize, Serialize};
use sha1::Digest;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    #[serde(rename = "CRC32")]
    Crc32,
    #[serde(rename = "CRC32C")]
    Crc32c,
    #[serde(rename = "CRC64NVME")]
    Crc64Nvme,
    #[serde(rename = "SHA1")]
    Sha1,
    #[serde(rename = "SHA256")]
    Sha256,
}

impl Algorithm {
    pub const ALL: [Algorithm; 5] =
        [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme, Algorithm::Sha1, Algorithm::Sha256];

    /// As `x-amz-checksum-algorithm` and documents spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "CRC32",
            Algorithm::Crc32c => "CRC32C",
            Algorithm::Crc64Nvme => "CRC64NVME",
            Algorithm::Sha1 => "SHA1",
            Algorithm::Sha256 => "SHA256",
        }
    }

    pub const fn header(self) -> &'static str {
        match self {
            Algorithm::Crc32 => "x-amz-checksum-crc32",
            Algorithm::Crc32c => "x-amz-checksum-crc32c",
            Algorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Algorithm::Sha1 => "x-amz-checksum-sha1",
            Algorithm::Sha256 => "x-amz-checksum-sha256",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name().eq_ignore_ascii_case(name))
    }

    pub fn by_header(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.header().eq_ignore_ascii_case(name))
    }

    fn length(self) -> usize {
        match self {
            Algorithm::Crc32 | Algorithm::Crc32c => 4,
            Algorithm::Crc64Nvme => 8,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
        }
    }

    /// A checksum in base64; `None` when it cannot be one of this algorithm.
    pub fn parse(self, text: &str) -> Option<Vec<u8>> {
        STANDARD.decode(text.trim()).ok().filter(|bytes| bytes.len() == self.length())
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Algorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Algorithm::Sha1 | Algorithm::Sha256 => None,
        }
    }

    /// The checksum of the whole from those of its parts: CRCs can be joined, digests cannot.
    pub fn join(self, parts: &[(Vec<u8>, u64)]) -> Option<Vec<u8>> {
        let algorithm = self.crc()?;
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
        let mut joined: Option<u64> = None;
        for (sum, length) in parts {
            joined = Some(match joined {
                None => number(sum),
                Some(before) => crc_fast::checksum_combine(algorithm, before, number(sum), *length),
            });
        }
        let bytes = joined?.to_be_bytes();
        Some(bytes[8 - self.length()..].to_vec())
    }

    /// The checksum of the checksums of the parts.
    pub fn compose(self, parts: &[(Vec<u8>, u64)]) -> Vec<u8> {
        let mut running = Running::new(self);
        for (sum, _) in parts {
            running.update(sum);
        }
        running.finish()
    }
}

/// Whether a checksum is over the bytes, or over the checksums of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "FULL_OBJECT")]
    FullObject,
    #[serde(rename = "COMPOSITE")]
    Composite,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Kind::FullObject => "FULL_OBJECT",
            Kind::Composite => "COMPOSITE",
        }
    }
}

/// A checksum as rows keep it and clients see it: base64, with `-N` when it is composed of N parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    pub algorithm: Algorithm,
    pub value: String,
    pub kind: Kind,
}

impl Checksum {
    pub fn full(algorithm: Algorithm, bytes: &[u8]) -> Self {
        Self { algorithm, value: encode(bytes), kind: Kind::FullObject }
    }
}

pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// One being computed.
pub enum Running {
    Crc(Algorithm, crc_fast::Digest),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
}

impl Running {
    pub fn new(algorithm: Algorithm) -> Self {
        match (algorithm, algorithm.crc()) {
            (_, Some(crc)) => Running::Crc(algorithm, crc_fast::Digest::new(crc)),
            (Algorithm::Sha1, None) => Running::Sha1(sha1::Sha1::new()),
            (_, None) => Running::Sha256(sha2::Sha256::new()),
        }
    }
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Running::Crc(_, digest) => digest.update(bytes),
            Running::Sha1(digest) => digest.update(bytes),
            Running::Sha256(digest) => digest.update(bytes),
        }
    }
    pub fn finish(self) -> Vec<u8> {
        match self {
            Running::Crc(algorithm, digest) => digest.finalize().to_be_bytes()[8 - algorithm.length()..].to_vec(),
            Running::Sha1(digest) => digest.finalize().to_vec(),
            Running::Sha256(digest) => digest.finalize().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
        let mut running = Running::new(algorithm);
        running.update(bytes);
        running.finish()
    }

    #[test]
    fn checksums_are_those_of_the_s3_manual() {
        // The check values of the CRC catalogue for "123456789".
        let table = [
            (Algorithm::Crc32, "cbf43926"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ];
        for (algorithm, hex) in table {
            let sum = of(algorithm, b"123456789");
            assert_eq!(hex::encode(&sum), hex);
            assert_eq!(algorithm.parse(&encode(&sum)), Some(sum));
            assert_eq!(algorithm.parse("AAA="), None);
        }
    }

    #[test]
    fn joined_crcs_are_those_of_the_whole() {
        let (a, b, c) = (&b"first part"[..], &b"second, longer part"[..], &b"x"[..]);
        let whole = [a, b, c].concat();
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let parts: Vec<_> = [a, b, c].iter().map(|p| (of(algorithm, p), p.len() as u64)).collect();
            assert_eq!(algorithm.join(&parts), Some(of(algorithm, &whole)), "{}", algorithm.name());
        }
        assert_eq!(Algorithm::Sha1.join(&[]), None);
    }
}
