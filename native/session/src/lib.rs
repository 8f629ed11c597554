//! One migration: the threads and the driving loop of its source and of its target.
//!
//! ```text
//!  source                                         target
//!   driver: scan, decide, last pass
//!   lane i: pread, hash, send   ── memory lane i ──►  lane i: receive, hash, pwrite
//!   lane i: acknowledgements    ◄─────────────────
//!   fault server                ◄── fault lane ────►  fault server (userfaultfd)
//!   image check                 ◄── check lane ────►  image check, once the target runs
//!   device tunnel               ◄── device lane ───►  device tunnel, held until memory is in
//!   disk taps                   ◄── held-disk lanes ─ digests of what the images hold
//!   disk tunnels                ◄── disk lanes ────►  disk tunnels, through the gate
//! ```
//! A chunk of memory always travels on the same lane, so a page never overtakes itself and rounds
//! need no barrier. A lane that breaks is opened again; what the target had not applied becomes
//! dirty again. What the rules are is `core`'s matter, how bytes travel is `transport`'s, what a
//! VMM's memory is is `guest-memory`'s. Nothing here stops or starts a VM.

mod completion;
mod disks;
mod failure;
mod frames;
mod image_check;
mod listener;
mod pacer;
mod page_bits;
mod planted;
mod source;
mod target;
mod tunnel;
mod wire;

pub use completion::Answer;
pub use failure::{Failure, FailureCode};
pub use image_check::Exactness;
pub use novacron_core::frame::Checked;
pub use listener::LaneListener;
pub use planted::{MARK_BYTES, PlantedFaults, Skipped};
pub use source::{
    ConvergenceAnswer, FinishMode, FinishedMemory, SourceOptions, SourceSession, SourceSnapshot,
};
pub use target::{
    CheckedMemory, DiskEndpoint, MemoryRecord, Repair, TargetOptions, TargetSession,
    TargetSnapshot, journal_path,
};

use std::time::Duration;

/// Longest wait for one lane to open, TCP and TLS together.
pub(crate) const OPEN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Pauses between attempts to open a broken lane again.
pub(crate) const REOPEN_PAUSE_MIN: Duration = Duration::from_millis(20);
pub(crate) const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a move survives without a lane before the target runs; afterwards it waits for ever.
pub(crate) const LINK_LOST_MAX: Duration = Duration::from_secs(30);
/// Pause before a target that refused a lane in post-copy is asked again: one that is being
/// restarted does until it has found the VM.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_millis(200);

/// A runner's threads go before the vCPUs of the guests; one that moves bulk takes its turn with
/// them, or a move would starve the guest that it moves.
pub(crate) fn take_ordinary_priority() {
    // SAFETY: no memory is involved; 0 is the calling thread. A level that can't be set stays.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}
