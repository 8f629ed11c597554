//! What a post-copy target must not forget when its process dies: which pages were missing, which
//! of them have arrived, and what each of those adds to the digest.
//!
//! A file beside the guest's memory, written in this order for every page: the page itself, its
//! contribution, its arrived bit; only then is it mapped into the VMM. So a page whose bit is set
//! has arrived whole, and a page whose bit is not set was never seen by the guest, which can't have
//! written it: it may come again. Bits live in a shared mapping, so a killed process loses none;
//! a host that goes down takes the VMM with it, and nobody asks for them again. The lock on the
//! file keeps a mover that still lives, and its successor, from serving one VMM both.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use novacron_core::CHUNK_PAGES;
use novacron_core::pages::PageSet;

use crate::failure::{Failure, FailureCode};
use crate::page_bits::chunk_count;

const MAGIC: u64 = u64::from_le_bytes(*b"nvcnpc\x00\x01");
const HEADER_BYTES: u64 = 4096;
const SET_WORDS: usize = CHUNK_PAGES / 64;
const SET_BYTES: u64 = SET_WORDS as u64 * 8;
const CONTRIBUTION_BYTES: u64 = 16;
/// A predecessor that was killed is gone in milliseconds; one that hangs is not waited out.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Words of the header behind those of the key.
const AT_BEGUN: usize = 5;
const AT_SUM: usize = 6;

/// The open journal of one migration.
pub(crate) struct Journal {
    file: File,
    words: *mut u64,
    mapped_bytes: usize,
    chunks: usize,
}

// SAFETY: the mapping is shared memory that is only touched through atomics, and lives as long as
// the value.
unsafe impl Send for Journal {}
// SAFETY: as above.
unsafe impl Sync for Journal {}

/// Where the journal of a memory file lies.
pub fn journal_path(memory_path: &Path) -> PathBuf {
    let mut path = memory_path.as_os_str().to_owned();
    path.push(".arrived");
    PathBuf::from(path)
}

/// What a journal must say to be of this migration.
#[derive(Clone, Copy)]
pub(crate) struct JournalKey<'a> {
    pub(crate) migration: &'a str,
    pub(crate) epoch: u64,
    pub(crate) memory_bytes: u64,
}

impl JournalKey<'_> {
    fn words(&self) -> [u64; 5] {
        let name = blake3_words(self.migration);
        [MAGIC, self.memory_bytes, self.epoch, name[0], name[1]]
    }
}

fn blake3_words(text: &str) -> [u64; 2] {
    let hash = novacron_core::digest::text_digest(text);
    [hash as u64, (hash >> 64) as u64]
}

impl Journal {
    /// Makes an empty one in the place of whatever was there; room for its bits is taken now.
    pub(crate) fn create(memory_path: &Path, key: JournalKey<'_>) -> Result<Self, Failure> {
        let path = journal_path(memory_path);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing an old journal")(error));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("making the journal"))?;
        let chunks = chunk_count(key.memory_bytes);
        let contributions = chunks as u64 * CHUNK_PAGES as u64 * CONTRIBUTION_BYTES;
        file.set_len(mapped_bytes(chunks) + contributions).map_err(failed("sizing the journal"))?;
        // A store into a mapping of a full file system would kill this process.
        // SAFETY: fallocate takes no pointers; the descriptor is ours.
        let taken = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, mapped_bytes(chunks) as i64) };
        if taken != 0 {
            return Err(failed("taking room for the journal")(io::Error::last_os_error()));
        }
        let journal = Self::map(file, chunks, Duration::ZERO)?;
        for (at, value) in key.words().into_iter().enumerate() {
            journal.word(at).store(value, Ordering::Relaxed);
        }
        Ok(journal)
    }

    /// Opens what a dead mover has left of this migration.
    pub(crate) fn open(memory_path: &Path, key: JournalKey<'_>) -> Result<Self, Failure> {
        let path = journal_path(memory_path);
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let file = opened.map_err(failed("opening the journal"))?;
        let length = file.metadata().map_err(failed("stat of the journal"))?.len();
        let chunks = chunk_count(key.memory_bytes);
        if length < mapped_bytes(chunks) {
            return Err(Failure::new(FailureCode::EngineFailed, "the journal is cut short"));
        }
        let journal = Self::map(file, chunks, LOCK_WAIT_MAX)?;
        let fits = |(at, value): (usize, u64)| journal.word(at).load(Ordering::Relaxed) == value;
        if !key.words().into_iter().enumerate().all(fits) {
            return Err(Failure::new(FailureCode::EngineFailed, "the journal is of another move"));
        }
        if journal.word(AT_BEGUN).load(Ordering::Acquire) != 1 {
            return Err(Failure::new(FailureCode::EngineFailed, "the journal was never begun"));
        }
        Ok(journal)
    }

    fn map(file: File, chunks: usize, patience: Duration) -> Result<Self, Failure> {
        let began = Instant::now();
        // SAFETY: flock takes no pointers; the descriptor is ours.
        while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            if began.elapsed() >= patience {
                let error = io::Error::last_os_error();
                return Err(failed("another mover holds the journal")(error));
            }
            thread::sleep(Duration::from_millis(20));
        }
        let mapped_bytes = mapped_bytes(chunks) as usize;
        // SAFETY: a fresh mapping of a file that is at least so long; nothing else knows of it.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(), mapped_bytes, libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED, file.as_raw_fd(), 0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(failed("mapping the journal")(io::Error::last_os_error()));
        }
        Ok(Self { file, words: start.cast(), mapped_bytes, chunks })
    }

    /// Writes down which pages are missing and what the others sum up to; afterwards the guest may
    /// start, and a restarted mover may go on.
    pub(crate) fn begin(&self, missing: impl Fn(usize) -> PageSet, final_sum: u128) {
        for chunk in 0..self.chunks {
            for (index, bits) in missing(chunk).0.into_iter().enumerate() {
                self.missing_word(chunk, index).store(bits, Ordering::Relaxed);
            }
        }
        self.word(AT_SUM).store(final_sum as u64, Ordering::Relaxed);
        self.word(AT_SUM + 1).store((final_sum >> 64) as u64, Ordering::Relaxed);
        self.word(AT_BEGUN).store(1, Ordering::Release);
    }

    pub(crate) fn final_sum(&self) -> u128 {
        let word = |at| u128::from(self.word(at).load(Ordering::Relaxed));
        word(AT_SUM) | word(AT_SUM + 1) << 64
    }

    /// Pages of a chunk that were missing at the start.
    pub(crate) fn missing(&self, chunk: usize) -> PageSet {
        PageSet(std::array::from_fn(|index| {
            self.missing_word(chunk, index).load(Ordering::Relaxed)
        }))
    }

    /// Pages of a chunk that have arrived since.
    pub(crate) fn arrived(&self, chunk: usize) -> PageSet {
        PageSet(std::array::from_fn(|index| {
            self.arrived_word(chunk, index).load(Ordering::Acquire)
        }))
    }

    /// Pages of a chunk that are in the memory file now, with their contributions (a page without
    /// one is zero). To be called before any of them is mapped.
    pub(crate) fn note_arrived(
        &self,
        chunk: usize,
        pages: &PageSet,
        contributions: &[(usize, u128)],
    ) -> Result<(), Failure> {
        let base = self.mapped_bytes as u64 + (chunk * CHUNK_PAGES) as u64 * CONTRIBUTION_BYTES;
        for run in contributions.chunk_by(|(one, _), (next, _)| one + 1 == *next) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, value)| value.to_le_bytes()).collect();
            let at = base + run[0].0 as u64 * CONTRIBUTION_BYTES;
            self.file.write_all_at(&bytes, at).map_err(failed("writing the journal"))?;
        }
        for (index, bits) in pages.0.into_iter().enumerate().filter(|(_, bits)| *bits != 0) {
            self.arrived_word(chunk, index).fetch_or(bits, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Sum of the contributions of all pages that have arrived.
    pub(crate) fn arrived_sum(&self) -> Result<u128, Failure> {
        let mut sum = 0_u128;
        let mut bytes = vec![0; CHUNK_PAGES * CONTRIBUTION_BYTES as usize];
        for chunk in 0..self.chunks {
            let arrived = self.arrived(chunk);
            if arrived.is_empty() {
                continue;
            }
            let at = self.mapped_bytes as u64 + (chunk * bytes.len()) as u64;
            self.file.read_exact_at(&mut bytes, at).map_err(failed("reading the journal"))?;
            let values = bytes.as_chunks::<16>().0;
            let value = |page: usize| u128::from_le_bytes(values[page]);
            arrived.iter().for_each(|page| sum = sum.wrapping_add(value(page)));
        }
        Ok(sum)
    }

    fn missing_word(&self, chunk: usize, index: usize) -> &AtomicU64 {
        self.word(HEADER_BYTES as usize / 8 + chunk * SET_WORDS + index)
    }

    fn arrived_word(&self, chunk: usize, index: usize) -> &AtomicU64 {
        self.word(HEADER_BYTES as usize / 8 + (self.chunks + chunk) * SET_WORDS + index)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < self.mapped_bytes / 8, "inside of the journal");
        // SAFETY: inside of the mapping, aligned, and only ever used as an atomic.
        unsafe { AtomicU64::from_ptr(self.words.add(at)) }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing refers to it any more.
        unsafe { libc::munmap(self.words.cast(), self.mapped_bytes) };
    }
}

/// Header and both sets of bits, in whole pages of the file.
fn mapped_bytes(chunks: usize) -> u64 {
    (HEADER_BYTES + 2 * SET_BYTES * chunks as u64).next_multiple_of(4096)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(FailureCode::EngineFailed, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: JournalKey<'_> =
        JournalKey { migration: "migrate/vm/1", epoch: 3, memory_bytes: 5 << 20 };

    fn set(pages: &[usize]) -> PageSet {
        let mut set = PageSet::EMPTY;
        pages.iter().for_each(|page| set.insert(*page));
        set
    }

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let name = format!("novacron-journal-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            // The test has failed before it was made otherwise.
            let _ = std::fs::remove_file(journal_path(&self.0));
        }
    }

    #[test]
    fn it_says_afterwards_what_arrived_and_what_it_sums_up_to() {
        let place = Place::new("kept");
        let missing = |chunk: usize| if chunk == 4 { set(&[0, 7, 8, 255]) } else { PageSet::EMPTY };
        {
            let journal = Journal::create(&place.0, KEY).expect("made");
            journal.begin(missing, u128::MAX - 5);
            let sums = [(7, 10_u128 << 70), (8, 1), (255, 2)];
            journal.note_arrived(4, &set(&[7, 8, 255]), &sums).expect("room");
        }
        let journal = Journal::open(&place.0, KEY).expect("opened");
        assert_eq!(journal.final_sum(), u128::MAX - 5);
        assert_eq!(journal.missing(4), set(&[0, 7, 8, 255]));
        assert_eq!((journal.missing(3), journal.arrived(3)), (PageSet::EMPTY, PageSet::EMPTY));
        assert_eq!(journal.arrived(4), set(&[7, 8, 255]));
        assert_eq!(journal.arrived_sum(), Ok((10_u128 << 70) + 3));
    }

    #[test]
    fn one_that_never_began_is_not_taken_and_neither_is_another_moves() {
        let place = Place::new("refused");
        drop(Journal::create(&place.0, KEY).expect("made"));
        let why = |key| Journal::open(&place.0, key).err().map(|failure| failure.detail);
        assert_eq!(why(KEY).as_deref(), Some("the journal was never begun"));
        Journal::create(&place.0, KEY).expect("made").begin(|_| PageSet::EMPTY, 0);
        assert_eq!(why(KEY), None);
        let other = "the journal is of another move";
        assert_eq!(why(JournalKey { migration: "migrate/vm/2", ..KEY }).as_deref(), Some(other));
        assert_eq!(why(JournalKey { epoch: 4, ..KEY }).as_deref(), Some(other));
    }

    #[test]
    fn two_movers_never_hold_it_at_once() {
        let place = Place::new("locked");
        let first = Journal::create(&place.0, KEY).expect("made");
        first.begin(|_| PageSet::EMPTY, 0);
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = place.0.clone();
        let second = thread::spawn(move || {
            let opened = Journal::open(&path, KEY).map(|_| ());
            sender.send(()).expect("the test waits");
            opened
        });
        assert!(receiver.recv_timeout(Duration::from_millis(300)).is_err(), "it did not wait");
        drop(first);
        assert_eq!(second.join().expect("no panic"), Ok(()));
    }
}
