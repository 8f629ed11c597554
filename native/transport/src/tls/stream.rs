//! The halves of a TLS lane after the handshake.
//!
//! Each half owns the keys of its direction; they share the socket and, for key updates only, the
//! key schedule. Sockets are non-blocking and never touched under a lock, so a reader that waits
//! never holds up a writer, nor the other way round.

use super::record::{
    ContentType, HEADER_BYTES, OVERHEAD_BYTES, Opener, PLAIN_BYTES_MAX, RECORDS_PER_KEY_MAX,
    Sealer, opened_room, record_length,
};
use super::socket::{Meter, Socket};
use crate::LaneError;
use crate::lane::{Lane, ReadHalf, WireControl, WriteHalf};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

/// Encrypted bytes taken from the kernel at once: far fewer system calls than records, and still
/// inside the second-level cache.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Encrypted bytes that are gathered before they go to the kernel.
const SEND_BYTES: usize = 128 * 1024;

/// RFC 8446, 4.6.3 and 4.6.1.
const KEY_UPDATE: u8 = 24;
const NEW_SESSION_TICKET: u8 = 4;
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;
/// RFC 8446, 6.
const ALERT_WARNING: u8 = 1;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// The key schedule of a connection, which outlives the handshake for key updates.
pub(super) enum KeySchedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

type NextSecrets = Result<(u64, ConnectionTrafficSecrets), rustls::Error>;

impl KeySchedule {
    fn update_sending(&mut self) -> NextSecrets {
        match self {
            Self::Client(schedule) => schedule.update_tx_secret(),
            Self::Server(schedule) => schedule.update_tx_secret(),
        }
    }

    fn update_receiving(&mut self) -> NextSecrets {
        match self {
            Self::Client(schedule) => schedule.update_rx_secret(),
            Self::Server(schedule) => schedule.update_rx_secret(),
        }
    }
}

struct Keys {
    schedule: Mutex<KeySchedule>,
    /// The peer asked us to change our key; the writer answers before its next record.
    update_wanted: AtomicBool,
}

/// Everything that a finished handshake leaves behind.
pub(super) struct Established {
    pub(super) socket: Socket,
    pub(super) secrets: ExtractedSecrets,
    pub(super) schedule: KeySchedule,
    /// Encrypted bytes that arrived after the handshake's last.
    pub(super) wire: Vec<u8>,
    /// Content that rustls has decrypted already.
    pub(super) plain: Vec<u8>,
}

/// The two halves of a TLS lane, not yet behind the seam.
pub(super) struct TlsStream {
    pub(super) reader: TlsReader,
    pub(super) writer: TlsWriter,
}

impl TlsStream {
    pub(super) fn new(established: Established) -> Result<Self, LaneError> {
        let Established { socket, secrets, schedule, wire, plain } = established;
        let socket = Arc::new(socket);
        let keys = Arc::new(Keys {
            schedule: Mutex::new(schedule),
            update_wanted: AtomicBool::new(false),
        });
        let mut inbox = vec![0; RECEIVE_BYTES.max(wire.len())];
        inbox[..wire.len()].copy_from_slice(&wire);
        let reader = TlsReader {
            socket: Arc::clone(&socket),
            keys: Arc::clone(&keys),
            opener: Opener::new(secrets.rx.0, secrets.rx.1)?,
            inbox,
            start: 0,
            end: wire.len(),
            staged: plain,
            staged_at: 0,
            deadline: None,
            ended: false,
        };
        let writer = TlsWriter {
            socket,
            keys,
            sealer: Sealer::new(secrets.tx.0, secrets.tx.1)?,
            plain: Vec::with_capacity(PLAIN_BYTES_MAX),
            wire: Vec::with_capacity(SEND_BYTES + PLAIN_BYTES_MAX + 2 * OVERHEAD_BYTES),
            records_per_key_max: RECORDS_PER_KEY_MAX,
            deadline: None,
            usable: true,
        };
        Ok(Self { reader, writer })
    }

    pub(super) fn into_lane(self) -> Lane {
        let control = TlsControl {
            meter: Arc::clone(&self.reader.socket.meter),
            socket: Arc::downgrade(&self.reader.socket),
        };
        Lane::new(Box::new(self.reader), Box::new(self.writer), Arc::new(control))
    }
}

struct TlsControl {
    meter: Arc<Meter>,
    socket: Weak<Socket>,
}

impl WireControl for TlsControl {
    fn shutdown(&self) {
        if let Some(socket) = self.socket.upgrade() {
            socket.shutdown();
        }
    }

    fn wire_bytes_sent(&self) -> u64 {
        self.meter.sent_bytes.load(Ordering::Relaxed)
    }

    fn wire_bytes_received(&self) -> u64 {
        self.meter.received_bytes.load(Ordering::Relaxed)
    }
}

/// Reading half.
pub(super) struct TlsReader {
    socket: Arc<Socket>,
    keys: Arc<Keys>,
    opener: Opener,
    /// Encrypted bytes `start..end`; the rest is room.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// Content of a record that did not fit the caller's buffer, from `staged_at` on.
    staged: Vec<u8>,
    staged_at: usize,
    deadline: Option<Instant>,
    /// The peer said goodbye.
    ended: bool,
}

impl TlsReader {
    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// As `read`, but `None` instead of waiting.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, LaneError> {
        if buffer.is_empty() {
            return Ok(Some(0));
        }
        loop {
            let taken = self.take_staged(buffer);
            if taken > 0 {
                return Ok(Some(taken));
            }
            let opened = self.open_complete(buffer)?;
            if opened > 0 {
                return Ok(Some(opened));
            }
            if self.staged_at < self.staged.len() {
                continue;
            }
            if self.ended {
                return Ok(Some(0));
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    fn take_staged(&mut self, buffer: &mut [u8]) -> usize {
        let rest = &self.staged[self.staged_at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.staged_at += count;
        count
    }

    /// Decrypts records that are here in full: into `buffer` as far as they fit, or one into
    /// `staged` when not even the first fits.
    fn open_complete(&mut self, buffer: &mut [u8]) -> Result<usize, LaneError> {
        let mut filled = 0;
        while !self.ended {
            let Some(length) = record_length(&self.inbox[self.start..self.end])? else { break };
            if self.end - self.start < length {
                break;
            }
            let record = &self.inbox[self.start..self.start + length];
            let room = opened_room(length);
            if buffer.len() - filled >= room {
                let plain = &mut buffer[filled..];
                let (content, count) = self.opener.open(record, plain)?;
                self.start += length;
                if content == ContentType::ApplicationData {
                    filled += count;
                } else {
                    self.ended =
                        handle_other(&mut self.opener, &self.keys, content, &plain[..count])?;
                }
            } else if filled > 0 {
                break;
            } else {
                self.staged.resize(room, 0);
                let (content, count) = self.opener.open(record, &mut self.staged)?;
                self.start += length;
                self.staged.truncate(count);
                self.staged_at = 0;
                if content != ContentType::ApplicationData {
                    self.staged_at = count;
                    self.ended = handle_other(&mut self.opener, &self.keys, content, &self.staged)?;
                } else if count > 0 {
                    break;
                }
            }
        }
        Ok(filled)
    }

    /// Takes encrypted bytes from the kernel; false when there are none now.
    fn receive(&mut self) -> Result<bool, LaneError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.inbox.len() - self.start < HEADER_BYTES + 2 * PLAIN_BYTES_MAX {
            self.inbox.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.socket.receive(&mut self.inbox[self.end..])? {
            None => Ok(false),
            Some(0) => Err(LaneError::Truncated),
            Some(count) => {
                self.end += count;
                Ok(true)
            }
        }
    }
}

impl ReadHalf for TlsReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LaneError> {
        loop {
            if self.socket.is_closed() {
                return Err(LaneError::Closed);
            }
            if let Some(count) = self.try_read(buffer)? {
                return Ok(count);
            }
            self.socket.wait(libc::POLLIN, self.deadline)?;
        }
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }
}

/// What is not application data: goodbyes, key updates. True when the peer has ended its side.
fn handle_other(
    opener: &mut Opener,
    keys: &Keys,
    content: ContentType,
    body: &[u8],
) -> Result<bool, LaneError> {
    match (content, body) {
        (ContentType::Alert, [_, CLOSE_NOTIFY]) => Ok(true),
        // A goodbye follows the one; we never ask for tickets, and resume nothing, with the other.
        (ContentType::Alert, [_, USER_CANCELED])
        | (ContentType::Handshake, [NEW_SESSION_TICKET, ..]) => Ok(false),
        (ContentType::Alert, [_, number]) => Err(LaneError::Alert(*number)),
        (
            ContentType::Handshake,
            [KEY_UPDATE, 0, 0, 1, request @ (UPDATE_NOT_REQUESTED | UPDATE_REQUESTED)],
        ) => {
            let mut schedule = keys.schedule.lock().unwrap_or_else(PoisonError::into_inner);
            let (sequence, secrets) = schedule
                .update_receiving()
                .map_err(|_| LaneError::Protocol("a key update that can't be followed"))?;
            drop(schedule);
            *opener = Opener::new(sequence, secrets)?;
            if *request == UPDATE_REQUESTED {
                keys.update_wanted.store(true, Ordering::SeqCst);
            }
            Ok(false)
        }
        _ => Err(LaneError::Protocol("a message that has no place on an open lane")),
    }
}

/// Writing half.
pub(super) struct TlsWriter {
    socket: Arc<Socket>,
    keys: Arc<Keys>,
    sealer: Sealer,
    /// Content that does not fill a record yet.
    plain: Vec<u8>,
    /// Sealed records that the kernel has not got yet.
    wire: Vec<u8>,
    records_per_key_max: u64,
    deadline: Option<Instant>,
    usable: bool,
}

impl TlsWriter {
    fn seal(&mut self, content: ContentType, plain: &[u8]) -> Result<(), LaneError> {
        let used_up = self.sealer.record_count() >= self.records_per_key_max;
        if self.keys.update_wanted.swap(false, Ordering::SeqCst) || used_up {
            let message = [KEY_UPDATE, 0, 0, 1, UPDATE_NOT_REQUESTED];
            self.sealer.seal(ContentType::Handshake, &message, &mut self.wire)?;
            let mut schedule = self.keys.schedule.lock().unwrap_or_else(PoisonError::into_inner);
            let (sequence, secrets) = schedule
                .update_sending()
                .map_err(|_| LaneError::Protocol("the key schedule gave no further key"))?;
            drop(schedule);
            self.sealer = Sealer::new(sequence, secrets)?;
        }
        self.sealer.seal(content, plain, &mut self.wire)
    }

    fn seal_gathered(&mut self) -> Result<(), LaneError> {
        let plain = std::mem::take(&mut self.plain);
        let sealed = self.seal(ContentType::ApplicationData, &plain);
        self.plain = plain;
        self.plain.clear();
        sealed
    }

    fn send(&mut self) -> Result<(), LaneError> {
        self.socket.send_all(&self.wire, self.deadline)?;
        self.wire.clear();
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), LaneError> {
        if !self.plain.is_empty() {
            let room = PLAIN_BYTES_MAX - self.plain.len();
            let (head, rest) = bytes.split_at(room.min(bytes.len()));
            self.plain.extend_from_slice(head);
            bytes = rest;
            if self.plain.len() == PLAIN_BYTES_MAX {
                self.seal_gathered()?;
            }
        }
        let mut records = bytes.chunks_exact(PLAIN_BYTES_MAX);
        for record in records.by_ref() {
            self.seal(ContentType::ApplicationData, record)?;
            if self.wire.len() >= SEND_BYTES {
                self.send()?;
            }
        }
        self.plain.extend_from_slice(records.remainder());
        if self.wire.len() >= SEND_BYTES {
            self.send()?;
        }
        Ok(())
    }

    fn flush_all(&mut self) -> Result<(), LaneError> {
        if !self.plain.is_empty() {
            self.seal_gathered()?;
        }
        self.send()
    }

    fn say_goodbye(&mut self) -> Result<(), LaneError> {
        if !self.plain.is_empty() {
            self.seal_gathered()?;
        }
        self.seal(ContentType::Alert, &[ALERT_WARNING, CLOSE_NOTIFY])?;
        self.send()
    }

    /// Runs one step; after its failure nothing can be written any more.
    fn guarded(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<(), LaneError>,
    ) -> Result<(), LaneError> {
        if !self.usable || self.socket.is_closed() {
            return Err(LaneError::Closed);
        }
        let done = step(self);
        self.usable = done.is_ok();
        done
    }
}

impl WriteHalf for TlsWriter {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LaneError> {
        self.guarded(|writer| writer.take(bytes))
    }

    fn flush(&mut self) -> Result<(), LaneError> {
        self.guarded(Self::flush_all)
    }

    fn finish(&mut self) -> Result<(), LaneError> {
        self.guarded(Self::say_goodbye)?;
        self.usable = false;
        self.socket.end_sending();
        Ok(())
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }
}

impl Drop for TlsWriter {
    fn drop(&mut self) {
        // Without a goodbye the peer reads `Truncated`, at once, even while our reader lives.
        self.socket.end_sending();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Credentials;
    use crate::tls::handshake::{Handshake, Progress};
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
    use rustls::client::UnbufferedClientConnection;
    use rustls::pki_types::ServerName;
    use rustls::server::UnbufferedServerConnection;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    /// A certificate that is its own CA.
    fn credentials() -> Credentials {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        let uri = "novacron://host/host-a".try_into().expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let key = key.serialize_pem();
        Credentials::from_pem(pem.as_bytes(), pem.as_bytes(), key.as_bytes()).expect("credentials")
    }

    fn finish(mut handshake: Handshake) -> TlsStream {
        loop {
            let events = match handshake.advance().expect("a handshake") {
                Progress::Done => break,
                Progress::AwaitsInput => libc::POLLIN,
                Progress::AwaitsRoom => libc::POLLOUT,
            };
            handshake.socket.wait(events, None).expect("ready");
        }
        TlsStream::new(handshake.establish().expect("keys")).expect("a stream")
    }

    fn pair() -> (TlsStream, TlsStream) {
        let credentials = credentials();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("up");
        let (far, _) = listener.accept().expect("a connection");
        let server = credentials.server_config(vec!["host".to_owned()]).expect("a server");
        let client = credentials.client_config(credentials.identity().clone()).expect("a client");
        let serving = thread::spawn(move || {
            let connection = UnbufferedServerConnection::new(server).expect("a connection");
            finish(Handshake::server(Socket::new(far).expect("a socket"), connection))
        });
        let name = ServerName::try_from("host-a").expect("a name");
        let connection = UnbufferedClientConnection::new(client, name).expect("a connection");
        let near = finish(Handshake::client(Socket::new(near).expect("a socket"), connection));
        (near, serving.join().expect("the server"))
    }

    fn exchange(from: &mut TlsStream, to: &mut TlsStream, rounds: u32) {
        for round in 0..rounds {
            let sent: Vec<u8> = (0..40_000_u32).map(|at| (at ^ round) as u8).collect();
            from.writer.write_all(&sent).expect("written");
            from.writer.flush().expect("flushed");
            let mut received = vec![0; sent.len()];
            let mut filled = 0;
            while filled < received.len() {
                filled += to.reader.read(&mut received[filled..]).expect("read");
            }
            assert!(received == sent, "round {round}");
        }
    }

    #[test]
    fn keys_are_changed_before_they_are_used_up() {
        let (mut near, mut far) = pair();
        near.writer.records_per_key_max = 5;
        far.writer.records_per_key_max = 3;
        exchange(&mut near, &mut far, 30);
        exchange(&mut far, &mut near, 30);
        assert!(near.writer.sealer.record_count() <= 5, "no key was used beyond its limit");
    }

    #[test]
    fn a_peer_that_asks_for_a_new_key_gets_one() {
        let (mut near, mut far) = pair();
        // What the peer's writer would send: its own key changes with the question.
        let message = [KEY_UPDATE, 0, 0, 1, UPDATE_REQUESTED];
        near.writer
            .sealer
            .seal(ContentType::Handshake, &message, &mut near.writer.wire)
            .expect("ok");
        let keys = Arc::clone(&near.writer.keys);
        let (sequence, secrets) =
            keys.schedule.lock().expect("unpoisoned").update_sending().expect("a key");
        near.writer.sealer = Sealer::new(sequence, secrets).expect("a sealer");
        exchange(&mut near, &mut far, 3);
        let before = far.writer.sealer.record_count();
        exchange(&mut far, &mut near, 1);
        assert!(far.writer.sealer.record_count() <= before + 3, "{before}");
        assert!(!far.writer.keys.update_wanted.load(Ordering::SeqCst));
        exchange(&mut far, &mut near, 3);
    }

    #[test]
    fn what_has_no_place_on_a_lane_is_refused() {
        for (content, body) in [
            (ContentType::Handshake, &[1_u8, 0, 0, 0][..]),
            (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 2]),
            (ContentType::Handshake, &[KEY_UPDATE, 0]),
            (ContentType::Handshake, &[]),
            (ContentType::Alert, &[1]),
        ] {
            let (mut near, mut far) = pair();
            near.writer.sealer.seal(content, body, &mut near.writer.wire).expect("sealed");
            near.writer.flush().expect("flushed");
            let read = far.reader.read(&mut [0; 64]);
            assert!(matches!(read, Err(LaneError::Protocol(_))), "{body:?}: {read:?}");
        }
        let (mut near, mut far) = pair();
        near.writer.sealer.seal(ContentType::Alert, &[2, 80], &mut near.writer.wire).expect("ok");
        near.writer.flush().expect("flushed");
        let read = far.reader.read(&mut [0; 64]);
        assert!(matches!(read, Err(LaneError::Alert(80))), "{read:?}");
    }

    #[test]
    fn records_from_nowhere_are_refused_without_panic() {
        let mut state = std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_nanos() as u64);
        println!("seed {state}");
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize
        };
        let (_near, mut far) = pair();
        let mut plain = vec![0; 20_000];
        for _ in 0..20_000 {
            let mut wire: Vec<u8> = (0..next() % 300).map(|_| next() as u8).collect();
            if next() % 2 == 0 {
                let head = [23, 3, 3, 0, (next() % 256) as u8];
                let count = head.len().min(wire.len());
                wire[..count].copy_from_slice(&head[..count]);
            }
            if let Ok(Some(length)) = record_length(&wire)
                && length <= wire.len()
            {
                assert!(far.reader.opener.open(&wire[..length], &mut plain).is_err());
            }
        }
    }
}
