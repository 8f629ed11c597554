//! Movers that die in post-copy: what comes after them goes on, and no page is stale or lost.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use novacron_session::{FailureCode, FinishMode, FinishedMemory, SourceSession};
use support::{Lab, Try, Wanted, assert_equal, until};

const BYTES: u64 = 64 << 20;
const PAGES: u64 = 9000;

/// A guest that has started at the target without any of its pages; pushing has not begun.
fn post_copy() -> (Lab, Try, FinishedMemory) {
    let lab = Lab::new(BYTES);
    let wanted = Wanted { post_copy: true, bandwidth: 20_000_000, ..Wanted::default() };
    let attempt = lab.start(&wanted);
    attempt.source.connect().wait().expect("connected");
    // Decided for post-copy nothing more is sent before the last pass.
    attempt.source.post_copy_now().expect("consent");
    attempt.source.start_pre_copy().expect("started");
    attempt.source.converged().wait().expect("an empty guest converges");
    lab.guest.write_pages(0, PAGES, 7);
    lab.guest.zero_pages(500, 40);
    let asked = attempt.source.finish_memory(FinishMode::PostCopy).expect("asked");
    let finished = asked.wait().expect("the list");
    assert!(finished.missing_pages >= PAGES - 40, "{finished:?}");
    attempt.target.memory_in().wait().expect("memory is in");
    (lab, attempt, finished)
}

/// The target's mover dies (what it had in hand is gone, the VMM lives) and another one comes.
fn replace_target(lab: &Lab, attempt: &mut Try) {
    attempt.target.end();
    attempt.target = lab.listener.resume(attempt.target_options.clone()).expect("a second mover");
}

/// The source's mover dies and another one comes, which knows only what the ledger has kept.
fn replace_source(attempt: &mut Try, finished: &FinishedMemory) {
    attempt.end_source();
    let options = attempt.source_options.clone();
    attempt.source = SourceSession::resume(options, finished.clone()).expect("a second mover");
    attempt.source.connect();
}

/// Everything is there, and what the guest has written at the target is not overwritten.
fn expect_whole(lab: &Lab, attempt: &Try) {
    let digest = attempt.target.whole().wait().expect("whole");
    assert_eq!(attempt.source.serve_post_copy().wait(), Ok(digest));
    lab.guest.write_pages(100, 3, 999);
    lab.guest.write_pages(PAGES + 100, 1, 999);
    assert_equal(&lab.guest, &attempt.incoming);
    let look = attempt.source.snapshot();
    assert!(look.lanes_connected <= u64::from(attempt.source_options.lane_count), "{look:?}");
    let look = attempt.target.snapshot();
    assert_eq!((look.state, look.missing_pages), ("whole", 0), "{look:?}");
    // Faults are off: the guest writes on at once.
    attempt.incoming.write_pages(0, 64, 5);
}

/// Pages that came by faults, and the guest's own writes to them and to others.
fn run_a_little(lab: &Lab, attempt: &Try) {
    for page in [0, 101, 505, 4242, PAGES - 1] {
        assert_eq!(attempt.incoming.read_page(page), lab.guest.read_page(page), "page {page}");
    }
    attempt.incoming.write_pages(100, 3, 999);
    attempt.incoming.write_pages(PAGES + 100, 1, 999);
}

#[test]
fn a_target_that_dies_in_post_copy_is_succeeded() {
    for deaths in [1, 4] {
        let (lab, mut attempt, _) = post_copy();
        run_a_little(&lab, &attempt);
        attempt.source.serve_post_copy();
        for death in 1..=deaths {
            until("some pushed pages", || {
                let whole = attempt.target.whole().peek().is_some();
                whole || attempt.target.snapshot().received_pages > 400
            });
            replace_target(&lab, &mut attempt);
            let page = PAGES - 100 * death;
            assert_eq!(attempt.incoming.read_page(page), lab.guest.read_page(page), "page {page}");
        }
        expect_whole(&lab, &attempt);
    }
}

#[test]
fn whoever_waits_for_a_page_waits_until_the_successors_come() {
    let (lab, mut attempt, finished) = post_copy();
    let expected = lab.guest.read_page(8000);
    attempt.end_source();
    let answered = AtomicBool::new(false);
    let Try { incoming, target, target_options, .. } = &attempt;
    let (second, value) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let value = incoming.read_page(8000);
            answered.store(true, Ordering::Release);
            value
        });
        // The fault is read by a mover that dies with it.
        until("a fault", || target.snapshot().faults > 0);
        target.end();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!answered.load(Ordering::Acquire), "released onto a page that never came");
        let second = lab.listener.resume(target_options.clone()).expect("a second mover");
        let options = attempt.source_options.clone();
        let source = SourceSession::resume(options, finished.clone()).expect("a second mover");
        source.connect();
        ((second, source), waiting.join().expect("no panic"))
    });
    assert_eq!(value, expected);
    (attempt.target, attempt.source) = second;
    run_a_little(&lab, &attempt);
    expect_whole(&lab, &attempt);
}

#[test]
fn a_source_that_dies_in_post_copy_is_succeeded() {
    for deaths in [1, 3] {
        let (lab, mut attempt, finished) = post_copy();
        run_a_little(&lab, &attempt);
        attempt.source.serve_post_copy();
        for death in 1..=deaths {
            let before = attempt.target.snapshot().received_pages;
            until("some pushed pages", || {
                let whole = attempt.target.whole().peek().is_some();
                whole || attempt.target.snapshot().received_pages > before + 300
            });
            replace_source(&mut attempt, &finished);
            let page = PAGES - 100 * death;
            assert_eq!(attempt.incoming.read_page(page), lab.guest.read_page(page), "page {page}");
        }
        expect_whole(&lab, &attempt);
    }
}

#[test]
fn both_die_one_after_the_other() {
    let (lab, mut attempt, finished) = post_copy();
    run_a_little(&lab, &attempt);
    attempt.source.serve_post_copy();
    until("some pushed pages", || attempt.target.snapshot().received_pages > 400);
    attempt.end_source();
    replace_target(&lab, &mut attempt);
    replace_source(&mut attempt, &finished);
    expect_whole(&lab, &attempt);
}

#[test]
fn a_target_that_dies_when_it_is_whole_still_says_so() {
    let (lab, mut attempt, finished) = post_copy();
    run_a_little(&lab, &attempt);
    attempt.source.serve_post_copy();
    attempt.target.whole().wait().expect("whole");
    replace_target(&lab, &mut attempt);
    attempt.target.whole().wait().expect("still whole");
    // A source that knows nothing of it hears it again, and counts what its predecessor sent.
    replace_source(&mut attempt, &finished);
    expect_whole(&lab, &attempt);
}

#[test]
fn a_source_is_not_served_a_list_that_the_record_does_not_vouch_for() {
    let (_lab, mut attempt, finished) = post_copy();
    let other = FinishedMemory { missing_digest: "0".repeat(64), ..finished };
    replace_source(&mut attempt, &other);
    let failure = attempt.source.serve_post_copy().wait().expect_err("refused");
    assert_eq!(failure.code, FailureCode::MigrationDigest, "{failure}");
}

#[test]
fn nothing_is_resumed_that_was_not_left_in_post_copy() {
    let lab = Lab::new(BYTES);
    let attempt = lab.start(&Wanted { post_copy: true, ..Wanted::default() });
    attempt.source.connect().wait().expect("connected");
    attempt.target.end();
    let options = attempt.target_options.clone();
    let second = lab.listener.resume(options).expect("it is tried");
    let failure = second.whole().wait().expect_err("nothing to resume");
    assert_eq!(failure.code, FailureCode::EngineFailed, "{failure}");
}
