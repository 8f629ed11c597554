//! What can go wrong on a lane that is open, and while one is being opened.

use std::error::Error;
use std::fmt;
use std::io;

/// Why a read or a write on an open lane failed; none of them can be repaired on the same lane
/// but `Deadline` of a read.
#[derive(Debug)]
pub enum LaneError {
    /// `shutdown` was called on this side, or the half was finished before.
    Closed,
    /// The peer's bytes ended without its goodbye: a cut link, a dead process, or an attacker.
    Truncated,
    /// The deadline of this half passed. A read may be repeated; a write leaves the lane unusable
    /// for writing, because part of the bytes may have left.
    Deadline,
    /// The peer sent bytes that are not of this protocol, or were changed on the way.
    Protocol(&'static str),
    /// The peer ended the connection with a TLS alert of this number (RFC 8446, section 6).
    Alert(u8),
    /// The operating system refused; a reset or timed out connection is here too.
    Io(io::Error),
}

impl fmt::Display for LaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the lane was shut down on this side"),
            Self::Truncated => f.write_str("the peer's bytes ended without its goodbye"),
            Self::Deadline => f.write_str("the deadline of the lane passed"),
            Self::Protocol(what) => write!(f, "the peer broke the protocol: {what}"),
            Self::Alert(number) => write!(f, "the peer ended the lane with TLS alert {number}"),
            Self::Io(cause) => write!(f, "the socket failed: {cause}"),
        }
    }
}

impl Error for LaneError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(cause) => Some(cause),
            _ => None,
        }
    }
}

impl From<LaneError> for io::Error {
    fn from(error: LaneError) -> Self {
        let kind = match &error {
            LaneError::Io(cause) => cause.kind(),
            LaneError::Closed => io::ErrorKind::ConnectionAborted,
            LaneError::Truncated => io::ErrorKind::UnexpectedEof,
            LaneError::Deadline => io::ErrorKind::TimedOut,
            LaneError::Protocol(_) => io::ErrorKind::InvalidData,
            LaneError::Alert(_) => io::ErrorKind::ConnectionReset,
        };
        Self::new(kind, error)
    }
}

/// Why a lane could not be opened or accepted.
#[derive(Debug)]
pub enum LinkError {
    /// Nothing answers there, or the connection broke before both sides were sure of each other.
    Unreachable(io::Error),
    /// The time-out passed before the lane was usable.
    Deadline,
    /// One side refused the other; the text says why (certificate, role, revocation, plain text).
    Refused(String),
    /// Our own certificate, key, CA or revocation list can't be used.
    Credentials(String),
    /// The hello is longer than [`crate::HELLO_BYTES_MAX`].
    HelloTooLong(usize),
    /// The listener was closed.
    Closed,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(cause) => write!(f, "the peer can't be reached: {cause}"),
            Self::Deadline => f.write_str("the peer did not answer in time"),
            Self::Refused(why) => write!(f, "the connection was refused: {why}"),
            Self::Credentials(why) => write!(f, "the TLS credentials can't be used: {why}"),
            Self::HelloTooLong(bytes) => write!(f, "a hello of {bytes} bytes is too long"),
            Self::Closed => f.write_str("the listener was closed"),
        }
    }
}

impl Error for LinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable(cause) => Some(cause),
            _ => None,
        }
    }
}

impl LinkError {
    /// What a failure of the lane means while the lane is still being opened.
    pub(crate) fn from_lane(error: LaneError) -> Self {
        match error {
            LaneError::Closed => Self::Closed,
            LaneError::Deadline => Self::Deadline,
            LaneError::Io(cause) => Self::Unreachable(cause),
            // A process that is killed ends like this; one that refuses says so by an alert.
            LaneError::Truncated => Self::Unreachable(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer ended the connection during the handshake",
            )),
            other @ (LaneError::Protocol(_) | LaneError::Alert(_)) => {
                Self::Refused(other.to_string())
            }
        }
    }
}
