//! The source's part of the check that dirty tracking missed nothing: its frozen image is compared
//! with what was sent. What the rounds sent is in the lanes' tables; pages that were listed as
//! missing are read from the frozen image when they are served, and both sides' sums cover them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use novacron_core::frame::{Checked, Frame};
use novacron_core::hello::{Hello, LaneRole};
use novacron_core::pages::PageSet;
use novacron_core::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::is_zero_page;
use novacron_transport::{Lane, LaneWriter};

use crate::OPEN_WAIT_MAX;
use crate::failure::{Failure, FailureCode};
use crate::frames::{FrameReader, send_now};
use crate::image_check::{Comparison, Exactness, Pace};
use crate::page_bits::pages_of_chunk;
use crate::source::Shared;

/// Pages that are sent to be repaired, 64 MiB: where more are wrong, one scan was not the fault.
pub(crate) const WRONG_PAGES_MAX: u64 = 16_384;
/// How long the target is tried to be told: it waits no longer.
const TELL_WAIT_MAX: Duration = Duration::from_secs(60);
const TELL_PAUSE: Duration = Duration::from_millis(300);

/// In the blackout: what is not as it was sent becomes dirty, and the last pass sends it.
pub(crate) fn before_start(shared: &Shared) -> Result<(), Failure> {
    if shared.options.exactness != Exactness::BeforeResume {
        return Ok(());
    }
    let leave_out = |chunk: usize| shared.dirty.get(chunk).union(&shared.missing.get(chunk));
    let checked = compare(shared, Pace::Full, &leave_out, &|chunk, pages| {
        shared.dirty.insert_set(chunk, &pages);
    })?;
    if let Some(checked) = checked {
        shared.checked.give(Ok(checked));
    }
    Ok(())
}

/// Beside the running target: compares, unless that was done before its start, and tells it.
pub(crate) fn after_start(shared: &Arc<Shared>) {
    if shared.options.exactness == Exactness::AfterResume {
        let leave_out = |chunk: usize| shared.listed.get(chunk);
        let checked = compare(shared, Pace::BesideGuests, &leave_out, &|chunk, pages| {
            shared.wrong.insert_set(chunk, &pages);
        });
        match checked {
            Ok(Some(checked)) => shared.checked.give(Ok(checked)),
            Ok(None) => return,
            Err(failure) => return shared.checked.give(Err(failure)),
        }
    }
    let began = Instant::now();
    while !shared.ended() && began.elapsed() < TELL_WAIT_MAX {
        match tell(shared) {
            Ok(()) => return,
            Err(_) => thread::sleep(TELL_PAUSE),
        }
    }
}

fn compare(
    shared: &Shared,
    pace: Pace,
    leave_out: &(dyn Fn(usize) -> PageSet + Sync),
    differ: &(dyn Fn(usize, PageSet) + Sync),
) -> Result<Option<Checked>, Failure> {
    Comparison {
        memory: &shared.memory,
        tables: &shared.tables,
        pace,
        leave_out,
        ended: &|| shared.ended(),
        done_pages: &shared.figures.compared_pages,
    }
    .run(differ)
}

/// One connection: the wrong pages as they are here, the figures, then what the target asks for.
fn tell(shared: &Shared) -> Result<(), Failure> {
    let Some(Ok(checked)) = shared.checked.peek() else {
        return Err(Failure::new(FailureCode::Internal, "nothing was checked"));
    };
    let hello = Hello {
        migration: shared.options.migration.clone(),
        epoch: shared.options.epoch,
        memory_bytes: shared.options.memory_bytes,
        role: LaneRole::Check,
    };
    let lane = shared.options.link.open(&hello.encode(), OPEN_WAIT_MAX)?;
    let ticket = shared.wire.add(lane.control.clone());
    let told = converse(shared, lane, checked);
    shared.wire.remove(ticket);
    told
}

fn converse(shared: &Shared, lane: Lane, checked: Checked) -> Result<(), Failure> {
    let Lane { mut reader, mut writer, .. } = lane;
    reader.set_deadline(Some(Instant::now() + TELL_WAIT_MAX));
    let mut frames = FrameReader::new(reader);
    let unexpected = || Failure::new(FailureCode::LinkRefused, "an unexpected frame came back");
    if !matches!(frames.next()?, (_, Frame::Resume)) {
        return Err(unexpected());
    }
    let mut bytes = vec![0; CHUNK_BYTES];
    if shared.wrong.count() <= WRONG_PAGES_MAX {
        for chunk in 0..shared.wrong.chunks() {
            send_pages(shared, &mut writer, chunk, shared.wrong.get(chunk), &mut bytes)?;
        }
    }
    send_now(&mut writer, 0, Frame::Checked(checked))?;
    loop {
        match frames.next()? {
            (_, Frame::Fault { page }) => {
                let chunk = page as usize / CHUNK_PAGES;
                if chunk >= shared.wrong.chunks() {
                    return Err(unexpected());
                }
                let mut set = PageSet::EMPTY;
                set.insert(page as usize % CHUNK_PAGES);
                send_pages(shared, &mut writer, chunk, set, &mut bytes)?;
            }
            (_, Frame::Applied) => return Ok(()),
            _ => return Err(unexpected()),
        }
    }
}

fn send_pages(
    shared: &Shared,
    writer: &mut LaneWriter,
    chunk: usize,
    pages: PageSet,
    bytes: &mut [u8],
) -> Result<(), Failure> {
    let pages = pages.intersection(&pages_of_chunk(chunk, shared.memory.length()));
    if pages.is_empty() {
        return Ok(());
    }
    let (mut data, mut zero, mut kept) = (PageSet::EMPTY, PageSet::EMPTY, 0);
    for page in pages.iter() {
        let place = &mut bytes[kept..kept + PAGE_BYTES];
        shared.memory.read(place, (chunk * CHUNK_BYTES + page * PAGE_BYTES) as u64)?;
        if place.first_chunk().is_some_and(is_zero_page) {
            zero.insert(page);
        } else {
            data.insert(page);
            kept += PAGE_BYTES;
        }
    }
    let chunk = chunk as u64;
    Ok(send_now(writer, 0, Frame::Pages { chunk, data, zero, bytes: &bytes[..kept] })?)
}
