//! One look at a source: what the driver measured, and what follows from it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use novacron_core::PAGE_BYTES;
use novacron_core::convergence::Situation;
use novacron_core::progress::{self, Outlook, Percent};

use crate::completion::lock;
use crate::failure::Failure;
use crate::source::driver::FIXED_DOWNTIME_MS;
use crate::source::orders::Phase;
use crate::source::rates::Rates;
use crate::source::{FinishMode, Shared};

/// What a blackout takes beside the last pass: device state, flush, ledger, gate and start, as
/// measured with small machines on two cores (docs/benchmarks.md). The rule in the driver counts
/// with less, so that a small budget is tried rather than refused.
const HAND_OVER_MS: f64 = 25.0;

/// Figures that the driver keeps for everybody.
pub(crate) struct View {
    pub(crate) rates: Rates,
    pub(crate) round: u32,
    pub(crate) began: Option<Instant>,
    pub(crate) downtime_budget_ms: f64,
    /// Part of the dirty pages that has data: the rest costs nothing on the link.
    pub(crate) data_part: f64,
    /// As after the last round; `None` before the first.
    pub(crate) situation: Option<Situation>,
    /// The rounds are over.
    pub(crate) decided: bool,
    /// When the dirty set was last emptied.
    pub(crate) collected_at: Instant,
    /// Bytes of pages with data when the session connected: what the first round will be.
    pub(crate) surveyed_bytes: f64,
    pub(crate) convergence: &'static str,
    pub(crate) post_copy_requested: bool,
    pub(crate) device_failure: Option<Failure>,
    percent: Percent,
}

impl View {
    pub(crate) fn new(downtime_budget_ms: f64) -> Self {
        Self {
            rates: Rates::default(),
            round: 0,
            began: None,
            downtime_budget_ms,
            data_part: 1.0,
            situation: None,
            decided: false,
            collected_at: Instant::now(),
            surveyed_bytes: 0.0,
            convergence: "measuring",
            post_copy_requested: false,
            device_failure: None,
            percent: Percent::default(),
        }
    }
}

/// One look at a source session; units as in the names.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSnapshot {
    pub state: &'static str,
    pub paused: bool,
    pub round: u32,
    pub planned_bytes: u64,
    pub done_bytes: u64,
    pub wire_bytes: u64,
    pub resent_bytes: u64,
    pub sent_pages: u64,
    pub zero_pages: u64,
    pub dirty_bytes_per_second: f64,
    pub send_bytes_per_second: f64,
    pub percent: f64,
    pub eta_ms: Option<f64>,
    /// Where it leads: see `novacron_core::progress::Outlook`.
    pub outlook: &'static str,
    /// Bytes that the link has still to carry for memory as it is now; before the first round what
    /// a survey found.
    pub left_bytes: u64,
    pub estimated_downtime_ms: Option<f64>,
    pub convergence: &'static str,
    pub lanes_connected: u64,
    pub lane_reconnects: u64,
    pub device_bytes: u64,
    pub disk_bytes: u64,
    /// Mirror writes of each disk so far.
    pub io_sequence: Vec<u64>,
    pub missing_pages: u64,
    pub faults: u64,
    /// Sums over each disk's answered writes.
    pub disk_digests: Vec<u128>,
    /// Of the image check so far.
    pub compared_pages: u64,
    pub failure: Option<Failure>,
}

/// What of it the link has to carry: `data_part` of the pages that are dirty or missing, and all
/// that is on its way.
fn left_bytes(shared: &Shared, data_part: f64) -> f64 {
    let flying: u64 = shared.flights.iter().map(|flight| flight.flying_bytes()).sum();
    let pages = (shared.dirty.count() + shared.missing.count()) as f64;
    pages * PAGE_BYTES as f64 * data_part + flying as f64
}

/// Bytes that are dirty or on their way.
pub(crate) fn remaining_bytes(shared: &Shared) -> u64 {
    let flying: u64 = shared.flights.iter().map(|flight| flight.pending().0).sum();
    (shared.dirty.count() + shared.missing.count() + flying) * PAGE_BYTES as u64
}

pub(crate) fn take(shared: &Shared, aborted: bool) -> SourceSnapshot {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let done_bytes = load(&shared.figures.done_pages) * PAGE_BYTES as u64;
    let planned_bytes = done_bytes + remaining_bytes(shared);
    let state = state(shared, aborted);
    let failure = lock(&shared.failure).clone();
    let mut view = lock(&shared.view);
    let elapsed_ms = view.began.map_or(0.0, |began| began.elapsed().as_secs_f64() * 1e3);
    let under_way = view.began.is_some();
    let left = if under_way { left_bytes(shared, view.data_part) } else { view.surveyed_bytes };
    let figures = progress::Figures {
        planned_bytes: planned_bytes as f64,
        done_bytes: done_bytes as f64,
        left_bytes: left,
        send_bytes_per_second: view.rates.steady(),
        dirtying_ms: view.collected_at.elapsed().as_secs_f64() * 1e3,
        curve: &view.rates.curve().clone(),
        situation: situation(shared, &view, elapsed_ms),
        decided: view.decided,
        paused: shared.pacer.paused(),
        ended: matches!(state, "finished" | "ended"),
    };
    let outlook = if under_way { progress::outlook(&figures) } else { Outlook::Unknown };
    SourceSnapshot {
        state,
        paused: figures.paused,
        round: view.round,
        planned_bytes,
        done_bytes,
        wire_bytes: shared.wire.bytes(),
        resent_bytes: load(&shared.figures.resent_bytes),
        sent_pages: load(&shared.figures.sent_pages),
        zero_pages: load(&shared.figures.zero_pages),
        dirty_bytes_per_second: view.rates.dirty(),
        send_bytes_per_second: view.rates.send().unwrap_or(0.0),
        percent: if under_way { view.percent.update(&figures, &outlook, elapsed_ms) } else { 0.0 },
        eta_ms: outlook.eta_ms(),
        outlook: outlook.name(),
        left_bytes: left as u64,
        estimated_downtime_ms: outlook.last_pass_ms().map(|pass| pass + HAND_OVER_MS),
        convergence: view.convergence,
        lanes_connected: load(&shared.figures.lanes_open),
        lane_reconnects: load(&shared.figures.reconnects),
        device_bytes: shared.device.bytes(),
        disk_bytes: shared.disks.write_bytes(),
        io_sequence: shared.disks.io_sequence(),
        disk_digests: shared.disks.digests(),
        missing_pages: shared.missing.count(),
        faults: load(&shared.figures.faults),
        compared_pages: load(&shared.figures.compared_pages),
        failure: failure.or_else(|| view.device_failure.clone()),
    }
}

/// As after the last round, with what may have been changed since by request.
fn situation(shared: &Shared, view: &View, elapsed_ms: f64) -> Situation {
    let options = &shared.options;
    let last = view.situation.unwrap_or(Situation {
        rounds_sent: 0,
        remaining_bytes: 0.0,
        previous_remaining_bytes: None,
        flat_rounds: 0,
        send_bytes_per_second: None,
        dirty_bytes_per_second: 0.0,
        downtime_budget_ms: view.downtime_budget_ms,
        fixed_downtime_ms: FIXED_DOWNTIME_MS,
        post_copy_allowed: options.post_copy,
        post_copy_requested: false,
        elapsed_ms,
        deadline_ms: options.deadline_ms,
    });
    Situation {
        downtime_budget_ms: view.downtime_budget_ms,
        post_copy_requested: view.post_copy_requested,
        elapsed_ms,
        ..last
    }
}

fn state(shared: &Shared, aborted: bool) -> &'static str {
    if lock(&shared.failure).is_some() {
        return "failed";
    }
    if matches!(shared.whole.peek(), Some(Ok(_))) {
        return "ended";
    }
    let finished = matches!(shared.finished.peek(), Some(Ok(_)));
    if aborted {
        return if finished { "ended" } else { "aborted" };
    }
    match shared.orders.phase() {
        Phase::Push => "post-copy",
        Phase::Last(FinishMode::PostCopy) if finished => "post-copy",
        Phase::Last(_) => if finished { "finished" } else { "finishing" },
        Phase::Ended => "ended",
        Phase::Rounds if matches!(shared.converged.peek(), Some(Ok(_))) => "converged",
        Phase::Rounds if lock(&shared.view).began.is_some() => "pre-copy",
        Phase::Rounds if matches!(shared.connected.peek(), Some(Ok(()))) => "connected",
        Phase::Rounds => "open",
    }
}
