//! Room for pushed pages, shared by the lanes of a source; how much there is follows the link.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use novacron_core::push_limit::PushLimit;

use crate::completion::lock;

/// How often a lane without room looks whether it is still needed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) struct PushWindow {
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    limit: PushLimit,
    unapplied: u64,
}

impl Default for PushWindow {
    fn default() -> Self {
        Self { began: Instant::now(), state: Mutex::default(), changed: Condvar::new() }
    }
}

impl PushWindow {
    /// Waits until `bytes` may go and takes their room; `false` once `needed` says no. That is
    /// asked without a lock of ours: acknowledgements come here with their lane's lock held.
    pub(crate) fn enter(&self, bytes: u64, needed: impl Fn() -> bool) -> bool {
        while needed() {
            let mut state = lock(&self.state);
            if state.limit.admits(state.unapplied, bytes) {
                state.unapplied += bytes;
                return true;
            }
            // A poisoned lock is read again by the next turn.
            drop(self.changed.wait_timeout(state, LOOK_EVERY));
        }
        false
    }

    /// The target has applied bytes that went at `sent_at`.
    pub(crate) fn applied(&self, bytes: u64, sent_at: Instant) {
        let way = sent_at.elapsed().as_nanos() as u64;
        let now = self.began.elapsed().as_nanos() as u64;
        self.release(bytes, |limit| limit.applied(bytes, way, now));
    }

    /// Their lane broke before they were applied.
    pub(crate) fn lost(&self, bytes: u64) {
        self.release(bytes, |_| {});
    }

    fn release(&self, bytes: u64, learn: impl FnOnce(&mut PushLimit)) {
        {
            let mut state = lock(&self.state);
            state.unapplied -= bytes;
            learn(&mut state.limit);
        }
        self.changed.notify_all();
    }
}
