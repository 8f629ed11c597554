//! What can go wrong with another process's memory.

use std::io;

/// One failure of this crate; `what` names the step.
#[derive(Debug)]
pub enum MemoryError {
    /// A system call failed.
    System { what: &'static str, source: io::Error },
    /// The VMM does not map the memory file as a whole, shared and once.
    Mapping(String),
    /// The kernel no longer tracks the range: writes may have been missed.
    TrackingLost,
    /// No syscall could be run inside the VMM.
    Injection(String),
    /// The kernel lacks what is needed.
    Unsupported(String),
}

impl MemoryError {
    /// The error of the system call that has just failed.
    pub(crate) fn last(what: &'static str) -> Self {
        Self::System { what, source: io::Error::last_os_error() }
    }

    /// A function for `map_err`.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

impl std::fmt::Display for MemoryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System { what, source } => write!(f, "{what}: {source}"),
            Self::Mapping(text) | Self::Injection(text) | Self::Unsupported(text) => {
                f.write_str(text)
            }
            Self::TrackingLost => f.write_str("the kernel lost the tracking of guest memory"),
        }
    }
}

impl std::error::Error for MemoryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}
