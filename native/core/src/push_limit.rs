//! How many bytes post-copy may push ahead of what the target has applied.
//!
//! A page that a vCPU waits for queues behind everything that lies in the path already, whatever
//! lane it takes. So no more is pushed than keeps the path busy: what the link has lately carried
//! in one round trip, a quarter more so that a faster link is found out, and some milliseconds for
//! the scheduling of both sides.

/// Least limit: below it frames and acknowledgements are most of what is sent.
const LIMIT_BYTES_MIN: u64 = 256 * 1024;
/// Before anything is known.
const LIMIT_BYTES_FIRST: u64 = 1 << 20;
/// Most that may be unapplied on all lanes together.
const LIMIT_BYTES_MAX: u64 = 64 << 20;
/// Queue that is accepted for the scheduling of both sides.
const SLACK_NANOS: u64 = 20_000_000;
/// Shortest time over which a rate is taken.
const SAMPLE_NANOS_MIN: u64 = 50_000_000;
/// The fastest of so many samples counts: a pause of the guest's host is no slower link.
const SAMPLES: usize = 10;

/// The limit; times are nanoseconds of any one clock that does not run backwards.
#[derive(Clone, Copy, Debug)]
pub struct PushLimit {
    bytes: u64,
    shortest_way_nanos: u64,
    rates: [f64; SAMPLES],
    next: usize,
    sample_from_nanos: Option<u64>,
    sample_bytes: u64,
}

impl Default for PushLimit {
    fn default() -> Self {
        Self {
            bytes: LIMIT_BYTES_FIRST,
            shortest_way_nanos: u64::MAX,
            rates: [0.0; SAMPLES],
            next: 0,
            sample_from_nanos: None,
            sample_bytes: 0,
        }
    }
}

impl PushLimit {
    /// Bytes that may be unapplied.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether `more` bytes may follow `unapplied` ones; a frame of any size passes when none is.
    pub fn admits(&self, unapplied: u64, more: u64) -> bool {
        unapplied == 0 || unapplied + more <= self.bytes
    }

    /// The target has applied `bytes` that were sent `way_nanos` ago.
    pub fn applied(&mut self, bytes: u64, way_nanos: u64, now_nanos: u64) {
        self.shortest_way_nanos = self.shortest_way_nanos.min(way_nanos);
        let Some(from) = self.sample_from_nanos else {
            self.sample_from_nanos = Some(now_nanos);
            return;
        };
        self.sample_bytes += bytes;
        let elapsed = now_nanos.saturating_sub(from);
        if elapsed < SAMPLE_NANOS_MIN.max(self.shortest_way_nanos) {
            return;
        }
        self.rates[self.next] = self.sample_bytes as f64 / elapsed as f64;
        self.next = (self.next + 1) % SAMPLES;
        self.sample_from_nanos = Some(now_nanos);
        self.sample_bytes = 0;
        let fastest = self.rates.iter().copied().fold(0.0, f64::max);
        let nanos = self.shortest_way_nanos as f64 * 1.25 + SLACK_NANOS as f64;
        self.bytes = ((fastest * nanos) as u64).clamp(LIMIT_BYTES_MIN, LIMIT_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: u64 = 128 * 1024;

    /// Pushes over a link of `rate` bytes a second and `way` nanoseconds there and back for
    /// `seconds`; answers (bytes carried in the last second, longest queue in it).
    fn push_over(rate: u64, way: u64, seconds: u64) -> (u64, u64) {
        let mut limit = PushLimit::default();
        let (mut now, mut link_free, mut carried, mut longest) = (0_u64, 0_u64, 0, 0);
        let mut flying = std::collections::VecDeque::new();
        let (mut unapplied, end) = (0, seconds * 1_000_000_000);
        while now < end {
            while limit.admits(unapplied, FRAME) {
                link_free = link_free.max(now) + FRAME * 1_000_000_000 / rate;
                flying.push_back((now, link_free + way));
                unapplied += FRAME;
                if now + 1_000_000_000 > end {
                    longest = longest.max((link_free - now) * rate / 1_000_000_000);
                }
            }
            let Some((sent, back)) = flying.pop_front() else { break };
            now = now.max(back);
            unapplied -= FRAME;
            if now + 1_000_000_000 > end && now < end {
                carried += FRAME;
            }
            limit.applied(FRAME, now - sent, now);
        }
        (carried, longest)
    }

    #[test]
    fn a_thin_link_is_busy_and_its_queue_is_short() {
        let (carried, longest) = push_over(20_000_000, 1_000_000, 5);
        assert!(carried > 18_000_000, "{carried}");
        assert!(longest < 1_000_000, "{longest} bytes, {} ms", longest / 20_000);
    }

    #[test]
    fn a_long_fat_link_is_found_out() {
        let (carried, longest) = push_over(400_000_000, 50_000_000, 10);
        assert!(carried > 320_000_000, "{carried}");
        assert!(longest < 400_000_000 / 10, "{longest}");
    }

    proptest! {
        #[test]
        fn it_never_leaves_its_bounds(
            steps in proptest::collection::vec(
                (1_u64..2_000_000, 0_u64..1 << 33, 0_u64..1 << 33), 0..300,
            ),
        ) {
            let (mut limit, mut now) = (PushLimit::default(), 0);
            for (bytes, way, passed) in steps {
                now += passed;
                limit.applied(bytes, way, now);
                prop_assert!((LIMIT_BYTES_MIN..=LIMIT_BYTES_MAX).contains(&limit.bytes()));
                prop_assert!(limit.admits(0, u64::MAX / 2));
            }
        }
    }
}
