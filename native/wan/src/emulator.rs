//! The loop: read what the devices have, write what is due, wait for either.

use crate::arguments::Arguments;
use crate::direction::Direction;
use crate::packet::VIRTIO_BYTES;
use crate::statistics::Report;
use crate::tun;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A buffer of the kernel: 64 KiB and its virtio header.
const BUFFER_BYTES: usize = 70_000;
/// Buffers read from one device before the other one and the clock get their turn.
const READ_AT_ONCE_MAX: usize = 64;

static STOP: AtomicBool = AtomicBool::new(false);
static REPORT: AtomicBool = AtomicBool::new(false);

extern "C" fn on_stop(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

extern "C" fn on_report(_signal: libc::c_int) {
    REPORT.store(true, Ordering::Relaxed);
}

fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

struct Emulator {
    devices: [OwnedFd; 2],
    /// `directions[i]` carries from `devices[i]` to the other one.
    directions: [Direction; 2],
    slack_ns: u64,
    last_batch_ns: u64,
    buffer: Vec<u8>,
}

/// Sets the link up and runs it until SIGINT or SIGTERM.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let [a, b] = &arguments.namespaces;
    let open = |namespace: &str| {
        tun::open(namespace, &arguments.device, arguments.segmentation_offload)
            .map_err(|e| format!("device {} in {namespace}: {e}", arguments.device))
    };
    let devices = [open(a)?, open(b)?];
    let [address_a, address_b] = &arguments.addresses;
    tun::configure(a, &arguments.device, (address_a, address_b), arguments.mtu)?;
    tun::configure(b, &arguments.device, (address_b, address_a), arguments.mtu)?;
    be_punctual(arguments.realtime_priority)?;
    let [ab, ba] = arguments.directions.clone();
    let mut emulator = Emulator {
        devices,
        directions: [Direction::new(ab, 0, now_ns()), Direction::new(ba, 1, now_ns())],
        slack_ns: arguments.slack_ns,
        last_batch_ns: 0,
        buffer: vec![0; BUFFER_BYTES],
    };
    println!("{{\"ready\":true,\"pid\":{}}}", std::process::id());
    while !STOP.load(Ordering::Relaxed) {
        if REPORT.swap(false, Ordering::Relaxed) {
            emulator.report();
        }
        let more = emulator.read_devices();
        emulator.write_due();
        if !more {
            emulator.wait();
        }
    }
    emulator.report();
    Ok(())
}

fn be_punctual(priority: i32) -> Result<(), String> {
    // SAFETY: plain numbers and handlers that only store to an atomic.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            libc::signal(signal, on_stop as extern "C" fn(libc::c_int) as libc::sighandler_t);
        }
        libc::signal(libc::SIGUSR1, on_report as extern "C" fn(libc::c_int) as libc::sighandler_t);
    }
    if priority > 0 {
        let setting = libc::sched_param { sched_priority: priority };
        // SAFETY: a valid setting for this process.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const setting) } < 0 {
            return Err(format!("rt={priority}: {}", io::Error::last_os_error()));
        }
    }
    Ok(())
}

impl Emulator {
    /// True when a device has more than its turn allowed.
    fn read_devices(&mut self) -> bool {
        let mut more = false;
        for (device, direction) in self.devices.iter().zip(&mut self.directions) {
            for turn in 1.. {
                let (fd, buffer) = (device.as_raw_fd(), &mut self.buffer);
                // SAFETY: a valid buffer of that length.
                let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
                let Ok(count) = usize::try_from(count) else { break };
                if count <= VIRTIO_BYTES {
                    break;
                }
                direction.offer(&self.buffer[..count], now_ns());
                if turn == READ_AT_ONCE_MAX {
                    more = true;
                    break;
                }
            }
        }
        more
    }

    fn next_ns(&self) -> Option<u64> {
        self.directions.iter().filter_map(Direction::next_ns).min()
    }

    fn write_due(&mut self) {
        let now = now_ns();
        if self.next_ns().is_none_or(|next| next > now) || now < self.last_batch_ns + self.slack_ns
        {
            return;
        }
        self.last_batch_ns = now;
        let targets = [self.devices[1].as_raw_fd(), self.devices[0].as_raw_fd()];
        for (direction, target) in self.directions.iter_mut().zip(targets) {
            while let Some(due) = direction.take_due(now) {
                let (headers, payload) = due.packet.assemble(due.from, due.to);
                if !write_both(target, &headers, payload) {
                    direction.counts.write_errors += 1;
                }
            }
        }
    }

    fn wait(&self) {
        let entry = |device: &OwnedFd| libc::pollfd {
            fd: device.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut entries = [entry(&self.devices[0]), entry(&self.devices[1])];
        let left_ns = match self.next_ns() {
            None => None,
            Some(next) => {
                match next.max(self.last_batch_ns + self.slack_ns).checked_sub(now_ns()) {
                    None | Some(0) => return,
                    left => left,
                }
            }
        };
        let timeout = left_ns.map(|left| libc::timespec {
            tv_sec: (left / 1_000_000_000) as libc::time_t,
            tv_nsec: (left % 1_000_000_000) as libc::c_long,
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: two valid entries; the time-out is null or outlives the call.
        unsafe { libc::ppoll(entries.as_mut_ptr(), 2, timeout, std::ptr::null()) };
    }

    fn report(&self) {
        // SAFETY: rusage is plain numbers, for which zeros are valid.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is valid for the call.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        let millis = |time: libc::timeval| time.tv_sec as u64 * 1000 + time.tv_usec as u64 / 1000;
        Report {
            ab: &self.directions[0].counts,
            ba: &self.directions[1].counts,
            segments_inside: self.directions.iter().map(Direction::segments_inside).sum(),
            cpu_user_ms: millis(usage.ru_utime),
            cpu_system_ms: millis(usage.ru_stime),
        }
        .print();
    }
}

fn write_both(fd: RawFd, headers: &[u8], payload: &[u8]) -> bool {
    let parts = [headers, payload]
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    // SAFETY: writev only reads the two valid slices.
    unsafe { libc::writev(fd, parts.as_ptr(), 2) > 0 }
}
