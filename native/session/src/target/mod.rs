//! The target of one try: what it expects, its shared state, and the handle that the runner holds.

mod check;
mod faults;
mod held_disk;
mod journal;
mod lane;
mod premap;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use novacron_core::digest::MissingHasher;
use novacron_core::frame::{Frame, Refusal};
use novacron_core::hello::{Hello, LaneRole};
use novacron_core::{CHUNK_PAGES, MEMORY_BYTES_MAX, PAGE_BYTES};
use novacron_disk::GateOptions;
use novacron_guest_memory::MemoryFile;
use novacron_transport::{Lane, LaneControl, PeerIdentity};

use crate::completion::{Answer, lock};
use crate::disks::Disks;
use crate::failure::{Failure, FailureCode};
use crate::frames::send_now;
use crate::image_check::{Exactness, LaneTable};
use crate::page_bits::PageBits;
use crate::planted::{Planted, PlantedFaults};
use crate::source::{in_thread, start};
use crate::tunnel::{self, TunnelFigures};
use crate::wire::Wire;
use check::CheckState;
pub use check::{CheckedMemory, Repair};
use faults::{FaultServer, Prepared};
pub use journal::journal_path;

/// How long the VMM may take to make the socket that its incoming state is sent to.
const DEVICE_SOCKET_WAIT_MAX: Duration = Duration::from_secs(10);

/// One disk of the incoming VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskEndpoint {
    pub nbd_socket: PathBuf,
    pub export_name: String,
}

/// What a target knows before anything arrives.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    pub migration: String,
    pub epoch: u64,
    pub source: PeerIdentity,
    pub memory_path: PathBuf,
    pub memory_bytes: u64,
    pub vmm_pid: i32,
    pub device_state_socket: PathBuf,
    pub disks: Vec<DiskEndpoint>,
    pub post_copy_allowed: bool,
    /// Pages may become holes without being written.
    pub balloon: bool,
    /// What a target before this one has received into the same memory and disks is kept.
    pub adopted: bool,
    pub exactness: Exactness,
    /// None but in tests.
    pub planted: PlantedFaults,
}

/// What the target holds when the final markers are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRecord {
    pub digest: u128,
    pub missing_digest: String,
    pub missing_pages: u64,
    pub io_sequence: Vec<u64>,
}

/// One look at a target session.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSnapshot {
    pub state: &'static str,
    pub lanes_connected: u64,
    pub received_pages: u64,
    pub wire_bytes: u64,
    pub device_bytes: u64,
    pub io_sequence: Vec<u64>,
    pub missing_pages: u64,
    pub faults: u64,
    /// Sums over each disk's answered writes.
    pub disk_digests: Vec<u128>,
    /// Of the image check so far.
    pub compared_pages: u64,
    pub failure: Option<Failure>,
}

#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) lanes_open: AtomicU64,
    pub(crate) received_pages: AtomicU64,
    pub(crate) faults: AtomicU64,
}

/// What the target remembers of a memory lane, over all its connections.
pub(crate) struct LaneState {
    pub(crate) applied: u64,
    pub(crate) table: LaneTable,
    pub(crate) last: bool,
    /// The table says what memory holds.
    pub(crate) filled: bool,
}

pub(crate) struct LaneSlot {
    /// That of the state, for a check: the state belongs to its lane as long as that is open.
    table: LaneTable,
    pub(crate) state: Mutex<LaneState>,
    /// The present connection: a new one ends it before it waits for the state.
    pub(crate) current: Mutex<Option<LaneControl>>,
}

/// Everything that the threads of one target share.
pub(crate) struct Shared {
    pub(crate) options: TargetOptions,
    pub(crate) memory: MemoryFile,
    /// A mover before this one has seen the final markers and died in post-copy.
    pub(crate) resumed: bool,
    lanes: OnceLock<Vec<LaneSlot>>,
    /// Memory is empty, and where pages may be missing the VMM's userfaultfd is at hand.
    prepared: Answer<Arc<Prepared>>,
    pub(crate) missing: PageBits,
    pub(crate) faults: FaultServer,
    pub(crate) check: CheckState,
    pub(crate) planted: Planted,
    pub(crate) wire: Wire,
    pub(crate) figures: Figures,
    device: TunnelFigures,
    /// The present device lane: a new one ends it.
    device_lane: Mutex<Option<LaneControl>>,
    disks: Disks,
    finals: Mutex<usize>,
    /// Sum over all lanes at the final markers.
    final_sum: Mutex<u128>,
    failure: Mutex<Option<Failure>>,
    ended: AtomicBool,
    memory_in: Answer<MemoryRecord>,
    pub(crate) whole: Answer<u128>,
}

impl Shared {
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
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

    fn end(&self, failure: &Failure) {
        self.ended.store(true, Ordering::Release);
        self.wire.end();
        self.disks.close();
        self.prepared.give(Err(failure.clone()));
        if let Some(Ok(prepared)) = self.prepared.peek() {
            prepared.let_go();
        }
        self.faults.let_go();
        self.check.end(failure, || self.faults.left() > 0);
        self.memory_in.give(Err(failure.clone()));
        self.whole.give(Err(failure.clone()));
    }

    /// The lane's slot; the first memory lane says how many there are.
    pub(crate) fn slot(&self, index: u16, count: u16) -> Option<&LaneSlot> {
        let chunks = self.missing.chunks();
        let slots = self.lanes.get_or_init(|| {
            let before_final = if self.resumed { 0 } else { chunks.div_ceil(usize::from(count)) };
            let pages = before_final * CHUNK_PAGES;
            let slot = |_| {
                let table = LaneTable::new(pages);
                // A sequence that it does not know makes the source ask what is held.
                let (applied, last) = (u64::from(self.options.adopted), self.resumed);
                let filled = !self.options.adopted;
            let state = LaneState { applied, table: table.clone(), last, filled };
                LaneSlot { table, state: Mutex::new(state), current: Mutex::new(None) }
            };
            (0..count).map(slot).collect()
        });
        if slots.len() == usize::from(count) { slots.get(usize::from(index)) } else { None }
    }

    /// The digests of what each lane has received.
    fn tables(&self) -> Vec<LaneTable> {
        let slots = self.lanes.get().map_or(&[][..], Vec::as_slice);
        slots.iter().map(|slot| slot.table.clone()).collect()
    }

    /// Waits until memory may be written.
    pub(crate) fn wait_prepared(&self) -> Result<Arc<Prepared>, Failure> {
        self.prepared.wait()
    }

    /// A lane's final marker is applied; the last one makes the record.
    pub(crate) fn lane_is_final(self: &Arc<Self>, sum: u128) -> Result<(), Failure> {
        let all = {
            let mut total = lock(&self.final_sum);
            *total = total.wrapping_add(sum);
            let mut finals = lock(&self.finals);
            *finals += 1;
            (*finals == self.lanes.get().map_or(0, Vec::len)).then_some(*total)
        };
        let Some(digest) = all else { return Ok(()) };
        check::before_start(self)?;
        let mut missing = MissingHasher::default();
        for chunk in 0..self.missing.chunks() {
            missing.chunk(chunk as u64, self.missing.get(chunk));
        }
        let (missing_digest, missing_pages) = missing.finish();
        if missing_pages > 0 {
            faults::begin(self, &*self.wait_prepared()?, missing_pages, digest)?;
        }
        let io_sequence = self.disks.io_sequence();
        self.memory_in.give(Ok(MemoryRecord { digest, missing_digest, missing_pages, io_sequence }));
        if missing_pages == 0 {
            self.whole.give(Ok(digest));
        }
        Ok(())
    }

    pub(crate) fn final_sum(&self) -> u128 {
        *lock(&self.final_sum)
    }

    pub(crate) fn set_final_sum(&self, sum: u128) {
        *lock(&self.final_sum) = sum;
    }

    /// Waits until device state may reach the VMM: it reads guest memory while it loads.
    pub(crate) fn wait_memory_in(&self) -> Result<(), Failure> {
        match self.memory_in.peek() {
            Some(known) => known.map(|_| ()),
            None => self.memory_in.wait().map(|_| ()),
        }
    }
}

/// The target of one try. Dropping it ends it.
pub struct TargetSession {
    shared: Arc<Shared>,
}

impl TargetSession {
    /// Opens the memory file; emptying it and taking the userfaultfd go on in a thread.
    pub(crate) fn open(options: TargetOptions) -> Result<Self, Failure> {
        let shared = Self::share(options, false)?;
        let preparing = shared.clone();
        start("prepare", move || match Prepared::make(&preparing) {
            Ok(prepared) => preparing.prepared.give(Ok(Arc::new(prepared))),
            Err(failure) => preparing.fail(failure),
        })?;
        Ok(Self { shared })
    }

    /// Takes over the post-copy of a mover that died; the VMM is the one that it served. What may
    /// fail comes with `memory_in` and `whole`.
    pub(crate) fn resume(options: TargetOptions) -> Result<Self, Failure> {
        let shared = Self::share(options, true)?;
        let preparing = shared.clone();
        start("resume", move || match Prepared::resume(&preparing) {
            Ok((prepared, record)) => {
                preparing.memory_in.give(Ok(record));
                preparing.prepared.give(Ok(Arc::new(prepared)));
            }
            Err(failure) => preparing.fail(failure),
        })?;
        Ok(Self { shared })
    }

    fn share(options: TargetOptions, resumed: bool) -> Result<Arc<Shared>, Failure> {
        let invalid = |what: String| Failure::new(FailureCode::InputInvalid, what);
        let bytes = options.memory_bytes;
        if bytes == 0 || bytes > MEMORY_BYTES_MAX || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(invalid("the memory size is out of range".into()));
        }
        let memory = MemoryFile::open_target(&options.memory_path, bytes)
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Arc::new(Shared {
            memory,
            resumed,
            lanes: OnceLock::new(),
            prepared: Answer::default(),
            missing: PageBits::new(bytes),
            faults: FaultServer::new(bytes),
            check: CheckState::default(),
            planted: Planted::new(options.planted),
            wire: Wire::default(),
            figures: Figures::default(),
            device: TunnelFigures::default(),
            device_lane: Mutex::new(None),
            disks: Disks::new(options.disks.len(), options.epoch, GateOptions::TARGET),
            finals: Mutex::new(0),
            final_sum: Mutex::new(0),
            failure: Mutex::new(None),
            ended: AtomicBool::new(false),
            memory_in: Answer::default(),
            whole: Answer::default(),
            options,
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Everything before the final markers is applied.
    pub fn memory_in(&self) -> &Answer<MemoryRecord> {
        &self.shared.memory_in
    }

    /// Every page is present.
    pub fn whole(&self) -> &Answer<u128> {
        &self.shared.whole
    }

    /// Once the guest runs with every page: compares the memory file with what was received.
    /// Repeating it does no harm.
    pub fn begin_check(&self) {
        check::after_start(&self.shared);
    }

    /// What both sides' comparisons came to.
    pub fn checked(&self) -> &Answer<CheckedMemory> {
        self.shared.check.done()
    }

    /// Puts wrong pages right that the guest has not written. The VM must stand.
    pub fn repair(&self, done: impl FnOnce(Result<Repair, Failure>) + Send + 'static) {
        check::repair(&self.shared, done);
    }

    /// Ends the tracking of the guest's writes; repeating it does nothing.
    pub fn end_check(&self, done: impl FnOnce(Result<(), Failure>) + Send + 'static) {
        let shared = self.shared.clone();
        let stop = move || {
            shared.check.stop(|| shared.faults.left() > 0);
            Ok(())
        };
        in_thread("check-end", stop, done);
    }

    /// Flushes every disk behind its gate.
    pub fn flush_disks(&self, done: impl FnOnce(Result<(), Failure>) + Send + 'static) {
        let shared = self.shared.clone();
        in_thread("flush", move || shared.disks.flush(), done);
    }

    /// Lets no write of an epoch below `epoch` pass to any disk from now on; `done` when none is on
    /// its way any more. The VMM's exports must be gone. Repeating it waits for stragglers again.
    pub fn raise_disks(
        &self,
        epoch: u64,
        timeout: Duration,
        done: impl FnOnce(Result<(), Failure>) + Send + 'static,
    ) {
        let shared = self.shared.clone();
        in_thread("raise", move || shared.disks.raise(epoch, timeout), done);
    }

    pub fn snapshot(&self) -> TargetSnapshot {
        let shared = &self.shared;
        let failure = lock(&shared.failure).clone();
        let received_pages = shared.figures.received_pages.load(Ordering::Relaxed);
        let lanes_connected = shared.figures.lanes_open.load(Ordering::Relaxed);
        let missing_pages = shared.faults.left();
        let memory_in = matches!(shared.memory_in.peek(), Some(Ok(_)));
        let state = match () {
            () if failure.is_some() => "failed",
            () if matches!(shared.whole.peek(), Some(Ok(_))) => "whole",
            () if shared.ended() => "closed",
            () if memory_in && missing_pages > 0 => "post-copy",
            () if memory_in => "memory-in",
            () if received_pages > 0 || lanes_connected > 0 => "receiving",
            () => "waiting",
        };
        TargetSnapshot {
            state,
            lanes_connected,
            received_pages,
            wire_bytes: shared.wire.bytes(),
            device_bytes: shared.device.bytes(),
            io_sequence: shared.disks.io_sequence(),
            disk_digests: shared.disks.digests(),
            missing_pages,
            faults: shared.figures.faults.load(Ordering::Relaxed),
            compared_pages: shared.check.compared_pages(),
            failure,
        }
    }

    /// Ends the session; repeating it does nothing. The VMM keeps its userfaultfd: vCPUs that wait
    /// for missing pages go on waiting rather than read stale ones.
    pub fn end(&self) {
        self.shared.end(&Failure::cancelled());
    }

    /// Cuts every lane as a broken link would; for tests.
    pub fn cut_lanes(&self) {
        self.shared.wire.cut();
    }
}

impl Drop for TargetSession {
    fn drop(&mut self) {
        self.end();
    }
}

/// Takes a lane that an authenticated peer has opened for this session.
pub(crate) fn take_lane(shared: &Arc<Shared>, hello: &Hello, lane: Lane) {
    let ticket = shared.wire.add(lane.control.clone());
    match hello.role {
        LaneRole::Memory { index, count } => lane::serve(shared, lane, index, count),
        LaneRole::Fault => faults::serve_lane(shared, lane),
        LaneRole::Check => check::serve_lane(shared, lane),
        LaneRole::Device | LaneRole::Disk { .. } | LaneRole::HeldDisk { .. } if shared.resumed => {
            refuse(lane, Refusal::Unknown);
        }
        LaneRole::Device => device_tunnel(shared, lane),
        LaneRole::Disk { index } => disk_tunnel(shared, lane, index),
        LaneRole::HeldDisk { index } => held_disk::serve_lane(shared, lane, index),
    }
    shared.wire.remove(ticket);
}

/// Tells a peer why its lane is not taken.
pub(crate) fn refuse(mut lane: Lane, reason: Refusal) {
    // The peer may be gone; it learns from the closed lane then.
    let _ = send_now(&mut lane.writer, 0, Frame::Refused { reason });
    let _ = lane.writer.finish();
}

/// Connects to the VMM when the first byte is there, and holds the bytes until memory is in. A VMM
/// that loses this connection ends: until then there is none, so lanes and runners may come and go.
fn device_tunnel(shared: &Arc<Shared>, mut lane: Lane) {
    if let Some(before) = lock(&shared.device_lane).replace(lane.control.clone()) {
        before.shutdown();
    }
    let relayed = tunnel::first_length(&mut lane).and_then(|first| {
        let path = &shared.options.device_state_socket;
        let ended = || shared.ended();
        let local = tunnel::connect_patiently(path, DEVICE_SOCKET_WAIT_MAX, ended)?;
        shared.wait_memory_in()?;
        tunnel::relay(local, lane, &shared.device, Some(first))
    });
    if let Err(failure) = relayed
        && !matches!(shared.memory_in.peek(), Some(Ok(_)))
        && failure.code != FailureCode::LinkLost
    {
        shared.fail(failure);
    }
}

fn disk_tunnel(shared: &Arc<Shared>, lane: Lane, index: u16) {
    let Some(disk) = shared.options.disks.get(usize::from(index)) else {
        return refuse(lane, Refusal::Unknown);
    };
    let ended = || shared.ended();
    let connected = tunnel::connect_patiently(&disk.nbd_socket, DEVICE_SOCKET_WAIT_MAX, ended);
    if let Ok(server) = connected {
        shared.disks.relay_in(usize::from(index), lane, server);
    }
}
