//! The seam: what a link, a listener and a lane are, whatever carries the bytes.
//!
//! A lane is one ordered stream of bytes in each direction. Its two halves belong to two threads
//! and never wait for each other; a third handle shuts the lane down from anywhere. Memory is
//! bounded: a writer waits for the link, nothing queues without end.

use crate::{LaneError, LinkError, PeerIdentity};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest hello: a migration id, an epoch, a lane number and a secret fit many times over, and a
/// listener keeps this much for each peer that has not been accepted yet.
pub const HELLO_BYTES_MAX: usize = 4096;

/// A way to one peer: opens as many lanes as asked for.
pub trait Link: Send + Sync {
    /// Opens a lane and tells the peer `hello`; returns when the peer has authenticated us and has
    /// the hello. Fails with `Deadline` after `timeout`, all steps together.
    fn open(&self, hello: &[u8], timeout: Duration) -> Result<Lane, LinkError>;
}

/// The place where lanes of peers arrive.
pub trait Listener: Send + Sync {
    /// Waits for the next authenticated lane; peers that fail never get here and delay nobody.
    /// `Deadline` after `timeout`, `Closed` once `close` was called. Callable from many threads.
    fn accept(&self, timeout: Duration) -> Result<Incoming, LinkError>;
    /// Ends `accept` everywhere and stops listening; lanes that were accepted go on.
    fn close(&self);
}

/// A lane that a peer has opened.
#[derive(Debug)]
pub struct Incoming {
    pub lane: Lane,
    /// Who opened it, from its certificate.
    pub identity: PeerIdentity,
    /// What it said on opening; not yet checked by anybody.
    pub hello: Vec<u8>,
}

/// An open lane; take it apart to give its halves to two threads.
#[derive(Debug)]
pub struct Lane {
    pub reader: LaneReader,
    pub writer: LaneWriter,
    pub control: LaneControl,
}

impl Lane {
    /// Puts the parts of an implementation together.
    pub fn new(
        reader: Box<dyn ReadHalf>,
        writer: Box<dyn WriteHalf>,
        control: Arc<dyn WireControl>,
    ) -> Self {
        Self {
            reader: LaneReader(reader),
            writer: LaneWriter(writer),
            control: LaneControl(control),
        }
    }
}

/// What an implementation gives for reading.
pub trait ReadHalf: Send {
    /// Reads at least one byte; 0 only after the peer finished its side properly (or for an empty
    /// buffer). Large buffers are filled with what is at hand, without waiting for more.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LaneError>;
    /// Reads after this instant fail with `Deadline`; `None` waits for ever.
    fn set_deadline(&mut self, deadline: Option<Instant>);
}

/// What an implementation gives for writing.
pub trait WriteHalf: Send {
    /// Takes all bytes, waiting for the link where needed. They may stay in this half until
    /// `flush`; buffers of 64 KiB and more are the efficient way.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), LaneError>;
    /// Hands everything written so far to the operating system.
    fn flush(&mut self) -> Result<(), LaneError>;
    /// Flushes and says goodbye: the peer reads to its end without an error. Nothing can be
    /// written afterwards; a half that is dropped without it looks truncated to the peer.
    fn finish(&mut self) -> Result<(), LaneError>;
    /// Writes after this instant fail with `Deadline`; `None` waits for ever.
    fn set_deadline(&mut self, deadline: Option<Instant>);
}

/// What an implementation gives for looking at a lane and ending it.
pub trait WireControl: Send + Sync {
    fn shutdown(&self);
    fn wire_bytes_sent(&self) -> u64;
    fn wire_bytes_received(&self) -> u64;
}

/// The reading half of a lane; also an [`io::Read`], whose errors carry a [`LaneError`].
pub struct LaneReader(Box<dyn ReadHalf>);

impl LaneReader {
    /// See [`ReadHalf::read`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LaneError> {
        self.0.read(buffer)
    }

    /// Fills the buffer; `Truncated` when the peer's bytes end before, with or without goodbye.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), LaneError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..])? {
                0 => return Err(LaneError::Truncated),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// See [`ReadHalf::set_deadline`].
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.0.set_deadline(deadline);
    }
}

impl Read for LaneReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.read(buffer)?)
    }
}

impl std::fmt::Debug for LaneReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneReader")
    }
}

/// The writing half of a lane; also an [`io::Write`], whose errors carry a [`LaneError`].
pub struct LaneWriter(Box<dyn WriteHalf>);

impl LaneWriter {
    /// See [`WriteHalf::write_all`].
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), LaneError> {
        self.0.write_all(bytes)
    }

    /// See [`WriteHalf::flush`].
    pub fn flush(&mut self) -> Result<(), LaneError> {
        self.0.flush()
    }

    /// See [`WriteHalf::finish`].
    pub fn finish(&mut self) -> Result<(), LaneError> {
        self.0.finish()
    }

    /// See [`WriteHalf::set_deadline`].
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.0.set_deadline(deadline);
    }
}

impl Write for LaneWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(self.0.flush()?)
    }
}

impl std::fmt::Debug for LaneWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneWriter")
    }
}

/// The third handle of a lane: counts its bytes, ends it. Cloned freely; keeps nothing open.
#[derive(Clone)]
pub struct LaneControl(Arc<dyn WireControl>);

impl LaneControl {
    /// Ends the lane at once, from any thread: a blocked read or write on this side returns
    /// `Closed`, the peer reads `Truncated`. Repeating it does nothing.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }

    /// Bytes that the operating system took from this lane, handshake and encryption included;
    /// headers of TCP and IP are not in it.
    pub fn wire_bytes_sent(&self) -> u64 {
        self.0.wire_bytes_sent()
    }

    /// Bytes that the operating system gave to this lane, counted as those sent.
    pub fn wire_bytes_received(&self) -> u64 {
        self.0.wire_bytes_received()
    }
}

impl std::fmt::Debug for LaneControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneControl")
            .field("wire_bytes_sent", &self.wire_bytes_sent())
            .field("wire_bytes_received", &self.wire_bytes_received())
            .finish()
    }
}
