//! The bandwidth limit: a token bucket that all lanes of a move share.

/// Longest burst in time: long enough that a timer's lateness costs nothing, short enough that a
/// shaped link in the path does not drop it.
const BURST_NANOS: u64 = 4_000_000;
/// Smallest burst, so that a whole slice goes out at once on slow limits.
const BURST_BYTES_MIN: f64 = 65_536.0;

/// Grants bytes at a rate; times are nanoseconds of any one clock that does not run backwards.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    bytes_per_second: u64,
    tokens: f64,
    filled_at_nanos: u64,
}

impl TokenBucket {
    /// 0 bytes per second means no limit.
    pub fn new(bytes_per_second: u64, now_nanos: u64) -> Self {
        Self { bytes_per_second, tokens: 0.0, filled_at_nanos: now_nanos }
    }

    /// Changes the rate; what was saved or owed at the old rate is kept up to the new burst.
    pub fn set_rate(&mut self, bytes_per_second: u64, now_nanos: u64) {
        self.fill(now_nanos);
        self.bytes_per_second = bytes_per_second;
        if bytes_per_second == 0 {
            self.tokens = 0.0;
        }
        self.tokens = self.tokens.min(self.burst());
    }

    /// The rate, 0 without a limit.
    pub fn rate(&self) -> u64 {
        self.bytes_per_second
    }

    /// Takes `bytes` when nothing is owed, else says how many nanoseconds to wait before asking
    /// again. A grant may go into debt, so that slices of any size pass.
    pub fn take(&mut self, bytes: u64, now_nanos: u64) -> Result<(), u64> {
        if self.bytes_per_second == 0 {
            return Ok(());
        }
        self.fill(now_nanos);
        if self.tokens >= 0.0 {
            self.tokens -= bytes as f64;
            return Ok(());
        }
        Err((-self.tokens / self.bytes_per_second as f64 * 1e9).ceil() as u64 + 1)
    }

    /// Takes `bytes` that can't wait; whoever may wait pays for them.
    pub fn spend(&mut self, bytes: u64, now_nanos: u64) {
        if self.bytes_per_second > 0 {
            self.fill(now_nanos);
            self.tokens -= bytes as f64;
        }
    }

    fn burst(&self) -> f64 {
        (self.bytes_per_second as f64 * BURST_NANOS as f64 / 1e9).max(BURST_BYTES_MIN)
    }

    fn fill(&mut self, now_nanos: u64) {
        let elapsed = now_nanos.saturating_sub(self.filled_at_nanos);
        self.filled_at_nanos = self.filled_at_nanos.max(now_nanos);
        let grown = self.tokens + elapsed as f64 / 1e9 * self.bytes_per_second as f64;
        self.tokens = grown.min(self.burst());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_rate_holds_over_any_sequence(
            rate in 100_000_u64..2_000_000_000,
            slices in proptest::collection::vec((1_u64..300_000, 0_u64..2_000_000), 50..300),
        ) {
            let mut bucket = TokenBucket::new(rate, 0);
            let (mut now, mut sent, mut last) = (0, 0, 0);
            for (bytes, idle) in slices {
                now += idle;
                while let Err(wait) = bucket.take(bytes, now) {
                    prop_assert!(wait > 0);
                    now += wait;
                }
                sent += bytes;
                last = bytes;
            }
            let allowed = rate as f64 * now as f64 / 1e9 + bucket.burst() + last as f64 + 1.0;
            prop_assert!(sent as f64 <= allowed, "{sent} sent, {allowed} allowed");
        }
    }

    #[test]
    fn a_busy_sender_gets_the_whole_rate() {
        let mut bucket = TokenBucket::new(125_000_000, 0);
        let (mut now, mut sent) = (0_u64, 0_u64);
        while now < 1_000_000_000 {
            match bucket.take(100_000, now) {
                Ok(()) => sent += 100_000,
                Err(wait) => now += wait,
            }
        }
        assert!((124_000_000..127_000_000).contains(&sent), "{sent}");
    }

    #[test]
    fn what_could_not_wait_is_paid_by_who_can() {
        let mut bucket = TokenBucket::new(1_000_000, 0);
        bucket.spend(500_000, 0);
        let wait = bucket.take(1, 0).expect_err("half a second is owed");
        assert!((499_000_000..501_000_000).contains(&wait), "{wait}");
        let mut free = TokenBucket::new(0, 0);
        free.spend(1 << 40, 0);
        free.set_rate(1_000_000, 1);
        assert_eq!(free.take(1, 1), Ok(()));
    }

    #[test]
    fn no_limit_never_waits_and_a_new_limit_holds_at_once() {
        let mut bucket = TokenBucket::new(0, 0);
        assert_eq!(bucket.take(1 << 40, 5), Ok(()));
        bucket.set_rate(1_000_000, 10);
        assert_eq!(bucket.take(1_000_000, 10), Ok(()));
        assert!(bucket.take(1, 20).is_err());
        bucket.set_rate(0, 30);
        assert_eq!(bucket.take(1 << 40, 31), Ok(()));
    }
}
