//! One memory lane of the source: reads, hashes, sends, and starts over where the target stands.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use novacron_core::digest::PageHasher;
use novacron_core::frame::{Frame, HEADER_BYTES, PAGES_HEAD_BYTES, pages_head};
use novacron_core::hello::LaneRole;
use novacron_core::pages::{PageSet, lane_of_chunk};
use novacron_core::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::{WriteMarks, is_zero_page};
use novacron_transport::{LaneError, LaneWriter};

use crate::completion::lock;
use crate::{OPEN_WAIT_MAX, REFUSED_PAUSE, take_ordinary_priority};
use crate::failure::{Failure, FailureCode};
use crate::frames::{FrameReader, send_now};
use crate::image_check::LaneTable;
use crate::page_bits::pages_of_chunk;
use crate::source::flight::{Cargo, Flight, Sent};
use crate::source::orders::{Action, LaneDone, Phase};
use crate::source::{FinishMode, Shared};

const HEAD: usize = HEADER_BYTES + PAGES_HEAD_BYTES;
/// Sent once this much is gathered: sparse chunks share a write, dense ones overlap with reading.
const GATHER_BYTES: usize = 512 * 1024;
/// One grant of the pacer and one write: a pause or a new limit acts within it.
const SLICE_BYTES: usize = 128 * 1024;

/// So many pages of a chunk written again make it busy: a few pages are no working set.
const BUSY_PAGES_MIN: usize = 4;
/// Pages of one pushed frame: 128 KiB are 6 ms of a 20 MB/s link, which a fault may wait.
const PUSH_PAGES_MAX: usize = 32;

/// Why a lane stopped serving.
enum Stop {
    /// The connection is gone; the session goes on.
    Broken(LaneError),
    /// The session ended or failed.
    Ended,
}

/// Which of the dirty pages a sweep sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worth {
    All,
    /// Those that the guest has left alone since: in rounds, while it runs.
    Unwritten,
}

impl From<LaneError> for Stop {
    fn from(error: LaneError) -> Self {
        Self::Broken(error)
    }
}

pub(crate) struct LaneSender {
    shared: Arc<Shared>,
    index: usize,
    flight: Arc<Flight>,
    table: LaneTable,
    hasher: PageHasher,
    buffer: Vec<u8>,
    used: usize,
    sequence: u64,
    /// Sequence of the last round end: a sweep that sent nothing sends none.
    noted: u64,
    done: LaneDone,
    marks: Option<WriteMarks>,
    /// After a break it is not known what the target holds: zeros are said, not assumed.
    say_zeros: bool,
    /// Nothing was sent yet: what the target holds came from a source before this one.
    fresh: bool,
    /// The target told what it holds: pages that are there already are not sent.
    compares: bool,
}

impl LaneSender {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        let flight = shared.flights[index].clone();
        Self {
            index,
            flight,
            table: shared.tables[index].clone(),
            hasher: PageHasher::new(),
            buffer: vec![0; GATHER_BYTES + HEAD + CHUNK_BYTES],
            used: 0,
            sequence: 0,
            noted: 0,
            done: LaneDone { last: shared.resumed, ..LaneDone::default() },
            marks: None,
            say_zeros: false,
            fresh: !shared.resumed,
            compares: false,
            shared,
        }
    }

    /// Serves until the session ends, over as many connections as it takes.
    pub(crate) fn run(mut self) {
        take_ordinary_priority();
        let role = LaneRole::Memory {
            index: self.index as u16,
            count: self.shared.lane_count as u16,
        };
        while let Some(lane) = self.shared.open_lane(role) {
            let ticket = self.shared.wire.add(lane.control.clone());
            let stop = self.serve(lane);
            self.shared.wire.remove(ticket);
            match stop {
                Stop::Ended => return,
                Stop::Broken(_) if self.is_over() => return,
                Stop::Broken(error) => self.shared.note_break(&error.to_string()),
            }
        }
    }

    fn serve(&mut self, lane: novacron_transport::Lane) -> Stop {
        let mut reader = lane.reader;
        reader.set_deadline(Some(Instant::now() + OPEN_WAIT_MAX));
        let mut frames = FrameReader::new(reader);
        let applied = match frames.next() {
            Ok((applied, Frame::Resume)) => applied,
            Ok((_, Frame::Refused { .. })) if self.shared.target_runs() => {
                thread::sleep(REFUSED_PAUSE);
                return Stop::Broken(LaneError::Truncated);
            }
            Ok((_, Frame::Refused { reason })) => {
                self.shared.fail(self.shared.refusal(reason));
                return Stop::Ended;
            }
            Ok(_) => {
                self.shared.fail(Failure::new(FailureCode::LinkRefused, "no resume frame"));
                return Stop::Ended;
            }
            Err(_) => return Stop::Broken(LaneError::Truncated),
        };
        self.start_over(applied);
        let mut writer = lane.writer;
        if applied > 0 && self.fresh {
            match self.recall(&mut writer, &mut frames) {
                Ok(()) => {}
                Err(Stop::Ended) => return Stop::Ended,
                Err(stop) => {
                    // Asked too early, or of a target that has gone on: not again at once.
                    thread::sleep(REFUSED_PAUSE);
                    return stop;
                }
            }
        }
        self.fresh = false;
        self.shared.lane_opened();
        let acknowledgements = {
            let (shared, flight) = (self.shared.clone(), self.flight.clone());
            thread::Builder::new()
                .name(format!("applied-{}", self.index))
                .spawn(move || receive(&shared, &flight, frames))
        };
        let Ok(acknowledgements) = acknowledgements else {
            self.shared.fail(Failure::new(FailureCode::EngineFailed, "no thread for a lane"));
            return Stop::Ended;
        };
        let stop = self.obey(&mut writer);
        lane.control.shutdown();
        // The thread ends with the lane; a panic of it has broken the lane already.
        let _ = acknowledgements.join();
        self.shared.lane_closed();
        stop
    }

    /// Asks the target what it holds of a predecessor of this session. Each of those pages is
    /// looked at again, and sent only if it has changed since.
    fn recall(&mut self, writer: &mut LaneWriter, frames: &mut FrameReader) -> Result<(), Stop> {
        let sequence = self.sequence + 1;
        send_now(writer, sequence, Frame::Recall)?;
        loop {
            frames.wait_until(Instant::now() + OPEN_WAIT_MAX);
            let refused = match frames.next() {
                Ok((_, Frame::Held { chunk, values })) if self.is_own(chunk) => {
                    self.adopt(chunk as usize, values);
                    continue;
                }
                Ok((_, Frame::ListEnd)) => break,
                Ok((_, Frame::Refused { reason })) => self.shared.refusal(reason),
                Ok(_) => Failure::new(FailureCode::LinkRefused, "a list that can't be"),
                Err(_) => return Err(Stop::Broken(LaneError::Truncated)),
            };
            self.shared.fail(refused);
            return Err(Stop::Ended);
        }
        self.sequence = sequence;
        self.noted = sequence;
        self.compares = true;
        Ok(())
    }

    fn is_own(&self, chunk: u64) -> bool {
        let chunk = chunk as usize;
        let exists = chunk < self.shared.dirty.chunks();
        exists && lane_of_chunk(chunk, self.shared.lane_count) == self.index
    }

    fn adopt(&mut self, chunk: usize, values: &[u8]) {
        let existing = pages_of_chunk(chunk, self.shared.memory.length());
        let mut held = PageSet::EMPTY;
        for (page, value) in values.as_chunks::<16>().0.iter().enumerate() {
            let value = u128::from_le_bytes(*value);
            if value != 0 && existing.contains(page) {
                self.table.replace(self.table_index(chunk, page), value);
                held.insert(page);
            }
        }
        self.shared.held.insert_set(chunk, &held);
        // Also what is a hole here by now.
        self.shared.dirty.insert_set(chunk, &held);
    }

    /// What was not applied becomes dirty again; sequences go on where the target stands.
    fn start_over(&mut self, applied: u64) {
        let shared = self.shared.clone();
        self.flight.applied(applied, |sent| shared.note_applied(sent));
        let unapplied = self.flight.restart();
        // The push begins when the target runs: it has every final marker then.
        let is_push = shared.orders.phase() == Phase::Push;
        if !is_push && unapplied.iter().any(|sent| sent.cargo == Cargo::Final) {
            self.done.last = false;
        }
        for sent in unapplied {
            self.say_zeros = true;
            if sent.pushed_at.is_some() {
                shared.push_window.lost(sent.bytes);
            }
            shared.figures.resent_bytes.fetch_add(sent.bytes, Ordering::Relaxed);
            match sent.cargo {
                Cargo::Pages { chunk, pages } if self.done.last => {
                    shared.missing.insert_set(chunk, &pages);
                    self.done.pushed = 0;
                }
                Cargo::Pages { chunk, pages } => {
                    shared.dirty.insert_set(chunk, &pages);
                    self.done.sweep = 0;
                }
                Cargo::Final | Cargo::Note => {}
            }
        }
        self.sequence = applied;
        self.noted = applied;
        self.used = 0;
    }

    fn obey(&mut self, writer: &mut LaneWriter) -> Stop {
        loop {
            let flight = self.flight.clone();
            let step = match self.shared.orders.next(self.done, || flight.broken()) {
                Action::End => return Stop::Ended,
                Action::Broken => return Stop::Broken(LaneError::Truncated),
                Action::Sweep(sweep) => self.sweep(writer, Worth::Unwritten).and_then(|()| {
                    if self.sequence > self.noted {
                        let round = u32::try_from(sweep).unwrap_or(u32::MAX);
                        self.add_note(Frame::RoundEnd { round }, Cargo::Note);
                        self.noted = self.sequence;
                    }
                    self.write_out(writer)?;
                    self.done.sweep = sweep;
                    self.shared.orders.report_swept(self.index, sweep);
                    Ok(())
                }),
                Action::Last(mode) => self.finish(writer, mode),
                Action::Push(push) => self.push(writer, push),
            };
            if let Err(stop) = step {
                return stop;
            }
        }
    }

    /// Whether the target has everything that this lane will ever carry.
    fn is_over(&self) -> bool {
        let last_only = self.shared.orders.phase() == Phase::Last(FinishMode::PreCopy);
        last_only && self.done.last && self.flight.pending() == (0, 0)
    }

    fn own_chunks(&self) -> impl Iterator<Item = usize> + use<> {
        (self.index..self.shared.dirty.chunks()).step_by(self.shared.lane_count)
    }

    fn sweep(&mut self, writer: &mut LaneWriter, worth: Worth) -> Result<(), Stop> {
        let mut busy = Vec::new();
        for chunk in self.own_chunks() {
            if worth == Worth::Unwritten && self.is_busy(chunk) {
                busy.push(chunk);
            } else {
                self.sweep_chunk(writer, worth, chunk)?;
            }
        }
        // By now the guest has written more of them again, which need not be sent this time.
        busy.into_iter().try_for_each(|chunk| self.sweep_chunk(writer, worth, chunk))
    }

    /// Whether the guest is at work in this chunk, by what it has written again since the pages
    /// were collected.
    fn is_busy(&mut self, chunk: usize) -> bool {
        let pages = self.shared.dirty.get(chunk);
        !pages.is_empty() && pages.count() >= self.unwritten(chunk, pages).count() + BUSY_PAGES_MIN
    }

    fn sweep_chunk(
        &mut self,
        writer: &mut LaneWriter,
        worth: Worth,
        chunk: usize,
    ) -> Result<(), Stop> {
        let mut pages = self.shared.dirty.take(chunk);
        if worth == Worth::Unwritten && !pages.is_empty() {
            pages = self.unwritten(chunk, pages);
        }
        if pages.is_empty() { Ok(()) } else { self.add_pages(writer, chunk, pages) }
    }

    /// Pages that the guest has not written again since they were collected. The others are in the
    /// next collection anyway: to send them now would be in vain.
    fn unwritten(&mut self, chunk: usize, pages: PageSet) -> PageSet {
        if self.marks.is_none() {
            self.marks = lock(&self.shared.marks).pop();
        }
        let Some(marks) = &mut self.marks else { return pages };
        let first = (chunk * CHUNK_PAGES) as u64;
        let mut written = PageSet::EMPTY;
        let looked = marks.written((first, CHUNK_PAGES as u64), |page, count| {
            (page..page + count).for_each(|page| written.insert((page - first) as usize));
        });
        // Tracking that is lost is for the driver to find: here it only means "send all".
        if looked.is_ok() { pages.difference(&written) } else { pages }
    }

    fn finish(&mut self, writer: &mut LaneWriter, mode: FinishMode) -> Result<(), Stop> {
        self.sweep(writer, Worth::All)?;
        self.write_out(writer)?;
        if !self.shared.orders.wait_holes(self.index) {
            return Err(Stop::Ended);
        }
        self.sweep(writer, Worth::All)?;
        if mode == FinishMode::PostCopy {
            for chunk in self.own_chunks() {
                let pages = self.shared.listed.get(chunk);
                if !pages.is_empty() {
                    pages.iter().for_each(|page| {
                        let index = self.table_index(chunk, page);
                        self.table.replace(index, 0);
                    });
                    self.add_note(Frame::Missing { chunk: chunk as u64, pages }, Cargo::Note);
                    self.write_out_if_full(writer)?;
                }
            }
        }
        self.add_note(Frame::Final { digest: self.table.sum() }, Cargo::Final);
        self.write_out(writer)?;
        self.done.last = true;
        self.shared.orders.report_final(self.index, self.table.sum());
        Ok(())
    }

    fn push(&mut self, writer: &mut LaneWriter, push: u64) -> Result<(), Stop> {
        for chunk in self.own_chunks() {
            loop {
                let pages = self.shared.missing.take_first(chunk, PUSH_PAGES_MAX);
                if pages.is_empty() {
                    break;
                }
                self.add_pages(writer, chunk, pages)?;
                self.write_out(writer)?;
            }
        }
        self.done.pushed = push;
        Ok(())
    }

    /// Reads pages into the send buffer behind room for their frame, leaves out zero pages, and
    /// counts what is sent.
    fn add_pages(
        &mut self,
        writer: &mut LaneWriter,
        chunk: usize,
        pages: PageSet,
    ) -> Result<(), Stop> {
        if !self.flight.wait_room() {
            self.give_back(chunk, &pages);
            return Err(self.stop_reason());
        }
        let start = self.used + HEAD;
        if let Err(error) = self.read(chunk, pages, start) {
            self.shared.fail(error);
            return Err(Stop::Ended);
        }
        let (data, zero) = self.keep_data(chunk, pages, start);
        let (data, same) = self.leave_out_same(chunk, data, start);
        self.shared.figures.done_pages.fetch_add(same, Ordering::Relaxed);
        let zero_skipped = pages.count() - data.count() - zero.count() - same as usize;
        self.shared.note_zeros(zero_skipped as u64, zero.count() as u64);
        if data.is_empty() && zero.is_empty() {
            return Ok(());
        }
        let length = HEAD + data.count() * PAGE_BYTES;
        let pushed_at = if self.done.last {
            let needed = || !self.flight.broken() && !self.shared.ended();
            if !self.shared.push_window.enter(length as u64, needed) {
                self.give_back(chunk, &pages);
                return Err(self.stop_reason());
            }
            Some(Instant::now())
        } else {
            None
        };
        self.shared.held.insert_set(chunk, &data);
        self.shared.held.remove_set(chunk, &zero);
        self.sequence += 1;
        let head = pages_head(self.sequence, chunk as u64, data, zero);
        self.buffer[self.used..start].copy_from_slice(&head);
        self.used += length;
        let cargo = Cargo::Pages { chunk, pages: data.union(&zero) };
        let sent = Sent { sequence: self.sequence, cargo, bytes: length as u64, pushed_at };
        self.flight.push(sent);
        self.write_out_if_full(writer)
    }

    fn give_back(&self, chunk: usize, pages: &PageSet) {
        let set = if self.done.last { &self.shared.missing } else { &self.shared.dirty };
        set.insert_set(chunk, pages);
    }

    fn stop_reason(&self) -> Stop {
        if self.flight.broken() { Stop::Broken(LaneError::Truncated) } else { Stop::Ended }
    }

    fn read(&mut self, chunk: usize, pages: PageSet, start: usize) -> Result<(), Failure> {
        let base = (chunk * CHUNK_BYTES) as u64;
        let mut at = start;
        for (first, count) in pages.runs() {
            let end = at + count * PAGE_BYTES;
            let offset = base + (first * PAGE_BYTES) as u64;
            self.shared.memory.read(&mut self.buffer[at..end], offset)?;
            at = end;
        }
        let planted = &self.shared.planted;
        planted.flip(planted.faults().read, chunk, &pages, &mut self.buffer[start..at]);
        Ok(())
    }

    /// Moves pages with data together and hashes them; answers (data, zero pages to be said).
    fn keep_data(&mut self, chunk: usize, pages: PageSet, start: usize) -> (PageSet, PageSet) {
        let (mut data, mut zero) = (PageSet::EMPTY, PageSet::EMPTY);
        let (mut kept, mut numbers) = (0, [0; CHUNK_PAGES]);
        for (position, page) in pages.iter().enumerate() {
            let from = start + position * PAGE_BYTES;
            let is_zero = self.buffer[from..].first_chunk().is_some_and(is_zero_page);
            if is_zero {
                let index = self.table_index(chunk, page);
                if self.done.last || self.say_zeros || !self.table.is_zero(index) {
                    zero.insert(page);
                }
                if !self.done.last {
                    self.table.replace(index, 0);
                }
                continue;
            }
            let to = start + kept * PAGE_BYTES;
            if from != to {
                self.buffer.copy_within(from..from + PAGE_BYTES, to);
            }
            data.insert(page);
            numbers[kept] = (chunk * CHUNK_PAGES + page) as u64;
            kept += 1;
        }
        if self.compares && !self.done.last {
            return (data, zero);
        }
        let bytes = &self.buffer[start..start + kept * PAGE_BYTES];
        let base = chunk / self.shared.lane_count * CHUNK_PAGES;
        let after_final = self.done.last;
        self.hasher.contributions(bytes, &numbers[..kept], |index, value| {
            let number = numbers[index];
            if after_final {
                self.shared.count_late(number, value);
            } else {
                self.table.replace(base + number as usize % CHUNK_PAGES, value);
            }
        });
        (data, zero)
    }

    /// Hashes pages and leaves out those that the target holds already; answers the rest, which
    /// lies together again, and how many were left out.
    fn leave_out_same(&mut self, chunk: usize, data: PageSet, start: usize) -> (PageSet, u64) {
        if !self.compares || self.done.last || data.is_empty() {
            return (data, 0);
        }
        let (mut numbers, mut values) = ([0; CHUNK_PAGES], [0; CHUNK_PAGES]);
        let mut count = 0;
        for page in data.iter() {
            numbers[count] = (chunk * CHUNK_PAGES + page) as u64;
            count += 1;
        }
        let bytes = &self.buffer[start..start + count * PAGE_BYTES];
        self.hasher.contributions(bytes, &numbers[..count], |index, value| values[index] = value);
        let (mut left, mut kept) = (PageSet::EMPTY, 0);
        for (position, page) in data.iter().enumerate() {
            let index = self.table_index(chunk, page);
            if self.table.get(index) == values[position] {
                continue;
            }
            self.table.replace(index, values[position]);
            let from = start + position * PAGE_BYTES;
            self.buffer.copy_within(from..from + PAGE_BYTES, start + kept * PAGE_BYTES);
            left.insert(page);
            kept += 1;
        }
        (left, (count - kept) as u64)
    }

    fn table_index(&self, chunk: usize, page: usize) -> usize {
        chunk / self.shared.lane_count * CHUNK_PAGES + page
    }

    fn add_note(&mut self, frame: Frame<'_>, cargo: Cargo) {
        self.sequence += 1;
        let mut bytes = Vec::with_capacity(64);
        frame.encode(self.sequence, &mut bytes);
        self.buffer[self.used..self.used + bytes.len()].copy_from_slice(&bytes);
        self.used += bytes.len();
        let bytes = bytes.len() as u64;
        self.flight.push(Sent { sequence: self.sequence, cargo, bytes, pushed_at: None });
    }

    fn write_out_if_full(&mut self, writer: &mut LaneWriter) -> Result<(), Stop> {
        if self.used < GATHER_BYTES { Ok(()) } else { self.write_out(writer) }
    }

    fn write_out(&mut self, writer: &mut LaneWriter) -> Result<(), Stop> {
        let used = std::mem::take(&mut self.used);
        for slice in self.buffer[..used].chunks(SLICE_BYTES) {
            if !self.shared.pacer.acquire(slice.len() as u64) {
                return Err(Stop::Ended);
            }
            writer.write_all(slice)?;
        }
        writer.flush()?;
        Ok(())
    }
}

/// Takes the target's acknowledgements until the lane ends.
fn receive(shared: &Shared, flight: &Flight, mut frames: FrameReader) {
    frames.wait_for_ever();
    loop {
        match frames.next() {
            Ok((applied, Frame::Applied)) => {
                flight.applied(applied, |sent| shared.note_applied(sent));
            }
            Ok((_, Frame::Refused { .. })) if shared.target_runs() => break,
            Ok((_, Frame::Refused { reason })) => {
                shared.fail(shared.refusal(reason));
                break;
            }
            Ok(_) => {
                shared.fail(Failure::new(FailureCode::LinkRefused, "an unexpected frame came back"));
                break;
            }
            Err(_) => break,
        }
    }
    flight.set_broken();
    shared.orders.poke();
}
