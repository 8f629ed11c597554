//! The listening side: one thread that leads many strangers through the handshake at once.
//!
//! Strangers cost little and can't hold anybody up: sockets are non-blocking, each has a deadline,
//! and there is a fixed number of places. When they are taken, the oldest stranger of the address
//! that holds most of them makes room, so a flood from one address does not keep others out. Only
//! lanes whose certificate and hello were taken reach `accept`.

use super::HELLO_TAKEN;
use super::credentials::Credentials;
use super::handshake::{Handshake, Progress};
use super::socket::{Socket, SocketOptions, listen, millis_until};
use super::stream::TlsStream;
use crate::lane::WriteHalf;
use crate::{HELLO_BYTES_MAX, Incoming, LaneError, LinkError, Listener, PeerIdentity};
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Lanes that passed and wait for `accept`; more than a runner's migrations open at once.
const ARRIVALS_MAX: usize = 64;
/// Refusals kept for the log between two looks at them.
const REFUSALS_MAX: usize = 64;
/// How long a refused peer gets to read why, before the socket closes on it.
const FAREWELL: Duration = Duration::from_millis(500);
/// Pause after the kernel had no descriptor left for a new connection.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// The accepting thread looks around at least this often.
const LOOK_AROUND: Duration = Duration::from_secs(1);
/// Connections taken from the kernel before strangers that are here get their turn again.
const TAKEN_AT_ONCE_MAX: usize = 16;

/// How a listener treats strangers.
#[derive(Clone, Debug)]
pub struct AcceptorOptions {
    /// Roles that may open lanes; a host's listener takes hosts.
    pub roles: Vec<String>,
    /// From TCP connect until certificate and hello are here.
    pub handshake_timeout: Duration,
    /// Strangers at the same time; each costs a descriptor and at most about 300 KiB.
    pub strangers_max: usize,
    pub socket: SocketOptions,
}

impl Default for AcceptorOptions {
    fn default() -> Self {
        Self {
            roles: vec!["host".to_owned()],
            handshake_timeout: Duration::from_secs(5),
            strangers_max: 128,
            socket: SocketOptions::default(),
        }
    }
}

/// A connection that was not accepted, for the log.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub from: SocketAddr,
    pub reason: String,
}

#[derive(Debug, Default)]
struct Lobby {
    arrivals: VecDeque<Incoming>,
    refusals: VecDeque<Refusal>,
    refused_count: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    lobby: Mutex<Lobby>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lobby> {
        self.lobby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, from: SocketAddr, reason: String) {
        let mut lobby = self.lock();
        lobby.refused_count += 1;
        if lobby.refusals.len() >= REFUSALS_MAX {
            lobby.refusals.pop_front();
        }
        lobby.refusals.push_back(Refusal { from, reason });
    }
}

/// A listener for lanes; closed when dropped.
#[derive(Debug)]
pub struct Acceptor {
    shared: Arc<Shared>,
    address: SocketAddr,
    wake: UnixStream,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Acceptor {
    /// Listens on `address` (port 0 for any) with these credentials.
    pub fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        options: AcceptorOptions,
    ) -> Result<Self, LinkError> {
        let config = credentials.server_config(options.roles.clone())?;
        // The first random bytes of a process take 60 ms (jitter of the CPU is measured for them):
        // better here than in its first move. What fails here would fail in a handshake, and say so.
        let _ = config.crypto_provider().secure_random.fill(&mut [0]);
        let listener = listen(address, &options.socket).map_err(LinkError::Unreachable)?;
        let address = listener.local_addr().map_err(LinkError::Unreachable)?;
        let (wake, woken) = UnixStream::pair().map_err(LinkError::Unreachable)?;
        let shared = Arc::<Shared>::default();
        let mut hall = Hall {
            listener,
            woken,
            config,
            options,
            shared: Arc::clone(&shared),
            strangers: Vec::new(),
            exhausted_until: None,
        };
        let thread = thread::Builder::new()
            .name("lane-acceptor".to_owned())
            .spawn(move || hall.run())
            .map_err(LinkError::Unreachable)?;
        Ok(Self { shared, address, wake, thread: Mutex::new(Some(thread)) })
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the refusals since the last look, at most the 64 newest.
    pub fn take_refusals(&self) -> Vec<Refusal> {
        self.shared.lock().refusals.drain(..).collect()
    }

    /// Connections refused so far, those of `take_refusals` and older ones.
    pub fn refused_count(&self) -> u64 {
        self.shared.lock().refused_count
    }
}

impl Listener for Acceptor {
    fn accept(&self, timeout: Duration) -> Result<Incoming, LinkError> {
        let deadline = Instant::now() + timeout;
        let mut lobby = self.shared.lock();
        loop {
            if lobby.closed {
                return Err(LinkError::Closed);
            }
            if let Some(incoming) = lobby.arrivals.pop_front() {
                return Ok(incoming);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LinkError::Deadline);
            }
            let waited = self.shared.changed.wait_timeout(lobby, left);
            lobby = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn close(&self) {
        let mut lobby = self.shared.lock();
        lobby.closed = true;
        lobby.arrivals.clear();
        drop(lobby);
        self.shared.changed.notify_all();
        let _ = self.wake.shutdown(std::net::Shutdown::Both);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in there was reported by its own hook; closing goes on.
            let _ = thread.join();
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.close();
    }
}

/// How far a stranger has come.
enum Stage {
    Handshake(Box<Handshake>),
    Hello {
        stream: Box<TlsStream>,
        identity: PeerIdentity,
        received: Vec<u8>,
    },
    /// Refused; the socket stays until the peer closes it, so that the alert is not overtaken by a
    /// reset.
    Farewell(Socket),
}

struct Stranger {
    from: SocketAddr,
    stage: Stage,
    waits_for: libc::c_short,
    deadline: Instant,
}

/// What became of a stranger after its turn.
enum Verdict {
    Stays(Stage, libc::c_short),
    Arrived(Incoming),
    Refused(Option<Socket>, String),
    Gone,
}

impl Stage {
    fn fd(&self) -> i32 {
        match self {
            Self::Handshake(handshake) => handshake.socket.fd(),
            Self::Hello { stream, .. } => stream.reader.socket().fd(),
            Self::Farewell(socket) => socket.fd(),
        }
    }

    fn advance(self) -> Verdict {
        match self {
            Self::Handshake(handshake) => advance_handshake(handshake),
            Self::Hello { stream, identity, received } => take_hello(stream, identity, received),
            Self::Farewell(socket) => {
                let mut waste = [0; 4096];
                match socket.receive(&mut waste) {
                    Ok(Some(0)) | Err(_) => Verdict::Gone,
                    Ok(_) => Verdict::Stays(Self::Farewell(socket), libc::POLLIN),
                }
            }
        }
    }
}

fn advance_handshake(mut handshake: Box<Handshake>) -> Verdict {
    match handshake.advance() {
        Ok(Progress::AwaitsInput) => Verdict::Stays(Stage::Handshake(handshake), libc::POLLIN),
        Ok(Progress::AwaitsRoom) => Verdict::Stays(Stage::Handshake(handshake), libc::POLLOUT),
        Err(cause) => Verdict::Refused(Some(handshake.socket), cause.to_string()),
        Ok(Progress::Done) => {
            let ready = handshake.peer().and_then(|identity| {
                let established = handshake.establish()?;
                let stream = TlsStream::new(established).map_err(LinkError::from_lane)?;
                Ok((Box::new(stream), identity))
            });
            match ready {
                Ok((stream, identity)) => take_hello(stream, identity, Vec::new()),
                Err(cause) => Verdict::Refused(None, cause.to_string()),
            }
        }
    }
}

/// Reads length and hello, and not a byte more: the rest belongs to the lane.
fn take_hello(
    mut stream: Box<TlsStream>,
    identity: PeerIdentity,
    mut received: Vec<u8>,
) -> Verdict {
    loop {
        let wanted = match received.first_chunk::<2>() {
            None => 2,
            Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
        };
        if wanted > 2 + HELLO_BYTES_MAX {
            return Verdict::Refused(None, format!("a hello of {} bytes", wanted - 2));
        }
        if received.len() >= 2 && received.len() == wanted {
            break;
        }
        let filled = received.len();
        received.resize(wanted, 0);
        let taken = stream.reader.try_read(&mut received[filled..]);
        received.truncate(filled + taken.as_ref().map_or(0, |count| count.unwrap_or(0)));
        match taken {
            Ok(None) => {
                return Verdict::Stays(Stage::Hello { stream, identity, received }, libc::POLLIN);
            }
            Ok(Some(0)) => return Verdict::Refused(None, LaneError::Truncated.to_string()),
            Ok(Some(_)) => {}
            Err(cause) => return Verdict::Refused(None, cause.to_string()),
        }
    }
    received.drain(..2);
    // One small record on a fresh connection: there is room, so the deadline is never waited for.
    stream.writer.set_deadline(Some(Instant::now()));
    let answered = stream.writer.write_all(&[HELLO_TAKEN]).and_then(|()| stream.writer.flush());
    stream.writer.set_deadline(None);
    match answered {
        Ok(()) => {
            Verdict::Arrived(Incoming { lane: stream.into_lane(), identity, hello: received })
        }
        Err(cause) => Verdict::Refused(None, cause.to_string()),
    }
}

/// State of the accepting thread.
struct Hall {
    listener: TcpListener,
    woken: UnixStream,
    config: Arc<ServerConfig>,
    options: AcceptorOptions,
    shared: Arc<Shared>,
    strangers: Vec<Stranger>,
    exhausted_until: Option<Instant>,
}

impl Hall {
    fn run(&mut self) {
        while !self.shared.lock().closed {
            let ready = self.wait();
            for (stranger, events) in std::mem::take(&mut self.strangers).into_iter().zip(ready) {
                self.give_turn(stranger, events != 0);
            }
            self.take_connections();
        }
    }

    /// Waits for any of them; answers what happened to each stranger, in their order.
    fn wait(&mut self) -> Vec<libc::c_short> {
        let now = Instant::now();
        let pausing = self.exhausted_until.is_some_and(|until| until > now);
        let mut entries = vec![
            libc::pollfd { fd: self.woken.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd {
                fd: self.listener.as_raw_fd(),
                events: if pausing { 0 } else { libc::POLLIN },
                revents: 0,
            },
        ];
        entries.extend(self.strangers.iter().map(|stranger| libc::pollfd {
            fd: stranger.stage.fd(),
            events: stranger.waits_for,
            revents: 0,
        }));
        let longest = now + if pausing { EXHAUSTED_PAUSE } else { LOOK_AROUND };
        let until = self.strangers.iter().map(|stranger| stranger.deadline).min();
        let timeout_ms = millis_until(until.unwrap_or(longest).min(longest)).unwrap_or(0);
        // SAFETY: `entries` is a valid array of that length; its descriptors outlive the call.
        let count =
            unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) };
        if count < 0 {
            return vec![0; self.strangers.len()];
        }
        entries[2..].iter().map(|entry| entry.revents).collect()
    }

    fn give_turn(&mut self, stranger: Stranger, ready: bool) {
        let Stranger { from, stage, waits_for, deadline } = stranger;
        if Instant::now() >= deadline {
            if !matches!(stage, Stage::Farewell(_)) {
                self.shared.refuse(from, "the handshake took too long".to_owned());
            }
            return;
        }
        if !ready {
            self.strangers.push(Stranger { from, stage, waits_for, deadline });
            return;
        }
        // Certificates and handshakes of strangers pass parsers of others: a mistake in there
        // costs that stranger its connection, not us the listener.
        let verdict = catch_unwind(AssertUnwindSafe(|| stage.advance()))
            .unwrap_or_else(|_| Verdict::Refused(None, "its bytes broke the handshake".to_owned()));
        match verdict {
            Verdict::Stays(stage, waits_for) => {
                self.strangers.push(Stranger { from, stage, waits_for, deadline });
            }
            Verdict::Arrived(incoming) => self.announce(from, incoming),
            Verdict::Gone => {}
            Verdict::Refused(socket, reason) => {
                self.shared.refuse(from, reason);
                if let Some(socket) = socket {
                    socket.end_sending();
                    let deadline = Instant::now() + FAREWELL;
                    let stage = Stage::Farewell(socket);
                    self.strangers.push(Stranger {
                        from,
                        stage,
                        waits_for: libc::POLLIN,
                        deadline,
                    });
                }
            }
        }
    }

    fn announce(&self, from: SocketAddr, incoming: Incoming) {
        let mut lobby = self.shared.lock();
        if lobby.arrivals.len() >= ARRIVALS_MAX {
            drop(lobby);
            self.shared.refuse(from, "nobody takes the lanes that are here".to_owned());
            return;
        }
        if !lobby.closed {
            lobby.arrivals.push_back(incoming);
        }
        drop(lobby);
        self.shared.changed.notify_one();
    }

    fn take_connections(&mut self) {
        for _ in 0..TAKEN_AT_ONCE_MAX {
            match self.listener.accept() {
                Ok((stream, from)) => self.welcome(stream, from),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    self.exhausted_until = Some(Instant::now() + EXHAUSTED_PAUSE);
                    return;
                }
                // The connection was gone before we took it; the next one may be fine.
                Err(_) => {}
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream, from: SocketAddr) {
        if self.strangers.len() >= self.options.strangers_max {
            self.make_room();
        }
        let stage =
            self.options.socket.apply(&stream).and_then(|()| Socket::new(stream)).map(|socket| {
                UnbufferedServerConnection::new(Arc::clone(&self.config))
                    .map(|connection| Box::new(Handshake::server(socket, connection)))
            });
        match stage {
            Ok(Ok(handshake)) => self.strangers.push(Stranger {
                from,
                stage: Stage::Handshake(handshake),
                waits_for: libc::POLLIN,
                deadline: Instant::now() + self.options.handshake_timeout,
            }),
            Ok(Err(cause)) => self.shared.refuse(from, cause.to_string()),
            Err(cause) => self.shared.refuse(from, cause.to_string()),
        }
    }

    /// Sends away the oldest stranger of the address that holds most places.
    fn make_room(&mut self) {
        let mut held = HashMap::<IpAddr, usize>::new();
        for stranger in &self.strangers {
            *held.entry(stranger.from.ip()).or_default() += 1;
        }
        let Some((busiest, _)) = held.into_iter().max_by_key(|&(_, count)| count) else { return };
        if let Some(oldest) = self.strangers.iter().position(|s| s.from.ip() == busiest) {
            let stranger = self.strangers.remove(oldest);
            self.shared.refuse(stranger.from, "too many strangers at once".to_owned());
        }
    }
}
