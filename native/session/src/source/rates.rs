//! What the rounds measured: how fast the link takes bytes, how fast the guest writes them.

/// Bytes of a sample that says something about the link and not about one wake-up.
const SAMPLE_BYTES_MIN: f64 = 4_194_304.0;
/// Weight of the newest sample; links change slowly, single rounds are noisy.
const NEWEST_WEIGHT: f64 = 0.5;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    send_bytes_per_second: Option<f64>,
    dirty_bytes_per_second: f64,
    working_set_bytes: Option<f64>,
    dirty_sample: Option<(f64, f64)>,
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
        self.send_bytes_per_second = Some(match known {
            Some(before) if enough => before + (sample - before) * NEWEST_WEIGHT,
            _ => sample,
        });
        self.sample_began = (now_s, applied_bytes);
    }

    /// Takes a count of dirty bytes, `seconds` after the dirty set was last emptied.
    pub(crate) fn dirtied(&mut self, bytes: f64, seconds: f64) {
        if seconds <= 0.0 {
            return;
        }
        if let Some((before_bytes, before_seconds)) = self.dirty_sample
            && seconds > before_seconds * 1.5
        {
            let stalled = bytes < before_bytes * 1.15;
            self.working_set_bytes = stalled.then_some(bytes.max(before_bytes));
        }
        self.dirty_bytes_per_second = bytes / seconds;
        self.dirty_sample = Some((bytes, seconds));
    }

    /// The same link is slower under a new limit at once, not after it was measured.
    pub(crate) fn limit(&mut self, bytes_per_second: u64) {
        if bytes_per_second > 0 {
            let limit = bytes_per_second as f64;
            self.send_bytes_per_second = self.send_bytes_per_second.map(|rate| rate.min(limit));
        }
    }

    pub(crate) fn send(&self) -> Option<f64> {
        self.send_bytes_per_second
    }

    pub(crate) fn dirty(&self) -> f64 {
        self.dirty_bytes_per_second
    }

    pub(crate) fn working_set(&self) -> Option<f64> {
        self.working_set_bytes
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
    fn a_set_that_stops_growing_is_the_working_set() {
        let mut rates = Rates::default();
        rates.dirtied(1e6, 0.1);
        rates.dirtied(2e6, 0.2);
        assert_eq!(rates.working_set(), None);
        rates.dirtied(2.1e6, 0.4);
        assert_eq!(rates.working_set(), Some(2.1e6));
    }
}
