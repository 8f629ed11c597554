//! One memory lane of the target: receives, writes, hashes, acknowledges.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use novacron_core::digest::PageHasher;
use novacron_core::frame::{Frame, Refusal};
use novacron_core::pages::{PageSet, lane_of_chunk};
use novacron_core::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::is_zero_page;
use novacron_transport::{Lane, LaneWriter};

use crate::completion::lock;
use crate::failure::{Failure, FailureCode};
use crate::frames::{FrameReader, send_now};
use crate::page_bits::pages_of_chunk;
use crate::take_ordinary_priority;
use crate::target::{LaneState, Shared, faults, refuse};

/// An acknowledgement goes back after this much, so that windows and rates follow the link.
const APPLIED_BYTES_MAX: usize = 256 * 1024;
const APPLIED_FRAMES_MAX: u32 = 64;

/// Serves one connection of a memory lane until it ends.
pub(crate) fn serve(shared: &Arc<Shared>, lane: Lane, index: u16, count: u16) {
    take_ordinary_priority();
    let Some(slot) = shared.slot(index, count) else { return refuse(lane, Refusal::Unknown) };
    let before = lock(&slot.current).replace(lane.control.clone());
    if let Some(before) = before {
        before.shutdown();
    }
    if shared.wait_prepared().is_err() {
        return refuse(lane, Refusal::Failed);
    }
    let mut state = lock(&slot.state);
    shared.figures.lanes_open.fetch_add(1, Ordering::Relaxed);
    let receiver = Receiver {
        shared,
        index: usize::from(index),
        count: usize::from(count),
        hasher: PageHasher::new(),
    };
    let served = receiver.take_stock(&mut state).and_then(|()| receiver.run(&mut state, lane));
    // A broken lane is the source's to open again.
    if let Err(failure) = served
        && failure.code != FailureCode::LinkLost
    {
        shared.fail(failure);
    }
    shared.figures.lanes_open.fetch_sub(1, Ordering::Relaxed);
}

struct Receiver<'a> {
    shared: &'a Arc<Shared>,
    index: usize,
    count: usize,
    hasher: PageHasher,
}

impl Receiver<'_> {
    fn run(&self, state: &mut LaneState, lane: Lane) -> Result<(), Failure> {
        let Lane { reader, mut writer, .. } = lane;
        send_now(&mut writer, state.applied, Frame::Resume)?;
        let mut frames = FrameReader::new(reader);
        if self.shared.planted.faults().received {
            frames.spoil_once();
        }
        let (mut bytes, mut since) = (0, 0);
        loop {
            let (sequence, frame) = frames.next()?;
            if sequence != state.applied + 1 {
                return Err(Failure::new(FailureCode::LinkRefused, "frames are not in order"));
            }
            let answer_now = match frame {
                Frame::Pages { chunk, data, zero, bytes: pages } => {
                    let chunk = self.check(chunk, &data.union(&zero))?;
                    if state.last {
                        faults::install(self.shared, &self.hasher, chunk, data, zero, pages)?;
                    } else {
                        self.apply(state, chunk, data, zero, pages)?;
                    }
                    bytes += pages.len();
                    since += 1;
                    // The push window is small: what it holds is told at once.
                    state.last || bytes >= APPLIED_BYTES_MAX || since >= APPLIED_FRAMES_MAX
                }
                Frame::RoundEnd { .. } => true,
                Frame::Missing { chunk, pages } if !state.last => {
                    let chunk = self.check(chunk, &pages)?;
                    self.shared.missing.insert_set(chunk, &pages);
                    pages.iter().for_each(|page| state.table.replace(self.index_of(chunk, page), 0));
                    since += 1;
                    since >= APPLIED_FRAMES_MAX
                }
                Frame::Final { digest } if !state.last => {
                    if digest != state.table.sum() {
                        // The failure that follows says the same to whoever waits here.
                        let reason = Refusal::Digest;
                        let _ = send_now(&mut writer, sequence, Frame::Refused { reason });
                        return Err(Failure::new(FailureCode::MigrationDigest, "a lane's sums differ"));
                    }
                    state.last = true;
                    self.shared.lane_is_final(digest)?;
                    true
                }
                Frame::Recall if !state.last => {
                    self.tell_held(state, &mut writer, sequence)?;
                    true
                }
                // The mover before this one had applied it, its answer was lost with it.
                Frame::Missing { .. } | Frame::Final { .. } if self.shared.resumed => true,
                _ => return Err(Failure::new(FailureCode::LinkRefused, "an unexpected frame came")),
            };
            state.applied = sequence;
            if answer_now {
                send_now(&mut writer, sequence, Frame::Applied)?;
                (bytes, since) = (0, 0);
            }
        }
    }

    /// Of memory that a target before this one has received nothing is known but what it says.
    fn take_stock(&self, state: &mut LaneState) -> Result<(), Failure> {
        if state.filled {
            return Ok(());
        }
        let mut bytes = vec![0; CHUNK_BYTES];
        let mut numbers = [0; CHUNK_PAGES];
        for chunk in (self.index..self.shared.missing.chunks()).step_by(self.count) {
            let count = pages_of_chunk(chunk, self.shared.memory.length()).count();
            let found = &mut bytes[..count * PAGE_BYTES];
            self.shared.memory.read(found, (chunk * CHUNK_BYTES) as u64)?;
            let mut kept = 0;
            for page in 0..count {
                let at = page * PAGE_BYTES;
                if bytes[at..].first_chunk().is_some_and(is_zero_page) {
                    continue;
                }
                bytes.copy_within(at..at + PAGE_BYTES, kept * PAGE_BYTES);
                numbers[kept] = (chunk * CHUNK_PAGES + page) as u64;
                kept += 1;
            }
            let found = &bytes[..kept * PAGE_BYTES];
            self.hasher.contributions(found, &numbers[..kept], |index, value| {
                let page = numbers[index] as usize % CHUNK_PAGES;
                state.table.replace(self.index_of(chunk, page), value);
            });
        }
        state.filled = true;
        Ok(())
    }

    /// What this lane holds, for a source that did not send it itself.
    fn tell_held(
        &self,
        state: &LaneState,
        writer: &mut LaneWriter,
        sequence: u64,
    ) -> Result<(), Failure> {
        let mut values = [0; CHUNK_PAGES * 16];
        for chunk in (self.index..self.shared.missing.chunks()).step_by(self.count) {
            for (page, value) in values.chunks_exact_mut(16).enumerate() {
                value.copy_from_slice(&state.table.get(self.index_of(chunk, page)).to_le_bytes());
            }
            if values.iter().any(|byte| *byte != 0) {
                send_now(writer, sequence, Frame::Held { chunk: chunk as u64, values: &values })?;
            }
        }
        send_now(writer, sequence, Frame::ListEnd)?;
        Ok(())
    }

    /// The chunk must be this lane's, and its pages must exist.
    fn check(&self, chunk: u64, pages: &PageSet) -> Result<usize, Failure> {
        let chunk = chunk as usize;
        let own = chunk < self.shared.missing.chunks() && lane_of_chunk(chunk, self.count) == self.index;
        let inside = || {
            let existing = pages_of_chunk(chunk, self.shared.memory.length());
            pages.difference(&existing).is_empty()
        };
        if own && inside() {
            return Ok(chunk);
        }
        Err(Failure::new(FailureCode::LinkRefused, "pages outside of the lane's memory"))
    }

    fn index_of(&self, chunk: usize, page: usize) -> usize {
        chunk / self.count * CHUNK_PAGES + page
    }

    fn apply(
        &self,
        state: &mut LaneState,
        chunk: usize,
        data: PageSet,
        zero: PageSet,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let base = (chunk * CHUNK_BYTES) as u64;
        let planted = &self.shared.planted;
        let mut spoilt = Vec::new();
        let bytes = planted.decoded(chunk, &data, bytes, &mut spoilt);
        let mut numbers = [0; CHUNK_PAGES];
        let mut at = 0;
        for (first, count) in data.runs() {
            let run = &bytes[at * PAGE_BYTES..(at + count) * PAGE_BYTES];
            self.shared.memory.write(run, base + (first * PAGE_BYTES) as u64)?;
            for page in first..first + count {
                numbers[at] = (chunk * CHUNK_PAGES + page) as u64;
                at += 1;
            }
        }
        for (first, count) in zero.runs() {
            let held = (first..first + count).any(|page| !state.table.is_zero(self.index_of(chunk, page)));
            if held {
                let offset = base + (first * PAGE_BYTES) as u64;
                self.shared.memory.discard(offset, (count * PAGE_BYTES) as u64)?;
            }
        }
        zero.iter().for_each(|page| state.table.replace(self.index_of(chunk, page), 0));
        self.hasher.contributions(bytes, &numbers[..at], |index, value| {
            let page = numbers[index] as usize % CHUNK_PAGES;
            state.table.replace(self.index_of(chunk, page), value);
        });
        planted.flip_stored(&self.shared.memory, chunk, &data);
        let count = data.count() as u64;
        self.shared.figures.received_pages.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}
