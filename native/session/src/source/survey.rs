//! How much of what is to be sent costs anything: pages full of zeros do not. Reading all of memory
//! for that would take as long as sending it, so a few hundred pages stand for the rest.

use novacron_core::pages::PageSet;
use novacron_core::{CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::is_zero_page;

use crate::failure::Failure;
use crate::page_bits::PageBits;
use crate::source::Shared;

/// Chunks that are looked into, spread over all that has something.
const CHUNKS_MAX: usize = 256;
/// Pages of each; neighbours are alike, so more of one chunk tell little.
const PAGES_OF_CHUNK: usize = 2;

/// Part of the dirty and missing pages that has data; 1 when there are none. The error is about
/// one in the square root of the sample, 4 % at worst.
pub(crate) fn data_part(shared: &Shared) -> Result<f64, Failure> {
    part_with_data(shared, &[&shared.dirty, &shared.missing])
}

/// Bytes of pages with data in the whole memory file, before anything is tracked.
pub(crate) fn data_bytes(shared: &Shared) -> Result<f64, Failure> {
    let size = PAGE_BYTES as u64;
    let extents = PageBits::new(shared.options.memory_bytes);
    shared.memory.data_extents(|offset, length| {
        extents.insert_run(offset / size, length.div_ceil(size));
    })?;
    Ok((extents.count() * size) as f64 * part_with_data(shared, &[&extents])?)
}

fn part_with_data(shared: &Shared, sets: &[&PageBits]) -> Result<f64, Failure> {
    let mut page = vec![0_u8; PAGE_BYTES];
    let (mut all, mut with_data) = (0.0, 0.0);
    for (number, weight) in sample(sets) {
        shared.memory.read(&mut page, number * PAGE_BYTES as u64)?;
        all += weight;
        if !page.first_chunk().is_some_and(is_zero_page) {
            with_data += weight;
        }
    }
    Ok(if all > 0.0 { with_data / all } else { 1.0 })
}

/// Page numbers of any of the sets, spread over the chunks that have some, each with the number of
/// pages that it stands for.
fn sample(sets: &[&PageBits]) -> Vec<(u64, f64)> {
    let pages_of = |chunk: usize| {
        sets.iter().fold(PageSet::EMPTY, |all, set| all.union(&set.get(chunk)))
    };
    let chunks = sets.first().map_or(0, |set| set.chunks());
    let filled: Vec<usize> = (0..chunks).filter(|chunk| !pages_of(*chunk).is_empty()).collect();
    let step = filled.len().div_ceil(CHUNKS_MAX).max(1);
    let mut numbers = Vec::new();
    for (position, chunk) in filled.iter().copied().step_by(step).enumerate() {
        let pages = pages_of(chunk);
        let (count, turns) = (pages.count(), PAGES_OF_CHUNK.min(pages.count()));
        for turn in 0..turns {
            // Another place in every chunk, or a pattern in memory would be taken for all of it.
            let at = (position * 97 + turn * count / turns) % count;
            if let Some(page) = pages.iter().nth(at) {
                numbers.push(((chunk * CHUNK_PAGES + page) as u64, count as f64 / turns as f64));
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_the_sets_and_stands_for_all_of_them() {
        let (one, other) = (PageBits::new(1 << 30), PageBits::new(1 << 30));
        one.insert_run(0, 100_000);
        other.insert_run(200_000, 3);
        let picked = sample(&[&one, &other]);
        assert!(picked.iter().all(|(page, _)| one.contains(*page) || other.contains(*page)));
        assert!(picked.len() <= CHUNKS_MAX * PAGES_OF_CHUNK);
        let weight: f64 = picked.iter().map(|(_, weight)| weight).sum();
        assert!((weight / 50_000.0 - 1.0).abs() < 0.1, "{weight}");
        assert!(sample(&[&PageBits::new(1 << 20)]).is_empty());
    }
}
