//! The userfaultfd of a VMM: made inside it, kept open there, used from here.
//!
//! The VMM keeps its own copy. If the mover held the only one, its death would release blocked
//! vCPUs onto stale pages; as it is, they stay blocked until a new mover takes the copy again.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use novacron_core::PAGE_BYTES;

use crate::inject::{SyscallCall, run_in_process};
use crate::mapping::GuestMapping;
use crate::MemoryError;

const API: u64 = 0xAA;
const IOCTL_API: u64 = 0xC018_AA3F;
const IOCTL_REGISTER: u64 = 0xC020_AA00;
const IOCTL_UNREGISTER: u64 = 0x8010_AA01;
const IOCTL_WAKE: u64 = 0x8010_AA02;
const IOCTL_CONTINUE: u64 = 0xC020_AA07;
const IOCTL_DEVICE_NEW: i64 = 0xAA00;

const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// Kernel-internal mark in fdinfo: the API call has been made.
const FEATURE_INITIALIZED: u64 = 1 << 31;
/// One set for both roles: a VM that came by post-copy may leave by pre-copy with the same fd.
const FEATURES: u64 = FEATURE_MISSING_SHMEM
    | FEATURE_MINOR_SHMEM
    | FEATURE_WP_HUGETLBFS_SHMEM
    | FEATURE_WP_UNPOPULATED
    | FEATURE_WP_ASYNC;

const CONTINUE_MODE_WP: u64 = 2;
const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;
const MODE_MINOR: u64 = 4;
const EVENT_PAGEFAULT: u8 = 0x12;
const MESSAGE_BYTES: usize = 32;
const MESSAGES_MAX: usize = 64;

/// Only one injection at a time: two tracers of one process would refuse each other.
static INJECTION: Mutex<()> = Mutex::new(());

/// What accesses to the range do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultMode {
    /// Writes are recorded by the kernel and cost the guest one fault a page and round.
    TrackWrites,
    /// Accesses to pages that are not mapped yet wait until they are resolved; writes that are
    /// tracked stay so.
    WaitForPages,
}

/// A page that a thread of the VMM waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub address: u64,
    /// The file has a page there (perhaps a stale one), it is only not mapped.
    pub minor: bool,
}

/// What write tracking, where it is armed, is to know of pages that are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    Written,
    /// They count as written from the guest's first write on.
    Unwritten,
}

impl Marks {
    fn continue_mode(self) -> u64 {
        match self {
            Self::Written => 0,
            Self::Unwritten => CONTINUE_MODE_WP,
        }
    }
}

/// What came of mapping a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Mapped, waiting threads go on.
    Mapped,
    /// It was mapped before; threads that wait are to be woken.
    AlreadyMapped,
    /// The file has a hole there: write zeros first.
    Hole,
}

/// A userfaultfd of another process.
#[derive(Debug)]
pub struct Userfault {
    descriptor: OwnedFd,
}

impl Userfault {
    /// Takes the one that the process has, or makes one inside it.
    pub fn obtain(pid: i32) -> Result<Self, MemoryError> {
        let _one_at_a_time = INJECTION.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = find_descriptor(pid, is_ours)? {
            return steal(pid, number);
        }
        let flags = i64::from(libc::O_CLOEXEC | libc::O_NONBLOCK);
        let device = find_descriptor(pid, |_, _, target| target == "/dev/userfaultfd")?;
        let call = match device {
            Some(device) => SyscallCall {
                number: libc::SYS_ioctl,
                arguments: [i64::from(device), IOCTL_DEVICE_NEW, flags],
            },
            None => SyscallCall { number: libc::SYS_userfaultfd, arguments: [flags, 0, 0] },
        };
        let result = run_in_process(pid, &call)?;
        let number = i32::try_from(result).unwrap_or(-1);
        if number < 0 {
            return Err(MemoryError::System {
                what: "making a userfaultfd inside the VMM",
                source: std::io::Error::from_raw_os_error(-number),
            });
        }
        steal(pid, number)
    }

    /// Takes the one that a mover before us has left in the process. It never makes one: threads
    /// that wait do so on that very one.
    pub fn adopt(pid: i32) -> Result<Self, MemoryError> {
        let _one_at_a_time = INJECTION.lock().unwrap_or_else(PoisonError::into_inner);
        match find_descriptor(pid, is_ours)? {
            Some(number) => steal(pid, number),
            None => Err(MemoryError::Mapping("the VMM holds no userfaultfd of a mover".into())),
        }
    }

    /// Registers the whole guest. The kernel only ever adds to what a registration does: one that
    /// waits for pages tracks writes, too, and ends by `unregister` alone.
    pub fn register(&self, mapping: &GuestMapping, mode: FaultMode) -> Result<(), MemoryError> {
        let mode = match mode {
            FaultMode::TrackWrites => MODE_WP,
            FaultMode::WaitForPages => MODE_MISSING | MODE_MINOR | MODE_WP,
        };
        for range in mapping.ranges() {
            let mut argument = [range.address, range.length, mode, 0];
            self.ioctl(IOCTL_REGISTER, &mut argument)
                .map_err(MemoryError::system("registering guest memory with userfaultfd"))?;
        }
        Ok(())
    }

    /// Ends tracking or waiting for the whole guest; threads that wait go on.
    pub fn unregister(&self, mapping: &GuestMapping) -> Result<(), MemoryError> {
        for range in mapping.ranges() {
            self.ioctl(IOCTL_UNREGISTER, &mut [range.address, range.length])
                .map_err(MemoryError::system("unregistering guest memory from userfaultfd"))?;
        }
        // The kernel wakes them before it clears the registration (Linux 6.18): who comes to a page
        // in between, under the lock of the mapping alone, would wait for ever.
        self.wake_all(mapping)
    }

    /// Maps pages that are in the file and lets their waiting threads go on.
    pub fn resolve(
        &self,
        address: u64,
        length: u64,
        marks: Marks,
    ) -> Result<Resolution, MemoryError> {
        let mut argument = [address, length, marks.continue_mode(), 0];
        loop {
            let Err(error) = self.ioctl(IOCTL_CONTINUE, &mut argument) else {
                return Ok(Resolution::Mapped);
            };
            match error.raw_os_error() {
                Some(libc::EEXIST) => return Ok(Resolution::AlreadyMapped),
                Some(libc::EFAULT) => return Ok(Resolution::Hole),
                Some(libc::EAGAIN) => {}
                _ => {
                    let what = "mapping a page of the guest";
                    return Err(MemoryError::System { what, source: error });
                }
            }
        }
    }

    /// Maps what is in the file and not mapped yet, and leaves out the rest of the range.
    pub fn map_present(
        &self,
        address: u64,
        length: u64,
        marks: Marks,
    ) -> Result<(), MemoryError> {
        let (mut at, end) = (address, address + length);
        while at < end {
            let mut argument = [at, end - at, marks.continue_mode(), 0];
            let Err(error) = self.ioctl(IOCTL_CONTINUE, &mut argument) else { return Ok(()) };
            at += match error.raw_os_error() {
                // So far it went: bytes that were mapped, or nothing while the mapping changes.
                Some(libc::EAGAIN) => argument[3].min(end - at),
                Some(libc::EEXIST | libc::EFAULT) => PAGE_BYTES as u64,
                _ => {
                    let what = "mapping pages of the guest";
                    return Err(MemoryError::System { what, source: error });
                }
            };
        }
        Ok(())
    }

    /// Lets threads that wait in the range try again.
    pub fn wake(&self, address: u64, length: u64) -> Result<(), MemoryError> {
        self.ioctl(IOCTL_WAKE, &mut [address, length])
            .map_err(MemoryError::system("waking a thread of the VMM"))
    }

    /// Lets every thread that waits anywhere in the guest try again: faults that a dead mover had
    /// read are told anew.
    pub fn wake_all(&self, mapping: &GuestMapping) -> Result<(), MemoryError> {
        mapping.ranges().iter().try_for_each(|range| self.wake(range.address, range.length))
    }

    /// Waits for faults; calls `each` for every one, answers how many came.
    pub fn wait_faults(
        &self,
        timeout: Duration,
        mut each: impl FnMut(Fault),
    ) -> Result<usize, MemoryError> {
        let mut poll = libc::pollfd {
            fd: self.descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd that lives across the call.
        if unsafe { libc::poll(&raw mut poll, 1, millis) } <= 0 {
            return Ok(0);
        }
        let mut messages = [0_u64; MESSAGES_MAX * MESSAGE_BYTES / 8];
        let room = size_of_val(&messages);
        // SAFETY: the buffer is `room` bytes long and lives across the call.
        let count = unsafe { libc::read(poll.fd, messages.as_mut_ptr().cast(), room) };
        if count < 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(0),
                _ => Err(MemoryError::System { what: "reading faults", source: error }),
            };
        }
        let mut faults = 0;
        for message in messages[..count as usize / 8].as_chunks::<4>().0 {
            if message[0].to_le_bytes()[0] == EVENT_PAGEFAULT {
                each(Fault { address: message[2] & !0xFFF, minor: message[1] & 4 != 0 });
                faults += 1;
            }
        }
        Ok(faults)
    }

    fn ioctl<const N: usize>(&self, request: u64, argument: &mut [u64; N]) -> std::io::Result<()> {
        // SAFETY: `argument` has the size that is coded into every request used here.
        let done = unsafe {
            libc::ioctl(self.descriptor.as_raw_fd(), request, argument.as_mut_ptr())
        };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }
}

/// Copies a descriptor of the process and makes the API call unless that has been done.
fn steal(pid: i32, number: i32) -> Result<Userfault, MemoryError> {
    // SAFETY: pidfd_open takes no pointers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
    if process < 0 {
        return Err(MemoryError::last("opening the VMM process"));
    }
    // SAFETY: the descriptor was made just now and belongs to nobody else.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    // SAFETY: pidfd_getfd takes no pointers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    if copy < 0 {
        return Err(MemoryError::last("copying the userfaultfd of the VMM"));
    }
    // SAFETY: the descriptor was made just now and belongs to nobody else.
    let userfault = Userfault { descriptor: unsafe { OwnedFd::from_raw_fd(copy as i32) } };
    if features_of(pid, number).is_none_or(|features| features & FEATURE_INITIALIZED == 0) {
        userfault.ioctl(IOCTL_API, &mut [API, FEATURES, 0]).map_err(|error| {
            MemoryError::Unsupported(format!("userfaultfd without the needed features: {error}"))
        })?;
    }
    Ok(userfault)
}

/// A userfaultfd that a mover made: fresh, or with all features that we ask for.
fn is_ours(pid: i32, number: i32, target: &str) -> bool {
    target == "anon_inode:[userfaultfd]"
        && features_of(pid, number).is_some_and(|features| {
            features & FEATURE_INITIALIZED == 0 || features & FEATURES == FEATURES
        })
}

/// Features of a userfaultfd, from "API:\taa:features:…" of its fdinfo.
fn features_of(pid: i32, number: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("API:"))?;
    u64::from_str_radix(line.trim().split(':').nth(1)?, 16).ok()
}

fn find_descriptor(
    pid: i32,
    wanted: impl Fn(i32, i32, &str) -> bool,
) -> Result<Option<i32>, MemoryError> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .map_err(MemoryError::system("listing descriptors of the VMM"))?;
    for entry in entries.flatten() {
        let number = entry.file_name().to_string_lossy().parse::<i32>();
        if let (Ok(number), Ok(target)) = (number, fs::read_link(entry.path()))
            && wanted(pid, number, &target.to_string_lossy())
        {
            return Ok(Some(number));
        }
    }
    Ok(None)
}
