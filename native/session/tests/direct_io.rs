//! Why disks with O_DIRECT are refused: what the disk writes into a page that is pinned already
//! leaves no mark. The same reads through the host's cache are seen, and the check finds the rest.

mod support;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use novacron_guest_process::DISK_PARTS;
use novacron_session::{CheckedMemory, FinishMode};
use support::{Lab, Wanted, assert_equal};

const BYTES: u64 = 64 << 20;
/// Read at a time: the more is on its way, the more a scan finds in flight.
const READ_PAGES: u64 = (8 << 20) / support::PAGE;
const FIRST: u64 = 1000;
/// In flight at the right moment is a matter of chance: one move in four to one in twenty-four.
const DIRECT_TRIES_MAX: usize = 200;
const BUSY_READERS: usize = 2;
const CACHED_TRIES: usize = 12;

/// A disk whose every page differs from all others.
fn disk(flags: i32) -> File {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = path.join(format!("novacron-disk-{}-{flags}", std::process::id()));
    let mut file = File::create(&path).expect("a file on a disk");
    for page in 0..READ_PAGES * DISK_PARTS {
        let word = (page + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        file.write_all(&word.repeat(support::PAGE as usize / 8)).expect("room");
    }
    file.sync_all().expect("written");
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path);
    std::fs::remove_file(&path).expect("removed");
    file.expect("the build folder's file system takes O_DIRECT")
}

/// One move while the guest reads; what the checks found once it stood and all reads were over.
fn move_reading(disk: &File) -> CheckedMemory {
    let lab = Lab::with_disk(BYTES, Some(disk));
    lab.guest.write_pages(0, 500, 1);
    let attempt = lab.start(&Wanted { budget_ms: 5_000.0, ..Wanted::default() });
    attempt.source.connect().wait().expect("connected");
    lab.guest.read_disk(FIRST, READ_PAGES);
    attempt.source.start_pre_copy().expect("started");
    attempt.source.converged().wait().expect("converged");
    assert!(lab.guest.stop() > 0, "nothing was read");
    let asked = attempt.source.finish_memory(FinishMode::PreCopy).expect("asked");
    asked.wait().expect("the last pass");
    attempt.target.memory_in().wait().expect("memory is in");
    attempt.target.begin_check();
    attempt.source.check_image();
    let checked = attempt.target.checked().wait().expect("compared");
    let (sender, receiver) = std::sync::mpsc::channel();
    attempt.target.repair(move |done| sender.send(done).expect("the test waits"));
    let repair = receiver.recv().expect("an answer").expect("it could be written");
    assert_eq!((repair.repaired_pages, repair.written_pages), (checked.wrong_pages, 0));
    assert_equal(&lab.guest, &attempt.incoming);
    checked
}

#[test]
fn reads_past_the_host_cache_are_missed_by_tracking_and_found_by_the_check() {
    let disk = disk(libc::O_DIRECT);
    // Others keep the disk busy: what is read takes longer to come.
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..BUSY_READERS {
            scope.spawn(|| keep_busy(&disk, &ended));
        }
        find_missed_pages(&disk);
        ended.store(true, Ordering::Relaxed);
    });
}

fn keep_busy(disk: &File, ended: &std::sync::atomic::AtomicBool) {
    // O_DIRECT wants the buffer aligned to the disk's blocks.
    let mut bytes = vec![0_u8; (READ_PAGES + 1) as usize * support::PAGE as usize];
    let from = bytes.as_ptr().align_offset(support::PAGE as usize);
    let length = (READ_PAGES * support::PAGE) as usize;
    while !ended.load(Ordering::Relaxed) {
        disk.read_exact_at(&mut bytes[from..from + length], 0).expect("the disk reads");
    }
}

fn find_missed_pages(disk: &File) {
    let mut moves = (1..=DIRECT_TRIES_MAX).map(|number| (number, move_reading(disk).source.wrong));
    let lost = moves.find(|(_, wrong)| *wrong > 0);
    println!("(move, pages that its scans missed) with O_DIRECT: {lost:?}");
    assert!(lost.is_some(), "nothing was in flight at any scan of {DIRECT_TRIES_MAX} moves");
}

#[test]
fn reads_through_the_host_cache_are_seen() {
    let disk = disk(0);
    let lost: Vec<u64> = (0..CACHED_TRIES).map(|_| move_reading(&disk).source.wrong).collect();
    assert_eq!(lost, [0; CACHED_TRIES]);
}
