//! Dirty tracking, injection and faults with a real process.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use novacron_guest_memory::{
    DirtyTracker, FaultMode, GuestMapping, Marks, MemoryError, MemoryFile, Resolution, Userfault,
};
use novacron_guest_process::{GuestProcess, STORM_SIGNAL};

const BYTES: u64 = 64 << 20;
const SIGNALS: u64 = 2000;

fn guest(name: &str) -> GuestProcess {
    guest_of(name, BYTES)
}

fn guest_of(name: &str, bytes: u64) -> GuestProcess {
    let path = PathBuf::from(format!("/dev/shm/novacron-test-{name}-{}", std::process::id()));
    GuestProcess::start(&path, bytes)
}

fn tracker(guest: &GuestProcess) -> DirtyTracker {
    DirtyTracker::start(guest.pid(), guest.path(), guest.bytes()).expect("tracking starts")
}

fn collect(tracker: &mut DirtyTracker) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    tracker.collect(|first, count| pages.extend(first..first + count)).expect("a scan");
    pages
}

fn userfault_count(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process lives")
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy() == "anon_inode:[userfaultfd]")
        .count()
}

#[test]
fn exactly_the_written_pages_are_reported() {
    let guest = guest("written");
    guest.write_pages(0, 100, 1);
    let mut tracker = tracker(&guest);
    collect(&mut tracker);
    assert_eq!(collect(&mut tracker), BTreeSet::new());
    guest.write_pages(3, 1, 2);
    guest.write_pages(50, 2, 2);
    guest.write_pages(9000, 1, 2);
    guest.read_page(200);
    assert_eq!(tracker.peek().expect("a look").pages, 4);
    assert_eq!(collect(&mut tracker), BTreeSet::from([3, 50, 51, 9000]));
    guest.write_pages(50, 1, 3);
    assert_eq!(collect(&mut tracker), BTreeSet::from([50]));
    tracker.stop().expect("tracking stops");
    guest.write_pages(1, 1, 4);
}

#[test]
fn another_thread_sees_the_marks_and_leaves_them() {
    let guest = guest("marks");
    let mut tracker = tracker(&guest);
    let mut marks = tracker.marks().expect("a second view");
    collect(&mut tracker);
    // Every second page of a chunk: as many runs as a chunk can have.
    (0..128).for_each(|pair| guest.write_pages(256 + 2 * pair, 1, 7));
    guest.write_pages(600, 1, 7);
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        seen.clear();
        let looked = marks.written((256, 256), |first, count| seen.extend(first..first + count));
        looked.expect("a look");
        assert_eq!(seen, (0..128).map(|pair| 256 + 2 * pair).collect());
    }
    seen.insert(600);
    assert_eq!(collect(&mut tracker), seen);
    marks.written((256, 256), |first, _| panic!("{first} was collected")).expect("a look");
    tracker.stop().expect("tracking stops");
    assert!(marks.written((0, 256), |_, _| ()).is_err(), "a lost tracking is said");
}

#[test]
fn a_second_mover_takes_the_first_ones_userfaultfd() {
    let guest = guest("second");
    for round in 0..3 {
        let mut tracker = tracker(&guest);
        collect(&mut tracker);
        guest.write_pages(round, 1, round);
        assert_eq!(collect(&mut tracker), BTreeSet::from([round]), "round {round}");
        assert_eq!(userfault_count(guest.pid()), 1, "round {round}");
    }
}

#[test]
fn the_device_is_used_where_a_guard_left_it() {
    let guest = guest("device");
    if guest.open_userfault_device() == 0 {
        println!("skipped: /dev/userfaultfd is missing");
        return;
    }
    let mut tracker = tracker(&guest);
    collect(&mut tracker);
    guest.write_pages(7, 1, 1);
    assert_eq!(collect(&mut tracker), BTreeSet::from([7]));
}

#[test]
fn a_lost_registration_is_an_error_and_never_silent() {
    let guest = guest("lost");
    let mut tracker = tracker(&guest);
    collect(&mut tracker);
    let mapping = GuestMapping::find(guest.pid(), guest.path(), BYTES).expect("mapped");
    let other = Userfault::obtain(guest.pid()).expect("the same userfaultfd");
    other.unregister(&mapping).expect("it goes");
    guest.write_pages(0, 1, 1);
    let outcome = tracker.collect(|_, _| {});
    assert!(matches!(outcome, Err(MemoryError::TrackingLost)), "{outcome:?}");
}

#[test]
fn injection_neither_loses_signals_nor_breaks_the_call_it_interrupts() {
    let guest = guest("signals");
    guest.start_storm();
    let pid = guest.pid();
    let sender = std::thread::spawn(move || {
        for _ in 0..SIGNALS {
            // SAFETY: takes no pointers; the process is a child of this test.
            assert_eq!(unsafe { libc::kill(pid, STORM_SIGNAL) }, 0);
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    let mut injected = 0;
    while !sender.is_finished() {
        let call = novacron_guest_memory::SyscallCall { number: 39, arguments: [0; 3] };
        let result = novacron_guest_memory::run_in_process(pid, &call).expect("getpid");
        assert_eq!(result, i64::from(pid));
        injected += 1;
    }
    sender.join().expect("the sender ends");
    let (signals, failed_polls) = guest.storm_result();
    println!("{injected} injections, {signals} signals");
    assert!(injected > 20);
    assert_eq!(failed_polls, 0, "an interrupted poll was not restarted");
    assert_eq!(signals, SIGNALS);
}

#[test]
fn a_missing_page_waits_until_it_is_there_and_then_reads_right() {
    let guest = guest("missing");
    let file = MemoryFile::open_target(guest.path(), BYTES).expect("the file");
    let mapping = GuestMapping::find(guest.pid(), guest.path(), BYTES).expect("mapped");
    let userfault = Userfault::obtain(guest.pid()).expect("a userfaultfd");
    userfault.register(&mapping, FaultMode::WaitForPages).expect("registered");
    let value = std::thread::scope(|scope| {
        let reader = scope.spawn(|| guest.read_page(5));
        let mut address = None;
        let began = Instant::now();
        while address.is_none() && began.elapsed() < Duration::from_secs(5) {
            userfault
                .wait_faults(Duration::from_millis(50), |fault| address = Some(fault.address))
                .expect("faults");
        }
        let address = address.expect("the process waits");
        assert_eq!(mapping.page_of(address), Some(5));
        let resolve = || userfault.resolve(address, 4096, Marks::Written).expect("asked");
        assert_eq!(resolve(), Resolution::Hole);
        let page = [1_u8; 4096];
        file.write(&page, 5 * 4096).expect("written");
        assert_eq!(resolve(), Resolution::Mapped);
        assert_eq!(resolve(), Resolution::AlreadyMapped);
        reader.join().expect("the reader goes on")
    });
    assert_eq!(value, 0x0101_0101_0101_0101_u64.wrapping_mul(512));
    userfault.unregister(&mapping).expect("it goes");
}

#[test]
fn nobody_waits_on_after_faults_are_off() {
    // So large that clearing the marks takes a while: whoever comes to a page meanwhile waits for it.
    let bytes = 1 << 30;
    let guest = guest_of("off", bytes);
    for round in 0..30 {
        let mut tracker =
            DirtyTracker::start(guest.pid(), guest.path(), bytes).expect("a tracker");
        tracker.collect(|_, _| {}).expect("armed");
        let mapping = GuestMapping::find(guest.pid(), guest.path(), bytes).expect("mapped");
        let userfault = Userfault::obtain(guest.pid()).expect("a userfaultfd");
        userfault.register(&mapping, FaultMode::WaitForPages).expect("registered");
        let (sender, receiver) = std::sync::mpsc::channel();
        let together = std::sync::Barrier::new(2);
        let went_on = std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                std::thread::sleep(Duration::from_micros(round * 200));
                sender.send(guest.read_page(round)).expect("the test waits");
            });
            together.wait();
            userfault.unregister(&mapping).expect("it goes");
            let went_on = receiver.recv_timeout(Duration::from_secs(3));
            // Lets the thread go in any case, or the test would wait with it.
            userfault.wake_all(&mapping).expect("woken");
            went_on
        });
        assert_eq!(went_on, Ok(0), "round {round}");
        tracker.stop().expect("it ends");
    }
}

#[test]
fn filling_holes_overwrites_nothing() {
    let guest = guest("filled");
    let file = MemoryFile::open_target(guest.path(), BYTES).expect("the file");
    guest.write_pages(7, 1, 3);
    let before = guest.read_page(7);
    file.fill_holes(5 * 4096, 4 * 4096).expect("filled");
    assert_eq!((guest.read_page(7), guest.read_page(5)), (before, 0));
    assert_eq!(file.allocated_bytes().expect("stat"), 4 * 4096);
}

#[test]
fn holes_are_found_and_reading_leaves_them_holes() {
    let guest = guest("holes");
    guest.write_pages(10, 5, 1);
    guest.write_pages(1000, 1, 1);
    let source = MemoryFile::open_source(guest.path(), BYTES).expect("the file");
    let extents = || {
        let mut found = Vec::new();
        source.data_extents(|offset, length| found.push((offset / 4096, length / 4096))).expect("walk");
        found
    };
    assert_eq!(extents(), [(10, 5), (1000, 1)]);
    let mut buffer = vec![9; 1 << 20];
    source.read(&mut buffer, 8 << 20).expect("holes read");
    assert!(buffer.iter().all(|byte| *byte == 0));
    assert_eq!(extents(), [(10, 5), (1000, 1)]);
    let target = MemoryFile::open_target(guest.path(), BYTES).expect("the file");
    target.discard(11 * 4096, 4096).expect("punched");
    assert_eq!(extents(), [(10, 1), (12, 3), (1000, 1)]);
    assert_eq!(guest.read_page(11), 0);
}

#[test]
#[ignore = "figures, not a verdict: run with --ignored --nocapture"]
fn figures_of_a_gibibyte() {
    let path = PathBuf::from(format!("/dev/shm/novacron-test-figures-{}", std::process::id()));
    let guest = GuestProcess::start(&path, 1 << 30);
    guest.write_pages(0, 1 << 18, 1);
    let began = Instant::now();
    let mut tracker = tracker(&guest);
    println!("start {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    let time = |tracker: &mut DirtyTracker, name: &str| {
        let began = Instant::now();
        let pages = tracker.collect(|_, _| {}).expect("a scan").pages;
        println!("{name}: {pages} pages, {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    };
    time(&mut tracker, "arm");
    time(&mut tracker, "clean");
    guest.write_pages(0, 1000, 2);
    time(&mut tracker, "1000 in a row");
    guest.run(0, 1 << 18, 7, 0);
    std::thread::sleep(Duration::from_millis(300));
    guest.stop();
    time(&mut tracker, "random");
    guest.write_pages(0, 1 << 18, 3);
    time(&mut tracker, "all");
}
