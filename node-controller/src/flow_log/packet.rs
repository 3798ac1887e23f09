//! What a flow log wants to know of a frame. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

/// `0e:00:00:00:00:01`.
pub fn mac(text: &str) -> Option<Mac> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mac = [(); 6].map(|()| bytes.next().and_then(Result::ok));
    match (mac, bytes.next()) {
        ([Some(a), Some(b), Some(c), Some(d), Some(e), Some(f)], None) => Some([a, b, c, d, e, f]),
        _ => None,
    }
}

/// Where from, where to, and how: what makes packets one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// 0 where a protocol has no ports.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

impl Tuple {
    /// Of the packets that answer.
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// An IP packet in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub from: Mac,
    pub to: Mac,
    pub tuple: Tuple,
    /// With its header.
    pub bytes: u64,
    pub flags: TcpFlags,
}

/// As flow logs count them: FIN 1, SYN 2, RST 4, and 16 for an ACK beside a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

impl TcpFlags {
    fn of(byte: u8) -> Self {
        let ack = if byte & SYN != 0 { byte & ACK } else { 0 };
        Self(byte & (FIN | SYN | RST) | ack)
    }
}

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Router and neighbour discovery, which is IPv6's ARP, and group membership.
const NEIGHBOURS: std::ops::RangeInclusive<u8> = 130..=137;
const MORE_LISTENERS: u8 = 143;

/// Reads the front of a frame that had `length` bytes. None: a flow log has nothing to do with it, because it is no IP, is
/// not for one receiver, or is what AWS leaves out as well (DHCP, the link's own addresses, neighbour discovery).
pub fn parse(frame: &[u8], length: usize) -> Option<Packet> {
    let to: Mac = frame.get(0..6)?.try_into().ok()?;
    let from: Mac = frame.get(6..12)?.try_into().ok()?;
    if to[0] & 1 == 1 {
        return None;
    }
    let kind = u16_at(frame, 12)?;
    let packet = frame.get(ETHERNET..)?;
    let on_wire = length.checked_sub(ETHERNET)? as u64;
    let head = match kind {
        0x0800 => ipv4(packet)?,
        0x86dd => ipv6(packet)?,
        _ => return None,
    };
    // A frame that was not yet cut into packets says no length; padding is not the packet's.
    let bytes = if head.bytes == 0 { on_wire } else { head.bytes.min(on_wire) };
    let upper = packet.get(head.upper..).filter(|_| head.first_fragment).unwrap_or_default();
    let has_ports = matches!(head.protocol, TCP | UDP);
    let port = |at| if has_ports { u16_at(upper, at).unwrap_or_default() } else { 0 };
    let flags = if head.protocol == TCP { upper.get(13).copied().unwrap_or_default() } else { 0 };
    let tuple = Tuple {
        source: head.source,
        destination: head.destination,
        source_port: port(0),
        destination_port: port(2),
        protocol: head.protocol,
    };
    if is_left_out(&tuple, upper.first().copied()) {
        return None;
    }
    Some(Packet { from, to, tuple, bytes, flags: TcpFlags::of(flags) })
}

fn is_left_out(tuple: &Tuple, first: Option<u8>) -> bool {
    let of_the_link = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(_) => false,
    };
    let dhcp = [(68, 67), (67, 68), (546, 547), (547, 546)];
    of_the_link(&tuple.source)
        || of_the_link(&tuple.destination)
        || tuple.protocol == UDP && dhcp.contains(&(tuple.source_port, tuple.destination_port))
        || tuple.protocol == ICMPV6 && first.is_some_and(|kind| NEIGHBOURS.contains(&kind) || kind == MORE_LISTENERS)
}

struct Head {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    bytes: u64,
    /// Where what is carried begins.
    upper: usize,
    first_fragment: bool,
}

fn ipv4(packet: &[u8]) -> Option<Head> {
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let (version, words) = (packet.first()? >> 4, packet.first()? & 15);
    if version != 4 || words < 5 {
        return None;
    }
    Some(Head {
        source: address(12)?,
        destination: address(16)?,
        protocol: *packet.get(9)?,
        bytes: u16_at(packet, 2)?.into(),
        upper: usize::from(words) * 4,
        first_fragment: u16_at(packet, 6)? & 0x1fff == 0,
    })
}

fn ipv6(packet: &[u8]) -> Option<Head> {
    const HEADER: usize = 40;
    /// More are nobody's honest packet.
    const MOST_EXTENSIONS: usize = 8;
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let payload = u64::from(u16_at(packet, 4)?);
    let (mut protocol, mut upper, mut first_fragment) = (*packet.get(6)?, HEADER, true);
    for _ in 0..MOST_EXTENSIONS {
        let Some(&next) = packet.get(upper) else { break };
        let length = packet.get(upper + 1).copied().unwrap_or_default();
        match protocol {
            // Hop by hop, routing, destination.
            0 | 43 | 60 => upper += (usize::from(length) + 1) * 8,
            44 => {
                first_fragment = u16_at(packet, upper + 2).unwrap_or_default() & 0xfff8 == 0;
                upper += 8;
            }
            // Authentication counts in words of four.
            51 => upper += (usize::from(length) + 2) * 4,
            _ => break,
        }
        protocol = next;
    }
    let bytes = if payload == 0 { 0 } else { payload + HEADER as u64 };
    Some(Head { source: address(8)?, destination: address(24)?, protocol, bytes, upper, first_fragment })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A frame of `protocol` with `data` behind its ports (and, for TCP, flags).
    pub fn frame(from: &str, to: &str, ports: (u16, u16), protocol: u8, flags: u8, data: usize) -> Vec<u8> {
        let (from, to): (Ipv4Addr, Ipv4Addr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut upper = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        upper.resize(if protocol == TCP { 20 } else { 8 }, 0);
        if protocol == TCP {
            upper[13] = flags;
        }
        upper.resize(upper.len() + data, b'x');
        let mut frame = [&MINE[..], &THEIRS[..], &[8, 0, 0x45, 0]].concat();
        frame.extend(((20 + upper.len()) as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(upper);
        frame
    }
    pub const MINE: Mac = [0x0e, 0, 0, 0, 0, 1];
    pub const THEIRS: Mac = [0x0e, 0, 0, 0, 0, 2];

    fn read(frame: &[u8]) -> Option<Packet> {
        parse(frame, frame.len())
    }

    #[test]
    fn a_packet_is_counted_with_its_header_and_without_the_frames_padding() {
        let mut small = frame("10.0.0.1", "10.0.0.2", (5000, 53), UDP, 0, 4);
        small.resize(60, 0);
        let packet = read(&small).unwrap();
        assert_eq!((packet.bytes, packet.flags), (32, TcpFlags(0)));
        assert_eq!((packet.tuple.source_port, packet.tuple.destination_port), (5000, 53));
        // Cut off by the reader, not by the sender.
        let long = frame("10.0.0.1", "10.0.0.2", (1, 2), TCP, SYN | ACK, 1200);
        let packet = parse(&long[..96], long.len()).unwrap();
        assert_eq!((packet.bytes, packet.flags), (1240, TcpFlags(18)));
        assert_eq!(read(&frame("10.0.0.1", "10.0.0.2", (1, 2), TCP, ACK | FIN, 0)).unwrap().flags, TcpFlags(1));
    }

    #[test]
    fn what_is_no_flow_is_left_out() {
        let udp = |from, to, ports| read(&frame(from, to, ports, UDP, 0, 1));
        assert!(udp("10.0.0.1", "169.254.169.253", (4000, 53)).is_none());
        assert!(udp("0.0.0.0", "10.0.0.1", (68, 67)).is_none());
        assert!(udp("10.0.0.1", "10.0.0.2", (68, 69)).is_some());
        let mut broadcast = frame("10.0.0.1", "10.0.0.2", (1, 2), UDP, 0, 1);
        broadcast[0] = 0xff;
        assert!(read(&broadcast).is_none());
        let mut arp = broadcast.clone();
        (arp[0], arp[13]) = (0x0e, 6);
        assert!(read(&arp).is_none());
        for cut in 0..34 {
            assert!(read(&frame("10.0.0.1", "10.0.0.2", (1, 2), UDP, 0, 1)[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn later_fragments_and_icmp_have_no_ports() {
        let mut fragment = frame("10.0.0.1", "10.0.0.2", (9, 9), UDP, 0, 1);
        fragment[21] = 5;
        assert_eq!(read(&fragment).unwrap().tuple.destination_port, 0);
        let ping = read(&frame("10.0.0.1", "10.0.0.2", (0x0800, 9), 1, 0, 56)).unwrap();
        assert_eq!((ping.tuple.source_port, ping.tuple.destination_port, ping.bytes), (0, 0, 84));
    }

    #[test]
    fn ipv6_is_read_through_its_extensions() {
        let (from, to): (Ipv6Addr, Ipv6Addr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let ip = |next: u8, rest: &[u8]| {
            let mut frame = [&MINE[..], &THEIRS[..], &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
            frame.extend((rest.len() as u16).to_be_bytes());
            frame.extend([next, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            frame.extend(rest);
            frame
        };
        let udp = [0x10, 0, 0, 53, 0, 8, 0, 0];
        let packet = read(&ip(UDP, &udp)).unwrap();
        assert_eq!((packet.bytes, packet.tuple.source_port, packet.tuple.destination_port), (48, 4096, 53));
        let hop_by_hop = [&[UDP, 0, 0, 0, 0, 0, 0, 0][..], &udp].concat();
        assert_eq!(read(&ip(0, &hop_by_hop)).unwrap().tuple, packet.tuple);
        assert!(read(&ip(ICMPV6, &[135, 0, 0, 0])).is_none());
        assert!(read(&ip(ICMPV6, &[128, 0, 0, 0])).is_some());
    }

    #[test]
    fn macs_are_read_and_nonsense_is_not() {
        assert_eq!(mac("0e:00:00:00:00:01"), Some(MINE));
        for bad in ["", "0e:00", "0e:00:00:00:00:01:02", "zz:00:00:00:00:01"] {
            assert_eq!(mac(bad), None, "{bad:?}");
        }
    }
}
