//! When a move may leave its rounds: one pure function over what the rounds measured.
//!
//! The aim is lower than the budget: as long as another round makes the last pass clearly
//! shorter, it is cheaper than downtime. Once rounds stop shrinking, the budget decides.

/// A last pass this short is not worth another round: stopping and starting a VM takes as long.
pub const AIM_MS: f64 = 3.0;
/// A round counts as flat when it leaves more than this part of what the round before left.
pub const FLAT_RATIO: f64 = 0.8;
/// Flat rounds before the budget decides; one may be chance, two are a trend.
pub const FLAT_ROUNDS_MIN: u32 = 2;
/// Flat rounds after which a move without consent to post-copy is given up.
pub const FLAT_ROUNDS_MAX: u32 = 64;
/// And the time that it must have tried before: guests get quieter, too.
pub const GIVE_UP_AFTER_MS: f64 = 30_000.0;

/// What is known when a round has been sent and the next dirty set is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Situation {
    /// Rounds that were sent, round 0 included.
    pub rounds_sent: u32,
    /// Bytes that are dirty or on their way now.
    pub remaining_bytes: f64,
    /// The same after the round before; `None` after round 0.
    pub previous_remaining_bytes: Option<f64>,
    /// Consecutive flat rounds so far, this one not counted.
    pub flat_rounds: u32,
    /// What the link takes, bytes per second; `None` while unknown.
    pub send_bytes_per_second: Option<f64>,
    /// What the guest writes, bytes of distinct pages per second.
    pub dirty_bytes_per_second: f64,
    /// Budget of the whole blackout.
    pub downtime_budget_ms: f64,
    /// What the blackout takes beside the last pass.
    pub fixed_downtime_ms: f64,
    /// Consent to post-copy.
    pub post_copy_allowed: bool,
    /// Somebody asked for post-copy now.
    pub post_copy_requested: bool,
    /// Since round 0 began.
    pub elapsed_ms: f64,
    pub deadline_ms: f64,
}

/// Why it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The last pass would be as short as it is worth.
    MetAim,
    /// Rounds no longer shrink, and what is left fits the budget.
    FlatWithinBudget,
    /// Rounds no longer shrink, and what is left does not fit the budget.
    FlatAboveBudget,
    /// Rounds still shrink.
    Shrinking,
    /// No rate is known yet.
    Measuring,
    /// Post-copy was asked for.
    Requested,
    /// The deadline is over.
    Deadline,
    /// The guest has written faster than the link carries for too long.
    NotConverging,
}

impl Reason {
    /// Stable name for records and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::MetAim => "met-aim",
            Self::FlatWithinBudget => "flat-within-budget",
            Self::FlatAboveBudget => "flat-above-budget",
            Self::Shrinking => "shrinking",
            Self::Measuring => "measuring",
            Self::Requested => "requested",
            Self::Deadline => "deadline",
            Self::NotConverging => "not-converging",
        }
    }
}

/// How the move goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    SwitchOver { reason: Reason },
    NextRound { reason: Reason },
    PostCopy { reason: Reason },
    GiveUp { reason: Reason },
}

impl Decision {
    /// Stable name for records and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::SwitchOver { .. } => "switch-over",
            Self::NextRound { .. } => "next-round",
            Self::PostCopy { .. } => "post-copy",
            Self::GiveUp { .. } => "give-up",
        }
    }

    /// Why.
    pub fn reason(self) -> Reason {
        match self {
            Self::SwitchOver { reason }
            | Self::NextRound { reason }
            | Self::PostCopy { reason }
            | Self::GiveUp { reason } => reason,
        }
    }
}

/// Milliseconds that the last pass would take now; `None` without a rate.
pub fn last_pass_ms(situation: &Situation) -> Option<f64> {
    let rate = situation.send_bytes_per_second.filter(|rate| *rate > 0.0)?;
    Some(situation.remaining_bytes / rate * 1e3)
}

/// The blackout that would follow from switching over now; `None` without a rate.
pub fn estimated_downtime_ms(situation: &Situation) -> Option<f64> {
    last_pass_ms(situation).map(|pass| pass + situation.fixed_downtime_ms)
}

/// Whether this round left nearly as much as the one before.
pub fn is_flat(situation: &Situation) -> bool {
    situation
        .previous_remaining_bytes
        .is_some_and(|before| situation.remaining_bytes > before * FLAT_RATIO)
}

/// Decides after a round.
pub fn decide(situation: &Situation) -> Decision {
    if situation.post_copy_requested && situation.post_copy_allowed && situation.rounds_sent > 0 {
        return Decision::PostCopy { reason: Reason::Requested };
    }
    let late = situation.elapsed_ms >= situation.deadline_ms;
    let Some(pass_ms) = last_pass_ms(situation).filter(|_| situation.rounds_sent > 0) else {
        return if late { at_deadline(situation) } else {
            Decision::NextRound { reason: Reason::Measuring }
        };
    };
    let within_budget = pass_ms + situation.fixed_downtime_ms <= situation.downtime_budget_ms;
    if within_budget && pass_ms <= AIM_MS {
        return Decision::SwitchOver { reason: Reason::MetAim };
    }
    let flat_rounds = if is_flat(situation) { situation.flat_rounds + 1 } else { 0 };
    if within_budget && (flat_rounds >= FLAT_ROUNDS_MIN || late) {
        return Decision::SwitchOver { reason: Reason::FlatWithinBudget };
    }
    if late {
        return at_deadline(situation);
    }
    if flat_rounds < FLAT_ROUNDS_MIN {
        return Decision::NextRound { reason: Reason::Shrinking };
    }
    if situation.post_copy_allowed {
        return Decision::PostCopy { reason: Reason::FlatAboveBudget };
    }
    if flat_rounds >= FLAT_ROUNDS_MAX && situation.elapsed_ms >= GIVE_UP_AFTER_MS {
        return Decision::GiveUp { reason: Reason::NotConverging };
    }
    Decision::NextRound { reason: Reason::FlatAboveBudget }
}

fn at_deadline(situation: &Situation) -> Decision {
    if situation.post_copy_allowed && situation.rounds_sent > 0 {
        return Decision::PostCopy { reason: Reason::Deadline };
    }
    Decision::GiveUp { reason: Reason::Deadline }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CALM: Situation = Situation {
        rounds_sent: 3,
        remaining_bytes: 1e6,
        previous_remaining_bytes: Some(10e6),
        flat_rounds: 0,
        send_bytes_per_second: Some(1e9),
        dirty_bytes_per_second: 1e6,
        downtime_budget_ms: 100.0,
        fixed_downtime_ms: 5.0,
        post_copy_allowed: false,
        post_copy_requested: false,
        elapsed_ms: 500.0,
        deadline_ms: 60_000.0,
    };

    #[test]
    fn table_of_decisions() {
        let flat = Situation {
            remaining_bytes: 50e6, previous_remaining_bytes: Some(50e6), flat_rounds: 1, ..CALM
        };
        let above = Situation { remaining_bytes: 500e6, previous_remaining_bytes: Some(500e6), ..flat };
        let consent = Situation { post_copy_allowed: true, ..above };
        let hopeless = Situation { flat_rounds: 63, elapsed_ms: 31_000.0, ..above };
        let late = Situation { elapsed_ms: 60_000.0, ..above };
        let cases = [
            (CALM, Decision::SwitchOver { reason: Reason::MetAim }),
            (Situation { remaining_bytes: 5e6, ..CALM }, Decision::NextRound { reason: Reason::Shrinking }),
            (Situation { send_bytes_per_second: None, ..CALM }, Decision::NextRound { reason: Reason::Measuring }),
            (flat, Decision::SwitchOver { reason: Reason::FlatWithinBudget }),
            (Situation { flat_rounds: 0, ..flat }, Decision::NextRound { reason: Reason::Shrinking }),
            (above, Decision::NextRound { reason: Reason::FlatAboveBudget }),
            (consent, Decision::PostCopy { reason: Reason::FlatAboveBudget }),
            (hopeless, Decision::GiveUp { reason: Reason::NotConverging }),
            (late, Decision::GiveUp { reason: Reason::Deadline }),
            (Situation { post_copy_allowed: true, ..late }, Decision::PostCopy { reason: Reason::Deadline }),
            (Situation { elapsed_ms: 60_000.0, flat_rounds: 0, ..flat }, Decision::SwitchOver { reason: Reason::FlatWithinBudget }),
            (Situation { post_copy_requested: true, ..consent }, Decision::PostCopy { reason: Reason::Requested }),
            (Situation { post_copy_requested: true, ..CALM }, Decision::SwitchOver { reason: Reason::MetAim }),
        ];
        for (situation, expected) in cases {
            assert_eq!(decide(&situation), expected, "{situation:?}");
        }
    }

    proptest! {
        #[test]
        fn never_above_budget_and_never_without_consent(
            rounds_sent in 0_u32..10, remaining_bytes in 0.0..1e10_f64,
            before in proptest::option::of(0.0..1e10_f64), flat_rounds in 0_u32..80,
            rate in proptest::option::of(0.0..1e10_f64), budget in 0.0..1e4_f64,
            allowed in any::<bool>(), requested in any::<bool>(), elapsed_ms in 0.0..1e5_f64,
        ) {
            let situation = Situation {
                rounds_sent, remaining_bytes, previous_remaining_bytes: before, flat_rounds,
                send_bytes_per_second: rate, downtime_budget_ms: budget,
                post_copy_allowed: allowed, post_copy_requested: requested, elapsed_ms, ..CALM
            };
            match decide(&situation) {
                Decision::SwitchOver { .. } => {
                    prop_assert!(estimated_downtime_ms(&situation).is_some_and(|ms| ms <= budget));
                }
                Decision::PostCopy { .. } => prop_assert!(allowed && rounds_sent > 0),
                Decision::GiveUp { .. } => prop_assert!(elapsed_ms >= GIVE_UP_AFTER_MS),
                Decision::NextRound { .. } => prop_assert!(elapsed_ms < situation.deadline_ms),
            }
        }
    }
}
