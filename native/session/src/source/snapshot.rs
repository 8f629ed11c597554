//! One look at a source: what the driver measured, and what follows from it.

use std::sync::atomic::Ordering;
use std::time::Instant;

use novacron_core::PAGE_BYTES;
use novacron_core::progress::{self, Percent};

use crate::completion::lock;
use crate::failure::Failure;
use crate::source::orders::Phase;
use crate::source::rates::Rates;
use crate::source::{FinishMode, Shared};

/// Figures that the driver keeps for everybody.
pub(crate) struct View {
    pub(crate) rates: Rates,
    pub(crate) round: u32,
    pub(crate) began: Option<Instant>,
    pub(crate) round_began: Instant,
    pub(crate) downtime_budget_ms: f64,
    pub(crate) estimated_downtime_ms: Option<f64>,
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
            round_began: Instant::now(),
            downtime_budget_ms,
            estimated_downtime_ms: None,
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
    pub failure: Option<Failure>,
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
    let figures = progress::Figures {
        planned_bytes: planned_bytes as f64,
        done_bytes: done_bytes as f64,
        send_bytes_per_second: view.rates.send(),
        dirty_bytes_per_second: view.rates.dirty(),
        round_elapsed_ms: view.round_began.elapsed().as_secs_f64() * 1e3,
        working_set_bytes: view.rates.working_set(),
        post_copy_allowed: shared.options.post_copy,
        paused: shared.pacer.paused(),
        ended: matches!(state, "finished" | "ended"),
    };
    let under_way = view.began.is_some();
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
        percent: if under_way { view.percent.update(&figures, elapsed_ms) } else { 0.0 },
        eta_ms: if under_way { progress::eta_ms(&figures) } else { None },
        estimated_downtime_ms: view.estimated_downtime_ms,
        convergence: view.convergence,
        lanes_connected: load(&shared.figures.lanes_open),
        lane_reconnects: load(&shared.figures.reconnects),
        device_bytes: shared.device.bytes(),
        disk_bytes: shared.disks.write_bytes(),
        io_sequence: shared.disks.io_sequence(),
        missing_pages: shared.missing.count(),
        faults: load(&shared.figures.faults),
        failure: failure.or_else(|| view.device_failure.clone()),
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
