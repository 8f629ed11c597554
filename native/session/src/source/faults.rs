//! Serves pages that a vCPU of the target waits for, ahead of everything that is pushed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use novacron_core::digest::PageHasher;
use novacron_core::frame::Frame;
use novacron_core::hello::LaneRole;
use novacron_core::pages::PageSet;
use novacron_core::{CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::is_zero_page;
use novacron_transport::{Lane, LaneWriter};

use crate::OPEN_WAIT_MAX;
use crate::completion::lock;
use crate::failure::{Failure, FailureCode};
use crate::frames::FrameReader;
use crate::source::orders::Phase;
use crate::source::{FinishMode, Shared};

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
        (_, Frame::Refused { reason }) => {
            shared.fail(shared.refusal(reason));
            return Ok(());
        }
        _ => {
            return Err(Failure::new(FailureCode::LinkRefused, "no resume frame on the fault lane"));
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
            (_, Frame::Whole { digest }) => return take_whole(shared, digest),
            (_, Frame::Refused { .. }) => {
                return Err(Failure::new(FailureCode::LinkLost, "the target closed the session"));
            }
            _ => return Err(Failure::new(FailureCode::LinkRefused, "an unexpected frame came")),
        }
    }
}

/// The target says that it is whole: both digests must be equal.
fn take_whole(shared: &Shared, digest: u128) -> Result<(), Failure> {
    let Some(Ok(finished)) = shared.finished.peek() else {
        return Err(Failure::new(FailureCode::LinkRefused, "whole before the last pass"));
    };
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
        let frozen = matches!(shared.orders.phase(), Phase::Push | Phase::Last(FinishMode::PostCopy));
        let inside = page < shared.memory.length() / PAGE_BYTES as u64;
        if !frozen || !inside || !shared.listed.contains(page) {
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
        shared.figures.faults.fetch_add(1, Ordering::Relaxed);
        writer.write_all(&self.out)?;
        writer.flush()?;
        Ok(())
    }
}
