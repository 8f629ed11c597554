//! The digest of guest memory: a multiset hash over (page number, blake3 of the page).
//!
//! Each page that is not all zero contributes the first 128 bits of blake3(page number, little
//! endian, then blake3(page)); the digest is the sum of the contributions modulo 2^128. A page that
//! is sent again takes back its old contribution, so that both sides keep the digest as pages pass
//! and the blackout hashes only the last round. It detects faults, not forgers: lanes are
//! authenticated, and a peer that lies about memory could lie about anything.

use blake3::IncrementCounter;
use blake3::platform::{MAX_SIMD_DEGREE, Platform};

use crate::PAGE_BYTES;

const CHUNK_LENGTH: usize = 1024;
const CHUNKS: usize = PAGE_BYTES / CHUNK_LENGTH;
const CHAINING: usize = 32;
const BLOCK: usize = 64;
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;
const INITIAL: [u32; 8] = [
    0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A,
    0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19,
];
/// Pages hashed side by side; more than the widest kernel takes would gain nothing.
const BATCH: usize = MAX_SIMD_DEGREE;

type Page = [u8; PAGE_BYTES];

/// Computes contributions; remembers which vector kernels this machine has.
#[derive(Clone, Copy, Debug)]
pub struct PageHasher {
    platform: Platform,
}

impl Default for PageHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl PageHasher {
    /// Chooses the widest kernels of this machine.
    pub fn new() -> Self {
        Self { platform: Platform::detect() }
    }

    /// Contribution of each page of `bytes` (whole pages, back to back), whose numbers are
    /// `numbers`; calls `each(index, contribution)` in order.
    ///
    /// # Panics
    /// When `bytes` is not one page for each number.
    pub fn contributions(
        &self,
        bytes: &[u8],
        numbers: &[u64],
        mut each: impl FnMut(usize, u128),
    ) {
        let (pages, rest) = bytes.as_chunks::<PAGE_BYTES>();
        assert!(rest.is_empty() && pages.len() == numbers.len(), "one number a page");
        let mut hashes = [[0; CHAINING]; BATCH];
        for (batch, group) in pages.chunks(BATCH).enumerate() {
            self.hash_batch(group, &mut hashes);
            for (offset, hash) in hashes[..group.len()].iter().enumerate() {
                let index = batch * BATCH + offset;
                each(index, mix(numbers[index], hash));
            }
        }
    }

    /// The plain blake3 hash of each page: a page is a tree of four chunks, and the same node of
    /// all pages is computed at once.
    fn hash_batch(&self, pages: &[Page], hashes: &mut [[u8; CHAINING]; BATCH]) {
        let count = pages.len();
        let mut leaves = [[0_u8; CHAINING * BATCH]; CHUNKS];
        for (chunk, leaf) in leaves.iter_mut().enumerate() {
            let mut inputs = [&[0_u8; CHUNK_LENGTH]; BATCH];
            for (input, page) in inputs.iter_mut().zip(pages) {
                *input = &page.as_chunks::<CHUNK_LENGTH>().0[chunk];
            }
            let end = count * CHAINING;
            self.platform.hash_many(
                &inputs[..count], &INITIAL, chunk as u64, IncrementCounter::No,
                0, CHUNK_START, CHUNK_END, &mut leaf[..end],
            );
        }
        let left = self.parents([&leaves[0], &leaves[1]], count, 0);
        let right = self.parents([&leaves[2], &leaves[3]], count, 0);
        let roots = self.parents([&left, &right], count, ROOT);
        for (hash, root) in hashes.iter_mut().zip(roots.as_chunks::<CHAINING>().0).take(count) {
            *hash = *root;
        }
    }

    fn parents(
        &self,
        children: [&[u8; CHAINING * BATCH]; 2],
        count: usize,
        flags: u8,
    ) -> [u8; CHAINING * BATCH] {
        let mut blocks = [[0_u8; BLOCK]; BATCH];
        for (index, block) in blocks.iter_mut().enumerate().take(count) {
            let range = index * CHAINING..(index + 1) * CHAINING;
            block[..CHAINING].copy_from_slice(&children[0][range.clone()]);
            block[CHAINING..].copy_from_slice(&children[1][range]);
        }
        let inputs: [&[u8; BLOCK]; BATCH] = core::array::from_fn(|index| &blocks[index]);
        let mut out = [0; CHAINING * BATCH];
        self.platform.hash_many(
            &inputs[..count], &INITIAL, 0, IncrementCounter::No,
            flags | PARENT, 0, 0, &mut out[..count * CHAINING],
        );
        out
    }
}

fn mix(number: u64, hash: &[u8; CHAINING]) -> u128 {
    let mut input = [0; 8 + CHAINING];
    input[..8].copy_from_slice(&number.to_le_bytes());
    input[8..].copy_from_slice(hash);
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(&input).as_bytes()[..16]);
    u128::from_le_bytes(first)
}

/// Contributions of the pages of one lane, and their sum. Indexes count the lane's own pages.
#[derive(Debug)]
pub struct DigestTable {
    entries: Box<[u128]>,
    sum: u128,
}

impl DigestTable {
    /// A table in which every page is zero; 16 bytes a page, taken lazily by the kernel.
    pub fn new(page_count: usize) -> Self {
        Self { entries: vec![0; page_count].into_boxed_slice(), sum: 0 }
    }

    /// Puts a page's new contribution in the place of its old one; 0 for a page that is all zero
    /// or missing.
    pub fn replace(&mut self, index: usize, contribution: u128) {
        let old = core::mem::replace(&mut self.entries[index], contribution);
        self.sum = self.sum.wrapping_sub(old).wrapping_add(contribution);
    }

    /// Whether the page contributes nothing: the other side holds zeros there.
    pub fn is_zero(&self, index: usize) -> bool {
        self.entries[index] == 0
    }

    /// Contributions of neighbouring pages of the lane.
    pub fn entries(&self, first: usize, count: usize) -> &[u128] {
        &self.entries[first..first + count]
    }

    /// The contribution of a page.
    pub fn get(&self, index: usize) -> u128 {
        self.entries[index]
    }

    /// Sum of all contributions.
    pub fn sum(&self) -> u128 {
        self.sum
    }
}

/// The digest as it is written in records: 32 lower-case hex digits.
pub fn digest_hex(sum: u128) -> String {
    format!("{sum:032x}")
}

/// First 128 bits of blake3 of a text: a short name for a long one.
pub fn text_digest(text: &str) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    u128::from_le_bytes(first)
}

/// Digest over the numbers of missing pages, which both sides must agree on.
#[derive(Default)]
pub struct MissingHasher {
    hasher: blake3::Hasher,
    count: u64,
}

impl MissingHasher {
    /// Takes the next chunk that has missing pages; chunks come in ascending order.
    pub fn chunk(&mut self, chunk: u64, pages: crate::pages::PageSet) {
        if pages.is_empty() {
            return;
        }
        self.hasher.update(&chunk.to_le_bytes());
        self.hasher.update(&pages.to_bytes());
        self.count += pages.count() as u64;
    }

    /// (hex digest, count of pages).
    pub fn finish(self) -> (String, u64) {
        (self.hasher.finalize().to_hex().to_string(), self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(number: u64, page: &[u8]) -> u128 {
        mix(number, blake3::hash(page).as_bytes())
    }

    #[test]
    fn batches_of_every_size_equal_plain_blake3() {
        for count in 0..BATCH * 2 + 2 {
            let bytes: Vec<u8> =
                (0..count * PAGE_BYTES).map(|at| ((at * 31) ^ (at >> 9)) as u8).collect();
            let numbers: Vec<u64> = (0..count as u64).map(|n| n * 7 + 3).collect();
            let mut seen = 0;
            PageHasher::new().contributions(&bytes, &numbers, |index, value| {
                let page = &bytes[index * PAGE_BYTES..(index + 1) * PAGE_BYTES];
                assert_eq!(value, reference(numbers[index], page), "page {index} of {count}");
                seen += 1;
            });
            assert_eq!(seen, count);
        }
    }

    #[test]
    fn position_counts_and_one_bit_counts() {
        let page = [7; PAGE_BYTES];
        let mut other = page;
        other[4095] ^= 1;
        assert_ne!(reference(1, &page), reference(2, &page));
        assert_ne!(reference(1, &page), reference(1, &other));
    }

    proptest! {
        #[test]
        fn table_sum_depends_only_on_the_last_values(
            writes in proptest::collection::vec((0_usize..40, any::<u128>()), 0..300),
        ) {
            let mut table = DigestTable::new(40);
            let mut last = [0_u128; 40];
            for (index, value) in writes {
                table.replace(index, value);
                last[index] = value;
            }
            let expected = last.iter().fold(0_u128, |sum, value| sum.wrapping_add(*value));
            prop_assert_eq!(table.sum(), expected);
            for (index, value) in last.iter().enumerate() {
                prop_assert_eq!(table.is_zero(index), *value == 0);
            }
        }
    }
}
