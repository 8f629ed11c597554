//! How many distinct bytes a guest writes in a given time: a curve that is learned from counts.
//!
//! Guests write the same pages again, so the curve bends: a rate alone foretells too much for long
//! rounds, a working set alone too much for short ones.

/// Points a doubling of time; between two of them the curve is taken as straight.
const POINTS_A_DOUBLING: f64 = 2.0;
/// Shortest time that has a point of its own, seconds.
const FIRST_SECONDS: f64 = 0.001;
/// Enough for counts after a millisecond and after a week.
const POINTS_MAX: usize = 60;
/// Weight of the newest count; single counts are noisy.
const NEWEST_WEIGHT: f64 = 0.5;
/// Most that one count may lift or lower the whole curve by.
const LEVEL_RANGE: (f64, f64) = (0.25, 4.0);
/// A curve that still grows by this part of its earlier half counts as straight.
const STRAIGHT: f64 = 0.98;

/// Counts by the time that had passed since the dirty set was last emptied.
#[derive(Clone, Debug)]
pub struct DirtyCurve {
    points: [Option<(f64, f64)>; POINTS_MAX],
    newest: Option<(f64, f64)>,
}

impl Default for DirtyCurve {
    fn default() -> Self {
        Self { points: [None; POINTS_MAX], newest: None }
    }
}

impl DirtyCurve {
    /// Takes a count: this many distinct bytes were dirty, `seconds` after there were none.
    pub fn observe(&mut self, seconds: f64, bytes: f64) {
        if seconds < FIRST_SECONDS || !seconds.is_finite() {
            return;
        }
        self.newest = Some((seconds, bytes));
        if self.last().is_some_and(|(longest, _)| seconds <= longest) {
            self.level(seconds, bytes);
        }
        let at = ((seconds / FIRST_SECONDS).log2() * POINTS_A_DOUBLING).round() as usize;
        let point = &mut self.points[at.min(POINTS_MAX - 1)];
        *point = Some(point.map_or((seconds, bytes), |(before_seconds, before_bytes)| (
            before_seconds + (seconds - before_seconds) * NEWEST_WEIGHT,
            before_bytes + (bytes - before_bytes) * NEWEST_WEIGHT,
        )));
    }

    /// Distinct bytes per second over the time of the newest count; 0 before the first.
    pub fn rate(&self) -> f64 {
        self.newest.map_or(0.0, |(seconds, bytes)| bytes / seconds)
    }

    /// Distinct bytes that will be dirty `seconds` after there were none.
    pub fn after(&self, seconds: f64) -> f64 {
        let (mut before, mut highest) = ((0.0, 0.0), 0.0_f64);
        for (at, bytes) in self.points.iter().flatten().copied() {
            // More time never means fewer distinct pages.
            let point = (at, bytes.max(highest));
            if seconds <= at {
                return between(before, point, seconds);
            }
            (before, highest) = (point, point.1);
        }
        let (longest, bytes) = before;
        if longest <= 0.0 { 0.0 } else { self.beyond((longest, bytes), seconds) }
    }

    /// A guest that writes in random order over a working set w fills it as w (1 - e^(-t / T)):
    /// the counts at the end and at half the time fix w and T.
    fn beyond(&self, (longest, bytes): (f64, f64), seconds: f64) -> f64 {
        let half = self.after(longest / 2.0);
        let growth = if half > 0.0 { bytes / half - 1.0 } else { 1.0 };
        if growth >= STRAIGHT {
            return bytes / longest * seconds;
        }
        let growth = growth.max(0.0);
        let working_set = bytes / (1.0 - growth * growth);
        working_set * (1.0 - growth.powf(2.0 * seconds / longest))
    }

    fn last(&self) -> Option<(f64, f64)> {
        self.points.iter().flatten().last().copied()
    }

    /// The guest writes more or less than it did: the shape stays, the level follows.
    fn level(&mut self, seconds: f64, bytes: f64) {
        let expected = self.after(seconds);
        if expected <= 0.0 {
            return;
        }
        let factor = (bytes / expected).clamp(LEVEL_RANGE.0, LEVEL_RANGE.1).sqrt();
        for (_, known) in self.points.iter_mut().flatten() {
            *known *= factor;
        }
    }
}

fn between(from: (f64, f64), to: (f64, f64), seconds: f64) -> f64 {
    let part = if to.0 > from.0 { (seconds - from.0) / (to.0 - from.0) } else { 1.0 };
    from.1 + (to.1 - from.1) * part
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn learned(until: f64, guest: impl Fn(f64) -> f64) -> DirtyCurve {
        let mut curve = DirtyCurve::default();
        let mut seconds = 0.2;
        while seconds <= until {
            curve.observe(seconds, guest(seconds));
            seconds += 0.2;
        }
        curve
    }

    proptest! {
        #[test]
        fn a_random_writer_is_foretold_from_a_fifth_of_the_time(
            set in 1e6..1e9_f64, fill_s in 0.5..50.0_f64, round_s in 5.0..60.0_f64,
        ) {
            let guest = |t: f64| set * (1.0 - (-t / fill_s).exp());
            let curve = learned(round_s / 5.0, guest);
            let (told, true_bytes) = (curve.after(round_s), guest(round_s));
            prop_assert!((told / true_bytes - 1.0).abs() < 0.1, "{told} for {true_bytes}");
        }

        #[test]
        fn it_never_falls_with_time_and_never_is_negative(
            counts in proptest::collection::vec((0.001..100.0_f64, 0.0..1e9_f64), 0..40),
            times in proptest::collection::vec(0.0..1e4_f64, 2..20),
        ) {
            let mut curve = DirtyCurve::default();
            counts.iter().for_each(|(seconds, bytes)| curve.observe(*seconds, *bytes));
            let mut times = times;
            times.sort_by(f64::total_cmp);
            let mut before = 0.0;
            for seconds in times {
                let bytes = curve.after(seconds);
                prop_assert!(bytes.is_finite() && bytes >= before - 1e-3, "{bytes} after {before}");
                before = bytes;
            }
        }
    }

    #[test]
    fn a_steady_stream_stays_straight_and_nothing_is_nothing() {
        let curve = learned(2.0, |t| 5e6 * t);
        for seconds in [0.05, 0.2, 1.3, 20.0] {
            assert!((curve.after(seconds) / (5e6 * seconds) - 1.0).abs() < 0.01, "{seconds}");
        }
        assert!(DirtyCurve::default().after(10.0).abs() < f64::EPSILON);
        assert!(learned(2.0, |_| 0.0).after(10.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_guest_that_calms_down_is_followed() {
        let mut curve = learned(10.0, |t| 50e6 * t);
        for _ in 0..4 {
            for seconds in [0.5, 1.0, 2.0] {
                curve.observe(seconds, 1e6 * seconds);
            }
        }
        let told = curve.after(8.0);
        assert!(told < 20e6, "{told} bytes, 8e6 are true");
    }
}
