//! Preloaded into one process of a lab, this library is where that process reads its clocks. A file
//! that the lab writes (`NOVACRON_LAB_CLOCK`) says how far they are from the kernel's and how fast
//! they run; without it they are the kernel's. Timers and waits in the kernel keep its time, as do
//! programs that the process starts: both variables are taken out of its environment.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

const NANOS: i64 = 1_000_000_000;
const MILLION: i64 = 1_000_000;

/// What the file holds, in the machine's byte order. A reader that sees two counts that differ
/// looks again: the lab is writing.
#[repr(C)]
struct Setting {
    count: AtomicI64,
    /// Added to the wall clock alone, ns.
    wall_offset: AtomicI64,
    /// How fast all clocks run since `since`: a million is as fast as the kernel's.
    rate: AtomicI64,
    /// The kernel's monotonic clock when the rate was set, ns.
    since: AtomicI64,
    /// How far all clocks were ahead then, ns.
    ahead: AtomicI64,
    count_again: AtomicI64,
}

static SETTING: AtomicPtr<Setting> = AtomicPtr::new(ptr::null_mut());

/// The kernel's clock, ns.
fn kernel_nanos(clock: libc::clockid_t) -> Option<i64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec to the place that it is given, which lives on.
    let status = unsafe { libc::syscall(libc::SYS_clock_gettime, clock as c_long, &raw mut time) };
    (status == 0).then_some(time.tv_sec * NANOS + time.tv_nsec)
}

/// Offsets of the wall clock and of all clocks now, ns.
fn offsets() -> (i64, i64) {
    let setting = SETTING.load(Ordering::Acquire);
    if setting.is_null() {
        return (0, 0);
    }
    // SAFETY: set once, to a page that stays mapped as long as the process lives.
    let setting = unsafe { &*setting };
    for _ in 0..1_000 {
        let count = setting.count.load(Ordering::Acquire);
        let wall = setting.wall_offset.load(Ordering::Acquire);
        let rate = setting.rate.load(Ordering::Acquire);
        let since = setting.since.load(Ordering::Acquire);
        let ahead = setting.ahead.load(Ordering::Acquire);
        if setting.count_again.load(Ordering::Acquire) != count || count == 0 {
            continue;
        }
        let passed = kernel_nanos(libc::CLOCK_MONOTONIC).unwrap_or(since) - since;
        let gained = i128::from(passed) * i128::from(rate - MILLION) / i128::from(MILLION);
        return (wall, ahead + gained as i64);
    }
    (0, 0)
}

fn nanos(clock: libc::clockid_t) -> Option<i64> {
    let kernel = kernel_nanos(clock)?;
    match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => {
            let (wall, all) = offsets();
            Some(kernel + wall + all)
        }
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_BOOTTIME => Some(kernel + offsets().1),
        // CPU time is no clock that could be wrong.
        _ => Some(kernel),
    }
}

/// # Safety
/// As of libc's function of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let Some(now) = nanos(clock) else { return -1 };
    // SAFETY: the caller gives room for one timespec.
    unsafe {
        (*time).tv_sec = now.div_euclid(NANOS);
        (*time).tv_nsec = now.rem_euclid(NANOS);
    }
    0
}

/// # Safety
/// As of libc's function of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(time: *mut libc::timeval, _zone: *mut c_void) -> c_int {
    let Some(now) = nanos(libc::CLOCK_REALTIME) else {
        return -1;
    };
    if !time.is_null() {
        // SAFETY: the caller gives room for one timeval.
        unsafe {
            (*time).tv_sec = now.div_euclid(NANOS);
            (*time).tv_usec = now.rem_euclid(NANOS) / 1_000;
        }
    }
    0
}

/// # Safety
/// As of libc's function of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(place: *mut libc::time_t) -> libc::time_t {
    let seconds = nanos(libc::CLOCK_REALTIME).map_or(-1, |now| now.div_euclid(NANOS));
    if !place.is_null() {
        // SAFETY: the caller gives room for one number.
        unsafe { *place = seconds };
    }
    seconds
}

const VARIABLE: *const c_char = c"NOVACRON_LAB_CLOCK".as_ptr();
const PRELOAD: *const c_char = c"LD_PRELOAD".as_ptr();

extern "C" fn start() {
    // SAFETY: this runs before main, when nobody else reads or changes the environment; the file is
    // as long as one setting, as its writer promises, and its mapping is never given up.
    unsafe {
        let path = libc::getenv(VARIABLE);
        if path.is_null() {
            return;
        }
        let file = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
        if file >= 0 {
            let length = size_of::<Setting>();
            let page = libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file,
                0,
            );
            if page != libc::MAP_FAILED {
                SETTING.store(page.cast(), Ordering::Release);
            }
            libc::close(file);
        }
        libc::unsetenv(VARIABLE);
        libc::unsetenv(PRELOAD);
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
