//! Cuts a byte stream into JSON texts.
//!
//! OVSDB puts its messages one after the other with no length and no newline. Trying to parse after every read costs the
//! square of the size of a large first snapshot, so this only counts braces, remembers where it was, and leaves the parsing
//! to whoever takes the finished message.

/// Fed bytes, gives whole messages. It never holds more than `limit` bytes of an unfinished one.
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    limit: usize,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a message is longer than {0} bytes")]
    TooLong(usize),
    #[error("a message does not begin with a brace")]
    NotAnObject,
}

impl Framer {
    pub fn new(limit: usize) -> Framer {
        Framer { buffer: Vec::new(), scanned: 0, depth: 0, in_string: false, escaped: false, limit }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` when more bytes are needed.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.depth == 0 && byte.is_ascii_whitespace() {
                self.buffer.drain(..=self.scanned);
                self.scanned = 0;
                continue;
            }
            if self.depth == 0 && byte != b'{' {
                return Err(FrameError::NotAnObject);
            }
            self.scanned += 1;
            if self.scanned > self.limit {
                return Err(FrameError::TooLong(self.limit));
            }
            if self.step(byte) {
                let rest = self.buffer.split_off(self.scanned);
                self.scanned = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
        }
        Ok(None)
    }

    /// Takes one byte; true when it closed the outermost brace.
    fn step(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = br#" {"a":"}\"{"}{"b":[{"c":"\\"}]}
{}"#;

    fn messages(chunk: usize) -> Vec<String> {
        let mut framer = Framer::new(1000);
        let mut out = Vec::new();
        for bytes in STREAM.chunks(chunk) {
            framer.push(bytes);
            while let Some(message) = framer.next_message().unwrap() {
                out.push(String::from_utf8(message).unwrap());
            }
        }
        out
    }

    #[test]
    fn messages_are_the_same_however_the_bytes_arrive() {
        let whole = vec![r#"{"a":"}\"{"}"#, r#"{"b":[{"c":"\\"}]}"#, "{}"];
        for chunk in 1..STREAM.len() + 1 {
            assert_eq!(messages(chunk), whole, "chunks of {chunk}");
        }
    }

    #[test]
    fn an_endless_message_is_refused() {
        let mut framer = Framer::new(10);
        framer.push(br#"{"aaaaaaaaaaaaaaaaaaaa"#);
        assert_eq!(framer.next_message(), Err(FrameError::TooLong(10)));
    }

    #[test]
    fn something_that_is_no_object_is_refused() {
        let mut framer = Framer::new(10);
        framer.push(b"HTTP/1.1 400");
        assert_eq!(framer.next_message(), Err(FrameError::NotAnObject));
    }
}
