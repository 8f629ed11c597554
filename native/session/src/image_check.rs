//! Compares a memory file with what was sent, or received, of it: page by page, with a few threads
//! that stay out of the way.
//!
//! The digests that the lanes keep of each page say what went over; hashing the image anew says
//! what is there. Where the two differ stands a page that dirty tracking missed, or that was read,
//! decoded or stored wrong. Which side asks, and what follows, is decided elsewhere.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use novacron_core::digest::{DigestTable, PageHasher};
use novacron_core::frame::Checked;
use novacron_core::pages::PageSet;
use novacron_core::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::{MemoryFile, is_zero_page};

use crate::completion::lock;
use crate::failure::{Failure, FailureCode};
use crate::page_bits::{PageBits, chunk_count, pages_of_chunk};

/// More threads would only take memory bandwidth from guests.
const THREADS_MAX: usize = 4;
/// Part of its core that a thread takes beside running guests, as long as that is enough.
const DUTY_MIN: f64 = 0.25;
/// A check beside guests aims to be over by then: Settle waits for it, a minute at most.
const AIM: Duration = Duration::from_secs(20);
/// Bytes that one thread hashes in a second on a slow core, for the duty alone.
const HASHED_BYTES_PER_SECOND: f64 = 1e9;

/// Whether and when the images of a move are compared with what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exactness {
    /// In the blackout: what is wrong is sent again before the target starts.
    BeforeResume,
    /// Beside the running guest, whose writes are tracked from before its start.
    #[default]
    AfterResume,
    /// Only what was sent is compared with what was received.
    Off,
}

/// The digests of one lane's pages: written by its lane, read by a check.
#[derive(Clone)]
pub(crate) struct LaneTable(Arc<Mutex<DigestTable>>);

impl LaneTable {
    pub(crate) fn new(page_count: usize) -> Self {
        Self(Arc::new(Mutex::new(DigestTable::new(page_count))))
    }

    pub(crate) fn replace(&self, index: usize, contribution: u128) {
        lock(&self.0).replace(index, contribution);
    }

    pub(crate) fn is_zero(&self, index: usize) -> bool {
        lock(&self.0).is_zero(index)
    }

    pub(crate) fn get(&self, index: usize) -> u128 {
        lock(&self.0).get(index)
    }

    pub(crate) fn sum(&self) -> u128 {
        lock(&self.0).sum()
    }
}

/// How much of the machine a comparison may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Nobody runs, everybody waits.
    Full,
    /// Guests run: in a group of a raised runner no nice value holds a thread back, a pause does.
    BesideGuests,
}

/// One comparison of a whole image.
pub(crate) struct Comparison<'a> {
    pub(crate) memory: &'a MemoryFile,
    /// One a lane.
    pub(crate) tables: &'a [LaneTable],
    pub(crate) pace: Pace,
    /// Pages of a chunk that have another witness.
    pub(crate) leave_out: &'a (dyn Fn(usize) -> PageSet + Sync),
    pub(crate) ended: &'a (dyn Fn() -> bool + Sync),
    /// Grows while it runs.
    pub(crate) done_pages: &'a AtomicU64,
}

impl Comparison<'_> {
    /// Calls `differ(chunk, pages)` for what is not as it was sent; `None` when the session ended.
    pub(crate) fn run(
        &self,
        differ: &(dyn Fn(usize, PageSet) + Sync),
    ) -> Result<Option<Checked>, Failure> {
        let began = Instant::now();
        let data = PageBits::new(self.memory.length());
        let size = PAGE_BYTES as u64;
        self.memory.data_extents(|offset, length| {
            data.insert_run(offset / size, length.div_ceil(size));
        })?;
        let (next, cpu_micros, wrong) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let count = |chunk, pages: PageSet| {
            wrong.fetch_add(pages.count() as u64, Ordering::Relaxed);
            differ(chunk, pages);
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let work = || {
            be_nice();
            let worked = Worker::new(self, &data).work(&next, self.rest(threads), &count);
            cpu_micros.fetch_add(thread_cpu_time().as_micros() as u64, Ordering::Relaxed);
            worked
        };
        thread::scope(|scope| {
            let mut workers = Vec::new();
            for index in 0..threads {
                let name = format!("check-{index}");
                workers.push(thread::Builder::new().name(name).spawn_scoped(scope, work)
                    .map_err(|error| {
                        Failure::new(FailureCode::EngineFailed, format!("no thread: {error}"))
                    })?);
            }
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| {
                Err(Failure::new(FailureCode::Internal, "a check panicked"))
            }))
        })?;
        if (self.ended)() {
            return Ok(None);
        }
        Ok(Some(Checked {
            pages: self.memory.length() / size,
            wrong: wrong.into_inner(),
            wall_micros: began.elapsed().as_micros() as u64,
            cpu_micros: cpu_micros.into_inner(),
        }))
    }

    /// Pause after work, as a multiple of the work.
    fn rest(&self, threads: usize) -> f64 {
        if self.pace == Pace::Full {
            return 0.0;
        }
        let seconds = self.memory.length() as f64 / HASHED_BYTES_PER_SECOND / threads as f64;
        let duty = (seconds / AIM.as_secs_f64()).clamp(DUTY_MIN, 1.0);
        1.0 / duty - 1.0
    }
}

/// One thread of a comparison.
struct Worker<'a> {
    of: &'a Comparison<'a>,
    data: &'a PageBits,
    hasher: PageHasher,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(of: &'a Comparison<'a>, data: &'a PageBits) -> Self {
        Self { of, data, hasher: PageHasher::new(), buffer: vec![0; CHUNK_BYTES] }
    }

    fn work(
        mut self,
        next: &AtomicUsize,
        rest: f64,
        differ: &dyn Fn(usize, PageSet),
    ) -> Result<(), Failure> {
        let chunks = chunk_count(self.of.memory.length());
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks || (self.of.ended)() {
                return Ok(());
            }
            let began = thread_cpu_time();
            let wrong = self.compare(chunk)?;
            if !wrong.is_empty() {
                differ(chunk, wrong);
            }
            self.of.done_pages.fetch_add(CHUNK_PAGES as u64, Ordering::Relaxed);
            if rest > 0.0 {
                thread::sleep((thread_cpu_time() - began).mul_f64(rest));
            }
        }
    }

    /// Pages of the chunk that are not what its table says; 0 there stands for zeros and holes.
    fn compare(&mut self, chunk: usize) -> Result<PageSet, Failure> {
        let existing = pages_of_chunk(chunk, self.of.memory.length());
        let looked_at = existing.difference(&(self.of.leave_out)(chunk));
        let lanes = self.of.tables.len();
        let mut expected = [0; CHUNK_PAGES];
        {
            let table = lock(&self.of.tables[chunk % lanes].0);
            expected.copy_from_slice(table.entries(chunk / lanes * CHUNK_PAGES, CHUNK_PAGES));
        }
        let (mut numbers, mut kept) = ([0; CHUNK_PAGES], 0);
        for (first, count) in looked_at.intersection(&self.data.get(chunk)).runs() {
            let (from, length) = (kept * PAGE_BYTES, count * PAGE_BYTES);
            let offset = (chunk * CHUNK_BYTES + first * PAGE_BYTES) as u64;
            self.of.memory.read(&mut self.buffer[from..from + length], offset)?;
            for page in 0..count {
                let at = from + page * PAGE_BYTES;
                if self.buffer[at..].first_chunk().is_some_and(is_zero_page) {
                    continue;
                }
                self.buffer.copy_within(at..at + PAGE_BYTES, kept * PAGE_BYTES);
                numbers[kept] = (chunk * CHUNK_PAGES + first + page) as u64;
                kept += 1;
            }
        }
        let mut found = [0; CHUNK_PAGES];
        let bytes = &self.buffer[..kept * PAGE_BYTES];
        self.hasher.contributions(bytes, &numbers[..kept], |index, value| {
            found[numbers[index] as usize % CHUNK_PAGES] = value;
        });
        let mut wrong = PageSet::EMPTY;
        looked_at.iter().filter(|page| found[*page] != expected[*page])
            .for_each(|page| wrong.insert(page));
        Ok(wrong)
    }
}

/// The calling thread gives way to everything else of its group.
fn be_nice() {
    // SAFETY: gettid and setpriority take no pointers. Without effect where it is refused.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, libc::gettid() as libc::id_t, 19);
    }
}

fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives across the call; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const CHUNKS: usize = 5;
    const PAGES: usize = (CHUNKS - 1) * CHUNK_PAGES + 3;

    fn image(name: &str) -> (std::path::PathBuf, File) {
        let path = std::env::temp_dir();
        let path = path.join(format!("novacron-check-{}-{name}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.expect("a file");
        file.set_len((PAGES * PAGE_BYTES) as u64).expect("its size");
        (path, file)
    }

    fn content(page: usize) -> Vec<u8> {
        (0..PAGE_BYTES).map(|at| (at ^ page.wrapping_mul(31)) as u8 | 1).collect()
    }

    /// What the lanes would have noted of every third page.
    fn tables(lanes: usize) -> Vec<LaneTable> {
        let tables: Vec<_> =
            (0..lanes).map(|_| LaneTable::new(CHUNKS.div_ceil(lanes) * CHUNK_PAGES)).collect();
        for page in (0..PAGES).step_by(3) {
            let chunk = page / CHUNK_PAGES;
            PageHasher::new().contributions(&content(page), &[page as u64], |_, value| {
                let index = chunk / lanes * CHUNK_PAGES + page % CHUNK_PAGES;
                tables[chunk % lanes].replace(index, value);
            });
        }
        tables
    }

    fn wrong_pages(path: &std::path::Path, lanes: usize, leave_out: Option<usize>) -> Vec<usize> {
        let memory = MemoryFile::open_source(path, (PAGES * PAGE_BYTES) as u64).expect("open");
        let found = Mutex::new(Vec::new());
        let done = AtomicU64::new(0);
        let comparison = Comparison {
            memory: &memory,
            tables: &tables(lanes),
            pace: Pace::Full,
            leave_out: &|chunk| {
                let mut set = PageSet::EMPTY;
                leave_out.filter(|page| page / CHUNK_PAGES == chunk)
                    .inspect(|page| set.insert(page % CHUNK_PAGES));
                set
            },
            ended: &|| false,
            done_pages: &done,
        };
        let checked = comparison.run(&|chunk, pages| {
            lock(&found).extend(pages.iter().map(|page| chunk * CHUNK_PAGES + page));
        });
        let checked = checked.expect("it reads").expect("it was not ended");
        let mut found = found.into_inner().expect("no panic");
        found.sort_unstable();
        assert_eq!((checked.pages, checked.wrong), (PAGES as u64, found.len() as u64));
        assert!(done.into_inner() >= PAGES as u64);
        found
    }

    #[test]
    fn every_kind_of_difference_is_found_by_its_page_number() {
        for lanes in [1, 2, 3, 8] {
            let (path, file) = image(&format!("kinds-{lanes}"));
            for page in (0..PAGES).step_by(3) {
                file.write_all_at(&content(page), (page * PAGE_BYTES) as u64).expect("written");
            }
            assert_eq!(wrong_pages(&path, lanes, None), []);
            // One bit; data where zeros belong; zeros where data belongs; the last page.
            let mut bytes = content(300);
            bytes[4095] ^= 0x80;
            file.write_all_at(&bytes, 300 * 4096).expect("written");
            file.write_all_at(&content(1), 4096).expect("written");
            file.write_all_at(&[0; 4096], 600 * 4096).expect("written");
            file.write_all_at(&[9; 4096], ((PAGES - 1) * 4096) as u64).expect("written");
            assert_eq!(wrong_pages(&path, lanes, None), [1, 300, 600, PAGES - 1]);
            assert_eq!(wrong_pages(&path, lanes, Some(300)), [1, 600, PAGES - 1]);
            std::fs::remove_file(path).expect("removed");
        }
    }
}
