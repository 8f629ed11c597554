//! Properties of the lease over random histories; a failing one prints its seed.

use novacron_guard::lease::{Action, Failover, Grant, Lease, Refusal, TTL_MS_MAX};

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn grant(sent_at_ms: u64, ttl_ms: u64) -> Grant {
    Grant { ttl_ms, sent_at_ms }
}

/// Runs a random history beside a model that only remembers accepted grants.
fn run_history(seed: u64) {
    let mut random = Random(seed);
    let mut now = random.below(1_000_000);
    let first_end = (random.below(2) == 0).then(|| now + random.below(20_000));
    let mut lease = Lease::new(Failover::Automatic, first_end);
    let mut runs = true;
    // The latest end that any accepted grant gave, and whether a pause came after it.
    let mut granted_until = first_end;
    let mut paused_since = None;
    for step in 0..400 {
        let context = format!("seed {seed} step {step}");
        now += if random.below(10) == 0 { random.below(30_000) } else { random.below(3_000) };
        let sent = now.saturating_sub(random.below(15_000)) + random.below(40).saturating_sub(38);
        let ttl = if random.below(20) == 0 { random.below(70_000) } else { 12_000 };
        let (action, taken, resumes) = match random.below(3) {
            0 => (lease.tick(now), None, false),
            1 => {
                let (action, taken) = lease.renew(grant(sent, ttl), now);
                (action, Some(taken), false)
            }
            _ => {
                let (action, taken) = lease.resume(grant(sent, ttl), now);
                (action, Some(taken), true)
            }
        };
        match action {
            Action::Stop => {
                assert!(runs, "{context}: stopped twice");
                runs = false;
            }
            Action::Continue => {
                assert!(!runs && resumes, "{context}: continued without a resume");
                runs = true;
            }
            Action::Nothing => {}
        }
        if let Some(Ok(())) = taken {
            assert!(sent <= now && (1..=TTL_MS_MAX).contains(&ttl), "{context}: bad grant taken");
            if resumes {
                // A pause that began in this very call is not yet in `paused_since`.
                let since: u64 = paused_since.unwrap_or(now);
                assert!(sent >= since, "{context}: resumed on an old answer");
                granted_until = Some(sent + ttl);
            } else {
                granted_until = Some(granted_until.unwrap_or(0).max(sent + ttl));
            }
        }
        paused_since = lease.paused_at_ms();
        // The heart of it: it never runs beyond what was granted.
        if runs && let Some(until) = granted_until {
            assert!(now < until, "{context}: runs {} ms too long", now - until);
        }
        assert_eq!(runs, lease.paused_at_ms().is_none(), "{context}");
        assert_eq!(lease.wakes_at_ms().is_some(), runs && granted_until.is_some(), "{context}");
    }
}

#[test]
fn it_never_runs_beyond_its_grants() {
    let start = std::time::UNIX_EPOCH.elapsed().map_or(1, |passed| passed.as_nanos() as u64);
    println!("seeds from {start}");
    for seed in start..start + 2_000 {
        run_history(seed);
    }
}

#[test]
fn without_automatic_failover_nothing_ever_stops_it() {
    let mut random = Random(1);
    let mut lease = Lease::new(Failover::None, Some(5));
    for now in (0..1_000_000).step_by(997) {
        let (renewed, _) = lease.renew(grant(random.below(now + 1), 1 + random.below(99)), now);
        assert_eq!((lease.tick(now), renewed), (Action::Nothing, Action::Nothing));
        assert_eq!(lease.resume(grant(now, 9), now).1, Err(Refusal::NotPaused));
    }
}

#[test]
fn it_counts_from_when_the_request_was_sent() {
    let mut lease = Lease::new(Failover::Automatic, None);
    assert_eq!(lease.tick(1_000_000), Action::Nothing, "no lease yet, nothing to end");
    assert_eq!(lease.renew(grant(1_000, 12_000), 9_000).1, Ok(()));
    assert_eq!(lease.wakes_at_ms(), Some(13_000));
    assert_eq!(lease.renew(grant(500, 12_000), 9_000).1, Ok(()), "late, harmless");
    assert_eq!(lease.wakes_at_ms(), Some(13_000), "never shortened");
    assert_eq!(lease.tick(12_999), Action::Nothing);
    assert_eq!(lease.tick(13_000), Action::Stop);
}

#[test]
fn a_renewal_does_not_end_a_pause_and_a_resume_needs_a_fresh_answer() {
    let mut lease = Lease::new(Failover::Automatic, Some(10_000));
    let late = lease.renew(grant(9_999, 12_000), 10_000);
    assert_eq!(late, (Action::Stop, Err(Refusal::Paused)));
    assert_eq!(lease.renew(grant(10_100, 12_000), 10_200).1, Err(Refusal::Paused));
    assert_eq!(lease.resume(grant(9_999, 12_000), 10_300).1, Err(Refusal::SentBeforeThePause));
    assert_eq!(lease.resume(grant(10_301, 12_000), 10_300).1, Err(Refusal::SentInTheFuture));
    assert_eq!(lease.resume(grant(10_000, 12_000), 22_000).1, Err(Refusal::AlreadyOver));
    assert_eq!(lease.resume(grant(10_000, 0), 10_300).1, Err(Refusal::TtlOutOfRange));
    assert_eq!(lease.resume(grant(10_000, 60_001), 10_300).1, Err(Refusal::TtlOutOfRange));
    assert_eq!(lease.resume(grant(10_250, 12_000), 10_300), (Action::Continue, Ok(())));
    assert_eq!(lease.wakes_at_ms(), Some(22_250));
}

#[test]
fn numbers_at_the_edge_do_not_overflow() {
    let mut lease = Lease::new(Failover::Automatic, None);
    assert_eq!(lease.renew(grant(u64::MAX, 60_000), 5).1, Err(Refusal::SentInTheFuture));
    assert_eq!(lease.renew(grant(0, u64::MAX), 5).1, Err(Refusal::TtlOutOfRange));
}
