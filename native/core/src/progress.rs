//! How far a move is and when it will end: honest or silent.

use crate::convergence::AIM_MS;

/// Rounds that a forecast looks ahead; what has not converged by then has no honest end.
const FORECAST_ROUNDS_MAX: usize = 200;
/// Part of the first pass that must have been sent before a rate is trusted.
const TRUST_PART: f64 = 0.05;

/// Figures of one look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Bytes that had to be sent so far, pages dirtied again counted again.
    pub planned_bytes: f64,
    /// How many of them are applied at the target.
    pub done_bytes: f64,
    pub send_bytes_per_second: Option<f64>,
    pub dirty_bytes_per_second: f64,
    /// Since this round began: what the guest wrote in it is still to come.
    pub round_elapsed_ms: f64,
    /// Bytes of distinct pages that the guest seems to rewrite; bounds any round.
    pub working_set_bytes: Option<f64>,
    /// Consent to post-copy: what does not converge is still sent once.
    pub post_copy_allowed: bool,
    /// Sending stands still on request.
    pub paused: bool,
    /// Every byte is over.
    pub ended: bool,
}

/// Milliseconds until memory is over; `None` while nothing honest can be said.
pub fn eta_ms(figures: &Figures) -> Option<f64> {
    if figures.ended {
        return Some(0.0);
    }
    let rate = figures.send_bytes_per_second.filter(|rate| *rate > 0.0)?;
    if figures.paused || figures.done_bytes < figures.planned_bytes * TRUST_PART {
        return None;
    }
    let mut left = (figures.planned_bytes - figures.done_bytes).max(0.0);
    let mut total_ms = 0.0;
    let mut dirtying_ms = figures.round_elapsed_ms;
    for _ in 0..FORECAST_ROUNDS_MAX {
        let round_ms = left / rate * 1e3;
        total_ms += round_ms;
        dirtying_ms += round_ms;
        if dirtying_ms <= AIM_MS {
            return Some(total_ms);
        }
        let dirtied = figures.dirty_bytes_per_second * dirtying_ms / 1e3;
        let next = figures.working_set_bytes.map_or(dirtied, |set| dirtied.min(set));
        if next > rate * dirtying_ms / 1e3 * 0.97 {
            let rest_ms = next / rate * 1e3;
            return figures.post_copy_allowed.then_some(total_ms + 2.0 * rest_ms);
        }
        left = next;
        dirtying_ms = 0.0;
    }
    None
}

/// Percent that never falls, and reaches 100 only at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Percent {
    highest: f64,
}

impl Percent {
    /// The share of time that seems to be over: elapsed against elapsed plus what is left; the
    /// share of bytes while there is no estimate.
    pub fn update(&mut self, figures: &Figures, elapsed_ms: f64) -> f64 {
        let bytes_share = if figures.planned_bytes > 0.0 {
            figures.done_bytes / figures.planned_bytes
        } else {
            0.0
        };
        let share = match eta_ms(figures) {
            Some(left) if elapsed_ms + left > 0.0 => elapsed_ms / (elapsed_ms + left),
            _ => bytes_share,
        };
        let percent = if figures.ended { 100.0 } else { (share * 100.0).clamp(0.0, 99.0) };
        self.highest = self.highest.max(percent);
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A move on a constant link with a guest that writes at a constant rate over a working set.
    fn simulate(total: f64, rate: f64, dirty: f64, set: f64) -> Option<Vec<(f64, Figures)>> {
        let (mut looks, mut now, mut planned, mut done) = (Vec::new(), 0.0, total, 0.0);
        let mut left = total;
        for _ in 0..60 {
            let round_s = left / rate;
            for step in 0..50 {
                let part = f64::from(step) / 50.0;
                looks.push((now + round_s * part * 1e3, Figures {
                    planned_bytes: planned,
                    done_bytes: done + left * part,
                    send_bytes_per_second: Some(rate),
                    dirty_bytes_per_second: dirty,
                    round_elapsed_ms: round_s * part * 1e3,
                    working_set_bytes: Some(set),
                    ..Figures::default()
                }));
            }
            now += round_s * 1e3;
            done += left;
            if round_s * 1e3 <= AIM_MS {
                looks.push((now, Figures { ended: true, ..Figures::default() }));
                return Some(looks);
            }
            left = (dirty * round_s).min(set);
            planned += left;
        }
        None
    }

    proptest! {
        #[test]
        fn after_a_fifth_of_the_move_the_eta_is_within_a_fifth(
            total in 1e8..1e10_f64, rate in 1e7..2e9_f64, part in 0.0..0.9_f64, set in 1e6..5e8_f64,
        ) {
            if let Some(looks) = simulate(total, rate, rate * part, set) {
                let end = looks.last().map_or(0.0, |look| look.0);
                let mut percent = Percent::default();
                let mut before = 0.0;
                for (now, figures) in &looks {
                    let value = percent.update(figures, *now);
                    prop_assert!(value >= before && value <= 100.0);
                    before = value;
                    if *now >= end * 0.2 {
                        let eta = eta_ms(figures);
                        prop_assert!(eta.is_some_and(|eta| ((*now + eta) - end).abs() <= end * 0.2),
                            "at {now} of {end}: {eta:?}");
                    }
                }
                prop_assert!((before - 100.0).abs() < f64::EPSILON);
            }
        }
    }

    #[test]
    fn no_estimate_without_a_rate_or_without_an_end() {
        let figures = Figures { planned_bytes: 1e9, done_bytes: 5e8, ..Figures::default() };
        assert_eq!(eta_ms(&figures), None);
        let endless = Figures {
            send_bytes_per_second: Some(1e8), dirty_bytes_per_second: 3e8,
            working_set_bytes: Some(8e8), ..figures
        };
        assert_eq!(eta_ms(&endless), None);
        assert!(eta_ms(&Figures { post_copy_allowed: true, ..endless }).is_some());
        assert_eq!(eta_ms(&Figures { paused: true, ..endless }), None);
    }
}
