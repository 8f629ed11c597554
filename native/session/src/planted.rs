//! Faults that a test plants, so that it can be shown that a check finds them. A session has none
//! unless its options name one; hosts of the production profile can't.

use std::sync::atomic::{AtomicBool, Ordering};

use novacron_core::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use novacron_core::pages::PageSet;
use novacron_guest_memory::MemoryFile;

/// Bytes that mark the pages of `Skipped::Marked`.
pub const MARK_BYTES: usize = 16;

/// Pages that a scan misses: the kernel has reported them, nobody takes note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    Page(u64),
    /// Every page that has these bytes somewhere.
    Marked([u8; MARK_BYTES]),
}

/// One fault: a page is hit once, when it first comes by; skipped ones are always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlantedFaults {
    /// At the source: a bit is wrong in what was read.
    pub read: Option<u64>,
    /// At the source: the scan misses it.
    pub skipped: Option<Skipped>,
    /// At the target: a bit is wrong in what was decrypted, in each lane's first pages.
    pub received: bool,
    /// At the target: a bit is wrong in what came out of the decoder, before it is written.
    pub decoded: Option<u64>,
    /// At the target: a bit is wrong in the memory file.
    pub stored: Option<u64>,
}

/// The faults of one session, and which have happened.
#[derive(Default)]
pub(crate) struct Planted {
    faults: PlantedFaults,
    hit: AtomicBool,
}

impl Planted {
    pub(crate) fn new(faults: PlantedFaults) -> Self {
        Self { faults, hit: AtomicBool::new(false) }
    }

    pub(crate) fn faults(&self) -> &PlantedFaults {
        &self.faults
    }

    /// Flips a bit of `page` in bytes that hold `pages` of `chunk` back to back, once.
    pub(crate) fn flip(&self, page: Option<u64>, chunk: usize, pages: &PageSet, bytes: &mut [u8]) {
        let Some(inside) = page.and_then(|page| (page as usize).checked_sub(chunk * CHUNK_PAGES))
        else { return };
        let Some(position) = pages.iter().position(|page| page == inside) else { return };
        if !self.hit.swap(true, Ordering::Relaxed) {
            bytes[position * PAGE_BYTES + 1000] ^= 4;
        }
    }

    /// The decoder's pages of a chunk, spoilt in a copy where that is planted.
    pub(crate) fn decoded<'a>(
        &self,
        chunk: usize,
        pages: &PageSet,
        bytes: &'a [u8],
        copy: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        if self.faults.decoded.is_none() {
            return bytes;
        }
        copy.extend_from_slice(bytes);
        self.flip(self.faults.decoded, chunk, pages, copy);
        copy
    }

    /// Flips a bit of the stored page once, after one of `pages` was written.
    pub(crate) fn flip_stored(&self, memory: &MemoryFile, chunk: usize, pages: &PageSet) {
        let Some(page) = self.faults.stored else { return };
        let inside = (page as usize).checked_sub(chunk * CHUNK_PAGES);
        let comes = inside.is_some_and(|page| page < CHUNK_PAGES && pages.contains(page));
        if comes && !self.hit.swap(true, Ordering::Relaxed) {
            let offset = (chunk * CHUNK_BYTES + inside.unwrap_or(0) * PAGE_BYTES + 1000) as u64;
            let mut byte = [0];
            let flipped = memory.read(&mut byte, offset)
                .and_then(|()| memory.write(&[byte[0] ^ 4], offset));
            assert!(flipped.is_ok(), "a fault that can't be planted shows nothing");
        }
    }

    /// Whether a scan misses this page.
    pub(crate) fn skips(&self, memory: &MemoryFile, page: u64) -> bool {
        match self.faults.skipped {
            None => false,
            Some(Skipped::Page(skipped)) => skipped == page,
            Some(Skipped::Marked(mark)) => {
                let mut bytes = [0; PAGE_BYTES];
                let read = memory.read(&mut bytes, page * PAGE_BYTES as u64);
                read.is_ok() && bytes.windows(MARK_BYTES).any(|window| window == mark)
            }
        }
    }
}
