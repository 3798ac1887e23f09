//! Memory for blocks on their way to a backend and back: bytes are gathered in it once, and the disk takes them from there.

use std::sync::{Arc, Mutex, PoisonError};

use super::BLOCK;

/// What the disk takes directly begins and ends at multiples of this, in memory and in the file.
pub const ALIGNMENT: usize = 4096;
/// Room before a block's bytes and behind them, for what a backend puts there.
const MARGIN: usize = ALIGNMENT;
const SPACE: usize = MARGIN + BLOCK + MARGIN;
/// Memory that is kept for the next blocks.
const KEPT: usize = 32;

/// Where the memory of blocks comes from and goes back to: fresh memory costs a page fault every 4 KiB.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    /// An empty block whose bytes begin `head` bytes, fewer than [`ALIGNMENT`], behind an aligned place.
    pub fn block(&self, head: usize) -> Block {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = kept.unwrap_or_else(|| vec![0; ALIGNMENT + SPACE]);
        let aligned = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Block { start: aligned, head: head.min(MARGIN), length: 0, memory, pool: self.clone() }
    }
}

/// At most [`BLOCK`] bytes of a content.
pub struct Block {
    memory: Vec<u8>,
    /// The aligned place in `memory`.
    start: usize,
    head: usize,
    length: usize,
    pool: Pool,
}

impl Block {
    pub fn len(&self) -> usize {
        self.length
    }
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    pub fn bytes(&self) -> &[u8] {
        let begin = self.start + self.head;
        self.memory.get(begin..begin + self.length).unwrap_or_default()
    }
    /// Takes what fits below `limit` bytes, and says how much that was.
    pub fn push(&mut self, bytes: &[u8], limit: usize) -> usize {
        let (end, room) = (self.start + self.head + self.length, limit.min(BLOCK).saturating_sub(self.length));
        let taken = bytes.len().min(room);
        if let (Some(to), Some(from)) = (self.memory.get_mut(end..end + taken), bytes.get(..taken)) {
            to.copy_from_slice(from);
        }
        self.length += taken;
        taken
    }
    /// Other bytes in place of these.
    pub fn replace(&mut self, bytes: &[u8]) {
        self.length = 0;
        self.push(bytes, BLOCK);
    }
    /// Room for `length` bytes and `behind` more that are not the block's, in place of what there was: whoever asks writes all
    /// of it.
    pub fn room(&mut self, length: usize, behind: usize) -> Option<&mut [u8]> {
        let begin = self.start + self.head;
        self.length = length.min(BLOCK);
        self.memory.get_mut(begin..begin + length + behind)
    }
    /// The memory from the aligned place on, with `before` in front of the bytes (as long as the block's head) and `behind`
    /// after them, and where that ends. What lies beyond is from earlier blocks.
    pub fn framed(&mut self, before: &[u8], behind: &[u8]) -> Option<(&mut [u8], usize)> {
        let bytes_end = self.head + self.length;
        let memory = self.memory.get_mut(self.start..)?;
        memory.get_mut(..self.head).filter(|head| head.len() == before.len())?.copy_from_slice(before);
        memory.get_mut(bytes_end..bytes_end + behind.len())?.copy_from_slice(behind);
        Some((memory, bytes_end + behind.len()))
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_framed_at_an_aligned_place() {
        let pool = Pool::default();
        for head in [0, 8, ALIGNMENT - 8] {
            let mut block = pool.block(head);
            assert_eq!(block.push(&vec![7; BLOCK + 1], BLOCK), BLOCK);
            assert_eq!((block.push(b"more", BLOCK), block.len()), (0, BLOCK));
            assert!(block.bytes().iter().all(|byte| *byte == 7));
            let before = vec![1; head];
            let (memory, end) = block.framed(&before, b"behind").unwrap();
            assert_eq!(memory.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(end, head + BLOCK + 6);
            assert_eq!(&memory[..head], &before);
            assert_eq!(&memory[end - 7..end], b"\x07behind");
            assert!(memory.len() >= end.next_multiple_of(ALIGNMENT));
        }
    }

    #[test]
    fn a_limit_is_kept() {
        let mut block = Pool::default().block(0);
        assert_eq!((block.push(b"abcdef", 4), block.push(b"ef", 4)), (4, 0));
        assert_eq!(block.bytes(), b"abcd");
        block.replace(b"xy");
        assert_eq!(block.bytes(), b"xy");
    }
}
