//! A self-checking area on the data disk: written at a set rate past the page cache, made durable
//! by fdatasync after every few megabytes, and read back and checked.
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

/// Pages a chunk: 256 KiB, so that an emulated guest's cost a request does not bound the rate.
const CHUNK_PAGES: u32 = 64;
/// Chunks between two flushes (4 MiB): a flush a chunk would make the flush the rate.
const CHUNKS_PER_FLUSH: u32 = 16;
/// Writes for each chunk that is read back from the disk and checked: half the load is no reading.
const WRITES_PER_READ: u32 = 4;
/// What a slow flush or a busy host cost is made up for up to here; more would be a burst.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);

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
    unread: u32,
    choice: Choice,
    chunk: Vec<Page>,
    counters: Arc<Counters>,
}

/// Runs for ever; returns only when the disk refuses.
pub(crate) fn run(
    path: &Path, bytes: u64, seed: u64, plan: &DiskPlan, counters: Arc<Counters>,
) -> io::Result<()> {
    let mut load = DiskLoad::new(path, bytes, seed, counters)?;
    let mut due = Instant::now();
    loop {
        let rate = plan.rate_bytes_per_second.load(Relaxed);
        if rate == 0 {
            std::thread::sleep(Duration::from_millis(50));
            due = Instant::now();
            continue;
        }
        load.step()?;
        let now = Instant::now();
        due = next_due(due, now, rate);
        std::thread::sleep(due.saturating_duration_since(now));
    }
}

/// When the next chunk is due: by the rate from when this one was, never far in the past.
fn next_due(due: Instant, now: Instant, rate_bytes_per_second: u64) -> Instant {
    let next = due + Duration::from_secs_f64(chunk_bytes() as f64 / rate_bytes_per_second as f64);
    now.checked_sub(CATCH_UP_MAX).map_or(next, |earliest| next.max(earliest))
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
            file, seed, chunk_count, generations, unflushed: 0, unread: 0,
            choice: Choice::new(seed), chunk, counters,
        })
    }

    fn step(&mut self) -> io::Result<()> {
        let target = self.choice.below(self.chunk_count);
        self.write_chunk(target)?;
        self.unread += 1;
        if self.unread >= WRITES_PER_READ {
            self.unread = 0;
            let any = self.choice.below(self.chunk_count);
            let was_written = self.generations[any as usize] != 0;
            self.check_chunk(if was_written { any } else { target })?;
        }
        Ok(())
    }

    fn write_chunk(&mut self, number: u32) -> io::Result<()> {
        let generation = self.generations[number as usize];
        let mut next = generation;
        for (page, words) in (number * CHUNK_PAGES..).zip(self.chunk.iter_mut()) {
            next = pattern::rewrite(words, self.seed, page, generation, PageShare::Full);
        }
        self.file.write_all_at(pattern::as_bytes(&self.chunk), u64::from(number) * chunk_bytes())?;
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
        let chunk = pattern::as_bytes_mut(&mut self.chunk);
        self.file.read_exact_at(chunk, u64::from(number) * chunk_bytes())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_lost_is_made_up_for_but_not_all_of_it() {
        let start = Instant::now();
        let chunk = Duration::from_secs_f64(chunk_bytes() as f64 / 20e6);
        assert_eq!(next_due(start, start + chunk / 2, 20_000_000), start + chunk, "waits for it");
        let late = start + Duration::from_millis(100);
        assert_eq!(next_due(start, late, 20_000_000), start + chunk, "at once, then later");
        let later = start + Duration::from_secs(5);
        assert_eq!(next_due(start, later + CATCH_UP_MAX, 20_000_000), later, "not all of it");
    }

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
