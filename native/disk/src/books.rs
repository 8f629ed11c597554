//! What the gate knows: its connections, and what is in flight on each. No waiting, no I/O but the
//! cutting of a connection that must not go on.

use crate::gate::{Flushed, GateCounts};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// A request that the server has not answered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) is_write: bool,
    /// Of a write: what it is and what it writes, without its cookie.
    pub(crate) digest: u128,
    /// Bytes that a simple reply without error carries: those of a read.
    pub(crate) reply_bytes: u32,
    /// An error chunk has come; the last chunk decides when it is over.
    pub(crate) failed: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "independent facts, in every combination")]
pub(crate) struct Connection {
    pub(crate) epoch: u64,
    pub(crate) reads_only: bool,
    pub(crate) in_transmission: bool,
    pub(crate) structured: bool,
    pub(crate) in_flight: HashMap<u64, InFlight>,
    /// A request has begun and not all of it is with the server.
    pub(crate) mid_request: bool,
    /// A piece is being handed over right now.
    pub(crate) forwarding: bool,
    pub(crate) server_gone: bool,
    pub(crate) client_left: bool,
    pub(crate) flush_sent: u32,
    /// Number, error and covered ioSequence of the flush that is under way, then of the last one.
    pub(crate) flush_open: bool,
    pub(crate) flush_covers: Flushed,
    pub(crate) flush_error: u32,
    pub(crate) bytes_since_flush: u64,
    pub(crate) server: Arc<Mutex<Box<dyn Write + Send>>>,
    pub(crate) cut_server: Arc<dyn Fn() + Send + Sync>,
    pub(crate) cut_client: Arc<dyn Fn() + Send + Sync>,
}

impl Connection {
    pub(crate) fn writes_in_flight(&self) -> u64 {
        self.in_flight.values().filter(|request| request.is_write).count() as u64
    }

    /// The server has something of it that it has not answered.
    pub(crate) fn may_still_write(&self) -> bool {
        !self.server_gone && (self.forwarding || self.writes_in_flight() > 0)
    }

    pub(crate) fn can_flush(&self) -> bool {
        self.in_transmission && !self.server_gone
    }

    pub(crate) fn cut(&self) {
        (self.cut_client)();
        (self.cut_server)();
    }

    /// Books a flush that is about to be sent; answers its number.
    pub(crate) fn start_flush(&mut self, covers: Flushed) -> u32 {
        self.flush_sent = self.flush_sent.wrapping_add(1);
        self.flush_open = true;
        self.bytes_since_flush = 0;
        self.flush_covers = covers;
        self.flush_sent
    }
}

#[derive(Default)]
pub(crate) struct Books {
    pub(crate) counts: GateCounts,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) next_id: u64,
    pub(crate) closed: bool,
}

impl Books {
    pub(crate) fn writes_in_flight(&self) -> u64 {
        self.connections.values().map(Connection::writes_in_flight).sum()
    }

    /// Drops and cuts the connections that do not stay; their unanswered writes are lost.
    pub(crate) fn retain(&mut self, stays: impl Fn(&Connection) -> bool) {
        let leaving: Vec<u64> =
            self.connections.iter().filter(|(_, one)| !stays(one)).map(|(&id, _)| id).collect();
        self.retain_id(|id| !leaving.contains(&id));
    }

    pub(crate) fn retain_id(&mut self, stays: impl Fn(u64) -> bool) {
        let lost = &mut self.counts.writes_lost;
        self.connections.retain(|&id, one| {
            if stays(id) {
                return true;
            }
            one.cut();
            *lost += one.writes_in_flight();
            false
        });
    }
}

/// One piece, at once.
pub(crate) fn write_to(server: &Mutex<Box<dyn Write + Send>>, bytes: &[u8]) -> std::io::Result<()> {
    let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
    server.write_all(bytes)?;
    server.flush()
}
