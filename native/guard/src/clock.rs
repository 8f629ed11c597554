//! The two clocks of the guard.

use std::time::{SystemTime, UNIX_EPOCH};

/// `CLOCK_BOOTTIME`, ms: it runs on while the host sleeps, as leases do.
pub fn boottime_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    assert_eq!(status, 0, "CLOCK_BOOTTIME is part of every Linux that we run on");
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Wall clock, ms since 1970, for people who read the records.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}
