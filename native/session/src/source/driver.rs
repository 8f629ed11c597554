//! The driving loop of a source: scan, let the lanes send, decide, and the last pass.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use novacron_core::CHUNK_PAGES;
use novacron_core::PAGE_BYTES;
use novacron_core::convergence::{self, Decision, Situation};
use novacron_core::digest::MissingHasher;
use novacron_core::pages::PageSet;
use novacron_guest_memory::DirtyTracker;

use crate::completion::lock;
use crate::failure::Failure;
use crate::image_check::Exactness;
use crate::source::snapshot::remaining_bytes;
use crate::source::{check, survey};
use crate::source::{ConvergenceAnswer, FinishMode, FinishedMemory, Shared};

/// How often a long round looks at rates; the first look comes as early as a rate is worth it.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const FIRST_LOOK: Duration = Duration::from_millis(25);
/// Looking may take this part of the driver's time: scanning 1 TiB takes a second.
const LOOK_COST: u32 = 10;
/// Blackout beside the last pass, as measured with a small machine: device state, ledger, start.
pub(crate) const FIXED_DOWNTIME_MS: f64 = 6.0;
/// After the decision rounds go on, so that the last pass stays short; a nearly clean guest is
/// looked at this often.
const WARM_ROUND_EVERY: Duration = Duration::from_millis(2);
/// Rounds of a guest that writes little are spaced, or scanning would be all that a core does.
const ROUND_SPACING_MIN: Duration = Duration::from_millis(1);
/// A round ends when no more than this is on its way. Without it a full window, which is as large
/// after every round, looks like a guest that keeps up with the link.
const FLYING_BYTES_MAX: u64 = 512 * 1024;
/// How often the flight is looked at while it empties.
const FLIGHT_LOOK_EVERY: Duration = Duration::from_micros(300);

/// Runs one try; the tracker ends with the session, whatever happens.
pub(crate) fn run(shared: &Arc<Shared>) {
    let outcome = Driver::start(shared).and_then(Driver::drive);
    if let Err(failure) = outcome {
        shared.fail(failure);
    }
}

struct Driver<'a> {
    shared: &'a Arc<Shared>,
    tracker: DirtyTracker,
    began: Instant,
    collected_at: Instant,
    rounds_sent: u32,
    flat_rounds: u32,
    previous_remaining: Option<f64>,
    swept_at: Instant,
}

/// The session ended while the driver waited: nothing is left to do.
struct Ended;

impl<'a> Driver<'a> {
    fn start(shared: &'a Arc<Shared>) -> Result<Self, Failure> {
        let options = &shared.options;
        let mut tracker =
            DirtyTracker::start(options.vmm_pid, &options.memory_path, options.memory_bytes)?;
        // The first pass reports every page and means "armed".
        tracker.collect(|_, _| {})?;
        for _ in 0..shared.lane_count {
            lock(&shared.marks).push(tracker.marks()?);
        }
        let now = Instant::now();
        shared.memory.data_extents(|offset, length| {
            shared.dirty.insert_run(offset / PAGE_BYTES as u64, length.div_ceil(PAGE_BYTES as u64));
        })?;
        let data_part = survey::data_part(shared)?;
        {
            let mut view = lock(&shared.view);
            view.began = Some(now);
            view.data_part = data_part;
            view.collected_at = now;
            view.rates.start(0.0, 0.0);
        }
        Ok(Self {
            shared,
            tracker,
            began: now,
            collected_at: now,
            rounds_sent: 0,
            flat_rounds: 0,
            previous_remaining: None,
            swept_at: now,
        })
    }

    fn drive(mut self) -> Result<(), Failure> {
        match self.rounds() {
            Err(failure) => Err(failure),
            Ok(Err(Ended)) => Ok(()),
            Ok(Ok(mode)) => {
                if let Some(finished) = self.last_pass(mode)? {
                    self.shared.finished.give(Ok(finished));
                    // Letting the marks go walks every page under the VMM's memory lock: 15 ms for
                    // 1 GiB, in which its device state would not get on.
                    self.shared.orders.wait_ended();
                }
                self.tracker.stop()?;
                Ok(())
            }
        }
    }

    /// Rounds until somebody asks for the last pass.
    fn rounds(&mut self) -> Result<Result<FinishMode, Ended>, Failure> {
        let mut decided: Option<Decision> = None;
        loop {
            let sending = !matches!(decided, Some(Decision::PostCopy { .. } | Decision::GiveUp { .. }));
            if sending && self.sweep()?.is_none() {
                return Ok(Err(Ended));
            }
            let patience = match decided {
                None => self.spacing(),
                Some(_) if sending => WARM_ROUND_EVERY,
                Some(_) => Duration::from_secs(1),
            };
            match self.shared.orders.wait_finish(patience) {
                Err(()) => return Ok(Err(Ended)),
                Ok(Some(mode)) => return Ok(Ok(mode)),
                Ok(None) => {}
            }
            if !sending {
                continue;
            }
            self.collect()?;
            if decided.is_none() {
                let situation = self.situation();
                let decision = convergence::decide(&situation);
                self.take_note(&situation, decision);
                if !matches!(decision, Decision::NextRound { .. }) {
                    self.answer(&situation, decision);
                    decided = Some(decision);
                }
            }
        }
    }

    /// Lets the lanes send what is dirty; `None` when the session ended.
    fn sweep(&mut self) -> Result<Option<()>, Failure> {
        {
            let mut view = lock(&self.shared.view);
            view.round = self.rounds_sent;
            if self.shared.flights.iter().all(|flight| flight.pending().0 == 0) {
                let since = (self.swept_at - self.began).as_secs_f64();
                view.rates.skip_idle(since, self.began.elapsed().as_secs_f64());
            }
        }
        let sweep = self.shared.orders.start_sweep();
        let mut patience = FIRST_LOOK;
        loop {
            match self.shared.orders.wait_swept(sweep, patience) {
                None => return Ok(None),
                Some(true) => break,
                Some(false) => {
                    let began = Instant::now();
                    self.look()?;
                    patience = (patience * 2).min(LOOK_EVERY).max(began.elapsed() * LOOK_COST);
                }
            }
        }
        if self.let_land().is_none() {
            return Ok(None);
        }
        self.rounds_sent += 1;
        self.measure_sending();
        self.swept_at = Instant::now();
        Ok(Some(()))
    }

    /// Waits until nearly everything that was sent is applied, or the last pass is asked for;
    /// `None` when the session ended.
    fn let_land(&mut self) -> Option<()> {
        let flights = &self.shared.flights;
        while flights.iter().map(|flight| flight.flying_bytes()).sum::<u64>() > FLYING_BYTES_MAX {
            match self.shared.orders.wait_finish(FLIGHT_LOOK_EVERY) {
                Err(()) => return None,
                Ok(Some(_)) => break,
                Ok(None) => self.measure_sending(),
            }
        }
        Some(())
    }

    /// Rates in the middle of a long round: sending from acknowledgements, writing from a scan
    /// that leaves the marks.
    fn look(&mut self) -> Result<(), Failure> {
        self.measure_sending();
        let dirty = self.tracker.peek()?.pages * PAGE_BYTES as u64;
        let seconds = self.collected_at.elapsed().as_secs_f64();
        let data_part = survey::data_part(self.shared)?;
        let mut view = lock(&self.shared.view);
        view.rates.dirtied(dirty as f64, seconds);
        view.data_part = data_part;
        Ok(())
    }

    fn measure_sending(&self) {
        let applied = self.shared.figures.applied_bytes.load(Ordering::Relaxed) as f64;
        let paused = self.shared.pacer.paused();
        lock(&self.shared.view).rates.sent(self.began.elapsed().as_secs_f64(), applied, paused);
    }

    /// Adds what the guest has written since the last time to the dirty set.
    fn collect(&mut self) -> Result<u64, Failure> {
        let dirty = &self.shared.dirty;
        let mut added = 0;
        let planted = &self.shared.planted;
        let totals = self.tracker.collect(|first, count| {
            if planted.faults().skipped.is_none() {
                added += dirty.insert_run(first, count);
                return;
            }
            for page in first..first + count {
                let missed = planted.skips(&self.shared.memory, page);
                added += if missed { 0 } else { dirty.insert_run(page, 1) };
            }
        })?;
        let seconds = self.collected_at.elapsed().as_secs_f64();
        self.collected_at = Instant::now();
        let bytes = (totals.pages * PAGE_BYTES as u64) as f64;
        let mut view = lock(&self.shared.view);
        view.rates.dirtied(bytes, seconds);
        view.collected_at = self.collected_at;
        // What was just written is hardly ever zero; a longer round looks again.
        view.data_part = 1.0;
        Ok(totals.pages)
    }

    /// A pause between rounds that are shorter than a scan is worth.
    fn spacing(&self) -> Duration {
        ROUND_SPACING_MIN.saturating_sub(self.collected_at.elapsed())
    }

    fn situation(&self) -> Situation {
        let view = lock(&self.shared.view);
        let options = &self.shared.options;
        Situation {
            rounds_sent: self.rounds_sent,
            remaining_bytes: remaining_bytes(self.shared) as f64,
            previous_remaining_bytes: self.previous_remaining,
            flat_rounds: self.flat_rounds,
            send_bytes_per_second: view.rates.send().or(Some(1e8)),
            dirty_bytes_per_second: view.rates.dirty(),
            downtime_budget_ms: view.downtime_budget_ms,
            fixed_downtime_ms: FIXED_DOWNTIME_MS,
            post_copy_allowed: options.post_copy,
            post_copy_requested: view.post_copy_requested,
            elapsed_ms: self.began.elapsed().as_secs_f64() * 1e3,
            deadline_ms: options.deadline_ms,
        }
    }

    fn take_note(&mut self, situation: &Situation, decision: Decision) {
        let flat = convergence::is_flat(situation);
        self.flat_rounds = if flat { self.flat_rounds + 1 } else { 0 };
        self.previous_remaining = Some(situation.remaining_bytes);
        let mut view = lock(&self.shared.view);
        view.convergence = decision.reason().name();
        view.decided = !matches!(decision, Decision::NextRound { .. });
        view.situation = Some(Situation {
            flat_rounds: self.flat_rounds,
            previous_remaining_bytes: self.previous_remaining,
            ..*situation
        });
    }

    fn answer(&self, situation: &Situation, decision: Decision) {
        let reason = format!(
            "{}: {:.1} MB left after {} rounds, sent at {:.0} MB/s, dirtied at {:.0} MB/s, blackout \
             of about {:.0} ms, budget {:.0} ms",
            decision.reason().name(),
            situation.remaining_bytes / 1e6,
            situation.rounds_sent,
            situation.send_bytes_per_second.unwrap_or(0.0) / 1e6,
            situation.dirty_bytes_per_second / 1e6,
            convergence::estimated_downtime_ms(situation).unwrap_or(0.0),
            situation.downtime_budget_ms,
        );
        self.shared.converged.give(Ok(ConvergenceAnswer { decision, reason }));
    }

    /// The VM stands: sends the rest, or the list of the rest.
    fn last_pass(&mut self, mode: FinishMode) -> Result<Option<FinishedMemory>, Failure> {
        let shared = self.shared;
        let began = Instant::now();
        let pages = self.collect()?;
        let scanned = Instant::now();
        let mut missing = MissingHasher::default();
        let holes_ms;
        if mode == FinishMode::PostCopy {
            self.find_new_holes()?;
            check::before_start(shared)?;
            holes_ms = millis(scanned);
            for chunk in 0..shared.dirty.chunks() {
                let set = shared.dirty.take(chunk);
                missing.chunk(chunk as u64, set);
                shared.listed.insert_set(chunk, &set);
                shared.missing.insert_set(chunk, &set);
                shared.held.remove_set(chunk, &set);
            }
            shared.orders.start_last(mode, true);
        } else {
            shared.orders.start_last(mode, false);
            self.find_new_holes()?;
            if shared.options.exactness == Exactness::BeforeResume && shared.orders.wait_lanes() {
                check::before_start(shared)?;
            }
            holes_ms = millis(scanned);
            shared.orders.holes_known();
        }
        let Some(digest) = shared.orders.wait_sums() else { return Ok(None) };
        let (missing_digest, missing_pages) = missing.finish();
        Ok(Some(FinishedMemory {
            digest,
            missing_digest,
            missing_pages,
            io_sequence: shared.disks.io_sequence(),
            last_pass_pages: pages,
            scan_ms: (scanned - began).as_secs_f64() * 1e3,
            send_ms: millis(scanned),
            holes_ms,
        }))
    }

    /// Pages that the target holds data for and that have become holes without a trace: the
    /// kernel does not report a clean page that a balloon punched out. A punched page is mapped
    /// nowhere, so only held pages that the VMM has not mapped are looked up in the file.
    fn find_new_holes(&mut self) -> Result<(), Failure> {
        let shared = self.shared;
        if !shared.options.balloon {
            return Ok(());
        }
        let mut suspects: Vec<(u64, u64)> = Vec::new();
        let mut chunk = 0;
        while chunk < shared.held.chunks() {
            let first = chunk;
            while chunk < shared.held.chunks() && !shared.held.get(chunk).is_empty() {
                chunk += 1;
            }
            if first == chunk {
                chunk += 1;
                continue;
            }
            let pages = shared.memory.length() / PAGE_BYTES as u64;
            let (from, to) = ((first * CHUNK_PAGES) as u64, (chunk * CHUNK_PAGES) as u64);
            self.tracker.unmapped((from, to.min(pages) - from), |first, count| {
                for_each_held(shared, first, first + count, |from, length| match suspects.last_mut() {
                    Some((start, total)) if *start + *total == from => *total += length,
                    _ => suspects.push((from, length)),
                });
            })?;
        }
        for (first, count) in suspects {
            let page = PAGE_BYTES as u64;
            shared.memory.holes_in(first * page, count * page, |offset, length| {
                shared.dirty.insert_run(offset / page, length / page);
            })?;
        }
        Ok(())
    }
}

/// Runs of pages of `from..to` that the target holds data for.
fn for_each_held(shared: &Shared, from: u64, to: u64, mut each: impl FnMut(u64, u64)) {
    let size = CHUNK_PAGES as u64;
    for chunk in from / size..to.div_ceil(size) {
        let held = shared.held.get(chunk as usize);
        if held.is_empty() {
            continue;
        }
        let base = chunk * size;
        let inside = span(from.saturating_sub(base), to - base);
        for (first, count) in held.intersection(&inside).runs() {
            each(base + first as u64, count as u64);
        }
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Pages from..to of a chunk.
fn span(from: u64, to: u64) -> PageSet {
    let mut set = PageSet::EMPTY;
    (from as usize..(to as usize).min(CHUNK_PAGES)).for_each(|page| set.insert(page));
    set
}
