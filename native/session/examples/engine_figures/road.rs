//! The ways between two ends that are compared: TLS as the product has it, TCP without TLS, and a
//! queue in memory.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use novacron_transport::memory::link_pair;
use novacron_transport::tls::{Acceptor, AcceptorOptions, Connector, SocketOptions};
use novacron_transport::{
    HELLO_BYTES_MAX, Incoming, Lane, LaneError, Link, LinkError, Listener, ReadHalf, WireControl,
    WriteHalf,
};

use crate::support::{credentials, host};

/// How often a listener that waits looks whether it was closed.
const LOOK_EVERY: Duration = Duration::from_millis(2);

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Memory,
    Tcp,
    Tls,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Memory, Self::Tcp, Self::Tls];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// Both ends on this machine.
    pub(crate) fn open(self) -> (Arc<dyn Link>, Arc<dyn Listener>) {
        match self {
            Self::Memory => {
                let (link, listener) = link_pair(host("source"));
                (Arc::new(link), Arc::new(listener))
            }
            Self::Tcp => {
                let listener = PlainListener::bind();
                (Arc::new(PlainLink(listener.address())), Arc::new(listener))
            }
            Self::Tls => {
                let [near, far] = credentials();
                let address = "127.0.0.1:0".parse().expect("an address");
                let acceptor = Acceptor::bind(address, &far, AcceptorOptions::default());
                let acceptor = acceptor.expect("a listener");
                let socket = SocketOptions::default();
                let link = Connector::new(acceptor.address(), &near, &host("target"), socket);
                (Arc::new(link.expect("a connector")), Arc::new(acceptor))
            }
        }
    }
}

/// Lanes over TCP without TLS: for measuring only, the product has no such thing.
struct PlainLink(SocketAddr);

impl Link for PlainLink {
    fn open(&self, hello: &[u8], timeout: Duration) -> Result<Lane, LinkError> {
        let stream = TcpStream::connect_timeout(&self.0, timeout).map_err(LinkError::Unreachable)?;
        send_hello(&stream, hello).map_err(LinkError::Unreachable)?;
        Ok(lane(&stream))
    }
}

struct PlainListener {
    listener: TcpListener,
    closed: AtomicBool,
}

impl PlainListener {
    fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("a socket takes it");
        Self { listener, closed: AtomicBool::new(false) }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }
}

impl Listener for PlainListener {
    fn accept(&self, timeout: Duration) -> Result<Incoming, LinkError> {
        let until = Instant::now() + timeout;
        while !self.closed.load(Ordering::SeqCst) {
            if let Ok((stream, _)) = self.listener.accept() {
                stream.set_nonblocking(false).map_err(LinkError::Unreachable)?;
                let hello = take_hello(&stream).map_err(LinkError::Unreachable)?;
                return Ok(Incoming { lane: lane(&stream), identity: host("source"), hello });
            }
            if Instant::now() > until {
                return Err(LinkError::Deadline);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Err(LinkError::Closed)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

fn send_hello(mut stream: &TcpStream, hello: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(&(hello.len() as u32).to_le_bytes())?;
    stream.write_all(hello)
}

fn take_hello(mut stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    stream.set_nodelay(true)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut hello = vec![0; (u32::from_le_bytes(length) as usize).min(HELLO_BYTES_MAX)];
    stream.read_exact(&mut hello)?;
    Ok(hello)
}

struct PlainHalf(TcpStream);

fn lane(stream: &TcpStream) -> Lane {
    let half = || Box::new(PlainHalf(stream.try_clone().expect("a descriptor")));
    Lane::new(half(), half(), Arc::new(PlainHalf(stream.try_clone().expect("a descriptor"))))
}

fn left(deadline: Option<Instant>) -> Option<Duration> {
    // Zero would mean for ever.
    let least = Duration::from_millis(1);
    deadline.map(|at| at.saturating_duration_since(Instant::now()).max(least))
}

impl ReadHalf for PlainHalf {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LaneError> {
        self.0.read(buffer).map_err(LaneError::Io)
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.0.set_read_timeout(left(deadline)).expect("a time-out above zero");
    }
}

impl WriteHalf for PlainHalf {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LaneError> {
        self.0.write_all(bytes).map_err(LaneError::Io)
    }

    fn flush(&mut self) -> Result<(), LaneError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), LaneError> {
        self.0.shutdown(Shutdown::Write).map_err(LaneError::Io)
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.0.set_write_timeout(left(deadline)).expect("a time-out above zero");
    }
}

/// Bytes are counted by the product's lanes only; here nobody asks.
impl WireControl for PlainHalf {
    fn shutdown(&self) {
        // An error means that it was shut down before.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    fn wire_bytes_sent(&self) -> u64 {
        0
    }

    fn wire_bytes_received(&self) -> u64 {
        0
    }
}
