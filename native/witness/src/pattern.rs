//! What a page must hold, as a pure function of seed, page number and generation.
//!
//! Decides the layout of a page and how a wrong one is named; leaves to `memory_load` and
//! `disk_load` which pages are written when. The expected generation is kept by the writer and
//! not read from the page: a stale page is consistent in itself, and stale pages are what a wrong
//! migration leaves behind.

/// Bytes of a page; the unit of dirtying and of checking.
pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Blocks of a page that a partial write may replace one by one.
pub(crate) const BLOCK_COUNT: u32 = 8;
const BLOCK_WORDS: usize = PAGE_WORDS / BLOCK_COUNT as usize;
/// Generation of a page that was written once, in full.
pub(crate) const FIRST_GENERATION: u32 = BLOCK_COUNT;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One page, aligned like the guest's own pages so that one write dirties exactly one.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u64; PAGE_WORDS]);

impl Page {
    /// A page of zeroes.
    pub(crate) fn zeroed() -> Self {
        Self([0; PAGE_WORDS])
    }
}

/// Whether a write replaces the page or one eighth of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageShare {
    Full,
    Partial,
}

/// What is wrong with a page, as far as its own header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// A whole block of an earlier (or later) generation: the move lost or repeated a write.
    OtherGeneration { held: u32, expected: u32 },
    /// A block of another page: the move put it in the wrong place.
    OtherPage { held: u32 },
    /// Anything else: torn or foreign bytes.
    Torn,
}

fn mix(mut value: u64) -> u64 {
    value ^= value >> 30;
    value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^= value >> 27;
    value = value.wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn header(page: u32, generation: u32) -> u64 {
    (u64::from(page) << 32) | u64::from(generation)
}

fn base(seed: u64, page: u32, generation: u32) -> u64 {
    mix(seed ^ mix(header(page, generation)))
}

/// Generation of block `block` in a page of generation `generation`: the last one that hit it.
fn block_generation(generation: u32, block: u32) -> u32 {
    generation - (generation + BLOCK_COUNT - block) % BLOCK_COUNT
}

fn write_block(words: &mut [u64], seed: u64, page: u32, generation: u32) {
    let mut value = base(seed, page, generation);
    for word in words.iter_mut() {
        *word = value;
        value = value.wrapping_add(STEP);
    }
    words[0] = header(page, generation);
}

fn block_holds(words: &[u64], seed: u64, page: u32, generation: u32) -> bool {
    let mut value = base(seed, page, generation);
    let mut difference = words[0] ^ header(page, generation);
    for word in &words[1..] {
        value = value.wrapping_add(STEP);
        difference |= word ^ value;
    }
    difference == 0
}

/// Writes a page anew and returns its next generation.
///
/// A full write moves every block on by a whole cycle, a partial one only the block whose turn it
/// is, so both may be mixed on one page.
pub(crate) fn rewrite(words: &mut Page, seed: u64, page: u32, generation: u32, share: PageShare) -> u32 {
    match share {
        PageShare::Full => {
            let next = generation.wrapping_add(BLOCK_COUNT).max(FIRST_GENERATION);
            for (block, part) in (0..BLOCK_COUNT).zip(words.0.chunks_exact_mut(BLOCK_WORDS)) {
                write_block(part, seed, page, block_generation(next, block));
            }
            next
        }
        PageShare::Partial => {
            let next = generation + 1;
            let start = (next % BLOCK_COUNT) as usize * BLOCK_WORDS;
            write_block(&mut words.0[start..start + BLOCK_WORDS], seed, page, next);
            next
        }
    }
}

/// Checks every word of a page against what its generation demands.
pub(crate) fn check(words: &Page, seed: u64, page: u32, generation: u32) -> Result<(), Damage> {
    for (block, part) in (0..BLOCK_COUNT).zip(words.0.chunks_exact(BLOCK_WORDS)) {
        let expected = block_generation(generation, block);
        if !block_holds(part, seed, page, expected) {
            return Err(diagnose(part, seed, page, expected));
        }
    }
    Ok(())
}

fn diagnose(part: &[u64], seed: u64, page: u32, expected: u32) -> Damage {
    let (held_page, held) = ((part[0] >> 32) as u32, part[0] as u32);
    if !block_holds(part, seed, held_page, held) {
        return Damage::Torn;
    }
    if held_page == page {
        Damage::OtherGeneration { held, expected }
    } else {
        Damage::OtherPage { held: held_page }
    }
}

/// Resident data that is written once: bytes that no compressor shrinks, or text-like ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataKind {
    Incompressible,
    Compressible,
}

fn data_word(seed: u64, page: u32, index: u64, kind: DataKind) -> u64 {
    let own = mix(seed ^ (u64::from(page) << 16) ^ index.wrapping_mul(STEP));
    match kind {
        DataKind::Incompressible => own,
        // One word in eight is its own, the others come from 64 fixed phrases: zstd-1 leaves a
        // quarter to a third, like the pages of an ordinary guest.
        DataKind::Compressible if index.is_multiple_of(8) => own,
        DataKind::Compressible => {
            let phrase = mix(seed ^ (u64::from(page) << 16) ^ (index / 8)) % 64;
            mix(phrase * 8 + index % 8)
        }
    }
}

/// The data page of a number.
pub(crate) fn write_data(words: &mut Page, seed: u64, page: u32, kind: DataKind) {
    for (index, word) in (0u64..).zip(words.0.iter_mut()) {
        *word = data_word(seed, page, index, kind);
    }
}

/// Whether a data page still holds what was written.
pub(crate) fn data_holds(words: &Page, seed: u64, page: u32, kind: DataKind) -> bool {
    (0u64..)
        .zip(words.0.iter())
        .fold(0, |difference, (index, word)| {
            difference | (word ^ data_word(seed, page, index, kind))
        })
        == 0
}

/// A small generator for the choice of pages; not for secrets.
pub(crate) struct Choice(u64);

impl Choice {
    /// Starts from a seed; the same seed gives the same pages.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number below `bound`.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32).wrapping_mul(u64::from(bound)) >> 32) as u32
    }
}

pub(crate) fn as_bytes(pages: &[Page]) -> &[u8] {
    // SAFETY: Page is repr(C) of u64 without padding (4096 bytes, align 4096), so every byte of
    // the slice is initialised; the borrow is carried over.
    unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), std::mem::size_of_val(pages)) }
}

pub(crate) fn as_bytes_mut(pages: &mut [Page]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are a valid Page.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), std::mem::size_of_val(pages)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_and_partial_writes_mix() {
        let mut page = Page::zeroed();
        let mut generation = rewrite(&mut page, 7, 3, 0, PageShare::Full);
        assert_eq!(generation, FIRST_GENERATION);
        let mut choice = Choice::new(11);
        for _ in 0..500 {
            let share = if choice.below(3) == 0 { PageShare::Full } else { PageShare::Partial };
            generation = rewrite(&mut page, 7, 3, generation, share);
            assert_eq!(check(&page, 7, 3, generation), Ok(()));
        }
    }

    #[test]
    fn a_stale_page_is_found_and_named() {
        let mut page = Page::zeroed();
        let old = rewrite(&mut page, 7, 3, 0, PageShare::Full);
        let stale = page.clone();
        let new = rewrite(&mut page, 7, 3, old, PageShare::Partial);
        assert!(check(&page, 7, 3, new).is_ok());
        assert_eq!(
            check(&stale, 7, 3, new),
            Err(Damage::OtherGeneration { held: new - BLOCK_COUNT, expected: new })
        );
    }

    #[test]
    fn every_single_flipped_bit_is_found() {
        let mut page = Page::zeroed();
        let generation = rewrite(&mut page, 7, 3, 0, PageShare::Full);
        for word in 0..PAGE_WORDS {
            let bit = 1 << (word % 64);
            page.0[word] ^= bit;
            assert!(check(&page, 7, 3, generation).is_err(), "word {word}");
            page.0[word] ^= bit;
        }
        assert!(check(&page, 7, 3, generation).is_ok());
    }

    #[test]
    fn a_page_in_the_wrong_place_is_named() {
        let mut page = Page::zeroed();
        let generation = rewrite(&mut page, 7, 3, 0, PageShare::Full);
        assert_eq!(check(&page, 7, 4, generation), Err(Damage::OtherPage { held: 3 }));
    }

    #[test]
    fn data_pages_hold_and_break() {
        for kind in [DataKind::Incompressible, DataKind::Compressible] {
            let mut page = Page::zeroed();
            write_data(&mut page, 5, 9, kind);
            assert!(data_holds(&page, 5, 9, kind));
            page.0[511] ^= 1;
            assert!(!data_holds(&page, 5, 9, kind));
        }
    }
}
