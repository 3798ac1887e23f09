//! The HTTP server of the metadata service: one listener per VPC, one answer function.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use mallee_service::{Clock, Faults};
use mallee_tiers::VpcLink;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
    task::AbortHandle,
};

use super::{
    Book, MetadataSockets, Sockets, TokenKey,
    answer::{Answer, Asked, answer},
    resolver::{self, Upstream},
};

const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// The VPC's router is between the service and the guest, and takes one off.
const ROUTER_HOPS: u32 = 1;
const ORDINARY_TTL: u32 = 64;
/// A guest that says nothing is cut off after this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections of one VPC at a time; more wait in the socket's backlog, so one VPC cannot use up the process' descriptors.
const CONNECTIONS: usize = 256;
/// Connections of one guest at a time; one more is closed, so no guest can shut its neighbours out.
const CONNECTIONS_OF_ONE: usize = 32;

pub struct Service {
    shared: Arc<Shared>,
    sockets: Arc<dyn MetadataSockets>,
    faults: Faults,
    listening: Mutex<BTreeMap<String, AbortHandle>>,
}

struct Shared {
    book: Arc<Book>,
    key: TokenKey,
    clock: Clock,
}

impl Service {
    pub fn new(
        book: Arc<Book>,
        key: TokenKey,
        sockets: Arc<dyn MetadataSockets>,
        clock: Clock,
        faults: Faults,
    ) -> Self {
        Self { shared: Arc::new(Shared { book, key, clock }), sockets, faults, listening: Mutex::default() }
    }

    pub async fn is_heard_in(&self, vpc: &str) -> bool {
        self.listening.lock().await.contains_key(vpc)
    }

    /// Makes sure that the service is heard in this VPC.
    pub async fn ensure(&self, vpc: &VpcLink) -> Result<(), String> {
        let mut listening = self.listening.lock().await;
        let fault = format!("metadata {}", vpc.id);
        match self.sockets.open(vpc, listening.contains_key(&vpc.id)).await {
            Ok(None) => {}
            Ok(Some(Sockets { metadata, names })) => {
                let (id, shared) = (vpc.id.clone(), self.shared.clone());
                let task = tokio::spawn(async move {
                    let book = shared.book.clone();
                    let names = resolver::serve(names, id.clone(), book, Upstream::of_the_machine());
                    tokio::join!(accept(metadata, id, shared), names);
                });
                if let Some(before) = listening.insert(vpc.id.clone(), task.abort_handle()) {
                    before.abort();
                }
            }
            Err(e) => {
                self.faults.raise(
                    &fault,
                    format!("instances in {} cannot read their metadata: {e}", vpc.id),
                    "are Open vSwitch and OVN up?",
                );
                return Err(e);
            }
        }
        self.faults.clear(&fault);
        Ok(())
    }

    /// Closes what is open for a VPC that has no instance here any more. Whoever brings one there puts it into the book
    /// before it asks for a socket, so what is closed here wrongly cannot be.
    pub async fn close_unused(&self) -> Vec<String> {
        let mut listening = self.listening.lock().await;
        let held = match self.sockets.held().await {
            Ok(held) => held,
            Err(e) => return vec![e],
        };
        let idle: Vec<String> = held.into_iter().filter(|vpc| !self.shared.book.has(vpc)).collect();
        let mut errors = Vec::new();
        for vpc in idle {
            match self.sockets.close(&vpc).await {
                Ok(()) => {
                    if let Some(task) = listening.remove(&vpc) {
                        task.abort();
                    }
                    self.faults.clear(&format!("metadata {vpc}"));
                }
                Err(e) => errors.push(format!("closing the metadata service of {vpc}: {e}")),
            }
        }
        errors
    }
}

async fn accept(listener: TcpListener, vpc: String, shared: Arc<Shared>) {
    let vpc: Arc<str> = vpc.into();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut guests: BTreeMap<Ipv4Addr, Arc<Semaphore>> = BTreeMap::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, remote)) => {
                let IpAddr::V4(address) = remote.ip() else { continue };
                guests.retain(|_, own| own.available_permits() < CONNECTIONS_OF_ONE);
                let own = guests.entry(address).or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_OF_ONE)));
                let Ok(own) = own.clone().try_acquire_owned() else { continue };
                let (vpc, shared) = (vpc.clone(), shared.clone());
                tokio::spawn(async move {
                    serve(stream, &vpc, address, shared).await;
                    drop((own, place));
                });
            }
            Err(e) => {
                tracing::warn!(vpc.id = %vpc, error = %e, "metadata: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, vpc: &str, address: Ipv4Addr, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    // A second handle of the socket: hyper owns the stream, and the TTL is the socket's.
    let Ok(socket) = SockRef::from(&stream).try_clone() else { return };
    let answer_one = service_fn(move |request: Request<Incoming>| {
        let answer = shared.answer(vpc, address, &request);
        // The answer is written after this returns. A TTL that cannot be lowered must not let a token travel.
        let ttl = answer.hop_limit.map_or(ORDINARY_TTL, |hops| u32::from(hops) + ROUTER_HOPS);
        let done = socket.set_ttl_v4(ttl);
        async move {
            match done {
                Ok(()) => Ok::<_, std::io::Error>(respond(answer)),
                Err(e) => Err(e),
            }
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        // `printf ... | nc` has said all it will and still waits for the answer.
        .half_close(true)
        // Scripts that speak HTTP by hand look for `Content-Length`.
        .title_case_headers(true)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), answer_one)
        .await;
    if let Err(e) = served {
        tracing::debug!(vpc.id = vpc, guest.address = %address, error = %e, "metadata connection ended");
    }
}

impl Shared {
    fn answer<B>(&self, vpc: &str, address: Ipv4Addr, request: &Request<B>) -> Answer {
        let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
        let guest = self.book.get(vpc, address);
        let asked = Asked {
            method: request.method(),
            path: request.uri().path(),
            token: text(TOKEN_HEADER),
            ttl: text(TTL_HEADER),
            forwarded: request.headers().contains_key("x-forwarded-for"),
            now: self.clock.now_ms(),
        };
        let answer = answer(guest.as_deref(), &asked, &self.key);
        tracing::debug!(
            vpc.id = vpc,
            guest.address = %address,
            instance.id = guest.as_ref().map_or("-", |g| g.instance.as_str()),
            http.method = %request.method(),
            http.path = request.uri().path(),
            http.status = answer.status.as_u16(),
            "metadata"
        );
        answer
    }
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let ok = answer.status.is_success();
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(if ok { "text/plain" } else { "text/html" }));
    headers.insert(header::SERVER, HeaderValue::from_static("EC2ws"));
    if let Some(left) = answer.token_ttl {
        headers.insert(TTL_HEADER, HeaderValue::from(left));
    }
    response
}
