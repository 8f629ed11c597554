//! The socket below a lane: options, waiting with a deadline, counting, ending it from anywhere.

use crate::LaneError;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Settings of the TCP socket under each lane.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// Fixed buffer sizes; `None` leaves them to the kernel, which grows them with the path.
    pub send_buffer_bytes: Option<usize>,
    pub receive_buffer_bytes: Option<usize>,
    /// Idle time before the kernel asks whether the peer is still there, and between its questions.
    pub keepalive: Duration,
    /// Longest time that sent bytes may stay unacknowledged, or the peer's window shut, before the
    /// kernel gives the connection up; `None` means its default of about a quarter of an hour.
    pub user_timeout: Option<Duration>,
    /// Congestion control by name (bbr, cubic); `None` is the system's default.
    pub congestion_control: Option<String>,
}

/// Half-open connections are noticed by keep-alive after this and three lost answers.
const KEEPALIVE: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;
/// A target that takes nothing for this long is lost, not slow: its disk time-outs are shorter.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            send_buffer_bytes: None,
            receive_buffer_bytes: None,
            keepalive: KEEPALIVE,
            user_timeout: Some(USER_TIMEOUT),
            congestion_control: None,
        }
    }
}

impl SocketOptions {
    /// Buffer sizes and congestion control belong before connect and listen: they set the window
    /// scale and are inherited by accepted sockets.
    fn apply_before(&self, socket: &SockRef<'_>) -> io::Result<()> {
        if let Some(bytes) = self.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(name) = &self.congestion_control {
            socket.set_tcp_congestion(name.as_bytes())?;
        }
        Ok(())
    }

    pub(crate) fn apply(&self, stream: &TcpStream) -> io::Result<()> {
        let socket = SockRef::from(stream);
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive)
            .with_interval(self.keepalive)
            .with_retries(KEEPALIVE_RETRIES);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(self.user_timeout)
    }
}

/// Connects within the time-out, options set.
pub(crate) fn connect(
    address: SocketAddr,
    options: &SocketOptions,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    options.apply_before(&SockRef::from(&socket))?;
    socket.connect_timeout(&address.into(), timeout)?;
    let stream = TcpStream::from(socket);
    options.apply(&stream)?;
    Ok(stream)
}

/// Connections that the kernel completes before we look at them.
const LISTEN_BACKLOG: i32 = 128;

pub(crate) fn listen(address: SocketAddr, options: &SocketOptions) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    options.apply_before(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What is counted and remembered of a lane longer than its socket lives.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    closed: AtomicBool,
}

/// A non-blocking TCP socket shared by the halves of a lane.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    pub(crate) meter: Arc<Meter>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, meter: Arc::default() })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Takes what has arrived: `None` when nothing has, 0 at the end of the peer's bytes.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, LaneError> {
        let taken = SockRef::from(&self.stream).recv_with_flags(as_uninit(buffer), 0);
        match self.outcome(taken)? {
            Some(count) => {
                self.meter.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
                Ok(Some(count))
            }
            None => Ok(None),
        }
    }

    /// Hands over as much as the kernel takes now; `None` when it takes nothing.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<Option<usize>, LaneError> {
        let given = SockRef::from(&self.stream).send_with_flags(bytes, libc::MSG_NOSIGNAL);
        match self.outcome(given)? {
            Some(count) => {
                self.meter.sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
                Ok(Some(count))
            }
            None => Ok(None),
        }
    }

    /// Sends all of it, waiting for room until the deadline.
    pub(crate) fn send_all(
        &self,
        mut bytes: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), LaneError> {
        while !bytes.is_empty() {
            match self.send(bytes)? {
                Some(count) => bytes = &bytes[count..],
                None => self.wait(libc::POLLOUT, deadline)?,
            }
            // A peer that takes a few bytes now and then must not outwit the deadline.
            if !bytes.is_empty() && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(LaneError::Deadline);
            }
        }
        Ok(())
    }

    fn outcome(&self, result: io::Result<usize>) -> Result<Option<usize>, LaneError> {
        match result {
            _ if self.is_closed() => Err(LaneError::Closed),
            Ok(count) => Ok(Some(count)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) => Ok(None),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(LaneError::Io(e)),
        }
    }

    /// Waits until the socket is ready for `events`, was shut down, or the deadline passed.
    pub(crate) fn wait(
        &self,
        events: libc::c_short,
        deadline: Option<Instant>,
    ) -> Result<(), LaneError> {
        loop {
            if self.is_closed() {
                return Err(LaneError::Closed);
            }
            let timeout_ms = match deadline {
                None => -1,
                Some(deadline) => millis_until(deadline).ok_or(LaneError::Deadline)?,
            };
            let mut entry = libc::pollfd { fd: self.fd(), events, revents: 0 };
            // SAFETY: one valid pollfd, whose descriptor this socket keeps open.
            match unsafe { libc::poll(&raw mut entry, 1, timeout_ms) } {
                0 => {}
                count if count > 0 => return Ok(()),
                _ => {
                    let cause = io::Error::last_os_error();
                    if cause.kind() != io::ErrorKind::Interrupted {
                        return Err(LaneError::Io(cause));
                    }
                }
            }
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.meter.closed.load(Ordering::SeqCst)
    }

    /// Ends both directions; threads in `wait` come back with `Closed`.
    pub(crate) fn shutdown(&self) {
        self.meter.closed.store(true, Ordering::SeqCst);
        // A socket that is not connected any more is what we want.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Tells the peer that nothing more comes; what was sent still arrives.
    pub(crate) fn end_sending(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

/// Whole milliseconds until then, rounded up so that a poll never spins; `None` when it is over.
pub(crate) fn millis_until(deadline: Instant) -> Option<i32> {
    let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
    let millis = left.as_micros().div_ceil(1000);
    Some(i32::try_from(millis).unwrap_or(i32::MAX))
}

fn as_uninit(buffer: &mut [u8]) -> &mut [std::mem::MaybeUninit<u8>] {
    // SAFETY: same size and layout; recv only ever writes initialised bytes into it.
    unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [std::mem::MaybeUninit<u8>]) }
}
