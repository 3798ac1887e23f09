//! The body of every answer: bytes at once, or a stream.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};

/// A body that may stream; an error in it aborts the connection, so a cut answer never looks whole.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn stream<S>(stream: S) -> Body
where
    S: futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    use futures_util::StreamExt;
    StreamBody::new(stream.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// As [`collect`], and the error is [`io::ErrorKind::TimedOut`] when the whole body is not there in time. For the bodies of
/// strangers: each one that is waited for holds a descriptor.
pub async fn collect_within<B>(patience: Duration, body: B, limit: usize) -> io::Result<Option<Bytes>>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    tokio::time::timeout(patience, collect(body, limit)).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("it was not whole within {patience:?}")))
    })
}

/// Collects a body of at most `limit` bytes; `None` when it is longer.
pub async fn collect<B>(body: B, limit: usize) -> io::Result<Option<Bytes>>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match http_body_util::Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(Some(collected.to_bytes())),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Ok(None),
        Err(e) => Err(io::Error::other(e)),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_body_that_trickles_is_not_waited_for() {
        let crumbs = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Some((Ok(Bytes::from_static(b"a")), ()))
        });
        let patience = Duration::from_millis(50);
        let late = collect_within(patience, stream(crumbs.boxed()), 1 << 20).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(collect_within(patience, full("whole"), 5).await.unwrap().as_deref(), Some(&b"whole"[..]));
        assert_eq!(collect_within(patience, full("longer"), 5).await.unwrap(), None);
    }
}
