//! The bandwidth limit and the pause of a session, shared by its lanes.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use novacron_core::pacing::TokenBucket;

use crate::completion::lock;

/// Longest nap before looking again: pause, cancel and a new limit act within it.
const NAP_MAX: Duration = Duration::from_millis(50);

pub(crate) struct Pacer {
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    bucket: TokenBucket,
    paused: bool,
    ended: bool,
}

impl Pacer {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let bucket = TokenBucket::new(bytes_per_second, 0);
        let state = Mutex::new(State { bucket, paused: false, ended: false });
        Self { began: Instant::now(), state, changed: Condvar::new() }
    }

    /// Waits until `bytes` may go; `false` when the session ended meanwhile.
    pub(crate) fn acquire(&self, bytes: u64) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.ended {
                return false;
            }
            let mut nap = NAP_MAX;
            if !state.paused {
                match state.bucket.take(bytes, self.nanos()) {
                    Ok(()) => return true,
                    Err(wait) => nap = nap.min(Duration::from_nanos(wait)),
                }
            }
            let waited = self.changed.wait_timeout(state, nap);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Counts bytes that can't wait; those that may wait go later for it.
    pub(crate) fn spend(&self, bytes: u64) {
        let now = self.nanos();
        lock(&self.state).bucket.spend(bytes, now);
    }

    pub(crate) fn set_rate(&self, bytes_per_second: u64) {
        let now = self.nanos();
        self.change(|state| state.bucket.set_rate(bytes_per_second, now));
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    pub(crate) fn paused(&self) -> bool {
        lock(&self.state).paused
    }

    /// Everybody who waits goes on, with the answer `false`.
    pub(crate) fn end(&self) {
        self.change(|state| state.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    fn nanos(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}
