//! Names for guests, at 169.254.169.253: what EC2 calls AmazonProvidedDNS.
//!
//! A private name (`ip-10-0-0-5.REGION.compute.internal`) says its address, so it is answered without looking anything up, and
//! so is the reverse of a private address. Every other question goes to the machine's own resolvers. OVN could answer names in
//! the switch, but wherever it does it lets every UDP packet from port 53 past all security groups (a rule of its own, above any
//! that can be written), so it is not asked to.
//!
//! Only UDP: an answer that does not fit is cut, and says so.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::Book;

/// Longest answer that is passed on; what guests ask with EDNS is rarely as long.
const LONGEST: usize = 4096;
/// How long one of the machine's resolvers may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// Questions of one VPC, and of one guest, that wait for the machine's resolvers at a time; more are dropped, and asked again.
const WAITING: usize = 256;
const WAITING_OF_ONE: usize = 32;
const DNS_PORT: u16 = 53;
const TTL: u32 = 60;

const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const CLASS_IN: u16 = 1;
const SERVFAIL: u8 = 2;

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// The whole answer.
    Answer(Vec<u8>),
    Elsewhere,
}

/// Who is asked what is not known here.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The machine's `resolv.conf`, read for each question: it changes when the machine's network does.
    pub file: PathBuf,
}

impl Upstream {
    pub fn of_the_machine() -> Self {
        Self { file: "/etc/resolv.conf".into() }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let server = |line: &str| {
            let address = line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok()?;
            Some(SocketAddr::new(address, DNS_PORT))
        };
        text.lines().filter_map(server).collect()
    }
}

/// Answers guests of one VPC until the task is ended or the socket dies.
pub async fn serve(socket: UdpSocket, vpc: String, book: Arc<Book>, upstream: Upstream) {
    let socket = Arc::new(socket);
    let room = Arc::new(Semaphore::new(WAITING));
    let mut guests: BTreeMap<Ipv4Addr, Arc<Semaphore>> = BTreeMap::new();
    let mut packet = vec![0; LONGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(e) => {
                tracing::debug!(vpc.id = %vpc, error = %e, "names: receiving failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let IpAddr::V4(address) = from.ip() else { continue };
        let (Some(guest), Some(query)) = (book.get(&vpc, address), packet.get(..length)) else { continue };
        let domain = guest.tree.get("meta-data/local-hostname").and_then(|name| name.split_once('.')).map(|(_, d)| d);
        match told(query, domain.unwrap_or_default()) {
            None => {}
            Some(Told::Answer(answer)) => {
                let _ = socket.send_to(&answer, from).await;
            }
            Some(Told::Elsewhere) => {
                guests.retain(|_, own| own.available_permits() < WAITING_OF_ONE);
                let own = guests.entry(address).or_insert_with(|| Arc::new(Semaphore::new(WAITING_OF_ONE))).clone();
                let (Ok(own), Ok(place)) = (own.try_acquire_owned(), room.clone().try_acquire_owned()) else {
                    continue;
                };
                let (socket, query, upstream) = (socket.clone(), query.to_vec(), upstream.clone());
                tokio::spawn(pass_on(socket, query, from, upstream, [own, place]));
            }
        }
    }
}

async fn pass_on(
    socket: Arc<UdpSocket>,
    query: Vec<u8>,
    from: SocketAddr,
    upstream: Upstream,
    places: [OwnedSemaphorePermit; 2],
) {
    for server in upstream.servers() {
        if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, ask(server, &query)).await {
            let _ = socket.send_to(&answer, from).await;
            return;
        }
    }
    if let Some(failed) = Question::read(&query).map(|q| q.answer(SERVFAIL, None)) {
        let _ = socket.send_to(&failed, from).await;
    }
    drop(places);
}

/// Under an id and from a port that a guest cannot know: it could answer itself otherwise, for all others.
async fn ask(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let (own, rest) = (rand::random::<[u8; 2]>(), query.get(2..).unwrap_or_default());
    socket.send(&[&own[..], rest].concat()).await?;
    let mut packet = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut packet).await?;
        if packet.get(..2) == Some(&own[..]) && length >= HEADER {
            let mut answer = packet.get(..length).unwrap_or_default().to_vec();
            answer.splice(..2, query.iter().take(2).copied());
            return Ok(answer);
        }
    }
}

const HEADER: usize = 12;

/// A packet with one question, which is all that clients send.
struct Question<'a> {
    header: &'a [u8],
    /// Name, type and class as they were sent.
    sent: &'a [u8],
    /// In lower case.
    labels: Vec<String>,
    kind: u16,
    class: u16,
}

impl<'a> Question<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        let header = packet.get(..HEADER)?;
        let [flags, questions] = [header.get(2)?, header.get(5)?];
        // A query of the ordinary kind.
        if flags & 0xf8 != 0 || header.get(4..6)? != [0, 1] || *questions != 1 {
            return None;
        }
        let body = packet.get(HEADER..)?;
        let mut labels = Vec::new();
        let mut at = 0;
        loop {
            let length = usize::from(*body.get(at)?);
            at += 1;
            match length {
                0 => break,
                1..=63 => labels.push(String::from_utf8_lossy(body.get(at..at + length)?).to_ascii_lowercase()),
                // Pointers are for answers.
                _ => return None,
            }
            at += length;
        }
        let number = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
        Some(Self { header, sent: body.get(..at + 4)?, labels, kind: number(at)?, class: number(at + 2)? })
    }

    /// An answer with one record, or with none.
    fn answer(&self, code: u8, record: Option<(u16, Vec<u8>)>) -> Vec<u8> {
        let count = u8::from(record.is_some());
        let wants_recursion = self.header.get(2).copied().unwrap_or_default() & 1;
        let mut out = self.header.get(..2).unwrap_or_default().to_vec();
        out.extend([0x80 | wants_recursion, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
        out.extend_from_slice(self.sent);
        if let Some((kind, data)) = record {
            // The name is the question's.
            out.extend([0xc0, HEADER as u8]);
            out.extend(kind.to_be_bytes());
            out.extend(CLASS_IN.to_be_bytes());
            out.extend(TTL.to_be_bytes());
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        out
    }

    /// The address a private name of this domain says.
    fn address(&self, domain: &str) -> Option<Ipv4Addr> {
        let (first, rest) = self.labels.split_first()?;
        if domain.is_empty() || rest.join(".") != domain {
            return None;
        }
        first.strip_prefix("ip-")?.replace('-', ".").parse().ok()
    }

    /// The private address whose name is asked.
    fn reverse(&self) -> Option<Ipv4Addr> {
        let [d, c, b, a, "in-addr", "arpa"] = self.labels.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
            return None;
        };
        let address: Ipv4Addr = format!("{a}.{b}.{c}.{d}").parse().ok()?;
        address.is_private().then_some(address)
    }
}

/// None: no question one could answer.
fn told(packet: &[u8], domain: &str) -> Option<Told> {
    let question = Question::read(packet)?;
    if question.class != CLASS_IN {
        return Some(Told::Elsewhere);
    }
    if let Some(address) = question.address(domain) {
        let record = (question.kind == TYPE_A).then(|| (TYPE_A, address.octets().to_vec()));
        return Some(Told::Answer(question.answer(0, record)));
    }
    if let Some(address) = question.reverse().filter(|_| question.kind == TYPE_PTR && !domain.is_empty()) {
        let [a, b, c, d] = address.octets();
        return Some(Told::Answer(
            question.answer(0, Some((TYPE_PTR, wire_name(&format!("ip-{a}-{b}-{c}-{d}.{domain}"))))),
        ));
    }
    Some(Told::Elsewhere)
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| label.len() < 64) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Guest;

    const DOMAIN: &str = "mallee-1.compute.internal";

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend(wire_name(name));
        packet.extend(kind.to_be_bytes());
        packet.extend(CLASS_IN.to_be_bytes());
        packet
    }

    fn records(answer: &[u8]) -> (u8, u8, &[u8]) {
        assert_eq!(answer[..2], [0xab, 0xcd]);
        assert_eq!(answer[2] & 0x80, 0x80, "it is an answer");
        (answer[3] & 0xf, answer[7], answer)
    }

    #[test]
    fn a_private_name_says_its_address_and_an_address_its_name() {
        let name = format!("IP-10-0-0-5.{DOMAIN}");
        let Some(Told::Answer(answer)) = told(&query(&name, TYPE_A), DOMAIN) else { panic!() };
        let (code, count, bytes) = records(&answer);
        assert_eq!((code, count, &bytes[bytes.len() - 4..]), (0, 1, &[10, 0, 0, 5][..]));
        let Some(Told::Answer(none)) = told(&query(&name, 28), DOMAIN) else { panic!() };
        assert_eq!(records(&none).1, 0, "it has no IPv6 address, which is not the same as not being there");
        let Some(Told::Answer(back)) = told(&query("5.0.0.10.in-addr.arpa", TYPE_PTR), DOMAIN) else { panic!() };
        assert!(back.ends_with(&wire_name(&format!("ip-10-0-0-5.{DOMAIN}"))));
        for other in ["ip-10-0-0-5.else.compute.internal", "ip-10-0-0.mallee-1.compute.internal", "example.org", DOMAIN]
        {
            assert_eq!(told(&query(other, TYPE_A), DOMAIN), Some(Told::Elsewhere), "{other}");
        }
        assert_eq!(told(&query("8.8.8.8.in-addr.arpa", TYPE_PTR), DOMAIN), Some(Told::Elsewhere));
    }

    #[test]
    fn what_is_no_question_gets_no_answer_and_harms_nobody() {
        let good = query("example.org", TYPE_A);
        for length in 0..good.len() {
            assert_eq!(told(&good[..length], DOMAIN), None, "cut at {length}");
        }
        let answer = [&good[..2], &[0x81], &good[3..]].concat();
        assert_eq!(told(&answer, DOMAIN), None, "two resolvers could answer each other for ever");
        let pointer = [&good[..HEADER], &[0xc0, 12, 0, 1, 0, 1]].concat();
        assert_eq!(told(&pointer, DOMAIN), None);
    }

    #[tokio::test]
    async fn other_questions_go_to_the_machines_resolvers_and_a_stranger_gets_no_answer() {
        let directory = tempfile::tempdir().unwrap();
        let upstream = Upstream { file: directory.path().join("resolv.conf") };
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let book = Arc::new(Book::default());
        let tree = [("meta-data/local-hostname".to_owned(), format!("ip-10-0-0-9.{DOMAIN}"))];
        let guest = Guest {
            instance: "i-a".into(),
            tree: tree.into(),
            user_data: None,
            enabled: true,
            tokens_required: false,
            hop_limit: 1,
        };
        book.put_guest("vpc-1", Ipv4Addr::LOCALHOST, guest);
        tokio::spawn(serve(socket, "vpc-1".into(), book, upstream.clone()));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut packet = vec![0; 512];
        let mut ask = async |from: &UdpSocket, name: &str| {
            from.send_to(&query(name, TYPE_A), at).await.unwrap();
            let received =
                tokio::time::timeout(Duration::from_secs(30), from.recv(&mut packet)).await.unwrap().unwrap();
            packet[..received].to_vec()
        };
        assert_eq!(records(&ask(&client, "example.org").await).0, SERVFAIL, "the machine has no resolver");
        assert_eq!(records(&ask(&client, &format!("ip-1-2-3-4.{DOMAIN}")).await).1, 1);
        let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        stranger.send_to(&query(&format!("ip-1-2-3-4.{DOMAIN}"), TYPE_A), at).await.unwrap();
        assert_eq!(records(&ask(&client, &format!("ip-1-2-3-4.{DOMAIN}")).await).1, 1);
        assert!(stranger.try_recv(&mut [0; 512]).is_err(), "who has no instance there is not answered");
    }

    #[tokio::test]
    async fn an_answer_from_elsewhere_keeps_the_guests_id() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut packet = [0; 512];
            let (length, from) = server.recv_from(&mut packet).await.unwrap();
            let mut forged = packet[..length].to_vec();
            forged[0] ^= 0xff;
            server.send_to(&forged, from).await.unwrap();
            packet[2] |= 0x80;
            server.send_to(&packet[..length], from).await.unwrap();
        });
        let sent = query("example.org", TYPE_A);
        let answer = ask(at, &sent).await.unwrap();
        assert_eq!((&answer[..2], answer[2]), (&sent[..2], sent[2] | 0x80), "the one of another id was not taken");
    }
}
