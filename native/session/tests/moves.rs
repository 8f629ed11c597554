//! Whole moves of a process's memory over TLS, with everything that may happen on the way.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use novacron_core::convergence::Decision;
use novacron_guest_memory::MemoryFile;
use novacron_session::{FailureCode, FinishMode, SourceSession};
use support::{Lab, Try, Wanted, assert_equal, until};

const PAGES: u64 = (64 << 20) / support::PAGE;

fn finish(lab: &Lab, attempt: &Try) {
    let finished = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked").wait();
    let finished = finished.expect("the last pass");
    let record = attempt.target.memory_in().wait().expect("memory is in");
    assert_eq!(record.digest, finished.digest);
    assert_eq!((record.missing_pages, finished.missing_pages), (0, 0));
    assert_eq!(record.missing_digest, finished.missing_digest);
    assert_equal(&lab.guest, &attempt.incoming);
}

fn begin(attempt: &Try) {
    attempt.source.connect().wait().expect("connected");
    attempt.source.start_pre_copy().expect("started");
}

#[test]
fn a_dirtying_guest_arrives_byte_for_byte() {
    for (seed, lanes) in [(11, 1), (12, 2), (13, 3), (14, 8)] {
        println!("seed {seed}, {lanes} lanes");
        let lab = Lab::new(64 << 20);
        lab.guest.write_pages(0, 6000, seed);
        lab.guest.write_pages(PAGES - 10, 10, seed);
        lab.guest.run(1000, 3000, seed, 500);
        let attempt = lab.start(&Wanted { lanes, ..Wanted::default() });
        begin(&attempt);
        let answer = attempt.source.converged().wait().expect("converged");
        assert!(matches!(answer.decision, Decision::SwitchOver { .. }), "{answer:?}");
        std::thread::sleep(Duration::from_millis(20));
        let written = lab.guest.stop();
        assert!(written > 0);
        finish(&lab, &attempt);
        let look = attempt.source.snapshot();
        assert_eq!((look.state, look.percent), ("finished", 100.0), "{look:?}");
        assert_eq!(attempt.target.whole().wait(), Ok(attempt.target.memory_in().wait().expect("in").digest));
    }
}

/// When the lane comes by, a tenth of them is written again; at the end of the round most are.
#[test]
fn chunks_that_the_guest_works_in_go_last() {
    let (busy, count, seed) = (2048, 1024, 15);
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, PAGES, seed);
    lab.guest.run(busy, count, seed, 80_000);
    let attempt = lab.start(&Wanted { lanes: 1, bandwidth: 40_000_000, ..Wanted::default() });
    begin(&attempt);
    until("half of the first round", || attempt.source.snapshot().sent_pages > PAGES / 2);
    assert_eq!(attempt.source.snapshot().round, 0);
    let arrived = MemoryFile::open_source(attempt.incoming.path(), 64 << 20).expect("the file");
    let range = busy * support::PAGE..(busy + count) * support::PAGE;
    let mut early = 0;
    arrived.data_extents(|offset, length| {
        early += (offset + length).min(range.end).saturating_sub(offset.max(range.start));
    }).expect("extents");
    assert!(early < count * support::PAGE / 8, "{early} bytes of the working set went early");
    lab.guest.stop();
    attempt.source.converged().wait().expect("converged");
    finish(&lab, &attempt);
}

#[test]
fn an_idle_and_an_empty_guest_arrive() {
    for pages in [0, 1, 300] {
        let lab = Lab::new(64 << 20);
        lab.guest.write_pages(5, pages, 1);
        let attempt = lab.start(&Wanted::default());
        begin(&attempt);
        attempt.source.converged().wait().expect("converged");
        finish(&lab, &attempt);
    }
}

#[test]
fn zeroed_and_punched_pages_are_zero_at_the_target() {
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, 4000, 3);
    let attempt = lab.start(&Wanted::default());
    begin(&attempt);
    attempt.source.converged().wait().expect("converged");
    lab.guest.zero_pages(100, 50);
    until("a round", || attempt.source.snapshot().zero_pages >= 50);
    // Clean pages that a balloon takes away leave no trace in the dirty log.
    let file = MemoryFile::open_target(lab.guest.path(), 64 << 20).expect("the file");
    file.discard(500 * 4096, 300 * 4096).expect("punched");
    file.discard(3999 * 4096, 4096).expect("punched");
    finish(&lab, &attempt);
    let zeros_sent = attempt.source.snapshot().sent_pages;
    assert!(zeros_sent >= 4000, "{zeros_sent}");
    let taken = MemoryFile::open_target(attempt.incoming.path(), 64 << 20).expect("the file");
    assert!(taken.allocated_bytes().expect("a size") <= 3_700 * 4096);
}

#[test]
fn holes_and_zero_pages_cost_no_bytes() {
    let lab = Lab::new(64 << 20);
    lab.guest.zero_pages(0, PAGES);
    lab.guest.write_pages(7, 10, 3);
    let attempt = lab.start(&Wanted::default());
    begin(&attempt);
    attempt.source.converged().wait().expect("converged");
    finish(&lab, &attempt);
    let look = attempt.source.snapshot();
    assert!(look.wire_bytes < 200_000, "{look:?}");
}

#[test]
fn cut_lanes_are_opened_again_and_little_is_sent_twice() {
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, PAGES, 5);
    lab.guest.run(0, 2000, 77, 2000);
    let attempt = lab.start(&Wanted { bandwidth: 80_000_000, ..Wanted::default() });
    begin(&attempt);
    for cut in 1..=4_u64 {
        until("progress", || attempt.source.snapshot().sent_pages > cut * 2500);
        if cut % 2 == 0 { attempt.source.cut_lanes() } else { attempt.target.cut_lanes() }
    }
    attempt.source.converged().wait().expect("converged");
    lab.guest.stop();
    finish(&lab, &attempt);
    let look = attempt.source.snapshot();
    assert!(look.lane_reconnects >= 4, "{look:?}");
    assert!(look.resent_bytes < (64 << 20) / 10 * 4, "{look:?}");
}

#[test]
fn a_cut_in_the_last_pass_loses_nothing() {
    for seed in 0..6 {
        println!("seed {seed}");
        let lab = Lab::new(64 << 20);
        lab.guest.write_pages(0, 3000, seed);
        let attempt = lab.start(&Wanted::default());
        begin(&attempt);
        attempt.source.converged().wait().expect("converged");
        lab.guest.write_pages(0, 3000, seed + 100);
        let asked = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked");
        std::thread::sleep(Duration::from_micros(400 * seed));
        attempt.source.cut_lanes();
        let finished = asked.wait().expect("the last pass");
        let record = attempt.target.memory_in().wait().expect("memory is in");
        assert_eq!(record.digest, finished.digest);
        assert_equal(&lab.guest, &attempt.incoming);
    }
}

#[test]
fn an_aborted_try_leaves_no_residue_and_a_second_one_succeeds() {
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, 5000, 1);
    lab.guest.run(0, 1000, 3, 1000);
    let first = lab.start(&Wanted::default());
    begin(&first);
    first.source.converged().wait().expect("converged");
    first.source.finish_memory(FinishMode::PreCopy).expect("asked").wait().expect("the last pass");
    let elapsed = first.end_source();
    assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
    first.target.end();
    drop(first);
    let second = lab.start(&Wanted::default());
    begin(&second);
    second.source.converged().wait().expect("converged");
    lab.guest.stop();
    finish(&lab, &second);
}

#[test]
fn cancel_ends_a_slow_and_a_paused_move_in_a_second() {
    for paused in [false, true] {
        let lab = Lab::new(64 << 20);
        lab.guest.write_pages(0, PAGES, 1);
        let attempt = lab.start(&Wanted { bandwidth: 100_000, ..Wanted::default() });
        begin(&attempt);
        attempt.source.set_paused(paused);
        std::thread::sleep(Duration::from_millis(100));
        let elapsed = attempt.end_source();
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
        let failure = attempt.source.converged().wait().expect_err("no convergence");
        assert_eq!(failure.code, FailureCode::MigrationCancelled);
        lab.guest.write_pages(0, 10, 2);
    }
}

#[test]
fn the_limit_holds_and_changes_live() {
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, PAGES, 1);
    let attempt = lab.start(&Wanted { bandwidth: 20_000_000, ..Wanted::default() });
    begin(&attempt);
    std::thread::sleep(Duration::from_millis(500));
    let slow = attempt.source.snapshot().wire_bytes;
    assert!(slow < 20_000_000, "{slow} bytes in half a second at 20 MB/s");
    attempt.source.set_paused(true);
    std::thread::sleep(Duration::from_millis(100));
    let paused = attempt.source.snapshot().wire_bytes;
    std::thread::sleep(Duration::from_millis(200));
    assert!(attempt.source.snapshot().wire_bytes - paused < 300_000);
    attempt.source.set_paused(false);
    attempt.source.set_bandwidth(0);
    let began = Instant::now();
    attempt.source.converged().wait().expect("converged");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    finish(&lab, &attempt);
}

#[test]
fn a_guest_above_the_link_is_given_up_without_consent_at_the_deadline() {
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, PAGES, 1);
    lab.guest.run(0, PAGES, 9, 0);
    let wanted = Wanted { bandwidth: 60_000_000, budget_ms: 20.0, deadline_ms: 3000.0, ..Wanted::default() };
    let attempt = lab.start(&wanted);
    begin(&attempt);
    let answer = attempt.source.converged().wait().expect("an answer");
    assert!(matches!(answer.decision, Decision::GiveUp { .. }), "{answer:?}");
}

#[test]
fn post_copy_serves_faults_and_pushes_the_rest() {
    for (seed, cut) in [(1, false), (2, true)] {
        println!("seed {seed}, cut {cut}");
        let lab = Lab::new(64 << 20);
        lab.guest.write_pages(0, 8000, seed);
        lab.guest.run(0, 8000, seed, 0);
        let wanted = Wanted {
            bandwidth: 60_000_000, budget_ms: 20.0, post_copy: true, ..Wanted::default()
        };
        let attempt = lab.start(&wanted);
        begin(&attempt);
        let answer = attempt.source.converged().wait().expect("an answer");
        assert!(matches!(answer.decision, Decision::PostCopy { .. }), "{answer:?}");
        lab.guest.stop();
        lab.guest.zero_pages(40, 2);
        let finished = attempt.source.finish_memory(FinishMode::PostCopy).expect("asked").wait();
        let finished = finished.expect("the list");
        let record = attempt.target.memory_in().wait().expect("memory is in");
        assert_eq!(record.digest, finished.digest);
        assert_eq!(record.missing_digest, finished.missing_digest);
        assert_eq!(record.missing_pages, finished.missing_pages);
        assert!(record.missing_pages > 1000, "{record:?}");
        // Before anything is pushed: faults alone bring the page.
        for page in [0, 40, 41, 7999, 8001, 4242] {
            assert_eq!(attempt.incoming.read_page(page), lab.guest.read_page(page), "page {page}");
        }
        // The target runs and writes: what it has written must survive the push.
        attempt.incoming.write_pages(100, 3, 999);
        attempt.incoming.write_pages(9000, 1, 999);
        let whole = attempt.source.serve_post_copy();
        if cut {
            std::thread::sleep(Duration::from_millis(30));
            attempt.source.cut_lanes();
        }
        for page in (0..8000).step_by(97).filter(|page| !(100..103).contains(page)) {
            assert_eq!(attempt.incoming.read_page(page), lab.guest.read_page(page), "page {page}");
        }
        let digest = attempt.target.whole().wait().expect("whole");
        assert_eq!(whole.wait(), Ok(digest));
        lab.guest.write_pages(100, 3, 999);
        lab.guest.write_pages(9000, 1, 999);
        assert_equal(&lab.guest, &attempt.incoming);
        let look = attempt.target.snapshot();
        assert_eq!((look.state, look.missing_pages), ("whole", 0), "{look:?}");
    }
}

#[test]
fn device_state_reaches_the_target_only_after_memory_and_both_ways() {
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, 2000, 1);
    let attempt = lab.start(&Wanted::default());
    begin(&attempt);
    attempt.source.converged().wait().expect("converged");
    let mut vmm = attempt.device_client();
    let state: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8).collect();
    let sender = {
        let state = state.clone();
        std::thread::spawn(move || {
            vmm.write_all(&state).expect("device state leaves");
            vmm.shutdown(Shutdown::Write).expect("its end leaves");
            let mut answer = Vec::new();
            vmm.read_to_end(&mut answer).expect("an answer");
            answer
        })
    };
    let (mut incoming, _) = attempt.device_target.accept().expect("the tunnel connects");
    incoming.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    let mut byte = [0];
    assert!(incoming.read(&mut byte).is_err(), "device state came before memory");
    finish(&lab, &attempt);
    incoming.set_read_timeout(None).expect("no time-out");
    let mut got = Vec::new();
    incoming.read_to_end(&mut got).expect("device state");
    assert!(got == state, "device state changed on the way");
    incoming.write_all(b"loaded").expect("an answer leaves");
    drop(incoming);
    assert_eq!(sender.join().expect("no panic"), b"loaded");
}

#[test]
fn strangers_unknown_moves_and_garbage_are_refused_and_harm_nothing() {
    let lab = Lab::new(64 << 20);
    lab.guest.write_pages(0, 1000, 1);
    let attempt = lab.start(&Wanted::default());
    let address = lab.connector();
    let mut options = lab.source_options(&Wanted::default(), 424_242);
    options.migration = "migrate/other/1".into();
    let stranger = SourceSession::open(options).expect("options");
    let failure = stranger.connect().wait().expect_err("refused");
    assert_eq!(failure.code, FailureCode::LinkRefused, "{failure}");
    drop(address);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xFF; 100]] {
        let mut socket = TcpStream::connect(lab.address()).expect("the port is open");
        // The listener may hang up while it is still being written to.
        let _ = socket.write_all(garbage);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.len() < 64, "garbage was answered with {} bytes", answer.len());
    }
    begin(&attempt);
    attempt.source.converged().wait().expect("converged");
    finish(&lab, &attempt);
}

#[test]
fn a_target_that_was_started_anew_is_a_lost_session_and_no_refusal() {
    for post_copy in [false, true] {
        let lab = Lab::new(64 << 20);
        lab.guest.write_pages(0, PAGES, 1);
        let wanted = Wanted { bandwidth: 4_000_000, post_copy, ..Wanted::default() };
        let attempt = lab.start(&wanted);
        begin(&attempt);
        until("progress", || attempt.source.snapshot().sent_pages > 100);
        // What a killed runner leaves: cut lanes, and nobody behind the port who knows the move.
        attempt.target.end();
        let failure = attempt.source.converged().wait().expect_err("the move ends");
        assert_eq!(failure.code, FailureCode::SessionLost, "post-copy {post_copy}: {failure}");
    }
}

#[test]
fn a_target_that_goes_before_memory_is_begun_is_told_as_what_it_is() {
    let lab = Lab::new(64 << 20);
    let attempt = lab.start(&Wanted::default());
    attempt.source.connect().wait().expect("connected");
    attempt.target.end();
    until("the source hears of it", || attempt.source.snapshot().failure.is_some());
    attempt.source.start_pre_copy().expect("not the caller's mistake");
    let failure = attempt.source.converged().wait().expect_err("the move ends");
    assert_ne!(failure.code, FailureCode::Internal, "{failure}");
}
