//! A process that treats a memory file as a VMM treats guest RAM, for tests: it maps the file
//! shared, writes pages on command or without end, reads pages and says what it saw.
//!
//! It is forked without exec, and the child uses nothing but system calls and its own mapping, so
//! that it may be forked from a test runner with many threads.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A real-time signal: those queue, so that each one that is sent must arrive.
pub const STORM_SIGNAL: i32 = 40;

const PAGE: u64 = 4096;
const COMMAND_BYTES: usize = 32;
/// Lengths of `read_disk`'s range that the disk has.
pub const DISK_PARTS: u64 = 3;
/// Above what a test process ever has open.
const DESCRIPTORS_MAX: i32 = 4096;

/// Answered once the file is mapped.
const READY: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;
const RUN: u64 = 3;
const STOP: u64 = 4;
const OPEN_DEVICE: u64 = 5;
const STORM: u64 = 6;
const STORM_RESULT: u64 = 7;
const ZERO: u64 = 8;
const READ_DISK: u64 = 9;

/// The process and its memory file; both go when it is dropped.
pub struct GuestProcess {
    pid: i32,
    path: PathBuf,
    bytes: u64,
    channel: Mutex<(File, File)>,
}

impl GuestProcess {
    /// Makes the file and starts the process.
    ///
    /// # Panics
    /// When the system refuses: a test can't go on then.
    pub fn start(path: &Path, bytes: u64) -> Self {
        Self::start_with_disk(path, bytes, None)
    }

    /// As `start`, with a file that `read_disk` reads from, opened as the test wants it.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn start_with_disk(path: &Path, bytes: u64, disk: Option<&File>) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.expect("a memory file");
        file.set_len(bytes).expect("room for the memory file");
        let (command_reader, command_writer) = pipe();
        let (reply_reader, reply_writer) = pipe();
        // SAFETY: the child only makes system calls and touches its own mapping and stack.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // SAFETY: as above; it never returns.
            unsafe {
                let disk = disk.map_or(-1, AsRawFd::as_raw_fd);
                let ends = [command_reader.as_raw_fd(), reply_writer.as_raw_fd()];
                child(file.as_raw_fd(), bytes, ends, disk)
            }
        }
        let channel = Mutex::new((command_writer, reply_reader));
        let process = Self { pid, path: path.to_owned(), bytes, channel };
        process.call(READY, 0, 0, 0);
        process
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes whole pages with a pattern of seed and page.
    pub fn write_pages(&self, first: u64, count: u64, seed: u64) {
        self.call(WRITE, first, count, seed);
    }

    /// Writes zeros over whole pages.
    pub fn zero_pages(&self, first: u64, count: u64) {
        self.call(ZERO, first, count, 0);
    }

    /// Reads a page through the mapping, waiting for it where it is missing; answers the sum of
    /// its words.
    pub fn read_page(&self, page: u64) -> u64 {
        self.call(READ, page, 0, 0)
    }

    /// Writes random pages of `first..first + count` without end, pausing `pause_micros` after
    /// each 64, until `stop`.
    pub fn run(&self, first: u64, count: u64, seed: u64, pause_micros: u32) {
        self.call(RUN, first, count | (u64::from(pause_micros) << 40), seed);
    }

    /// Reads the disk into pages `first..first + count` without end, the whole range at a time and
    /// other data each time, until `stop`, which waits for the read under way.
    pub fn read_disk(&self, first: u64, count: u64) {
        self.call(READ_DISK, first, count, 0);
    }

    /// Ends `run` or `read_disk`; answers how many pages it wrote.
    pub fn stop(&self) -> u64 {
        self.call(STOP, 0, 0, 0)
    }

    /// Opens /dev/userfaultfd, as a guard does for a VMM without privileges; 0 for a failure.
    pub fn open_userfault_device(&self) -> u64 {
        self.call(OPEN_DEVICE, 0, 0, 0)
    }

    /// Counts `STORM_SIGNAL` in a handler and waits in poll(2) as a main loop does, until `storm_result`.
    pub fn start_storm(&self) {
        self.call(STORM, 0, 0, 0);
    }

    /// (signals handled, polls that failed with anything but EINTR)
    pub fn storm_result(&self) -> (u64, u64) {
        let packed = self.call(STORM_RESULT, 0, 0, 0);
        (packed >> 16, packed & 0xFFFF)
    }

    /// The file as it is.
    ///
    /// # Panics
    /// When it can't be read.
    pub fn contents(&self) -> Vec<u8> {
        let file = File::open(&self.path).expect("the memory file");
        let mut bytes = vec![0; self.bytes as usize];
        file.read_exact_at(&mut bytes, 0).expect("all of the memory file");
        bytes
    }

    fn call(&self, operation: u64, a: u64, b: u64, c: u64) -> u64 {
        let mut command = [0; COMMAND_BYTES];
        for (slot, value) in command.chunks_exact_mut(8).zip([operation, a, b, c]) {
            slot.copy_from_slice(&value.to_ne_bytes());
        }
        let mut channel = self.channel.lock().expect("no panic inside a call");
        channel.0.write_all(&command).expect("the process takes commands");
        let mut reply = [0; 8];
        channel.1.read_exact(&mut reply).expect("the process answers");
        u64::from_ne_bytes(reply)
    }
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        // SAFETY: the child is ours and was not waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
        // Tests may have removed it themselves.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors, which are owned by nobody else.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0, "pipe");
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

static mut SIGNALS: u64 = 0;

extern "C" fn count_signal(_: i32) {
    // SAFETY: the child has one thread; the handler and the loop do not run at the same time.
    unsafe { SIGNALS += 1 };
}

struct Running {
    /// To read from; -1 to write a pattern.
    disk: i32,
    first: u64,
    count: u64,
    pause_micros: u32,
    random: u64,
    written: u64,
}

/// The child's life: commands in, replies out.
unsafe fn child(file: i32, bytes: u64, [commands, replies]: [i32; 2], disk: i32) -> ! {
    // SAFETY: only system calls and the child's own mapping.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Without exec nothing closes by itself, and a userfaultfd of another guest that the test
        // holds would look like this one's.
        for descriptor in (3..DESCRIPTORS_MAX).filter(|fd| ![file, commands, replies, disk].contains(fd))
        {
            libc::close(descriptor);
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let memory =
            libc::mmap(std::ptr::null_mut(), bytes as usize, protection, libc::MAP_SHARED, file, 0);
        if memory == libc::MAP_FAILED {
            libc::_exit(1);
        }
        let memory = memory.cast::<u64>();
        let mut running: Option<Running> = None;
        let mut failed_polls = 0_u64;
        loop {
            let mut poll = libc::pollfd { fd: commands, events: libc::POLLIN, revents: 0 };
            let patience = if running.is_some() { 0 } else { 1000 };
            let ready = libc::poll(&raw mut poll, 1, patience);
            if ready < 0 && *libc::__errno_location() != libc::EINTR {
                failed_polls += 1;
            }
            if ready > 0 {
                let mut command = [0_u64; 4];
                let got = libc::read(commands, command.as_mut_ptr().cast(), COMMAND_BYTES);
                if got == 0 {
                    libc::_exit(0);
                }
                if got < 0 {
                    continue;
                }
                let reply = obey(memory, &command, &mut running, (failed_polls, disk));
                libc::write(replies, (&raw const reply).cast(), 8);
            }
            if let Some(run) = running.as_mut() {
                write_some(memory, run);
            }
        }
    }
}

unsafe fn obey(
    memory: *mut u64,
    command: &[u64; 4],
    running: &mut Option<Running>,
    (failed_polls, disk): (u64, i32),
) -> u64 {
    let [operation, a, b, c] = *command;
    // SAFETY: the parent names pages inside the mapping.
    unsafe {
        match operation {
            WRITE => (a..a + b).for_each(|page| fill(memory, page, c)),
            ZERO => (a..a + b).for_each(|page| {
                libc::memset(memory.byte_add((page * PAGE) as usize).cast(), 0, PAGE as usize);
            }),
            READ => {
                let at = memory.byte_add((a * PAGE) as usize);
                return (0..PAGE as usize / 8)
                    .fold(0_u64, |sum, word| sum.wrapping_add(at.add(word).read_volatile()));
            }
            RUN => {
                let count = b & ((1 << 40) - 1);
                let pause_micros = (b >> 40) as u32;
                let random = c | 1;
                *running = Some(Running {
                    disk: -1, first: a, count, pause_micros, random, written: 0,
                });
            }
            READ_DISK => {
                *running = Some(Running {
                    disk, first: a, count: b, pause_micros: 0, random: 0, written: 0,
                });
            }
            STOP => return running.take().map_or(0, |run| run.written),
            OPEN_DEVICE => {
                let device = libc::open(c"/dev/userfaultfd".as_ptr(), libc::O_RDWR);
                return u64::from(device >= 0);
            }
            STORM => {
                let handler: extern "C" fn(i32) = count_signal;
                libc::signal(STORM_SIGNAL, handler as libc::sighandler_t);
            }
            STORM_RESULT => return ((&raw const SIGNALS).read_volatile() << 16) | failed_polls,
            _ => {}
        }
    }
    0
}

unsafe fn fill(memory: *mut u64, page: u64, seed: u64) {
    // SAFETY: the page is inside the mapping.
    unsafe {
        let at = memory.byte_add((page * PAGE) as usize);
        let mut value = seed ^ page.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        for word in 0..PAGE as usize / 8 {
            value ^= value << 13;
            value ^= value >> 7;
            value ^= value << 17;
            at.add(word).write_volatile(value);
        }
    }
}

unsafe fn write_some(memory: *mut u64, run: &mut Running) {
    if run.disk >= 0 {
        let bytes = (run.count * PAGE) as usize;
        // Each read brings another part of the disk to every page.
        run.random = (run.random + 1) % DISK_PARTS;
        let from = (run.random * bytes as u64) as i64;
        // SAFETY: the parent named a range inside the mapping; the disk is long enough.
        let read = unsafe {
            let at = memory.byte_add((run.first * PAGE) as usize);
            libc::pread(run.disk, at.cast(), bytes, from)
        };
        if read != bytes as isize {
            // SAFETY: takes no pointers; the test sees a dead guest.
            unsafe { libc::_exit(2) }
        }
        run.written += run.count;
        return;
    }
    for _ in 0..64 {
        run.random ^= run.random << 13;
        run.random ^= run.random >> 7;
        run.random ^= run.random << 17;
        let page = run.first + run.random % run.count;
        // SAFETY: the parent named a range inside the mapping.
        unsafe { fill(memory, page, run.random) };
        run.written += 1;
    }
    if run.pause_micros > 0 {
        // SAFETY: takes no pointers.
        unsafe { libc::usleep(run.pause_micros) };
    }
}
