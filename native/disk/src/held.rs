//! What a server's image holds already, so that a mirror which begins anew need not send it again:
//! digests of blocks, told by the side of the image and compared at the tap.

use std::collections::HashMap;
use std::ops::Range;

/// Blocks that are compared; QEMU's mirrors copy in multiples of it, aligned.
pub const HELD_BLOCK_BYTES: usize = 64 * 1024;

/// The first half of blake3; 0 stands for "not known".
pub fn block_digest(block: &[u8]) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::hash(block).as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// Digests by the number of the block; a block that is missing has to be sent.
#[derive(Debug, Default)]
pub struct HeldBlocks(HashMap<u64, u128>);

impl HeldBlocks {
    /// Notes what the image holds in a block; a digest of 0 says nothing.
    pub fn put(&mut self, block: u64, digest: u128) {
        if digest != 0 {
            self.0.insert(block, digest);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A write to these bytes is on its way: what they held is no matter any more.
    pub(crate) fn forget(&mut self, offset: u64, length: u64) {
        let size = HELD_BLOCK_BYTES as u64;
        let (first, end) = (offset / size, offset.saturating_add(length).div_ceil(size));
        if end - first > self.0.len() as u64 {
            self.0.retain(|block, _| !(first..end).contains(block));
        } else {
            for block in first..end {
                self.0.remove(&block);
            }
        }
    }

    /// The part of a write of `data` at `offset` that the image does not hold, in whole blocks;
    /// empty when it holds all of it.
    pub(crate) fn differing(&self, offset: u64, data: &[u8]) -> Range<usize> {
        let size = HELD_BLOCK_BYTES;
        if self.0.is_empty() || !offset.is_multiple_of(size as u64) {
            return 0..data.len();
        }
        let first = offset / size as u64;
        let is_held = |(number, block): (usize, &[u8])| {
            let known = self.0.get(&(first + number as u64));
            block.len() == size && known.is_some_and(|digest| *digest == block_digest(block))
        };
        let Some(from) = data.chunks(size).enumerate().position(|one| !is_held(one)) else {
            return 0..0;
        };
        let count = data.len().div_ceil(size);
        let behind = data.chunks(size).enumerate().skip(from).rev();
        let held_behind = behind.take_while(|one| is_held(*one)).count();
        from * size..((count - held_behind) * size).min(data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = HELD_BLOCK_BYTES;

    fn blocks(contents: &[u8]) -> Vec<u8> {
        contents.iter().flat_map(|byte| vec![*byte; SIZE]).collect()
    }

    fn held(first: u64, contents: &[u8]) -> HeldBlocks {
        let mut held = HeldBlocks::default();
        for (number, byte) in contents.iter().enumerate() {
            held.put(first + number as u64, block_digest(&vec![*byte; SIZE]));
        }
        held
    }

    #[test]
    fn only_what_lies_between_the_first_and_the_last_new_block_is_left() {
        let held = held(4, &[1, 2, 3, 4, 5]);
        let at = 4 * SIZE as u64;
        assert_eq!(held.differing(at, &blocks(&[1, 2, 3, 4, 5])), 0..0);
        assert_eq!(held.differing(at, &blocks(&[1, 9, 3, 8, 5])), SIZE..4 * SIZE);
        assert_eq!(held.differing(at, &blocks(&[9])), 0..SIZE);
        // Past its end nothing is known, and a part of a block is never known.
        assert_eq!(held.differing(at + SIZE as u64, &blocks(&[2, 3, 4, 5, 6])), 4 * SIZE..5 * SIZE);
        assert_eq!(held.differing(at, &blocks(&[1, 2])[..SIZE + 512]), SIZE..SIZE + 512);
        assert_eq!(held.differing(at + 512, &blocks(&[1])), 0..SIZE);
    }

    #[test]
    fn a_block_that_is_written_is_not_known_any_more() {
        let mut held = held(0, &[1, 2, 3]);
        held.forget(SIZE as u64 + 10, 1);
        assert_eq!(held.differing(0, &blocks(&[1, 2, 3])), SIZE..2 * SIZE);
        held.forget(0, u64::MAX);
        assert_eq!(held.differing(0, &blocks(&[1, 2, 3])), 0..3 * SIZE);
    }
}
