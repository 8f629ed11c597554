//! How far a move is and when it will end: honest or silent.
//!
//! The forecast plays the rest of the move: it sends what is left at the rate of the link, lets the
//! guest dirty what its curve says, and asks the same rule that will really decide.

use crate::convergence::{self, Decision, Reason, Situation};
use crate::dirtying::DirtyCurve;

/// Rounds that a forecast looks ahead: the rule gives up after fewer.
const FORECAST_ROUNDS_MAX: usize = 400;
/// Part of the first pass that must have been sent before a rate is trusted.
const TRUST_PART: f64 = 0.02;

/// Figures of one look.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a> {
    /// Bytes of pages that had to be sent so far, pages dirtied again counted again.
    pub planned_bytes: f64,
    /// How many of them are applied at the target.
    pub done_bytes: f64,
    /// Bytes that the link has still to carry for what is dirty, missing or on its way: pages that
    /// cost nothing are not in it.
    pub left_bytes: f64,
    /// On the wire, averaged over seconds.
    pub send_bytes_per_second: Option<f64>,
    /// Since the dirty set was last emptied: what the guest wrote since then is still to come.
    pub dirtying_ms: f64,
    /// What the guest writes in a time.
    pub curve: &'a DirtyCurve,
    /// As after the last round; rates and what remains are the forecast's own.
    pub situation: Situation,
    /// The rounds are over: nothing is counted but what is left.
    pub decided: bool,
    /// Sending stands still on request.
    pub paused: bool,
    /// Every byte is over.
    pub ended: bool,
}

/// Where a move leads if link and guest go on as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outlook {
    /// Nothing honest can be said.
    Unknown,
    /// Memory is over in `eta_ms`, after a last pass of `last_pass_ms` in the blackout.
    Ends { eta_ms: f64, last_pass_ms: f64, post_copy: bool },
    /// It will be given up for this reason; switching over would take at least `last_pass_ms`.
    GivenUp { reason: Reason, last_pass_ms: f64 },
}

impl Outlook {
    /// Stable name for records and users.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Ends { post_copy: false, .. } => "ends",
            Self::Ends { post_copy: true, .. } => "ends-by-post-copy",
            Self::GivenUp { reason: Reason::Deadline, .. } => "past-deadline",
            Self::GivenUp { .. } => "not-converging",
        }
    }

    /// Milliseconds until memory is over, `None` when that is not known or will not be.
    pub fn eta_ms(&self) -> Option<f64> {
        match self {
            Self::Ends { eta_ms, .. } => Some(*eta_ms),
            Self::Unknown | Self::GivenUp { .. } => None,
        }
    }

    /// What the last pass takes, or would take at the least.
    pub fn last_pass_ms(&self) -> Option<f64> {
        match self {
            Self::Ends { last_pass_ms, .. } | Self::GivenUp { last_pass_ms, .. } => {
                Some(*last_pass_ms)
            }
            Self::Unknown => None,
        }
    }
}

/// Plays the rest of the move.
pub fn outlook(figures: &Figures<'_>) -> Outlook {
    let ends = |eta_ms| Outlook::Ends { eta_ms, last_pass_ms: 0.0, post_copy: false };
    if figures.ended {
        return ends(0.0);
    }
    let known = figures.send_bytes_per_second.filter(|rate| *rate > 0.0);
    let Some(rate) = known.filter(|_| !figures.paused) else { return Outlook::Unknown };
    if figures.decided {
        return ends(figures.left_bytes / rate * 1e3);
    }
    if figures.done_bytes < figures.planned_bytes * TRUST_PART {
        return Outlook::Unknown;
    }
    forecast(figures, rate)
}

fn forecast(figures: &Figures<'_>, rate: f64) -> Outlook {
    let mut next = Situation { send_bytes_per_second: Some(rate), ..figures.situation };
    let (mut left, mut dirtying_ms) = (figures.left_bytes, figures.dirtying_ms);
    let mut total_ms = 0.0;
    let mut shortest_ms = f64::INFINITY;
    for _ in 0..FORECAST_ROUNDS_MAX {
        let round_ms = left / rate * 1e3;
        total_ms += round_ms;
        dirtying_ms += round_ms;
        left = figures.curve.after(dirtying_ms / 1e3);
        next.rounds_sent += 1;
        next.elapsed_ms += round_ms;
        next.remaining_bytes = left;
        next.dirty_bytes_per_second = figures.curve.rate();
        let pass_ms = left / rate * 1e3;
        shortest_ms = shortest_ms.min(pass_ms);
        match convergence::decide(&next) {
            Decision::SwitchOver { .. } => {
                return Outlook::Ends {
                    eta_ms: total_ms + pass_ms, last_pass_ms: pass_ms, post_copy: false,
                };
            }
            Decision::PostCopy { .. } => {
                return Outlook::Ends {
                    eta_ms: total_ms + pass_ms, last_pass_ms: 0.0, post_copy: true,
                };
            }
            Decision::GiveUp { reason } => {
                return Outlook::GivenUp { reason, last_pass_ms: shortest_ms };
            }
            Decision::NextRound { .. } => {}
        }
        let flat = convergence::is_flat(&next);
        next.flat_rounds = if flat { next.flat_rounds + 1 } else { 0 };
        next.previous_remaining_bytes = Some(left);
        dirtying_ms = 0.0;
    }
    Outlook::GivenUp { reason: Reason::NotConverging, last_pass_ms: shortest_ms }
}

/// Percent that never falls, and reaches 100 only at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Percent {
    highest: f64,
}

impl Percent {
    /// The share of time that seems to be over: elapsed against elapsed plus what is left; the
    /// share of bytes while there is no estimate.
    pub fn update(&mut self, figures: &Figures<'_>, outlook: &Outlook, elapsed_ms: f64) -> f64 {
        let bytes_share = if figures.planned_bytes > 0.0 {
            figures.done_bytes / figures.planned_bytes
        } else {
            0.0
        };
        let share = match outlook.eta_ms() {
            Some(left) if elapsed_ms + left > 0.0 => elapsed_ms / (elapsed_ms + left),
            _ => bytes_share,
        };
        let percent = if figures.ended { 100.0 } else { (share * 100.0).clamp(0.0, 99.0) };
        self.highest = self.highest.max(percent);
        self.highest
    }
}

#[cfg(test)]
mod tests;
