//! `novacron-probe`: tries the kernel features that the memory engine needs, on memory of its own,
//! and prints one JSON object. Decides nothing; `novacron doctor` says what follows.

use std::ffi::c_void;
use std::os::fd::RawFd;

const PAGES: usize = 64;
const PAGE_BYTES: usize = 4096;
const UFFD_API: u64 = 0xAA;
const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
/// `_IO(0xAA, 0)` on /dev/userfaultfd.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xAA00;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const SCAN_WP_MATCHING: u64 = 1;
const SCAN_CHECK_WPASYNC: u64 = 2;
const CATEGORY_WRITTEN: u64 = 1 << 1;

#[repr(C)]
#[derive(Default)]
struct Api { api: u64, features: u64, ioctls: u64 }
#[repr(C)]
#[derive(Default)]
struct Register { start: u64, len: u64, mode: u64, ioctls: u64 }
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Region { start: u64, end: u64, categories: u64 }
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64, flags: u64, start: u64, end: u64, walk_end: u64, vec: u64, vec_len: u64,
    max_pages: u64, category_inverted: u64, category_mask: u64, category_anyof_mask: u64,
    return_mask: u64,
}

fn ioctl<T>(fd: RawFd, request: libc::c_ulong, argument: &mut T) -> Result<i32, String> {
    // SAFETY: every request here takes a pointer to the structure of that name, which the kernel
    // reads and writes within its size; it lives for the whole call.
    let result = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(std::io::Error::last_os_error().to_string()) } else { Ok(result) }
}

fn userfaultfd_by_call() -> Result<RawFd, String> {
    // SAFETY: takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 { Err(std::io::Error::last_os_error().to_string()) } else { Ok(fd as RawFd) }
}

fn userfaultfd_by_device() -> Result<RawFd, String> {
    use std::os::fd::AsRawFd;
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")
        .map_err(|error| error.to_string())?;
    // SAFETY: USERFAULTFD_IOC_NEW takes flags by value.
    let fd = unsafe {
        libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK)
    };
    if fd < 0 { Err(std::io::Error::last_os_error().to_string()) } else { Ok(fd) }
}

/// A shared mapping of a memory file, like a guest's RAM.
fn shared_memory() -> Result<*mut u8, String> {
    // SAFETY: a new anonymous shared mapping; nothing else knows its address.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(), PAGES * PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
    };
    if address == libc::MAP_FAILED { return Err(std::io::Error::last_os_error().to_string()) }
    Ok(address.cast::<u8>())
}

fn scan(pagemap: RawFd, start: u64) -> Result<usize, String> {
    let mut regions = [Region::default(); PAGES];
    let mut request = Scan {
        size: std::mem::size_of::<Scan>() as u64,
        flags: SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
        start, end: start + (PAGES * PAGE_BYTES) as u64,
        vec: regions.as_mut_ptr() as u64, vec_len: PAGES as u64,
        category_mask: CATEGORY_WRITTEN, return_mask: CATEGORY_WRITTEN,
        ..Scan::default()
    };
    let count = ioctl(pagemap, PAGEMAP_SCAN, &mut request)? as usize;
    let bytes: u64 = regions[..count].iter().map(|region| region.end - region.start).sum();
    Ok(bytes as usize / PAGE_BYTES)
}

/// Arms the whole range, writes three pages, and expects exactly these back.
fn track(uffd: RawFd) -> Result<(), String> {
    use std::os::fd::AsRawFd;
    let memory = shared_memory()?;
    let start = memory.cast::<c_void>() as u64;
    let mut register = Register {
        start, len: (PAGES * PAGE_BYTES) as u64, mode: REGISTER_MODE_WP, ..Register::default()
    };
    ioctl(uffd, UFFDIO_REGISTER, &mut register).map_err(|error| format!("register: {error}"))?;
    let pagemap = std::fs::File::open("/proc/self/pagemap").map_err(|error| error.to_string())?;
    scan(pagemap.as_raw_fd(), start)?;
    for page in [3, 17, 40] {
        // SAFETY: within the mapping made above, which is never unmapped.
        unsafe { memory.add(page * PAGE_BYTES).write_volatile(1) };
    }
    match scan(pagemap.as_raw_fd(), start)? {
        3 => Ok(()),
        other => Err(format!("3 pages were written and {other} reported")),
    }
}

fn features(uffd: RawFd) -> Result<u64, String> {
    let wanted = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM;
    let mut api = Api { api: UFFD_API, features: wanted, ..Api::default() };
    ioctl(uffd, UFFDIO_API, &mut api).map_err(|error| format!("api: {error}"))?;
    Ok(api.features)
}

fn main() {
    let by_call = userfaultfd_by_call();
    let by_device = userfaultfd_by_device();
    let uffd = by_call.clone().or(by_device.clone());
    let offered = uffd.clone().and_then(features);
    let tracked = match (&uffd, &offered) {
        (Ok(fd), Ok(_)) => track(*fd),
        (Err(error), _) | (_, Err(error)) => Err(error.clone()),
    };
    let offered_bits = offered.as_ref().copied().unwrap_or(0);
    println!("{}", serde_json::json!({
        "version": 1,
        "userfaultfdCall": by_call.is_ok(),
        "userfaultfdDevice": by_device.is_ok(),
        "writeProtectAsync": offered_bits & FEATURE_WP_ASYNC != 0,
        "minorFaultsOnSharedMemory": offered_bits & FEATURE_MINOR_SHMEM != 0,
        "missingFaultsOnSharedMemory": offered_bits & FEATURE_MISSING_SHMEM != 0,
        "dirtyTracking": tracked.is_ok(),
        "reason": tracked.err(),
    }));
}
