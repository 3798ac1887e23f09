//! What the switch refuses, as it says so itself.
//!
//! The rules of OVN that refuse packets of a watched interface are rules that log: for each such packet the switch sends a
//! *packet-in* to whoever listens at the bridge's management socket and asked for it. ovn-controller writes a line of it; here
//! the packet itself is read, with its length. A meter bounds how many are sent, and its counters say when some were not.
//!
//! This is the little of OpenFlow 1.3 (and of Nicira's extensions) that is needed for that: hello, echo, the format of
//! packet-ins, and the meters' statistics. See openflow-spec 1.3.5 and `nicira-ext.h`.

use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::window::Direction;

/// Names of the rules, as the cloud-controller gives them.
const TO_GUEST: &[u8] = b"mallee-flow-in";
const FROM_GUEST: &[u8] = b"mallee-flow-out";
/// The network ACL of the subnet, on the way out of it.
const OUT_OF_SUBNET: &[u8] = b"mallee-flow-edge";

const OPENFLOW_13: u8 = 4;
const HELLO: u8 = 0;
const ECHO_REQUEST: u8 = 2;
const ECHO_REPLY: u8 = 3;
const EXPERIMENTER: u8 = 4;
const SET_CONFIG: u8 = 9;
const MULTIPART_REQUEST: u8 = 18;
const MULTIPART_REPLY: u8 = 19;
const METER: u16 = 9;
const EVERY_METER: u32 = 0xffff_ffff;
const NICIRA: u32 = 0x2320;
const SET_PACKET_IN_FORMAT: u32 = 16;
const PACKET_IN2: u32 = 30;
const HEADER: usize = 8;
/// A refused packet was not made longer on its way here than the switch's own limit.
const LONGEST: usize = 65_535;

/// Something the switch said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Refused {
        direction: Direction,
        frame: Vec<u8>,
        /// Of the whole frame, if less of it came.
        length: usize,
    },
    /// Packets all meters have held back since they were made.
    HeldBack(u64),
}

/// Somebody who listens to one bridge.
pub struct Listener {
    socket: UnixStream,
    /// What came and was not read yet.
    came: Vec<u8>,
}

impl Listener {
    /// `management`: the bridge's socket, such as `br-int.mgmt`.
    pub async fn open(management: &Path) -> std::io::Result<Self> {
        let socket = UnixStream::connect(management).await?;
        let mut listener = Self { socket, came: Vec::new() };
        listener.send(HELLO, &[]).await?;
        let format = [NICIRA.to_be_bytes(), SET_PACKET_IN_FORMAT.to_be_bytes(), 2_u32.to_be_bytes()].concat();
        listener.send(EXPERIMENTER, &format).await?;
        // A listener at this socket gets packet-ins only once it has said how long they may be.
        listener.send(SET_CONFIG, &[0, 0, 0xff, 0xff]).await?;
        // Its answer says that all this was taken.
        listener.ask_meters().await?;
        let answered = async {
            while !matches!(listener.next().await?, Said::HeldBack(_)) {}
            listener.ask_meters().await
        };
        tokio::time::timeout(Duration::from_secs(10), answered).await.map_err(|_| std::io::ErrorKind::TimedOut)??;
        Ok(listener)
    }

    /// Asks what the meters held back; the answer comes as any other thing that is said.
    pub async fn ask_meters(&mut self) -> std::io::Result<()> {
        let mut body = [METER.to_be_bytes(), [0; 2], [0; 2], [0; 2]].concat();
        body.extend(EVERY_METER.to_be_bytes());
        body.extend([0; 4]);
        self.send(MULTIPART_REQUEST, &body).await
    }

    async fn send(&mut self, kind: u8, body: &[u8]) -> std::io::Result<()> {
        let length = u16::try_from(HEADER + body.len()).unwrap_or(u16::MAX);
        let mut message = vec![OPENFLOW_13, kind];
        message.extend(length.to_be_bytes());
        message.extend([0; 4]);
        message.extend(body);
        self.socket.write_all(&message).await
    }

    /// The next thing of interest. May be dropped at any time and asked again.
    pub async fn next(&mut self) -> std::io::Result<Said> {
        loop {
            while let Some(message) = cut(&mut self.came)? {
                match message.first_chunk::<2>() {
                    Some([_, ECHO_REQUEST]) => {
                        let body = message.get(HEADER..).unwrap_or_default().to_vec();
                        self.send(ECHO_REPLY, &body).await?;
                    }
                    _ => {
                        if let Some(said) = read(&message) {
                            return Ok(said);
                        }
                    }
                }
            }
            if self.socket.read_buf(&mut self.came).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Takes the first whole message out of what came.
fn cut(came: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    let Some(length) = number(came, 2, 2) else { return Ok(None) };
    let length = length as usize;
    if length < HEADER {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    if came.len() < length {
        return Ok(None);
    }
    let rest = came.split_off(length);
    Ok(Some(std::mem::replace(came, rest)))
}

/// None: nothing of interest.
fn read(message: &[u8]) -> Option<Said> {
    match *message.get(1)? {
        EXPERIMENTER
            if number(message, 8, 4)? == u64::from(NICIRA) && number(message, 12, 4)? == u64::from(PACKET_IN2) =>
        {
            refused(message.get(16..)?)
        }
        MULTIPART_REPLY if number(message, HEADER, 2)? == u64::from(METER) => {
            Some(Said::HeldBack(held_back(message.get(16..)?)))
        }
        _ => None,
    }
}

/// A packet-in is a list of properties, each padded to eight bytes.
fn refused(mut properties: &[u8]) -> Option<Said> {
    const PACKET: u64 = 0;
    const FULL_LENGTH: u64 = 1;
    const USER_DATA: u64 = 7;
    let (mut frame, mut length, mut direction) = (None, None, None);
    while properties.len() >= 4 {
        let (kind, size) = (number(properties, 0, 2)?, number(properties, 2, 2)? as usize);
        let value = properties.get(4..size)?;
        match kind {
            PACKET => frame = Some(value.to_vec()),
            FULL_LENGTH => length = number(value, 0, 4),
            USER_DATA => direction = rule(value),
            _ => {}
        }
        properties = properties.get(size.next_multiple_of(8)..).unwrap_or_default();
    }
    let frame = frame?;
    let length = length.map_or(frame.len(), |length| (length as usize).min(LONGEST));
    Some(Said::Refused { direction: direction?, frame, length })
}

/// OVN's `log` action: an opcode, four bytes of nothing, verdict, severity, and the rule's name.
fn rule(data: &[u8]) -> Option<Direction> {
    const LOG: u64 = 7;
    if number(data, 0, 4)? != LOG {
        return None;
    }
    let name = data.get(10..)?;
    // The switch pads it with zeros.
    let end = name.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    match name.get(..end)? {
        TO_GUEST => Some(Direction::In),
        FROM_GUEST | OUT_OF_SUBNET => Some(Direction::Out),
        _ => None,
    }
}

/// The packets that bands of meters dropped, of all meters in one answer.
fn held_back(mut meters: &[u8]) -> u64 {
    const METER_HEAD: usize = 40;
    const BAND: usize = 16;
    let mut total = 0_u64;
    while let Some(size) = number(meters, 4, 2).map(|size| size as usize).filter(|size| *size >= METER_HEAD) {
        let bands = meters.get(METER_HEAD..size).unwrap_or_default();
        total += bands.chunks_exact(BAND).filter_map(|band| number(band, 0, 8)).sum::<u64>();
        meters = meters.get(size..).unwrap_or_default();
    }
    total
}

/// A big-endian number of `size` bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    Some(bytes.get(at..at + size)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::super::packet;
    use super::*;

    /// What Open vSwitch 3.1 sent for a datagram of ten bytes from 10.0.1.11 to 10.0.1.12:99, refused on its way in.
    const SENT: &str = "040401100000000000002320\
0000001e000000380600aa0001120600aa000111080045000026c46240004011604e0a00010b0a00010c8bd900630012031d78787878787878787878000300052e00000000040010000000000000000075992c2d000500050100000000060081800000040000000380000a02080000010004000002810001160400000007000118040000000500011a040000000d00011c040000000200011e04000000030001d30800000021000000ff0001d402000d0001f0040a00010b0001f2040a00010c0001ee01110001f8028bd90001fa020063800004080000000000000003000000000000000007001c000000070000000001076d616c6c65652d666c6f772d696e00000000";

    #[test]
    fn a_refused_packet_is_read_as_the_switch_sends_it() {
        let sent = hex::decode(SENT).unwrap();
        // In two pieces, and with the beginning of the next.
        let mut came = sent[..100].to_vec();
        assert_eq!(cut(&mut came).unwrap(), None);
        came.extend(&sent[100..]);
        came.extend([4, 0]);
        let message = cut(&mut came).unwrap().unwrap();
        assert_eq!((message.len(), came.as_slice()), (272, &[4, 0][..]));
        let Some(Said::Refused { direction, frame, length }) = read(&message) else { panic!("nothing was read") };
        assert_eq!(direction, Direction::In);
        let packet = packet::parse(&frame, length).unwrap();
        assert_eq!((packet.bytes, packet.tuple.destination_port, packet.tuple.protocol), (38, 99, 17));
        assert_eq!(Some(packet.to), packet::mac("06:00:aa:00:01:12"));
        for cut_at in 0..message.len() {
            // Whatever is missing, nothing is made up of it.
            let _ = read(&message[..cut_at]);
        }
    }

    #[test]
    fn other_peoples_rules_are_not_heard() {
        let of = |name: &[u8]| rule(&[&[0, 0, 0, 7, 0, 0, 0, 0, 1, 7][..], name, &[0, 0]].concat());
        assert_eq!(of(b"mallee-flow-edge"), Some(Direction::Out));
        assert_eq!(of(b"mallee-flow-out"), Some(Direction::Out));
        assert_eq!(of(b"mallee-flow-"), None);
        assert_eq!(of(b""), None);
        assert_eq!(rule(&[0, 0, 0, 8, 0, 0, 0, 0, 1, 7]), None);
    }

    #[test]
    fn what_meters_held_back_is_summed() {
        let meter = |bands: &[u64]| {
            let mut entry = vec![0, 0, 0, 1];
            entry.extend(((40 + 16 * bands.len()) as u16).to_be_bytes());
            entry.resize(40, 0);
            for packets in bands {
                entry.extend(packets.to_be_bytes());
                entry.extend([9; 8]);
            }
            entry
        };
        assert_eq!(held_back(&[meter(&[558]), meter(&[]), meter(&[1, 2])].concat()), 561);
        assert_eq!(held_back(&[]), 0);
    }

    #[test]
    fn a_message_that_is_shorter_than_its_header_ends_the_connection() {
        assert!(cut(&mut vec![4, 0, 0, 7, 0, 0, 0, 0]).is_err());
    }
}
