//! aws-chunked bodies: frames with sizes, signatures and trailers inside an ordinary HTTP body.
//!
//! The decoder is fed bytes as they come and gives back slices of them; it holds at most one line. **What it gives back is
//! provisional until [`Decoder::finish`] returned `Ok`:** the data of a signed chunk is passed on before its signature
//! has been seen to the end, and the length is known to be right only at the end. On any error, and on a connection that
//! just stops, the upload must leave nothing behind.
//!
//! ```
//! use bytes::Bytes;
//! use mallee_aws::chunked::{Decoder, Framing};
//! let mut decoder = Decoder::new(Framing::Unsigned, 11, vec!["x-amz-checksum-crc32".into()]);
//! let mut data = Vec::new();
//! let body = Bytes::from_static(b"b\r\nhello world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n");
//! decoder.decode(body, &mut data).unwrap(); // as often as bytes come
//! let trailers = decoder.finish().unwrap();
//! assert_eq!(data.concat(), b"hello world");
//! assert_eq!(trailers.get("x-amz-checksum-crc32"), Some("DUoRhQ=="));
//! ```

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::AwsError;
use crate::signature::{ChunkKey, Payload, Route, Verified};

/// A chunk header has at most 16 + 17 + 64 characters, a checksum trailer fewer than 200.
const MAX_LINE: usize = 1024;
const MAX_TRAILERS: usize = 16;
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// What guards the frames.
#[derive(Debug, Clone)]
pub enum Framing {
    /// `STREAMING-UNSIGNED-PAYLOAD-TRAILER`
    Unsigned,
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD`
    Signed(ChunkKey),
    /// `STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER`
    SignedWithTrailers(ChunkKey),
}

/// The trailers of a finished body, with lower-case names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trailers(Vec<(String, String)>);

impl Trailers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the line with a chunk's size.
    Header,
    /// In a chunk's data, with so many bytes to go.
    Data(u64),
    /// At the line end after a chunk's data.
    DataEnd,
    /// In the lines after the last chunk.
    Trailers,
    Done,
    /// An error was given out; nothing more is.
    Failed,
}

/// One body being decoded.
#[derive(Debug)]
pub struct Decoder {
    framing: Framing,
    state: State,
    /// The start of a line whose end has not come yet.
    line: Vec<u8>,
    /// Decoded bytes still to come, of those the client announced.
    remaining: u64,
    declared: Vec<String>,
    trailers: Vec<(String, String)>,
    trailer_signature: Option<[u8; 32]>,
    /// The signature in the current chunk's header, and the running hash of its data.
    chunk_signature: [u8; 32],
    chunk_hash: Sha256,
}

impl Decoder {
    /// `decoded_length` is `x-amz-decoded-content-length`; `declared` are the names in `x-amz-trailer`, the only trailers
    /// that may come and each of which must.
    pub fn new(framing: Framing, decoded_length: u64, declared: Vec<String>) -> Decoder {
        Decoder {
            framing,
            state: State::Header,
            line: Vec::new(),
            remaining: decoded_length,
            declared,
            trailers: Vec::new(),
            trailer_signature: None,
            chunk_signature: [0; 32],
            chunk_hash: Sha256::new(),
        }
    }

    /// The decoder a verified request needs; `None` if its body is not aws-chunked.
    pub fn for_request(verified: &Verified, headers: &http::HeaderMap) -> Result<Option<Decoder>, AwsError> {
        Self::for_payload(verified.payload, verified.chunk_key.as_ref(), headers)
    }

    /// As [`Decoder::for_request`], for a request without credentials whose payload is
    /// [`crate::signature::anonymous_payload`]; there is no chunk key then.
    pub fn for_payload(
        payload: Payload,
        chunk_key: Option<&ChunkKey>,
        headers: &http::HeaderMap,
    ) -> Result<Option<Decoder>, AwsError> {
        let framing = match (payload, chunk_key) {
            (Payload::UnsignedTrailer, _) => Framing::Unsigned,
            (Payload::SignedChunks, Some(key)) => Framing::Signed(key.clone()),
            (Payload::SignedChunksTrailer, Some(key)) => Framing::SignedWithTrailers(key.clone()),
            (Payload::SignedChunks | Payload::SignedChunksTrailer, None) => return Err(AwsError::internal()),
            _ => return Ok(None),
        };
        let mut lengths = headers.get_all("x-amz-decoded-content-length").iter();
        let length = match (lengths.next(), lengths.next()) {
            (Some(length), None) => length.to_str().ok().and_then(parse_decimal),
            (None, _) => {
                return Err(AwsError::new(
                    "MissingContentLength",
                    411,
                    "You must provide the Content-Length HTTP header.",
                ));
            }
            _ => None,
        };
        let length = length.ok_or_else(|| {
            AwsError::bad_request("InvalidArgument", "x-amz-decoded-content-length is not a valid length")
        })?;
        let mut declared = Vec::new();
        for value in headers.get_all("x-amz-trailer") {
            let names = value.to_str().map_err(|_| malformed_trailer())?;
            declared
                .extend(names.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()));
        }
        if declared.len() > MAX_TRAILERS {
            return Err(malformed_trailer());
        }
        declared.sort_unstable();
        declared.dedup();
        Ok(Some(Decoder::new(framing, length, declared)))
    }

    /// Takes the next bytes of the body and appends the data in them to `data`, without copying.
    pub fn decode(&mut self, mut input: Bytes, data: &mut Vec<Bytes>) -> Result<(), AwsError> {
        let result = self.advance(&mut input, data);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// The body has ended. Only now is what was decoded the body.
    pub fn finish(self) -> Result<Trailers, AwsError> {
        if self.state != State::Done {
            return Err(incomplete());
        }
        Ok(Trailers(self.trailers))
    }

    fn advance(&mut self, input: &mut Bytes, data: &mut Vec<Bytes>) -> Result<(), AwsError> {
        while !input.is_empty() {
            match self.state {
                State::Data(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let piece = input.split_to(take);
                    if !matches!(self.framing, Framing::Unsigned) {
                        self.chunk_hash.update(&piece);
                    }
                    let left = left - take as u64;
                    self.remaining -= take as u64;
                    data.push(piece);
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                }
                State::DataEnd => {
                    if let Some(line) = self.take_line(input, LineEnd::Strict)? {
                        if !line.is_empty() {
                            return Err(malformed_chunk("A chunk is longer than its size says."));
                        }
                        self.check_chunk()?;
                        self.state = State::Header;
                    }
                }
                State::Header => {
                    if let Some(line) = self.take_line(input, LineEnd::Strict)? {
                        self.begin_chunk(&line)?;
                    }
                }
                State::Trailers => {
                    if let Some(line) = self.take_line(input, LineEnd::Lenient)? {
                        self.take_trailer(&line)?;
                    }
                }
                State::Done => return Err(malformed_chunk("There are bytes after the end of the body.")),
                State::Failed => return Err(incomplete()),
            }
        }
        Ok(())
    }

    /// A whole line without its end, or `None` if more bytes are needed.
    fn take_line(&mut self, input: &mut Bytes, end: LineEnd) -> Result<Option<Vec<u8>>, AwsError> {
        let newline = input.iter().position(|&byte| byte == b'\n');
        let piece = input.split_to(newline.map_or(input.len(), |at| at + 1));
        if self.line.len() + piece.len() > MAX_LINE {
            return Err(malformed_chunk("A line is too long."));
        }
        self.line.extend_from_slice(&piece);
        if newline.is_none() {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line);
        line.pop();
        match (line.last(), end) {
            (Some(b'\r'), _) => {
                line.pop();
            }
            (_, LineEnd::Strict) => return Err(malformed_chunk("A line does not end in CRLF.")),
            (_, LineEnd::Lenient) => {}
        }
        Ok(Some(line))
    }

    fn begin_chunk(&mut self, line: &[u8]) -> Result<(), AwsError> {
        let text = std::str::from_utf8(line).map_err(|_| malformed_chunk("A chunk header is not ASCII."))?;
        let (size, extension) = match text.split_once(';') {
            Some((size, extension)) => (size, Some(extension)),
            None => (text, None),
        };
        let plain = !size.is_empty() && size.len() <= 16 && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = u64::from_str_radix(size, 16)
            .ok()
            .filter(|_| plain)
            .ok_or_else(|| malformed_chunk("A chunk size is not a hexadecimal number."))?;
        match (&self.framing, extension) {
            (Framing::Unsigned, None) => {}
            (Framing::Unsigned, Some(_)) => return Err(malformed_chunk("An unsigned chunk has an extension.")),
            (_, extension) => {
                let signature = extension
                    .and_then(|extension| extension.strip_prefix("chunk-signature="))
                    .and_then(parse_signature)
                    .ok_or_else(|| malformed_chunk("A chunk has no chunk-signature."))?;
                self.chunk_signature = signature;
                self.chunk_hash = Sha256::new();
            }
        }
        if size > self.remaining {
            return Err(incomplete());
        }
        if size > 0 {
            self.state = State::Data(size);
            return Ok(());
        }
        if self.remaining > 0 {
            return Err(incomplete());
        }
        self.check_chunk()?;
        self.state = State::Trailers;
        Ok(())
    }

    /// A signed chunk is over: was it what was signed?
    fn check_chunk(&mut self) -> Result<(), AwsError> {
        let (Framing::Signed(key) | Framing::SignedWithTrailers(key)) = &mut self.framing else { return Ok(()) };
        let hash = std::mem::take(&mut self.chunk_hash).finalize().into();
        let expected = key.sign_chunk(hash);
        if bool::from(expected.ct_eq(&self.chunk_signature)) { Ok(()) } else { Err(Route::S3.signature_mismatch()) }
    }

    fn take_trailer(&mut self, line: &[u8]) -> Result<(), AwsError> {
        let signed = matches!(self.framing, Framing::SignedWithTrailers(_));
        if line.is_empty() {
            // minio-go puts an empty line between the trailers and their signature.
            if signed && self.trailer_signature.is_none() && !self.trailers.is_empty() && self.line.is_empty() {
                return Ok(());
            }
            return self.end();
        }
        let text = std::str::from_utf8(line).map_err(|_| malformed_trailer())?;
        let (name, value) = text.split_once(':').ok_or_else(malformed_trailer)?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if signed && name == TRAILER_SIGNATURE {
            let signature = parse_signature(value).ok_or_else(malformed_trailer)?;
            if self.trailer_signature.replace(signature).is_some() {
                return Err(malformed_trailer());
            }
            return Ok(());
        }
        let known = self.declared.contains(&name) && !self.trailers.iter().any(|(seen, _)| *seen == name);
        // The signature is the last line: nothing after it would be covered.
        if !known || self.trailer_signature.is_some() || value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(malformed_trailer());
        }
        self.trailers.push((name, value.to_string()));
        Ok(())
    }

    fn end(&mut self) -> Result<(), AwsError> {
        if self.trailers.len() != self.declared.len() {
            return Err(malformed_trailer());
        }
        if let Framing::SignedWithTrailers(key) = &mut self.framing {
            let signature = self.trailer_signature.ok_or_else(malformed_trailer)?;
            let mut hash = Sha256::new();
            for (name, value) in &self.trailers {
                for piece in [name, ":", value, "\n"] {
                    hash.update(piece);
                }
            }
            let expected = key.sign_trailer(hash.finalize().into());
            if !bool::from(expected.ct_eq(&signature)) {
                return Err(Route::S3.signature_mismatch());
            }
        }
        self.state = State::Done;
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Strict,
    /// minio-go ends trailers with a bare newline.
    Lenient,
}

fn parse_signature(text: &str) -> Option<[u8; 32]> {
    let mut signature = [0; 32];
    hex::decode_to_slice(text, &mut signature).ok()?;
    Some(signature)
}

fn parse_decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn incomplete() -> AwsError {
    AwsError::bad_request(
        "IncompleteBody",
        "You did not provide the number of bytes specified by the x-amz-decoded-content-length HTTP header.",
    )
}

fn malformed_chunk(detail: &str) -> AwsError {
    AwsError::bad_request("InvalidRequest", format!("The aws-chunked body is malformed. {detail}"))
}

fn malformed_trailer() -> AwsError {
    AwsError::bad_request(
        "MalformedTrailerError",
        "The request contained trailing data that was not well-formed or did not conform to our published schema.",
    )
}

#[cfg(test)]
mod tests;
