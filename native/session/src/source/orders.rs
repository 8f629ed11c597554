//! What the driver asks of the lanes, and what they report: one lock, one condition.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::completion::lock;
use crate::source::FinishMode;

/// Where the session as a whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Lanes sweep the dirty set whenever the driver has filled it.
    Rounds,
    /// The VM stands: what is dirty goes over, then the final marker.
    Last(FinishMode),
    /// The target runs: missing pages are pushed.
    Push,
    Ended,
}

/// What a lane has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Sweep(u64),
    Last(FinishMode),
    /// The number of the push: a list of the target may ask for another one.
    Push(u64),
    Broken,
    End,
}

/// What a lane has done on its present connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LaneDone {
    pub(crate) sweep: u64,
    pub(crate) last: bool,
    pub(crate) pushed: u64,
}

struct State {
    phase: Phase,
    sweep: u64,
    push: u64,
    holes_known: bool,
    /// Lanes that wait for the holes: what they had to send is in their tables.
    waiting: Vec<bool>,
    finish: Option<FinishMode>,
    swept: Vec<u64>,
    sums: Vec<Option<u128>>,
}

pub(crate) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

impl Orders {
    pub(crate) fn new(lane_count: usize) -> Self {
        let state = State {
            phase: Phase::Rounds,
            sweep: 0,
            push: 0,
            holes_known: false,
            waiting: vec![false; lane_count],
            finish: None,
            swept: vec![0; lane_count],
            sums: vec![None; lane_count],
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    // ---- lanes ----

    /// Waits for something that the lane has not done yet.
    pub(crate) fn next(&self, done: LaneDone, broken: impl Fn() -> bool) -> Action {
        let mut state = lock(&self.state);
        loop {
            if state.phase == Phase::Ended {
                return Action::End;
            }
            if broken() {
                return Action::Broken;
            }
            match state.phase {
                Phase::Rounds if state.sweep > done.sweep => return Action::Sweep(state.sweep),
                Phase::Last(mode) if !done.last => return Action::Last(mode),
                Phase::Push if !done.last => return Action::Last(FinishMode::PostCopy),
                Phase::Push if done.pushed < state.push => return Action::Push(state.push),
                _ => state = self.wait(state, Duration::from_secs(1)),
            }
        }
    }

    pub(crate) fn report_swept(&self, lane: usize, sweep: u64) {
        self.change(|state| state.swept[lane] = sweep);
    }

    pub(crate) fn report_final(&self, lane: usize, sum: u128) {
        self.change(|state| state.sums[lane] = Some(sum));
    }

    /// Waits until the walk over the holes has added its pages; `false` when the session ended.
    pub(crate) fn wait_holes(&self, lane: usize) -> bool {
        let mut state = lock(&self.state);
        state.waiting[lane] = true;
        self.changed.notify_all();
        while !state.holes_known && state.phase != Phase::Ended {
            state = self.wait(state, Duration::from_secs(1));
        }
        state.phase != Phase::Ended
    }

    // ---- driver ----

    /// Starts a sweep and answers its number.
    pub(crate) fn start_sweep(&self) -> u64 {
        let mut state = lock(&self.state);
        state.sweep += 1;
        self.changed.notify_all();
        state.sweep
    }

    /// Waits until every lane has swept, at most `patience`; `None` when the session ended.
    pub(crate) fn wait_swept(&self, sweep: u64, patience: Duration) -> Option<bool> {
        let until = Instant::now() + patience;
        let mut state = lock(&self.state);
        loop {
            if state.phase == Phase::Ended {
                return None;
            }
            if state.swept.iter().all(|swept| *swept >= sweep) {
                return Some(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(false);
            }
            state = self.wait(state, left);
        }
    }

    /// Waits for the request to finish, at most `patience`; the error says that the session ended.
    pub(crate) fn wait_finish(&self, patience: Duration) -> Result<Option<FinishMode>, ()> {
        let until = Instant::now() + patience;
        let mut state = lock(&self.state);
        loop {
            if state.phase == Phase::Ended {
                return Err(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.finish.is_some() || left.is_zero() {
                return Ok(state.finish);
            }
            state = self.wait(state, left);
        }
    }

    pub(crate) fn start_last(&self, mode: FinishMode, holes_known: bool) {
        self.change(|state| {
            if state.phase != Phase::Ended {
                state.phase = Phase::Last(mode);
                state.holes_known = holes_known;
            }
        });
    }

    /// Waits until every lane waits for the holes; `false` when the session ended.
    pub(crate) fn wait_lanes(&self) -> bool {
        let mut state = lock(&self.state);
        while !state.waiting.iter().all(|waiting| *waiting) && state.phase != Phase::Ended {
            state = self.wait(state, Duration::from_secs(1));
        }
        state.phase != Phase::Ended
    }

    pub(crate) fn holes_known(&self) {
        self.change(|state| state.holes_known = true);
    }

    /// Waits for the final sums of all lanes; `None` when the session ended.
    pub(crate) fn wait_sums(&self) -> Option<u128> {
        let mut state = lock(&self.state);
        loop {
            if state.phase == Phase::Ended {
                return None;
            }
            let sums = state.sums.iter().try_fold(0_u128, |all, sum| Some(all.wrapping_add((*sum)?)));
            if sums.is_some() {
                return sums;
            }
            state = self.wait(state, Duration::from_secs(1));
        }
    }

    /// Waits until the session ends.
    pub(crate) fn wait_ended(&self) {
        let mut state = lock(&self.state);
        while state.phase != Phase::Ended {
            state = self.wait(state, Duration::from_secs(1));
        }
    }

    // ---- everybody ----

    /// Asks the driver to finish; `false` when that was asked before or the session ended.
    pub(crate) fn request_finish(&self, mode: FinishMode) -> bool {
        let mut state = lock(&self.state);
        if state.finish.is_some() || state.phase == Phase::Ended {
            return false;
        }
        state.finish = Some(mode);
        self.changed.notify_all();
        true
    }

    pub(crate) fn start_push(&self) {
        self.change(|state| {
            if state.phase != Phase::Ended {
                state.phase = Phase::Push;
                state.push += 1;
            }
        });
    }

    /// The target runs already, what it misses is not known yet.
    pub(crate) fn start_in_push(&self) {
        self.change(|state| state.phase = Phase::Push);
    }

    /// More is missing than was known.
    pub(crate) fn push_again(&self) {
        self.change(|state| state.push += u64::from(state.phase == Phase::Push));
    }

    pub(crate) fn end(&self) {
        self.change(|state| state.phase = Phase::Ended);
    }

    pub(crate) fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    /// Makes everybody look again, after something beside this state changed.
    pub(crate) fn poke(&self) {
        self.change(|_| {});
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, at_most).unwrap_or_else(PoisonError::into_inner).0
    }
}
