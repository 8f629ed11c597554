//! Sources that die before the last pass: the next one goes on where the target stands.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;

use novacron_session::{Exactness, FinishMode, SourceOptions, SourceSession, TargetOptions};
use support::{Lab, Try, Wanted, assert_equal, until};

const BYTES: u64 = 64 << 20;
const PAGES: u64 = 9000;
/// Frames that the target had read when their source died, and what the last round finds again.
const SLACK: u64 = 300;

fn begin(attempt: &Try) {
    attempt.source.connect().wait().expect("connected");
    attempt.source.start_pre_copy().expect("started");
}

fn expect_equal_after_the_last_pass(lab: &Lab, attempt: &Try) {
    let finished = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked").wait();
    let record = attempt.target.memory_in().wait().expect("memory is in");
    assert_eq!(record.digest, finished.expect("the last pass").digest);
    assert_equal(&lab.guest, &attempt.incoming);
}

#[test]
fn what_the_target_holds_is_not_sent_again() {
    for (lanes, post_copy, deaths) in [(1, false, 1), (3, true, 3)] {
        println!("{lanes} lanes, {deaths} deaths");
        let lab = Lab::new(BYTES);
        lab.guest.write_pages(0, PAGES, 7);
        let wanted = Wanted { lanes, post_copy, bandwidth: 20_000_000, ..Wanted::default() };
        let mut attempt = lab.start(&wanted);
        begin(&attempt);
        let mut changed = 0;
        for death in 1..=deaths {
            let goal = PAGES * 3 / 4 * death / deaths;
            until("a part of it", || attempt.target.snapshot().received_pages >= goal);
            attempt.end_source();
            // Meanwhile nobody tracks what the guest does.
            lab.guest.write_pages(100 * death, 50, 8 + death);
            lab.guest.zero_pages(3000 + 100 * death, 40);
            lab.guest.write_pages(PAGES + 50 * death, 20, 9);
            changed += 50 + 20;
            let options = SourceOptions {
                bandwidth_bytes_per_second: if death < deaths { wanted.bandwidth } else { 0 },
                ..attempt.source_options.clone()
            };
            attempt.source = SourceSession::open(options).expect("a second source");
            begin(&attempt);
        }
        attempt.source.converged().wait().expect("converged");
        expect_equal_after_the_last_pass(&lab, &attempt);
        let received = attempt.target.snapshot().received_pages;
        assert!(received <= PAGES + changed + deaths * SLACK, "{received} pages came");

        let mut state = attempt.device_client();
        state.write_all(b"device state").expect("sent");
        state.shutdown(Shutdown::Write).expect("ended");
        // The VMM is connected only now: losing a connection would have ended it.
        let (mut vmm, _) = attempt.device_target.accept().expect("the target connects");
        let mut seen = Vec::new();
        vmm.read_to_end(&mut seen).expect("it arrives");
        assert_eq!(seen, b"device state");
    }
}

#[test]
fn what_a_target_before_it_has_received_is_not_sent_again() {
    for (lanes, exactness) in [(1, Exactness::Off), (3, Exactness::AfterResume)] {
        let lab = Lab::new(BYTES);
        lab.guest.write_pages(0, PAGES, 7);
        let bandwidth = 20_000_000;
        let wanted =
            Wanted { lanes, post_copy: true, bandwidth, exactness, ..Wanted::default() };
        let mut attempt = lab.start(&wanted);
        begin(&attempt);
        until("most of it", || attempt.target.snapshot().received_pages > PAGES / 2);
        let received = attempt.target.snapshot().received_pages;
        attempt.target.end();
        attempt.source.converged().wait().expect_err("its target is gone");
        attempt.end_source();
        lab.guest.write_pages(100, 50, 8);
        lab.guest.zero_pages(3000, 40);
        let options = TargetOptions { adopted: true, ..attempt.target_options.clone() };
        attempt.target = lab.listener.expect(options).expect("a second target");
        let mut options = attempt.source_options.clone();
        options.bandwidth_bytes_per_second = 0;
        attempt.source = SourceSession::open(options).expect("a second source");
        begin(&attempt);
        attempt.source.converged().wait().expect("converged");
        expect_equal_after_the_last_pass(&lab, &attempt);
        let again = attempt.target.snapshot().received_pages;
        assert!(again <= PAGES - received + 50 + SLACK, "{received} pages, then {again}");
    }
}

#[test]
fn a_source_that_comes_after_the_last_pass_is_not_listened_to() {
    let lab = Lab::new(BYTES);
    lab.guest.write_pages(0, 100, 7);
    let mut attempt = lab.start(&Wanted::default());
    begin(&attempt);
    attempt.source.converged().wait().expect("converged");
    expect_equal_after_the_last_pass(&lab, &attempt);
    attempt.end_source();
    attempt.source = SourceSession::open(attempt.source_options.clone()).expect("a second source");
    attempt.source.connect().wait().expect_err("it is too late");
}
