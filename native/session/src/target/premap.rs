//! Maps what a post-copy guest holds ahead of its first access. While pages are missing the kernel maps
//! none by itself, and each first access waits for an answer of this process: a guest that has just
//! started would do little else for a while.
//!
//! It never makes a page: what is a hole stays one, and a page that is missing is left alone. It is
//! for post-copy alone: mapping beside the blackout of a pre-copy took more from the start (6 ms of
//! downtime on two cores) than it spared the guest.

use novacron_core::{CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::Marks;

use crate::failure::Failure;
use crate::page_bits::PageBits;
use crate::target::Shared;
use crate::target::faults::{Active, faults_are_on};

/// Maps every page that is held; it ends when faults do. What it fails to map comes by a fault.
pub(crate) fn run(shared: &Shared, active: &Active) -> Result<(), Failure> {
    let size = PAGE_BYTES as u64;
    let marks = if shared.check.is_armed() { Marks::Unwritten } else { Marks::Written };
    let data = PageBits::new(shared.memory.length());
    shared.memory.data_extents(|offset, length| {
        data.insert_run(offset / size, length.div_ceil(size));
    })?;
    for chunk in 0..shared.missing.chunks() {
        let held = data.get(chunk).difference(&shared.missing.get(chunk));
        for (first, count) in held.runs() {
            if !faults_are_on(shared) {
                return Ok(());
            }
            let first = (chunk * CHUNK_PAGES + first) as u64;
            for (_, address, length) in active.mapping.spans(first, count as u64) {
                active.userfault.map_present(address, length, marks)?;
            }
        }
    }
    Ok(())
}
