//! An NBD server for the backing files of volumes, read-only, on one unix socket: the export's name is the volume's.
//!
//! As much of the protocol (NetworkBlockDevice/nbd, `doc/proto.md`) as QEMU's client speaks: fixed newstyle, structured
//! replies, `base:allocation`. A block the snapshot does not have is told as a hole that is *not* said to be zero: QEMU's
//! stream job copies what is said to be zero, and leaves a mere hole as it is, which reads as zero too.

use std::{io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, Semaphore},
    task::JoinSet,
};

use super::{Source, Sources};
use crate::volume::VolumeId;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;

/// Fixed newstyle, no zeroes.
const HANDSHAKE: u16 = 3;
/// Has flags, read-only, several connections see the same.
const EXPORT: u16 = 1 | 2 | 256;
const CONTEXT: &[u8] = b"base:allocation";
const CONTEXT_ID: u32 = 1;
const HOLE: u32 = 1;

/// An option longer than this is none of QEMU's.
const OPTION_MAX: u32 = 16 << 10;
const READ_MAX: u32 = 32 << 20;
/// Requests of a connection that are worked on at once.
const AT_ONCE: usize = 16;

mod option {
    pub const ABORT: u32 = 2;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const SET_META_CONTEXT: u32 = 10;
}

mod answer {
    pub const ACK: u32 = 1;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const UNSUPPORTED: u32 = (1 << 31) | 1;
    pub const INVALID: u32 = (1 << 31) | 3;
    pub const UNKNOWN: u32 = (1 << 31) | 6;
}

mod command {
    pub const READ: u16 = 0;
    pub const DISCONNECT: u16 = 2;
    pub const BLOCK_STATUS: u16 = 7;
}

mod chunk {
    pub const NONE: u16 = 0;
    pub const DATA: u16 = 1;
    pub const HOLE: u16 = 2;
    pub const STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
    pub const DONE: u16 = 1;
}

const EINVAL: u32 = 22;

/// Serves the sources on `SOCKETS/source.sock` for as long as the runtime lives. A socket that an earlier process left is
/// taken over.
pub(crate) fn listen(sockets: &Path, sources: Arc<Sources>) -> io::Result<()> {
    let (path, new) = (sockets.join(super::SOCKET), sockets.join("source.new"));
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, &path)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let sources = sources.clone();
                    tokio::spawn(async move {
                        if let Err(e) = serve(stream, &sources).await {
                            tracing::debug!(error = %e, "a reader of a source went away");
                        }
                    });
                }
                Err(e) => {
                    tracing::warn!(error = %e, "cannot take a connection to a source");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

fn protocol(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What was agreed with a client.
#[derive(Default)]
struct Agreed {
    structured: bool,
    allocation: bool,
}

async fn serve(stream: UnixStream, sources: &Sources) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    to.write_u64(MAGIC).await?;
    to.write_u64(OPTION).await?;
    to.write_u16(HANDSHAKE).await?;
    let _flags = from.read_u32().await?;
    let mut agreed = Agreed::default();
    let Some(source) = haggle(&mut from, &mut to, sources, &mut agreed).await? else { return Ok(()) };
    transmit(from, to, source, agreed).await
}

async fn reply(to: &mut OwnedWriteHalf, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(20 + data.len());
    message.extend(OPTION_REPLY.to_be_bytes());
    message.extend(option.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend((data.len() as u32).to_be_bytes());
    message.extend(data);
    to.write_all(&message).await
}

/// A length of four bytes, and as many more.
fn text<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *data = rest;
    Some(text)
}

async fn find(sources: &Sources, name: &[u8]) -> Option<Arc<Source>> {
    let id = VolumeId::parse(std::str::from_utf8(name).ok()?)?;
    match sources.of(&id).await {
        Ok(source) => source,
        Err(e) => {
            tracing::warn!(volume.id = %id, error = %e, "the source of a volume cannot be opened");
            None
        }
    }
}

/// The options, until one begins the transmission. None: the client went away.
async fn haggle(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    sources: &Sources,
    agreed: &mut Agreed,
) -> io::Result<Option<Arc<Source>>> {
    loop {
        if from.read_u64().await? != OPTION {
            return Err(protocol("no option"));
        }
        let (option, length) = (from.read_u32().await?, from.read_u32().await?);
        if length > OPTION_MAX {
            return Err(protocol("an option that is too long"));
        }
        let mut data = vec![0; length as usize];
        from.read_exact(&mut data).await?;
        let mut data = data.as_slice();
        match option {
            option::ABORT => {
                reply(to, option, answer::ACK, &[]).await?;
                return Ok(None);
            }
            option::STRUCTURED_REPLY => {
                agreed.structured = true;
                reply(to, option, answer::ACK, &[]).await?;
            }
            option::SET_META_CONTEXT => {
                agreed.allocation = asks_for_allocation(data);
                if agreed.allocation {
                    let context = [&CONTEXT_ID.to_be_bytes()[..], CONTEXT].concat();
                    reply(to, option, answer::META_CONTEXT, &context).await?;
                }
                reply(to, option, answer::ACK, &[]).await?;
            }
            option::GO | option::INFO => {
                let Some(name) = text(&mut data) else {
                    reply(to, option, answer::INVALID, &[]).await?;
                    continue;
                };
                let Some(source) = find(sources, name).await else {
                    reply(to, option, answer::UNKNOWN, b"no volume that waits for its source has this name").await?;
                    continue;
                };
                let mut info = 0u16.to_be_bytes().to_vec();
                info.extend(source.manifest.size.to_be_bytes());
                info.extend(EXPORT.to_be_bytes());
                reply(to, option, answer::INFO, &info).await?;
                reply(to, option, answer::ACK, &[]).await?;
                if option == option::GO {
                    return Ok(Some(source));
                }
            }
            _ => reply(to, option, answer::UNSUPPORTED, &[]).await?,
        }
    }
}

fn asks_for_allocation(mut data: &[u8]) -> bool {
    let Some(_name) = text(&mut data) else { return false };
    let Some((_count, mut queries)) = data.split_first_chunk::<4>() else { return false };
    while let Some(query) = text(&mut queries) {
        if query == CONTEXT {
            return true;
        }
    }
    false
}

/// One request of a client.
#[derive(Clone, Copy)]
struct Asked {
    kind: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

/// Ends when the client does, and everything it waits for with it.
async fn transmit(mut from: OwnedReadHalf, to: OwnedWriteHalf, source: Arc<Source>, agreed: Agreed) -> io::Result<()> {
    let (to, agreed) = (Arc::new(Mutex::new(to)), Arc::new(agreed));
    let (turns, mut tasks) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    loop {
        if from.read_u32().await? != REQUEST {
            return Err(protocol("no request"));
        }
        let _flags = from.read_u16().await?;
        let asked = Asked {
            kind: from.read_u16().await?,
            cookie: from.read_u64().await?,
            offset: from.read_u64().await?,
            length: from.read_u32().await?,
        };
        if asked.kind == command::DISCONNECT {
            return Ok(());
        }
        let turn = turns.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (source, to, agreed) = (source.clone(), to.clone(), agreed.clone());
        tasks.spawn(async move {
            let message = answer_to(asked, &source, &agreed).await;
            // One that is gone is seen by whoever reads from it.
            let _ = to.lock().await.write_all(&message).await;
            drop(turn);
        });
        while tasks.try_join_next().is_some() {}
    }
}

fn put_chunk(message: &mut Vec<u8>, asked: Asked, kind: u16, done: bool, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    message.extend(CHUNK.to_be_bytes());
    message.extend(if done { chunk::DONE } else { 0 }.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(asked.cookie.to_be_bytes());
    message.extend((length as u32).to_be_bytes());
    parts.iter().for_each(|p| message.extend(*p));
}

fn refusal(asked: Asked, agreed: &Agreed) -> Vec<u8> {
    let mut message = Vec::new();
    if agreed.structured {
        put_chunk(&mut message, asked, chunk::ERROR, true, &[&EINVAL.to_be_bytes(), &0u16.to_be_bytes()]);
    } else {
        message.extend(SIMPLE_REPLY.to_be_bytes());
        message.extend(EINVAL.to_be_bytes());
        message.extend(asked.cookie.to_be_bytes());
    }
    message
}

async fn answer_to(asked: Asked, source: &Arc<Source>, agreed: &Agreed) -> Vec<u8> {
    let length = u64::from(asked.length);
    let within = asked.offset.checked_add(length).is_some_and(|end| end <= source.manifest.size) && length > 0;
    match asked.kind {
        command::READ if within && asked.length <= READ_MAX => read(asked, source, agreed).await,
        command::BLOCK_STATUS if within && agreed.allocation => {
            let (there, length) = source.extent(asked.offset, length).await;
            let flags = if there { 0 } else { HOLE };
            let mut message = Vec::new();
            let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
            let parts: [&[u8]; 3] = [&CONTEXT_ID.to_be_bytes(), &length, &flags.to_be_bytes()];
            put_chunk(&mut message, asked, chunk::STATUS, true, &parts);
            message
        }
        _ => refusal(asked, agreed),
    }
}

async fn read(asked: Asked, source: &Arc<Source>, agreed: &Agreed) -> Vec<u8> {
    let (mut offset, end) = (asked.offset, asked.offset + u64::from(asked.length));
    let mut message = Vec::with_capacity(asked.length as usize + 64);
    if !agreed.structured {
        message.extend(SIMPLE_REPLY.to_be_bytes());
        message.extend(0u32.to_be_bytes());
        message.extend(asked.cookie.to_be_bytes());
    }
    while offset < end {
        let (part, length) = source.part(offset, end - offset).await;
        let at = offset.to_be_bytes();
        match (part, agreed.structured) {
            (Some(bytes), true) => put_chunk(&mut message, asked, chunk::DATA, false, &[&at, &bytes]),
            (None, true) => {
                let hole = (length as u32).to_be_bytes();
                put_chunk(&mut message, asked, chunk::HOLE, false, &[&at, &hole]);
            }
            (Some(bytes), false) => message.extend(&bytes),
            (None, false) => message.resize(message.len() + length as usize, 0),
        }
        offset += length;
    }
    if agreed.structured {
        put_chunk(&mut message, asked, chunk::NONE, true, &[]);
    }
    message
}
