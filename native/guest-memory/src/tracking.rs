//! Which pages a guest has written: write-protection in async mode, collected by `PAGEMAP_SCAN`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use novacron_core::PAGE_BYTES;

use crate::mapping::GuestMapping;
use crate::userfault::{FaultMode, Userfault};
use crate::MemoryError;

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: u64 = 0xC060_6610;
const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 2;
const PAGE_IS_WRITTEN: u64 = 2;
const PAGE_IS_PRESENT: u64 = 8;
/// Regions taken in one call: 384 KiB of them, so that even a scattered dirty set needs few calls.
const REGIONS_MAX: usize = 16_384;
/// A chunk of 256 pages has at most 128 runs.
const MARKED_REGIONS_MAX: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_max: u64,
    pages_max: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Which pages a pass looks for: those in the category, or those outside of it.
#[derive(Clone, Copy)]
struct Wanted {
    inverted: u64,
    category: u64,
}

impl Wanted {
    fn plain(category: u64) -> Self {
        Self { inverted: 0, category }
    }
}

/// What one pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanTotals {
    pub pages: u64,
    pub regions: u64,
}

/// The dirty tracking of one guest, from outside its VMM.
pub struct DirtyTracker {
    pagemap: File,
    userfault: Userfault,
    mapping: GuestMapping,
    regions: Vec<Region>,
    registered: bool,
}

impl DirtyTracker {
    /// Registers the guest's memory for write tracking; nothing is armed before the first
    /// `collect`, which reports every page and means nothing but "armed".
    pub fn start(pid: i32, path: &Path, memory_bytes: u64) -> Result<Self, MemoryError> {
        let mapping = GuestMapping::find(pid, path, memory_bytes)?;
        let pagemap = open_pagemap(pid)?;
        let userfault = Userfault::obtain(pid)?;
        userfault.register(&mapping, FaultMode::TrackWrites)?;
        let regions = vec![Region::default(); REGIONS_MAX];
        Ok(Self { pagemap, userfault, mapping, regions, registered: true })
    }

    /// Reports pages written since the last call as (first page, count), and protects them again.
    pub fn collect(&mut self, each: impl FnMut(u64, u64)) -> Result<ScanTotals, MemoryError> {
        self.scan(WP_MATCHING | CHECK_WPASYNC, each)
    }

    /// Counts pages written since the last `collect` and leaves them written.
    pub fn peek(&mut self) -> Result<ScanTotals, MemoryError> {
        self.scan(CHECK_WPASYNC, |_, _| {})
    }

    /// A view of the marks for another thread; it never changes one.
    pub fn marks(&self) -> Result<WriteMarks, MemoryError> {
        let pagemap = self.pagemap.try_clone().map_err(MemoryError::system("sharing the pagemap"))?;
        let regions = vec![Region::default(); MARKED_REGIONS_MAX];
        Ok(WriteMarks { pagemap, mapping: self.mapping.clone(), regions })
    }

    /// Reports pages of `first..first + count` that the VMM has not mapped, as (first page, count).
    pub fn unmapped(
        &mut self,
        (first, count): (u64, u64),
        mut each: impl FnMut(u64, u64),
    ) -> Result<(), MemoryError> {
        let wanted = Wanted { inverted: PAGE_IS_PRESENT, category: PAGE_IS_PRESENT };
        for (page, address, length) in self.mapping.spans(first, count) {
            let span = (address, length);
            scan_range(&self.pagemap, &mut self.regions, 0, wanted, span, |start, end| {
                let size = PAGE_BYTES as u64;
                each(page + (start - address) / size, (end - start) / size);
            })?;
        }
        Ok(())
    }

    /// Leaves the registration to whoever waits for missing pages by it.
    pub fn leave(&mut self) {
        self.registered = false;
    }

    /// Ends tracking; the guest runs on without faults. Repeating it does nothing.
    pub fn stop(&mut self) -> Result<(), MemoryError> {
        if !std::mem::take(&mut self.registered) {
            return Ok(());
        }
        match self.userfault.unregister(&self.mapping) {
            // ESRCH: the VMM is gone, and its tracking with it.
            Err(MemoryError::System { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENOMEM)) => Ok(()),
            other => other,
        }
    }

    fn scan(
        &mut self,
        flags: u64,
        mut each: impl FnMut(u64, u64),
    ) -> Result<ScanTotals, MemoryError> {
        let mut totals = ScanTotals::default();
        for range in self.mapping.ranges() {
            let found = scan_range(
                &self.pagemap, &mut self.regions, flags, Wanted::plain(PAGE_IS_WRITTEN),
                (range.address, range.length),
                |start, end| {
                    let first = (range.file_offset + (start - range.address)) / PAGE_BYTES as u64;
                    each(first, (end - start) / PAGE_BYTES as u64);
                },
            )?;
            totals.pages += found.pages;
            totals.regions += found.regions;
        }
        Ok(totals)
    }
}

/// What the guest has written since the last `collect`, for a thread beside the tracker's.
pub struct WriteMarks {
    pagemap: File,
    mapping: GuestMapping,
    regions: Vec<Region>,
}

impl WriteMarks {
    /// Reports pages of `first..first + count` that are marked now, as (first page, count);
    /// the next `collect` reports them, too.
    pub fn written(
        &mut self,
        (first, count): (u64, u64),
        mut each: impl FnMut(u64, u64),
    ) -> Result<(), MemoryError> {
        let wanted = Wanted::plain(PAGE_IS_WRITTEN);
        for (page, address, length) in self.mapping.spans(first, count) {
            let span = (address, length);
            let regions = &mut self.regions;
            scan_range(&self.pagemap, regions, CHECK_WPASYNC, wanted, span, |start, end| {
                let size = PAGE_BYTES as u64;
                each(page + (start - address) / size, (end - start) / size);
            })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for WriteMarks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteMarks").field("mapping", &self.mapping).finish_non_exhaustive()
    }
}

impl Drop for DirtyTracker {
    fn drop(&mut self) {
        // An error here means that the VMM is gone.
        let _ = self.stop();
    }
}

impl std::fmt::Debug for DirtyTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirtyTracker").field("mapping", &self.mapping).finish_non_exhaustive()
    }
}

/// Pages of the guest that a process has mapped already, as (first page, count).
pub fn pages_mapped_by(
    pid: i32,
    mapping: &GuestMapping,
    mut each: impl FnMut(u64, u64),
) -> Result<(), MemoryError> {
    let pagemap = open_pagemap(pid)?;
    let mut regions = vec![Region::default(); REGIONS_MAX];
    for range in mapping.ranges() {
        let span = (range.address, range.length);
        scan_range(&pagemap, &mut regions, 0, Wanted::plain(PAGE_IS_PRESENT), span, |start, end| {
            let first = (range.file_offset + (start - range.address)) / PAGE_BYTES as u64;
            each(first, (end - start) / PAGE_BYTES as u64);
        })?;
    }
    Ok(())
}

fn open_pagemap(pid: i32) -> Result<File, MemoryError> {
    File::open(format!("/proc/{pid}/pagemap"))
        .map_err(MemoryError::system("opening the pagemap of the VMM"))
}

fn scan_range(
    pagemap: &File,
    regions: &mut [Region],
    flags: u64,
    wanted: Wanted,
    (address, length): (u64, u64),
    mut each: impl FnMut(u64, u64),
) -> Result<ScanTotals, MemoryError> {
    let (mut at, end) = (address, address + length);
    let mut totals = ScanTotals::default();
    while at < end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            flags,
            start: at,
            end,
            regions: regions.as_mut_ptr() as u64,
            regions_max: regions.len() as u64,
            category_inverted: wanted.inverted,
            category_mask: wanted.category,
            return_mask: wanted.category,
            ..ScanArgument::default()
        };
        // SAFETY: the argument has the size it names; `regions` has `regions_max` elements of the
        // kernel's layout; both live across the call.
        let found = unsafe {
            libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument)
        };
        if found < 0 {
            let error = std::io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EPERM) => MemoryError::TrackingLost,
                Some(libc::ENOTTY) => {
                    MemoryError::Unsupported("the kernel has no PAGEMAP_SCAN (Linux 6.7)".into())
                }
                _ => MemoryError::System { what: "scanning guest memory", source: error },
            });
        }
        for region in &regions[..found as usize] {
            totals.pages += (region.end - region.start) / PAGE_BYTES as u64;
            each(region.start, region.end);
        }
        totals.regions += found as u64;
        if argument.walk_end <= at {
            return Err(MemoryError::TrackingLost);
        }
        at = argument.walk_end;
    }
    Ok(totals)
}
