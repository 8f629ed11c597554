//! The gate itself: what is in flight on which connection, who may write, and who waits for what.
//!
//! One lock guards the bookkeeping and is never held across a read or a write. Each connection has
//! a thread for each direction (`requests`, `replies`); a request is begun, forwarded piece by
//! piece and completed here.

use crate::GateError;
use crate::books::{Books, Connection, InFlight, write_to};
use crate::held::HeldBlocks;
use crate::protocol::{IN_FLIGHT_MAX, flush_request};
use crate::replies::pass_replies;
use crate::requests::{Leave, pass_requests};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Connections of one disk at the same time: the mirror's, and those that it has just left.
const CONNECTIONS_MAX: usize = 8;
/// How long a server may take for writes that it has, once their client is gone or fenced.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How a gate behaves.
#[derive(Clone, Copy, Debug)]
pub struct GateOptions {
    /// Asks the server to flush after so many bytes of writes, so that the last flush is short;
    /// `None` never does.
    pub flush_every_bytes: Option<u64>,
    /// Keeps the connection to the server when the client leaves, for the last flush. False for a
    /// tap at the source, which ends with either side.
    pub keeps_server: bool,
}

impl GateOptions {
    /// In front of the target's server.
    pub const TARGET: Self = Self { flush_every_bytes: Some(64 << 20), keeps_server: true };
    /// At the source: only counts.
    pub const TAP: Self = Self { flush_every_bytes: None, keeps_server: false };
    /// In front of a shared volume's server: it flushes when the guest does.
    pub const VOLUME: Self = Self { flush_every_bytes: None, keeps_server: true };
}

/// One end of a connection: a unix socket, or a lane in whatever framing.
pub struct Stream {
    pub reader: Box<dyn Read + Send>,
    /// Flushed after each piece.
    pub writer: Box<dyn Write + Send>,
    /// Ends both directions at once, from any thread; a blocked read or write returns.
    pub cut: Box<dyn Fn() + Send + Sync>,
}

impl Stream {
    pub fn from_unix(stream: UnixStream) -> std::io::Result<Self> {
        let (writer, handle) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Self {
            reader: Box::new(stream),
            writer: Box::new(writer),
            // A socket that is gone already is what we want.
            cut: Box::new(move || drop(handle.shutdown(Shutdown::Both))),
        })
    }
}

/// What has passed so far, over all connections of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounts {
    /// Writes (data, zeroes, trims) handed to the server in full.
    pub writes_sent: u64,
    /// Writes that the server has answered with success: this is ioSequence.
    pub writes_completed: u64,
    /// Sum over those, modulo 2^128, of the first half of blake3(command, place, length, data): the
    /// same on both sides, in whatever order they were answered.
    pub writes_digest: u128,
    pub writes_failed: u64,
    pub writes_in_flight: u64,
    /// Writes whose connection to the server ended before it answered, until `settle_lost`.
    pub writes_lost: u64,
    /// Bytes of data in writes; zeroes and trims carry none.
    pub write_bytes: u64,
    /// Flushes of the gate's own that succeeded.
    pub flushes: u64,
    pub epoch: u64,
}

/// What a flush has made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// Every write up to this ioSequence is on disk.
    pub io_sequence: u64,
    /// False when writes were still in flight: they are not covered.
    pub complete: bool,
}

pub(crate) struct Shared {
    books: Mutex<Books>,
    changed: Condvar,
    options: GateOptions,
    /// What the image behind the server holds, as far as it is known to be so still.
    held: Mutex<HeldBlocks>,
}

/// The gate of one disk; clones are the same gate.
#[derive(Clone)]
pub struct NbdGate(Arc<Shared>);

impl NbdGate {
    /// A gate that lets writers of `epoch` and later pass.
    pub fn new(epoch: u64, options: GateOptions) -> Self {
        let mut books = Books::default();
        books.counts.epoch = epoch;
        let held = Mutex::default();
        Self(Arc::new(Shared { books: Mutex::new(books), changed: Condvar::new(), options, held }))
    }

    /// Carries one client's connection, on this thread and one more, until the client leaves or
    /// either side fails. The epoch is the one that the client was authenticated with; a lower one
    /// than the gate's is `Fenced` before a byte passes.
    pub fn serve(&self, epoch: u64, client: Stream, server: Stream) -> Result<(), GateError> {
        self.carry(epoch, client, server)
    }

    /// As `serve`, for a client that may only read, as long as the gate stands where it does: a
    /// write ends the connection, and so does a raise.
    pub fn serve_reader(&self, client: Stream, server: Stream) -> Result<(), GateError> {
        self.carry(None, client, server)
    }

    fn carry(
        &self,
        epoch: impl Into<Option<u64>>,
        client: Stream,
        server: Stream,
    ) -> Result<(), GateError> {
        let epoch = epoch.into();
        let (shared, keeps_server) = (&self.0, self.0.options.keeps_server);
        let cut_client: Arc<dyn Fn() + Send + Sync> = client.cut.into();
        let cut_server: Arc<dyn Fn() + Send + Sync> = server.cut.into();
        let opened = shared.open(epoch, server.writer, &cut_server, &cut_client);
        let id = opened.inspect_err(|_| {
            cut_client();
            cut_server();
        })?;
        // The client's end leaves when this call does, though its reply thread may stay.
        let to_client = Arc::new(Mutex::new(Some(client.writer)));
        let replies = thread::Builder::new().name("nbd-replies".to_owned()).spawn({
            let (shared, to_client) = (Arc::clone(shared), Arc::clone(&to_client));
            let (cut_client, mut reader) = (Arc::clone(&cut_client), server.reader);
            move || {
                let ended = pass_replies(&shared, id, &mut reader, &to_client);
                shared.lose_server(id);
                cut_client();
                ended
            }
        });
        let replies = match replies {
            Ok(replies) => replies,
            Err(cause) => {
                shared.forget(id);
                return Err(cause.into());
            }
        };
        let ended = pass_requests(shared, id, &mut { client.reader }, &to_client);
        drop(to_client.lock().unwrap_or_else(PoisonError::into_inner).take());
        let stays = keeps_server && shared.leave_to_flush(id);
        cut_client();
        if !stays {
            // Only answers prove what became of writes; a tap asks nobody for that proof.
            if keeps_server {
                shared.drain(id, Instant::now() + DRAIN_MAX);
            }
            // What the reply thread says after our own cut, or after a disconnect that left nothing
            // open, is no news; before it, it is the cause.
            let parted = matches!(ended, Ok(Leave::Disconnected)) && !shared.has_open_writes(id);
            let server_was_first = replies.is_finished() && !parted;
            cut_server();
            let replied = replies.join().unwrap_or(Err(GateError::Closed));
            shared.forget(id);
            return if server_was_first && replied.is_err() { replied } else { ended.map(drop) };
        }
        ended.map(drop)
    }

    /// Asks the server to flush and waits for its answer. Works while a client writes and after it
    /// left. Fails with `NotConnected`, `FlushFailed`, `Deadline`.
    pub fn flush(&self, timeout: Duration) -> Result<Flushed, GateError> {
        self.0.flush(Instant::now() + timeout)
    }

    /// Refuses every writer below `epoch` from now on, and returns once none of their writes is in
    /// flight or queued. Make the epoch durable first. The gate is raised even when this fails:
    /// with `Deadline` (repeat it), or with `NotConnected` when the server went away with writes
    /// that it never answered (remove its export, then `settle_lost`). A tap cuts its writers and
    /// waits for nothing: what became of their writes is the matter of the gate at the target.
    pub fn raise(&self, epoch: u64, timeout: Duration) -> Result<(), GateError> {
        self.0.raise(epoch, Instant::now() + timeout)
    }

    /// Ends every connection and counts anew from nothing, for a client that begins anew: returns
    /// once none of their writes is in flight, and says whether any was ever sent. Failures as of
    /// `raise`.
    pub fn restart(&self, timeout: Duration) -> Result<bool, GateError> {
        self.0.restart(Instant::now() + timeout)
    }

    /// Of writes from now on only what the image does not hold is passed.
    pub fn pass_only_news(&self, held: HeldBlocks) {
        *self.0.held() = held;
    }

    pub fn counts(&self) -> GateCounts {
        self.0.counts()
    }

    /// Says that the server can't apply the lost writes any more, because its export is gone or it
    /// was restarted since.
    pub fn settle_lost(&self) {
        self.0.lock().counts.writes_lost = 0;
    }

    /// Cuts all connections and refuses new ones.
    pub fn close(&self) {
        let mut books = self.0.lock();
        books.closed = true;
        for connection in books.connections.values() {
            connection.cut();
        }
        drop(books);
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        books: MutexGuard<'a, Books>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, Books>, GateError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(GateError::Deadline);
        }
        let waited = self.changed.wait_timeout(books, left);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, HeldBlocks> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> GateCounts {
        let books = self.lock();
        GateCounts { writes_in_flight: books.writes_in_flight(), ..books.counts }
    }

    fn open(
        &self,
        writer: Option<u64>,
        server: Box<dyn Write + Send>,
        cut_server: &Arc<dyn Fn() + Send + Sync>,
        cut_client: &Arc<dyn Fn() + Send + Sync>,
    ) -> Result<u64, GateError> {
        let mut books = self.lock();
        if books.closed {
            return Err(GateError::Closed);
        }
        let epoch = writer.unwrap_or(books.counts.epoch);
        if epoch < books.counts.epoch {
            return Err(GateError::Fenced { writer: epoch, gate: books.counts.epoch });
        }
        // A new connection flushes as well as those that were kept for it.
        books.retain(|one| !(one.client_left && one.writes_in_flight() == 0));
        if books.connections.len() >= CONNECTIONS_MAX {
            return Err(GateError::Protocol("too many connections to one disk"));
        }
        let id = books.next_id;
        books.next_id += 1;
        let connection = Connection {
            epoch,
            reads_only: writer.is_none(),
            in_transmission: false,
            structured: false,
            in_flight: std::collections::HashMap::new(),
            mid_request: false,
            forwarding: false,
            server_gone: false,
            client_left: false,
            flush_sent: 0,
            flush_open: false,
            flush_covers: Flushed { io_sequence: 0, complete: false },
            flush_error: 0,
            bytes_since_flush: 0,
            server: Arc::new(Mutex::new(server)),
            cut_server: Arc::clone(cut_server),
            cut_client: Arc::clone(cut_client),
        };
        books.connections.insert(id, connection);
        Ok(id)
    }

    fn forget(&self, id: u64) {
        self.lock().retain_id(|one| one != id);
        self.changed.notify_all();
    }

    /// Waits until the server has answered every write of the connection, or is gone.
    fn drain(&self, id: u64, deadline: Instant) {
        let mut books = self.lock();
        while let Some(one) = books.connections.get(&id) {
            if one.server_gone || (one.writes_in_flight() == 0 && !one.forwarding) {
                return;
            }
            match self.wait(books, deadline) {
                Ok(again) => books = again,
                Err(_) => return,
            }
        }
    }

    fn has_open_writes(&self, id: u64) -> bool {
        self.lock().connections.get(&id).is_some_and(|one| one.writes_in_flight() > 0)
    }

    /// True for a tap, whose server must learn that the client leaves.
    pub(crate) fn passes_disconnects(&self) -> bool {
        !self.options.keeps_server
    }

    /// The client has left; false when the server has too.
    fn leave_to_flush(&self, id: u64) -> bool {
        let mut books = self.lock();
        let gate = books.counts.epoch;
        let Some(connection) = books.connections.get_mut(&id) else { return false };
        connection.client_left = true;
        // In the middle of a request the server's stream is of no use any more.
        connection.can_flush() && !connection.mid_request && connection.epoch >= gate
    }

    fn lose_server(&self, id: u64) {
        if let Some(connection) = self.lock().connections.get_mut(&id) {
            connection.server_gone = true;
        }
        self.changed.notify_all();
    }

    /// Runs `change` on the connection; `Closed` when it was forgotten.
    fn with<T>(
        &self,
        id: u64,
        change: impl FnOnce(&mut Connection, &mut GateCounts) -> Result<T, GateError>,
    ) -> Result<T, GateError> {
        let mut books = self.lock();
        let Books { counts, connections, .. } = &mut *books;
        let connection = connections.get_mut(&id).ok_or(GateError::Closed)?;
        let changed = change(connection, counts);
        drop(books);
        self.changed.notify_all();
        changed
    }

    pub(crate) fn set_structured(&self, id: u64) -> Result<(), GateError> {
        self.with(id, |connection, _| {
            connection.structured = true;
            Ok(())
        })
    }

    pub(crate) fn set_transmission(&self, id: u64) -> Result<(), GateError> {
        self.with(id, |connection, _| {
            connection.in_transmission = true;
            Ok(())
        })
    }

    pub(crate) fn in_transmission(&self, id: u64) -> Result<bool, GateError> {
        self.with(id, |connection, _| Ok(connection.in_transmission))
    }

    pub(crate) fn is_structured(&self, id: u64) -> Result<bool, GateError> {
        self.with(id, |connection, _| Ok(connection.structured))
    }

    /// Refuses a write on a connection that is only for reading.
    pub(crate) fn check_writer(&self, id: u64) -> Result<(), GateError> {
        self.with(id, |connection, _| {
            if connection.reads_only { Err(GateError::ReadsOnly) } else { Ok(()) }
        })
    }

    /// Waits for its turn on the server's stream, between two whole requests.
    pub(crate) fn begin_request(&self, id: u64) -> Result<(), GateError> {
        let mut books = self.lock();
        loop {
            let connection = books.connections.get_mut(&id).ok_or(GateError::Closed)?;
            if !connection.mid_request {
                connection.mid_request = true;
                return Ok(());
            }
            books = self.changed.wait(books).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands a piece to the server; `last` with the request that it completes, from which moment
    /// on it is in flight. Refused as soon as the gate is above the connection's epoch.
    pub(crate) fn forward(
        &self,
        id: u64,
        piece: &[u8],
        last: Option<(u64, InFlight, u64)>,
    ) -> Result<(), GateError> {
        let server = self.with(id, |connection, counts| {
            if connection.epoch < counts.epoch {
                return Err(GateError::Fenced { writer: connection.epoch, gate: counts.epoch });
            }
            if let Some((cookie, request, data_bytes)) = last {
                if connection.in_flight.len() >= IN_FLIGHT_MAX {
                    return Err(GateError::Protocol("too many requests at once"));
                }
                if connection.in_flight.insert(cookie, request).is_some() {
                    return Err(GateError::Protocol("a cookie that is in flight already"));
                }
                if request.is_write {
                    counts.writes_sent += 1;
                    counts.write_bytes += data_bytes;
                    connection.bytes_since_flush += data_bytes;
                }
            }
            connection.forwarding = true;
            Ok(Arc::clone(&connection.server))
        })?;
        let written = write_to(&server, piece);
        self.with(id, |connection, _| {
            connection.forwarding = false;
            Ok(())
        })?;
        Ok(written?)
    }

    /// The request is with the server in full; the stream is free for the next one. Sends a flush
    /// of our own when enough has been written.
    pub(crate) fn end_request(&self, id: u64) -> Result<(), GateError> {
        let limit = self.options.flush_every_bytes.unwrap_or(u64::MAX);
        let flush = self.with(id, |connection, counts| {
            if connection.bytes_since_flush < limit || connection.flush_open {
                connection.mid_request = false;
                return Ok(None);
            }
            // Nobody asks what this one covered.
            let covers = Flushed { io_sequence: counts.writes_completed, complete: false };
            Ok(Some((connection.start_flush(covers), Arc::clone(&connection.server))))
        })?;
        let Some((number, server)) = flush else { return Ok(()) };
        let written = write_to(&server, &flush_request(number));
        self.with(id, |connection, _| {
            connection.mid_request = false;
            Ok(())
        })?;
        Ok(written?)
    }

    /// What the reply to this cookie belongs to.
    pub(crate) fn look_up(&self, id: u64, cookie: u64) -> Result<InFlight, GateError> {
        self.with(id, |connection, _| {
            let found = connection.in_flight.get(&cookie).copied();
            found.ok_or(GateError::Protocol("a reply that nobody asked for"))
        })
    }

    pub(crate) fn note_error(&self, id: u64, cookie: u64) -> Result<(), GateError> {
        self.with(id, |connection, _| {
            if let Some(request) = connection.in_flight.get_mut(&cookie) {
                request.failed = true;
            }
            Ok(())
        })
    }

    /// The server has answered the request for good.
    pub(crate) fn complete(&self, id: u64, cookie: u64, failed: bool) -> Result<(), GateError> {
        self.with(id, |connection, counts| {
            let request = connection
                .in_flight
                .remove(&cookie)
                .ok_or(GateError::Protocol("a reply that nobody asked for"))?;
            match (request.is_write, failed || request.failed) {
                (true, false) => {
                    counts.writes_completed += 1;
                    counts.writes_digest = counts.writes_digest.wrapping_add(request.digest);
                }
                (true, true) => counts.writes_failed += 1,
                (false, _) => {}
            }
            Ok(())
        })
    }

    /// The server has answered a flush of our own.
    pub(crate) fn complete_flush(&self, id: u64, number: u32, error: u32) -> Result<(), GateError> {
        self.with(id, |connection, counts| {
            if !connection.flush_open || connection.flush_sent != number {
                return Err(GateError::Protocol("an answer to a flush that was not sent"));
            }
            connection.flush_open = false;
            connection.flush_error = error;
            counts.flushes += u64::from(error == 0);
            Ok(())
        })
    }

    fn flush(&self, deadline: Instant) -> Result<Flushed, GateError> {
        let mut books = self.lock();
        let (id, number, server) = loop {
            let covers = Flushed {
                io_sequence: books.counts.writes_completed,
                complete: books.writes_in_flight() == 0 && books.counts.writes_lost == 0,
            };
            let newest = books.connections.iter_mut().rev().find(|(_, one)| one.can_flush());
            let Some((&id, connection)) = newest else { return Err(GateError::NotConnected) };
            if !connection.mid_request && !connection.flush_open {
                connection.mid_request = true;
                let number = connection.start_flush(covers);
                break (id, number, Arc::clone(&connection.server));
            }
            books = self.wait(books, deadline)?;
        };
        drop(books);
        let written = write_to(&server, &flush_request(number));
        self.with(id, |connection, _| {
            connection.mid_request = false;
            Ok(())
        })?;
        written?;
        let mut books = self.lock();
        loop {
            let connection = books.connections.get(&id).ok_or(GateError::NotConnected)?;
            if connection.flush_sent != number || !connection.flush_open {
                return match connection.flush_error {
                    0 => Ok(connection.flush_covers),
                    code => Err(GateError::FlushFailed(code)),
                };
            }
            if connection.server_gone {
                return Err(GateError::NotConnected);
            }
            books = self.wait(books, deadline)?;
        }
    }

    fn restart(&self, deadline: Instant) -> Result<bool, GateError> {
        let mut books = self.lock();
        for one in books.connections.values() {
            (one.cut_client)();
        }
        while books.connections.values().any(Connection::may_still_write) {
            books = self.wait(books, deadline)?;
        }
        books.retain(|_| false);
        let counts = &mut books.counts;
        (counts.writes_completed, counts.writes_digest) = (0, 0);
        let has_written = (counts.writes_lost == 0).then_some(counts.writes_sent > 0);
        drop(books);
        self.changed.notify_all();
        has_written.ok_or(GateError::NotConnected)
    }

    fn raise(&self, epoch: u64, deadline: Instant) -> Result<(), GateError> {
        let mut books = self.lock();
        if epoch < books.counts.epoch {
            return Err(GateError::Fenced { writer: epoch, gate: books.counts.epoch });
        }
        books.counts.epoch = epoch;
        self.changed.notify_all();
        // Their clients may say nothing more, and must not hold up the answers by not reading.
        for one in books.connections.values().filter(|one| one.epoch < epoch) {
            (one.cut_client)();
        }
        if !self.options.keeps_server {
            books.retain(|one| one.epoch >= epoch);
            drop(books);
            self.changed.notify_all();
            return Ok(());
        }
        // A request whose last piece was held back can't be applied: the server waits for it, and
        // finds the end of the stream instead. Only answers prove the others.
        while books.connections.values().any(|one| one.epoch < epoch && one.may_still_write()) {
            books = self.wait(books, deadline)?;
        }
        books.retain(|one| one.epoch >= epoch);
        let proven = books.counts.writes_lost == 0;
        drop(books);
        self.changed.notify_all();
        if proven { Ok(()) } else { Err(GateError::NotConnected) }
    }
}
