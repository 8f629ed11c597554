//! Faults that are planted on every part of the way: each is found, and by whom.

mod support;

use std::time::{Duration, Instant};

use novacron_core::frame::Checked;
use novacron_session::{
    CheckedMemory, Exactness, FailureCode, FinishMode, PlantedFaults, Repair, Skipped,
};
use support::{Lab, Try, Wanted, assert_equal, until};

const BYTES: u64 = 64 << 20;
const PAGES: u64 = 9000;
/// Written before and once more during the rounds.
const PAGE: u64 = 4242;

/// A guest whose page `PAGE` is rewritten while it is being moved.
fn rounds(exactness: Exactness, planted: PlantedFaults) -> (Lab, Try) {
    let lab = Lab::new(BYTES);
    lab.guest.write_pages(0, PAGES, 1);
    let attempt = lab.start(&Wanted { exactness, planted, ..Wanted::default() });
    attempt.source.connect().wait().expect("connected");
    attempt.source.start_pre_copy().expect("started");
    attempt.source.converged().wait().expect("converged");
    lab.guest.write_pages(PAGE, 1, 2);
    let sent = attempt.source.snapshot().sent_pages;
    until("another round", || {
        lab.guest.write_pages(10, 1, 3);
        attempt.source.snapshot().sent_pages > sent + 3
    });
    (lab, attempt)
}

/// The last pass; both sides agree about what went over, whatever that was.
fn hand_over(attempt: &Try) {
    let finished = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked").wait();
    let record = attempt.target.memory_in().wait().expect("memory is in");
    assert_eq!(record.digest, finished.expect("the last pass").digest);
}

fn check(attempt: &Try) -> CheckedMemory {
    attempt.target.begin_check();
    attempt.source.check_image();
    attempt.target.checked().wait().expect("both sides have compared")
}

fn repair(attempt: &Try) -> Repair {
    let (sender, receiver) = std::sync::mpsc::channel();
    attempt.target.repair(move |done| sender.send(done).expect("the test waits"));
    receiver.recv().expect("an answer").expect("it could be written")
}

fn found(checked: &CheckedMemory) -> [u64; 3] {
    [checked.source.wrong, checked.target.wrong, checked.wrong_pages]
}

#[test]
fn an_exact_move_is_found_exact_whatever_the_guest_does_meanwhile() {
    for exactness in [Exactness::AfterResume, Exactness::BeforeResume] {
        let (lab, attempt) = rounds(exactness, PlantedFaults::default());
        hand_over(&attempt);
        assert_equal(&lab.guest, &attempt.incoming);
        attempt.incoming.run(100, 6000, 5, 50);
        let checked = check(&attempt);
        attempt.incoming.stop();
        assert_eq!(found(&checked), [0, 0, 0], "{checked:?}");
        let pages = BYTES / support::PAGE;
        assert_eq!((checked.source.pages, checked.target.pages), (pages, pages));
        assert!(checked.source.cpu_micros > 0 && checked.target.wall_micros > 0, "{checked:?}");
        let is_after = exactness == Exactness::AfterResume;
        assert_eq!(checked.written_pages > 0, is_after, "{checked:?}");
        assert_eq!(repair(&attempt), Repair::default());
    }
}

#[test]
fn a_page_that_a_scan_missed_is_found_and_repaired_in_place() {
    let planted = PlantedFaults { skipped: Some(Skipped::Page(PAGE)), ..Default::default() };
    let (lab, attempt) = rounds(Exactness::AfterResume, planted);
    hand_over(&attempt);
    assert_ne!(attempt.incoming.read_page(PAGE), lab.guest.read_page(PAGE), "nothing was missed");
    let checked = check(&attempt);
    assert_eq!(found(&checked), [1, 0, 1], "{checked:?}");
    // A neighbour's write does not matter.
    attempt.incoming.write_pages(PAGE + 1, 1, 9);
    assert_eq!(repair(&attempt), Repair { repaired_pages: 1, written_pages: 0 });
    lab.guest.write_pages(PAGE + 1, 1, 9);
    assert_equal(&lab.guest, &attempt.incoming);
}

#[test]
fn a_wrong_page_that_the_guest_has_written_is_damage_and_is_left_alone() {
    for before_check in [true, false] {
        let planted = PlantedFaults { skipped: Some(Skipped::Page(PAGE)), ..Default::default() };
        let (_lab, attempt) = rounds(Exactness::AfterResume, planted);
        hand_over(&attempt);
        if before_check {
            attempt.incoming.write_pages(PAGE, 1, 77);
        }
        let checked = check(&attempt);
        assert_eq!(found(&checked), [1, 0, 1], "{checked:?}");
        if !before_check {
            attempt.incoming.write_pages(PAGE, 1, 77);
        }
        let kept = attempt.incoming.read_page(PAGE);
        assert_eq!(repair(&attempt), Repair { repaired_pages: 0, written_pages: 1 });
        assert_eq!(attempt.incoming.read_page(PAGE), kept);
    }
}

#[test]
fn before_the_start_a_missed_page_is_sent_again() {
    let planted = PlantedFaults { skipped: Some(Skipped::Page(PAGE)), ..Default::default() };
    let (lab, attempt) = rounds(Exactness::BeforeResume, planted);
    hand_over(&attempt);
    assert_equal(&lab.guest, &attempt.incoming);
    let checked = check(&attempt);
    assert_eq!(found(&checked), [1, 0, 0], "{checked:?}");
}

#[test]
fn without_the_check_a_missed_page_arrives_stale_and_nobody_knows() {
    let planted = PlantedFaults { skipped: Some(Skipped::Page(PAGE)), ..Default::default() };
    let (lab, attempt) = rounds(Exactness::Off, planted);
    hand_over(&attempt);
    assert_ne!(attempt.incoming.read_page(PAGE), lab.guest.read_page(PAGE));
    attempt.source.check_image();
    attempt.target.begin_check();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(attempt.target.checked().peek(), None);
}

#[test]
fn a_wrong_bit_in_what_the_source_read_is_found() {
    for exactness in [Exactness::AfterResume, Exactness::BeforeResume] {
        let planted = PlantedFaults { read: Some(PAGE + 7), ..Default::default() };
        let (lab, attempt) = rounds(exactness, planted);
        hand_over(&attempt);
        let checked = check(&attempt);
        if exactness == Exactness::AfterResume {
            assert_eq!(found(&checked), [1, 0, 1], "{checked:?}");
            assert_eq!(repair(&attempt), Repair { repaired_pages: 1, written_pages: 0 });
        } else {
            assert_eq!(found(&checked), [1, 0, 0], "{checked:?}");
        }
        assert_equal(&lab.guest, &attempt.incoming);
    }
}

#[test]
fn a_wrong_bit_above_the_encryption_or_after_the_decoder_never_gets_ready() {
    let kinds = [
        PlantedFaults { received: true, ..Default::default() },
        PlantedFaults { decoded: Some(PAGE + 9), ..Default::default() },
    ];
    for planted in kinds {
        let (_lab, attempt) = rounds(Exactness::Off, planted);
        let asked = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked");
        let failure = attempt.target.memory_in().wait().expect_err("the sums differ");
        assert_eq!(failure.code, FailureCode::MigrationDigest, "{planted:?}: {failure}");
        // The source hears it: before or after its last byte has left.
        let _ = asked.wait();
        until("the source has heard it", || {
            let failure = attempt.source.snapshot().failure;
            failure.is_some_and(|failure| failure.code == FailureCode::MigrationDigest)
        });
    }
}

#[test]
fn a_wrong_bit_in_the_memory_file_of_the_target_is_found() {
    let planted = PlantedFaults { stored: Some(PAGE + 11), ..Default::default() };
    let (lab, attempt) = rounds(Exactness::AfterResume, planted);
    hand_over(&attempt);
    let checked = check(&attempt);
    assert_eq!(found(&checked), [0, 1, 1], "{checked:?}");
    assert_eq!(repair(&attempt), Repair { repaired_pages: 1, written_pages: 0 });
    assert_equal(&lab.guest, &attempt.incoming);

    let (_lab, attempt) = rounds(Exactness::BeforeResume, planted);
    let asked = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked");
    let failure = attempt.target.memory_in().wait().expect_err("the file is wrong");
    assert_eq!(failure.code, FailureCode::MigrationDigest, "{failure}");
    let _ = asked.wait();
}

#[test]
fn post_copy_is_checked_too_and_served_pages_count_as_written() {
    let lab = Lab::new(BYTES);
    lab.guest.write_pages(0, PAGES, 1);
    let planted = PlantedFaults { skipped: Some(Skipped::Page(PAGE)), ..Default::default() };
    let wanted = Wanted { post_copy: true, planted, ..Wanted::default() };
    let attempt = lab.start(&wanted);
    attempt.source.connect().wait().expect("connected");
    attempt.source.start_pre_copy().expect("started");
    attempt.source.converged().wait().expect("converged");
    lab.guest.write_pages(PAGE, 1, 2);
    std::thread::sleep(Duration::from_millis(50));
    // More than a round can send before the last pass is asked for, on a busy machine, too.
    lab.guest.write_pages(100, 4000, 6);
    lab.guest.write_pages(4300, 4600, 6);
    let asked = attempt.source.finish_memory(FinishMode::PostCopy).expect("asked");
    asked.wait().expect("the list");
    let record = attempt.target.memory_in().wait().expect("memory is in");
    assert!(record.missing_pages > 0, "{record:?}");
    for page in [0, 100, 1500, 2099] {
        assert_eq!(attempt.incoming.read_page(page), lab.guest.read_page(page), "page {page}");
    }
    attempt.source.serve_post_copy();
    attempt.target.whole().wait().expect("whole");
    let checked = check(&attempt);
    assert_eq!(found(&checked), [1, 0, 1], "{checked:?}");
    assert_eq!(repair(&attempt), Repair { repaired_pages: 1, written_pages: 0 });
    assert_equal(&lab.guest, &attempt.incoming);
}

#[test]
fn a_guest_that_came_by_post_copy_waits_for_no_check() {
    let lab = Lab::new(BYTES);
    lab.guest.write_pages(0, PAGES, 1);
    let attempt = lab.start(&Wanted { post_copy: true, ..Wanted::default() });
    attempt.source.connect().wait().expect("connected");
    attempt.source.start_pre_copy().expect("started");
    attempt.source.converged().wait().expect("converged");
    lab.guest.write_pages(100, 6000, 6);
    let asked = attempt.source.finish_memory(FinishMode::PostCopy).expect("asked");
    asked.wait().expect("the list");
    let record = attempt.target.memory_in().wait().expect("memory is in");
    assert!(record.missing_pages > 0, "{record:?}");
    attempt.source.serve_post_copy();
    attempt.target.whole().wait().expect("whole");
    // Writes are tracked for a check that may take long: pages that came before the start, that
    // came after it and that never came (holes) are at hand meanwhile.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pages = [1, 50, 99, 100, 3000, 6099, 6100, 8000, PAGES - 1, PAGES + 9, 16_000];
            pages.iter().for_each(|page| {
                let (found, right) =
                    (attempt.incoming.read_page(*page), lab.guest.read_page(*page));
                sender.send((*page, found == right)).expect("the test waits");
            });
            drop(sender);
        });
        let mut seen = 0;
        loop {
            match receiver.recv_timeout(Duration::from_secs(5)) {
                Ok((page, equal)) => assert!(equal, "page {page}"),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(_) => {
                    // Lets the thread go, or the test would wait with the guest.
                    attempt.target.end();
                    panic!("the guest waits for a page that is there, after {seen} others");
                }
            }
            seen += 1;
        }
    });
    attempt.incoming.write_pages(7000, 3, 8);
    let checked = check(&attempt);
    assert_eq!(found(&checked), [0, 0, 0], "{checked:?}");
    // What was only read counts as unwritten, or the check could say nothing of it.
    assert_eq!(checked.written_pages, 3, "{checked:?}");
}

#[test]
fn cut_check_lanes_are_opened_again_and_an_ended_session_says_so() {
    let planted = PlantedFaults { stored: Some(PAGE + 11), ..Default::default() };
    let (_lab, attempt) = rounds(Exactness::AfterResume, planted);
    hand_over(&attempt);
    // The source is first: its lane waits for the target's own comparison.
    attempt.source.check_image().wait().expect("compared");
    std::thread::sleep(Duration::from_millis(50));
    attempt.source.cut_lanes();
    attempt.target.begin_check();
    let checked = attempt.target.checked().wait().expect("told over a second lane");
    assert_eq!(found(&checked), [0, 1, 1]);

    let (_lab, attempt) = rounds(Exactness::AfterResume, PlantedFaults::default());
    hand_over(&attempt);
    attempt.target.end();
    let failure = attempt.target.checked().wait().expect_err("ended");
    assert_eq!(failure.code, FailureCode::MigrationCancelled);
}

/// Prints what a check of 1 GiB costs: `cargo test --release … -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_gibibyte() {
    let bytes = 1 << 30;
    let lab = Lab::new(bytes);
    lab.guest.write_pages(0, bytes / support::PAGE, 1);
    for exactness in [Exactness::AfterResume, Exactness::BeforeResume] {
        let attempt = lab.start(&Wanted { bytes, exactness, ..Wanted::default() });
        attempt.source.connect().wait().expect("connected");
        attempt.source.start_pre_copy().expect("started");
        attempt.source.converged().wait().expect("converged");
        let began = Instant::now();
        hand_over(&attempt);
        let last_pass = began.elapsed();
        let (side, began) = (|c: Checked| (c.wall_micros / 1000, c.cpu_micros / 1000), Instant::now());
        let checked = check(&attempt);
        println!(
            "{exactness:?}: last pass {last_pass:?}, check {:?}, source (wall, CPU) {:?} ms, \
             target {:?} ms", began.elapsed(), side(checked.source), side(checked.target),
        );
        let (sender, receiver) = std::sync::mpsc::channel();
        let began = Instant::now();
        attempt.target.end_check(move |_| sender.send(()).expect("the test waits"));
        receiver.recv().expect("tracking ends");
        println!("{exactness:?}: tracking ended in {:?}", began.elapsed());
    }
}
