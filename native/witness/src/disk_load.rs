//! A self-checking area on the data disk: written at a set rate past the page cache, made durable
//! by fdatasync after every megabyte, and read back and checked.
//!
//! Decides what is written where; leaves the content of a block to `pattern`. The expected
//! generations are in memory only: the area starts anew at each boot.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::memory_load::Counters;
use crate::pattern::{self, Choice, PAGE_BYTES, Page, PageShare};

/// Pages a chunk: 64 KiB, small enough for 100 durable writes a second on a slow disk.
const CHUNK_PAGES: u32 = 16;
/// Chunks between two flushes: a flush a chunk would make the flush the rate, 2 MB/s on a busy disk.
const CHUNKS_PER_FLUSH: u32 = 16;
/// One chunk in so many is read back from the disk and checked at each write.
const READS_PER_WRITE: u32 = 1;

/// Settings of the disk load that other threads may change.
#[derive(Default)]
pub(crate) struct DiskPlan {
    pub(crate) rate_bytes_per_second: AtomicU64,
}

struct DiskLoad {
    file: File,
    seed: u64,
    chunk_count: u32,
    generations: Vec<u32>,
    unflushed: u32,
    choice: Choice,
    chunk: Vec<Page>,
    counters: Arc<Counters>,
}

/// Runs for ever; returns only when the disk refuses.
pub(crate) fn run(
    path: &Path, bytes: u64, seed: u64, plan: &DiskPlan, counters: Arc<Counters>,
) -> io::Result<()> {
    let mut load = DiskLoad::new(path, bytes, seed, counters)?;
    loop {
        let rate = plan.rate_bytes_per_second.load(Relaxed);
        if rate == 0 {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let started = Instant::now();
        load.step()?;
        let due = Duration::from_secs_f64(chunk_bytes() as f64 / rate as f64);
        if let Some(rest) = due.checked_sub(started.elapsed()) {
            std::thread::sleep(rest);
        }
    }
}

const fn chunk_bytes() -> u64 {
    CHUNK_PAGES as u64 * PAGE_BYTES as u64
}

impl DiskLoad {
    fn new(path: &Path, bytes: u64, seed: u64, counters: Arc<Counters>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true).write(true).create(true).truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let chunk_count = (bytes / chunk_bytes()).max(1) as u32;
        let generations = vec![0; chunk_count as usize];
        let chunk = vec![Page::zeroed(); CHUNK_PAGES as usize];
        Ok(Self {
            file, seed, chunk_count, generations, unflushed: 0, choice: Choice::new(seed), chunk,
            counters,
        })
    }

    fn step(&mut self) -> io::Result<()> {
        let target = self.choice.below(self.chunk_count);
        self.write_chunk(target)?;
        for _ in 0..READS_PER_WRITE {
            let looked_at = self.choice.below(self.chunk_count);
            self.check_chunk(looked_at)?;
        }
        Ok(())
    }

    fn write_chunk(&mut self, number: u32) -> io::Result<()> {
        let generation = self.generations[number as usize];
        let mut next = generation;
        for (page, words) in (number * CHUNK_PAGES..).zip(self.chunk.iter_mut()) {
            next = pattern::rewrite(words, self.seed, page, generation, PageShare::Full);
        }
        self.file.write_all_at(as_bytes(&self.chunk), u64::from(number) * chunk_bytes())?;
        self.unflushed += 1;
        if self.unflushed >= CHUNKS_PER_FLUSH {
            self.file.sync_data()?;
            self.unflushed = 0;
        }
        self.generations[number as usize] = next;
        self.counters.disk_bytes_written.fetch_add(chunk_bytes(), Relaxed);
        Ok(())
    }

    fn check_chunk(&mut self, number: u32) -> io::Result<()> {
        let generation = self.generations[number as usize];
        if generation == 0 {
            return Ok(());
        }
        self.file.read_exact_at(as_bytes_mut(&mut self.chunk), u64::from(number) * chunk_bytes())?;
        for (page, words) in (number * CHUNK_PAGES..).zip(self.chunk.iter()) {
            if let Err(damage) = pattern::check(words, self.seed, page, generation) {
                self.counters.disk_failures.fetch_add(1, Relaxed);
                println!("witness: disk page {page} is damaged: {damage:?}");
            }
        }
        self.counters.disk_bytes_checked.fetch_add(chunk_bytes(), Relaxed);
        Ok(())
    }
}

fn as_bytes(pages: &[Page]) -> &[u8] {
    // SAFETY: Page is repr(C) of u64 without padding (4096 bytes, align 4096), so every byte of
    // the slice is initialised; the borrow is carried over.
    unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), std::mem::size_of_val(pages)) }
}

fn as_bytes_mut(pages: &mut [Page]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are a valid Page.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), std::mem::size_of_val(pages)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_disk_write_is_found() {
        let path = std::env::temp_dir().join(format!("witness-disk-{}", std::process::id()));
        let counters = Arc::new(Counters::default());
        // A file system without O_DIRECT (old tmpfs) can't run this check.
        let Ok(mut load) = DiskLoad::new(&path, 4 << 20, 9, Arc::clone(&counters)) else {
            println!("skipped: {} takes no O_DIRECT", path.display());
            return;
        };
        for number in 0..load.chunk_count {
            load.write_chunk(number).expect("written");
            load.check_chunk(number).expect("read");
        }
        assert_eq!(counters.disk_failures.load(Relaxed), 0);
        load.generations[5] += 8;
        load.check_chunk(5).expect("read");
        assert_eq!(counters.disk_failures.load(Relaxed), u64::from(CHUNK_PAGES));
        drop(load);
        std::fs::remove_file(&path).expect("removed");
    }
}
