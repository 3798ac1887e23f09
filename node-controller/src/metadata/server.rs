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

/// Who asks is known by where the question comes from, whatever it says.
#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, UdpSocket},
    };

    use super::*;
    use crate::metadata::Guest;

    const PUT: &str = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60";
    const WHO: &str = "GET /latest/meta-data/instance-id HTTP/1.1";

    /// Each VPC has a port of its own on loopback, whose addresses are the guests'.
    struct Loopback(std::sync::Mutex<BTreeMap<String, SocketAddr>>);

    #[async_trait::async_trait]
    impl MetadataSockets for Loopback {
        async fn open(&self, vpc: &VpcLink, listening: bool) -> Result<Option<Sockets>, String> {
            if listening {
                return Ok(None);
            }
            let metadata = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
            let names = UdpSocket::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
            self.0.lock().unwrap().insert(vpc.id.clone(), metadata.local_addr().unwrap());
            Ok(Some(Sockets { metadata, names }))
        }
        async fn close(&self, vpc: &str) -> Result<(), String> {
            self.0.lock().unwrap().remove(vpc);
            Ok(())
        }
        async fn held(&self) -> Result<Vec<String>, String> {
            Ok(self.0.lock().unwrap().keys().cloned().collect())
        }
    }

    struct Node {
        book: Arc<Book>,
        service: Service,
        sockets: Arc<Loopback>,
        _key: tempfile::TempDir,
    }

    impl Node {
        async fn with(vpcs: &[&str]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let key = TokenKey::load(&directory.path().join("key")).unwrap();
            let (book, sockets) = (Arc::new(Book::default()), Arc::new(Loopback(Default::default())));
            let service = Service::new(book.clone(), key, sockets.clone(), Clock::default(), Faults::default());
            for vpc in vpcs {
                let link = VpcLink { id: (*vpc).into(), metadata_port: String::new(), metadata_mac: String::new() };
                service.ensure(&link).await.unwrap();
            }
            Self { book, service, sockets, _key: directory }
        }

        fn put(&self, vpc: &str, address: [u8; 4], instance: &str) {
            let guest = Guest {
                instance: instance.into(),
                tree: [("meta-data/instance-id".to_owned(), instance.to_owned())].into(),
                user_data: None,
                enabled: true,
                tokens_required: false,
                hop_limit: 1,
            };
            self.book.put_guest(vpc, address.into(), guest);
        }

        async fn connect(&self, vpc: &str, from: [u8; 4]) -> TcpStream {
            let to = self.sockets.0.lock().unwrap()[vpc];
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from((from, 0))).unwrap();
            socket.connect(to).await.unwrap()
        }

        /// → status and body.
        async fn ask(&self, vpc: &str, from: [u8; 4], request: &str) -> (u16, String) {
            exchange(&mut self.connect(vpc, from).await, request).await
        }
    }

    async fn exchange(stream: &mut TcpStream, request: &str) -> (u16, String) {
        stream.write_all(format!("{request}\r\nHost: 169.254.169.254\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        loop {
            let mut part = [0; 4096];
            let read = stream.read(&mut part).await.unwrap();
            text += std::str::from_utf8(&part[..read]).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                assert!(read > 0, "{text}");
                continue;
            };
            let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return (head[9..12].parse().unwrap(), body.to_owned());
            }
        }
    }

    #[tokio::test]
    async fn a_guest_gets_its_own_whoever_its_headers_say_it_is() {
        let node = Node::with(&["vpc-a"]).await;
        let (one, two, nobody) = ([127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 0, 4]);
        node.put("vpc-a", one, "i-one");
        node.put("vpc-a", two, "i-two");
        let claims =
            ["X-Forwarded-For: 127.0.0.3", "Forwarded: for=127.0.0.3", "X-Real-IP: 127.0.0.3", "X-Instance-ID: i-two"];
        for claim in claims {
            let request = format!("{WHO}\r\n{claim}");
            assert_eq!(node.ask("vpc-a", one, &request).await, (200, "i-one".into()), "{claim}");
            assert_eq!(node.ask("vpc-a", nobody, &request).await.0, 404, "{claim}");
        }
        let whole = "GET http://127.0.0.3/latest/meta-data/instance-id HTTP/1.1";
        assert_eq!(node.ask("vpc-a", one, whole).await, (200, "i-one".into()));
        for forwarded in ["X-Forwarded-For: 127.0.0.2", "x-forwarded-for: 127.0.0.3", "X-FORWARDED-FOR:"] {
            assert_eq!(node.ask("vpc-a", one, &format!("{PUT}\r\n{forwarded}")).await.0, 403, "{forwarded}");
        }
        assert_eq!(node.ask("vpc-a", nobody, PUT).await.0, 404);
        let (status, token) = node.ask("vpc-a", one, PUT).await;
        let with = format!("{WHO}\r\nX-aws-ec2-metadata-token: {token}");
        assert_eq!((status, node.ask("vpc-a", one, &with).await), (200, (200, "i-one".into())));
        assert_eq!(node.ask("vpc-a", two, &with).await.0, 401, "what one was given is worth nothing to another");
    }

    #[tokio::test]
    async fn the_same_address_in_two_vpcs_is_two_guests() {
        let node = Node::with(&["vpc-a", "vpc-b", "vpc-c"]).await;
        let same = [127, 0, 0, 2];
        node.put("vpc-a", same, "i-a");
        node.put("vpc-b", same, "i-b");
        assert_eq!(node.ask("vpc-a", same, WHO).await, (200, "i-a".into()));
        assert_eq!(node.ask("vpc-b", same, WHO).await, (200, "i-b".into()));
        assert_eq!(node.ask("vpc-c", same, WHO).await.0, 404);
        let (_, token) = node.ask("vpc-a", same, PUT).await;
        let with = format!("{WHO}\r\nX-aws-ec2-metadata-token: {token}");
        assert_eq!(node.ask("vpc-b", same, &with).await.0, 401);
    }

    /// Also over a connection, and with a token, of the time before.
    #[tokio::test]
    async fn an_address_that_has_a_new_owner_is_the_old_ones_no_more() {
        let node = Node::with(&["vpc-a"]).await;
        let address = [127, 0, 0, 2];
        node.put("vpc-a", address, "i-old");
        let mut open = node.connect("vpc-a", address).await;
        let (_, token) = exchange(&mut open, PUT).await;
        let with = format!("{WHO}\r\nX-aws-ec2-metadata-token: {token}");
        assert_eq!(exchange(&mut open, &with).await, (200, "i-old".into()));
        node.book.replace(std::iter::empty());
        assert_eq!(exchange(&mut open, WHO).await.0, 404);
        assert_eq!(node.ask("vpc-a", address, &with).await.0, 404);
        node.put("vpc-a", address, "i-new");
        assert_eq!(exchange(&mut open, WHO).await, (200, "i-new".into()));
        assert_eq!(exchange(&mut open, &with).await.0, 401);
        assert_eq!(node.ask("vpc-a", address, &with).await.0, 401);
        node.book.replace(std::iter::empty());
        assert_eq!(node.service.close_unused().await, Vec::<String>::new());
        assert!(!node.service.is_heard_in("vpc-a").await);
    }
}
