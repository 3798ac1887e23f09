//! MD5 of several contents at once. One MD5 is a chain of dependent steps that leaves most of a core idle; a vector of
//! them takes hardly longer than one. So uploads that go on at the same time are digested side by side.
//!
//! Whoever comes while somebody digests is in the next lot, as with group commit. That alone makes small lots, for most of
//! an upload's time goes into other things; so a lot waits a moment for company, as long as some has come of late.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use openssl::hash::{Hasher, MessageDigest};

use super::Block;
use crate::Error;

/// The bytes of one step of MD5.
const CHUNK: usize = 64;
/// The widest vector of states that is worth it: two registers of AVX-512 at a time.
const WIDEST: usize = 32;
/// With fewer uploads at a time each is faster with OpenSSL's assembler, one after the other.
const COMPANY: usize = 4;
/// How long a lot waits, at most. It takes about as long to digest one.
const MOMENT: Duration = Duration::from_millis(1);
/// Every so often a lot waits again where none came before.
const PATIENCE: u32 = 16;

type State = [u32; 4];

const FRESH: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The digesting that uploads share.
#[derive(Clone, Default)]
pub struct Lanes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Large uploads going on.
    uploads: AtomicUsize,
    queue: Mutex<Queue>,
    /// Told of everyone who begins to wait.
    company: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Somebody digests, and will see to who waits.
    busy: bool,
    waiting: VecDeque<Job>,
    /// Lots that will not wait, for the last that did got nothing of it.
    hasty: u32,
}

/// A block to digest, and whom to give it back.
struct Job {
    state: State,
    block: Block,
    reply: SyncSender<Reply>,
}

enum Reply {
    Done(State, Block),
    /// Nobody digests now: it is the turn of who gets this.
    Lead(Job),
}

/// The MD5 of one upload, as it comes.
pub struct Md5 {
    lanes: Lanes,
    way: Way,
}

enum Way {
    Alone(Hasher),
    Beside { state: State, length: u64, tail: Vec<u8> },
}

impl Drop for Md5 {
    fn drop(&mut self) {
        self.lanes.0.uploads.fetch_sub(1, Ordering::Relaxed);
    }
}

fn failed(e: openssl::error::ErrorStack) -> Error {
    Error::Internal(format!("MD5: {e}"))
}

/// The MD5 of something small.
pub fn md5(bytes: &[u8]) -> Result<[u8; 16], Error> {
    let digest = openssl::hash::hash(MessageDigest::md5(), bytes).map_err(failed)?;
    <[u8; 16]>::try_from(&digest[..]).map_err(|_| Error::Internal("an MD5 of another length".into()))
}

impl Lanes {
    /// For an upload whose blocks are `whole`: all but the last a multiple of 64 bytes.
    pub fn md5(&self, whole: bool) -> Result<Md5, Error> {
        let others = self.0.uploads.fetch_add(1, Ordering::Relaxed);
        // From here on its going away is counted.
        let mut md5 = Md5 { lanes: self.clone(), way: Way::Beside { state: FRESH, length: 0, tail: Vec::new() } };
        if !whole || others + 1 < COMPANY || vectors() == Vectors::None {
            md5.way = Way::Alone(Hasher::new(MessageDigest::md5()).map_err(failed)?);
        }
        Ok(md5)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who goes along in a lot.
    fn company(&self) -> Vec<Job> {
        // The others receive, write or sync.
        let wanted = (self.0.uploads.load(Ordering::Relaxed) / 2).min(WIDEST - 1);
        let mut queue = self.queue();
        queue.hasty = queue.hasty.saturating_sub(1);
        if queue.hasty == 0 && queue.waiting.len() < wanted {
            let fewer = |queue: &mut Queue| queue.waiting.len() < wanted;
            let waited = self.0.company.wait_timeout_while(queue, MOMENT, fewer);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            if queue.waiting.is_empty() {
                queue.hasty = PATIENCE;
            }
        }
        let others = queue.waiting.len().min(WIDEST - 1);
        queue.waiting.drain(..others).collect()
    }

    /// Digests the whole chunks of the block, with those of others.
    fn digest(&self, state: State, block: Block) -> Result<(State, Block), Error> {
        let (reply, receiver) = sync_channel(1);
        let job = Job { state, block, reply };
        let mine = {
            let mut queue = self.queue();
            if queue.busy {
                queue.waiting.push_back(job);
                self.0.company.notify_one();
                None
            } else {
                queue.busy = true;
                Some(job)
            }
        };
        let mine = match mine {
            Some(mine) => mine,
            None => match receiver.recv() {
                Ok(Reply::Done(state, block)) => return Ok((state, block)),
                Ok(Reply::Lead(mine)) => mine,
                Err(_) => return Err(Error::Internal("who digested this block was ended".into())),
            },
        };
        let turn = Turn(self);
        let mut lot = vec![mine];
        lot.extend(self.company());
        digest_all(&mut lot);
        let mut lot = lot.into_iter();
        let mine = lot.next();
        drop(turn);
        for Job { state, block, reply } in lot {
            // Who asked may be gone.
            let _ = reply.try_send(Reply::Done(state, block));
        }
        mine.map(|Job { state, block, .. }| (state, block)).ok_or_else(|| Error::Internal("an empty lot".into()))
    }
}

/// Held by who digests; passed on to the next who waits.
struct Turn<'l>(&'l Lanes);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        while let Some(next) = queue.waiting.pop_front() {
            let reply = next.reply.clone();
            if reply.try_send(Reply::Lead(next)).is_ok() {
                return;
            }
        }
        queue.busy = false;
    }
}

impl Md5 {
    /// Takes the block's bytes in, and gives the block back.
    pub fn update(&mut self, block: Block) -> Result<Block, Error> {
        match &mut self.way {
            Way::Alone(hasher) => {
                hasher.update(block.bytes()).map_err(failed)?;
                Ok(block)
            }
            Way::Beside { state, length, tail } => {
                if !tail.is_empty() {
                    return Err(Error::Internal("only the last block may be odd".into()));
                }
                let (after, block) = self.lanes.digest(*state, block)?;
                *state = after;
                *length += block.len() as u64;
                tail.extend_from_slice(block.bytes().as_chunks::<CHUNK>().1);
                Ok(block)
            }
        }
    }

    pub fn finish(mut self) -> Result<[u8; 16], Error> {
        match &mut self.way {
            Way::Alone(hasher) => {
                let digest = hasher.finish().map_err(failed)?;
                <[u8; 16]>::try_from(&digest[..]).map_err(|_| Error::Internal("an MD5 of another length".into()))
            }
            Way::Beside { state, length, tail } => {
                let mut end = std::mem::take(tail);
                end.push(0x80);
                let padded = (end.len() + 8).next_multiple_of(CHUNK) - 8;
                end.resize(padded, 0);
                end.extend_from_slice(&length.wrapping_mul(8).to_le_bytes());
                let mut states = state.map(|word| [word]);
                for chunk in end.as_chunks::<CHUNK>().0 {
                    compress(&mut states, [chunk]);
                }
                let mut digest = [0; 16];
                for (to, [word]) in digest.as_chunks_mut::<4>().0.iter_mut().zip(states) {
                    *to = word.to_le_bytes();
                }
                Ok(digest)
            }
        }
    }
}

/// Brings every job's state up to the last whole chunk of its block.
fn digest_all(jobs: &mut [Job]) {
    // Longest first: those that are done fall off at the end. The jobs themselves stay where they are.
    let mut order: Vec<&mut Job> = jobs.iter_mut().collect();
    order.sort_by_key(|job| std::cmp::Reverse(job.block.len()));
    let (mut at, mut left) = (0, order.len());
    while left > 0 {
        let Some(some) = order.get_mut(..left) else { return };
        let end = some.last().map_or(0, |job| job.block.len() / CHUNK);
        match left {
            1 => lanes::<1>(some, at, end),
            2..=4 => lanes::<4>(some, at, end),
            5..=8 => lanes::<8>(some, at, end),
            9..=16 => lanes::<16>(some, at, end),
            _ => lanes::<WIDEST>(some, at, end),
        }
        at = end;
        left -= 1;
    }
}

/// The chunks from `from` to `to` of at most `N` jobs, which all have them.
fn lanes<const N: usize>(jobs: &mut [&mut Job], from: usize, to: usize) {
    if from >= to {
        return;
    }
    // What is beyond the jobs does the first one's work again: it costs nothing.
    let of = |lane: usize| jobs.get(lane).or(jobs.first());
    let chunks: [&[[u8; CHUNK]]; N] = std::array::from_fn(|lane| {
        of(lane).and_then(|job| job.block.bytes().as_chunks().0.get(from..to)).unwrap_or_default()
    });
    let mut states: [[u32; N]; 4] =
        std::array::from_fn(|word| std::array::from_fn(|lane| of(lane).map_or(0, |job| job.state[word])));
    vectored(&mut states, &chunks);
    for (lane, job) in jobs.iter_mut().enumerate() {
        job.state = states.map(|word| word[lane]);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vectors {
    None,
    Avx2,
    Avx512,
}

#[cfg(target_arch = "x86_64")]
fn vectors() -> Vectors {
    if std::is_x86_feature_detected!("avx512f") {
        Vectors::Avx512
    } else if std::is_x86_feature_detected!("avx2") {
        Vectors::Avx2
    } else {
        Vectors::None
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn vectors() -> Vectors {
    Vectors::None
}

/// [`each_chunk`], compiled for the vectors this processor has.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn vectored<const N: usize>(states: &mut [[u32; N]; 4], chunks: &[&[[u8; CHUNK]]; N]) {
    #[target_feature(enable = "avx512f")]
    fn with_avx512<const N: usize>(states: &mut [[u32; N]; 4], chunks: &[&[[u8; CHUNK]]; N]) {
        each_chunk(states, chunks);
    }
    #[target_feature(enable = "avx2")]
    fn with_avx2<const N: usize>(states: &mut [[u32; N]; 4], chunks: &[&[[u8; CHUNK]]; N]) {
        each_chunk(states, chunks);
    }
    match vectors() {
        // SAFETY: the processor has been asked whether it has what the function is compiled for; nothing else about it
        // is unsafe.
        Vectors::Avx512 => unsafe { with_avx512(states, chunks) },
        // SAFETY: as above.
        Vectors::Avx2 => unsafe { with_avx2(states, chunks) },
        Vectors::None => each_chunk(states, chunks),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn vectored<const N: usize>(states: &mut [[u32; N]; 4], chunks: &[&[[u8; CHUNK]]; N]) {
    each_chunk(states, chunks);
}

#[inline(always)]
fn each_chunk<const N: usize>(states: &mut [[u32; N]; 4], chunks: &[&[[u8; CHUNK]]; N]) {
    let length = chunks.iter().map(|lane| lane.len()).min().unwrap_or(0);
    #[expect(clippy::needless_range_loop, reason = "it is the same place in every lane")]
    for n in 0..length {
        compress(states, std::array::from_fn(|lane| &chunks[lane][n]));
    }
}

/// ⌊2³² × |sin(n + 1)|⌋, RFC 1321 §3.4.
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// One step of RFC 1321 for every lane: `b + ((a + f + m + k) <<< R)`.
#[inline(always)]
fn step<const N: usize, const R: u32>(
    [a, b, c, d]: [&[u32; N]; 4],
    f: impl Fn(u32, u32, u32) -> u32,
    m: &[u32; N],
    k: u32,
) -> [u32; N] {
    let mut out = [0; N];
    for lane in 0..N {
        let sum = a[lane].wrapping_add(m[lane].wrapping_add(k)).wrapping_add(f(b[lane], c[lane], d[lane]));
        out[lane] = sum.rotate_left(R).wrapping_add(b[lane]);
    }
    out
}

/// A chunk of every lane.
#[inline(always)]
fn compress<const N: usize>(states: &mut [[u32; N]; 4], chunks: [&[u8; CHUNK]; N]) {
    let mut m = [[0_u32; N]; 16];
    for (lane, chunk) in chunks.iter().enumerate() {
        for (word, bytes) in chunk.as_chunks::<4>().0.iter().enumerate() {
            m[word][lane] = u32::from_le_bytes(*bytes);
        }
    }
    let [mut a, mut b, mut c, mut d] = *states;
    macro_rules! round {
        ($begin:literal, $f:expr, $word:expr, $r0:literal, $r1:literal, $r2:literal, $r3:literal) => {
            for n in [$begin, $begin + 4, $begin + 8, $begin + 12] {
                let word = |n: usize| &m[$word(n) % 16];
                a = step::<N, $r0>([&a, &b, &c, &d], $f, word(n), SINES[n]);
                d = step::<N, $r1>([&d, &a, &b, &c], $f, word(n + 1), SINES[n + 1]);
                c = step::<N, $r2>([&c, &d, &a, &b], $f, word(n + 2), SINES[n + 2]);
                b = step::<N, $r3>([&b, &c, &d, &a], $f, word(n + 3), SINES[n + 3]);
            }
        };
    }
    round!(0, |b, c, d| d ^ (b & (c ^ d)), |n| n, 7, 12, 17, 22);
    round!(16, |b, c, d| c ^ (d & (b ^ c)), |n| 5 * n + 1, 5, 9, 14, 20);
    round!(32, |b, c, d| b ^ c ^ d, |n| 3 * n + 5, 4, 11, 16, 23);
    round!(48, |b, c, d| c ^ (b | !d), |n| 7 * n, 6, 10, 15, 21);
    for (state, new) in states.iter_mut().zip([a, b, c, d]) {
        for (word, new) in state.iter_mut().zip(new) {
            *word = word.wrapping_add(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{BLOCK, block::Pool};

    fn block(bytes: &[u8]) -> Block {
        let mut block = Pool::default().block(0);
        assert_eq!(block.push(bytes, BLOCK), bytes.len());
        block
    }

    fn beside(lanes: &Lanes, bytes: &[u8]) -> [u8; 16] {
        let mut md5 = lanes.md5(true).unwrap();
        md5.way = Way::Beside { state: FRESH, length: 0, tail: Vec::new() };
        for piece in bytes.chunks(BLOCK) {
            assert_eq!(md5.update(block(piece)).unwrap().bytes(), piece);
        }
        md5.finish().unwrap()
    }

    #[test]
    fn every_lane_has_the_digest_of_its_own_bytes() {
        for count in [1, 2, 3, 4, 5, 8, 9, 16, 17, WIDEST] {
            let contents: Vec<Vec<u8>> =
                (0..count).map(|n| (0..64 * (n % 5 * 3 + 1) + n).map(|b| (b * 7 + n) as u8).collect()).collect();
            let (reply, _receiver) = sync_channel(1);
            let mut jobs: Vec<Job> =
                contents.iter().map(|bytes| Job { state: FRESH, block: block(bytes), reply: reply.clone() }).collect();
            digest_all(&mut jobs);
            for Job { state, block, .. } in jobs {
                let tail = block.bytes().as_chunks::<CHUNK>().1.to_vec();
                let way = Way::Beside { state, length: block.len() as u64, tail };
                let lanes = Lanes::default();
                lanes.0.uploads.store(1, Ordering::Relaxed);
                assert_eq!(Md5 { lanes, way }.finish().unwrap(), md5(block.bytes()).unwrap(), "{count} lanes");
            }
        }
    }

    #[test]
    fn every_length_has_its_padding() {
        let lanes = Lanes::default();
        for length in [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, BLOCK, BLOCK + 1, 3 * BLOCK + 61] {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            assert_eq!(beside(&lanes, &bytes), md5(&bytes).unwrap(), "{length} bytes");
        }
    }

    #[test]
    fn many_at_once_each_get_their_own() {
        let lanes = Lanes::default();
        std::thread::scope(|scope| {
            for n in 0..40_usize {
                let lanes = lanes.clone();
                scope.spawn(move || {
                    let bytes: Vec<u8> = (0..BLOCK * (n % 4) + n * 100).map(|b| (b % 249 + n) as u8).collect();
                    assert_eq!(beside(&lanes, &bytes), md5(&bytes).unwrap());
                });
            }
        });
        assert!(!lanes.queue().busy && lanes.queue().waiting.is_empty());
        assert_eq!(lanes.0.uploads.load(Ordering::Relaxed), 0);
    }
}
