//! The packets that pass a guest's tap, read beside the switch: a packet socket on that one link. Links without a flow log have
//! none, and pay nothing.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd},
};

use mallee_engines::Netns;
use nix::{
    cmsg_space,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg,
        setsockopt, socket, sockopt,
    },
};
use tokio::io::unix::AsyncFd;

use super::window::Direction;

/// Enough for every header that is read.
const FRONT: usize = 192;
/// What may wait while this process is busy elsewhere.
const QUEUE: usize = 8 << 20;
/// `PACKET_OUTGOING` of `linux/if_packet.h`: handed to the link, which is the guest's side.
const OUTGOING: u8 = 4;

/// A link's packets.
pub struct Tap {
    socket: AsyncFd<OwnedFd>,
    index: usize,
    /// What the kernel has thrown away so far because the queue was full.
    lost: u32,
}

/// The front of one frame.
pub struct Frame<'b> {
    pub direction: Direction,
    pub front: &'b [u8],
    /// Of the whole frame.
    pub length: usize,
    /// Others went by unread before this one.
    pub after_loss: bool,
}

impl Tap {
    pub fn open(netns: &Netns, link: &str) -> io::Result<Self> {
        let opened = netns.run(|| opened(link)).map_err(|e| io::Error::other(e.to_string()))?;
        let (socket, index) = opened?;
        // What it warns of are types that change what they are a descriptor of; this one cannot.
        #[allow(deprecated)]
        let socket = AsyncFd::new(socket)?;
        Ok(Self { socket, index, lost: 0 })
    }

    /// Waits until there are frames, and hands over up to `most` of them. An error is the end: the link is gone.
    pub async fn read(&mut self, most: usize, mut each: impl FnMut(Frame<'_>)) -> io::Result<()> {
        let (index, lost) = (self.index, &mut self.lost);
        let mut ready = self.socket.readable().await?;
        for _ in 0..most {
            match ready.try_io(|socket| receive(socket.get_ref(), index, lost, &mut each)) {
                Ok(done) => done?,
                // Nothing more for now.
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// Runs inside the link's namespace, where the socket stays.
fn opened(link: &str) -> io::Result<(OwnedFd, usize)> {
    let links = getifaddrs()?.filter(|known| known.interface_name == link);
    let address = links.filter_map(|known| known.address?.as_link_addr().copied()).next();
    let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no link {link}")))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    bind(socket.as_raw_fd(), &address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &QUEUE)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    Ok((socket, address.ifindex()))
}

fn receive(socket: &OwnedFd, index: usize, lost: &mut u32, each: &mut impl FnMut(Frame<'_>)) -> io::Result<()> {
    let mut front = [0; FRONT];
    let mut said = cmsg_space!(u32);
    let mut pieces = [IoSliceMut::new(&mut front)];
    // With this flag the answer is the length of the whole frame.
    let received = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut said), MsgFlags::MSG_TRUNC)?;
    let from = received.address;
    let dropped = received.cmsgs().into_iter().flatten().find_map(|message| match message {
        ControlMessageOwned::RxqOvfl(count) => Some(count),
        _ => None,
    });
    let length = received.bytes;
    let after_loss = dropped.is_some_and(|count| count != *lost);
    *lost = dropped.unwrap_or(*lost);
    // Between its making and its binding it heard every link.
    let Some(from) = from.filter(|from| from.ifindex() == index) else { return Ok(()) };
    let direction = if from.pkttype() == OUTGOING { Direction::In } else { Direction::Out };
    each(Frame { direction, front: front.get(..length.min(FRONT)).unwrap_or(&front), length, after_loss });
    Ok(())
}
