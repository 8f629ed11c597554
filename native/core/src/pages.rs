//! Which pages of a chunk: a fixed set of 256 bits, and the rule that binds a chunk to a lane.

use crate::CHUNK_PAGES;

const WORDS: usize = CHUNK_PAGES / 64;

/// A set of pages inside one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageSet(pub [u64; WORDS]);

impl PageSet {
    /// No page.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Adds one page; `page` counts inside the chunk.
    pub fn insert(&mut self, page: usize) {
        self.0[page / 64] |= 1 << (page % 64);
    }

    /// Whether the page is in the set.
    pub fn contains(&self, page: usize) -> bool {
        self.0[page / 64] & (1 << (page % 64)) != 0
    }

    /// How many pages are in the set.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Pages of either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(core::array::from_fn(|index| self.0[index] | other.0[index]))
    }

    /// Pages of both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(core::array::from_fn(|index| self.0[index] & other.0[index]))
    }

    /// Pages of this set that are not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(core::array::from_fn(|index| self.0[index] & !other.0[index]))
    }

    /// Page numbers inside the chunk, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(index, word)| {
            let mut rest = word;
            core::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                Some(index * 64 + bit)
            })
        })
    }

    /// Runs of neighbouring pages as (first, count), ascending: one read or write each.
    pub fn runs(self) -> impl Iterator<Item = (usize, usize)> {
        let mut pages = self.iter().peekable();
        core::iter::from_fn(move || {
            let first = pages.next()?;
            let mut count = 1;
            while pages.next_if_eq(&(first + count)).is_some() {
                count += 1;
            }
            Some((first, count))
        })
    }

    /// Little-endian bytes, 32 of them.
    pub fn to_bytes(self) -> [u8; WORDS * 8] {
        let mut bytes = [0; WORDS * 8];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Inverse of `to_bytes`.
    pub fn from_bytes(bytes: &[u8; WORDS * 8]) -> Self {
        let mut set = Self::EMPTY;
        for (word, slot) in set.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = slot.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte));
        }
        set
    }
}

/// The lane that carries a chunk for the whole move: a page never overtakes itself.
pub fn lane_of_chunk(chunk: usize, lane_count: usize) -> usize {
    chunk % lane_count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_and_runs_keep_the_set(words in any::<[u64; WORDS]>()) {
            let set = PageSet(words);
            prop_assert_eq!(PageSet::from_bytes(&set.to_bytes()), set);
            let mut again = PageSet::EMPTY;
            let mut last_end = None;
            for (first, count) in set.runs() {
                prop_assert!(last_end.is_none_or(|end| first > end));
                (first..first + count).for_each(|page| again.insert(page));
                last_end = Some(first + count);
            }
            prop_assert_eq!(again, set);
            prop_assert_eq!(set.iter().count(), set.count());
            prop_assert!(set.difference(&set).is_empty());
        }
    }
}
