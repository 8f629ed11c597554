//! Lanes in memory, for tests of the layers above: the same promises, no socket, no encryption.
//!
//! It keeps the seam honest (the conformance suite runs on it) and never leaves the process, so it
//! has no place in a running system.

use crate::lane::{ReadHalf, WireControl, WriteHalf};
use crate::{HELLO_BYTES_MAX, Incoming, Lane, LaneError, Link, LinkError, Listener, PeerIdentity};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes in flight in one direction; a writer waits beyond it, as on a full socket.
const PIPE_BYTES_MAX: usize = 256 * 1024;
/// Lanes that were opened and not accepted yet.
const BACKLOG_MAX: usize = 64;

/// How far one direction of a lane is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Open,
    Finished,
    Cut,
}

#[derive(Debug)]
struct PipeState {
    bytes: VecDeque<u8>,
    writer_end: End,
    reader_gone: bool,
}

#[derive(Debug)]
struct Pipe {
    state: Mutex<PipeState>,
    changed: Condvar,
    carried_bytes: AtomicU64,
}

impl Pipe {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(PipeState {
                bytes: VecDeque::new(),
                writer_end: End::Open,
                reader_gone: false,
            }),
            changed: Condvar::new(),
            carried_bytes: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut PipeState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until something changes; an error once the deadline is over.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, PipeState>,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, PipeState>, LaneError> {
        let Some(deadline) = deadline else {
            return Ok(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LaneError::Deadline);
        }
        let waited = self.changed.wait_timeout(state, left);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }
}

/// Both directions as one end sees them.
#[derive(Debug)]
struct Ends {
    outward: Arc<Pipe>,
    inward: Arc<Pipe>,
    closed: std::sync::atomic::AtomicBool,
}

impl WireControl for Ends {
    fn shutdown(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for pipe in [&self.outward, &self.inward] {
            pipe.change(|state| {
                state.reader_gone = true;
                if state.writer_end == End::Open {
                    state.writer_end = End::Cut;
                }
            });
        }
    }

    fn wire_bytes_sent(&self) -> u64 {
        self.outward.carried_bytes.load(Ordering::Relaxed)
    }

    fn wire_bytes_received(&self) -> u64 {
        self.inward.carried_bytes.load(Ordering::Relaxed)
    }
}

struct MemoryReader {
    ends: Arc<Ends>,
    deadline: Option<Instant>,
}

impl ReadHalf for MemoryReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LaneError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let pipe = &self.ends.inward;
        let mut state = pipe.lock();
        loop {
            if self.ends.closed.load(Ordering::SeqCst) {
                return Err(LaneError::Closed);
            }
            let count = buffer.len().min(state.bytes.len());
            if count > 0 {
                for (slot, byte) in buffer.iter_mut().zip(state.bytes.drain(..count)) {
                    *slot = byte;
                }
                pipe.changed.notify_all();
                return Ok(count);
            }
            match state.writer_end {
                End::Finished => return Ok(0),
                End::Cut => return Err(LaneError::Truncated),
                End::Open => state = pipe.wait(state, self.deadline)?,
            }
        }
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }
}

impl Drop for MemoryReader {
    fn drop(&mut self) {
        self.ends.inward.change(|state| state.reader_gone = true);
    }
}

struct MemoryWriter {
    ends: Arc<Ends>,
    deadline: Option<Instant>,
    unusable: bool,
}

impl MemoryWriter {
    fn write(&self, mut bytes: &[u8]) -> Result<(), LaneError> {
        let pipe = &self.ends.outward;
        let mut state = pipe.lock();
        while !bytes.is_empty() {
            if self.ends.closed.load(Ordering::SeqCst) {
                return Err(LaneError::Closed);
            }
            if state.reader_gone {
                return Err(LaneError::Io(std::io::ErrorKind::ConnectionReset.into()));
            }
            let room = PIPE_BYTES_MAX.saturating_sub(state.bytes.len()).min(bytes.len());
            if room == 0 {
                state = pipe.wait(state, self.deadline)?;
                continue;
            }
            state.bytes.extend(&bytes[..room]);
            pipe.carried_bytes.fetch_add(room as u64, Ordering::Relaxed);
            pipe.changed.notify_all();
            bytes = &bytes[room..];
        }
        Ok(())
    }
}

impl WriteHalf for MemoryWriter {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LaneError> {
        if self.unusable {
            return Err(LaneError::Closed);
        }
        let written = self.write(bytes);
        self.unusable = written.is_err();
        written
    }

    fn flush(&mut self) -> Result<(), LaneError> {
        if self.unusable || self.ends.closed.load(Ordering::SeqCst) {
            return Err(LaneError::Closed);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), LaneError> {
        self.flush()?;
        self.unusable = true;
        self.ends.outward.change(|state| state.writer_end = End::Finished);
        Ok(())
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        self.ends.outward.change(|state| {
            if state.writer_end == End::Open {
                state.writer_end = End::Cut;
            }
        });
    }
}

fn lane(outward: &Arc<Pipe>, inward: &Arc<Pipe>) -> Lane {
    let ends = Arc::new(Ends {
        outward: Arc::clone(outward),
        inward: Arc::clone(inward),
        closed: false.into(),
    });
    Lane::new(
        Box::new(MemoryReader { ends: Arc::clone(&ends), deadline: None }),
        Box::new(MemoryWriter { ends: Arc::clone(&ends), deadline: None, unusable: false }),
        ends,
    )
}

/// Two ends of one lane.
pub fn lane_pair() -> (Lane, Lane) {
    let (there, back) = (Pipe::new(), Pipe::new());
    (lane(&there, &back), lane(&back, &there))
}

#[derive(Debug, Default)]
struct Arrivals {
    queue: VecDeque<Incoming>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Exchange {
    arrivals: Mutex<Arrivals>,
    changed: Condvar,
}

impl Exchange {
    fn lock(&self) -> MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The dialling side of [`link_pair`].
#[derive(Clone, Debug)]
pub struct MemoryLink {
    exchange: Arc<Exchange>,
    own_identity: PeerIdentity,
}

/// The listening side of [`link_pair`].
#[derive(Debug)]
pub struct MemoryListener {
    exchange: Arc<Exchange>,
}

/// A link and its listener; what is dialled arrives under `dialler`'s name.
pub fn link_pair(dialler: PeerIdentity) -> (MemoryLink, MemoryListener) {
    let exchange = Arc::<Exchange>::default();
    let link = MemoryLink { exchange: Arc::clone(&exchange), own_identity: dialler };
    (link, MemoryListener { exchange })
}

impl Link for MemoryLink {
    fn open(&self, hello: &[u8], _timeout: Duration) -> Result<Lane, LinkError> {
        if hello.len() > HELLO_BYTES_MAX {
            return Err(LinkError::HelloTooLong(hello.len()));
        }
        let (ours, theirs) = lane_pair();
        let mut arrivals = self.exchange.lock();
        if arrivals.closed || arrivals.queue.len() >= BACKLOG_MAX {
            let cause = std::io::ErrorKind::ConnectionRefused;
            return Err(LinkError::Unreachable(cause.into()));
        }
        arrivals.queue.push_back(Incoming {
            lane: theirs,
            identity: self.own_identity.clone(),
            hello: hello.to_vec(),
        });
        self.exchange.changed.notify_all();
        Ok(ours)
    }
}

impl Listener for MemoryListener {
    fn accept(&self, timeout: Duration) -> Result<Incoming, LinkError> {
        let deadline = Instant::now() + timeout;
        let mut arrivals = self.exchange.lock();
        loop {
            if arrivals.closed {
                return Err(LinkError::Closed);
            }
            if let Some(incoming) = arrivals.queue.pop_front() {
                return Ok(incoming);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::Deadline);
            }
            let waited = self.exchange.changed.wait_timeout(arrivals, left);
            arrivals = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn close(&self) {
        let mut arrivals = self.exchange.lock();
        arrivals.closed = true;
        arrivals.queue.clear();
        self.exchange.changed.notify_all();
    }
}
