//! What the rounds measured: how fast the link takes bytes, how fast the guest writes them.

use novacron_core::dirtying::DirtyCurve;

/// Bytes of a sample that says something about the link and not about one wake-up.
const SAMPLE_BYTES_MIN: f64 = 4_194_304.0;
/// Weight of the newest sample; links change slowly, single rounds are noisy.
const NEWEST_WEIGHT: f64 = 0.5;
/// What the average for estimates looks back on, seconds: an ETA that follows every sample jumps.
const AVERAGE_SECONDS: f64 = 5.0;

#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    send_bytes_per_second: Option<f64>,
    /// Bytes and seconds, older ones with less weight.
    average: (f64, f64),
    curve: DirtyCurve,
    sample_began: (f64, f64),
}

impl Rates {
    /// Begins to measure sending at this time and with this much applied.
    pub(crate) fn start(&mut self, now_s: f64, applied_bytes: f64) {
        self.sample_began = (now_s, applied_bytes);
    }

    /// Nothing was on its way since `since_s`: that time says nothing about the link.
    pub(crate) fn skip_idle(&mut self, since_s: f64, now_s: f64) {
        let (began_s, began_bytes) = self.sample_began;
        self.sample_began = (began_s + (now_s - since_s.max(began_s)).max(0.0), began_bytes);
    }

    /// Looks how much has been applied since; `pause` discards the time that sending stood still.
    pub(crate) fn sent(&mut self, now_s: f64, applied_bytes: f64, paused: bool) {
        let (began_s, began_bytes) = self.sample_began;
        let (seconds, bytes) = (now_s - began_s, applied_bytes - began_bytes);
        if paused {
            self.sample_began = (now_s, applied_bytes);
            return;
        }
        let known = self.send_bytes_per_second;
        let enough = bytes >= SAMPLE_BYTES_MIN || (bytes > 0.0 && seconds >= 0.5);
        if seconds <= 0.0 || !(enough || (known.is_none() && bytes > 0.0)) {
            return;
        }
        let sample = bytes / seconds;
        let fade = (-seconds / AVERAGE_SECONDS).exp();
        self.average = (self.average.0 * fade + bytes, self.average.1 * fade + seconds);
        self.send_bytes_per_second = Some(match known {
            Some(before) if enough => before + (sample - before) * NEWEST_WEIGHT,
            _ => sample,
        });
        self.sample_began = (now_s, applied_bytes);
    }

    /// Takes a count of dirty bytes, `seconds` after the dirty set was last emptied.
    pub(crate) fn dirtied(&mut self, bytes: f64, seconds: f64) {
        self.curve.observe(seconds, bytes);
    }

    /// The same link is slower under a new limit at once, not after it was measured; what a higher
    /// one gives has to be measured.
    pub(crate) fn limit(&mut self, bytes_per_second: u64) {
        self.average = (0.0, 0.0);
        if bytes_per_second > 0 {
            let limit = bytes_per_second as f64;
            self.send_bytes_per_second = self.send_bytes_per_second.map(|rate| rate.min(limit));
        }
    }

    pub(crate) fn send(&self) -> Option<f64> {
        self.send_bytes_per_second
    }

    /// The rate for estimates: over seconds rather than the last sample.
    pub(crate) fn steady(&self) -> Option<f64> {
        let (bytes, seconds) = self.average;
        if bytes > 0.0 && seconds > 0.0 { Some(bytes / seconds) } else { self.send() }
    }

    pub(crate) fn dirty(&self) -> f64 {
        self.curve.rate()
    }

    pub(crate) fn curve(&self) -> &DirtyCurve {
        &self.curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_samples_wait_and_pauses_do_not_count() {
        let mut rates = Rates::default();
        rates.start(0.0, 0.0);
        rates.sent(0.1, 10e6, false);
        assert!(rates.send().is_some_and(|rate| (rate - 100e6).abs() < 1.0));
        rates.sent(0.1001, 10.1e6, false);
        assert!(rates.send().is_some_and(|rate| (rate - 100e6).abs() < 1.0));
        rates.sent(5.0, 10.1e6, true);
        rates.sent(5.1, 30.1e6, false);
        assert!(rates.send().is_some_and(|rate| (rate - 150e6).abs() < 1.0));
    }

    #[test]
    fn idle_time_between_small_rounds_does_not_count() {
        let mut rates = Rates::default();
        rates.start(0.0, 0.0);
        rates.sent(0.1, 10e6, false);
        let mut now = 0.1;
        for round in 1..=10 {
            rates.skip_idle(now, now + 1.0);
            now += 1.01;
            rates.sent(now, 10e6 + f64::from(round) * 1e6, false);
        }
        assert!(rates.send().is_some_and(|rate| (rate - 100e6).abs() < 10e6), "{:?}", rates.send());
    }

    #[test]
    fn estimates_use_an_average_that_follows_a_new_limit_at_once() {
        let mut rates = Rates::default();
        rates.start(0.0, 0.0);
        let mut applied = 0.0;
        for sample in 1..=40 {
            applied += if sample % 2 == 0 { 12e6 } else { 8e6 };
            rates.sent(f64::from(sample), applied, false);
        }
        let steady = rates.steady().expect("a rate");
        assert!((steady / 10e6 - 1.0).abs() < 0.06, "{steady}");
        rates.limit(1_000_000);
        assert!(rates.steady().is_some_and(|rate| rate <= 1e6));
        rates.sent(41.0, applied + 1e6, false);
        assert!(rates.steady().is_some_and(|rate| (rate - 1e6).abs() < 1.0));
    }
}
