//! Post-copy at the target: vCPUs wait for missing pages, which come by request and by push.
//!
//! A page is claimed once; whoever claims it writes it into the file, marks it present and maps
//! it, which lets its waiting vCPUs go on. Until then nothing of the page can be read. Pages that
//! were received before the start are present from the beginning, but not mapped: the kernel maps
//! none as long as faults are registered. They are mapped on their first fault, or by `premap`,
//! whichever is earlier. Faults stay registered as long as the check tracks writes, also when no
//! page is missing any more: the kernel can't end one without the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use novacron_core::digest::{MissingHasher, PageHasher};
use novacron_core::frame::{Frame, Refusal};
use novacron_core::pages::PageSet;
use novacron_core::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use novacron_guest_memory::{
    FaultMode, GuestMapping, Marks, Resolution, Userfault, pages_mapped_by,
};
use novacron_transport::{Lane, LaneError, LaneWriter};

use crate::completion::lock;
use crate::failure::{Failure, FailureCode};
use crate::frames::{FrameReader, send_now};
use crate::page_bits::{PageBits, pages_of_chunk};
use crate::source::start;
use crate::target::journal::{Journal, JournalKey};
use crate::target::{MemoryRecord, Shared, check, premap, refuse};

/// How often a fault server without faults looks whether it is still needed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The list of missing pages is written in pieces of about this size.
const LIST_PIECE_BYTES: usize = 64 * 1024;

/// What is made ready before any lane may write: off the blackout.
pub(crate) struct Prepared {
    /// Until faults begin.
    faults: Mutex<Option<Arc<Active>>>,
}

impl Prepared {
    pub(crate) fn make(shared: &Shared) -> Result<Self, Failure> {
        let options = &shared.options;
        let faults = if options.post_copy_allowed {
            let mapping =
                GuestMapping::find(options.vmm_pid, &options.memory_path, options.memory_bytes)?;
            let userfault = Userfault::obtain(options.vmm_pid)?;
            // A registration that an earlier try left would let our own emptying wait for itself.
            userfault.unregister(&mapping)?;
            let journal = Journal::create(&options.memory_path, key(shared))?;
            Some(Arc::new(Active { userfault, mapping, journal }))
        } else {
            None
        };
        check::arm(shared)?;
        if !options.adopted {
            shared.memory.discard_all()?;
        }
        Ok(Self { faults: Mutex::new(faults) })
    }

    /// Goes on where a mover before this one died. The VMM has kept its userfaultfd, so whoever
    /// waits for a page still does; what that mover had read of their faults is told anew.
    pub(crate) fn resume(shared: &Arc<Shared>) -> Result<(Self, MemoryRecord), Failure> {
        let options = &shared.options;
        let journal = Journal::open(&options.memory_path, key(shared))?;
        let mapping =
            GuestMapping::find(options.vmm_pid, &options.memory_path, options.memory_bytes)?;
        let userfault = Userfault::adopt(options.vmm_pid)?;
        let server = &shared.faults;
        let (mut missing, mut left) = (MissingHasher::default(), 0);
        for chunk in 0..shared.missing.chunks() {
            let listed = journal.missing(chunk);
            let open = listed.difference(&journal.arrived(chunk));
            missing.chunk(chunk as u64, listed);
            left += open.count() as u64;
            shared.missing.insert_set(chunk, &listed);
            let held = pages_of_chunk(chunk, shared.memory.length()).difference(&open);
            server.present.insert_set(chunk, &held);
            server.claimed.insert_set(chunk, &held);
        }
        *lock(&server.late_sum) = journal.arrived_sum()?;
        shared.set_final_sum(journal.final_sum());
        let (missing_digest, missing_pages) = missing.finish();
        let digest = journal.final_sum();
        let active = Arc::new(Active { userfault, mapping, journal });
        server.left.store(left, Ordering::Release);
        *lock(&server.active) = Some(active.clone());
        if left == 0 {
            become_whole(shared, &active)?;
        } else {
            // Without effect where it is registered already.
            active.userfault.register(&active.mapping, FaultMode::WaitForPages)?;
            serve_in_thread(shared, &active)?;
            active.userfault.wake_all(&active.mapping)?;
        }
        let io_sequence = Vec::new();
        let record = MemoryRecord { digest, missing_digest, missing_pages, io_sequence };
        Ok((Self { faults: Mutex::new(None) }, record))
    }

    /// Gives up what a successor may need.
    pub(crate) fn let_go(&self) {
        lock(&self.faults).take();
    }
}

fn key(shared: &Shared) -> JournalKey<'_> {
    let options = &shared.options;
    let memory_bytes = options.memory_bytes;
    JournalKey { migration: &options.migration, epoch: options.epoch, memory_bytes }
}

/// State of the missing pages.
pub(crate) struct FaultServer {
    claimed: PageBits,
    present: PageBits,
    requested: PageBits,
    left: AtomicU64,
    late_sum: Mutex<u128>,
    active: Mutex<Option<Arc<Active>>>,
    lane: Mutex<Option<LaneWriter>>,
}

pub(crate) struct Active {
    pub(crate) userfault: Userfault,
    pub(crate) mapping: GuestMapping,
    journal: Journal,
}

impl FaultServer {
    pub(crate) fn new(memory_bytes: u64) -> Self {
        let bits = || PageBits::new(memory_bytes);
        Self {
            claimed: bits(),
            present: bits(),
            requested: bits(),
            left: AtomicU64::new(0),
            late_sum: Mutex::new(0),
            active: Mutex::new(None),
            lane: Mutex::new(None),
        }
    }

    /// Pages that are still missing.
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Gives up what a successor may need; who works with it just now does so to the end.
    pub(crate) fn let_go(&self) {
        lock(&self.active).take();
    }

    fn active(&self) -> Option<Arc<Active>> {
        lock(&self.active).clone()
    }
}

/// Registers faults and starts serving them; every missing page is unmapped when it returns.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    prepared: &Prepared,
    missing_pages: u64,
    digest: u128,
) -> Result<(), Failure> {
    let Some(active) = lock(&prepared.faults).take() else {
        return Err(Failure::new(FailureCode::InputInvalid, "pages are missing without consent"));
    };
    let pid = shared.options.vmm_pid;
    active.userfault.register(&active.mapping, FaultMode::WaitForPages)?;
    let mut stale = Vec::new();
    pages_mapped_by(pid, &active.mapping, |first, count| stale.push((first, count)))?;
    for page in stale.iter().flat_map(|(first, count)| *first..first + count) {
        if shared.missing.contains(page) {
            shared.memory.discard(page * PAGE_BYTES as u64, PAGE_BYTES as u64)?;
        }
    }
    let server = &shared.faults;
    for chunk in 0..shared.missing.chunks() {
        let existing = pages_of_chunk(chunk, shared.memory.length());
        let held = existing.difference(&shared.missing.get(chunk));
        server.present.insert_set(chunk, &held);
        server.claimed.insert_set(chunk, &held);
    }
    active.journal.begin(|chunk| shared.missing.get(chunk), digest);
    server.left.store(missing_pages, Ordering::Release);
    *lock(&server.active) = Some(active.clone());
    serve_in_thread(shared, &active)?;
    let mapping = shared.clone();
    start("premap", move || {
        let _ = premap::run(&mapping, &active);
    })?;
    Ok(())
}

fn serve_in_thread(shared: &Arc<Shared>, active: &Arc<Active>) -> Result<(), Failure> {
    let (serving, its) = (shared.clone(), active.clone());
    start("fault-server", move || serve_faults(&serving, &its))?;
    Ok(())
}

/// Whether an access to a page that is not mapped waits for this process.
pub(crate) fn faults_are_on(shared: &Shared) -> bool {
    !shared.ended() && (shared.faults.left() > 0 || shared.check.is_armed())
}

/// Answers faults for as long as there can be any, or the session ends.
fn serve_faults(shared: &Arc<Shared>, active: &Active) {
    let server = &shared.faults;
    while faults_are_on(shared) {
        let mut wanted = Vec::new();
        let waited = active.userfault.wait_faults(LOOK_EVERY, |fault| {
            if let Some(page) = active.mapping.page_of(fault.address) {
                wanted.push((page, fault.address));
            }
        });
        if let Err(error) = waited {
            return shared.fail(error.into());
        }
        shared.figures.faults.fetch_add(wanted.len() as u64, Ordering::Relaxed);
        for (page, address) in wanted {
            if !server.present.contains(page) && server.requested.insert(page) {
                request(server, page);
            }
            // A page that came between the two looks was not mapped by whoever brought it, if it
            // is all zero: nobody had asked for it then.
            if server.present.contains(page)
                && let Err(failure) = map_page(shared, active, page, address)
            {
                return shared.fail(failure);
            }
        }
    }
}

/// Maps a page that is in the file, or zeros where the file has a hole.
fn map_page(shared: &Shared, active: &Active, page: u64, address: u64) -> Result<(), Failure> {
    let length = PAGE_BYTES as u64;
    let tracked = shared.check.is_armed() && !shared.missing.contains(page);
    let marks = if tracked { Marks::Unwritten } else { Marks::Written };
    loop {
        match active.userfault.resolve(address, length, marks) {
            Ok(Resolution::Mapped) => return Ok(()),
            Ok(Resolution::AlreadyMapped) => return Ok(active.userfault.wake(address, length)?),
            // Never a write of zeros: faults may go off just now, and the guest write there itself.
            Ok(Resolution::Hole) => shared.memory.fill_holes(page * length, length)?,
            // Faults are off by now, and everybody was woken by that.
            Err(_) if !faults_are_on(shared) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn request(server: &FaultServer, page: u64) {
    let mut lane = lock(&server.lane);
    if let Some(writer) = lane.as_mut()
        && send_now(writer, 0, Frame::Fault { page }).is_err()
    {
        // The lane is opened again by the source, and every open request is repeated then.
        *lane = None;
    }
}

/// Serves one connection of the fault lane until it ends.
pub(crate) fn serve_lane(shared: &Arc<Shared>, lane: Lane) {
    if shared.wait_prepared().is_err() {
        return refuse(lane, Refusal::Failed);
    }
    let Lane { reader, mut writer, control } = lane;
    let resumed = send_now(&mut writer, 0, Frame::Resume);
    if resumed.and_then(|()| send_list(shared, &mut writer)).is_err() {
        return;
    }
    let server = &shared.faults;
    *lock(&server.lane) = Some(writer);
    for chunk in 0..server.requested.chunks() {
        let open = server.requested.get(chunk).difference(&server.present.get(chunk));
        open.iter().for_each(|page| request(server, (chunk * CHUNK_PAGES + page) as u64));
    }
    tell_whole(shared);
    let mut frames = FrameReader::new(reader);
    let hasher = PageHasher::new();
    loop {
        let frame = match frames.next() {
            Ok((_, frame)) => frame,
            Err(_) => break,
        };
        let Frame::Pages { chunk, data, zero, bytes } = frame else { break };
        let chunk = chunk as usize;
        let outside = chunk >= shared.missing.chunks()
            || !data.union(&zero).difference(&shared.missing.get(chunk)).is_empty();
        if outside {
            break;
        }
        if let Err(failure) = install(shared, &hasher, chunk, data, zero, bytes) {
            shared.fail(failure);
            break;
        }
    }
    control.shutdown();
}

/// Says what was missing at the start and what still is, once the target may have started: this
/// process or the source's may be the second one of the move.
fn send_list(shared: &Shared, writer: &mut LaneWriter) -> Result<(), LaneError> {
    let server = &shared.faults;
    if server.active().is_none() {
        return Ok(());
    }
    let mut out = Vec::with_capacity(LIST_PIECE_BYTES + 128);
    for chunk in 0..shared.missing.chunks() {
        let listed = shared.missing.get(chunk);
        if listed.is_empty() {
            continue;
        }
        let open = listed.difference(&server.present.get(chunk));
        Frame::Listed { chunk: chunk as u64, listed, open }.encode(0, &mut out);
        if out.len() >= LIST_PIECE_BYTES {
            writer.write_all(&out)?;
            out.clear();
        }
    }
    Frame::ListEnd.encode(0, &mut out);
    writer.write_all(&out)?;
    writer.flush()
}

/// Puts pages that came after the start into the guest, each once.
pub(crate) fn install(
    shared: &Arc<Shared>,
    hasher: &PageHasher,
    chunk: usize,
    data: PageSet,
    zero: PageSet,
    bytes: &[u8],
) -> Result<(), Failure> {
    let server = &shared.faults;
    // One lane may push while another still brings its final marker.
    shared.wait_memory_in()?;
    let Some(active) = server.active() else {
        return Err(Failure::new(FailureCode::LinkRefused, "pages came after the last one"));
    };
    let first_page = (chunk * CHUNK_PAGES) as u64;
    let claim = |set: PageSet| {
        let mut claimed = PageSet::EMPTY;
        for page in set.intersection(&shared.missing.get(chunk)).iter() {
            if server.claimed.insert(first_page + page as u64) {
                claimed.insert(page);
            }
        }
        claimed
    };
    let (new_data, new_zero) = (claim(data), claim(zero));
    let new = new_data.union(&new_zero);
    if new.is_empty() {
        return Ok(());
    }
    let mut contributions = Vec::with_capacity(new_data.count());
    for (position, page) in data.iter().enumerate().filter(|(_, page)| new_data.contains(*page)) {
        let content = &bytes[position * PAGE_BYTES..(position + 1) * PAGE_BYTES];
        let number = first_page + page as u64;
        shared.memory.write(content, number * PAGE_BYTES as u64)?;
        hasher.contributions(content, &[number], |_, value| contributions.push((page, value)));
    }
    for (first, count) in new_zero.runs() {
        let offset = (chunk * CHUNK_BYTES + first * PAGE_BYTES) as u64;
        shared.memory.discard(offset, (count * PAGE_BYTES) as u64)?;
    }
    active.journal.note_arrived(chunk, &new, &contributions)?;
    {
        let mut late = lock(&server.late_sum);
        *late = contributions.iter().fold(*late, |sum, (_, value)| sum.wrapping_add(*value));
    }
    server.present.insert_set(chunk, &new);
    for (first, count) in new.runs() {
        map_run(shared, &active, (first_page + first as u64, count as u64), Marks::Written)?;
    }
    let count = new.count() as u64;
    shared.figures.received_pages.fetch_add(count, Ordering::Relaxed);
    if server.left.fetch_sub(count, Ordering::AcqRel) == count {
        become_whole(shared, &active)?;
    }
    Ok(())
}

/// Maps a run at once where that works, page by page where it does not.
fn map_run(
    shared: &Shared,
    active: &Active,
    (first, count): (u64, u64),
    marks: Marks,
) -> Result<(), Failure> {
    for (page, address, length) in active.mapping.spans(first, count) {
        if matches!(active.userfault.resolve(address, length, marks), Ok(Resolution::Mapped)) {
            continue;
        }
        for step in 0..length / PAGE_BYTES as u64 {
            let at = address + step * PAGE_BYTES as u64;
            // A zero page that nobody waits for stays a hole: whoever comes later faults again.
            match active.userfault.resolve(at, PAGE_BYTES as u64, marks) {
                Ok(Resolution::Mapped) => {}
                Ok(Resolution::AlreadyMapped | Resolution::Hole) => {
                    if shared.faults.requested.contains(page + step) {
                        map_page(shared, active, page + step, at)?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The last missing page came, the digest is known. Faults go off, unless the check still needs the
/// marks of writes, which would go with them: it ends both then.
fn become_whole(shared: &Arc<Shared>, active: &Active) -> Result<(), Failure> {
    if !shared.check.is_armed() {
        active.userfault.unregister(&active.mapping)?;
    }
    let digest = shared.final_sum().wrapping_add(*lock(&shared.faults.late_sum));
    shared.whole.give(Ok(digest));
    tell_whole(shared);
    Ok(())
}

fn tell_whole(shared: &Shared) {
    if let Some(Ok(digest)) = shared.whole.peek()
        && shared.faults.active().is_some()
        && let Some(writer) = lock(&shared.faults.lane).as_mut()
    {
        // The lane is opened again by the source if this fails, and it is said again then.
        let _ = send_now(writer, 0, Frame::Whole { digest });
    }
}
