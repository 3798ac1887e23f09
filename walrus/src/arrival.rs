//! A request's body as it arrives: how long it may take, and what becomes of the rest when nobody wants it any more.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{runtime::Handle, time::timeout};

use crate::{Error, error::refuse};

/// How slow a client may be.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// One that sends nothing for so long is cut off.
    pub patience: Duration,
    /// So is one that sends fewer bytes a second than this, counted after `patience`; 0: however few. Only the time that
    /// it was waited for counts.
    pub least: u64,
}

/// How long a body that nobody wants is read on: in all, and in silence.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_IN_SILENCE: Duration = Duration::from_secs(5);

/// Dropped before its end, the rest is read and thrown away for a while: a connection that is closed on a client that is
/// still sending is reset, and the client never reads why.
pub struct Arrival {
    body: Option<Incoming>,
    pace: Pace,
    /// The client waits to be told to go on, which hyper does when the body is first asked for.
    held_back: bool,
    came: u64,
    waited: Duration,
    /// It did not come to its end, so that it has none.
    broken: bool,
}

impl Arrival {
    pub fn new(body: Incoming, headers: &HeaderMap, pace: Pace) -> Self {
        let held_back = headers.contains_key(header::EXPECT);
        Self { body: Some(body), pace, held_back, came: 0, waited: Duration::ZERO, broken: false }
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.broken {
                return Err(Error::Cut("it broke off before".into()));
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            self.held_back = false;
            let Pace { patience, least } = self.pace;
            let left = match self.came.checked_div(least) {
                None => patience,
                Some(seconds) => patience.min((patience + Duration::from_secs(seconds)).saturating_sub(self.waited)),
            };
            let asked = Instant::now();
            let frame = timeout(left, body.frame()).await;
            self.waited += asked.elapsed();
            match frame {
                Err(_) => {
                    (self.body, self.broken) = (None, true);
                    return Err(refuse::coded(
                        "RequestTimeout",
                        400,
                        "Your socket connection to the server was not read from or written to within the timeout period.",
                    ));
                }
                Ok(None) => self.body = None,
                Ok(Some(Err(e))) => {
                    (self.body, self.broken) = (None, true);
                    return Err(Error::Cut(e.to_string()));
                }
                // Trailers of HTTP itself say nothing in S3.
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.came += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        let Ok(runtime) = Handle::try_current() else { return };
        if self.held_back || body.is_end_stream() {
            return;
        }
        runtime.spawn(timeout(LINGER, async move {
            while let Ok(Some(Ok(_))) = timeout(LINGER_IN_SILENCE, body.frame()).await {}
        }));
    }
}
