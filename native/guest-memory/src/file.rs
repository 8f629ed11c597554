//! The memory file itself: reads without a mapping, writes, holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::MemoryError;

/// A guest's memory file, opened for one side of a move.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    length: u64,
}

impl MemoryFile {
    /// The source's side: never written, never mapped.
    pub fn open_source(path: &Path, memory_bytes: u64) -> Result<Self, MemoryError> {
        Self::open(OpenOptions::new().read(true), path, memory_bytes)
    }

    /// The target's side. The caller empties it with `discard_all` before a move.
    pub fn open_target(path: &Path, memory_bytes: u64) -> Result<Self, MemoryError> {
        Self::open(OpenOptions::new().read(true).write(true), path, memory_bytes)
    }

    fn open(options: &OpenOptions, path: &Path, length: u64) -> Result<Self, MemoryError> {
        let file = options.open(path).map_err(MemoryError::system("opening the memory file"))?;
        let meta = file.metadata().map_err(MemoryError::system("stat of the memory file"))?;
        if meta.len() != length {
            let size = meta.len();
            return Err(MemoryError::Mapping(format!(
                "the memory file has {size} bytes, the VM {length}"
            )));
        }
        Ok(Self { file, length })
    }

    /// Bytes of guest memory.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that the file really takes; holes take none.
    pub fn allocated_bytes(&self) -> Result<u64, MemoryError> {
        let meta = self.file.metadata().map_err(MemoryError::system("stat of the memory file"))?;
        Ok(meta.blocks() * 512)
    }

    /// Fills the buffer from `offset`; holes read as zeros and stay holes.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), MemoryError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(MemoryError::system("reading guest memory"))
    }

    /// Writes pages at `offset`.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<(), MemoryError> {
        self.file.write_all_at(bytes, offset).map_err(MemoryError::system("writing guest memory"))
    }

    /// Gives a page of zeros to every hole of a part; what is there stays, also what a guest writes
    /// at this very moment.
    pub fn fill_holes(&self, offset: u64, length: u64) -> Result<(), MemoryError> {
        allocate(&self.file, libc::FALLOC_FL_KEEP_SIZE, (offset, length))
            .map_err(MemoryError::system("filling a hole of guest memory"))
    }

    /// Makes a part a hole again, also where a process has it mapped; it reads as zeros.
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), MemoryError> {
        discard_range(&self.file, offset, length)
    }

    /// Makes all of it a hole, unless it is one.
    pub fn discard_all(&self) -> Result<(), MemoryError> {
        if self.allocated_bytes()? == 0 { Ok(()) } else { self.discard(0, self.length) }
    }

    /// Calls `each(offset, length)` for every part that holds data, ascending.
    pub fn data_extents(&self, mut each: impl FnMut(u64, u64)) -> Result<(), MemoryError> {
        let mut at = 0;
        while at < self.length {
            let Some(start) = self.seek(at, libc::SEEK_DATA)? else { break };
            let end = self.seek(start, libc::SEEK_HOLE)?.unwrap_or(self.length);
            each(start, end.min(self.length).saturating_sub(start));
            at = end;
        }
        Ok(())
    }

    /// Calls `each(offset, length)` for every hole inside a part, ascending.
    pub fn holes_in(
        &self,
        offset: u64,
        length: u64,
        mut each: impl FnMut(u64, u64),
    ) -> Result<(), MemoryError> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let hole = self.seek(at, libc::SEEK_HOLE)?.unwrap_or(end);
            if hole >= end {
                break;
            }
            let data = self.seek(hole, libc::SEEK_DATA)?.unwrap_or(end).min(end);
            each(hole, data - hole);
            at = data;
        }
        Ok(())
    }

    /// `None` when nothing of that kind follows.
    fn seek(&self, from: u64, whence: i32) -> Result<Option<u64>, MemoryError> {
        // SAFETY: lseek takes no pointers; the descriptor is ours.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), from as i64, whence) };
        if found >= 0 {
            return Ok(Some(found as u64));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENXIO) {
            return Ok(None);
        }
        Err(MemoryError::System { what: "looking for holes", source: error })
    }
}

/// Punches a hole; the file keeps its size.
pub fn discard_range(file: &File, offset: u64, length: u64) -> Result<(), MemoryError> {
    allocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, (offset, length))
        .map_err(MemoryError::system("punching a hole into guest memory"))
}

fn allocate(file: &File, mode: i32, (offset, length): (u64, u64)) -> io::Result<()> {
    // SAFETY: fallocate takes no pointers; the descriptor is ours.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
