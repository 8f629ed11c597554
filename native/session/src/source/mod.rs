//! The source of one try: options, shared state, and the handle that the runner holds.

mod check;
mod driver;
mod faults;
mod flight;
mod lane;
mod orders;
mod push_window;
mod rates;
mod snapshot;
mod survey;
mod tunnels;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use novacron_core::convergence::Decision;
use novacron_core::frame::{Checked, Refusal};
use novacron_core::hello::{Hello, LaneRole};
use novacron_core::{CHUNK_PAGES, LANE_COUNT_MAX, MEMORY_BYTES_MAX, PAGE_BYTES};
use novacron_disk::GateOptions;
use novacron_guest_memory::{MemoryFile, WriteMarks};
use novacron_transport::{Lane, Link};

use crate::completion::{Answer, lock};
use crate::disks::Disks;
use crate::failure::{Failure, FailureCode, is_refusal};
use crate::image_check::{Exactness, LaneTable};
use crate::pacer::Pacer;
use crate::page_bits::PageBits;
use crate::planted::{Planted, PlantedFaults};
use crate::tunnel::{self, TunnelFigures};
use crate::wire::Wire;
use crate::{LINK_LOST_MAX, OPEN_WAIT_MAX, REOPEN_PAUSE_MAX, REOPEN_PAUSE_MIN};
pub(crate) use check::WRONG_PAGES_MAX;
use flight::{Cargo, Flight, Sent};
use lane::LaneSender;
use orders::{Orders, Phase};
use push_window::PushWindow;
pub use snapshot::SourceSnapshot;
use snapshot::View;
use tunnels::{device_tunnel, disk_tunnel};

/// What a source needs for one try.
#[derive(Clone)]
pub struct SourceOptions {
    pub migration: String,
    pub epoch: u64,
    pub link: Arc<dyn Link>,
    pub lane_count: u16,
    pub memory_path: PathBuf,
    pub memory_bytes: u64,
    pub vmm_pid: i32,
    pub device_state_socket: PathBuf,
    pub disk_sockets: Vec<PathBuf>,
    /// Owner of the sockets; `None` leaves them to this process.
    pub socket_uid: Option<u32>,
    /// 0 = no limit.
    pub bandwidth_bytes_per_second: u64,
    pub downtime_budget_ms: f64,
    pub post_copy: bool,
    /// Pages may become holes without being written: they are looked for in the last pass.
    pub balloon: bool,
    pub deadline_ms: f64,
    pub exactness: Exactness,
    /// None but in tests.
    pub planted: PlantedFaults,
}

/// What goes over while the VM stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishMode {
    /// Every dirty page.
    PreCopy,
    /// Only the list of dirty pages; they follow when the target runs.
    PostCopy,
}

/// How the rounds ended.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvergenceAnswer {
    pub decision: Decision,
    /// One sentence with the figures that led to it.
    pub reason: String,
}

/// The last pass.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedMemory {
    pub digest: u128,
    pub missing_digest: String,
    pub missing_pages: u64,
    pub io_sequence: Vec<u64>,
    pub last_pass_pages: u64,
    pub scan_ms: f64,
    pub send_ms: f64,
    pub holes_ms: f64,
}

#[derive(Default)]
pub(crate) struct Figures {
    applied_bytes: AtomicU64,
    done_pages: AtomicU64,
    sent_pages: AtomicU64,
    zero_pages: AtomicU64,
    pub(crate) resent_bytes: AtomicU64,
    reconnects: AtomicU64,
    lanes_open: AtomicU64,
    faults: AtomicU64,
    /// By a check, of all pages.
    pub(crate) compared_pages: AtomicU64,
}

/// Everything that the threads of one source share.
pub(crate) struct Shared {
    options: SourceOptions,
    /// A source before this one has handed the VM over and died in post-copy.
    pub(crate) resumed: bool,
    pub(crate) lane_count: usize,
    pub(crate) memory: MemoryFile,
    /// To be sent.
    pub(crate) dirty: PageBits,
    /// The target holds data there, as far as it was sent.
    pub(crate) held: PageBits,
    /// Post-copy: not sent yet.
    pub(crate) missing: PageBits,
    /// Post-copy: what the missing list said.
    pub(crate) listed: PageBits,
    /// Post-copy: what is in the late sum.
    counted: PageBits,
    /// One for each lane, from the moment that tracking is armed.
    pub(crate) marks: Mutex<Vec<WriteMarks>>,
    late_sum: Mutex<u128>,
    /// What each lane has sent of its pages.
    pub(crate) tables: Vec<LaneTable>,
    pub(crate) checked: Answer<Checked>,
    /// Pages of the frozen image that were sent otherwise.
    pub(crate) wrong: PageBits,
    pub(crate) planted: Planted,
    pub(crate) push_window: PushWindow,
    pub(crate) flights: Vec<Arc<Flight>>,
    pub(crate) orders: Orders,
    pub(crate) pacer: Pacer,
    pub(crate) wire: Wire,
    pub(crate) figures: Figures,
    device: TunnelFigures,
    pub(crate) disks: Disks,
    view: Mutex<View>,
    failure: Mutex<Option<Failure>>,
    ready: Mutex<usize>,
    connected: Answer<()>,
    converged: Answer<ConvergenceAnswer>,
    finished: Answer<FinishedMemory>,
    whole: Answer<u128>,
}

impl Shared {
    /// Opens a lane, again and again; `None` when the session ended, which a refusal or a link
    /// that stays away causes here.
    pub(crate) fn open_lane(&self, role: LaneRole) -> Option<Lane> {
        let hello = Hello {
            migration: self.options.migration.clone(),
            epoch: self.options.epoch,
            memory_bytes: self.options.memory_bytes,
            role,
        };
        let (hello, began) = (hello.encode(), Instant::now());
        let mut pause = REOPEN_PAUSE_MIN;
        loop {
            if self.ended() {
                return None;
            }
            let error = match self.options.link.open(&hello, OPEN_WAIT_MAX) {
                Ok(lane) => return Some(lane),
                Err(error) => error,
            };
            let hopeless = is_refusal(&error) || self.connected.peek().is_none();
            if !self.target_runs() && (hopeless || began.elapsed() > LINK_LOST_MAX) {
                self.fail(error.into());
                return None;
            }
            self.orders.wait_finish(pause).ok()?;
            thread::sleep(pause.min(Duration::from_millis(100)));
            pause = (pause * 2).min(REOPEN_PAUSE_MAX);
        }
    }

    /// The target may have started without its pages: no refusal ends the session from then on.
    pub(crate) fn target_runs(&self) -> bool {
        matches!(self.orders.phase(), Phase::Push | Phase::Last(FinishMode::PostCopy))
    }

    pub(crate) fn lane_opened(&self) {
        self.figures.lanes_open.fetch_add(1, Ordering::Relaxed);
        self.one_ready();
    }

    pub(crate) fn lane_closed(&self) {
        self.figures.lanes_open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn note_break(&self, _why: &str) {
        if !self.ended() {
            self.figures.reconnects.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One of the channels that `connect` waits for is up.
    fn one_ready(&self) {
        let mut ready = lock(&self.ready);
        *ready += 1;
        let device = usize::from(!self.resumed);
        let disks = self.options.disk_sockets.len();
        let needed = self.lane_count + device + disks + usize::from(self.options.post_copy);
        if *ready == needed {
            self.connected.give(Ok(()));
        }
    }

    pub(crate) fn note_applied(&self, sent: &Sent) {
        self.figures.applied_bytes.fetch_add(sent.bytes, Ordering::Relaxed);
        if let Some(pushed_at) = sent.pushed_at {
            self.push_window.applied(sent.bytes, pushed_at);
        }
        if let Cargo::Pages { pages, .. } = sent.cargo {
            let count = pages.count() as u64;
            self.figures.done_pages.fetch_add(count, Ordering::Relaxed);
            self.figures.sent_pages.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(crate) fn note_zeros(&self, skipped: u64, said: u64) {
        self.figures.done_pages.fetch_add(skipped, Ordering::Relaxed);
        self.figures.zero_pages.fetch_add(skipped + said, Ordering::Relaxed);
    }

    /// Counts a page that is sent after the final marker, once.
    pub(crate) fn count_late(&self, page: u64, contribution: u128) {
        if self.counted.insert(page) {
            let mut sum = lock(&self.late_sum);
            *sum = sum.wrapping_add(contribution);
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.orders.phase() == Phase::Ended
    }

    /// What a refused lane means. A peer that has taken our lanes before and knows nothing of the
    /// move any more was started anew, or has given up: nobody denies us anything.
    pub(crate) fn refusal(&self, reason: Refusal) -> Failure {
        let was_taken = matches!(self.connected.peek(), Some(Ok(())));
        match reason {
            Refusal::Unknown if was_taken => Failure::new(
                FailureCode::SessionLost,
                "the target no longer knows the move",
            ),
            Refusal::Unknown => {
                Failure::new(FailureCode::LinkRefused, "the target expects no such move")
            }
            Refusal::Digest => {
                Failure::new(FailureCode::MigrationDigest, "a lane's digest differs at the target")
            }
            Refusal::Failed => {
                Failure::new(FailureCode::EngineFailed, "the target could not go on; see its log")
            }
            Refusal::Closed => Failure::new(FailureCode::LinkLost, "the target closed the session"),
        }
    }

    /// Ends the session with this failure, unless it has ended.
    pub(crate) fn fail(&self, failure: Failure) {
        {
            let mut first = lock(&self.failure);
            if first.is_some() || self.ended() {
                return;
            }
            *first = Some(failure.clone());
        }
        self.end(&failure);
    }

    /// Lets every thread go; who still waits gets the failure.
    fn end(&self, failure: &Failure) {
        self.orders.end();
        self.pacer.end();
        self.flights.iter().for_each(|flight| flight.end());
        self.wire.end();
        self.disks.close();
        self.connected.give(Err(failure.clone()));
        self.converged.give(Err(failure.clone()));
        self.finished.give(Err(failure.clone()));
        self.whole.give(Err(failure.clone()));
        self.checked.give(Err(failure.clone()));
    }
}

/// The source of one try. Dropping it ends it; nothing here blocks but `open` (files only).
pub struct SourceSession {
    shared: Arc<Shared>,
    driver: Mutex<Option<JoinHandle<()>>>,
    connecting: Mutex<bool>,
    checking: Mutex<bool>,
    aborted: Mutex<bool>,
}

impl SourceSession {
    /// Checks the options and opens the memory file.
    pub fn open(options: SourceOptions) -> Result<Self, Failure> {
        Self::make(options, false)
    }

    /// Takes over from a source that died in post-copy: serves the frozen image. `record` is what
    /// the ledger holds of the last pass; the target says which pages it listed.
    pub fn resume(options: SourceOptions, record: FinishedMemory) -> Result<Self, Failure> {
        let session = Self::make(SourceOptions { post_copy: true, ..options }, true)?;
        session.shared.finished.give(Ok(record));
        session.shared.orders.start_in_push();
        Ok(session)
    }

    fn make(options: SourceOptions, resumed: bool) -> Result<Self, Failure> {
        check(&options)?;
        let memory = MemoryFile::open_source(&options.memory_path, options.memory_bytes)
            .map_err(|error| Failure::new(FailureCode::InputInvalid, error.to_string()))?;
        let lane_count = usize::from(options.lane_count);
        let bits = || PageBits::new(options.memory_bytes);
        let chunks = if resumed { 0 } else { bits().chunks() };
        let table = |_| LaneTable::new(chunks.div_ceil(lane_count) * CHUNK_PAGES);
        let shared = Shared {
            resumed,
            lane_count,
            memory,
            dirty: bits(),
            held: bits(),
            missing: bits(),
            listed: bits(),
            counted: bits(),
            marks: Mutex::new(Vec::new()),
            late_sum: Mutex::new(0),
            tables: (0..lane_count).map(table).collect(),
            checked: Answer::default(),
            wrong: bits(),
            planted: Planted::new(options.planted),
            push_window: PushWindow::default(),
            flights: (0..lane_count).map(|_| Arc::new(Flight::default())).collect(),
            orders: Orders::new(lane_count),
            pacer: Pacer::new(options.bandwidth_bytes_per_second),
            wire: Wire::default(),
            figures: Figures::default(),
            device: TunnelFigures::default(),
            disks: Disks::new(options.disk_sockets.len(), options.epoch, GateOptions::TAP),
            view: Mutex::new(View::new(options.downtime_budget_ms)),
            failure: Mutex::new(None),
            ready: Mutex::new(0),
            connected: Answer::default(),
            converged: Answer::default(),
            finished: Answer::default(),
            whole: Answer::default(),
            options,
        };
        Ok(Self {
            shared: Arc::new(shared),
            driver: Mutex::new(None),
            connecting: Mutex::new(false),
            checking: Mutex::new(false),
            aborted: Mutex::new(false),
        })
    }

    /// Opens lanes and tunnels once; the answer comes when all are up.
    pub fn connect(&self) -> &Answer<()> {
        if !std::mem::replace(&mut *lock(&self.connecting), true)
            && let Err(failure) = self.start_channels()
        {
            self.shared.fail(failure);
        }
        &self.shared.connected
    }

    fn start_channels(&self) -> Result<(), Failure> {
        let options = &self.shared.options;
        for index in 0..self.shared.lane_count {
            let sender = LaneSender::new(self.shared.clone(), index);
            start(&format!("lane-{index}"), move || sender.run())?;
        }
        if options.post_copy {
            let shared = self.shared.clone();
            start("faults", move || faults::serve(&shared))?;
        }
        if self.shared.resumed { Ok(()) } else { self.start_tunnels() }
    }

    fn start_tunnels(&self) -> Result<(), Failure> {
        let options = &self.shared.options;
        let device = tunnel::listen(&options.device_state_socket, options.socket_uid)?;
        let mut disks = Vec::new();
        for path in &options.disk_sockets {
            disks.push(tunnel::listen(path, options.socket_uid)?);
        }
        let shared = self.shared.clone();
        // An estimate alone: without it there is none until the first round.
        start("survey", move || {
            if let Ok(bytes) = survey::data_bytes(&shared) {
                lock(&shared.view).surveyed_bytes = bytes;
            }
        })?;
        let shared = self.shared.clone();
        start("device", move || device_tunnel(&shared, &device))?;
        for (index, listener) in disks.into_iter().enumerate() {
            let shared = self.shared.clone();
            start(&format!("disk-{index}"), move || disk_tunnel(&shared, &listener, index as u16))?;
        }
        Ok(())
    }

    /// Arms tracking and starts round 0; a failure comes with `converged`.
    pub fn start_pre_copy(&self) -> Result<(), Failure> {
        let mut driver = lock(&self.driver);
        if driver.is_some() {
            return Err(Failure::new(FailureCode::Internal, "pre-copy was started before"));
        }
        // The target may have gone while the lanes lay idle: no mistake of the caller.
        if self.shared.ended() {
            return Ok(());
        }
        let shared = self.shared.clone();
        *driver = Some(start("driver", move || driver::run(&shared))?);
        Ok(())
    }

    /// The decision that ends the rounds.
    pub fn converged(&self) -> &Answer<ConvergenceAnswer> {
        &self.shared.converged
    }

    /// The last pass; the VM stands.
    pub fn finish_memory(&self, mode: FinishMode) -> Result<&Answer<FinishedMemory>, Failure> {
        if mode == FinishMode::PostCopy && !self.shared.options.post_copy {
            return Err(Failure::new(FailureCode::InputInvalid, "post-copy without consent"));
        }
        if lock(&self.driver).is_none() {
            return Err(Failure::new(FailureCode::Internal, "pre-copy was not started"));
        }
        self.shared.pacer.set_paused(false);
        let asked = self.shared.orders.request_finish(mode);
        if !asked && !self.shared.ended() {
            return Err(Failure::new(FailureCode::Internal, "the last pass was asked for before"));
        }
        Ok(&self.shared.finished)
    }

    /// Pushes what is missing; the answer is the digest that both sides agree on.
    pub fn serve_post_copy(&self) -> &Answer<u128> {
        if self.shared.orders.phase() == Phase::Last(FinishMode::PostCopy) {
            self.shared.orders.start_push();
        }
        &self.shared.whole
    }

    /// Once the target runs with every page: compares the frozen image with what was sent, unless
    /// that was done before the start, and tells the target. The image must stay until it is told.
    pub fn check_image(&self) -> &Answer<Checked> {
        let begun = std::mem::replace(&mut *lock(&self.checking), true);
        if !begun && !self.shared.resumed && self.shared.options.exactness != Exactness::Off {
            let shared = self.shared.clone();
            if let Err(failure) = start("check", move || check::after_start(&shared)) {
                self.shared.checked.give(Err(failure));
            }
        }
        &self.shared.checked
    }

    pub fn set_bandwidth(&self, bytes_per_second: u64) {
        self.shared.pacer.set_rate(bytes_per_second);
        lock(&self.shared.view).rates.limit(bytes_per_second);
    }

    pub fn set_downtime_budget(&self, budget_ms: f64) {
        lock(&self.shared.view).downtime_budget_ms = budget_ms;
    }

    pub fn set_paused(&self, paused: bool) {
        self.shared.pacer.set_paused(paused);
    }

    /// Asks for post-copy at the end of the present round.
    pub fn post_copy_now(&self) -> Result<(), Failure> {
        if !self.shared.options.post_copy {
            return Err(Failure::new(FailureCode::InputInvalid, "post-copy without consent"));
        }
        lock(&self.shared.view).post_copy_requested = true;
        Ok(())
    }

    /// Lets no write of this session's epoch pass to the target from now on if `epoch` is above it:
    /// the VM goes on here, and what its old stream still carries is nobody's.
    pub fn raise_disks(
        &self,
        epoch: u64,
        timeout: Duration,
        done: impl FnOnce(Result<(), Failure>) + Send + 'static,
    ) {
        let shared = self.shared.clone();
        in_thread("raise", move || shared.disks.raise(epoch, timeout), done);
    }

    pub fn snapshot(&self) -> SourceSnapshot {
        snapshot::take(&self.shared, *lock(&self.aborted))
    }

    /// Ends the try; calls `done` when tracking is off. Repeating it, also after a failure, only
    /// waits again.
    pub fn end(&self, done: impl FnOnce() + Send + 'static) {
        *lock(&self.aborted) = true;
        self.shared.end(&Failure::cancelled());
        let driver = lock(&self.driver).take();
        let waiter = move || {
            if let Some(driver) = driver {
                // A panicked driver has dropped its tracker while unwinding.
                let _ = driver.join();
            }
            done();
        };
        // Without a thread the caller waits itself rather than never.
        let waiter = Arc::new(Mutex::new(Some(waiter)));
        let copy = waiter.clone();
        let started = start("ender", move || {
            if let Some(waiter) = lock(&copy).take() {
                waiter();
            }
        });
        if started.is_err() && let Some(waiter) = lock(&waiter).take() {
            waiter();
        }
    }

    /// Cuts every lane as a broken link would; for tests.
    pub fn cut_lanes(&self) {
        self.shared.wire.cut();
    }
}

impl Drop for SourceSession {
    fn drop(&mut self) {
        self.shared.end(&Failure::cancelled());
    }
}

fn check(options: &SourceOptions) -> Result<(), Failure> {
    let invalid = |what: &str| Err(Failure::new(FailureCode::InputInvalid, what));
    if !(1..=LANE_COUNT_MAX).contains(&options.lane_count) {
        return invalid("the number of lanes is out of range");
    }
    let bytes = options.memory_bytes;
    if bytes == 0 || bytes > MEMORY_BYTES_MAX || !bytes.is_multiple_of(PAGE_BYTES as u64) {
        return invalid("the memory size is out of range");
    }
    if options.migration.is_empty()
        || options.migration.len() > novacron_core::hello::MIGRATION_BYTES_MAX
        || options.disk_sockets.len() > usize::from(novacron_core::hello::DISK_COUNT_MAX)
    {
        return invalid("the migration id or the number of disks is out of range");
    }
    Ok(())
}

pub(crate) fn start(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Failure> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| Failure::new(FailureCode::EngineFailed, format!("no thread: {error}")))
}

/// Runs `work` in a thread of its own and tells `done` how it ended, also when there is no thread.
pub(crate) fn in_thread(
    name: &str,
    work: impl FnOnce() -> Result<(), Failure> + Send + 'static,
    done: impl FnOnce(Result<(), Failure>) + Send + 'static,
) {
    let done = Arc::new(Mutex::new(Some(done)));
    let tell = done.clone();
    let started = start(name, move || {
        let outcome = work();
        if let Some(done) = lock(&tell).take() {
            done(outcome);
        }
    });
    if let Err(failure) = started && let Some(done) = lock(&done).take() {
        done(Err(failure));
    }
}
