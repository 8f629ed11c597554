//! One bit a page of the guest, shared by the threads of a session without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use novacron_core::pages::PageSet;
use novacron_core::{CHUNK_PAGES, PAGE_BYTES};

const WORDS: usize = CHUNK_PAGES / 64;

/// A set of pages of the whole guest.
pub(crate) struct PageBits {
    words: Box<[AtomicU64]>,
}

impl PageBits {
    /// No page of a guest of that size.
    pub(crate) fn new(memory_bytes: u64) -> Self {
        let chunks = chunk_count(memory_bytes);
        let words = (0..chunks * WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { words }
    }

    pub(crate) fn chunks(&self) -> usize {
        self.words.len() / WORDS
    }

    /// Adds a run of pages; answers how many were new.
    pub(crate) fn insert_run(&self, first: u64, count: u64) -> u64 {
        let (mut at, end) = (first as usize, (first + count) as usize);
        let mut added = 0;
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            let width = stop - at;
            let ones = if width == 64 { u64::MAX } else { (1 << width) - 1 };
            let mask = ones << (at % 64);
            let before = self.words[at / 64].fetch_or(mask, Ordering::AcqRel);
            added += u64::from((mask & !before).count_ones());
            at = stop;
        }
        added
    }

    /// Adds pages of one chunk.
    pub(crate) fn insert_set(&self, chunk: usize, pages: &PageSet) {
        for (word, bits) in self.words[chunk * WORDS..].iter().zip(pages.0) {
            if bits != 0 {
                word.fetch_or(bits, Ordering::AcqRel);
            }
        }
    }

    /// Takes pages of one chunk out.
    pub(crate) fn remove_set(&self, chunk: usize, pages: &PageSet) {
        for (word, bits) in self.words[chunk * WORDS..].iter().zip(pages.0) {
            if bits != 0 {
                word.fetch_and(!bits, Ordering::AcqRel);
            }
        }
    }

    /// Takes all pages of one chunk out and answers which they were.
    pub(crate) fn take(&self, chunk: usize) -> PageSet {
        let words = &self.words[chunk * WORDS..(chunk + 1) * WORDS];
        PageSet(std::array::from_fn(|index| {
            if words[index].load(Ordering::Acquire) == 0 {
                return 0;
            }
            words[index].swap(0, Ordering::AcqRel)
        }))
    }

    /// Takes the first pages of one chunk out, at most `count`, and answers which they were.
    pub(crate) fn take_first(&self, chunk: usize, count: usize) -> PageSet {
        let first = (chunk * CHUNK_PAGES) as u64;
        let mut taken = PageSet::EMPTY;
        for page in self.get(chunk).iter().take(count) {
            if self.remove(first + page as u64) {
                taken.insert(page);
            }
        }
        taken
    }

    /// Pages of one chunk.
    pub(crate) fn get(&self, chunk: usize) -> PageSet {
        let words = &self.words[chunk * WORDS..(chunk + 1) * WORDS];
        PageSet(std::array::from_fn(|index| words[index].load(Ordering::Acquire)))
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        self.words[page as usize / 64].load(Ordering::Acquire) & (1 << (page % 64)) != 0
    }

    /// Adds one page; whether it was new.
    pub(crate) fn insert(&self, page: u64) -> bool {
        let mask = 1 << (page % 64);
        self.words[page as usize / 64].fetch_or(mask, Ordering::AcqRel) & mask == 0
    }

    /// Takes one page out; whether it was there.
    pub(crate) fn remove(&self, page: u64) -> bool {
        let mask = 1 << (page % 64);
        self.words[page as usize / 64].fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }
}

/// Chunks of a guest, the last one perhaps not full.
pub(crate) fn chunk_count(memory_bytes: u64) -> usize {
    memory_bytes.div_ceil((CHUNK_PAGES * PAGE_BYTES) as u64) as usize
}

/// The pages that a chunk really has.
pub(crate) fn pages_of_chunk(chunk: usize, memory_bytes: u64) -> PageSet {
    let pages = memory_bytes / PAGE_BYTES as u64;
    let first = (chunk * CHUNK_PAGES) as u64;
    let count = pages.saturating_sub(first).min(CHUNK_PAGES as u64);
    let mut set = PageSet::EMPTY;
    (0..count as usize).for_each(|page| set.insert(page));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_over_word_and_chunk_borders() {
        let bits = PageBits::new(4 << 20);
        assert_eq!(bits.chunks(), 4);
        assert_eq!(bits.insert_run(60, 300), 300);
        assert_eq!(bits.insert_run(0, 64), 60);
        assert_eq!(bits.count(), 360);
        assert_eq!(bits.take(0).count(), 256);
        assert_eq!(bits.take(1).runs().collect::<Vec<_>>(), [(0, 104)]);
        assert_eq!(bits.count(), 0);
        assert_eq!(bits.insert_run(300, 20), 20);
        assert_eq!(bits.take_first(1, 8).runs().collect::<Vec<_>>(), [(44, 8)]);
        assert_eq!(bits.take_first(1, 80).runs().collect::<Vec<_>>(), [(52, 12)]);
        assert!(bits.take_first(1, 80).is_empty());
        assert!(bits.insert(1023) && !bits.insert(1023) && bits.contains(1023));
        assert!(bits.remove(1023) && !bits.remove(1023));
    }

    #[test]
    fn a_last_chunk_has_only_its_pages() {
        assert_eq!(pages_of_chunk(0, 1 << 20).count(), 256);
        assert_eq!(pages_of_chunk(1, (1 << 20) + 8192).count(), 2);
        assert_eq!(chunk_count((1 << 20) + 4096), 2);
    }
}
