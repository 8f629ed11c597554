//! Serves pages that a vCPU of the target waits for, ahead of everything that is pushed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use novacron_core::digest::{MissingHasher, PageHasher};
use novacron_core::frame::Frame;
use novacron_core::hello::LaneRole;
use novacron_core::pages::PageSet;
use novacron_core::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::is_zero_page;
use novacron_transport::{Lane, LaneWriter};

use crate::{OPEN_WAIT_MAX, REFUSED_PAUSE};
use crate::completion::lock;
use crate::failure::{Failure, FailureCode};
use crate::frames::FrameReader;
use crate::page_bits::pages_of_chunk;
use crate::source::Shared;

/// Serves until the target is whole or the session ends, over as many lanes as it takes.
pub(crate) fn serve(shared: &Arc<Shared>) {
    let mut told = false;
    while let Some(lane) = shared.open_lane(LaneRole::Fault) {
        let ticket = shared.wire.add(lane.control.clone());
        let served = serve_lane(shared, lane, &mut told);
        shared.wire.remove(ticket);
        match served {
            Ok(()) => return,
            Err(failure) if failure.code == FailureCode::LinkLost => shared.note_break(&failure.detail),
            Err(failure) => return shared.fail(failure),
        }
        if shared.whole.peek().is_some() {
            return;
        }
    }
}

fn serve_lane(shared: &Shared, lane: Lane, told: &mut bool) -> Result<(), Failure> {
    let mut reader = lane.reader;
    reader.set_deadline(Some(Instant::now() + OPEN_WAIT_MAX));
    let mut frames = FrameReader::new(reader);
    match frames.next()? {
        (_, Frame::Resume) => {}
        (_, Frame::Refused { .. }) if shared.target_runs() => {
            thread::sleep(REFUSED_PAUSE);
            let detail = "the target does not know the move yet";
            return Err(Failure::new(FailureCode::LinkLost, detail));
        }
        (_, Frame::Refused { reason }) => {
            shared.fail(shared.refusal(reason));
            return Ok(());
        }
        _ => {
            let detail = "no resume frame on the fault lane";
            return Err(Failure::new(FailureCode::LinkRefused, detail));
        }
    }
    if !std::mem::replace(told, true) {
        shared.one_ready();
    }
    frames.wait_for_ever();
    let mut writer = lane.writer;
    let mut server = PageServer { hasher: PageHasher::new(), out: Vec::with_capacity(8192) };
    loop {
        match frames.next()? {
            (_, Frame::Fault { page }) => server.send(shared, &mut writer, page)?,
            (_, Frame::Listed { chunk, listed, open }) => take_list(shared, chunk, &listed, &open)?,
            (_, Frame::ListEnd) => end_list(shared)?,
            (_, Frame::Whole { digest }) => return take_whole(shared, digest),
            (_, Frame::Refused { .. }) => {
                return Err(Failure::new(FailureCode::LinkLost, "the target closed the session"));
            }
            _ => return Err(Failure::new(FailureCode::LinkRefused, "an unexpected frame came")),
        }
    }
}

/// One of us is the second process of this move: what the target still misses is pushed (again).
/// A source that saw the hand-over itself knows the list; one that did not takes it from here.
fn take_list(shared: &Shared, chunk: u64, listed: &PageSet, open: &PageSet) -> Result<(), Failure> {
    let chunk = chunk as usize;
    let exists = chunk < shared.listed.chunks()
        && listed.difference(&pages_of_chunk(chunk, shared.memory.length())).is_empty();
    if !shared.target_runs() || !exists {
        return Err(Failure::new(FailureCode::LinkRefused, "a list that can't be"));
    }
    if shared.resumed {
        shared.listed.insert_set(chunk, listed);
    } else if shared.listed.get(chunk) != *listed {
        return Err(Failure::new(FailureCode::LinkRefused, "the target lists other pages"));
    }
    shared.missing.insert_set(chunk, open);
    Ok(())
}

/// The whole list is in; where it was not made here, the ledger's record vouches for it.
fn end_list(shared: &Shared) -> Result<(), Failure> {
    if shared.resumed && let Some(Ok(finished)) = shared.finished.peek() {
        let mut missing = MissingHasher::default();
        for chunk in 0..shared.listed.chunks() {
            missing.chunk(chunk as u64, shared.listed.get(chunk));
        }
        let (digest, pages) = missing.finish();
        if digest != finished.missing_digest || pages != finished.missing_pages {
            let recorded = finished.missing_pages;
            let detail = format!("the target lists {pages} pages, the record {recorded}");
            return Err(Failure::new(FailureCode::MigrationDigest, detail));
        }
    }
    shared.orders.push_again();
    Ok(())
}

/// Counts the missing pages that a source before this one has sent: the image stands still.
fn count_the_rest(shared: &Shared) -> Result<(), Failure> {
    let hasher = PageHasher::new();
    let mut bytes = vec![0; CHUNK_BYTES];
    for chunk in 0..shared.listed.chunks() {
        let uncounted = shared.listed.get(chunk).difference(&shared.counted.get(chunk));
        for (first, count) in uncounted.runs() {
            let run = &mut bytes[..count * PAGE_BYTES];
            shared.memory.read(run, (chunk * CHUNK_BYTES + first * PAGE_BYTES) as u64)?;
            for (offset, page) in run.as_chunks::<PAGE_BYTES>().0.iter().enumerate() {
                let number = (chunk * CHUNK_PAGES + first + offset) as u64;
                if !is_zero_page(page) {
                    let count = |_, value| shared.count_late(number, value);
                    hasher.contributions(page, &[number], count);
                }
            }
        }
    }
    Ok(())
}

/// The target says that it is whole: both digests must be equal.
fn take_whole(shared: &Shared, digest: u128) -> Result<(), Failure> {
    let Some(Ok(finished)) = shared.finished.peek() else {
        return Err(Failure::new(FailureCode::LinkRefused, "whole before the last pass"));
    };
    if shared.resumed {
        count_the_rest(shared)?;
    }
    let own = finished.digest.wrapping_add(*lock(&shared.late_sum));
    if own != digest {
        return Err(Failure::new(
            FailureCode::MigrationDigest,
            format!("after post-copy: source {own:032x}, target {digest:032x}"),
        ));
    }
    shared.whole.give(Ok(digest));
    Ok(())
}

struct PageServer {
    hasher: PageHasher,
    out: Vec<u8>,
}

impl PageServer {
    fn send(&mut self, shared: &Shared, writer: &mut LaneWriter, page: u64) -> Result<(), Failure> {
        let inside = page < shared.memory.length() / PAGE_BYTES as u64;
        if !shared.target_runs() || !inside || !shared.listed.contains(page) {
            return Err(Failure::new(FailureCode::LinkRefused, "a fault for a page that is not missing"));
        }
        let mut bytes = [0; PAGE_BYTES];
        shared.memory.read(&mut bytes, page * PAGE_BYTES as u64)?;
        let mut set = PageSet::EMPTY;
        set.insert(page as usize % CHUNK_PAGES);
        let chunk = page / CHUNK_PAGES as u64;
        self.out.clear();
        if is_zero_page(&bytes) {
            Frame::Pages { chunk, data: PageSet::EMPTY, zero: set, bytes: &[] }
                .encode(0, &mut self.out);
        } else {
            Frame::Pages { chunk, data: set, zero: PageSet::EMPTY, bytes: &bytes }
                .encode(0, &mut self.out);
            self.hasher.contributions(&bytes, &[page], |_, value| shared.count_late(page, value));
        }
        shared.missing.remove(page);
        shared.pacer.spend(self.out.len() as u64);
        shared.figures.faults.fetch_add(1, Ordering::Relaxed);
        writer.write_all(&self.out)?;
        writer.flush()?;
        Ok(())
    }
}
