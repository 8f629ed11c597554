//! Where a process maps a memory file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use novacron_core::PAGE_BYTES;

use crate::MemoryError;

/// A part of the file and where the process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRange {
    pub file_offset: u64,
    pub address: u64,
    pub length: u64,
}

/// All of a memory file as one process maps it, ordered by file offset, without gaps.
#[derive(Clone, Debug)]
pub struct GuestMapping {
    ranges: Vec<MappedRange>,
}

impl GuestMapping {
    /// Finds the file (by device and inode) in /proc/PID/maps. Refuses private mappings, gaps,
    /// and parts that are mapped twice: writes through the second mapping would not be seen.
    pub fn find(pid: i32, path: &Path, memory_bytes: u64) -> Result<Self, MemoryError> {
        let meta = fs::metadata(path).map_err(MemoryError::system("stat of the memory file"))?;
        if meta.len() != memory_bytes {
            let size = meta.len();
            return Err(MemoryError::Mapping(format!(
                "the memory file has {size} bytes, the VM {memory_bytes}"
            )));
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
            .map_err(MemoryError::system("reading the maps of the VMM"))?;
        let device = (libc::major(meta.dev()), libc::minor(meta.dev()));
        Self::from_maps(&maps, device, meta.ino(), memory_bytes)
    }

    fn from_maps(
        maps: &str,
        device: (u32, u32),
        inode: u64,
        memory_bytes: u64,
    ) -> Result<Self, MemoryError> {
        let mut ranges: Vec<MappedRange> = Vec::new();
        for line in maps.lines() {
            let Some(entry) = Entry::parse(line) else { continue };
            if entry.device != device || entry.inode != inode {
                continue;
            }
            if !entry.shared {
                return Err(MemoryError::Mapping("the memory file is mapped privately".into()));
            }
            ranges.push(entry.range);
        }
        ranges.sort_by_key(|range| range.file_offset);
        let mut end = 0;
        for range in &ranges {
            if range.file_offset != end {
                let problem = if range.file_offset < end { "twice" } else { "with a gap" };
                return Err(MemoryError::Mapping(format!(
                    "the VMM maps the memory file {problem} at offset {:#x}",
                    range.file_offset
                )));
            }
            end += range.length;
        }
        if end != memory_bytes {
            return Err(MemoryError::Mapping(format!(
                "the VMM maps {end} of {memory_bytes} bytes of the memory file"
            )));
        }
        Ok(Self { ranges: merge(ranges) })
    }

    /// The parts, ordered by file offset.
    pub fn ranges(&self) -> &[MappedRange] {
        &self.ranges
    }

    /// Page number in the file of an address in the process.
    pub fn page_of(&self, address: u64) -> Option<u64> {
        let inside = |range: &&MappedRange| {
            address.checked_sub(range.address).is_some_and(|offset| offset < range.length)
        };
        let range = self.ranges.iter().find(inside)?;
        Some((range.file_offset + (address - range.address)) / PAGE_BYTES as u64)
    }

    /// Parts of the process's address space that show pages `first..first + count`, as
    /// (first page, address, bytes).
    pub fn spans(&self, first: u64, count: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let page = PAGE_BYTES as u64;
        let (start, end) = (first * page, (first + count) * page);
        self.ranges.iter().filter_map(move |range| {
            let from = start.max(range.file_offset);
            let to = end.min(range.file_offset + range.length);
            (from < to).then(|| (from / page, range.address + (from - range.file_offset), to - from))
        })
    }
}

/// Joins parts that are neighbours both in the file and in the address space.
fn merge(ranges: Vec<MappedRange>) -> Vec<MappedRange> {
    let mut merged: Vec<MappedRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.address + last.length == range.address => last.length += range.length,
            _ => merged.push(range),
        }
    }
    merged
}

struct Entry {
    range: MappedRange,
    shared: bool,
    device: (u32, u32),
    inode: u64,
}

impl Entry {
    /// "start-end perms offset major:minor inode path"
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let file_offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let inode = fields.next()?.parse().ok()?;
        let address = u64::from_str_radix(start, 16).ok()?;
        let length = u64::from_str_radix(end, 16).ok()?.checked_sub(address)?;
        Some(Self {
            range: MappedRange { file_offset, address, length },
            shared: permissions.ends_with('s'),
            device: (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?),
            inode,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000100000 rw-s 00000000 00:19 77 /dev/shm/ram
7f0000100000-7f0000180000 rw-s 00100000 00:19 77 /dev/shm/ram
7f0100000000-7f0100080000 rw-s 00180000 00:19 77 /dev/shm/ram
7f0200000000-7f0200001000 r-xp 00000000 08:01 5 /usr/lib/libc.so.6
7f0300000000-7f0300001000 rw-p 00000000 00:00 0 ";

    #[test]
    fn split_mappings_are_joined_and_found() {
        let mapping = GuestMapping::from_maps(MAPS, (0, 0x19), 77, 0x20_0000).expect("mapped");
        assert_eq!(mapping.ranges().len(), 2);
        assert_eq!(mapping.page_of(0x7f00_0017_f000), Some(0x17f));
        assert_eq!(mapping.page_of(0x7f01_0000_0000), Some(0x180));
        assert_eq!(mapping.page_of(0x7f01_0008_0000), None);
        let spans: Vec<_> = mapping.spans(0x17f, 2).collect();
        assert_eq!(spans, [(0x17f, 0x7f00_0017_f000, 4096), (0x180, 0x7f01_0000_0000, 4096)]);
    }

    #[test]
    fn gaps_doubles_and_private_mappings_are_refused() {
        let short = GuestMapping::from_maps(MAPS, (0, 0x19), 77, 0x40_0000);
        assert!(matches!(short, Err(MemoryError::Mapping(_))));
        let twice = format!("{MAPS}\n7f0400000000-7f0400001000 rw-s 00000000 00:19 77 /x");
        assert!(GuestMapping::from_maps(&twice, (0, 0x19), 77, 0x20_0000).is_err());
        let private = MAPS.replace("rw-s 00100000", "rw-p 00100000");
        assert!(GuestMapping::from_maps(&private, (0, 0x19), 77, 0x20_0000).is_err());
        assert!(GuestMapping::from_maps("garbage\n\n-- - -", (0, 0x19), 77, 0x1000).is_err());
    }
}
