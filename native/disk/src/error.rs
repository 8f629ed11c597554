//! Why the gate ended a connection or did not do what it was asked.

use std::error::Error;
use std::fmt;
use std::io;

/// Failures of [`crate::NbdGate`].
#[derive(Debug)]
pub enum GateError {
    /// The bytes are not NBD, or of a kind that the gate can't follow; the connection ends.
    Protocol(&'static str),
    /// The writer's epoch is lower than the gate's.
    Fenced {
        writer: u64,
        gate: u64,
    },
    /// A write on a connection that is only for reading.
    ReadsOnly,
    /// It did not happen in time; it may still happen.
    Deadline,
    /// There is no connection to the server that could do it.
    NotConnected,
    /// The server answered a flush with this error number.
    FlushFailed(u32),
    /// The gate was closed.
    Closed,
    Io(io::Error),
}

impl fmt::Display for GateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(what) => write!(f, "not the NBD that the gate can follow: {what}"),
            Self::Fenced { writer, gate } => {
                write!(f, "epoch {writer} may not write any more, the gate is at {gate}")
            }
            Self::ReadsOnly => f.write_str("a write on a connection that is only for reading"),
            Self::Deadline => f.write_str("not in time"),
            Self::NotConnected => f.write_str("no connection to the NBD server"),
            Self::FlushFailed(code) => write!(f, "the NBD server could not flush: error {code}"),
            Self::Closed => f.write_str("the gate was closed"),
            Self::Io(cause) => write!(f, "{cause}"),
        }
    }
}

impl Error for GateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(cause) => Some(cause),
            _ => None,
        }
    }
}

impl From<io::Error> for GateError {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}
