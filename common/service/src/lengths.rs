//! Requests that give their length twice: by `Content-Length` and by `Transfer-Encoding`.
//!
//! A proxy in front may believe one and we the other, and what follows is then somebody else's request. Such a request is
//! refused. hyper goes by `Transfer-Encoding` and drops the other header before anybody sees it, so the head is looked at
//! as it came over the wire. (hyper also ends the connection after such a request, which holds where the head was not
//! seen here: where it came before the request ahead of it was answered.)

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use http::{Request, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More of a head than that is not kept; lengths stand near its beginning or nowhere anybody was misled by.
const MOST: usize = 16 * 1024;

/// What came since the last request was answered; `None` while one is.
#[derive(Clone)]
pub struct Heads(Arc<Mutex<Option<Vec<u8>>>>);

impl Heads {
    /// The stream, watched from its beginning.
    pub fn of<S>(stream: S) -> (Self, Watched<S>) {
        let heads = Self(Arc::new(Mutex::new(Some(Vec::new()))));
        (heads.clone(), Watched { stream, heads })
    }

    fn came(&self, bytes: &[u8]) {
        if let Some(head) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let room = MOST.saturating_sub(head.len());
            head.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }

    /// A request has been read; whether its head gives two lengths.
    pub fn end_with<B>(&self, request: &Request<B>) -> bool {
        let head = self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        request.headers().contains_key(header::TRANSFER_ENCODING) && has_length(&head, request.method().as_str())
    }

    /// It has been answered, so what comes next is the next one's.
    pub fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }
}

/// Whether a head of this method has a `Content-Length`. What is no such head (the rest of a body that was refused) has none.
fn has_length(head: &[u8], method: &str) -> bool {
    let head = head.trim_ascii_start();
    if head.strip_prefix(method.as_bytes()).is_none_or(|rest| rest.first() != Some(&b' ')) {
        return false;
    }
    head.split(|byte| *byte == b'\n')
        .skip(1)
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split(|byte| *byte == b':').next())
        .any(|name| name.eq_ignore_ascii_case(b"content-length"))
}

/// A stream that [`Heads`] see what is read from.
pub struct Watched<S> {
    stream: S,
    heads: Heads,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(bytes) = buf.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            self.heads.came(bytes);
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_seen_in_a_head_and_nowhere_else() {
        let table: [(&str, bool); 8] = [
            ("PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", true),
            ("PUT /a HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-LENGTH:4\r\n\r\n", true),
            ("\r\n\r\nPUT /a HTTP/1.1\ncontent-length: 4\n\n", true),
            ("PUT /a HTTP/1.1\r\nHost: x\r\n\r\nContent-Length: 4\r\n", false),
            ("PUT /content-length:4 HTTP/1.1\r\nX: content-length: 4\r\n\r\n", false),
            ("PUTS /a HTTP/1.1\r\nContent-Length: 4\r\n\r\n", false),
            ("bytes of a body\r\nContent-Length: 4\r\n\r\n", false),
            ("", false),
        ];
        for (head, has) in table {
            assert_eq!(has_length(head.as_bytes(), "PUT"), has, "{head:?}");
        }
    }
}
