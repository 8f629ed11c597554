//! The target's part of the checks: its memory file is compared with what was received, the
//! guest's writes are tracked from before its start, and what the source found wrong is repaired
//! where the guest has not written.
//!
//! A page that differs and was not written since is wrong: it was stored wrong, or something else
//! wrote the file. One that was written can't be judged any more, unless the source says that what
//! it sent was wrong. Pages that came by post-copy are mapped writable when they come and count as
//! written; both sides' sums cover them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use novacron_core::frame::{Checked, Frame, Refusal};
use novacron_core::{CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::{DirtyTracker, WriteMarks};
use novacron_transport::Lane;

use crate::completion::{Answer, lock};
use crate::failure::{Failure, FailureCode};
use crate::frames::{FrameReader, send_now};
use crate::image_check::{Comparison, Exactness, Pace};
use crate::page_bits::pages_of_chunk;
use crate::source::{WRONG_PAGES_MAX, in_thread, start};
use crate::target::{Shared, refuse};

/// What both comparisons came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedMemory {
    /// The frozen image against what was sent.
    pub source: Checked,
    /// The memory file against what was received.
    pub target: Checked,
    /// Pages of the target that the guest had written before they were compared.
    pub written_pages: u64,
    /// Pages that are wrong at the target, found by either side; those that can be repaired are
    /// at hand.
    pub wrong_pages: u64,
}

/// What a repair came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    pub repaired_pages: u64,
    /// Wrong pages that the guest has written: whatever it made of them is there to stay.
    pub written_pages: u64,
}

/// The write tracking of a guest that has just arrived.
struct Tracked {
    tracker: DirtyTracker,
    marks: WriteMarks,
}

#[derive(Clone, Default)]
struct Own {
    checked: Checked,
    written: u64,
    wrong: Vec<u64>,
}

/// A page as it ought to be; `None` is a page of zeros.
type Content = Option<Box<[u8]>>;

#[derive(Default)]
pub(crate) struct CheckState {
    tracked: Mutex<Option<Tracked>>,
    own: Answer<Own>,
    right: Mutex<BTreeMap<u64, Content>>,
    done: Answer<CheckedMemory>,
    compared_pages: AtomicU64,
}

impl CheckState {
    pub(crate) fn done(&self) -> &Answer<CheckedMemory> {
        &self.done
    }

    pub(crate) fn compared_pages(&self) -> u64 {
        self.compared_pages.load(Ordering::Relaxed)
    }

    pub(crate) fn is_armed(&self) -> bool {
        lock(&self.tracked).is_some()
    }

    /// Ends tracking. Afterwards nothing here touches the VMM any more: it may be on its next move.
    /// While pages are missing its vCPUs wait by the same registration, which stays then: whoever
    /// brings the last page ends it. One lock for both, or each might leave it to the other.
    pub(crate) fn stop(&self, pages_are_missing: impl Fn() -> bool) {
        let mut tracked = lock(&self.tracked);
        if let Some(mut tracked) = tracked.take()
            && pages_are_missing()
        {
            tracked.tracker.leave();
        }
    }

    pub(crate) fn end(&self, failure: &Failure, pages_are_missing: impl Fn() -> bool) {
        self.stop(pages_are_missing);
        self.own.give(Err(failure.clone()));
        self.done.give(Err(failure.clone()));
    }
}

/// Arms write tracking, long before the blackout: what the mover itself writes into the file
/// passes by the VMM's mapping and leaves no mark.
pub(crate) fn arm(shared: &Shared) -> Result<(), Failure> {
    let options = &shared.options;
    if options.exactness == Exactness::Off {
        return Ok(());
    }
    let mut tracker =
        DirtyTracker::start(options.vmm_pid, &options.memory_path, options.memory_bytes)?;
    tracker.collect(|_, _| {})?;
    let marks = tracker.marks()?;
    *lock(&shared.check.tracked) = Some(Tracked { tracker, marks });
    Ok(())
}

/// Whether the guest may have written the page: a mark that can't be read is no proof.
fn is_written(tracked: &mut Option<Tracked>, page: u64) -> bool {
    let Some(tracked) = tracked else { return true };
    let mut written = false;
    tracked.marks.written((page, 1), |_, _| written = true).is_err() || written
}

/// In the blackout, before the target may be Ready.
pub(crate) fn before_start(shared: &Shared) -> Result<(), Failure> {
    if shared.options.exactness != Exactness::BeforeResume {
        return Ok(());
    }
    let first = AtomicU64::new(u64::MAX);
    let Some(checked) = compare(shared, Pace::Full, &|page| {
        first.fetch_min(page, Ordering::Relaxed);
    })? else { return Ok(()) };
    if checked.wrong > 0 {
        let detail = format!(
            "{} pages of the target's memory file are not what it received, the first is {}",
            checked.wrong, first.into_inner(),
        );
        return Err(Failure::new(FailureCode::MigrationDigest, detail));
    }
    shared.check.own.give(Ok(Own { checked, ..Own::default() }));
    Ok(())
}

/// Beside the running guest; repeating it does nothing.
pub(crate) fn after_start(shared: &Arc<Shared>) {
    if shared.options.exactness != Exactness::AfterResume {
        return;
    }
    let checking = shared.clone();
    let begun = start("check", move || {
        match compare_own(&checking) {
            Ok(Some(own)) => checking.check.own.give(Ok(own)),
            Ok(None) => {}
            Err(failure) => checking.check.own.give(Err(failure)),
        }
    });
    if let Err(failure) = begun {
        shared.check.own.give(Err(failure));
    }
}

fn compare_own(shared: &Shared) -> Result<Option<Own>, Failure> {
    let (written, wrong) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    // The mark is looked at after the page was read: what had no mark then was as it had arrived.
    let checked = compare(shared, Pace::BesideGuests, &|page| {
        let touched = is_written(&mut lock(&shared.check.tracked), page);
        if touched || was_taken_away(shared, page) {
            written.fetch_add(1, Ordering::Relaxed);
        } else {
            lock(&wrong).push(page);
        }
    })?;
    let wrong = std::mem::take(&mut *lock(&wrong));
    Ok(checked.map(|checked| {
        let checked = Checked { wrong: wrong.len() as u64, ..checked };
        Own { checked, written: written.into_inner(), wrong }
    }))
}

/// A balloon gives a clean page back to the host without a trace.
fn was_taken_away(shared: &Shared, page: u64) -> bool {
    let (mut hole, size) = (false, PAGE_BYTES as u64);
    let looked = shared.memory.holes_in(page * size, size, |_, _| hole = true);
    shared.options.balloon && looked.is_ok() && hole
}

fn compare(
    shared: &Shared,
    pace: Pace,
    differ: &(dyn Fn(u64) + Sync),
) -> Result<Option<Checked>, Failure> {
    let tables = shared.tables();
    Comparison {
        memory: &shared.memory,
        tables: &tables,
        pace,
        leave_out: &|chunk| shared.missing.get(chunk),
        ended: &|| shared.ended(),
        done_pages: &shared.check.compared_pages,
    }
    .run(&|chunk, pages| pages.iter().for_each(|page| differ((chunk * CHUNK_PAGES + page) as u64)))
}

/// Serves the source's check lane until both comparisons are told.
pub(crate) fn serve_lane(shared: &Arc<Shared>, lane: Lane) {
    if shared.resumed || shared.options.exactness == Exactness::Off {
        return refuse(lane, Refusal::Unknown);
    }
    // A lane that breaks is opened again by the source; what came is kept.
    let _ = converse(shared, lane);
}

fn converse(shared: &Shared, lane: Lane) -> Result<(), Failure> {
    let Lane { reader, mut writer, .. } = lane;
    send_now(&mut writer, 0, Frame::Resume)?;
    let mut frames = FrameReader::new(reader);
    let source = loop {
        match take(shared, frames.next()?.1)? {
            Some(checked) => break checked,
            None => {}
        }
    };
    let own = shared.check.own.wait()?;
    if own.wrong.len() as u64 <= WRONG_PAGES_MAX {
        for page in own.wrong.iter().copied() {
            if !lock(&shared.check.right).contains_key(&page) {
                send_now(&mut writer, 0, Frame::Fault { page })?;
                take(shared, frames.next()?.1)?;
            }
        }
    }
    send_now(&mut writer, 0, Frame::Applied)?;
    let at_hand = lock(&shared.check.right).len() as u64;
    // Before its start the source has sent again what it found.
    let still_wrong = if shared.options.exactness == Exactness::AfterResume {
        source.wrong
    } else {
        0
    };
    let wrong_pages = at_hand.max(still_wrong).max(own.checked.wrong);
    let (target, written_pages) = (own.checked, own.written);
    shared.check.done.give(Ok(CheckedMemory { source, target, written_pages, wrong_pages }));
    Ok(())
}

/// Keeps pages as they ought to be; answers the source's figures when they come.
fn take(shared: &Shared, frame: Frame<'_>) -> Result<Option<Checked>, Failure> {
    let refused = || Failure::new(FailureCode::LinkRefused, "an unexpected frame on a check lane");
    let (chunk, data, zero, bytes) = match frame {
        Frame::Checked(checked) => return Ok(Some(checked)),
        Frame::Pages { chunk, data, zero, bytes } => (chunk as usize, data, zero, bytes),
        _ => return Err(refused()),
    };
    let existing = pages_of_chunk(chunk, shared.memory.length());
    let mut right = lock(&shared.check.right);
    let coming = data.union(&zero);
    let room = (WRONG_PAGES_MAX * 2).saturating_sub(right.len() as u64);
    if !coming.difference(&existing).is_empty() || room < coming.count() as u64 {
        return Err(refused());
    }
    let first = (chunk * CHUNK_PAGES) as u64;
    for (page, content) in data.iter().zip(bytes.chunks_exact(PAGE_BYTES)) {
        right.insert(first + page as u64, Some(content.into()));
    }
    zero.iter().for_each(|page| drop(right.insert(first + page as u64, None)));
    Ok(None)
}

/// Writes the right content of wrong pages that the guest has left alone. No vCPU may run and no
/// device may write meanwhile.
pub(crate) fn repair(
    shared: &Arc<Shared>,
    done: impl FnOnce(Result<Repair, Failure>) + Send + 'static,
) {
    let (repairing, made) = (shared.clone(), Arc::new(Mutex::new(Repair::default())));
    let outcome = made.clone();
    in_thread(
        "repair",
        move || {
            *lock(&made) = repair_pages(&repairing)?;
            Ok(())
        },
        move |ended| done(ended.map(|()| *lock(&outcome))),
    );
}

fn repair_pages(shared: &Shared) -> Result<Repair, Failure> {
    let known = matches!(shared.check.done.peek(), Some(Ok(_)));
    if !known {
        return Err(Failure::new(FailureCode::Internal, "there is nothing to repair yet"));
    }
    let wrong = shared.check.done.peek().and_then(Result::ok).map_or(0, |done| done.wrong_pages);
    let mut tracked = lock(&shared.check.tracked);
    let mut repair = Repair::default();
    let right = lock(&shared.check.right);
    for (page, content) in right.iter() {
        let offset = page * PAGE_BYTES as u64;
        if is_written(&mut tracked, *page) {
            repair.written_pages += 1;
            continue;
        }
        match content {
            Some(bytes) => shared.memory.write(bytes, offset)?,
            None => shared.memory.write(&[0; PAGE_BYTES], offset)?,
        }
        repair.repaired_pages += 1;
    }
    // Too many to be sent: nobody knows about those.
    repair.written_pages += wrong.saturating_sub(right.len() as u64);
    Ok(repair)
}
