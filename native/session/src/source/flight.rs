//! What a lane has sent and the target has not applied yet.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use novacron_core::pages::PageSet;

use crate::completion::lock;

/// Bytes that may be unapplied on one lane. Larger windows only help links of more than
/// 160 MB/s a lane at 100 ms; a broken lane sends at most this much again.
const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// Frames that may be unapplied: 4 KiB pages in scattered chunks reach it before the bytes.
const WINDOW_FRAMES_MAX: usize = 4096;

/// What a frame carried, as far as it matters when it has to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cargo {
    Pages { chunk: usize, pages: PageSet },
    /// Missing lists and round ends: repeated from their own sources.
    Note,
    Final,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) sequence: u64,
    pub(crate) cargo: Cargo,
    pub(crate) bytes: u64,
    /// When it took room in the push window; only pushed pages do.
    pub(crate) pushed_at: Option<Instant>,
}

#[derive(Default)]
struct State {
    sent: VecDeque<Sent>,
    bytes: u64,
    broken: bool,
    ended: bool,
}

#[derive(Default)]
pub(crate) struct Flight {
    state: Mutex<State>,
    changed: Condvar,
}

impl Flight {
    /// Waits for room in the window; `false` when the lane broke or the session ended.
    pub(crate) fn wait_room(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.broken || state.ended {
                return false;
            }
            if state.bytes < WINDOW_BYTES_MAX && state.sent.len() < WINDOW_FRAMES_MAX {
                return true;
            }
            let waited = self.changed.wait_timeout(state, Duration::from_secs(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Before the frame is written.
    pub(crate) fn push(&self, sent: Sent) {
        let mut state = lock(&self.state);
        state.bytes += sent.bytes;
        state.sent.push_back(sent);
    }

    /// Everything up to `sequence` is applied; calls `each` for every frame of it.
    pub(crate) fn applied(&self, sequence: u64, mut each: impl FnMut(&Sent)) {
        let mut state = lock(&self.state);
        while let Some(sent) = state.sent.front().filter(|sent| sent.sequence <= sequence).copied() {
            state.bytes -= sent.bytes;
            state.sent.pop_front();
            each(&sent);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Empties the window of a lane that was opened again.
    pub(crate) fn restart(&self) -> Vec<Sent> {
        let mut state = lock(&self.state);
        state.broken = false;
        state.bytes = 0;
        state.sent.drain(..).collect()
    }

    pub(crate) fn set_broken(&self) {
        lock(&self.state).broken = true;
        self.changed.notify_all();
    }

    pub(crate) fn broken(&self) -> bool {
        lock(&self.state).broken
    }

    pub(crate) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }

    /// Bytes on their way.
    pub(crate) fn flying_bytes(&self) -> u64 {
        lock(&self.state).bytes
    }

    /// (pages, bytes) on their way.
    pub(crate) fn pending(&self) -> (u64, u64) {
        let state = lock(&self.state);
        let pages = state.sent.iter().map(|sent| match sent.cargo {
            Cargo::Pages { pages, .. } => pages.count() as u64,
            Cargo::Note | Cargo::Final => 0,
        });
        (pages.sum(), state.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_shrinks_with_what_is_applied_and_the_rest_comes_back() {
        let flight = Flight::default();
        for sequence in 1..=5 {
            let mut pages = PageSet::EMPTY;
            pages.insert(sequence as usize);
            let cargo = Cargo::Pages { chunk: 0, pages };
            flight.push(Sent { sequence, cargo, bytes: 4096, pushed_at: None });
        }
        let mut seen = Vec::new();
        flight.applied(3, |sent| seen.push(sent.sequence));
        assert_eq!(seen, [1, 2, 3]);
        assert_eq!(flight.pending(), (2, 8192));
        flight.set_broken();
        assert!(!flight.wait_room());
        assert_eq!(flight.restart().len(), 2);
        assert!(flight.wait_room());
        assert_eq!(flight.pending(), (0, 0));
    }
}
