//! The front of every daemon: HTTP and HTTPS on one port, told apart by the first byte, and HTTP on a unix socket.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use mallee_tiers::Peer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
};
use tokio_rustls::TlsAcceptor;

use crate::{Body, Identity, lengths::Heads};

/// How a request came in.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The socket's peer; never taken from a header.
    pub remote: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
    pub tls: bool,
    /// The tier at the other end, when it showed a certificate of the cloud's CA; the operator on an admin socket.
    pub peer: Option<Peer>,
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    fn handle(&self, request: Request<Incoming>, connection: Connection)
    -> impl Future<Output = Response<Body>> + Send;
}

/// Listeners that are bound, not yet served.
pub struct Server {
    listeners: Vec<TcpListener>,
    tls: Option<TlsAcceptor>,
}

impl Server {
    /// Binds every address; port 0 asks for a free one (see [`Server::addresses`]).
    pub async fn bind(addresses: &[SocketAddr], identity: Option<&Identity>) -> io::Result<Self> {
        let mut listeners = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))?;
            listeners.push(listener);
        }
        let tls = match identity {
            Some(identity) => Some(TlsAcceptor::from(identity.server_config().map_err(io::Error::other)?)),
            None => None,
        };
        Ok(Self { listeners, tls })
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|l| l.local_addr().ok()).collect()
    }

    /// Serves until the runtime ends.
    pub fn serve(self, handler: Arc<impl Handler>) {
        for listener in self.listeners {
            let (tls, handler) = (self.tls.clone(), handler.clone());
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok((stream, remote)) => {
                            tokio::spawn(accept(stream, remote, tls.clone(), handler.clone()));
                        }
                        Err(e) => {
                            // Out of descriptors, mostly: wait for some to be closed instead of spinning.
                            tracing::warn!(error = %e, "accept failed");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                }
            });
        }
    }
}

/// Serves plain HTTP on a unix socket that only root may open; whoever opens it is the operator.
pub fn serve_admin(path: &Path, handler: Arc<impl Handler>) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // Under another name until it listens and is closed to others: whoever finds the path can call it.
    let unready = path.with_extension("sock.new");
    let _ = std::fs::remove_file(&unready);
    let listener = UnixListener::bind(&unready)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unready, path)?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handler = handler.clone();
            let connection = Connection { remote: None, local: None, tls: false, peer: Some(Peer::operator()) };
            tokio::spawn(async move { http(stream, connection, handler).await });
        }
    });
    Ok(())
}

/// A client that says nothing is cut off after this time.
const PATIENCE: Duration = Duration::from_secs(30);

async fn accept(stream: TcpStream, remote: SocketAddr, tls: Option<TlsAcceptor>, handler: Arc<impl Handler>) {
    // Head and body are separate writes: without this a small answer waits for the client's delayed ACK (s3.md).
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().ok();
    let mut connection = Connection { remote: Some(remote), local, tls: false, peer: None };
    let mut first = [0u8; 1];
    match tokio::time::timeout(PATIENCE, stream.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        _ => return,
    }
    // 0x16 is a TLS handshake record; no HTTP method starts with it.
    let Some(tls) = tls.filter(|_| first[0] == 0x16) else {
        return http(stream, connection, handler).await;
    };
    match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            connection.tls = true;
            connection.peer = stream.get_ref().1.peer_certificates().and_then(|c| crate::tls::peer_of(c.first()?));
            http(stream, connection, handler).await
        }
        Ok(Err(e)) => tracing::debug!(remote = %remote, error = %e, "TLS handshake failed"),
        Err(_) => tracing::debug!(remote = %remote, "TLS handshake took too long"),
    }
}

/// As hyper answers what else is no request.
fn two_lengths() -> Response<Body> {
    let mut response = Response::new(crate::body::empty());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn http<S>(stream: S, connection: Connection, handler: Arc<impl Handler>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (heads, stream) = Heads::of(stream);
    let service = service_fn(move |request| {
        let (handler, connection, heads) = (handler.clone(), connection.clone(), heads.clone());
        async move {
            if heads.end_with(&request) {
                return Ok::<_, Infallible>(two_lengths());
            }
            let response = handler.handle(request, connection).await;
            heads.begin();
            Ok(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        // With 256 KiB, 64 slow uploads to walrus held 170 MiB instead of 100, and were no faster.
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        tracing::debug!(error = %e, "connection ended");
    }
}
